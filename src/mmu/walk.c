/* Guest page-table formats. A table is copied before it is decoded: the guest may write it at any time. */
#include "config.h"

#include "mmu/walk.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"

/* Bits first to last. */
static uint64_t bits(unsigned int first, unsigned int last)
{
    return first > last ? 0 : (UINT64_MAX >> (63 - last)) & (UINT64_MAX << first);
}

bool mmu_paging_valid(const struct mmu_paging *paging)
{
    return paging->levels >= 2 && paging->levels <= 5;
}

union shadow_role mmu_root_role(const struct mmu_paging *paging, gpa_t cr3)
{
    union shadow_role role = {.word = 0};

    role.level = role.glevels = paging->levels & 7u;
    /* Only where they change what an entry means: else one table would be mirrored twice. */
    role.pse = paging->levels == 2 && paging->pse;
    role.nx = paging->levels > 2 && paging->nx;
    if (paging->levels == 3)
        role.quad = (cr3 >> 5) & 0x7f;
    return role;
}

union shadow_role mmu_child_role(union shadow_role role)
{
    assert(role.level > 1);
    role.level = (role.level - 1) & 7u;
    role.quad = 0;
    return role;
}

gpa_t mmu_table_gpa(gfn_t gfn, union shadow_role role)
{
    return gfn_to_gpa(gfn) + ((gpa_t)role.quad << 5);
}

static void format_32bit(struct gpt_format *f, const struct gpt_cpu *cpu, union shadow_role role)
{
    f->entries = 1024;
    f->entry_size = 4;
    f->address = bits(12, 31);
    if (role.level == 2 && role.pse) {
        /* PSE-36: address bits 32 to 39 stand in bits 13 to 20, as many of them as the CPU has. */
        unsigned int extra = MIN((unsigned int)cpu->maxphyaddr, 40u) - 32;

        f->ps = GPTE_RAW_PS;
        f->pse36 = true;
        f->rsvd_large = bits(13 + extra, 21);
    }
}

static void format_64bit(struct gpt_format *f, const struct gpt_cpu *cpu, union shadow_role role)
{
    f->entries = 512;
    f->entry_size = 8;
    f->address = bits(12, 51);
    f->rsvd = bits(cpu->maxphyaddr, 51);
    if (role.glevels == 3)
        f->rsvd |= bits(52, 62);
    if (!role.nx)
        f->rsvd |= GPTE_RAW_NX;
    f->rsvd_large = f->rsvd;
    if (role.glevels == 3 && role.level == 3) {
        f->entries = 4;
        f->rsvd |= GPTE_RAW_NX | bits(1, 2) | bits(5, 8);
        f->force = GPTE_RAW_W | GPTE_RAW_U;
    } else if (role.level == 2) {
        f->ps = GPTE_RAW_PS;
        f->rsvd_large |= bits(13, 20);
    } else if (role.level == 3 && cpu->gbpages) {
        f->ps = GPTE_RAW_PS;
        f->rsvd_large |= bits(13, 29);
    } else if (role.level > 2) {
        f->rsvd |= GPTE_RAW_PS;
    }
}

void gpt_format_init_view(struct gpt_format *f, const struct mmu_view *view, const struct gpt_cpu *cpu, union shadow_role role)
{
    *f = (struct gpt_format){.leaf = role.level == 1};
    if (role.glevels == 2)
        format_32bit(f, cpu, role);
    else
        format_64bit(f, cpu, role);
    f->dirty = f->leaf ? GPTE_RAW_D : 0;
    f->low_end = view->low_end;
    f->high_end = view->high_end;
}

gva_t mmu_canonical(unsigned int glevels, gva_t gva)
{
    unsigned int width = glevels == 5 ? 57 : 48;

    if (glevels < 4)
        return gva & UINT32_MAX;
    return (gva_t)((int64_t)(gva << (64 - width)) >> (64 - width));
}

int mmu_walk_view(const struct mmu_view *view, const struct gpt_cpu *cpu, const struct mmu_paging *paging, gpa_t cr3,
                  gva_t gva, struct mmu_translation *ret)
{
    union shadow_role role;
    gfn_t gfn = gpa_to_gfn(cr3);
    gpte_t all = GPTE_W | GPTE_U, nx = 0;

    if (!mmu_paging_valid(paging) || mmu_canonical(paging->levels, gva) != gva)
        return -EINVAL;
    for (role = mmu_root_role(paging, cr3);; role = mmu_child_role(role)) {
        struct gpt_format f;
        unsigned int shift = mmu_level_shift(role);
        uint64_t raw = 0;
        gpte_t value;
        enum gpte_kind kind;

        gpt_format_init_view(&f, view, cpu, role);
        if (view->read(view->opaque, mmu_table_gpa(gfn, role) + ((gva >> shift) & (f.entries - 1)) * f.entry_size, &raw,
                       f.entry_size) < 0)
            return -ENOENT;
        kind = gpte_decode(&f, raw, &value);
        if (kind == GPTE_NONE || kind == GPTE_FOREIGN)
            return -ENOENT;
        all &= value;
        nx |= value & GPTE_NX;
        gfn = value & GPTE_GFN_MASK;
        if (kind == GPTE_TABLE)
            continue;
        *ret = (struct mmu_translation){
            .gpa = gfn_to_gpa(gfn) + (gva & ((UINT64_C(1) << shift) - 1)),
            .level = role.level,
            .write = (all & GPTE_W) != 0,
            .user = (all & GPTE_U) != 0,
            .nx = nx != 0,
            .accessed = (value & GPTE_A) != 0,
            .dirty = (value & GPTE_D) != 0,
        };
        return 0;
    }
}

/* -- ranges ------------------------------------------------------------------- */

struct range_walk {
    const struct mmu_view *view;
    const struct gpt_cpu *cpu;
    const struct mmu_paging *paging;
    uint64_t first, last; /* without sign extension */
    unsigned int tables_left;
    bool (*fn)(void *ctx, const struct mmu_leaf *leaf);
    void *ctx;
    bool ended; /* fn has had enough */
};

static int range_table(struct range_walk *w, union shadow_role role, gfn_t gfn, uint64_t base, gpte_t rights);

/* One entry, which covers [at, at + size). */
static int range_entry(struct range_walk *w, const struct gpt_format *f, union shadow_role role, uint64_t raw, uint64_t at,
                       gpte_t rights)
{
    gpte_t value;
    enum gpte_kind kind = gpte_decode(f, raw, &value);
    struct mmu_leaf leaf;

    if (kind == GPTE_NONE || kind == GPTE_FOREIGN)
        return 0;
    rights = (rights & value & (GPTE_W | GPTE_U)) | ((rights | value) & GPTE_NX);
    if (kind == GPTE_TABLE)
        return range_table(w, mmu_child_role(role), value & GPTE_GFN_MASK, at, rights);
    leaf = (struct mmu_leaf){
        .gva = mmu_canonical(w->paging->levels, at),
        .gpa = gfn_to_gpa(value & GPTE_GFN_MASK),
        .size = UINT64_C(1) << mmu_level_shift(role),
        .write = (rights & GPTE_W) != 0,
        .user = (rights & GPTE_U) != 0,
        .nx = (rights & GPTE_NX) != 0,
    };
    w->ended = !w->fn(w->ctx, &leaf);
    return 0;
}

static int range_table(struct range_walk *w, union shadow_role role, gfn_t gfn, uint64_t base, gpte_t rights)
{
    uint8_t table[GUEST_PAGE_SIZE];
    unsigned int shift = mmu_level_shift(role);
    struct gpt_format f;
    int r = 0;

    if (w->tables_left == 0)
        return -E2BIG;
    w->tables_left--;
    gpt_format_init_view(&f, w->view, w->cpu, role);
    if (w->view->read(w->view->opaque, mmu_table_gpa(gfn, role), table, (size_t)f.entries * f.entry_size) < 0)
        return 0;
    for (uint64_t i = w->first > base ? (w->first - base) >> shift : 0; i < f.entries && r == 0 && !w->ended; i++) {
        uint64_t at = base + (i << shift), raw = 0;

        if (at > w->last)
            break;
        memcpy(&raw, table + i * f.entry_size, f.entry_size);
        r = range_entry(w, &f, role, raw, at, rights);
    }
    return r;
}

int mmu_walk_range(const struct mmu_view *view, const struct gpt_cpu *cpu, const struct mmu_paging *paging, gpa_t cr3,
                   gva_t first, gva_t last, unsigned int max_tables, bool (*fn)(void *ctx, const struct mmu_leaf *leaf),
                   void *ctx)
{
    unsigned int width = paging->levels < 4 ? 32 : paging->levels == 4 ? 48 : 57;
    struct range_walk w = {
        .view = view,
        .cpu = cpu,
        .paging = paging,
        .first = first & bits(0, width - 1),
        .last = last & bits(0, width - 1),
        .tables_left = max_tables,
        .fn = fn,
        .ctx = ctx,
    };

    if (!mmu_paging_valid(paging) || mmu_canonical(paging->levels, first) != first ||
        mmu_canonical(paging->levels, last) != last || first > last)
        return -EINVAL;
    return range_table(&w, mmu_root_role(paging, cr3), gpa_to_gfn(cr3), 0, GPTE_W | GPTE_U);
}
