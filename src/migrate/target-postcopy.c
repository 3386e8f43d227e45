/*
 * Post-copy, target's side: the guest runs while a part of its memory is still at the source. Pages that are touched are asked
 * for on channel 0 and come on the last channel, all others come by themselves on those before.
 *
 * The connection may be lost. The first thread then waits for the source where it waited at first, or where somebody says;
 * whoever needs a page waits as long. That thread never waits for the main thread, which may be one of them.
 *
 * When all pages are here the source is told (WHOLE), and says that it has heard it (DONE). Until then it may come back
 * and ask, so a guest that has long been complete still answers; but only that is left of the post-copy when it has gone.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/thread.h"
#include "migrate/target-internal.h"

/* -- to the source ------------------------------------------------------------ */

/* What cannot be said now the source asks for when it is back. */
static void tell(struct mig_target *t, enum mig_type type, const uint64_t *value)
{
    struct mig_error unheard = {""};

    pthread_mutex_lock(&t->ask_lock);
    if (t->asks && value)
        (void)mig_send_u64(mig_target_control(t), type, *value, &unheard);
    else if (t->asks)
        (void)mig_send_frame(mig_target_control(t), type, NULL, 0, &unheard);
    pthread_mutex_unlock(&t->ask_lock);
}

static void on_want(void *opaque, pfn_t page)
{
    tell(opaque, MIG_REQUEST, &page);
}

static void set_asks(struct mig_target *t, bool asks)
{
    pthread_mutex_lock(&t->ask_lock);
    t->asks = asks;
    pthread_mutex_unlock(&t->ask_lock);
}

/* After pages came, on whatever channel: the last one? */
static void look_whether_whole(struct mig_target *t)
{
    bool last;

    pthread_mutex_lock(&t->lock);
    last = t->postcopy_used && !t->whole && absent_left(t->absent) == 0;
    if (last) {
        t->whole = true;
        t->report.postcopy_ns = clock_ns() - t->committed_ns;
    }
    pthread_mutex_unlock(&t->lock);
    if (!last)
        return;
    mig_target_set_status(t, MIG_STATUS_COMPLETED);
    tell(t, MIG_WHOLE, NULL);
}

static bool is_whole(struct mig_target *t)
{
    bool whole;

    pthread_mutex_lock(&t->lock);
    whole = t->whole;
    pthread_mutex_unlock(&t->lock);
    return whole;
}

/* -- pages -------------------------------------------------------------------- */

static int make_absent(struct mig_target *t, struct mig_error *err)
{
    struct absent *a;
    int r = absent_new(t->mem, on_want, t, &a);

    if (r < 0)
        return mig_error(err, r, "absent: guest memory cannot be watched: %s", strerrordesc_np(-r));
    pthread_mutex_lock(&t->lock);
    t->absent = a;
    pthread_mutex_unlock(&t->lock);
    set_asks(t, true);
    return 0;
}

int mig_target_on_absent(struct mig_target *t, const struct mig_frame *f, struct mig_error *err)
{
    uint64_t *bits = NULL;
    pfn_t first;
    size_t words;
    int r = 0;

    if (!t->postcopy || !t->accepted || t->ready || !t->channels[0].ended)
        return mig_error(err, -EBADMSG, "absent: not expected");
    if (!mig_target_wait_for_ends(t))
        return -ECANCELED;
    if (!t->absent)
        r = make_absent(t, err);
    if (r < 0)
        return r;
    bits = malloc(MIG_MAP_WORDS * sizeof(*bits));
    r = bits ? mig_map_get(f->payload, f->length, mem_pages(t->mem), &first, bits, &words, err) : mig_error(err, -ENOMEM, "no memory");
    if (r == 0) {
        r = absent_mark(t->absent, first, bits, words);
        if (r < 0)
            mig_error(err, r, "absent: pages cannot be taken out of guest memory: %s", strerrordesc_np(-r));
    }
    free(bits);
    return r;
}

/* The contents of all runs, one behind the other. */
static int receive_aside(struct mig_channel *c, const struct mig_run *runs, uint32_t count, uint32_t packed, struct mig_error *err)
{
    struct iovec iov[MIG_BATCH_RUNS];
    uint8_t *to = c->bounce;
    unsigned int n = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (runs[i].kind != MIG_RUN_DATA)
            continue;
        iov[n] = (struct iovec){to, pages_to_bytes(runs[i].pages)};
        to += iov[n++].iov_len;
    }
    return packed ? mig_target_receive_packed(c, packed, iov, n, err) : mig_receive_raw(&c->stream, iov, n, err);
}

int mig_target_put(struct mig_channel *c, const struct mig_run *runs, uint32_t count, uint32_t packed, struct mig_error *err)
{
    struct absent *absent = c->target->absent;
    const uint8_t *data;
    int r = 0;

    if (!c->bounce)
        c->bounce = malloc(pages_to_bytes(MIG_BATCH_PAGES));
    if (!c->bounce)
        return mig_error(err, -ENOMEM, "no memory");
    r = receive_aside(c, runs, count, packed, err);
    data = c->bounce;
    for (uint32_t i = 0; i < count && r == 0; i++) {
        __atomic_store_n(&c->pages, c->pages + runs[i].pages, __ATOMIC_RELAXED);
        r = absent_put(absent, runs[i].pfn, runs[i].pages, runs[i].kind == MIG_RUN_DATA ? data : NULL);
        if (r < 0)
            mig_error(err, r, "a page cannot be put into guest memory: %s", strerrordesc_np(-r));
        if (runs[i].kind == MIG_RUN_DATA)
            data += pages_to_bytes(runs[i].pages);
    }
    if (r == 0)
        look_whether_whole(c->target);
    return r;
}

/* -- one connection ----------------------------------------------------------- */

/* Until the source has heard that all is here: 0. */
static int serve(struct mig_target *t, struct mig_error *err)
{
    struct mig_frame f;
    int r = 0;

    for (unsigned int i = 0; i < t->channel_count; i++)
        mig_stream_watch(&t->channels[i].stream, MIG_PATIENCE_MS);
    while (r == 0) {
        r = mig_receive(mig_target_control(t), &f, err);
        if (r == 0 && f.type == MIG_DONE && is_whole(t))
            return 0;
        if (r == 0)
            r = mig_target_data_frame(&t->channels[0], &f, err);
    }
    return r;
}

static void end_connections(struct mig_target *t, const struct mig_error *err)
{
    mig_target_break(t, err);
    for (unsigned int i = 0; i < t->channel_count; i++) {
        if (t->channels[i].started)
            pthread_join(t->channels[i].thread, NULL);
        t->channels[i].started = false;
    }
    set_asks(t, false);
    pthread_mutex_lock(&t->lock);
    for (unsigned int i = 0; i < t->channel_count; i++) {
        if (t->channels[i].connected)
            mig_stream_clear(&t->channels[i].stream);
        t->channels[i].connected = false;
    }
    t->broken = t->closing;
    pthread_mutex_unlock(&t->lock);
}

/* All pages are here, and no connection is: memory is what it is elsewhere. */
static void release_absent(struct mig_target *t)
{
    struct absent_stats stats;
    struct absent *a;

    pthread_mutex_lock(&t->lock);
    a = t->absent;
    if (a) {
        absent_stats(a, &stats);
        t->report.requests = stats.wanted;
    }
    t->absent = NULL;
    pthread_mutex_unlock(&t->lock);
    absent_free(a);
}

/* -- the connection is lost --------------------------------------------------- */

/* Where to wait: what somebody said last, else where it was at first. -ECANCELED when this side ends. */
static int listen_again(struct mig_target *t)
{
    struct mig_error err = {""};
    bool closing;

    fd_event_clear(t->wake_fd);
    pthread_mutex_lock(&t->lock);
    closing = t->closing;
    if (t->next_listener.fd >= 0) {
        mig_listener_close(&t->listener);
        t->listener = t->next_listener;
        t->next_listener = (struct mig_listener){.fd = -1, .file.fd = -1};
    }
    pthread_mutex_unlock(&t->lock);
    if (!closing && t->listener.fd < 0 && mig_listen(t->uri, &t->listener, &err) < 0)
        log_warn("migration: cannot wait for the source: %s; migrate-recover says where else", err.text);
    return closing ? -ECANCELED : 0;
}

static int tell_missing(struct mig_target *t, struct mig_error *err)
{
    size_t words = bitmap_words(mem_pages(t->mem));
    uint64_t *bits;
    int r;

    if (!t->absent)
        return 0;
    bits = malloc(words * sizeof(*bits));
    if (!bits)
        return mig_error(err, -ENOMEM, "no memory");
    for (size_t w = 0; w < words; w++)
        bits[w] = absent_word(t->absent, w);
    r = mig_send_map(mig_target_control(t), MIG_MISSING, bits, words, err);
    free(bits);
    return r;
}

/* Is this the source, and will it go on? Nobody but this thread uses the connection yet. */
static int answer(struct mig_target *t, struct mig_error *err)
{
    struct mig_frame f;
    int r;

    mig_stream_set_deadline(mig_target_control(t), clock_ns() + MIG_HELLO_TIMEOUT_MS * NSEC_PER_MSEC);
    r = mig_receive(mig_target_control(t), &f, err);
    mig_stream_set_timeout(mig_target_control(t), MIG_HELLO_TIMEOUT_MS);
    if (r == 0 && f.type != MIG_RESUME)
        r = mig_error(err, -EBADMSG, "frame: %s instead of %s", mig_type_name(f.type), mig_type_name(MIG_RESUME));
    if (r == 0)
        r = mig_target_send_hello(t, err);
    if (r == 0)
        r = tell_missing(t, err);
    if (r == 0)
        r = mig_send_frame(mig_target_control(t), MIG_ACCEPT, NULL, 0, err);
    return r < 0 ? r : mig_target_accept_channels(t, err);
}

static void found(struct mig_target *t)
{
    bool whole;

    /* From here on who puts the last page can say so; whether one has put it before is looked at after that. Twice is no harm. */
    set_asks(t, true);
    pthread_mutex_lock(&t->lock);
    whole = t->whole;
    t->report.recoveries++;
    t->report.why[0] = '\0';
    pthread_mutex_unlock(&t->lock);
    log_info("migration: the source is back, %llu pages are missing",
             (unsigned long long)(whole ? 0 : absent_left(t->absent)));
    if (whole) {
        tell(t, MIG_WHOLE, NULL);
        return;
    }
    mig_target_set_status(t, MIG_STATUS_POSTCOPY_ACTIVE);
    absent_ask_again(t->absent);
}

/* Until the source is back; -ECANCELED when this side ends. */
static int find_source(struct mig_target *t)
{
    struct mig_error err;
    struct mig_hello hello;
    int r, fd;

    for (;;) {
        if (is_whole(t))
            release_absent(t);
        r = listen_again(t);
        if (r < 0)
            return r;
        fd = mig_target_accept(t, -1);
        if (fd < 0 || !mig_target_take(t, fd, true, true, &hello))
            continue;
        err = (struct mig_error){""};
        mig_target_set_status(t, MIG_STATUS_POSTCOPY_RECOVER);
        r = answer(t, &err);
        if (r == 0) {
            found(t);
            return 0;
        }
        log_warn("migration: the source does not go on: %s", err.text);
        end_connections(t, NULL);
        mig_target_set_status(t, MIG_STATUS_POSTCOPY_PAUSED);
    }
}

static void lost(struct mig_target *t, const struct mig_error *err)
{
    bool whole;

    /* A channel's error may have come first. */
    mig_target_break(t, err);
    pthread_mutex_lock(&t->lock);
    whole = t->whole || t->closing;
    if (!whole)
        snprintf(t->report.why, sizeof(t->report.why), "lost the source, which has pages of this guest: %.200s", t->error.text);
    pthread_mutex_unlock(&t->lock);
    end_connections(t, NULL);
    if (whole)
        return;
    log_err("migration: %s", t->report.why);
    mig_target_set_status(t, MIG_STATUS_POSTCOPY_PAUSED);
}

/* -- all of it ---------------------------------------------------------------- */

static void run_guest(struct mig_target *t)
{
    uint64_t start = clock_ns(), ns;

    if (t->ops->run(t->opaque, t->run, true) < 0)
        return;
    ns = clock_ns() - start;
    tell(t, MIG_RUNNING, &ns);
}

static void *runner(void *arg)
{
    thread_enter(THREAD_MIGRATE, "mig-run");
    thread_idle();
    run_guest(arg);
    thread_leave();
    return NULL;
}

int mig_target_postcopy(struct mig_target *t, struct mig_error *err)
{
    int r = 0;

    pthread_mutex_lock(&t->lock);
    t->committed_ns = clock_ns();
    t->postcopy_used = true;
    pthread_mutex_unlock(&t->lock);
    mig_target_set_status(t, MIG_STATUS_POSTCOPY_ACTIVE);
    t->runner_started = thread_start(&t->runner, 0, runner, t) == 0;
    if (!t->runner_started)
        run_guest(t);
    look_whether_whole(t);
    while (serve(t, err) < 0) {
        lost(t, err);
        r = find_source(t);
        if (r < 0)
            break;
        *err = (struct mig_error){""};
    }
    end_connections(t, NULL);
    if (is_whole(t))
        release_absent(t);
    return r;
}

/* -- from outside ------------------------------------------------------------- */

static enum mig_status status_of(struct mig_target *t)
{
    enum mig_status status;

    pthread_mutex_lock(&t->lock);
    status = t->report.status;
    pthread_mutex_unlock(&t->lock);
    return status;
}

int mig_target_pause(struct mig_target *t)
{
    struct mig_error err = {"paused by a command"};

    if (status_of(t) != MIG_STATUS_POSTCOPY_ACTIVE)
        return -EINVAL;
    mig_target_break(t, &err);
    return 0;
}

int mig_target_recover(struct mig_target *t, const char *uri, struct mig_error *err)
{
    struct mig_listener l;
    int r;

    if (status_of(t) != MIG_STATUS_POSTCOPY_PAUSED)
        return mig_error(err, -EINVAL, "there is no post-copy that has lost its source");
    r = mig_listen(uri, &l, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&t->lock);
    mig_listener_close(&t->next_listener);
    t->next_listener = l;
    pthread_mutex_unlock(&t->lock);
    fd_event_signal(t->wake_fd);
    return 0;
}
