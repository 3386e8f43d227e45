/*
 * Finding roots without asking vCPUs: a page whose upper half is the kernel's is a root. (In the prototype this found 300
 * of 300; sampling CR3 found 5.) For 4- and 5-level paging. The mirror's lock.
 */
#ifndef UMBRA_MMU_SCAN_H
#define UMBRA_MMU_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/mirror.h"
#include "mmu/types.h"

#define ROOT_SIGNATURE_ENTRIES 256u

/* What the kernel's half looks like, learned from a root that is known to be one. Zeroed: nothing learned. */
struct root_signature {
    bool known;
    gpa_t cr3; /* learned from */
    struct mmu_paging paging;
    uint64_t half[ROOT_SIGNATURE_ENTRIES]; /* entries 256 to 511 without accessed and dirty bits */
    uint64_t learned; /* how often */
};

/*
 * Learn from a root (some vCPU's CR3 while it ran the kernel). -EINVAL: not 4 or 5 levels, -EFAULT: not in RAM, -ENOENT:
 * entry 511 is not present, so it is no kernel half (also: the half of a KPTI user root).
 */
int root_signature_learn(struct root_signature *sig, const struct mem *mem, gpa_t cr3, const struct mmu_paging *paging);

/* Whether entry 511 of a table is the signature's: whatever else it is, it is no root of this kernel otherwise. */
bool root_signature_fits(const struct root_signature *sig, const struct mem *mem, gpa_t cr3);
/* Whether it is the user half of a KPTI pair: the odd one of two frames, which has not the kernel's half. */
bool root_is_kpti_half(const struct mem *mem, gpa_t cr3);
/* Whether any entry of a 4- or 5-level root's user half is present. */
bool root_has_user_half(const struct mem *mem, gpa_t cr3);

#define ROOT_SCAN_CHUNK 256u

struct root_scan_cursor {
    pfn_t next; /* page to look at next */
    pfn_t data_end; /* pages from `next` to here are known to be no hole */
    uint64_t looked; /* pages looked at, added up */
    pfn_t chunk; /* the pages from here on that `resident` tells of, ROOT_SCAN_CHUNK or to the end of memory; `known` */
    bool known;
    uint8_t resident[ROOT_SCAN_CHUNK];
};

struct root_scan {
    uint64_t candidates; /* pages looked at */
    uint64_t found;      /* roots that were not known */
    uint64_t seen;       /* roots that were */
    uint64_t kpti;       /* of the found: user halves */
    uint64_t refused;    /* found, and no memory for them */
};

/*
 * Look at candidate pages and add those that are roots. When entry 511 of one fits and the rest does not, the half is learned
 * again from where it was learned, once a scan. Beside a root whose user half may not execute, its KPTI partner is looked for.
 * 0 or -ENOENT (nothing learned). *ret is added to.
 */
int root_scan(struct mirror *m, const struct mem *mem, struct root_signature *sig, const gfn_t *candidates, size_t count,
              uint64_t now_ns, struct root_scan *ret);

/*
 * Candidates for root_scan: the pages from *at on, in the order of the RAM file and before `end`, whose entry 511 is the
 * signature's. Holes of the RAM file are passed over, so that looking gives the guest no memory, and what a lazily restored guest
 * has not touched yet, so that looking does not read it from the disk: a root gets there when a vCPU loads it. At most `max`; *at
 * is where to go on, `end` at the end. Looks at no more than `pages` pages. Reads guest memory and the signature only: no lock.
 */
size_t root_scan_candidates(const struct mem *mem, const struct root_signature *sig, struct root_scan_cursor *at, pfn_t end,
                            uint64_t pages, gfn_t *ret, size_t max);
/* The same for the pages of a set. */
size_t root_scan_candidates_in(const struct mem *mem, const struct root_signature *sig, const struct page_set *set,
                               struct root_scan_cursor *at, uint64_t pages, gfn_t *ret, size_t max);

/*
 * Drop the roots of 4 and 5 levels whose entry 511 is not the signature's any more: their frames hold something else. Those
 * seen at `now_ns` stay. The number of them.
 */
uint32_t root_scan_drop_strangers(struct mirror *m, const struct mem *mem, const struct root_signature *sig, uint64_t now_ns);

#endif
