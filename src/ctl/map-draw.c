#include "config.h"

#include "ctl/map-draw.h"

#include "base/size.h"
#include "base/util.h"
#include "ctl/format.h"

/* What a cell looks like: below the levels there are three more looks. */
enum look {
    LOOK_HOLE,    /* no RAM */
    LOOK_NEVER,   /* not written since the watch began */
    LOOK_EARLIER, /* written before, not in the last interval */
    LOOK_LEVEL,   /* and up: levels 1 to MAP_LEVELS - 1 */
};
#define LOOKS (LOOK_LEVEL + MAP_LEVELS - 1)

/* From the 256-colour palette: greys, then violet through red to yellow. -1: the terminal's own background. */
static const int colours_256[LOOKS] = {-1, 236, 24, 54, 90, 125, 161, 202, 214, 227};
static const int colours_16[LOOKS] = {-1, 8, 4, 5, 5, 1, 1, 9, 3, 11};
static const char *const shades[LOOKS] = {" ", "\302\267", "-", "\342\226\221", "\342\226\221", "\342\226\222",
                                          "\342\226\222", "\342\226\223", "\342\226\223", "\342\226\210"};
static const char ascii[LOOKS + 1] = " .-:=+*%#@";

#define UPPER_HALF "\342\226\200"

enum map_style map_style(const struct term_caps *caps)
{
    if (caps->colour != TERM_MONO)
        return caps->utf8 ? MAP_HALF : MAP_BLOCK;
    return caps->utf8 ? MAP_SHADE : MAP_ASCII;
}

unsigned int map_style_rows(enum map_style style, unsigned int lines)
{
    return style == MAP_HALF ? 2 * lines : lines;
}

static int cell_look(const struct map_cell *c)
{
    unsigned int level = map_level(c);

    if (c->ram == 0)
        return LOOK_HOLE;
    if (level > 0)
        return LOOK_LEVEL + (int)level - 1;
    return c->ever ? LOOK_EARLIER : LOOK_NEVER;
}

/* Colours as they are set on the terminal at the moment; -2: not known. */
struct pen {
    FILE *out;
    enum term_colour colour;
    int front, back;
};

static void set_one(struct pen *p, int value, bool back)
{
    if (value < 0)
        fprintf(p->out, "\033[%dm", back ? 49 : 39);
    else if (p->colour == TERM_256)
        fprintf(p->out, "\033[%d;5;%dm", back ? 48 : 38, value);
    else
        fprintf(p->out, "\033[%dm", (back ? 40 : 30) + (value >= 8 ? 60 + value - 8 : value));
}

static void set_pen(struct pen *p, int front, int back)
{
    if (front != p->front)
        set_one(p, front, false);
    if (back != p->back)
        set_one(p, back, true);
    p->front = front;
    p->back = back;
}

static int look_colour(const struct pen *p, int look)
{
    return p->colour == TERM_256 ? colours_256[look] : colours_16[look];
}

/* Two cells, one above the other. The half block's own colour is the upper one; without a colour there, the lower half
 * block is needed instead, as the background cannot be drawn in the foreground's place. */
static void put_half(struct pen *p, int upper, int lower)
{
    int up = look_colour(p, upper), low = look_colour(p, lower);

    if (up == low) {
        set_pen(p, p->front, low);
        fputc(' ', p->out);
    } else if (up < 0) {
        set_pen(p, low, up);
        fputs("\342\226\204", p->out);
    } else {
        set_pen(p, up, low);
        fputs(UPPER_HALF, p->out);
    }
}

static void put_cell(struct pen *p, enum map_style style, int look)
{
    if (style == MAP_BLOCK || style == MAP_HALF) {
        set_pen(p, p->front, look_colour(p, look));
        fputc(' ', p->out);
    } else if (style == MAP_SHADE) {
        fputs(shades[look], p->out);
    } else {
        fputc(ascii[look], p->out);
    }
}

static void end_pen(struct pen *p)
{
    if (p->front != -2 || p->back != -2)
        fputs("\033[0m", p->out);
    p->front = p->back = -2;
}

static const struct map_cell *cell_at(const struct map *m, unsigned int row, unsigned int column)
{
    static const struct map_cell nothing;

    return row < m->rows ? &m->cells[(size_t)row * m->columns + column] : &nothing;
}

void map_draw(const struct map *m, enum map_style style, enum term_colour colour, FILE *out)
{
    struct pen p = {.out = out, .colour = colour, .front = -2, .back = -2};
    unsigned int step = style == MAP_HALF ? 2 : 1;

    for (unsigned int row = 0; row < m->rows; row += step) {
        char label[FMT_MAX];

        fprintf(out, "%*s ", MAP_LABEL_WIDTH - 1,
                size_format((uint64_t)row * m->columns * m->cell_pages * MAP_PAGE_SIZE, label, sizeof(label)));
        for (unsigned int c = 0; c < m->columns; c++) {
            int look = cell_look(cell_at(m, row, c));

            if (style == MAP_HALF)
                put_half(&p, look, cell_look(cell_at(m, row + 1, c)));
            else
                put_cell(&p, style, look);
        }
        end_pen(&p);
        fputc('\n', out);
    }
}

void map_draw_legend(const struct map *m, enum map_style style, enum term_colour colour, FILE *out)
{
    struct pen p = {.out = out, .colour = colour, .front = -2, .back = -2};
    char size[FMT_MAX];

    fprintf(out, "%*s %s  ", MAP_LABEL_WIDTH - 1, "a cell is",
            size_format(m->cell_pages * MAP_PAGE_SIZE, size, sizeof(size)));
    put_cell(&p, style, LOOK_NEVER);
    end_pen(&p);
    fputs(" untouched  ", out);
    put_cell(&p, style, LOOK_EARLIER);
    end_pen(&p);
    fputs(" earlier  ", out);
    for (int look = LOOK_LEVEL; look < LOOKS; look++)
        put_cell(&p, style, look);
    end_pen(&p);
    fputs(" one page .. half and more\n", out);
}
