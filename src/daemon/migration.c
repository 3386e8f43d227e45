#include "config.h"

#include "daemon/migration.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "daemon/consumers.h"
#include "daemon/machine-state.h"
#include "daemon/migration-guest.h"
#include "daemon/migration-internal.h"
#include "migrate/compress.h"
#include "migrate/stream.h"
#include "migrate/target.h"
#include "vcpu/vm.h"

#define EXIT_INCOMING 1

struct kept_fd {
    char name[MIGRATION_FD_NAME_MAX + 1];
    int fd;
};

/* Something to be done on the main loop for a thread that waits. */
struct call {
    int (*run)(struct migration *mg, void *arg);
    void *arg;
    int result;
    bool done;
};

struct migration {
    struct machine *machine;
    struct machine_observer observer;
    struct migration_settings settings;
    struct mig_source *source; /* the newest, also after its end */
    struct mig_target *target;
    struct kept_fd fds[MIGRATION_MAX_FDS];
    unsigned int fd_count;
    uint64_t stall_ns;
    struct migration_throttle throttle;
    gpa_t writer; /* root of the address space that wrote the most when it was asked last */
    bool source_ended; /* its end was told: it needs the main loop no more */
    bool local;
    bool whole; /* what arrived here is complete */

    int call_fd;
    struct event *call_event;
    pthread_mutex_t lock; /* protects what follows */
    pthread_cond_t answered;
    struct call *call; /* one at a time */
    bool news;         /* the target's status is another, and nobody waits until that is told */
    bool closing;
};

static int target_status(struct migration *mg, void *arg);

/* -- from a thread of the migration to the main loop -- */

static int on_main(struct migration *mg, int (*run)(struct migration *mg, void *arg), void *arg)
{
    struct call call = {.run = run, .arg = arg, .result = -ECANCELED};

    pthread_mutex_lock(&mg->lock);
    while (mg->call && !mg->closing)
        pthread_cond_wait(&mg->answered, &mg->lock);
    if (!mg->closing) {
        mg->call = &call;
        fd_event_signal(mg->call_fd);
        while (!call.done && !mg->closing)
            pthread_cond_wait(&mg->answered, &mg->lock);
        mg->call = NULL;
        pthread_cond_broadcast(&mg->answered);
    }
    pthread_mutex_unlock(&mg->lock);
    return call.result;
}

static void on_call(evutil_socket_t fd, short what, void *arg)
{
    struct migration *mg = arg;
    struct call *call;
    bool news;

    fd_event_clear(mg->call_fd);
    pthread_mutex_lock(&mg->lock);
    news = mg->news;
    mg->news = false;
    pthread_mutex_unlock(&mg->lock);
    if (news)
        (void)target_status(mg, NULL);
    pthread_mutex_lock(&mg->lock);
    call = mg->call;
    if (call && !call->done) {
        /* The thread waits, so what it points to stays. */
        pthread_mutex_unlock(&mg->lock);
        call->result = call->run(mg, call->arg);
        pthread_mutex_lock(&mg->lock);
        call->done = true;
        pthread_cond_broadcast(&mg->answered);
    }
    pthread_mutex_unlock(&mg->lock);
}

static void emit_status(struct migration *mg, const struct mig_report *r)
{
    json_t *data = json_object_new_object();

    json_add_str(data, "status", mig_status_name(r->status));
    mg->observer.on_event(mg->observer.opaque, "MIGRATION", data);
}

/* -- the source's callbacks -- */

struct state_arg {
    uint8_t *data;
    size_t len;
    uint64_t captured_ns;
};

static int save(struct migration *mg, void *arg)
{
    struct state_arg *a = arg;
    struct state_writer w;
    int r;

    state_writer_init(&w);
    a->captured_ns = clock_ns();
    r = machine_save(mg->machine, &w);
    if (r == 0)
        consumers_save(mg->machine, &w);
    if (r == 0)
        r = state_finish(&w, &a->data, &a->len);
    state_writer_clear(&w);
    return r;
}

static int save_held(struct migration *mg, void *arg)
{
    uint64_t start = clock_ns();
    int r;

    machine_hold(mg->machine);
    r = save(mg, arg);
    machine_release(mg->machine);
    mg->stall_ns += clock_ns() - start;
    return r;
}

static int source_facts(void *opaque, uint8_t **ret, size_t *ret_len)
{
    struct state_arg a = {0};
    int r = on_main(opaque, save_held, &a);

    *ret = a.data;
    *ret_len = a.len;
    return r;
}

static int source_save(void *opaque, uint8_t **ret, size_t *ret_len, uint64_t *ret_captured_ns)
{
    struct state_arg a = {0};
    int r = on_main(opaque, save, &a);

    *ret = a.data;
    *ret_len = a.len;
    *ret_captured_ns = a.captured_ns;
    return r;
}

struct leave_arg {
    bool run;
    struct mig_downtime *times;
};

static int leave(struct migration *mg, void *arg)
{
    struct leave_arg *a = arg;

    return machine_leave(mg->machine, &a->run, &a->times->pause, &a->times->drain);
}

static int source_stop(void *opaque, bool *ret_run, struct mig_downtime *times, struct mig_error *err)
{
    struct leave_arg a = {.times = times};
    int r = on_main(opaque, leave, &a);

    if (r < 0)
        return mig_error(err, r, r == -ESHUTDOWN ? "there is no guest to move any more" : "the daemon is ending");
    *ret_run = a.run;
    return 0;
}

static int stay(struct migration *mg, void *arg)
{
    machine_stay(mg->machine);
    return 0;
}

static void source_resume(void *opaque)
{
    (void)on_main(opaque, stay, NULL);
}

static int left(struct migration *mg, void *arg)
{
    bool *needed = arg;

    machine_left(mg->machine, mg->local);
    machine_keep_memory(mg->machine, *needed);
    return 0;
}

static void source_give_away(void *opaque, bool needed)
{
    (void)on_main(opaque, left, &needed);
}

static void log_end(const struct mig_report *r)
{
    char plan[80] = "";

    if (r->plan.valid && r->plan.converges)
        snprintf(plan, sizeof(plan), " (foreseen: %llu ms, %llu us)", (unsigned long long)(r->plan.total_ns / NSEC_PER_MSEC),
                 (unsigned long long)(r->plan.downtime_ns / NSEC_PER_USEC));
    else if (r->plan.valid)
        snprintf(plan, sizeof(plan), " (foreseen: no end)");
    if (r->status == MIG_STATUS_COMPLETED)
        log_info("migration: completed in %llu ms, downtime %llu us%s", (unsigned long long)(r->total_ns / NSEC_PER_MSEC),
                 (unsigned long long)(r->downtime.total / NSEC_PER_USEC), plan);
    else if (r->status == MIG_STATUS_FAILED)
        log_err("migration: failed: %s", r->why);
    else if (r->status == MIG_STATUS_CANCELLED)
        log_info("migration: cancelled");
}

static int source_status(struct migration *mg, void *arg)
{
    struct mig_report r;

    if (!mg->source)
        return 0;
    mig_source_report(mg->source, &r);
    mg->source_ended = r.status == MIG_STATUS_COMPLETED || r.status == MIG_STATUS_FAILED ||
                       r.status == MIG_STATUS_CANCELLED;
    if (mg->source_ended)
        machine_keep_memory(mg->machine, false);
    emit_status(mg, &r);
    log_end(&r);
    return 0;
}

static int source_round(struct migration *mg, void *arg)
{
    json_t *data = json_object_new_object();
    struct mig_report r;

    mig_source_report(mg->source, &r);
    json_add_u64(data, "pass", r.passes);
    mg->observer.on_event(mg->observer.opaque, "MIGRATION_PASS", data);
    return 0;
}

static void source_changed(void *opaque, bool round)
{
    (void)on_main(opaque, round ? source_round : source_status, NULL);
}

struct who_arg {
    const struct page_set *pages;
    struct page_set *into;
    char *text;
    size_t size;
};

static int find_tables(struct migration *mg, void *arg)
{
    struct who_arg *a = arg;

    migration_tables(mg->machine, a->pages, a->into);
    return 0;
}

static void source_tables(void *opaque, const struct page_set *pages, struct page_set *into)
{
    (void)on_main(opaque, find_tables, &(struct who_arg){.pages = pages, .into = into});
}

static int find_who(struct migration *mg, void *arg)
{
    struct who_arg *a = arg;

    migration_who(mg->machine, a->pages, a->text, a->size, &mg->writer);
    return 0;
}

static void source_who(void *opaque, const struct page_set *pages, char *text, size_t size)
{
    (void)on_main(opaque, find_who, &(struct who_arg){.pages = pages, .text = text, .size = size});
}

static int set_throttle(struct migration *mg, void *arg)
{
    migration_throttle_set(&mg->throttle, *(unsigned int *)arg, mg->writer);
    return 0;
}

static void source_throttle(void *opaque, unsigned int percent)
{
    (void)on_main(opaque, set_throttle, &percent);
}

static const struct mig_source_ops source_ops = {
    .facts = source_facts,
    .stop = source_stop,
    .save = source_save,
    .resume = source_resume,
    .give_away = source_give_away,
    .throttle = source_throttle,
    .tables = source_tables,
    .who = source_who,
    .changed = source_changed,
};

/* -- the target's callbacks -- */

struct arrival {
    const uint8_t *state;
    size_t len;
    uint64_t captured_ns;
    int fd;
    bool run, arriving;
    char *why;
    struct mig_error *err;
};

/* The lines of a list, or NULL when it is empty or memory is out. */
static char *join_lines(const json_t *list)
{
    size_t n = json_object_array_length(list), len = 1;
    char *text, *at;

    for (size_t i = 0; i < n; i++)
        len += strlen(json_object_get_string(json_object_array_get_idx(list, i))) + 1;
    text = n ? malloc(len) : NULL;
    at = text;
    for (size_t i = 0; text && i < n; i++)
        at += sprintf(at, "%s%s", i ? "\n" : "", json_object_get_string(json_object_array_get_idx(list, i)));
    return text;
}

static int compare(struct migration *mg, void *arg)
{
    struct arrival *a = arg;
    struct state_reader r;
    json_t *list;
    int err = state_reader_init(&r, a->state, a->len);

    if (err < 0)
        return mig_error(a->err, err, "setup: %s", r.error);
    err = machine_compare(mg->machine, &r, &list);
    if (err < 0) {
        mig_error(a->err, err, "setup: %s", r.error[0] ? r.error : strerrordesc_np(-err));
    } else {
        a->why = join_lines(list);
        json_object_put(list);
    }
    state_reader_clear(&r);
    return err;
}

static int target_compare(void *opaque, const uint8_t *state, size_t len, char **ret_why, struct mig_error *err)
{
    struct arrival a = {.state = state, .len = len, .err = err};
    int r = on_main(opaque, compare, &a);

    *ret_why = a.why;
    return r < 0 ? mig_error(err, r, "the daemon is ending") : 0;
}

static int adopt(struct migration *mg, void *arg)
{
    struct arrival *a = arg;
    int r = mem_adopt(vm_mem(machine_vm(mg->machine)), take_fd(a->fd));

    return r < 0 ? mig_error(a->err, r, "memory: the file cannot be used: %s", strerrordesc_np(-r)) : 0;
}

static int target_adopt(void *opaque, int fd, struct mig_error *err)
{
    struct arrival a = {.fd = fd, .err = err};
    int r = on_main(opaque, adopt, &a);

    fd_close(a.fd);
    return r < 0 ? mig_error(err, r, "the daemon is ending") : 0;
}

static int load(struct migration *mg, void *arg)
{
    struct arrival *a = arg;
    struct state_reader r;
    int err = state_reader_init(&r, a->state, a->len);

    if (err < 0)
        return mig_error(a->err, err, "state: %s", r.error);
    err = machine_load(mg->machine, &r, a->captured_ns);
    if (err == 0)
        err = consumers_load(mg->machine, &r);
    if (err < 0)
        mig_error(a->err, err, "state: %s", r.error[0] ? r.error : strerrordesc_np(-err));
    state_reader_clear(&r);
    return err;
}

static int target_load(void *opaque, const uint8_t *state, size_t len, uint64_t captured_ns, struct mig_error *err)
{
    struct arrival a = {.state = state, .len = len, .captured_ns = captured_ns, .err = err};
    int r = on_main(opaque, load, &a);

    return r < 0 ? mig_error(err, r, "the daemon is ending") : 0;
}

static int arrive(struct migration *mg, void *arg)
{
    struct arrival *a = arg;

    machine_arrived(mg->machine, a->run, a->arriving && !mg->whole);
    return 0;
}

static int target_run(void *opaque, bool run, bool arriving)
{
    struct arrival a = {.run = run, .arriving = arriving};

    return on_main(opaque, arrive, &a);
}

static int target_status(struct migration *mg, void *arg)
{
    struct mig_report r;

    if (!mg->target)
        return 0;
    mig_target_report(mg->target, &r);
    emit_status(mg, &r);
    log_end(&r);
    if (r.status == MIG_STATUS_COMPLETED) {
        mg->whole = true;
        machine_whole(mg->machine);
    }
    /* Whatever came is incomplete, and a guest of that name is running elsewhere. */
    if (r.status == MIG_STATUS_FAILED)
        mg->observer.on_end(mg->observer.opaque, EXIT_INCOMING);
    return 0;
}

static void target_changed(void *opaque, bool postcopy)
{
    struct migration *mg = opaque;

    if (!postcopy) {
        (void)on_main(mg, target_status, NULL);
        return;
    }
    /* The main thread may wait for a page, which comes by the thread that is here. */
    pthread_mutex_lock(&mg->lock);
    mg->news = true;
    pthread_mutex_unlock(&mg->lock);
    fd_event_signal(mg->call_fd);
}

static const struct mig_target_ops target_ops = {
    .compare = target_compare,
    .adopt = target_adopt,
    .load = target_load,
    .run = target_run,
    .changed = target_changed,
};

/* -- commands -- */

static int fail(char *error, int r, const char *text)
{
    snprintf(error, MIGRATION_ERROR_MAX, "%s", text);
    return r;
}

/* Where to go on: "" where the guest came to or left by a descriptor. */
static bool is_address(const char *uri)
{
    return strncmp(uri, "tcp:", 4) == 0 || strncmp(uri, "unix:", 5) == 0;
}

static bool source_runs(const struct migration *mg)
{
    return mg->source && !mg->source_ended;
}

static struct kept_fd *find_fd(struct migration *mg, const char *name)
{
    for (unsigned int i = 0; i < mg->fd_count; i++)
        if (strcmp(mg->fds[i].name, name) == 0)
            return &mg->fds[i];
    return NULL;
}

static int take_kept_fd(struct migration *mg, const char *name)
{
    struct kept_fd *k = find_fd(mg, name);
    int fd;

    if (!k)
        return -ENOENT;
    fd = k->fd;
    *k = mg->fds[--mg->fd_count];
    return fd;
}

int migration_keep_fd(struct migration *mg, const char *name, int fd)
{
    struct kept_fd *k = find_fd(mg, name);

    if (!k && mg->fd_count == MIGRATION_MAX_FDS) {
        fd_close(fd);
        return -ENOSPC;
    }
    if (k) {
        fd_close(k->fd);
    } else {
        k = &mg->fds[mg->fd_count++];
        snprintf(k->name, sizeof(k->name), "%s", name);
    }
    k->fd = fd;
    return 0;
}

int migration_close_fd(struct migration *mg, const char *name)
{
    int fd = take_kept_fd(mg, name);

    return fd < 0 ? fd : (fd_close(fd), 0);
}

static int check_start(struct migration *mg, const char *uri, bool local, char *error)
{
    enum run_state state = machine_run_state(mg->machine);

    if (source_runs(mg))
        return fail(error, -EBUSY, "there is a migration already");
    if (state != RUN_STATE_RUNNING && state != RUN_STATE_PAUSED && state != RUN_STATE_PRELAUNCH &&
        state != RUN_STATE_POSTMIGRATE) {
        snprintf(error, MIGRATION_ERROR_MAX, "a guest in state %s cannot be moved", machine_run_state_name(state));
        return -EPERM;
    }
    if (local && strncmp(uri, "unix:", 5) != 0)
        return fail(error, -EINVAL, "local: guest memory can be passed over unix:PATH only");
    if (local && mem_fd(vm_mem(machine_vm(mg->machine))) < 0)
        return fail(error, -ENOTSUP, "local: guest memory was restored lazily and has no file to pass");
    return 0;
}

static int check_postcopy(const struct mig_parameters *p, const char *uri, bool local, char *error)
{
    if (!p->postcopy && p->strategy != MIG_STRATEGY_POSTCOPY)
        return 0;
    if (local)
        return fail(error, -EINVAL, "local: memory that is handed over has no pages to come after the guest (post-copy)");
    if (strncmp(uri, "fd:", 3) == 0)
        return fail(error, -EINVAL, "post-copy takes two connections or more: tcp:HOST:PORT or unix:PATH");
    return 0;
}

/* Credentials for a stream to or from there: a Unix socket stays on this host, and goes without. *ret may be NULL. */
static int load_tls(struct migration *mg, const char *uri, struct mig_tls **ret, char *error)
{
    const char *dir = machine_config(mg->machine)->tls_creds;
    struct mig_error err = {""};
    int r;

    *ret = NULL;
    if (!dir || strncmp(uri, "unix:", 5) == 0)
        return 0;
    r = mig_tls_load(dir, ret, &err);
    return r < 0 ? fail(error, r, err.text) : 0;
}

/* Whose certificate to expect: what was set, else the host of tcp:HOST:PORT; NULL: any. */
static const char *tls_host(const struct migration *mg, const char *uri, char buf[MIGRATION_HOST_MAX + 1])
{
    struct mig_error unheard = {""};

    if (mg->settings.tls_hostname[0])
        return mg->settings.tls_hostname;
    if (strncmp(uri, "tcp:", 4) != 0 || mig_uri_host(uri, buf, MIGRATION_HOST_MAX + 1, &unheard) < 0)
        return NULL;
    return buf[0] ? buf : "localhost";
}

int migration_start(struct migration *mg, const char *uri, bool local, char *error)
{
    struct vm *vm = machine_vm(mg->machine);
    struct mig_source_config config = {
        .mem = vm_mem(vm),
        .dirty = vm_dirty_log(vm),
        .ops = &source_ops,
        .opaque = mg,
        .parameters = mg->settings.parameters,
        .uri = uri,
        .fd = -1,
        .local = local,
    };
    char host[MIGRATION_HOST_MAX + 1];
    int r = check_start(mg, uri, local, error);

    if (r == 0)
        r = check_postcopy(&config.parameters, uri, local, error);
    if (r == 0)
        r = load_tls(mg, uri, &config.tls, error);
    if (r < 0)
        return r;
    config.tls_host = tls_host(mg, uri, host);
    config.parameters.channels = mg->settings.multifd ? mg->settings.multifd_channels : 1;
    config.parameters.zstd_level = mg->settings.zstd ? mg->settings.zstd_level : 0;
    if (strncmp(uri, "fd:", 3) == 0) {
        config.uri = NULL;
        config.fd = take_kept_fd(mg, uri + 3);
        if (config.fd < 0)
            r = fail(error, -ENOENT, "there is no descriptor of that name, pass one with getfd");
    } else if (!is_address(uri)) {
        r = fail(error, -EINVAL, "the address is none of tcp:HOST:PORT, unix:PATH, fd:NAME");
    }
    if (r < 0) {
        mig_tls_free(config.tls);
        return r;
    }
    mig_source_free(mg->source);
    mg->source = NULL;
    mg->source_ended = false;
    mg->stall_ns = 0;
    mg->writer = GFN_INVALID;
    mg->throttle.held_ns = 0;
    mg->local = local;
    r = mig_source_start(&config, &mg->source);
    return r < 0 ? fail(error, r, strerrordesc_np(-r)) : 0;
}

int migration_incoming(struct migration *mg, const char *uri, char *error)
{
    struct mig_error err = {""};
    struct mig_tls *tls;
    int r;

    if (machine_run_state(mg->machine) != RUN_STATE_INMIGRATE)
        return fail(error, -EPERM, "this machine does not wait for a guest (--incoming)");
    if (mg->target)
        return fail(error, -EBUSY, "it waits for a guest already");
    if (strcmp(uri, "defer") == 0)
        return 0;
    r = load_tls(mg, uri, &tls, error);
    if (r < 0)
        return r;
    r = mig_target_start(vm_mem(machine_vm(mg->machine)), uri, tls, &target_ops, mg, &mg->target, &err);
    return r < 0 ? fail(error, r, err.text) : 0;
}

void migration_cancel(struct migration *mg)
{
    if (mg->source)
        mig_source_cancel(mg->source);
}

int migration_continue(struct migration *mg)
{
    return mg->source ? mig_source_continue(mg->source) : -EINVAL;
}

int migration_start_postcopy(struct migration *mg)
{
    return mg->source ? mig_source_postcopy(mg->source) : -EINVAL;
}

int migration_pause(struct migration *mg)
{
    if (source_runs(mg))
        return mig_source_pause(mg->source);
    return mg->target ? mig_target_pause(mg->target) : -EINVAL;
}

int migration_resume(struct migration *mg, const char *uri, char *error)
{
    char host[MIGRATION_HOST_MAX + 1];
    int r = -EINVAL;

    if (!is_address(uri))
        return fail(error, r, "the address is none of tcp:HOST:PORT, unix:PATH");
    if (source_runs(mg))
        r = mig_source_recover(mg->source, uri, tls_host(mg, uri, host));
    return r == -EINVAL ? fail(error, r, "there is no post-copy that has lost its target") : r < 0 ? fail(error, r, strerrordesc_np(-r)) : 0;
}

int migration_recover(struct migration *mg, const char *uri, char *error)
{
    struct mig_error err = {""};
    int r = -EINVAL;

    if (!is_address(uri))
        return fail(error, r, "the address is none of tcp:HOST:PORT, unix:PATH");
    if (!mg->target)
        return fail(error, r, "there is no post-copy that has lost its source");
    r = mig_target_recover(mg->target, uri, &err);
    return r < 0 ? fail(error, r, err.text) : 0;
}

const struct migration_settings *migration_settings(const struct migration *mg)
{
    return &mg->settings;
}

void migration_set(struct migration *mg, const struct migration_settings *settings)
{
    mg->settings = *settings;
    if (source_runs(mg))
        mig_source_set_parameters(mg->source, &settings->parameters);
}

json_t *migration_query(struct migration *mg)
{
    struct mig_report r = {.status = MIG_STATUS_NONE};
    char error[MIGRATION_ERROR_MAX];

    if (mg->source)
        mig_source_report(mg->source, &r);
    else if (mg->target)
        mig_target_report(mg->target, &r);
    return migration_report_json(&r, mg->stall_ns + mg->throttle.held_ns,
                                 check_start(mg, "tcp:", false, error) < 0 ? error : NULL);
}

/* -- making and freeing -- */

/* What is wrong with the certificates is told at the start, not when a guest has to go. */
static int try_tls(const struct machine *machine)
{
    const char *dir = machine_config(machine)->tls_creds;
    struct mig_error err = {""};
    struct mig_tls *tls = NULL;
    int r = dir ? mig_tls_load(dir, &tls, &err) : 0;

    if (r < 0)
        log_err("migration: %s", err.text);
    mig_tls_free(tls);
    return r;
}

int migration_new(struct event_base *events, struct machine *machine, const struct machine_observer *observer,
                  struct migration **ret)
{
    struct migration *mg = calloc(1, sizeof(*mg));
    int r;

    if (!mg)
        return -ENOMEM;
    mg->machine = machine;
    mg->observer = *observer;
    mg->settings = (struct migration_settings){
        .parameters = {.downtime_limit_ns = MIG_DOWNTIME_LIMIT_DEFAULT_NS, .channels = 1, .max_throttle = MIG_THROTTLE_DEFAULT},
        .multifd = true,
        .multifd_channels = 2,
        .zstd_level = MIG_ZSTD_LEVEL_DEFAULT,
    };
    pthread_mutex_init(&mg->lock, NULL);
    pthread_cond_init(&mg->answered, NULL);
    mg->call_fd = -1;
    r = try_tls(machine);
    if (r == 0)
        r = migration_throttle_init(&mg->throttle, events, machine);
    if (r == 0)
        r = mg->call_fd = fd_eventfd();
    if (r >= 0) {
        mg->call_event = event_new(events, mg->call_fd, EV_READ | EV_PERSIST, on_call, mg);
        r = mg->call_event && event_add(mg->call_event, NULL) == 0 ? 0 : -ENOMEM;
    }
    if (r < 0) {
        migration_free(mg);
        return r;
    }
    *ret = mg;
    return 0;
}

static void close_calls(struct migration *mg)
{
    pthread_mutex_lock(&mg->lock);
    mg->closing = true;
    pthread_cond_broadcast(&mg->answered);
    pthread_mutex_unlock(&mg->lock);
}

void migration_abandon(struct migration *mg)
{
    close_calls(mg);
    mig_target_abandon(mg->target);
}

void migration_free(struct migration *mg)
{
    if (!mg)
        return;
    close_calls(mg);
    mig_source_free(mg->source);
    mig_target_free(mg->target);
    migration_throttle_clear(&mg->throttle);
    for (unsigned int i = 0; i < mg->fd_count; i++)
        fd_close(mg->fds[i].fd);
    if (mg->call_event)
        event_free(mg->call_event);
    fd_close(mg->call_fd);
    pthread_cond_destroy(&mg->answered);
    pthread_mutex_destroy(&mg->lock);
    free(mg);
}
