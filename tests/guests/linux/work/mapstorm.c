#include "work.h"

#include <stdio.h>
#include <sys/mman.h>

/* Map, touch and unmap memory over and over: page-table pages come and go. */
static int run(const uint64_t *args, int count)
{
    uint64_t rounds = args[0];
    uint64_t pages = work_arg(args, count, 1, 512);
    uint64_t dirty_pages = 0;
    double start = work_now();

    if (pages == 0)
        pages = 1;
    for (uint64_t round = 0; round < rounds; round++) {
        unsigned char *memory = work_map("mapstorm", pages * PAGE_BYTES);

        for (uint64_t page = 0; page < pages; page++) {
            /* Fresh memory that is not zero would be somebody else's. */
            dirty_pages += memory[page * PAGE_BYTES] != 0;
            memory[page * PAGE_BYTES] = 1;
        }
        if (munmap(memory, pages * PAGE_BYTES) < 0)
            work_fail("mapstorm", "munmap");
    }
    printf("umbra-work: mapstorm rounds=%llu pages=%llu failed=%llu seconds=%.6f\n", (unsigned long long)rounds,
           (unsigned long long)pages, (unsigned long long)dirty_pages, work_now() - start);
    return dirty_pages != 0;
}

const struct program work_mapstorm = { "mapstorm", "ROUNDS [PAGES]", 1, 2, run };
