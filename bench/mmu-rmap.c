/*
 * rmap: one unlink and one link of a random entry of a chain, at several lengths, against the descriptors of "KVM: MMU:
 * Implement simple reverse mapping" (2007): a chain of descriptors with 4 slots, searched from its head; and the same with 14
 * slots, which fills two cache lines. Written here from the description; descriptors come from a free list, never from
 * malloc, which favours them.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "mmu.h"
#include "mmu/mirror-internal.h"

#define FRAMES 64u
#define OPS 20000u
#define MAX_SLOTS 14u

static const unsigned int lengths[] = {1, 4, 32, 300, 1000};

static uint64_t state = 88172645463325252;

static uint32_t next_random(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 20) % below;
}

/* -- the baseline -------------------------------------------------------------------------------------------------------- */

struct desc {
    uint64_t *spte[MAX_SLOTS]; /* the first `slots` are used */
    struct desc *more;
};

struct baseline {
    unsigned int slots;
    struct desc *free;
    uintptr_t *heads; /* 0, an spte, or a desc with bit 0 set */
};

static struct desc *desc_get(struct baseline *b)
{
    struct desc *d = b->free;

    if (!d)
        return calloc(1, sizeof(*d));
    b->free = d->more;
    d->more = NULL;
    return d;
}

static void desc_put(struct baseline *b, struct desc *d)
{
    memset(d->spte, 0, b->slots * sizeof(d->spte[0]));
    d->more = b->free;
    b->free = d;
}

static void desc_add(struct baseline *b, uintptr_t *head, uint64_t *spte)
{
    struct desc *d;
    unsigned int i = 0;

    if (!*head) {
        *head = (uintptr_t)spte;
        return;
    }
    if (!(*head & 1)) {
        d = desc_get(b);
        d->spte[0] = (uint64_t *)*head;
        d->spte[1] = spte;
        *head = (uintptr_t)d | 1;
        return;
    }
    d = (struct desc *)(*head & ~(uintptr_t)1);
    while (d->spte[b->slots - 1] && d->more)
        d = d->more;
    if (d->spte[b->slots - 1]) {
        d->more = desc_get(b);
        d = d->more;
    }
    while (d->spte[i])
        i++;
    d->spte[i] = spte;
}

static void desc_drop(struct baseline *b, uintptr_t *head, struct desc *d, unsigned int i, struct desc *before)
{
    unsigned int last = b->slots - 1;

    while (!d->spte[last] && last > i)
        last--;
    d->spte[i] = d->spte[last];
    d->spte[last] = NULL;
    if (last)
        return;
    if (!before && !d->more)
        *head = (uintptr_t)d->spte[0];
    else if (before)
        before->more = d->more;
    else
        *head = (uintptr_t)d->more | 1;
    desc_put(b, d);
}

static void desc_remove(struct baseline *b, uintptr_t *head, uint64_t *spte)
{
    struct desc *before = NULL;

    if (!(*head & 1)) {
        *head = 0;
        return;
    }
    for (struct desc *d = (struct desc *)(*head & ~(uintptr_t)1); d; before = d, d = d->more)
        for (unsigned int i = 0; i < b->slots && d->spte[i]; i++)
            if (d->spte[i] == spte) {
                desc_drop(b, head, d, i, before);
                return;
            }
    assert(!"an spte that is in no chain");
}

static void baseline_free(struct baseline *b)
{
    for (size_t f = 0; f < FRAMES; f++)
        for (struct desc *d = b->heads[f] & 1 ? (struct desc *)(b->heads[f] & ~(uintptr_t)1) : NULL, *more; d; d = more) {
            more = d->more;
            free(d);
        }
    for (struct desc *d = b->free, *more; d; d = more) {
        more = d->more;
        free(d);
    }
    free(b->heads);
}

/* -- both ---------------------------------------------------------------------------------------------------------------- */

/* Which entry of which frame, drawn before the clock runs. */
struct draw {
    uint32_t frame, member;
};

static void time_baseline(struct baseline *b, uint64_t *sptes, unsigned int length, const struct draw *draws, struct sample *s)
{
    uint64_t t = clock_ns();

    for (unsigned int i = 0; i < OPS; i++) {
        uint64_t *spte = &sptes[draws[i].frame * length + draws[i].member];

        desc_remove(b, &b->heads[draws[i].frame], spte);
        desc_add(b, &b->heads[draws[i].frame], spte);
    }
    sample_add(s, clock_ns() - t);
}

/* Entries are dealt out as guests do it: those of one frame are in different tables. */
static node_t node_of(unsigned int frame, unsigned int member)
{
    uint32_t n = member * FRAMES + frame;

    return node_id(1 + n / GRANULE_ENTRIES, n % GRANULE_ENTRIES);
}

static void time_ours(struct mirror *m, node_t *heads, const node_t *ids, unsigned int length, const struct draw *draws,
                      struct sample *s)
{
    uint64_t t = clock_ns();

    for (unsigned int i = 0; i < OPS; i++) {
        node_t id = ids[draws[i].frame * length + draws[i].member];

        rmap_unlink(m, &heads[draws[i].frame], id);
        (void)rmap_link(m, &heads[draws[i].frame], id);
    }
    sample_add(s, clock_ns() - t);
}

/* A mirror of which only pools and chains are used. */
static int ours_init(struct mirror *m, node_t *heads, unsigned int length)
{
    uint32_t granules = DIV_ROUND_UP(FRAMES * length, GRANULE_ENTRIES);
    int r = pool_init(&m->granules, sizeof(struct granule), granules);

    m->max_memory = GiB;
    if (r == 0)
        r = pool_init(&m->blocks, sizeof(union block), granules + 64);
    if (r == 0)
        r = pool_grow(&m->granules, granules);
    for (uint32_t i = 0; r == 0 && i < granules; i++)
        *granule_at(m, mirror_take(m, &m->granules)) = (struct granule){.page = 1};
    for (unsigned int f = 0; f < FRAMES && r == 0; f++)
        for (unsigned int i = 0; i < length && r == 0; i++)
            r = rmap_link(m, &heads[f], node_of(f, i));
    return r;
}

static int run_length(unsigned int length, unsigned int runs)
{
    static struct sample ours, four, fourteen;
    static struct draw draws[OPS];
    _cleanup_free_ uint64_t *sptes = calloc((size_t)FRAMES * length, sizeof(*sptes));
    _cleanup_free_ node_t *ids = calloc((size_t)FRAMES * length, sizeof(*ids));
    struct baseline b4 = {.slots = 4, .heads = calloc(FRAMES, sizeof(uintptr_t))};
    struct baseline b14 = {.slots = 14, .heads = calloc(FRAMES, sizeof(uintptr_t))};
    node_t heads[FRAMES] = {0};
    struct mirror m = {.tick = 0};
    char name[64];
    int r = sptes && ids && b4.heads && b14.heads ? ours_init(&m, heads, length) : -ENOMEM;

    ours.count = four.count = fourteen.count = 0;
    for (unsigned int i = 0; r == 0 && i < FRAMES * length; i++) {
        ids[i] = node_of(i / length, i % length);
        desc_add(&b4, &b4.heads[i / length], &sptes[i]);
        desc_add(&b14, &b14.heads[i / length], &sptes[i]);
    }
    for (unsigned int run = 0; r == 0 && run <= runs; run++) {
        for (unsigned int i = 0; i < OPS; i++)
            draws[i] = (struct draw){next_random(FRAMES), next_random(length)};
        if (run == 1)
            ours.count = four.count = fourteen.count = 0; /* the first one only warms up */
        time_ours(&m, heads, ids, length, draws, &ours);
        time_baseline(&b4, sptes, length, draws, &four);
        time_baseline(&b14, sptes, length, draws, &fourteen);
    }
    if (r == 0) {
        snprintf(name, sizeof(name), "mmu-rmap-%u-4-slots", length);
        print_pair(name, &ours, "4 slots", &four);
        snprintf(name, sizeof(name), "mmu-rmap-%u-14-slots", length);
        print_pair(name, &ours, "14 slots", &fourteen);
    }
    if (b4.heads)
        baseline_free(&b4);
    if (b14.heads)
        baseline_free(&b14);
    pool_clear(&m.granules);
    pool_clear(&m.blocks);
    return r;
}

int bench_rmap(unsigned int runs)
{
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(lengths) && r == 0; i++)
        r = run_length(lengths[i], runs);
    return r;
}
