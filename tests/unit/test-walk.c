/* Walks over a range of addresses: what is found, in which order, and where they end. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>

#include "base/util.h"
#include "fake-guest.h"

static const struct gpt_cpu cpu = {.maxphyaddr = 40, .gbpages = true};
static const struct mmu_paging long_mode = {.levels = 4, .nx = true};

#define MAX_LEAVES 16
#define KERNEL UINT64_C(0xffffffff80000000)

struct seen {
    struct mmu_leaf leaves[MAX_LEAVES];
    unsigned int count, stop_after;
};

static bool note(void *ctx, const struct mmu_leaf *leaf)
{
    struct seen *s = ctx;

    assert_true(s->count < MAX_LEAVES);
    s->leaves[s->count++] = *leaf;
    return s->count != s->stop_after;
}

static int walk(const struct fake_guest *g, gpa_t root, gva_t first, gva_t last, unsigned int max_tables, struct seen *s)
{
    struct mmu_view view = mem_view(g->mem);

    *s = (struct seen){.stop_after = s->stop_after};
    return mmu_walk_range(&view, &cpu, &g->paging, root, first, last, max_tables, note, s);
}

static void test_range(void **state)
{
    struct fake_guest g;
    struct seen s = {.stop_after = 0};
    gpa_t root;

    fake_guest_init(&g, 64 * MiB, long_mode);
    root = gfn_to_gpa(fake_guest_frame(&g));
    fake_guest_map(&g, root, KERNEL - 0x1000, 90, 1, FG_P);
    fake_guest_map(&g, root, KERNEL, 0x1000, 2, FG_P | FG_W | FG_NX);
    fake_guest_map(&g, root, KERNEL + 0x200000, 77, 1, FG_P | FG_U);
    fake_guest_map(&g, root, KERNEL + 0x201000, gpa_to_gfn(GiB), 1, FG_P);
    fake_guest_map(&g, root, UINT64_MAX & ~UINT64_C(0xfff), 78, 1, FG_P);
    assert_int_equal(walk(&g, root, KERNEL, UINT64_MAX, 16, &s), 0);
    assert_int_equal(s.count, 3);
    assert_int_equal(s.leaves[0].gva, KERNEL);
    assert_int_equal(s.leaves[0].gpa, 0x1000000);
    assert_int_equal(s.leaves[0].size, 2 * MiB);
    assert_true(s.leaves[0].write && !s.leaves[0].user && s.leaves[0].nx);
    assert_int_equal(s.leaves[1].gva, KERNEL + 0x200000);
    assert_true(!s.leaves[1].write && s.leaves[1].user && !s.leaves[1].nx);
    assert_int_equal(s.leaves[2].gva, UINT64_MAX & ~UINT64_C(0xfff));
    assert_int_equal(s.leaves[2].gpa, gfn_to_gpa(78));
    /* A large page belongs to a range of which it has the last byte, or the first. */
    assert_int_equal(walk(&g, root, KERNEL + 0x1fffff, KERNEL + 0x1fffff, 16, &s), 0);
    assert_int_equal(s.count, 1);
    assert_int_equal(walk(&g, root, KERNEL - 0x2000, KERNEL, 16, &s), 0);
    assert_int_equal(s.count, 2);
    assert_int_equal(walk(&g, root, 0, KERNEL - 0x2000, 16, &s), 0);
    assert_int_equal(s.count, 0);
    /* It ends when it is told to. */
    s.stop_after = 1;
    assert_int_equal(walk(&g, root, 0, UINT64_MAX, 16, &s), 0);
    assert_int_equal(s.count, 1);
    fake_guest_clear(&g);
}

static void one_mode(struct mmu_paging paging, gva_t gva, unsigned int level, uint64_t size)
{
    struct fake_guest g;
    struct seen s = {.stop_after = 0};
    gpa_t root;

    fake_guest_init(&g, 64 * MiB, paging);
    root = gfn_to_gpa(fake_guest_frame(&g));
    fake_guest_map(&g, root, gva, 0x400, level, FG_P | FG_W);
    assert_int_equal(walk(&g, root, 0, mmu_canonical(paging.levels, UINT64_MAX), 16, &s), 0);
    assert_int_equal(s.count, 1);
    assert_int_equal(s.leaves[0].gva, gva);
    assert_int_equal(s.leaves[0].gpa, gfn_to_gpa(0x400));
    assert_int_equal(s.leaves[0].size, size);
    fake_guest_clear(&g);
}

static void test_range_modes(void **state)
{
    one_mode((struct mmu_paging){.levels = 2, .pse = true}, 0xffc00000, 1, 4 * KiB);
    one_mode((struct mmu_paging){.levels = 2, .pse = true}, 0xc0400000, 2, 4 * MiB);
    one_mode((struct mmu_paging){.levels = 3, .nx = true}, 0xc0200000, 2, 2 * MiB);
    one_mode((struct mmu_paging){.levels = 5, .nx = true}, UINT64_C(0xff11000000001000), 1, 4 * KiB);
    one_mode((struct mmu_paging){.levels = 5, .nx = true}, UINT64_C(0x00ff000000200000), 2, 2 * MiB);
}

static void test_range_bounds(void **state)
{
    struct fake_guest g;
    struct seen s = {.stop_after = 0};
    struct mmu_view view;
    struct mmu_paging bad = {.levels = 6};

    fake_guest_init(&g, 16 * MiB, long_mode);
    view = mem_view(g.mem);
    assert_int_equal(walk(&g, 0x1000, 1, 0, 16, &s), -EINVAL);
    assert_int_equal(walk(&g, 0x1000, UINT64_C(1) << 47, UINT64_MAX, 16, &s), -EINVAL);
    assert_int_equal(walk(&g, 0x1000, 0, UINT64_C(1) << 47, 16, &s), -EINVAL);
    assert_int_equal(mmu_walk_range(&view, &cpu, &bad, 0x1000, 0, UINT64_MAX, 16, note, &s), -EINVAL);
    /* Nothing there. */
    assert_int_equal(walk(&g, UINT64_MAX, 0, UINT64_MAX, 16, &s), 0);
    assert_int_equal(walk(&g, 0x1000, 0, UINT64_MAX, 0, &s), -E2BIG);
    /* All entries of a root lead to itself: a tree of 512 to the fourth, were there no limit. */
    for (unsigned int i = 0; i < 512; i++)
        fake_guest_set(&g, 1, i, 0x1000 | FG_P | FG_W);
    s.stop_after = MAX_LEAVES;
    assert_int_equal(walk(&g, 0x1000, 0, UINT64_MAX, 3, &s), -E2BIG);
    assert_int_equal(s.count, 0);
    assert_int_equal(walk(&g, 0x1000, 0, UINT64_MAX, 4, &s), 0);
    assert_int_equal(s.count, MAX_LEAVES);
    fake_guest_clear(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_range),
        cmocka_unit_test(test_range_modes),
        cmocka_unit_test(test_range_bounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
