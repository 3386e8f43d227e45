/*
 * Stopwatch for snapshots.
 *
 *   snapshot-time write FILE RAM-PAGES N SEED   the least that a diff of N pages costs: write N random pages at their
 *                                               places into a new file, and have it on disk
 *   snapshot-time ready N COMMAND...            start N processes ("%d" in an argument is the number of each) and wait
 *                                               until each has told READY=1 to the service manager
 * Prints microseconds.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "rand.h"

#define PAGE 4096u
#define PROCESSES_MAX 64
#define ARGUMENTS_MAX 64
#define READY_SECONDS 20

static void die(const char *what)
{
    fprintf(stderr, "snapshot-time: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int cmd_write(char **argv)
{
    uint64_t pages = strtoull(argv[1], NULL, 0), n = strtoull(argv[2], NULL, 0), start;
    struct rng rng = rng_seeded(strtoull(argv[3], NULL, 0));
    uint8_t *map = calloc(1, pages), *data = malloc(n * PAGE);
    int fd;

    if (!map || !data || n > pages)
        die("arguments");
    for (uint64_t i = 0; i < n; i++) {
        uint64_t page;

        do
            page = rng_below(&rng, pages);
        while (map[page]);
        map[page] = 1;
        memset(data + i * PAGE, (int)(i | 1), PAGE);
    }
    start = clock_ns();
    fd = open(argv[0], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)(pages * PAGE)) < 0)
        die(argv[0]);
    for (uint64_t page = 0, i = 0; page < pages; page++)
        if (map[page] && pwrite(fd, data + i++ * PAGE, PAGE, (off_t)(page * PAGE)) != PAGE)
            die(argv[0]);
    if (fsync(fd) < 0)
        die(argv[0]);
    printf("%llu\n", (unsigned long long)((clock_ns() - start) / NSEC_PER_USEC));
    return 0;
}

static pid_t start_one(char **argv, int number)
{
    char text[ARGUMENTS_MAX][512], *args[ARGUMENTS_MAX + 1];
    pid_t pid = fork();
    int n = 0;

    if (pid != 0)
        return pid;
    for (; argv[n] && n < ARGUMENTS_MAX; n++) {
        const char *mark = strstr(argv[n], "%d");

        args[n] = argv[n];
        if (mark) {
            snprintf(text[n], sizeof(text[n]), "%.*s%d%s", (int)(mark - argv[n]), argv[n], number, mark + 2);
            args[n] = text[n];
        }
    }
    args[n] = NULL;
    execvp(args[0], args);
    _exit(127);
}

static int listen_for_ready(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = READY_SECONDS};
    char name[64];
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    snprintf(name, sizeof(name), "@snapshot-time-%d", (int)getpid());
    strcpy(sa.sun_path, name);
    sa.sun_path[0] = '\0';
    if (fd < 0 || bind(fd, (struct sockaddr *)&sa, (socklen_t)(sizeof(sa.sun_family) + strlen(name))) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0)
        die("socket");
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

static int cmd_ready(char **argv)
{
    int n = atoi(argv[0]), fd = listen_for_ready(), ready = 0;
    pid_t pids[PROCESSES_MAX];
    uint64_t start, end;

    if (n < 1 || n > PROCESSES_MAX)
        return 2;
    start = clock_ns();
    for (int i = 0; i < n; i++)
        pids[i] = start_one(argv + 1, i);
    while (ready < n) {
        char message[256] = "";

        if (recv(fd, message, sizeof(message) - 1, 0) < 0)
            break;
        ready += strstr(message, "READY=1") != NULL;
    }
    end = clock_ns();
    for (int i = 0; i < n; i++) {
        kill(pids[i], SIGTERM);
        waitpid(pids[i], NULL, 0);
    }
    if (ready < n) {
        fprintf(stderr, "snapshot-time: %d of %d were ready in time\n", ready, n);
        return 1;
    }
    printf("%llu\n", (unsigned long long)((end - start) / NSEC_PER_USEC));
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "write") == 0)
        return cmd_write(argv + 2);
    if (argc > 3 && strcmp(argv[1], "ready") == 0)
        return cmd_ready(argv + 2);
    fputs("usage: snapshot-time write FILE RAM-PAGES N SEED | ready N COMMAND...\n", stderr);
    return 2;
}
