#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/util.h"
#include "mmu/pageset.h"
#include "rand.h"

/* The set must hold exactly what the bytes say, and keep its invariants. */
static void check(const struct page_set *set, const uint8_t *model)
{
    uint64_t pages = 0;

    for (uint64_t p = 0; p < set->limit; p++) {
        if (bitmap_test(set->map, p) != model[p])
            fail_msg("page %" PRIu64 " is %d", p, !model[p]);
        pages += model[p];
    }
    assert_int_equal(set->pages, pages);
    assert_int_equal(bitmap_count(set->map, set->group_count * PAGE_SET_GROUP_WORDS), pages);
    for (size_t g = 0; g < set->group_count; g++) {
        uint64_t n = bitmap_count(set->map + g * PAGE_SET_GROUP_WORDS, PAGE_SET_GROUP_WORDS);

        assert_true(n == 0 || bitmap_test(set->groups, g));
        assert_int_equal(page_set_next_group(set, g) == g, bitmap_test(set->groups, g));
    }
}

static void scan(const struct page_set *set)
{
    uint64_t sum = 0, n;
    size_t g = 0;

    for (; (g = page_set_scan_group(set, g, set->group_count, &n)) < set->group_count; g++) {
        assert_int_equal(n, bitmap_count(set->map + g * PAGE_SET_GROUP_WORDS, PAGE_SET_GROUP_WORDS));
        assert_true(n > 0);
        sum += n;
    }
    assert_int_equal(g, set->group_count);
    assert_int_equal(sum, set->pages);
}

static void test_against_model(void **state)
{
    struct rng rng = rng_seeded(rng_test_seed("page set"));
    static const uint64_t limits[] = {256, 4096, 8192 + 256, 70 * 4096, 64 * 4096};

    for (size_t l = 0; l < ARRAY_SIZE(limits); l++) {
        uint64_t limit = limits[l];
        struct page_set sets[2];
        uint8_t *models[2];

        for (int i = 0; i < 2; i++) {
            assert_int_equal(page_set_init(&sets[i], limit), 0);
            models[i] = calloc(limit, 1);
            assert_non_null(models[i]);
        }
        for (int step = 0; step < 200; step++) {
            int a = (int)rng_below(&rng, 2), b = 1 - a;
            uint64_t n = rng_below(&rng, 30), added = 0, expected = 0, word, bits;
            uint8_t *t;

            switch (rng_below(&rng, 8)) {
            case 0:
            case 1:
            case 2:
                for (uint64_t i = 0; i < n; i++) {
                    pfn_t p = rng_below(&rng, limit);

                    page_set_add(&sets[a], p);
                    models[a][p] = 1;
                }
                break;
            case 3:
                word = rng_below(&rng, limit / 64);
                bits = rng_next(&rng) & rng_next(&rng);
                added = page_set_add_word(&sets[a], word, bits);
                for (unsigned int i = 0; i < 64; i++) {
                    if (bits >> i & 1 && !models[a][word * 64 + i]) {
                        models[a][word * 64 + i] = 1;
                        expected++;
                    }
                }
                assert_int_equal(added, expected);
                break;
            case 4:
                added = page_set_merge(&sets[a], &sets[b]);
                for (uint64_t p = 0; p < limit; p++) {
                    expected += models[b][p] && !models[a][p];
                    models[a][p] |= models[b][p];
                }
                assert_int_equal(added, expected);
                break;
            case 5:
                page_set_swap(&sets[0], &sets[1]);
                t = models[0];
                models[0] = models[1];
                models[1] = t;
                break;
            case 6:
                if (n < 5) {
                    page_set_fill(&sets[a]);
                    memset(models[a], 1, limit);
                }
                break;
            default:
                if (n < 15)
                    page_set_clear(&sets[a]);
                else
                    page_set_wipe(&sets[a]);
                memset(models[a], 0, limit);
            }
            if (step % 8 == 0) {
                check(&sets[0], models[0]);
                check(&sets[1], models[1]);
                scan(&sets[a]);
            }
        }
        for (int i = 0; i < 2; i++) {
            page_set_free(&sets[i]);
            free(models[i]);
        }
    }
}

/* Every single bit is found, whatever its place in the vector registers. */
static void test_scan_finds_single_bits(void **state)
{
    struct page_set set;
    uint64_t n;

    assert_int_equal(page_set_init(&set, 3 * 4096), 0);
    for (pfn_t p = 0; p < set.limit; p++) {
        bitmap_set(set.map, p);
        n = 0;
        assert_int_equal(page_set_scan_group(&set, 0, 3, &n), p / 4096);
        assert_int_equal(n, 1);
        assert_int_equal(page_set_scan_group(&set, p / 4096 + 1, 3, &n), MAX((size_t)3, (size_t)(p / 4096 + 1)));
        assert_int_equal(page_set_scan_group(&set, 0, p / 4096, &n), p / 4096);
        set.map[p / 64] = 0;
    }
    page_set_free(&set);
}

/* A walk that has come to the end stays there, wherever the last page is. */
static void test_walk_ends_for_good(void **state)
{
    static const uint64_t lasts[] = {0, 63, 64, PAGE_SET_GROUP_PAGES - 1, PAGE_SET_GROUP_PAGES, 3 * PAGE_SET_GROUP_PAGES - 1};

    for (size_t i = 0; i < ARRAY_SIZE(lasts); i++) {
        struct page_set set;
        struct page_set_walk walk;
        uint64_t found = 0;

        assert_int_equal(page_set_init(&set, 3 * PAGE_SET_GROUP_PAGES), 0);
        page_set_add(&set, 0);
        page_set_add(&set, lasts[i]);
        walk = page_set_walk_from(&set, 0);
        for (int k = 0; k < 1000; k++) {
            if (!page_set_walk_word(&set, &walk))
                continue;
            walk.bits &= walk.bits - 1;
            found++;
        }
        assert_int_equal(found, set.pages);
        page_set_free(&set);
    }
}

static void test_free_of_nothing(void **state)
{
    struct page_set set = {0};

    page_set_free(&set);
    assert_int_equal(page_set_init(&set, 256), 0);
    page_set_free(&set);
    page_set_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_model),
        cmocka_unit_test(test_scan_finds_single_bits),
        cmocka_unit_test(test_walk_ends_for_good),
        cmocka_unit_test(test_free_of_nothing),
    };

    return cmocka_run_group_tests_name("pageset", tests, NULL, NULL);
}
