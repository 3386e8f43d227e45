#include "work.h"

#include <stdio.h>
#include <time.h>

/* Write one word into each of PAGES pages, ROUNDS times (0: for ever, with a line after each round), INTERVAL milliseconds
 * apart. All pages are there before the line that says ready: from then on a round dirties exactly PAGES pages of its own. */
static int run(const uint64_t *args, int count)
{
    uint64_t pages = args[0];
    uint64_t rounds = work_arg(args, count, 1, 1);
    uint64_t interval_ms = work_arg(args, count, 2, 0);
    struct timespec interval = { (time_t)(interval_ms / 1000), (long)(interval_ms % 1000) * 1000000 };
    unsigned char *memory = work_map("dirty", (pages ? pages : 1) * PAGE_BYTES);
    uint64_t round = 0, sum = 0;
    double start;

    for (uint64_t page = 0; page < pages; page++)
        *(volatile uint64_t *)(memory + page * PAGE_BYTES) = 0;
    printf("umbra-work: dirty ready pages=%llu\n", (unsigned long long)pages);

    start = work_now();
    while (rounds == 0 || round < rounds) {
        if (interval_ms && round > 0)
            nanosleep(&interval, NULL);
        round++;
        for (uint64_t page = 0; page < pages; page++)
            *(volatile uint64_t *)(memory + page * PAGE_BYTES) = round;
        if (rounds == 0)
            printf("umbra-work: dirty round=%llu pages=%llu\n", (unsigned long long)round, (unsigned long long)pages);
    }
    for (uint64_t page = 0; page < pages; page++)
        sum += *(volatile uint64_t *)(memory + page * PAGE_BYTES);
    printf("umbra-work: dirty pages=%llu rounds=%llu writes=%llu failed=%d seconds=%.6f\n", (unsigned long long)pages,
           (unsigned long long)round, (unsigned long long)(pages * round), sum != pages * round, work_now() - start);
    return sum != pages * round;
}

const struct program work_dirty = { "dirty", "PAGES [ROUNDS [INTERVAL-MS]]", 1, 3, run };
