#include "config.h"

#include "fake-guest.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/util.h"

static void must(int r, const char *what)
{
    if (r < 0) {
        fprintf(stderr, "fake guest: %s failed: %d\n", what, r);
        abort();
    }
}

void fake_guest_init(struct fake_guest *g, uint64_t size, struct mmu_paging paging)
{
    struct mem_config config = {.size = size};

    *g = (struct fake_guest){.paging = paging, .next_table = 1};
    must(mem_new(&config, &g->mem), "memory");
}

void fake_guest_clear(struct fake_guest *g)
{
    mem_free(g->mem);
    g->mem = NULL;
}

gfn_t fake_guest_frame(struct fake_guest *g)
{
    gfn_t gfn = g->next_table++;

    must(mem_set(g->mem, gfn_to_gpa(gfn), 0, GUEST_PAGE_SIZE), "frame");
    return gfn;
}

static size_t entry_size(const struct fake_guest *g)
{
    return g->paging.levels == 2 ? 4 : 8;
}

uint64_t fake_guest_get(struct fake_guest *g, gfn_t table, unsigned int entry)
{
    uint64_t value = 0;

    must(mem_read(g->mem, gfn_to_gpa(table) + entry * entry_size(g), &value, entry_size(g)), "read of an entry");
    return value;
}

void fake_guest_set(struct fake_guest *g, gfn_t table, unsigned int entry, uint64_t value)
{
    must(mem_write(g->mem, gfn_to_gpa(table) + entry * entry_size(g), &value, entry_size(g)), "write of an entry");
}

static unsigned int entry_of(const struct fake_guest *g, gva_t gva, unsigned int level)
{
    if (g->paging.levels == 2)
        return (unsigned int)(gva >> (12 + 10 * (level - 1))) & 1023;
    return (unsigned int)(gva >> (12 + 9 * (level - 1))) & (g->paging.levels == 3 && level == 3 ? 3 : 511);
}

unsigned int fake_guest_entry(struct fake_guest *g, gpa_t cr3, gva_t gva, unsigned int level, gfn_t *ret_table)
{
    gfn_t table = gpa_to_gfn(cr3);

    for (unsigned int at = g->paging.levels; at > level; at--) {
        unsigned int entry = entry_of(g, gva, at);
        uint64_t value = fake_guest_get(g, table, entry);

        if (!(value & FG_P)) {
            value = gfn_to_gpa(fake_guest_frame(g)) | FG_P;
            if (g->paging.levels != 3 || at != 3)
                value |= FG_W | FG_U | FG_A;
            fake_guest_set(g, table, entry, value);
        }
        table = gpa_to_gfn(value & UINT64_C(0xffffffffff000));
    }
    *ret_table = table;
    return entry_of(g, gva, level);
}

void fake_guest_map(struct fake_guest *g, gpa_t cr3, gva_t gva, gfn_t gfn, unsigned int level, uint64_t flags)
{
    gfn_t table;
    unsigned int entry = fake_guest_entry(g, cr3, gva, level, &table);

    fake_guest_set(g, table, entry, flags ? gfn_to_gpa(gfn) | flags | (level > 1 ? FG_PS : 0) : 0);
}
