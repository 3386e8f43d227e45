#include "work.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* Keep many processes alive, each with private memory, and let them touch it in rounds: every round goes through all address
 * spaces, so a shadow MMU with too few pages throws away what the next round needs. */

struct worker {
    int go; /* parent writes a byte: do a round; closed: end */
    int done; /* child writes a byte after each round */
};

static void child(int go, int done, uint64_t pages)
{
    unsigned char *memory = work_map("procs", pages * PAGE_BYTES);
    char byte;

    while (read(go, &byte, 1) == 1) {
        for (uint64_t page = 0; page < pages; page++)
            memory[page * PAGE_BYTES]++;
        if (write(done, &byte, 1) != 1)
            _exit(1);
    }
    _exit(0);
}

static void start_worker(struct worker *workers, uint64_t index, uint64_t pages)
{
    int go[2], done[2];
    pid_t pid;

    if (pipe(go) < 0 || pipe(done) < 0)
        work_fail("procs", "pipe");
    pid = fork();
    if (pid < 0)
        work_fail("procs", "fork");
    if (pid == 0) {
        /* A go pipe that a sibling held open would never read as closed. */
        for (uint64_t i = 0; i < index; i++)
            close(workers[i].go);
        close(go[1]);
        child(go[0], done[1], pages);
    }
    close(go[0]);
    close(done[1]);
    workers[index] = (struct worker){ .go = go[1], .done = done[0] };
}

static void one_round(const struct worker *workers, uint64_t live)
{
    char byte = 0;

    for (uint64_t i = 0; i < live; i++) {
        if (write(workers[i].go, &byte, 1) != 1 || read(workers[i].done, &byte, 1) != 1)
            work_fail("procs", "round");
    }
}

static int run(const uint64_t *args, int count)
{
    uint64_t live = args[0], rounds = args[1];
    uint64_t pages = work_arg(args, count, 2, 16);
    struct worker *workers;
    uint64_t failed;
    double start, started;
    struct rlimit files;

    /* Two pipe ends a worker. */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    workers = calloc(live ? live : 1, sizeof(*workers));
    if (!workers)
        work_fail("procs", "memory");
    start = work_now();
    for (uint64_t i = 0; i < live; i++)
        start_worker(workers, i, pages);
    /* The first round brings the memory in; only the others are what the figure is about. */
    one_round(workers, live);
    started = work_now();
    for (uint64_t i = 0; i < rounds; i++)
        one_round(workers, live);
    printf("umbra-work: procs live=%llu rounds=%llu pages=%llu start-seconds=%.6f seconds=%.6f", (unsigned long long)live,
           (unsigned long long)rounds, (unsigned long long)pages, started - start, work_now() - started);
    for (uint64_t i = 0; i < live; i++)
        close(workers[i].go);
    failed = work_reap("procs", live);
    printf(" failed=%llu\n", (unsigned long long)failed);
    free(workers);
    return failed != 0;
}

const struct program work_procs = { "procs", "LIVE ROUNDS [PAGES-EACH]", 2, 3, run };
