/* Questions about one frame, answered from the mirror. The mirror's lock. */
#ifndef UMBRA_MMU_QUERY_H
#define UMBRA_MMU_QUERY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/mirror.h"
#include "mmu/types.h"

/* One way by which an address space reaches a frame. */
struct mmu_mapping {
    gpa_t cr3; /* root */
    enum mmu_root_kind kind;
    uint64_t generation;
    gva_t gva;          /* of the frame that was asked for, also within a large page */
    unsigned int level; /* of the leaf: 1 (4 KiB), 2 (2 or 4 MiB), 3 (1 GiB) */
    unsigned int shift; /* size of the leaf's page: 12, 21, 22 or 30 */
    bool write, user, nx; /* combined along the path */
    bool accessed, dirty; /* of the leaf */
    bool write_off;       /* mirror_write_protect took write access off, and the guest has not changed the entry since */
};

/*
 * Every mapping of a frame, at most `limit`; the number given. *ret_more tells that there are more: a guest whose tables
 * point at each other has more paths than anybody can list. Work is in proportion to what is given.
 */
size_t mirror_query(const struct mirror *m, gfn_t gfn, struct mmu_mapping *ret, size_t limit, bool *ret_more);

#endif
