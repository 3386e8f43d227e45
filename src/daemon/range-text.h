/*
 * JSON text of runs of pages, as arrays of pairs of numbers: [[1,2],[7,1]]. A dirty log has tens of thousands of them,
 * and making the answer must cost no more than a fraction of asking KVM: so it is written once, at about 5 ns a pair, and
 * sent from where it was written. (As objects of json-c each pair would cost a microsecond and 300 bytes.) Not thread
 * safe.
 */
#ifndef UMBRA_DAEMON_RANGE_TEXT_H
#define UMBRA_DAEMON_RANGE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"

/* All zeros is an empty one. */
struct range_text {
    char *data;
    size_t len, cap;
    bool open; /* the list has an entry already */
    /* The digits of the last start but its last three: starts that come in order mostly share them. */
    uint64_t high;
    size_t high_len;
    char high_text[24];
};

/* Append plain text; -ENOMEM. */
int range_text_printf(struct range_text *t, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Make room for `count` pairs; -ENOMEM. */
int range_text_reserve(struct range_text *t, size_t count);
/* Append a pair, for which there must be room. */
void range_text_add(struct range_text *t, uint64_t first, uint64_t count);

void range_text_clear(struct range_text *t);

#endif
