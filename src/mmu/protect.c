/*
 * Two ways to the same entries. By the reverse map: a head for each dirty page, and the chain that hangs on it. By walking: every
 * leaf entry of every shadow page, and a bit of the set for each that can write.
 */
#include "config.h"

#include "mmu/protect.h"

#include "base/bitmap.h"
#include "base/util.h"
#include "mmu/mirror-internal.h"

/*
 * The 2011 patch takes the reverse map while dirty pages are fewer than shadow pages. Here a shadow page costs the walk about
 * as much as this many dirty pages cost the reverse map (bench/mmu write-protect prints the crossover it measures: 18 to 24).
 */
#define PAGES_A_TABLE 20u

struct protect {
    struct mirror *m;
    const struct page_set *dirty;
    struct mmu_protect *ret;
};

static void mark(struct protect *w, struct granule *g, unsigned int slot)
{
    uint16_t bit = (uint16_t)(1u << slot);

    w->ret->entries++;
    w->ret->marked += !(g->write_off & bit);
    g->write_off |= bit;
}

static void mark_chain(struct protect *w, node_t head)
{
    for (node_t id = rmap_first(head); id; id = rmap_next(w->m, head, id)) {
        struct granule *g = node_granule(w->m, id);

        if (g->value[id % GRANULE_ENTRIES] & GPTE_W)
            mark(w, g, id % GRANULE_ENTRIES);
    }
}

static void by_rmap(struct protect *w)
{
    const struct page_set *dirty = w->dirty;
    /* Pages come in order, so a large page's chain is met in one go: once is enough. */
    gfn_t last[RMAP_SIZES] = {GFN_INVALID, GFN_INVALID, GFN_INVALID, GFN_INVALID};

    for (size_t group = page_set_next_group(dirty, 0); group < dirty->group_count;
         group = page_set_next_group(dirty, group + 1)) {
        for (size_t word = group * PAGE_SET_GROUP_WORDS; word < (group + 1) * PAGE_SET_GROUP_WORDS; word++)
            for (uint64_t left = dirty->map[word]; left; left &= left - 1) {
                gfn_t gfn = mem_pfn_to_gfn(w->m->mem, word * 64 + (unsigned int)__builtin_ctzll(left));

                for (unsigned int s = 0; s < RMAP_SIZES; s++) {
                    if (gfn >> rmap_shift[s] == last[s])
                        continue;
                    last[s] = gfn >> rmap_shift[s];
                    mark_chain(w, *rmap_head(w->m, s, gfn));
                }
            }
    }
}

static bool any_dirty(const struct protect *w, gfn_t gfn, unsigned int shift)
{
    pfn_t pfn, end;

    if (!mem_gfn_to_pfn(w->m->mem, gfn, &pfn))
        return false;
    if (!shift)
        return bitmap_test(w->dirty->map, pfn);
    /* RAM goes on without a gap to the end of the page, or to the end of its slot: slots begin at multiples of 1 GiB. */
    end = MIN(pfn + (UINT64_C(1) << shift), w->dirty->limit);
    if (gfn < gpa_to_gfn(MEM_HOLE_START))
        end = MIN(end, bytes_to_pages(MEM_HOLE_START));
    return bitmap_next_set(w->dirty->map, end, pfn) < end;
}

static void walk_granule(struct protect *w, struct granule *g, union shadow_role role)
{
    uint16_t leaves = (uint16_t)((role.level == 1 ? g->present : g->large) & ~g->foreign);

    for (; leaves; leaves &= (uint16_t)(leaves - 1)) {
        unsigned int slot = (unsigned int)__builtin_ctz(leaves);
        gpte_t value = g->value[slot];

        if (value & GPTE_W && any_dirty(w, gpte_gfn(value), rmap_shift[rmap_size_of(role)]))
            mark(w, g, slot);
    }
}

static void by_walk(struct protect *w)
{
    for (uint32_t page = 1; page < w->m->pages.next; page++) {
        struct shadow_page *p = page_at(w->m, page);

        if (!p->role || !p->present)
            continue;
        for (unsigned int group = 0; group < page_groups(p); group++) {
            uint32_t n = page_granule(w->m, p, group);

            if (n)
                walk_granule(w, granule_at(w->m, n), page_role(p));
        }
    }
}

void mirror_write_protect(struct mirror *m, const struct page_set *dirty, enum mmu_protect_how how, struct mmu_protect *ret)
{
    struct protect w = {.m = m, .dirty = dirty, .ret = ret};

    if (how == MMU_PROTECT_CHOOSE)
        how = dirty->pages < (uint64_t)m->pages.used * PAGES_A_TABLE ? MMU_PROTECT_RMAP : MMU_PROTECT_WALK;
    *ret = (struct mmu_protect){.how = how};
    if (how == MMU_PROTECT_RMAP)
        by_rmap(&w);
    else
        by_walk(&w);
}
