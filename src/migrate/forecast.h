/*
 * How a migration will go, from measured figures: the daemon asks after every round, vmctl --plan before there is any. The rules
 * by which rounds end are here too, so that a forecast follows the rules that the migration does. No state, any thread.
 */
#ifndef UMBRA_MIGRATE_FORECAST_H
#define UMBRA_MIGRATE_FORECAST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

/* What a switchover takes without pages. */
#define MIG_OVERHEAD_NS (2 * NSEC_PER_MSEC)
/* Rounds are not begun more often than that. */
#define MIG_ROUND_MIN_NS (1 * NSEC_PER_MSEC)

struct mig_trend {
    uint64_t pending;    /* pages that wait to be sent */
    uint64_t memory;     /* pages of the guest: no round leaves more */
    uint64_t dirty_rate; /* pages a second */
    uint64_t throughput; /* bytes a second */
    uint64_t limit_ns;   /* downtime limit */
    uint64_t last_ns;    /* downtime if switched over when the last round ended; UINT64_MAX: there was none */
};

struct mig_forecast {
    bool valid; /* there is a throughput */
    bool converges;
    unsigned int rounds;  /* from now on */
    uint64_t downtime_ns; /* if switched over now */
    uint64_t end_ns;      /* from now until the guest runs at the target; when it converges */
    uint64_t final_ns;    /* the downtime then; when it does not converge: if switched over where it gets no nearer */
};

struct mig_forecast mig_forecast(const struct mig_trend *t);

/*
 * Whether to stop at a downtime that is inside the limit, last_ns as above. What fits into the limit may still be mostly pages
 * that only wait for their turn. They have to go out in any case, so it costs nothing to let the guest run meanwhile: stop when a
 * round no longer halves the downtime. What is left then is sent once more before the guest stops.
 */
bool mig_good_enough(uint64_t downtime_ns, uint64_t last_ns);

#endif
