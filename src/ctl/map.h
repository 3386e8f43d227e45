/*
 * The map of guest memory: how much of each region was written, scaled to a grid of cells.
 *
 * Addresses are guest pages (gfn). The bitmap of a dirty-log snapshot has a bit for each page of the RAM file; the slots
 * tell which guest pages those are. The grid covers guest addresses from 0 to the end of RAM, row by row; a cell without
 * RAM (the hole below 4 GiB) has `ram` 0. A cell is a power of two of pages, so that rows begin at round addresses.
 */
#ifndef UMBRA_CTL_MAP_H
#define UMBRA_CTL_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "base/json.h"

#define MAP_MAX_SLOTS 64
#define MAP_PAGE_SIZE UINT64_C(4096)
#define MAP_MAX_COLUMNS 256u
#define MAP_MAX_ROWS 512u
#define MAP_MAX_UNITS 65536
#define MAP_LEVELS 8 /* 0: nothing was written */

struct map_slot {
    uint64_t gfn;   /* first guest page */
    uint64_t first; /* its bit in the bitmap */
    uint64_t pages;
};

struct map_cell {
    uint64_t ram;   /* pages of RAM in it */
    uint64_t dirty; /* pages written in the last interval */
    uint64_t ever;  /* pages written in any */
};

struct map {
    struct map_slot slots[MAP_MAX_SLOTS];
    unsigned int slot_count;
    uint64_t pages; /* of RAM: bits in a bitmap */
    uint64_t span;  /* guest pages from 0 to the end of RAM */

    /* The finest regions that are counted; a cell is a whole number of them. */
    uint64_t unit_pages;
    size_t unit_count;
    struct map_cell *units;

    uint64_t *touched; /* bits of all pages that were written so far */
    uint64_t dirty_pages, touched_pages, total_pages; /* last interval; distinct so far; sum of all intervals */

    /* The grid, set by map_fit. */
    uint64_t cell_pages;
    unsigned int columns, rows;
    struct map_cell *cells;
};

/* Begin with the layout as dirty-log-snapshot gives it (its member "bitmap"). -EINVAL (it contradicts itself), -ENOMEM. */
int map_init(struct map *m, const json_t *bitmap);
void map_clear(struct map *m);

/* Words of a bitmap. */
size_t map_words(const struct map *m);

/* Count the snapshot of an interval. */
void map_add(struct map *m, const uint64_t *bitmap);

/* Choose a grid of at most max_columns x max_rows cells and fill it from what was counted. -ENOMEM. */
int map_fit(struct map *m, unsigned int max_columns, unsigned int max_rows);

/* How hot a cell is: 0 for nothing, MAP_LEVELS - 1 for half of its pages and more, a factor of two between levels. */
unsigned int map_level(const struct map_cell *c);
/* The smallest share of pages that has this level (1 and up). */
double map_level_share(unsigned int level);

/* A stretch of guest memory that is hot all along. */
struct map_region {
    uint64_t gfn, pages;
    uint64_t dirty;
};

/* The regions with the most written pages, the most first; the number found, at most max. */
size_t map_hottest(const struct map *m, struct map_region *out, size_t max);

#endif
