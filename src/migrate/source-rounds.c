/*
 * A round is a harvest of the dirty log: what it found is added to the work of the senders, who go on meanwhile, and the next
 * harvest comes when little of the work is left. So channels are never idle while there is something to send, and harvesting
 * costs no time of its own.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "migrate/pages.h"
#include "migrate/source-internal.h"

/* The next harvest comes when this part of a round is left. */
#define ROUND_REST 16
/* Rounds without getting nearer to the limit after which the strategy is asked. */
#define PATIENCE_ROUNDS 2
#define PATIENCE_NS (500 * NSEC_PER_MSEC)
#define THROTTLE_FIRST 20u
#define THROTTLE_STEP 10u
/* Asking who writes costs a look at the page tables. */
#define WHO_INTERVAL_NS (1 * NSEC_PER_SEC)

int mig_harvest(struct mig_source *s, struct mig_error *err)
{
    struct dirty_snapshot snapshot;
    int r = dirty_log_snapshot_lock(s->config.dirty, MIG_CONSUMER, false, &snapshot);

    if (r < 0)
        return mig_error(err, r, "dirty log: %s", strerrordesc_np(-r));
    page_set_clear(&s->fresh);
    page_set_merge(&s->fresh, snapshot.set);
    dirty_log_unlock(s->config.dirty);
    if (snapshot.lost)
        return mig_error(err, -EIO, "dirty log: a page may be missing");
    /* From here on the work remembers these pages; a migration that fails begins anew. */
    dirty_log_ack(s->config.dirty, MIG_CONSUMER, snapshot.epoch);
    pthread_mutex_lock(&s->lock);
    s->report.harvest_ns += snapshot.harvest_ns;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

int mig_rounds_begin(struct mig_source *s, struct mig_error *err)
{
    int r = dirty_log_start(s->config.dirty, MIG_CONSUMER, DIRTY_START_ALL);
    uint64_t skipped;

    if (r < 0)
        return mig_error(err, r, "dirty log: cannot start: %s", strerrordesc_np(-r));
    s->logging = true;
    r = mig_harvest(s, err);
    if (r < 0)
        return r;
    /* After the harvest: what gets its first memory from now on is found by the next. */
    skipped = mig_skip_untouched(s->config.mem, s->fresh.map);
    pthread_mutex_lock(&s->lock);
    s->report.untouched = skipped;
    pthread_mutex_unlock(&s->lock);
    mig_work_add(s, s->fresh.map);
    s->round_pages = mem_pages(s->config.mem) - skipped;
    page_set_clear(&s->fresh);
    s->round_ns = clock_ns();
    s->round_sent = mig_bytes_moved(s);
    return 0;
}

/* Pages that one downtime has room for. */
static uint64_t budget_pages(const struct mig_source *s, uint64_t throughput)
{
    uint64_t limit = s->parameters.downtime_limit_ns > MIG_OVERHEAD_NS ? s->parameters.downtime_limit_ns - MIG_OVERHEAD_NS : 0;

    return bytes_to_pages((uint64_t)((unsigned __int128)throughput * limit / NSEC_PER_SEC));
}

/*
 * Of the newest harvest: hold back what was written in the round before, too, and page tables, as long as it is no more than
 * half of what the downtime has room for; let go what was held and is quiet now.
 */
static void sort_fresh(struct mig_source *s, uint64_t room)
{
    uint64_t tables = 0;

    page_set_clear(&s->to_send);
    page_set_clear(&s->tables);
    if (s->config.ops->tables)
        s->config.ops->tables(s->config.opaque, &s->fresh, &s->tables);
    for (size_t w = 0; w < s->words; w++) {
        uint64_t bits = s->fresh.map[w], held = s->held.map[w];
        uint64_t hold = bits & (s->before.map[w] | held | s->tables.map[w]);

        if (s->held.pages + (uint64_t)__builtin_popcountll(hold & ~held) > room)
            hold &= held;
        s->held.pages -= (uint64_t)__builtin_popcountll(held & ~bits);
        s->held.map[w] = held & bits;
        page_set_add_word(&s->held, w, hold);
        tables += (uint64_t)__builtin_popcountll(hold & s->tables.map[w]);
        page_set_add_word(&s->to_send, w, (bits & ~hold) | (held & ~bits));
    }
    page_set_swap(&s->before, &s->fresh);
    pthread_mutex_lock(&s->lock);
    s->report.held_tables = tables;
    pthread_mutex_unlock(&s->lock);
}

/* Figures of the round that ended with the newest harvest. */
static struct mig_trend measure_round(struct mig_source *s, uint64_t now, uint64_t dirtied, uint64_t last_ns)
{
    uint64_t sent = mig_bytes_moved(s) - s->round_sent, ns = MAX(now - s->round_ns, UINT64_C(1));
    uint64_t sending_ns = ns > s->idle_ns ? ns - s->idle_ns : 1;
    struct mig_report *r = &s->report;
    struct mig_trend t = {
        .memory = bytes_to_pages(r->memory),
        .limit_ns = s->parameters.downtime_limit_ns,
        .last_ns = last_ns,
    };
    struct mig_round *round = &r->rounds[(r->passes - 1) % MIG_KEEP_ROUNDS];

    *round = (struct mig_round){
        .pages = s->round_pages,
        .dirtied = dirtied,
        .ns = ns,
        .dirty_rate = (uint64_t)((unsigned __int128)dirtied * NSEC_PER_SEC / ns),
        .throughput = (uint64_t)((unsigned __int128)sent * NSEC_PER_SEC / sending_ns),
    };
    r->dirty_rate = round->dirty_rate;
    /* A short round says little of what the channel can do; one without pages nothing. */
    if (r->throughput == 0 || sent >= MiB || round->throughput > r->throughput)
        r->throughput = MAX(round->throughput, UINT64_C(1));
    t.throughput = r->throughput;
    t.dirty_rate = r->dirty_rate;
    return t;
}

/* The forecast of the round that ended; whoever keeps it from converging is named now and then. */
static bool make_forecast(struct mig_source *s, const struct mig_trend *t)
{
    struct mig_forecast f = mig_forecast(t);
    char who[MIG_WHO_MAX] = "";
    uint64_t now = clock_ns();
    bool fits;

    if (!f.valid || f.converges) {
        s->who_ns = 0;
    } else if (s->config.ops->who && (s->who_ns == 0 || now - s->who_ns >= WHO_INTERVAL_NS)) {
        s->config.ops->who(s->config.opaque, &s->before, who, sizeof(who));
        s->who_ns = now;
    } else {
        /* Written by this thread only. */
        memcpy(who, s->report.who, sizeof(who));
    }
    pthread_mutex_lock(&s->lock);
    s->report.rounds[(s->report.passes - 1) % MIG_KEEP_ROUNDS].held = s->held.pages;
    s->report.held = s->held.pages;
    s->report.passes++;
    s->report.forecast = f;
    memcpy(s->report.who, who, sizeof(who));
    if (f.valid && !s->report.plan.valid)
        s->report.plan = (struct mig_plan){
            .valid = true,
            .converges = f.converges,
            .total_ns = f.converges ? now - s->started_ns + f.end_ns : 0,
            .downtime_ns = f.converges ? f.final_ns : f.downtime_ns,
        };
    s->report.expected_downtime_ns = f.downtime_ns;
    fits = f.valid && f.downtime_ns <= s->parameters.downtime_limit_ns;
    pthread_mutex_unlock(&s->lock);
    return fits;
}

/*
 * One round: harvest when little is left, sort, add. last_ns: as in mig_trend; *ret_fits: what is pending fits into the downtime
 * limit.
 */
static int run_round(struct mig_source *s, uint64_t last_ns, bool *ret_fits, struct mig_error *err)
{
    uint64_t now, dirtied, throughput;
    struct mig_trend t;
    int64_t left;
    int r;

    if (!mig_work_wait(s, (int64_t)(s->round_pages / ROUND_REST)))
        return -ECANCELED;
    r = mig_harvest(s, err);
    if (r < 0)
        return r;
    now = clock_ns();
    dirtied = s->fresh.pages;
    pthread_mutex_lock(&s->lock);
    t = measure_round(s, now, dirtied, last_ns);
    throughput = t.throughput;
    pthread_mutex_unlock(&s->lock);
    s->round_ns = now;
    s->round_sent = mig_bytes_moved(s);
    s->idle_ns = 0;
    sort_fresh(s, budget_pages(s, throughput) / 2);
    mig_work_add(s, s->to_send.map);
    left = atomic_load(&s->left);
    s->round_pages = (uint64_t)MAX(left, INT64_C(0));
    t.pending = s->round_pages + s->held.pages;
    *ret_fits = make_forecast(s, &t);
    s->config.ops->changed(s->config.opaque, true);
    return 0;
}

void mig_set_throttle(struct mig_source *s, unsigned int percent)
{
    pthread_mutex_lock(&s->lock);
    s->report.throttle = percent;
    pthread_mutex_unlock(&s->lock);
    s->throttled = percent;
    s->config.ops->throttle(s->config.opaque, percent);
}

static unsigned int most_throttle(const struct mig_parameters *p)
{
    return p->max_throttle ? p->max_throttle : MIG_THROTTLE_DEFAULT;
}

/* Take more of the guest's time; false when it is as much as may be. */
static bool throttle_more(struct mig_source *s, unsigned int most)
{
    if (!s->config.ops->throttle || s->throttled >= most)
        return false;
    mig_set_throttle(s, MIN(s->throttled ? s->throttled + THROTTLE_STEP : THROTTLE_FIRST, most));
    return true;
}

/* Somebody may want less of it by now, or none. */
static void follow_throttle(struct mig_source *s)
{
    unsigned int most;

    pthread_mutex_lock(&s->lock);
    most = s->parameters.strategy == MIG_STRATEGY_THROTTLE ? most_throttle(&s->parameters) : 0;
    pthread_mutex_unlock(&s->lock);
    if (s->throttled > most)
        mig_set_throttle(s, most);
}

/* What to do about a guest that does not converge; *ret_stop: switch over now. */
static int ask_strategy(struct mig_source *s, bool *ret_stop, struct mig_error *err)
{
    enum mig_strategy strategy;
    char throttled[48] = "";
    unsigned int most;

    pthread_mutex_lock(&s->lock);
    strategy = s->parameters.strategy;
    most = most_throttle(&s->parameters);
    pthread_mutex_unlock(&s->lock);
    switch (strategy) {
    case MIG_STRATEGY_POSTCOPY:
        s->put_off = s->config.parameters.postcopy;
        if (!s->put_off)
            return mig_error(err, -ETIME, "it does not converge, and post-copy was not agreed on at its start");
        *ret_stop = true;
        return 0;
    case MIG_STRATEGY_STOP:
        *ret_stop = true;
        return 0;
    case MIG_STRATEGY_THROTTLE:
        if (throttle_more(s, most))
            return 0;
        snprintf(throttled, sizeof(throttled), " with %u %% of its time taken", s->throttled);
        break;
    case MIG_STRATEGY_CANCEL:
        break;
    }
    return mig_error(err, -ETIME,
                     "it does not converge%s: the guest writes %" PRIu64 " pages a second, the channel takes %" PRIu64 " bytes "
                     "a second, switching now would take %" PRIu64 " ms",
                     throttled, s->report.dirty_rate, s->report.throughput, s->report.expected_downtime_ns / NSEC_PER_MSEC);
}

static void write_out(struct mig_source *s)
{
    if (s->config.ops->write_out)
        s->config.ops->write_out(s->config.opaque);
}

static bool wants_postcopy(struct mig_source *s)
{
    bool now;

    pthread_mutex_lock(&s->lock);
    now = s->postcopy_now;
    pthread_mutex_unlock(&s->lock);
    return now;
}

/* What was sent may wait in buffers on the way, and would count as downtime: wait until the target has it. */
static int flush(struct mig_source *s, struct mig_error *err)
{
    int r = mig_work_sent(s) ? 0 : -ECANCELED;

    if (r == 0 && wants_postcopy(s))
        return 0;
    for (unsigned int i = 0; i < s->channels && r == 0; i++)
        r = mig_flush_channel(s, i, err);
    return r;
}

/* Whether rounds have brought it nearer to the end lately. */
struct patience {
    uint64_t best, best_ns;
    unsigned int since;
};

/* After a round: true when it is time to settle for what there is. */
static bool out_of_patience(struct patience *p, uint64_t downtime_ns)
{
    uint64_t now = clock_ns();

    if (downtime_ns < p->best - p->best / 16) {
        *p = (struct patience){.best = downtime_ns, .best_ns = now};
        return false;
    }
    if (++p->since < PATIENCE_ROUNDS || now - p->best_ns <= PATIENCE_NS)
        return false;
    p->since = 0;
    p->best_ns = now;
    return true;
}

int mig_rounds(struct mig_source *s, struct mig_error *err)
{
    struct patience patience = {.best = UINT64_MAX, .best_ns = clock_ns()};
    bool fits = false, stop = false, flushed = false, good, enough;
    uint64_t last = UINT64_MAX, start;
    int r = 0;

    /* While pages are sent. What is written from now on is little, and comes when all but the switchover is done. */
    write_out(s);
    while (r == 0 && !stop) {
        if (wants_postcopy(s)) {
            s->put_off = true;
            break;
        }
        follow_throttle(s);
        r = run_round(s, last, &fits, err);
        if (r < 0 || (fits && flushed))
            break;
        good = fits && mig_good_enough(s->report.expected_downtime_ns, last);
        enough = !good && out_of_patience(&patience, s->report.expected_downtime_ns);
        flushed = good || (fits && enough);
        if (flushed) {
            r = flush(s, err);
            start = clock_ns();
            if (r == 0)
                write_out(s);
            s->idle_ns += clock_ns() - start;
            continue;
        }
        last = s->report.expected_downtime_ns;
        if (enough)
            r = ask_strategy(s, &stop, err);
        /* The shortest round, so that a guest that writes little is not harvested without end. */
        mig_rest(s, s->round_ns + MIG_ROUND_MIN_NS);
    }
    if (r == 0 && !flushed)
        write_out(s);
    return r;
}
