/*
 * The dirty log against a model: random guest and VMM writes, and random doings of several consumers, over KVM's bitmap and
 * ring with failures in between. What a consumer is told must be exactly what was written since its last acknowledged
 * snapshot; and a copy it keeps with nothing but that must in the end equal guest memory.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/log.h"
#include "base/util.h"
#include "fake-kvm.h"
#include "mmu/dirty.h"
#include "rand.h"

#define CONSUMERS 4

/* The model has one thread: the thread sanitizer needs not see all of it. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define STEPS_DIVISOR 10
#endif
#endif
#ifndef STEPS_DIVISOR
#define STEPS_DIVISOR 1
#endif

struct setup {
    const char *name;
    uint64_t size;
    enum dirty_backend backend;
    bool initially_set;
    enum dirty_clear clear;
    uint32_t gap, max_pages;
    unsigned int vcpus;
    uint32_t ring_entries;
    bool bursts;       /* KVM fills rings beyond their end */
    unsigned int fail; /* percent of KVM's calls */
    int steps;
};

static const struct setup setups[] = {
    {.name = "bitmap", .size = 100 * MiB, .steps = 3000},
    {.name = "bitmap, initially set", .size = 100 * MiB, .initially_set = true, .steps = 3000},
    {.name = "bitmap, short clears", .size = 1 * GiB, .gap = 2, .max_pages = 300, .initially_set = true, .steps = 400},
    {.name = "bitmap, sparse, failures", .size = 200 * MiB, .clear = DIRTY_CLEAR_SPARSE, .fail = 15, .steps = 2000},
    {.name = "bitmap, dense, failures", .size = 65 * MiB, .clear = DIRTY_CLEAR_DENSE, .fail = 15, .steps = 3000},
    {.name = "bitmap, initially set, failures", .size = 100 * MiB, .initially_set = true, .gap = 1, .fail = 25, .steps = 3000},
    {.name = "bitmap, two slots, failures", .size = 3 * GiB + 33 * MiB, .gap = 3, .fail = 10, .steps = 150},
    {.name = "ring", .size = 100 * MiB, .backend = DIRTY_RING, .vcpus = 1, .ring_entries = 64, .steps = 3000},
    {.name = "ring, 3 vcpus, failures", .size = 100 * MiB, .backend = DIRTY_RING, .vcpus = 3, .ring_entries = 16,
     .fail = 15, .steps = 3000},
    {.name = "ring of two entries", .size = 1 * MiB, .backend = DIRTY_RING, .vcpus = 2, .ring_entries = 2, .fail = 5,
     .steps = 3000},
    {.name = "ring, two slots, failures", .size = 3 * GiB + 33 * MiB, .backend = DIRTY_RING, .vcpus = 2,
     .ring_entries = 1024, .fail = 10, .steps = 200},
    /* Large enough for harvests that are given back in ascending order. */
    {.name = "large rings", .size = 40 * MiB, .backend = DIRTY_RING, .vcpus = 2, .ring_entries = 2048, .steps = 2000},
    {.name = "large rings, failures", .size = 40 * MiB, .backend = DIRTY_RING, .vcpus = 3, .ring_entries = 1024,
     .fail = 15, .steps = 2000},
    {.name = "overrun rings", .size = 40 * MiB, .backend = DIRTY_RING, .vcpus = 3, .ring_entries = 256, .bursts = true, .steps = 3000},
    {.name = "overrun rings, failures", .size = 40 * MiB, .backend = DIRTY_RING, .vcpus = 2, .ring_entries = 64, .bursts = true,
     .fail = 15, .steps = 3000},
};

struct consumer {
    bool active;
    char name[16];
    uint64_t epoch;
    bool acked;          /* the newest epoch */
    uint64_t *due;       /* bitmap: pages that the next snapshot must have, and no others */
    uint64_t *written;   /* bitmap: of them, those written since the last snapshot */
    uint64_t *staged_set, *staged, *copy; /* the last snapshot's pages and contents; the copy, as of the last ack */
};

struct model {
    const struct setup *setup;
    struct rng rng;
    struct mem *mem;
    struct fake_kvm kvm;
    struct dirty_log *log;
    uint64_t pages;
    size_t words;
    struct consumer consumers[CONSUMERS];
    uint64_t *unheard; /* bitmap: what the listener's next look must tell at least */
    uint64_t looks, blind;
    uint64_t snapshots, refused, peeks, starts, full;
};

static void model_init(struct model *m, const struct setup *setup, uint64_t seed)
{
    struct mem_config config = {.size = setup->size};
    struct dirty_config dirty = {
        .backend = setup->backend,
        .clear = setup->clear,
        .initially_set = setup->initially_set,
        .clear_gap = setup->gap,
        .clear_max_pages = setup->max_pages,
        .ops = &fake_ops,
        .opaque = &m->kvm,
    };

    memset(m, 0, sizeof(*m));
    m->setup = setup;
    m->rng = rng_seeded(seed);
    assert_int_equal(mem_new(&config, &m->mem), 0);
    m->pages = mem_pages(m->mem);
    m->words = (size_t)m->pages / 64;
    m->kvm = (struct fake_kvm){.mem = m->mem, .backend = setup->backend, .initially_set = setup->initially_set,
                               .vcpus = setup->vcpus, .ring_entries = setup->ring_entries};
    fake_init(&m->kvm, seed + 1);
    assert_int_equal(dirty_log_new(m->mem, &dirty, &m->log), 0);
    fake_add_rings(&m->kvm, m->log);
    m->unheard = calloc(m->words, 8);
    assert_non_null(m->unheard);
    assert_int_equal(dirty_log_listen(m->log, true), 0);
    for (int i = 0; i < CONSUMERS; i++) {
        struct consumer *c = &m->consumers[i];

        snprintf(c->name, sizeof(c->name), "consumer-%d", i);
        c->due = calloc(m->words, 8);
        c->written = calloc(m->words, 8);
        c->staged_set = calloc(m->words, 8);
        c->staged = calloc(m->pages, 8);
        c->copy = calloc(m->pages, 8);
        assert_true(c->due && c->written && c->staged_set && c->staged && c->copy);
    }
}

static void model_destroy(struct model *m)
{
    dirty_log_free(m->log);
    fake_destroy(&m->kvm);
    mem_free(m->mem);
    free(m->unheard);
    for (int i = 0; i < CONSUMERS; i++) {
        free(m->consumers[i].due);
        free(m->consumers[i].written);
        free(m->consumers[i].staged_set);
        free(m->consumers[i].staged);
        free(m->consumers[i].copy);
    }
}

static void set_failures(struct model *m, unsigned int percent)
{
    m->kvm.fail_get = m->kvm.fail_clear = m->kvm.fail_reset = m->kvm.fail_logging = percent;
}

/* -- steps -------------------------------------------------------------------- */

static void note_written(struct model *m, pfn_t page)
{
    bitmap_set(m->unheard, page);
    for (int i = 0; i < CONSUMERS; i++) {
        if (m->consumers[i].active) {
            bitmap_set(m->consumers[i].due, page);
            bitmap_set(m->consumers[i].written, page);
        }
    }
}

/* The edges of words, groups and slots more often than chance has it. */
static pfn_t some_page(struct model *m)
{
    pfn_t page = rng_below(&m->rng, m->pages);

    switch (rng_below(&m->rng, 8)) {
    case 0:
        return page / 4096 * 4096;
    case 1:
        return MIN(page / 4096 * 4096 + 4095, m->pages - 1);
    case 2:
        return page / 64 * 64;
    case 3:
        return m->pages - 1;
    case 4:
        return MIN(page, UINT64_C(786432) - 2 + rng_below(&m->rng, 4));
    case 5:
        return page % 256;
    default:
        return page;
    }
}

static void step_writes(struct model *m)
{
    uint64_t n = rng_chance(&m->rng, 10) ? rng_below(&m->rng, 2000) : rng_below(&m->rng, 20);
    pfn_t start = some_page(m);
    bool run = rng_chance(&m->rng, 30), vmm = rng_chance(&m->rng, 25), burst = m->setup->bursts && rng_chance(&m->rng, 30);

    for (uint64_t i = 0; i < n; i++) {
        pfn_t page = run ? (start + i) % m->pages : some_page(m);
        unsigned int vcpu = m->setup->vcpus && !burst ? (unsigned int)rng_below(&m->rng, m->setup->vcpus) : 0;

        if (vmm) {
            fake_vmm_write(&m->kvm, page);
        } else if (burst) {
            fake_guest_burst(&m->kvm, vcpu, page);
        } else {
            while (!fake_guest_write(&m->kvm, vcpu, page)) {
                m->full++;
                dirty_log_ring_full(m->log, vcpu);
            }
        }
        note_written(m, page);
    }
}

static void expect_set(struct model *m, const struct consumer *c, const struct dirty_snapshot *s)
{
    for (size_t w = 0; w < m->words; w++) {
        /* Where KVM has overwritten entries it may be all pages, else it is exactly those. */
        if ((m->kvm.overrun ? s->bitmap[w] & c->due[w] : s->bitmap[w]) != c->due[w])
            fail_msg("%s, %s: word %zu is %" PRIx64 ", must be %" PRIx64, m->setup->name, c->name, w, s->bitmap[w],
                     c->due[w]);
    }
    assert_int_equal(s->pages, bitmap_count(m->kvm.overrun ? s->bitmap : c->due, m->words));
    assert_false(s->lost);
}

static void expect_ranges(struct model *m, const struct dirty_snapshot *s)
{
    struct dirty_range out[8];
    uint64_t *map = calloc(m->words, 8);
    size_t max = 1 + rng_below(&m->rng, ARRAY_SIZE(out)), n;
    gfn_t next = 0;
    pfn_t cursor = 0;

    assert_non_null(map);
    while ((n = dirty_ranges(m->mem, s, &cursor, out, max)) > 0) {
        assert_true(n <= max);
        for (size_t i = 0; i < n; i++) {
            pfn_t first, last;

            assert_true(out[i].pages > 0 && (next == 0 || out[i].gfn > next));
            next = out[i].gfn + out[i].pages;
            assert_true(mem_gfn_to_pfn(m->mem, out[i].gfn, &first));
            assert_true(mem_gfn_to_pfn(m->mem, next - 1, &last));
            assert_int_equal(last - first, out[i].pages - 1);
            bitmap_set_range(map, first, out[i].pages);
        }
    }
    assert_memory_equal(map, s->bitmap, m->words * 8);
    free(map);
}

static void step_start(struct model *m, struct consumer *c)
{
    enum dirty_start_mode mode = rng_chance(&m->rng, 30) ? DIRTY_START_ALL : DIRTY_START_CHANGES;

    if (c->active) {
        assert_int_equal(dirty_log_start(m->log, c->name, mode), -EEXIST);
        return;
    }
    if (dirty_log_start(m->log, c->name, mode) < 0) {
        assert_true(m->setup->fail > 0);
        m->refused++;
        return;
    }
    c->active = true;
    c->epoch = 0;
    c->acked = true;
    m->starts++;
    for (pfn_t p = 0; p < m->pages; p++)
        c->copy[p] = mode == DIRTY_START_ALL ? UINT64_MAX : fake_content(&m->kvm, p);
    memset(c->due, mode == DIRTY_START_ALL ? 0xff : 0, m->words * 8);
    memset(c->written, 0, m->words * 8);
}

static bool any_active(const struct model *m)
{
    for (int i = 0; i < CONSUMERS; i++)
        if (m->consumers[i].active)
            return true;
    return false;
}

static void step_stop(struct model *m, struct consumer *c)
{
    int r = dirty_log_stop(m->log, c->name);

    if (!c->active) {
        assert_int_equal(r, -ENOENT);
        return;
    }
    c->active = false;
    if (r < 0)
        assert_true(m->setup->fail > 0 && !any_active(m));
    else if (!any_active(m))
        assert_false(fake_logging(&m->kvm));
    else /* After an overrun it is switched off and on, which may have failed half way. */
        assert_true(fake_logging(&m->kvm) || (m->kvm.overrun && m->setup->fail > 0));
}

static bool step_snapshot(struct model *m, struct consumer *c)
{
    struct dirty_snapshot s;
    int r = dirty_log_snapshot_lock(m->log, c->name, false, &s);

    if (!c->active) {
        assert_int_equal(r, -ENOENT);
        return false;
    }
    if (r < 0) {
        assert_true(m->setup->fail > 0);
        m->refused++;
        return false;
    }
    m->snapshots++;
    c->epoch++;
    assert_int_equal(s.epoch, c->epoch);
    expect_set(m, c, &s);
    if (m->words < 100000 || rng_chance(&m->rng, 20))
        expect_ranges(m, &s);
    memcpy(c->staged_set, s.bitmap, m->words * 8);
    dirty_log_unlock(m->log);
    for (pfn_t p = 0; (p = bitmap_next_set(c->staged_set, m->pages, p)) < m->pages; p++)
        c->staged[p] = fake_content(&m->kvm, p);
    memset(c->written, 0, m->words * 8);
    c->acked = false;
    return true;
}

/*
 * The listener's look between harvests: it hears of every page written since the last one, unless it is told to look at
 * everything. That consumers lose nothing by it, and are told nothing more, their own snapshots show.
 */
static void step_early(struct model *m)
{
    struct page_set only, heard;
    int r;

    assert_int_equal(page_set_init(&only, m->pages), 0);
    assert_int_equal(page_set_init(&heard, m->pages), 0);
    for (uint64_t i = rng_below(&m->rng, 200); i > 0; i--)
        page_set_add(&only, some_page(m));
    r = dirty_log_early(m->log, &only, &heard);
    for (size_t i = 0; i < m->words && r == 0; i++)
        if (m->unheard[i] & ~heard.map[i])
            fail_msg("%s: the listener did not hear of a page in word %zu", m->setup->name, i);
    m->looks += r == 0;
    m->blind += r < 0;
    memset(m->unheard, 0, m->words * 8);
    page_set_free(&only);
    page_set_free(&heard);
}

static void step_peek(struct model *m, struct consumer *c)
{
    struct dirty_snapshot s;
    uint64_t clears = m->kvm.clears, resets = m->kvm.resets;
    int r = dirty_log_snapshot_lock(m->log, c->name, true, &s);

    if (!c->active) {
        assert_int_equal(r, -ENOENT);
        return;
    }
    assert_int_equal(m->kvm.clears, clears);
    assert_int_equal(m->kvm.resets, resets);
    if (r < 0) {
        assert_true(m->setup->fail > 0);
        return;
    }
    m->peeks++;
    assert_int_equal(s.epoch, c->epoch);
    expect_set(m, c, &s);
    dirty_log_unlock(m->log);
}

static void step_ack(struct model *m, struct consumer *c)
{
    if (!c->active) {
        assert_int_equal(dirty_log_ack(m->log, c->name, 1), -ENOENT);
        return;
    }
    assert_int_equal(dirty_log_ack(m->log, c->name, c->epoch + 1), -EINVAL);
    assert_int_equal(dirty_log_ack(m->log, c->name, c->epoch - 1), -EINVAL);
    assert_int_equal(dirty_log_ack(m->log, c->name, c->epoch), c->epoch ? 0 : -EINVAL);
    if (c->acked)
        return;
    for (pfn_t p = 0; (p = bitmap_next_set(c->staged_set, m->pages, p)) < m->pages; p++)
        c->copy[p] = c->staged[p];
    memcpy(c->due, c->written, m->words * 8);
    c->acked = true;
}

static void check_consumers(struct model *m)
{
    struct dirty_consumer_info infos[CONSUMERS];
    size_t n = dirty_log_consumers(m->log, infos, ARRAY_SIZE(infos)), active = 0;

    for (int i = 0; i < CONSUMERS; i++)
        active += m->consumers[i].active;
    assert_int_equal(n, active);
    for (size_t i = 0; i < n; i++) {
        const struct consumer *c = &m->consumers[infos[i].name[9] - '0'];

        assert_true(c->active);
        assert_int_equal(infos[i].epoch, c->epoch);
        assert_int_equal(infos[i].unacknowledged, c->acked ? 0 : bitmap_count(c->staged_set, m->words));
        assert_true(m->kvm.overrun || infos[i].pending <= bitmap_count(c->due, m->words));
        assert_false(infos[i].lost);
    }
}

static void step(struct model *m)
{
    struct consumer *c = &m->consumers[rng_below(&m->rng, CONSUMERS)];

    switch (rng_below(&m->rng, 16)) {
    case 0:
    case 1:
        step_start(m, c);
        break;
    case 2:
        step_stop(m, c);
        break;
    case 3:
    case 4:
    case 5:
        step_snapshot(m, c);
        break;
    case 6:
    case 7:
        step_ack(m, c);
        break;
    case 8:
        step_peek(m, c);
        break;
    case 9:
        if (m->setup->backend == DIRTY_RING)
            dirty_log_ring_left(m->log, rng_below(&m->rng, m->setup->vcpus));
        check_consumers(m);
        break;
    case 10:
        /* What most consumers do. */
        if (step_snapshot(m, c))
            step_ack(m, c);
        break;
    case 11:
    case 12:
        step_early(m);
        break;
    default:
        step_writes(m);
    }
}

static void expect_equal_copies(struct model *m)
{
    set_failures(m, 0);
    for (int i = 0; i < CONSUMERS; i++) {
        struct consumer *c = &m->consumers[i];

        if (!c->active)
            continue;
        assert_true(step_snapshot(m, c));
        step_ack(m, c);
        for (pfn_t p = 0; p < m->pages; p++) {
            if (c->copy[p] != fake_content(&m->kvm, p))
                fail_msg("%s, %s: page %" PRIu64 " was lost", m->setup->name, c->name, p);
        }
    }
}

/* How often the log was looked at early. */
static uint64_t run_model(const struct setup *setup, uint64_t seed)
{
    static struct model m;

    model_init(&m, setup, seed);
    for (int i = 0; i < setup->steps / STEPS_DIVISOR; i++) {
        /* Now and then everything works, and now and then nothing does. */
        if (i % 50 == 0 && setup->fail)
            set_failures(&m, rng_chance(&m.rng, 25) ? 0 : rng_chance(&m.rng, 5) ? 100 : setup->fail);
        m.kvm.reset_at_most = rng_chance(&m.rng, 20) ? 1 + (unsigned int)rng_below(&m.rng, 5) : 0;
        step(&m);
    }
    expect_equal_copies(&m);
    assert_int_equal(m.kvm.misuse, 0);
    assert_true(setup->bursts ? m.kvm.overrun || STEPS_DIVISOR > 1 : !m.kvm.overrun);
    print_message("# %s: %" PRIu64 " snapshots, %" PRIu64 " refused, %" PRIu64 " peeks, %" PRIu64 " starts, %" PRIu64
                  " rings full, %" PRIu64 " early looks, %" PRIu64 " blind\n",
                  setup->name, m.snapshots, m.refused, m.peeks, m.starts, m.full, m.looks, m.blind);
    model_destroy(&m);
    return m.looks;
}

static void test_model(void **state)
{
    uint64_t seed = rng_test_seed("model"), looks = 0;

    for (size_t i = 0; i < ARRAY_SIZE(setups); i++) {
        struct setup setup = setups[i];

        looks += run_model(&setup, seed + i);
    }
    assert_true(looks > 0);
}

/* -- everything at once ------------------------------------------------------- */

#define RACE_PAGES 8192 /* the upper half is the VMM's */
#define RACE_WRITERS 3  /* two vCPUs and the VMM */
#define RACE_CONSUMERS 2
#define RACE_ROUNDS 400

/* cmocka's assertions are for its own thread. */
#define MUST(condition)                                                                    \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

struct race {
    struct mem *mem;
    struct fake_kvm kvm;
    struct dirty_log *log;
    uint64_t seed;
    pthread_barrier_t barrier;    /* consumers and the main thread */
    unsigned int writers, consumers; /* atomic */
    bool stop;                    /* atomic: for the writers */
    bool bursts;
    uint64_t said[RACE_PAGES];    /* atomic: what the VMM had written and marked */
    uint64_t snapshots, restarts; /* atomic */
};

static void *race_writer(void *arg)
{
    struct race *race = arg;
    unsigned int me = __atomic_fetch_add(&race->writers, 1, __ATOMIC_RELAXED);
    struct rng rng = rng_seeded(race->seed + me);
    uint64_t written[RACE_PAGES] = {0};

    while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
        pfn_t page = rng_chance(&rng, 50) ? rng_below(&rng, 4) : rng_below(&rng, RACE_PAGES / 2);

        if (me == RACE_WRITERS - 1) {
            page += RACE_PAGES / 2;
            fake_vmm_write(&race->kvm, page);
            __atomic_store_n(&race->said[page], ++written[page], __ATOMIC_RELEASE);
            continue;
        }
        /* Up to several times what a ring holds. */
        if (race->bursts && rng_chance(&rng, 1) && rng_chance(&rng, 10))
            for (uint64_t n = rng_below(&rng, 1000); n > 0; n--)
                fake_guest_burst(&race->kvm, me, rng_below(&rng, RACE_PAGES / 2));
        while (!fake_guest_write(&race->kvm, me, page))
            MUST(dirty_log_ring_full(race->log, me) == 0);
    }
    return NULL;
}

/* A snapshot into `staged`; where it is acknowledged, into `copy`, which then has all that was there `before`. */
static void race_round(struct race *race, const char *name, uint64_t *copy, bool ack)
{
    static __thread uint64_t before[RACE_PAGES], staged[RACE_PAGES], set[RACE_PAGES / 64];
    struct dirty_snapshot s;

    for (pfn_t p = 0; p < RACE_PAGES; p++)
        before[p] = p < RACE_PAGES / 2 ? fake_content(&race->kvm, p) : __atomic_load_n(&race->said[p], __ATOMIC_ACQUIRE);
    MUST(dirty_log_snapshot_lock(race->log, name, false, &s) == 0);
    memcpy(set, s.bitmap, sizeof(set));
    dirty_log_unlock(race->log);
    for (pfn_t p = 0; (p = bitmap_next_set(set, RACE_PAGES, p)) < RACE_PAGES; p++)
        staged[p] = fake_content(&race->kvm, p);
    __atomic_fetch_add(&race->snapshots, 1, __ATOMIC_RELAXED);
    if (!ack)
        return;
    MUST(dirty_log_ack(race->log, name, s.epoch) == 0);
    for (pfn_t p = 0; (p = bitmap_next_set(set, RACE_PAGES, p)) < RACE_PAGES; p++)
        copy[p] = staged[p];
    for (pfn_t p = 0; p < RACE_PAGES; p++)
        MUST(copy[p] >= before[p]);
}

static void *race_consumer(void *arg)
{
    struct race *race = arg;
    unsigned int me = __atomic_fetch_add(&race->consumers, 1, __ATOMIC_RELAXED);
    struct rng rng = rng_seeded(race->seed + RACE_WRITERS + me);
    uint64_t *copy = calloc(RACE_PAGES, sizeof(*copy));
    bool restart = me % 2;
    char name[16];

    MUST(copy);
    snprintf(name, sizeof(name), "racer-%u", me);
    MUST(dirty_log_start(race->log, name, DIRTY_START_ALL) == 0);
    for (int i = 0; i < RACE_ROUNDS || (race->bursts && !fake_overrun(&race->kvm)); i++) {
        race_round(race, name, copy, rng_chance(&rng, 70));
        if (restart && rng_chance(&rng, 10)) {
            MUST(dirty_log_stop(race->log, name) == 0);
            MUST(dirty_log_start(race->log, name, DIRTY_START_CHANGES) == 0);
            for (pfn_t p = 0; p < RACE_PAGES; p++)
                copy[p] = fake_content(&race->kvm, p);
            __atomic_fetch_add(&race->restarts, 1, __ATOMIC_RELAXED);
        }
    }
    pthread_barrier_wait(&race->barrier);
    /* The writers end here. */
    pthread_barrier_wait(&race->barrier);
    race_round(race, name, copy, true);
    for (pfn_t p = 0; p < RACE_PAGES; p++)
        MUST(copy[p] == fake_content(&race->kvm, p));
    MUST(dirty_log_stop(race->log, name) == 0);
    free(copy);
    return NULL;
}

/* Let the writers come round their rings while entries are taken back. */
static void race_pause(void *arg)
{
    struct fake_kvm *kvm = arg;

    if (rng_chance(&kvm->rng, 1))
        sched_yield();
}

static void run_race(enum dirty_backend backend, bool initially_set, bool bursts, uint64_t seed)
{
    static struct race race;
    struct mem_config config = {.size = RACE_PAGES * GUEST_PAGE_SIZE};
    struct dirty_config dirty = {.backend = backend, .initially_set = initially_set, .ops = &fake_ops, .opaque = &race.kvm};
    pthread_t threads[RACE_WRITERS + RACE_CONSUMERS];

    memset(&race, 0, sizeof(race));
    race.seed = seed;
    race.bursts = bursts;
    assert_int_equal(mem_new(&config, &race.mem), 0);
    race.kvm = (struct fake_kvm){.mem = race.mem, .backend = backend, .initially_set = initially_set, .vcpus = 2,
                                 .ring_entries = 256, .reset_at_most = 100, .taking = race_pause, .taking_arg = &race.kvm};
    fake_init(&race.kvm, seed);
    assert_int_equal(dirty_log_new(race.mem, &dirty, &race.log), 0);
    fake_add_rings(&race.kvm, race.log);
    pthread_barrier_init(&race.barrier, NULL, RACE_CONSUMERS + 1);
    for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, i < RACE_WRITERS ? race_writer : race_consumer, &race), 0);
    pthread_barrier_wait(&race.barrier);
    __atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
    for (size_t i = 0; i < RACE_WRITERS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_wait(&race.barrier);
    for (size_t i = RACE_WRITERS; i < ARRAY_SIZE(threads); i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&race.barrier);
    assert_false(fake_logging(&race.kvm));
    assert_int_equal(race.kvm.misuse, 0);
    assert_int_equal(race.kvm.overrun, bursts);
    print_message("# %s: %" PRIu64 " snapshots, %" PRIu64 " restarts\n",
                  bursts ? "overrun ring" : backend == DIRTY_RING ? "ring" : "bitmap", race.snapshots, race.restarts);
    dirty_log_free(race.log);
    fake_destroy(&race.kvm);
    mem_free(race.mem);
}

static void test_threads(void **state)
{
    uint64_t seed = rng_test_seed("threads");

    run_race(DIRTY_BITMAP, false, false, seed);
    run_race(DIRTY_BITMAP, true, false, seed + 10);
    run_race(DIRTY_RING, false, false, seed + 20);
    run_race(DIRTY_RING, false, true, seed + 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_threads),
    };

    log_init("test-dirty-model", NULL);
    return cmocka_run_group_tests_name("dirty-model", tests, NULL, NULL);
}
