/*
 * Attribution. For each dirty page the best of its mappings is taken; the way from the mapping's table up to a root is the
 * same for all entries of the table, so it is looked up once a table. Dirty pages are gathered as bitmaps of 512 pages ("chunks":
 * an address space and 2 MiB of addresses), which are few: sorting them, not the pages, gives the ranges.
 */
#include "config.h"

#include "mmu/attribute.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "mmu/mirror-internal.h"

#define CHUNK_PAGES 512u
#define CHUNK_SIZE (CHUNK_PAGES * GUEST_PAGE_SIZE)
/* Mappings of one page that are looked at, and parents of one table: a guest can make any number. */
#define MAX_LOOK 64u
#define SPACE_KERNEL 0u

struct chunk {
    uint32_t space; /* SPACE_KERNEL, or number of a root + 1 */
    gva_t base;
    uint64_t bits[CHUNK_PAGES / 64];
};

/* What is known of a table. */
struct memo {
    bool known;
    bool user;      /* every entry above it grants user access */
    uint32_t space;
    gva_t base;
    uint32_t chunk[2][2]; /* of its lower and upper 512 entries, kernel and user: number + 1 */
};

struct attribute {
    const struct mirror *m;
    struct mmu_attribution *a;
    struct memo *memos; /* by page */
    struct chunk *chunks;
    size_t chunk_count, chunk_room;
    /* The chunk of the large mapping met last: pages come in order. */
    node_t large;
    uint32_t large_chunk;
};

/* -- from a table to a root ---------------------------------------------------------------------------------------------- */

/* The entry to climb by: one whose table is a root of its own right before one of a KPTI half. */
static node_t best_parent(const struct mirror *m, const struct shadow_page *p)
{
    node_t first = rmap_first(p->parents);
    unsigned int looked = 0;

    for (node_t id = first; id && looked < MAX_LOOK; id = rmap_next(m, p->parents, id), looked++) {
        const struct shadow_page *up = page_at(m, node_granule(m, id)->page);

        if (!up->root || m->roots[up->root - 1].info.kind != MMU_ROOT_KPTI)
            return id;
    }
    return first;
}

static void learn(struct attribute *w, uint32_t page, struct memo *memo)
{
    const struct shadow_page *p = page_at(w->m, page);
    unsigned int glevels = page_role(p).glevels;
    gpte_t all = GPTE_U;
    gva_t base = 0;

    while (!p->root && p->parents) {
        node_t id = best_parent(w->m, p);

        p = page_at(w->m, node_granule(w->m, id)->page);
        all &= node_value(w->m, id);
        base += (gva_t)node_entry(w->m, id) << mmu_level_shift(page_role(p));
    }
    *memo = (struct memo){.known = true, .user = all != 0, .space = p->root, .base = mmu_canonical(glevels, base)};
}

static struct memo *memo_of(struct attribute *w, node_t id)
{
    uint32_t page = node_granule(w->m, id)->page;
    struct memo *memo = &w->memos[page];

    if (!memo->known)
        learn(w, page, memo);
    return memo;
}

/* -- choosing ------------------------------------------------------------------------------------------------------------ */

/* 4: user, writable, dirty ... 1: user; 0: kernel. */
static int rank(struct attribute *w, node_t id)
{
    gpte_t value = node_value(w->m, id);

    if (!(value & GPTE_U) || !memo_of(w, id)->user)
        return 0;
    if (!(value & GPTE_W))
        return 1;
    return value & GPTE_D ? 4 : 2;
}

struct choice {
    node_t id;
    enum rmap_size size;
    int rank;
    bool shared;
};

static void choose(struct attribute *w, enum rmap_size size, gfn_t gfn, struct choice *c)
{
    node_t head = *rmap_head(w->m, size, gfn);
    unsigned int looked = 0;

    for (node_t id = rmap_first(head); id && looked < MAX_LOOK; id = rmap_next(w->m, head, id), looked++) {
        int r = rank(w, id);

        c->shared |= r >= 2 && c->rank >= 2 && memo_of(w, id)->space != memo_of(w, c->id)->space;
        if (r <= c->rank)
            continue;
        c->id = id;
        c->size = size;
        c->rank = r;
    }
}

/* -- gathering ----------------------------------------------------------------------------------------------------------- */

/* Number + 1, or 0 when there is no memory. */
static uint32_t chunk_new(struct attribute *w, uint32_t space, gva_t base)
{
    if (w->chunk_count == w->chunk_room) {
        size_t room = w->chunk_room ? w->chunk_room * 2 : 256;
        struct chunk *chunks = realloc(w->chunks, room * sizeof(*chunks));

        if (!chunks)
            return 0;
        w->chunks = chunks;
        w->chunk_room = room;
    }
    w->chunks[w->chunk_count] = (struct chunk){.space = space, .base = base};
    return (uint32_t)++w->chunk_count;
}

/* The chunk and the page in it of a chosen mapping. */
static uint32_t chunk_of(struct attribute *w, const struct choice *c, gfn_t gfn, unsigned int *ret_page)
{
    struct memo *memo = memo_of(w, c->id);
    uint32_t space = c->rank ? memo->space : SPACE_KERNEL, *chunk;
    gva_t base;

    if (c->size == RMAP_4K) {
        unsigned int entry = node_entry(w->m, c->id);

        chunk = &memo->chunk[entry / CHUNK_PAGES][c->rank > 0];
        base = memo->base + entry / CHUNK_PAGES * CHUNK_SIZE;
        *ret_page = entry % CHUNK_PAGES;
    } else {
        const struct shadow_page *p = page_at(w->m, node_granule(w->m, c->id)->page);
        gfn_t within = gfn & ((UINT64_C(1) << rmap_shift[c->size]) - 1);

        chunk = &w->large_chunk;
        base = memo->base + ((gva_t)node_entry(w->m, c->id) << mmu_level_shift(page_role(p))) +
               within / CHUNK_PAGES * CHUNK_SIZE;
        if (w->large != c->id || (*chunk && (w->chunks[*chunk - 1].base != base || w->chunks[*chunk - 1].space != space)))
            *chunk = 0;
        w->large = c->id;
        *ret_page = within % CHUNK_PAGES;
    }
    if (!*chunk)
        *chunk = chunk_new(w, space, base);
    return *chunk;
}

static int take_page(struct attribute *w, gfn_t gfn)
{
    struct choice c = {.rank = -1};
    uint32_t chunk;
    unsigned int page;

    choose(w, RMAP_4K, gfn, &c);
    for (enum rmap_size size = RMAP_2M; size < RMAP_SIZES && c.rank <= 0; size++)
        choose(w, size, gfn, &c);
    w->a->dirty++;
    if (c.rank < 0) {
        w->a->unmapped++;
        return 0;
    }
    w->a->user += c.rank > 0;
    w->a->kernel += c.rank == 0;
    w->a->shared += c.shared;
    chunk = chunk_of(w, &c, gfn, &page);
    if (!chunk)
        return -ENOMEM;
    w->chunks[chunk - 1].bits[page / 64] |= UINT64_C(1) << (page % 64);
    return 0;
}

static int take_all(struct attribute *w, const struct page_set *dirty)
{
    for (size_t group = page_set_next_group(dirty, 0); group < dirty->group_count;
         group = page_set_next_group(dirty, group + 1))
        for (size_t word = group * PAGE_SET_GROUP_WORDS; word < (group + 1) * PAGE_SET_GROUP_WORDS; word++)
            for (uint64_t left = dirty->map[word]; left; left &= left - 1)
                if (take_page(w, mem_pfn_to_gfn(w->m->mem, word * 64 + (unsigned int)__builtin_ctzll(left))) < 0)
                    return -ENOMEM;
    return 0;
}

/* -- the answer ---------------------------------------------------------------------------------------------------------- */

static int by_space_and_address(const void *a, const void *b)
{
    const struct chunk *x = a, *y = b;

    if (x->space != y->space)
        return x->space < y->space ? -1 : 1;
    return x->base < y->base ? -1 : x->base > y->base;
}

static int by_pages(const void *a, const void *b)
{
    const struct mmu_space *x = a, *y = b;

    if (x->pages != y->pages)
        return x->pages > y->pages ? -1 : 1;
    return x->cr3 < y->cr3 ? -1 : x->cr3 > y->cr3;
}

static void count(const struct attribute *w, size_t *ret_spaces, size_t *ret_ranges)
{
    *ret_spaces = *ret_ranges = 0;
    for (size_t i = 0; i < w->chunk_count; i++) {
        uint64_t before = 0; /* the last bit of the word before */

        *ret_spaces += i == 0 || w->chunks[i].space != w->chunks[i - 1].space;
        for (size_t word = 0; word < ARRAY_SIZE(w->chunks[i].bits); word++) {
            uint64_t bits = w->chunks[i].bits[word];

            *ret_ranges += (size_t)__builtin_popcountll(bits & ~(bits << 1 | before));
            before = bits >> 63;
        }
    }
}

/*
 * Large mappings that alternate leave several chunks for one piece of address space. Two frames at one kernel address, seen
 * through different roots, stay apart.
 */
static void merge_chunks(struct attribute *w)
{
    size_t kept = 0;

    for (size_t i = 1; i < w->chunk_count; i++) {
        struct chunk *to = &w->chunks[kept];
        const struct chunk *from = &w->chunks[i];
        uint64_t both = 0;

        for (size_t word = 0; word < ARRAY_SIZE(to->bits); word++)
            both |= to->bits[word] & from->bits[word];
        if (both || to->space != from->space || to->base != from->base) {
            w->chunks[++kept] = *from;
            continue;
        }
        for (size_t word = 0; word < ARRAY_SIZE(to->bits); word++)
            to->bits[word] |= from->bits[word];
    }
    w->chunk_count = kept + 1;
}

static void open_space(struct attribute *w, uint32_t space)
{
    struct mmu_space *s = &w->a->spaces[w->a->space_count++];

    *s = (struct mmu_space){.kernel = space == SPACE_KERNEL, .first_range = w->a->range_count};
    if (space != SPACE_KERNEL) {
        const struct mmu_root *root = &w->m->roots[space - 1].info;

        s->cr3 = root->cr3;
        s->kind = root->kind;
        s->generation = root->generation;
    }
}

static void add_pages(struct mmu_attribution *a, gva_t start)
{
    struct mmu_space *s = &a->spaces[a->space_count - 1];
    struct mmu_range *last = s->ranges ? &a->ranges[a->range_count - 1] : NULL;

    s->pages++;
    if (last && last->start + pages_to_bytes(last->pages) == start) {
        last->pages++;
        return;
    }
    a->ranges[a->range_count++] = (struct mmu_range){.start = start, .pages = 1};
    s->ranges++;
}

static int answer(struct attribute *w)
{
    size_t spaces, ranges;

    if (!w->chunk_count)
        return 0;
    qsort(w->chunks, w->chunk_count, sizeof(*w->chunks), by_space_and_address);
    merge_chunks(w);
    count(w, &spaces, &ranges);
    w->a->spaces = calloc(spaces, sizeof(*w->a->spaces));
    w->a->ranges = calloc(ranges, sizeof(*w->a->ranges));
    if (!w->a->spaces || !w->a->ranges)
        return -ENOMEM;
    for (size_t i = 0; i < w->chunk_count; i++) {
        const struct chunk *c = &w->chunks[i];

        if (i == 0 || c->space != c[-1].space)
            open_space(w, c->space);
        for (unsigned int word = 0; word < ARRAY_SIZE(c->bits); word++)
            for (uint64_t left = c->bits[word]; left; left &= left - 1)
                add_pages(w->a, c->base + pages_to_bytes(word * 64 + (unsigned int)__builtin_ctzll(left)));
    }
    qsort(w->a->spaces, w->a->space_count, sizeof(*w->a->spaces), by_pages);
    return 0;
}

int mirror_attribute(const struct mirror *m, const struct page_set *dirty, struct mmu_attribution *ret)
{
    struct mmu_attribution a = {.incomplete = m->stats.incomplete || m->stats.stale};
    struct attribute w = {.m = m, .a = &a};
    int r = -ENOMEM;

    w.memos = calloc(m->pages.next, sizeof(*w.memos));
    if (w.memos)
        r = take_all(&w, dirty);
    if (r == 0)
        r = answer(&w);
    free(w.memos);
    free(w.chunks);
    if (r < 0)
        mmu_attribution_free(&a);
    else
        *ret = a;
    return r;
}

void mmu_attribution_free(struct mmu_attribution *a)
{
    free(a->spaces);
    free(a->ranges);
    *a = (struct mmu_attribution){.dirty = 0};
}
