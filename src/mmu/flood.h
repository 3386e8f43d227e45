/*
 * Floods: page tables that are written all the time. After "KVM: MMU: Page table write flood protection" (2007) and "KVM:
 * x86: optimize for guest page written" (2011): three in a row, and the table is let go of, so that writes go on natively.
 */
#ifndef UMBRA_MMU_FLOOD_H
#define UMBRA_MMU_FLOOD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/types.h"

enum mmu_flood_reason {
    MMU_FLOOD_WRITES, /* three protected writes in a row hit the same table */
    MMU_FLOOD_TICKS,  /* three syncs in a row found it changed */
};

enum mmu_flood_action {
    MMU_FLOOD_POLL, /* a live table: looked at now and then until it is quiet */
    MMU_FLOOD_DROP, /* no page table any more: its entries were dropped */
};

struct mmu_flood {
    gfn_t gfn;
    unsigned int level;
    enum mmu_flood_reason reason;
    enum mmu_flood_action action;
    uint32_t count;    /* writes or ticks in a row */
    uint32_t present;  /* entries at that time, and those among them that were accessed */
    uint32_t accessed;
    uint64_t tick;     /* sync at which it was found */
};

struct mirror;

#define MIRROR_FLOODS_MAX 64u /* that are remembered */

/* Newest first, at most `limit`; the number given. */
size_t mirror_floods(const struct mirror *m, struct mmu_flood *ret, size_t limit);
/* The number of the sync at hand, as in mmu_flood.tick. */
uint64_t mirror_tick(const struct mirror *m);
/* Switch the protection on or off; off takes up every table at the next sync. */
void mirror_set_floods(struct mirror *m, bool on);

#endif
