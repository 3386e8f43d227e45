/* io_uring. Requests are prepared as they come and handed to the kernel by one system call a batch. */
#include "config.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/util.h"
#include "device/disk-internal.h"

/* Submission entries; the completion ring has twice as many, and the kernel keeps what does not fit. */
#define RING_ENTRIES 256u

struct uring {
    const struct disk *disk;
    struct io_uring ring;
    /* Requests that found no free entry, in their order. */
    struct disk_request *waiting, **waiting_end;
};

static int probe(struct io_uring *ring)
{
    static const int ops[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE};
    struct io_uring_probe *p = io_uring_get_probe_ring(ring);
    int r = p ? 0 : -ENOSYS;

    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(ops); i++)
        if (!io_uring_opcode_supported(p, ops[i]))
            r = -ENOSYS;
    io_uring_free_probe(p);
    return r;
}

static int uring_start(struct disk *d, void **ret)
{
    struct uring *u = calloc(1, sizeof(*u));
    int r;

    if (!u)
        return -ENOMEM;
    u->disk = d;
    u->waiting_end = &u->waiting;
    r = io_uring_queue_init(RING_ENTRIES, &u->ring, 0);
    if (r < 0) {
        free(u);
        return r;
    }
    r = probe(&u->ring);
    if (r == 0)
        r = io_uring_ring_dontfork(&u->ring);
    if (r < 0) {
        io_uring_queue_exit(&u->ring);
        free(u);
        return r;
    }
    *ret = u;
    return 0;
}

static void uring_stop(void *backend)
{
    struct uring *u = backend;

    io_uring_queue_exit(&u->ring);
    free(u);
}

static void prepare(struct uring *u, struct io_uring_sqe *sqe, struct disk_request *req)
{
    struct disk_call call = disk_next_call(u->disk, req);

    switch (call.step) {
    case DISK_STEP_READV:
        io_uring_prep_readv(sqe, call.fd, call.iov, call.iovcnt, call.offset);
        break;
    case DISK_STEP_WRITEV:
        io_uring_prep_writev2(sqe, call.fd, call.iov, call.iovcnt, call.offset, call.sync ? RWF_DSYNC : 0);
        break;
    case DISK_STEP_SYNC:
        io_uring_prep_fsync(sqe, call.fd, IORING_FSYNC_DATASYNC);
        break;
    case DISK_STEP_PUNCH:
    case DISK_STEP_ZERO_RANGE:
        io_uring_prep_fallocate(sqe, call.fd, disk_fallocate_mode(call.step), call.offset, call.len);
        break;
    }
    io_uring_sqe_set_data(sqe, req);
}

static void uring_submit(void *backend, struct disk_request *req)
{
    struct uring *u = backend;
    struct io_uring_sqe *sqe = u->waiting ? NULL : io_uring_get_sqe(&u->ring);

    if (sqe) {
        prepare(u, sqe, req);
        return;
    }
    req->next = NULL;
    *u->waiting_end = req;
    u->waiting_end = &req->next;
}

/* Move what waits into free entries. */
static void fill(struct uring *u)
{
    struct io_uring_sqe *sqe;

    while (u->waiting && (sqe = io_uring_get_sqe(&u->ring))) {
        struct disk_request *req = u->waiting;

        u->waiting = req->next;
        if (!u->waiting)
            u->waiting_end = &u->waiting;
        prepare(u, sqe, req);
    }
}

static void uring_kick(void *backend)
{
    struct uring *u = backend;

    /*
     * A failure leaves the entries in the ring, for the next kick: the kernel is short of memory, or has completions that
     * did not fit. Then something is in flight, and its end brings the next kick.
     */
    while (io_uring_sq_ready(&u->ring) > 0 && io_uring_submit(&u->ring) > 0)
        fill(u);
}

static struct disk_request *uring_reap(void *backend, int64_t *ret_result)
{
    struct uring *u = backend;
    struct disk_request *req;
    struct io_uring_cqe *cqe;

    if (io_uring_peek_cqe(&u->ring, &cqe) < 0)
        return NULL;
    req = io_uring_cqe_get_data(cqe);
    *ret_result = cqe->res;
    io_uring_cqe_seen(&u->ring, cqe);
    return req;
}

static void uring_wait(void *backend)
{
    struct uring *u = backend;
    struct io_uring_cqe *cqe;

    uring_kick(u);
    /* An interrupted wait is the caller's to repeat. */
    if (io_uring_wait_cqe(&u->ring, &cqe) < 0)
        return;
}

static int uring_fd(void *backend, uint32_t *ret_events)
{
    *ret_events = EPOLLIN;
    return ((struct uring *)backend)->ring.ring_fd;
}

const struct disk_backend disk_uring = {
    .name = "io_uring",
    .start = uring_start,
    .stop = uring_stop,
    .submit = uring_submit,
    .kick = uring_kick,
    .reap = uring_reap,
    .wait = uring_wait,
    .fd = uring_fd,
};
