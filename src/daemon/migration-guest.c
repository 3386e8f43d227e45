#include "config.h"

#include "daemon/migration-guest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "daemon/machine-mmu.h"
#include "vcpu/vm.h"

/* How many address spaces are named. */
#define WHO_SPACES 3
/* The guest runs for so long between two slices that are taken from it. */
#define RUN_US 10000u
/* Up to this percentage only one address space is slowed down. */
#define AIMED_MOST 50u
#define PERCENT_MOST 99u

/* -- who writes -- */

static const struct mem *memory_of(struct machine *m)
{
    return vm_mem(machine_vm(m));
}

void migration_tables(struct machine *m, const struct page_set *pages, struct page_set *into)
{
    struct tracker *t = machine_mmu_tracker(machine_mmu(m));
    struct page_set_walk walk = page_set_walk_from(pages, 0);
    struct tracker_settings settings;
    struct mirror *mirror;

    tracker_settings(t, &settings);
    if (pages->pages == 0 || settings.mode == TRACKER_OFF || settings.mode == TRACKER_ON_DEMAND ||
        tracker_lock(t, TRACKER_RECENT, &mirror, NULL) < 0)
        return;
    while (page_set_walk_word(pages, &walk)) {
        pfn_t page = walk.word * 64 + (unsigned int)__builtin_ctzll(walk.bits);

        walk.bits &= walk.bits - 1;
        if (mirror_is_table(mirror, mem_pfn_to_gfn(memory_of(m), page)))
            page_set_add(into, page);
    }
    tracker_unlock(t);
}

static const struct mmu_range *largest_range(const struct mmu_attribution *a, const struct mmu_space *s)
{
    const struct mmu_range *best = &a->ranges[s->first_range];

    for (size_t i = 1; i < s->ranges; i++)
        if (a->ranges[s->first_range + i].pages > best->pages)
            best = &a->ranges[s->first_range + i];
    return best;
}

static void describe(const struct mmu_attribution *a, char *text, size_t size)
{
    size_t at = 0;

    for (size_t i = 0; i < MIN(a->space_count, (size_t)WHO_SPACES) && at < size; i++) {
        const struct mmu_space *s = &a->spaces[i];
        char name[40] = "the kernel";

        if (!s->kernel)
            snprintf(name, sizeof(name), "address space %#" PRIx64, s->cr3);
        at += (size_t)snprintf(text + at, size - at, "%s%s: %" PRIu64 " pages", i ? "; " : "", name, s->pages);
        if (at < size && s->ranges > 0) {
            const struct mmu_range *r = largest_range(a, s);

            at += (size_t)snprintf(text + at, size - at, ", %" PRIu64 " at %#" PRIx64, r->pages, r->start);
        }
    }
}

void migration_who(struct machine *m, const struct page_set *pages, char *text, size_t size, gpa_t *ret_cr3)
{
    struct tracker *t = machine_mmu_tracker(machine_mmu(m));
    struct mmu_attribution a;
    struct mirror *mirror;
    int r;

    text[0] = '\0';
    *ret_cr3 = GFN_INVALID;
    if (tracker_lock(t, TRACKER_RECENT, &mirror, NULL) < 0)
        return;
    r = mirror_attribute(mirror, pages, &a);
    tracker_unlock(t);
    if (r < 0)
        return;
    describe(&a, text, size);
    for (size_t i = 0; i < a.space_count && *ret_cr3 == GFN_INVALID; i++)
        if (!a.spaces[i].kernel)
            *ret_cr3 = a.spaces[i].cr3;
    mmu_attribution_free(&a);
}

/* -- slowing it down -- */

static void arm(struct migration_throttle *t, uint64_t us)
{
    struct timeval tv = {.tv_sec = (time_t)(us / 1000000), .tv_usec = (suseconds_t)(us % 1000000)};

    (void)event_add(t->timer, &tv);
}

/* Is some vCPU, all of them parked, in the address space that is to be slowed down? */
static bool hits(struct migration_throttle *t)
{
    struct vm *vm = machine_vm(t->machine);
    bool hit = t->cr3 == GFN_INVALID || t->percent > AIMED_MOST;

    if (!hit)
        vm_note_paging(vm);
    for (unsigned int i = 0; i < vm_cpus(vm) && !hit; i++) {
        struct vcpu_paging p;

        vm_paging(vm, i, &p);
        /* The two roots of a process under KPTI lie beside each other. */
        hit = (gpa_to_gfn(p.cr3) ^ gpa_to_gfn(t->cr3)) <= 1;
    }
    return hit;
}

/* Whoever paused the guest meanwhile, and in whatever state it is: only one that is to run is let run. */
static void let_go(struct migration_throttle *t)
{
    if (!t->holding)
        return;
    t->holding = false;
    t->held_ns += clock_ns() - t->since_ns;
    if (machine_run_state(t->machine) == RUN_STATE_RUNNING)
        vm_resume(machine_vm(t->machine));
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct migration_throttle *t = arg;
    bool held = t->holding;

    let_go(t);
    if (held || machine_run_state(t->machine) != RUN_STATE_RUNNING) {
        arm(t, RUN_US);
        return;
    }
    t->since_ns = clock_ns();
    vm_pause(machine_vm(t->machine));
    t->holding = true;
    if (hits(t)) {
        arm(t, (uint64_t)RUN_US * t->percent / (100 - t->percent));
        return;
    }
    let_go(t);
    arm(t, RUN_US);
}

int migration_throttle_init(struct migration_throttle *t, struct event_base *events, struct machine *machine)
{
    *t = (struct migration_throttle){.machine = machine, .cr3 = GFN_INVALID};
    t->timer = event_new(events, -1, 0, on_timer, t);
    return t->timer ? 0 : -ENOMEM;
}

void migration_throttle_clear(struct migration_throttle *t)
{
    if (t->timer)
        event_free(t->timer);
    t->timer = NULL;
}

void migration_throttle_set(struct migration_throttle *t, unsigned int percent, gpa_t cr3)
{
    if (percent == t->percent && cr3 == t->cr3)
        return;
    if (percent > 0 && t->percent == 0) {
        t->held_ns = 0;
        arm(t, RUN_US);
    }
    if (percent != t->percent)
        log_info("migration: %u %% of the guest's time are taken%s", percent,
                 percent > 0 && percent <= AIMED_MOST && cr3 != GFN_INVALID ? " from the address space that writes most" : "");
    t->percent = MIN(percent, PERCENT_MOST);
    t->cr3 = cr3;
    if (percent == 0) {
        (void)event_del(t->timer);
        let_go(t);
    }
}
