/*
 * The tracker: its thread and lock, modes and settings. A tick's work is in tracker-tick.c, root discovery in
 * tracker-roots.c.
 */
#include "config.h"

#include "mmu/tracker.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/thread.h"
#include "base/util.h"
#include "mmu/flood.h"
#include "mmu/tracker-internal.h"

#define STACK_SIZE (256 * KiB)

/* -- the lock ------------------------------------------------------------------------------------------------------------ */

void tracker_relock(struct tracker *t)
{
    pthread_mutex_lock(&t->gate);
    pthread_mutex_lock(&t->lock);
    pthread_mutex_unlock(&t->gate);
}

void tracker_yield(struct tracker *t)
{
    pthread_mutex_unlock(&t->lock);
    tracker_relock(t);
}

void tracker_unlock(struct tracker *t)
{
    pthread_mutex_unlock(&t->lock);
}

/* For those who change what a tick works with. */
static void take_at_rest(struct tracker *t)
{
    tracker_relock(t);
    while (t->in_tick)
        pthread_cond_wait(&t->rest, &t->lock);
}

uint64_t tracker_now(const struct tracker *t)
{
    return t->config.ops->now ? t->config.ops->now(t->config.opaque) : clock_ns();
}

uint64_t tracker_activity(const struct tracker *t)
{
    return t->config.ops->activity ? t->config.ops->activity(t->config.opaque) : 0;
}

/* -- the thread ---------------------------------------------------------------------------------------------------------- */

static bool ticks(const struct tracker *t)
{
    return t->running && t->settings.mode >= TRACKER_LIVE;
}

static void *tracker_thread(void *arg)
{
    struct tracker *t = arg;

    thread_enter(THREAD_MMU, "mmu");
    tracker_relock(t);
    while (!t->quit) {
        uint64_t due = MIN(t->next_ns, t->pressure_ns);
        struct timespec until = {.tv_sec = (time_t)(due / NSEC_PER_SEC), .tv_nsec = (long)(due % NSEC_PER_SEC)};

        if (!ticks(t)) {
            pthread_cond_wait(&t->wake, &t->lock);
        } else if (clock_ns() < due) {
            pthread_cond_timedwait(&t->wake, &t->lock, &until);
        } else {
            bool tick = due == t->next_ns;

            tracker_unlock(t);
            thread_busy();
            if (tick)
                tracker_tick(t);
            else
                tracker_pressure(t);
            thread_idle();
            tracker_relock(t);
        }
    }
    tracker_unlock(t);
    thread_leave();
    return NULL;
}

/* Under the lock. Without a thread nothing is tracked live; questions still bring the mirror up to date. */
static void start_thread(struct tracker *t)
{
    int r;

    if (t->started || t->config.no_thread || !ticks(t))
        return;
    r = thread_start(&t->thread, STACK_SIZE, tracker_thread, t);
    if (r < 0)
        log_err_errno(r, "mmu: cannot create the tracker's thread");
    t->started = r == 0;
}

/* -- the mirror ---------------------------------------------------------------------------------------------------------- */

static void on_watch(void *ctx, gfn_t gfn, bool on)
{
    struct tracker *t = ctx;

    if (t->source && t->source->ops->watch)
        t->source->ops->watch(t->source, gfn, on);
}

static const struct mirror_ops watch_ops = {.watch = on_watch};

static int mirror_make(const struct tracker *t, const struct tracker_settings *s, struct mirror **ret)
{
    struct mirror_config config = {
        .mem = t->config.mem,
        .cpu = t->config.cpu,
        .max_memory = s->max_memory,
        .no_floods = !s->floods,
        .ops = &watch_ops,
        .ops_ctx = (void *)(uintptr_t)t,
    };

    return mirror_new(&config, ret);
}

/* What was counted goes on to be counted from there. */
static void mirror_drop(struct tracker *t)
{
    struct mirror_stats s, *sum = &t->gone;

    if (t->source)
        t->source->ops->stop(t->source);
    t->source = NULL;
    if (!t->mirror)
        return;
    mirror_stats(t->mirror, &s);
    sum->syncs += s.syncs;
    sum->tables_read += s.tables_read;
    sum->tables_changed += s.tables_changed;
    sum->entries_linked += s.entries_linked;
    sum->entries_unlinked += s.entries_unlinked;
    sum->entries_updated += s.entries_updated;
    sum->ad_updates += s.ad_updates;
    sum->bulk_clears += s.bulk_clears;
    sum->zapped_pages += s.zapped_pages;
    sum->floods += s.floods;
    sum->roots_added += s.roots_added;
    sum->roots_dropped += s.roots_dropped;
    sum->roots_evicted += s.roots_evicted;
    mirror_free(t->mirror);
    t->mirror = NULL;
}

/* Begin anew with a mirror that is empty, or none. */
static void mirror_replace(struct tracker *t, struct mirror *m)
{
    mirror_drop(t);
    roots_forget(t);
    t->mirror = m;
    t->read_all = true;
    t->looked = false;
    t->quiet = 0;
}

/* -- life ---------------------------------------------------------------------------------------------------------------- */

void tracker_default_settings(struct tracker_settings *ret)
{
    *ret = (struct tracker_settings){
        .mode = TRACKER_LIVE,
        .cpu_budget = TRACKER_BUDGET_DEFAULT,
        .max_memory = MIRROR_MAX_MEMORY_DEFAULT,
        .floods = true,
    };
}

bool tracker_settings_valid(const struct tracker_settings *s)
{
    return s->mode <= TRACKER_PRECISE && s->cpu_budget >= 1 && s->cpu_budget <= 100 &&
           (s->interval_us == 0 || (s->interval_us >= TRACKER_INTERVAL_MIN_US && s->interval_us <= TRACKER_INTERVAL_MAX_US)) &&
           s->max_memory >= MIRROR_MAX_MEMORY_MIN;
}

static void init_locks(struct tracker *t)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&t->gate, NULL);
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->wake, &attr);
    pthread_cond_init(&t->rest, &attr);
    pthread_condattr_destroy(&attr);
}

int tracker_new(const struct tracker_config *config, struct tracker **ret)
{
    struct tracker_settings off = config->settings;
    struct tracker *t;
    int r;

    if (!tracker_settings_valid(&config->settings))
        return -EINVAL;
    t = calloc(1, sizeof(*t));
    if (!t)
        return -ENOMEM;
    t->config = *config;
    init_locks(t);
    off.mode = TRACKER_OFF;
    t->settings = off;
    r = page_set_init(&t->scan_set, mem_pages(config->mem));
    if (r == 0 && config->log)
        r = source_dirty_new(config->mem, config->log, &t->dirty);
    if (r == 0)
        r = tracker_set(t, &config->settings);
    if (r < 0) {
        tracker_free(t);
        return r;
    }
    *ret = t;
    return 0;
}

void tracker_stop(struct tracker *t)
{
    if (!t)
        return;
    tracker_relock(t);
    t->quit = true;
    t->running = false;
    pthread_cond_broadcast(&t->wake);
    tracker_unlock(t);
    if (t->started)
        pthread_join(t->thread, NULL);
    t->started = false;
}

void tracker_free(struct tracker *t)
{
    if (!t)
        return;
    tracker_stop(t);
    mirror_drop(t);
    if (t->dirty)
        t->dirty->ops->free(t->dirty);
    if (t->precise)
        t->precise->ops->free(t->precise);
    page_set_free(&t->scan_set);
    gfn_list_clear(&t->changed);
    pthread_cond_destroy(&t->wake);
    pthread_cond_destroy(&t->rest);
    pthread_mutex_destroy(&t->lock);
    pthread_mutex_destroy(&t->gate);
    free(t);
}

void tracker_run(struct tracker *t, bool running)
{
    tracker_relock(t);
    t->running = running && !t->quit;
    t->quiet = 0;
    t->next_ns = tracker_now(t);
    t->pressure_ns = UINT64_MAX;
    start_thread(t);
    pthread_cond_broadcast(&t->wake);
    tracker_unlock(t);
}

void tracker_reset(struct tracker *t)
{
    struct mirror *m = NULL;
    int r = 0;

    take_at_rest(t);
    assert(!t->running);
    if (t->settings.mode != TRACKER_OFF)
        r = mirror_make(t, &t->settings, &m);
    if (r < 0) {
        log_err_errno(r, "mmu: tracking ends");
        t->settings.mode = TRACKER_OFF;
    }
    mirror_replace(t, m);
    tracker_unlock(t);
}

/* -- settings ------------------------------------------------------------------------------------------------------------ */

static int set_at_rest(struct tracker *t, const struct tracker_settings *s)
{
    struct mirror *m = NULL;
    int r = 0;

    if (s->mode == TRACKER_PRECISE && !t->precise)
        r = t->config.make_precise ? t->config.make_precise(t->config.mem, &t->precise) : -ENOTSUP;
    if (r < 0)
        return r == -ENOMEM ? r : -ENOTSUP;
    if (s->mode != TRACKER_OFF && (!t->mirror || s->max_memory != t->settings.max_memory)) {
        r = mirror_make(t, s, &m);
        if (r < 0)
            return r;
        mirror_replace(t, m);
    } else if (s->mode == TRACKER_OFF) {
        mirror_replace(t, NULL);
    }
    if (t->mirror)
        mirror_set_floods(t->mirror, s->floods);
    t->settings = *s;
    t->quiet = 0;
    t->next_ns = tracker_now(t);
    t->pressure_ns = UINT64_MAX;
    start_thread(t);
    pthread_cond_broadcast(&t->wake);
    return 0;
}

int tracker_set(struct tracker *t, const struct tracker_settings *settings)
{
    int r;

    if (!tracker_settings_valid(settings))
        return -EINVAL;
    take_at_rest(t);
    r = set_at_rest(t, settings);
    tracker_unlock(t);
    return r;
}

void tracker_settings(struct tracker *t, struct tracker_settings *ret)
{
    tracker_relock(t);
    *ret = t->settings;
    tracker_unlock(t);
}

/* -- questions ----------------------------------------------------------------------------------------------------------- */

/* Whether an answer would be older than it may be. */
static bool stale(const struct tracker *t, enum tracker_age age)
{
    if (!t->looked || t->settings.mode == TRACKER_ON_DEMAND)
        return true;
    if (tracker_activity(t) == t->activity)
        return false;
    return !t->running || age == TRACKER_NOW || tracker_now(t) - t->looked_ns > 2 * tick_interval(t);
}

/*
 * Whether an answer wants to know first what vCPUs have in CR3: what ticks asked them for is as old as the last tick, and where
 * those are rare the kernel may have made its page tables since.
 */
static bool wants_look(struct tracker *t, enum tracker_age age)
{
    if (!t->running || !t->config.ops->look_now || t->settings.mode == TRACKER_OFF || !stale(t, age))
        return false;
    return t->settings.mode == TRACKER_ON_DEMAND || tick_kick_due(t, tracker_now(t));
}

int tracker_lock(struct tracker *t, enum tracker_age age, struct mirror **ret, uint64_t *ret_age_ns)
{
    int r = 0;

    tracker_relock(t);
    if (wants_look(t, age)) {
        tracker_unlock(t);
        t->config.ops->look_now(t->config.opaque);
        tracker_relock(t);
    }
    while (t->settings.mode != TRACKER_OFF && stale(t, age) && t->in_tick)
        pthread_cond_wait(&t->rest, &t->lock);
    if (t->settings.mode == TRACKER_OFF)
        r = -ENODATA;
    else if (stale(t, age))
        r = tick_run(t, t->running ? TICK_QUESTION : TICK_SETTLED);
    /* What there was no memory for is flagged in the mirror, it does not keep it from answering. */
    if (r == -ENODATA) {
        tracker_unlock(t);
        return r;
    }
    *ret = t->mirror;
    if (ret_age_ns)
        *ret_age_ns = tracker_now(t) - t->looked_ns;
    return 0;
}

int tracker_verify(struct tracker *t, struct mirror_verdict *ret)
{
    int r = 0;

    take_at_rest(t);
    if (t->running)
        r = -EBUSY;
    else if (t->settings.mode == TRACKER_OFF)
        r = -ENODATA;
    if (r == 0) {
        /* Out of memory shows as entries missing, and as `incomplete`. */
        (void)tick_run(t, TICK_SETTLED);
        (void)mirror_sync_stale(t->mirror);
        r = mirror_verify(t->mirror, ret);
    }
    tracker_unlock(t);
    return r;
}

static void add_counters(struct mirror_stats *s, const struct mirror_stats *gone)
{
    s->syncs += gone->syncs;
    s->tables_read += gone->tables_read;
    s->tables_changed += gone->tables_changed;
    s->entries_linked += gone->entries_linked;
    s->entries_unlinked += gone->entries_unlinked;
    s->entries_updated += gone->entries_updated;
    s->ad_updates += gone->ad_updates;
    s->bulk_clears += gone->bulk_clears;
    s->zapped_pages += gone->zapped_pages;
    s->floods += gone->floods;
    s->roots_added += gone->roots_added;
    s->roots_dropped += gone->roots_dropped;
    s->roots_evicted += gone->roots_evicted;
}

void tracker_info(struct tracker *t, struct tracker_info *ret)
{
    tracker_relock(t);
    *ret = (struct tracker_info){
        .settings = t->settings,
        .source = t->settings.mode == TRACKER_OFF         ? "none"
                  : t->settings.mode == TRACKER_ON_DEMAND ? "walk"
                  : t->source                             ? t->source->ops->name
                                                          : "none",
        .interval_ns = ticks(t) ? t->interval_ns : 0,
        .looked = t->looked,
        .age_ns = t->looked ? tracker_now(t) - t->looked_ns : 0,
        .stats = t->stats,
    };
    if (t->mirror)
        mirror_stats(t->mirror, &ret->stats.mirror);
    add_counters(&ret->stats.mirror, &t->gone);
    if (t->dirty)
        ret->stats.events += t->dirty->ops->events(t->dirty);
    if (t->precise)
        ret->stats.events += t->precise->ops->events(t->precise);
    tracker_unlock(t);
}
