/* The mirror's rules, one by one: what each of them is for is said in src/mmu. Random trees are test-mirror-model's. */
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
#include "mmu/flood.h"
#include "mmu/mirror-internal.h"
#include "mmu/mirror.h"
#include "mmu/query.h"

#define USER_GVA UINT64_C(0x400000)
#define KERNEL_GVA UINT64_C(0xffff888000000000)
#define SECOND UINT64_C(1000000000)

static const struct mmu_paging long_mode = {.levels = 4, .nx = true};
static const struct gpt_cpu cpu = {.maxphyaddr = 46, .gbpages = true};

struct fixture {
    struct fake_guest guest;
    struct mirror *m;
    gpa_t root;
    /* What watch was told. */
    uint8_t watched[4096];
    unsigned int watch_calls;
    bool watch_wrong;
};

static void on_watch(void *ctx, gfn_t gfn, bool on)
{
    struct fixture *f = ctx;

    f->watch_calls++;
    f->watch_wrong |= gfn >= ARRAY_SIZE(f->watched) || f->watched[gfn] == on;
    f->watched[gfn] = on;
}

static const struct mirror_ops ops = {.watch = on_watch};

static void setup_sized(struct fixture *f, uint64_t ram, uint64_t max_memory)
{
    struct mirror_config config = {.cpu = cpu, .max_memory = max_memory, .ops = &ops, .ops_ctx = f};

    memset(f, 0, sizeof(*f));
    fake_guest_init(&f->guest, ram, long_mode);
    config.mem = f->guest.mem;
    assert_int_equal(mirror_new(&config, &f->m), 0);
    f->root = gfn_to_gpa(fake_guest_frame(&f->guest));
    assert_int_equal(mirror_root_add(f->m, f->root, &long_mode, MMU_ROOT_USER, 1), 0);
}

static void setup(struct fixture *f)
{
    setup_sized(f, 16 * MiB, 0);
}

static void teardown(struct fixture *f)
{
    assert_false(f->watch_wrong);
    mirror_free(f->m);
    fake_guest_clear(&f->guest);
}

static struct mirror_stats stats_of(const struct fixture *f)
{
    struct mirror_stats s;

    mirror_stats(f->m, &s);
    return s;
}

static void verify(struct fixture *f)
{
    struct mirror_verdict v;

    assert_int_equal(mirror_verify(f->m, &v), 0);
    assert_int_equal(v.missing, 0);
    assert_int_equal(v.extra, 0);
    assert_int_equal(v.mismatched, 0);
    assert_int_equal(v.broken_links, 0);
}

static void sync_all(struct fixture *f)
{
    assert_int_equal(mirror_sync(f->m, true), 0);
    verify(f);
}

static void map(struct fixture *f, gva_t gva, gfn_t gfn, uint64_t flags)
{
    fake_guest_map(&f->guest, f->root, gva, gfn, 1, flags);
}

/* -- walk -------------------------------------------------------------------------------------------------------------- */

static void walk_one(struct mmu_paging paging, gva_t gva, gfn_t gfn, unsigned int level, unsigned int shift)
{
    struct fake_guest g;
    struct mmu_translation t;
    gpa_t root;
    gva_t within = (UINT64_C(1) << shift) - 0x123;

    fake_guest_init(&g, 16 * MiB, paging);
    root = gfn_to_gpa(fake_guest_frame(&g));
    assert_int_equal(mmu_walk(g.mem, &cpu, &paging, root, gva, &t), -ENOENT);
    fake_guest_map(&g, root, gva, gfn, level, FG_P | FG_U | FG_A | (paging.nx ? FG_NX : 0));
    assert_int_equal(mmu_walk(g.mem, &cpu, &paging, root, gva + within, &t), 0);
    assert_int_equal(t.gpa, gfn_to_gpa(gfn) + within);
    assert_int_equal(t.level, level);
    assert_true(t.user && t.accessed && !t.write && !t.dirty);
    assert_int_equal(t.nx, paging.nx);
    /* The frame beyond RAM. */
    fake_guest_map(&g, root, gva, gpa_to_gfn(GiB), level, FG_USER);
    assert_int_equal(mmu_walk(g.mem, &cpu, &paging, root, gva, &t), -ENOENT);
    fake_guest_map(&g, root, gva, 0, level, 0);
    assert_int_equal(mmu_walk(g.mem, &cpu, &paging, root, gva, &t), -ENOENT);
    fake_guest_clear(&g);
}

static void test_walk(void **state)
{
    walk_one((struct mmu_paging){.levels = 2, .pse = true}, 0xc0001000, 77, 1, 12);
    walk_one((struct mmu_paging){.levels = 2, .pse = true}, 0xc0400000, 1024, 2, 22);
    walk_one((struct mmu_paging){.levels = 3, .nx = true}, 0xc0001000, 77, 1, 12);
    walk_one((struct mmu_paging){.levels = 3, .nx = true}, 0xc0200000, 512, 2, 21);
    walk_one(long_mode, KERNEL_GVA + 0x1000, 77, 1, 12);
    walk_one(long_mode, USER_GVA, 512, 2, 21);
    walk_one(long_mode, UINT64_C(3) << 30, 0, 3, 30);
    walk_one((struct mmu_paging){.levels = 5, .nx = true}, UINT64_C(0xff11000000001000), 77, 1, 12);
    walk_one((struct mmu_paging){.levels = 5, .nx = true}, UINT64_C(0x00ff000000200000), 512, 2, 21);
}

static void test_walk_bad(void **state)
{
    struct fake_guest g;
    struct mmu_translation t;
    struct mmu_paging bad = {.levels = 6};

    fake_guest_init(&g, 16 * MiB, long_mode);
    assert_int_equal(mmu_walk(g.mem, &cpu, &bad, 0x1000, 0, &t), -EINVAL);
    assert_int_equal(mmu_walk(g.mem, &cpu, &long_mode, 0x1000, UINT64_C(1) << 47, &t), -EINVAL);
    /* Roots outside of RAM, at the end of the address space among them. */
    assert_int_equal(mmu_walk(g.mem, &cpu, &long_mode, 64 * MiB, 0, &t), -ENOENT);
    assert_int_equal(mmu_walk(g.mem, &cpu, &long_mode, UINT64_MAX & ~UINT64_C(0xfff), 0, &t), -ENOENT);
    /* A root that is all its own tables. */
    fake_guest_set(&g, 1, 0, 0x1000 | FG_USER);
    assert_int_equal(mmu_walk(g.mem, &cpu, &long_mode, 0x1000, 0, &t), 0);
    assert_int_equal(t.gpa, 0x1000);
    fake_guest_clear(&g);
}

/* -- mirror and reverse map -------------------------------------------------------------------------------------------- */

static void test_query(void **state)
{
    struct fixture f;
    struct mmu_mapping found[8];
    bool more;
    gpa_t other;

    setup(&f);
    other = gfn_to_gpa(fake_guest_frame(&f.guest));
    assert_int_equal(mirror_root_add(f.m, other, &long_mode, MMU_ROOT_USER, 2), 0);
    map(&f, USER_GVA, 2000, FG_USER);
    fake_guest_map(&f.guest, other, USER_GVA + 0x5000, 2000, 1, FG_P | FG_U);
    fake_guest_map(&f.guest, f.root, KERNEL_GVA, 1536, 2, FG_P | FG_W | FG_A | FG_NX);
    sync_all(&f);
    assert_int_equal(mirror_query(f.m, 2000, found, ARRAY_SIZE(found), &more), 3);
    assert_false(more);
    for (int i = 0; i < 3; i++) {
        if (found[i].level == 2) {
            assert_int_equal(found[i].gva, KERNEL_GVA + (2000 - 1536) * GUEST_PAGE_SIZE);
            assert_true(found[i].nx && found[i].write && !found[i].user);
        } else if (found[i].cr3 == other) {
            assert_int_equal(found[i].gva, USER_GVA + 0x5000);
            assert_true(found[i].user && !found[i].write && !found[i].accessed);
        } else {
            assert_int_equal(found[i].gva, USER_GVA);
            assert_true(found[i].write && found[i].dirty);
        }
    }
    assert_int_equal(mirror_query(f.m, 2000, found, 2, &more), 2);
    assert_true(more);
    assert_int_equal(mirror_query(f.m, 2001, found, ARRAY_SIZE(found), &more), 1);
    assert_int_equal(mirror_query(f.m, 9, found, ARRAY_SIZE(found), &more), 0);
    assert_int_equal(mirror_query(f.m, UINT64_C(1) << 50, found, ARRAY_SIZE(found), &more), 0);
    teardown(&f);
}

/* One mapping of a frame takes no links; the second does; when it goes they go. */
static void test_links_only_where_needed(void **state)
{
    struct fixture f;
    uint32_t blocks;

    setup(&f);
    for (unsigned int i = 0; i < 100; i++)
        map(&f, USER_GVA + i * GUEST_PAGE_SIZE, 1000 + i, FG_USER);
    sync_all(&f);
    blocks = f.m->blocks.used;
    assert_int_equal(blocks, 4); /* the indexes of four tables */
    map(&f, USER_GVA + 200 * GUEST_PAGE_SIZE, 1003, FG_USER);
    sync_all(&f);
    assert_int_equal(f.m->blocks.used, blocks + 2);
    map(&f, USER_GVA + 3 * GUEST_PAGE_SIZE, 0, 0);
    sync_all(&f);
    assert_int_equal(f.m->blocks.used, blocks);
    teardown(&f);
}

static void test_self_maps(void **state)
{
    for (unsigned int level = 4; level >= 1; level--) {
        struct fixture f;
        struct mirror_stats s;
        gfn_t table;
        struct mmu_mapping found[64];
        bool more;

        setup(&f);
        fake_guest_entry(&f.guest, f.root, USER_GVA, level, &table);
        for (unsigned int i = 0; i < 512; i++)
            fake_guest_set(&f.guest, table, i, gfn_to_gpa(table) | FG_USER);
        sync_all(&f);
        s = stats_of(&f);
        assert_int_equal(s.incomplete, 0);
        assert_true(s.pages[1] + s.pages[2] + s.pages[3] + s.pages[4] <= 4);
        /* Up to 2^36 paths: what was asked for is given, and that there are more. */
        assert_int_equal(mirror_query(f.m, table, found, ARRAY_SIZE(found), &more), ARRAY_SIZE(found));
        assert_true(more);
        assert_int_equal(mirror_root_drop(f.m, f.root, &long_mode), 0);
        assert_int_equal(f.m->pages.used + f.m->granules.used + f.m->blocks.used, 0);
        teardown(&f);
    }
}

static void test_outside_of_ram(void **state)
{
    static const uint64_t bad[] = {UINT64_C(0xfee00000) | FG_USER, UINT64_C(1) << 45 | FG_USER, UINT64_C(1) << 50 | FG_USER,
                                   UINT64_C(0xfffffffffffff) << 12 | FG_USER, FG_USER | FG_PS | 0x2000};

    for (unsigned int level = 4; level >= 1; level--) {
        struct fixture f;
        gfn_t table;

        setup(&f);
        fake_guest_entry(&f.guest, f.root, USER_GVA, level, &table);
        for (unsigned int i = 0; i < ARRAY_SIZE(bad) - (level == 1); i++)
            fake_guest_set(&f.guest, table, 100 + i, bad[i]);
        sync_all(&f);
        assert_int_equal(stats_of(&f).pages[1] + stats_of(&f).pages[2] + stats_of(&f).pages[3] + stats_of(&f).pages[4],
                         5 - level);
        teardown(&f);
    }
}

static void test_root_bad(void **state)
{
    struct fixture f;
    struct mmu_paging bad = {.levels = 1};

    setup(&f);
    assert_int_equal(mirror_root_add(f.m, 0x1000, &bad, MMU_ROOT_USER, 1), -EINVAL);
    assert_int_equal(mirror_root_add(f.m, 16 * MiB, &long_mode, MMU_ROOT_USER, 1), -EFAULT);
    assert_int_equal(mirror_root_add(f.m, UINT64_C(0xfee00000), &long_mode, MMU_ROOT_USER, 1), -EFAULT);
    assert_int_equal(mirror_root_drop(f.m, 0x5000, &long_mode), -ENOENT);
    assert_int_equal(mirror_root_seen(f.m, 0x5000, &long_mode, 1), -ENOENT);
    assert_int_equal(mirror_root_pin(f.m, 0x5000, &long_mode), -ENOENT);
    /* PCID and cache bits are no other root. */
    assert_int_equal(mirror_root_add(f.m, f.root | 0x19 | UINT64_C(1) << 63, &long_mode, MMU_ROOT_USER, 1), 0);
    assert_int_equal(stats_of(&f).roots, 1);
    teardown(&f);
}

/* -- sync -------------------------------------------------------------------------------------------------------------- */

static void test_in_place(void **state)
{
    struct fixture f;
    struct mirror_stats a, b;
    gfn_t table;
    unsigned int entry;

    setup(&f);
    for (unsigned int i = 0; i < 64; i++)
        map(&f, USER_GVA + i * GUEST_PAGE_SIZE, 1000 + i, FG_USER & ~FG_D);
    sync_all(&f);
    entry = fake_guest_entry(&f.guest, f.root, USER_GVA, 1, &table);
    a = stats_of(&f);
    /* The CPU sets a dirty bit; the guest takes write access away (its andb changes one byte). Links stay. */
    fake_guest_set(&f.guest, table, entry, fake_guest_get(&f.guest, table, entry) | FG_D);
    fake_guest_set(&f.guest, table, entry + 1, fake_guest_get(&f.guest, table, entry + 1) & ~FG_W);
    sync_all(&f);
    b = stats_of(&f);
    assert_int_equal(b.ad_updates - a.ad_updates, 1);
    assert_int_equal(b.entries_updated - a.entries_updated, 1);
    assert_int_equal(b.entries_linked, a.entries_linked);
    assert_int_equal(b.entries_unlinked, a.entries_unlinked);
    /* Another frame: that entry, and no other. */
    map(&f, USER_GVA, 3000, FG_USER);
    sync_all(&f);
    a = stats_of(&f);
    assert_int_equal(a.entries_linked - b.entries_linked, 1);
    assert_int_equal(a.entries_unlinked - b.entries_unlinked, 1);
    assert_int_equal(a.zapped_pages, 0);
    teardown(&f);
}

static void test_bulk_clear(void **state)
{
    struct fixture f;
    gfn_t table;

    setup(&f);
    for (unsigned int i = 0; i < 300; i++)
        map(&f, USER_GVA + i * GUEST_PAGE_SIZE, 1000 + i, FG_USER);
    sync_all(&f);
    fake_guest_entry(&f.guest, f.root, USER_GVA, 1, &table);
    assert_int_equal(mem_set(f.guest.mem, gfn_to_gpa(table), 0, GUEST_PAGE_SIZE), 0);
    sync_all(&f);
    assert_int_equal(stats_of(&f).bulk_clears, 1);
    assert_int_equal(stats_of(&f).entries, 3);
    /* An empty table is not cleared again. */
    sync_all(&f);
    assert_int_equal(stats_of(&f).bulk_clears, 1);
    teardown(&f);
}

/* A table that moves in its parent, or to another one, is neither dropped nor read anew. */
static void test_table_moves(void **state)
{
    struct fixture f;
    struct mirror_stats s;
    gfn_t pmd;
    unsigned int entry;
    uint64_t value;

    setup(&f);
    for (unsigned int i = 0; i < 300; i++)
        map(&f, USER_GVA + i * GUEST_PAGE_SIZE, 1000 + i, FG_USER);
    map(&f, UINT64_C(1) << 40, 3500, FG_USER);
    sync_all(&f);
    s = stats_of(&f);
    entry = fake_guest_entry(&f.guest, f.root, USER_GVA, 2, &pmd);
    value = fake_guest_get(&f.guest, pmd, entry);
    fake_guest_set(&f.guest, pmd, entry, 0);
    fake_guest_set(&f.guest, pmd, entry + 100, value);
    sync_all(&f);
    fake_guest_set(&f.guest, pmd, entry + 100, 0);
    fake_guest_entry(&f.guest, f.root, UINT64_C(1) << 40, 2, &pmd);
    fake_guest_set(&f.guest, pmd, 7, value);
    sync_all(&f);
    assert_int_equal(stats_of(&f).zapped_pages, s.zapped_pages);
    assert_int_equal(stats_of(&f).entries_linked, s.entries_linked + 2);
    teardown(&f);
}

static void test_sync_gfns(void **state)
{
    struct fixture f;
    gfn_t tables[2] = {0, 4000};
    uint64_t read;

    setup(&f);
    map(&f, USER_GVA, 1000, FG_USER);
    map(&f, UINT64_C(1) << 40, 1001, FG_USER);
    sync_all(&f);
    fake_guest_entry(&f.guest, f.root, USER_GVA, 1, &tables[0]);
    map(&f, USER_GVA + 0x1000, 1002, FG_USER);
    read = stats_of(&f).tables_read;
    assert_int_equal(mirror_sync_gfns(f.m, tables, 2), 0);
    assert_int_equal(stats_of(&f).tables_read, read + 1);
    verify(&f);
    assert_true(mirror_is_table(f.m, tables[0]));
    assert_false(mirror_is_table(f.m, 4000));
    teardown(&f);
}

/* Every table is watched while it is mirrored, each frame once however many roles it has. */
static void test_watch(void **state)
{
    struct fixture f;
    unsigned int on = 0;

    setup(&f);
    map(&f, USER_GVA, 1000, FG_USER);
    fake_guest_set(&f.guest, gpa_to_gfn(f.root), 510, f.root | FG_USER);
    sync_all(&f);
    for (gfn_t gfn = 0; gfn < ARRAY_SIZE(f.watched); gfn++) {
        assert_int_equal(f.watched[gfn], mirror_is_table(f.m, gfn));
        on += f.watched[gfn];
    }
    assert_true(on >= 4);
    assert_int_equal(mirror_root_drop(f.m, f.root, &long_mode), 0);
    for (gfn_t gfn = 0; gfn < ARRAY_SIZE(f.watched); gfn++)
        assert_int_equal(f.watched[gfn], 0);
    assert_int_equal(f.watch_calls, 2 * on);
    teardown(&f);
}

/* -- floods ------------------------------------------------------------------------------------------------------------ */

static gfn_t flood_by_ticks(struct fixture *f, uint64_t flags)
{
    gfn_t table;

    map(f, USER_GVA, 1000, flags);
    assert_int_equal(mirror_sync(f->m, false), 0);
    fake_guest_entry(&f->guest, f->root, USER_GVA, 1, &table);
    for (unsigned int i = 1; i <= 3; i++) {
        assert_int_equal(stats_of(f).floods, 0);
        map(f, USER_GVA + i * GUEST_PAGE_SIZE, 1000 + i, flags);
        assert_int_equal(mirror_sync(f->m, false), 0);
    }
    assert_int_equal(stats_of(f).floods, 1);
    assert_int_equal(stats_of(f).stale, 1);
    assert_int_equal(f->watched[table], 0);
    return table;
}

static void test_flood_live(void **state)
{
    struct fixture f;
    struct mmu_flood flood;
    gfn_t table;
    uint64_t read;

    setup(&f);
    table = flood_by_ticks(&f, FG_USER);
    assert_int_equal(mirror_floods(f.m, &flood, 1), 1);
    assert_int_equal(flood.gfn, table);
    assert_int_equal(flood.level, 1);
    assert_int_equal(flood.reason, MMU_FLOOD_TICKS);
    assert_int_equal(flood.action, MMU_FLOOD_POLL);
    assert_int_equal(flood.count, 3);
    assert_int_equal(flood.present, 4);
    /* Let go: three other tables are read in a tick, not this one; its entries are still there. */
    read = stats_of(&f).tables_read;
    assert_int_equal(mirror_sync(f.m, false), 0);
    assert_int_equal(stats_of(&f).tables_read, read + 3);
    assert_int_equal(stats_of(&f).entries, 7);
    /* Quiet: after two looks it is taken up. */
    for (unsigned int i = 0; i < 3 * FLOOD_LOOK_TICKS && stats_of(&f).stale; i++)
        assert_int_equal(mirror_sync(f.m, false), 0);
    assert_int_equal(stats_of(&f).stale, 0);
    assert_int_equal(f.watched[table], 1);
    verify(&f);
    teardown(&f);
}

/* While it goes on changing it stays let go of. */
static void test_flood_goes_on(void **state)
{
    struct fixture f;

    setup(&f);
    flood_by_ticks(&f, FG_USER);
    for (unsigned int i = 0; i < 10 * FLOOD_LOOK_TICKS; i++) {
        map(&f, USER_GVA + i % 400 * GUEST_PAGE_SIZE, 2000 + i, FG_USER);
        assert_int_equal(mirror_sync(f.m, false), 0);
        assert_int_equal(stats_of(&f).stale, 1);
    }
    assert_int_equal(stats_of(&f).floods, 1);
    sync_all(&f);
    assert_int_equal(stats_of(&f).stale, 0);
    teardown(&f);
}

static void test_flood_data(void **state)
{
    struct fixture f;
    struct mmu_flood flood;
    gfn_t table;

    setup(&f);
    /* Entries that nobody accessed: a table in use has others. */
    table = flood_by_ticks(&f, FG_P | FG_W);
    assert_int_equal(mirror_floods(f.m, &flood, 1), 1);
    assert_int_equal(flood.action, MMU_FLOOD_DROP);
    assert_int_equal(flood.accessed, 0);
    assert_int_equal(stats_of(&f).entries, 3);
    for (unsigned int i = 0; i < 4 * FLOOD_LOOK_TICKS && stats_of(&f).stale; i++)
        assert_int_equal(mirror_sync(f.m, false), 0);
    assert_int_equal(stats_of(&f).stale, 0);
    assert_int_equal(stats_of(&f).entries, 7);
    assert_int_equal(f.watched[table], 1);
    verify(&f);
    teardown(&f);
}

static void test_flood_writes(void **state)
{
    struct fixture f;
    struct mmu_flood floods[4];
    gfn_t leaf, other;

    setup(&f);
    map(&f, USER_GVA, 1000, FG_USER);
    map(&f, UINT64_C(1) << 40, 1001, FG_USER);
    sync_all(&f);
    fake_guest_entry(&f.guest, f.root, USER_GVA, 1, &leaf);
    fake_guest_entry(&f.guest, f.root, UINT64_C(1) << 40, 1, &other);
    /* In a row means: nothing else in between. */
    for (unsigned int i = 0; i < 6; i++) {
        assert_false(mirror_written(f.m, leaf));
        assert_false(mirror_written(f.m, other));
    }
    assert_false(mirror_written(f.m, 4000));
    assert_false(mirror_written(f.m, leaf));
    assert_false(mirror_written(f.m, leaf));
    assert_true(mirror_written(f.m, leaf));
    assert_true(mirror_written(f.m, leaf));
    assert_int_equal(f.watched[leaf], 0);
    assert_int_equal(f.watched[other], 1);
    for (unsigned int i = 0; i < 3; i++)
        mirror_written(f.m, other);
    assert_int_equal(mirror_floods(f.m, floods, ARRAY_SIZE(floods)), 2);
    assert_int_equal(floods[0].gfn, other);
    assert_int_equal(floods[1].gfn, leaf);
    assert_int_equal(floods[1].reason, MMU_FLOOD_WRITES);
    /* Taken up by the dirty-log way too, which never names a table that is not written. */
    for (unsigned int i = 0; i < 5 * FLOOD_LOOK_TICKS && stats_of(&f).stale; i++)
        assert_int_equal(mirror_sync_gfns(f.m, NULL, 0), 0);
    assert_int_equal(stats_of(&f).stale, 0);
    verify(&f);
    teardown(&f);
}

static void test_floods_off(void **state)
{
    struct fixture f;

    setup(&f);
    flood_by_ticks(&f, FG_USER);
    mirror_set_floods(f.m, false);
    assert_int_equal(mirror_sync(f.m, false), 0);
    assert_int_equal(stats_of(&f).stale, 0);
    for (unsigned int i = 0; i < 10; i++) {
        map(&f, USER_GVA + i * GUEST_PAGE_SIZE, 2000 + i, FG_USER);
        assert_int_equal(mirror_sync(f.m, false), 0);
        assert_false(mirror_written(f.m, gpa_to_gfn(f.root)));
    }
    assert_int_equal(stats_of(&f).floods, 1);
    verify(&f);
    teardown(&f);
}

static void test_flood_ring(void **state)
{
    struct fixture f;
    struct mmu_flood floods[MIRROR_FLOODS_MAX + 8];
    gfn_t tables[MIRROR_FLOODS_MAX + 8];

    setup(&f);
    for (unsigned int i = 0; i < ARRAY_SIZE(tables); i++) {
        map(&f, (i + 1) * 2 * MiB, 1000, FG_USER);
        fake_guest_entry(&f.guest, f.root, (i + 1) * 2 * MiB, 1, &tables[i]);
    }
    sync_all(&f);
    for (unsigned int i = 0; i < 3 * ARRAY_SIZE(tables); i++)
        mirror_written(f.m, tables[i / 3]);
    assert_int_equal(mirror_floods(f.m, floods, ARRAY_SIZE(floods)), MIRROR_FLOODS_MAX);
    for (unsigned int i = 0; i < MIRROR_FLOODS_MAX; i++)
        assert_int_equal(floods[i].gfn, tables[ARRAY_SIZE(tables) - 1 - i]);
    teardown(&f);
}

/* -- roots ------------------------------------------------------------------------------------------------------------- */

static void test_generation(void **state)
{
    struct fixture f;
    struct mmu_root root;
    uint32_t cursor = 0;
    uint64_t first;

    setup(&f);
    map(&f, USER_GVA, 1000, FG_USER);
    sync_all(&f);
    assert_true(mirror_root_next(f.m, &cursor, &root));
    first = root.generation;
    map(&f, USER_GVA + 0x1000, 1001, FG_USER);
    map(&f, UINT64_C(1) << 40, 1001, FG_USER);
    sync_all(&f);
    cursor = 0;
    assert_true(mirror_root_next(f.m, &cursor, &root));
    assert_int_equal(root.generation, first);
    /* The next process has the frame: none of its user half is what was there. */
    assert_int_equal(mem_set(f.guest.mem, f.root, 0, 2048), 0);
    map(&f, USER_GVA, 1000, FG_USER);
    map(&f, UINT64_C(1) << 40, 1001, FG_USER);
    sync_all(&f);
    cursor = 0;
    assert_true(mirror_root_next(f.m, &cursor, &root));
    assert_true(root.generation > first);
    assert_false(mirror_root_next(f.m, &cursor, &root));
    teardown(&f);
}

static void test_retire(void **state)
{
    struct fixture f;
    gpa_t kernel, kpti;

    setup(&f);
    kernel = gfn_to_gpa(fake_guest_frame(&f.guest));
    f.guest.next_table = 40;
    kpti = gfn_to_gpa(fake_guest_frame(&f.guest));
    fake_guest_frame(&f.guest);
    assert_int_equal(mirror_root_add(f.m, kernel, &long_mode, MMU_ROOT_KERNEL, 1), 0);
    assert_int_equal(mirror_root_pin(f.m, kernel, &long_mode), 0);
    assert_int_equal(mirror_root_add(f.m, kpti, &long_mode, MMU_ROOT_USER, 1), 0);
    assert_int_equal(mirror_root_add(f.m, kpti + GUEST_PAGE_SIZE, &long_mode, MMU_ROOT_KPTI, 1), 0);
    map(&f, USER_GVA, 1000, FG_USER);
    /* Not before they were read. */
    assert_int_equal(mirror_roots_retire(f.m, 10 * SECOND, SECOND), 0);
    sync_all(&f);
    assert_int_equal(mirror_roots_retire(f.m, SECOND / 2, SECOND), 0);
    assert_int_equal(mirror_root_seen(f.m, kpti, &long_mode, 2 * SECOND), 0);
    assert_int_equal(mirror_roots_retire(f.m, 2 * SECOND + 1, SECOND), 0);
    /* The pair goes; the pinned one and the one with a user half stay. */
    assert_int_equal(mirror_roots_retire(f.m, 10 * SECOND, SECOND), 1);
    assert_int_equal(stats_of(&f).roots, 2);
    sync_all(&f);
    teardown(&f);
}

/* Roots beyond what memory is allowed: the oldest go, it is counted, and what stays is right. */
static void test_memory_cap(void **state)
{
    struct fixture f;
    struct mirror_stats s;
    gpa_t last = 0;

    setup_sized(&f, 64 * MiB, MIRROR_MAX_MEMORY_MIN);
    for (unsigned int n = 0; n < 300; n++) {
        gpa_t root = gfn_to_gpa(fake_guest_frame(&f.guest));

        for (unsigned int i = 0; i < 512; i += 8)
            fake_guest_map(&f.guest, root, (n % 7) * GiB + i * GUEST_PAGE_SIZE, 8000 + n, 1, FG_USER);
        assert_int_equal(mirror_root_add(f.m, root, &long_mode, MMU_ROOT_USER, n + 2), 0);
        assert_int_equal(mirror_sync(f.m, false), 0);
        last = root;
    }
    assert_int_equal(mirror_sync(f.m, true), 0);
    s = stats_of(&f);
    assert_true(s.memory <= MIRROR_MAX_MEMORY_MIN);
    assert_true(s.roots_evicted > 0);
    assert_true(s.roots > 20);
    assert_int_equal(s.roots + s.roots_evicted, 301);
    assert_int_equal(s.incomplete, 0);
    assert_int_equal(mirror_root_seen(f.m, last, &long_mode, 1000), 0);
    assert_int_equal(mirror_root_seen(f.m, f.root, &long_mode, 1000), -ENOENT);
    verify(&f);
    teardown(&f);
}

/* One root that is too large by itself: a part of it, and it says so. */
static void test_one_root_too_large(void **state)
{
    struct fixture f;
    struct mirror_verdict v;

    setup_sized(&f, 64 * MiB, MIRROR_MAX_MEMORY_MIN);
    for (unsigned int n = 0; n < 4000; n++)
        map(&f, n * 2 * MiB, 3, FG_USER);
    assert_int_equal(mirror_sync(f.m, true), -ENOMEM);
    assert_true(stats_of(&f).incomplete > 0);
    assert_true(stats_of(&f).memory <= MIRROR_MAX_MEMORY_MIN);
    assert_int_equal(mirror_verify(f.m, &v), 0);
    assert_true(v.missing > 0);
    assert_int_equal(v.mismatched + v.broken_links + v.extra, 0);
    /* It shrinks: whole again. */
    for (unsigned int n = 0; n < 4000; n++)
        map(&f, n * 2 * MiB, 0, 0);
    for (unsigned int n = 0; n < 8; n++)
        fake_guest_set(&f.guest, gpa_to_gfn(f.root), n, 0);
    sync_all(&f);
    assert_int_equal(stats_of(&f).incomplete, 0);
    teardown(&f);
}

/* -- verify ------------------------------------------------------------------------------------------------------------ */

static void test_verify_finds(void **state)
{
    struct fixture f;
    struct mirror_verdict v;
    gfn_t table;
    unsigned int entry;
    node_t *head;

    setup(&f);
    for (unsigned int i = 0; i < 3; i++)
        map(&f, USER_GVA + i * GUEST_PAGE_SIZE, 1000, FG_USER);
    sync_all(&f);
    entry = fake_guest_entry(&f.guest, f.root, USER_GVA, 1, &table);
    fake_guest_set(&f.guest, table, entry + 5, 0x7000 | FG_USER);
    fake_guest_set(&f.guest, table, entry + 6, 0x7000 | FG_USER);
    fake_guest_set(&f.guest, table, entry, 0);
    fake_guest_set(&f.guest, table, entry + 1, fake_guest_get(&f.guest, table, entry + 1) & ~FG_D);
    assert_int_equal(mirror_verify(f.m, &v), 0);
    assert_int_equal(v.missing, 2);
    assert_int_equal(v.extra, 1);
    assert_int_equal(v.mismatched, 1);
    assert_int_equal(v.broken_links, 0);
    assert_int_equal(v.roots, 1);
    sync_all(&f);
    head = rmap_head(f.m, RMAP_4K, 1000);
    *head ^= 1;
    assert_int_equal(mirror_verify(f.m, &v), 0);
    assert_true(v.broken_links > 0);
    *head ^= 1;
    verify(&f);
    teardown(&f);
}

static void test_new_bad(void **state)
{
    struct fake_guest g;
    struct mirror *m = NULL;
    struct mirror_config config = {.cpu = {.maxphyaddr = 31}};

    fake_guest_init(&g, 16 * MiB, long_mode);
    config.mem = g.mem;
    assert_int_equal(mirror_new(&config, &m), -EINVAL);
    config.cpu.maxphyaddr = 46;
    config.max_memory = MIRROR_MAX_MEMORY_MIN - 1;
    assert_int_equal(mirror_new(&config, &m), -EINVAL);
    assert_null(m);
    mirror_free(NULL);
    fake_guest_clear(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_walk),
        cmocka_unit_test(test_walk_bad),
        cmocka_unit_test(test_query),
        cmocka_unit_test(test_links_only_where_needed),
        cmocka_unit_test(test_self_maps),
        cmocka_unit_test(test_outside_of_ram),
        cmocka_unit_test(test_root_bad),
        cmocka_unit_test(test_in_place),
        cmocka_unit_test(test_bulk_clear),
        cmocka_unit_test(test_table_moves),
        cmocka_unit_test(test_sync_gfns),
        cmocka_unit_test(test_watch),
        cmocka_unit_test(test_flood_live),
        cmocka_unit_test(test_flood_goes_on),
        cmocka_unit_test(test_flood_data),
        cmocka_unit_test(test_flood_writes),
        cmocka_unit_test(test_floods_off),
        cmocka_unit_test(test_flood_ring),
        cmocka_unit_test(test_generation),
        cmocka_unit_test(test_retire),
        cmocka_unit_test(test_memory_cap),
        cmocka_unit_test(test_one_root_too_large),
        cmocka_unit_test(test_verify_finds),
        cmocka_unit_test(test_new_bad),
    };

    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests_name("mirror", tests, NULL, NULL);
}
