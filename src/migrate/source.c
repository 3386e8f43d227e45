/*
 * The coordinator. A round is a harvest of the dirty log: what it found is added to the work of the senders, who go on
 * meanwhile, and the next harvest comes when little of the work is left. So channels are never idle while there is
 * something to send, and harvesting costs no time of its own.
 */
#include "config.h"

#include "migrate/source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/thread.h"
#include "migrate/pages.h"
#include "migrate/source-internal.h"

#define CONNECT_TIMEOUT_MS 10000
/* How long the target may take to look at what it was told, and one write in pre-copy. */
#define ANSWER_TIMEOUT_MS 60000
/* The next harvest comes when this part of a round is left, and not sooner than so many ns after the last. */
#define ROUND_REST 16
#define ROUND_MIN_NS (1 * NSEC_PER_MSEC)
/* What a switchover takes without pages, until one was measured. */
#define OVERHEAD_NS (2 * NSEC_PER_MSEC)
/* Rounds without getting nearer to the limit after which the strategy is asked. */
#define PATIENCE_ROUNDS 2
#define PATIENCE_NS (500 * NSEC_PER_MSEC)
#define THROTTLE_FIRST 20u
#define THROTTLE_STEP 10u
/* Asking who writes costs a look at the page tables. */
#define WHO_INTERVAL_NS (1 * NSEC_PER_SEC)

/* -- status and report -- */

void mig_set_status(struct mig_source *s, enum mig_status status)
{
    pthread_mutex_lock(&s->lock);
    s->report.status = status;
    pthread_mutex_unlock(&s->lock);
    s->config.ops->changed(s->config.opaque, false);
}

void mig_source_report(struct mig_source *s, struct mig_report *ret)
{
    int64_t left = atomic_load(&s->left);

    pthread_mutex_lock(&s->lock);
    *ret = s->report;
    if (!s->over) {
        ret->total_ns = clock_ns() - s->started_ns;
        ret->remaining = pages_to_bytes((uint64_t)MAX(left, INT64_C(0)) + ret->held);
        if (s->postcopy_start_ns)
            ret->postcopy_ns = clock_ns() - s->postcopy_start_ns;
    }
    ret->transferred = mig_bytes_sent(s);
    ret->normal = atomic_load(&s->normal);
    ret->zero = atomic_load(&s->zero);
    ret->packed_pages = atomic_load(&s->packed_pages);
    ret->packed_bytes = pages_to_bytes(ret->packed_pages) - MIN(atomic_load(&s->saved), pages_to_bytes(ret->packed_pages));
    pthread_mutex_unlock(&s->lock);
}

/* -- talking to the target -- */

int mig_unexpected(struct mig_source *s, const struct mig_frame *f, enum mig_type wanted, struct mig_error *err)
{
    const char *what = f->type == MIG_REFUSE ? "refuses" : "failed";

    if (f->type != MIG_REFUSE && f->type != MIG_FAILED)
        return mig_error(err, -EBADMSG, "frame: %s instead of %s", mig_type_name(f->type), mig_type_name(wanted));
    pthread_mutex_lock(&s->lock);
    snprintf(s->report.why, sizeof(s->report.why), "the target %s: %.*s", what, (int)MIN(f->length, (uint32_t)(MIG_WHY_MAX - 64)),
             (const char *)f->payload);
    pthread_mutex_unlock(&s->lock);
    return mig_error(err, -EREMOTEIO, "the target %s", what);
}

int mig_expect(struct mig_source *s, unsigned int channel, enum mig_type type, struct mig_frame *ret, struct mig_error *err)
{
    int r = mig_receive(&s->senders[channel].stream, ret, err);

    return r < 0 || ret->type == type ? r : mig_unexpected(s, ret, type, err);
}

int mig_expect_hello(struct mig_source *s, struct mig_error *err)
{
    struct mig_hello answer;
    int r = mig_receive_hello(&s->senders[0].stream, &answer, err);

    if (r == 0 && (answer.session != s->session || answer.channels != s->channels))
        r = mig_error(err, -EBADMSG, "hello: the target answers for another session");
    return r;
}

int mig_connect_channel(struct mig_source *s, unsigned int index, struct mig_error *err)
{
    struct mig_hello hello = {
        .version = MIG_VERSION, .channel = (uint16_t)index, .channels = (uint16_t)s->channels, .session = s->session};
    struct mig_sender *c = &s->senders[index];
    int r, fd = s->config.uri ? mig_connect(s->uri, CONNECT_TIMEOUT_MS, err) : take_fd(s->config.fd);

    if (fd < 0)
        return fd;
    pthread_mutex_lock(&s->lock);
    mig_stream_init(&c->stream, fd, true);
    c->connected = true;
    /* A cancel that came meanwhile did not see this one. */
    if (s->broken)
        mig_stream_break(&c->stream);
    pthread_mutex_unlock(&s->lock);
    mig_stream_set_timeout(&c->stream, ANSWER_TIMEOUT_MS);
    r = s->config.tls ? mig_stream_secure(&c->stream, s->config.tls, s->tls_host, err) : 0;
    return r < 0 ? r : mig_send_hello(&c->stream, &hello, err);
}

static int send_setup(struct mig_source *s, struct mig_error *err)
{
    struct mig_setup setup = {
        .memory = mem_size(s->config.mem), .page_size = GUEST_PAGE_SIZE, .flags = s->config.local ? MIG_SETUP_LOCAL : 0};
    uint8_t head[MIG_SETUP_FIXED], *facts;
    struct mig_message m = {.type = MIG_SETUP, .head = head, .head_len = sizeof(head), .pass_fd = -1};
    int r = s->config.ops->facts(s->config.opaque, &facts, &m.rest_len);

    if (s->senders[0].packer)
        setup.flags |= MIG_SETUP_ZSTD;
    if (s->config.parameters.postcopy)
        setup.flags |= MIG_SETUP_POSTCOPY;
    if (r < 0)
        return mig_error(err, r, "the machine's state cannot be saved: %s", strerrordesc_np(-r));
    mig_setup_put(&setup, head);
    m.rest = facts;
    r = mig_send(&s->senders[0].stream, &m, err);
    free(facts);
    return r;
}

int mig_flush_channel(struct mig_source *s, unsigned int channel, struct mig_error *err)
{
    struct mig_stream *stream = &s->senders[channel].stream;
    uint64_t start = clock_ns();
    struct mig_frame f;
    int r = mig_send_u64(stream, MIG_PING, start, err);

    if (r == 0)
        r = mig_expect(s, channel, MIG_PONG, &f, err);
    if (r == 0 && le64_get(f.payload) != start)
        r = mig_error(err, -EBADMSG, "pong: not what was sent");
    if (r == 0 && channel == 0)
        s->rtt_ns = clock_ns() - start;
    return r;
}

static int pass_memory(struct mig_source *s, struct mig_error *err)
{
    uint8_t size[8];
    struct mig_message m = {.type = MIG_MEMORY, .head = size, .head_len = sizeof(size), .pass_fd = mem_fd(s->config.mem)};
    struct mig_frame f;
    int r;

    le64_put(size, mem_size(s->config.mem));
    r = mig_send(&s->senders[0].stream, &m, err);
    return r < 0 ? r : mig_expect(s, 0, MIG_ACCEPT, &f, err);
}

/* Connect, have the target compare, open the other channels. */
static int set_up(struct mig_source *s, struct mig_error *err)
{
    struct mig_frame f;
    int r;

    if (getrandom(&s->session, sizeof(s->session), 0) != sizeof(s->session))
        return mig_error(err, -EIO, "no random session number");
    r = mig_connect_channel(s, 0, err);
    if (r == 0)
        r = send_setup(s, err);
    if (r == 0)
        r = mig_expect_hello(s, err);
    if (r == 0)
        r = mig_expect(s, 0, MIG_ACCEPT, &f, err);
    for (unsigned int i = 1; i < s->channels && r == 0; i++)
        r = mig_connect_channel(s, i, err);
    if (r == 0)
        r = mig_flush_channel(s, 0, err);
    if (r == 0 && s->config.local)
        r = pass_memory(s, err);
    return r;
}

/* -- rounds -- */

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

/* All pages but those that were never touched. */
static int begin_log(struct mig_source *s, struct mig_error *err)
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
    return 0;
}

/* Pages that one downtime has room for. */
static uint64_t budget_pages(const struct mig_source *s, uint64_t throughput)
{
    uint64_t limit = s->parameters.downtime_limit_ns > OVERHEAD_NS ? s->parameters.downtime_limit_ns - OVERHEAD_NS : 0;

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
static struct mig_trend measure_round(struct mig_source *s, uint64_t now, uint64_t dirtied)
{
    uint64_t sent = mig_bytes_moved(s) - s->round_sent, ns = MAX(now - s->round_ns, UINT64_C(1));
    struct mig_report *r = &s->report;
    struct mig_trend t = {.limit_ns = s->parameters.downtime_limit_ns, .overhead_ns = OVERHEAD_NS};
    struct mig_round *round = &r->rounds[(r->passes - 1) % MIG_KEEP_ROUNDS];

    *round = (struct mig_round){
        .pages = s->round_pages,
        .dirtied = dirtied,
        .ns = ns,
        .dirty_rate = (uint64_t)((unsigned __int128)dirtied * NSEC_PER_SEC / ns),
        .throughput = (uint64_t)((unsigned __int128)sent * NSEC_PER_SEC / ns),
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
    uint64_t now = clock_ns();
    bool fits;

    if (!f.valid || f.converges) {
        s->who_ns = 0;
    } else if (s->config.ops->who && (s->who_ns == 0 || now - s->who_ns >= WHO_INTERVAL_NS)) {
        s->config.ops->who(s->config.opaque, &s->before, f.who, sizeof(f.who));
        s->who_ns = now;
    } else {
        /* Written by this thread only. */
        memcpy(f.who, s->report.forecast.who, sizeof(f.who));
    }
    pthread_mutex_lock(&s->lock);
    s->report.rounds[(s->report.passes - 1) % MIG_KEEP_ROUNDS].held = s->held.pages;
    s->report.held = s->held.pages;
    s->report.passes++;
    s->report.forecast = f;
    if (f.valid && !s->report.plan.valid)
        s->report.plan = (struct mig_plan){
            .valid = true,
            .converges = f.converges,
            .total_ns = f.converges ? now - s->started_ns + f.converge_ns + f.final_ns : 0,
            .downtime_ns = f.converges ? f.final_ns : f.downtime_ns,
        };
    s->report.expected_downtime_ns = f.downtime_ns;
    fits = f.valid && f.downtime_ns <= s->parameters.downtime_limit_ns;
    pthread_mutex_unlock(&s->lock);
    return fits;
}

/* One round: harvest when little is left, sort, add. *ret_fits: what is pending fits into the downtime limit. */
static int run_round(struct mig_source *s, bool *ret_fits, struct mig_error *err)
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
    t = measure_round(s, now, dirtied);
    throughput = t.throughput;
    pthread_mutex_unlock(&s->lock);
    s->round_ns = now;
    s->round_sent = mig_bytes_moved(s);
    sort_fresh(s, budget_pages(s, throughput) / 2);
    mig_work_add(s, s->to_send.map);
    left = atomic_load(&s->left);
    s->round_pages = (uint64_t)MAX(left, INT64_C(0));
    t.pending = s->round_pages + s->held.pages;
    *ret_fits = make_forecast(s, &t);
    s->config.ops->changed(s->config.opaque, true);
    return 0;
}

/* Wait out the shortest round, so that a guest that writes little is not harvested without end. */
static void rest(struct mig_source *s)
{
    uint64_t until = s->round_ns + ROUND_MIN_NS;
    struct timespec ts = {.tv_sec = (time_t)(until / NSEC_PER_SEC), .tv_nsec = (long)(until % NSEC_PER_SEC)};

    pthread_mutex_lock(&s->lock);
    while (!s->broken && clock_ns() < until)
        pthread_cond_timedwait(&s->done, &s->lock, &ts);
    pthread_mutex_unlock(&s->lock);
}

static void set_throttle(struct mig_source *s, unsigned int percent)
{
    pthread_mutex_lock(&s->lock);
    s->report.throttle = percent;
    pthread_mutex_unlock(&s->lock);
    s->throttled = percent;
    s->config.ops->throttle(s->config.opaque, percent);
}

/* Take more of the guest's time; false when it is as much as may be. */
static bool throttle_more(struct mig_source *s, unsigned int most)
{
    if (!s->config.ops->throttle || s->throttled >= most)
        return false;
    set_throttle(s, MIN(s->throttled ? s->throttled + THROTTLE_STEP : THROTTLE_FIRST, most));
    return true;
}

/* What to do about a guest that does not converge; *ret_stop: switch over now. */
static int ask_strategy(struct mig_source *s, bool *ret_stop, struct mig_error *err)
{
    enum mig_strategy strategy;
    char throttled[48] = "";
    unsigned int most;

    pthread_mutex_lock(&s->lock);
    strategy = s->parameters.strategy;
    most = s->parameters.max_throttle ? s->parameters.max_throttle : MIG_THROTTLE_DEFAULT;
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

/*
 * What fits into the limit may still be mostly pages that only wait for their turn. They have to go out in any case, so it
 * costs nothing to let the guest run meanwhile: stop when a round no longer halves the downtime.
 */
static bool good_enough(uint64_t downtime_ns, uint64_t last_ns)
{
    return downtime_ns <= 2 * OVERHEAD_NS || downtime_ns > last_ns / 2;
}

/* What was sent may wait in buffers on the way, and would count as downtime: wait until the target has it. */
static int flush(struct mig_source *s, struct mig_error *err)
{
    int r = mig_work_wait(s, 0) ? 0 : -ECANCELED;

    for (unsigned int i = 0; i < s->channels && r == 0; i++)
        r = mig_flush_channel(s, i, err);
    return r;
}

static bool wants_postcopy(struct mig_source *s)
{
    bool now;

    pthread_mutex_lock(&s->lock);
    now = s->postcopy_now;
    pthread_mutex_unlock(&s->lock);
    return now;
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

/* Pre-copy until the rest fits into the downtime limit, or is left for post-copy. */
static int copy_rounds(struct mig_source *s, struct mig_error *err)
{
    struct patience patience = {.best = UINT64_MAX, .best_ns = clock_ns()};
    bool fits = false, stop = false, flushed = false, enough;
    uint64_t last = UINT64_MAX;
    int r = 0;

    s->round_ns = clock_ns();
    s->round_sent = mig_bytes_moved(s);
    while (r == 0 && !stop) {
        if (wants_postcopy(s)) {
            s->put_off = true;
            break;
        }
        r = run_round(s, &fits, err);
        if (r < 0 || (fits && flushed))
            break;
        enough = out_of_patience(&patience, s->report.expected_downtime_ns);
        flushed = fits && (enough || good_enough(s->report.expected_downtime_ns, last));
        if (flushed) {
            r = flush(s, err);
            continue;
        }
        last = s->report.expected_downtime_ns;
        if (enough)
            r = ask_strategy(s, &stop, err);
        rest(s);
    }
    return r;
}

/* pause-before-switchover: until somebody says to go on. */
static int wait_for_go(struct mig_source *s)
{
    bool go;

    if (!s->parameters.pause_before_switchover)
        return 0;
    mig_set_status(s, MIG_STATUS_PRE_SWITCHOVER);
    pthread_mutex_lock(&s->lock);
    while (!s->go_on && !s->broken)
        pthread_cond_wait(&s->done, &s->lock);
    go = !s->broken;
    pthread_mutex_unlock(&s->lock);
    return go ? 0 : -ECANCELED;
}

static int migrate(struct mig_source *s, struct mig_error *err)
{
    int r = set_up(s, err);

    pthread_mutex_lock(&s->lock);
    s->report.setup_ns = clock_ns() - s->started_ns;
    s->report.passes = 1;
    pthread_mutex_unlock(&s->lock);
    if (r < 0)
        return r;
    mig_set_status(s, MIG_STATUS_ACTIVE);
    if (!s->config.local) {
        r = begin_log(s, err);
        if (r == 0)
            r = mig_senders_start(s);
        if (r == 0)
            r = copy_rounds(s, err);
    }
    if (r == 0 && s->put_off)
        r = mig_postcopy_begin(s, err);
    if (r == 0)
        r = wait_for_go(s);
    if (r < 0)
        return r;
    r = mig_switchover(s, err);
    return s->postcopy && s->committed ? mig_postcopy_run(s, r, err) : r;
}

static void finish(struct mig_source *s, int r, struct mig_error *err)
{
    enum mig_status status = r == 0 ? MIG_STATUS_COMPLETED : MIG_STATUS_FAILED;

    mig_break(s, NULL);
    mig_senders_join(s);
    if (s->throttled)
        set_throttle(s, 0);
    if (s->logging && dirty_log_stop(s->config.dirty, MIG_CONSUMER) < 0)
        log_warn("migration: dirty logging cannot be switched off");
    pthread_mutex_lock(&s->lock);
    if (r < 0 && s->cancelled && !s->committed)
        status = MIG_STATUS_CANCELLED;
    if (r == 0)
        s->report.why[0] = '\0';
    /* A channel's error comes before what follows from it. */
    if (r < 0 && !s->report.why[0])
        snprintf(s->report.why, sizeof(s->report.why), "%s",
                 status == MIG_STATUS_CANCELLED ? "cancelled" : s->error.text[0] ? s->error.text : err->text);
    s->report.total_ns = clock_ns() - s->started_ns;
    s->report.remaining = 0;
    s->over = true;
    pthread_mutex_unlock(&s->lock);
    mig_set_status(s, status);
}

static void *coordinator(void *arg)
{
    struct mig_source *s = arg;
    struct mig_error err = {""};
    int r;

    thread_enter(THREAD_MIGRATE, "migration");
    thread_idle();
    mig_set_status(s, MIG_STATUS_SETUP);
    r = migrate(s, &err);
    finish(s, r, &err);
    thread_leave();
    return NULL;
}

/* -- from outside -- */

static int allocate(struct mig_source *s)
{
    uint64_t pages = mem_pages(s->config.mem);
    pthread_condattr_t monotonic;
    int r;

    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &monotonic);
    pthread_cond_init(&s->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    s->words = bitmap_words(pages);
    s->work = calloc(s->words, sizeof(*s->work));
    s->present = calloc(s->words, sizeof(*s->present));
    if (s->config.uri)
        s->uri = strdup(s->config.uri);
    if (s->config.tls_host)
        s->tls_host = strdup(s->config.tls_host);
    if (!s->work || !s->present || (s->config.uri && !s->uri) || (s->config.tls_host && !s->tls_host))
        return -ENOMEM;
    r = page_set_init(&s->fresh, pages);
    if (r == 0)
        r = page_set_init(&s->held, pages);
    if (r == 0)
        r = page_set_init(&s->before, pages);
    if (r == 0)
        r = page_set_init(&s->to_send, pages);
    if (r == 0)
        r = page_set_init(&s->tables, pages);
    if (r == 0)
        r = page_set_init(&s->absent, pages);
    return r;
}

int mig_source_start(const struct mig_source_config *config, struct mig_source **ret)
{
    struct mig_source *s = calloc(1, sizeof(*s));
    int r;

    if (!s) {
        fd_close(config->fd);
        mig_tls_free(config->tls);
        return -ENOMEM;
    }
    s->config = *config;
    s->parameters = config->parameters;
    s->config.parameters.postcopy |= config->parameters.strategy == MIG_STRATEGY_POSTCOPY;
    s->channels = config->local || !config->uri ? 1 : MIN(config->parameters.channels, MIG_MAX_CHANNELS);
    s->channels = MAX(s->channels, 1u);
    s->started_ns = clock_ns();
    s->report.status = MIG_STATUS_SETUP;
    s->config.parameters.postcopy &= !config->local && config->uri;
    if (s->config.parameters.postcopy)
        s->channels = MAX(s->channels, 2u);
    s->report.memory = mem_size(config->mem);
    s->report.local = config->local;
    s->report.channels = s->channels;
    for (unsigned int i = 0; i < s->channels; i++) {
        s->senders[i].source = s;
        s->senders[i].index = i;
    }
    r = allocate(s);
    for (unsigned int i = 0; i < s->channels && r == 0 && config->parameters.zstd_level && !config->local; i++)
        r = mig_packer_new(config->parameters.zstd_level, &s->senders[i].packer);
    if (r == 0)
        r = thread_start(&s->thread, 0, coordinator, s);
    s->started = r == 0;
    if (r < 0) {
        mig_source_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

void mig_source_cancel(struct mig_source *s)
{
    bool late;

    pthread_mutex_lock(&s->lock);
    late = s->over || s->committed;
    s->cancelled |= !late;
    if (!late)
        s->report.status = MIG_STATUS_CANCELLING;
    pthread_mutex_unlock(&s->lock);
    if (!late)
        mig_break(s, NULL);
}

int mig_source_continue(struct mig_source *s)
{
    int r = -EINVAL;

    pthread_mutex_lock(&s->lock);
    if (s->report.status == MIG_STATUS_PRE_SWITCHOVER) {
        s->go_on = true;
        pthread_cond_broadcast(&s->done);
        r = 0;
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

int mig_source_postcopy(struct mig_source *s)
{
    int r = -EINVAL;

    pthread_mutex_lock(&s->lock);
    if (s->config.parameters.postcopy && !s->broken && (s->report.status == MIG_STATUS_SETUP || s->report.status == MIG_STATUS_ACTIVE)) {
        s->postcopy_now = true;
        pthread_cond_broadcast(&s->done);
        r = 0;
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

int mig_source_pause(struct mig_source *s)
{
    struct mig_error err = {"paused by a command"};
    bool active;

    pthread_mutex_lock(&s->lock);
    active = s->report.status == MIG_STATUS_POSTCOPY_ACTIVE;
    pthread_mutex_unlock(&s->lock);
    if (!active)
        return -EINVAL;
    mig_break(s, &err);
    return 0;
}

int mig_source_recover(struct mig_source *s, const char *uri, const char *tls_host)
{
    char *u = strdup(uri), *host = tls_host ? strdup(tls_host) : NULL;
    int r = u && (host || !tls_host) ? 0 : -ENOMEM;

    pthread_mutex_lock(&s->lock);
    if (r == 0 && s->report.status != MIG_STATUS_POSTCOPY_PAUSED)
        r = -EINVAL;
    if (r == 0) {
        s->recover_uri = take_ptr(u);
        s->recover_host = take_ptr(host);
        s->report.status = MIG_STATUS_POSTCOPY_RECOVER;
        pthread_cond_broadcast(&s->done);
    }
    pthread_mutex_unlock(&s->lock);
    free(u);
    free(host);
    return r;
}

void mig_source_set_parameters(struct mig_source *s, const struct mig_parameters *p)
{
    pthread_mutex_lock(&s->lock);
    s->parameters = *p;
    s->pace_ns = 0;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void mig_source_free(struct mig_source *s)
{
    if (!s)
        return;
    if (s->started) {
        mig_source_cancel(s);
        pthread_mutex_lock(&s->lock);
        s->closing = true;
        pthread_mutex_unlock(&s->lock);
        mig_break(s, NULL);
        pthread_join(s->thread, NULL);
    }
    for (unsigned int i = 0; i < s->channels; i++) {
        if (s->senders[i].connected)
            mig_stream_clear(&s->senders[i].stream);
        mig_packer_free(s->senders[i].packer);
    }
    fd_close(s->config.fd);
    page_set_free(&s->fresh);
    page_set_free(&s->held);
    page_set_free(&s->before);
    page_set_free(&s->to_send);
    page_set_free(&s->tables);
    page_set_free(&s->absent);
    free(s->recover_uri);
    free(s->recover_host);
    free(s->work);
    free(s->present);
    free(s->uri);
    free(s->tls_host);
    mig_tls_free(s->config.tls);
    pthread_cond_destroy(&s->wake);
    pthread_cond_destroy(&s->done);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
