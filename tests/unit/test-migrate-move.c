/*
 * Source and target in one process, over a pretended KVM: a thread that writes to random pages is the guest, or where it must not
 * matter how much time that gets, what it would have written is written in every round. It moves over one
 * channel and over several, is cancelled and cut off at random moments; afterwards it is on exactly one side, and if that is the
 * target's no byte of memory differs.
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
#include <semaphore.h>
#include <string.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "fake-kvm.h"
#include "migrate/source.h"
#include "migrate/target.h"
#include "mmu/absent.h"

#define MEMORY (8 * MiB)
#define PAGES (MEMORY / GUEST_PAGE_SIZE)
#define HOT_PAGES 16u
/* Pages a second, more than the slow tests' channels take: 32 MiB. */
#define FAST_WRITER 8192u
#define WAIT_NS (60 * NSEC_PER_SEC)

struct world {
    struct fake_kvm kvm;
    struct mem *from, *to;
    struct dirty_log *dirty;
    struct rng rng;
    char path[64], uri[80];

    pthread_t guest;
    atomic_bool end;
    sem_t running;           /* held by the guest while it writes; whoever stops it has it */
    bool stopped;            /* main or coordinator, one at a time */
    struct rng writer;    /* under `running` */
    uint64_t writes;      /* as well */
    uint64_t rate;        /* pages a second, written in every round; 0: the thread writes */
    uint64_t written_ns;  /* the round before */

    atomic_bool ran, given, needed;
    pthread_t reader; /* the guest at the target: it looks at all of its memory while that arrives */
    bool reads;
    atomic_bool arrived;
    atomic_uint different;
    bool refuse, bad_state;
    atomic_uint throttle, throttled_most, who_asked;
    atomic_bool sees_tables;
    atomic_uint held_tables; /* the most of any round */
    atomic_uint source_status, target_status;
    struct mig_source *source;
    struct mig_target *target;
};

/* Under `running`. */
static void guest_writes(struct world *w, pfn_t page)
{
    uint8_t *p = mem_ptr(w->from, page * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);

    /* Some become zero again. As for a write of the VMM the bytes come first, and then the note. */
    if (rng_below(&w->writer, 8) == 0)
        memset(p, 0, GUEST_PAGE_SIZE);
    else
        __atomic_store_n((uint64_t *)p + rng_below(&w->writer, 512), rng_next(&w->writer), __ATOMIC_RELAXED);
    mem_mark_dirty(w->from, page * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
    w->writes++;
}

static void *guest_thread(void *arg)
{
    struct world *w = arg;

    while (!atomic_load(&w->end)) {
        sem_wait(&w->running);
        for (int i = 0; i < 8 && !atomic_load(&w->end); i++)
            guest_writes(w, rng_below(&w->writer, rng_below(&w->writer, 4) ? HOT_PAGES : PAGES));
        sem_post(&w->running);
        sched_yield();
    }
    return NULL;
}

/* One whose time is taken writes little. The page table, the first page, is always among it. */
static void write_a_round(struct world *w)
{
    uint64_t now = clock_ns(), pages = MIN((now - w->written_ns) * w->rate / NSEC_PER_SEC, PAGES);

    if (sem_trywait(&w->running) < 0)
        return;
    guest_writes(w, 0);
    for (uint64_t i = 1; i < (atomic_load(&w->throttle) >= 40 ? 2 : pages); i++)
        guest_writes(w, rng_below(&w->writer, PAGES));
    w->written_ns = now;
    sem_post(&w->running);
}

/* -- the source's side -- */

static int on_facts(void *opaque, uint8_t **ret, size_t *ret_len)
{
    *ret = (uint8_t *)strdup("facts");
    *ret_len = 5;
    return 0;
}

static int on_stop(void *opaque, bool *ret_run, struct mig_downtime *times, struct mig_error *err)
{
    struct world *w = opaque;

    sem_wait(&w->running);
    w->stopped = true;
    *ret_run = true;
    return 0;
}

static int on_save(void *opaque, uint8_t **ret, size_t *ret_len, uint64_t *ret_captured_ns)
{
    *ret_captured_ns = clock_ns();
    return on_facts(opaque, ret, ret_len);
}

static void on_resume(void *opaque)
{
    struct world *w = opaque;

    w->stopped = false;
    sem_post(&w->running);
}

static int on_give_away(void *opaque, bool needed)
{
    struct world *w = opaque;

    atomic_store(&w->needed, needed);
    atomic_store(&w->given, true);
    return 0;
}

static void on_source_changed(void *opaque, bool round)
{
    struct world *w = opaque;
    struct mig_report r;

    if (round && w->rate)
        write_a_round(w);
    if (!__atomic_load_n(&w->source, __ATOMIC_ACQUIRE))
        return;
    mig_source_report(w->source, &r);
    atomic_store(&w->source_status, r.status);
    if (round && r.held_tables > atomic_load(&w->held_tables))
        atomic_store(&w->held_tables, (unsigned int)r.held_tables);
}

/* The first of the hot pages is a page table. */
static void on_tables(void *opaque, const struct page_set *pages, struct page_set *into)
{
    struct world *w = opaque;

    if (atomic_load(&w->sees_tables) && pages->map[0] & 1)
        page_set_add(into, 0);
}

static void on_who(void *opaque, const struct page_set *pages, char *text, size_t size)
{
    struct world *w = opaque;

    atomic_fetch_add(&w->who_asked, 1);
    snprintf(text, size, "the one with %s pages", pages->pages > 0 ? "some" : "no");
}

static void on_throttle(void *opaque, unsigned int percent)
{
    struct world *w = opaque;

    atomic_store(&w->throttle, percent);
    if (percent > atomic_load(&w->throttled_most))
        atomic_store(&w->throttled_most, percent);
}

static const struct mig_source_ops source_ops = {
    .facts = on_facts,
    .stop = on_stop,
    .save = on_save,
    .resume = on_resume,
    .give_away = on_give_away,
    .tables = on_tables,
    .who = on_who,
    .throttle = on_throttle,
    .changed = on_source_changed,
};

/* -- the target's side -- */

static int on_compare(void *opaque, const uint8_t *state, size_t len, char **ret_why, struct mig_error *err)
{
    struct world *w = opaque;

    *ret_why = w->refuse ? strdup("first difference\nsecond difference") : NULL;
    return len == 5 && memcmp(state, "facts", 5) == 0 ? 0 : mig_error(err, -EBADMSG, "other facts");
}

static int on_adopt(void *opaque, int fd, struct mig_error *err)
{
    struct world *w = opaque;
    int r = mem_adopt(w->to, fd);

    return r < 0 ? mig_error(err, r, "cannot adopt") : 0;
}

static int on_load(void *opaque, const uint8_t *state, size_t len, uint64_t captured_ns, struct mig_error *err)
{
    struct world *w = opaque;

    return w->bad_state ? mig_error(err, -EINVAL, "vcpu 0: no") : 0;
}

static const uint8_t *page_of(const struct world *w, pfn_t page, bool beside)
{
    unsigned int n;
    const struct mem_slot *slots = mem_slots(w->to, &n);

    return (beside ? slots[0].alias : slots[0].hva) + page * GUEST_PAGE_SIZE;
}

/* From somewhere on, once round. What the source has does not change any more. */
static void *reader_thread(void *arg)
{
    struct world *w = arg;
    struct rng rng = rng_seeded(5);
    pfn_t from = rng_below(&rng, PAGES);

    for (pfn_t i = 0; i < PAGES && !atomic_load(&w->end); i++) {
        pfn_t page = (from + i * 7) % PAGES;

        if (memcmp(page_of(w, page, i % 2), mem_ram(w->from) + page * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE) != 0)
            atomic_fetch_add(&w->different, 1);
    }
    return NULL;
}

static int on_run(void *opaque, bool run, bool arriving)
{
    struct world *w = opaque;

    atomic_store(&w->ran, run);
    if (arriving && pthread_create(&w->reader, NULL, reader_thread, w) == 0)
        w->reads = true;
    atomic_store(&w->arrived, true);
    return 0;
}

static void on_target_changed(void *opaque, bool postcopy)
{
}

static const struct mig_target_ops target_ops = {on_compare, on_adopt, on_load, on_run, on_target_changed};

/* -- the world -- */

/* The one there is: a test that fails does not come to its end. */
static struct world *alive;

static void world_new(struct world *w, uint64_t seed, uint64_t rate)
{
    struct mem_config mem_config = {.size = MEMORY};
    struct dirty_config config = {.backend = DIRTY_BITMAP, .ops = &fake_ops, .opaque = &w->kvm};
    struct mig_error err = {""};

    memset(w, 0, sizeof(*w));
    w->rng = rng_seeded(seed);
    w->writer = rng_seeded(99);
    w->rate = rate;
    w->written_ns = clock_ns();
    sem_init(&w->running, 0, 1);
    assert_int_equal(mem_new(&mem_config, &w->from), 0);
    assert_int_equal(mem_new(&mem_config, &w->to), 0);
    w->kvm.mem = w->from;
    w->kvm.vcpus = 1;
    fake_init(&w->kvm, seed);
    assert_int_equal(dirty_log_new(w->from, &config, &w->dirty), 0);
    for (pfn_t page = 0; page < PAGES; page += 1 + rng_below(&w->rng, 3))
        memset(mem_ptr(w->from, page * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE), (int)(page % 251), GUEST_PAGE_SIZE);
    snprintf(w->path, sizeof(w->path), "/tmp/umbra-move-%d", (int)getpid());
    snprintf(w->uri, sizeof(w->uri), "unix:%s", w->path);
    if (mig_target_start(w->to, w->uri, NULL, &target_ops, w, &w->target, &err) < 0)
        fail_msg("%s", err.text);
    if (!rate)
        assert_int_equal(pthread_create(&w->guest, NULL, guest_thread, w), 0);
    alive = w;
}

static void world_free(struct world *w)
{
    atomic_store(&w->end, true);
    mig_source_free(w->source);
    mig_target_free(w->target);
    if (w->reads)
        pthread_join(w->reader, NULL);
    /* Whether it stands still or not: it looks at `end` next. */
    sem_post(&w->running);
    if (!w->rate)
        pthread_join(w->guest, NULL);
    dirty_log_free(w->dirty);
    fake_destroy(&w->kvm);
    mem_free(w->from);
    mem_free(w->to);
    unlink(w->path);
    alive = NULL;
}

static int end_world(void **state)
{
    if (alive)
        world_free(alive);
    return 0;
}

static void start_with(struct world *w, const struct mig_parameters *parameters, bool local)
{
    struct mig_source_config config = {
        .mem = w->from,
        .dirty = w->dirty,
        .ops = &source_ops,
        .opaque = w,
        .parameters = *parameters,
        .uri = w->uri,
        .fd = -1,
        .local = local,
    };
    struct mig_source *s;

    assert_int_equal(mig_source_start(&config, &s), 0);
    __atomic_store_n(&w->source, s, __ATOMIC_RELEASE);
}

static void start(struct world *w, unsigned int channels, bool local)
{
    struct mig_parameters p = {
        .downtime_limit_ns = 300 * NSEC_PER_MSEC, .channels = channels, .strategy = MIG_STRATEGY_STOP};

    start_with(w, &p, local);
}

static struct mig_report wait_source(struct world *w)
{
    uint64_t end = clock_ns() + WAIT_NS;
    struct mig_report r;

    do {
        mig_source_report(w->source, &r);
        if (clock_ns() > end)
            fail_msg("status %s after a minute", mig_status_name(r.status));
        sched_yield();
    } while (r.status != MIG_STATUS_COMPLETED && r.status != MIG_STATUS_FAILED && r.status != MIG_STATUS_CANCELLED);
    return r;
}

static void same_memory(struct world *w)
{
    for (pfn_t page = 0; page < PAGES; page++)
        if (memcmp(mem_ram(w->from) + page * GUEST_PAGE_SIZE, mem_ram(w->to) + page * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE) != 0)
            fail_msg("page %llu differs after %llu writes", (unsigned long long)page, (unsigned long long)w->writes);
}

/* -- tests -- */

static void test_moves(void **state)
{
    static const unsigned int channels[] = {1, 2, 3, 16};

    for (size_t i = 0; i < ARRAY_SIZE(channels); i++) {
        static struct world w;
        struct mig_report r;

        world_new(&w, 7 + i, 0);
        start(&w, channels[i], false);
        r = wait_source(&w);
        if (r.status != MIG_STATUS_COMPLETED)
            fail_msg("%s", r.why);
        assert_true(atomic_load(&w.ran) && atomic_load(&w.given) && w.stopped);
        same_memory(&w);
        assert_int_equal(r.channels, channels[i]);
        assert_true(r.normal > 0 && r.zero > 0 && r.passes > 1);
        assert_true(r.plan.valid && r.plan.downtime_ns > 0);
        world_free(&w);
    }
}

static void test_packed(void **state)
{
    struct mig_parameters p = {
        .downtime_limit_ns = 300 * NSEC_PER_MSEC, .channels = 2, .strategy = MIG_STRATEGY_STOP, .zstd_level = 1};
    struct mig_report r;
    static struct world w;

    world_new(&w, 7, 0);
    start_with(&w, &p, false);
    r = wait_source(&w);
    if (r.status != MIG_STATUS_COMPLETED)
        fail_msg("%s", r.why);
    same_memory(&w);
    assert_true(r.packed_pages > 0 && r.packed_pages <= r.normal);
    assert_true(r.packed_bytes < r.packed_pages * GUEST_PAGE_SIZE / 2);
    assert_true(r.transferred < r.normal * GUEST_PAGE_SIZE);
    world_free(&w);
}

static void test_local(void **state)
{
    static struct world w;
    struct mig_report r;

    world_new(&w, 3, 0);
    start(&w, 4, true);
    r = wait_source(&w);
    if (r.status != MIG_STATUS_COMPLETED)
        fail_msg("%s", r.why);
    same_memory(&w);
    /* It is one memory. */
    assert_int_equal(mem_set(w.to, 0x3000, 0x5a, 1), 0);
    assert_int_equal(mem_ram(w.from)[0x3000], 0x5a);
    assert_true(r.transferred < 4096);
    world_free(&w);
}

static void test_refused(void **state)
{
    static struct world w;
    struct mig_report r;

    world_new(&w, 3, 0);
    w.refuse = true;
    start(&w, 1, false);
    r = wait_source(&w);
    assert_int_equal(r.status, MIG_STATUS_FAILED);
    assert_string_equal(r.why, "the target refuses: first difference\nsecond difference");
    assert_false(w.stopped || atomic_load(&w.ran));
    world_free(&w);
}

static void test_state_cannot_be_loaded(void **state)
{
    static struct world w;
    struct mig_report r;

    world_new(&w, 3, 0);
    w.bad_state = true;
    start(&w, 2, false);
    r = wait_source(&w);
    assert_int_equal(r.status, MIG_STATUS_FAILED);
    assert_string_equal(r.why, "the target failed: vcpu 0: no");
    assert_false(w.stopped || atomic_load(&w.ran) || atomic_load(&w.given));
    world_free(&w);
}

/* A channel that is slower than the guest writes, with a strategy. */
static void start_slow(struct world *w, uint64_t bandwidth, enum mig_strategy strategy, unsigned int max_throttle)
{
    struct mig_parameters p = {.max_bandwidth = bandwidth,
                               .downtime_limit_ns = 5 * NSEC_PER_MSEC,
                               .channels = 1,
                               .strategy = strategy,
                               .max_throttle = max_throttle};

    start_with(w, &p, false);
}

static void test_gives_up_and_says_who(void **state)
{
    struct mig_report r;
    static struct world w;

    world_new(&w, 5, FAST_WRITER);
    start_slow(&w, 4 * MiB, MIG_STRATEGY_CANCEL, 0);
    r = wait_source(&w);
    assert_int_equal(r.status, MIG_STATUS_FAILED);
    assert_memory_equal(r.why, "it does not converge: the guest writes", 38);
    assert_string_equal(r.who, "the one with some pages");
    assert_false(r.forecast.converges || w.stopped);
    /* Once a second at most: it costs a look at all page tables. */
    assert_in_range(atomic_load(&w.who_asked), 1, 1 + r.total_ns / NSEC_PER_SEC);
    assert_int_equal(atomic_load(&w.throttled_most), 0);
    world_free(&w);
}

static void test_throttled_until_it_converges(void **state)
{
    struct mig_report r;
    static struct world w;

    world_new(&w, 5, FAST_WRITER);
    start_slow(&w, 8 * MiB, MIG_STRATEGY_THROTTLE, 0);
    r = wait_source(&w);
    if (r.status != MIG_STATUS_COMPLETED)
        fail_msg("%s", r.why);
    assert_in_range(atomic_load(&w.throttled_most), 40, 90);
    /* The guest has its time back. */
    assert_int_equal(atomic_load(&w.throttle), 0);
    assert_int_equal(r.throttle, 0);
    same_memory(&w);
    world_free(&w);
}

/* Somebody wants it to stop, and the next round knows. */
static void test_throttled_less_again(void **state)
{
    struct mig_parameters p = {
        .max_bandwidth = 2 * MiB, .downtime_limit_ns = 5 * NSEC_PER_MSEC, .strategy = MIG_STRATEGY_THROTTLE, .max_throttle = 30};
    struct mig_report r;
    static struct world w;

    world_new(&w, 5, FAST_WRITER);
    start_slow(&w, 2 * MiB, MIG_STRATEGY_THROTTLE, 30);
    while (atomic_load(&w.throttle) != 30)
        sched_yield();
    p.max_throttle = 25;
    mig_source_set_parameters(w.source, &p);
    while (atomic_load(&w.throttle) == 30)
        sched_yield();
    p.strategy = MIG_STRATEGY_STOP;
    mig_source_set_parameters(w.source, &p);
    r = wait_source(&w);
    assert_true(r.status == MIG_STATUS_COMPLETED || r.status == MIG_STATUS_FAILED);
    assert_int_equal(atomic_load(&w.throttle), 0);
    world_free(&w);
}

/* The guest goes on writing while the migration waits, and that is moved before it is stopped. */
static void test_waits_before_switchover(void **state)
{
    struct mig_parameters p = {.downtime_limit_ns = 300 * NSEC_PER_MSEC, .channels = 2, .pause_before_switchover = true};
    struct mig_report before, r;
    uint64_t writes;
    static struct world w;

    world_new(&w, 5, 0);
    start_with(&w, &p, false);
    do
        mig_source_report(w.source, &before);
    while (before.status != MIG_STATUS_PRE_SWITCHOVER);
    sem_wait(&w.running);
    writes = w.writes;
    sem_post(&w.running);
    do {
        sem_wait(&w.running);
        r.normal = w.writes;
        sem_post(&w.running);
        sched_yield();
    } while (r.normal < writes + 4 * PAGES);
    assert_false(w.stopped);
    assert_int_equal(mig_source_continue(w.source), 0);
    r = wait_source(&w);
    if (r.status != MIG_STATUS_COMPLETED)
        fail_msg("%s", r.why);
    assert_true(r.passes > before.passes);
    same_memory(&w);
    world_free(&w);
}

static void test_throttled_no_more_than_allowed(void **state)
{
    struct mig_report r;
    static struct world w;

    world_new(&w, 5, FAST_WRITER);
    start_slow(&w, 4 * MiB, MIG_STRATEGY_THROTTLE, 25);
    r = wait_source(&w);
    assert_int_equal(r.status, MIG_STATUS_FAILED);
    assert_memory_equal(r.why, "it does not converge with 25 % of its time taken", 48);
    assert_int_equal(atomic_load(&w.throttled_most), 25);
    assert_int_equal(atomic_load(&w.throttle), 0);
    assert_false(w.stopped);
    world_free(&w);
}

/* A page table waits for the end from the first harvest on that has it. */
static void test_tables_are_held_back(void **state)
{
    struct mig_report r;
    static struct world w;

    world_new(&w, 5, FAST_WRITER);
    atomic_store(&w.sees_tables, true);
    start_slow(&w, 8 * MiB, MIG_STRATEGY_STOP, 0);
    r = wait_source(&w);
    if (r.status != MIG_STATUS_COMPLETED)
        fail_msg("%s", r.why);
    assert_int_equal(atomic_load(&w.held_tables), 1);
    same_memory(&w);
    world_free(&w);
}

/* One of cancel and a target that goes away, at a random moment: never two guests, and none is forgotten. */
static void test_ends_at_random(void **state)
{
    unsigned int completed = 0, rounds = 60;
    struct rng rng = rng_seeded(rng_test_seed(__func__));

    for (unsigned int i = 0; i < rounds; i++) {
        uint64_t when;
        static struct world w;
        struct mig_report r;

        world_new(&w, rng_next(&rng), 0);
        when = clock_ns() + rng_below(&rng, 20 * NSEC_PER_MSEC);
        start(&w, 1 + (unsigned int)rng_below(&rng, 3), false);
        while (clock_ns() < when)
            sched_yield();
        if (i % 2) {
            mig_source_cancel(w.source);
        } else {
            mig_target_free(w.target);
            w.target = NULL;
        }
        r = wait_source(&w);
        /* What the target did is final once its threads have ended. */
        mig_target_free(w.target);
        w.target = NULL;
        if (atomic_load(&w.ran)) {
            assert_true(w.stopped && atomic_load(&w.given));
            same_memory(&w);
            completed++;
        }
        if (r.status == MIG_STATUS_COMPLETED)
            assert_true(atomic_load(&w.ran));
        else
            assert_string_not_equal(r.why, "");
        /* Stopped for good only where the target may have it. */
        assert_true(w.stopped == atomic_load(&w.given));
        world_free(&w);
    }
    print_message("# %u of %u came to their end before\n", completed, rounds);
}

/* -- post-copy -- */

static void skip_without_userfault(struct world *w)
{
    const char *why;

    if (absent_possible(w->to, &why) == 0)
        return;
    print_message("# no post-copy: %s\n", why);
    world_free(w);
    skip();
}

static enum mig_status status_of_source(struct world *w)
{
    struct mig_report r;

    mig_source_report(w->source, &r);
    return r.status;
}

static enum mig_status status_of_target(struct world *w)
{
    struct mig_report r;

    mig_target_report(w->target, &r);
    return r.status;
}

static void wait_for_status(struct world *w, enum mig_status (*of)(struct world *w), enum mig_status wanted)
{
    uint64_t end = clock_ns() + WAIT_NS;

    while (of(w) != wanted) {
        if (clock_ns() > end)
            fail_msg("status %s after a minute, not %s", mig_status_name(of(w)), mig_status_name(wanted));
        sched_yield();
    }
}

/* Until it is in post-copy; false when that is over already. */
static bool wait_in_postcopy(struct world *w)
{
    uint64_t end = clock_ns() + WAIT_NS;
    enum mig_status status;

    while ((status = status_of_source(w)) != MIG_STATUS_POSTCOPY_ACTIVE && status != MIG_STATUS_COMPLETED) {
        if (clock_ns() > end)
            fail_msg("status %s after a minute", mig_status_name(status));
        sched_yield();
    }
    return status == MIG_STATUS_POSTCOPY_ACTIVE;
}

static void start_postcopy(struct world *w, unsigned int channels, uint64_t bandwidth, unsigned int zstd)
{
    struct mig_parameters p = {.downtime_limit_ns = 300 * NSEC_PER_MSEC,
                               .max_bandwidth = 4 * MiB,
                               .postcopy_bandwidth = bandwidth,
                               .channels = channels,
                               .strategy = MIG_STRATEGY_STOP,
                               .postcopy = true,
                               .zstd_level = zstd};

    start_with(w, &p, false);
    while (mig_source_postcopy(w->source) < 0)
        sched_yield();
}

static void check_postcopy_end(struct world *w, unsigned int recoveries)
{
    struct mig_report r = wait_source(w);

    if (r.status != MIG_STATUS_COMPLETED)
        fail_msg("%s", r.why);
    wait_for_status(w, status_of_target, MIG_STATUS_COMPLETED);
    while (!atomic_load(&w->arrived))
        sched_yield();
    if (w->reads)
        pthread_join(w->reader, NULL);
    w->reads = false;
    assert_int_equal(atomic_load(&w->different), 0);
    assert_true(atomic_load(&w->ran) && atomic_load(&w->given) && atomic_load(&w->needed) && w->stopped);
    assert_int_equal(r.recoveries, recoveries);
    assert_true(r.postcopy_ns > 0);
    same_memory(w);
}

static void test_postcopy(void **state)
{
    static const unsigned int channels[] = {1, 2, 5, 16};

    for (size_t i = 0; i < ARRAY_SIZE(channels); i++) {
        static struct world w;

        world_new(&w, 7 + i, 0);
        skip_without_userfault(&w);
        start_postcopy(&w, channels[i], i % 2 ? 0 : 8 * MiB, i % 3 == 2);
        check_postcopy_end(&w, 0);
        world_free(&w);
    }
}

/* In the midst of it the connection is cut, by either side, at random moments; nothing is lost. */
static void test_postcopy_is_cut(void **state)
{
    struct rng rng = rng_seeded(rng_test_seed(__func__));

    log_set_level(LOG_LEVEL_ERR - 1);
    for (unsigned int i = 0; i < 8; i++) {
        static struct world w;
        struct mig_report r;
        unsigned int cuts = 0;

        world_new(&w, rng_next(&rng), 0);
        skip_without_userfault(&w);
        start_postcopy(&w, 2 + i % 3, 16 * MiB, 0);
        for (unsigned int n = 0; n < 4 && wait_in_postcopy(&w); n++) {
            usleep((useconds_t)rng_below(&rng, 30000));
            if ((n % 2 ? mig_source_pause(w.source) : mig_target_pause(w.target)) < 0)
                break;
            /* It may have been the last page. */
            do
                mig_source_report(w.source, &r);
            while (r.status == MIG_STATUS_POSTCOPY_ACTIVE);
            if (r.status == MIG_STATUS_COMPLETED)
                break;
            wait_for_status(&w, status_of_source, MIG_STATUS_POSTCOPY_PAUSED);
            assert_int_equal(mig_source_recover(w.source, "unix:/nowhere", NULL), 0);
            wait_for_status(&w, status_of_source, MIG_STATUS_POSTCOPY_PAUSED);
            /* The target may not wait for it yet. */
            do {
                assert_int_equal(mig_source_recover(w.source, w.uri, NULL), 0);
                do
                    mig_source_report(w.source, &r);
                while (r.status == MIG_STATUS_POSTCOPY_RECOVER);
            } while (r.status == MIG_STATUS_POSTCOPY_PAUSED);
            cuts++;
        }
        mig_source_report(w.source, &r);
        check_postcopy_end(&w, cuts);
        world_free(&w);
    }
    log_set_level(LOG_LEVEL_ERR);
}

static void test_postcopy_refused(void **state)
{
    struct mig_parameters p = {.downtime_limit_ns = 300 * NSEC_PER_MSEC, .channels = 2, .postcopy = true};
    struct mig_report r;
    static struct world w;
    struct absent *other;

    world_new(&w, 3, 0);
    skip_without_userfault(&w);
    assert_int_equal(absent_new(w.to, NULL, NULL, &other), 0);
    w.refuse = true;
    start_with(&w, &p, false);
    r = wait_source(&w);
    assert_int_equal(r.status, MIG_STATUS_FAILED);
    assert_string_equal(r.why, "the target refuses: first difference\nsecond difference\n"
                               "post-copy: guest memory is registered with userfaultfd already (--mmu precise)");
    assert_false(w.stopped || atomic_load(&w.ran));
    absent_free(other);
    world_free(&w);
}

static void test_postcopy_not_agreed_on(void **state)
{
    struct mig_report r;
    static struct world w;

    world_new(&w, 5, FAST_WRITER);
    start_slow(&w, 4 * MiB, MIG_STRATEGY_CANCEL, 0);
    assert_int_equal(mig_source_postcopy(w.source), -EINVAL);
    assert_int_equal(mig_source_pause(w.source), -EINVAL);
    assert_int_equal(mig_source_recover(w.source, w.uri, NULL), -EINVAL);
    mig_source_set_parameters(w.source, &(struct mig_parameters){.max_bandwidth = 4 * MiB,
                                                                .downtime_limit_ns = 5 * NSEC_PER_MSEC,
                                                                .strategy = MIG_STRATEGY_POSTCOPY});
    r = wait_source(&w);
    assert_int_equal(r.status, MIG_STATUS_FAILED);
    assert_string_equal(r.why, "it does not converge, and post-copy was not agreed on at its start");
    assert_false(w.stopped);
    world_free(&w);
}

/* As test_ends_at_random. A target that ends with pages missing takes the guest with it; the source must know. */
static void test_postcopy_ends_at_random(void **state)
{
    struct rng rng = rng_seeded(rng_test_seed(__func__));

    log_set_level(LOG_LEVEL_ERR - 1);
    for (unsigned int i = 0; i < 40; i++) {
        enum mig_status status;
        uint64_t when;
        static struct world w;

        world_new(&w, rng_next(&rng), 0);
        skip_without_userfault(&w);
        when = clock_ns() + rng_below(&rng, 30 * NSEC_PER_MSEC);
        start_postcopy(&w, 2, 64 * MiB, 0);
        while (clock_ns() < when)
            sched_yield();
        if (i % 2)
            mig_source_cancel(w.source);
        else
            mig_target_free(w.target);
        if (i % 2 == 0)
            w.target = NULL;
        do
            status = status_of_source(&w);
        while (status != MIG_STATUS_COMPLETED && status != MIG_STATUS_FAILED && status != MIG_STATUS_CANCELLED &&
               status != MIG_STATUS_POSTCOPY_PAUSED);
        mig_target_free(w.target);
        w.target = NULL;
        assert_true(w.stopped == atomic_load(&w.given));
        if (status == MIG_STATUS_POSTCOPY_PAUSED)
            assert_true(i % 2 == 0 && atomic_load(&w.given));
        else
            assert_true(atomic_load(&w.ran) == (status == MIG_STATUS_COMPLETED));
        world_free(&w);
    }
    log_set_level(LOG_LEVEL_ERR);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_moves, end_world),
        cmocka_unit_test_teardown(test_packed, end_world),
        cmocka_unit_test_teardown(test_local, end_world),
        cmocka_unit_test_teardown(test_refused, end_world),
        cmocka_unit_test_teardown(test_state_cannot_be_loaded, end_world),
        cmocka_unit_test_teardown(test_gives_up_and_says_who, end_world),
        cmocka_unit_test_teardown(test_throttled_until_it_converges, end_world),
        cmocka_unit_test_teardown(test_throttled_no_more_than_allowed, end_world),
        cmocka_unit_test_teardown(test_throttled_less_again, end_world),
        cmocka_unit_test_teardown(test_waits_before_switchover, end_world),
        cmocka_unit_test_teardown(test_tables_are_held_back, end_world),
        cmocka_unit_test_teardown(test_ends_at_random, end_world),
        cmocka_unit_test_teardown(test_postcopy, end_world),
        cmocka_unit_test_teardown(test_postcopy_is_cut, end_world),
        cmocka_unit_test_teardown(test_postcopy_refused, end_world),
        cmocka_unit_test_teardown(test_postcopy_not_agreed_on, end_world),
        cmocka_unit_test_teardown(test_postcopy_ends_at_random, end_world),
    };

    log_init("test-migrate-move", NULL);
    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests_name("migrate-move", tests, NULL, NULL);
}
