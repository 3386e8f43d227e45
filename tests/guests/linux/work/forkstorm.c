#include "work.h"

#include <stdio.h>
#include <unistd.h>

/* Fork children one after the other; each writes to the pages it shares with its parent and ends. Every fork write-protects
 * the parent's page tables and builds new ones, every write breaks a copy-on-write page: the work that floods a shadow MMU. */
static int run(const uint64_t *args, int count)
{
    uint64_t processes = args[0];
    uint64_t pages = work_arg(args, count, 1, 16);
    unsigned char *memory = pages ? work_map("forkstorm", pages * PAGE_BYTES) : NULL;
    uint64_t failed = 0;
    double start = work_now();

    for (uint64_t i = 0; i < processes; i++) {
        pid_t pid = fork();

        if (pid < 0)
            work_fail("forkstorm", "fork");
        for (uint64_t page = 0; page < pages; page++)
            memory[page * PAGE_BYTES]++;
        if (pid == 0)
            _exit(0);
        failed += work_reap("forkstorm", 1);
    }
    printf("umbra-work: forkstorm processes=%llu pages=%llu failed=%llu seconds=%.6f\n", (unsigned long long)processes,
           (unsigned long long)pages, (unsigned long long)failed, work_now() - start);
    return failed != 0;
}

const struct program work_forkstorm = { "forkstorm", "PROCESSES [PAGES-WRITTEN-BY-EACH]", 1, 2, run };
