/*
 * How fast the guest dirties its memory, measured over some seconds: what QEMU calls calc-dirty-rate. Three ways:
 *
 *   page sampling   some pages, chosen at random, are hashed at both ends; those that changed stand for the rest. Costs
 *                   the guest nothing, and misses a page that was written with what it held.
 *   dirty bitmap    a consumer of the dirty log counts every page (KVM keeps the log in bitmaps)
 *   dirty ring      the same where KVM keeps the log in rings, and by vCPU
 *
 * On the main loop, one measurement at a time. Main thread.
 */
#ifndef UMBRA_DAEMON_DIRTY_RATE_H
#define UMBRA_DAEMON_DIRTY_RATE_H

#include <event2/event.h>
#include <stdint.h>

#include "vcpu/vm.h"

#define DIRTY_RATE_TIME_MIN 1 /* seconds */
#define DIRTY_RATE_TIME_MAX 60
#define DIRTY_RATE_SAMPLES_MIN 128 /* pages for each GiB of guest memory */
#define DIRTY_RATE_SAMPLES_MAX 16384
#define DIRTY_RATE_SAMPLES_DEFAULT 512
/* The name of its consumer in the dirty log. */
#define DIRTY_RATE_CONSUMER "calc-dirty-rate"

struct machine;
struct dirty_rate;

enum dirty_rate_mode {
    DIRTY_RATE_PAGE_SAMPLING,
    DIRTY_RATE_RING,
    DIRTY_RATE_BITMAP,
};

enum dirty_rate_state {
    DIRTY_RATE_UNSTARTED,
    DIRTY_RATE_MEASURING,
    DIRTY_RATE_MEASURED,
};

struct dirty_rate_info {
    enum dirty_rate_state state;
    enum dirty_rate_mode mode;
    unsigned int samples;    /* pages for each GiB; 0 but for page sampling */
    uint64_t start_time;     /* seconds on the host's monotonic clock */
    unsigned int calc_time;  /* seconds asked for */
    uint64_t rate;           /* MiB a second, once measured */
    unsigned int vcpus;      /* dirty ring: how many of vcpu_rate are there */
    uint64_t vcpu_rate[VM_MAX_VCPUS];
};

int dirty_rate_new(struct event_base *events, struct machine *machine, struct dirty_rate **ret);
/* Ends a measurement under way. NULL is fine. */
void dirty_rate_free(struct dirty_rate *d);

/*
 * Begin. `seconds` and `samples` are within the limits above. -EBUSY (one is under way), -ENOTSUP (the dirty log of this
 * VM is kept the other way), -ENOSPC (consumers), -ENOMEM, or -errno of KVM.
 */
int dirty_rate_start(struct dirty_rate *d, enum dirty_rate_mode mode, unsigned int seconds, unsigned int samples);

const struct dirty_rate_info *dirty_rate_info(const struct dirty_rate *d);

#endif
