/* Tables and label-value pages on stdout. Not thread safe. */
#ifndef UMBRA_CTL_TABLE_H
#define UMBRA_CTL_TABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/util.h"

#define TABLE_MAX_COLUMNS 40u

struct table;

/*
 * A table of `columns` columns; align has a letter for each, 'l' or 'r' (the last one given goes on for the rest). The
 * first row of cells is the header. NULL when out of memory, which every other function takes.
 */
struct table *table_new(unsigned int columns, const char *align);
void table_free(struct table *t);
#define _cleanup_table_ __attribute__((cleanup(cleanup_table)))
static inline void cleanup_table(struct table **t)
{
    table_free(*t);
}

/* Add the next cell, row by row; control bytes are escaped. */
void table_cell(struct table *t, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* The same, a number; empty where it is not known. */
void table_cell_number(struct table *t, bool known, uint64_t v);

/* Print with two spaces between the columns and none at the end of a line; columns that are empty in every row but the
 * header are left out. A header without any row prints nothing. */
void table_print(const struct table *t, FILE *out);

/* How wide the widest line of table_print is. */
unsigned int table_width(const struct table *t);

/* One "label  value" line of a page. */
void table_field(FILE *out, const char *label, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Columns a text takes on the screen: UTF-8 sequences count once. */
unsigned int table_text_width(const char *text);

#endif
