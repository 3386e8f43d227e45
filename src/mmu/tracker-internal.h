/* What the files of the tracker share. Functions whose name begins with tick_ are called during a tick, with the lock held. */
#ifndef UMBRA_MMU_TRACKER_INTERNAL_H
#define UMBRA_MMU_TRACKER_INTERNAL_H

#include <pthread.h>

#include "base/clock.h"
#include "mmu/scan.h"
#include "mmu/source.h"
#include "mmu/tracker.h"

#define TRACKER_MAX_VCPUS 64u
#define SCAN_INTERVAL_NS (500 * NSEC_PER_MSEC)

enum tick_kind {
    TICK_SLICED,   /* the thread's own: the lock is given up between slices */
    TICK_QUESTION, /* somebody waits for the answer: in one go, the scan for roots bounded */
    TICK_SETTLED,  /* the guest stands still: all of it, in one go */
};

struct tracker {
    /* Constant. */
    struct tracker_config config;

    /*
     * `gate` makes the lock fair: whoever wants the lock holds the gate while it waits, so a tick that gives the lock up between
     * two slices and wants it back queues behind. Order: gate, lock.
     */
    pthread_mutex_t gate, lock;
    pthread_cond_t wake; /* the thread waits: running, quit, settings */
    pthread_cond_t rest; /* others wait: in_tick has ended */
    pthread_t thread;
    bool started, quit;

    /* All that follows: under the lock. */
    bool running;
    bool in_tick; /* the lock may be given up in between, but nobody else changes source, mirror or settings */
    struct tracker_settings settings;
    struct mirror *mirror;
    struct mmu_source *source; /* in use, or NULL */
    struct mmu_source *dirty, *precise;
    bool read_all; /* the next sync reads every table: a source has begun */
    struct gfn_list changed;

    uint64_t next_ns;     /* when a tick is due */
    uint64_t interval_ns; /* as it was planned last, 0: none */
    uint64_t pressure_ns; /* when KVM's counters are due between two ticks, UINT64_MAX: not */
    uint64_t pressure_activity; /* of the vCPUs, at the last look at them */
    uint64_t tick_ns;     /* when the last one began */
    uint64_t looked_ns;   /* when the last whole look began */
    bool looked;
    uint64_t activity;    /* of the vCPUs, before that look */
    unsigned int quiet;   /* ticks in a row that found the guest (almost) idle */

    /* Roots. */
    struct root_signature signature;
    uint64_t scanned_signature; /* signature.learned at the last scan that looked at all pages */
    unsigned int strange; /* sightings in a row of a kernel that looks different */
    uint64_t vcpu_seq[TRACKER_MAX_VCPUS];
    uint64_t asked_ns, kicked_ns; /* when vCPUs were last asked for a look, and kicked for it */
    gpa_t kernel_cr3; /* the last root without a user half seen in kernel mode */
    struct mmu_paging kernel_paging;
    bool scanning;
    bool scan_some;   /* only the pages in scan_set */
    struct page_set scan_set;
    struct root_scan_cursor scan_at;
    uint64_t scan_ns; /* when the last scan began */
    uint64_t scan_evictions; /* of the mirror, then */

    struct tracker_stats stats;
    struct mirror_stats gone; /* counters of mirrors that were thrown away */
};

uint64_t tracker_now(const struct tracker *t);
uint64_t tracker_activity(const struct tracker *t);
void tracker_relock(struct tracker *t);
/* Give the lock up and take it again, so that others get it in between. */
void tracker_yield(struct tracker *t);

/* Take over what vCPUs noted; have them note again where it is time to. */
void tick_sightings(struct tracker *t, uint64_t now);
/* Whether vCPUs are to be called out of the guest for a look: nothing is known, or it is long ago. */
bool tick_kick_due(const struct tracker *t, uint64_t now);
/* Go on with the scan for roots, or begin one that is due. */
void tick_scan(struct tracker *t, uint64_t now, enum tick_kind kind);
void roots_forget(struct tracker *t);

/* Bring the mirror up to date. 0 or -ENOMEM. */
int tick_run(struct tracker *t, enum tick_kind kind);
/* Between ticks of a guest that is busy, where the CPU budget allows it. */
uint64_t tick_interval(const struct tracker *t);
/* When the next tick is due, after one that cost so much, and vCPUs that ran so long before it. */
uint64_t tick_plan(struct tracker *t, uint64_t now, uint64_t cost_ns, uint64_t ran_ns);

#endif
