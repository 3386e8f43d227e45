/*
 * The floor of a migration: so many bytes of one process's memory over a bare Unix or TCP stream into another's, in writes of
 * 1 MiB, both sides touched before. Prints milliseconds.
 */
#include "config.h"

#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"

static void tcp_pair(int fds[2])
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&addr, len) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&addr, &len) < 0 || connect(fds[0], (struct sockaddr *)&addr, len) < 0)
        err(1, "tcp");
    fds[1] = accept(listener, NULL, NULL);
    close(listener);
}

static void *touched(size_t size, int byte)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        err(1, "mmap");
    memset(p, byte, size);
    return p;
}

static void transfer(int fd, char *p, size_t size, ssize_t (*call)(int, void *, size_t))
{
    for (size_t at = 0; at < size;) {
        ssize_t n = call(fd, p + at, MIN(size - at, (size_t)MiB));

        if (n <= 0)
            err(1, "stream");
        at += (size_t)n;
    }
}

static ssize_t do_write(int fd, void *p, size_t n)
{
    return write(fd, p, n);
}

int main(int argc, char **argv)
{
    size_t size = argc > 2 ? strtoull(argv[2], NULL, 0) : GiB;
    char *from = touched(size, 1), *to = touched(size, 2), byte = 0;
    uint64_t start;
    int fds[2];

    if (argc > 1 && strcmp(argv[1], "tcp") == 0)
        tcp_pair(fds);
    else if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
        err(1, "socketpair");
    start = clock_ns();
    if (fork() == 0) {
        transfer(fds[1], to, size, read);
        _exit(write(fds[1], &byte, 1) == 1 ? 0 : 1);
    }
    transfer(fds[0], from, size, do_write);
    if (read(fds[0], &byte, 1) != 1)
        err(1, "end");
    printf("%.1f\n", (double)(clock_ns() - start) / (double)NSEC_PER_MSEC);
    wait(NULL);
    return 0;
}
