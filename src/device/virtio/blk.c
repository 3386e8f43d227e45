/*
 * A request is a chain: a header of 16 bytes, data, and a byte of status. How these are spread over buffers is the
 * driver's affair.
 *
 * Requests that found the host's disk full stay on the `held` list, their chains taken, until the device is started again;
 * a state that is saved carries them as taken chains.
 */
#include "config.h"

#include "device/virtio/blk.h"

#include <assert.h>
#include <errno.h>
#include <linux/virtio_blk.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/list.h"
#include "base/log.h"
#include "base/util.h"
#include "device/virtio/mmio.h"
#include "device/virtio/virtio.h"

#define SECTOR_SHIFT 9
#define SECTOR 512u
#define HEADER_SIZE 16u
/* Buffers of data in a request, and with header and status. */
#define SEG_MAX (VBLK_QUEUE_SIZE - 2)
#define CHAIN_MAX VBLK_QUEUE_SIZE
/* Sectors of a discard or zeroing request: so long that few are needed, so short that none takes for ever. */
#define MAX_DISCARD_SECTORS (UINT32_C(1) << 21)
#define MAX_ZEROES_SECTORS (UINT32_C(1) << 16)
/* How often a queue is looked at again before others have a turn. */
#define MAX_ROUNDS 8
#define NAME_MAX_LEN 16

static_assert(sizeof(struct virtio_blk_outhdr) == HEADER_SIZE, "as the specification has it");
static_assert(sizeof(struct virtio_blk_discard_write_zeroes) == 16, "as the specification has it");

struct vblk_request {
    struct disk_request disk; /* first: what the disk gives back is the request */
    struct list_node node;    /* in held */
    struct vblk_request *next_free;
    struct virtq *queue;
    struct virtq_chain chain;
    uint32_t type;
    uint8_t *status;
    uint32_t data_bytes; /* of the writable part, without the status */
    struct iovec iov[CHAIN_MAX];
};

struct vblk {
    struct virtio_dev v;
    char name[NAME_MAX_LEN];
    char *serial;
    struct disk *disk;
    struct io_source done; /* on the I/O thread: the disk has something to reap */
    /* As many as there can be; memory is touched as they are first used. */
    struct vblk_request *requests;
    unsigned int fresh; /* those from here on were never used */
    struct vblk_request *free;
    struct list_node held;
    unsigned int held_count;
    bool retry;     /* what is held back is to be tried again */
    bool restoring; /* nothing goes to the disk before the start */
    enum vblk_io_status io_status;
    struct vblk_counters counters;
};

static struct vblk *to_blk(struct virtio_dev *v)
{
    return container_of(v, struct vblk, v);
}

static struct vblk *of_device(struct device *dev)
{
    return container_of(dev, struct vblk, v.dev);
}

/* -- requests ----------------------------------------------------------------- */

static struct vblk_request *get_request(struct vblk *b)
{
    struct vblk_request *req = b->free;

    if (req)
        b->free = req->next_free;
    else
        req = &b->requests[b->fresh++];
    /* There is one for each descriptor, and a head is taken once. */
    assert(b->fresh <= b->v.queue_count * VBLK_QUEUE_SIZE);
    req->chain.iov = req->iov;
    req->chain.capacity = CHAIN_MAX;
    return req;
}

static void put_request(struct vblk *b, struct vblk_request *req)
{
    req->next_free = b->free;
    b->free = req;
}

static void put_status(struct virtq *q, const struct vblk_request *req, uint8_t status)
{
    *req->status = status;
    mem_mark_dirty_ptr(q->mem, req->status, 1);
}

static void answer(struct vblk *b, struct vblk_request *req, uint8_t status, uint32_t written)
{
    struct virtq *q = req->queue;

    put_status(q, req, status);
    virtq_push(q, req->chain.head, written + 1);
    put_request(b, req);
}

static const char *operation_name(const struct vblk_request *req)
{
    return req->type == VIRTIO_BLK_T_IN ? "read" : "write";
}

static bool is_no_space(int result)
{
    return result == -ENOSPC || result == -EDQUOT;
}

static void tell_error(struct vblk *b, const struct vblk_request *req, int result, bool stop)
{
    const struct device_io_error error = {
        .device = b->name, .operation = operation_name(req), .error = -result, .no_space = is_no_space(result), .stop = stop};

    if (b->v.env.host->io_error)
        b->v.env.host->io_error(b->v.env.host->opaque, &error);
}

static void hold_back(struct vblk *b, struct vblk_request *req)
{
    list_append(&b->held, &req->node);
    b->held_count++;
}

static void count_done(struct vblk *b, const struct vblk_request *req)
{
    switch (req->disk.op) {
    case DISK_READ:
        b->counters.reads++;
        b->counters.read_bytes += req->disk.len;
        break;
    case DISK_WRITE:
        b->counters.writes++;
        b->counters.write_bytes += req->disk.len;
        break;
    case DISK_FLUSH:
        b->counters.flushes++;
        break;
    case DISK_DISCARD:
        b->counters.discards++;
        break;
    case DISK_ZERO:
        b->counters.zeroes++;
        break;
    }
}

static void finish(struct vblk *b, struct vblk_request *req)
{
    int result = req->disk.result;

    if (req->type == VIRTIO_BLK_T_IN) {
        /* Also what a failed read may have left. */
        virtq_chain_written(req->queue, &req->chain, req->data_bytes);
    } else if (is_no_space(result)) {
        b->io_status = VBLK_NOSPACE;
        hold_back(b, req);
        tell_error(b, req, result, true);
        return;
    }
    if (result < 0) {
        b->counters.errors++;
        b->io_status = VBLK_FAILED;
        log_warn_limited("%s: %s of %llu bytes at %llu: %s", b->name, operation_name(req),
                         (unsigned long long)req->disk.len, (unsigned long long)req->disk.offset, strerrordesc_np(-result));
        tell_error(b, req, result, false);
    } else {
        count_done(b, req);
    }
    answer(b, req, result < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK, req->type == VIRTIO_BLK_T_IN ? req->data_bytes : 0);
}

static void flush_queues(struct vblk *b)
{
    for (unsigned int i = 0; i < b->v.queue_count; i++)
        if (b->v.queues[i].s.ready)
            virtq_flush(&b->v.queues[i]);
}

/* Hand over what was submitted and finish what is done already: much is, where the host has it in its cache. */
static void reap(struct vblk *b)
{
    struct disk_request *done;
    bool any = false;

    disk_kick(b->disk);
    while ((done = disk_reap(b->disk))) {
        finish(b, container_of(done, struct vblk_request, disk));
        any = true;
    }
    /* What the disk goes on with by itself. */
    disk_kick(b->disk);
    if (any)
        flush_queues(b);
}

/* -- taking requests apart ---------------------------------------------------- */

/* Take the status byte off the end. False: the driver left no room for it. */
static bool split_status(struct vblk *b, struct vblk_request *req)
{
    struct virtq_chain *c = &req->chain;
    struct iovec *last = &c->iov[c->readable + c->writable - 1];

    if (c->readable_bytes < HEADER_SIZE || c->writable_bytes < 1) {
        virtio_misuse(&b->v, "queue %u: chain %u of %u readable and %u writable bytes is no request", req->queue->index,
                      c->head, c->readable_bytes, c->writable_bytes);
        return false;
    }
    req->status = (uint8_t *)last->iov_base + last->iov_len - 1;
    last->iov_len--;
    c->writable -= last->iov_len == 0;
    req->data_bytes = --c->writable_bytes;
    return true;
}

/* Take the header off the front of the readable part. */
static void split_header(struct virtq_chain *c)
{
    size_t left = HEADER_SIZE;

    while (left > 0 && left >= c->iov[0].iov_len) {
        left -= c->iov[0].iov_len;
        c->iov++;
        c->readable--;
    }
    if (left > 0) {
        c->iov[0].iov_base = (uint8_t *)c->iov[0].iov_base + left;
        c->iov[0].iov_len -= left;
    }
    c->readable_bytes -= HEADER_SIZE;
}

static bool in_range(const struct vblk *b, uint64_t sector, uint64_t bytes)
{
    uint64_t sectors = disk_info(b->disk)->size >> SECTOR_SHIFT;

    return bytes % SECTOR == 0 && sector <= sectors && bytes >> SECTOR_SHIFT <= sectors - sector;
}

static void submit(struct vblk *b, struct vblk_request *req, enum disk_op op, uint64_t sector, uint64_t bytes)
{
    const struct virtq_chain *c = &req->chain;

    req->disk.op = op;
    req->disk.offset = sector << SECTOR_SHIFT;
    req->disk.len = bytes;
    req->disk.iov = op == DISK_READ ? c->iov + c->readable : c->iov;
    /* A driver that cannot flush is one whose writes are done when they are done. */
    req->disk.sync = !virtio_has(&b->v, VIRTIO_BLK_F_FLUSH);
    req->disk.iovcnt = op == DISK_READ ? c->writable : op == DISK_WRITE ? c->readable : 0;
    if (b->restoring)
        hold_back(b, req);
    else
        disk_submit(b->disk, &req->disk);
}

static void transfer(struct vblk *b, struct vblk_request *req, uint64_t sector)
{
    bool read = req->type == VIRTIO_BLK_T_IN;
    uint64_t bytes = read ? req->chain.writable_bytes : req->chain.readable_bytes;

    if ((!read && disk_info(b->disk)->read_only) || !in_range(b, sector, bytes)) {
        b->counters.errors++;
        log_warn_limited("%s: the guest's %s of %llu bytes at sector %llu is refused", b->name, operation_name(req),
                         (unsigned long long)bytes, (unsigned long long)sector);
        answer(b, req, VIRTIO_BLK_S_IOERR, 0);
    } else if (bytes == 0) {
        answer(b, req, VIRTIO_BLK_S_OK, 0);
    } else {
        submit(b, req, read ? DISK_READ : DISK_WRITE, sector, bytes);
    }
}

static void discard_or_zero(struct vblk *b, struct vblk_request *req)
{
    bool discard = req->type == VIRTIO_BLK_T_DISCARD;
    struct virtio_blk_discard_write_zeroes range;
    uint32_t flags, sectors, limit = discard ? MAX_DISCARD_SECTORS : MAX_ZEROES_SECTORS;

    /* One range a request, as the configuration space says. */
    if (req->chain.readable_bytes != sizeof(range)) {
        answer(b, req, VIRTIO_BLK_S_IOERR, 0);
        return;
    }
    virtq_chain_read(&req->chain, 0, &range, sizeof(range));
    flags = le32_get(&range.flags);
    sectors = le32_get(&range.num_sectors);
    if (flags & ~(discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)) {
        answer(b, req, VIRTIO_BLK_S_UNSUPP, 0);
    } else if (sectors > limit || !in_range(b, le64_get(&range.sector), (uint64_t)sectors << SECTOR_SHIFT)) {
        b->counters.errors++;
        answer(b, req, VIRTIO_BLK_S_IOERR, 0);
    } else if (sectors == 0) {
        answer(b, req, VIRTIO_BLK_S_OK, 0);
    } else {
        req->disk.unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        submit(b, req, discard ? DISK_DISCARD : DISK_ZERO, le64_get(&range.sector), (uint64_t)sectors << SECTOR_SHIFT);
    }
}

static void get_id(struct vblk *b, struct vblk_request *req)
{
    char id[VBLK_SERIAL_MAX] = {0};
    size_t n;

    memcpy(id, b->serial, MIN(strlen(b->serial), sizeof(id)));
    n = virtq_chain_write(req->queue, &req->chain, 0, id, sizeof(id));
    answer(b, req, VIRTIO_BLK_S_OK, (uint32_t)n);
}

static void start_request(struct vblk *b, struct vblk_request *req)
{
    struct virtio_blk_outhdr header;
    bool writable = !disk_info(b->disk)->read_only;

    if (!split_status(b, req)) {
        /* The chain stays taken; the reset that is due forgets it. */
        put_request(b, req);
        return;
    }
    virtq_chain_read(&req->chain, 0, &header, sizeof(header));
    split_header(&req->chain);
    req->type = le32_get(&header.type);
    switch (req->type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT:
        transfer(b, req, le64_get(&header.sector));
        return;
    case VIRTIO_BLK_T_FLUSH:
        submit(b, req, DISK_FLUSH, 0, 0);
        return;
    case VIRTIO_BLK_T_GET_ID:
        get_id(b, req);
        return;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        if (writable) {
            discard_or_zero(b, req);
            return;
        }
        break;
    default:
        break;
    }
    answer(b, req, VIRTIO_BLK_S_UNSUPP, 0);
}

/* -- callbacks of the core ---------------------------------------------------- */

static void try_again(struct vblk *b)
{
    struct vblk_request *req;

    b->retry = false;
    list_for_each(req, &b->held, node) {
        list_remove(&req->node);
        b->held_count--;
        disk_submit(b->disk, &req->disk);
    }
}

static void vblk_run(struct virtio_dev *v, struct virtq *q)
{
    struct vblk *b = to_blk(v);
    unsigned int rounds = 0;
    struct vblk_request *req;

    if (b->retry)
        try_again(b);
    do {
        if (rounds++ == MAX_ROUNDS) {
            /* The driver adds requests as fast as they are done; the lock has others who want it. */
            virtio_kick_queue(v, q);
            break;
        }
        while (virtq_has_chain(q)) {
            req = get_request(b);
            req->queue = q;
            if (!virtq_pop(q, &req->chain)) {
                put_request(b, req);
                break;
            }
            start_request(b, req);
        }
        reap(b);
        virtq_flush(q);
    } while (virtq_has_chain(q));
}

/* On the I/O thread. */
static void on_done(void *opaque, uint32_t events)
{
    struct vblk *b = opaque;

    pthread_mutex_lock(&b->v.dev.lock);
    reap(b);
    pthread_mutex_unlock(&b->v.dev.lock);
}

static void vblk_start(struct virtio_dev *v)
{
    struct vblk *b = to_blk(v);

    b->retry = b->held_count > 0;
    b->io_status = VBLK_OK;
}

static void vblk_stop(struct virtio_dev *v)
{
    struct vblk *b = to_blk(v);

    reap(b);
    while (disk_in_flight(b->disk) > 0) {
        disk_wait(b->disk);
        reap(b);
    }
}

static void vblk_drop(struct virtio_dev *v, struct virtq *q)
{
    struct vblk *b = to_blk(v);
    struct vblk_request *req;

    list_for_each(req, &b->held, node) {
        if (req->queue != q)
            continue;
        list_remove(&req->node);
        b->held_count--;
        put_request(b, req);
    }
}

/* Take a held back request out of guest memory again; it is tried at the start. */
static void vblk_restore_chain(struct virtio_dev *v, struct virtq *q, uint16_t head)
{
    struct vblk *b = to_blk(v);
    struct vblk_request *req = get_request(b);

    req->queue = q;
    b->restoring = true;
    if (virtq_retake(q, head, &req->chain))
        start_request(b, req);
    else
        put_request(b, req);
    b->restoring = false;
}

static void vblk_save(struct virtio_dev *v, struct state_writer *w)
{
    state_put_u64(w, "size", disk_info(to_blk(v)->disk)->size);
}

static int vblk_restore(struct virtio_dev *v, struct state_reader *r, const struct state_section *s)
{
    uint64_t here = disk_info(to_blk(v)->disk)->size, size;
    int err = state_get_u64(r, s, "size", &size);

    if (err == 0 && size != here)
        err = state_bad(r, s, "field size: a disk of %llu bytes, here it has %llu", (unsigned long long)size,
                        (unsigned long long)here);
    return err;
}

static void vblk_compare(struct virtio_dev *v, const struct device_comparison *c)
{
    uint64_t here = disk_info(to_blk(v)->disk)->size, size, offered;
    bool read_only = v->offered >> VIRTIO_BLK_F_RO & 1;

    if (device_compared_u64(c, "size", &size) && size != here)
        device_differs(c, "a disk of %llu bytes, here %llu", (unsigned long long)size, (unsigned long long)here);
    /* It is among the features too, as a number. */
    if (state_get_u64(c->r, c->s, "offered", &offered) == 0 && (offered >> VIRTIO_BLK_F_RO & 1) != read_only)
        device_differs(c, "a disk that is %s", read_only ? "written, here it is read-only" : "read-only, here it is written");
}

static void vblk_detach(struct virtio_dev *v)
{
    io_thread_remove(&to_blk(v)->done);
}

static void vblk_destroy(struct virtio_dev *v)
{
    struct vblk *b = to_blk(v);

    disk_close(b->disk);
    free(b->requests);
    free(b->serial);
    free(b);
}

static const struct virtio_ops vblk_ops = {
    .id = VIRTIO_ID_BLOCK,
    .run = vblk_run,
    .start = vblk_start,
    .stop = vblk_stop,
    .drop = vblk_drop,
    .save = vblk_save,
    .restore = vblk_restore,
    .compare = vblk_compare,
    .restore_chain = vblk_restore_chain,
    .detach = vblk_detach,
    .destroy = vblk_destroy,
};

static const struct device_ops vblk_device_ops = VIRTIO_DEVICE_OPS("virtio-blk", 1);

/* -- making it ---------------------------------------------------------------- */

static uint64_t features_of(const struct disk_info *info, unsigned int queues)
{
    uint64_t features = UINT64_C(1) << VIRTIO_BLK_F_SEG_MAX | UINT64_C(1) << VIRTIO_BLK_F_BLK_SIZE |
                        UINT64_C(1) << VIRTIO_BLK_F_FLUSH;

    if (queues > 1)
        features |= UINT64_C(1) << VIRTIO_BLK_F_MQ;
    if (info->read_only)
        return features | UINT64_C(1) << VIRTIO_BLK_F_RO;
    return features | UINT64_C(1) << VIRTIO_BLK_F_DISCARD | UINT64_C(1) << VIRTIO_BLK_F_WRITE_ZEROES;
}

static void fill_config(struct vblk *b)
{
    const struct disk_info *info = disk_info(b->disk);
    uint8_t *config = b->v.config;

#define CONFIG_AT(field) (config + offsetof(struct virtio_blk_config, field))
    b->v.config_len = sizeof(struct virtio_blk_config);
    le64_put(CONFIG_AT(capacity), info->size >> SECTOR_SHIFT);
    le32_put(CONFIG_AT(seg_max), SEG_MAX);
    le32_put(CONFIG_AT(blk_size), info->block_size);
    le16_put(CONFIG_AT(num_queues), (uint16_t)b->v.queue_count);
    if (!info->read_only) {
        le32_put(CONFIG_AT(max_discard_sectors), MAX_DISCARD_SECTORS);
        le32_put(CONFIG_AT(max_discard_seg), 1);
        le32_put(CONFIG_AT(discard_sector_alignment), info->block_size / SECTOR);
        le32_put(CONFIG_AT(max_write_zeroes_sectors), MAX_ZEROES_SECTORS);
        le32_put(CONFIG_AT(max_write_zeroes_seg), 1);
        *CONFIG_AT(write_zeroes_may_unmap) = 1;
    }
#undef CONFIG_AT
}

static int prepare(struct vblk *b, const struct vblk_config *config, unsigned int queues)
{
    const struct disk_config disk = {
        .path = config->path,
        .read_only = config->read_only,
        .direct = config->direct,
        .unclaimed = config->unclaimed,
        .aio = config->aio,
    };
    int r = disk_open(&disk, &b->disk);

    if (r < 0)
        return r;
    b->serial = strdup(config->serial ? config->serial : b->name);
    b->requests = calloc((size_t)queues * VBLK_QUEUE_SIZE, sizeof(*b->requests));
    return b->serial && b->requests ? 0 : -ENOMEM;
}

static int watch(struct vblk *b)
{
    uint32_t events;

    b->done = (struct io_source){.fd = disk_fd(b->disk, &events), .ready = on_done, .opaque = b};
    return b->v.env.io ? io_thread_add(b->v.env.io, &b->done, events) : 0;
}

int vblk_create(const struct device_env *env, const struct vblk_config *config, unsigned int index, unsigned int slot,
                struct device **ret)
{
    unsigned int queues = config->queues ? config->queues : 1;
    struct vblk *b = calloc(1, sizeof(*b));
    int r;

    if (!b)
        return -ENOMEM;
    list_init(&b->held);
    snprintf(b->name, sizeof(b->name), "disk%u", index);
    r = prepare(b, config, queues);
    if (r == 0)
        r = virtio_init(&b->v, &vblk_device_ops, &vblk_ops, index, env, "vblk", features_of(disk_info(b->disk), queues),
                        queues, VBLK_QUEUE_SIZE);
    if (r < 0) {
        vblk_destroy(&b->v);
        return r;
    }
    fill_config(b);
    r = watch(b);
    if (r == 0)
        r = virtio_mmio_attach(&b->v, slot);
    if (r < 0) {
        device_destroy(&b->v.dev);
        return r;
    }
    *ret = &b->v.dev;
    return 0;
}

/* -- changing hands ----------------------------------------------------------- */

int vblk_claim(struct device *dev, bool same_host)
{
    int r;

    pthread_mutex_lock(&dev->lock);
    r = disk_claim(of_device(dev)->disk, same_host);
    pthread_mutex_unlock(&dev->lock);
    return r;
}

int vblk_sync(struct device *dev)
{
    int r;

    pthread_mutex_lock(&dev->lock);
    r = disk_sync(of_device(dev)->disk);
    pthread_mutex_unlock(&dev->lock);
    return r;
}

int vblk_sync_fd(struct device *dev)
{
    int fd;

    pthread_mutex_lock(&dev->lock);
    fd = disk_sync_fd(of_device(dev)->disk);
    pthread_mutex_unlock(&dev->lock);
    return fd;
}

void vblk_yield(struct device *dev)
{
    pthread_mutex_lock(&dev->lock);
    disk_yield(of_device(dev)->disk);
    pthread_mutex_unlock(&dev->lock);
}

/* -- what others ask ---------------------------------------------------------- */

void vblk_info(struct device *dev, struct vblk_info *ret)
{
    struct vblk *b = of_device(dev);

    pthread_mutex_lock(&dev->lock);
    *ret = (struct vblk_info){
        .name = b->name,
        .serial = b->serial,
        .disk = *disk_info(b->disk),
        .queues = b->v.queue_count,
        .held_back = b->held_count,
        .status = b->io_status,
        .needs_reset = b->v.regs.status & VIRTIO_CONFIG_S_NEEDS_RESET,
        .counters = b->counters,
    };
    ret->counters.kicks = b->v.counters.kicks;
    ret->counters.interrupts = b->v.counters.interrupts;
    ret->counters.misuses = b->v.counters.misuses;
    pthread_mutex_unlock(&dev->lock);
}

uint64_t vblk_allocated(struct device *dev)
{
    return disk_allocated(of_device(dev)->disk);
}
