/*
 * The dirty log over real KVM: vCPUs in ring 3 write to pages while snapshots are taken. A copy of guest memory that is kept
 * with nothing but the pages of acknowledged snapshots must equal it in the end, and no page may be named that nobody wrote.
 * Skipped where there is no KVM.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/log.h"
#include "base/util.h"
#include "mmu/dirty.h"
#include "mmu/mem.h"
#include "rand.h"
#include "toy-vm.h"

struct fixture {
    struct mem *mem;
    struct toy_vm *vm;
    struct dirty_log *log;
    uint64_t pages;
    uint64_t *copy;    /* first word of each page, as of the last acknowledged snapshot */
    uint64_t *allowed; /* bitmap: pages that somebody writes to */
};

static const struct toy_config bitmap_config = {.vcpus = 2};
static const struct toy_config initially_set_config = {.vcpus = 2, .initially_set = true};
/* As small as KVM allows: it keeps a reserve of entries. */
static const struct toy_config ring_config = {.vcpus = 2, .backend = DIRTY_RING, .ring_entries = 1024};

static void open_fixture(struct fixture *f, const struct toy_config *config, uint64_t size)
{
    struct mem_config mem = {.size = size};
    struct dirty_config dirty = {.backend = config->backend, .initially_set = config->initially_set, .ops = &toy_dirty_ops,
                                 .clear_max_pages = 500};
    const char *reason = "";
    int r;

    memset(f, 0, sizeof(*f));
    assert_int_equal(mem_new(&mem, &f->mem), 0);
    r = toy_new(config, f->mem, &f->vm, &reason);
    if (r == -ENODEV) {
        mem_free(f->mem);
        print_message("# %s\n", reason);
        skip();
    }
    if (r < 0)
        fail_msg("%s: %s", reason, strerror(-r));
    dirty.opaque = f->vm;
    assert_int_equal(dirty_log_new(f->mem, &dirty, &f->log), 0);
    assert_int_equal(toy_attach_log(f->vm, f->log), 0);
    f->pages = mem_pages(f->mem);
    f->copy = calloc(f->pages, sizeof(uint64_t));
    f->allowed = calloc(f->pages / 64, sizeof(uint64_t));
    assert_true(f->copy && f->allowed);
}

static void close_fixture(struct fixture *f)
{
    toy_free(f->vm);
    dirty_log_free(f->log);
    mem_free(f->mem);
    free(f->copy);
    free(f->allowed);
}

static uint64_t *first_word(const struct fixture *f, pfn_t page)
{
    return mem_ptr(f->mem, gfn_to_gpa(mem_pfn_to_gfn(f->mem, page)), sizeof(uint64_t));
}

static uint64_t content(const struct fixture *f, pfn_t page)
{
    return __atomic_load_n(first_word(f, page), __ATOMIC_RELAXED);
}

/* Random pages of the part [first, first + count) for a vCPU, each once. */
static void give_pages(struct fixture *f, unsigned int vcpu, pfn_t first, size_t count, struct rng *rng)
{
    pfn_t *list = calloc(count, sizeof(*list));

    assert_non_null(list);
    for (size_t i = 0; i < count; i++) {
        list[i] = first + i;
        bitmap_set(f->allowed, list[i]);
    }
    for (size_t i = count - 1; i > 0; i--) {
        size_t j = (size_t)rng_below(rng, i + 1);
        pfn_t t = list[i];

        list[i] = list[j];
        list[j] = t;
    }
    toy_set_list(f->vm, vcpu, list, count);
    free(list);
}

/* Copy the pages that a snapshot named; the number of them. */
static uint64_t harvest(struct fixture *f, const char *name, bool ack)
{
    uint64_t *map = calloc(f->pages / 64, sizeof(*map)), named;
    struct dirty_snapshot s;

    assert_non_null(map);
    assert_int_equal(dirty_log_snapshot_lock(f->log, name, false, &s), 0);
    assert_false(s.lost);
    named = s.pages;
    memcpy(map, s.bitmap, f->pages / 8);
    dirty_log_unlock(f->log);
    for (size_t w = 0; w < f->pages / 64; w++) {
        if (map[w] & ~f->allowed[w])
            fail_msg("word %zu: pages %" PRIx64 " are named, which nobody writes", w, map[w] & ~f->allowed[w]);
    }
    for (pfn_t p = 0; ack && (p = bitmap_next_set(map, f->pages, p)) < f->pages; p++)
        f->copy[p] = content(f, p);
    if (ack)
        assert_int_equal(dirty_log_ack(f->log, name, s.epoch), 0);
    free(map);
    return named;
}

static void expect_equal(const struct fixture *f)
{
    for (pfn_t p = 0; p < f->pages; p++) {
        if (f->copy[p] != content(f, p))
            fail_msg("page %" PRIu64 " was lost: %" PRIu64 " in the copy, %" PRIu64 " in the guest", p, f->copy[p],
                     content(f, p));
    }
}

/* What is dirtied while the guest stands still between snapshots is named exactly. */
static void exact_sets(const struct toy_config *config)
{
    struct fixture f;
    struct rng rng = rng_seeded(rng_test_seed("exact"));
    pfn_t list[600];
    struct dirty_snapshot s;

    open_fixture(&f, config, 200 * MiB);
    assert_int_equal(dirty_log_start(f.log, "t", DIRTY_START_CHANGES), 0);
    for (uint64_t round = 0; round < 30; round++) {
        size_t count = (size_t)rng_below(&rng, ARRAY_SIZE(list) + 1);
        uint64_t *want = calloc(f.pages / 64, sizeof(*want)), vmm = rng_below(&rng, 20);

        assert_non_null(want);
        for (size_t i = 0; i < count; i++) {
            list[i] = rng_below(&rng, f.pages);
            bitmap_set(want, list[i]);
        }
        toy_set_list(f.vm, round % 2, list, count);
        toy_go(f.vm, round % 2, 1);
        for (uint64_t i = 0; i < vmm; i++) {
            pfn_t page = rng_below(&rng, f.pages);

            assert_int_equal(mem_set(f.mem, gfn_to_gpa(mem_pfn_to_gfn(f.mem, page)) + 8, 1, 8), 0);
            bitmap_set(want, page);
        }
        assert_int_equal(toy_wait(f.vm, round % 2), 0);
        /* A peek sees the same and takes nothing. */
        for (int peek = 1; peek >= 0; peek--) {
            assert_int_equal(dirty_log_snapshot_lock(f.log, "t", peek, &s), 0);
            assert_int_equal(s.pages, bitmap_count(want, f.pages / 64));
            assert_memory_equal(s.bitmap, want, f.pages / 8);
            dirty_log_unlock(f.log);
        }
        assert_int_equal(dirty_log_ack(f.log, "t", s.epoch), 0);
        free(want);
    }
    assert_int_equal(dirty_log_stop(f.log, "t"), 0);
    close_fixture(&f);
}

static void test_exact_bitmap(void **state)
{
    exact_sets(&bitmap_config);
}

static void test_exact_initially_set(void **state)
{
    exact_sets(&initially_set_config);
}

static void test_exact_ring(void **state)
{
    exact_sets(&ring_config);
}

/* Let the guest write on for a while: one that is not let in between snapshots proves nothing. */
static void let_it_write(const struct fixture *f, uint64_t writes)
{
    uint64_t before = toy_visits(f->vm, 0) + toy_visits(f->vm, 1);

    while (toy_visits(f->vm, 0) + toy_visits(f->vm, 1) - before < writes)
        sched_yield();
}

/* Two vCPUs and this thread write while snapshots run, some of which their consumer does not live to acknowledge. */
static void concurrent_writes(const struct toy_config *config, enum dirty_start_mode mode)
{
    struct fixture f;
    struct rng rng = rng_seeded(rng_test_seed("concurrent"));
    uint64_t named = 0, visits;

    open_fixture(&f, config, 64 * MiB);
    give_pages(&f, 0, 0, 3000, &rng);
    give_pages(&f, 1, 3000, 3000, &rng);
    for (pfn_t p = 8192; p < 8200; p++)
        bitmap_set(f.allowed, p);
    if (mode == DIRTY_START_ALL) {
        memset(f.allowed, 0xff, f.pages / 8);
        memset(f.copy, 0xff, f.pages * sizeof(uint64_t));
    }
    toy_go(f.vm, 0, 0);
    toy_go(f.vm, 1, 0);
    assert_int_equal(dirty_log_start(f.log, "t", mode), 0);
    for (pfn_t p = 0; mode == DIRTY_START_CHANGES && p < f.pages; p++)
        f.copy[p] = content(&f, p);
    for (int i = 0; i < 25; i++) {
        uint64_t value = (uint64_t)i + 1;

        assert_int_equal(mem_write(f.mem, pages_to_bytes(8192 + rng_below(&rng, 8)), &value, sizeof(value)), 0);
        let_it_write(&f, rng_below(&rng, 1500));
        named += harvest(&f, "t", rng_chance(&rng, 70));
    }
    assert_int_equal(toy_stop(f.vm, 0), 0);
    assert_int_equal(toy_stop(f.vm, 1), 0);
    harvest(&f, "t", true);
    expect_equal(&f);
    visits = toy_visits(f.vm, 0) + toy_visits(f.vm, 1);
    assert_true(visits > 0 && named > 0);
    /* Quiet now: nothing more is named. */
    assert_int_equal(harvest(&f, "t", true), 0);
    print_message("# %" PRIu64 " writes, %" PRIu64 " pages named, ring full %" PRIu64 " times\n", visits, named,
                  toy_ring_full_exits(f.vm));
    assert_int_equal(dirty_log_stop(f.log, "t"), 0);
    close_fixture(&f);
}

static void test_concurrent_bitmap(void **state)
{
    concurrent_writes(&bitmap_config, DIRTY_START_CHANGES);
}

static void test_concurrent_initially_set(void **state)
{
    concurrent_writes(&initially_set_config, DIRTY_START_CHANGES);
    concurrent_writes(&initially_set_config, DIRTY_START_ALL);
}

static void test_concurrent_ring(void **state)
{
    concurrent_writes(&ring_config, DIRTY_START_CHANGES);
    concurrent_writes(&ring_config, DIRTY_START_ALL);
}

/* Far more pages than the rings have entries, and nobody takes a snapshot meanwhile. */
static void test_ring_overflow(void **state)
{
    struct fixture f;
    struct rng rng = rng_seeded(rng_test_seed("overflow"));

    open_fixture(&f, &ring_config, 64 * MiB);
    assert_int_equal(dirty_log_start(f.log, "a", DIRTY_START_CHANGES), 0);
    assert_int_equal(dirty_log_start(f.log, "b", DIRTY_START_CHANGES), 0);
    give_pages(&f, 0, 0, 8000, &rng);
    give_pages(&f, 1, 8000, 8000, &rng);
    toy_go(f.vm, 0, 2);
    toy_go(f.vm, 1, 2);
    assert_int_equal(toy_wait(f.vm, 0), 0);
    assert_int_equal(toy_wait(f.vm, 1), 0);
    assert_true(toy_ring_full_exits(f.vm) > 10);
    assert_int_equal(harvest(&f, "a", true), 16000);
    expect_equal(&f);
    assert_int_equal(harvest(&f, "b", false), 16000);
    assert_int_equal(harvest(&f, "b", true), 16000);
    assert_int_equal(harvest(&f, "b", true), 0);
    close_fixture(&f);
}

/* The pages of a paused guest are there at once, and stopping and starting again begins from nothing. */
static void restart(const struct toy_config *config)
{
    struct fixture f;
    struct rng rng = rng_seeded(1);

    open_fixture(&f, config, 64 * MiB);
    give_pages(&f, 0, 100, 500, &rng);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(dirty_log_start(f.log, "t", DIRTY_START_CHANGES), 0);
        assert_int_equal(harvest(&f, "t", true), 0);
        toy_go(f.vm, 0, 1);
        assert_int_equal(toy_wait(f.vm, 0), 0);
        toy_pause(f.vm);
        assert_int_equal(harvest(&f, "t", true), 500);
        toy_resume(f.vm);
        toy_go(f.vm, 0, 1);
        assert_int_equal(toy_wait(f.vm, 0), 0);
        assert_int_equal(dirty_log_stop(f.log, "t"), 0);
        /* Not logged. */
        toy_go(f.vm, 0, 1);
        assert_int_equal(toy_wait(f.vm, 0), 0);
    }
    close_fixture(&f);
}

static void test_restart(void **state)
{
    restart(&bitmap_config);
    restart(&initially_set_config);
    restart(&ring_config);
}

/* Above and below the hole. */
static void two_slots(const struct toy_config *config)
{
    static const pfn_t list[] = {0, 786431, 786432, 786433, 786432 + 8191};
    struct dirty_snapshot s;
    struct fixture f;

    open_fixture(&f, config, 3 * GiB + 32 * MiB);
    assert_int_equal(dirty_log_start(f.log, "t", DIRTY_START_CHANGES), 0);
    toy_set_list(f.vm, 0, list, ARRAY_SIZE(list));
    toy_go(f.vm, 0, 1);
    assert_int_equal(toy_wait(f.vm, 0), 0);
    assert_int_equal(dirty_log_snapshot_lock(f.log, "t", false, &s), 0);
    assert_int_equal(s.pages, ARRAY_SIZE(list));
    for (size_t i = 0; i < ARRAY_SIZE(list); i++)
        assert_true(bitmap_test(s.bitmap, list[i]));
    dirty_log_unlock(f.log);
    close_fixture(&f);
}

static void test_two_slots(void **state)
{
    two_slots(&bitmap_config);
    two_slots(&ring_config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_bitmap),
        cmocka_unit_test(test_exact_initially_set),
        cmocka_unit_test(test_exact_ring),
        cmocka_unit_test(test_concurrent_bitmap),
        cmocka_unit_test(test_concurrent_initially_set),
        cmocka_unit_test(test_concurrent_ring),
        cmocka_unit_test(test_ring_overflow),
        cmocka_unit_test(test_restart),
        cmocka_unit_test(test_two_slots),
    };

    log_init("test-dirty-kvm", NULL);
    return cmocka_run_group_tests_name("dirty-kvm", tests, NULL, NULL);
}
