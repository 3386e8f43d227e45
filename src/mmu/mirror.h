/*
 * The mirror: a shadow, in user space, of every guest page table that a known root reaches, with the reverse map of every
 * frame. It knows guest memory (mem.h) and nothing of vCPUs; whoever owns it says which roots there are, when to look again
 * (mirror_sync), or which tables were written (mirror_written).
 *
 * The guest writes its page tables, so nothing in them is believed: an entry outside of RAM or with reserved bits set is
 * noted and not followed; a frame is mirrored at most once a level and paging mode, so loops and self maps end; and
 * all of it takes at most max_memory. Where the mirror could not follow it says so (struct mirror_stats.incomplete).
 *
 * Threads: one lock of the caller's around all calls for one mirror. No call blocks but for memory.
 */
#ifndef UMBRA_MMU_MIRROR_H
#define UMBRA_MMU_MIRROR_H

#include <stdbool.h>
#include <stdint.h>

#include "mmu/mem.h"
#include "mmu/types.h"
#include "mmu/walk.h"

#define MIRROR_MAX_MEMORY_DEFAULT (UINT64_C(256) << 20)
#define MIRROR_MAX_MEMORY_MIN (UINT64_C(1) << 20)

struct mirror;

struct mirror_ops {
    /*
     * A frame has become a mirrored table (on), before it is first read; or is none any more, or is let go because it is
     * flooded (off). For sources that protect tables. May be NULL; must not call the mirror.
     */
    void (*watch)(void *ctx, gfn_t gfn, bool on);
};

struct mirror_config {
    struct mem *mem;
    struct gpt_cpu cpu;
    uint64_t max_memory;   /* bytes for pages, entries and links; 0: the default */
    bool no_floods;        /* leave flood protection out, for comparison */
    const struct mirror_ops *ops;
    void *ops_ctx;
};

enum mmu_root_kind {
    MMU_ROOT_KERNEL,  /* no user half: the kernel's own (Linux: swapper) */
    MMU_ROOT_USER,    /* an address space of a process, its kernel half included */
    MMU_ROOT_KPTI,    /* what runs user code under KPTI: shares user tables with its partner */
};

struct mmu_root {
    gpa_t cr3;           /* address bits only */
    struct mmu_paging paging;
    enum mmu_root_kind kind;
    uint64_t generation; /* grows when the frame is a new address space's root */
    uint64_t seen_ns;    /* last time it was some vCPU's CR3, or was found */
    bool pinned;         /* never retired */
};

struct mirror_stats {
    uint32_t roots;
    uint32_t pages[6];     /* shadow pages by level, 1 to 5 */
    uint64_t entries;      /* present entries mirrored */
    uint64_t memory;       /* bytes of host memory for pages, entries, links */
    uint64_t frame_memory; /* and for the heads: grows with guest RAM that is mapped, not with tables */
    uint64_t table_memory; /* guest memory the mirrored tables take */
    uint64_t incomplete;   /* tables that are not mirrored as they are: out of memory. 0: the mirror is whole */
    uint64_t stale;        /* tables let go of (floods): their entries are of the last look */
    /* Counted since mirror_new. */
    uint64_t syncs, tables_read, tables_changed, entries_linked, entries_unlinked, entries_updated, ad_updates, bulk_clears;
    uint64_t zapped_pages, floods, roots_added, roots_dropped, roots_evicted;
};

/* An empty mirror of guest memory that outlives it. 0, -EINVAL (configuration) or -ENOMEM. */
int mirror_new(const struct mirror_config *config, struct mirror **ret);
/* NULL is fine. */
void mirror_free(struct mirror *m);

/* Costs some time: it asks how much memory the heads of frames take. */
void mirror_stats(const struct mirror *m, struct mirror_stats *ret);
uint32_t mirror_tables(const struct mirror *m);

/*
 * A root. Adding one that is there already only marks it as seen, and as a KPTI half if it is added as one. The tables below it are read by the next sync. 0, -EINVAL
 * (paging mode), -EFAULT (not in RAM) or -ENOMEM (also: max_memory is reached, and roots were dropped for it).
 */
int mirror_root_add(struct mirror *m, gpa_t cr3, const struct mmu_paging *paging, enum mmu_root_kind kind, uint64_t now_ns);
/* A vCPU has it as CR3. -ENOENT when it is no known root. */
int mirror_root_seen(struct mirror *m, gpa_t cr3, const struct mmu_paging *paging, uint64_t now_ns);
/* Its tables go with it unless other roots share them. -ENOENT when it is none. */
int mirror_root_drop(struct mirror *m, gpa_t cr3, const struct mmu_paging *paging);
/* Never retire it (the kernel's own root). -ENOENT when it is none. */
int mirror_root_pin(struct mirror *m, gpa_t cr3, const struct mmu_paging *paging);
/*
 * Drop roots that were freed: user half empty, not pinned, not seen for idle_ns. The number of them.
 * Only 4- and 5-level roots that are no KPTI half are judged; a KPTI half goes with its partner.
 */
uint32_t mirror_roots_retire(struct mirror *m, uint64_t now_ns, uint64_t idle_ns);
/* Go through the roots: start with *cursor 0; false at the end. No root may be added or dropped in between. */
bool mirror_root_known(const struct mirror *m, gpa_t cr3, const struct mmu_paging *paging);
bool mirror_root_next(const struct mirror *m, uint32_t *cursor, struct mmu_root *ret);

/*
 * Read every mirrored table again, top level first, and take over what changed. Tables that are flooded are only looked at
 * now and then, unless `force`. 0, or -ENOMEM: max_memory is reached, roots were dropped for it and it is still not
 * enough; stats.incomplete tells.
 */
int mirror_sync(struct mirror *m, bool force);
/* The same for tables in these frames alone (any order, frames that are no tables are skipped). */
int mirror_sync_gfns(struct mirror *m, const gfn_t *gfns, size_t count);
/*
 * Both in pieces: begin queues the tables, step reads at most that many of them, and of those that are found on the way. 1: there
 * are more; else as mirror_sync. Between two steps everything else may be called, and the mirror agrees with itself.
 */
void mirror_sync_begin(struct mirror *m, bool force);
void mirror_sync_begin_gfns(struct mirror *m, const gfn_t *gfns, size_t count);
int mirror_sync_step(struct mirror *m, uint32_t tables);
/* Read the tables that were let go of, and those that are queued: then the mirror has all that its source heard of. */
int mirror_sync_stale(struct mirror *m);
/* Tell `watch` of every frame that is to be watched: a source that begins. */
void mirror_watch_all(struct mirror *m);

/*
 * The event path: the guest wrote to a protected table. Allocates nothing, reads nothing. True: the table is flooded, let
 * it go (watch was called with off); false: it will be read by the next mirror_sync_gfns.
 */
bool mirror_written(struct mirror *m, gfn_t gfn);

/* True when the frame is mirrored as a table. */
bool mirror_is_table(const struct mirror *m, gfn_t gfn);

/*
 * Hold the mirror against a fresh walk of every root. Costs about as much as walking them; for a guest that stands still,
 * right after mirror_sync(m, true): then all counts are zero.
 */
struct mirror_verdict {
    uint64_t missing;      /* present in the guest, not in the mirror */
    uint64_t extra;        /* in the mirror, not in the guest */
    uint64_t mismatched;   /* in both, and different */
    uint64_t broken_links; /* reverse map or parent links that do not agree with the entries */
    uint32_t roots;        /* compared */
    uint32_t tables;       /* compared */
};
int mirror_verify(struct mirror *m, struct mirror_verdict *ret);

#endif
