/* Who dirties: from dirty pages to address spaces and addresses. The mirror's lock. */
#ifndef UMBRA_MMU_ATTRIBUTE_H
#define UMBRA_MMU_ATTRIBUTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/mirror.h"
#include "mmu/pageset.h"

struct mmu_space {
    bool kernel;         /* the kernel's mappings, whichever root they are seen through; the fields of the root are 0 */
    gpa_t cr3;
    enum mmu_root_kind kind;
    uint64_t generation;
    uint64_t pages;      /* dirty pages attributed to it */
    size_t first_range;  /* its ranges in attribution.ranges */
    size_t ranges;
};

struct mmu_range {
    gva_t start;
    uint64_t pages; /* contiguous, all dirty */
};

struct mmu_attribution {
    uint64_t dirty;    /* pages in the set */
    uint64_t user;     /* attributed to an address space of user mappings */
    uint64_t kernel;   /* mapped by the kernel only */
    uint64_t unmapped; /* by nobody */
    uint64_t shared;   /* of user: pages that other address spaces may write as well */
    bool incomplete;   /* the mirror does not have all tables, or let go of some: see mirror_stats */
    size_t space_count, range_count;
    struct mmu_space *spaces; /* most pages first */
    struct mmu_range *ranges; /* of one space by address */
};

/*
 * Attribute each page of the set once: to a user mapping that can write before one that cannot, one with the dirty bit before
 * one without; else to the kernel. 0 or -ENOMEM. Free it with mmu_attribution_free.
 */
int mirror_attribute(const struct mirror *m, const struct page_set *dirty, struct mmu_attribution *ret);
void mmu_attribution_free(struct mmu_attribution *a);

#endif
