#include "config.h"

#include "migrate/report.h"

#include "base/clock.h"
#include "base/util.h"
#include "mmu/types.h"

const char *mig_status_name(enum mig_status status)
{
    static const char *const names[] = {
        [MIG_STATUS_NONE] = "none",
        [MIG_STATUS_SETUP] = "setup",
        [MIG_STATUS_CANCELLING] = "cancelling",
        [MIG_STATUS_CANCELLED] = "cancelled",
        [MIG_STATUS_ACTIVE] = "active",
        [MIG_STATUS_PRE_SWITCHOVER] = "pre-switchover",
        [MIG_STATUS_DEVICE] = "device",
        [MIG_STATUS_POSTCOPY_ACTIVE] = "postcopy-active",
        [MIG_STATUS_POSTCOPY_PAUSED] = "postcopy-paused",
        [MIG_STATUS_POSTCOPY_RECOVER] = "postcopy-recover",
        [MIG_STATUS_COMPLETED] = "completed",
        [MIG_STATUS_FAILED] = "failed",
    };

    return names[status];
}

/* Beyond this many rounds a migration is not worth waiting for. */
#define FORECAST_ROUNDS 50

/*
 * While pages go out at T pages a second, D are written: a round over N pages leaves N * D / T for the next. Go on until
 * what is left fits into the downtime. What a guest writes again and again counts once, so this is the worst case.
 */
struct mig_forecast mig_forecast(const struct mig_trend *t)
{
    double rate = (double)t->throughput / (double)GUEST_PAGE_SIZE, left = (double)t->pending, ns = 0;
    uint64_t budget_ns = t->limit_ns > t->overhead_ns ? t->limit_ns - t->overhead_ns : 0;
    double fits = rate * (double)budget_ns / (double)NSEC_PER_SEC;
    struct mig_forecast f = {0};

    if (t->throughput == 0)
        return f;
    f.valid = true;
    f.downtime_ns = t->overhead_ns + (uint64_t)(left / rate * (double)NSEC_PER_SEC);
    for (int i = 0; i < FORECAST_ROUNDS && left > fits; i++) {
        ns += left / rate * (double)NSEC_PER_SEC;
        left *= (double)t->dirty_rate / rate;
        if ((double)t->dirty_rate >= rate)
            break;
    }
    f.converges = left <= fits;
    f.converge_ns = f.converges ? (uint64_t)ns : 0;
    f.final_ns = f.converges ? t->overhead_ns + (uint64_t)(left / rate * (double)NSEC_PER_SEC) : 0;
    return f;
}
