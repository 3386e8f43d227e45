#include "config.h"

#include "mmu/census.h"

#include <stdlib.h>

#include "base/util.h"
#include "mmu/mirror-internal.h"

/* Tables visited for one answer, heads looked at, and links followed: some ten milliseconds. */
#define VISITS_MAX 500000u
#define HEADS_MAX 262144u
#define LINKS_MAX 1000000u

/* -- address spaces ------------------------------------------------------------------------------------------------------ */

struct sizes {
    const struct mirror *m;
    uint32_t *stamp; /* by page: the last space that counted it */
    uint32_t now;
    uint32_t visits;
    struct mmu_space_size *space;
};

/* Recursion of at most five levels; each table is counted once a space, so loops end. */
static void count_table(struct sizes *s, uint32_t page, unsigned int groups)
{
    const struct shadow_page *p = page_at(s->m, page);
    union shadow_role role = page_role(p);

    if (s->stamp[page] == s->now || s->visits == VISITS_MAX)
        return;
    s->stamp[page] = s->now;
    s->visits++;
    s->space->tables++;
    for (unsigned int group = 0; group < groups; group++) {
        uint32_t n = page_granule(s->m, p, group), child;
        const struct granule *g = n ? granule_at(s->m, n) : NULL;

        for (uint16_t left = g ? g->present & (uint16_t)~g->foreign : 0; left; left &= (uint16_t)(left - 1)) {
            unsigned int slot = (unsigned int)__builtin_ctz(left);

            if (!(g->value[slot] & GPTE_U))
                continue;
            if (role.level == 1 || g->large & 1u << slot) {
                s->space->pages += UINT64_C(1) << (mmu_level_shift(role) - GUEST_PAGE_SHIFT);
                continue;
            }
            child = shadow_find(s->m, gpte_gfn(g->value[slot]), mmu_child_role(role));
            if (child)
                count_table(s, child, page_groups(page_at(s->m, child)));
        }
    }
}

size_t mirror_spaces(const struct mirror *m, struct mmu_space_size *ret, size_t max, bool *ret_whole)
{
    struct sizes s = {.m = m, .stamp = calloc(m->pages.next, sizeof(*s.stamp))};
    size_t count = 0;

    for (uint32_t i = 0; i < m->root_slots && count < max; i++) {
        const struct root *root = &m->roots[i];

        if (!root->page)
            continue;
        s.space = &ret[count++];
        *s.space = (struct mmu_space_size){.root = root->info};
        s.now = i + 1;
        if (s.stamp)
            count_table(&s, root->page, root->info.paging.levels >= 4 ? ROOT_USER_ENTRIES / GRANULE_ENTRIES
                                                                       : page_groups(page_at(m, root->page)));
    }
    *ret_whole = s.stamp && s.visits < VISITS_MAX;
    free(s.stamp);
    return count;
}

/* -- the census ---------------------------------------------------------------------------------------------------------- */

static void count_large(const struct mirror *m, struct mirror_census *ret)
{
    uint64_t *const counts[RMAP_SIZES] = {[RMAP_2M] = &ret->large_2m, [RMAP_4M] = &ret->large_4m, [RMAP_1G] = &ret->large_1g};

    for (uint32_t page = 1; page < m->pages.next; page++) {
        const struct shadow_page *p = page_at(m, page);
        union shadow_role role = page_role(p);

        if (!p->role || role.level < 2 || role.level > 3 || !p->present)
            continue;
        for (unsigned int group = 0; group < page_groups(p); group++) {
            uint32_t n = page_granule(m, p, group);

            if (n && granule_at(m, n)->large)
                *counts[rmap_size_of(role)] += (unsigned int)__builtin_popcount(granule_at(m, n)->large);
        }
    }
}

static void count_chains(const struct mirror *m, struct mirror_census *ret)
{
    uint32_t links = 0;

    /* A guest can hang all its entries on one frame: then the count ends there. */
    ret->stride = (uint32_t)MAX(m->gfn_end / HEADS_MAX, m->stats.entries / (LINKS_MAX / 2)) + 1;
    for (gfn_t gfn = 0; gfn < m->gfn_end && links < LINKS_MAX; gfn += ret->stride) {
        node_t head = *rmap_head(m, RMAP_4K, gfn);
        uint32_t length = 0;

        for (node_t id = rmap_first(head); id && links < LINKS_MAX; id = rmap_next(m, head, id), links++)
            length++;
        if (length)
            ret->chains[MIN(31u - (unsigned int)__builtin_clz(length), CENSUS_CHAINS - 1)]++;
    }
}

void mirror_take_census(const struct mirror *m, struct mirror_census *ret)
{
    uint64_t seen = 0;

    *ret = (struct mirror_census){.stride = 1};
    for (uint32_t i = 0; i < m->root_slots; i++) {
        const struct mmu_root *root = &m->roots[i].info;

        if (!m->roots[i].page)
            continue;
        ret->kernel += root->kind == MMU_ROOT_KERNEL;
        ret->user += root->kind == MMU_ROOT_USER;
        ret->kpti += root->kind == MMU_ROOT_KPTI;
        if (root->seen_ns >= seen)
            ret->levels = root->paging.levels;
        seen = MAX(seen, root->seen_ns);
    }
    count_large(m, ret);
    count_chains(m, ret);
}
