#include "config.h"

#include "base/thread.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/list.h"
#include "base/util.h"

struct thread {
    struct list_node node;
    char name[THREAD_NAME_MAX];
    enum thread_kind kind;
    bool entered;
    atomic_uint beat; /* odd while at work; written by its thread only */
    unsigned int seen, same; /* thread_stuck: the beat of last time, and for how many calls it has been that */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects the list and seen, same of each */
static struct list_node threads = {&threads, &threads};
static void (*enter_hook)(enum thread_kind kind);
static _Thread_local struct thread self = {.name = "main"};

const char *thread_kind_name(enum thread_kind kind)
{
    static const char *const names[THREAD_KINDS] = {"main", "vcpu", "io", "mmu", "uffd", "migrate"};

    return names[kind];
}

void thread_set_hook(void (*hook)(enum thread_kind kind))
{
    enter_hook = hook;
}

int thread_start(pthread_t *ret, size_t stack_size, void *(*run)(void *arg), void *arg)
{
    sigset_t all, old;
    pthread_attr_t attr;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attr);
    if (stack_size)
        pthread_attr_setstacksize(&attr, stack_size);
    r = -pthread_create(ret, &attr, run, arg);
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r;
}

/* What tells of a mistake of the thread itself must reach it, whoever made it with all signals blocked. */
static void unblock_faults(void)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS};
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_SIZE(faults); i++)
        sigaddset(&set, faults[i]);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

void thread_enter(enum thread_kind kind, const char *name)
{
    snprintf(self.name, sizeof(self.name), "%s", name);
    self.kind = kind;
    /* The main thread's name is that of the process. */
    if (kind != THREAD_MAIN)
        pthread_setname_np(pthread_self(), self.name);
    pthread_mutex_lock(&lock);
    list_append(&threads, &self.node);
    self.entered = true;
    pthread_mutex_unlock(&lock);
    unblock_faults();
    if (enter_hook)
        enter_hook(kind);
}

void thread_leave(void)
{
    pthread_mutex_lock(&lock);
    if (self.entered)
        list_remove(&self.node);
    self.entered = false;
    pthread_mutex_unlock(&lock);
}

const char *thread_name(void)
{
    return self.name;
}

enum thread_kind thread_kind_of_caller(void)
{
    return self.kind;
}

static void set_beat(unsigned int odd)
{
    unsigned int beat = atomic_load_explicit(&self.beat, memory_order_relaxed);

    if (beat % 2 != odd)
        atomic_store_explicit(&self.beat, beat + 1, memory_order_relaxed);
}

void thread_busy(void)
{
    set_beat(1);
}

void thread_idle(void)
{
    set_beat(0);
}

void thread_alive(void)
{
    atomic_store_explicit(&self.beat, atomic_load_explicit(&self.beat, memory_order_relaxed) + 2, memory_order_relaxed);
}

const char *thread_stuck(char name[THREAD_NAME_MAX])
{
    const char *stuck = NULL;
    struct thread *t;

    pthread_mutex_lock(&lock);
    list_for_each(t, &threads, node) {
        unsigned int beat = atomic_load_explicit(&t->beat, memory_order_relaxed);

        t->same = beat % 2 == 1 && beat == t->seen ? t->same + 1 : 0;
        t->seen = beat;
        if (t->same >= 2) {
            memcpy(name, t->name, THREAD_NAME_MAX);
            stuck = name;
        }
    }
    pthread_mutex_unlock(&lock);
    return stuck;
}
