/*
 * What every thread of the daemon has in common: it is of a kind (which decides what the sandbox lets it do), it has a name, and
 * it shows signs of life.
 *
 * A thread calls thread_enter first and thread_leave last. Between, it is at work or waits for work; it says so at the one place
 * where its loop waits. A thread that stays at work too long is stuck: the watchdog asks thread_stuck. A long task that makes
 * progress calls thread_alive now and then.
 */
#ifndef UMBRA_BASE_THREAD_H
#define UMBRA_BASE_THREAD_H

#include <pthread.h>
#include <stddef.h>

enum thread_kind {
    THREAD_MAIN,    /* the main loop */
    THREAD_VCPU,    /* runs the guest */
    THREAD_IO,      /* virtio queues and what serves them */
    THREAD_MMU,     /* reads guest page tables */
    THREAD_UFFD,    /* serves userfaultfd */
    THREAD_MIGRATE, /* copies the guest, to a peer or a file */
    THREAD_KINDS,
};

#define THREAD_NAME_MAX 16

/* "main", "vcpu", ... */
const char *thread_kind_name(enum thread_kind kind);

/*
 * Make a thread without signals: those are for the main thread and for vCPUs. stack_size: bytes, 0: as the system has it. 0 or
 * -errno.
 */
int thread_start(pthread_t *ret, size_t stack_size, void *(*run)(void *arg), void *arg);

/*
 * Begin: `name` (at most 15 bytes) becomes the calling thread's. Then the hook is called, which locks the thread in; the
 * thread must not have looked at anything a guest or a peer wrote before.
 */
void thread_enter(enum thread_kind kind, const char *name);
void thread_leave(void);

/* The name and kind of the calling thread; those of main before it has called thread_enter. Safe in a signal handler. */
const char *thread_name(void);
enum thread_kind thread_kind_of_caller(void);

/* Called by thread_enter on each thread. Set before there are any. */
void thread_set_hook(void (*hook)(enum thread_kind kind));

/* The calling thread takes up work, or waits for some. Cheap: one store. Without thread_enter: nothing. */
void thread_busy(void);
void thread_idle(void);
/* The work goes on. */
void thread_alive(void);

/*
 * The name of a thread that has been at the same piece of work since the call before the last, in `name`; NULL where there is none.
 * To be called in equal intervals. Main thread.
 */
const char *thread_stuck(char name[THREAD_NAME_MAX]);

#endif
