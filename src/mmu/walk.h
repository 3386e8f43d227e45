/*
 * Guest page tables as they lie in memory: formats, decoding of entries, translation of an address. Intel SDM volume 3,
 * chapter "Paging", and AMD APM volume 2, chapter "Page Translation and Protection". Pure functions: any thread.
 */
#ifndef UMBRA_MMU_WALK_H
#define UMBRA_MMU_WALK_H

#include <stdbool.h>
#include <stdint.h>

#include "mmu/mem.h"
#include "mmu/types.h"

/* How the guest pages: from CR0, CR4 and EFER. */
struct mmu_paging {
    uint8_t levels; /* 2 (32-bit), 3 (PAE), 4 or 5 */
    bool pse;       /* 32-bit paging: CR4.PSE; the others always have large pages */
    bool nx;        /* EFER.NXE */
};

/*
 * What one shadow page mirrors, besides its frame: one guest frame can be a table of several levels at once (self maps),
 * or be used in several paging modes. Access rights are not in it: they are combined along a path when somebody asks.
 */
union shadow_role {
    struct {
        uint32_t level : 3;   /* 1 to 5 */
        uint32_t glevels : 3; /* of the whole paging structure: 2 to 5 */
        uint32_t quad : 7;    /* PAE root: which 32 bytes of the frame */
        uint32_t pse : 1;
        uint32_t nx : 1;
    };
    uint32_t word;
};
_Static_assert(sizeof(union shadow_role) == 4, "roles are compared and stored as one word");

enum gpte_kind {
    GPTE_NONE,    /* not present */
    GPTE_TABLE,   /* points at a table one level down, in RAM */
    GPTE_LEAF,    /* maps 4 KiB of RAM */
    GPTE_LARGE,   /* maps a large page that begins in RAM */
    GPTE_FOREIGN, /* present, but useless here: reserved bits set, or beyond RAM */
};

/*
 * A decoded entry in 32 bits: frame number and the five bits that matter. What is left out (PWT, PCD, PAT, global, software
 * bits, protection key) changes neither what is mapped nor whether it can be written.
 */
typedef uint32_t gpte_t;
#define GPTE_GFN_BITS 27
#define GPTE_GFN_MASK ((UINT32_C(1) << GPTE_GFN_BITS) - 1)
#define GPTE_W (UINT32_C(1) << 27)
#define GPTE_U (UINT32_C(1) << 28)
#define GPTE_NX (UINT32_C(1) << 29)
#define GPTE_A (UINT32_C(1) << 30)
#define GPTE_D (UINT32_C(1) << 31) /* leaf entries only */
_Static_assert(((MEM_SIZE_MAX + MEM_HOLE_END - MEM_HOLE_START) >> GUEST_PAGE_SHIFT) <= UINT64_C(1) << GPTE_GFN_BITS,
               "a frame of RAM fits into an entry");

/* What the virtual CPU offers; reserved bits follow from it. */
struct gpt_cpu {
    uint8_t maxphyaddr; /* 32 to 52 */
    bool gbpages;       /* 1 GiB pages */
};

/* How to decode the entries of one shadow page: derived from its role, once for each table read. */
struct gpt_format {
    uint64_t rsvd;       /* bits that must be clear */
    uint64_t rsvd_large; /* the same for an entry that maps a large page */
    uint64_t address;    /* where the frame is */
    uint64_t ps;         /* PS where it means a large page, or 0 */
    uint64_t dirty;      /* D where the entry is a leaf whatever PS says, or 0 */
    uint64_t force;      /* rights that the format does not have, as granted */
    uint32_t entries;    /* 4, 512 or 1024 */
    uint32_t entry_size; /* 4 or 8 */
    bool leaf;           /* level 1 */
    bool pse36;
    uint64_t low_end, high_end; /* RAM in frames: [0, low_end) and [4 GiB, high_end) */
};

bool mmu_paging_valid(const struct mmu_paging *paging);
union shadow_role mmu_root_role(const struct mmu_paging *paging, gpa_t cr3);
/* The role of what an entry of a table points at; level must be above 1. */
union shadow_role mmu_child_role(union shadow_role role);
/* Where in guest memory the table begins, and where its entry is. */
gpa_t mmu_table_gpa(gfn_t gfn, union shadow_role role);

/* Guest memory as a walk needs it: where RAM is, and a way to copy out of it. */
struct mmu_view {
    uint64_t low_end, high_end; /* RAM in frames: [0, low_end) and [4 GiB, high_end); high_end 0: nothing there */
    int (*read)(const void *opaque, gpa_t gpa, void *buf, size_t len); /* 0, or -errno where it is not all RAM */
    const void *opaque;
};

/* How whoever owns guest memory sees it. */
struct mmu_view mem_view(const struct mem *mem);

void gpt_format_init(struct gpt_format *f, const struct mem *mem, const struct gpt_cpu *cpu, union shadow_role role);
void gpt_format_init_view(struct gpt_format *f, const struct mmu_view *view, const struct gpt_cpu *cpu, union shadow_role role);

/* The bits of an entry in memory. */
#define GPTE_RAW_P (UINT64_C(1) << 0)
#define GPTE_RAW_W (UINT64_C(1) << 1)
#define GPTE_RAW_U (UINT64_C(1) << 2)
#define GPTE_RAW_A (UINT64_C(1) << 5)
#define GPTE_RAW_D (UINT64_C(1) << 6)
#define GPTE_RAW_PS (UINT64_C(1) << 7)
#define GPTE_RAW_NX (UINT64_C(1) << 63)

/* PSE-36: bits 13 to 20 are address bits 32 to 39. */
static inline uint64_t gpte_pse36_gfn(uint64_t raw)
{
    return (raw & UINT64_C(0xffc00000)) >> GUEST_PAGE_SHIFT | (raw & UINT64_C(0x1fe000)) << 7;
}

/* Decode one entry; *ret is 0 for GPTE_NONE. Inline: a look at a guest's tables is mostly this. */
static inline enum gpte_kind gpte_decode(const struct gpt_format *f, uint64_t raw, gpte_t *ret)
{
    bool large = (raw & f->ps) != 0;
    uint64_t gfn = (raw & f->address) >> GUEST_PAGE_SHIFT, rights = raw | f->force, dirty = f->dirty, rsvd = f->rsvd;

    *ret = 0;
    if (!(raw & GPTE_RAW_P))
        return GPTE_NONE;
    if (large) {
        gfn = f->pse36 ? gpte_pse36_gfn(raw) : gfn & ~UINT64_C(1); /* bit 12 is PAT */
        dirty = GPTE_RAW_D;
        rsvd = f->rsvd_large;
    }
    /* The rights stand next to each other in both forms, A and D too. */
    *ret = (gpte_t)(gfn & GPTE_GFN_MASK) | (gpte_t)(rights & (GPTE_RAW_W | GPTE_RAW_U)) << 26 |
           (gpte_t)(raw >> 63) << 29 | (gpte_t)(raw & (GPTE_RAW_A | dirty)) << 25;
    if (raw & rsvd)
        return GPTE_FOREIGN;
    if (gfn >= f->low_end && (gfn < gpa_to_gfn(MEM_HOLE_END) || gfn >= f->high_end))
        return GPTE_FOREIGN;
    return large ? GPTE_LARGE : f->leaf ? GPTE_LEAF : GPTE_TABLE;
}
_Static_assert(GPTE_W == GPTE_RAW_W << 26 && GPTE_U == GPTE_RAW_U << 26 && GPTE_NX == UINT32_C(1) << 29 &&
               GPTE_A == GPTE_RAW_A << 25 && GPTE_D == GPTE_RAW_D << 25, "gpte_decode moves bits by shifts");

/* Bits of an address below what an entry of that level covers: 12 for 4 KiB, 21, 22 (32-bit), 30, 39, 48. */
static inline unsigned int mmu_level_shift(union shadow_role role)
{
    return GUEST_PAGE_SHIFT + (role.level - 1u) * (role.glevels == 2 ? 10 : 9);
}

/* Sign extension as the paging mode has it. */
gva_t mmu_canonical(unsigned int glevels, gva_t gva);

/* Where an address leads. */
struct mmu_translation {
    gpa_t gpa;
    unsigned int level; /* of the leaf: 1, 2 or 3 */
    bool write, user, nx; /* combined along the walk */
    bool accessed, dirty; /* of the leaf */
};

/*
 * Walk guest memory. 0, -ENOENT (not present, or an entry is of no use), -EINVAL (address or paging mode that cannot be).
 * Bounded: one read a level.
 */
int mmu_walk(const struct mem *mem, const struct gpt_cpu *cpu, const struct mmu_paging *paging, gpa_t cr3, gva_t gva,
             struct mmu_translation *ret);
int mmu_walk_view(const struct mmu_view *view, const struct gpt_cpu *cpu, const struct mmu_paging *paging, gpa_t cr3,
                  gva_t gva, struct mmu_translation *ret);

/* A page that a range walk came to. */
struct mmu_leaf {
    gva_t gva;
    gpa_t gpa;
    uint64_t size;        /* all of the page, also where it goes beyond the range */
    bool write, user, nx; /* combined along the walk */
};

/*
 * Call fn for each page that maps any of [first, last], by address; fn returns false to end the walk. 0 (also when fn ended
 * it), -EINVAL (addresses or paging mode that cannot be), or -E2BIG after max_tables tables. A table is copied whole before
 * it is looked at; a frame that cannot be read is an empty table.
 */
int mmu_walk_range(const struct mmu_view *view, const struct gpt_cpu *cpu, const struct mmu_paging *paging, gpa_t cr3,
                   gva_t first, gva_t last, unsigned int max_tables, bool (*fn)(void *ctx, const struct mmu_leaf *leaf),
                   void *ctx);

#endif
