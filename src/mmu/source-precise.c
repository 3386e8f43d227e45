/*
 * userfaultfd as a source (precise.h). Which tables the guest has written is known exactly: they stay unprotected, and may be out
 * of step with the mirror, until the next tick but one protects them again. A table that is new is treated as one that was written:
 * it is most likely just being filled, or will be gone by then. All of these are read at every tick.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "mmu/precise.h"
#include "mmu/source.h"

#define EVENTS_MAX 256u

struct precise_source {
    struct mmu_source source;
    struct precise *precise;
    uint64_t events;
};

static struct precise_source *of(struct mmu_source *s)
{
    return container_of(s, struct precise_source, source);
}

static int start(struct mmu_source *s)
{
    return precise_error(of(s)->precise);
}

/* Unprotect only: unregistering would make KVM drop all that it has shadowed. */
static void stop(struct mmu_source *s)
{
    (void)precise_unwatch_all(of(s)->precise);
}

static void watch(struct mmu_source *s, gfn_t gfn, bool on)
{
    struct precise *p = of(s)->precise;

    /* A failure shows in precise_error at the next collect, and frames outside of RAM are never tables. */
    (void)(on ? precise_watch_soon(p, gfn) : precise_watch(p, gfn, false));
}

/*
 * Protect again only what was written a tick ago or longer: a table that a vCPU writes over and over would otherwise fault at
 * each of its writes, and the vCPU may make no way at all.
 */
static int collect(struct mmu_source *s, struct mirror *m, uint64_t before_ns, struct gfn_list *changed)
{
    struct precise_source *p = of(s);
    gfn_t gfns[EVENTS_MAX];
    size_t n, at = 0;
    int r = 0;

    do {
        n = precise_events(p->precise, gfns, EVENTS_MAX);
        for (size_t i = 0; i < n; i++)
            (void)mirror_written(m, gfns[i]);
        p->events += n;
    } while (n == EVENTS_MAX);
    do {
        n = precise_reprotect(p->precise, before_ns, gfns, EVENTS_MAX);
        for (size_t i = 0; i < n && r == 0; i++)
            r = gfn_list_add(changed, gfns[i]);
    } while (n == EVENTS_MAX);
    do {
        n = precise_unprotected(p->precise, &at, gfns, EVENTS_MAX);
        for (size_t i = 0; i < n && r == 0; i++)
            r = gfn_list_add(changed, gfns[i]);
    } while (n == EVENTS_MAX);
    if (precise_error(p->precise) < 0)
        return precise_error(p->precise);
    return r < 0 ? SOURCE_ALL : 0;
}

static uint64_t events(struct mmu_source *s)
{
    return of(s)->events;
}

static void source_free(struct mmu_source *s)
{
    precise_free(of(s)->precise);
    free(of(s));
}

static const struct mmu_source_ops ops = {
    .name = "userfaultfd",
    .start = start,
    .stop = stop,
    .watch = watch,
    .collect = collect,
    .events = events,
    .free = source_free,
};

int source_precise_new(struct mem *mem, struct mmu_source **ret)
{
    struct precise_source *p = calloc(1, sizeof(*p));
    int r;

    if (!p)
        return -ENOMEM;
    *p = (struct precise_source){.source = {.ops = &ops}};
    r = precise_new(mem, -1, &p->precise);
    if (r < 0) {
        free(p);
        return r;
    }
    *ret = &p->source;
    return 0;
}
