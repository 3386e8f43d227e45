/* What the mirror is asked for: roots found by signature, dirty pages by address space, write access taken off. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "fake-guest.h"
#include "mmu/attribute.h"
#include "mmu/mirror.h"
#include "mmu/protect.h"
#include "mmu/query.h"
#include "mmu/scan.h"
#include "rand.h"

#define USER_GVA UINT64_C(0x400000)
#define KERNEL_GVA UINT64_C(0xffff888000000000)
#define TEXT_GVA UINT64_C(0xffffffff80000000)
#define SECOND UINT64_C(1000000000)

static const struct mmu_paging long_mode = {.levels = 4, .nx = true};
static const struct gpt_cpu cpu = {.maxphyaddr = 46, .gbpages = true};

struct fixture {
    struct fake_guest guest;
    struct mirror *m;
    gpa_t kernel; /* the kernel's own root: direct map in 2 MiB pages, and something at the top for entry 511 */
    struct root_signature sig;
    struct root_scan scan;
};

static void setup_sized(struct fixture *f, uint64_t ram, uint64_t max_memory)
{
    struct mirror_config config = {.cpu = cpu, .max_memory = max_memory};

    memset(f, 0, sizeof(*f));
    fake_guest_init(&f->guest, ram, long_mode);
    config.mem = f->guest.mem;
    assert_int_equal(mirror_new(&config, &f->m), 0);
    f->kernel = gfn_to_gpa(fake_guest_frame(&f->guest));
    for (uint64_t at = 0; at < ram; at += 2 * MiB)
        fake_guest_map(&f->guest, f->kernel, KERNEL_GVA + at, gpa_to_gfn(at), 2, FG_P | FG_W | FG_A | FG_D | FG_NX);
    fake_guest_map(&f->guest, f->kernel, TEXT_GVA, 512, 2, FG_P | FG_W | FG_A);
    assert_int_equal(mirror_root_add(f->m, f->kernel, &long_mode, MMU_ROOT_KERNEL, 1), 0);
    assert_int_equal(mirror_root_pin(f->m, f->kernel, &long_mode), 0);
    assert_int_equal(root_signature_learn(&f->sig, f->guest.mem, f->kernel, &long_mode), 0);
}

static void setup(struct fixture *f)
{
    setup_sized(f, 64 * MiB, 0);
}

static void teardown(struct fixture *f)
{
    struct mirror_verdict v;

    assert_int_equal(mirror_verify(f->m, &v), 0);
    assert_int_equal(v.missing + v.extra + v.mismatched + v.broken_links, 0);
    mirror_free(f->m);
    fake_guest_clear(&f->guest);
}

static struct mirror_stats stats_of(const struct fixture *f)
{
    struct mirror_stats s;

    mirror_stats(f->m, &s);
    return s;
}

static void copy_kernel_half(struct fixture *f, gfn_t root)
{
    uint64_t half[256];

    assert_int_equal(mem_read(f->guest.mem, f->kernel + sizeof(half), half, sizeof(half)), 0);
    assert_int_equal(mem_write(f->guest.mem, gfn_to_gpa(root) + sizeof(half), half, sizeof(half)), 0);
}

/* A process with one page at USER_GVA. */
static gpa_t process(struct fixture *f, gfn_t gfn)
{
    gfn_t root = fake_guest_frame(&f->guest);

    copy_kernel_half(f, root);
    fake_guest_map(&f->guest, gfn_to_gpa(root), USER_GVA, gfn, 1, FG_USER);
    return gfn_to_gpa(root);
}

static void scan_all(struct fixture *f, uint64_t now)
{
    gfn_t all[4096];
    size_t pages = mem_pages(f->guest.mem);

    memset(&f->scan, 0, sizeof(f->scan));
    for (size_t first = 0; first < pages; first += ARRAY_SIZE(all)) {
        for (size_t i = 0; i < ARRAY_SIZE(all); i++)
            all[i] = first + i;
        assert_int_equal(root_scan(f->m, f->guest.mem, &f->sig, all, ARRAY_SIZE(all), now, &f->scan), 0);
    }
    assert_int_equal(mirror_sync(f->m, true), 0);
}

/* -- scan -------------------------------------------------------------------------------------------------------------- */

static void test_scan(void **state)
{
    struct fixture f;
    gpa_t first, last = 0;

    setup(&f);
    first = process(&f, 9000);
    for (unsigned int i = 1; i < 300; i++)
        last = process(&f, 9000 + i);
    scan_all(&f, SECOND);
    assert_int_equal(f.scan.found, 300);
    assert_int_equal(f.scan.candidates, mem_pages(f.guest.mem));
    assert_int_equal(stats_of(&f).roots, 301);
    /* The CPU sets accessed bits in a root; the same roots are seen again, none is found twice. */
    fake_guest_set(&f.guest, gpa_to_gfn(first), 511, fake_guest_get(&f.guest, gpa_to_gfn(first), 511) ^ (FG_A | FG_D));
    fake_guest_set(&f.guest, gpa_to_gfn(first), 273, fake_guest_get(&f.guest, gpa_to_gfn(first), 273) ^ FG_A);
    scan_all(&f, 2 * SECOND);
    assert_int_equal(f.scan.found, 0);
    assert_int_equal(f.scan.seen, 300);
    /* One exits: its kernel half stays, its user half is empty. It is not seen, and goes after a while. */
    fake_guest_set(&f.guest, gpa_to_gfn(last), 0, 0);
    scan_all(&f, 4 * SECOND);
    assert_int_equal(f.scan.seen, 299);
    assert_int_equal(mirror_roots_retire(f.m, 4 * SECOND, SECOND), 1);
    assert_int_equal(mirror_root_seen(f.m, last, &long_mode, 0), -ENOENT);
    scan_all(&f, 5 * SECOND);
    assert_int_equal(f.scan.found, 0);
    teardown(&f);
}

static void test_scan_learns_again(void **state)
{
    struct fixture f;

    setup(&f);
    process(&f, 9000);
    scan_all(&f, 1);
    assert_int_equal(f.scan.found, 1);
    /* The kernel maps something new at the top level; roots made from now on have it. */
    fake_guest_map(&f.guest, f.kernel, UINT64_C(0xffffc90000000000), 9500, 1, FG_P | FG_W | FG_A | FG_D);
    process(&f, 9001);
    scan_all(&f, 2);
    assert_int_equal(f.scan.found, 1);
    assert_int_equal(f.sig.learned, 2);
    /* A page that fits in entry 511 alone is no root, whatever it has learned. */
    fake_guest_set(&f.guest, 9900, 511, f.sig.half[255]);
    fake_guest_set(&f.guest, 9900, 0, f.kernel | FG_USER);
    scan_all(&f, 3);
    assert_int_equal(f.scan.found, 0);
    teardown(&f);
}

static size_t candidates(const struct fixture *f, const struct mem *mem, gfn_t *ret, size_t max)
{
    struct root_scan_cursor at = {.looked = 0};
    size_t n = root_scan_candidates(mem, &f->sig, &at, mem_pages(mem), UINT64_MAX, ret, max);

    assert_int_equal(at.next, mem_pages(mem));
    return n;
}

/*
 * A lazily restored guest: what its snapshot has is found, and what it has made since, also where the snapshot has a hole;
 * what it has not touched is not brought in.
 */
static void test_scan_private(void **state)
{
    struct mem_config config = {.private = true};
    const gfn_t fresh = 6000, hole = 7000;
    uint64_t table[512];
    struct fixture f;
    struct mem *mem;
    gfn_t found[8];
    uint8_t there;
    gpa_t old;

    setup(&f);
    old = process(&f, 9000);
    assert_int_equal(candidates(&f, f.guest.mem, found, ARRAY_SIZE(found)), 2);
    config.size = pages_to_bytes(mem_pages(f.guest.mem));
    assert_int_equal(mem_new(&config, &mem), 0);
    assert_int_equal(mem_map_file(mem, 0, config.size, mem_fd(f.guest.mem)), 0);
    assert_int_equal(mem_fd(mem), -1);
    assert_int_equal(candidates(&f, mem, found, ARRAY_SIZE(found)), 2);
    assert_int_equal(found[0], gpa_to_gfn(f.kernel));
    assert_int_equal(found[1], gpa_to_gfn(old));
    assert_int_equal(mem_read(mem, old, table, sizeof(table)), 0);
    assert_int_equal(mem_write(mem, gfn_to_gpa(fresh), table, sizeof(table)), 0);
    assert_int_equal(candidates(&f, mem, found, ARRAY_SIZE(found)), 3);
    assert_int_equal(found[2], fresh);
    mem_resident(mem, hole, 1, &there);
    assert_int_equal(there, 0);
    mem_resident(f.guest.mem, hole, 1, &there);
    assert_int_equal(there, 1);
    mem_free(mem);
    assert_int_equal(mirror_sync(f.m, true), 0);
    teardown(&f);
}

static void test_scan_kpti(void **state)
{
    struct fixture f;
    gfn_t kernel, user, table;
    struct mmu_mapping found[16];
    unsigned int small = 0;
    size_t n;
    bool more;

    setup(&f);
    f.guest.next_table = (f.guest.next_table + 1) & ~UINT64_C(1);
    kernel = fake_guest_frame(&f.guest);
    user = fake_guest_frame(&f.guest);
    copy_kernel_half(&f, kernel);
    fake_guest_entry(&f.guest, gfn_to_gpa(kernel), USER_GVA, 3, &table);
    fake_guest_set(&f.guest, kernel, 0, gfn_to_gpa(table) | FG_USER | FG_NX);
    fake_guest_set(&f.guest, user, 0, gfn_to_gpa(table) | FG_USER);
    fake_guest_set(&f.guest, user, 511, fake_guest_get(&f.guest, kernel, 511));
    fake_guest_map(&f.guest, gfn_to_gpa(user), USER_GVA, 9000, 1, FG_USER);
    /* A neighbour of a root that shares nothing with it, and one that shares some: no halves of a pair. */
    f.guest.next_table += 4;
    for (unsigned int i = 0; i < 2; i++) {
        gpa_t root = process(&f, 9001 + i);

        fake_guest_set(&f.guest, gpa_to_gfn(root), 0, fake_guest_get(&f.guest, gpa_to_gfn(root), 0) | (i ? FG_NX : 0));
        f.guest.next_table = (f.guest.next_table + 2) & ~UINT64_C(1);
    }
    scan_all(&f, SECOND);
    assert_int_equal(f.scan.kpti, 1);
    assert_int_equal(f.scan.found, 4);
    /* Both halves have it (and every root the direct map); the kernel's may not execute it. */
    n = mirror_query(f.m, 9000, found, ARRAY_SIZE(found), &more);
    for (size_t i = 0; i < n; i++)
        if (found[i].level == 1) {
            small++;
            assert_int_equal(found[i].nx, found[i].kind != MMU_ROOT_KPTI);
        }
    assert_int_equal(small, 2);
    teardown(&f);
}

static void test_scan_bad(void **state)
{
    struct root_signature none = {.known = false};
    struct mmu_paging pae = {.levels = 3};
    struct root_scan scan = {.found = 0};
    struct fixture f;
    gfn_t outside[] = {UINT64_C(1) << 40, 64 * MiB / GUEST_PAGE_SIZE, GFN_INVALID, gpa_to_gfn(MEM_HOLE_START)};

    setup(&f);
    assert_int_equal(root_scan(f.m, f.guest.mem, &none, outside, 4, 1, &scan), -ENOENT);
    assert_int_equal(root_signature_learn(&none, f.guest.mem, f.kernel, &pae), -EINVAL);
    assert_int_equal(root_signature_learn(&none, f.guest.mem, 64 * MiB, &long_mode), -EFAULT);
    assert_int_equal(root_signature_learn(&none, f.guest.mem, 60 * MiB, &long_mode), -ENOENT);
    assert_false(none.known);
    assert_int_equal(root_scan(f.m, f.guest.mem, &f.sig, outside, ARRAY_SIZE(outside), 1, &scan), 0);
    assert_int_equal(scan.found, 0);
    assert_int_equal(mirror_sync(f.m, true), 0);
    teardown(&f);
}

/* A guest that makes every page look like a root: memory stays within its limit, and what is in use stays known. */
static void test_faked_roots(void **state)
{
    struct fixture f;
    gpa_t real;

    setup_sized(&f, 128 * MiB, MIRROR_MAX_MEMORY_MIN);
    real = process(&f, 200);
    for (gfn_t gfn = 1000; gfn < 9000; gfn++) {
        copy_kernel_half(&f, gfn);
        fake_guest_set(&f.guest, gfn, gfn % 256, gfn_to_gpa(10000 + gfn) | FG_USER);
    }
    for (uint64_t round = 1; round <= 2; round++) {
        scan_all(&f, round * SECOND);
        assert_int_equal(mirror_root_add(f.m, real, &long_mode, MMU_ROOT_USER, round * SECOND + 1), 0);
        assert_int_equal(mirror_sync(f.m, true), 0);
        assert_true(stats_of(&f).memory <= MIRROR_MAX_MEMORY_MIN);
        assert_true(stats_of(&f).roots_evicted > 0);
        assert_int_equal(stats_of(&f).incomplete, 0);
        assert_int_equal(mirror_root_seen(f.m, f.kernel, &long_mode, 1), 0);
        assert_int_equal(mirror_root_seen(f.m, real, &long_mode, round * SECOND + 1), 0);
    }
    teardown(&f);
}

/* -- attribution ------------------------------------------------------------------------------------------------------- */

static void dirty_init(struct fixture *f, struct page_set *set)
{
    assert_int_equal(page_set_init(set, mem_pages(f->guest.mem)), 0);
}

static void test_attribute(void **state)
{
    struct fixture f;
    struct page_set dirty;
    struct mmu_attribution a;
    gpa_t hot, cold;

    setup(&f);
    hot = process(&f, 9000);
    cold = process(&f, 9001);
    for (unsigned int i = 0; i < 100; i++)
        fake_guest_map(&f.guest, hot, 2 * GiB + i * GUEST_PAGE_SIZE, 10000 + 2 * i, 1, FG_USER);
    /* The same page elsewhere, read-only; and one that two may write, dirty in the hot one only. */
    fake_guest_map(&f.guest, cold, 3 * GiB, 10000, 1, FG_USER & ~FG_W);
    fake_guest_map(&f.guest, cold, 3 * GiB + 0x1000, 10002, 1, FG_USER & ~FG_D);
    /* A huge page of the cold one. */
    fake_guest_map(&f.guest, cold, 4 * GiB, 12288, 2, FG_USER);
    scan_all(&f, 1);
    dirty_init(&f, &dirty);
    for (unsigned int i = 0; i < 100; i++)
        page_set_add(&dirty, 10000 + 2 * i);
    page_set_add(&dirty, 9001);
    page_set_add(&dirty, 12288 + 7);
    page_set_add(&dirty, 12288 + 8);
    page_set_add(&dirty, 15000);
    page_set_add(&dirty, 15001);
    assert_int_equal(mirror_attribute(f.m, &dirty, &a), 0);
    assert_int_equal(a.dirty, 105);
    assert_int_equal(a.user, 103);
    assert_int_equal(a.kernel, 2);
    assert_int_equal(a.unmapped, 0);
    assert_int_equal(a.shared, 1);
    assert_false(a.incomplete);
    assert_int_equal(a.space_count, 3);
    assert_int_equal(a.spaces[0].cr3, hot);
    assert_int_equal(a.spaces[0].pages, 100);
    assert_int_equal(a.spaces[0].ranges, 1);
    assert_int_equal(a.ranges[a.spaces[0].first_range].start, 2 * GiB);
    assert_int_equal(a.ranges[a.spaces[0].first_range].pages, 100);
    assert_int_equal(a.spaces[1].cr3, cold);
    assert_int_equal(a.spaces[1].ranges, 2);
    assert_int_equal(a.ranges[a.spaces[1].first_range].start, USER_GVA);
    assert_int_equal(a.ranges[a.spaces[1].first_range + 1].start, 4 * GiB + 7 * GUEST_PAGE_SIZE);
    assert_int_equal(a.ranges[a.spaces[1].first_range + 1].pages, 2);
    assert_true(a.spaces[2].kernel);
    assert_int_equal(a.ranges[a.spaces[2].first_range].start, KERNEL_GVA + 15000 * GUEST_PAGE_SIZE);
    mmu_attribution_free(&a);
    /* Without roots nothing is mapped, and nothing but that is said. */
    assert_int_equal(mirror_root_drop(f.m, hot, &long_mode), 0);
    assert_int_equal(mirror_root_drop(f.m, cold, &long_mode), 0);
    assert_int_equal(mirror_root_drop(f.m, f.kernel, &long_mode), 0);
    assert_int_equal(mirror_attribute(f.m, &dirty, &a), 0);
    assert_int_equal(a.unmapped, 105);
    assert_int_equal(a.space_count + a.range_count, 0);
    mmu_attribution_free(&a);
    page_set_clear(&dirty);
    assert_int_equal(mirror_attribute(f.m, &dirty, &a), 0);
    assert_int_equal(a.dirty, 0);
    mmu_attribution_free(&a);
    page_set_free(&dirty);
    teardown(&f);
}

/* Random mappings and dirty pages: each page must be where the query says it is mapped, as a user page if any mapping is. */
static void check_attribution(struct fixture *f, const struct page_set *dirty, const struct mmu_attribution *a)
{
    struct mmu_mapping found[64];
    uint64_t user = 0, unmapped = 0, in_ranges = 0, in_spaces = 0;
    bool more;

    for (pfn_t pfn = 0; pfn < dirty->limit; pfn++) {
        size_t n;
        bool any_user = false;

        if (!(dirty->map[pfn / 64] >> (pfn % 64) & 1))
            continue;
        n = mirror_query(f->m, pfn, found, ARRAY_SIZE(found), &more);
        for (size_t i = 0; i < n; i++)
            any_user |= found[i].user;
        user += any_user;
        unmapped += n == 0;
    }
    assert_int_equal(a->user, user);
    assert_int_equal(a->unmapped, unmapped);
    assert_int_equal(a->user + a->kernel + a->unmapped, a->dirty);
    for (size_t i = 0; i < a->space_count; i++) {
        const struct mmu_space *s = &a->spaces[i];

        in_spaces += s->pages;
        for (size_t r = s->first_range; r < s->first_range + s->ranges; r++) {
            in_ranges += a->ranges[r].pages;
            for (uint64_t page = 0; page < a->ranges[r].pages; page++) {
                struct mmu_translation t;

                /* What a process has in its own half without user access: no root is told for it. */
                if (s->kernel && a->ranges[r].start < KERNEL_GVA)
                    continue;
                assert_int_equal(mmu_walk(f->guest.mem, &cpu, &long_mode, s->kernel ? f->kernel : s->cr3,
                                          a->ranges[r].start + page * GUEST_PAGE_SIZE, &t), 0);
                assert_true(dirty->map[gpa_to_gfn(t.gpa) / 64] >> (gpa_to_gfn(t.gpa) % 64) & 1);
                assert_int_equal(t.user, !s->kernel);
            }
        }
    }
    assert_int_equal(in_spaces, a->user + a->kernel);
    assert_int_equal(in_ranges, in_spaces);
}

static void test_attribute_model(void **state)
{
    struct rng rng = rng_seeded(rng_test_seed("attribution"));

    for (int round = 0; round < 12; round++) {
        struct fixture f;
        struct page_set dirty;
        struct mmu_attribution a;
        gpa_t roots[6];

        setup(&f);
        for (size_t i = 0; i < ARRAY_SIZE(roots); i++)
            roots[i] = process(&f, 9000 + i);
        for (int i = 0; i < 600; i++) {
            bool large = rng_chance(&rng, 4);
            gfn_t gfn = large ? 8192 + rng_below(&rng, 8) * 512 : 9000 + rng_below(&rng, 2000);
            uint64_t flags = FG_P | FG_U | (rng_next(&rng) & (FG_W | FG_A | FG_D));

            if (rng_chance(&rng, 10))
                flags &= ~FG_U;
            /* Small pages below 1 GiB, large ones above: neither is a table of the other. */
            fake_guest_map(&f.guest, roots[rng_below(&rng, ARRAY_SIZE(roots))],
                           large ? GiB + rng_below(&rng, 100) * 2 * MiB : rng_below(&rng, 4096) * GUEST_PAGE_SIZE, gfn,
                           large ? 2 : 1, flags);
        }
        scan_all(&f, 1);
        dirty_init(&f, &dirty);
        for (int i = 0; i < 1500; i++)
            page_set_add(&dirty, rng_chance(&rng, 20) ? rng_below(&rng, 16384) : 8192 + rng_below(&rng, 3000));
        assert_int_equal(mirror_attribute(f.m, &dirty, &a), 0);
        check_attribution(&f, &dirty, &a);
        mmu_attribution_free(&a);
        page_set_free(&dirty);
        teardown(&f);
    }
}

/* -- write protection -------------------------------------------------------------------------------------------------- */

static void test_protect(void **state)
{
    struct fixture f;
    struct page_set dirty;
    struct mmu_protect rmap, walk;
    struct mmu_mapping found[16];
    gpa_t one, two;
    size_t n;
    bool more;

    setup(&f);
    one = process(&f, 9000);
    two = process(&f, 9000);
    fake_guest_map(&f.guest, two, USER_GVA + 0x1000, 9001, 1, FG_USER & ~FG_W);
    fake_guest_map(&f.guest, one, GiB, 9216, 2, FG_USER);
    scan_all(&f, 1);
    dirty_init(&f, &dirty);
    mirror_write_protect(f.m, &dirty, MMU_PROTECT_CHOOSE, &rmap);
    assert_int_equal(rmap.entries, 0);
    page_set_add(&dirty, 9000);
    page_set_add(&dirty, 9001);
    page_set_add(&dirty, 9216 + 100);
    page_set_add(&dirty, 9216 + 101);
    /* Twice 9000, the huge page, and the direct map of both regions. */
    mirror_write_protect(f.m, &dirty, MMU_PROTECT_CHOOSE, &rmap);
    assert_int_equal(rmap.how, MMU_PROTECT_RMAP);
    assert_int_equal(rmap.entries, 5);
    assert_int_equal(rmap.marked, 5);
    mirror_write_protect(f.m, &dirty, MMU_PROTECT_WALK, &walk);
    assert_int_equal(walk.how, MMU_PROTECT_WALK);
    assert_int_equal(walk.entries, 5);
    assert_int_equal(walk.marked, 0);
    n = mirror_query(f.m, 9001, found, ARRAY_SIZE(found), &more);
    assert_int_equal(n, 4); /* its own, and the direct map through three roots */
    for (size_t i = 0; i < n; i++)
        assert_int_equal(found[i].write_off, found[i].level == 2);
    /* A/D bits leave the mark, another frame ends it. */
    fake_guest_map(&f.guest, one, USER_GVA, 9000, 1, FG_USER & ~FG_D);
    fake_guest_map(&f.guest, two, USER_GVA, 9002, 1, FG_USER);
    assert_int_equal(mirror_sync(f.m, true), 0);
    page_set_add(&dirty, 9002);
    mirror_write_protect(f.m, &dirty, MMU_PROTECT_WALK, &walk);
    assert_int_equal(walk.entries, 5);
    assert_int_equal(walk.marked, 1);
    for (pfn_t pfn = 0; pfn < dirty.limit; pfn++)
        page_set_add(&dirty, pfn);
    mirror_write_protect(f.m, &dirty, MMU_PROTECT_CHOOSE, &walk);
    assert_int_equal(walk.how, MMU_PROTECT_WALK);
    mirror_write_protect(f.m, &dirty, MMU_PROTECT_RMAP, &rmap);
    assert_int_equal(rmap.entries, walk.entries);
    page_set_free(&dirty);
    teardown(&f);
}

/* Both ways find the same, whatever is dirty; with memory above 4 GiB, and a 1 GiB page that ends in the hole. */
static void test_protect_model(void **state)
{
    struct rng rng = rng_seeded(rng_test_seed("write protection"));
    struct mmu_protect rmap, walk;
    struct page_set dirty;
    struct fixture f;
    gpa_t root;

    setup_sized(&f, 4 * GiB + 64 * MiB, 0);
    root = process(&f, 9000);
    fake_guest_map(&f.guest, root, 512 * GiB, gpa_to_gfn(2 * GiB), 3, FG_USER);
    fake_guest_map(&f.guest, root, 513 * GiB, gpa_to_gfn(5 * GiB), 3, FG_USER);
    for (int i = 0; i < 2000; i++)
        fake_guest_map(&f.guest, root, rng_below(&rng, 60000) * GUEST_PAGE_SIZE,
                       rng_chance(&rng, 50) ? 9000 + rng_below(&rng, 3000) : gpa_to_gfn(4 * GiB) + rng_below(&rng, 3000), 1,
                       FG_P | FG_U | (rng_next(&rng) & (FG_W | FG_A | FG_D)));
    scan_all(&f, 1);
    dirty_init(&f, &dirty);
    for (int round = 0; round < 40; round++) {
        uint64_t before;

        page_set_clear(&dirty);
        for (uint64_t n = rng_below(&rng, 4000); n; n--)
            page_set_add(&dirty, rng_chance(&rng, 50) ? rng_below(&rng, dirty.limit) : 9000 + rng_below(&rng, 3000));
        mirror_write_protect(f.m, &dirty, MMU_PROTECT_WALK, &walk);
        mirror_write_protect(f.m, &dirty, MMU_PROTECT_RMAP, &rmap);
        assert_int_equal(rmap.entries, walk.entries);
        assert_int_equal(rmap.marked, 0);
        before = walk.entries;
        mirror_write_protect(f.m, &dirty, MMU_PROTECT_WALK, &walk);
        assert_int_equal(walk.entries, before);
        assert_int_equal(walk.marked, 0);
    }
    page_set_free(&dirty);
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scan),
        cmocka_unit_test(test_scan_learns_again),
        cmocka_unit_test(test_scan_private),
        cmocka_unit_test(test_scan_kpti),
        cmocka_unit_test(test_scan_bad),
        cmocka_unit_test(test_faked_roots),
        cmocka_unit_test(test_attribute),
        cmocka_unit_test(test_attribute_model),
        cmocka_unit_test(test_protect),
        cmocka_unit_test(test_protect_model),
    };

    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests_name("mirror uses", tests, NULL, NULL);
}
