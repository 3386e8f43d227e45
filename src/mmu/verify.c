/*
 * The mirror against a fresh walk, and against itself. Each table that a root reaches in guest memory is decoded anew and
 * compared with its page; then every link of the reverse map is followed both ways.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/bitmap.h"
#include "base/util.h"
#include "mmu/mirror-internal.h"

struct verify {
    struct mirror *m;
    struct mirror_verdict *v;
    uint64_t *seen;      /* bitmap: pages compared or on the stack */
    uint32_t *stack;     /* pages to compare; each is on it at most once */
    uint32_t depth;
};

static void push(struct verify *w, uint32_t page)
{
    if (bitmap_test(w->seen, page))
        return;
    bitmap_set(w->seen, page);
    w->stack[w->depth++] = page;
}

static void compare_entry(struct verify *w, struct shadow_page *p, unsigned int entry, enum gpte_kind kind, gpte_t value)
{
    uint32_t n = page_granule(w->m, p, entry / GRANULE_ENTRIES), child;
    const struct granule *g = n ? granule_at(w->m, n) : NULL;
    enum gpte_kind have = g ? granule_kind(g, entry % GRANULE_ENTRIES, page_role(p)) : GPTE_NONE;

    if (kind == GPTE_NONE || have == GPTE_NONE) {
        w->v->missing += have == GPTE_NONE && kind != GPTE_NONE;
        w->v->extra += kind == GPTE_NONE && have != GPTE_NONE;
        return;
    }
    w->v->mismatched += kind != have || value != g->value[entry % GRANULE_ENTRIES];
    if (kind != GPTE_TABLE)
        return;
    child = shadow_find(w->m, gpte_gfn(value), mmu_child_role(page_role(p)));
    if (child)
        push(w, child);
    else
        w->v->missing++;
}

static void compare_page(struct verify *w, struct shadow_page *p)
{
    union shadow_role role = page_role(p);
    uint64_t raw[GUEST_PAGE_SIZE / 8] = {0};
    struct gpt_format f;

    gpt_format_init(&f, w->m->mem, &w->m->cpu, role);
    if (mem_read(w->m->mem, mmu_table_gpa(p->gfn, role), raw, f.entries * f.entry_size) < 0) {
        w->v->extra++;
        return;
    }
    for (unsigned int i = 0; i < f.entries; i++) {
        uint64_t v = f.entry_size == 8 ? raw[i] : raw[i / 2] >> (i % 2 * 32) & UINT32_MAX;
        gpte_t value;
        enum gpte_kind kind = gpte_decode(&f, v, &value);

        compare_entry(w, p, i, kind, value);
    }
}

/* Whether an entry is in the chain of its head, by its links alone. */
static bool linked(const struct mirror *m, const struct granule *g, node_t id, node_t head)
{
    const struct link *link;

    if (!(head & CHAIN_MANY))
        return head == id;
    if (!g->links)
        return false;
    link = &block_at(m, g->links)->link[id % GRANULE_ENTRIES];
    if (link->prev ? rmap_next(m, head, link->prev) != id : rmap_first(head) != id)
        return false;
    if (!link->prev && !link->next)
        return false;
    return !link->next || (node_granule(m, link->next)->links &&
                           block_at(m, node_granule(m, link->next)->links)->link[link->next % GRANULE_ENTRIES].prev == id);
}

/* Links of one page's entries; the number of entries that are in chains with links must be the granule's count. */
static void check_links(struct verify *w, uint32_t page, struct shadow_page *p)
{
    const struct mirror *m = w->m;
    unsigned int present = 0;

    for (unsigned int group = 0; group < page_groups(p); group++) {
        uint32_t n = page_granule(m, p, group);
        const struct granule *g = n ? granule_at(m, n) : NULL;
        unsigned int chained = 0;

        if (!g)
            continue;
        w->v->broken_links += g->page != page || g->group != group || !g->present;
        present += (unsigned int)__builtin_popcount(g->present);
        for (uint16_t left = g->present; left; left &= (uint16_t)(left - 1)) {
            unsigned int slot = (unsigned int)__builtin_ctz(left);
            enum gpte_kind kind = granule_kind(g, slot, page_role(p));
            const node_t *head;

            if (kind == GPTE_FOREIGN)
                continue;
            head = rmap_head_of(m, page_role(p), kind, g->value[slot]);
            w->v->broken_links += !head || !linked(m, g, node_id(n, slot), *head);
            chained += head && (*head & CHAIN_MANY);
        }
        w->v->broken_links += chained != g->chained || !chained != !g->links;
    }
    w->v->broken_links += present != p->present;
}

static void check_all(struct verify *w)
{
    struct mirror *m = w->m;

    for (uint32_t page = 1; page < m->pages.next; page++) {
        struct shadow_page *p = page_at(m, page);

        if (!p->role)
            continue;
        check_links(w, page, p);
        w->v->broken_links += (!p->parents && !p->root) || (p->root && m->roots[p->root - 1].page != page);
        /* No root reaches it, in the guest. */
        if (!bitmap_test(w->seen, page))
            w->v->extra += p->present ? p->present : 1;
    }
}

int mirror_verify(struct mirror *m, struct mirror_verdict *ret)
{
    _cleanup_free_ uint64_t *seen = calloc(bitmap_words(m->pages.next) + 1, sizeof(*seen));
    _cleanup_free_ uint32_t *stack = calloc(m->pages.next, sizeof(*stack));
    struct mirror_verdict v = {.roots = 0};
    struct verify w = {.m = m, .v = &v, .seen = seen, .stack = stack};

    if (!seen || !stack)
        return -ENOMEM;
    for (uint32_t i = 0; i < m->root_slots; i++)
        if (m->roots[i].page) {
            v.roots++;
            push(&w, m->roots[i].page);
        }
    for (; w.depth; v.tables++)
        compare_page(&w, page_at(m, stack[--w.depth]));
    check_all(&w);
    *ret = v;
    return 0;
}
