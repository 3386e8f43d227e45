/*
 * netstream PORT RECEIVE MEGABYTES: send so much over TCP to that port of the host, 10.99.0.1, or receive it. What is sent counts
 * when it has arrived.
 */
#define _GNU_SOURCE
#include "work.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static const char name[] = "netstream";

enum { BUFFER = 128 << 10, HOST = 0x0a630001, LINGER_SECONDS = 60 };

static int dial(uint16_t port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(HOST)};
    struct linger linger = {.l_onoff = 1, .l_linger = LINGER_SECONDS};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
        work_fail(name, "connect");
    /* close then waits until everything is acknowledged. */
    if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) < 0)
        work_fail(name, "SO_LINGER");
    return fd;
}

static int run(const uint64_t *args, int count)
{
    uint64_t left = args[2] << 20;
    unsigned char *buffer = work_map(name, BUFFER);
    int receive = args[1] != 0, fd = dial((uint16_t)args[0]);
    double start = work_now();

    (void)count;
    while (left > 0) {
        size_t part = left < BUFFER ? left : BUFFER;
        ssize_t n = receive ? read(fd, buffer, part) : write(fd, buffer, part);

        if (n <= 0)
            work_fail(name, receive ? "read" : "write");
        left -= (uint64_t)n;
    }
    if (!receive && close(fd) < 0)
        work_fail(name, "close");
    printf("umbra-work: %s receive=%d megabytes=%" PRIu64 " us=%.0f\n", name, receive, args[2], (work_now() - start) * 1e6);
    return 0;
}

const struct program work_netstream = {name, "PORT RECEIVE MEGABYTES", 3, 3, run};
