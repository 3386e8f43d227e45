/*
 * Taking write access off for a set of dirty pages, in the mirror, as KVM does in its shadow tables when a dirty log starts
 * anew. After "write_protect_slot" (2011): few dirty pages are reached by the reverse map, many by walking all shadow pages.
 * The mirror's lock.
 */
#ifndef UMBRA_MMU_PROTECT_H
#define UMBRA_MMU_PROTECT_H

#include <stdint.h>

#include "mmu/mirror.h"
#include "mmu/pageset.h"

enum mmu_protect_how {
    MMU_PROTECT_CHOOSE, /* by count */
    MMU_PROTECT_RMAP,
    MMU_PROTECT_WALK,
};

struct mmu_protect {
    enum mmu_protect_how how; /* what was done */
    uint64_t entries;         /* leaf entries that grant write access to a page of the set; each is marked now */
    uint64_t marked;          /* of them, those that were not marked before */
};

/*
 * Mark every leaf entry, of 4 KiB and of large pages, that grants write access to a page of the set (a set of RAM pages). The
 * mark goes when the guest changes the entry by more than A/D bits; mirror_query tells it (write_off).
 */
void mirror_write_protect(struct mirror *m, const struct page_set *dirty, enum mmu_protect_how how, struct mmu_protect *ret);

#endif
