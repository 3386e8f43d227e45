/* Requests as a person types them: JSON, or a command and key=value words. */
#ifndef UMBRA_CTL_QMP_WORDS_H
#define UMBRA_CTL_QMP_WORDS_H

#include <stddef.h>

#include "base/json.h"

/*
 * The request that `count` words mean: one word of JSON, or a command and key=value words. A value that is JSON (a number,
 * true, null, "text", a list, an object) is taken as such, any other as text. 0 with *ret the caller's, or -EINVAL with
 * one line in `error`.
 */
int qmp_words_request(char *const *words, int count, json_t **ret, char *error, size_t error_len);

/* The same for a line: JSON when it starts with '{', else words with blanks between. `line` is changed. */
int qmp_line_request(char *line, json_t **ret, char *error, size_t error_len);

#endif
