/* Sums over the mirror: what address spaces take, how often frames are mapped. The mirror's lock. */
#ifndef UMBRA_MMU_CENSUS_H
#define UMBRA_MMU_CENSUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/mirror.h"

struct mmu_space_size {
    struct mmu_root root;
    uint64_t pages;  /* of 4 KiB, mapped for user code; with 4 and 5 levels by the user half only */
    uint32_t tables; /* on the way to them, the root among them */
};

/*
 * Every address space, at most `max`; the number given. *ret_whole is false when the rest of the numbers were left at 0: a guest whose
 * tables are shared by all its roots has more paths than anybody can count, so the work is bounded.
 */
size_t mirror_spaces(const struct mirror *m, struct mmu_space_size *ret, size_t max, bool *ret_whole);

#define CENSUS_CHAINS 24u

struct mirror_census {
    uint64_t large_2m, large_4m, large_1g; /* entries */
    uint64_t chains[CENSUS_CHAINS];        /* frames with 2^i to 2^(i+1)-1 mappings by 4 KiB pages; the last has all beyond */
    uint32_t stride;                       /* chains: one frame in so many was looked at */
    uint32_t kernel, user, kpti;           /* address spaces */
    uint8_t levels;                        /* of the root seen last, 0: none */
};
void mirror_take_census(const struct mirror *m, struct mirror_census *ret);

#endif
