#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pattern.h"

static const enum pattern_kind kinds[] = {PATTERN_SEQ, PATTERN_RANDOM, PATTERN_STRIDE, PATTERN_HOT};

/* Whatever the region, count and seed: as many distinct pages as asked for, all inside. */
static void test_sets_are_distinct(void **state)
{
    static bool seen[400];

    (void)state;
    for (uint64_t pages = 1; pages < 400; pages += 1 + pages / 16)
        for (uint64_t count = 0; count <= pages; count += 1 + pages / 7)
            for (unsigned int k = 0; k < 4 * 5; k++) {
                struct pattern p;
                uint64_t seed = pattern_mix(pages * 1000 + k);

                pattern_init(&p, kinds[k % 4], 1 + seed % (2 * pages), pages, seed);
                memset(seen, 0, sizeof(seen));
                for (uint64_t i = 0; i < count; i++) {
                    uint64_t page = pattern_page(&p, count, i);

                    assert_in_range(page, 0, pages - 1);
                    assert_false(seen[page]);
                    seen[page] = true;
                }
            }
}

static void test_hot_set_is_hot(void **state)
{
    struct pattern p;
    uint64_t hot = 0;

    (void)state;
    pattern_init(&p, PATTERN_HOT, 0, 10000, 5);
    for (uint64_t i = 0; i < 1000; i++)
        hot += pattern_page(&p, 1000, i) < 1000;
    assert_int_equal(hot, 900);
}

static void test_stream(void **state)
{
    struct pattern p;
    unsigned int writes[1000];
    unsigned int hot = 0;

    (void)state;
    for (unsigned int k = 0; k < 3; k++) {
        memset(writes, 0, sizeof(writes));
        pattern_init(&p, kinds[k], 7, 1000, k);
        for (uint64_t t = 0; t < 3000; t++)
            writes[pattern_stream(&p, t)]++;
        for (unsigned int i = 0; i < 1000; i++)
            assert_int_equal(writes[i], 3);
    }
    pattern_init(&p, PATTERN_HOT, 0, 1000, 1);
    memset(writes, 0, sizeof(writes));
    for (uint64_t t = 0; t < 10000; t++)
        writes[pattern_stream(&p, t)]++;
    for (unsigned int i = 0; i < 1000; i++) {
        hot += i < 100 ? writes[i] : 0;
        assert_true(writes[i] > 0);
    }
    assert_int_equal(hot, 9000);
    /* A region of one page has no cold part. */
    pattern_init(&p, PATTERN_HOT, 0, 1, 1);
    assert_int_equal(pattern_stream(&p, 9), 0);
}

static void test_parse(void **state)
{
    static const char *const bad[] = {
        "",         "se",        "seqq",      "Random",   "stride:",           "stride:0",
        "stride:x", "stride:1x", "stride:-1", "stride 4", "stride:4294967296", "hotcold",
    };
    enum pattern_kind kind = PATTERN_HOT;
    uint64_t stride = 99;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(pattern_parse(bad[i], &kind, &stride), -1);
    assert_int_equal(kind, PATTERN_HOT);
    assert_int_equal(stride, 99);
    assert_int_equal(pattern_parse("seq", &kind, &stride), 0);
    assert_int_equal(kind, PATTERN_SEQ);
    assert_int_equal(pattern_parse("random", &kind, &stride), 0);
    assert_int_equal(kind, PATTERN_RANDOM);
    assert_int_equal(pattern_parse("hot", &kind, &stride), 0);
    assert_int_equal(kind, PATTERN_HOT);
    assert_int_equal(pattern_parse("stride:4294967295", &kind, &stride), 0);
    assert_int_equal(kind, PATTERN_STRIDE);
    assert_int_equal(stride, UINT32_MAX);
    assert_int_equal(pattern_parse("stride", &kind, &stride), 0);
    assert_int_equal(stride, PATTERN_DEFAULT_STRIDE);
}

/* Values computed from the definitions in tests/guests/README.md by a separate program. */
static void test_definition(void **state)
{
    static const uint64_t random_1000_7[] = {343, 308, 562, 796, 802, 910, 740, 220};
    static const uint64_t hot_1000_7[] = {18, 24, 36, 99, 98, 37, 38, 63, 10, 64, 78, 251};
    static const uint64_t stride_1000_7[] = {7, 16, 25, 34, 43, 52, 61, 70};
    struct pattern p;

    (void)state;
    assert_int_equal(pattern_mix(0), UINT64_C(0xe220a8397b1dcdaf));
    pattern_init(&p, PATTERN_RANDOM, 0, 1000, 7);
    for (unsigned int i = 0; i < 8; i++)
        assert_int_equal(pattern_page(&p, 8, i), random_1000_7[i]);
    pattern_init(&p, PATTERN_HOT, 0, 1000, 7);
    for (unsigned int i = 0; i < 12; i++)
        assert_int_equal(pattern_page(&p, 12, i), hot_1000_7[i]);
    pattern_init(&p, PATTERN_STRIDE, 8, 1000, 7);
    for (unsigned int i = 0; i < 8; i++)
        assert_int_equal(pattern_page(&p, 8, i), stride_1000_7[i]);
    assert_int_equal(pattern_word(7, 123), UINT64_C(0x4d14218f6546c3c1));
    assert_int_equal(pattern_word_index(pattern_word(7, 123)), 154);
    assert_int_equal(pattern_fill_word(7, 123), UINT64_C(0xa9b6d6e5c882253d));
}

static void test_sums(void **state)
{
    uint64_t page[PATTERN_PAGE_WORDS] = {0}, empty, first, sum;

    (void)state;
    empty = pattern_page_sum(page);
    page[3] = 5;
    first = pattern_page_sum(page);
    assert_int_not_equal(first, empty);
    page[3] = 0;
    page[4] = 5;
    assert_int_not_equal(pattern_page_sum(page), first);
    /* Pages that change places change the sum of the region. */
    sum = pattern_region_part(0, first) + pattern_region_part(1, empty);
    assert_int_not_equal(pattern_region_part(0, empty) + pattern_region_part(1, first), sum);
    for (uint64_t i = 0; i < 1000; i++)
        assert_int_not_equal(pattern_word(i, i), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sets_are_distinct), cmocka_unit_test(test_hot_set_is_hot), cmocka_unit_test(test_stream),
        cmocka_unit_test(test_parse),             cmocka_unit_test(test_definition),     cmocka_unit_test(test_sums),
    };

    return cmocka_run_group_tests_name("pattern", tests, NULL, NULL);
}
