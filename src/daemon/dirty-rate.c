#include "config.h"

#include "daemon/dirty-rate.h"

#include <errno.h>
#include <event2/event_struct.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "daemon/machine.h"
#include "mmu/dirty.h"
#include "mmu/mem.h"

/* Pages hashed in one turn of the main loop: about 0.2 ms. */
#define PAGES_A_TURN 128

/* A page that stands for others. */
struct sample {
    pfn_t pfn;
    uint64_t hash;
};

enum phase {
    FIRST_PASS,
    SECOND_PASS,
    COUNTING, /* the dirty log does the work */
};

struct dirty_rate {
    struct event_base *events;
    struct machine *machine;
    struct event timer;
    struct dirty_rate_info info;
    enum phase phase;
    uint64_t begin_ns, second_ns; /* when the passes, or the counting, began */
    struct sample *samples;
    size_t sample_count, next;
    size_t changed;
    uint32_t ring_begin[VM_MAX_VCPUS];
};

static const struct mem *guest_memory(struct dirty_rate *d)
{
    return vm_mem(machine_vm(d->machine));
}

static struct dirty_log *guest_log(struct dirty_rate *d)
{
    return vm_dirty_log(machine_vm(d->machine));
}

static void wait_ns(struct dirty_rate *d, uint64_t ns)
{
    struct timeval tv = {.tv_sec = (time_t)(ns / NSEC_PER_SEC),
                         .tv_usec = (suseconds_t)(ns % NSEC_PER_SEC / NSEC_PER_USEC)};

    evtimer_add(&d->timer, &tv);
}

/* Pages in ns nanoseconds as MiB a second. */
static uint64_t mib_per_second(uint64_t pages, uint64_t ns)
{
    return (uint64_t)((double)pages_to_bytes(pages) / (double)MiB * (double)NSEC_PER_SEC / (double)MAX(ns, UINT64_C(1)));
}

static void finish(struct dirty_rate *d, enum dirty_rate_state state)
{
    d->info.state = state;
    free(d->samples);
    d->samples = NULL;
    d->sample_count = 0;
}

static void fail(struct dirty_rate *d, int err)
{
    log_warn_errno(err, "calc-dirty-rate: no result");
    finish(d, DIRTY_RATE_UNSTARTED);
}

/* -- page sampling ----------------------------------------------------------- */

/* Not for those who choose what it hashes: two pages that collide look unchanged, no more. */
static uint64_t hash_page(const uint8_t *page)
{
    uint64_t h = UINT64_C(0x9e3779b97f4a7c15);

    for (size_t i = 0; i < GUEST_PAGE_SIZE; i += 8) {
        h = (h ^ le64_get(page + i)) * UINT64_C(0xd6e8feb86659fd93);
        h ^= h >> 32;
    }
    return h;
}

/* Hash the next pages. */
static int hash_some(struct dirty_rate *d)
{
    size_t end = MIN(d->next + PAGES_A_TURN, d->sample_count);
    uint8_t page[GUEST_PAGE_SIZE];

    for (; d->next < end; d->next++) {
        struct sample *s = &d->samples[d->next];
        uint64_t hash;
        int r = mem_copy_pages(guest_memory(d), s->pfn, 1, page);

        if (r < 0)
            return r;
        hash = hash_page(page);
        if (d->phase == FIRST_PASS)
            s->hash = hash;
        else
            d->changed += hash != s->hash;
    }
    return 0;
}

static void finish_sampling(struct dirty_rate *d)
{
    double share = (double)d->changed / (double)d->sample_count;

    d->info.rate = mib_per_second((uint64_t)(share * (double)mem_pages(guest_memory(d))), d->second_ns - d->begin_ns);
    finish(d, DIRTY_RATE_MEASURED);
}

static void sample_turn(struct dirty_rate *d)
{
    uint64_t now = clock_ns(), end = d->begin_ns + d->info.calc_time * NSEC_PER_SEC;
    int r;

    /* Each page is looked at again as long after the first time as every other. */
    if (d->phase == SECOND_PASS && d->next == 0)
        d->second_ns = now;
    r = hash_some(d);
    if (r < 0) {
        fail(d, r);
    } else if (d->next < d->sample_count) {
        wait_ns(d, 0);
    } else if (d->phase == FIRST_PASS) {
        d->phase = SECOND_PASS;
        d->next = 0;
        now = clock_ns();
        wait_ns(d, end > now ? end - now : 0);
    } else {
        finish_sampling(d);
    }
}

static int start_sampling(struct dirty_rate *d)
{
    uint64_t pages = mem_pages(guest_memory(d)), x = clock_ns() | 1;
    uint64_t count = pages_to_bytes(pages) / MiB * d->info.samples / 1024;

    /* A small guest would have a handful only. Its size is 256 pages at least. */
    count = MAX(count, (uint64_t)DIRTY_RATE_SAMPLES_MIN);
    d->samples = calloc((size_t)count, sizeof(*d->samples));
    if (!d->samples)
        return -ENOMEM;
    d->sample_count = count;
    for (uint64_t i = 0; i < count; i++) {
        /* Marsaglia's xorshift64. */
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        d->samples[i].pfn = x % pages;
    }
    d->phase = FIRST_PASS;
    d->next = d->changed = 0;
    d->begin_ns = clock_ns();
    wait_ns(d, 0);
    return 0;
}

/* -- the dirty log ----------------------------------------------------------- */

static int start_counting(struct dirty_rate *d)
{
    int r = dirty_log_start(guest_log(d), DIRTY_RATE_CONSUMER, DIRTY_START_CHANGES);

    if (r < 0)
        return r;
    d->info.vcpus = d->info.mode == DIRTY_RATE_RING ? vm_cpus(machine_vm(d->machine)) : 0;
    for (unsigned int i = 0; i < d->info.vcpus; i++)
        d->ring_begin[i] = dirty_log_ring_taken(guest_log(d), i);
    d->phase = COUNTING;
    d->begin_ns = clock_ns();
    wait_ns(d, d->info.calc_time * NSEC_PER_SEC);
    return 0;
}

static void finish_counting(struct dirty_rate *d)
{
    struct dirty_log *log = guest_log(d);
    /* Counting a ring means taking what is in it; with bitmaps the guest need not pay for a second protection. */
    bool peek = d->info.mode == DIRTY_RATE_BITMAP;
    uint64_t ns = clock_ns() - d->begin_ns;
    struct dirty_snapshot snapshot;
    int r = dirty_log_snapshot_lock(log, DIRTY_RATE_CONSUMER, peek, &snapshot);

    if (r == 0)
        dirty_log_unlock(log);
    dirty_log_stop(log, DIRTY_RATE_CONSUMER);
    if (r < 0) {
        fail(d, r);
        return;
    }
    d->info.rate = mib_per_second(snapshot.pages, ns);
    for (unsigned int i = 0; i < d->info.vcpus; i++)
        d->info.vcpu_rate[i] = mib_per_second(dirty_log_ring_taken(log, i) - d->ring_begin[i], ns);
    finish(d, DIRTY_RATE_MEASURED);
}

/* ---------------------------------------------------------------------------- */

static void on_timer(evutil_socket_t fd, short what, void *opaque)
{
    struct dirty_rate *d = opaque;

    if (d->phase == COUNTING)
        finish_counting(d);
    else
        sample_turn(d);
}

int dirty_rate_start(struct dirty_rate *d, enum dirty_rate_mode mode, unsigned int seconds, unsigned int samples)
{
    struct dirty_rate_info before = d->info;
    int r;

    if (d->info.state == DIRTY_RATE_MEASURING)
        return -EBUSY;
    if (mode != DIRTY_RATE_PAGE_SAMPLING &&
        dirty_log_backend(guest_log(d)) != (mode == DIRTY_RATE_RING ? DIRTY_RING : DIRTY_BITMAP))
        return -ENOTSUP;
    d->info = (struct dirty_rate_info){
        .state = DIRTY_RATE_MEASURING,
        .mode = mode,
        .samples = mode == DIRTY_RATE_PAGE_SAMPLING ? samples : 0,
        .start_time = clock_ns() / NSEC_PER_SEC,
        .calc_time = seconds,
    };
    r = mode == DIRTY_RATE_PAGE_SAMPLING ? start_sampling(d) : start_counting(d);
    if (r < 0)
        d->info = before;
    return r;
}

const struct dirty_rate_info *dirty_rate_info(const struct dirty_rate *d)
{
    return &d->info;
}

int dirty_rate_new(struct event_base *events, struct machine *machine, struct dirty_rate **ret)
{
    struct dirty_rate *d = calloc(1, sizeof(*d));

    if (!d)
        return -ENOMEM;
    d->events = events;
    d->machine = machine;
    evtimer_assign(&d->timer, events, on_timer, d);
    *ret = d;
    return 0;
}

void dirty_rate_free(struct dirty_rate *d)
{
    if (!d)
        return;
    evtimer_del(&d->timer);
    if (d->info.state == DIRTY_RATE_MEASURING && d->phase == COUNTING)
        dirty_log_stop(guest_log(d), DIRTY_RATE_CONSUMER);
    free(d->samples);
    free(d);
}
