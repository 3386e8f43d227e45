/*
 * Time from the start of a process to the first output of its guest: of this program's own least VMM, or of any
 * command (`-- COMMAND ...`), measured the same way. A run begins right before the process is spawned and ends when
 * the expected text has come out of its standard output.
 */
#include "config.h"

#include "floor.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUNS_MAX 1000
#define OUTPUT_SIZE 65536
#define LIMIT_MAX_S 3600

extern char **environ;

struct measurement {
    const char *expect;
    const char *input; /* its standard input */
    unsigned long limit; /* seconds */
    const char *counter; /* a file with a number to read when the text has come, or NULL */
    unsigned long long counted;
    double us;
};

static void usage(FILE *f)
{
    fprintf(f, "usage: %s [--memory SIZE] [--runs N] [--json] GUEST.elf\n"
               "       %s [--expect TEXT] [--input FILE] [--limit SECONDS] [--counter FILE] [--runs N] [--json]\n"
               "           -- COMMAND [ARG]...\n"
               "       %s --once [--memory SIZE] [--cmdline TEXT] GUEST.elf\n"
               "Microseconds from process start to first guest output (or to TEXT, default h), and the number that FILE has\n"
               "then; standard input is empty or FILE. --once runs the guest, its serial output on standard output.\n",
            floor_name, floor_name, floor_name);
}

/* -- one guest ---------------------------------------------------------------------- */

static int run_guest(const struct floor_config *config)
{
    struct floor_vm vm;
    int r = floor_create(&vm, config);

    if (r < 0)
        return 1;
    for (;;) {
        r = floor_run(&vm);
        if (r < 0 || r == FLOOR_EXIT)
            break;
        if (r == FLOOR_OUTPUT && write(STDOUT_FILENO, &vm.sent, 1) != 1) {
            r = -EPIPE;
            break;
        }
    }
    r = r < 0 ? 1 : vm.exit_code;
    floor_destroy(&vm);
    return r;
}

/* -- measure -------------------------------------------------------------------------- */

/* Read until the text has come. Returns 0, or -errno (-EPIPE: the output ended before). */
static int await_output(int fd, const struct measurement *m)
{
    static char output[OUTPUT_SIZE];
    size_t len = 0;
    uint64_t end = floor_ns() + (uint64_t)m->limit * 1000000000;

    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ssize_t n;

        if (floor_ns() > end)
            return -ETIMEDOUT;
        if (poll(&p, 1, 1000) <= 0)
            continue;
        n = read(fd, output + len, sizeof(output) - 1 - len);
        if (n <= 0)
            return n < 0 ? -errno : -EPIPE;
        len += (size_t)n;
        output[len] = '\0';
        if (strstr(output, m->expect))
            return 0;
        if (len == sizeof(output) - 1)
            return -ENOBUFS;
    }
}

static int read_counter(struct measurement *m)
{
    FILE *f = fopen(m->counter, "r");
    int n;

    if (!f)
        return -errno;
    n = fscanf(f, "%llu", &m->counted);
    fclose(f);
    return n == 1 ? 0 : -EBADMSG;
}

/* Fills in the results and returns 0, or returns the exit status to end with. */
static int measure(char **argv, struct measurement *m)
{
    posix_spawn_file_actions_t actions;
    int fds[2], status, r;
    uint64_t start;
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return 1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, m->input, O_RDONLY, 0);
    start = floor_ns();
    r = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    close(fds[1]);
    posix_spawn_file_actions_destroy(&actions);
    if (r) {
        close(fds[0]);
        floor_err("%s: %s", argv[0], strerror(r));
        return 1;
    }
    r = await_output(fds[0], m);
    m->us = (double)(floor_ns() - start) / 1000;
    if (r == 0 && m->counter) {
        r = read_counter(m);
        if (r < 0)
            floor_err("%s: %s", m->counter, strerror(-r));
    }
    close(fds[0]);
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (r == 0)
        return 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == FLOOR_SKIP)
        return FLOOR_SKIP;
    floor_err("%s: no \"%s\" in its output: %s", argv[0], m->expect, strerror(-r));
    return 1;
}

static int measure_runs(char **argv, struct measurement *m, unsigned int runs, bool json)
{
    double us[RUNS_MAX], median;

    for (unsigned int i = 0; i < runs; i++) {
        int r = measure(argv, m);

        if (r)
            return r;
        us[i] = m->us;
        if (!json && m->counter)
            printf("%.0f %llu\n", m->us, m->counted);
        else if (!json)
            printf("%.0f\n", m->us);
    }
    median = floor_median(us, runs);
    if (json)
        printf("{\"name\": \"start\", \"unit\": \"us\", \"value\": %.1f, \"min\": %.1f, \"max\": %.1f, \"runs\": %u}\n",
               median, us[0], us[runs - 1], runs);
    return 0;
}

struct arguments {
    struct floor_config config;
    struct measurement measurement;
    char *memory;
    unsigned long runs;
    bool json, once;
};

/* Returns 0, or -1 for bad usage. */
static int parse_option(struct arguments *a, int c)
{
    switch (c) {
    case 'm':
        a->memory = optarg;
        if (floor_parse_size(optarg, &a->config.ram) == 0)
            return 0;
        floor_err("memory %s is not a size", optarg);
        return -1;
    case 'r':
        a->runs = strtoul(optarg, NULL, 10);
        return 0;
    case 'j':
        a->json = true;
        return 0;
    case 'e':
        a->measurement.expect = optarg;
        return 0;
    case 'i':
        a->measurement.input = optarg;
        return 0;
    case 'l':
        a->measurement.limit = strtoul(optarg, NULL, 10);
        return a->measurement.limit >= 1 && a->measurement.limit <= LIMIT_MAX_S ? 0 : -1;
    case 'n':
        a->measurement.counter = optarg;
        return 0;
    case 'c':
        a->config.cmdline = optarg;
        return 0;
    case 'o':
        a->once = true;
        return 0;
    default:
        return -1;
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"memory", required_argument, NULL, 'm'},  {"runs", required_argument, NULL, 'r'},
        {"json", no_argument, NULL, 'j'},          {"expect", required_argument, NULL, 'e'},
        {"limit", required_argument, NULL, 'l'},   {"counter", required_argument, NULL, 'n'},
        {"cmdline", required_argument, NULL, 'c'}, {"once", no_argument, NULL, 'o'},
        {"input", required_argument, NULL, 'i'},   {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    static char default_memory[] = "64M", self[] = "/proc/self/exe", once[] = "--once", memory[] = "--memory";
    struct arguments a = {
        .config = {.ram = UINT64_C(64) << 20, .cmdline = "exit=0"},
        .measurement = {.expect = "h", .input = "/dev/null", .limit = 30},
        .memory = default_memory,
        .runs = 10,
    };
    char *own[] = {self, once, memory, NULL, NULL, NULL};
    int c;

    floor_name = "floor-start";
    while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
        if (c == 'h') {
            usage(stdout);
            return 0;
        }
        if (parse_option(&a, c) < 0) {
            usage(stderr);
            return 2;
        }
    }
    if (optind == argc || a.runs < 1 || a.runs > RUNS_MAX) {
        usage(stderr);
        return 2;
    }
    a.config.guest = argv[optind];
    if (a.once)
        return run_guest(&a.config);
    if (strcmp(argv[optind - 1], "--") == 0)
        return measure_runs(argv + optind, &a.measurement, (unsigned int)a.runs, a.json);
    own[3] = a.memory;
    own[4] = argv[optind];
    return measure_runs(own, &a.measurement, (unsigned int)a.runs, a.json);
}
