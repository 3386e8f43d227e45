#include "config.h"

#include "ctl/map.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/util.h"

/* More than any machine has, so that sums of page numbers cannot wrap. */
#define MAP_MAX_PAGES (UINT64_C(1) << 44)

static uint64_t power_of_two(uint64_t at_least)
{
    uint64_t p = 1;

    while (p < at_least)
        p <<= 1;
    return p;
}

static int read_slot(const json_t *o, struct map_slot *ret)
{
    struct map_slot s;

    if (json_get_u64(o, "gfn", &s.gfn) < 0 || json_get_u64(o, "pages", &s.pages) < 0 ||
        json_get_u64(o, "first-bit", &s.first) < 0 || s.gfn > MAP_MAX_PAGES || s.pages > MAP_MAX_PAGES ||
        s.first > MAP_MAX_PAGES)
        return -EINVAL;
    *ret = s;
    return 0;
}

static int read_slots(struct map *m, const json_t *slots)
{
    size_t count = json_object_array_length(slots);

    if (count > MAP_MAX_SLOTS)
        return -EINVAL;
    for (size_t i = 0; i < count; i++) {
        struct map_slot *s = &m->slots[i];

        if (read_slot(json_object_array_get_idx(slots, i), s) < 0 || s->first + s->pages > m->pages)
            return -EINVAL;
        m->span = MAX(m->span, s->gfn + s->pages);
    }
    m->slot_count = (unsigned int)count;
    return 0;
}

/* How much RAM each unit has; the hole has none. */
static void count_ram(struct map *m)
{
    for (unsigned int i = 0; i < m->slot_count; i++) {
        const struct map_slot *s = &m->slots[i];
        uint64_t gfn = s->gfn, end = s->gfn + s->pages;

        while (gfn < end) {
            uint64_t next = MIN(end, (gfn / m->unit_pages + 1) * m->unit_pages);

            m->units[gfn / m->unit_pages].ram += next - gfn;
            gfn = next;
        }
    }
}

/* As fine as a large window can show, up to what is quickly counted. */
static uint64_t choose_unit(uint64_t span)
{
    uint64_t fine = MIN(UINT64_C(16), power_of_two(DIV_ROUND_UP(span, 8192)));

    return MAX(fine, power_of_two(DIV_ROUND_UP(span, MAP_MAX_UNITS)));
}

int map_init(struct map *m, const json_t *bitmap)
{
    json_t *slots;

    *m = (struct map){0};
    if (json_get_u64(bitmap, "bits", &m->pages) < 0 || m->pages == 0 || m->pages > MAP_MAX_PAGES ||
        json_get_array(bitmap, "slots", &slots) < 0 || read_slots(m, slots) < 0 || m->span == 0)
        return -EINVAL;
    m->unit_pages = choose_unit(m->span);
    m->unit_count = (size_t)DIV_ROUND_UP(m->span, m->unit_pages);
    m->units = calloc(m->unit_count, sizeof(*m->units));
    m->touched = calloc(map_words(m), sizeof(*m->touched));
    if (!m->units || !m->touched) {
        map_clear(m);
        return -ENOMEM;
    }
    count_ram(m);
    return 0;
}

void map_clear(struct map *m)
{
    free(m->units);
    free(m->touched);
    free(m->cells);
    *m = (struct map){0};
}

size_t map_words(const struct map *m)
{
    return bitmap_words(m->pages);
}

/* Set bits in [first, first + count). */
static uint64_t count_range(const uint64_t *bitmap, uint64_t first, uint64_t count)
{
    uint64_t end = first + count, n = 0;

    while (first < end && first % 64)
        n += bitmap_test(bitmap, first++);
    if (end - first >= 64)
        n += bitmap_count(bitmap + first / 64, (size_t)((end - first) / 64));
    for (first += (end - first) / 64 * 64; first < end; first++)
        n += bitmap_test(bitmap, first);
    return n;
}

void map_add(struct map *m, const uint64_t *bitmap)
{
    for (size_t i = 0; i < m->unit_count; i++)
        m->units[i].dirty = m->units[i].ever = 0;
    bitmap_or(m->touched, bitmap, map_words(m));
    m->dirty_pages = m->touched_pages = 0;
    for (unsigned int i = 0; i < m->slot_count; i++) {
        const struct map_slot *s = &m->slots[i];

        for (uint64_t done = 0; done < s->pages;) {
            uint64_t unit = (s->gfn + done) / m->unit_pages;
            uint64_t n = MIN(s->pages - done, (unit + 1) * m->unit_pages - (s->gfn + done));
            uint64_t dirty = count_range(bitmap, s->first + done, n);
            uint64_t ever = count_range(m->touched, s->first + done, n);

            m->units[unit].dirty += dirty;
            m->units[unit].ever += ever;
            m->dirty_pages += dirty;
            m->touched_pages += ever;
            done += n;
        }
    }
    m->total_pages += m->dirty_pages;
}

static uint64_t cell_size(const struct map *m, unsigned int columns, unsigned int rows)
{
    return MAX(m->unit_pages, power_of_two(DIV_ROUND_UP(m->span, (uint64_t)columns * rows)));
}

/* A power of two, so that rows begin at the roundest addresses; or a multiple of 16, where that makes cells smaller. */
static unsigned int choose_columns(const struct map *m, unsigned int max_columns, unsigned int rows)
{
    unsigned int most = MIN(max_columns, MAP_MAX_COLUMNS), columns = 1;

    while (columns * 2 <= most)
        columns *= 2;
    if (most >= 16 && cell_size(m, most / 16 * 16, rows) < cell_size(m, columns, rows))
        return most / 16 * 16;
    return columns;
}

int map_fit(struct map *m, unsigned int max_columns, unsigned int max_rows)
{
    unsigned int most_rows = max_rows ? MIN(max_rows, MAP_MAX_ROWS) : 1;
    unsigned int columns = choose_columns(m, max_columns, most_rows), rows;
    uint64_t per_cell = cell_size(m, columns, most_rows), used = DIV_ROUND_UP(m->span, per_cell);
    struct map_cell *cells;

    rows = (unsigned int)DIV_ROUND_UP(used, columns);
    cells = calloc((size_t)rows * columns, sizeof(*cells));
    if (!cells)
        return -ENOMEM;
    for (size_t i = 0; i < m->unit_count; i++) {
        struct map_cell *c = &cells[i * m->unit_pages / per_cell];

        c->ram += m->units[i].ram;
        c->dirty += m->units[i].dirty;
        c->ever += m->units[i].ever;
    }
    free(m->cells);
    m->cells = cells;
    m->cell_pages = per_cell;
    m->columns = columns;
    m->rows = rows;
    return 0;
}

double map_level_share(unsigned int level)
{
    return level <= 1 ? 0 : 1.0 / (double)(1u << (MAP_LEVELS - level));
}

unsigned int map_level(const struct map_cell *c)
{
    double share = c->ram ? (double)c->dirty / (double)c->ram : 0;
    unsigned int level = MAP_LEVELS - 1;

    if (c->dirty == 0)
        return 0;
    while (level > 1 && share < map_level_share(level))
        level--;
    return level;
}

static int by_dirty(const void *a, const void *b)
{
    const struct map_region *x = a, *y = b;

    if (x->dirty != y->dirty)
        return x->dirty < y->dirty ? 1 : -1;
    return x->gfn < y->gfn ? -1 : x->gfn > y->gfn;
}

/* Put the region among the best found so far. */
static size_t keep(struct map_region *out, size_t n, size_t max, const struct map_region *r)
{
    if (r->dirty == 0)
        return n;
    if (n < max)
        out[n++] = *r;
    else if (by_dirty(&out[n - 1], r) > 0)
        out[n - 1] = *r;
    qsort(out, n, sizeof(*out), by_dirty);
    return n;
}

/* What is written at random leaves gaps everywhere when one looks closely enough: regions are made of groups of units that
 * have so many written pages on average, of those with any. */
#define GROUP_DIRTY 8
#define GROUPS_MIN 64
/* A group is hot when it has an eighth of what the hottest has; so few cooler ones in a row do not end a region. */
#define HOT_SHARE 8
#define HOT_GAP 3

/* A number of units together. */
static struct map_cell group_at(const struct map *m, size_t first, size_t size)
{
    struct map_cell sum = {0};

    for (size_t i = first; i < MIN(first + size, m->unit_count); i++) {
        sum.ram += m->units[i].ram;
        sum.dirty += m->units[i].dirty;
    }
    return sum;
}

/* Units in a group; *ret_most is the most written pages of one. */
static size_t choose_group(const struct map *m, uint64_t *ret_most)
{
    for (size_t size = 1;; size *= 2) {
        uint64_t written = 0;

        *ret_most = 0;
        for (size_t i = 0; i < m->unit_count; i += size) {
            uint64_t dirty = group_at(m, i, size).dirty;

            written += dirty > 0;
            *ret_most = MAX(*ret_most, dirty);
        }
        if (m->dirty_pages >= written * GROUP_DIRTY || m->unit_count / size <= GROUPS_MIN)
            return size;
    }
}

/* A region being followed, and what came since its last hot group. */
struct run {
    struct map_region region;
    uint64_t gap_dirty, gap_ram;
    unsigned int gap;
};

static void add_group(struct run *run, const struct map_cell *group, uint64_t gfn, bool hot)
{
    if (run->region.dirty == 0)
        run->region.gfn = gfn;
    run->gap_dirty += group->dirty;
    run->gap_ram += group->ram;
    run->gap++;
    if (!hot)
        return;
    run->region.dirty += run->gap_dirty;
    run->region.pages += run->gap_ram;
    run->gap_dirty = run->gap_ram = run->gap = 0;
}

size_t map_hottest(const struct map *m, struct map_region *out, size_t max)
{
    struct run run = {0};
    size_t n = 0, size;
    uint64_t most;

    if (max == 0)
        return 0;
    size = choose_group(m, &most);
    for (size_t i = 0; i < m->unit_count; i += size) {
        struct map_cell group = group_at(m, i, size);
        bool hot = group.dirty > 0 && group.dirty >= most / HOT_SHARE;

        /* The hole ends a region, too: one has addresses without a break. */
        if (!hot && (run.gap == HOT_GAP || group.ram == 0)) {
            n = keep(out, n, max, &run.region);
            run = (struct run){0};
        } else if (hot || run.region.dirty > 0) {
            add_group(&run, &group, i * m->unit_pages, hot);
        }
    }
    return keep(out, n, max, &run.region);
}
