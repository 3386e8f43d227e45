#include "config.h"

#include "ctl/table.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/format.h"

#define CELL_MAX 512
#define LABEL_WIDTH 14

struct table {
    unsigned int columns;
    char align[TABLE_MAX_COLUMNS];
    char **cells;
    size_t count, cap;
    bool failed;
};

struct layout {
    unsigned int width[TABLE_MAX_COLUMNS]; /* 0: left out */
    unsigned int total;
};

struct table *table_new(unsigned int columns, const char *align)
{
    struct table *t = calloc(1, sizeof(*t));
    char last = 'l';

    if (!t)
        return NULL;
    t->columns = MIN(columns, TABLE_MAX_COLUMNS);
    for (unsigned int i = 0; i < t->columns; i++) {
        if (*align)
            last = *align++;
        t->align[i] = last;
    }
    return t;
}

void table_free(struct table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->count; i++)
        free(t->cells[i]);
    free(t->cells);
    free(t);
}

void table_cell(struct table *t, const char *fmt, ...)
{
    char raw[CELL_MAX], safe[CELL_MAX];
    va_list ap;

    if (!t || t->failed)
        return;
    va_start(ap, fmt);
    vsnprintf(raw, sizeof(raw), fmt, ap);
    va_end(ap);
    if (t->count == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 64;
        char **bigger = realloc(t->cells, cap * sizeof(*bigger));

        if (!bigger) {
            t->failed = true;
            return;
        }
        t->cells = bigger;
        t->cap = cap;
    }
    t->cells[t->count] = strdup(fmt_safe(raw, safe, sizeof(safe)));
    if (!t->cells[t->count])
        t->failed = true;
    else
        t->count++;
}

void table_cell_number(struct table *t, bool known, uint64_t v)
{
    if (known)
        table_cell(t, "%" PRIu64, v);
    else
        table_cell(t, "%s", "");
}

unsigned int table_text_width(const char *text)
{
    unsigned int n = 0;

    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void lay_out(const struct table *t, struct layout *l)
{
    bool used[TABLE_MAX_COLUMNS] = {false};

    memset(l, 0, sizeof(*l));
    for (size_t i = 0; i < t->count - t->count % t->columns; i++) {
        unsigned int c = (unsigned int)(i % t->columns);

        l->width[c] = MAX(l->width[c], table_text_width(t->cells[i]));
        used[c] |= i >= t->columns && t->cells[i][0];
    }
    for (unsigned int c = 0; c < t->columns; c++) {
        if (!used[c])
            l->width[c] = 0;
        else
            l->total += l->width[c] + (l->total ? 2 : 0);
    }
}

unsigned int table_width(const struct table *t)
{
    struct layout l;

    if (!t || t->columns == 0)
        return 0;
    lay_out(t, &l);
    return l.total;
}

static void print_row(const struct table *t, const struct layout *l, char *const *row, FILE *out)
{
    unsigned int pending = 0; /* spaces owed before the next text */
    bool first = true;

    for (unsigned int c = 0; c < t->columns; c++) {
        unsigned int pad;

        if (!l->width[c])
            continue;
        if (!first)
            pending += 2;
        first = false;
        pad = l->width[c] - table_text_width(row[c]);
        if (t->align[c] == 'r')
            pending += pad;
        if (row[c][0]) {
            fprintf(out, "%*s%s", (int)pending, "", row[c]);
            pending = 0;
        }
        if (t->align[c] != 'r')
            pending += pad;
    }
    fputc('\n', out);
}

void table_print(const struct table *t, FILE *out)
{
    struct layout l;

    if (!t || t->columns == 0 || t->count < 2 * t->columns)
        return;
    lay_out(t, &l);
    for (size_t i = 0; i + t->columns <= t->count; i += t->columns)
        print_row(t, &l, t->cells + i, out);
}

void table_field(FILE *out, const char *label, const char *fmt, ...)
{
    char raw[CELL_MAX], safe[CELL_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(raw, sizeof(raw), fmt, ap);
    va_end(ap);
    fprintf(out, "%-*s  %s\n", LABEL_WIDTH, label, fmt_safe(raw, safe, sizeof(safe)));
}
