/* umbra-exporter: the metrics of all VMs of a host on one port, and a page to look at. */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/http.h"
#include "base/log.h"
#include "base/paths.h"
#include "base/size.h"
#include "base/systemd.h"
#include "base/util.h"
#include "exporter/exporter.h"

#define EXIT_HOST 1
#define EXIT_USAGE 2
#define DEFAULT_LISTEN "127.0.0.1:9756"
#define DEFAULT_TIMEOUT_MS 2000

enum option_id { OPTION_LISTEN, OPTION_RUNTIME_DIR, OPTION_TIMEOUT, OPTION_NO_PAGE, OPTION_NO_MAP, OPTION_VERSION, OPTION_HELP };

static const struct option_row {
    const char *name, *value, *help;
} rows[] = {
    [OPTION_LISTEN] = {"listen", "ADDR:PORT", "where to serve (default " DEFAULT_LISTEN ")"},
    [OPTION_RUNTIME_DIR] = {"runtime-dir", "DIR", "where the VMs' sockets are (default /run/umbra, or $XDG_RUNTIME_DIR/umbra)"},
    [OPTION_TIMEOUT] = {"timeout", "MILLISECONDS", "how long a VM may take to answer, 10 to 5000 (default 2000)"},
    [OPTION_NO_PAGE] = {"no-page", NULL, "serve /metrics only, not the page of the host"},
    [OPTION_NO_MAP] = {"no-map", NULL, "the page shows no maps of written memory, which need dirty logging"},
    [OPTION_VERSION] = {"version", NULL, "print the version, and end"},
    [OPTION_HELP] = {"help", NULL, "print this, and end"},
};

static void print_help(void)
{
    printf("usage: umbra-exporter [OPTION]...\n\n"
           "Serve the metrics of all VMs of this host at /metrics, and a page that shows them at /.\n\n");
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        char head[40];

        snprintf(head, sizeof(head), "--%s%s%s", rows[i].name, rows[i].value ? " " : "", rows[i].value ? rows[i].value : "");
        printf("  %-22s  %s\n", head, rows[i].help);
    }
}

static int usage(const char *text, const char *value)
{
    fprintf(stderr, "umbra-exporter: %s%.200s (--help lists the options)\n", text, value);
    return EXIT_USAGE;
}

/* Take one option; -1, or the status to end with. */
static int take_option(struct exporter_config *config, int id, const char **runtime_dir)
{
    struct sockaddr_storage addr;
    socklen_t len;
    uint64_t v;

    switch (id) {
    case OPTION_LISTEN:
        config->listen = optarg;
        return http_parse_address(optarg, &addr, &len) < 0 ? usage("--listen: no ADDR:PORT: ", optarg) : -1;
    case OPTION_RUNTIME_DIR:
        *runtime_dir = optarg;
        return -1;
    case OPTION_TIMEOUT:
        if (size_parse_u64(optarg, 5000, &v) < 0 || v < 10)
            return usage("--timeout: not 10 to 5000: ", optarg);
        config->timeout_ms = (unsigned int)v;
        return -1;
    case OPTION_NO_PAGE:
        config->no_page = true;
        return -1;
    case OPTION_NO_MAP:
        config->no_map = true;
        return -1;
    case OPTION_VERSION:
        printf("umbra-exporter %s\n", PACKAGE_VERSION);
        return 0;
    default:
        print_help();
        return 0;
    }
}

/* -1, or the status to end with. */
static int parse(struct exporter_config *config, int argc, char **argv)
{
    struct option longopts[ARRAY_SIZE(rows) + 1] = {0};
    const char *runtime_dir = NULL;
    int index, opt, r;

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        longopts[i].name = rows[i].name;
        longopts[i].has_arg = rows[i].value ? required_argument : no_argument;
    }
    opterr = 0;
    while ((opt = getopt_long(argc, argv, "+:h", longopts, &index)) != -1) {
        if (opt == ':')
            return usage("a value is missing: ", argv[optind - 1]);
        if (opt == '?')
            return usage("no such option: ", argv[optind - 1]);
        r = take_option(config, opt == 'h' ? OPTION_HELP : index, &runtime_dir);
        if (r >= 0)
            return r;
    }
    if (optind < argc)
        return usage("not an option: ", argv[optind]);
    r = paths_runtime_dir(runtime_dir, config->runtime_dir, sizeof(config->runtime_dir));
    if (r == -ENOENT)
        return usage("XDG_RUNTIME_DIR is not set: give --runtime-dir", "");
    return r < 0 ? usage("--runtime-dir: too long: ", runtime_dir ? runtime_dir : "") : -1;
}

static void on_signal(evutil_socket_t sig, short what, void *opaque)
{
    event_base_loopbreak(opaque);
}

static int run(const struct exporter_config *config)
{
    struct event_base *events = event_base_new();
    struct event *term = events ? evsignal_new(events, SIGTERM, on_signal, events) : NULL;
    struct event *interrupt = events ? evsignal_new(events, SIGINT, on_signal, events) : NULL;
    struct exporter *e = NULL;
    int r = term && interrupt && event_add(term, NULL) == 0 && event_add(interrupt, NULL) == 0 ? 0 : -ENOMEM;

    if (r == 0)
        r = exporter_new(events, config, &e);
    if (r == 0) {
        log_info("serving %s on %s, port %u", config->runtime_dir, config->listen, exporter_port(e));
        systemd_notify("READY=1");
        event_base_dispatch(events);
        systemd_notify("STOPPING=1");
    }
    exporter_free(e);
    if (term)
        event_free(term);
    if (interrupt)
        event_free(interrupt);
    if (events)
        event_base_free(events);
    return r < 0 ? EXIT_HOST : 0;
}

int main(int argc, char **argv)
{
    struct exporter_config config = {.listen = DEFAULT_LISTEN, .timeout_ms = DEFAULT_TIMEOUT_MS};
    int status = parse(&config, argc, argv);

    if (status >= 0)
        return status;
    signal(SIGPIPE, SIG_IGN);
    log_init("umbra-exporter", NULL);
    return run(&config);
}
