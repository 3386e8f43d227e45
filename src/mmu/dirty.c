/* The dirty log: consumers, their epochs, and where a harvest goes. The sources (KVM's bitmap, its rings) have files of
 * their own. */
#include "config.h"

#include "mmu/dirty.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "mmu/dirty-internal.h"

/* -- creation ----------------------------------------------------------------- */

static bool ops_complete(const struct dirty_config *config)
{
    const struct dirty_ops *ops = config->ops;

    if (!ops || !ops->set_logging)
        return false;
    return config->backend == DIRTY_RING ? ops->reset_rings != NULL : ops->get && ops->clear;
}

int dirty_log_new(struct mem *mem, const struct dirty_config *config, struct dirty_log **ret)
{
    struct dirty_log *log;
    int r;

    if (!ops_complete(config))
        return -EINVAL;
    log = calloc(1, sizeof(*log));
    if (!log)
        return -ENOMEM;
    log->mem = mem;
    log->config = *config;
    log->slots = mem_slots(mem, &log->slot_count);
    dirty_bitmap_setup(log);
    r = page_set_init(&log->harvest, mem_pages(mem));
    if (r == 0)
        r = -pthread_mutex_init(&log->lock, NULL);
    if (r < 0) {
        page_set_free(&log->harvest);
        free(log);
        return r;
    }
    *ret = log;
    return 0;
}

static void consumer_free(struct dirty_consumer *c)
{
    page_set_free(&c->pending);
    page_set_free(&c->unacked);
    free(c);
}

static int consumer_new(const struct dirty_log *log, const char *name, enum dirty_start_mode mode,
                        struct dirty_consumer **ret)
{
    struct dirty_consumer *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    memcpy(c->name, name, strlen(name) + 1);
    c->mode = mode == DIRTY_START_CHANGES ? DIRTY_START_CHANGES : DIRTY_START_ALL;
    c->lost = mode == DIRTY_START_LOST;
    if (page_set_init(&c->pending, mem_pages(log->mem)) < 0 || page_set_init(&c->unacked, mem_pages(log->mem)) < 0) {
        consumer_free(c);
        return -ENOMEM;
    }
    *ret = c;
    return 0;
}

void dirty_log_free(struct dirty_log *log)
{
    if (!log)
        return;
    if (log->logging)
        mem_track_writes(log->mem, MEM_LISTENER_DIRTY_LOG, false);
    for (size_t i = 0; i < log->consumer_count; i++)
        consumer_free(log->consumers[i]);
    page_set_free(&log->harvest);
    page_set_free(&log->tap);
    free(log->rings);
    pthread_mutex_destroy(&log->lock);
    free(log);
}

enum dirty_backend dirty_log_backend(const struct dirty_log *log)
{
    return log->config.backend;
}

size_t dirty_log_words(const struct dirty_log *log)
{
    return (size_t)(mem_pages(log->mem) / 64);
}

/* -- harvest ------------------------------------------------------------------ */

/* Add the harvest to the pending pages of every consumer and empty it. */
static void distribute(struct dirty_log *log)
{
    if (log->tap_on) {
        log->tap_whole &= !log->harvest_lost;
        if (log->harvest.pages > 0)
            page_set_merge(&log->tap, &log->harvest);
    }
    for (size_t i = 0; i < log->consumer_count; i++) {
        struct dirty_consumer *c = log->consumers[i];

        c->lost |= log->harvest_lost;
        if (log->harvest.pages == 0)
            continue;
        if (i + 1 == log->consumer_count && c->pending.pages == 0) {
            /* The usual case, one consumer with nothing pending, costs nothing. */
            page_set_swap(&c->pending, &log->harvest);
            break;
        }
        page_set_merge(&c->pending, &log->harvest);
    }
    if (log->harvest.pages > 0)
        page_set_clear(&log->harvest);
    log->harvest_lost = false;
}

/*
 * Entries were overwritten: every page is dirty, and may be written unheard until logging was off once. That is not for vCPUs,
 * whose threads have no business with memory slots; until somebody else harvests, each harvest is of every page.
 */
static int recover(struct dirty_log *log, bool by_vcpu, int r)
{
    const struct dirty_ops *ops = log->config.ops;

    if (log->unprotected && !by_vcpu && r == 0) {
        if (log->logging)
            r = ops->set_logging(log->config.opaque, false);
        if (r == 0 && log->logging)
            r = ops->set_logging(log->config.opaque, true);
        log->unprotected = r < 0;
    }
    page_set_fill(&log->harvest);
    log->rings_spilt = false;
    return r;
}

/*
 * Take what the sources have. On an error of KVM no snapshot may be given out; what was taken is pending. `own`, `whole`: as of
 * dirty_ring_take.
 */
static int harvest_rings(struct dirty_log *log, const struct dirty_ring *own, bool whole)
{
    uint64_t vmm;
    int r = log->config.backend == DIRTY_RING ? dirty_ring_take(log, own, whole) : dirty_bitmap_take(log);

    if (log->rings_spilt || log->unprotected)
        r = recover(log, own != NULL, r);
    dirty_count(&log->stats.harvests, 1);
    if (r < 0)
        dirty_count(&log->stats.failures, 1);
    vmm = mem_collect_writes(log->mem, MEM_LISTENER_DIRTY_LOG, &log->harvest);
    dirty_count(&log->stats.vmm_pages, vmm);
    dirty_count(&log->stats.pages, log->harvest.pages);
    distribute(log);
    return r;
}

static int harvest(struct dirty_log *log)
{
    return harvest_rings(log, NULL, true);
}

/* What a snapshot for the consumer would give, in log->harvest. */
static int look(struct dirty_log *log, const struct dirty_consumer *c)
{
    int r = 0;

    /* The VMM's notes cannot be looked at without taking them; so they become pending now. */
    dirty_count(&log->stats.vmm_pages, mem_collect_writes(log->mem, MEM_LISTENER_DIRTY_LOG, &log->harvest));
    dirty_count(&log->stats.pages, log->harvest.pages);
    distribute(log);
    if (log->config.backend == DIRTY_BITMAP)
        r = dirty_bitmap_look(log);
    else if (dirty_ring_look(log) < 0 || log->unprotected)
        page_set_fill(&log->harvest);
    if (r == 0) {
        page_set_merge(&log->harvest, &c->pending);
        page_set_merge(&log->harvest, &c->unacked);
    }
    return r;
}

static int ring_left(struct dirty_log *log, struct dirty_ring *ring, bool full)
{
    int r = dirty_ring_mend(log, ring, full), err = harvest_rings(log, ring, false);

    return r < 0 ? r : err;
}

int dirty_log_ring_full(struct dirty_log *log, size_t index)
{
    uint64_t start = clock_ns();
    int r = -EINVAL;

    pthread_mutex_lock(&log->lock);
    dirty_count(&log->stats.ring_full, 1);
    if (index < log->ring_count)
        r = ring_left(log, &log->rings[index], true);
    dirty_count(&log->stats.ring_full_ns, clock_ns() - start);
    pthread_mutex_unlock(&log->lock);
    return r;
}

int dirty_log_ring_left(struct dirty_log *log, size_t index)
{
    int r = 0;

    if (log->config.backend != DIRTY_RING)
        return 0;
    pthread_mutex_lock(&log->lock);
    if (index < log->ring_count && dirty_ring_crowded(&log->rings[index]))
        r = ring_left(log, &log->rings[index], false);
    pthread_mutex_unlock(&log->lock);
    return r;
}

static bool crowded(struct dirty_log *log)
{
    bool any = false;

    pthread_mutex_lock(&log->lock);
    for (size_t i = 0; i < log->ring_count; i++)
        any |= dirty_ring_crowded(&log->rings[i]);
    pthread_mutex_unlock(&log->lock);
    return any;
}

/* -- start and stop ----------------------------------------------------------- */

static struct dirty_consumer *find(const struct dirty_log *log, const char *name, size_t *ret_index)
{
    for (size_t i = 0; i < log->consumer_count; i++) {
        if (strcmp(log->consumers[i]->name, name) == 0) {
            if (ret_index)
                *ret_index = i;
            return log->consumers[i];
        }
    }
    return NULL;
}

static void set_state(struct dirty_log *log, bool logging)
{
    __atomic_store_n(&log->logging, logging, __ATOMIC_RELAXED);
}

static int stop_logging(struct dirty_log *log)
{
    int r = log->config.ops->set_logging(log->config.opaque, false);

    mem_track_writes(log->mem, MEM_LISTENER_DIRTY_LOG, false);
    set_state(log, r < 0);
    log->tap_whole = false;
    return r;
}

/*
 * Switch logging on for the first consumer. With START_ALL nothing needs to be protected now, since its first snapshot
 * does that: with KVM's bits initially set the start is cheap, and the guest pays page by page as the copy goes on.
 */
static int start_logging(struct dirty_log *log, enum dirty_start_mode mode)
{
    bool stale = log->config.initially_set || log->logging;
    int r = 0;

    mem_track_writes(log->mem, MEM_LISTENER_DIRTY_LOG, true);
    /* From here on, on an error too: it may be on for some slots only. */
    set_state(log, true);
    /* Entries may be left in the rings from the last time. Nobody consumes: they go nowhere. */
    if (log->config.backend == DIRTY_RING)
        r = harvest(log);
    if (r == 0)
        r = log->config.ops->set_logging(log->config.opaque, true);
    if (r == 0 && log->config.backend == DIRTY_BITMAP && stale && mode == DIRTY_START_CHANGES) {
        uint64_t pages = log->stats.pages;

        r = harvest(log);
        /* Nobody wrote these: KVM had every bit set. */
        dirty_count(&log->stats.pages, pages - log->stats.pages);
    }
    if (r < 0)
        stop_logging(log);
    return r;
}

static int start_locked(struct dirty_log *log, const char *name, enum dirty_start_mode mode)
{
    struct dirty_consumer *c;
    int r;

    if (find(log, name, NULL))
        return -EEXIST;
    if (log->consumer_count == DIRTY_MAX_CONSUMERS)
        return -ENOSPC;
    r = consumer_new(log, name, mode, &c);
    if (r < 0)
        return r;
    /* What was written until now is for the others alone. */
    r = log->consumer_count > 0 ? harvest(log) : start_logging(log, mode);
    if (r < 0) {
        consumer_free(c);
        return r;
    }
    if (mode != DIRTY_START_CHANGES)
        page_set_fill(&c->pending);
    log->consumers[log->consumer_count++] = c;
    dirty_count(&log->stats.consumers, 1);
    return 0;
}

int dirty_log_start(struct dirty_log *log, const char *name, enum dirty_start_mode mode)
{
    size_t len = strnlen(name, DIRTY_NAME_MAX + 1);
    int r;

    if (len == 0 || len > DIRTY_NAME_MAX)
        return -EINVAL;
    pthread_mutex_lock(&log->lock);
    r = start_locked(log, name, mode);
    pthread_mutex_unlock(&log->lock);
    return r;
}

int dirty_log_stop(struct dirty_log *log, const char *name)
{
    struct dirty_consumer *c;
    size_t index;
    int r = -ENOENT;

    pthread_mutex_lock(&log->lock);
    c = find(log, name, &index);
    if (c) {
        r = 0;
        log->consumer_count--;
        dirty_count(&log->stats.consumers, UINT64_MAX);
        memmove(&log->consumers[index], &log->consumers[index + 1],
                (log->consumer_count - index) * sizeof(log->consumers[0]));
        consumer_free(c);
        if (log->consumer_count == 0)
            r = stop_logging(log);
    }
    pthread_mutex_unlock(&log->lock);
    return r;
}

/* -- snapshots ---------------------------------------------------------------- */

/* Move the consumer's pending pages into its epoch and open a new one. */
static void make_epoch(struct dirty_consumer *c)
{
    if (c->unacked.pages == 0 && c->pending.pages > 0) {
        page_set_swap(&c->unacked, &c->pending);
    } else if (c->pending.pages > 0) {
        page_set_merge(&c->unacked, &c->pending);
        page_set_clear(&c->pending);
    }
    c->epoch++;
    c->snapshots++;
    c->pages += c->unacked.pages;
}

static void count_time(struct dirty_log *log, uint64_t ns)
{
    uint64_t bound = DIRTY_TIME_FIRST_NS;
    size_t i = 0;

    for (; i < DIRTY_TIME_BUCKETS - 1 && ns > bound; i++)
        bound *= 4;
    dirty_count(&log->stats.harvest_times[i], 1);
    dirty_count(&log->stats.harvest_ns, ns);
}

static int snapshot_locked(struct dirty_log *log, const char *name, bool peek, struct dirty_snapshot *ret)
{
    struct dirty_consumer *c = find(log, name, NULL);
    uint64_t start = clock_ns(), took;
    const struct page_set *set;
    int r;

    if (!c)
        return -ENOENT;
    r = peek ? look(log, c) : harvest(log);
    if (r < 0)
        return r;
    if (!peek)
        make_epoch(c);
    set = peek ? &log->harvest : &c->unacked;
    log->peeked = peek;
    took = clock_ns() - start;
    if (!peek)
        count_time(log, took);
    *ret = (struct dirty_snapshot){
        .epoch = c->epoch,
        .pages = set->pages,
        .lost = c->lost || log->harvest_lost,
        .harvest_ns = took,
        .bitmap = set->map,
        .set = set,
    };
    return 0;
}

int dirty_log_snapshot_lock(struct dirty_log *log, const char *name, bool peek, struct dirty_snapshot *ret)
{
    int r;

    if (log->config.backend == DIRTY_RING && log->config.ops->kick_vcpus) {
        r = log->config.ops->kick_vcpus(log->config.opaque, crowded(log));
        if (r < 0)
            return r;
    }
    pthread_mutex_lock(&log->lock);
    r = snapshot_locked(log, name, peek, ret);
    if (r < 0)
        pthread_mutex_unlock(&log->lock);
    return r;
}

void dirty_log_unlock(struct dirty_log *log)
{
    if (log->peeked) {
        page_set_clear(&log->harvest);
        log->harvest_lost = false;
        log->peeked = false;
    }
    pthread_mutex_unlock(&log->lock);
}

int dirty_log_ack(struct dirty_log *log, const char *name, uint64_t epoch)
{
    struct dirty_consumer *c;
    int r = 0;

    pthread_mutex_lock(&log->lock);
    c = find(log, name, NULL);
    if (!c)
        r = -ENOENT;
    else if (epoch == 0 || epoch != c->epoch)
        r = -EINVAL;
    else
        page_set_clear(&c->unacked);
    pthread_mutex_unlock(&log->lock);
    return r;
}

/* -- the listener -------------------------------------------------------------- */

bool dirty_log_logging(const struct dirty_log *log)
{
    return __atomic_load_n(&log->logging, __ATOMIC_RELAXED);
}

int dirty_log_listen(struct dirty_log *log, bool on)
{
    int r = 0;

    pthread_mutex_lock(&log->lock);
    if (on && !log->tap_on)
        r = page_set_init(&log->tap, mem_pages(log->mem));
    if (!on && log->tap_on)
        page_set_free(&log->tap);
    if (r == 0) {
        log->tap_on = on;
        log->tap_whole = false;
    }
    pthread_mutex_unlock(&log->lock);
    return r;
}

static int early_locked(struct dirty_log *log, const struct page_set *only, struct page_set *into)
{
    int r;

    /* The VMM's notes cannot be looked at without taking them: they are pending from now on, and the listener's. */
    dirty_count(&log->stats.vmm_pages, mem_collect_writes(log->mem, MEM_LISTENER_DIRTY_LOG, &log->harvest));
    dirty_count(&log->stats.pages, log->harvest.pages);
    distribute(log);
    page_set_merge(into, &log->tap);
    page_set_clear(&log->tap);
    if (log->config.backend == DIRTY_RING) {
        /* Pages that were taken and not given back are written without a word. */
        r = log->rings_taken || log->unprotected ? -EAGAIN : dirty_ring_look(log);
        page_set_merge(into, &log->harvest);
        page_set_clear(&log->harvest);
        /* The entry is still in its ring: the harvest that takes it tells the consumers. */
        log->tap_whole &= !log->harvest_lost;
        log->harvest_lost = false;
        return r;
    }
    r = dirty_bitmap_look(log);
    if (r < 0)
        return r;
    page_set_merge(into, &log->harvest);
    r = dirty_bitmap_take_only(log, only);
    dirty_count(&log->stats.pages, log->harvest.pages);
    distribute(log);
    page_set_clear(&log->tap);
    return r;
}

int dirty_log_early(struct dirty_log *log, const struct page_set *only, struct page_set *into)
{
    int r = -ENODATA;

    pthread_mutex_lock(&log->lock);
    assert(log->tap_on);
    if (log->tap_whole)
        r = early_locked(log, only, into);
    if (r < 0)
        page_set_clear(&log->tap);
    /* Lost pages were noted on the way; else what comes from here on is whole. */
    if (r == 0 && !log->tap_whole)
        r = -ENODATA;
    log->tap_whole = log->consumer_count > 0 && !log->rings_taken;
    pthread_mutex_unlock(&log->lock);
    return r;
}

/* -- ranges ------------------------------------------------------------------- */

/* Take the lowest run of set bits, which goes on into further words but not to page `limit`; returns its end. */
static pfn_t take_run(const struct page_set *set, struct page_set_walk *w, unsigned int start, pfn_t limit)
{
    uint64_t above = w->bits + (UINT64_C(1) << start);
    pfn_t base = (pfn_t)w->word * 64;

    /* The addition carries through the run, out of the word if the run reaches its end. */
    if (above) {
        w->bits &= above;
        return base + (uint64_t)__builtin_ctzll(above);
    }
    while ((base += 64) < limit && set->map[base / 64] == UINT64_MAX)
        ;
    w->word = (size_t)(base / 64);
    if (base >= limit) {
        /* The word belongs to the next slot; the walk comes to it next. */
        w->word--;
        w->bits = 0;
        return limit;
    }
    w->bits = set->map[w->word];
    above = w->bits + 1;
    w->bits &= above;
    return base + (uint64_t)__builtin_ctzll(above);
}

size_t dirty_ranges(const struct mem *mem, const struct dirty_snapshot *snapshot, pfn_t *cursor,
                    struct dirty_range *out, size_t max)
{
    const struct page_set *set = snapshot->set;
    unsigned int count;
    const struct mem_slot *slots = mem_slots(mem, &count);
    pfn_t low = bytes_to_pages(slots[0].size), at = *cursor;
    gfn_t shift = gpa_to_gfn(MEM_HOLE_END) - low;
    struct page_set_walk w;
    size_t n = 0;

    if (set->pages == 0 || at >= set->limit)
        return 0;
    w = page_set_walk_from(set, at);
    while (n < max) {
        unsigned int start;
        pfn_t first;

        if (!page_set_walk_word(set, &w)) {
            at = set->limit;
            break;
        }
        start = (unsigned int)__builtin_ctzll(w.bits);
        first = (pfn_t)w.word * 64 + start;
        /* Slots that touch in the RAM file are apart in the guest. */
        at = take_run(set, &w, start, first < low ? low : set->limit);
        out[n++] = (struct dirty_range){.gfn = first < low ? first : first + shift, .pages = at - first};
    }
    *cursor = at;
    return n;
}

/* -- what is going on --------------------------------------------------------- */

size_t dirty_log_consumers(struct dirty_log *log, struct dirty_consumer_info *out, size_t max)
{
    size_t count;

    pthread_mutex_lock(&log->lock);
    count = log->consumer_count;
    for (size_t i = 0; i < MIN(count, max); i++) {
        const struct dirty_consumer *c = log->consumers[i];

        out[i] = (struct dirty_consumer_info){
            .mode = c->mode,
            .epoch = c->epoch,
            .pending = c->pending.pages,
            .unacknowledged = c->unacked.pages,
            .snapshots = c->snapshots,
            .pages = c->pages,
            .lost = c->lost,
        };
        memcpy(out[i].name, c->name, sizeof(c->name));
    }
    pthread_mutex_unlock(&log->lock);
    return count;
}

void dirty_log_stats(const struct dirty_log *log, struct dirty_stats *ret)
{
    const uint64_t *from = (const uint64_t *)&log->stats;
    uint64_t *to = (uint64_t *)ret;

    static_assert(sizeof(struct dirty_stats) % sizeof(uint64_t) == 0, "counters only");
    for (size_t i = 0; i < sizeof(*ret) / sizeof(*to); i++)
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}
