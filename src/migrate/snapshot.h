/*
 * Take snapshots of a running guest.
 *
 * A thread of its own copies memory while the guest runs, as a consumer of the dirty log: all pages (of a diff: those
 * written since its parent), then what was written meanwhile, until little is left. Then the main thread stops the guest,
 * harvests once more, copies what is left aside and saves the machine's state; the guest goes on, and the thread writes
 * the rest and commits (snapshot-out.h). So the guest stands still for one harvest, the state, and a copy of few pages in memory,
 * however large it is and however slow the disk.
 *
 * Diffs. The consumer "snapshot" of the dirty log gathers what is written after a snapshot; it stays on from a full
 * snapshot that is to have diffs. Its epoch is acknowledged when a snapshot is safely on disk, and not before: after a failure the
 * same pages, and more, belong to the next diff. A second consumer, "snapshot-copy", tells what was written behind the copy's back.
 *
 * All functions are for the main thread, which must not wait for the snapshot but in snapshotter_free.
 */
#ifndef UMBRA_MIGRATE_SNAPSHOT_H
#define UMBRA_MIGRATE_SNAPSHOT_H

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "migrate/snapshot-meta.h"
#include "mmu/dirty.h"
#include "mmu/mem.h"

#define SNAPSHOT_CONSUMER "snapshot"
#define SNAPSHOT_COPY_CONSUMER "snapshot-copy"

struct snapshotter;

/* What the machine does for it, given from above; main thread. */
struct snapshot_ops {
    /* Stop vCPUs and devices, if they run, until release. */
    void (*hold)(void *opaque);
    void (*release)(void *opaque);
    /*
     * Held: may what it is now become a snapshot? A guest may have ended or left since the snapshot began. 0, or -errno with the
     * reason in error (SNAPSHOT_ERROR_MAX).
     */
    int (*check)(void *opaque, char *error);
    /* Save the machine's state, held; *ret is taken and freed. 0 or -errno. */
    int (*save)(void *opaque, uint8_t **ret, size_t *ret_len);
    /* Fill in paging, config and host. 0 or -errno. */
    int (*describe)(void *opaque, struct snapshot_meta *meta);
    /* A snapshot has begun or ended: look at snapshotter_status. */
    void (*changed)(void *opaque);
    /* Where snapshots may be written, said when one is refused; "" where only permissions decide. It outlives the snapshotter. */
    const char *places;
    void *opaque;
};

enum snapshot_phase {
    SNAPSHOT_NONE,
    SNAPSHOT_ACTIVE,    /* memory is being copied, the guest runs */
    SNAPSHOT_FINISHING, /* the guest stood still and runs again, the rest is being written */
    SNAPSHOT_COMPLETED,
    SNAPSHOT_FAILED,
    SNAPSHOT_CANCELLED,
};
const char *snapshot_phase_name(enum snapshot_phase phase);

struct snapshot_status {
    enum snapshot_phase phase;
    char dir[SNAPSHOT_PATH_MAX + 1];
    char id[SNAPSHOT_ID_LEN + 1];        /* when completed */
    char parent_id[SNAPSHOT_ID_LEN + 1]; /* of a diff */
    uint64_t pages;       /* to be written at first: those of guest memory, or of the diff */
    uint64_t done;        /* written so far, pages that were written again among them */
    uint64_t zero_pages;  /* in the snapshot, of them zeros */
    uint64_t stored;      /* in the snapshot */
    uint64_t rounds;      /* over what the guest wrote meanwhile */
    uint64_t final_pages; /* written while the guest stood still or after */
    uint64_t total_ns;    /* from the request until now or the end */
    uint64_t pause_ns;    /* the guest stood still; of that: */
    uint64_t harvest_ns;  /* the last harvest */
    uint64_t save_ns;     /* saving the state */
    char error[SNAPSHOT_ERROR_MAX]; /* when failed */
    bool tracking;                  /* a diff can follow */
    char tracked_id[SNAPSHOT_ID_LEN + 1]; /* on this snapshot */
};

struct snapshot_request {
    const char *dir; /* absolute */
    bool diff;
    bool track; /* full: gather what is written after it, so that diffs can follow */
};

/* `mem`, `log`, `events` and what ops point to must outlive it. -ENOMEM, -errno. */
int snapshotter_new(struct event_base *events, struct mem *mem, struct dirty_log *log, const struct snapshot_ops *ops,
                    struct snapshotter **ret);
/* Cancels what is under way and waits for its end, which is not told any more. NULL is fine. */
void snapshotter_free(struct snapshotter *s);

/*
 * Begin. -EBUSY (one is under way), -ENOENT (a diff without anything it could stand on), -errno; the reason is in
 * error (SNAPSHOT_ERROR_MAX). What goes wrong later is in the status.
 */
int snapshotter_start(struct snapshotter *s, const struct snapshot_request *request, char *error);
/* Ask it to end soon; nothing is left of it. A no-op when none is under way, or when it is all but complete. */
void snapshotter_cancel(struct snapshotter *s);
bool snapshotter_busy(const struct snapshotter *s);
/* Gather no more for diffs, until the next full snapshot. -EBUSY, -ENOENT, -errno of the dirty log. */
int snapshotter_untrack(struct snapshotter *s);

void snapshotter_status(struct snapshotter *s, struct snapshot_status *ret);

#endif
