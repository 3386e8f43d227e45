/*
 * The dirty log as a source, while somebody else has it running. Every harvest is heard of; between two of them the tables alone
 * are cleared early (dirty_log_early), which costs the guest a fault for each table it writes and nothing for its data.
 *
 * GET, CLEAR, then read: a table written after CLEAR has its bit again and is read at the next tick. A frame that becomes a
 * table needs no protecting: if it was written since the last harvest its bit stands, and is found by the next early look.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "mmu/source.h"

struct dirty_source {
    struct mmu_source source;
    struct mem *mem;
    struct dirty_log *log;
    struct page_set tables; /* frames that are watched */
    struct page_set heard;  /* what one look gave */
    struct page_set fresh;  /* and all looks since the last scan for roots */
    bool any;               /* something went unheard: any page may be a new root */
    uint64_t events;
};

static struct dirty_source *of(struct mmu_source *s)
{
    return container_of(s, struct dirty_source, source);
}

static int start(struct mmu_source *s)
{
    struct dirty_source *d = of(s);

    page_set_clear(&d->tables);
    page_set_clear(&d->fresh);
    d->any = true;
    return dirty_log_listen(d->log, true);
}

static void stop(struct mmu_source *s)
{
    dirty_log_listen(of(s)->log, false);
}

static void watch(struct mmu_source *s, gfn_t gfn, bool on)
{
    struct dirty_source *d = of(s);
    pfn_t pfn;

    if (!mem_gfn_to_pfn(d->mem, gfn, &pfn))
        return;
    if (on)
        page_set_add(&d->tables, pfn);
    else
        page_set_remove(&d->tables, pfn);
}

static int collect(struct mmu_source *s, struct mirror *m, uint64_t before_ns, struct gfn_list *changed)
{
    struct dirty_source *d = of(s);
    struct page_set_walk w;
    int r;

    page_set_clear(&d->heard);
    r = dirty_log_early(d->log, &d->tables, &d->heard);
    if (r < 0) {
        d->any = true;
        return SOURCE_ALL;
    }
    page_set_merge(&d->fresh, &d->heard);
    w = page_set_walk_from(&d->heard, 0);
    while (page_set_walk_word(&d->heard, &w))
        for (w.bits &= d->tables.map[w.word]; w.bits; w.bits &= w.bits - 1) {
            pfn_t pfn = w.word * 64 + (unsigned int)__builtin_ctzll(w.bits);

            d->events++;
            if (gfn_list_add(changed, mem_pfn_to_gfn(d->mem, pfn)) < 0)
                return SOURCE_ALL;
        }
    return 0;
}

static bool fresh(struct mmu_source *s, struct page_set *into)
{
    struct dirty_source *d = of(s);
    bool known = !d->any;

    page_set_swap(into, &d->fresh);
    if (!known)
        page_set_clear(into);
    d->any = false;
    return known;
}

static uint64_t events(struct mmu_source *s)
{
    return of(s)->events;
}

static void dirty_free(struct mmu_source *s)
{
    struct dirty_source *d = of(s);

    page_set_free(&d->tables);
    page_set_free(&d->heard);
    page_set_free(&d->fresh);
    free(d);
}

static const struct mmu_source_ops ops = {
    .name = "dirty-log",
    .start = start,
    .stop = stop,
    .watch = watch,
    .collect = collect,
    .fresh = fresh,
    .events = events,
    .free = dirty_free,
};

int source_dirty_new(struct mem *mem, struct dirty_log *log, struct mmu_source **ret)
{
    struct dirty_source *d = calloc(1, sizeof(*d));
    int r;

    if (!d)
        return -ENOMEM;
    *d = (struct dirty_source){.source = {.ops = &ops}, .mem = mem, .log = log};
    r = page_set_init(&d->tables, mem_pages(mem));
    if (r == 0)
        r = page_set_init(&d->heard, mem_pages(mem));
    if (r == 0)
        r = page_set_init(&d->fresh, mem_pages(mem));
    if (r < 0) {
        dirty_free(&d->source);
        return r;
    }
    *ret = &d->source;
    return 0;
}
