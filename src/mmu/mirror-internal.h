/*
 * How the mirror is stored. Guest tables are mostly empty and their entries stand in clusters, so entries are kept in
 * granules of 16 that exist only where something is present, and the links of a chain only where a frame has more than
 * one mapping:
 *
 *   struct shadow_page   one a table and role                             64 bytes
 *   index                which granule holds which 16 entries            128 bytes a 512 entries
 *   struct granule       16 decoded entries of 4 bytes, and what they are  84 bytes
 *   struct links         next and previous of 16 entries                 128 bytes, only with an entry in a chain of two or more
 *
 * A node id names an entry: granule * 16 + slot, so the way from a chain to its entry is a multiplication. A head is 0 (no
 * mapping), an id (one mapping: costs nothing else), or the id of the first one with CHAIN_MANY set.
 */
#ifndef UMBRA_MMU_MIRROR_INTERNAL_H
#define UMBRA_MMU_MIRROR_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "mmu/mirror.h"
#include "mmu/pool.h"
#include "mmu/walk.h"

#define GRANULE_ENTRIES 16u
#define INDEX_GRANULES 32u /* of one index block: 512 entries */
#define MAX_GROUPS 64u     /* granules of a 1024-entry table */

typedef uint32_t node_t;
#define CHAIN_MANY (UINT32_C(1) << 31)

struct granule {
    uint32_t page;   /* whose */
    uint8_t group;   /* entries group * 16 to group * 16 + 15 of the table */
    uint8_t chained; /* how many of its entries are in chains with links */
    uint16_t present;
    uint16_t large;   /* maps a large page */
    uint16_t foreign; /* present and not linked */
    uint16_t write_off; /* write access was taken off for the dirty log; ends when the guest changes the entry */
    uint16_t spare;
    uint32_t links;   /* number of its struct links, or 0 */
    gpte_t value[GRANULE_ENTRIES];
};
_Static_assert(sizeof(struct granule) == 84, "memory a page is a promise");

struct link {
    node_t next, prev; /* 0: none */
};
/* Links and index blocks have one size and come from one pool. */
union block {
    struct link link[GRANULE_ENTRIES];
    uint32_t granule[INDEX_GRANULES];
};
_Static_assert(sizeof(union block) == 128, "links and index blocks share a pool");

enum {
    PAGE_UNSYNC = 1 << 0,     /* on the list of tables to read */
    PAGE_ORPHAN = 1 << 1,     /* on the list of pages to free */
    PAGE_INCOMPLETE = 1 << 2, /* out of memory while it was read */
    PAGE_FLOODED = 1 << 3,    /* let go of: looked at now and then */
    PAGE_DATA = 1 << 4,       /* flooded, and its contents are no page table: entries dropped */
    PAGE_WATCHED = 1 << 5,    /* the owner was told to watch its frame, for this page */
    PAGE_NEW = 1 << 6,        /* never read */
};

struct shadow_page {
    uint32_t gfn;
    uint32_t role; /* union shadow_role; level 0: the page is free */
    uint32_t hash_next;
    node_t parents; /* head: entries that point at it */
    uint32_t index[2];
    uint32_t work_prev, work_next; /* PAGE_UNSYNC: neighbours in the list of its level */
    uint32_t orphan_next;
    uint32_t root; /* number of its root + 1, or 0 */
    uint16_t present;
    uint8_t flags;
    uint8_t streak;      /* ticks or writes in a row that changed it */
    uint8_t quiet;       /* looks in a row that found a flooded table unchanged */
    uint32_t last_tick;  /* when it was last found changed */
    uint32_t next_look;  /* flooded: tick of the next look */
    uint32_t checksum;   /* PAGE_DATA: of the contents at the last look */
};
_Static_assert(sizeof(struct shadow_page) <= 64, "memory a page is a promise");

/* Sizes of what a leaf maps; 4 MiB pages exist in 32-bit paging only. */
enum rmap_size { RMAP_4K, RMAP_2M, RMAP_4M, RMAP_1G, RMAP_SIZES };
extern const uint8_t rmap_shift[RMAP_SIZES]; /* frames of one page, as a shift */

/* A flooded table is looked at every so many ticks. */
#define FLOOD_LOOK_TICKS 8u

#include "mmu/flood.h"

struct root {
    struct mmu_root info;
    uint32_t page; /* 0: a free slot */
};

struct mirror {
    struct mem *mem;
    struct gpt_cpu cpu;
    uint64_t max_memory;
    bool floods_on;
    const struct mirror_ops *ops;
    void *ops_ctx;
    gfn_t gfn_end; /* frames of RAM are below this */

    struct pool pages, granules, blocks;
    uint32_t *hash; /* first page of a bucket, by gfn */
    uint32_t hash_mask;
    node_t *heads[RMAP_SIZES];
    size_t heads_bytes[RMAP_SIZES];

    struct root *roots;
    uint32_t root_slots; /* slots ever used */
    uint32_t root_room;
    uint64_t generation;
    bool evict_told; /* the log has it that max_memory is reached */

    uint32_t unsync[6]; /* first table to read, by level */
    bool sync_force;    /* of the sync at hand */
    bool sync_starved;  /* it met a lack of memory */
    uint32_t orphans;

    uint32_t tick;
    gfn_t last_written;
    uint32_t written_in_row;
    struct mmu_flood floods[MIRROR_FLOODS_MAX];
    uint64_t flood_count;

    struct mirror_stats stats; /* the counters, pages[] and entries are kept here */
};

/* -- access: sizes are constants here, pool_at would load them ------------------ */

static inline struct shadow_page *page_at(const struct mirror *m, uint32_t page)
{
    return (struct shadow_page *)(void *)m->pages.base + page;
}

static inline struct granule *granule_at(const struct mirror *m, uint32_t granule)
{
    return (struct granule *)(void *)m->granules.base + granule;
}

static inline union block *block_at(const struct mirror *m, uint32_t block)
{
    return (union block *)(void *)m->blocks.base + block;
}

static inline uint32_t page_number(const struct mirror *m, const struct shadow_page *p)
{
    return (uint32_t)((size_t)((const uint8_t *)p - m->pages.base) / sizeof(*p));
}

static inline union shadow_role page_role(const struct shadow_page *p)
{
    return (union shadow_role){.word = p->role};
}

static inline node_t node_id(uint32_t granule, unsigned int slot)
{
    return granule * GRANULE_ENTRIES + slot;
}

static inline struct granule *node_granule(const struct mirror *m, node_t id)
{
    return granule_at(m, id / GRANULE_ENTRIES);
}

/* The number of an entry in its table. */
static inline unsigned int node_entry(const struct mirror *m, node_t id)
{
    return node_granule(m, id)->group * GRANULE_ENTRIES + id % GRANULE_ENTRIES;
}

static inline gpte_t node_value(const struct mirror *m, node_t id)
{
    return node_granule(m, id)->value[id % GRANULE_ENTRIES];
}

static inline uint32_t page_granule(const struct mirror *m, const struct shadow_page *p, unsigned int group)
{
    uint32_t index = p->index[group / INDEX_GRANULES];

    return index ? block_at(m, index)->granule[group % INDEX_GRANULES] : 0;
}

static inline unsigned int page_groups(const struct shadow_page *p)
{
    union shadow_role role = page_role(p);

    return role.glevels == 2 ? 64 : role.glevels == 3 && role.level == 3 ? 1 : 32;
}

static inline gpte_t gpte_gfn(gpte_t value)
{
    return value & GPTE_GFN_MASK;
}

/* What an entry is, from its granule's masks. */
static inline enum gpte_kind granule_kind(const struct granule *g, unsigned int slot, union shadow_role role)
{
    unsigned int bit = 1u << slot;

    if (!(g->present & bit))
        return GPTE_NONE;
    if (g->foreign & bit)
        return GPTE_FOREIGN;
    if (g->large & bit)
        return GPTE_LARGE;
    return role.level == 1 ? GPTE_LEAF : GPTE_TABLE;
}

/* -- mirror.c ------------------------------------------------------------------ */

/* A number from a pool, or 0 when max_memory is reached or the host has none. */
uint32_t mirror_take(struct mirror *m, struct pool *pool);

uint32_t shadow_find(const struct mirror *m, gfn_t gfn, union shadow_role role);
/* The pages of a frame, in all roles: start with 0, ends with 0. */
uint32_t shadow_next_of(const struct mirror *m, gfn_t gfn, uint32_t after);
/* Find or make; a new page is on the list of tables to read. 0 when there is no memory. */
uint32_t shadow_get(struct mirror *m, gfn_t gfn, union shadow_role role);
/* Link an entry to what it points at, or take the link back. -ENOMEM, and nothing changed. */
int shadow_link(struct mirror *m, union shadow_role role, node_t id, enum gpte_kind kind, gpte_t value);
void shadow_unlink(struct mirror *m, union shadow_role role, node_t id, enum gpte_kind kind, gpte_t value);
/* The granule of a group, made if need be; 0 when there is no memory. It goes by shadow_granule_put when it is empty. */
uint32_t shadow_granule(struct mirror *m, uint32_t page, unsigned int group);
void shadow_granule_put(struct mirror *m, struct shadow_page *p, unsigned int group);
/* Drop all entries. */
void shadow_zap_entries(struct mirror *m, struct shadow_page *p);
/* It has neither parents nor a root: free it at the end of the operation, unless it finds one. */
void shadow_orphan(struct mirror *m, uint32_t page);
/* Free the orphans. Every public function that may leave some ends with it. */
void shadow_reap(struct mirror *m);
void shadow_watch(struct mirror *m, struct shadow_page *p, bool on);
void shadow_queue(struct mirror *m, uint32_t page);
void shadow_unqueue(struct mirror *m, uint32_t page);

/* -- rmap.c ------------------------------------------------------------------- */

enum rmap_size rmap_size_of(union shadow_role role);
static inline node_t *rmap_head(const struct mirror *m, enum rmap_size size, gfn_t gfn)
{
    return &m->heads[size][gfn >> rmap_shift[size]];
}

/* Add an entry to a chain; -ENOMEM and nothing changed when links are needed and there is no memory. */
int rmap_link_chain(struct mirror *m, node_t *head, node_t id);
static inline int rmap_link(struct mirror *m, node_t *head, node_t id)
{
    if (*head)
        return rmap_link_chain(m, head, id);
    *head = id;
    return 0;
}

/* Take it out of the chain it is in. */
void rmap_unlink_chain(struct mirror *m, node_t *head, node_t id);
static inline void rmap_unlink(struct mirror *m, node_t *head, node_t id)
{
    if (*head == id)
        *head = 0;
    else
        rmap_unlink_chain(m, head, id);
}

static inline node_t rmap_first(node_t head)
{
    return head & ~CHAIN_MANY;
}

/* The one after `id` in the chain of this head, or 0. */
static inline node_t rmap_next(const struct mirror *m, node_t head, node_t id)
{
    if (!(head & CHAIN_MANY))
        return 0;
    return block_at(m, node_granule(m, id)->links)->link[id % GRANULE_ENTRIES].next;
}

/* The head of the chain that an entry of that kind is in. */
node_t *rmap_head_of(const struct mirror *m, union shadow_role role, enum gpte_kind kind, gpte_t value);

/* -- sync.c ------------------------------------------------------------------- */


/* -- roots.c ------------------------------------------------------------------ */

/* Drop the root that was not seen for longest; -ENOENT when there is none but the last. */
int roots_evict(struct mirror *m);
/* What the kernel's half of a root begins with: entry 256 of 512; only for 4 and 5 levels. */
#define ROOT_USER_ENTRIES 256u
void roots_changed(struct mirror *m, struct shadow_page *p, unsigned int user_before, unsigned int user_kept);
/* A root of 4 or 5 levels was read: it is the kernel's own as long as it has no user half. */
void roots_set_kind(struct mirror *m, const struct shadow_page *p);

/* -- flood.c ------------------------------------------------------------------ */

/* Whether a flooded table is to be looked at in this tick. */
bool flood_due(const struct mirror *m, const struct shadow_page *p);
/* A table was read: `changed` in more than A/D bits. */
void flood_note(struct mirror *m, struct shadow_page *p, bool changed);
/* A look at a table that holds data; true when it has been quiet long enough to be read as a table again. */
bool flood_look_at_data(struct mirror *m, struct shadow_page *p, const void *contents, size_t size);
void flood_take_up(struct mirror *m, struct shadow_page *p);

#endif
