/*
 * The dirty log: which pages of guest memory were written, for any number of consumers, none of which loses a page.
 *
 * Sources: KVM (bitmap with manual protect, or the dirty ring) and the VMM's own writes (struct mem notes them).
 * A harvest takes what the sources have and adds it to the pending set of every consumer. A snapshot harvests, moves
 * the consumer's pending pages into its numbered epoch and returns that; until the epoch is acknowledged its pages come
 * back with the next snapshot. Whoever reads the pages' contents does so after the snapshot returned: pages are
 * protected again before the snapshot is given out, so a later write is reported again.
 *
 * Failures of KVM lose nothing: what a harvest took before it failed stays pending for every consumer, the snapshot is
 * refused, and the next one tries again.
 *
 * Logging is on in KVM only while there is a consumer.
 *
 * Owner: the machine. Locking: one mutex inside (lock order: see ARCHITECTURE.md; "protects: consumers, their sets, the
 * harvest set, the rings"). Every function may be called from any thread and may block for the length of a harvest. A
 * holder of the lock never waits for a vCPU.
 */
#ifndef UMBRA_MMU_DIRTY_H
#define UMBRA_MMU_DIRTY_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "mmu/mem.h"
#include "mmu/pageset.h"
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
    /* KVM_GET_DIRTY_LOG (with manual protect: it protects nothing); `bitmap` has a bit for each page of the slot. */
    int (*get)(void *opaque, uint32_t slot, uint64_t *bitmap);
    /* KVM_CLEAR_DIRTY_LOG: first_page is a multiple of 64, so is num_pages (or it ends the slot). */
    int (*clear)(void *opaque, uint32_t slot, uint64_t first_page, uint32_t num_pages, const uint64_t *bitmap);
    /* KVM_RESET_DIRTY_RINGS; the number of entries KVM took back (fewer than all: it is called again), or -errno. */
    int (*reset_rings)(void *opaque);
    /*
     * Ring backend: make every vCPU leave the guest once, if the CPU buffers pages (PML), so that they are in the rings, or if some
     * ring is `crowded`, so that its vCPU takes it itself (dirty_log_ring_left). It may wait for them: it is called without the
     * lock. NULL where it is never wanted.
     */
    int (*kick_vcpus)(void *opaque, bool crowded);
};

/* How the bitmap backend protects pages again after a harvest. */
enum dirty_clear {
    DIRTY_CLEAR_AUTO,   /* runs of dirty pages, merged where a gap costs less than another ioctl */
    DIRTY_CLEAR_SPARSE, /* one KVM_CLEAR_DIRTY_LOG for every run of groups (16 MiB of guest memory) with a dirty page */
    DIRTY_CLEAR_DENSE,  /* one for each slot with a dirty page, from its first to its last */
};

struct dirty_config {
    enum dirty_backend backend;
    enum dirty_clear clear;
    /*
     * Bitmap backend: KVM sets every bit when logging is switched on and protects nothing
     * (KVM_DIRTY_LOG_INITIALLY_SET). Never to be enabled in KVM with the ring: nothing would be protected, nor logged.
     */
    bool initially_set;
    /* AUTO's figures for tests and benches, 0 for the measured ones: groups of a gap that is not worth another ioctl,
     * and pages after which KVM gets another ioctl, so that the guest's faults find its MMU lock free in between. */
    uint32_t clear_gap;
    uint32_t clear_max_pages;
    const struct dirty_ops *ops;
    void *opaque;
};

/* `mem` and what `config` points to must outlive the log. -EINVAL (an operation the backend needs is missing), -ENOMEM. */
int dirty_log_new(struct mem *mem, const struct dirty_config *config, struct dirty_log **ret);
/* Forgets consumers without a word to KVM, whose VM ends too. No other thread uses the log any more. NULL is fine. */
void dirty_log_free(struct dirty_log *log);
enum dirty_backend dirty_log_backend(const struct dirty_log *log);

/* Ring backend: the ring of one vCPU, mapped by the caller and valid for the life of the log. Before the guest runs.
 * -EINVAL (bitmap backend, entries not a power of two), -ENOMEM. */
int dirty_log_add_ring(struct dirty_log *log, struct kvm_dirty_gfn *ring, uint32_t entries);

/* Entries read from the index-th ring since it was added, modulo 2^32: what one vCPU wrote. 0 where there is none. */
uint32_t dirty_log_ring_taken(struct dirty_log *log, size_t index);

/*
 * The vCPU of the index-th ring left with KVM_EXIT_DIRTY_RING_FULL: take the entries of all rings and give the rings back. Called by
 * its thread. 0, or -errno of KVM: the entries taken are pending, but the vCPU will find its ring full again.
 */
int dirty_log_ring_full(struct dirty_log *log, size_t index);
/* It left for another reason, and parks or was kicked: take its ring if that is nearly full. As above; no rings: nothing. */
int dirty_log_ring_left(struct dirty_log *log, size_t index);

enum dirty_start_mode {
    DIRTY_START_CHANGES, /* the first snapshot gives what was written since the start */
    DIRTY_START_ALL,     /* the first snapshot gives every page (a full copy is to be made) */
    DIRTY_START_LOST,    /* as ALL, of a consumer that began with another log, at the guest's source: pages are lost */
};

/*
 * Begin a consumer. The name is 1 to DIRTY_NAME_MAX bytes. -EEXIST (name in use), -ENOSPC (DIRTY_MAX_CONSUMERS), -EINVAL
 * (name), -ENOMEM, -errno of KVM; after an error there is no such consumer.
 */
int dirty_log_start(struct dirty_log *log, const char *name, enum dirty_start_mode mode);
/*
 * End a consumer. The last one to stop switches logging off. -ENOENT (name), or -errno of switching it off: the consumer
 * is gone all the same.
 */
int dirty_log_stop(struct dirty_log *log, const char *name);

struct dirty_snapshot {
    uint64_t epoch;      /* number of this snapshot, from 1; unchanged by a peek */
    uint64_t pages;      /* pages in it */
    bool lost;           /* a page may be missing from this or an earlier one; a consumer that starts anew has it false */
    uint64_t harvest_ns; /* time the harvest took */
    /* Borrowed: the set's bitmap, one bit a RAM page, dirty_log_words words; valid until dirty_log_unlock. */
    const uint64_t *bitmap;
    /* Borrowed: the set itself, for those who skip what is empty. */
    const struct page_set *set;
};

/*
 * Take a snapshot for the consumer and leave the log locked, so that the caller can read ret->bitmap; the caller then
 * calls dirty_log_unlock. With `peek` nothing moves: the result is what a snapshot would give, and nothing is protected
 * again, so the guest pays nothing. On an error the log is not locked. -ENOENT, -errno of KVM. Unlock soon: a vCPU whose
 * ring is full waits for the lock.
 */
int dirty_log_snapshot_lock(struct dirty_log *log, const char *name, bool peek, struct dirty_snapshot *ret);
void dirty_log_unlock(struct dirty_log *log);
size_t dirty_log_words(const struct dirty_log *log);

/* The newest epoch of the consumer is safely dealt with: forget its pages. Again is fine. -ENOENT (name), -EINVAL (not the
 * newest, or none was taken). */
int dirty_log_ack(struct dirty_log *log, const char *name, uint64_t epoch);

/* Ranges of a snapshot as guest frames; a range lies in one slot, and does not touch the next one of that slot. */
struct dirty_range {
    gfn_t gfn;
    uint64_t pages;
};
/* Write at most max (at least 1) ranges, starting with the RAM page *cursor (0 at first); advances *cursor; the number
 * written, 0 at the end. Under the lock of the snapshot. */
size_t dirty_ranges(const struct mem *mem, const struct dirty_snapshot *snapshot, pfn_t *cursor,
                    struct dirty_range *out, size_t max);

/*
 * The MMU tracker's ear: it hears of every page that is harvested, and may look between harvests, but starts and keeps no
 * logging of its own. One listener. -ENOMEM.
 */
int dirty_log_listen(struct dirty_log *log, bool on);
/* Whether KVM logs for some consumer at present; takes no lock. */
bool dirty_log_logging(const struct dirty_log *log);
/*
 * Add to `into` every page that was harvested since the last call or is dirty now. Bitmap backend: those in `only` are protected
 * again (GET, CLEAR), so that a later write is heard of, and become pending for every consumer, so that none loses them; the
 * rest stays as it is, for the next harvest. Ring backend: pages cannot be given back one by one, so nothing is protected,
 * and what is dirty is told again until a harvest took it. Whoever reads a page does so after this returned.
 * -ENODATA: writes went unheard since the last call (logging was off for a while, or a page was lost), look at everything;
 * it is heard of again from here on if logging is on. Else 0 or -errno of KVM, to be taken like -ENODATA.
 */
int dirty_log_early(struct dirty_log *log, const struct page_set *only, struct page_set *into);

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

/* How long harvests took: bucket i counts those of up to 16 us times 4^i, the last one all that took longer. */
#define DIRTY_TIME_BUCKETS 10
#define DIRTY_TIME_FIRST_NS UINT64_C(16000)

/* Counters since the log was made; reading them takes no lock. */
struct dirty_stats {
    uint64_t harvests;
    uint64_t harvest_ns;
    uint64_t harvest_times[DIRTY_TIME_BUCKETS]; /* of snapshots, as harvest_ns is */
    uint64_t ring_full_ns; /* vCPU time, summed up, that went by because a ring was full */
    uint64_t pages;      /* pages reported by the sources */
    uint64_t vmm_pages;  /* of them, written by the VMM only */
    uint64_t get_ioctls;
    uint64_t clear_ioctls;
    uint64_t clear_words;
    uint64_t ring_full; /* exits */
    uint64_t ring_entries;
    uint64_t ring_resets;
    uint64_t ring_overruns; /* times KVM wrote over entries, or may have: all pages were dirty then */
    uint64_t failures; /* harvests that KVM refused or broke off */
    uint64_t consumers; /* at present */
};
void dirty_log_stats(const struct dirty_log *log, struct dirty_stats *ret);

#endif
