/* umbrad: one process, one VM. This file only puts the parts together, in the order they depend on each other. */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/systemd.h"
#include "base/thread.h"
#include "daemon/configuration.h"
#include "daemon/host-report.h"
#include "daemon/lockdown.h"
#include "daemon/machine-state.h"
#include "daemon/machine.h"
#include "daemon/migration.h"
#include "daemon/metrics.h"
#include "daemon/qmp-server.h"
#include "daemon/rundir.h"
#include "daemon/service.h"
#include "mmu/mem.h"
#include "vcpu/host.h"

#define EXIT_HOST 1
#define EXIT_USAGE 2
/* How long clients and the console may take to get the last bytes. */
#define FLUSH_MS 1000

static const int end_signals[] = {SIGTERM, SIGINT, SIGHUP};

struct daemon {
    struct config config;
    struct rundir *rundir;
    struct event_base *events;
    struct event *signals[ARRAY_SIZE(end_signals)];
    struct net_backend *nets[CONFIG_MAX_NETS];
    struct machine *machine;
    struct qmp_server *qmp;
    struct migration *migration;
    struct service *service;
    struct metrics *metrics;
    int status;
};

static void on_machine_event(void *opaque, const char *name, json_t *data)
{
    struct daemon *d = opaque;

    service_event(d->service, name, data);
    if (d->qmp)
        qmp_server_event(d->qmp, name, data);
    else
        json_object_put(data);
}

static void on_machine_end(void *opaque, int exit_status)
{
    struct daemon *d = opaque;

    d->status = exit_status;
    event_base_loopbreak(d->events);
}

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
    struct daemon *d = arg;

    log_info("%s: ending", strsignal((int)sig));
    machine_signalled(d->machine);
}

static struct event_base *create_event_base(void)
{
    struct event_config *config = event_config_new();
    struct event_base *events = NULL;

    if (!config)
        return NULL;
    /* Only the main thread touches it; other threads use eventfds. */
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_IGNORE_ENV);
    event_config_avoid_method(config, "poll");
    event_config_avoid_method(config, "select");
    events = event_base_new_with_config(config);
    event_config_free(config);
    return events;
}

static int watch_signals(struct daemon *d)
{
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < ARRAY_SIZE(end_signals); i++) {
        d->signals[i] = evsignal_new(d->events, end_signals[i], on_signal, d);
        if (!d->signals[i] || event_add(d->signals[i], NULL) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int listen_on(struct daemon *d, const char *file, bool read_only)
{
    char path[256];
    int r = rundir_socket(d->rundir, file, path, sizeof(path));

    return r < 0 ? r : qmp_server_listen(d->qmp, path, read_only);
}

static int wait_for_guest(struct daemon *d)
{
    char error[MIGRATION_ERROR_MAX];
    int r = migration_incoming(d->migration, d->config.incoming, error);

    if (r < 0)
        log_err("--incoming: %s", error);
    return r;
}

static int serve_metrics(struct daemon *d)
{
    char path[256];
    int r = metrics_new(d->events, qmp_server_context(d->qmp), &d->metrics);

    if (r == 0)
        r = rundir_socket(d->rundir, "metrics.sock", path, sizeof(path));
    if (r == 0)
        r = metrics_listen_unix(d->metrics, path);
    if (r == 0 && d->config.metrics)
        r = metrics_listen_tcp(d->metrics, d->config.metrics);
    return r;
}

/* While there are privileges: a tap may want them. */
static int open_nets(struct daemon *d)
{
    int r = 0;

    for (unsigned int i = 0; i < d->config.net_count && r == 0; i++)
        r = net_backend_open(&d->config.nets[i], &d->nets[i]);
    return r;
}

static int start(struct daemon *d)
{
    const struct machine_observer observer = {
        .on_event = on_machine_event, .on_end = on_machine_end, .opaque = d};
    int r;

    mem_init_process();
    d->events = create_event_base();
    if (!d->events)
        return -ENOMEM;
    /* From here on a signal waits for the loop, so that what was made is also removed. */
    r = watch_signals(d);
    if (r == 0)
        r = rundir_new(d->config.runtime_dir, d->config.name, &d->rundir);
    if (r == 0)
        r = open_nets(d);
    if (r == 0)
        r = lockdown_begin(&d->config, d->rundir);
    if (r == 0)
        r = machine_new(&d->config, d->nets, d->events, &observer, &d->machine);
    if (r == 0)
        r = migration_new(d->events, d->machine, &observer, &d->migration);
    if (r == 0)
        r = qmp_server_new(d->events, d->machine, &d->qmp);
    if (r == 0)
        qmp_server_set_migration(d->qmp, d->migration);
    if (r == 0)
        r = listen_on(d, "control.sock", false);
    if (r == 0)
        r = listen_on(d, "control-ro.sock", true);
    if (r == 0)
        r = serve_metrics(d);
    if (r == 0)
        r = lockdown_finish(&d->config, d->rundir);
    if (r == 0)
        r = machine_start(d->machine);
    if (r == 0 && d->config.incoming)
        r = wait_for_guest(d);
    if (r == 0)
        r = service_new(d->events, d->machine, &d->service);
    return r;
}

static void finish(struct daemon *d)
{
    service_stopping();
    if (d->qmp)
        qmp_server_flush(d->qmp, FLUSH_MS);
    metrics_free(d->metrics);
    qmp_server_free(d->qmp);
    if (d->machine && machine_memory_arrives(d->machine)) {
        migration_abandon(d->migration);
        machine_abandon(d->machine);
        rundir_free(d->rundir);
        _exit(d->status);
    }
    migration_free(d->migration);
    service_free(d->service);
    machine_free(d->machine);
    for (unsigned int i = 0; i < d->config.net_count; i++)
        net_backend_close(d->nets[i]);
    for (size_t i = 0; i < ARRAY_SIZE(end_signals); i++)
        if (d->signals[i])
            event_free(d->signals[i]);
    if (d->events)
        event_base_free(d->events);
    rundir_free(d->rundir);
}

static int run(struct daemon *d)
{
    int r = start(d);

    if (r < 0)
        d->status = EXIT_HOST;
    else
        event_base_loop(d->events, EVLOOP_NO_EXIT_ON_EMPTY);
    finish(d);
    return d->status;
}

static int act(struct daemon *d)
{
    switch (d->config.action) {
    case CONFIG_RUN:
        return run(d);
    case CONFIG_CHECK_CONFIG:
        printf("%s: ok\n", d->config.config_file);
        return 0;
    case CONFIG_PRINT_CONFIG:
        config_print(&d->config);
        return 0;
    case CONFIG_CHECK_HOST:
        return host_report(d->config.kvm_path) < 0 ? EXIT_HOST : 0;
    case CONFIG_VERSION:
        printf("umbrad %s\n", PACKAGE_VERSION);
        return 0;
    case CONFIG_HELP:
        config_print_help();
        return 0;
    }
    return EXIT_USAGE;
}

/* Somebody may start umbrad with stdin, stdout or stderr closed: what is opened next must not take their place. */
static void fill_standard_fds(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    fd_close(fd);
}

int main(int argc, char **argv)
{
    struct daemon d = {0};
    char error[CONFIG_ERROR_MAX] = "";
    int r, status;

    /* No arena for each thread that allocates: the threads hardly do, and each costs a few system calls and some memory. */
    mallopt(M_ARENA_MAX, 1);
    fill_standard_fds();
    systemd_init();
    thread_enter(THREAD_MAIN, "main");
    config_init(&d.config);
    r = config_parse_args(&d.config, argc, argv, error);
    if (r == 0 && d.config.action <= CONFIG_PRINT_CONFIG)
        r = config_check(&d.config, error);
    if (r < 0) {
        /* A bad option is a usage error; a file that cannot be read or a lack of memory is the host's. */
        fprintf(stderr, "umbrad: %s\n", error);
        status = r == -EINVAL ? EXIT_USAGE : EXIT_HOST;
    } else {
        log_init("umbrad", d.config.name);
        log_set_level(d.config.log_level);
        status = act(&d);
    }
    config_clear(&d.config);
    return status;
}
