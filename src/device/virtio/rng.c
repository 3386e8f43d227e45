/*
 * Random bytes go straight from getrandom into the guest's buffers. A request gets all it asks for or stays in the available ring: so
 * there is never one in flight, and nothing to save. The rate holds over time: what a request takes beyond this period's bytes
 * is owed, and the next request waits until it is paid. (The specification would let a device give less than was asked for; but
 * the driver of Linux 6.1.192 waits for ever after an answer that it cannot use up in one read.)
 */
#include "config.h"

#include "device/virtio/rng.h"

#include <errno.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "device/device-internal.h"
#include "device/virtio/mmio.h"
#include "device/virtio/virtio.h"

#define QUEUE_SIZE 64
#define CHAIN_MAX 64
#define PERIODS_PER_SEC 10u
#define PERIOD_NS (NSEC_PER_SEC / PERIODS_PER_SEC)
/* Requests that are answered before the lock is given up. */
#define BATCH 16

struct vrng {
    struct virtio_dev v;
    uint64_t quota;      /* bytes a period; 0: no limit */
    int64_t left;        /* of this period; below 0: owed to the next ones */
    uint64_t period_end; /* monotonic */
    struct device_timer timer;
    struct vrng_counters counters;
};

static struct vrng *to_rng(struct virtio_dev *v)
{
    return container_of(v, struct vrng, v);
}

/* -- rate --------------------------------------------------------------------- */

/* Begin the period that it is. What was not used does not add up. */
static void settle(struct vrng *g, uint64_t now)
{
    uint64_t periods = (now - g->period_end) / PERIOD_NS + 1;

    if (g->period_end == 0 || periods > INT64_MAX / g->quota) {
        g->period_end = now + PERIOD_NS;
        g->left = (int64_t)g->quota;
        return;
    }
    g->period_end += periods * PERIOD_NS;
    g->left = MIN(g->left + (int64_t)(periods * g->quota), (int64_t)g->quota);
}

/* Whether the next request is answered; else it has to wait, and the timer is set. */
static bool may_answer(struct vrng *g)
{
    uint64_t now;

    if (g->quota == 0)
        return true;
    now = device_monotonic_ns(&g->v.env);
    if (now >= g->period_end)
        settle(g, now);
    if (g->left > 0)
        return true;
    g->counters.waits++;
    /* The period in which all is paid and something left. */
    device_timer_set(&g->timer, (int64_t)(g->period_end + (uint64_t)-g->left / g->quota * PERIOD_NS));
    return false;
}

/* On the main thread: the next period begins. */
static void on_timer(evutil_socket_t fd, short what, void *opaque)
{
    struct vrng *g = opaque;

    pthread_mutex_lock(&g->v.dev.lock);
    device_timer_clear(&g->timer);
    virtio_kick_queue(&g->v, &g->v.queues[0]);
    pthread_mutex_unlock(&g->v.dev.lock);
}

/* -- requests ----------------------------------------------------------------- */

/* Fill the first `want` bytes of the writable part; how many there are now, less only where the host has none. */
static size_t fill(const struct virtq_chain *c, size_t want)
{
    const struct iovec *iov = c->iov + c->readable;
    size_t done = 0;

    for (unsigned int i = 0; i < c->writable && done < want; i++) {
        size_t len = MIN(iov[i].iov_len, want - done), at = 0;

        while (at < len) {
            ssize_t n = getrandom((uint8_t *)iov[i].iov_base + at, len - at, 0);

            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return done + at;
            at += (size_t)n;
        }
        done += len;
    }
    return done;
}

static void answer(struct vrng *g, struct virtq *q, const struct virtq_chain *c)
{
    size_t done = fill(c, MIN((size_t)c->writable_bytes, (size_t)VRNG_REQUEST_MAX));

    virtq_chain_written(q, c, done);
    virtq_push(q, c->head, (uint32_t)done);
    g->counters.bytes += done;
    if (g->quota)
        g->left -= (int64_t)done;
}

static void vrng_run(struct virtio_dev *v, struct virtq *q)
{
    struct vrng *g = to_rng(v);
    struct iovec iov[CHAIN_MAX];
    struct virtq_chain c = {.iov = iov, .capacity = CHAIN_MAX};

    for (unsigned int n = 0; virtq_has_chain(q) && may_answer(g); n++) {
        if (n == BATCH) {
            virtio_kick_queue(v, q);
            break;
        }
        if (!virtq_pop(q, &c))
            break;
        if (c.writable_bytes == 0) {
            virtio_misuse(v, "queue %u: chain %u has no writable byte", q->index, c.head);
            break;
        }
        answer(g, q, &c);
    }
    virtq_flush(q);
}

/* -- the device --------------------------------------------------------------- */

static void vrng_stop(struct virtio_dev *v)
{
    /* The start kicks the queue. */
    device_timer_set(&to_rng(v)->timer, -1);
}

static void vrng_detach(struct virtio_dev *v)
{
    device_timer_fini(&to_rng(v)->timer);
}

static void vrng_destroy(struct virtio_dev *v)
{
    free(to_rng(v));
}

static const struct virtio_ops vrng_ops = {
    .id = VIRTIO_ID_RNG,
    .run = vrng_run,
    .stop = vrng_stop,
    .detach = vrng_detach,
    .destroy = vrng_destroy,
};

static const struct device_ops vrng_device_ops = VIRTIO_DEVICE_OPS("virtio-rng", 1);

int vrng_create(const struct device_env *env, const struct vrng_config *config, unsigned int slot, struct device **ret)
{
    struct vrng *g = calloc(1, sizeof(*g));
    int r;

    if (!g)
        return -ENOMEM;
    g->quota = config->rate ? MAX(config->rate / PERIODS_PER_SEC, UINT64_C(1)) : 0;
    r = virtio_init(&g->v, &vrng_device_ops, &vrng_ops, 0, env, "vrng", 0, 1, QUEUE_SIZE);
    if (r < 0) {
        free(g);
        return r;
    }
    r = config->rate ? device_timer_init(&g->timer, env, CLOCK_MONOTONIC, on_timer, g) : 0;
    if (r == 0)
        r = virtio_mmio_attach(&g->v, slot);
    if (r < 0) {
        device_destroy(&g->v.dev);
        return r;
    }
    *ret = &g->v.dev;
    return 0;
}

void vrng_counters(struct device *dev, struct vrng_counters *ret)
{
    struct vrng *g = container_of(dev, struct vrng, v.dev);

    pthread_mutex_lock(&dev->lock);
    *ret = g->counters;
    pthread_mutex_unlock(&dev->lock);
}
