/*
 * The least that a request over a Unix stream socket costs: two processes, each in an epoll loop, send a message of
 * about the size of a query back and forth. Needs no KVM.
 */
#include "config.h"

#include "floor.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE_MAX_BYTES 65536u
#define RUNS_MAX 1000000u
#define WARM_UP 1000u

static int epoll_of(int fd)
{
    struct epoll_event e = {.events = EPOLLIN};
    int ep = epoll_create1(EPOLL_CLOEXEC);

    if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) < 0) {
        floor_err("epoll: %s", strerror(errno));
        exit(1);
    }
    return ep;
}

/* Wait for size bytes in as many pieces as they come. Returns false when the other side is gone. */
static bool receive(int ep, int fd, char *buf, size_t size)
{
    size_t len = 0;

    while (len < size) {
        struct epoll_event e;
        ssize_t n;

        if (epoll_wait(ep, &e, 1, -1) < 0 && errno != EINTR)
            return false;
        n = read(fd, buf + len, size - len);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return false;
        len += n > 0 ? (size_t)n : 0;
    }
    return true;
}

static bool transmit(int fd, const char *buf, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, buf, size);

        if (n < 0 && errno != EINTR)
            return false;
        if (n > 0) {
            buf += n;
            size -= (size_t)n;
        }
    }
    return true;
}

static void serve(int fd, size_t size)
{
    char *buf = malloc(size);
    int ep = epoll_of(fd);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (buf && receive(ep, fd, buf, size) && transmit(fd, buf, size))
        ;
    _exit(0);
}

static int measure(int fd, size_t size, unsigned int runs, double *us)
{
    char *buf = calloc(1, size);
    int ep = epoll_of(fd);

    if (!buf)
        return -ENOMEM;
    memset(buf, 'x', size);
    for (unsigned int i = 0; i < runs + WARM_UP; i++) {
        uint64_t start = floor_ns();

        if (!transmit(fd, buf, size) || !receive(ep, fd, buf, size)) {
            free(buf);
            floor_err("the echoing process is gone");
            return -EPIPE;
        }
        if (i >= WARM_UP)
            us[i - WARM_UP] = (double)(floor_ns() - start) / 1000;
    }
    free(buf);
    return 0;
}

static int run(size_t size, unsigned int runs)
{
    double *us = calloc(runs, sizeof(*us)), median;
    int fds[2], r;
    pid_t pid;

    if (!us || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 || (pid = fork()) < 0) {
        floor_err("%s", strerror(errno));
        free(us);
        return -ENOMEM;
    }
    if (pid == 0) {
        close(fds[0]);
        serve(fds[1], size);
    }
    close(fds[1]);
    r = measure(fds[0], size, runs, us);
    close(fds[0]);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    if (r == 0) {
        median = floor_median(us, runs);
        printf("{\"name\": \"echo\", \"size\": %zu, \"unit\": \"us\", \"value\": %.2f, \"min\": %.2f, \"p99\": %.2f, "
               "\"max\": %.2f, \"runs\": %u}\n",
               size, median, us[0], us[runs - 1 - runs / 100], us[runs - 1], runs);
    }
    free(us);
    return r;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"runs", required_argument, NULL, 'r'},
        {"size", required_argument, NULL, 's'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    static const char text[] = "usage: floor-echo [--runs N] [--size BYTES]\n"
                               "Round trip of a message between two processes, as a JSON object.\n";
    unsigned long runs = 20000, size = 100;
    int c;

    floor_name = "floor-echo";
    signal(SIGPIPE, SIG_IGN);
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'r') {
            runs = strtoul(optarg, NULL, 10);
        } else if (c == 's') {
            size = strtoul(optarg, NULL, 10);
        } else {
            fputs(text, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 2;
        }
    }
    if (optind != argc || runs < 1 || runs > RUNS_MAX || size < 1 || size > SIZE_MAX_BYTES) {
        fputs(text, stderr);
        return 2;
    }
    return run(size, (unsigned int)runs) < 0 ? 1 : 0;
}
