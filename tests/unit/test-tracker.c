/*
 * The tracker over a model guest: address spaces come and go and edit their tables in a thread of their own, while ticks go on.
 * Whenever the guest stands still the mirror must agree with a fresh walk, whatever the source of changes, and right after it was
 * changed. Time and CPU time are what the test says.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "fake-kvm.h"
#include "mmu/census.h"
#include "mmu/precise.h"
#include "mmu/query.h"
#include "mmu/tracker.h"
#include "rand.h"

#define RAM (16 * MiB)
#define FRAMES (RAM / GUEST_PAGE_SIZE)
#define TABLE_FRAMES 2500u /* of them may be tables; the rest is data */
#define SPACES 40u
#define KERNEL_ROOT 1u
#define ENTRY_P UINT64_C(1)
#define ENTRY_USER UINT64_C(0x67) /* P W U A D */
#define TICK_NS (60 * NSEC_PER_MSEC)
#define NO_FRAME 0u

enum heard_by { BY_REREAD, BY_BITMAP, BY_RING, BY_FAKE_UFFD, BY_UFFD, BY_WALK, BY_COUNT };

static const char *const names[BY_COUNT] = {
    [BY_REREAD] = "re-read",        [BY_BITMAP] = "dirty-log", [BY_RING] = "dirty-log",
    [BY_FAKE_UFFD] = "userfaultfd", [BY_UFFD] = "userfaultfd", [BY_WALK] = "walk",
};

/* -- userfaultfd in a model ---------------------------------------------------------------------------------------------- */

struct fake_uffd {
    struct mmu_source source;
    pthread_mutex_t lock;
    bool protected[FRAMES], watched[FRAMES], waiting[FRAMES];
    uint64_t written_ns[FRAMES];
    uint64_t last_before;
    struct world *world;
};

struct world {
    struct mem *mem;
    struct fake_kvm kvm;
    struct dirty_log *log;
    struct fake_uffd uffd;
    struct tracker *tracker;
    enum heard_by by;
    atomic_ullong now, cpu, activity, cost;
    struct tracker_vcpu vcpu;
    uint64_t seen_now; /* root that a vCPU is seen with in kernel mode by a look at once; 0: none */
    unsigned int looks, kicks, looks_now, pressures;

    /* The guest; one edit at a time under `edit`. */
    pthread_mutex_t edit;
    pthread_t thread;
    atomic_bool end;
    struct rng rng;
    bool used[TABLE_FRAMES];
    uint32_t roots[SPACES];
    uint64_t edits;
};

static uint64_t *table_at(struct world *w, uint32_t gfn)
{
    unsigned int count;

    return (uint64_t *)(void *)(mem_slots(w->mem, &count)[0].hva + pages_to_bytes(gfn));
}

/* A store of the guest: what is protected is heard of before it, what is logged right after it at the latest. */
static void store(struct world *w, uint32_t gfn, unsigned int entry, uint64_t value)
{
    struct fake_uffd *u = &w->uffd;
    uint64_t *at = &table_at(w, gfn)[entry];

    pthread_mutex_lock(&u->lock);
    if (u->protected[gfn]) {
        u->protected[gfn] = false;
        u->waiting[gfn] = true;
        u->written_ns[gfn] = w->now;
    }
    pthread_mutex_unlock(&u->lock);
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
    while (!fake_guest_write(&w->kvm, 0, gfn))
        assert_int_equal(dirty_log_ring_full(w->log, 0), 0);
}

static struct fake_uffd *uffd_of(struct mmu_source *s)
{
    return container_of(s, struct fake_uffd, source);
}

static int uffd_start(struct mmu_source *s)
{
    return 0;
}

static void uffd_stop(struct mmu_source *s)
{
    struct fake_uffd *u = uffd_of(s);

    pthread_mutex_lock(&u->lock);
    memset(u->protected, 0, sizeof(u->protected));
    memset(u->watched, 0, sizeof(u->watched));
    memset(u->waiting, 0, sizeof(u->waiting));
    pthread_mutex_unlock(&u->lock);
}

static void uffd_watch(struct mmu_source *s, gfn_t gfn, bool on)
{
    struct fake_uffd *u = uffd_of(s);

    pthread_mutex_lock(&u->lock);
    u->watched[gfn] = u->protected[gfn] = on;
    u->waiting[gfn] = false;
    pthread_mutex_unlock(&u->lock);
}

static int uffd_collect(struct mmu_source *s, struct mirror *m, uint64_t before_ns, struct gfn_list *changed)
{
    struct fake_uffd *u = uffd_of(s);

    u->last_before = before_ns;
    for (uint32_t gfn = 0; gfn < FRAMES; gfn++) {
        bool written = false;

        pthread_mutex_lock(&u->lock);
        if (u->waiting[gfn] && u->watched[gfn] && u->written_ns[gfn] < before_ns) {
            u->waiting[gfn] = false;
            u->protected[gfn] = written = true;
        }
        pthread_mutex_unlock(&u->lock);
        if (written)
            assert_int_equal(gfn_list_add(changed, gfn), 0);
    }
    return 0;
}

static uint64_t uffd_events(struct mmu_source *s)
{
    return 0;
}

static void uffd_free(struct mmu_source *s)
{
    /* Part of the world. */
}

static const struct mmu_source_ops uffd_ops = {
    .name = "userfaultfd",
    .start = uffd_start,
    .stop = uffd_stop,
    .watch = uffd_watch,
    .collect = uffd_collect,
    .events = uffd_events,
    .free = uffd_free,
};

static struct fake_uffd *next_uffd;

static int make_fake_uffd(struct mem *mem, struct mmu_source **ret)
{
    *ret = &next_uffd->source;
    return 0;
}

/* -- the guest ----------------------------------------------------------------------------------------------------------- */

static uint32_t frame_take(struct world *w)
{
    uint32_t from = (uint32_t)rng_below(&w->rng, TABLE_FRAMES);

    for (uint32_t i = 0; i < TABLE_FRAMES; i++) {
        uint32_t gfn = (from + i) % TABLE_FRAMES;

        if (gfn < 8 || w->used[gfn])
            continue;
        w->used[gfn] = true;
        for (unsigned int e = 0; e < 512; e++)
            if (table_at(w, gfn)[e])
                store(w, gfn, e, 0);
        return gfn;
    }
    return NO_FRAME;
}

static uint32_t child_of(struct world *w, uint32_t table, unsigned int entry, bool make)
{
    uint64_t v = table_at(w, table)[entry];
    uint32_t child;

    if (v & ENTRY_P)
        return (uint32_t)(v >> 12);
    child = make ? frame_take(w) : NO_FRAME;
    if (child)
        store(w, table, entry, gfn_to_gpa(child) | ENTRY_USER);
    return child;
}

/* Entries of few upper tables, so that tables fill and empty. */
static void edit_entry(struct world *w, uint32_t root)
{
    unsigned int at[3] = {(unsigned int)rng_below(&w->rng, 2), (unsigned int)rng_below(&w->rng, 3),
                          (unsigned int)rng_below(&w->rng, 4)};
    bool map = rng_chance(&w->rng, 70);
    uint32_t table = root;

    for (unsigned int i = 0; i < 3 && table; i++)
        table = child_of(w, table, at[i], map);
    if (table)
        store(w, table, (unsigned int)rng_below(&w->rng, 64),
              map ? gfn_to_gpa(TABLE_FRAMES + rng_below(&w->rng, FRAMES - TABLE_FRAMES)) | ENTRY_USER : 0);
}

/* Free what is below an entry, without clearing it: as a kernel does, the frame is somebody else's next. */
static void free_below(struct world *w, uint32_t table, unsigned int level)
{
    for (unsigned int e = 0; e < (level == 4 ? 256 : 512); e++) {
        uint64_t v = table_at(w, table)[e];

        if (!(v & ENTRY_P))
            continue;
        if (level > 1)
            free_below(w, (uint32_t)(v >> 12), level - 1);
        if (level == 4)
            store(w, table, e, 0);
    }
    w->used[table] = false;
}

static void space_begin(struct world *w, uint32_t *root)
{
    *root = frame_take(w);
    for (unsigned int e = 256; e < 512 && *root; e++)
        if (table_at(w, KERNEL_ROOT)[e])
            store(w, *root, e, table_at(w, KERNEL_ROOT)[e]);
}

/* A subtree goes, or moves to another place, or a whole table is cleared. */
static void edit_subtree(struct world *w, uint32_t root)
{
    unsigned int from = (unsigned int)rng_below(&w->rng, 2), to = 2 + (unsigned int)rng_below(&w->rng, 2);
    uint64_t v = table_at(w, root)[from];

    if (!(v & ENTRY_P) || table_at(w, root)[to])
        return;
    store(w, root, to, v);
    store(w, root, from, 0);
}

static void guest_edit(struct world *w)
{
    uint32_t *root = &w->roots[rng_below(&w->rng, SPACES)];

    w->edits++;
    if (!*root) {
        space_begin(w, root);
    } else if (rng_chance(&w->rng, 1)) {
        free_below(w, *root, 4);
        *root = NO_FRAME;
    } else if (rng_chance(&w->rng, 2)) {
        edit_subtree(w, *root);
    } else {
        edit_entry(w, *root);
    }
    w->activity += NSEC_PER_MSEC;
}

static void *guest_thread(void *arg)
{
    struct world *w = arg;

    while (!w->end) {
        pthread_mutex_lock(&w->edit);
        for (unsigned int i = 0; i < 32; i++)
            guest_edit(w);
        pthread_mutex_unlock(&w->edit);
        sched_yield();
    }
    return NULL;
}

static void guest_stop(struct world *w)
{
    pthread_mutex_lock(&w->edit);
    tracker_run(w->tracker, false);
}

static void guest_go(struct world *w)
{
    tracker_run(w->tracker, true);
    pthread_mutex_unlock(&w->edit);
}

/* -- the world ----------------------------------------------------------------------------------------------------------- */

static uint64_t op_now(void *opaque)
{
    return ((struct world *)opaque)->now;
}

static uint64_t op_cpu_now(void *opaque)
{
    struct world *w = opaque;

    return atomic_fetch_add(&w->cpu, w->cost) + w->cost;
}

static uint64_t op_activity(void *opaque)
{
    return ((struct world *)opaque)->activity;
}

static void op_look(void *opaque, bool kick)
{
    struct world *w = opaque;

    w->looks++;
    w->kicks += kick;
}

static bool op_vcpu(void *opaque, unsigned int index, struct tracker_vcpu *ret)
{
    *ret = ((struct world *)opaque)->vcpu;
    return index == 0;
}

static void vcpu_has(struct world *w, uint64_t cr3, bool kernel)
{
    /* Long mode with NX. */
    w->vcpu = (struct tracker_vcpu){
        .cr0 = 0x80000001, .cr3 = cr3, .cr4 = 0x20, .efer = 0xd00, .kernel = kernel, .seq = w->vcpu.seq + 1};
}

static void op_look_now(void *opaque)
{
    struct world *w = opaque;

    w->looks_now++;
    if (w->seen_now)
        vcpu_has(w, w->seen_now, true);
}

static void op_pressure(void *opaque, const struct tracker_pressure *pressure)
{
    struct world *w = opaque;

    w->pressures++;
    assert_int_equal(pressure->now_ns, w->now);
}

static const struct tracker_ops world_ops = {
    .activity = op_activity,
    .look = op_look,
    .look_now = op_look_now,
    .vcpu = op_vcpu,
    .pressure = op_pressure,
    .now = op_now,
    .cpu_now = op_cpu_now,
};

static void world_init(struct world *w, enum heard_by by, const struct tracker_settings *settings, uint64_t seed)
{
    struct mem_config mem = {.size = RAM};
    struct dirty_config log = {.backend = by == BY_RING ? DIRTY_RING : DIRTY_BITMAP, .ops = &fake_ops, .opaque = &w->kvm};
    struct tracker_config config = {
        .cpu = {.maxphyaddr = 40, .gbpages = true},
        .ops = &world_ops,
        .opaque = w,
        .make_precise = by == BY_UFFD ? source_precise_new : make_fake_uffd,
        .no_thread = true,
    };

    memset(w, 0, sizeof(*w));
    w->by = by;
    w->rng = rng_seeded(seed);
    w->now = NSEC_PER_SEC;
    pthread_mutex_init(&w->edit, NULL);
    pthread_mutex_init(&w->uffd.lock, NULL);
    w->uffd.source.ops = &uffd_ops;
    next_uffd = &w->uffd;
    assert_int_equal(mem_new(&mem, &w->mem), 0);
    w->kvm = (struct fake_kvm){.mem = w->mem, .backend = log.backend, .vcpus = 1, .ring_entries = 256};
    fake_init(&w->kvm, seed);
    assert_int_equal(dirty_log_new(w->mem, &log, &w->log), 0);
    fake_add_rings(&w->kvm, w->log);
    config.mem = w->mem;
    config.log = w->log;
    tracker_default_settings(&config.settings);
    if (settings)
        config.settings = *settings;
    assert_int_equal(tracker_new(&config, &w->tracker), 0);
    /* The kernel: its half leads to a table with one large page. */
    store(w, KERNEL_ROOT, 511, gfn_to_gpa(2) | 0x63);
    store(w, KERNEL_ROOT, 300, gfn_to_gpa(2) | 0x63);
    store(w, 2, 511, gfn_to_gpa(3) | 0x63);
    store(w, 3, 0, 0x1e3);
    vcpu_has(w, gfn_to_gpa(KERNEL_ROOT), true);
}

static void world_clear(struct world *w)
{
    tracker_free(w->tracker);
    dirty_log_free(w->log);
    fake_destroy(&w->kvm);
    mem_free(w->mem);
    pthread_mutex_destroy(&w->edit);
    pthread_mutex_destroy(&w->uffd.lock);
}

static void use(struct world *w, enum heard_by by)
{
    static const enum tracker_mode modes[] = {
        [BY_REREAD] = TRACKER_LIVE,       [BY_BITMAP] = TRACKER_LIVE,  [BY_RING] = TRACKER_LIVE,
        [BY_FAKE_UFFD] = TRACKER_PRECISE, [BY_UFFD] = TRACKER_PRECISE, [BY_WALK] = TRACKER_ON_DEMAND,
    };
    struct tracker_settings s;
    bool log = by == BY_BITMAP || by == BY_RING;

    if (dirty_log_logging(w->log) && !log)
        assert_int_equal(dirty_log_stop(w->log, "test"), 0);
    if (!dirty_log_logging(w->log) && log)
        assert_int_equal(dirty_log_start(w->log, "test", DIRTY_START_CHANGES), 0);
    tracker_settings(w->tracker, &s);
    s.mode = modes[by];
    assert_int_equal(tracker_set(w->tracker, &s), 0);
}

static void tick(struct world *w)
{
    w->now += TICK_NS;
    tracker_tick(w->tracker);
}

static uint32_t verify_zero(struct world *w, const char *where, unsigned int round)
{
    struct mirror_verdict v;

    assert_int_equal(tracker_verify(w->tracker, &v), 0);
    if (v.missing || v.extra || v.mismatched || v.broken_links)
        fail_msg("%s, round %u: missing %llu, extra %llu, mismatched %llu, broken links %llu", where, round,
                 (unsigned long long)v.missing, (unsigned long long)v.extra, (unsigned long long)v.mismatched,
                 (unsigned long long)v.broken_links);
    return v.roots;
}

static bool have_uffd(void)
{
    int fd = precise_open();

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* -- the mirror is right ------------------------------------------------------------------------------------------------- */

static unsigned int live_spaces(const struct world *w)
{
    unsigned int n = 0;

    for (unsigned int i = 0; i < SPACES; i++)
        for (unsigned int e = 0; w->roots[i] && e < 256; e++)
            if (table_at((struct world *)(uintptr_t)w, w->roots[i])[e]) {
                n++;
                break;
            }
    return n;
}

static void run_source(enum heard_by by)
{
    uint64_t seed = rng_test_seed(names[by]);
    static struct world w;
    struct tracker_info info;

    world_init(&w, by, NULL, seed);
    use(&w, by);
    pthread_mutex_lock(&w.edit);
    pthread_create(&w.thread, NULL, guest_thread, &w);
    guest_go(&w);
    for (unsigned int round = 0; round < 25; round++) {
        struct dirty_snapshot snapshot;
        uint64_t edits;

        for (unsigned int i = 0; i < 12; i++) {
            tick(&w);
            if (dirty_log_logging(w.log) && i % 5 == 3) {
                assert_int_equal(dirty_log_snapshot_lock(w.log, "test", false, &snapshot), 0);
                dirty_log_unlock(w.log);
            }
        }
        guest_stop(&w);
        edits = w.edits;
        /* Half of the points right after a tick, half with what was written since still unheard. */
        for (unsigned int i = 0; i < (round % 2 ? 40u : 0u); i++)
            guest_edit(&w);
        w.now += NSEC_PER_SEC;
        assert_true(verify_zero(&w, names[by], round) > live_spaces(&w));
        assert_true(w.edits >= edits);
        guest_go(&w);
    }
    w.end = true;
    pthread_join(w.thread, NULL);
    tracker_info(w.tracker, &info);
    assert_string_equal(info.source, names[by]);
    assert_true(info.stats.mirror.roots_added > SPACES / 2);
    if (by != BY_WALK)
        assert_true(info.stats.mirror.tables_changed > 100);
    world_clear(&w);
}

static void test_reread(void **state)
{
    run_source(BY_REREAD);
}

static void test_dirty_bitmap(void **state)
{
    run_source(BY_BITMAP);
}

static void test_dirty_ring(void **state)
{
    run_source(BY_RING);
}

static void test_fake_uffd(void **state)
{
    run_source(BY_FAKE_UFFD);
}

static void test_uffd(void **state)
{
    if (!have_uffd())
        skip();
    run_source(BY_UFFD);
}

static void test_on_demand(void **state)
{
    run_source(BY_WALK);
}

/* From any source to any other, while the guest edits; compared right after, without a tick in between, and after some. */
static void test_switching(void **state)
{
    enum heard_by sources[] = {BY_REREAD, BY_BITMAP, BY_FAKE_UFFD, BY_WALK};
    uint64_t seed = rng_test_seed("switching");
    static struct world w;

    world_init(&w, BY_BITMAP, NULL, seed);
    pthread_mutex_lock(&w.edit);
    pthread_create(&w.thread, NULL, guest_thread, &w);
    guest_go(&w);
    for (unsigned int i = 0; i < 48; i++) {
        enum heard_by to = sources[(i + i / 4) % 4];

        use(&w, to);
        guest_stop(&w);
        verify_zero(&w, "right after switching", i);
        guest_go(&w);
        for (unsigned int n = 0; n < i % 5; n++)
            tick(&w);
        guest_stop(&w);
        verify_zero(&w, names[to], i);
        guest_go(&w);
    }
    w.end = true;
    pthread_join(w.thread, NULL);
    world_clear(&w);
}

/* Would the comparison notice? A source that misses a write. */
static void test_missed_write_shows(void **state)
{
    static struct world w;
    struct mirror_verdict v;

    world_init(&w, BY_FAKE_UFFD, NULL, 1);
    for (unsigned int i = 0; i < 2000; i++)
        guest_edit(&w);
    use(&w, BY_FAKE_UFFD);
    verify_zero(&w, "before", 0);
    w.activity += NSEC_PER_MSEC;
    table_at(&w, 3)[7] = 0x2001e3;
    assert_int_equal(tracker_verify(w.tracker, &v), 0);
    assert_int_equal(v.missing, 1);
    world_clear(&w);
}

/* A table is protected again a tick after it was written, not before: else a vCPU that writes it makes no way. */
static void test_reprotect_age(void **state)
{
    static struct world w;
    uint64_t before;

    world_init(&w, BY_FAKE_UFFD, NULL, 1);
    use(&w, BY_FAKE_UFFD);
    tracker_run(w.tracker, true);
    w.activity++;
    tick(&w);
    before = w.now;
    w.activity++;
    tick(&w);
    assert_int_equal(w.uffd.last_before, before);
    assert_true(w.uffd.protected[3]);
    store(&w, 3, 9, 0x4001e3);
    assert_false(w.uffd.protected[3]);
    w.activity++;
    tick(&w);
    /* Written in the time of the tick before: not yet. */
    assert_false(w.uffd.protected[3]);
    w.activity++;
    tick(&w);
    assert_true(w.uffd.protected[3]);
    tracker_run(w.tracker, false);
    /* While the guest stands still nobody can be hurt. */
    store(&w, 3, 9, 0);
    w.activity++;
    verify_zero(&w, "paused", 0);
    assert_int_equal(w.uffd.last_before, UINT64_MAX);
    assert_true(w.uffd.protected[3]);
    world_clear(&w);
}

/* -- when ticks are due -------------------------------------------------------------------------------------------------- */

static uint64_t interval(struct world *w)
{
    struct tracker_info info;

    tracker_info(w->tracker, &info);
    return info.interval_ns;
}

static uint64_t tables_read(struct world *w)
{
    struct tracker_info info;

    tracker_info(w->tracker, &info);
    return info.stats.mirror.tables_read;
}

static void test_budget(void **state)
{
    struct tracker_settings s;
    static struct world w;

    world_init(&w, BY_REREAD, NULL, 1);
    tracker_run(w.tracker, true);
    w.activity += NSEC_PER_SEC;
    tick(&w);
    assert_in_range(interval(&w), 50 * NSEC_PER_MSEC, 51 * NSEC_PER_MSEC);
    /* cpu_now is asked twice a tick: it costs 8 ms, so at 1 percent of a CPU the next is due in 800. */
    w.cost = 8 * NSEC_PER_MSEC;
    w.activity += NSEC_PER_SEC;
    tick(&w);
    assert_int_equal(interval(&w), 800 * NSEC_PER_MSEC);
    tracker_settings(w.tracker, &s);
    s.cpu_budget = 4;
    assert_int_equal(tracker_set(w.tracker, &s), 0);
    w.activity += NSEC_PER_SEC;
    tick(&w);
    assert_int_equal(interval(&w), 200 * NSEC_PER_MSEC);
    /* A chosen interval keeps to the budget as well. */
    s.interval_us = 10000;
    assert_int_equal(tracker_set(w.tracker, &s), 0);
    w.activity += NSEC_PER_SEC;
    tick(&w);
    assert_int_equal(interval(&w), 200 * NSEC_PER_MSEC);
    w.cost = 0;
    w.activity += NSEC_PER_SEC;
    tick(&w);
    assert_int_equal(interval(&w), 10 * NSEC_PER_MSEC);
    assert_true(w.pressures == 5);
    world_clear(&w);
}

static void test_idle(void **state)
{
    static struct world w;
    uint64_t read, last = 0;
    struct mirror *m;

    world_init(&w, BY_REREAD, NULL, 1);
    tracker_run(w.tracker, true);
    w.activity += NSEC_PER_SEC;
    tick(&w);
    read = tables_read(&w);
    /* vCPUs do not run: nothing is read, and ticks become rare. */
    for (unsigned int i = 0; i < 20; i++) {
        w.now += interval(&w);
        assert_true(tracker_tick(w.tracker) > w.now);
        assert_true(interval(&w) >= last);
        last = interval(&w);
    }
    assert_int_equal(last, 60 * NSEC_PER_SEC);
    assert_int_equal(tables_read(&w), read);
    /* Somebody asks: still nothing to read. They ran: a look is taken for the question, long before the next tick. */
    assert_int_equal(tracker_lock(w.tracker, TRACKER_RECENT, &m, NULL), 0);
    tracker_unlock(w.tracker);
    assert_int_equal(tables_read(&w), read);
    w.now += NSEC_PER_SEC;
    w.activity += NSEC_PER_MSEC;
    assert_int_equal(tracker_lock(w.tracker, TRACKER_RECENT, &m, &last), 0);
    tracker_unlock(w.tracker);
    assert_int_equal(last, 0);
    assert_true(tables_read(&w) > read);
    /* Almost idle: read, but rarely. */
    for (unsigned int i = 0; i < 12; i++) {
        w.now += interval(&w);
        w.activity += NSEC_PER_USEC;
        tracker_tick(w.tracker);
    }
    assert_int_equal(interval(&w), 2 * NSEC_PER_SEC);
    w.now += interval(&w);
    w.activity += NSEC_PER_SEC;
    tracker_tick(w.tracker);
    assert_in_range(interval(&w), 50 * NSEC_PER_MSEC, 51 * NSEC_PER_MSEC);
    /* Paused: no ticks at all. */
    tracker_run(w.tracker, false);
    assert_true(tracker_tick(w.tracker) == UINT64_MAX);
    assert_int_equal(interval(&w), 0);
    world_clear(&w);
}

/* How old an answer is follows from the interval and not from the CPU budget; and attribution is of now. */
static void test_age(void **state)
{
    static struct world w;
    uint64_t age, read;
    struct mirror *m;

    world_init(&w, BY_REREAD, NULL, 1);
    tracker_run(w.tracker, true);
    /* Ticks of 600 ms of CPU: at 1 percent one a minute. */
    w.cost = 600 * NSEC_PER_MSEC;
    w.activity += NSEC_PER_SEC;
    tick(&w);
    assert_int_equal(interval(&w), 60 * NSEC_PER_SEC);
    read = tables_read(&w);
    w.now += 90 * NSEC_PER_MSEC;
    w.activity += NSEC_PER_MSEC;
    assert_int_equal(tracker_lock(w.tracker, TRACKER_RECENT, &m, &age), 0);
    tracker_unlock(w.tracker);
    assert_int_equal(age, 90 * NSEC_PER_MSEC);
    assert_int_equal(tables_read(&w), read);
    w.now += 30 * NSEC_PER_MSEC;
    assert_int_equal(tracker_lock(w.tracker, TRACKER_RECENT, &m, &age), 0);
    tracker_unlock(w.tracker);
    assert_int_equal(age, 0);
    assert_true(tables_read(&w) > read);
    /* A page that has just been mapped is its space's, not the kernel's. */
    read = tables_read(&w);
    w.now++;
    w.activity++;
    assert_int_equal(tracker_lock(w.tracker, TRACKER_NOW, &m, &age), 0);
    tracker_unlock(w.tracker);
    assert_int_equal(age, 0);
    assert_true(tables_read(&w) > read);
    /* Nobody ran: nothing to read. */
    read = tables_read(&w);
    w.now += NSEC_PER_SEC;
    assert_int_equal(tracker_lock(w.tracker, TRACKER_NOW, &m, &age), 0);
    tracker_unlock(w.tracker);
    assert_int_equal(age, NSEC_PER_SEC);
    assert_int_equal(tables_read(&w), read);
    /* KVM's counters do not wait for the budget, but for vCPUs that run. */
    {
        unsigned int looks = w.pressures;

        w.activity += NSEC_PER_MSEC;
        assert_in_range(tracker_pressure(w.tracker), w.now + 50 * NSEC_PER_MSEC, w.now + 51 * NSEC_PER_MSEC);
        assert_int_equal(w.pressures, looks + 1);
        assert_true(tracker_pressure(w.tracker) > w.now + 30 * NSEC_PER_SEC);
        assert_int_equal(w.pressures, looks + 1);
    }
    /* The next tick is when it was to be. */
    assert_int_equal(interval(&w), 60 * NSEC_PER_SEC);
    world_clear(&w);
}

/* -- roots --------------------------------------------------------------------------------------------------------------- */

static bool has_root(struct world *w, uint32_t gfn, enum mmu_root_kind *ret_kind)
{
    struct mirror *m;
    struct mmu_root root;
    bool found = false;

    assert_int_equal(tracker_lock(w->tracker, TRACKER_RECENT, &m, NULL), 0);
    for (uint32_t cursor = 0; mirror_root_next(m, &cursor, &root);)
        if (root.cr3 == gfn_to_gpa(gfn)) {
            found = true;
            if (ret_kind)
                *ret_kind = root.kind;
        }
    tracker_unlock(w->tracker);
    return found;
}

static void pass(struct world *w, unsigned int half_seconds)
{
    for (unsigned int i = 0; i < half_seconds; i++) {
        w->now += 510 * NSEC_PER_MSEC;
        w->activity += NSEC_PER_SEC;
        tracker_tick(w->tracker);
    }
}

static void test_roots(void **state)
{
    static struct world w;
    enum mmu_root_kind kind = MMU_ROOT_USER;
    uint32_t root, data;

    world_init(&w, BY_REREAD, NULL, 1);
    tracker_run(w.tracker, true);
    pass(&w, 1);
    assert_true(has_root(&w, KERNEL_ROOT, &kind));
    assert_int_equal(kind, MMU_ROOT_KERNEL);
    /* Found by its kernel half alone. */
    space_begin(&w, &root);
    for (unsigned int i = 0; i < 50; i++)
        edit_entry(&w, root);
    pass(&w, 1);
    assert_true(has_root(&w, root, &kind));
    assert_int_equal(kind, MMU_ROOT_USER);
    /* Emptied: it goes a second later. The kernel's own stays, seen or not. */
    free_below(&w, root, 4);
    pass(&w, 1);
    pass(&w, 4);
    assert_false(has_root(&w, root, NULL));
    assert_true(has_root(&w, KERNEL_ROOT, NULL));
    /* Its frame is data by now, with bits that look like entries: not a root any more. */
    space_begin(&w, &root);
    for (unsigned int i = 0; i < 50; i++)
        edit_entry(&w, root);
    pass(&w, 1);
    assert_true(has_root(&w, root, NULL));
    data = root;
    for (unsigned int e = 0; e < 512; e++)
        store(&w, data, e, rng_next(&w.rng));
    pass(&w, 2);
    assert_false(has_root(&w, data, NULL));
    /* A vCPU still has the root that was just freed: it stays. */
    space_begin(&w, &root);
    edit_entry(&w, root);
    vcpu_has(&w, gfn_to_gpa(root), true);
    free_below(&w, root, 4);
    pass(&w, 8);
    assert_true(has_root(&w, root, NULL));
    vcpu_has(&w, gfn_to_gpa(KERNEL_ROOT), true);
    pass(&w, 8);
    assert_false(has_root(&w, root, NULL));
    /* vCPUs are kicked to find the kernel, and then only now and then. */
    assert_true(w.kicks >= 1 && w.looks > 2 * w.kicks);
    world_clear(&w);
}

/* The user half of KPTI: another kernel half, no-execute in the kernel's view; seen as CR3 in user mode before it is known. */
static void test_kpti(void **state)
{
    static struct world w;
    enum mmu_root_kind kind = MMU_ROOT_KERNEL;
    struct mirror_census census;
    struct mirror *m;
    const uint32_t even = 1000;

    world_init(&w, BY_REREAD, NULL, 1);
    w.used[even] = w.used[even + 1] = true;
    tracker_run(w.tracker, true);
    pass(&w, 1);
    for (unsigned int e = 256; e < 512; e++)
        if (table_at(&w, KERNEL_ROOT)[e])
            store(&w, even, e, table_at(&w, KERNEL_ROOT)[e]);
    store(&w, even, 0, gfn_to_gpa(1100) | ENTRY_USER | UINT64_C(1) << 63);
    store(&w, even + 1, 0, gfn_to_gpa(1100) | ENTRY_USER);
    store(&w, even + 1, 511, gfn_to_gpa(1101) | 0x63);
    vcpu_has(&w, gfn_to_gpa(even + 1), false);
    pass(&w, 1);
    assert_true(has_root(&w, even, NULL));
    assert_true(has_root(&w, even + 1, &kind));
    assert_int_equal(kind, MMU_ROOT_KPTI);
    assert_int_equal(tracker_lock(w.tracker, TRACKER_RECENT, &m, NULL), 0);
    mirror_take_census(m, &census);
    tracker_unlock(w.tracker);
    assert_int_equal(census.kpti, 1);
    assert_int_equal(census.user, 1);
    assert_int_equal(census.kernel, 1);
    assert_int_equal(census.levels, 4);
    /* At the kernel's gates it still is what CR3 has, in kernel mode; it teaches nothing, and other roots stay. */
    vcpu_has(&w, gfn_to_gpa(even + 1), true);
    pass(&w, 3);
    assert_true(has_root(&w, KERNEL_ROOT, NULL));
    assert_true(has_root(&w, even + 1, &kind));
    assert_int_equal(kind, MMU_ROOT_KPTI);
    tracker_run(w.tracker, false);
    tracker_reset(w.tracker);
    tracker_run(w.tracker, true);
    pass(&w, 2);
    vcpu_has(&w, gfn_to_gpa(even + 1), true);
    pass(&w, 2);
    assert_true(has_root(&w, even, NULL));
    vcpu_has(&w, gfn_to_gpa(KERNEL_ROOT), true);
    pass(&w, 1);
    /* It was there some time ago; by now the process has ended, and half of its tables is still to be seen. */
    store(&w, even, 0, 0);
    store(&w, even + 1, 0, 0);
    vcpu_has(&w, gfn_to_gpa(even + 1), true);
    pass(&w, 1);
    assert_true(has_root(&w, KERNEL_ROOT, NULL));
    /* But where nothing else is seen any more, another kernel runs. */
    store(&w, 1500, 511, gfn_to_gpa(1501) | 0x63);
    for (unsigned int i = 0; i < 8; i++) {
        vcpu_has(&w, gfn_to_gpa(1500), true);
        pass(&w, 1);
    }
    assert_true(has_root(&w, 1500, NULL));
    assert_false(has_root(&w, KERNEL_ROOT, NULL));
    world_clear(&w);
}

/* 32-bit paging has no signature: roots are what vCPUs have in CR3. Without paging there are none. */
static void test_no_signature(void **state)
{
    static struct world w;

    world_init(&w, BY_REREAD, NULL, 1);
    w.vcpu = (struct tracker_vcpu){.cr0 = 1, .cr3 = gfn_to_gpa(50), .kernel = true, .seq = 1};
    tracker_run(w.tracker, true);
    pass(&w, 2);
    assert_false(has_root(&w, 50, NULL));
    w.vcpu = (struct tracker_vcpu){.cr0 = 0x80000001, .cr3 = gfn_to_gpa(50), .seq = 2};
    pass(&w, 1);
    assert_true(has_root(&w, 50, NULL));
    /* Beyond RAM, and a paging mode that makes no sense: ignored. */
    w.vcpu = (struct tracker_vcpu){.cr0 = 0x80000001, .cr3 = UINT64_C(1) << 31, .seq = 3};
    pass(&w, 1);
    assert_false(has_root(&w, 1u << 19, NULL));
    world_clear(&w);
}

static void test_reset(void **state)
{
    static struct world w;
    struct tracker_info info;

    world_init(&w, BY_REREAD, NULL, 1);
    for (unsigned int i = 0; i < 3000; i++)
        guest_edit(&w);
    tracker_run(w.tracker, true);
    pass(&w, 2);
    tracker_info(w.tracker, &info);
    assert_true(info.stats.mirror.roots > 10);
    tracker_run(w.tracker, false);
    tracker_reset(w.tracker);
    tracker_info(w.tracker, &info);
    assert_int_equal(info.stats.mirror.roots, 0);
    assert_true(info.stats.mirror.roots_added > 10);
    assert_false(info.looked);
    /* What the vCPU had before is of the old life: nothing is known until it is seen again. */
    tracker_run(w.tracker, true);
    pass(&w, 2);
    tracker_info(w.tracker, &info);
    assert_int_equal(info.stats.mirror.roots, 0);
    vcpu_has(&w, gfn_to_gpa(KERNEL_ROOT), true);
    pass(&w, 2);
    tracker_info(w.tracker, &info);
    assert_true(info.stats.mirror.roots > 10);
    world_clear(&w);
}

/*
 * State was loaded: the vCPUs were looked at after the reset, and all address spaces are found at the first question, wherever the vCPU
 * was, though it has not run yet.
 */
static void test_loaded(void **state)
{
    static struct world w;
    const uint32_t even = 1000;

    world_init(&w, BY_REREAD, NULL, 1);
    for (unsigned int i = 0; i < 3000; i++)
        guest_edit(&w);
    /* A pair, as KPTI has it. */
    for (unsigned int e = 0; e < 512; e++) {
        store(&w, even, e, e >= 256 ? table_at(&w, KERNEL_ROOT)[e] : 0);
        store(&w, even + 1, e, 0);
    }
    store(&w, even, 0, gfn_to_gpa(1100) | ENTRY_USER | UINT64_C(1) << 63);
    store(&w, even + 1, 0, gfn_to_gpa(1100) | ENTRY_USER);
    store(&w, even + 1, 511, gfn_to_gpa(1101) | 0x63);
    for (unsigned int i = 0; i < 3; i++) {
        uint32_t at = i == 0 ? KERNEL_ROOT : i == 1 ? even : even + 1;

        tracker_reset(w.tracker);
        vcpu_has(&w, gfn_to_gpa(at), at == KERNEL_ROOT);
        assert_true(has_root(&w, even, NULL));
        assert_true(has_root(&w, even + 1, NULL));
        assert_true(verify_zero(&w, "loaded", i) > 10);
    }
    world_clear(&w);
}

/* Ticks are rare, and what vCPUs were last asked for is of a time before the kernel had its page tables: a question asks anew. */
static void test_question_looks(void **state)
{
    static struct world w;
    uint32_t root;

    world_init(&w, BY_REREAD, NULL, 1);
    /* Something with an entry 511 that is not the kernel's. */
    store(&w, 1500, 511, gfn_to_gpa(1501) | 0x63);
    vcpu_has(&w, gfn_to_gpa(1500), true);
    tracker_run(w.tracker, true);
    w.cost = 600 * NSEC_PER_MSEC;
    w.activity += NSEC_PER_SEC;
    tick(&w);
    assert_int_equal(interval(&w), 60 * NSEC_PER_SEC);
    space_begin(&w, &root);
    edit_entry(&w, root);
    store(&w, root, 0, gfn_to_gpa(1100) | ENTRY_USER);
    w.seen_now = gfn_to_gpa(KERNEL_ROOT);
    w.now += 10 * NSEC_PER_SEC;
    w.activity += NSEC_PER_SEC;
    assert_true(has_root(&w, root, NULL));
    assert_int_equal(w.looks_now, 1);
    /* Not at every question. */
    w.now += NSEC_PER_SEC;
    w.activity += NSEC_PER_SEC;
    assert_true(has_root(&w, root, NULL));
    assert_int_equal(w.looks_now, 1);
    world_clear(&w);
}

/* -- limits and settings ------------------------------------------------------------------------------------------------- */

static void test_eviction(void **state)
{
    struct tracker_settings s;
    static struct world w;
    struct tracker_info info;
    struct mirror_verdict v;

    tracker_default_settings(&s);
    s.max_memory = MIRROR_MAX_MEMORY_MIN;
    world_init(&w, BY_REREAD, &s, 1);
    /* Spread over all entries: each of them takes a piece of memory of its own. */
    for (unsigned int space = 0; space < SPACES; space++) {
        space_begin(&w, &w.roots[space]);
        for (unsigned int i = 0; i < 600; i++) {
            uint32_t table = w.roots[space];

            for (unsigned int level = 0; level < 3; level++)
                table = table ? child_of(&w, table, (unsigned int)rng_below(&w.rng, 4), true) : NO_FRAME;
            if (table)
                store(&w, table, (unsigned int)rng_below(&w.rng, 512), gfn_to_gpa(TABLE_FRAMES + i) | ENTRY_USER);
        }
    }
    tracker_run(w.tracker, true);
    pass(&w, 3);
    tracker_run(w.tracker, false);
    tracker_info(w.tracker, &info);
    assert_true(info.stats.mirror.roots_evicted > 0);
    assert_true(info.stats.mirror.memory <= MIRROR_MAX_MEMORY_MIN);
    assert_true(info.stats.mirror.roots > 0);
    /* What is left agrees with itself, and has all of what it has. */
    assert_int_equal(tracker_verify(w.tracker, &v), 0);
    assert_int_equal(v.broken_links + v.mismatched + v.extra, 0);
    tracker_info(w.tracker, &info);
    assert_true(v.missing == 0 || info.stats.mirror.incomplete > 0);
    /* With more memory it begins anew, and all are there. */
    s.max_memory = 64 * MiB;
    assert_int_equal(tracker_set(w.tracker, &s), 0);
    vcpu_has(&w, gfn_to_gpa(KERNEL_ROOT), true);
    w.activity++;
    w.now += NSEC_PER_SEC;
    assert_int_equal(verify_zero(&w, "more memory", 0), live_spaces(&w) + 1);
    world_clear(&w);
}

/* A guest that fakes roots, far more than there is memory for: work and memory are bounded, and it ends. */
static void test_faked_roots(void **state)
{
    struct tracker_settings s;
    static struct world w;
    struct tracker_info info;
    struct mirror_verdict v;
    uint64_t evicted = 0;

    tracker_default_settings(&s);
    s.max_memory = MIRROR_MAX_MEMORY_MIN;
    world_init(&w, BY_REREAD, &s, 1);
    for (uint32_t gfn = 8; gfn < FRAMES; gfn++) {
        store(&w, gfn, 511, gfn_to_gpa(2) | 0x63);
        store(&w, gfn, 300, gfn_to_gpa(2) | 0x63);
        /* Each has a user half of its own, which leads to another fake. */
        for (unsigned int e = 0; e < 256; e += 16)
            store(&w, gfn, e, gfn_to_gpa(8 + (gfn * 7 + e) % (FRAMES - 8)) | ENTRY_USER);
    }
    tracker_run(w.tracker, true);
    for (unsigned int i = 0; i < 20; i++) {
        pass(&w, 1);
        tracker_info(w.tracker, &info);
        assert_true(info.stats.mirror.memory <= MIRROR_MAX_MEMORY_MIN);
        /* One scan, and making room for the tables below what it found. */
        assert_true(info.stats.mirror.roots_evicted - evicted < FRAMES);
        evicted = info.stats.mirror.roots_evicted;
    }
    assert_true(evicted > 0);
    tracker_run(w.tracker, false);
    assert_int_equal(tracker_verify(w.tracker, &v), 0);
    assert_int_equal(v.broken_links + v.mismatched, 0);
    tracker_info(w.tracker, &info);
    /* An answer from it says that it is not all. */
    assert_true(v.missing == 0 || info.stats.mirror.incomplete > 0);
    world_clear(&w);
}

static void test_settings(void **state)
{
    struct tracker_settings s, got;
    static struct world w;
    struct tracker_info info;
    struct mirror_verdict v;
    struct mirror *m;

    world_init(&w, BY_REREAD, NULL, 1);
    tracker_default_settings(&s);
    s.cpu_budget = 0;
    assert_int_equal(tracker_set(w.tracker, &s), -EINVAL);
    s.cpu_budget = 101;
    assert_int_equal(tracker_set(w.tracker, &s), -EINVAL);
    tracker_default_settings(&s);
    s.interval_us = TRACKER_INTERVAL_MIN_US - 1;
    assert_int_equal(tracker_set(w.tracker, &s), -EINVAL);
    s.interval_us = TRACKER_INTERVAL_MAX_US + 1;
    assert_int_equal(tracker_set(w.tracker, &s), -EINVAL);
    tracker_default_settings(&s);
    s.max_memory = MIRROR_MAX_MEMORY_MIN - 1;
    assert_int_equal(tracker_set(w.tracker, &s), -EINVAL);
    tracker_settings(w.tracker, &got);
    assert_int_equal(got.max_memory, MIRROR_MAX_MEMORY_DEFAULT);

    tracker_run(w.tracker, true);
    assert_int_equal(tracker_verify(w.tracker, &v), -EBUSY);
    tracker_default_settings(&s);
    s.mode = TRACKER_OFF;
    assert_int_equal(tracker_set(w.tracker, &s), 0);
    assert_true(tracker_tick(w.tracker) == UINT64_MAX);
    assert_int_equal(tracker_lock(w.tracker, TRACKER_RECENT, &m, NULL), -ENODATA);
    tracker_run(w.tracker, false);
    assert_int_equal(tracker_verify(w.tracker, &v), -ENODATA);
    tracker_info(w.tracker, &info);
    assert_string_equal(info.source, "none");
    assert_int_equal(info.stats.mirror.memory, 0);
    world_clear(&w);
}

/* A host without userfaultfd: refused, and all is as it was. A source that fails while it runs: another takes over. */
static int make_no_uffd(struct mem *mem, struct mmu_source **ret)
{
    return -EPERM;
}

static int failing_collect(struct mmu_source *s, struct mirror *m, uint64_t before_ns, struct gfn_list *changed)
{
    return -EIO;
}

static void test_precise_fails(void **state)
{
    const struct tracker_config config = {
        .cpu = {.maxphyaddr = 40},
        .ops = &world_ops,
        .make_precise = make_no_uffd,
        .no_thread = true,
    };
    struct mmu_source_ops failing = uffd_ops;
    struct tracker_config c = config;
    struct tracker_settings s;
    static struct world w;
    struct tracker_info info;
    struct tracker *t = NULL;

    world_init(&w, BY_FAKE_UFFD, NULL, 1);
    c.mem = w.mem;
    c.opaque = &w;
    tracker_default_settings(&c.settings);
    c.settings.mode = TRACKER_PRECISE;
    assert_int_equal(tracker_new(&c, &t), -ENOTSUP);
    c.settings.mode = TRACKER_LIVE;
    assert_int_equal(tracker_new(&c, &t), 0);
    s = c.settings;
    s.mode = TRACKER_PRECISE;
    assert_int_equal(tracker_set(t, &s), -ENOTSUP);
    tracker_settings(t, &s);
    assert_int_equal(s.mode, TRACKER_LIVE);
    tracker_free(t);

    use(&w, BY_FAKE_UFFD);
    tracker_run(w.tracker, true);
    pass(&w, 2);
    failing.collect = failing_collect;
    w.uffd.source.ops = &failing;
    pass(&w, 1);
    tracker_info(w.tracker, &info);
    assert_int_equal(info.settings.mode, TRACKER_LIVE);
    assert_string_equal(info.source, "re-read");
    for (unsigned int i = 0; i < 500; i++)
        guest_edit(&w);
    pass(&w, 1);
    tracker_run(w.tracker, false);
    assert_true(verify_zero(&w, "after a failure", 0) > 5);
    w.uffd.source.ops = &uffd_ops;
    world_clear(&w);
}

/* The thread: it makes ticks, stops while the guest stands still, and ends. */
static uint64_t real_now(void *opaque)
{
    return clock_ns();
}

static uint64_t more_activity(void *opaque)
{
    return atomic_fetch_add(&((struct world *)opaque)->activity, NSEC_PER_SEC) + NSEC_PER_SEC;
}

static uint64_t ticks_of(struct tracker *t)
{
    struct tracker_info info;

    tracker_info(t, &info);
    return info.stats.ticks;
}

static void test_thread(void **state)
{
    const struct tracker_ops ops = {.now = real_now, .activity = more_activity, .vcpu = op_vcpu};
    static struct world w;
    struct tracker_config c = {.cpu = {.maxphyaddr = 40}, .ops = &ops, .opaque = &w};
    struct tracker *t = NULL;
    struct mirror *m;
    uint64_t ticks;

    world_init(&w, BY_REREAD, NULL, 1);
    c.mem = w.mem;
    tracker_default_settings(&c.settings);
    c.settings.interval_us = TRACKER_INTERVAL_MIN_US;
    c.settings.cpu_budget = 100;
    assert_int_equal(tracker_new(&c, &t), 0);
    tracker_run(t, true);
    while (ticks_of(t) < 5)
        sched_yield();
    for (unsigned int i = 0; i < 200; i++) {
        guest_edit(&w);
        assert_int_equal(tracker_lock(t, TRACKER_RECENT, &m, NULL), 0);
        tracker_unlock(t);
    }
    tracker_run(t, false);
    /* A tick that had begun comes to its end. */
    tracker_reset(t);
    ticks = ticks_of(t);
    sched_yield();
    assert_int_equal(ticks_of(t), ticks);
    tracker_run(t, true);
    while (ticks_of(t) <= ticks)
        sched_yield();
    tracker_stop(t);
    tracker_stop(t);
    tracker_free(t);
    tracker_free(NULL);
    world_clear(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reread),
        cmocka_unit_test(test_dirty_bitmap),
        cmocka_unit_test(test_dirty_ring),
        cmocka_unit_test(test_fake_uffd),
        cmocka_unit_test(test_uffd),
        cmocka_unit_test(test_on_demand),
        cmocka_unit_test(test_switching),
        cmocka_unit_test(test_missed_write_shows),
        cmocka_unit_test(test_reprotect_age),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_age),
        cmocka_unit_test(test_roots),
        cmocka_unit_test(test_kpti),
        cmocka_unit_test(test_no_signature),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_loaded),
        cmocka_unit_test(test_question_looks),
        cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_faked_roots),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_precise_fails),
        cmocka_unit_test(test_thread),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
