#include "config.h"

#include "daemon/migration.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "daemon/migration-internal.h"
#include "migrate/compress.h"
#include "migrate/stream.h"
#include "vcpu/vm.h"

/* Something to be done on the main loop for a thread that waits. */
struct call {
    int (*run)(struct migration *mg, void *arg);
    void *arg;
    int result;
    bool done;
};

/* -- from a thread of the migration to the main loop -- */

int migration_on_main(struct migration *mg, int (*run)(struct migration *mg, void *arg), void *arg)
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
        (void)migration_target_told(mg, NULL);
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
    if (state == RUN_STATE_POSTMIGRATE)
        return fail(error, -EPERM, "the guest was moved: it may run where it went (cont takes it back)");
    if (state != RUN_STATE_RUNNING && state != RUN_STATE_PAUSED && state != RUN_STATE_PRELAUNCH) {
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
        .ops = &migration_source_ops,
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
    migration_open_sync(mg);
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
    r = mig_target_start(vm_mem(machine_vm(mg->machine)), uri, tls, &migration_target_ops, mg, &mg->target, &err);
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
    migration_close_sync(mg);
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
