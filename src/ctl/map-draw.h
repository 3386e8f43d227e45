/* The map on a screen: which signs and colours a terminal has for it. */
#ifndef UMBRA_CTL_MAP_DRAW_H
#define UMBRA_CTL_MAP_DRAW_H

#include <stdio.h>

#include "ctl/map.h"
#include "ctl/term.h"

enum map_style {
    MAP_HALF,  /* colours, two cells in a character: one above the other */
    MAP_BLOCK, /* colours, a cell a character */
    MAP_SHADE, /* shaded blocks, no colours */
    MAP_ASCII,
};

/* What the terminal can show at best. */
enum map_style map_style(const struct term_caps *caps);

/* How many rows of cells fit into so many lines. */
unsigned int map_style_rows(enum map_style style, unsigned int lines);

#define MAP_LABEL_WIDTH 10

/* Draw the grid, each line with the address it begins at. */
void map_draw(const struct map *m, enum map_style style, enum term_colour colour, FILE *out);

/* One line that explains the signs. */
void map_draw_legend(const struct map *m, enum map_style style, enum term_colour colour, FILE *out);

#endif
