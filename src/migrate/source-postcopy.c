/*
 * Post-copy, source's side: the guest goes before its last pages. What was not sent yet when that is decided, and what the last
 * harvest finds, is told to the target as absent; from then on the senders' work is what the target lacks.
 *
 * The last channel carries nothing but pages that the target waits for, so that these never stand behind others. The
 * coordinator receives on channel 0, where the target asks.
 *
 * A connection that is lost after COMMIT loses nothing: when the two have found each other again the target says what it
 * lacks, and that is the work.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/util.h"
#include "migrate/source-internal.h"

/* Pages behind one that is asked for that go with it, if they are absent too. */
#define AHEAD_PAGES 16u
/* How long a network may take to come back, from when a recovery is asked for, and how often it is tried. */
#define RETURN_TIMEOUT_NS (20 * NSEC_PER_SEC)
#define RETRY_NS (500 * NSEC_PER_MSEC)

/* -- senders ------------------------------------------------------------------ */

/* The next page that the target waits for; false at the end. */
static bool next_request(struct mig_source *s, pfn_t *ret)
{
    bool some;

    pthread_mutex_lock(&s->lock);
    while (!s->broken && !s->served && s->request_count == 0)
        pthread_cond_wait(&s->wake, &s->lock);
    some = !s->broken && !s->served;
    if (some) {
        *ret = s->requests[s->request_head];
        s->request_head = (s->request_head + 1) % MIG_REQUESTS;
        s->request_count--;
    }
    pthread_mutex_unlock(&s->lock);
    return some;
}

/*
 * The page, and some behind it unless they are on their way already. The page itself goes also when another channel has taken it
 * up: it may wait there for its turn, behind others or for bandwidth. The target takes the first that comes.
 */
static int send_request(struct mig_sender *c, pfn_t page, struct mig_error *err)
{
    struct mig_source *s = c->source;
    struct mig_batch b = {.run_count = 0};
    uint64_t mask = ((UINT64_C(1) << AHEAD_PAGES) - 1) << (page % 64);
    uint64_t bits = __atomic_fetch_and(&s->work[page / 64], ~mask, __ATOMIC_SEQ_CST) & mask;
    int r = mig_batch_add_word(c, page / 64, bits | UINT64_C(1) << (page % 64), &b, err);

    if (r == 0 && b.run_count > 0)
        r = mig_batch_send(c, &b, err);
    mig_work_done(s, __builtin_popcountll(bits));
    return r;
}

static void *request_thread(void *arg)
{
    struct mig_sender *c = arg;
    struct mig_error err = {""};
    pfn_t page;
    int r = 0;

    thread_enter(THREAD_MIGRATE, "mig-request");
    thread_idle();
    while (r == 0 && next_request(c->source, &page))
        r = send_request(c, page, &err);
    if (r < 0)
        mig_break(c->source, &err);
    thread_leave();
    return NULL;
}

/* Everything, in order. */
static void *rest_thread(void *arg)
{
    struct mig_sender *c = arg;
    struct mig_error err = {""};
    uint64_t taken = 1;
    int r = 0;

    thread_enter(THREAD_MIGRATE, "mig-send");
    thread_idle();
    while (r == 0 && taken > 0 && !__atomic_load_n(&c->source->broken, __ATOMIC_RELAXED))
        r = mig_sweep(c, &taken, &err);
    if (r < 0)
        mig_break(c->source, &err);
    thread_leave();
    return NULL;
}

static int start_sender(struct mig_source *s, unsigned int index, void *(*run)(void *arg), struct mig_error *err)
{
    int r = thread_start(&s->senders[index].thread, 0, run, &s->senders[index]);

    s->senders[index].started = r == 0;
    return r < 0 ? mig_error(err, r, "no thread for channel %u", index) : 0;
}

static int start_rest(struct mig_source *s, struct mig_error *err)
{
    int r = 0;

    for (unsigned int i = 0; i < s->sharing && r == 0; i++)
        r = start_sender(s, i, rest_thread, err);
    return r;
}

/* -- begin -------------------------------------------------------------------- */

/* Take back what no sender has taken yet. */
static void take_work_back(struct mig_source *s)
{
    int64_t taken = 0;

    for (size_t w = 0; w < s->words; w++) {
        uint64_t bits = __atomic_load_n(&s->work[w], __ATOMIC_RELAXED) ? __atomic_exchange_n(&s->work[w], 0, __ATOMIC_SEQ_CST) : 0;

        taken += __builtin_popcountll(bits);
        page_set_add_word(&s->absent, w, bits);
    }
    mig_work_done(s, taken);
}

/* Tell the target what comes later; it becomes the work. */
static int announce(struct mig_source *s, const struct page_set *pages, struct mig_error *err)
{
    mig_work_add(s, pages->map);
    return mig_send_map(&s->senders[0].stream, MIG_ABSENT, pages->map, s->words, err);
}

/* Also that nothing does: it is how the target knows that this is post-copy, and answers accordingly. */
static int announce_first(struct mig_source *s, struct mig_error *err)
{
    static const uint64_t none[1];
    uint8_t buf[MIG_MAP_FIXED + sizeof(none)];

    if (s->absent.pages > 0)
        return announce(s, &s->absent, err);
    return mig_send_frame(&s->senders[0].stream, MIG_ABSENT, buf, mig_map_put(0, none, ARRAY_SIZE(none), buf), err);
}

int mig_postcopy_begin(struct mig_source *s, struct mig_error *err)
{
    int r;

    take_work_back(s);
    page_set_merge(&s->absent, &s->held);
    if (!mig_senders_finish(s))
        return -ECANCELED;
    mig_senders_join(s);
    s->postcopy = true;
    s->sharing = s->channels - 1;
    pthread_mutex_lock(&s->lock);
    s->pace_ns = 0;
    s->report.held = 0;
    pthread_mutex_unlock(&s->lock);
    /* Most of what is absent the target makes room for while the guest still runs here. */
    r = announce_first(s, err);
    return r < 0 ? r : mig_flush_channel(s, 0, err);
}

/* What was written since. */
static int announce_more(struct mig_source *s, struct mig_error *err)
{
    int r = mig_harvest(s, err);

    return r < 0 ? r : announce(s, &s->fresh, err);
}

int mig_postcopy_catch_up(struct mig_source *s, struct mig_error *err)
{
    int r = announce_more(s, err);

    return r < 0 ? r : mig_flush_channel(s, 0, err);
}

int mig_postcopy_last_pages(struct mig_source *s, struct mig_error *err)
{
    int r = announce_more(s, err);

    /* Loading the state may take pages. */
    return r < 0 ? r : start_sender(s, s->channels - 1, request_thread, err);
}

/* -- serve -------------------------------------------------------------------- */

static int take_request(struct mig_source *s, pfn_t page, struct mig_error *err)
{
    if (page >= mem_pages(s->config.mem))
        return mig_error(err, -EBADMSG, "request: page %" PRIu64 " of %" PRIu64, page, mem_pages(s->config.mem));
    pthread_mutex_lock(&s->lock);
    s->report.requests++;
    /* One too many comes with the rest. */
    if (s->request_count < MIG_REQUESTS) {
        s->requests[(s->request_head + s->request_count) % MIG_REQUESTS] = page;
        s->request_count++;
        pthread_cond_broadcast(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
    return 0;
}

int mig_postcopy_expect(struct mig_source *s, enum mig_type type, struct mig_frame *ret, struct mig_error *err)
{
    int r;

    for (;;) {
        r = mig_receive(&s->senders[0].stream, ret, err);
        if (r < 0 || ret->type == type)
            return r;
        if (ret->type == MIG_WHOLE)
            s->whole = true;
        else if (ret->type == MIG_REQUEST)
            r = take_request(s, le64_get(ret->payload), err);
        else
            r = mig_unexpected(s, ret, type, err);
        if (r < 0)
            return r;
    }
}

static void set_served(struct mig_source *s, bool served)
{
    pthread_mutex_lock(&s->lock);
    s->served = served;
    if (!served)
        s->request_count = 0;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

static int serve(struct mig_source *s, struct mig_error *err)
{
    struct mig_frame f;
    int r;

    for (unsigned int i = 0; i < s->channels; i++)
        mig_stream_watch(&s->senders[i].stream, MIG_PATIENCE_MS);
    mig_set_status(s, MIG_STATUS_POSTCOPY_ACTIVE);
    r = start_rest(s, err);
    if (r == 0 && !s->whole)
        r = mig_postcopy_expect(s, MIG_WHOLE, &f, err);
    return r;
}

/* -- the connection is lost --------------------------------------------------- */

static void drop_connections(struct mig_source *s)
{
    mig_senders_join(s);
    pthread_mutex_lock(&s->lock);
    s->sent_before = mig_bytes_sent(s);
    for (unsigned int i = 0; i < s->channels; i++) {
        if (s->senders[i].connected)
            mig_stream_clear(&s->senders[i].stream);
        s->senders[i].connected = false;
        s->senders[i].stream.sent = 0;
    }
    pthread_mutex_unlock(&s->lock);
}

/* Until somebody says where to connect; -ECANCELED: it will not be. */
static int wait_for_recover(struct mig_source *s, struct mig_error *err)
{
    bool ending;
    int r = 0;

    mig_break(s, err);
    drop_connections(s);
    pthread_mutex_lock(&s->lock);
    if (!s->closing)
        snprintf(s->report.why, sizeof(s->report.why), "lost the target, where the guest %s without all of its memory: %.200s",
                 s->runs_there ? "runs" : "may be running", s->error.text);
    ending = s->closing;
    pthread_mutex_unlock(&s->lock);
    if (!ending)
        log_err("migration: %s", s->report.why);
    mig_set_status(s, MIG_STATUS_POSTCOPY_PAUSED);
    pthread_mutex_lock(&s->lock);
    while (!s->closing && !s->cancelled && !s->recover_uri)
        pthread_cond_wait(&s->done, &s->lock);
    if (s->closing || s->cancelled) {
        r = -ECANCELED;
    } else {
        free(s->uri);
        s->uri = take_ptr(s->recover_uri);
        free(s->tls_host);
        s->tls_host = take_ptr(s->recover_host);
        s->broken = false;
        fd_event_clear(s->wake_fd);
        s->error = (struct mig_error){""};
    }
    pthread_mutex_unlock(&s->lock);
    *err = (struct mig_error){""};
    return r;
}

/* What the target lacks is the work. */
static int take_missing(struct mig_source *s, const struct mig_frame *f, uint64_t *bits, struct mig_error *err)
{
    pfn_t first;
    size_t words;
    int r = mig_map_get(f->payload, f->length, mem_pages(s->config.mem), &first, bits, &words, err);

    for (size_t i = 0; i < words && r == 0; i++)
        page_set_add_word(&s->absent, first / 64 + i, bits[i]);
    return r;
}

static int ask_what_is_missing(struct mig_source *s, struct mig_error *err)
{
    uint64_t *bits = malloc(MIG_MAP_WORDS * sizeof(*bits));
    struct mig_frame f = {.type = MIG_MISSING};
    int r = bits ? mig_send_frame(&s->senders[0].stream, MIG_RESUME, NULL, 0, err) : mig_error(err, -ENOMEM, "no memory");

    if (r == 0)
        r = mig_expect_hello(s, err);
    page_set_clear(&s->absent);
    while (r == 0 && f.type != MIG_ACCEPT) {
        r = mig_receive(&s->senders[0].stream, &f, err);
        if (r == 0 && f.type == MIG_MISSING)
            r = take_missing(s, &f, bits, err);
        else if (r == 0 && f.type != MIG_ACCEPT)
            r = mig_unexpected(s, &f, MIG_MISSING, err);
    }
    free(bits);
    return r;
}

/* A network that comes back says for some seconds that there is no way to the target. */
static int connect_again(struct mig_source *s, struct mig_error *err)
{
    uint64_t until = clock_ns() + RETURN_TIMEOUT_NS;
    int r;

    do
        r = mig_connect_channel(s, 0, err);
    while ((r == -EHOSTUNREACH || r == -ENETUNREACH || r == -ENETDOWN) && !s->senders[0].connected && clock_ns() < until &&
           mig_rest(s, clock_ns() + RETRY_NS));
    if (r == 0)
        *err = (struct mig_error){""};
    return r;
}

static int reconnect(struct mig_source *s, struct mig_error *err)
{
    int r;

    mig_set_status(s, MIG_STATUS_POSTCOPY_RECOVER);
    r = connect_again(s, err);
    if (r == 0)
        r = ask_what_is_missing(s, err);
    for (unsigned int i = 1; i < s->channels && r == 0; i++)
        r = mig_connect_channel(s, i, err);
    if (r < 0)
        return r;
    memset(s->work, 0, s->words * sizeof(*s->work));
    atomic_store(&s->left, 0);
    mig_work_add(s, s->absent.map);
    set_served(s, false);
    pthread_mutex_lock(&s->lock);
    s->runs_there = true;
    s->report.recoveries++;
    s->report.why[0] = '\0';
    pthread_mutex_unlock(&s->lock);
    return start_sender(s, s->channels - 1, request_thread, err);
}

/* -- until the target has all ------------------------------------------------- */

/* This side ends, or is told to, before the target has all. */
static int give_up(struct mig_source *s, struct mig_error *err)
{
    pthread_mutex_lock(&s->lock);
    if (!s->runs_there)
        snprintf(s->report.why, sizeof(s->report.why),
                 "given up after the target was told to run the guest and did not answer: it may be running there");
    pthread_mutex_unlock(&s->lock);
    return mig_error(err, -ECANCELED, "ended while the target lacked a part of the guest's memory: the guest is lost there");
}

static void note_end(struct mig_source *s)
{
    pthread_mutex_lock(&s->lock);
    s->report.postcopy_ns = clock_ns() - s->postcopy_start_ns;
    s->report.postcopy_bytes = mig_bytes_sent(s) - s->postcopy_start_bytes;
    s->postcopy_start_ns = 0;
    pthread_mutex_unlock(&s->lock);
}

int mig_postcopy_run(struct mig_source *s, int r, struct mig_error *err)
{
    struct mig_error unheard = {""};

    pthread_mutex_lock(&s->lock);
    s->postcopy_start_ns = clock_ns();
    s->postcopy_start_bytes = mig_bytes_sent(s);
    pthread_mutex_unlock(&s->lock);
    if (r == 0)
        r = serve(s, err);
    while (r < 0 && !s->whole) {
        r = wait_for_recover(s, err);
        if (r < 0)
            return give_up(s, err);
        r = reconnect(s, err);
        if (r == 0)
            r = serve(s, err);
    }
    note_end(s);
    (void)mig_send_frame(&s->senders[0].stream, MIG_DONE, NULL, 0, &unheard);
    set_served(s, true);
    return 0;
}
