/* Floods: telling them, letting go, taking up again. */
#include "config.h"

#include "mmu/flood.h"

#include <string.h>

#include "base/util.h"
#include "mmu/mirror-internal.h"

/* "Three in a row": the number both patches use. */
#define FLOOD_STREAK 3u
/* A flooded table is quiet after so many looks without a change. */
#define FLOOD_QUIET_LOOKS 2u

bool flood_due(const struct mirror *m, const struct shadow_page *p)
{
    return (int32_t)(m->tick - p->next_look) >= 0;
}

/* What the entries say about themselves. */
static void census(const struct mirror *m, const struct shadow_page *p, struct mmu_flood *f, unsigned int *ret_foreign)
{
    *ret_foreign = 0;
    for (unsigned int group = 0; group < page_groups(p); group++) {
        uint32_t n = page_granule(m, p, group);
        const struct granule *g = n ? granule_at(m, n) : NULL;

        if (!g)
            continue;
        for (uint16_t left = g->present; left; left &= (uint16_t)(left - 1))
            f->accessed += (g->value[__builtin_ctz(left)] & GPTE_A) != 0;
        *ret_foreign += (unsigned int)__builtin_popcount(g->foreign);
    }
    f->present = p->present;
}

/*
 * Let go of a table. Whether it still is one: the entries of a live table are accessed, and sensible. (Linux presets
 * the accessed bit, so the bit alone shows no flood; but that it is missing, or that most entries cannot be used, shows
 * that these are no entries.) A root is never taken for data, its owner says when it goes.
 */
static void flood_begin(struct mirror *m, struct shadow_page *p, enum mmu_flood_reason reason, uint32_t count)
{
    struct mmu_flood *f = &m->floods[m->flood_count++ % MIRROR_FLOODS_MAX];
    unsigned int foreign;
    bool data;

    *f = (struct mmu_flood){.gfn = p->gfn, .level = page_role(p).level, .reason = reason, .count = count, .tick = m->tick};
    census(m, p, f, &foreign);
    data = !p->root && f->present && (!f->accessed || foreign > f->present / 2);
    f->action = data ? MMU_FLOOD_DROP : MMU_FLOOD_POLL;
    m->stats.floods++;
    m->stats.stale++;
    p->flags |= PAGE_FLOODED | (data ? PAGE_DATA : 0);
    p->quiet = 0;
    p->checksum = 0;
    p->next_look = m->tick + FLOOD_LOOK_TICKS;
    if (data)
        shadow_zap_entries(m, p);
    shadow_watch(m, p, false);
}

void flood_take_up(struct mirror *m, struct shadow_page *p)
{
    p->flags &= (uint8_t)~(PAGE_FLOODED | PAGE_DATA);
    p->streak = 0;
    m->stats.stale--;
    /* Protect first, then read: the caller reads, or its contents are of a look that found no change. */
    shadow_watch(m, p, true);
}

void flood_note(struct mirror *m, struct shadow_page *p, bool changed)
{
    if (p->flags & PAGE_NEW)
        return;
    if (p->flags & PAGE_FLOODED) {
        p->next_look = m->tick + FLOOD_LOOK_TICKS;
        p->quiet = changed ? 0 : (uint8_t)(p->quiet + 1);
        if (p->quiet >= FLOOD_QUIET_LOOKS || !m->floods_on) {
            flood_take_up(m, p);
            /* It was read before it was watched again: once more, as soon as tables are read. */
            shadow_queue(m, page_number(m, p));
        }
        return;
    }
    if (!changed) {
        p->streak = 0;
        return;
    }
    p->streak = p->last_tick + 1 == m->tick ? (uint8_t)(p->streak + 1) : 1;
    p->last_tick = m->tick;
    if (p->streak >= FLOOD_STREAK && m->floods_on)
        flood_begin(m, p, MMU_FLOOD_TICKS, p->streak);
}

bool flood_look_at_data(struct mirror *m, struct shadow_page *p, const void *contents, size_t size)
{
    const uint32_t *words = contents;
    uint32_t sum = 1;

    /* FNV-1a over words: any change shows but for one in 2^32. */
    for (size_t i = 0; i < size / sizeof(*words); i++)
        sum = (sum ^ words[i]) * UINT32_C(16777619);
    p->quiet = sum == p->checksum ? (uint8_t)(p->quiet + 1) : 0;
    p->checksum = sum;
    p->next_look = m->tick + FLOOD_LOOK_TICKS;
    return p->quiet >= FLOOD_QUIET_LOOKS || !m->floods_on;
}

bool mirror_written(struct mirror *m, gfn_t gfn)
{
    bool flooded = false;

    m->written_in_row = gfn == m->last_written ? m->written_in_row + 1 : 1;
    m->last_written = gfn;
    for (uint32_t n = 0; (n = shadow_next_of(m, gfn, n)) != 0;) {
        struct shadow_page *p = page_at(m, n);

        if (p->flags & PAGE_FLOODED)
            flooded = true;
        else if (m->written_in_row >= FLOOD_STREAK && m->floods_on) {
            flood_begin(m, p, MMU_FLOOD_WRITES, m->written_in_row);
            flooded = true;
        } else
            shadow_queue(m, n);
    }
    shadow_reap(m);
    return flooded;
}

size_t mirror_floods(const struct mirror *m, struct mmu_flood *ret, size_t limit)
{
    size_t held = (size_t)MIN(m->flood_count, (uint64_t)MIRROR_FLOODS_MAX), n = MIN(held, limit);

    for (size_t i = 0; i < n; i++)
        ret[i] = m->floods[(m->flood_count - 1 - i) % MIRROR_FLOODS_MAX];
    return n;
}

uint64_t mirror_tick(const struct mirror *m)
{
    return m->tick;
}

void mirror_set_floods(struct mirror *m, bool on)
{
    m->floods_on = on;
    for (uint32_t page = 1; !on && page < m->pages.next; page++)
        if (page_at(m, page)->role && page_at(m, page)->flags & PAGE_FLOODED)
            page_at(m, page)->next_look = m->tick;
}
