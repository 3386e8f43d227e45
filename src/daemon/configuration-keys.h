/* Where the keys of a configuration file stand: json-c parses the text but does not keep positions. */
#ifndef UMBRA_DAEMON_CONFIGURATION_KEYS_H
#define UMBRA_DAEMON_CONFIGURATION_KEYS_H

#include <stdbool.h>
#include <stddef.h>

struct config_keys {
    const char *text; /* of an object, as json-c accepts it: comments and strings in single quotes too */
    size_t len;
    size_t at;         /* begin with 0 */
    unsigned int line; /* begin with 1 */
    int depth;         /* begin with 0 */
    const char *key;   /* the last one found, as written, without its quotes */
    size_t key_len;
    unsigned int key_line;
};

/* Go to the next key of the outermost object; false behind the last. */
bool config_keys_next(struct config_keys *k);

/* The line in which the outermost object has that key; 1 where it is spelt with escapes, so that it is not found. */
unsigned int config_keys_line(const char *text, size_t len, const char *key);

/* The first key that stands there a second time; false where there is none. */
bool config_keys_duplicate(const char *text, size_t len, struct config_keys *ret);

/* Whether there is nothing but white space and comments. */
bool config_text_blank(const char *text, size_t len);

#endif
