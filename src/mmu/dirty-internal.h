/* Between dirty.c (consumers, epochs) and its sources (dirty-bitmap.c, dirty-ring.c). */
#ifndef UMBRA_MMU_DIRTY_INTERNAL_H
#define UMBRA_MMU_DIRTY_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "mmu/dirty.h"
#include "mmu/mem.h"
#include "mmu/pageset.h"

struct dirty_consumer {
    char name[DIRTY_NAME_MAX + 1];
    enum dirty_start_mode mode;
    struct page_set pending; /* harvested, in no epoch */
    struct page_set unacked; /* the newest epoch, until it is acknowledged */
    uint64_t epoch;
    uint64_t snapshots, pages;
    bool lost;
};

/* One vCPU's ring, shared with KVM. Entries from `next` on are KVM's to fill and ours to take, in order. */
struct dirty_ring {
    struct kvm_dirty_gfn *entries;
    uint32_t mask;
    uint32_t next;  /* free-running index of the entry to look at next */
    uint32_t taken; /* entries from `next` on that the harvest at hand takes */
    uint32_t given; /* entries before `next` that KVM was not seen to have taken back */
    uint32_t total; /* pages read so far, modulo 2^32 */
    bool adrift;    /* KVM goes on somewhere beyond `next`, and what lies between is empty */
    bool broken;    /* KVM's place is not known; mended when its vCPU is out of KVM_RUN */
    uint32_t least; /* broken: so many entries at least KVM has to take back before it is where it writes */
    bool was_empty; /* when KVM said that it is full, with `next` at `empty_at` */
    uint32_t empty_at;
};

struct dirty_log {
    /* Constant. */
    struct mem *mem;
    struct dirty_config config;
    const struct mem_slot *slots;
    unsigned int slot_count;

    pthread_mutex_t lock; /* protects all below, but for the counters, which are atomic and written under it */
    struct dirty_consumer *consumers[DIRTY_MAX_CONSUMERS];
    size_t consumer_count;
    bool logging; /* KVM logs, or may do so after a failure; written under the lock, atomic for those who ask without */
    bool peeked;  /* `harvest` is on loan as the result of a peek */
    /*
     * What the harvest at hand takes. Empty between harvests, so that a consumer without pending pages can have it in
     * exchange for its own empty set.
     */
    struct page_set harvest;
    bool harvest_lost; /* the source gave a page that cannot be */

    struct page_set tap; /* harvested since the listener's last look */
    bool tap_on;
    bool tap_whole; /* nothing went unheard since then */

    struct dirty_ring *rings;
    size_t ring_count;
    bool rings_taken; /* entries were taken that KVM has not taken back: their pages are not protected */
    bool rings_spilt; /* entries were overwritten: the harvest at hand is of every page */
    bool unprotected; /* and pages that they named may be written unheard: protect all anew */

    struct dirty_stats stats;
};

static inline void dirty_count(uint64_t *counter, uint64_t n)
{
    /* One writer at a time: only the store must be whole. */
    __atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

/*
 * The sources. setup: settle the configuration, once. take: add KVM's dirty pages to log->harvest, which is empty, and
 * protect them again; on -errno what was taken is in there all the same, and nothing may be given out as a snapshot.
 * look: add them and change nothing. All under the lock.
 */
void dirty_bitmap_setup(struct dirty_log *log);
int dirty_bitmap_take(struct dirty_log *log);
int dirty_bitmap_look(struct dirty_log *log);
/* What `look` left in log->harvest: keep only the pages of `only`, and protect those again. */
int dirty_bitmap_take_only(struct dirty_log *log, const struct page_set *only);

/* `own` is of the vCPU that calls, or NULL. Without `whole` other rings that are nearly full are left to their own vCPUs. */
int dirty_ring_take(struct dirty_log *log, const struct dirty_ring *own, bool whole);
/* -EAGAIN: entries were overwritten, which of the pages are dirty is not known. */
int dirty_ring_look(struct dirty_log *log);
/* Some ring is so full that it had better be taken by its own vCPU. */
bool dirty_ring_crowded(const struct dirty_ring *ring);
/*
 * Find KVM's place in a ring whose vCPU is out of KVM_RUN, if it is not known; `full`: KVM says that the ring is. 0 or -errno:
 * it is not known yet.
 */
int dirty_ring_mend(struct dirty_log *log, struct dirty_ring *ring, bool full);

#endif
