#include "config.h"

#include "migrate/target.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/thread.h"
#include "migrate/target-internal.h"

#define FD_MAX 1000000

void mig_target_set_status(struct mig_target *t, enum mig_status status)
{
    bool postcopy;

    pthread_mutex_lock(&t->lock);
    /* That is the last one, also if the connection is still being looked after. */
    if (t->whole && status != MIG_STATUS_COMPLETED) {
        pthread_mutex_unlock(&t->lock);
        return;
    }
    t->report.status = status;
    if (status == MIG_STATUS_ACTIVE)
        t->started_ns = clock_ns();
    else if (t->started_ns)
        t->report.total_ns = clock_ns() - t->started_ns;
    postcopy = t->postcopy_used;
    pthread_mutex_unlock(&t->lock);
    t->ops->changed(t->opaque, postcopy);
}

void mig_target_report(struct mig_target *t, struct mig_report *ret)
{
    pthread_mutex_lock(&t->lock);
    *ret = t->report;
    if (mig_status_is_postcopy(ret->status))
        ret->postcopy_ns = clock_ns() - t->committed_ns;
    if (t->absent) {
        struct absent_stats stats;

        absent_stats(t->absent, &stats);
        ret->requests = stats.wanted;
        ret->remaining = pages_to_bytes(absent_left(t->absent));
    }
    for (unsigned int i = 0; i < MIG_MAX_CHANNELS; i++)
        ret->normal += __atomic_load_n(&t->channels[i].pages, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&t->lock);
}

void mig_target_break(struct mig_target *t, const struct mig_error *err)
{
    struct absent *given_up;

    pthread_mutex_lock(&t->lock);
    if (err && !t->broken)
        t->error = *err;
    t->broken = true;
    for (unsigned int i = 0; i < MIG_MAX_CHANNELS; i++)
        if (t->channels[i].connected)
            mig_stream_break(&t->channels[i].stream);
    if (t->greeted_fd >= 0)
        shutdown(t->greeted_fd, SHUT_RDWR);
    given_up = t->committed ? NULL : t->absent;
    pthread_cond_broadcast(&t->cond);
    pthread_mutex_unlock(&t->lock);
    /* The guest never runs here: who waits for a page, the main thread perhaps, need not any more. */
    if (given_up)
        absent_let_go(given_up);
    fd_event_signal(t->wake_fd);
}

/* -- pages -- */

int mig_target_receive_packed(struct mig_channel *c, uint32_t packed, const struct iovec *iov, unsigned int n, struct mig_error *err)
{
    struct iovec frame;
    int r = c->unpacker ? 0 : mig_unpacker_new(&c->unpacker);

    if (r < 0)
        return mig_error(err, r, "packed: no memory");
    frame = (struct iovec){mig_unpacker_buffer(c->unpacker), packed};
    r = mig_receive_raw(&c->stream, &frame, 1, err);
    return r < 0 ? r : mig_unpack(c->unpacker, packed, iov, n, err);
}

static bool some_absent(struct mig_target *t)
{
    bool some;

    pthread_mutex_lock(&t->lock);
    some = t->absent;
    pthread_mutex_unlock(&t->lock);
    return some;
}

static int receive_batch(struct mig_channel *c, const struct mig_frame *f, struct mig_error *err)
{
    struct mig_target *t = c->target;
    struct mig_run runs[MIG_BATCH_RUNS];
    struct iovec iov[MIG_BATCH_RUNS];
    unsigned int n = 0;
    uint32_t count, data, packed = 0, fixed = f->type == MIG_PACKED ? MIG_PACKED_FIXED : 0;
    bool absent = some_absent(t);
    int r = fixed ? mig_packed_get(f->payload, f->length, &packed, err) : 0;

    if (r == 0)
        r = mig_runs_get(f->payload + fixed, f->length - fixed, mem_pages(t->mem), runs, &count, &data, err);
    if (r == 0 && fixed && (!t->zstd || data == 0))
        r = mig_error(err, -EBADMSG, "packed: %s", t->zstd ? "a batch without contents" : "it was not announced");
    if (r == 0 && (!t->accepted || t->local || (c->ended && !absent)))
        r = mig_error(err, -EBADMSG, "batch: pages %s", c->ended ? "after the end of the channel" : "are not expected");
    if (r < 0 || c->ended)
        return r < 0 ? r : mig_target_put(c, runs, count, packed, err);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *to = t->ram + pages_to_bytes(runs[i].pfn);

        __atomic_store_n(&c->pages, c->pages + runs[i].pages, __ATOMIC_RELAXED);
        if (runs[i].kind == MIG_RUN_ZERO)
            memset(to, 0, pages_to_bytes(runs[i].pages));
        else
            iov[n++] = (struct iovec){to, pages_to_bytes(runs[i].pages)};
    }
    return packed ? mig_target_receive_packed(c, packed, iov, n, err) : mig_receive_raw(&c->stream, iov, n, err);
}

static int end_channel(struct mig_channel *c, const struct mig_frame *f, struct mig_error *err)
{
    uint64_t sent = le64_get(f->payload);

    if (c->ended || !c->target->accepted)
        return mig_error(err, -EBADMSG, "end: not expected");
    if (sent != c->pages)
        return mig_error(err, -EBADMSG, "end: %" PRIu64 " pages were sent, %" PRIu64 " came", sent, c->pages);
    pthread_mutex_lock(&c->target->lock);
    c->ended = true;
    pthread_cond_broadcast(&c->target->cond);
    pthread_mutex_unlock(&c->target->lock);
    return 0;
}

int mig_target_data_frame(struct mig_channel *c, const struct mig_frame *f, struct mig_error *err)
{
    switch (f->type) {
    case MIG_BATCH:
    case MIG_PACKED:
        return receive_batch(c, f, err);
    case MIG_END:
        return end_channel(c, f, err);
    case MIG_PING:
        return mig_send_u64(&c->stream, MIG_PONG, le64_get(f->payload), err);
    default:
        return mig_error(err, -EBADMSG, "frame: %s is not expected on channel %u", mig_type_name(f->type), c->index);
    }
}

static void *channel_thread(void *arg)
{
    struct mig_channel *c = arg;
    struct mig_error err = {""};
    struct mig_frame f;
    int r = 0;

    thread_enter(THREAD_MIGRATE, "mig-receive");
    thread_idle();
    /* Where post-copy may follow, pages come after the end as well. */
    while (r == 0 && (!c->ended || c->target->postcopy)) {
        r = mig_receive(&c->stream, &f, &err);
        if (r == 0)
            r = mig_target_data_frame(c, &f, &err);
    }
    if (r < 0)
        mig_target_break(c->target, &err);
    thread_leave();
    return NULL;
}

/* -- connections -- */

int mig_target_accept(struct mig_target *t, int timeout_ms)
{
    struct pollfd p[2] = {{.fd = t->listener.fd, .events = POLLIN}, {.fd = t->wake_fd, .events = POLLIN}};

    for (;;) {
        int fd, r = poll(p, 2, timeout_ms);

        if (r == 0)
            return -ETIMEDOUT;
        if (r < 0 && errno != EINTR)
            return -errno;
        if (p[1].revents)
            return -ECANCELED;
        fd = r > 0 ? accept4(t->listener.fd, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (fd >= 0)
            return fd;
    }
}

/* Whoever is being greeted does not hold up the end of this side, nor that of channels that broke. */
static void set_greeted(struct mig_target *t, int fd)
{
    pthread_mutex_lock(&t->lock);
    t->greeted_fd = fd;
    if (t->broken && fd >= 0)
        shutdown(fd, SHUT_RDWR);
    pthread_mutex_unlock(&t->lock);
}

static int greet(struct mig_target *t, struct mig_stream *s, bool first, bool known, struct mig_hello *hello,
                 struct mig_error *err)
{
    int r;

    mig_stream_set_deadline(s, clock_ns() + MIG_HELLO_TIMEOUT_MS * NSEC_PER_MSEC);
    r = t->tls ? mig_stream_secure(s, t->tls, NULL, err) : 0;
    if (r == 0)
        r = mig_receive_hello(s, hello, err);
    if (r < 0)
        return r;
    if (first && hello->channel != 0)
        return mig_error(err, -EBADMSG, "hello: channel %u before channel 0", hello->channel);
    if (known && (hello->session != t->session || hello->channels != t->channel_count))
        return mig_error(err, -EBADMSG, "hello: another session");
    if (t->channels[hello->channel].connected)
        return mig_error(err, -EBADMSG, "hello: channel %u is connected already", hello->channel);
    return 0;
}

bool mig_target_take(struct mig_target *t, int fd, bool first, bool known, struct mig_hello *hello)
{
    struct mig_error err = {""};
    struct mig_stream stream;
    int r;

    mig_stream_init(&stream, fd, false);
    set_greeted(t, fd);
    r = greet(t, &stream, first, known, hello, &err);
    if (r < 0) {
        /* Whoever it is, the guest is not lost by it. */
        log_warn("migration: a connection is dropped: %s", err.text);
        set_greeted(t, -1);
        mig_stream_clear(&stream);
        return false;
    }
    mig_stream_set_timeout(&stream, 0);
    pthread_mutex_lock(&t->lock);
    t->greeted_fd = -1;
    t->channels[hello->channel].stream = stream;
    pthread_mutex_init(&t->channels[hello->channel].stream.send_lock, NULL);
    t->channels[hello->channel].connected = true;
    if (t->broken)
        mig_stream_break(&t->channels[hello->channel].stream);
    pthread_mutex_unlock(&t->lock);
    return true;
}

static int wait_for_source(struct mig_target *t, struct mig_error *err)
{
    struct mig_hello hello;
    bool taken = false;

    if (t->given_fd >= 0) {
        taken = mig_target_take(t, take_fd(t->given_fd), true, false, &hello);
        if (!taken)
            return mig_error(err, -EBADMSG, "the descriptor given is no migration source");
        if (hello.channels != 1)
            return mig_error(err, -EBADMSG, "hello: %u channels over one descriptor", hello.channels);
    }
    while (!taken) {
        int fd = mig_target_accept(t, -1);

        if (fd < 0)
            return mig_error(err, fd, "cannot accept: %s", strerrordesc_np(-fd));
        taken = mig_target_take(t, fd, true, false, &hello);
    }
    t->session = hello.session;
    t->channel_count = hello.channels;
    pthread_mutex_lock(&t->lock);
    t->report.channels = hello.channels;
    pthread_mutex_unlock(&t->lock);
    return 0;
}

int mig_target_accept_channels(struct mig_target *t, struct mig_error *err)
{
    for (unsigned int n = 1; n < t->channel_count;) {
        int r, fd = mig_target_accept(t, MIG_HELLO_TIMEOUT_MS);
        struct mig_hello hello;
        struct mig_channel *c;

        if (fd < 0)
            return mig_error(err, fd, "channel %u of %u does not connect: %s", n, t->channel_count, strerrordesc_np(-fd));
        if (!mig_target_take(t, fd, false, true, &hello))
            continue;
        c = &t->channels[hello.channel];
        r = thread_start(&c->thread, 0, channel_thread, c);
        if (r < 0)
            return mig_error(err, r, "no thread for channel %u", hello.channel);
        c->started = true;
        n++;
    }
    /* A second source finds nobody. */
    mig_listener_close(&t->listener);
    return 0;
}

/* -- channel 0 -- */

static int refuse(struct mig_target *t, const char *why, struct mig_error *err)
{
    (void)mig_send_frame(mig_target_control(t), MIG_REFUSE, why, MIN(strlen(why), (size_t)MIG_TEXT_MAX), err);
    pthread_mutex_lock(&t->lock);
    snprintf(t->report.why, sizeof(t->report.why), "%s", why);
    pthread_mutex_unlock(&t->lock);
    return mig_error(err, -EPERM, "the guest cannot run here");
}

int mig_target_send_hello(struct mig_target *t, struct mig_error *err)
{
    struct mig_hello hello = {.version = MIG_VERSION, .channels = (uint16_t)t->channel_count, .session = t->session};

    return mig_send_hello(mig_target_control(t), &hello, err);
}

/* Add a line to the list of what is in the way, if there is something. */
static int check_postcopy(struct mig_target *t, char **why, struct mig_error *err)
{
    const char *reason = "";
    char *text;

    if (t->channel_count < 2)
        return mig_error(err, -EBADMSG, "setup: post-copy over one channel");
    if (absent_possible(t->mem, &reason) == 0)
        return 0;
    if (asprintf(&text, "%s%spost-copy: %s", *why ? *why : "", *why ? "\n" : "", reason) < 0)
        return mig_error(err, -ENOMEM, "no memory");
    free(*why);
    *why = text;
    return 0;
}

static int on_setup(struct mig_target *t, const struct mig_frame *f, struct mig_error *err)
{
    _cleanup_free_ char *why = NULL;
    struct mig_setup setup;
    int r = mig_setup_get(f->payload, f->length, &setup, err);

    if (t->accepted)
        return mig_error(err, -EBADMSG, "setup: came twice");
    if (r == 0)
        r = t->ops->compare(t->opaque, setup.state, setup.state_len, &why, err);
    t->postcopy = r == 0 && (setup.flags & MIG_SETUP_POSTCOPY);
    if (t->postcopy)
        r = check_postcopy(t, &why, err);
    if (r < 0)
        return r;
    r = mig_target_send_hello(t, err);
    if (r < 0)
        return r;
    if (why)
        return refuse(t, why, err);
    if (setup.memory != mem_size(t->mem))
        return mig_error(err, -EBADMSG, "setup: memory %" PRIu64 " bytes, here %" PRIu64, setup.memory, mem_size(t->mem));
    t->local = setup.flags & MIG_SETUP_LOCAL;
    t->zstd = setup.flags & MIG_SETUP_ZSTD;
    t->accepted = true;
    pthread_mutex_lock(&t->lock);
    t->report.local = t->local;
    pthread_mutex_unlock(&t->lock);
    r = mig_send_frame(mig_target_control(t), MIG_ACCEPT, NULL, 0, err);
    return r < 0 ? r : mig_target_accept_channels(t, err);
}

static int on_memory(struct mig_target *t, const struct mig_frame *f, struct mig_error *err)
{
    int r, fd = take_fd(mig_target_control(t)->passed_fd);

    if (fd < 0)
        return mig_error(err, -EBADMSG, "memory: no descriptor came with it");
    if (!t->local || t->adopted || le64_get(f->payload) != mem_size(t->mem)) {
        fd_close(fd);
        return mig_error(err, -EBADMSG, "memory: %" PRIu64 " bytes are not expected", le64_get(f->payload));
    }
    r = t->ops->adopt(t->opaque, fd, err);
    if (r < 0)
        return r;
    t->adopted = true;
    return mig_send_frame(mig_target_control(t), MIG_ACCEPT, NULL, 0, err);
}

bool mig_target_wait_for_ends(struct mig_target *t)
{
    bool fine;

    pthread_mutex_lock(&t->lock);
    for (unsigned int i = 0; i < t->channel_count; i++)
        while (!t->broken && !t->channels[i].ended)
            pthread_cond_wait(&t->cond, &t->lock);
    fine = !t->broken;
    pthread_mutex_unlock(&t->lock);
    return fine;
}

static int on_state(struct mig_target *t, const struct mig_frame *f, struct mig_error *err)
{
    uint64_t start = clock_ns(), came = mig_target_control(t)->received_ns;
    struct mig_state state;
    int r = mig_state_get(f->payload, f->length, &state, err);

    if (r < 0)
        return r;
    if (t->ready || !t->accepted || (t->local ? !t->adopted : !t->channels[0].ended))
        return mig_error(err, -EBADMSG, "state: not expected");
    if (!t->local && !mig_target_wait_for_ends(t))
        return -ECANCELED;
    mig_target_set_status(t, MIG_STATUS_DEVICE);
    r = t->ops->load(t->opaque, state.state, state.state_len, state.age_ns < came ? came - state.age_ns : 0, err);
    if (r < 0)
        return r;
    t->ready = true;
    t->run = state.run;
    pthread_mutex_lock(&t->lock);
    t->report.downtime.load = clock_ns() - start;
    pthread_mutex_unlock(&t->lock);
    return mig_send_u64(mig_target_control(t), MIG_READY, clock_ns() - start, err);
}

static int on_frame(struct mig_target *t, const struct mig_frame *f, bool *ret_commit, struct mig_error *err)
{
    switch (f->type) {
    case MIG_SETUP:
        return on_setup(t, f, err);
    case MIG_MEMORY:
        return on_memory(t, f, err);
    case MIG_STATE:
        return on_state(t, f, err);
    case MIG_ABSENT:
        return mig_target_on_absent(t, f, err);
    case MIG_CANCEL:
        return mig_error(err, -ECANCELED, "the source cancels: %.*s", (int)MIN(f->length, 200u), (const char *)f->payload);
    case MIG_COMMIT:
        if (!t->ready)
            return mig_error(err, -EBADMSG, "commit: not expected");
        *ret_commit = true;
        return 0;
    default:
        return mig_target_data_frame(&t->channels[0], f, err);
    }
}

static int serve(struct mig_target *t, struct mig_error *err)
{
    bool commit = false;
    struct mig_frame f;
    int r = 0;

    while (r == 0 && !commit) {
        r = mig_receive(mig_target_control(t), &f, err);
        if (r == 0)
            r = on_frame(t, &f, &commit, err);
    }
    if (r < 0 && r != -EPERM && r != -ECONNRESET) {
        struct mig_error unheard = {""};

        (void)mig_send_frame(mig_target_control(t), MIG_FAILED, err->text, strlen(err->text), &unheard);
    }
    return r;
}

/* From here on it is this side's, unless a channel has failed meanwhile: then the source hears of nothing, and nothing runs. */
static int take_guest(struct mig_target *t)
{
    int r;

    pthread_mutex_lock(&t->lock);
    r = t->broken && t->absent ? -ECANCELED : 0;
    t->committed = r == 0;
    pthread_mutex_unlock(&t->lock);
    return r;
}

static int run_guest(struct mig_target *t, struct mig_error *err)
{
    uint64_t start = clock_ns();
    struct mig_error unheard = {""};
    int r = t->ops->run(t->opaque, t->run, false);

    if (r < 0)
        return mig_error(err, r, "the daemon is ending");
    /* The guest is here, whether the source hears of it or not. */
    (void)mig_send_u64(mig_target_control(t), MIG_RUNNING, clock_ns() - start, &unheard);
    return 0;
}

static void *target_thread(void *arg)
{
    struct mig_target *t = arg;
    struct mig_error err = {""};
    int r;

    thread_enter(THREAD_MIGRATE, "migration");
    thread_idle();
    r = wait_for_source(t, &err);
    if (r == 0) {
        mig_target_set_status(t, MIG_STATUS_ACTIVE);
        r = serve(t, &err);
    }
    if (r == 0)
        r = take_guest(t);
    if (r == 0)
        r = t->absent ? mig_target_postcopy(t, &err) : run_guest(t, &err);
    if (r < 0) {
        mig_target_break(t, &err);
        pthread_mutex_lock(&t->lock);
        if (!t->report.why[0])
            snprintf(t->report.why, sizeof(t->report.why), "%s", t->error.text[0] ? t->error.text : err.text);
        pthread_mutex_unlock(&t->lock);
    }
    /* Post-copy has told of its end already, and before that there is no other than the daemon's. */
    if (!t->committed || !t->postcopy_used)
        mig_target_set_status(t, r == 0 ? MIG_STATUS_COMPLETED : MIG_STATUS_FAILED);
    thread_leave();
    return NULL;
}

/* -- from outside -- */

static int open_listener(struct mig_target *t, const char *uri, struct mig_error *err)
{
    char *end;
    long fd;

    if (strncmp(uri, "fd:", 3) != 0)
        return mig_listen(uri, &t->listener, err);
    errno = 0;
    fd = strtol(uri + 3, &end, 10);
    if (errno || end == uri + 3 || *end || fd < 3 || fd > FD_MAX)
        return mig_error(err, -EINVAL, "address %.80s: fd:NUMBER is expected, from 3 on", uri);
    t->given_fd = (int)fd;
    return 0;
}

int mig_target_start(struct mem *mem, const char *uri, struct mig_tls *tls, const struct mig_target_ops *ops, void *opaque,
                     struct mig_target **ret, struct mig_error *err)
{
    struct mig_target *t = calloc(1, sizeof(*t));
    unsigned int n;
    int r;

    if (!t) {
        mig_tls_free(tls);
        return mig_error(err, -ENOMEM, "no memory");
    }
    t->mem = mem;
    t->tls = tls;
    /* No guest runs in it, and there is nobody to tell of writes. The slots lie behind each other, as in the file. */
    t->ram = mem_slots(mem, &n)[0].hva;
    t->ops = ops;
    t->opaque = opaque;
    t->given_fd = -1;
    t->greeted_fd = -1;
    t->next_listener = (struct mig_listener){.fd = -1, .file.fd = -1};
    t->listener = (struct mig_listener){.fd = -1, .file.fd = -1};
    t->report.status = MIG_STATUS_SETUP;
    t->report.memory = mem_size(mem);
    pthread_mutex_init(&t->lock, NULL);
    pthread_mutex_init(&t->ask_lock, NULL);
    pthread_cond_init(&t->cond, NULL);
    for (unsigned int i = 0; i < MIG_MAX_CHANNELS; i++) {
        t->channels[i].target = t;
        t->channels[i].index = i;
    }
    t->uri = strdup(uri);
    r = t->wake_fd = fd_eventfd();
    if (!t->uri)
        r = -ENOMEM;
    if (r >= 0)
        r = open_listener(t, uri, err);
    if (r >= 0) {
        r = thread_start(&t->thread, 0, target_thread, t);
        t->started = r == 0;
    }
    if (r < 0) {
        mig_target_free(t);
        return mig_error(err, r, "%s", strerrordesc_np(-r));
    }
    *ret = t;
    return 0;
}

/* The first thread, and the connections. */
static void end_thread(struct mig_target *t)
{
    if (!t->started)
        return;
    pthread_mutex_lock(&t->lock);
    t->closing = true;
    pthread_mutex_unlock(&t->lock);
    mig_target_break(t, NULL);
    pthread_join(t->thread, NULL);
    t->started = false;
}

void mig_target_abandon(struct mig_target *t)
{
    end_thread(t);
    mig_listener_close(&t->listener);
    mig_listener_close(&t->next_listener);
}

void mig_target_free(struct mig_target *t)
{
    if (!t)
        return;
    end_thread(t);
    if (t->runner_started)
        pthread_join(t->runner, NULL);
    for (unsigned int i = 0; i < MIG_MAX_CHANNELS; i++)
        if (t->channels[i].started)
            pthread_join(t->channels[i].thread, NULL);
    /* Each of them may have broken the others. */
    for (unsigned int i = 0; i < MIG_MAX_CHANNELS; i++) {
        if (t->channels[i].connected)
            mig_stream_clear(&t->channels[i].stream);
        mig_unpacker_free(t->channels[i].unpacker);
        free(t->channels[i].bounce);
    }
    absent_free(t->absent);
    mig_listener_close(&t->listener);
    mig_listener_close(&t->next_listener);
    free(t->uri);
    fd_close(t->given_fd);
    fd_close(t->wake_fd);
    mig_tls_free(t->tls);
    pthread_cond_destroy(&t->cond);
    pthread_mutex_destroy(&t->ask_lock);
    pthread_mutex_destroy(&t->lock);
    free(t);
}
