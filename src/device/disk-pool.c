/* A few threads that make ordinary system calls, for hosts and sandboxes without io_uring. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/thread.h"
#include "base/util.h"
#include "device/disk-internal.h"

#define POOL_THREADS 4

struct fifo {
    struct disk_request *first, **end;
};

struct pool {
    const struct disk *disk;
    int done_fd; /* written when `done` gets its first request */
    pthread_t threads[POOL_THREADS];
    unsigned int started;
    struct fifo submitted; /* under the disk's lock: not handed over yet */

    pthread_mutex_t lock; /* protects what follows; taken after the disk's */
    pthread_cond_t work_cv, done_cv;
    struct fifo work, done;
    bool quit;
};

static void fifo_init(struct fifo *f)
{
    f->first = NULL;
    f->end = &f->first;
}

static void fifo_put(struct fifo *f, struct disk_request *req)
{
    req->next = NULL;
    *f->end = req;
    f->end = &req->next;
}

static struct disk_request *fifo_take(struct fifo *f)
{
    struct disk_request *req = f->first;

    if (req)
        f->first = req->next;
    if (!f->first)
        f->end = &f->first;
    return req;
}

static int64_t carry_out(const struct disk_call *call)
{
    int64_t r = 0;

    switch (call->step) {
    case DISK_STEP_READV:
        r = preadv(call->fd, call->iov, (int)call->iovcnt, (off_t)call->offset);
        break;
    case DISK_STEP_WRITEV:
        r = pwritev2(call->fd, call->iov, (int)call->iovcnt, (off_t)call->offset, call->sync ? RWF_DSYNC : 0);
        break;
    case DISK_STEP_SYNC:
        r = fdatasync(call->fd);
        break;
    case DISK_STEP_PUNCH:
    case DISK_STEP_ZERO_RANGE:
        r = fallocate(call->fd, disk_fallocate_mode(call->step), (off_t)call->offset, (off_t)call->len);
        break;
    }
    return r < 0 ? -errno : r;
}

static void *work(void *arg)
{
    struct pool *p = arg;

    thread_enter(THREAD_IO, "disk");
    pthread_mutex_lock(&p->lock);
    for (;;) {
        struct disk_request *req = fifo_take(&p->work);
        struct disk_call call;

        if (!req) {
            if (p->quit)
                break;
            pthread_cond_wait(&p->work_cv, &p->lock);
            continue;
        }
        pthread_mutex_unlock(&p->lock);
        call = disk_next_call(p->disk, req);
        req->call_result = carry_out(&call);
        pthread_mutex_lock(&p->lock);
        if (!p->done.first)
            fd_event_signal(p->done_fd);
        fifo_put(&p->done, req);
        pthread_cond_signal(&p->done_cv);
    }
    pthread_mutex_unlock(&p->lock);
    thread_leave();
    return NULL;
}

static void pool_stop(void *backend)
{
    struct pool *p = backend;

    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->work_cv);
    pthread_mutex_unlock(&p->lock);
    while (p->started > 0)
        pthread_join(p->threads[--p->started], NULL);
    fd_close(p->done_fd);
    pthread_cond_destroy(&p->work_cv);
    pthread_cond_destroy(&p->done_cv);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static int start_threads(struct pool *p)
{
    int r = 0;

    while (r == 0 && p->started < POOL_THREADS) {
        r = thread_start(&p->threads[p->started], 0, work, p);
        if (r == 0)
            p->started++;
    }
    return r;
}

static int pool_start(struct disk *d, void **ret)
{
    struct pool *p = calloc(1, sizeof(*p));
    int r;

    if (!p)
        return -ENOMEM;
    p->disk = d;
    fifo_init(&p->submitted);
    fifo_init(&p->work);
    fifo_init(&p->done);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work_cv, NULL);
    pthread_cond_init(&p->done_cv, NULL);
    p->done_fd = fd_eventfd();
    r = p->done_fd < 0 ? p->done_fd : start_threads(p);
    if (r < 0) {
        pool_stop(p);
        return r;
    }
    *ret = p;
    return 0;
}

static void pool_submit(void *backend, struct disk_request *req)
{
    fifo_put(&((struct pool *)backend)->submitted, req);
}

static void pool_kick(void *backend)
{
    struct pool *p = backend;
    struct disk_request *req;
    unsigned int n = 0;

    if (!p->submitted.first)
        return;
    pthread_mutex_lock(&p->lock);
    for (; (req = fifo_take(&p->submitted)); n++)
        fifo_put(&p->work, req);
    if (n == 1)
        pthread_cond_signal(&p->work_cv);
    else
        pthread_cond_broadcast(&p->work_cv);
    pthread_mutex_unlock(&p->lock);
}

static struct disk_request *pool_reap(void *backend, int64_t *ret_result)
{
    struct pool *p = backend;
    struct disk_request *req;

    pthread_mutex_lock(&p->lock);
    req = fifo_take(&p->done);
    pthread_mutex_unlock(&p->lock);
    if (req)
        *ret_result = req->call_result;
    return req;
}

static void pool_wait(void *backend)
{
    struct pool *p = backend;

    pool_kick(p);
    pthread_mutex_lock(&p->lock);
    while (!p->done.first)
        pthread_cond_wait(&p->done_cv, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static int pool_fd(void *backend, uint32_t *ret_events)
{
    /* Not read: each write to it is an event. */
    *ret_events = EPOLLIN | EPOLLET;
    return ((struct pool *)backend)->done_fd;
}

const struct disk_backend disk_pool = {
    .name = "threads",
    .start = pool_start,
    .stop = pool_stop,
    .submit = pool_submit,
    .kick = pool_kick,
    .reap = pool_reap,
    .wait = pool_wait,
    .fd = pool_fd,
};
