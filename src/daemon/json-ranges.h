/*
 * A JSON array of pairs of numbers, written as text at once: [[1,2],[7,1]]. A dirty log has tens of thousands of them; as
 * objects of json-c each would cost a microsecond and 300 bytes. Not thread safe.
 */
#ifndef UMBRA_DAEMON_JSON_RANGES_H
#define UMBRA_DAEMON_JSON_RANGES_H

#include <stddef.h>
#include <stdint.h>

#include "base/json.h"

/* All zeros is an empty one. */
struct json_ranges {
    char *text;
    size_t len, cap;
};

/* Make room for `count` further pairs; -ENOMEM. */
int json_ranges_reserve(struct json_ranges *r, size_t count);
/* Append a pair, for which there must be room. */
void json_ranges_add(struct json_ranges *r, uint64_t first, uint64_t count);

/* The array as a value for json_add, consuming r's text; NULL when out of memory (r is cleared all the same). */
json_t *json_ranges_finish(struct json_ranges *r);
void json_ranges_clear(struct json_ranges *r);

#endif
