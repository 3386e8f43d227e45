/*
 * What is given back counts as written (mem_give_back), so consumers of the dirty log see zeros, and page tables that are
 * given back are read again. The driver names any frame it likes: the worst it gets is zeros in its own memory.
 *
 * Small pages are given back one by one. Of huge pages a bitmap tells which parts are in the balloon, and one goes back when all
 * of it is; that is safe only with a driver that tells before it takes pages out again (MUST_TELL_HOST).
 *
 * The statistics queue has one buffer, which the device keeps until it wants to know again.
 */
#include "config.h"

#include "device/virtio/balloon.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "device/device-internal.h"
#include "device/virtio/mmio.h"
#include "device/virtio/virtio.h"

#define QUEUE_SIZE 128
#define CHAIN_MAX 64
#define BATCH 16 /* requests that are served before the lock is given up */
#define PFNS_AT_ONCE 256u
#define STATS_MAX 64u
#define STAT_SIZE 10u
#define FEATURE(bit) (UINT64_C(1) << (bit))
#define AT(field) offsetof(struct virtio_balloon_config, field)
#define PAGES_PER_HUGE (MEM_HUGE_PAGE_SIZE / GUEST_PAGE_SIZE)

static_assert(sizeof(struct virtio_balloon_stat) == STAT_SIZE, "as the specification has it");
static_assert(PAGES_PER_HUGE % BITMAP_WORD_BITS == 0, "a huge page is whole words of the bitmap");

enum {
    INFLATE,
    DEFLATE,
    STATS,
    REPORTING, /* only where it is offered */
};

/* What is saved of the device's own. */
struct balloon_state {
    uint32_t target, actual; /* pages in the balloon, as in the configuration space */
    uint32_t poison;
    uint32_t interval;
    bool stats_held;
    uint16_t stats_head;
};

struct vballoon {
    struct virtio_dev v;
    struct balloon_state s;
    uint64_t *inside; /* huge pages: a bit for each small one that is in the balloon; else NULL */
    struct device_timer timer;
    uint64_t stats_time, stats_present;
    uint64_t stats[VIRTIO_BALLOON_S_NR];
    struct vballoon_counters counters;
};

static const struct state_field state_fields[] = {
    STATE_FIELD(struct balloon_state, target),     STATE_FIELD(struct balloon_state, actual),
    STATE_FIELD(struct balloon_state, poison),     STATE_FIELD(struct balloon_state, interval),
    STATE_FIELD(struct balloon_state, stats_held), STATE_FIELD(struct balloon_state, stats_head),
};

static struct vballoon *to_balloon(struct virtio_dev *v)
{
    return container_of(v, struct vballoon, v);
}

static struct vballoon *of_device(struct device *dev)
{
    return container_of(dev, struct vballoon, v.dev);
}

/* -- giving back -------------------------------------------------------------- */

static void give_back(struct vballoon *b, const void *ptr, uint64_t len)
{
    int64_t n = mem_give_back(b->v.env.mem, ptr, len);

    if (n >= 0) {
        b->counters.given_back_bytes += (uint64_t)n;
        return;
    }
    b->counters.failures++;
    log_warn_limited("%s: the host does not take %llu bytes back: %s", b->v.name, (unsigned long long)len,
                     strerrordesc_np((int)-n));
}

/* Frames that follow each other: the host is asked once. */
struct run {
    gfn_t first, end;
};

static void end_run(struct vballoon *b, struct run *run)
{
    uint64_t len = pages_to_bytes(run->end - run->first);
    const void *p = len ? mem_ptr(b->v.env.mem, gfn_to_gpa(run->first), len) : NULL;

    if (p)
        give_back(b, p, len);
    run->end = run->first;
}

static void add_to_run(struct vballoon *b, struct run *run, gfn_t gfn)
{
    if (run->first < run->end && gfn == run->end && mem_is_ram(b->v.env.mem, gfn_to_gpa(run->first),
                                                               pages_to_bytes(gfn + 1 - run->first))) {
        run->end++;
    } else if (run->first < run->end && gfn + 1 == run->first &&
               mem_is_ram(b->v.env.mem, gfn_to_gpa(gfn), pages_to_bytes(run->end - gfn))) {
        run->first--;
    } else {
        end_run(b, run);
        *run = (struct run){.first = gfn, .end = gfn + 1};
    }
}

/* A part of a huge page is in the balloon: give it back when it is the last one. */
static void inflate_huge(struct vballoon *b, gfn_t gfn, pfn_t pfn)
{
    gfn_t first = align_down(gfn, PAGES_PER_HUGE);
    pfn_t at = align_down(pfn, PAGES_PER_HUGE);
    const void *p;

    if (bitmap_test(b->inside, pfn))
        return;
    bitmap_set(b->inside, pfn);
    for (size_t i = 0; i < PAGES_PER_HUGE / BITMAP_WORD_BITS; i++)
        if (b->inside[at / BITMAP_WORD_BITS + i] != UINT64_MAX)
            return;
    p = virtio_has(&b->v, VIRTIO_BALLOON_F_MUST_TELL_HOST)
            ? mem_ptr(b->v.env.mem, gfn_to_gpa(first), MEM_HUGE_PAGE_SIZE)
            : NULL;
    if (p)
        give_back(b, p, MEM_HUGE_PAGE_SIZE);
}

static void take_pfn(struct vballoon *b, bool inflate, gfn_t gfn, struct run *run)
{
    pfn_t pfn;

    if (!mem_gfn_to_pfn(b->v.env.mem, gfn, &pfn)) {
        b->counters.ignored++;
        return;
    }
    if (inflate)
        b->counters.inflated++;
    else
        b->counters.deflated++;
    if (!inflate && b->inside)
        b->inside[pfn / BITMAP_WORD_BITS] &= ~(UINT64_C(1) << (pfn % BITMAP_WORD_BITS));
    else if (inflate && b->inside)
        inflate_huge(b, gfn, pfn);
    else if (inflate)
        add_to_run(b, run, gfn);
}

static void take_pfns(struct vballoon *b, const struct virtq_chain *c, bool inflate)
{
    uint8_t buf[PFNS_AT_ONCE * 4];
    struct run run = {0};
    size_t n;

    for (size_t at = 0; (n = virtq_chain_read(c, at, buf, sizeof(buf))) >= 4; at += n)
        for (size_t i = 0; i + 4 <= n; i += 4)
            take_pfn(b, inflate, le32_get(buf + i), &run);
    end_run(b, &run);
}

static bool take_request(struct vballoon *b, struct virtq *q, const struct virtq_chain *c)
{
    if (c->writable > 0 || c->readable_bytes % 4 != 0 || c->readable_bytes / 4 > VBALLOON_PFNS_MAX) {
        virtio_misuse(&b->v, "queue %u: chain %u of %u readable and %u writable bytes is no list of up to %u frames", q->index,
                      c->head, c->readable_bytes, c->writable_bytes, VBALLOON_PFNS_MAX);
        return false;
    }
    take_pfns(b, c, q->index == INFLATE);
    return true;
}

/* Pages that a driver of this kind wants to find filled with a pattern, or as zeros, stay where they would not be. */
static bool may_give_reported(const struct vballoon *b)
{
    if (!virtio_has(&b->v, VIRTIO_BALLOON_F_PAGE_POISON))
        return true;
    return b->s.poison == 0 && mem_given_is_zero(b->v.env.mem);
}

static bool take_report(struct vballoon *b, struct virtq *q, const struct virtq_chain *c)
{
    bool give = may_give_reported(b);

    if (c->readable > 0) {
        virtio_misuse(&b->v, "queue %u: chain %u: reported pages are not writable", q->index, c->head);
        return false;
    }
    for (unsigned int i = 0; i < c->writable; i++) {
        b->counters.reported_bytes += c->iov[i].iov_len;
        if (give)
            give_back(b, c->iov[i].iov_base, c->iov[i].iov_len);
    }
    return true;
}

/* -- statistics --------------------------------------------------------------- */

static void read_stats(struct vballoon *b, const struct virtq_chain *c)
{
    uint8_t buf[STATS_MAX * STAT_SIZE];
    size_t n = virtq_chain_read(c, 0, buf, sizeof(buf));

    b->stats_present = 0;
    for (size_t at = 0; at + STAT_SIZE <= n; at += STAT_SIZE) {
        uint16_t tag = le16_get(buf + at);

        if (tag >= VIRTIO_BALLOON_S_NR)
            continue;
        b->stats[tag] = le64_get(buf + at + 2);
        b->stats_present |= FEATURE(tag);
    }
    b->stats_time = (uint64_t)device_realtime_ns(&b->v.env) / NSEC_PER_SEC;
}

static void set_timer(struct vballoon *b)
{
    int64_t next = -1;

    if (b->s.interval > 0 && b->s.stats_held && b->v.live)
        next = (int64_t)(device_monotonic_ns(&b->v.env) + b->s.interval * NSEC_PER_SEC);
    device_timer_set(&b->timer, next);
}

/* Give the buffer back: the driver fills it anew. */
static void ask_for_stats(struct vballoon *b)
{
    struct virtq *q = &b->v.queues[STATS];

    if (!b->s.stats_held || !virtio_queue_live(&b->v, q))
        return;
    b->s.stats_held = false;
    virtq_push(q, b->s.stats_head, 0);
    virtq_flush(q);
}

static void on_timer(evutil_socket_t fd, short what, void *opaque)
{
    struct vballoon *b = opaque;

    pthread_mutex_lock(&b->v.dev.lock);
    device_timer_clear(&b->timer);
    ask_for_stats(b);
    pthread_mutex_unlock(&b->v.dev.lock);
}

static void take_stats(struct vballoon *b, struct virtq *q, const struct virtq_chain *c)
{
    /* A driver has one buffer; of several the newest counts. */
    if (b->s.stats_held)
        virtq_push(q, b->s.stats_head, 0);
    read_stats(b, c);
    b->s.stats_held = true;
    b->s.stats_head = c->head;
    set_timer(b);
}

/* -- callbacks of the core ---------------------------------------------------- */

/* One request; false when the driver broke a rule. */
static bool take(struct vballoon *b, struct virtq *q, const struct virtq_chain *c)
{
    bool good;

    if (q->index == STATS) {
        take_stats(b, q, c);
        return true;
    }
    good = q->index == REPORTING ? take_report(b, q, c) : take_request(b, q, c);
    if (good)
        virtq_push(q, c->head, 0);
    return good;
}

static void vballoon_run(struct virtio_dev *v, struct virtq *q)
{
    struct iovec iov[CHAIN_MAX];
    struct virtq_chain c = {.iov = iov, .capacity = CHAIN_MAX};
    unsigned int n = 0;

    while (n++ < BATCH && virtq_pop(q, &c))
        if (!take(to_balloon(v), q, &c))
            break;
    virtq_flush(q);
    if (n > BATCH)
        virtio_kick_queue(v, q);
}

static void vballoon_start(struct virtio_dev *v)
{
    set_timer(to_balloon(v));
}

static void vballoon_stop(struct virtio_dev *v)
{
    /* The buffer stays held. */
    device_timer_set(&to_balloon(v)->timer, -1);
}

static void vballoon_drop(struct virtio_dev *v, struct virtq *q)
{
    if (q->index == STATS)
        to_balloon(v)->s.stats_held = false;
}

static void tell_size(struct vballoon *b)
{
    if (b->v.env.host->balloon_changed)
        b->v.env.host->balloon_changed(b->v.env.host->opaque);
}

/* Put what the state says into the configuration space. */
static void fill_config(struct vballoon *b)
{
    struct virtio_balloon_config config = {0};

    le32_put((uint8_t *)&config + AT(num_pages), b->s.target);
    le32_put((uint8_t *)&config + AT(actual), b->s.actual);
    le32_put((uint8_t *)&config + AT(poison_val), b->s.poison);
    virtio_config_written(&b->v, 0, &config, sizeof(config));
}

static void set_actual(struct vballoon *b, uint32_t actual)
{
    bool changed = b->s.actual != actual;

    b->s.actual = actual;
    fill_config(b);
    if (changed)
        tell_size(b);
}

static void vballoon_reset(struct virtio_dev *v)
{
    struct vballoon *b = to_balloon(v);

    b->s.poison = 0;
    b->stats_time = b->stats_present = 0;
    if (b->inside)
        memset(b->inside, 0, bitmap_words(mem_pages(v->env.mem)) * sizeof(*b->inside));
    set_actual(b, 0);
}

/* Whole fields only, of those that are the driver's. */
static void vballoon_config_write(struct virtio_dev *v, unsigned int offset, unsigned int size, uint64_t value)
{
    struct vballoon *b = to_balloon(v);

    if (size != 4)
        return;
    if (offset == AT(actual)) {
        set_actual(b, (uint32_t)MIN(value & UINT32_MAX, mem_pages(v->env.mem)));
    } else if (offset == AT(poison_val)) {
        b->s.poison = (uint32_t)value;
        fill_config(b);
    }
}

static void vballoon_save(struct virtio_dev *v, struct state_writer *w)
{
    state_put_fields(w, "", state_fields, ARRAY_SIZE(state_fields), &to_balloon(v)->s);
}

static int vballoon_restore(struct virtio_dev *v, struct state_reader *r, const struct state_section *s)
{
    struct vballoon *b = to_balloon(v);
    uint64_t pages = mem_pages(v->env.mem);
    struct balloon_state state = {0};
    int err = state_get_fields(r, s, "", state_fields, ARRAY_SIZE(state_fields), &state);

    if (err == 0 && (state.target > pages || state.actual > pages))
        return state_bad(r, s, "fields target, actual: %u and %u pages of %llu", state.target, state.actual,
                         (unsigned long long)pages);
    if (err == 0 && state.interval > VBALLOON_INTERVAL_MAX)
        return state_bad(r, s, "field interval: %u exceeds %u", state.interval, VBALLOON_INTERVAL_MAX);
    if (err == 0)
        err = state_check_all_read(r, s);
    if (err < 0)
        return err;
    b->s = state;
    /* Until restore_chain has the buffer. */
    b->s.stats_held = false;
    b->stats_time = b->stats_present = 0;
    fill_config(b);
    return 0;
}

static void vballoon_restore_chain(struct virtio_dev *v, struct virtq *q, uint16_t head)
{
    struct vballoon *b = to_balloon(v);
    struct iovec iov[CHAIN_MAX];
    struct virtq_chain c = {.iov = iov, .capacity = CHAIN_MAX};

    if (q->index != STATS || head != b->s.stats_head || !virtq_retake(q, head, &c))
        return;
    read_stats(b, &c);
    b->s.stats_held = true;
}

static void vballoon_detach(struct virtio_dev *v)
{
    device_timer_fini(&to_balloon(v)->timer);
}

static void vballoon_destroy(struct virtio_dev *v)
{
    struct vballoon *b = to_balloon(v);

    free(b->inside);
    free(b);
}

static const struct virtio_ops vballoon_ops = {
    .id = VIRTIO_ID_BALLOON,
    .run = vballoon_run,
    .start = vballoon_start,
    .stop = vballoon_stop,
    .drop = vballoon_drop,
    .reset = vballoon_reset,
    .config_write = vballoon_config_write,
    .save = vballoon_save,
    .restore = vballoon_restore,
    .restore_chain = vballoon_restore_chain,
    .detach = vballoon_detach,
    .destroy = vballoon_destroy,
};

static const struct device_ops vballoon_device_ops = VIRTIO_DEVICE_OPS("virtio-balloon", 1);

/* -- making it ---------------------------------------------------------------- */

static uint64_t features_of(const struct vballoon_config *config)
{
    uint64_t features = FEATURE(VIRTIO_BALLOON_F_MUST_TELL_HOST) | FEATURE(VIRTIO_BALLOON_F_STATS_VQ);

    if (config->deflate_on_oom)
        features |= FEATURE(VIRTIO_BALLOON_F_DEFLATE_ON_OOM);
    if (config->reporting)
        features |= FEATURE(VIRTIO_BALLOON_F_REPORTING) | FEATURE(VIRTIO_BALLOON_F_PAGE_POISON);
    return features;
}

int vballoon_create(const struct device_env *env, const struct vballoon_config *config, unsigned int slot,
                    struct device **ret)
{
    struct vballoon *b = calloc(1, sizeof(*b));
    int r;

    if (!b)
        return -ENOMEM;
    if (mem_hugepages(env->mem)) {
        b->inside = calloc(bitmap_words(mem_pages(env->mem)), sizeof(*b->inside));
        if (!b->inside) {
            free(b);
            return -ENOMEM;
        }
    }
    r = virtio_init(&b->v, &vballoon_device_ops, &vballoon_ops, 0, env, "vballoon", features_of(config),
                    config->reporting ? REPORTING + 1 : STATS + 1, QUEUE_SIZE);
    if (r < 0) {
        vballoon_destroy(&b->v);
        return r;
    }
    b->v.config_len = sizeof(struct virtio_balloon_config);
    r = device_timer_init(&b->timer, env, CLOCK_MONOTONIC, on_timer, b);
    if (r == 0)
        r = virtio_mmio_attach(&b->v, slot);
    if (r < 0) {
        device_destroy(&b->v.dev);
        return r;
    }
    *ret = &b->v.dev;
    return 0;
}

/* -- what others ask ---------------------------------------------------------- */

void vballoon_set_memory(struct device *dev, uint64_t bytes)
{
    struct vballoon *b = of_device(dev);
    uint64_t size = mem_size(b->v.env.mem);
    uint8_t value[4];

    pthread_mutex_lock(&dev->lock);
    b->s.target = (uint32_t)bytes_to_pages(size - MIN(size, bytes));
    le32_put(value, b->s.target);
    virtio_config_set(&b->v, AT(num_pages), value, sizeof(value));
    pthread_mutex_unlock(&dev->lock);
}

void vballoon_set_interval(struct device *dev, unsigned int seconds)
{
    struct vballoon *b = of_device(dev);

    pthread_mutex_lock(&dev->lock);
    b->s.interval = MIN(seconds, VBALLOON_INTERVAL_MAX);
    set_timer(b);
    /* The first ones at once. */
    if (seconds > 0)
        ask_for_stats(b);
    pthread_mutex_unlock(&dev->lock);
}

void vballoon_info(struct device *dev, struct vballoon_info *ret)
{
    struct vballoon *b = of_device(dev);
    uint64_t size = mem_size(b->v.env.mem);

    pthread_mutex_lock(&dev->lock);
    *ret = (struct vballoon_info){
        .memory = size - pages_to_bytes(b->s.actual),
        .target = size - pages_to_bytes(b->s.target),
        .driver = b->v.regs.status & VIRTIO_CONFIG_S_DRIVER_OK,
        .needs_reset = b->v.regs.status & VIRTIO_CONFIG_S_NEEDS_RESET,
        .interval = b->s.interval,
        .stats_time = b->stats_time,
        .stats_present = b->stats_present,
        .counters = b->counters,
    };
    ret->reporting = ret->driver && virtio_has(&b->v, VIRTIO_BALLOON_F_REPORTING);
    memcpy(ret->stats, b->stats, sizeof(ret->stats));
    ret->counters.misuses = b->v.counters.misuses;
    pthread_mutex_unlock(&dev->lock);
}

const char *vballoon_stat_name(unsigned int index)
{
    static const char *const names[] = VIRTIO_BALLOON_S_NAMES_WITH_PREFIX("stat-");

    return names[index];
}
