/*
 * How dirty pages are best protected again with KVM_CLEAR_DIRTY_LOG: many short calls or one over everything; the
 * measurements behind the constants of src/mmu/dirty-bitmap.c. Three parts, each with the vCPU out of the guest ("parked")
 * and busy in it ("running"):
 *
 *   costs      of a call, of a clean word, of the first page that a call protects, of one more; and from them the gap of
 *              clean words that is worth another call
 *   strategies the same dirty pages, in clusters spread over the memory, harvested by each strategy
 *   stall      258000 pages of 1 GiB while the guest goes on writing to them: the guest's longest wait, by the number of
 *              pages that one call may protect
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <x86intrin.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "mmu/dirty.h"
#include "sample.h"
#include "toy-vm.h"

#define CLUSTER_PAGES 8u
#define STRATEGIES 3

static const char *const strategy_names[STRATEGIES] = {"auto", "sparse", "dense"};
static const enum dirty_clear strategies[STRATEGIES] = {DIRTY_CLEAR_AUTO, DIRTY_CLEAR_SPARSE, DIRTY_CLEAR_DENSE};

struct bench {
    struct mem *mem;
    struct toy_vm *vm;
    bool running;
    uint64_t *bitmap; /* of the first slot */
    pfn_t *list;
};

static int set_up(struct bench *b, uint64_t size, bool prealloc, bool running)
{
    struct mem_config mem = {.size = size, .prealloc = prealloc};
    struct toy_config vm = {.vcpus = 1};
    const char *reason = "guest memory";
    int r;

    memset(b, 0, sizeof(*b));
    b->running = running;
    r = mem_new(&mem, &b->mem);
    if (r == 0)
        r = toy_new(&vm, b->mem, &b->vm, &reason);
    if (r < 0) {
        log_err_errno(r, "bench: %s", reason);
        return r;
    }
    b->bitmap = calloc((size_t)mem_pages(b->mem) / 64, sizeof(uint64_t));
    b->list = calloc(toy_list_max(b->vm), sizeof(*b->list));
    if (!b->bitmap || !b->list)
        return -ENOMEM;
    toy_spin(b->vm, 0, running);
    return 0;
}

static void tear_down(struct bench *b)
{
    toy_free(b->vm);
    mem_free(b->mem);
    free(b->bitmap);
    free(b->list);
}

static int dirty(struct bench *b, size_t count)
{
    toy_set_list(b->vm, 0, b->list, count);
    toy_go(b->vm, 0, 1);
    return toy_wait(b->vm, 0);
}

static const char *where(const struct bench *b)
{
    return b->running ? "running" : "parked";
}

/* -- costs -------------------------------------------------------------------- */

/* The time of KVM_CLEAR_DIRTY_LOG over `pages` pages, the first `count` of which are dirty; in microseconds. */
static int clear_time(struct bench *b, uint32_t pages, size_t count, double *ret)
{
    struct sample s = {0};

    for (size_t i = 0; i < count; i++)
        b->list[i] = i;
    for (int i = 0; i < 51; i++) {
        int r = dirty(b, count);
        uint64_t t;

        if (r == 0)
            r = toy_dirty_ops.get(b->vm, 0, b->bitmap);
        t = clock_ns();
        if (r == 0)
            r = toy_dirty_ops.clear(b->vm, 0, 0, pages, b->bitmap);
        if (r < 0)
            return r;
        sample_add(&s, clock_ns() - t);
    }
    *ret = sample_us(&s, 0.5);
    return 0;
}

static int costs(bool running)
{
    struct bench b;
    double call, words, first, more, word;
    int r = set_up(&b, GiB, true, running);

    if (r == 0)
        r = toy_dirty_ops.set_logging(b.vm, true);
    if (r == 0)
        r = clear_time(&b, 64, 0, &call);
    if (r == 0)
        r = clear_time(&b, GiB / GUEST_PAGE_SIZE, 0, &words);
    if (r == 0)
        r = clear_time(&b, 64, 1, &first);
    if (r == 0)
        r = clear_time(&b, 4096, 4096, &more);
    if (r == 0) {
        word = (words - call) / (GiB / GUEST_PAGE_SIZE / 64 - 1);
        printf("{\"name\": \"clear-costs-%s\", \"unit\": \"us\", \"call\": %.2f, \"clean-word\": %.5f, \"first-page\": %.2f, "
               "\"next-page\": %.4f, \"gap-words-worth-a-call\": %.0f, \"runs\": 51}\n",
               where(&b), call, word, first, (more - first) / 4095, first / word);
    }
    tear_down(&b);
    return r;
}

/* -- strategies --------------------------------------------------------------- */

static int harvest(struct dirty_log *log, uint64_t *ret_ns)
{
    struct dirty_snapshot s;
    int r = dirty_log_snapshot_lock(log, "bench", false, &s);

    if (r < 0)
        return r;
    *ret_ns = s.harvest_ns;
    dirty_log_unlock(log);
    return dirty_log_ack(log, "bench", s.epoch);
}

static int clusters(struct bench *b, struct dirty_log *const *logs, unsigned int count)
{
    uint64_t stride = mem_pages(b->mem) / count;
    struct sample samples[STRATEGIES] = {0};

    for (unsigned int i = 0; i < count * CLUSTER_PAGES; i++)
        b->list[i] = i / CLUSTER_PAGES * stride + i % CLUSTER_PAGES;
    for (unsigned int run = 0; run < 11; run++) {
        for (unsigned int k = 0; k < STRATEGIES; k++) {
            unsigned int which = (run + k) % STRATEGIES;
            uint64_t ns = 0;
            int r = dirty(b, count * CLUSTER_PAGES);

            if (r == 0)
                r = harvest(logs[which], &ns);
            if (r < 0)
                return r;
            if (run > 0)
                sample_add(&samples[which], ns);
        }
    }
    printf("{\"name\": \"clear-strategy-%" PRIu64 "g-%u-clusters-%s\", \"unit\": \"us\"", mem_size(b->mem) / GiB, count,
           where(b));
    for (unsigned int k = 0; k < STRATEGIES; k++)
        printf(", \"%s\": %.2f, \"%s-min\": %.2f", strategy_names[k], sample_us(&samples[k], 0.5), strategy_names[k],
               sample_us(&samples[k], 0));
    printf(", \"runs\": %zu}\n", samples[0].count);
    fflush(stdout);
    return 0;
}

static int compare_strategies(uint64_t size, bool running)
{
    static const unsigned int counts[] = {1, 4, 16, 64, 128, 256, 512, 1024};
    struct dirty_log *logs[STRATEGIES] = {0};
    struct bench b;
    int r = set_up(&b, size, false, running);

    for (unsigned int k = 0; r == 0 && k < STRATEGIES; k++) {
        /* Each a consumer of its own, over one VM: only the one that takes the pages counts at a time. */
        struct dirty_config config = {.clear = strategies[k], .ops = &toy_dirty_ops, .opaque = b.vm};

        r = dirty_log_new(b.mem, &config, &logs[k]);
        if (r == 0)
            r = dirty_log_start(logs[k], "bench", DIRTY_START_CHANGES);
    }
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(counts); i++)
        r = clusters(&b, logs, counts[i]);
    for (unsigned int k = 0; k < STRATEGIES; k++)
        dirty_log_free(logs[k]);
    tear_down(&b);
    return r;
}

/* -- stall -------------------------------------------------------------------- */

/* Visit number `visits` more has happened. */
static void wait_for_visits(const struct bench *b, uint64_t visits)
{
    uint64_t before = toy_visits(b->vm, 0);
    struct timespec pause = {.tv_nsec = 1000000};

    while (toy_visits(b->vm, 0) - before < visits)
        nanosleep(&pause, NULL);
}

static int stall(void)
{
    static const uint32_t caps[] = {UINT32_MAX, 65536, 32768, 16384, 8192, 4096};
    struct sample took[ARRAY_SIZE(caps)] = {0}, gap[ARRAY_SIZE(caps)] = {0};
    struct dirty_log *logs[ARRAY_SIZE(caps)] = {0};
    uint64_t ns0 = clock_ns(), tsc0 = __rdtsc(), pages = 258000;
    struct bench b;
    double tick;
    int r = set_up(&b, GiB, true, true);

    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(caps); i++) {
        struct dirty_config config = {.ops = &toy_dirty_ops, .opaque = b.vm, .clear_max_pages = caps[i]};

        r = dirty_log_new(b.mem, &config, &logs[i]);
        if (r == 0)
            r = dirty_log_start(logs[i], "bench", DIRTY_START_CHANGES);
    }
    if (r == 0) {
        /* Strides, so that the guest meets protected and unprotected pages all the time. */
        for (uint64_t i = 0; i < pages; i++)
            b.list[i] = i * 7919 % pages;
        toy_set_list(b.vm, 0, b.list, pages);
        toy_go(b.vm, 0, 0);
    }
    for (unsigned int run = 0; r == 0 && run < 5; run++) {
        for (size_t i = 0; r == 0 && i < ARRAY_SIZE(caps); i++) {
            uint64_t ns = 0;

            wait_for_visits(&b, pages);
            toy_clear_longest_gap(b.vm, 0);
            r = harvest(logs[i], &ns);
            wait_for_visits(&b, 1000);
            tick = (double)(clock_ns() - ns0) / (double)(__rdtsc() - tsc0);
            sample_add(&took[i], ns);
            sample_add(&gap[i], (uint64_t)((double)toy_longest_gap(b.vm, 0) * tick));
        }
    }
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(caps); i++)
        printf("{\"name\": \"clear-stall-%u\", \"unit\": \"us\", \"harvest\": %.0f, \"harvest-min\": %.0f, "
               "\"guest-stall\": %.0f, \"guest-stall-min\": %.0f, \"runs\": %zu}\n",
               caps[i], sample_us(&took[i], 0.5), sample_us(&took[i], 0), sample_us(&gap[i], 0.5), sample_us(&gap[i], 0),
               took[i].count);
    if (r == 0)
        r = toy_stop(b.vm, 0);
    for (size_t i = 0; i < ARRAY_SIZE(caps); i++)
        dirty_log_free(logs[i]);
    tear_down(&b);
    return r;
}

int main(void)
{
    int r = 0;

    log_init("bench-clear-strategy", NULL);
    for (int running = 0; running < 2 && r == 0; running++) {
        r = costs(running);
        if (r == 0)
            r = compare_strategies(GiB, running);
        if (r == 0)
            r = compare_strategies(64 * GiB, running);
    }
    if (r == 0)
        r = stall();
    return r == -ENODEV ? 77 : r < 0;
}
