/*
 * The tracker: keeps a mirror of the guest's page tables (mirror.h) in step with a guest that runs.
 *
 * A thread of its own ("mmu", made when it is first needed) wakes at intervals ("ticks"): it takes what the source of
 * changes heard of (source.h), looks for new address spaces, and reads the tables again that were or may have been written. One
 * lock is around the mirror; a tick gives it up between slices, so that nobody who asks waits for more than one.
 *
 * It knows guest memory, the dirty log and the callbacks below, not vCPUs.
 *
 * Threads: functions are for the main thread unless they say otherwise, and may wait for a slice of a tick, or for a whole
 * one where they change something.
 */
#ifndef UMBRA_MMU_TRACKER_H
#define UMBRA_MMU_TRACKER_H

#include <stdbool.h>
#include <stdint.h>

#include "mmu/attribute.h"
#include "mmu/dirty.h"
#include "mmu/mem.h"
#include "mmu/mirror.h"
#include "mmu/source.h"

#define TRACKER_INTERVAL_MIN_US 1000u
#define TRACKER_INTERVAL_MAX_US 10000000u
#define TRACKER_BUDGET_DEFAULT 1u /* percent of one CPU */

enum tracker_mode {
    TRACKER_OFF,       /* no mirror, no memory */
    TRACKER_ON_DEMAND, /* everything is read when somebody asks, no ticks */
    TRACKER_LIVE,      /* ticks; by the dirty log while it runs, else by re-reading */
    TRACKER_PRECISE,   /* ticks; by userfaultfd */
};

struct tracker_settings {
    enum tracker_mode mode;
    uint64_t interval_us;    /* TRACKER_INTERVAL_MIN_US to _MAX_US, or 0: by the number of tables */
    unsigned int cpu_budget; /* percent of one CPU, 1 to 100: intervals grow to keep to it */
    uint64_t max_memory;     /* of the mirror, at least MIRROR_MAX_MEMORY_MIN */
    bool floods;
};

/* One vCPU's paging registers as they were some time ago. */
struct tracker_vcpu {
    uint64_t cr0, cr3, cr4, efer;
    bool kernel;  /* it ran at privilege level 0 */
    uint64_t seq; /* grows with each look; 0: there was none */
};

/* Numbers for a policy of KVM's page limit. */
struct tracker_pressure {
    uint64_t shadow_pages; /* tables of the mirror, in all roles: KVM needs about one of its own for each */
    uint64_t now_ns;
};

/*
 * Given from above. None but look_now may wait for a vCPU, a tick or the main thread. `activity`, `look` and `vcpu` are called with the
 * tracker's lock held, by whoever has it; `pressure` by the tracker's thread without the lock. Any may be NULL.
 */
struct tracker_ops {
    /* Grows while any vCPU runs: CPU time of the vCPUs in ns. */
    uint64_t (*activity)(void *opaque);
    /* Have every vCPU note its registers: at its next exit, or with `kick` at once. */
    void (*look)(void *opaque, bool kick);
    /* What vCPU number `index` noted last; false: there is no such vCPU. */
    bool (*vcpu)(void *opaque, unsigned int index, struct tracker_vcpu *ret);
    /* Have every vCPU note its registers now, and wait for that, some milliseconds at most. Without the lock, for a question. */
    void (*look_now)(void *opaque);
    void (*pressure)(void *opaque, const struct tracker_pressure *pressure);
    /* For tests: time and the CPU time of the calling thread, in ns. */
    uint64_t (*now)(void *opaque);
    uint64_t (*cpu_now)(void *opaque);
};

struct tracker_config {
    struct mem *mem;
    struct dirty_log *log; /* NULL: none */
    struct gpt_cpu cpu;
    struct tracker_settings settings;
    const struct tracker_ops *ops;
    void *opaque;
    /* Makes the source of mode precise when it is wanted first; NULL: there is none. */
    int (*make_precise)(struct mem *mem, struct mmu_source **ret);
    bool no_thread; /* for tests: ticks come from tracker_tick */
};

struct tracker;

void tracker_default_settings(struct tracker_settings *ret);
/* Whether settings make sense. */
bool tracker_settings_valid(const struct tracker_settings *s);

/* `mem` and `log` must outlive it. The guest stands still until tracker_run. -EINVAL (settings), -ENOMEM. */
int tracker_new(const struct tracker_config *config, struct tracker **ret);
/* End the thread; what stays is only that blocked vCPUs go on. When this returns no callback is called any more. NULL is fine. */
void tracker_stop(struct tracker *t);
/* After the last vCPU thread has ended. NULL is fine. */
void tracker_free(struct tracker *t);

/* The guest runs (ticks go on), or stands still (they stop; the mirror keeps what it has). */
void tracker_run(struct tracker *t, bool running);
/* Guest memory is another: after a reset, or when state was restored. Forget everything. The guest stands still. */
void tracker_reset(struct tracker *t);

/* -ENOTSUP: precise, and the host does not offer it (logged); -EINVAL, -ENOMEM; then the settings are as before. */
int tracker_set(struct tracker *t, const struct tracker_settings *settings);
void tracker_settings(struct tracker *t, struct tracker_settings *ret);

enum tracker_age {
    TRACKER_RECENT, /* two intervals old at most, as they would be without the CPU budget: a second with intervals of its own choice */
    TRACKER_NOW,    /* all that the guest had written when this was called */
};

/*
 * For a question: bring the mirror as far up to date as is asked for (on-demand: everything is read in any case), and give it with the
 * lock held, until tracker_unlock. -ENODATA: tracking is off; then nothing is locked. *ret_age_ns (may be NULL) is how long
 * ago the tables were looked at.
 *
 * Costs nothing where the last look is good enough or no vCPU ran since, else one tick and no more: the tables the source names (all
 * by re-reading), and for new roots the pages it names, or 1 GiB of memory; and a kick of each vCPU, every 4 s at most. The CPU
 * budget is for ticks: who asks pays.
 */
int tracker_lock(struct tracker *t, enum tracker_age age, struct mirror **ret, uint64_t *ret_age_ns);
void tracker_unlock(struct tracker *t);

/*
 * Hold the mirror against a fresh walk. The guest stands still. What the source has heard of is taken over first and tables let go
 * of are read; all others must be right already. -EBUSY: the guest runs; -ENODATA: off; -ENOMEM.
 */
int tracker_verify(struct tracker *t, struct mirror_verdict *ret);

/* One tick now, in slices; for tests, and the thread's own work. Returns when the next one is due, UINT64_MAX: never. */
uint64_t tracker_tick(struct tracker *t);

/*
 * Between two ticks that the CPU budget keeps apart: `pressure` alone, with the tables of the last tick. Returns when that or a tick is
 * due next. As tracker_tick.
 */
uint64_t tracker_pressure(struct tracker *t);

struct tracker_stats {
    uint64_t ticks;
    uint64_t cpu_ns;            /* of all ticks and of questions that had to read */
    uint64_t last_ns, longest_ns; /* CPU time of a tick */
    uint64_t events;            /* writes and pages that sources reported */
    uint64_t scans, scanned_pages;
    uint64_t retired;           /* roots */
    struct mirror_stats mirror; /* counters since the start; the rest as it is now */
};

struct tracker_info {
    struct tracker_settings settings;
    const char *source;   /* "none", "walk" or the source's name */
    uint64_t interval_ns; /* to the next tick as planned last; 0: no ticks */
    bool looked;
    uint64_t age_ns;
    struct tracker_stats stats;
};
/* Does not bring anything up to date. */
void tracker_info(struct tracker *t, struct tracker_info *ret);

#endif
