/*
 * The I/O thread: one event loop for what devices do beside the guest (queues, disks, network), so that neither vCPUs nor
 * the main loop wait for a disk. It sleeps in epoll_wait; nothing wakes it but its sources.
 *
 * Locks: a source's callback takes its device's lock itself. io_thread_remove must be called without any lock that a
 * callback takes.
 */
#ifndef UMBRA_DEVICE_IO_THREAD_H
#define UMBRA_DEVICE_IO_THREAD_H

#include <stdint.h>
#include <sys/epoll.h>

struct io_thread;

/* A descriptor to watch. The owner keeps it until it is removed; zeroed, it is not watched. */
struct io_source {
    int fd;
    /* On the I/O thread; `events` are those of epoll. */
    void (*ready)(void *opaque, uint32_t events);
    void *opaque;
    struct io_thread *thread; /* private: where it is watched, or NULL */
};

/* Start the thread. 0 or -errno. */
int io_thread_new(struct io_thread **ret);
/* End and join it; all sources were removed. NULL is fine. */
void io_thread_free(struct io_thread *t);

/*
 * Watch s->fd for `events` (EPOLLIN, EPOLLOUT, EPOLLET). An eventfd watched with EPOLLET need not be read: each write to it
 * is an event. 0 or -errno. Any thread.
 */
int io_thread_add(struct io_thread *t, struct io_source *s, uint32_t events);
/* Change the events; 0 or -errno. Any thread. */
int io_thread_modify(struct io_source *s, uint32_t events);
/* When it returns the callback does not run any more; it may be called from the callback. A source not watched is fine. */
void io_thread_remove(struct io_source *s);

#endif
