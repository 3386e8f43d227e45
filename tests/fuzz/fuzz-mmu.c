/*
 * The MMU mirror over guest memory that the input writes: paging mode, CR3 values, entries, whole pages, and in between
 * every call the mirror has. Whatever the tables say, after a forced sync the mirror is what a fresh walk finds, and when the last
 * root goes nothing is left.
 *
 * Input: one byte of paging mode, then operations of a byte and its arguments.
 */
#include "config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "mmu/attribute.h"
#include "mmu/flood.h"
#include "mmu/mirror.h"
#include "mmu/protect.h"
#include "mmu/query.h"
#include "mmu/scan.h"

#define RAM (1 * MiB)
#define FRAMES (RAM / GUEST_PAGE_SIZE)
#define MAX_OPS 400
#define MAX_QUERY 256

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t left;
};

static uint64_t take(struct input *in, size_t bytes)
{
    uint64_t v = 0;

    bytes = MIN(bytes, in->left);
    memcpy(&v, in->data, bytes);
    in->data += bytes;
    in->left -= bytes;
    return v;
}

struct world {
    struct mem *mem;
    struct mirror *m;
    struct mmu_paging paging;
    struct root_signature sig;
    uint64_t now;
};

static gpa_t take_table(struct input *in)
{
    return gfn_to_gpa(take(in, 1) % FRAMES);
}

static void verify(struct world *w)
{
    struct mirror_verdict v;
    struct mirror_stats s;

    if (mirror_sync(w->m, true) < 0)
        return;
    mirror_stats(w->m, &s);
    assert(s.memory <= MIRROR_MAX_MEMORY_MIN);
    assert(mirror_verify(w->m, &v) == 0);
    assert(v.broken_links == 0);
    assert(v.missing == 0 && v.extra == 0 && v.mismatched == 0);
}

static void write_entries(struct world *w, struct input *in)
{
    gpa_t table = take_table(in);
    uint64_t first = take(in, 2) % 512, count = take(in, 1), value = take(in, 8), step = take(in, 2);

    for (uint64_t i = first; i <= first + count && i < 512; i++, value += step << GUEST_PAGE_SHIFT)
        (void)mem_write(w->mem, table + i * 8, &value, sizeof(value));
}

static void query(struct world *w, struct input *in)
{
    static struct mmu_mapping found[MAX_QUERY];
    bool more;
    size_t n = mirror_query(w->m, take(in, 4), found, ARRAY_SIZE(found), &more);

    for (size_t i = 0; i < n; i++)
        assert(found[i].gva == mmu_canonical(w->paging.levels, found[i].gva));
}

static void with_dirty(struct world *w, struct input *in)
{
    struct page_set dirty;
    struct mmu_attribution a;
    struct mmu_protect rmap, walk;

    if (page_set_init(&dirty, mem_pages(w->mem)) < 0)
        return;
    for (pfn_t at = take(in, 1); at < mem_pages(w->mem); at += 1 + take(in, 1) % 16)
        page_set_add(&dirty, at);
    mirror_write_protect(w->m, &dirty, MMU_PROTECT_RMAP, &rmap);
    mirror_write_protect(w->m, &dirty, MMU_PROTECT_WALK, &walk);
    assert(rmap.entries == walk.entries && walk.marked == 0);
    if (mirror_attribute(w->m, &dirty, &a) == 0) {
        assert(a.user + a.kernel + a.unmapped == a.dirty);
        mmu_attribution_free(&a);
    }
    page_set_free(&dirty);
}

static void scan(struct world *w, struct input *in)
{
    gfn_t candidates[FRAMES];
    struct root_scan found = {.found = 0};

    for (size_t i = 0; i < ARRAY_SIZE(candidates); i++)
        candidates[i] = i;
    (void)root_signature_learn(&w->sig, w->mem, take_table(in), &w->paging);
    (void)root_scan(w->m, w->mem, &w->sig, candidates, ARRAY_SIZE(candidates), w->now, &found);
}

static void one(struct world *w, struct input *in)
{
    struct mmu_translation t;
    gfn_t gfns[2];
    gpa_t cr3;

    w->now++;
    switch (take(in, 1) % 13) {
    case 0:
    case 1:
        write_entries(w, in);
        break;
    case 2:
        (void)mem_set(w->mem, take_table(in), (int)take(in, 1), GUEST_PAGE_SIZE);
        break;
    case 3:
        cr3 = take_table(in) + take(in, 1) % 128 * 32;
        (void)mirror_root_add(w->m, cr3, &w->paging, MMU_ROOT_USER, w->now);
        break;
    case 4:
        cr3 = take_table(in) + take(in, 1) % 128 * 32;
        (void)mirror_root_drop(w->m, cr3, &w->paging);
        break;
    case 5:
        (void)mirror_root_add(w->m, take(in, 8), &w->paging, MMU_ROOT_USER, w->now);
        break;
    case 6:
        (void)mirror_sync(w->m, false);
        break;
    case 7:
        gfns[0] = take(in, 1);
        gfns[1] = take(in, 8);
        (void)mirror_sync_gfns(w->m, gfns, 2);
        break;
    case 8:
        (void)mirror_written(w->m, take(in, 1));
        break;
    case 9:
        query(w, in);
        break;
    case 10:
        with_dirty(w, in);
        break;
    case 11:
        scan(w, in);
        (void)mirror_roots_retire(w->m, w->now, 2);
        break;
    case 12:
        cr3 = take_table(in);
        (void)mmu_walk(w->mem, &(struct gpt_cpu){.maxphyaddr = 40, .gbpages = true}, &w->paging, cr3, take(in, 8), &t);
        verify(w);
        break;
    }
}

static void drop_all(struct world *w)
{
    struct mmu_root root;
    struct mirror_stats s;

    for (uint32_t cursor = 0; mirror_root_next(w->m, &cursor, &root); cursor = 0)
        assert(mirror_root_drop(w->m, root.cr3, &root.paging) == 0);
    mirror_stats(w->m, &s);
    assert(s.roots == 0 && s.entries == 0 && s.incomplete == 0 && s.stale == 0);
    for (size_t level = 0; level < ARRAY_SIZE(s.pages); level++)
        assert(s.pages[level] == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {.data = data, .left = size};
    struct mem_config mem = {.size = RAM};
    struct mirror_config config = {.cpu = {.maxphyaddr = 40}, .max_memory = MIRROR_MAX_MEMORY_MIN};
    struct world w = {.now = 1};
    uint8_t mode = (uint8_t)take(&in, 1);

    log_set_level(LOG_LEVEL_ERR);
    w.paging = (struct mmu_paging){.levels = 2 + mode % 4, .pse = mode & 4, .nx = mode & 8};
    config.cpu.gbpages = mode & 16;
    config.no_floods = mode & 32;
    if (mem_new(&mem, &w.mem) < 0)
        return 0;
    config.mem = w.mem;
    if (mirror_new(&config, &w.m) == 0) {
        for (int i = 0; i < MAX_OPS && in.left; i++)
            one(&w, &in);
        verify(&w);
        drop_all(&w);
    }
    mirror_free(w.m);
    mem_free(w.mem);
    return 0;
}
