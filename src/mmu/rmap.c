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

int rmap_link_chain(struct mirror *m, node_t *head, node_t id)
{
    node_t first;

    if (!(*head & CHAIN_MANY))
        return link_second(m, head, id);
    if (links_get(m, id) < 0)
        return -ENOMEM;
    first = rmap_first(*head);
    node_granule(m, id)->chained++;
    *links_of(m, id) = (struct link){.next = first};
    links_of(m, first)->prev = id;
    *head = id | CHAIN_MANY;
    return 0;
}

void rmap_unlink_chain(struct mirror *m, node_t *head, node_t id)
{
    struct link *mine, *prev = NULL, *next = NULL;
    node_t last = 0;

    assert(*head & CHAIN_MANY);
    mine = links_of(m, id);
    if (mine->next) {
        next = links_of(m, mine->next);
        next->prev = mine->prev;
    }
    if (mine->prev) {
        prev = links_of(m, mine->prev);
        prev->next = mine->next;
    } else {
        *head = mine->next | CHAIN_MANY;
    }
    /* One neighbour, and that has none: it is alone now. */
    if (!prev && !next->next)
        last = mine->next;
    else if (!next && !prev->prev)
        last = mine->prev;
    links_put(m, id);
    if (last) {
        *head = last;
        links_put(m, last);
    }
}
