/*
 * How long a control socket takes to answer, umbrad's or QEMU's: reads requests from standard input, one JSON object a line,
 * sends each as often as asked for and prints one object a line: median, least and greatest time in microseconds, and the
 * beginning of the last answer. The time goes from the write of the request to the end of the answer's line, whatever its
 * size; a descriptor that comes with it is closed. Events in between are passed over.
 */
#include "config.h"

#include "floor.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RUNS_MAX 1000000u
#define BUFFER_SIZE (64u << 20)
#define SHOWN 160
#define ANSWER_LIMIT_MS 60000

struct client {
    int fd, ep;
    char *buf; /* the current line and whatever came behind it */
    size_t len, line;
};

static int receive(struct client *c)
{
    char control[CMSG_SPACE(4 * sizeof(int))];
    struct iovec iov = {.iov_base = c->buf + c->len, .iov_len = BUFFER_SIZE - c->len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(c->fd, &msg, MSG_CMSG_CLOEXEC);

    if (n <= 0)
        return n < 0 ? -errno : -EPIPE;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&msg); h; h = CMSG_NXTHDR(&msg, h))
        if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS)
            for (size_t i = 0; i < (h->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++)
                close(((int *)(void *)CMSG_DATA(h))[i]);
    c->len += (size_t)n;
    return 0;
}

/* Wait for a whole line: it is the first c->line bytes of c->buf. */
static int read_line(struct client *c)
{
    size_t looked = 0;

    memmove(c->buf, c->buf + c->line, c->len - c->line);
    c->len -= c->line;
    c->line = 0;
    for (;;) {
        char *end = memchr(c->buf + looked, '\n', c->len - looked);
        struct epoll_event e;
        int r;

        if (end) {
            c->line = (size_t)(end - c->buf) + 1;
            return 0;
        }
        looked = c->len;
        if (c->len == BUFFER_SIZE)
            return -ENOBUFS;
        r = epoll_wait(c->ep, &e, 1, ANSWER_LIMIT_MS);
        if (r == 0)
            return -ETIMEDOUT;
        if (r > 0)
            r = receive(c);
        if (r < 0 && r != -EINTR)
            return r;
    }
}

static bool line_has(const struct client *c, const char *text)
{
    return memmem(c->buf, c->line < SHOWN ? c->line : SHOWN, text, strlen(text));
}

static int ask(struct client *c, const char *request, size_t len)
{
    int r;

    while (len > 0) {
        ssize_t n = write(c->fd, request, len);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            request += n;
            len -= (size_t)n;
        }
    }
    do
        r = read_line(c);
    while (r == 0 && line_has(c, "\"event\""));
    return r;
}

static int open_session(struct client *c, const char *path)
{
    static const char negotiate[] = "{\"execute\": \"qmp_capabilities\"}\n";
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct epoll_event e = {.events = EPOLLIN};
    int r;

    if (strlen(path) >= sizeof(addr.sun_path))
        return -ENAMETOOLONG;
    strcpy(addr.sun_path, path);
    c->buf = malloc(BUFFER_SIZE);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    c->ep = epoll_create1(EPOLL_CLOEXEC);
    if (!c->buf || c->fd < 0 || c->ep < 0)
        return -ENOMEM;
    if (connect(c->fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0 ||
        epoll_ctl(c->ep, EPOLL_CTL_ADD, c->fd, &e) < 0)
        return -errno;
    r = read_line(c);
    if (r == 0)
        r = ask(c, negotiate, strlen(negotiate));
    return r == 0 && !line_has(c, "\"return\"") ? -EPROTO : r;
}

static void print_result(const struct client *c, double *us, unsigned int runs)
{
    size_t n = c->line < SHOWN ? c->line : SHOWN;
    double median = floor_median(us, runs);

    printf("{\"us\": %.2f, \"min\": %.2f, \"max\": %.2f, \"runs\": %u, \"bytes\": %zu, \"answer\": \"", median, us[0],
           us[runs - 1], runs, c->line);
    for (size_t i = 0; i < n; i++) {
        unsigned char b = (unsigned char)c->buf[i];

        if (b == '"' || b == '\\')
            putchar('\\');
        putchar(b >= 0x20 && b < 0x7f ? b : ' ');
    }
    puts("\"}");
    fflush(stdout);
}

static int time_requests(struct client *c, unsigned int runs, unsigned int warm_up)
{
    double *us = calloc(runs, sizeof(*us));
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    int r = us ? 0 : -ENOMEM;

    while (r == 0 && (len = getline(&line, &cap, stdin)) > 0) {
        for (unsigned int i = 0; i < runs + warm_up && r == 0; i++) {
            uint64_t start = floor_ns();

            r = ask(c, line, (size_t)len);
            if (i >= warm_up)
                us[i - warm_up] = (double)(floor_ns() - start) / 1000;
        }
        if (r == 0)
            print_result(c, us, runs);
    }
    free(line);
    free(us);
    return r;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"runs", required_argument, NULL, 'r'},
        {"warm-up", required_argument, NULL, 'w'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    static const char text[] = "usage: qmp-time [--runs N] [--warm-up N] SOCKET <REQUESTS\n"
                               "Time QMP requests (one a line) and print a JSON object for each.\n";
    unsigned long runs = 1, warm_up = 0;
    struct client c = {.fd = -1, .ep = -1};
    int option, r;

    floor_name = "qmp-time";
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'r') {
            runs = strtoul(optarg, NULL, 10);
        } else if (option == 'w') {
            warm_up = strtoul(optarg, NULL, 10);
        } else {
            fputs(text, option == 'h' ? stdout : stderr);
            return option == 'h' ? 0 : 2;
        }
    }
    if (optind + 1 != argc || runs < 1 || runs > RUNS_MAX || warm_up > RUNS_MAX) {
        fputs(text, stderr);
        return 2;
    }
    r = open_session(&c, argv[optind]);
    if (r == 0)
        r = time_requests(&c, (unsigned int)runs, (unsigned int)warm_up);
    if (r < 0)
        floor_err("%s: %s", argv[optind], strerror(-r));
    close(c.fd);
    close(c.ep);
    free(c.buf);
    return r < 0;
}
