#include "config.h"

#include "migrate/forecast.h"

#include "base/util.h"
#include "mmu/types.h"

/* Beyond this many rounds a migration is not worth waiting for. */
#define ROUNDS_MAX 50

bool mig_good_enough(uint64_t downtime_ns, uint64_t last_ns)
{
    return downtime_ns <= 2 * MIG_OVERHEAD_NS || downtime_ns > last_ns / 2;
}

static double send_ns(const struct mig_trend *t, double pages)
{
    return pages * (double)GUEST_PAGE_SIZE / (double)t->throughput * (double)NSEC_PER_SEC;
}

static uint64_t switch_ns(const struct mig_trend *t, double pages)
{
    return MIG_OVERHEAD_NS + (uint64_t)send_ns(t, pages);
}

/*
 * While N pages go out, D a second are written, so a round leaves N * D / T for the next, T being how many go out in a second. What
 * a guest writes again and again counts once and is held back, so this is the worst case.
 */
struct mig_forecast mig_forecast(const struct mig_trend *t)
{
    struct mig_forecast f = {0};
    double left = (double)t->pending, ns = 0;
    uint64_t last_ns = t->last_ns;
    bool good = false;

    if (t->throughput == 0)
        return f;
    f.valid = true;
    f.downtime_ns = switch_ns(t, left);
    while (!good && f.rounds < ROUNDS_MAX) {
        double round_ns = MAX(send_ns(t, left), (double)MIG_ROUND_MIN_NS);
        double next = MIN((double)t->dirty_rate * round_ns / (double)NSEC_PER_SEC, (double)t->memory);
        uint64_t now_ns = switch_ns(t, left);

        if (now_ns <= t->limit_ns)
            good = next >= left || mig_good_enough(now_ns, last_ns);
        else if (next >= left)
            break;
        ns += round_ns;
        left = next;
        last_ns = now_ns;
        f.rounds++;
    }
    f.final_ns = switch_ns(t, left);
    f.converges = good && f.final_ns <= t->limit_ns;
    f.end_ns = f.converges ? (uint64_t)ns + f.final_ns : 0;
    return f;
}
