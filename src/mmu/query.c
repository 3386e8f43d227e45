/*
 * From a frame to addresses: the entries that map it (reverse map), the entries that point at their tables (parent links),
 * and so on up to the roots. Every page has a root above it, so each step up leads to an answer; a path is at most as long
 * as there are levels.
 */
#include "config.h"

#include "mmu/query.h"

#include "base/util.h"
#include "mmu/mirror-internal.h"

struct query {
    const struct mirror *m;
    struct mmu_mapping *ret;
    size_t limit, count;
    bool more;
};

/* What is known of a path from some level down to the leaf. */
struct path {
    gva_t gva;
    gpte_t all; /* rights that every entry grants */
    gpte_t nx;
};

static void emit(struct query *q, const struct shadow_page *top, node_t leaf, const struct path *path)
{
    const struct mmu_root *root = &q->m->roots[top->root - 1].info;
    const struct granule *g = node_granule(q->m, leaf);
    union shadow_role role = page_role(page_at(q->m, g->page));
    gpte_t value = node_value(q->m, leaf);

    if (q->count == q->limit) {
        q->more = true;
        return;
    }
    q->ret[q->count++] = (struct mmu_mapping){
        .cr3 = root->cr3,
        .kind = root->kind,
        .generation = root->generation,
        .gva = mmu_canonical(role.glevels, path->gva),
        .level = role.level,
        .shift = mmu_level_shift(role),
        .write = (path->all & GPTE_W) != 0,
        .user = (path->all & GPTE_U) != 0,
        .nx = path->nx != 0,
        .accessed = (value & GPTE_A) != 0,
        .dirty = (value & GPTE_D) != 0,
        .write_off = (g->write_off >> (leaf % GRANULE_ENTRIES) & 1) != 0,
    };
}

/* From an entry up. Recursion of at most five levels. */
static void climb(struct query *q, node_t leaf, node_t id, struct path path)
{
    const struct shadow_page *p = page_at(q->m, node_granule(q->m, id)->page);
    gpte_t value = node_value(q->m, id);

    path.gva += (gva_t)node_entry(q->m, id) << mmu_level_shift(page_role(p));
    path.all &= value;
    path.nx |= value & GPTE_NX;
    if (p->root)
        emit(q, p, leaf, &path);
    for (node_t up = rmap_first(p->parents); up && !q->more; up = rmap_next(q->m, p->parents, up))
        climb(q, leaf, up, path);
}

size_t mirror_query(const struct mirror *m, gfn_t gfn, struct mmu_mapping *ret, size_t limit, bool *ret_more)
{
    struct query q = {.m = m, .ret = ret, .limit = limit};

    for (unsigned int s = 0; s < RMAP_SIZES && gfn < m->gfn_end; s++) {
        node_t head = *rmap_head(m, s, gfn);
        gfn_t within = gfn & ((UINT64_C(1) << rmap_shift[s]) - 1);

        for (node_t id = rmap_first(head); id && !q.more; id = rmap_next(m, head, id))
            climb(&q, id, id, (struct path){.gva = gfn_to_gpa(within), .all = GPTE_W | GPTE_U});
    }
    *ret_more = q.more;
    return q.count;
}
