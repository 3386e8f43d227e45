/*
 * Reverse map. After "KVM: MMU: Implement simple reverse mapping" (2007): a frame with one mapping costs its head and
 * nothing else, one with many has a chain. There the chain is of descriptors with four slots each, which are allocated
 * when a mapping is added and searched when one goes; here a chain is doubly linked through the entries themselves: adding and
 * removing touch two neighbours whatever its length, and removing only ever gives memory back.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>

#include "base/util.h"
#include "mmu/mirror-internal.h"

const uint8_t rmap_shift[RMAP_SIZES] = {[RMAP_4K] = 0, [RMAP_2M] = 9, [RMAP_4M] = 10, [RMAP_1G] = 18};

enum rmap_size rmap_size_of(union shadow_role role)
{
    if (role.level == 1)
        return RMAP_4K;
    if (role.glevels == 2)
        return RMAP_4M;
    return role.level == 2 ? RMAP_2M : RMAP_1G;
}

node_t *rmap_head_of(const struct mirror *m, union shadow_role role, enum gpte_kind kind, gpte_t value)
{
    uint32_t child;

    if (kind != GPTE_TABLE)
        return rmap_head(m, rmap_size_of(role), gpte_gfn(value));
    child = shadow_find(m, gpte_gfn(value), mmu_child_role(role));
    return child ? &page_at(m, child)->parents : NULL;
}

static struct link *links_of(const struct mirror *m, node_t id)
{
    return &block_at(m, node_granule(m, id)->links)->link[id % GRANULE_ENTRIES];
}

/* Make sure that an entry has a place for its links. */
static int links_get(struct mirror *m, node_t id)
{
    struct granule *g = node_granule(m, id);

    if (!g->links)
        g->links = mirror_take(m, &m->blocks);
    return g->links ? 0 : -ENOMEM;
}

/* An entry has left its chain, or is alone in it. */
static void links_put(struct mirror *m, node_t id)
{
    struct granule *g = node_granule(m, id);

    assert(g->chained > 0);
    if (--g->chained == 0) {
        pool_put(&m->blocks, g->links);
        g->links = 0;
    }
}

/* The second mapping of a frame: now both have links. */
static int link_second(struct mirror *m, node_t *head, node_t id)
{
    node_t other = *head;

    if (links_get(m, id) < 0)
        return -ENOMEM;
    if (links_get(m, other) < 0) {
        struct granule *g = node_granule(m, id);

        if (g->chained == 0) {
            pool_put(&m->blocks, g->links);
            g->links = 0;
        }
        return -ENOMEM;
    }
    node_granule(m, id)->chained++;
    node_granule(m, other)->chained++;
    *links_of(m, id) = (struct link){.next = other};
    *links_of(m, other) = (struct link){.prev = id};
    *head = id | CHAIN_MANY;
    return 0;
}

/*
 * The two below are what a busy guest pays for, so they load each thing once: the compiler may not assume that a store to a
 * link leaves the pools' addresses alone.
 */
struct places {
    struct granule *granules;
    union block *blocks;
};

static inline struct places places_of(const struct mirror *m)
{
    return (struct places){granule_at(m, 0), block_at(m, 0)};
}

/* Of id 0: a place that is nobody's. */
static inline struct link *place(const struct places *at, node_t id)
{
    return &at->blocks[at->granules[id / GRANULE_ENTRIES].links].link[id % GRANULE_ENTRIES];
}

int rmap_link_chain(struct mirror *m, node_t *head, node_t id)
{
    const struct places at = places_of(m);
    struct granule *g = &at.granules[id / GRANULE_ENTRIES];
    node_t first = rmap_first(*head);

    if (!(*head & CHAIN_MANY))
        return link_second(m, head, id);
    if (!g->links && links_get(m, id) < 0)
        return -ENOMEM;
    g->chained++;
    place(&at, first)->prev = id;
    at.blocks[g->links].link[id % GRANULE_ENTRIES] = (struct link){.next = first};
    *head = id | CHAIN_MANY;
    return 0;
}

/*
 * Which neighbours an entry has is as good as random in a short chain, so there is no branch on it: what is written for a neighbour
 * that is none (id 0) goes to element 0 of the pools, which nobody has and nobody reads.
 */
void rmap_unlink_chain(struct mirror *m, node_t *head, node_t id)
{
    const struct places at = places_of(m);
    struct granule *g = &at.granules[id / GRANULE_ENTRIES];
    const struct link mine = at.blocks[g->links].link[id % GRANULE_ENTRIES];
    struct link *prev = place(&at, mine.prev), *next = place(&at, mine.next);
    bool alone;

    assert(*head & CHAIN_MANY);
    next->prev = mine.prev;
    prev->next = mine.next;
    *head = mine.prev ? *head : (mine.next | CHAIN_MANY);
    /* One neighbour, and that has none. */
    alone = (!mine.prev & !next->next) | (!mine.next & !prev->prev);
    links_put(m, id);
    if (unlikely(alone)) {
        *head = rmap_first(*head);
        links_put(m, *head);
    }
}
