/*
 * A raw image or block device, read and written without waiting: requests are submitted, handed over together, and reaped
 * when they are done, by io_uring or by a few threads where there is none.
 *
 * Not thread safe: the caller's lock is around all of it, and any thread that holds it may reap. The backends' own
 * threads touch nothing but requests that were handed over.
 */
#ifndef UMBRA_DEVICE_DISK_H
#define UMBRA_DEVICE_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum disk_aio {
    DISK_AIO_AUTO, /* io_uring where it works */
    DISK_AIO_URING,
    DISK_AIO_THREADS,
};

struct disk_config {
    const char *path;
    bool read_only;
    bool direct; /* past the host's page cache; what is not aligned for that goes through it */
    bool unclaimed; /* it is another process's for now: a writer's lock is taken by disk_claim */
    enum disk_aio aio;
};

enum disk_op {
    DISK_READ,
    DISK_WRITE,
    DISK_FLUSH,
    DISK_DISCARD, /* give the range back to the host; what it reads as then is not said */
    DISK_ZERO,    /* it reads as zeros; kept allocated unless `unmap` */
};

/* The caller's, from disk_submit until disk_reap has given it back. iov and what it points to are not changed. */
struct disk_request {
    enum disk_op op;
    bool unmap;
    bool sync; /* what is written is on the disk when it is done, without a flush */
    uint64_t offset, len; /* bytes */
    const struct iovec *iov;
    unsigned int iovcnt;
    int result; /* 0 or -errno, when it is done */

    /* Private. */
    struct disk_request *next;
    uint64_t done;
    struct iovec *rest; /* what is left to transfer after a part was; NULL before */
    unsigned int restcnt;
    struct iovec tail; /* of zeros to write: the last part of a buffer */
    int64_t call_result; /* the thread pool's */
    uint8_t step;
    bool buffered; /* not direct: not aligned */
};

struct disk;

struct disk_info {
    uint64_t size;          /* bytes, a multiple of 512 */
    uint32_t block_size;    /* logical: the least transfer that needs no detour */
    bool read_only, direct;
    bool block_device;
    const char *aio; /* "io_uring" or "threads" */
};

/*
 * Open and lock the image: a writer is alone, readers may be several. -errno, logged: -EBUSY when another process has it,
 * -EINVAL for what is neither a file nor a block device, or has a size of no whole sectors.
 */
int disk_open(const struct disk_config *config, struct disk **ret);
/*
 * Take the writer's lock of an image that was opened unclaimed, or yielded; 0 where it is held, and for a reader, who has
 * kept his own since disk_open. same_host: whoever had it before is a process of this host, whose page cache is right, and may have
 * a lot to write yet. -errno, logged: -EBUSY when another process has it, -ESTALE when its size is not the one that it was opened
 * with. Nothing is submitted to a disk that is not claimed.
 */
int disk_claim(struct disk *d, bool same_host);
/*
 * All that was written is where a process of another host, if one can open the image, finds it. 0 or -errno, logged; then the
 * next flush fails, too. Nothing is in flight.
 */
int disk_sync(struct disk *d);
/*
 * A descriptor, the caller's: fdatasync(2) of it, on any thread and with requests in flight, leaves less for disk_sync to do.
 * Whether it fails is of no interest, as disk_sync and flushes are told by themselves. -1 where disk_sync has nothing to do.
 */
int disk_sync_fd(const struct disk *d);
/* Let another process claim it; after disk_sync. Nothing is in flight. */
void disk_yield(struct disk *d);
/* Nothing is in flight. NULL is fine. */
void disk_close(struct disk *d);
const struct disk_info *disk_info(const struct disk *d);
/* Bytes that the image takes on the host; 0 for a block device. */
uint64_t disk_allocated(const struct disk *d);

/* The range lies within the disk; no write to a read-only one. */
void disk_submit(struct disk *d, struct disk_request *req);
/* Hand over all that was submitted. */
void disk_kick(struct disk *d);
/* The next request that is done, or NULL. Call until it is NULL, then disk_kick: some may go on with what is left of them. */
struct disk_request *disk_reap(struct disk *d);
unsigned int disk_in_flight(const struct disk *d);
/* Wait until disk_reap has something to look at; something is in flight and was handed over. */
void disk_wait(struct disk *d);

/* To be watched for these events of epoll: something may be there to reap. */
int disk_fd(const struct disk *d, uint32_t *ret_events);

#endif
