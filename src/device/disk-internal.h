/* What the backends of a disk share: single steps of requests. */
#ifndef UMBRA_DEVICE_DISK_INTERNAL_H
#define UMBRA_DEVICE_DISK_INTERNAL_H

#include "device/disk.h"

/* One system call's worth of a request. */
enum disk_step {
    DISK_STEP_READV,
    DISK_STEP_WRITEV,
    DISK_STEP_SYNC,
    DISK_STEP_PUNCH,
    DISK_STEP_ZERO_RANGE,
};

struct disk_call {
    int fd;
    enum disk_step step;
    bool sync;
    uint64_t offset, len;
    const struct iovec *iov;
    unsigned int iovcnt;
};

/* The call that a request wants next. Any thread, while the request is handed over. */
struct disk_call disk_next_call(const struct disk *d, const struct disk_request *req);
/* FALLOC_FL_* of the steps that are fallocate(2). */
int disk_fallocate_mode(enum disk_step step);

struct disk_backend {
    const char *name;
    int (*start)(struct disk *d, void **ret);
    void (*stop)(void *backend);
    void (*submit)(void *backend, struct disk_request *req);
    void (*kick)(void *backend);
    /* A request whose call has ended, with the call's result (bytes or -errno); NULL: none. */
    struct disk_request *(*reap)(void *backend, int64_t *ret_result);
    void (*wait)(void *backend);
    int (*fd)(void *backend, uint32_t *ret_events);
};

extern const struct disk_backend disk_uring;
extern const struct disk_backend disk_pool;

#endif
