/* A snapshot that is being taken: what snapshot.c, which runs it, and snapshot-copy.c, which copies memory, share. */
#ifndef UMBRA_MIGRATE_SNAPSHOT_JOB_H
#define UMBRA_MIGRATE_SNAPSHOT_JOB_H

#include <event2/event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "migrate/snapshot-meta.h"
#include "migrate/snapshot-out.h"
#include "migrate/snapshot.h"
#include "mmu/dirty.h"
#include "mmu/mem.h"

/* What the thread asks of the main thread. */
enum call {
    CALL_NONE,
    CALL_HOLD,
    CALL_HOLDING, /* the main thread does it: only its end is an answer */
    CALL_END,
};

/* Pages copied while the guest stood still. */
struct aside {
    uint8_t *data; /* what is likely to be needed is there, so that no page fault takes time */
    uint64_t *page;
    uint32_t room, count;
};

struct snapshotter {
    struct mem *mem;
    struct dirty_log *log;
    struct snapshot_ops ops;
    int call_fd;
    struct event *call_event;

    /* Main thread. The snapshot that the consumer's pages are relative to; tracked_path is NULL when there is none. */
    char tracked_id[SNAPSHOT_ID_LEN + 1];
    unsigned int tracked_depth; /* of the chain that it ends, at most: a part of it may have been merged */
    char *tracked_path;
    bool running;
    pthread_t thread;

    pthread_mutex_t lock; /* protects what follows, and is held for a few instructions only */
    pthread_cond_t answered;
    enum call call;
    struct snapshot_status status;
    uint64_t start_ns;

    atomic_bool cancel;

    /* The job: the thread's, and the main thread's during CALL_HOLDING. */
    bool diff, track, started_tracking, copying;
    struct snapshot_meta meta;
    struct snapshot_out *out;
    struct page_set todo;
    struct aside aside;
    uint8_t *buf; /* a batch of pages that are not read by the mapping */
    uint64_t copy_epoch;  /* newest of SNAPSHOT_COPY_CONSUMER */
    uint64_t track_epoch; /* of SNAPSHOT_CONSUMER, when the guest stood still */
    uint8_t *state;
    size_t state_len;
    /* The first copy of all memory is long: let it go to disk meanwhile. Later rounds race with the guest and wait for no disk. */
    bool flushing;
    uint64_t flushed; /* status.done when the page cache was told last */
    char error[SNAPSHOT_ERROR_MAX];
};

/* Put "WHAT: what err means" into s->error; returns err, which is negative. */
int snapshot_fail(struct snapshotter *s, int err, const char *what);
/* The same with what snapshot_out says. */
int snapshot_fail_out(struct snapshotter *s, int err);

/* All return 0 or -errno, with the reason in s->error. */

/*
 * Take what was written since the last time into s->todo. The pages are s's to deal with from then on: if it fails, the
 * whole snapshot does.
 */
int snapshot_copy_harvest(struct snapshotter *s, uint64_t *ret_harvest_ns);
/* Everything once, then what was written meanwhile until little is left. The job's thread; takes as long as it takes. */
int snapshot_copy_running(struct snapshotter *s);

/* Room for twice what the last round had is there, and more can be had for a page fault each. The job's thread. */
int snapshot_aside_make_room(struct snapshotter *s);
/* Copy s->todo aside, what does not fit into the snapshot. Main thread, while the guest stands still. */
int snapshot_aside_fill(struct snapshotter *s);
/* Write what lies aside. The job's thread. */
int snapshot_aside_put(struct snapshotter *s);
void snapshot_aside_clear(struct snapshotter *s);

#endif
