/*
 * The dirty log: which pages of guest memory were written, for any number of consumers, none of which loses a page.
 *
 * Sources: KVM (bitmap with manual protect, or the dirty ring) and the VMM's own writes (struct mem notes them).
 * A harvest takes what the sources have and adds it to the pending set of every consumer. A snapshot harvests, moves
 * the consumer's pending pages into its numbered epoch and returns that; until the epoch is acknowledged its pages come
 * back with the next snapshot. Whoever reads the pages' contents does so after the snapshot returned: pages are
 * protected again before the snapshot is given out, so a later write is reported again.
 *
 * Logging is on in KVM only while there is a consumer.
 *
 * Owner: the machine. Locking: one mutex inside (lock order: see ARCHITECTURE.md; "protects: consumers, their bitmaps,
 * the harvest buffers"). Every function may be called from any thread and may block for the length of a harvest, but for
 * dirty_ring_full, which a vCPU thread calls. A holder of the lock never waits for a vCPU.
 */
#ifndef UMBRA_MMU_DIRTY_H
#define UMBRA_MMU_DIRTY_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "mmu/mem.h"
#include "mmu/types.h"

#define DIRTY_MAX_CONSUMERS 16
#define DIRTY_NAME_MAX 32

struct dirty_log;

enum dirty_backend {
    DIRTY_BITMAP,
    DIRTY_RING,
};

/* What KVM does for the log, given from above. Each returns 0 or -errno. */
struct dirty_ops {
    /* Set or clear KVM_MEM_LOG_DIRTY_PAGES on every slot. */
    int (*set_logging)(void *opaque, bool on);
    /* KVM_GET_DIRTY_LOG; `bitmap` has a bit for each page of the slot. */
    int (*get)(void *opaque, uint32_t slot, uint64_t *bitmap);
    /* KVM_CLEAR_DIRTY_LOG: first_page is a multiple of 64, so is num_pages (or it ends the slot). */
    int (*clear)(void *opaque, uint32_t slot, uint64_t first_page, uint32_t num_pages, const uint64_t *bitmap);
    /* KVM_RESET_DIRTY_RINGS; the number of entries KVM took back, or -errno. */
    int (*reset_rings)(void *opaque);
    /* Make every vCPU leave the guest once, so that what the CPU buffers (PML) is in the log. May be NULL. */
    int (*kick_vcpus)(void *opaque);
};

struct dirty_config {
    enum dirty_backend backend;
    /* KVM sets every bit when logging is switched on and protects nothing (KVM_DIRTY_LOG_INITIALLY_SET). */
    bool initially_set;
    const struct dirty_ops *ops;
    void *opaque;
};

int dirty_log_new(struct mem *mem, const struct dirty_config *config, struct dirty_log **ret);
void dirty_log_free(struct dirty_log *log);
enum dirty_backend dirty_log_backend(const struct dirty_log *log);

/* Ring backend: the ring of one vCPU, mapped by the caller and valid for the life of the log. Before the guest runs. */
int dirty_log_add_ring(struct dirty_log *log, struct kvm_dirty_gfn *ring, uint32_t entries);

/* A vCPU left with KVM_EXIT_DIRTY_RING_FULL: take the entries of all rings and give the rings back. vCPU threads. */
int dirty_log_ring_full(struct dirty_log *log);

enum dirty_start_mode {
    DIRTY_START_CHANGES, /* the first snapshot gives what was written since the start */
    DIRTY_START_ALL,     /* the first snapshot gives every page (a full copy is to be made) */
};

/* -EEXIST (name in use), -ENOSPC (DIRTY_MAX_CONSUMERS), -EINVAL (name), -errno of KVM. */
int dirty_log_start(struct dirty_log *log, const char *name, enum dirty_start_mode mode);
/* -ENOENT. The last one to stop switches logging off. */
int dirty_log_stop(struct dirty_log *log, const char *name);

struct dirty_snapshot {
    uint64_t epoch;      /* number of this snapshot, from 1; unchanged by a peek */
    uint64_t pages;      /* pages in it */
    bool lost;           /* a page may be missing: after a failure of KVM, until the next DIRTY_START_ALL */
    uint64_t harvest_ns; /* time the harvest took */
    /* Borrowed: the epoch's bitmap, one bit a RAM page, dirty_log_words long; valid until dirty_log_unlock. */
    const uint64_t *bitmap;
};

/*
 * Take a snapshot for the consumer and leave the log locked, so that the caller can read ret->bitmap; the caller then
 * calls dirty_log_unlock. With `peek` nothing moves: the result is what a snapshot would give, and in bitmap mode
 * nothing is protected again, so the guest pays nothing. On an error the log is not locked. -ENOENT, -errno of KVM.
 */
int dirty_log_snapshot_lock(struct dirty_log *log, const char *name, bool peek, struct dirty_snapshot *ret);
void dirty_log_unlock(struct dirty_log *log);
size_t dirty_log_words(const struct dirty_log *log);

/* The newest epoch of the consumer is safely dealt with: forget its pages. -ENOENT (name), -EINVAL (not the newest). */
int dirty_log_ack(struct dirty_log *log, const char *name, uint64_t epoch);

/* Ranges of a snapshot's bitmap as guest frames; a range lies in one slot. */
struct dirty_range {
    gfn_t gfn;
    uint64_t pages;
};
/* Write at most max ranges, starting with the RAM page *cursor (0 at first); advances *cursor; the number written. */
size_t dirty_ranges(const struct mem *mem, const uint64_t *bitmap, pfn_t *cursor, struct dirty_range *out, size_t max);

struct dirty_consumer_info {
    char name[DIRTY_NAME_MAX + 1];
    enum dirty_start_mode mode;
    uint64_t epoch;          /* newest snapshot, 0 before the first */
    uint64_t pending;        /* pages harvested and in no epoch yet */
    uint64_t unacknowledged; /* pages in the newest epoch */
    uint64_t snapshots;      /* totals */
    uint64_t pages;
    bool lost;
};
/* Fill at most max; the number of consumers. Does not harvest. */
size_t dirty_log_consumers(struct dirty_log *log, struct dirty_consumer_info *out, size_t max);

/* Counters since the log was made; reading them takes no lock. */
struct dirty_stats {
    uint64_t harvests;
    uint64_t harvest_ns;
    uint64_t pages;      /* pages reported by the sources */
    uint64_t vmm_pages;  /* of them, written by the VMM only */
    uint64_t get_ioctls;
    uint64_t clear_ioctls;
    uint64_t clear_words;
    uint64_t ring_full;  /* exits */
    uint64_t ring_entries;
};
void dirty_log_stats(const struct dirty_log *log, struct dirty_stats *ret);

#endif
