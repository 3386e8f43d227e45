#include "config.h"

#include "device/disk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "device/disk-internal.h"

#define SECTOR 512u
/* The largest blocks that direct I/O is known to want. */
#define DIRECT_ALIGN_MAX 4096u
#define ZEROS_SIZE (64 * KiB)
#define ZEROS_IOVECS 16u

struct disk {
    struct disk_info info;
    char *path;
    int fd;        /* through the page cache; holds the lock */
    bool claimed;  /* the lock is held */
    bool shared;   /* another host may come to the same bytes, and not by this one's page cache */
    int direct_fd; /* or -1 */
    int sync_fd;   /* for disk_sync_fd, or -1: what it is told of a failure the guest's flush is told as well */
    int lost;      /* -errno: what was written is not on the disk, and the guest has not been told yet */
    uint32_t direct_align; /* as far as we know */
    bool no_discard, no_zero_range; /* the host told us that it cannot */
    struct iovec zeros[ZEROS_IOVECS]; /* all of them the same memory */
    void *zeros_area;
    const struct disk_backend *backend;
    void *backend_data;
    unsigned int in_flight;
};

/* -- opening ------------------------------------------------------------------ */

static int lock_image(const struct disk *d)
{
    struct flock lock = {.l_type = d->info.read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(d->fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES) {
        log_err("disk %s: another process has it open%s", d->path, d->info.read_only ? " for writing" : "");
        return -EBUSY;
    }
    log_err_errno(errno, "disk %s: cannot be locked", d->path);
    return -errno;
}

static void unlock_image(const struct disk *d)
{
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

    (void)fcntl(d->fd, F_OFD_SETLK, &lock);
}

static int find_size(struct disk *d)
{
    struct stat st;
    uint64_t size;
    int block = SECTOR;

    if (fstat(d->fd, &st) < 0)
        return -errno;
    size = (uint64_t)st.st_size;
    d->info.block_device = S_ISBLK(st.st_mode);
    if (d->info.block_device) {
        if (ioctl(d->fd, BLKGETSIZE64, &size) < 0 || ioctl(d->fd, BLKSSZGET, &block) < 0)
            return -errno;
    } else if (!S_ISREG(st.st_mode)) {
        log_err("disk %s: neither a file nor a block device", d->path);
        return -EINVAL;
    }
    if (size == 0 || size % (unsigned int)block != 0) {
        log_err("disk %s: size %llu is not a multiple of %d", d->path, (unsigned long long)size, block);
        return -EINVAL;
    }
    d->info.size = size;
    d->info.block_size = d->direct_align = (uint32_t)block;
    return 0;
}

/* Of a file system that is mounted by one host at a time others see what that host's page cache has (an NFS server's, too). */
static bool is_shared(const struct disk *d)
{
    static const uint32_t own[] = {BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, RAMFS_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC};
    struct statfs fs;

    if (d->info.block_device || fstatfs(d->fd, &fs) < 0)
        return true;
    for (size_t i = 0; i < ARRAY_SIZE(own); i++)
        if ((uint32_t)fs.f_type == own[i])
            return false;
    return true;
}

static int open_image(struct disk *d)
{
    int r = 0;

    /* Not to wait for somebody to open the other end of a pipe; a disk has no use for the flag. */
    d->fd = open(d->path, (d->info.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);
    if (d->fd >= 0)
        r = fd_set_nonblock(d->fd, 0);
    if (d->fd < 0 || r < 0) {
        r = d->fd < 0 ? -errno : r;
        log_err_errno(r, "disk %s: cannot be opened", d->path);
    }
    return r;
}

static int open_direct(struct disk *d)
{
    int r = 0;

    if (!d->info.direct)
        return 0;
    d->direct_fd = open(d->path, (d->info.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_DIRECT);
    if (d->direct_fd < 0) {
        r = -errno;
        log_err_errno(r, "disk %s: cannot be opened for direct I/O", d->path);
    }
    return r;
}

static int open_sync(struct disk *d)
{
    int r = 0;

    if (!d->shared || d->info.read_only)
        return 0;
    d->sync_fd = open(d->path, O_RDWR | O_CLOEXEC);
    if (d->sync_fd < 0) {
        r = -errno;
        log_err_errno(r, "disk %s: cannot be opened once more", d->path);
    }
    return r;
}

static int make_zeros(struct disk *d)
{
    d->zeros_area = mmap(NULL, ZEROS_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (d->zeros_area == MAP_FAILED) {
        d->zeros_area = NULL;
        return -ENOMEM;
    }
    for (unsigned int i = 0; i < ZEROS_IOVECS; i++)
        d->zeros[i] = (struct iovec){.iov_base = d->zeros_area, .iov_len = ZEROS_SIZE};
    return 0;
}

static int start_backend(struct disk *d, enum disk_aio aio)
{
    int r = -ENOSYS;

    if (aio != DISK_AIO_THREADS) {
        d->backend = &disk_uring;
        r = d->backend->start(d, &d->backend_data);
        if (r < 0 && aio == DISK_AIO_URING)
            log_err_errno(r, "disk %s: no io_uring here", d->path);
    }
    if (r < 0 && aio != DISK_AIO_URING) {
        if (aio == DISK_AIO_AUTO)
            log_info("disk %s: no io_uring here (%s): threads do its I/O", d->path, strerrordesc_np(-r));
        d->backend = &disk_pool;
        r = d->backend->start(d, &d->backend_data);
        if (r < 0)
            log_err_errno(r, "disk %s: cannot start threads", d->path);
    }
    if (r == 0)
        d->info.aio = d->backend->name;
    return r;
}

int disk_open(const struct disk_config *config, struct disk **ret)
{
    struct disk *d = calloc(1, sizeof(*d));
    int r;

    if (!d)
        return -ENOMEM;
    d->fd = d->direct_fd = d->sync_fd = -1;
    d->info.read_only = config->read_only;
    d->info.direct = config->direct;
    d->path = strdup(config->path);
    if (!d->path) {
        disk_close(d);
        return -ENOMEM;
    }
    r = open_image(d);
    d->claimed = config->read_only || !config->unclaimed;
    if (r == 0 && d->claimed)
        r = lock_image(d);
    if (r == 0)
        r = find_size(d);
    d->shared = r == 0 && is_shared(d);
    if (r == 0)
        r = open_direct(d);
    if (r == 0)
        r = open_sync(d);
    if (r == 0)
        r = make_zeros(d);
    if (r == 0)
        r = start_backend(d, config->aio);
    if (r < 0) {
        disk_close(d);
        return r;
    }
    *ret = d;
    return 0;
}

void disk_close(struct disk *d)
{
    if (!d)
        return;
    assert(d->in_flight == 0);
    if (d->backend_data)
        d->backend->stop(d->backend_data);
    if (d->zeros_area)
        munmap(d->zeros_area, ZEROS_SIZE);
    fd_close(d->sync_fd);
    fd_close(d->direct_fd);
    fd_close(d->fd);
    free(d->path);
    free(d);
}

/* -- changing hands ----------------------------------------------------------- */

static int same_size(const struct disk *d)
{
    /* Also a block device's; no call depends on where the descriptor stands. */
    off_t size = lseek(d->fd, 0, SEEK_END);
    int r = size < 0 ? -errno : 0;

    if (r < 0)
        log_err_errno(r, "disk %s: its size cannot be read", d->path);
    else if ((uint64_t)size != d->info.size) {
        log_err("disk %s: size %lld is not the %llu that it was opened with", d->path, (long long)size,
                (unsigned long long)d->info.size);
        r = -ESTALE;
    }
    return r;
}

int disk_claim(struct disk *d, bool same_host)
{
    int r;

    if (d->claimed)
        return 0;
    r = lock_image(d);
    if (r < 0)
        return r;
    r = same_size(d);
    if (r < 0) {
        unlock_image(d);
        return r;
    }
    /* Another host may have written to it since this one read it last. Of files a shared file system takes care. */
    if (d->info.block_device && !same_host)
        (void)posix_fadvise(d->fd, 0, 0, POSIX_FADV_DONTNEED);
    d->claimed = true;
    return 0;
}

int disk_sync(struct disk *d)
{
    int r;

    assert(d->in_flight == 0);
    if (!d->claimed || d->info.read_only || !d->shared)
        return 0;
    r = fdatasync(d->fd) < 0 ? -errno : 0;
    if (r < 0) {
        log_err_errno(r, "disk %s: cannot be written out", d->path);
        d->lost = r;
    }
    return r;
}

int disk_sync_fd(const struct disk *d)
{
    return d->claimed && d->sync_fd >= 0 ? fcntl(d->sync_fd, F_DUPFD_CLOEXEC, 3) : -1;
}

void disk_yield(struct disk *d)
{
    assert(d->in_flight == 0);
    if (!d->claimed || d->info.read_only)
        return;
    unlock_image(d);
    d->claimed = false;
}

const struct disk_info *disk_info(const struct disk *d)
{
    return &d->info;
}

uint64_t disk_allocated(const struct disk *d)
{
    struct stat st;

    return !d->info.block_device && fstat(d->fd, &st) == 0 ? (uint64_t)st.st_blocks * SECTOR : 0;
}

/* -- steps of a request ------------------------------------------------------- */

static enum disk_step first_step(const struct disk *d, const struct disk_request *req)
{
    switch (req->op) {
    case DISK_READ:
        return DISK_STEP_READV;
    case DISK_WRITE:
        return DISK_STEP_WRITEV;
    case DISK_FLUSH:
        return DISK_STEP_SYNC;
    case DISK_DISCARD:
        return DISK_STEP_PUNCH;
    case DISK_ZERO:
        if (req->unmap && !d->no_discard)
            return DISK_STEP_PUNCH;
        return d->no_zero_range ? DISK_STEP_WRITEV : DISK_STEP_ZERO_RANGE;
    }
    return DISK_STEP_SYNC;
}

int disk_fallocate_mode(enum disk_step step)
{
    return FALLOC_FL_KEEP_SIZE | (step == DISK_STEP_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

struct disk_call disk_next_call(const struct disk *d, const struct disk_request *req)
{
    struct disk_call call = {
        .fd = d->direct_fd >= 0 && !req->buffered ? d->direct_fd : d->fd,
        .step = req->step,
        .offset = req->offset + req->done,
        .len = req->len - req->done,
        .sync = req->sync,
        .iov = req->rest ? req->rest : req->iov,
        .iovcnt = req->rest ? req->restcnt : req->iovcnt,
    };

    if (req->op == DISK_ZERO && call.step == DISK_STEP_WRITEV) {
        /* As many whole buffers as fit, or a part of one. */
        call.iov = call.len < ZEROS_SIZE ? &req->tail : d->zeros;
        call.iovcnt = call.len < ZEROS_SIZE ? 1 : (unsigned int)MIN(call.len / ZEROS_SIZE, (uint64_t)ZEROS_IOVECS);
    }
    return call;
}

/* A first guess, which errs to the fast side: a call that the host finds misaligned is made again through the cache. */
static bool misaligned(const struct disk *d, const struct disk_request *req)
{
    uint64_t bits = req->offset | req->len;

    for (unsigned int i = 0; i < req->iovcnt; i++)
        bits |= (uintptr_t)req->iov[i].iov_base | req->iov[i].iov_len;
    return !is_aligned(bits, d->direct_align);
}

static void submit_step(struct disk *d, struct disk_request *req)
{
    if (req->op == DISK_ZERO)
        req->tail = (struct iovec){.iov_base = d->zeros_area, .iov_len = MIN(req->len - req->done, ZEROS_SIZE)};
    d->backend->submit(d->backend_data, req);
}

void disk_submit(struct disk *d, struct disk_request *req)
{
    assert(req->offset <= d->info.size && req->len <= d->info.size - req->offset);
    assert(!d->info.read_only || req->op == DISK_READ || req->op == DISK_FLUSH);
    assert(d->claimed);
    req->next = NULL;
    req->done = 0;
    req->rest = NULL;
    req->step = (uint8_t)first_step(d, req);
    req->buffered = d->direct_fd >= 0 && (req->op == DISK_ZERO || misaligned(d, req));
    d->in_flight++;
    submit_step(d, req);
}

void disk_kick(struct disk *d)
{
    d->backend->kick(d->backend_data);
}

/* -- what came of it ---------------------------------------------------------- */

/* Leave out the first `bytes` of what was to be transferred. */
static int skip(struct disk_request *req, uint64_t bytes)
{
    unsigned int i = 0;

    if (!req->rest) {
        req->rest = calloc(req->iovcnt, sizeof(*req->rest));
        if (!req->rest)
            return -ENOMEM;
        memcpy(req->rest, req->iov, req->iovcnt * sizeof(*req->rest));
        req->restcnt = req->iovcnt;
    }
    while (i < req->restcnt && bytes >= req->rest[i].iov_len)
        bytes -= req->rest[i++].iov_len;
    memmove(req->rest, req->rest + i, (req->restcnt - i) * sizeof(*req->rest));
    req->restcnt -= i;
    if (req->restcnt > 0) {
        req->rest[0].iov_base = (uint8_t *)req->rest[0].iov_base + bytes;
        req->rest[0].iov_len -= bytes;
    }
    return 0;
}

/* 0: done; 1: submitted again; -errno. */
static int after_transfer(struct disk *d, struct disk_request *req, int64_t result)
{
    int r;

    if (result == -EINVAL && d->direct_fd >= 0 && !req->buffered) {
        /* The host wants larger blocks than sectors. */
        d->direct_align = DIRECT_ALIGN_MAX;
        req->buffered = true;
        return 1;
    }
    if (result < 0)
        return (int)result;
    /* The image has become shorter, or a write that transfers nothing would be tried for ever. */
    if (result == 0)
        return -EIO;
    req->done += MIN((uint64_t)result, req->len - req->done);
    if (req->done == req->len)
        return 0;
    r = req->op == DISK_ZERO ? 0 : skip(req, (uint64_t)result);
    /* What follows a part that is not whole blocks is not aligned. */
    req->buffered = d->direct_fd >= 0;
    return r < 0 ? r : 1;
}

/* The host's file system cannot: another way, or none (1 as above). */
static int after_unsupported(struct disk *d, struct disk_request *req)
{
    if (req->step == DISK_STEP_PUNCH)
        d->no_discard = true;
    else
        d->no_zero_range = true;
    /* A discard may do nothing. */
    if (req->op == DISK_DISCARD)
        return 0;
    req->step = (uint8_t)first_step(d, req);
    return 1;
}

static int after_step(struct disk *d, struct disk_request *req, int64_t result)
{
    if (result == -EINTR || result == -EAGAIN)
        return 1;
    if (req->step == DISK_STEP_READV || req->step == DISK_STEP_WRITEV)
        return after_transfer(d, req, result);
    if (result == -EOPNOTSUPP && req->step != DISK_STEP_SYNC)
        return after_unsupported(d, req);
    /* The host tells of such a failure once, and disk_sync was told. */
    if (result == 0 && req->step == DISK_STEP_SYNC) {
        result = d->lost;
        d->lost = 0;
    }
    return (int)result;
}

struct disk_request *disk_reap(struct disk *d)
{
    struct disk_request *req;
    int64_t result;

    while ((req = d->backend->reap(d->backend_data, &result))) {
        int r = after_step(d, req, result);

        if (r == 1) {
            submit_step(d, req);
            continue;
        }
        free(take_ptr(req->rest));
        req->result = r;
        d->in_flight--;
        return req;
    }
    return NULL;
}

unsigned int disk_in_flight(const struct disk *d)
{
    return d->in_flight;
}

void disk_wait(struct disk *d)
{
    assert(d->in_flight > 0);
    d->backend->wait(d->backend_data);
}

int disk_fd(const struct disk *d, uint32_t *ret_events)
{
    return d->backend->fd(d->backend_data, ret_events);
}
