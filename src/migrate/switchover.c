/*
 * The switchover, source's side. Until COMMIT is sent the guest is this side's: any failure lets it go on here, and a target
 * that has not received COMMIT never runs it. From the moment the first byte of COMMIT may have left it is the target's, and
 * never runs here again by itself: a failure then leaves it stopped.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/util.h"
#include "migrate/source-internal.h"

/* The guest stands still meanwhile: a target that takes longer for one step is given up. */
#define STEP_TIMEOUT_MS 10000
/* What the kernels on both sides may hold of a channel. */
#define CHANNEL_BUFFERS (8 * MiB)
/* A channel may be so much slower than it was. */
#define SLOWER 4u
/* When nothing is known of it yet: bytes a second. */
#define SLOW_CHANNEL MiB

static void set_timeouts(struct mig_source *s, unsigned int ms)
{
    for (unsigned int i = 0; i < s->channels; i++)
        mig_stream_set_timeout(&s->senders[i].stream, ms);
}

/* However it goes about it, the target is through with what is sent from now on after that: `pages`, and what waits in buffers. */
static void set_deadline(struct mig_source *s, int64_t pages)
{
    uint64_t bytes = s->channels * CHANNEL_BUFFERS + pages_to_bytes((uint64_t)MAX(pages, INT64_C(0)));
    uint64_t rate = s->report.throughput ? s->report.throughput : SLOW_CHANNEL;
    uint64_t ns = STEP_TIMEOUT_MS * NSEC_PER_MSEC + (uint64_t)((unsigned __int128)bytes * SLOWER * NSEC_PER_SEC / rate);

    for (unsigned int i = 0; i < s->channels; i++)
        mig_stream_set_deadline(&s->senders[i].stream, clock_ns() + ns);
}

static uint64_t lap(uint64_t *start)
{
    uint64_t now = clock_ns(), ns = now - *start;

    *start = now;
    return ns;
}

static int queue_last_pages(struct mig_source *s, struct mig_error *err)
{
    int r = mig_harvest(s, err);

    if (r < 0)
        return r;
    pthread_mutex_lock(&s->lock);
    s->unlimited = true;
    pthread_mutex_unlock(&s->lock);
    mig_work_add(s, s->held.map);
    mig_work_add(s, s->fresh.map);
    return 0;
}

static int send_state(struct mig_source *s, bool run, const uint8_t *state, size_t len, uint64_t captured_ns,
                      struct mig_error *err)
{
    struct mig_state head = {.run = run, .age_ns = clock_ns() - captured_ns + s->rtt_ns / 2};
    uint8_t buf[MIG_STATE_FIXED];
    struct mig_message m = {
        .type = MIG_STATE, .head = buf, .head_len = sizeof(buf), .rest = state, .rest_len = len, .pass_fd = -1};

    mig_state_put(&head, buf);
    return mig_send(&s->senders[0].stream, &m, err);
}

/* In post-copy the target may need pages before it answers. */
static int expect(struct mig_source *s, enum mig_type type, struct mig_frame *ret, struct mig_error *err)
{
    return s->postcopy ? mig_postcopy_expect(s, type, ret, err) : mig_expect(s, 0, type, ret, err);
}

/* All up to the target's READY; *t is filled in as far as it got. */
static int prepare(struct mig_source *s, bool *run, struct mig_downtime *t, struct mig_error *err)
{
    uint64_t captured_ns, at = clock_ns();
    uint8_t *state = NULL;
    struct mig_frame f;
    size_t len;
    int r = 0;

    if (s->postcopy)
        r = mig_postcopy_last_pages(s, err);
    else if (!s->config.local)
        r = queue_last_pages(s, err);
    set_deadline(s, s->postcopy ? 0 : atomic_load(&s->left));
    t->final_harvest = lap(&at);
    /* While the senders are at it. */
    if (r == 0) {
        r = s->config.ops->save(s->config.opaque, &state, &len, &captured_ns);
        if (r < 0)
            mig_error(err, r, "the machine's state cannot be saved: %s", strerrordesc_np(-r));
    }
    t->device_state = lap(&at);
    if (r == 0 && !s->config.local && !s->postcopy && !mig_senders_finish(s))
        r = -ECANCELED;
    t->final_pages = lap(&at);
    if (r == 0)
        r = send_state(s, *run, state, len, captured_ns, err);
    if (r == 0)
        r = expect(s, MIG_READY, &f, err);
    t->load = lap(&at);
    free(state);
    return r;
}

/* From here on there is no way back; false when a cancel came first. */
static bool commit_point(struct mig_source *s)
{
    bool mine;

    pthread_mutex_lock(&s->lock);
    mine = !s->broken;
    s->committed = mine;
    pthread_mutex_unlock(&s->lock);
    return mine;
}

/* First: whatever happens to this process, it must not come back to the guest. Where that cannot be, nobody is told to take it. */
static int give_away(struct mig_source *s, struct mig_error *err)
{
    int r = s->config.ops->give_away(s->config.opaque, s->postcopy);

    if (r == 0)
        return 0;
    pthread_mutex_lock(&s->lock);
    s->committed = false;
    pthread_mutex_unlock(&s->lock);
    return mig_error(err, r, "the daemon is ending");
}

static int commit(struct mig_source *s, struct mig_error *err)
{
    struct mig_frame f;
    int r;

    set_deadline(s, 0);
    r = mig_send_frame(&s->senders[0].stream, MIG_COMMIT, NULL, 0, err);
    if (r == 0)
        r = expect(s, MIG_RUNNING, &f, err);
    pthread_mutex_lock(&s->lock);
    s->runs_there = r == 0;
    if (r < 0 && !s->postcopy)
        snprintf(s->report.why, sizeof(s->report.why),
                 "lost the target after it was told to run the guest, which may be running there: %.200s", err->text);
    pthread_mutex_unlock(&s->lock);
    return r;
}

int mig_switchover(struct mig_source *s, struct mig_error *err)
{
    struct mig_downtime t = {0};
    uint64_t start = clock_ns(), at;
    bool run;
    int r;

    mig_set_status(s, MIG_STATUS_DEVICE);
    set_timeouts(s, STEP_TIMEOUT_MS);
    start = clock_ns();
    r = s->config.ops->stop(s->config.opaque, &run, &t, err);
    if (r < 0)
        return r;
    r = prepare(s, &run, &t, err);
    if (r == 0 && !commit_point(s))
        r = -ECANCELED;
    if (r == 0)
        r = give_away(s, err);
    if (r < 0) {
        mig_break(s, err);
        s->config.ops->resume(s->config.opaque);
    } else {
        at = clock_ns();
        r = commit(s, err);
        t.resume = lap(&at);
    }
    t.total = clock_ns() - start;
    pthread_mutex_lock(&s->lock);
    s->report.downtime = t;
    pthread_mutex_unlock(&s->lock);
    return r;
}
