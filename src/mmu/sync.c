/*
 * Taking over what the guest changed. After "KVM: Update shadow pte on write to guest pte" (2007): a changed entry is
 * changed in place, its table is not dropped to be walked again. After "KVM: x86: optimize for guest page written" (2011): a
 * table that was cleared as a whole is zapped once, and a change of accessed or dirty bits or of rights leaves the links
 * alone.
 *
 * Tables are read top level first, so that one that is no longer reached is known before it is read, and a new one is read
 * in the same pass.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "mmu/mirror-internal.h"

/* One table being read. */
struct pass {
    struct mirror *m;
    struct shadow_page *p;
    uint32_t page;
    union shadow_role role;
    struct gpt_format format;
    uint64_t raw[GUEST_PAGE_SIZE / 8];
    bool changed;                        /* more than A/D bits */
    unsigned int user_before, user_kept; /* entries of a root's user half */
};

/* Sixteen entries as guest memory has them. */
struct decoded {
    uint16_t present, large, foreign;
    gpte_t value[GRANULE_ENTRIES];
};

static bool any_set(const uint64_t *raw, unsigned int words)
{
    uint64_t any = 0;

    for (unsigned int i = 0; i < words; i++)
        any |= raw[i];
    return any != 0;
}

static inline void decode_one(const struct pass *s, struct decoded *d, unsigned int slot, uint64_t v)
{
    enum gpte_kind kind = gpte_decode(&s->format, v, &d->value[slot]);
    uint16_t bit = (uint16_t)(1u << slot);

    d->present |= kind == GPTE_NONE ? 0 : bit;
    d->large |= kind == GPTE_LARGE ? bit : 0;
    d->foreign |= kind == GPTE_FOREIGN ? bit : 0;
}

/* False: nothing is present, and *d is empty. Most groups of most tables are zeros. */
static bool decode_group(const struct pass *s, unsigned int group, struct decoded *d)
{
    unsigned int words = s->format.entry_size == 8 ? GRANULE_ENTRIES : GRANULE_ENTRIES / 2;
    const uint64_t *raw = &s->raw[group * words];

    d->present = d->large = d->foreign = 0;
    if (words == GRANULE_ENTRIES ? !any_set(raw, GRANULE_ENTRIES) : !any_set(raw, GRANULE_ENTRIES / 2)) {
        memset(d->value, 0, sizeof(d->value));
        return false;
    }
    if (words == GRANULE_ENTRIES)
        for (unsigned int i = 0; i < GRANULE_ENTRIES; i++)
            decode_one(s, d, i, raw[i]);
    else
        for (unsigned int i = 0; i < GRANULE_ENTRIES; i++)
            decode_one(s, d, i, raw[i / 2] >> (i % 2 * 32) & UINT32_MAX);
    return d->present != 0;
}

static void clear_slot(struct pass *s, struct granule *g, unsigned int slot)
{
    uint16_t keep = (uint16_t)~(1u << slot);

    g->present &= keep;
    g->large &= keep;
    g->foreign &= keep;
    g->write_off &= keep;
    g->value[slot] = 0;
    s->p->present--;
    s->m->stats.entries--;
    s->m->stats.entries_unlinked++;
}

static void set_slot(struct pass *s, struct granule *g, unsigned int slot, const struct decoded *d)
{
    uint16_t bit = (uint16_t)(1u << slot);

    g->present |= bit;
    g->large |= d->large & bit;
    g->foreign |= d->foreign & bit;
    g->value[slot] = d->value[slot];
    s->p->present++;
    s->m->stats.entries++;
    s->m->stats.entries_linked++;
}

static enum gpte_kind decoded_kind(const struct pass *s, const struct decoded *d, unsigned int slot)
{
    struct granule as = {.present = d->present, .large = d->large, .foreign = d->foreign};

    return granule_kind(&as, slot, s->role);
}

static int sync_entry(struct pass *s, uint32_t granule, unsigned int slot, const struct decoded *d)
{
    struct granule *g = granule_at(s->m, granule);
    enum gpte_kind old = granule_kind(g, slot, s->role), new = decoded_kind(s, d, slot);
    gpte_t was = g->value[slot], is = d->value[slot];
    node_t id = node_id(granule, slot);

    if (old == new && gpte_gfn(was) == gpte_gfn(is)) {
        if (was == is)
            return 0;
        g->value[slot] = is;
        if ((was ^ is) & ~(GPTE_A | GPTE_D)) {
            s->changed = true;
            g->write_off &= (uint16_t)~(1u << slot);
            s->m->stats.entries_updated++;
        } else {
            s->m->stats.ad_updates++;
        }
        return 0;
    }
    s->changed = true;
    if (old != GPTE_NONE) {
        shadow_unlink(s->m, s->role, id, old, was);
        clear_slot(s, g, slot);
    }
    if (new == GPTE_NONE)
        return 0;
    if (shadow_link(s->m, s->role, id, new, is) < 0)
        return -ENOMEM;
    set_slot(s, g, slot, d);
    return 0;
}

/* A new address space in the frame of an old root shares nothing of its user half. */
static void count_user(struct pass *s, const struct granule *g, const struct decoded *d)
{
    for (uint16_t left = g->present; left; left &= (uint16_t)(left - 1)) {
        unsigned int slot = (unsigned int)__builtin_ctz(left);

        s->user_before++;
        s->user_kept += (d->present >> slot & 1) && gpte_gfn(g->value[slot]) == gpte_gfn(d->value[slot]);
    }
}

static int sync_group(struct pass *s, unsigned int group)
{
    uint32_t n = page_granule(s->m, s->p, group);
    struct decoded d;
    struct granule *g;
    int r = 0;

    if (!decode_group(s, group, &d) && !n)
        return 0;
    if (!n)
        n = shadow_granule(s->m, s->page, group);
    if (!n)
        return -ENOMEM;
    g = granule_at(s->m, n);
    if (s->p->root && s->role.level >= 4 && group < ROOT_USER_ENTRIES / GRANULE_ENTRIES)
        count_user(s, g, &d);
    if (g->present == d.present && g->large == d.large && g->foreign == d.foreign &&
        memcmp(g->value, d.value, sizeof(d.value)) == 0)
        return 0;
    for (uint16_t left = g->present | d.present; left && r == 0; left &= (uint16_t)(left - 1))
        r = sync_entry(s, n, (unsigned int)__builtin_ctz(left), &d);
    if (!g->present)
        shadow_granule_put(s->m, s->p, group);
    return r;
}

static bool all_zero(const uint64_t *raw, size_t bytes)
{
    return raw[0] == 0 && memcmp(raw, raw + 1, bytes - sizeof(*raw)) == 0;
}

static int sync_entries(struct pass *s, size_t bytes)
{
    if (s->p->present && all_zero(s->raw, bytes)) {
        s->user_before = 1;
        shadow_zap_entries(s->m, s->p);
        s->m->stats.bulk_clears++;
        s->changed = true;
        return 0;
    }
    for (unsigned int group = 0; group < page_groups(s->p); group++)
        if (sync_group(s, group) < 0)
            return -ENOMEM;
    return 0;
}

static void set_incomplete(struct mirror *m, struct shadow_page *p, bool incomplete)
{
    if (incomplete == ((p->flags & PAGE_INCOMPLETE) != 0))
        return;
    p->flags ^= PAGE_INCOMPLETE;
    m->stats.incomplete += incomplete ? 1 : UINT64_MAX;
}

/* Read one table that is off the list. -ENOMEM: it is marked incomplete. */
static int sync_page(struct mirror *m, uint32_t page, bool force)
{
    struct shadow_page *p = page_at(m, page);
    struct pass s;
    size_t bytes;
    int r;

    if (p->flags & PAGE_FLOODED) {
        if (force)
            flood_take_up(m, p);
        else if (!flood_due(m, p))
            return 0;
    }
    /* Not by an initializer: it would clear all of raw, for nothing. */
    s.m = m;
    s.p = p;
    s.page = page;
    s.role = page_role(p);
    s.changed = false;
    s.user_before = s.user_kept = 0;
    gpt_format_init(&s.format, m->mem, &m->cpu, s.role);
    bytes = s.format.entries * s.format.entry_size;
    /* In RAM by construction: neither a foreign entry nor a root outside gets a page. */
    r = mem_read(m->mem, mmu_table_gpa(p->gfn, s.role), s.raw, bytes);
    assert(r == 0);
    if (s.format.entries < GRANULE_ENTRIES)
        memset((uint8_t *)s.raw + bytes, 0, GRANULE_ENTRIES * s.format.entry_size - bytes);
    m->stats.tables_read++;
    if (p->flags & PAGE_DATA) {
        if (!flood_look_at_data(m, p, s.raw, bytes))
            return 0;
        flood_take_up(m, p);
        r = mem_read(m->mem, mmu_table_gpa(p->gfn, s.role), s.raw, bytes);
        assert(r == 0);
    }
    r = sync_entries(&s, bytes);
    set_incomplete(m, p, r < 0);
    m->stats.tables_changed += s.changed;
    if (p->root && !(p->flags & PAGE_NEW))
        roots_changed(m, p, s.user_before, s.user_kept);
    if (p->root)
        roots_set_kind(m, p);
    /* What a forced sync read must stay: no table is let go of in it. */
    if (!force)
        flood_note(m, p, s.changed);
    p->flags &= (uint8_t)~PAGE_NEW;
    return r;
}

/* The highest level first: an upper table says whether a lower one is still reached. */
static uint32_t first_unsync(const struct mirror *m)
{
    for (unsigned int level = ARRAY_SIZE(m->unsync) - 1; level > 0; level--)
        if (m->unsync[level])
            return m->unsync[level];
    return 0;
}

static void queue_incomplete(struct mirror *m)
{
    for (uint32_t page = 1; page < m->pages.next; page++)
        if (page_at(m, page)->role && page_at(m, page)->flags & PAGE_INCOMPLETE)
            shadow_queue(m, page);
}

/*
 * Out of memory: make room by dropping the roots that were not seen for longest, more of them each time, so that a guest
 * that fakes roots buys a few rounds and not one for each root.
 */
static int make_room(struct mirror *m)
{
    uint32_t victims = m->stats.roots / 8 + 1, evicted = 0;

    if (!m->evict_told)
        log_warn("mmu: bookkeeping reached its memory limit of %llu MiB, dropping the address spaces unused for longest",
                 (unsigned long long)(m->max_memory / MiB));
    m->evict_told = true;
    while (evicted < victims && roots_evict(m) == 0)
        evicted++;
    if (!evicted)
        return -ENOMEM;
    queue_incomplete(m);
    return 0;
}

int mirror_sync_step(struct mirror *m, uint32_t tables)
{
    while (tables > 0) {
        uint32_t page = first_unsync(m);

        if (!page) {
            bool starved = m->sync_starved;

            m->sync_starved = false;
            /* Only now: a table that lost its place may have found another one further on. */
            shadow_reap(m);
            if (!starved)
                return 0;
            if (make_room(m) < 0)
                return -ENOMEM;
            continue;
        }
        shadow_unqueue(m, page);
        if (page_at(m, page)->flags & PAGE_ORPHAN && !page_at(m, page)->parents && !page_at(m, page)->root)
            continue; /* higher levels are done: it will be freed */
        tables--;
        m->sync_starved |= sync_page(m, page, m->sync_force) < 0;
    }
    return 1;
}

static int drain(struct mirror *m)
{
    int r;

    while ((r = mirror_sync_step(m, UINT32_MAX)) > 0)
        ;
    return r;
}

void mirror_sync_begin(struct mirror *m, bool force)
{
    m->tick++;
    m->stats.syncs++;
    m->sync_force = force;
    for (uint32_t page = 1; page < m->pages.next; page++) {
        struct shadow_page *p = page_at(m, page);

        if (p->role && (force || !(p->flags & PAGE_FLOODED) || flood_due(m, p)))
            shadow_queue(m, page);
    }
}

int mirror_sync(struct mirror *m, bool force)
{
    mirror_sync_begin(m, force);
    return drain(m);
}

static void queue_flooded(struct mirror *m)
{
    for (uint32_t page = 1; page < m->pages.next; page++)
        if (page_at(m, page)->role && page_at(m, page)->flags & PAGE_FLOODED)
            shadow_queue(m, page);
}

void mirror_sync_begin_gfns(struct mirror *m, const gfn_t *gfns, size_t count)
{
    m->tick++;
    m->stats.syncs++;
    m->sync_force = false;
    for (size_t i = 0; i < count; i++)
        for (uint32_t n = 0; (n = shadow_next_of(m, gfns[i], n)) != 0;)
            shadow_queue(m, n);
    /* Nobody names a table that was let go of. */
    if (m->stats.stale && m->tick % FLOOD_LOOK_TICKS == 0)
        queue_flooded(m);
}

int mirror_sync_gfns(struct mirror *m, const gfn_t *gfns, size_t count)
{
    mirror_sync_begin_gfns(m, gfns, count);
    return drain(m);
}

int mirror_sync_stale(struct mirror *m)
{
    m->sync_force = true;
    queue_flooded(m);
    return drain(m);
}
