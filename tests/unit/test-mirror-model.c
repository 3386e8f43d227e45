/*
 * The mirror against a model: random edits of guest page tables in every paging mode, then a naive walk of guest memory, with
 * a decoder of its own, must find exactly the mappings that the mirror's reverse map names. Edits are as bad as a guest can
 * make them: tables that point at themselves and at each other, at any level, outside of RAM, with reserved bits, tables
 * cleared as a whole or filled with garbage, roots that come and go and are no roots at all.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "fake-guest.h"
#include "mmu/mirror.h"
#include "mmu/query.h"
#include "rand.h"

#define RAM (2 * MiB)
#define FRAMES (RAM / GUEST_PAGE_SIZE)
#define TABLES 14u /* frames 1 to TABLES are tables, roots, data, as it comes */
#define ROOTS 4u
#define MAX_MAPPINGS 60000u

struct setup {
    const char *name;
    struct mmu_paging paging;
    struct gpt_cpu cpu;
    uint64_t max_memory;
    bool no_floods;
};

static const struct setup setups[] = {
    {"32-bit", {2, false, false}, {36, false}, 0, false},
    {"32-bit PSE", {2, true, false}, {40, false}, 0, false},
    {"32-bit PSE without PSE-36", {2, true, false}, {32, false}, 0, true},
    {"PAE", {3, false, true}, {40, false}, 0, false},
    {"PAE without NX", {3, false, false}, {36, false}, 0, true},
    {"4 levels", {4, false, true}, {46, true}, 0, false},
    {"4 levels, no 1 GiB pages, no NX", {4, false, false}, {40, false}, 0, false},
    {"5 levels", {5, false, true}, {52, true}, 0, false},
};

struct mapping {
    uint64_t cr3, gva, gfn;
    unsigned int level, flags; /* W 1, U 2, NX 4, A 8, D 16 */
};

struct list {
    struct mapping *at;
    size_t count;
    bool full;
};

struct model {
    const struct setup *setup;
    struct rng rng;
    struct fake_guest guest;
    struct mirror *mirror;
    gpa_t roots[ROOTS];
    struct list want, have;
    unsigned int compared, too_many;
    uint64_t mappings;
};

static void list_add(struct list *l, struct mapping mapping)
{
    if (l->count == MAX_MAPPINGS)
        l->full = true;
    else
        l->at[l->count++] = mapping;
}

static int compare(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct mapping));
}

/* -- the naive walk: written from the manuals, shares nothing with src/mmu/walk.c ----------------------------------- */

static bool reserved(const struct setup *s, unsigned int level, bool large, uint64_t v)
{
    unsigned int levels = s->paging.levels;

    if (levels == 2) {
        if (!large)
            return false;
        if (v >> 21 & 1)
            return true;
        for (unsigned int bit = 13; bit <= 20; bit++)
            if ((v >> bit & 1) && bit - 13 + 32 >= s->cpu.maxphyaddr)
                return true;
        return false;
    }
    for (unsigned int bit = s->cpu.maxphyaddr; bit < 52; bit++)
        if (v >> bit & 1)
            return true;
    if ((v >> 63) && !s->paging.nx)
        return true;
    if (levels == 3 && (v >> 52 & 0x7ff))
        return true;
    if (levels == 3 && level == 3)
        return (v & 0x1e6) || v >> 63;
    if (!large && level > 2 && (v & FG_PS))
        return true;
    if (large && (v & ((level == 2 ? UINT64_C(0x1fffff) : UINT64_C(0x3fffffff)) & ~UINT64_C(0x1fff))))
        return true;
    return false;
}

static bool is_large(const struct setup *s, unsigned int level, uint64_t v)
{
    if (!(v & FG_PS))
        return false;
    if (s->paging.levels == 2)
        return level == 2 && s->paging.pse;
    return level == 2 || (level == 3 && s->paging.levels > 3 && s->cpu.gbpages);
}

static void naive_table(struct model *m, gpa_t root, gpa_t table, unsigned int level, uint64_t gva, unsigned int rights)
{
    const struct setup *s = m->setup;
    unsigned int levels = s->paging.levels, size = levels == 2 ? 4 : 8;
    unsigned int count = levels == 2 ? 1024 : levels == 3 && level == 3 ? 4 : 512;
    unsigned int shift = 12 + (levels == 2 ? 10 : 9) * (level - 1);

    for (unsigned int i = 0; i < count && !m->want.full; i++) {
        uint64_t v = 0, at = gva | (uint64_t)i << shift, pa;
        unsigned int r = rights;
        bool large;

        assert_int_equal(mem_read(m->guest.mem, table + i * size, &v, size), 0);
        if (!(v & 1))
            continue;
        large = is_large(s, level, v);
        if (reserved(s, level, large, v))
            continue;
        pa = v & UINT64_C(0xffffffffff000);
        if (large && levels == 2)
            pa = (v & 0xffc00000) | (v >> 13 & 0xff) << 32;
        else if (large)
            pa &= ~UINT64_C(0x1fff);
        if (pa >= RAM)
            continue;
        if (!(levels == 3 && level == 3))
            r = (r & ((v & FG_W ? 1u : 0) | (v & FG_U ? 2u : 0) | 4u)) | (v >> 63 ? 4u : 0);
        if (level > 1 && !large) {
            naive_table(m, root, pa, level - 1, at, r);
            continue;
        }
        if (levels == 4 && at >> 47 & 1)
            at |= UINT64_C(0xffff) << 48;
        if (levels == 5 && at >> 56 & 1)
            at |= UINT64_C(0x7f) << 57;
        list_add(&m->want, (struct mapping){root, at, pa >> 12, level, r | (v & FG_A ? 8u : 0) | (v & FG_D ? 16u : 0)});
    }
}

static void naive_walk(struct model *m)
{
    m->want.count = 0;
    m->want.full = false;
    for (unsigned int i = 0; i < ROOTS; i++)
        if (m->roots[i])
            naive_table(m, m->roots[i], m->roots[i], m->setup->paging.levels, 0, 3);
}

/* -- the mirror's answer -------------------------------------------------------------------------------------------- */

static void ask_mirror(struct model *m)
{
    static struct mmu_mapping found[MAX_MAPPINGS];

    m->have.count = 0;
    m->have.full = false;
    for (gfn_t gfn = 0; gfn < FRAMES; gfn++) {
        bool more;
        size_t n = mirror_query(m->mirror, gfn, found, ARRAY_SIZE(found), &more);

        m->have.full |= more;
        for (size_t i = 0; i < n; i++) {
            const struct mmu_mapping *f = &found[i];

            /* A large page is told for each of its frames: take the first. */
            if (gfn & ((UINT64_C(1) << (f->shift - 12)) - 1))
                continue;
            list_add(&m->have, (struct mapping){f->cr3, f->gva, gfn, f->level,
                                                (f->write ? 1u : 0) | (f->user ? 2u : 0) | (f->nx ? 4u : 0) |
                                                    (f->accessed ? 8u : 0) | (f->dirty ? 16u : 0)});
        }
    }
}

static void check(struct model *m)
{
    struct mirror_verdict v;

    assert_int_equal(mirror_verify(m->mirror, &v), 0);
    if (v.missing || v.extra || v.mismatched || v.broken_links)
        fail_msg("verify: missing %" PRIu64 " extra %" PRIu64 " mismatched %" PRIu64 " broken %" PRIu64, v.missing, v.extra,
                 v.mismatched, v.broken_links);
    naive_walk(m);
    if (m->want.full) {
        m->too_many++;
        return;
    }
    ask_mirror(m);
    assert_false(m->have.full);
    assert_int_equal(m->have.count, m->want.count);
    qsort(m->want.at, m->want.count, sizeof(struct mapping), compare);
    qsort(m->have.at, m->have.count, sizeof(struct mapping), compare);
    assert_memory_equal(m->have.at, m->want.at, m->want.count * sizeof(struct mapping));
    m->compared++;
    m->mappings += m->want.count;
}

/* -- edits ---------------------------------------------------------------------------------------------------------- */

static uint64_t random_entry(struct model *m)
{
    uint64_t v = rng_next(&m->rng) & (FG_W | FG_U | FG_A | FG_D);

    if (rng_chance(&m->rng, 90))
        v |= FG_P;
    if (rng_chance(&m->rng, 60))
        v |= gfn_to_gpa(1 + rng_below(&m->rng, TABLES));
    else if (rng_chance(&m->rng, 90))
        v |= gfn_to_gpa(rng_below(&m->rng, FRAMES));
    else
        v |= rng_next(&m->rng) & UINT64_C(0xffffffffff000);
    if (rng_chance(&m->rng, 12)) {
        v |= FG_PS;
        if (rng_chance(&m->rng, 70))
            v &= ~UINT64_C(0x1ff000);
    }
    if (rng_chance(&m->rng, 20))
        v |= FG_NX;
    if (rng_chance(&m->rng, 5))
        v |= UINT64_C(1) << rng_below(&m->rng, 64);
    return m->setup->paging.levels == 2 ? (uint32_t)v : v;
}

static unsigned int random_index(struct model *m)
{
    static const unsigned int some[] = {0, 1, 2, 3, 15, 16, 255, 256, 510, 511};
    unsigned int count = m->setup->paging.levels == 2 ? 1024 : 512;

    return rng_chance(&m->rng, 70) ? some[rng_below(&m->rng, ARRAY_SIZE(some))] : (unsigned int)rng_below(&m->rng, count);
}

static void edit_entry(struct model *m, gfn_t table)
{
    unsigned int i = random_index(m);
    uint64_t v = fake_guest_get(&m->guest, table, i);

    if (m->setup->paging.levels == 3 && rng_chance(&m->rng, 40)) {
        /* A PAE root has four entries and few rights. */
        fake_guest_set(&m->guest, table, (unsigned int)rng_below(&m->rng, 12), gfn_to_gpa(1 + rng_below(&m->rng, TABLES)) | FG_P);
        return;
    }
    switch (rng_below(&m->rng, 6)) {
    case 0:
        v ^= rng_next(&m->rng) & (FG_A | FG_D);
        break;
    case 1:
        v ^= rng_next(&m->rng) & (FG_W | FG_U);
        break;
    case 2:
        v = 0;
        break;
    case 3: /* a table moves within its parent, or is shared */
        fake_guest_set(&m->guest, 1 + rng_below(&m->rng, TABLES), random_index(m), v);
        if (rng_chance(&m->rng, 50))
            v = 0;
        break;
    default:
        v = random_entry(m);
    }
    fake_guest_set(&m->guest, table, i, v);
}

static void edit_page(struct model *m, gfn_t table)
{
    uint64_t words[GUEST_PAGE_SIZE / 8];

    if (rng_chance(&m->rng, 80)) {
        mem_set(m->guest.mem, gfn_to_gpa(table), 0, GUEST_PAGE_SIZE);
        return;
    }
    /* Reused as data: text, or bytes that look like tables now and then. */
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        words[i] = rng_chance(&m->rng, 3) ? random_entry(m) : rng_next(&m->rng) | UINT64_C(0x6060606060606060);
    mem_write(m->guest.mem, gfn_to_gpa(table), words, sizeof(words));
}

static void edit_root(struct model *m)
{
    unsigned int i = (unsigned int)rng_below(&m->rng, ROOTS);
    gpa_t cr3 = gfn_to_gpa(1 + rng_below(&m->rng, TABLES));

    if (m->setup->paging.levels == 3)
        cr3 += rng_below(&m->rng, 3) * 32;
    if (m->roots[i])
        assert_int_equal(mirror_root_drop(m->mirror, m->roots[i], &m->setup->paging), 0);
    m->roots[i] = 0;
    for (unsigned int other = 0; other < ROOTS; other++)
        if (m->roots[other] == cr3)
            return;
    m->roots[i] = cr3;
    assert_int_equal(mirror_root_add(m->mirror, cr3, &m->setup->paging, MMU_ROOT_USER, 1), 0);
}

static void edit(struct model *m)
{
    gfn_t table = 1 + rng_below(&m->rng, TABLES), touched[2] = {table, FRAMES + 5};

    if (rng_chance(&m->rng, 8))
        edit_page(m, table);
    else if (rng_chance(&m->rng, 8))
        edit_root(m);
    else
        edit_entry(m, table);
    /* The other ways to hear of it, in between: none may lose anything that the full sync then finds. */
    if (rng_chance(&m->rng, 20))
        (void)mirror_written(m->mirror, table);
    if (rng_chance(&m->rng, 20))
        assert_int_equal(mirror_sync_gfns(m->mirror, touched, 2), 0);
    if (rng_chance(&m->rng, 20))
        assert_int_equal(mirror_sync(m->mirror, false), 0);
}

static void run(const struct setup *setup, uint64_t seed)
{
    struct model m = {.setup = setup, .rng = rng_seeded(seed)};
    struct mirror_config config = {.cpu = setup->cpu, .max_memory = setup->max_memory, .no_floods = setup->no_floods};
    struct mirror_stats stats;

    fake_guest_init(&m.guest, RAM, setup->paging);
    config.mem = m.guest.mem;
    assert_int_equal(mirror_new(&config, &m.mirror), 0);
    m.want.at = calloc(MAX_MAPPINGS, sizeof(struct mapping));
    m.have.at = calloc(MAX_MAPPINGS, sizeof(struct mapping));
    assert_non_null(m.want.at);
    assert_non_null(m.have.at);
    for (int step = 0; step < 250; step++) {
        for (uint64_t n = 1 + rng_below(&m.rng, 8); n; n--)
            edit(&m);
        if (setup->no_floods && rng_chance(&m.rng, 50))
            assert_int_equal(mirror_sync(m.mirror, false), 0);
        else
            assert_int_equal(mirror_sync(m.mirror, true), 0);
        check(&m);
    }
    for (unsigned int i = 0; i < ROOTS; i++)
        if (m.roots[i])
            assert_int_equal(mirror_root_drop(m.mirror, m.roots[i], &setup->paging), 0);
    mirror_stats(m.mirror, &stats);
    for (unsigned int level = 0; level < ARRAY_SIZE(stats.pages); level++)
        assert_int_equal(stats.pages[level], 0);
    assert_int_equal(stats.entries, 0);
    assert_int_equal(stats.stale, 0);
    printf("# %s: %u compared, %u with too many paths, mappings %" PRIu64 ", floods %" PRIu64 ", bulk clears %" PRIu64 "\n",
           setup->name, m.compared, m.too_many, m.mappings, stats.floods, stats.bulk_clears);
    assert_true(m.compared > 20);
    assert_true(m.mappings > 1000);
    mirror_free(m.mirror);
    fake_guest_clear(&m.guest);
    free(m.want.at);
    free(m.have.at);
}

static void test_model(void **state)
{
    uint64_t seed = rng_test_seed("mirror model");

    for (size_t i = 0; i < ARRAY_SIZE(setups); i++)
        run(&setups[i], seed + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
    };

    return cmocka_run_group_tests_name("mirror model", tests, NULL, NULL);
}
