/* Guest memory whose page tables a test writes. It checks nothing: what it is told to write may be nonsense. */
#ifndef UMBRA_TESTS_FAKE_GUEST_H
#define UMBRA_TESTS_FAKE_GUEST_H

#include <stdint.h>

#include "mmu/mem.h"
#include "mmu/walk.h"

#define FG_P UINT64_C(1)
#define FG_W UINT64_C(2)
#define FG_U UINT64_C(4)
#define FG_A UINT64_C(0x20)
#define FG_D UINT64_C(0x40)
#define FG_PS UINT64_C(0x80)
#define FG_NX (UINT64_C(1) << 63)
#define FG_USER (FG_P | FG_W | FG_U | FG_A | FG_D)

struct fake_guest {
    struct mem *mem;
    struct mmu_paging paging;
    gfn_t next_table; /* frames are given out from here on */
};

void fake_guest_init(struct fake_guest *g, uint64_t size, struct mmu_paging paging);
void fake_guest_clear(struct fake_guest *g);

/* A zeroed frame. */
gfn_t fake_guest_frame(struct fake_guest *g);
/* Entry of a table, 4 or 8 bytes as the paging mode has it. */
uint64_t fake_guest_get(struct fake_guest *g, gfn_t table, unsigned int entry);
void fake_guest_set(struct fake_guest *g, gfn_t table, unsigned int entry, uint64_t value);
/* Where the entry for gva is in the table of `level` below a root; tables are made on the way. *ret_table is its frame. */
unsigned int fake_guest_entry(struct fake_guest *g, gpa_t cr3, gva_t gva, unsigned int level, gfn_t *ret_table);
/* Map a page: level 1 for 4 KiB; flags go into the entry (FG_PS is added above level 1). 0 unmaps. */
void fake_guest_map(struct fake_guest *g, gpa_t cr3, gva_t gva, gfn_t gfn, unsigned int level, uint64_t flags);

#endif
