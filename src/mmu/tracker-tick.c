/*
 * A tick. Its order is what keeps the mirror exact:
 *
 *   1. the source says what was written, and has protected or cleared it again by then
 *   2. new roots are looked for: their tables are watched as they are added
 *   3. tables are read, top level first
 *
 * So whatever is written after a table was read is heard of at the next tick.
 *
 * When the next one is due. By the number of tables: 50 to 100 ms up to 2000 of them, then 200 to 500 ms. Never so soon that ticks
 * take more of a CPU than their budget. And later while the guest is idle: vCPUs that did not run since the last look wrote
 * nothing, so the time doubles up to a minute (whoever asks in between sees to it that a look is taken if they ran).
 */
#include "config.h"

#include <time.h>

#include "base/log.h"
#include "base/util.h"
#include "mmu/tracker-internal.h"

/* Tables read before others get the lock: a quarter of a millisecond or so. */
#define SLICE_TABLES 256u

#define MANY_TABLES 2000u
#define INTERVAL_NS (50 * NSEC_PER_MSEC)
#define INTERVAL_MANY_NS (200 * NSEC_PER_MSEC)
#define INTERVAL_MOST_NS (500 * NSEC_PER_MSEC)
/* vCPUs used less than one in so many of the time since the last tick: almost idle. */
#define IDLE_SHARE 50u
#define ALMOST_IDLE_NS (2 * NSEC_PER_SEC)
#define IDLE_NS (60 * NSEC_PER_SEC)
#define MAX_DOUBLINGS 16u

static uint64_t cpu_now(const struct tracker *t)
{
    struct timespec ts;

    if (t->config.ops->cpu_now)
        return t->config.ops->cpu_now(t->config.opaque);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* -- the source ---------------------------------------------------------------------------------------------------------- */

static struct mmu_source *wanted(const struct tracker *t)
{
    switch (t->settings.mode) {
    case TRACKER_PRECISE:
        return t->precise;
    case TRACKER_LIVE:
        return t->dirty && dirty_log_logging(t->config.log) ? t->dirty : &source_reread;
    case TRACKER_OFF:
    case TRACKER_ON_DEMAND:
        break;
    }
    return NULL;
}

/* The source that failed or could not start is not to be tried at every tick. */
static void give_up(struct tracker *t, struct mmu_source *s, int r)
{
    log_warn_errno(r, "mmu: source %s cannot be used, reading all tables instead", s->ops->name);
    if (s == t->precise)
        t->settings.mode = TRACKER_LIVE;
}

static void use_source(struct tracker *t, struct mmu_source *s)
{
    int r;

    if (s == t->source)
        return;
    if (t->source)
        t->source->ops->stop(t->source);
    t->source = s;
    r = s ? s->ops->start(s) : 0;
    if (r < 0) {
        give_up(t, s, r);
        t->source = &source_reread;
    }
    if (t->source && t->source->ops->watch)
        mirror_watch_all(t->mirror);
    t->read_all = true;
}

static bool collect(struct tracker *t, bool settled)
{
    int r;

    t->changed.count = 0;
    if (!t->source)
        return true;
    r = t->source->ops->collect(t->source, t->mirror, settled ? UINT64_MAX : t->tick_ns, &t->changed);
    if (r < 0) {
        struct mmu_source *failed = t->source;

        give_up(t, failed, r);
        use_source(t, &source_reread);
        r = SOURCE_ALL;
    }
    return r == SOURCE_ALL;
}

/* -- the work ------------------------------------------------------------------------------------------------------------ */

static int sync_tables(struct tracker *t, bool all, bool sliced)
{
    int r;

    if (all)
        mirror_sync_begin(t->mirror, t->settings.mode == TRACKER_ON_DEMAND);
    else
        mirror_sync_begin_gfns(t->mirror, t->changed.at, t->changed.count);
    while ((r = mirror_sync_step(t->mirror, sliced ? SLICE_TABLES : UINT32_MAX)) > 0)
        tracker_yield(t);
    return r;
}

int tick_run(struct tracker *t, enum tick_kind kind)
{
    uint64_t now = tracker_now(t), cpu = cpu_now(t), activity = tracker_activity(t), cost;
    bool all;
    int r;

    use_source(t, wanted(t));
    all = collect(t, kind == TICK_SETTLED);
    all |= t->read_all;
    t->read_all = false;
    t->tick_ns = now;
    tick_sightings(t, now);
    tick_scan(t, now, kind);
    r = sync_tables(t, all, kind == TICK_SLICED);
    t->looked = true;
    t->looked_ns = now;
    t->activity = activity;
    cost = cpu_now(t) - cpu;
    t->stats.ticks++;
    t->stats.cpu_ns += cost;
    t->stats.last_ns = cost;
    t->stats.longest_ns = MAX(t->stats.longest_ns, cost);
    return r;
}

/* -- when ---------------------------------------------------------------------------------------------------------------- */

uint64_t tick_interval(const struct tracker *t)
{
    uint64_t n = mirror_tables(t->mirror);

    if (t->settings.interval_us)
        return t->settings.interval_us * NSEC_PER_USEC;
    if (n <= MANY_TABLES)
        return INTERVAL_NS + n * INTERVAL_NS / MANY_TABLES;
    return MIN(INTERVAL_MANY_NS + (n - MANY_TABLES) * 20 * NSEC_PER_USEC, INTERVAL_MOST_NS);
}

uint64_t tick_plan(struct tracker *t, uint64_t now, uint64_t cost_ns, uint64_t ran_ns)
{
    uint64_t base = MAX(tick_interval(t), cost_ns * 100 / t->settings.cpu_budget), most = base;

    if (ran_ns == 0)
        most = MAX(base, IDLE_NS);
    else if (ran_ns < t->interval_ns / IDLE_SHARE)
        most = MAX(base, ALMOST_IDLE_NS);
    t->quiet = most > base ? MIN(t->quiet + 1, MAX_DOUBLINGS) : 0;
    t->interval_ns = MIN(base << t->quiet, most);
    t->next_ns = now + t->interval_ns;
    /* The budget makes ticks rare just when there are many tables; KVM's limit must not wait for that. */
    t->pressure_ns = t->quiet ? UINT64_MAX : now + tick_interval(t);
    return t->next_ns;
}

static void tell_pressure(struct tracker *t)
{
    struct tracker_pressure pressure = {.shadow_pages = mirror_tables(t->mirror), .now_ns = tracker_now(t)};

    if (!t->config.ops->pressure)
        return;
    tracker_unlock(t);
    t->config.ops->pressure(t->config.opaque, &pressure);
    tracker_relock(t);
}

uint64_t tracker_pressure(struct tracker *t)
{
    uint64_t activity, next = UINT64_MAX;

    tracker_relock(t);
    t->pressure_ns = UINT64_MAX;
    if (t->running && t->settings.mode >= TRACKER_LIVE && !t->in_tick) {
        activity = tracker_activity(t);
        if (activity != t->pressure_activity) {
            tell_pressure(t);
            t->pressure_ns = tracker_now(t) + tick_interval(t);
        }
        t->pressure_activity = activity;
        next = MIN(t->pressure_ns, t->next_ns);
    }
    tracker_unlock(t);
    return next;
}

uint64_t tracker_tick(struct tracker *t)
{
    uint64_t before, ran, next = UINT64_MAX, cost = 0;

    tracker_relock(t);
    if (t->running && t->settings.mode >= TRACKER_LIVE && !t->in_tick) {
        t->in_tick = true;
        before = t->stats.cpu_ns;
        ran = tracker_activity(t) - t->activity;
        /* Out of memory: the mirror says that it is incomplete, and asks for no more than it has. */
        if (ran || !t->looked || t->read_all || !t->config.ops->activity) {
            (void)tick_run(t, TICK_SLICED);
            tell_pressure(t);
            cost = t->stats.cpu_ns - before;
        }
        next = tick_plan(t, tracker_now(t), cost, t->config.ops->activity ? ran : UINT64_MAX);
        t->in_tick = false;
        pthread_cond_broadcast(&t->rest);
    }
    tracker_unlock(t);
    return next;
}
