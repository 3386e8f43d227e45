/*
 * What a snapshot of the dirty log costs against the ioctls it cannot do without, for 1 GiB of guest memory: both backends,
 * counted and as ranges, with the vCPU out of the guest ("-parked") and busy in it ("-running": protecting pages then takes
 * a TLB flush on its CPU).
 *
 * Ours and the floor take turns on one VM, after the guest has written to the same pages each time. The floor is, for the
 * bitmap, KVM_GET_DIRTY_LOG and one KVM_CLEAR_DIRTY_LOG of everything; for the ring, setting a bit for each entry and
 * KVM_RESET_DIRTY_RINGS, as often as the ring has to be emptied. Ours is all that a consumer does: snapshot, ranges where
 * asked for, acknowledgement.
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "mmu/dirty-internal.h"
#include "sample.h"
#include "toy-vm.h"

#define MEMORY GiB
#define RING_ENTRIES 65536u
/* What fits into the ring before it is full: KVM keeps a reserve. */
#define RING_BATCH 65000u
#define RANGES_MAX 4096u

static const struct {
    const char *name;
    size_t pages;
    unsigned int runs;
} loads[] = {
    {"0", 0, 101},
    {"1k", 1000, 41},
    {"50k", 50000, 9},
    {"258k", 258000, 5},
};

struct bench {
    enum dirty_backend backend;
    bool running;
    struct mem *mem;
    struct toy_vm *vm;
    struct dirty_log *log;
    uint64_t *bitmap;    /* the floor's */
    uint32_t ring_next;  /* the floor's */
    pfn_t *order;        /* all pages, shuffled */
    struct sample count, ranges, floor, get;
};

/* Take what is in the ring; the number of entries. */
static uint32_t floor_collect(struct bench *b)
{
    struct kvm_dirty_gfn *ring = toy_ring(b->vm, 0);
    uint32_t n = 0;

    for (;; n++) {
        struct kvm_dirty_gfn *e = &ring[(b->ring_next + n) % RING_ENTRIES];

        if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
            break;
        b->bitmap[e->offset / 64] |= UINT64_C(1) << (e->offset % 64);
        __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
    }
    b->ring_next += n;
    return n;
}

static int floor_harvest(struct bench *b, uint64_t *took, uint64_t *took_get)
{
    uint64_t t0 = clock_ns(), t1;
    int r;

    if (b->backend == DIRTY_RING) {
        uint32_t n = floor_collect(b);

        r = toy_dirty_ops.reset_rings(b->vm);
        t1 = clock_ns();
        *took += t1 - t0;
        /* Ours goes on where the floor ended. */
        b->log->rings[0].next += n;
        return MIN(r, 0);
    }
    r = toy_dirty_ops.get(b->vm, 0, b->bitmap);
    t1 = clock_ns();
    if (r == 0)
        r = toy_dirty_ops.clear(b->vm, 0, 0, MEMORY / GUEST_PAGE_SIZE, b->bitmap);
    *took += clock_ns() - t0;
    *took_get += t1 - t0;
    return r;
}

static int our_harvest(struct bench *b, bool last, uint64_t *took_count, uint64_t *took_ranges)
{
    static struct dirty_range ranges[RANGES_MAX];
    uint32_t before = b->backend == DIRTY_RING ? b->log->rings[0].next : 0;
    uint64_t t0 = clock_ns(), t1, t2, t3;
    struct dirty_snapshot s;
    pfn_t cursor = 0;
    int r;

    if (!last) {
        r = dirty_log_ring_full(b->log, 0);
        t3 = clock_ns() - t0;
        *took_count += t3;
        *took_ranges += t3;
    } else {
        r = dirty_log_snapshot_lock(b->log, "bench", false, &s);
        if (r < 0)
            return r;
        t1 = clock_ns();
        while (dirty_ranges(b->mem, &s, &cursor, ranges, RANGES_MAX) > 0)
            ;
        t2 = clock_ns();
        dirty_log_unlock(b->log);
        r = dirty_log_ack(b->log, "bench", s.epoch);
        t3 = clock_ns();
        *took_count += (t1 - t0) + (t3 - t2);
        *took_ranges += t3 - t0;
    }
    if (b->backend == DIRTY_RING)
        b->ring_next += b->log->rings[0].next - before;
    return r;
}

/* Dirty the pages, in parts if the ring makes it necessary, and harvest them. */
static int one_run(struct bench *b, size_t pages, bool ours)
{
    size_t batch = b->backend == DIRTY_RING ? RING_BATCH : pages;
    uint64_t count = 0, ranges = 0, floor = 0, get = 0;
    size_t done = 0;
    int r = 0;

    do {
        size_t n = MIN(batch, pages - done);

        toy_set_list(b->vm, 0, b->order + done, n);
        toy_go(b->vm, 0, 1);
        r = toy_wait(b->vm, 0);
        if (r < 0)
            return r;
        done += n;
        r = ours ? our_harvest(b, done == pages, &count, &ranges) : floor_harvest(b, &floor, &get);
    } while (r >= 0 && done < pages);
    if (r < 0)
        return r;
    if (ours) {
        sample_add(&b->count, count);
        sample_add(&b->ranges, ranges);
    } else {
        sample_add(&b->floor, floor);
        sample_add(&b->get, get);
    }
    return 0;
}

static void print_figure(const struct bench *b, const char *what, const char *load, struct sample *ours, struct sample *floor)
{
    double o = sample_us(ours, 0.5), f = sample_us(floor, 0.5);

    printf("{\"name\": \"dirty-%s-%s-%s-%s\", \"unit\": \"us\", \"ours\": %.2f, \"floor\": %.2f, \"ratio-to-floor\": %.3f, "
           "\"min\": %.2f, \"max\": %.2f, \"floor-min\": %.2f, \"floor-max\": %.2f, \"runs\": %zu}\n",
           b->backend == DIRTY_RING ? "ring" : "bitmap", what, load, b->running ? "running" : "parked", o, f, o / f,
           sample_us(ours, 0), sample_us(ours, 1), sample_us(floor, 0), sample_us(floor, 1), ours->count);
    fflush(stdout);
}

static int run_load(struct bench *b, size_t load, unsigned int runs)
{
    int r;

    b->count.count = b->ranges.count = b->floor.count = b->get.count = 0;
    /* The first of each only warms up. */
    for (unsigned int i = 0; i <= runs; i++) {
        r = one_run(b, loads[load].pages, i % 2);
        if (r == 0)
            r = one_run(b, loads[load].pages, !(i % 2));
        if (r < 0)
            return r;
        if (i == 0)
            b->count.count = b->ranges.count = b->floor.count = b->get.count = 0;
    }
    print_figure(b, "count", loads[load].name, &b->count, &b->floor);
    print_figure(b, "ranges", loads[load].name, &b->ranges, &b->floor);
    /* With nothing dirty a program could do without the clear, if it knew without looking. */
    if (b->backend == DIRTY_BITMAP && loads[load].pages == 0)
        print_figure(b, "count-against-get", loads[load].name, &b->count, &b->get);
    return 0;
}

static int shuffle(struct bench *b)
{
    uint64_t state = 88172645463325252;
    size_t n = MEMORY / GUEST_PAGE_SIZE;

    b->order = calloc(n, sizeof(*b->order));
    b->bitmap = calloc(n / 64, sizeof(*b->bitmap));
    if (!b->order || !b->bitmap)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        b->order[i] = i;
    for (size_t i = n - 1; i > 0; i--) {
        pfn_t t = b->order[i];
        size_t j;

        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        j = state % (i + 1);
        b->order[i] = b->order[j];
        b->order[j] = t;
    }
    return 0;
}

static int set_up(struct bench *b, const char **reason)
{
    /* First touches are the largest noise there is. */
    struct mem_config mem = {.size = MEMORY, .prealloc = true};
    struct toy_config vm = {.vcpus = 1, .backend = b->backend, .initially_set = true, .ring_entries = RING_ENTRIES};
    struct dirty_config dirty = {.backend = b->backend, .initially_set = b->backend == DIRTY_BITMAP, .ops = &toy_dirty_ops};
    int r = mem_new(&mem, &b->mem);

    *reason = "guest memory";
    if (r == 0)
        r = toy_new(&vm, b->mem, &b->vm, reason);
    if (r < 0)
        return r;
    *reason = "dirty log";
    dirty.opaque = b->vm;
    r = dirty_log_new(b->mem, &dirty, &b->log);
    if (r == 0)
        r = toy_attach_log(b->vm, b->log);
    if (r == 0)
        r = dirty_log_start(b->log, "bench", DIRTY_START_CHANGES);
    if (r == 0)
        r = shuffle(b);
    toy_spin(b->vm, 0, b->running);
    return r;
}

static int run(enum dirty_backend backend, bool running, unsigned int runs, const char *load)
{
    struct bench b = {.backend = backend, .running = running};
    const char *reason;
    int r = set_up(&b, &reason);

    if (r < 0)
        log_err_errno(r, "bench: %s", reason);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(loads); i++) {
        if (!load || strcmp(load, loads[i].name) == 0)
            r = run_load(&b, i, runs ? runs : loads[i].runs);
        if (r < 0)
            log_err_errno(r, "bench: %s pages", loads[i].name);
    }
    toy_free(b.vm);
    dirty_log_free(b.log);
    mem_free(b.mem);
    free(b.order);
    free(b.bitmap);
    return r;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"runs", required_argument, NULL, 'r'}, {"load", required_argument, NULL, 'l'}, {0}};
    unsigned int runs = 0;
    const char *load = NULL;
    int c, r = 0;

    log_init("bench-dirty", NULL);
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'r' && atoi(optarg) > 0 && atoi(optarg) < SAMPLE_MAX) {
            runs = (unsigned int)atoi(optarg);
        } else if (c == 'l') {
            load = optarg;
        } else {
            fprintf(stderr, "usage: dirty [--runs N (1 to %d)] [--load 0|1k|50k|258k]\n", SAMPLE_MAX - 1);
            return 2;
        }
    }
    for (int running = 0; running < 2 && r == 0; running++) {
        r = run(DIRTY_BITMAP, running, runs, load);
        if (r == 0)
            r = run(DIRTY_RING, running, runs, load);
    }
    return r == -ENODEV ? 77 : r < 0;
}
