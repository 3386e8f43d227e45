/*
 * streamcheck PORT LISTEN [RATE]: a TCP stream both ways at once whose bytes are known, RATE KiB a second each way (0: as fast as it
 * goes). With LISTEN 0 it connects to that port of the host, 10.99.0.1, with 1 it waits for that. Every byte that comes is
 * compared. SIGTERM ends what is sent; the program ends when both sides have ended, or with the first byte that is wrong.
 */
#define _GNU_SOURCE
#include "work.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static const char name[] = "streamcheck";

enum { BUFFER = 16 << 10, HOST = 0x0a630001, POLL_MS = 20 };

static volatile sig_atomic_t asked_to_end;

struct stream {
    int fd;
    uint64_t salt_out, salt_in; /* an echo is no answer */
    uint64_t sent, received, rate;
    int ended_out, ended_in;
    double start;
};

static void on_term(int signal)
{
    (void)signal;
    asked_to_end = 1;
}

static unsigned char byte_at(uint64_t salt, uint64_t offset)
{
    return (unsigned char)(((offset >> 3) + salt) * UINT64_C(0x9e3779b97f4a7c15) >> (offset & 7) * 8);
}

static int make_connection(uint16_t port, int listens)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(listens ? 0 : HOST)};
    int one = 1, peer, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        work_fail(name, "socket");
    if (!listens) {
        if (connect(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
            work_fail(name, "connect");
        return fd;
    }
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
        listen(fd, 1) < 0)
        work_fail(name, "listen");
    printf("umbra-ready: %s\n", name);
    peer = accept(fd, NULL, NULL);
    if (peer < 0)
        work_fail(name, "accept");
    close(fd);
    return peer;
}

static uint64_t may_send(const struct stream *s)
{
    uint64_t due;

    if (s->ended_out)
        return 0;
    if (s->rate == 0)
        return BUFFER;
    due = (uint64_t)((work_now() - s->start) * (double)s->rate * 1024);
    return due <= s->sent ? 0 : due - s->sent < BUFFER ? due - s->sent : BUFFER;
}

static void send_some(struct stream *s, uint64_t most)
{
    static unsigned char buffer[BUFFER];
    ssize_t n;

    for (uint64_t i = 0; i < most; i++)
        buffer[i] = byte_at(s->salt_out, s->sent + i);
    n = send(s->fd, buffer, most, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        work_fail(name, "send");
    s->sent += n > 0 ? (uint64_t)n : 0;
}

/* Returns 0 when something else came than was sent. */
static int receive_some(struct stream *s)
{
    static unsigned char buffer[BUFFER];
    ssize_t n = recv(s->fd, buffer, sizeof(buffer), MSG_DONTWAIT);

    if (n < 0 && errno != EAGAIN && errno != EINTR)
        work_fail(name, "recv");
    s->ended_in |= n == 0;
    for (ssize_t i = 0; i < n; i++) {
        unsigned char wanted = byte_at(s->salt_in, s->received + (uint64_t)i);

        if (buffer[i] == wanted)
            continue;
        printf("umbra-work: %s error=byte %" PRIu64 " is %02x, not %02x\n", name, s->received + (uint64_t)i, buffer[i], wanted);
        return 0;
    }
    s->received += n > 0 ? (uint64_t)n : 0;
    return 1;
}

static int run(const uint64_t *args, int count)
{
    int listens = args[1] != 0;
    struct stream s = {.salt_out = (uint64_t)listens, .salt_in = (uint64_t)!listens, .rate = work_arg(args, count, 2, 0)};
    struct sigaction action = {.sa_handler = on_term};

    sigaction(SIGTERM, &action, NULL);
    s.fd = make_connection((uint16_t)args[0], listens);
    s.start = work_now();
    while (!s.ended_in || !s.ended_out) {
        uint64_t most = may_send(&s);
        struct pollfd p = {.fd = s.fd, .events = (short)((s.ended_in ? 0 : POLLIN) | (most > 0 ? POLLOUT : 0))};

        if (poll(&p, 1, POLL_MS) < 0 && errno != EINTR)
            work_fail(name, "poll");
        if (most > 0)
            send_some(&s, most);
        if (!s.ended_in && !receive_some(&s))
            return 1;
        if (!s.ended_out && (asked_to_end || s.ended_in)) {
            s.ended_out = 1;
            shutdown(s.fd, SHUT_WR);
        }
    }
    printf("umbra-work: %s sent=%" PRIu64 " received=%" PRIu64 "\n", name, s.sent, s.received);
    return 0;
}

const struct program work_streamcheck = {name, "PORT LISTEN [RATE]", 2, 3, run};
