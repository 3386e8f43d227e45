/* The policy of KVM's page limit: a table of cases, and a model of KVM and a guest that grows and shrinks. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/clock.h"
#include "base/util.h"
#include "mmu/page-limit.h"
#include "rand.h"

#define SEC NSEC_PER_SEC

static enum page_limit_reason step(struct page_limit *p, uint64_t tables, uint64_t recycled, uint64_t now_ns)
{
    struct page_limit_sample s = {.tables = tables, .recycled = recycled, .now_ns = now_ns};

    return page_limit_step(p, &s);
}

static void test_defaults(void **state)
{
    /* As KVM has it: 256 MiB get 1310. */
    assert_int_equal(page_limit_default(65536), 1310);
    assert_int_equal(page_limit_default(0), 64);
    assert_int_equal(page_limit_default(3200), 64);
    assert_int_equal(page_limit_default(3250), 65);
    assert_int_equal(page_limit_affordable(UINT64_C(8704) * 1000, 10), 100);
    assert_int_equal(page_limit_affordable(0, 100), 64);
    assert_int_equal(page_limit_affordable(UINT64_MAX, 100), UINT64_MAX / 100 * 100 / 8704);
    assert_string_equal(page_limit_reason_name(PAGE_LIMIT_RECYCLED), "recycled");
}

static void test_up(void **state)
{
    struct page_limit p;

    page_limit_init(&p, 1000, 100000, 500);
    /* Three quarters are fine, more are not; the counter's first value is not a climb. */
    assert_int_equal(step(&p, 750, 500, 1), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 751, 500, 2), PAGE_LIMIT_TABLES);
    assert_int_equal(p.limit, 1502);
    /* Recycled: to twice the tables, or twice the limit where that is more. */
    assert_int_equal(step(&p, 800, 501, 3), PAGE_LIMIT_RECYCLED);
    assert_int_equal(p.limit, 3004);
    assert_int_equal(step(&p, 9000, 600, 4), PAGE_LIMIT_RECYCLED);
    assert_int_equal(p.limit, 18000);
    /* A burst is over when the counter stands. */
    assert_int_equal(step(&p, 9000, 600, 5), PAGE_LIMIT_KEEP);
    /* The counter was reset. */
    assert_int_equal(step(&p, 9000, 0, 6), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 9000, 1, 7), PAGE_LIMIT_RECYCLED);
    assert_int_equal(p.limit, 36000);
}

static void test_bounds(void **state)
{
    struct page_limit p;

    page_limit_init(&p, 1000, 3000, 0);
    assert_int_equal(step(&p, 2000, 0, 1), PAGE_LIMIT_TABLES);
    assert_int_equal(p.limit, 3000);
    assert_true(p.capped);
    /* At the bound nothing changes any more, and nobody is told again. */
    assert_int_equal(step(&p, 5000, 10, 2), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, UINT64_MAX, UINT64_MAX, 3), PAGE_LIMIT_KEEP);
    assert_int_equal(p.limit, 3000);
    assert_true(p.capped);
    assert_int_equal(step(&p, 800, UINT64_MAX, 4), PAGE_LIMIT_KEEP);
    assert_false(p.capped);
    /* A bound below what KVM has given by itself takes nothing away. */
    page_limit_init(&p, 1000, 64, 0);
    assert_int_equal(step(&p, 5000, 10, 1), PAGE_LIMIT_KEEP);
    assert_int_equal(p.limit, 1000);
}

static void test_down(void **state)
{
    struct page_limit p;

    page_limit_init(&p, 1000, 100000, 0);
    assert_int_equal(step(&p, 5000, 0, 1 * SEC), PAGE_LIMIT_TABLES);
    assert_int_equal(p.limit, 10000);
    /* 1250 tables want 2500, a quarter: not ample. */
    assert_int_equal(step(&p, 1250, 0, 100 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 1250, 0, 200 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 1249, 0, 300 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 1249, 0, 359 * SEC), PAGE_LIMIT_KEEP);
    /* The minute begins anew after each look that found it in use. */
    assert_int_equal(step(&p, 1250, 0, 360 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 100, 0, 361 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 100, 0, 420 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 100, 0, 421 * SEC), PAGE_LIMIT_UNUSED);
    assert_int_equal(p.limit, 5000);
    assert_int_equal(step(&p, 100, 0, 422 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 100, 0, 482 * SEC), PAGE_LIMIT_UNUSED);
    assert_int_equal(step(&p, 100, 0, 483 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 100, 0, 543 * SEC), PAGE_LIMIT_UNUSED);
    assert_int_equal(p.limit, 1250);
    assert_int_equal(step(&p, 100, 0, 544 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 100, 0, 604 * SEC), PAGE_LIMIT_UNUSED);
    assert_int_equal(p.limit, 1000);
    /* Never below what there was. */
    assert_int_equal(step(&p, 0, 0, 700 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 0, 0, 800 * SEC), PAGE_LIMIT_KEEP);
    /* Recycling ends a minute under way. */
    assert_int_equal(step(&p, 5000, 0, 900 * SEC), PAGE_LIMIT_TABLES);
    assert_int_equal(step(&p, 100, 0, 901 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 100, 1, 930 * SEC), PAGE_LIMIT_RECYCLED);
    assert_int_equal(step(&p, 100, 1, 961 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 100, 1, 1020 * SEC), PAGE_LIMIT_KEEP);
    assert_int_equal(step(&p, 100, 1, 1021 * SEC), PAGE_LIMIT_UNUSED);
}

/* A guest whose need swings by less than half moves the limit once, and never again. */
static void test_no_swinging(void **state)
{
    struct page_limit p;
    unsigned int changes = 0;

    page_limit_init(&p, 1310, 1000000, 0);
    for (unsigned int i = 0; i < 1000; i++)
        changes += step(&p, i % 2 ? 4000 : 2100, 0, i * 100 * SEC) != PAGE_LIMIT_KEEP;
    assert_true(changes <= 2);
    assert_int_equal(p.limit, 8000);
}

/*
 * Against a model of KVM: the guest has tables, KVM wants up to half as many again, and recycles where it may not have them. Few
 * looks after the guest's need has grown there is no recycling any more, and the limit stays within its bounds.
 */
static void test_model(void **state)
{
    uint64_t seed = rng_test_seed("page limit");
    struct rng rng = rng_seeded(seed);
    struct page_limit p;
    uint64_t need = 100, extra = 0, recycled = 0, now = 0;
    unsigned int since = 0;

    page_limit_init(&p, 1310, 50000, 0);
    for (unsigned int i = 0; i < 20000; i++) {
        uint64_t before = p.limit;
        bool short_of = need + extra > p.limit;

        if (rng_chance(&rng, 2)) {
            need = rng_below(&rng, 20000);
            extra = rng_below(&rng, need / 2 + 1);
            since = 0;
        }
        recycled += short_of ? 25 : 0;
        if (short_of && since > 8)
            fail_msg("look %u: limit %" PRIu64 ", %" PRIu64 " wanted", i, p.limit, need + extra);
        since++;
        now += rng_below(&rng, 2 * SEC);
        if (step(&p, need, recycled, now) == PAGE_LIMIT_KEEP)
            assert_int_equal(p.limit, before);
        else
            assert_int_not_equal(p.limit, before);
        assert_true(p.limit >= 1310 && p.limit <= 50000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),    cmocka_unit_test(test_up),    cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_down),        cmocka_unit_test(test_no_swinging),
        cmocka_unit_test(test_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
