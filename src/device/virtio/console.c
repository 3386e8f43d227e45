/*
 * Output goes from the guest's buffers into the chardev's ring on the I/O thread. When that takes no more, the buffer is kept
 * with how far it got, and goes on when there is room; so the driver waits as its queue fills up. Input comes on the main
 * thread, into what buffers the driver has given; what finds none stays with the chardev, which stops reading.
 */
#include "config.h"

#include "device/virtio/console.h"

#include <errno.h>
#include <linux/virtio_console.h>

#include "base/log.h"
#include "base/util.h"
#include "device/virtio/mmio.h"
#include "device/virtio/virtio.h"

#define QUEUE_SIZE 128
#define CHAIN_MAX 64
#define BATCH 64 /* buffers that are moved before the lock is given up */

enum {
    INPUT,
    OUTPUT,
    QUEUES,
};

struct vconsole {
    struct virtio_dev v;
    struct chardev *chardev;
    bool input_waits; /* the chardev was told that there is no room */
    /* The buffer that is being written out. */
    bool held;
    uint64_t done; /* of its bytes */
    struct virtq_chain chain;
    struct iovec iov[CHAIN_MAX];
    struct vconsole_counters counters;
};

static struct vconsole *to_console(struct virtio_dev *v)
{
    return container_of(v, struct vconsole, v);
}

/* -- output ------------------------------------------------------------------- */

/*
 * Write on with the held buffer; true when all of it is out. The chardev gets a copy: guest memory may be absent for long
 * (mmu/absent.h), and the main thread takes the chardev's lock, too.
 */
static bool write_held(struct vconsole *c)
{
    uint8_t copy[1024];
    size_t want, n;

    while ((want = virtq_chain_read(&c->chain, c->done, copy, sizeof(copy))) > 0) {
        n = chardev_write(c->chardev, copy, want);
        c->done += n;
        c->counters.out_bytes += n;
        if (n < want) {
            c->counters.waits++;
            return false;
        }
    }
    return true;
}

static void put_out(struct vconsole *c, struct virtq *q)
{
    for (unsigned int n = 0;; n++) {
        if (n == BATCH) {
            virtio_kick_queue(&c->v, q);
            break;
        }
        if (!c->held) {
            if (!virtq_pop(q, &c->chain))
                break;
            c->held = true;
            c->done = 0;
        }
        /* on_writable comes when there is room again. */
        if (!write_held(c))
            break;
        c->held = false;
        virtq_push(q, c->chain.head, 0);
    }
    virtq_flush(q);
}

/* Main thread. */
static void on_writable(void *opaque)
{
    struct vconsole *c = opaque;

    virtio_kick_queue(&c->v, &c->v.queues[OUTPUT]);
}

/* -- input -------------------------------------------------------------------- */

static size_t put_in(struct vconsole *c, struct virtq *q, const uint8_t *data, size_t len)
{
    struct iovec iov[CHAIN_MAX];
    struct virtq_chain chain = {.iov = iov, .capacity = CHAIN_MAX};
    size_t done = 0;

    while (done < len && virtq_pop(q, &chain)) {
        size_t n = virtq_chain_write(q, &chain, 0, data + done, len - done);

        if (n == 0) {
            virtio_misuse(&c->v, "queue %u: chain %u has no writable byte", q->index, chain.head);
            break;
        }
        virtq_push(q, chain.head, (uint32_t)n);
        done += n;
    }
    virtq_flush(q);
    return done;
}

/* Main thread. */
static size_t on_input(void *opaque, const uint8_t *data, size_t len)
{
    struct vconsole *c = opaque;
    struct virtq *q = &c->v.queues[INPUT];
    size_t n = 0;

    pthread_mutex_lock(&c->v.dev.lock);
    if (virtio_queue_live(&c->v, q))
        n = put_in(c, q, data, len);
    c->counters.in_bytes += n;
    c->input_waits = n < len;
    pthread_mutex_unlock(&c->v.dev.lock);
    return n;
}

/* -- callbacks of the core ---------------------------------------------------- */

static void vconsole_run(struct virtio_dev *v, struct virtq *q)
{
    struct vconsole *c = to_console(v);

    if (q->index == OUTPUT) {
        put_out(c, q);
    } else if (c->input_waits && virtq_has_chain(q)) {
        c->input_waits = false;
        chardev_accept_input(c->chardev);
    }
}

static void vconsole_drop(struct virtio_dev *v, struct virtq *q)
{
    if (q->index == OUTPUT)
        to_console(v)->held = false;
}

/* A byte before there are queues. */
static void vconsole_config_write(struct virtio_dev *v, unsigned int offset, unsigned int size, uint64_t value)
{
    struct vconsole *c = to_console(v);
    uint8_t byte = (uint8_t)value;

    if (offset == offsetof(struct virtio_console_config, emerg_wr))
        c->counters.out_bytes += chardev_write(c->chardev, &byte, 1);
}

static void vconsole_save(struct virtio_dev *v, struct state_writer *w)
{
    struct vconsole *c = to_console(v);

    state_put_u64(w, "written", c->held ? c->done : 0);
}

static int vconsole_restore(struct virtio_dev *v, struct state_reader *r, const struct state_section *s)
{
    uint64_t done;
    int err = state_get_u64(r, s, "written", &done);

    if (err == 0)
        err = state_check_all_read(r, s);
    if (err == 0)
        to_console(v)->done = done;
    return err;
}

static void vconsole_restore_chain(struct virtio_dev *v, struct virtq *q, uint16_t head)
{
    struct vconsole *c = to_console(v);

    if (q->index != OUTPUT || c->held || !virtq_retake(q, head, &c->chain))
        return;
    c->held = true;
}

static void vconsole_detach(struct virtio_dev *v)
{
    chardev_set_handler(to_console(v)->chardev, NULL);
}

static void vconsole_destroy(struct virtio_dev *v)
{
    free(to_console(v));
}

static const struct virtio_ops vconsole_ops = {
    .id = VIRTIO_ID_CONSOLE,
    .run = vconsole_run,
    .drop = vconsole_drop,
    .config_write = vconsole_config_write,
    .save = vconsole_save,
    .restore = vconsole_restore,
    .restore_chain = vconsole_restore_chain,
    .detach = vconsole_detach,
    .destroy = vconsole_destroy,
};

static const struct device_ops vconsole_device_ops = VIRTIO_DEVICE_OPS("virtio-console", 1);

int vconsole_create(const struct device_env *env, struct chardev *chardev, unsigned int slot, struct device **ret)
{
    struct vconsole *c = calloc(1, sizeof(*c));
    const struct chardev_handler handler = {.on_input = on_input, .on_writable = on_writable, .opaque = c};
    int r;

    if (!c)
        return -ENOMEM;
    c->chardev = chardev;
    c->chain = (struct virtq_chain){.iov = c->iov, .capacity = CHAIN_MAX};
    r = virtio_init(&c->v, &vconsole_device_ops, &vconsole_ops, 0, env, "vconsole",
                    UINT64_C(1) << VIRTIO_CONSOLE_F_EMERG_WRITE, QUEUES, QUEUE_SIZE);
    if (r < 0) {
        free(c);
        return r;
    }
    c->v.config_len = sizeof(struct virtio_console_config);
    r = virtio_mmio_attach(&c->v, slot);
    if (r < 0) {
        device_destroy(&c->v.dev);
        return r;
    }
    chardev_set_handler(chardev, &handler);
    *ret = &c->v.dev;
    return 0;
}

void vconsole_counters(struct device *dev, struct vconsole_counters *ret)
{
    struct vconsole *c = container_of(dev, struct vconsole, v.dev);

    pthread_mutex_lock(&dev->lock);
    *ret = c->counters;
    pthread_mutex_unlock(&dev->lock);
}
