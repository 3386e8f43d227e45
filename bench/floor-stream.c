/*
 * The floor of a migration. Prints milliseconds.
 *
 *   floor-stream unix|tcp BYTES       memory of one process over a bare stream into another's, in writes of 1 MiB
 *   floor-stream scan BYTES THREADS   look at all of memory that is zeros
 *
 * Memory is shared and of small pages, as a guest's is, and in the page tables of whoever uses it before the clock starts.
 */
#include "config.h"

#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/platform/x86.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"

#define SOCKET_BUFFER (4 << 20)
#define THREADS_MAX 16

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

/* -- stream -- */

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

static void take_all(int fd, size_t size)
{
    char *to = touched(size, 2), byte = 0;

    transfer(fd, &byte, 1, do_write);
    transfer(fd, to, size, read);
    transfer(fd, &byte, 1, do_write);
}

static uint64_t stream_ns(bool tcp, size_t size)
{
    int fds[2], buffer = SOCKET_BUFFER;
    uint64_t start;
    char *from, byte;

    if (tcp)
        tcp_pair(fds);
    else if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
        err(1, "socketpair");
    /* As it comes the two ends of a Unix socket take turns all the time; TCP finds out what it needs. */
    if (!tcp && setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof(buffer)) < 0)
        setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    /* Page tables of shared memory do not come along with a fork: each side touches its own. */
    if (fork() == 0) {
        take_all(fds[1], size);
        _exit(0);
    }
    from = touched(size, 1);
    transfer(fds[0], &byte, 1, read);
    start = clock_ns();
    transfer(fds[0], from, size, do_write);
    transfer(fds[0], &byte, 1, read);
    start = clock_ns() - start;
    wait(NULL);
    return start;
}

/* -- scan -- */

typedef uint64_t vec __attribute__((vector_size(32)));
#define STEP 8

struct part {
    pthread_t thread;
    const vec *at, *end;
    bool zeros;
};

static inline __attribute__((always_inline)) bool all_zeros(const vec *p, const vec *end)
{
    vec any[STEP] = {0};
    uint64_t sum = 0;

    for (; p < end; p += STEP)
        for (unsigned int i = 0; i < STEP; i++)
            any[i] |= p[i];
    for (unsigned int i = 0; i < STEP; i++)
        sum |= any[i][0] | any[i][1] | any[i][2] | any[i][3];
    return sum == 0;
}

__attribute__((target("avx2"))) static bool all_zeros_avx2(const vec *p, const vec *end)
{
    return all_zeros(p, end);
}

static void *scan_part(void *arg)
{
    struct part *part = arg;

    part->zeros = CPU_FEATURE_ACTIVE(AVX2) ? all_zeros_avx2(part->at, part->end) : all_zeros(part->at, part->end);
    return NULL;
}

static uint64_t scan_ns(size_t size, unsigned int threads)
{
    size_t vecs = size / sizeof(vec) / threads / STEP * STEP;
    const vec *memory = touched(size, 0);
    struct part parts[THREADS_MAX];
    uint64_t start = clock_ns();

    for (unsigned int i = 0; i < threads; i++) {
        parts[i] = (struct part){.at = memory + i * vecs, .end = memory + (i + 1) * vecs};
        if (pthread_create(&parts[i].thread, NULL, scan_part, &parts[i]) != 0)
            err(1, "thread");
    }
    for (unsigned int i = 0; i < threads; i++) {
        pthread_join(parts[i].thread, NULL);
        if (!parts[i].zeros)
            errx(1, "memory is not zeros");
    }
    return clock_ns() - start;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    size_t size = argc > 2 ? strtoull(argv[2], NULL, 0) : 0;
    unsigned int threads = argc > 3 ? (unsigned int)atoi(argv[3]) : 1;
    bool scan = strcmp(what, "scan") == 0, tcp = strcmp(what, "tcp") == 0;

    if (size == 0 || threads < 1 || threads > THREADS_MAX || (!scan && !tcp && strcmp(what, "unix") != 0)) {
        fputs("usage: floor-stream unix|tcp BYTES | scan BYTES THREADS\n", stderr);
        return 2;
    }
    printf("%.1f\n", (double)(scan ? scan_ns(size, threads) : stream_ns(tcp, size)) / (double)NSEC_PER_MSEC);
    return 0;
}
