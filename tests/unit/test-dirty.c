/* What the dirty log promises, one thing a test, over the model of KVM. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/log.h"
#include "base/util.h"
#include "fake-kvm.h"
#include "mmu/dirty.h"

#define GROUP 4096u /* pages under one summary bit */

struct fixture {
    struct mem *mem;
    struct fake_kvm kvm;
    struct dirty_log *log;
};

static struct fixture fx;

static void fixture_open(uint64_t size, const struct dirty_config *like, unsigned int vcpus, uint32_t ring_entries)
{
    struct mem_config config = {.size = size};
    struct dirty_config dirty = *like;

    assert_int_equal(mem_new(&config, &fx.mem), 0);
    fx.kvm = (struct fake_kvm){.mem = fx.mem, .backend = like->backend, .initially_set = like->initially_set,
                               .vcpus = vcpus, .ring_entries = ring_entries};
    fake_init(&fx.kvm, 1);
    if (!dirty.ops)
        dirty.ops = &fake_ops;
    dirty.opaque = &fx.kvm;
    assert_int_equal(dirty_log_new(fx.mem, &dirty, &fx.log), 0);
    fake_add_rings(&fx.kvm, fx.log);
}

static void open_bitmap(uint64_t size)
{
    fixture_open(size, &(struct dirty_config){.backend = DIRTY_BITMAP}, 0, 0);
}

static void open_ring(uint32_t entries)
{
    fixture_open(16 * MiB, &(struct dirty_config){.backend = DIRTY_RING}, 1, entries);
}

static void fixture_close(void)
{
    assert_int_equal(fx.kvm.misuse, 0);
    dirty_log_free(fx.log);
    fake_destroy(&fx.kvm);
    mem_free(fx.mem);
}

static void guest_writes(pfn_t page)
{
    assert_true(fake_guest_write(&fx.kvm, 0, page));
}

/* A snapshot that must hold exactly these pages; its epoch. */
static uint64_t expect(const char *name, bool peek, size_t count, const pfn_t *pages)
{
    struct dirty_snapshot s;
    uint64_t *map = calloc(dirty_log_words(fx.log), 8);

    assert_non_null(map);
    for (size_t i = 0; i < count; i++)
        bitmap_set(map, pages[i]);
    assert_int_equal(dirty_log_snapshot_lock(fx.log, name, peek, &s), 0);
    assert_int_equal(s.pages, count);
    assert_memory_equal(s.bitmap, map, dirty_log_words(fx.log) * 8);
    dirty_log_unlock(fx.log);
    free(map);
    return s.epoch;
}
#define PAGES(...) sizeof((const pfn_t[]){__VA_ARGS__}) / sizeof(pfn_t), (const pfn_t[]){__VA_ARGS__}
#define NO_PAGES 0, NULL

static int start(const char *name)
{
    return dirty_log_start(fx.log, name, DIRTY_START_CHANGES);
}

static int try_snapshot(const char *name)
{
    struct dirty_snapshot s;
    int r = dirty_log_snapshot_lock(fx.log, name, false, &s);

    if (r == 0)
        dirty_log_unlock(fx.log);
    return r;
}

/* -- consumers ---------------------------------------------------------------- */

static void test_names_and_limits(void **state)
{
    char name[DIRTY_NAME_MAX + 2];

    open_bitmap(MiB);
    assert_int_equal(start(""), -EINVAL);
    memset(name, 'n', sizeof(name));
    name[DIRTY_NAME_MAX + 1] = '\0';
    assert_int_equal(start(name), -EINVAL);
    name[DIRTY_NAME_MAX] = '\0';
    assert_int_equal(start(name), 0);
    assert_int_equal(start(name), -EEXIST);
    for (int i = 1; i < DIRTY_MAX_CONSUMERS; i++) {
        snprintf(name, sizeof(name), "c%d", i);
        assert_int_equal(start(name), 0);
    }
    assert_int_equal(start("one more"), -ENOSPC);
    assert_int_equal(start("c3"), -EEXIST);
    assert_int_equal(dirty_log_consumers(fx.log, NULL, 0), DIRTY_MAX_CONSUMERS);
    assert_int_equal(dirty_log_stop(fx.log, "c3"), 0);
    assert_int_equal(dirty_log_stop(fx.log, "c3"), -ENOENT);
    assert_int_equal(start("one more"), 0);
    assert_int_equal(try_snapshot("c3"), -ENOENT);
    assert_int_equal(dirty_log_ack(fx.log, "c3", 1), -ENOENT);
    fixture_close();
}

static void test_epochs(void **state)
{
    struct dirty_consumer_info info;

    open_bitmap(16 * MiB);
    assert_int_equal(start("a"), 0);
    assert_int_equal(dirty_log_ack(fx.log, "a", 0), -EINVAL);
    assert_int_equal(dirty_log_ack(fx.log, "a", 1), -EINVAL);
    guest_writes(7);
    assert_int_equal(expect("a", false, PAGES(7)), 1);
    guest_writes(8);
    /* Not acknowledged: it comes back, in an epoch of its own, and the old one is no more. */
    assert_int_equal(expect("a", false, PAGES(7, 8)), 2);
    assert_int_equal(dirty_log_ack(fx.log, "a", 1), -EINVAL);
    assert_int_equal(dirty_log_ack(fx.log, "a", 3), -EINVAL);
    assert_int_equal(expect("a", true, PAGES(7, 8)), 2);
    assert_int_equal(dirty_log_consumers(fx.log, &info, 1), 1);
    assert_string_equal(info.name, "a");
    assert_int_equal(info.mode, DIRTY_START_CHANGES);
    assert_int_equal(info.epoch, 2);
    assert_int_equal(info.pending, 0);
    assert_int_equal(info.unacknowledged, 2);
    assert_int_equal(info.snapshots, 2);
    assert_int_equal(info.pages, 3);
    /* A write after the snapshot is not dealt with by its acknowledgement. */
    guest_writes(8);
    assert_int_equal(dirty_log_ack(fx.log, "a", 2), 0);
    assert_int_equal(dirty_log_ack(fx.log, "a", 2), 0);
    assert_int_equal(expect("a", false, PAGES(8)), 3);
    assert_int_equal(dirty_log_ack(fx.log, "a", 3), 0);
    assert_int_equal(expect("a", false, NO_PAGES), 4);
    fixture_close();
}

/* A consumer that dies between snapshot and acknowledgement: the next program takes up its name and loses nothing. */
static void test_killed_consumer(void **state)
{
    open_bitmap(16 * MiB);
    assert_int_equal(start("backup"), 0);
    guest_writes(1);
    fake_vmm_write(&fx.kvm, 2);
    expect("backup", false, PAGES(1, 2));
    assert_int_equal(start("backup"), -EEXIST);
    guest_writes(3);
    expect("backup", false, PAGES(1, 2, 3));
    fixture_close();
}

static void test_independent_consumers(void **state)
{
    open_bitmap(16 * MiB);
    assert_int_equal(start("a"), 0);
    guest_writes(1);
    assert_int_equal(start("b"), 0);
    guest_writes(2);
    /* The start of b took page 1 out of KVM, for a alone. */
    assert_int_equal(expect("b", false, PAGES(2)), 1);
    assert_int_equal(dirty_log_ack(fx.log, "b", 1), 0);
    guest_writes(3);
    assert_int_equal(expect("a", false, PAGES(1, 2, 3)), 1);
    assert_int_equal(dirty_log_ack(fx.log, "a", 1), 0);
    assert_int_equal(expect("b", false, PAGES(3)), 2);
    assert_int_equal(expect("a", false, NO_PAGES), 2);
    fixture_close();
}

static void test_all_pages(void **state)
{
    struct dirty_snapshot s;

    for (int set = 0; set < 2; set++) {
        fixture_open(5 * MiB, &(struct dirty_config){.initially_set = set}, 0, 0);
        assert_int_equal(dirty_log_start(fx.log, "all", DIRTY_START_ALL), 0);
        /* What is initially set needs not be cleared to give all pages. */
        assert_int_equal(fx.kvm.clears, 0);
        assert_int_equal(dirty_log_snapshot_lock(fx.log, "all", false, &s), 0);
        assert_int_equal(s.pages, 1280);
        assert_int_equal(bitmap_next_clear(s.bitmap, 1280, 0), 1280);
        dirty_log_unlock(fx.log);
        assert_int_equal(dirty_log_ack(fx.log, "all", 1), 0);
        guest_writes(1279);
        expect("all", false, PAGES(1279));
        fixture_close();
    }
}

static void test_initially_set_is_not_a_change(void **state)
{
    fixture_open(16 * MiB, &(struct dirty_config){.initially_set = true}, 0, 0);
    assert_int_equal(start("a"), 0);
    expect("a", false, NO_PAGES);
    guest_writes(5);
    expect("a", false, PAGES(5));
    fixture_close();
}

static void test_logging_only_while_consumed(void **state)
{
    struct page_set set;

    for (int ring = 0; ring < 2; ring++) {
        if (ring)
            open_ring(16);
        else
            open_bitmap(16 * MiB);
        assert_false(fake_logging(&fx.kvm));
        assert_int_equal(start("a"), 0);
        assert_int_equal(start("b"), 0);
        assert_true(fake_logging(&fx.kvm));
        assert_int_equal(dirty_log_stop(fx.log, "a"), 0);
        assert_true(fake_logging(&fx.kvm));
        guest_writes(1);
        assert_int_equal(dirty_log_stop(fx.log, "b"), 0);
        assert_false(fake_logging(&fx.kvm));
        /* Nor does the VMM note its own writes then. */
        fake_vmm_write(&fx.kvm, 2);
        assert_int_equal(page_set_init(&set, mem_pages(fx.mem)), 0);
        assert_int_equal(mem_collect_writes(fx.mem, MEM_LISTENER_DIRTY_LOG, &set), 0);
        page_set_free(&set);
        /* Nothing of the past is left. */
        assert_int_equal(start("c"), 0);
        expect("c", false, NO_PAGES);
        fixture_close();
    }
}

static void test_peek_moves_nothing(void **state)
{
    for (int ring = 0; ring < 2; ring++) {
        if (ring)
            open_ring(16);
        else
            open_bitmap(16 * MiB);
        assert_int_equal(start("a"), 0);
        guest_writes(1);
        fake_vmm_write(&fx.kvm, 9);
        assert_int_equal(expect("a", true, PAGES(1, 9)), 0);
        assert_int_equal(expect("a", true, PAGES(1, 9)), 0);
        assert_int_equal(fx.kvm.clears, 0);
        assert_int_equal(fx.kvm.resets, 0);
        assert_int_equal(expect("a", false, PAGES(1, 9)), 1);
        fixture_close();
    }
}

static void test_statistics(void **state)
{
    struct dirty_stats st;

    open_bitmap(16 * MiB);
    assert_int_equal(start("a"), 0);
    guest_writes(1);
    guest_writes(2);
    fake_vmm_write(&fx.kvm, 2);
    fake_vmm_write(&fx.kvm, 3);
    expect("a", false, PAGES(1, 2, 3));
    fx.kvm.fail_get = 100;
    assert_int_equal(try_snapshot("a"), -EFAULT);
    dirty_log_stats(fx.log, &st);
    assert_int_equal(st.harvests, 2);
    assert_int_equal(st.failures, 1);
    assert_int_equal(st.pages, 3);
    assert_int_equal(st.vmm_pages, 1);
    assert_int_equal(st.get_ioctls, fx.kvm.gets);
    assert_int_equal(st.clear_ioctls, 1);
    assert_int_equal(st.clear_words, 64);
    fixture_close();
}

static void test_refused_configurations(void **state)
{
    struct mem_config config = {.size = MiB};
    struct dirty_ops ops = fake_ops;
    struct dirty_config dirty = {.ops = &ops};
    struct dirty_log *log = NULL;
    struct kvm_dirty_gfn ring[4];

    assert_int_equal(mem_new(&config, &fx.mem), 0);
    ops.get = NULL;
    assert_int_equal(dirty_log_new(fx.mem, &dirty, &log), -EINVAL);
    ops = fake_ops;
    ops.clear = NULL;
    assert_int_equal(dirty_log_new(fx.mem, &dirty, &log), -EINVAL);
    ops = fake_ops;
    ops.set_logging = NULL;
    assert_int_equal(dirty_log_new(fx.mem, &dirty, &log), -EINVAL);
    ops = fake_ops;
    dirty.backend = DIRTY_RING;
    ops.reset_rings = NULL;
    assert_int_equal(dirty_log_new(fx.mem, &dirty, &log), -EINVAL);
    dirty.ops = NULL;
    assert_int_equal(dirty_log_new(fx.mem, &dirty, &log), -EINVAL);
    assert_null(log);
    dirty.ops = &fake_ops;
    assert_int_equal(dirty_log_new(fx.mem, &dirty, &log), 0);
    assert_int_equal(dirty_log_add_ring(log, ring, 0), -EINVAL);
    assert_int_equal(dirty_log_add_ring(log, ring, 3), -EINVAL);
    assert_int_equal(dirty_log_backend(log), DIRTY_RING);
    dirty_log_free(log);
    dirty_log_free(NULL);
    dirty.backend = DIRTY_BITMAP;
    assert_int_equal(dirty_log_new(fx.mem, &dirty, &log), 0);
    assert_int_equal(dirty_log_add_ring(log, ring, 4), -EINVAL);
    dirty_log_free(log);
    mem_free(fx.mem);
}

/* -- the bitmap --------------------------------------------------------------- */

/* Clears of a harvest after one page in each of these groups of 16 MiB was written. */
static uint64_t clears_for(const struct dirty_config *config, size_t count, const unsigned int *groups)
{
    uint64_t clears;

    fixture_open(GiB, config, 0, 0);
    assert_int_equal(start("a"), 0);
    for (size_t i = 0; i < count; i++)
        guest_writes(groups[i] * (pfn_t)GROUP + 5);
    clears = fx.kvm.clears;
    assert_int_equal(try_snapshot("a"), 0);
    clears = fx.kvm.clears - clears;
    assert_int_equal(dirty_log_ack(fx.log, "a", 1), 0);
    expect("a", false, NO_PAGES);
    fixture_close();
    return clears;
}
#define CLEARS(config, ...)                                                                          \
    clears_for(&(struct dirty_config)config, sizeof((unsigned int[]){__VA_ARGS__}) / sizeof(unsigned int), \
               (unsigned int[]){__VA_ARGS__})
#define STRATEGY(...) {.clear = __VA_ARGS__}

static void test_clear_strategies(void **state)
{
    /* Nothing dirty: no ioctl. */
    assert_int_equal(clears_for(&(struct dirty_config){.clear = DIRTY_CLEAR_DENSE}, 0, NULL), 0);
    assert_int_equal(clears_for(&(struct dirty_config){.clear = DIRTY_CLEAR_AUTO}, 0, NULL), 0);

    assert_int_equal(CLEARS(STRATEGY(DIRTY_CLEAR_DENSE), 0, 9, 63), 1);
    assert_int_equal(CLEARS(STRATEGY(DIRTY_CLEAR_SPARSE), 0, 9, 63), 3);
    assert_int_equal(CLEARS(STRATEGY(DIRTY_CLEAR_SPARSE), 0, 1, 2, 9, 10, 63), 3);
    /* A gap of as many clean groups as the limit, and one fewer. */
    assert_int_equal(CLEARS(STRATEGY(DIRTY_CLEAR_AUTO, .clear_gap = 3), 1, 5), 2);
    assert_int_equal(CLEARS(STRATEGY(DIRTY_CLEAR_AUTO, .clear_gap = 3), 1, 4), 1);
    assert_int_equal(CLEARS(STRATEGY(DIRTY_CLEAR_AUTO, .clear_gap = 3), 1, 4, 7, 11, 63), 3);
    /* The measured gap is 256 MiB. */
    assert_int_equal(CLEARS(STRATEGY(DIRTY_CLEAR_AUTO), 0, 16, 33, 63), 3);
    /* Not more pages than allowed with one ioctl. */
    assert_int_equal(CLEARS(STRATEGY(DIRTY_CLEAR_AUTO, .clear_max_pages = 2), 0, 1, 2, 3, 4), 3);
    assert_int_equal(CLEARS(STRATEGY(DIRTY_CLEAR_AUTO, .clear_max_pages = 1), 0, 1, 2), 3);
}

static void test_many_pages_are_cleared_in_parts(void **state)
{
    uint64_t clears;

    open_bitmap(GiB);
    assert_int_equal(start("a"), 0);
    for (pfn_t p = 0; p < 20000; p++)
        guest_writes(p);
    clears = fx.kvm.clears;
    assert_int_equal(try_snapshot("a"), 0);
    assert_int_equal(fx.kvm.clears - clears, 3); /* 8192 + 8192 + the rest */
    fixture_close();
}

/* Page 3 GiB of the RAM file is the first of the second slot. */
static void test_two_slots(void **state)
{
    struct dirty_snapshot s;
    struct dirty_range ranges[4];
    pfn_t cursor = 0, low = 786432;

    open_bitmap(3 * GiB + 16 * MiB);
    assert_int_equal(start("a"), 0);
    for (pfn_t p = low - 2; p < low + 3; p++)
        guest_writes(p);
    guest_writes(low + 4095);
    assert_int_equal(dirty_log_snapshot_lock(fx.log, "a", false, &s), 0);
    assert_int_equal(s.pages, 6);
    assert_int_equal(dirty_ranges(fx.mem, &s, &cursor, ranges, 4), 3);
    assert_int_equal(ranges[0].gfn, low - 2);
    assert_int_equal(ranges[0].pages, 2);
    assert_int_equal(ranges[1].gfn, 0x100000);
    assert_int_equal(ranges[1].pages, 3);
    assert_int_equal(ranges[2].gfn, 0x100000 + 4095);
    assert_int_equal(ranges[2].pages, 1);
    assert_int_equal(dirty_ranges(fx.mem, &s, &cursor, ranges, 4), 0);
    /* One at a time. */
    cursor = 0;
    assert_int_equal(dirty_ranges(fx.mem, &s, &cursor, ranges, 1), 1);
    assert_int_equal(cursor, low);
    assert_int_equal(dirty_ranges(fx.mem, &s, &cursor, ranges, 1), 1);
    assert_int_equal(ranges[0].gfn, 0x100000);
    dirty_log_unlock(fx.log);
    fixture_close();
}

static void test_failed_get(void **state)
{
    open_bitmap(16 * MiB);
    assert_int_equal(start("a"), 0);
    guest_writes(1);
    fake_vmm_write(&fx.kvm, 2);
    fx.kvm.fail_get = 100;
    assert_int_equal(try_snapshot("a"), -EFAULT);
    assert_int_equal(start("b"), -EFAULT);
    assert_int_equal(dirty_log_stop(fx.log, "b"), -ENOENT);
    fx.kvm.fail_get = 0;
    assert_int_equal(expect("a", false, PAGES(1, 2)), 1);
    fixture_close();
}

static void test_failed_clear(void **state)
{
    open_bitmap(16 * MiB);
    assert_int_equal(start("a"), 0);
    assert_int_equal(start("b"), 0);
    guest_writes(1);
    fx.kvm.fail_clear = 100;
    assert_int_equal(try_snapshot("a"), -EFAULT);
    guest_writes(1);
    fx.kvm.fail_clear = 0;
    assert_int_equal(expect("a", false, PAGES(1)), 1);
    assert_int_equal(expect("b", false, PAGES(1)), 1);
    assert_int_equal(dirty_log_ack(fx.log, "a", 1), 0);
    guest_writes(1);
    expect("a", false, PAGES(1));
    fixture_close();
}

static void test_failed_start_and_stop(void **state)
{
    open_bitmap(16 * MiB);
    fx.kvm.fail_logging = 100;
    assert_int_equal(start("a"), -ENOMEM);
    assert_int_equal(dirty_log_consumers(fx.log, NULL, 0), 0);
    fx.kvm.fail_logging = 0;
    assert_int_equal(start("a"), 0);
    guest_writes(1);
    /* It cannot be switched off: what it logs on is not the next consumer's, but the VMM's writes are. */
    fx.kvm.fail_logging = 100;
    assert_int_equal(dirty_log_stop(fx.log, "a"), -ENOMEM);
    assert_int_equal(dirty_log_consumers(fx.log, NULL, 0), 0);
    assert_true(fake_logging(&fx.kvm));
    fx.kvm.fail_logging = 0;
    guest_writes(2);
    assert_int_equal(start("b"), 0);
    guest_writes(3);
    fake_vmm_write(&fx.kvm, 4);
    expect("b", false, PAGES(3, 4));
    assert_int_equal(dirty_log_stop(fx.log, "b"), 0);
    assert_false(fake_logging(&fx.kvm));
    fixture_close();
}

/* -- the ring ----------------------------------------------------------------- */

static void test_ring_wraps(void **state)
{
    open_ring(4);
    assert_int_equal(start("a"), 0);
    for (uint64_t i = 0; i < 50; i++) {
        guest_writes(2 * i);
        guest_writes(2 * i + 1);
        guest_writes(1000);
        expect("a", false, PAGES(2 * i, 2 * i + 1, 1000));
        assert_int_equal(dirty_log_ack(fx.log, "a", i + 1), 0);
    }
    fixture_close();
}

static void test_full_ring_loses_nothing(void **state)
{
    struct dirty_stats st;
    pfn_t pages[100];

    open_ring(16);
    assert_int_equal(start("a"), 0);
    for (pfn_t p = 0; p < 100; p++) {
        while (!fake_guest_write(&fx.kvm, 0, p * 3))
            assert_int_equal(dirty_log_ring_full(fx.log, 0), 0);
        pages[p] = p * 3;
    }
    expect("a", false, 100, pages);
    dirty_log_stats(fx.log, &st);
    assert_int_equal(st.ring_full, 7);
    assert_int_equal(st.ring_entries, 100);
    fixture_close();
}

static void test_full_ring_without_consumers(void **state)
{
    open_ring(4);
    for (unsigned int i = 0; i < 3; i++)
        fake_push(&fx.kvm, 0, 0, i);
    assert_int_equal(dirty_log_ring_full(fx.log, 0), 0);
    assert_int_equal(fx.kvm.rings[0].reset, 3);
    assert_int_equal(start("a"), 0);
    expect("a", false, NO_PAGES);
    fixture_close();
}

/* A snapshot that must hold every page, with nothing lost; its epoch. */
static uint64_t expect_every_page(const char *name, bool peek)
{
    struct dirty_snapshot s;

    assert_int_equal(dirty_log_snapshot_lock(fx.log, name, peek, &s), 0);
    assert_int_equal(s.pages, 4096);
    assert_false(s.lost);
    dirty_log_unlock(fx.log);
    return s.epoch;
}

/*
 * KVM's shadow MMU overwrites entries, once or many times round the ring: then all pages are dirty, once, and what is written
 * after that is heard of again, page by page; nor does the vCPU find its ring full for ever.
 */
static void test_overrun(void **state)
{
    static const uint32_t written[] = {64, 65, 66, 90, 119, 120, 121, 127, 128, 129, 190, 200, 640, 1000, 3000};

    for (size_t i = 0; i < ARRAY_SIZE(written); i++)
        for (int seen = 0; seen < 3; seen++) {
            struct dirty_stats st;
            unsigned int full = 0;
            uint64_t epoch;

            open_ring(64);
            assert_int_equal(start("a"), 0);
            for (pfn_t p = 0; p < written[i]; p++)
                fake_guest_burst(&fx.kvm, 0, p);
            /* Others look before the vCPU comes out. */
            for (int look = 0; look < seen; look++)
                (void)expect_every_page("a", look == 0);
            for (; fake_ring_full(&fx.kvm, 0) && full < 500; full++)
                assert_int_equal(dirty_log_ring_full(fx.log, 0), 0);
            assert_true(full > 0 && full < 500);
            epoch = expect_every_page("a", false);
            assert_int_equal(dirty_log_ack(fx.log, "a", epoch), 0);
            for (pfn_t p = 0; p < 100; p++) {
                while (!fake_guest_write(&fx.kvm, 0, 7 * p))
                    assert_int_equal(dirty_log_ring_full(fx.log, 0), 0);
                expect("a", false, PAGES(7 * p));
                assert_int_equal(dirty_log_ack(fx.log, "a", epoch + p + 1), 0);
            }
            dirty_log_stats(fx.log, &st);
            assert_int_equal(st.ring_overruns, 1);
            assert_int_equal(fx.kvm.misuse, 0);
            fixture_close();
        }
}

/* Entries that are gone without a trace: KVM says that the ring is full, and there is nothing in it. */
static void test_full_of_nothing(void **state)
{
    open_ring(64);
    assert_int_equal(start("a"), 0);
    for (pfn_t p = 0; !fake_ring_full(&fx.kvm, 0); p++)
        guest_writes(p);
    for (unsigned int i = 0; i < 64; i++)
        fx.kvm.rings[0].entries[i].flags = 0;
    for (unsigned int full = 0; fake_ring_full(&fx.kvm, 0); full++) {
        assert_true(full < 5);
        assert_int_equal(dirty_log_ring_full(fx.log, 0), 0);
    }
    assert_int_equal(dirty_log_ack(fx.log, "a", expect_every_page("a", false)), 0);
    guest_writes(7);
    expect("a", false, PAGES(7));
    fixture_close();
}

struct burst {
    unsigned int after; /* entries that KVM takes back before it */
    pfn_t pages;
};

static void burst_while_taking(void *arg)
{
    struct burst *burst = arg;

    if (burst->after-- > 0)
        return;
    fx.kvm.taking = NULL;
    for (pfn_t p = 0; p < burst->pages; p++)
        fake_guest_burst(&fx.kvm, 0, 500 + p);
}

static void copy_snapshot(uint64_t *copy)
{
    struct dirty_snapshot s;

    assert_int_equal(dirty_log_snapshot_lock(fx.log, "a", false, &s), 0);
    for (pfn_t p = 0; (p = bitmap_next_set(s.bitmap, mem_pages(fx.mem), p)) < mem_pages(fx.mem); p++)
        copy[p] = fake_content(&fx.kvm, p);
    dirty_log_unlock(fx.log);
    assert_int_equal(dirty_log_ack(fx.log, "a", s.epoch), 0);
}

/* Nothing is written meanwhile, so the copy is memory. */
static void expect_copied(uint64_t *copy)
{
    copy_snapshot(copy);
    for (pfn_t p = 0; p < mem_pages(fx.mem); p++)
        assert_int_equal(copy[p], fake_content(&fx.kvm, p));
}

static void overrun_while_taking(pfn_t given, struct burst burst)
{
    uint64_t *copy;

    fixture_open(4 * MiB, &(struct dirty_config){.backend = DIRTY_RING}, 1, 64);
    copy = calloc(mem_pages(fx.mem), sizeof(*copy));
    assert_non_null(copy);
    assert_int_equal(start("a"), 0);
    for (pfn_t p = 0; p < given; p++)
        guest_writes(p);
    fx.kvm.taking = burst_while_taking;
    fx.kvm.taking_arg = &burst;
    copy_snapshot(copy);
    assert_null(fx.kvm.taking);
    expect_copied(copy);
    for (pfn_t p = 0; p < 200; p++) {
        while (!fake_guest_write(&fx.kvm, 0, p % 80 * 3))
            assert_int_equal(dirty_log_ring_full(fx.log, 0), 0);
        if (p % 20 == 0)
            expect_copied(copy);
    }
    expect_copied(copy);
    free(copy);
    fixture_close();
}

/*
 * A vCPU comes round its ring to the very entry that KVM is taking back. KVM then takes the new page for the old one: the entry
 * looks taken, its page is lost, and so is every entry behind it for whoever waits for that one.
 */
static void test_overrun_while_taking(void **state)
{
    static const unsigned int given[] = {1, 2, 20, 40, 47}, after[] = {0, 1, 10, 39};

    for (size_t g = 0; g < ARRAY_SIZE(given); g++)
        for (size_t a = 0; a < ARRAY_SIZE(after); a++)
            for (pfn_t pages = 1; after[a] < given[g] && pages < 150; pages++)
                overrun_while_taking(given[g], (struct burst){.after = after[a], .pages = pages});
}

/* A ring that is nearly full is its vCPU's to take when it leaves KVM; a paused guest's is as good as empty. */
static void test_crowded_ring(void **state)
{
    struct dirty_stats st;

    open_ring(64);
    assert_int_equal(start("a"), 0);
    for (pfn_t p = 0; p < 40; p++)
        guest_writes(p);
    assert_int_equal(dirty_log_ring_left(fx.log, 0), 0);
    assert_int_equal(fx.kvm.rings[0].reset, 0);
    for (pfn_t p = 40; p < 50; p++)
        guest_writes(p);
    assert_int_equal(dirty_log_ring_left(fx.log, 0), 0);
    assert_int_equal(fx.kvm.rings[0].reset, 50);
    for (pfn_t p = 0; p < 200; p++)
        fake_guest_burst(&fx.kvm, 0, p);
    assert_int_equal(dirty_log_ring_left(fx.log, 0), 0);
    dirty_log_stats(fx.log, &st);
    assert_int_equal(st.ring_overruns, 1);
    assert_int_equal(st.ring_full, 0);
    fixture_close();
}

/* A page that was taken is not protected until the reset; so nothing is given out before. */
static void test_failed_reset(void **state)
{
    open_ring(16);
    assert_int_equal(start("a"), 0);
    assert_int_equal(start("b"), 0);
    guest_writes(1);
    fx.kvm.fail_reset = 100;
    fx.kvm.reset_at_most = 0;
    for (int i = 0; i < 20; i++) {
        int r = try_snapshot("a");

        assert_true(r == 0 || r == -ENOMEM || r == -EINTR);
        if (r == 0) {
            /* The failing call had taken it back before: protected, then. */
            assert_int_equal(fx.kvm.rings[0].reset, fx.kvm.rings[0].dirty);
            assert_int_equal(dirty_log_ack(fx.log, "a", i + 1), -EINVAL);
            break;
        }
        guest_writes(1);
    }
    fx.kvm.fail_reset = 0;
    expect("a", false, PAGES(1));
    guest_writes(1);
    expect("b", false, PAGES(1));
    fixture_close();
}

static int never_resets(void *opaque)
{
    (void)opaque;
    return 0;
}

static void test_reset_that_does_nothing(void **state)
{
    struct dirty_ops ops = fake_ops;

    ops.reset_rings = never_resets;
    fixture_open(16 * MiB, &(struct dirty_config){.backend = DIRTY_RING, .ops = &ops}, 1, 16);
    assert_int_equal(start("a"), 0);
    guest_writes(1);
    assert_int_equal(try_snapshot("a"), -EIO);
    guest_writes(1);
    assert_int_equal(dirty_log_ring_full(fx.log, 0), -EIO);
    ops.reset_rings = fake_ops.reset_rings;
    assert_int_equal(expect("a", false, PAGES(1)), 1);
    fixture_close();
}

static void test_reset_in_parts(void **state)
{
    open_ring(16);
    assert_int_equal(start("a"), 0);
    for (pfn_t p = 0; p < 7; p++)
        guest_writes(p);
    fx.kvm.reset_at_most = 2;
    expect("a", false, PAGES(0, 1, 2, 3, 4, 5, 6));
    assert_int_equal(fx.kvm.resets, 4);
    assert_int_equal(fx.kvm.rings[0].reset, 7);
    /* Nothing new: no ioctl. */
    assert_int_equal(dirty_log_ack(fx.log, "a", 1), 0);
    expect("a", false, NO_PAGES);
    assert_int_equal(fx.kvm.resets, 4);
    fixture_close();
}

/*
 * Entries are given back in ascending order where KVM can protect neighbours together then; none may be missing. Here a
 * page of one end of memory follows one of the other.
 */
static void test_entries_are_sorted(void **state)
{
    const struct kvm_dirty_gfn *ring;
    pfn_t pages[2000];
    struct dirty_ops ops = fake_ops;

    ops.reset_rings = never_resets;
    fixture_open(3 * GiB + 16 * MiB, &(struct dirty_config){.backend = DIRTY_RING, .ops = &ops}, 1, 4096);
    ring = fx.kvm.rings[0].entries;
    assert_int_equal(start("a"), 0);
    for (uint64_t i = 0; i < ARRAY_SIZE(pages); i++) {
        /* Every second one beyond the hole, downwards. */
        pages[i] = i % 2 ? 786432 + 4000 - 2 * i : i * 3;
        guest_writes(pages[i]);
    }
    /* A page that KVM names again takes an entry and adds none. */
    for (unsigned int i = 0; i < 300; i++)
        fake_push(&fx.kvm, 0, 0, 0);
    assert_int_equal(try_snapshot("a"), -EIO);
    for (unsigned int i = 1; i < ARRAY_SIZE(pages); i++) {
        assert_int_equal(ring[i].slot, i >= ARRAY_SIZE(pages) / 2);
        assert_true(i == ARRAY_SIZE(pages) / 2 || ring[i].offset > ring[i - 1].offset);
        assert_int_equal(ring[i].flags, KVM_DIRTY_GFN_F_RESET);
    }
    for (unsigned int i = ARRAY_SIZE(pages); i < ARRAY_SIZE(pages) + 300; i++) {
        assert_int_equal(ring[i].slot, ring[ARRAY_SIZE(pages) - 1].slot);
        assert_int_equal(ring[i].offset, ring[ARRAY_SIZE(pages) - 1].offset);
        assert_int_equal(ring[i].flags, KVM_DIRTY_GFN_F_RESET);
    }
    ops.reset_rings = fake_ops.reset_rings;
    expect("a", false, ARRAY_SIZE(pages), pages);
    assert_int_equal(dirty_log_ack(fx.log, "a", 1), 0);
    /* All are protected again. */
    for (size_t i = 0; i < ARRAY_SIZE(pages); i++)
        guest_writes(pages[i]);
    expect("a", false, ARRAY_SIZE(pages), pages);
    fixture_close();
}

/* Where they are in a good order, or would make as many runs in any, they are left as they are. */
static void test_entries_left_alone(void **state)
{
    struct dirty_ops ops = fake_ops;

    ops.reset_rings = never_resets;
    for (int far = 0; far < 2; far++) {
        fixture_open(16 * MiB, &(struct dirty_config){.backend = DIRTY_RING, .ops = &ops}, 1, 64);
        assert_int_equal(start("a"), 0);
        for (unsigned int i = 0; i < 40; i++)
            guest_writes(far ? (i * 37 % 40) * 100 : 1000 - i);
        assert_int_equal(try_snapshot("a"), -EIO);
        for (unsigned int i = 0; i < 40; i++)
            assert_int_equal(fx.kvm.rings[0].entries[i].offset, far ? (i * 37 % 40) * 100 : 1000 - i);
        fixture_close();
    }
}

/* An entry that names no page of the guest means that a page is lost, to everyone who was there; it is written nowhere. */
static void test_impossible_entries(void **state)
{
    static const struct {
        uint32_t slot;
        uint64_t offset;
    } cases[] = {
        {1, 0}, {0x10000, 0}, {UINT32_MAX, 0}, {0, 4096}, {0, UINT64_MAX}, {0, UINT64_C(1) << 52},
    };
    struct dirty_consumer_info info;
    struct dirty_snapshot s;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        open_ring(16);
        assert_int_equal(start("a"), 0);
        guest_writes(1);
        fake_push(&fx.kvm, 0, cases[i].slot, cases[i].offset);
        guest_writes(2);
        assert_int_equal(dirty_log_snapshot_lock(fx.log, "a", true, &s), 0);
        assert_true(s.lost);
        assert_int_equal(s.pages, 2);
        dirty_log_unlock(fx.log);
        assert_int_equal(dirty_log_snapshot_lock(fx.log, "a", false, &s), 0);
        assert_true(s.lost);
        assert_int_equal(s.pages, 2);
        dirty_log_unlock(fx.log);
        assert_int_equal(dirty_log_ack(fx.log, "a", 1), 0);
        /* It stays lost until the consumer begins anew. */
        assert_int_equal(dirty_log_snapshot_lock(fx.log, "a", false, &s), 0);
        assert_true(s.lost);
        dirty_log_unlock(fx.log);
        assert_int_equal(start("b"), 0);
        assert_int_equal(dirty_log_snapshot_lock(fx.log, "b", false, &s), 0);
        assert_false(s.lost);
        dirty_log_unlock(fx.log);
        assert_int_equal(dirty_log_consumers(fx.log, &info, 1), 2);
        assert_true(info.lost);
        assert_int_equal(dirty_log_stop(fx.log, "a"), 0);
        assert_int_equal(start("a"), 0);
        assert_int_equal(dirty_log_snapshot_lock(fx.log, "a", false, &s), 0);
        assert_false(s.lost);
        dirty_log_unlock(fx.log);
        fixture_close();
    }
}

/* The kick may wait for vCPU threads, which may be waiting in dirty_log_ring_full: so it must not be under the lock. */
static int kick_that_needs_the_log(void *arg)
{
    guest_writes(77);
    return dirty_log_ring_full(arg, 0);
}

static int kick_that_fails(void *arg)
{
    (void)arg;
    return -EAGAIN;
}

static void test_kick(void **state)
{
    fixture_open(16 * MiB, &(struct dirty_config){.backend = DIRTY_RING, .ops = &fake_ops_with_kick}, 1, 16);
    assert_int_equal(start("a"), 0);
    fx.kvm.kick = kick_that_needs_the_log;
    fx.kvm.kick_arg = fx.log;
    /* What the vCPUs had not yet put into their rings is in the snapshot. */
    expect("a", false, PAGES(77));
    assert_true(fx.kvm.kicks > 0);
    fx.kvm.kick = kick_that_fails;
    assert_int_equal(try_snapshot("a"), -EAGAIN);
    fx.kvm.kick = NULL;
    expect("a", false, PAGES(77));
    fixture_close();
}

/* One that comes from another host has lost what was in that host's log. */
static void test_lost(void **state)
{
    struct dirty_consumer_info info;
    struct dirty_snapshot s;

    open_bitmap(16 * MiB);
    assert_int_equal(dirty_log_start(fx.log, "old", DIRTY_START_LOST), 0);
    assert_int_equal(dirty_log_start(fx.log, "new", DIRTY_START_CHANGES), 0);
    guest_writes(5);
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(dirty_log_snapshot_lock(fx.log, "old", false, &s), 0);
        assert_true(s.lost);
        assert_int_equal(s.pages, i == 1 ? 4096 : 1);
        dirty_log_unlock(fx.log);
        assert_int_equal(dirty_log_ack(fx.log, "old", s.epoch), 0);
        guest_writes(7);
    }
    assert_int_equal(dirty_log_snapshot_lock(fx.log, "new", false, &s), 0);
    assert_false(s.lost);
    dirty_log_unlock(fx.log);
    assert_int_equal(dirty_log_consumers(fx.log, &info, 1), 2);
    assert_true(info.lost && info.mode == DIRTY_START_ALL);
    fixture_close();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_names_and_limits),
        cmocka_unit_test(test_epochs),
        cmocka_unit_test(test_killed_consumer),
        cmocka_unit_test(test_independent_consumers),
        cmocka_unit_test(test_all_pages),
        cmocka_unit_test(test_initially_set_is_not_a_change),
        cmocka_unit_test(test_logging_only_while_consumed),
        cmocka_unit_test(test_peek_moves_nothing),
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_refused_configurations),
        cmocka_unit_test(test_clear_strategies),
        cmocka_unit_test(test_many_pages_are_cleared_in_parts),
        cmocka_unit_test(test_two_slots),
        cmocka_unit_test(test_failed_get),
        cmocka_unit_test(test_failed_clear),
        cmocka_unit_test(test_failed_start_and_stop),
        cmocka_unit_test(test_ring_wraps),
        cmocka_unit_test(test_full_ring_loses_nothing),
        cmocka_unit_test(test_full_ring_without_consumers),
        cmocka_unit_test(test_overrun),
        cmocka_unit_test(test_full_of_nothing),
        cmocka_unit_test(test_overrun_while_taking),
        cmocka_unit_test(test_crowded_ring),
        cmocka_unit_test(test_failed_reset),
        cmocka_unit_test(test_reset_that_does_nothing),
        cmocka_unit_test(test_reset_in_parts),
        cmocka_unit_test(test_entries_are_sorted),
        cmocka_unit_test(test_entries_left_alone),
        cmocka_unit_test(test_impossible_entries),
        cmocka_unit_test(test_kick),
    };

    log_init("test-dirty", NULL);
    return cmocka_run_group_tests_name("dirty", tests, NULL, NULL);
}
