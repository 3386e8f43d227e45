#ifndef UMBRA_CTL_ANSWER_H
#define UMBRA_CTL_ANSWER_H

/*
 * What stands in a daemon's answers, with something to go on with where it does not: a daemon of another version answers with
 * more or with less. `o` may be NULL. What is returned belongs to the answer.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"

uint64_t answer_u64(const json_t *o, const char *key);
bool answer_bool(const json_t *o, const char *key);
/* "?" where there is none. */
const char *answer_str(const json_t *o, const char *key);
/* An object or NULL. */
json_t *answer_obj(const json_t *o, const char *key);
/* Of an array; 0 for anything else. */
size_t answer_length(const json_t *list);

#endif
