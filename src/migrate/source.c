/* The coordinator: from the first hello to the last word. Its rounds are in source-rounds.c. */
#include "config.h"

#include "migrate/source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/thread.h"
#include "migrate/source-internal.h"

#define CONNECT_TIMEOUT_MS 10000
/* How long the target may take to look at what it was told, and one write in pre-copy. */
#define ANSWER_TIMEOUT_MS 60000

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
    int r, fd = s->config.uri ? mig_connect(s->uri, CONNECT_TIMEOUT_MS, s->wake_fd, err) : take_fd(s->config.fd);

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
    /* What was on the way before it took time as well. */
    if (r == 0 && channel == 0)
        s->rtt_ns = MIN(s->rtt_ns, clock_ns() - start);
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

/* -- the whole of it -- */

/* Until a switchover is short enough, or the rest is left for post-copy. */
static int converge(struct mig_source *s, struct mig_error *err)
{
    int r = mig_rounds(s, err);

    return r == 0 && s->put_off ? mig_postcopy_begin(s, err) : r;
}

/* pause-before-switchover: until somebody says to go on. */
static int wait_for_go(struct mig_source *s)
{
    uint64_t start = clock_ns();
    bool go;

    mig_set_status(s, MIG_STATUS_PRE_SWITCHOVER);
    pthread_mutex_lock(&s->lock);
    while (!s->go_on && !s->broken)
        pthread_cond_wait(&s->done, &s->lock);
    go = !s->broken;
    pthread_mutex_unlock(&s->lock);
    s->idle_ns += clock_ns() - start;
    return go ? 0 : -ECANCELED;
}

/* The guest has gone on writing while it was waited for. */
static int pause_before_switchover(struct mig_source *s, struct mig_error *err)
{
    int r = wait_for_go(s);

    if (r < 0 || s->config.local)
        return r;
    mig_set_status(s, MIG_STATUS_ACTIVE);
    return s->postcopy ? mig_postcopy_catch_up(s, err) : converge(s, err);
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
        r = mig_rounds_begin(s, err);
        if (r == 0)
            r = mig_senders_start(s);
        if (r == 0)
            r = converge(s, err);
    }
    if (r == 0 && s->parameters.pause_before_switchover)
        r = pause_before_switchover(s, err);
    if (r < 0)
        return r;
    r = mig_switchover(s, err);
    return s->postcopy && s->committed ? mig_postcopy_run(s, r, err) : r;
}

/* Where it is this side that gives up, and the connection works: between what else is sent on it. */
static void say_why(struct mig_source *s, const struct mig_error *err)
{
    struct mig_error unheard = {""};
    bool can;

    pthread_mutex_lock(&s->lock);
    can = !s->broken && !s->committed && s->report.status != MIG_STATUS_SETUP;
    pthread_mutex_unlock(&s->lock);
    if (!can)
        return;
    mig_stream_set_timeout(&s->senders[0].stream, MIG_REASON_TIMEOUT_MS);
    (void)mig_send_frame(&s->senders[0].stream, MIG_CANCEL, err->text, strlen(err->text), &unheard);
}

static void finish(struct mig_source *s, int r, struct mig_error *err)
{
    enum mig_status status = r == 0 ? MIG_STATUS_COMPLETED : MIG_STATUS_FAILED;

    if (r < 0)
        say_why(s, err);
    mig_break(s, NULL);
    mig_senders_join(s);
    if (s->throttled)
        mig_set_throttle(s, 0);
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
    s->wake_fd = fd_eventfd();
    s->words = bitmap_words(pages);
    s->work = calloc(s->words, sizeof(*s->work));
    s->present = calloc(s->words, sizeof(*s->present));
    if (s->config.uri)
        s->uri = strdup(s->config.uri);
    if (s->config.tls_host)
        s->tls_host = strdup(s->config.tls_host);
    if (s->wake_fd < 0)
        return s->wake_fd;
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
    s->rtt_ns = UINT64_MAX;
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
    /* A target that was never heard to run the guest may have ended before: who knows that it has may give it up. */
    late = s->over || (s->committed && (s->runs_there || s->report.status != MIG_STATUS_POSTCOPY_PAUSED));
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
    fd_close(s->wake_fd);
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
