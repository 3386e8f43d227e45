/*
 * Helpers over json-c: building answers without checking every call, and reading with types.
 * An object under construction that runs out of memory becomes NULL; every json_add_* takes that and frees the value.
 */
#ifndef UMBRA_BASE_JSON_H
#define UMBRA_BASE_JSON_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct json_object json_t;

static inline void cleanup_json(json_t **o)
{
    json_object_put(*o);
}
#define _cleanup_json_ __attribute__((cleanup(cleanup_json)))

/* Each adds a member to obj; `value` is consumed. Keys must be new. */
void json_add(json_t *obj, const char *key, json_t *value);
void json_add_str(json_t *obj, const char *key, const char *value);
void json_add_u64(json_t *obj, const char *key, uint64_t value);
void json_add_i64(json_t *obj, const char *key, int64_t value);
void json_add_bool(json_t *obj, const char *key, bool value);
void json_add_double(json_t *obj, const char *key, double value);

/* Append to an array; `value` is consumed. */
void json_push(json_t *array, json_t *value);

/*
 * Read a member: 0, -ENOENT when there is none, -EINVAL when it is of another type, -ERANGE when a number does not fit.
 * A returned string or object belongs to obj.
 */
int json_get_str(const json_t *obj, const char *key, const char **ret);
int json_get_u64(const json_t *obj, const char *key, uint64_t *ret);
int json_get_bool(const json_t *obj, const char *key, bool *ret);
int json_get_obj(const json_t *obj, const char *key, json_t **ret);
int json_get_array(const json_t *obj, const char *key, json_t **ret);

/* The value of an integer object as unsigned; -EINVAL (not an integer), -ERANGE (negative). */
int json_to_u64(const json_t *v, uint64_t *ret);

/*
 * The compact text of `obj` with everything beyond ASCII written as \uXXXX, NUL-terminated, the caller's to free;
 * NULL when out of memory. *ret_len (may be NULL) is its length. Strings in obj must be valid UTF-8.
 */
char *json_to_ascii(const json_t *obj, size_t *ret_len);

#endif
