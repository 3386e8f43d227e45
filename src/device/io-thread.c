#include "config.h"

#include "device/io-thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/fd.h"
#include "base/thread.h"
#include "base/util.h"

#define BATCH 16

struct io_thread {
    pthread_t thread;
    int epoll_fd;
    int wake_fd;
    pthread_mutex_t lock; /* protects quit and rounds */
    pthread_cond_t round_cv;
    bool quit;
    uint64_t rounds; /* batches of events that are done with */
    /* The I/O thread's own: events at hand. A source that is removed from a callback is taken out. */
    struct epoll_event batch[BATCH];
    int batch_len;
};

static bool end_round(struct io_thread *t)
{
    bool quit;

    pthread_mutex_lock(&t->lock);
    t->rounds++;
    pthread_cond_broadcast(&t->round_cv);
    quit = t->quit;
    pthread_mutex_unlock(&t->lock);
    return quit;
}

static void *run(void *arg)
{
    struct io_thread *t = arg;

    thread_enter(THREAD_IO, "io");
    do {
        int n;

        thread_idle();
        n = epoll_wait(t->epoll_fd, t->batch, BATCH, -1);
        thread_busy();
        t->batch_len = n < 0 ? 0 : n;
        for (int i = 0; i < t->batch_len; i++) {
            struct io_source *s = t->batch[i].data.ptr;

            if (s)
                s->ready(s->opaque, t->batch[i].events);
        }
    } while (!end_round(t));
    thread_leave();
    return NULL;
}

static int start(struct io_thread *t)
{
    struct epoll_event wake = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};

    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (t->epoll_fd < 0)
        return -errno;
    t->wake_fd = fd_eventfd();
    if (t->wake_fd < 0)
        return t->wake_fd;
    if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->wake_fd, &wake) < 0)
        return -errno;
    return thread_start(&t->thread, 0, run, t);
}

static void release(struct io_thread *t)
{
    fd_close(t->wake_fd);
    fd_close(t->epoll_fd);
    pthread_cond_destroy(&t->round_cv);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

int io_thread_new(struct io_thread **ret)
{
    struct io_thread *t = calloc(1, sizeof(*t));
    int r;

    if (!t)
        return -ENOMEM;
    t->epoll_fd = t->wake_fd = -1;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->round_cv, NULL);
    r = start(t);
    if (r < 0) {
        release(t);
        return r;
    }
    *ret = t;
    return 0;
}

void io_thread_free(struct io_thread *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->quit = true;
    pthread_mutex_unlock(&t->lock);
    fd_event_signal(t->wake_fd);
    pthread_join(t->thread, NULL);
    release(t);
}

int io_thread_add(struct io_thread *t, struct io_source *s, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = s};

    if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, s->fd, &event) < 0)
        return -errno;
    s->thread = t;
    return 0;
}

int io_thread_modify(struct io_source *s, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = s};

    return epoll_ctl(s->thread->epoll_fd, EPOLL_CTL_MOD, s->fd, &event) < 0 ? -errno : 0;
}

void io_thread_remove(struct io_source *s)
{
    struct io_thread *t = s->thread;
    uint64_t round;

    if (!t)
        return;
    s->thread = NULL;
    /* It cannot fail for a descriptor that was added and not closed. */
    if (epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, s->fd, NULL) < 0)
        return;
    if (pthread_equal(pthread_self(), t->thread)) {
        for (int i = 0; i < t->batch_len; i++)
            if (t->batch[i].data.ptr == s)
                t->batch[i].data.ptr = NULL;
        return;
    }
    /* The event may be at hand already: wait until what is at hand is done with. */
    pthread_mutex_lock(&t->lock);
    round = t->rounds;
    fd_event_signal(t->wake_fd);
    while (t->rounds == round)
        pthread_cond_wait(&t->round_cv, &t->lock);
    pthread_mutex_unlock(&t->lock);
}
