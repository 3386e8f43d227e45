#include "config.h"

#include "mmu/page-limit.h"

#include <assert.h>

#include "base/clock.h"
#include "base/util.h"

#define KVM_PER_MILLE UINT64_C(20)
#define AMPLE_NS (60 * NSEC_PER_SEC)

const char *page_limit_reason_name(enum page_limit_reason reason)
{
    static const char *const names[] = {
        [PAGE_LIMIT_KEEP] = "unchanged",
        [PAGE_LIMIT_RECYCLED] = "recycled",
        [PAGE_LIMIT_TABLES] = "page-tables",
        [PAGE_LIMIT_UNUSED] = "unused",
    };

    return names[reason];
}

uint64_t page_limit_default(uint64_t ram_pages)
{
    return MAX(ram_pages * KVM_PER_MILLE / 1000, PAGE_LIMIT_MIN);
}

uint64_t page_limit_affordable(uint64_t host_bytes, unsigned int percent)
{
    return MAX(host_bytes / 100 * percent / PAGE_LIMIT_PAGE_BYTES, PAGE_LIMIT_MIN);
}

void page_limit_init(struct page_limit *p, uint64_t limit, uint64_t max, uint64_t recycled)
{
    assert(limit <= UINT64_MAX / 4 && max <= UINT64_MAX / 4);
    *p = (struct page_limit){.limit = limit, .floor = limit, .max = MAX(max, limit), .recycled = recycled};
}

static enum page_limit_reason set(struct page_limit *p, uint64_t wanted, enum page_limit_reason reason)
{
    uint64_t limit = MAX(wanted, p->floor);

    limit = MIN(limit, p->max);
    p->ample_since_ns = 0;
    p->capped = wanted > p->max;
    if (limit == p->limit)
        return PAGE_LIMIT_KEEP;
    p->limit = limit;
    return reason;
}

/* Nothing is wanted more. */
static enum page_limit_reason maybe_down(struct page_limit *p, uint64_t wanted, uint64_t now_ns)
{
    /* What more would have been wanted before is not wanted any more. */
    p->capped = false;
    if (p->limit == p->floor || wanted * 4 >= p->limit) {
        p->ample_since_ns = 0;
        return PAGE_LIMIT_KEEP;
    }
    if (!p->ample_since_ns)
        p->ample_since_ns = MAX(now_ns, UINT64_C(1));
    if (now_ns - p->ample_since_ns < AMPLE_NS)
        return PAGE_LIMIT_KEEP;
    return set(p, p->limit / 2, PAGE_LIMIT_UNUSED);
}

enum page_limit_reason page_limit_step(struct page_limit *p, const struct page_limit_sample *s)
{
    /* The counter can be reset through debugfs; then what it lost is not known. */
    bool recycled = s->recycled > p->recycled;
    /* No guest has so many tables; a count that cannot be must not wrap. */
    uint64_t tables = MIN(s->tables, UINT64_MAX / 8), wanted = 2 * tables;

    p->recycled = s->recycled;
    if (recycled)
        return set(p, MAX(wanted, 2 * p->limit), PAGE_LIMIT_RECYCLED);
    if (tables > p->limit / 4 * 3)
        return set(p, wanted, PAGE_LIMIT_TABLES);
    return maybe_down(p, wanted, s->now_ns);
}
