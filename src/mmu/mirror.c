/*
 * Shadow pages: making, finding, emptying, freeing. Storage is described in mirror-internal.h.
 *
 * A page lives while an entry points at it or it is a root. When the last of them goes it becomes an orphan, and orphans
 * are freed only at the end of the operation: a table that moves from one entry to another (mremap, a fork that copies
 * an upper level) is linked at its new place before it would be dropped for its old one.
 */
#include "config.h"

#include "mmu/mirror.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/util.h"
#include "mmu/mirror-internal.h"

#define HASH_MIN 1024u
/* Node ids are 31 bits of granule and slot. */
#define MAX_GRANULES ((UINT32_C(1) << 27) - 2)

/* -- memory ------------------------------------------------------------------ */

static uint64_t memory_used(const struct mirror *m)
{
    return pool_memory(&m->pages) + pool_memory(&m->granules) + pool_memory(&m->blocks) +
           ((uint64_t)m->hash_mask + 1) * sizeof(*m->hash) + (uint64_t)m->root_room * sizeof(*m->roots);
}

uint32_t mirror_take(struct mirror *m, struct pool *pool)
{
    uint32_t number = pool_take(pool);

    if (likely(number))
        return number;
    /* A step of the pool's own size is the most it takes here. */
    if (memory_used(m) + 64 * KiB > m->max_memory || pool_grow(pool, 1) < 0)
        return 0;
    return pool_take(pool);
}

static uint32_t hash_of(const struct mirror *m, gfn_t gfn)
{
    return (uint32_t)((gfn * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & m->hash_mask;
}

/* More buckets when pages outnumber them; without memory chains just get longer. */
static void hash_grow(struct mirror *m)
{
    uint32_t old_mask = m->hash_mask, *old = m->hash;
    uint32_t *hash = calloc(((size_t)old_mask + 1) * 2, sizeof(*hash));

    if (!hash)
        return;
    m->hash = hash;
    m->hash_mask = old_mask * 2 + 1;
    for (uint32_t bucket = 0; bucket <= old_mask; bucket++)
        for (uint32_t n = old[bucket], next; n; n = next) {
            struct shadow_page *p = page_at(m, n);
            uint32_t *to = &m->hash[hash_of(m, p->gfn)];

            next = p->hash_next;
            p->hash_next = *to;
            *to = n;
        }
    free(old);
}

/* -- finding and making -------------------------------------------------------- */

uint32_t shadow_find(const struct mirror *m, gfn_t gfn, union shadow_role role)
{
    for (uint32_t n = m->hash[hash_of(m, gfn)]; n; n = page_at(m, n)->hash_next)
        if (page_at(m, n)->gfn == gfn && page_at(m, n)->role == role.word)
            return n;
    return 0;
}

uint32_t shadow_next_of(const struct mirror *m, gfn_t gfn, uint32_t after)
{
    uint32_t n = after ? page_at(m, after)->hash_next : m->hash[hash_of(m, gfn)];

    while (n && page_at(m, n)->gfn != gfn)
        n = page_at(m, n)->hash_next;
    return n;
}

bool mirror_is_table(const struct mirror *m, gfn_t gfn)
{
    return shadow_next_of(m, gfn, 0) != 0;
}

/* The owner watches frames, pages are many to a frame: tell of the first and the last. */
void shadow_watch(struct mirror *m, struct shadow_page *p, bool on)
{
    bool other = false;

    if (on == ((p->flags & PAGE_WATCHED) != 0))
        return;
    p->flags ^= PAGE_WATCHED;
    for (uint32_t n = 0; (n = shadow_next_of(m, p->gfn, n)) != 0;)
        other |= page_at(m, n) != p && (page_at(m, n)->flags & PAGE_WATCHED);
    if (!other && m->ops && m->ops->watch)
        m->ops->watch(m->ops_ctx, p->gfn, on);
}

void mirror_watch_all(struct mirror *m)
{
    for (uint32_t page = 1; page < m->pages.next && m->ops && m->ops->watch; page++)
        if (page_at(m, page)->role && page_at(m, page)->flags & PAGE_WATCHED)
            m->ops->watch(m->ops_ctx, page_at(m, page)->gfn, true);
}

void shadow_queue(struct mirror *m, uint32_t page)
{
    struct shadow_page *p = page_at(m, page);
    uint32_t *head = &m->unsync[page_role(p).level];

    if (p->flags & PAGE_UNSYNC)
        return;
    p->flags |= PAGE_UNSYNC;
    p->work_prev = 0;
    p->work_next = *head;
    if (*head)
        page_at(m, *head)->work_prev = page;
    *head = page;
}

void shadow_unqueue(struct mirror *m, uint32_t page)
{
    struct shadow_page *p = page_at(m, page);

    if (!(p->flags & PAGE_UNSYNC))
        return;
    p->flags &= (uint8_t)~PAGE_UNSYNC;
    if (p->work_next)
        page_at(m, p->work_next)->work_prev = p->work_prev;
    if (p->work_prev)
        page_at(m, p->work_prev)->work_next = p->work_next;
    else
        m->unsync[page_role(p).level] = p->work_next;
}

uint32_t shadow_get(struct mirror *m, gfn_t gfn, union shadow_role role)
{
    uint32_t n = shadow_find(m, gfn, role), *bucket;
    struct shadow_page *p;

    if (n)
        return n;
    n = mirror_take(m, &m->pages);
    if (!n)
        return 0;
    if (m->pages.used > m->hash_mask)
        hash_grow(m);
    bucket = &m->hash[hash_of(m, gfn)];
    p = page_at(m, n);
    *p = (struct shadow_page){.gfn = (uint32_t)gfn, .role = role.word, .hash_next = *bucket, .flags = PAGE_NEW};
    *bucket = n;
    m->stats.pages[role.level]++;
    shadow_watch(m, p, true);
    shadow_queue(m, n);
    return n;
}

/* -- entries ------------------------------------------------------------------- */

int shadow_link(struct mirror *m, union shadow_role role, node_t id, enum gpte_kind kind, gpte_t value)
{
    struct shadow_page *child;
    uint32_t n;

    if (kind == GPTE_FOREIGN)
        return 0;
    if (kind != GPTE_TABLE)
        return rmap_link(m, rmap_head(m, rmap_size_of(role), gpte_gfn(value)), id);
    n = shadow_get(m, gpte_gfn(value), mmu_child_role(role));
    if (!n)
        return -ENOMEM;
    child = page_at(m, n);
    if (rmap_link(m, &child->parents, id) == 0)
        return 0;
    if (!child->parents && !child->root)
        shadow_orphan(m, n);
    return -ENOMEM;
}

void shadow_unlink(struct mirror *m, union shadow_role role, node_t id, enum gpte_kind kind, gpte_t value)
{
    uint32_t n;

    if (kind == GPTE_FOREIGN)
        return;
    if (kind != GPTE_TABLE) {
        rmap_unlink(m, rmap_head(m, rmap_size_of(role), gpte_gfn(value)), id);
        return;
    }
    n = shadow_find(m, gpte_gfn(value), mmu_child_role(role));
    assert(n);
    rmap_unlink(m, &page_at(m, n)->parents, id);
    if (!page_at(m, n)->parents && !page_at(m, n)->root)
        shadow_orphan(m, n);
}

uint32_t shadow_granule(struct mirror *m, uint32_t page, unsigned int group)
{
    struct shadow_page *p = page_at(m, page);
    uint32_t *index = &p->index[group / INDEX_GRANULES], n = page_granule(m, p, group);

    if (n)
        return n;
    if (!*index) {
        *index = mirror_take(m, &m->blocks);
        if (!*index)
            return 0;
        memset(block_at(m, *index), 0, sizeof(union block));
    }
    n = mirror_take(m, &m->granules);
    if (n) {
        *granule_at(m, n) = (struct granule){.page = page, .group = (uint8_t)group};
        block_at(m, *index)->granule[group % INDEX_GRANULES] = n;
    }
    return n;
}

void shadow_granule_put(struct mirror *m, struct shadow_page *p, unsigned int group)
{
    uint32_t n = page_granule(m, p, group);

    assert(!granule_at(m, n)->present && !granule_at(m, n)->links);
    pool_put(&m->granules, n);
    block_at(m, p->index[group / INDEX_GRANULES])->granule[group % INDEX_GRANULES] = 0;
}

void shadow_zap_entries(struct mirror *m, struct shadow_page *p)
{
    for (unsigned int group = 0; group < page_groups(p); group++) {
        uint32_t n = page_granule(m, p, group);
        struct granule *g;

        if (!n)
            continue;
        g = granule_at(m, n);
        while (g->present) {
            unsigned int slot = (unsigned int)__builtin_ctz(g->present);

            shadow_unlink(m, page_role(p), node_id(n, slot), granule_kind(g, slot, page_role(p)), g->value[slot]);
            g->present &= (uint16_t)(g->present - 1);
            m->stats.entries_unlinked++;
        }
        shadow_granule_put(m, p, group);
    }
    for (unsigned int i = 0; i < ARRAY_SIZE(p->index); i++) {
        if (p->index[i])
            pool_put(&m->blocks, p->index[i]);
        p->index[i] = 0;
    }
    m->stats.entries -= p->present;
    p->present = 0;
}

/* -- freeing ------------------------------------------------------------------- */

void shadow_orphan(struct mirror *m, uint32_t page)
{
    struct shadow_page *p = page_at(m, page);

    if (p->flags & PAGE_ORPHAN)
        return;
    p->flags |= PAGE_ORPHAN;
    p->orphan_next = m->orphans;
    m->orphans = page;
}

static void shadow_free(struct mirror *m, uint32_t page)
{
    struct shadow_page *p = page_at(m, page);
    uint32_t *at = &m->hash[hash_of(m, p->gfn)];

    shadow_zap_entries(m, p);
    shadow_unqueue(m, page);
    shadow_watch(m, p, false);
    while (*at != page)
        at = &page_at(m, *at)->hash_next;
    *at = p->hash_next;
    m->stats.pages[page_role(p).level]--;
    m->stats.incomplete -= (p->flags & PAGE_INCOMPLETE) != 0;
    m->stats.stale -= (p->flags & PAGE_FLOODED) != 0;
    m->stats.zapped_pages++;
    p->role = 0;
    pool_put(&m->pages, page);
}

/* Freeing a table orphans its children, which join the list: a loop, not a recursion. */
void shadow_reap(struct mirror *m)
{
    while (m->orphans) {
        uint32_t page = m->orphans;
        struct shadow_page *p = page_at(m, page);

        m->orphans = p->orphan_next;
        p->flags &= (uint8_t)~PAGE_ORPHAN;
        if (!p->parents && !p->root)
            shadow_free(m, page);
    }
}

/* -- life ---------------------------------------------------------------------- */

static int heads_map(struct mirror *m)
{
    for (unsigned int s = 0; s < RMAP_SIZES; s++) {
        size_t bytes = (size_t)((m->gfn_end >> rmap_shift[s]) + 1) * sizeof(node_t);
        void *heads = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (heads == MAP_FAILED)
            return -ENOMEM;
        m->heads[s] = heads;
        m->heads_bytes[s] = bytes;
    }
    return 0;
}

static int pools_init(struct mirror *m)
{
    uint64_t bytes = m->max_memory;
    int r = pool_init(&m->pages, sizeof(struct shadow_page), (uint32_t)MIN(bytes / sizeof(struct shadow_page), MAX_GRANULES));

    if (r == 0)
        r = pool_init(&m->granules, sizeof(struct granule), (uint32_t)MIN(bytes / sizeof(struct granule), MAX_GRANULES));
    if (r == 0)
        r = pool_init(&m->blocks, sizeof(union block), (uint32_t)MIN(bytes / sizeof(union block), MAX_GRANULES));
    return r;
}

int mirror_new(const struct mirror_config *config, struct mirror **ret)
{
    struct mirror *m;
    unsigned int slots;
    const struct mem_slot *slot = mem_slots(config->mem, &slots);
    int r = -ENOMEM;

    if (config->cpu.maxphyaddr < 32 || config->cpu.maxphyaddr > 52 ||
        (config->max_memory && config->max_memory < MIRROR_MAX_MEMORY_MIN))
        return -EINVAL;
    m = calloc(1, sizeof(*m));
    if (!m)
        return -ENOMEM;
    m->mem = config->mem;
    m->cpu = config->cpu;
    m->max_memory = config->max_memory ? config->max_memory : MIRROR_MAX_MEMORY_DEFAULT;
    m->floods_on = !config->no_floods;
    m->ops = config->ops;
    m->ops_ctx = config->ops_ctx;
    m->gfn_end = gpa_to_gfn(slot[slots - 1].base + slot[slots - 1].size);
    m->last_written = GFN_INVALID;
    m->hash = calloc(HASH_MIN, sizeof(*m->hash));
    m->hash_mask = HASH_MIN - 1;
    if (m->hash)
        r = heads_map(m);
    if (r == 0)
        r = pools_init(m);
    if (r < 0)
        mirror_free(m);
    else
        *ret = m;
    return r;
}

void mirror_free(struct mirror *m)
{
    if (!m)
        return;
    for (unsigned int s = 0; s < RMAP_SIZES; s++)
        if (m->heads[s])
            munmap(m->heads[s], m->heads_bytes[s]);
    pool_clear(&m->pages);
    pool_clear(&m->granules);
    pool_clear(&m->blocks);
    free(m->hash);
    free(m->roots);
    free(m);
}

/* -- facts --------------------------------------------------------------------- */

/* What the kernel has given for an area that is reserved whole. */
static uint64_t resident(void *area, size_t bytes)
{
    const size_t step = 4096; /* pages asked about at a time */
    unsigned char state[4096];
    size_t pages = DIV_ROUND_UP(bytes, GUEST_PAGE_SIZE);
    uint64_t found = 0;

    for (size_t first = 0; first < pages; first += step) {
        size_t n = MIN(step, pages - first);

        if (mincore((uint8_t *)area + first * GUEST_PAGE_SIZE, n * GUEST_PAGE_SIZE, state) < 0)
            return bytes;
        for (size_t i = 0; i < n; i++)
            found += state[i] & 1;
    }
    return found * GUEST_PAGE_SIZE;
}

uint32_t mirror_tables(const struct mirror *m)
{
    return m->pages.used;
}

void mirror_stats(const struct mirror *m, struct mirror_stats *ret)
{
    *ret = m->stats;
    ret->memory = memory_used(m);
    ret->frame_memory = 0;
    for (unsigned int s = 0; s < RMAP_SIZES; s++)
        ret->frame_memory += resident(m->heads[s], m->heads_bytes[s]);
    ret->table_memory = 0;
    for (unsigned int level = 1; level < ARRAY_SIZE(ret->pages); level++)
        ret->table_memory += ret->pages[level] * GUEST_PAGE_SIZE;
}
