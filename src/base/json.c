#include "config.h"

#include "base/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

void json_add(json_t *obj, const char *key, json_t *value)
{
    if (!obj || json_object_object_add_ex(obj, key, value, JSON_C_OBJECT_ADD_KEY_IS_NEW) < 0)
        json_object_put(value);
}

void json_add_str(json_t *obj, const char *key, const char *value)
{
    json_add(obj, key, json_object_new_string(value));
}

void json_add_u64(json_t *obj, const char *key, uint64_t value)
{
    json_add(obj, key, json_object_new_uint64(value));
}

void json_add_i64(json_t *obj, const char *key, int64_t value)
{
    json_add(obj, key, json_object_new_int64(value));
}

void json_add_bool(json_t *obj, const char *key, bool value)
{
    json_add(obj, key, json_object_new_boolean(value));
}

void json_add_double(json_t *obj, const char *key, double value)
{
    json_add(obj, key, json_object_new_double(value));
}

void json_push(json_t *array, json_t *value)
{
    if (!array || json_object_array_add(array, value) < 0)
        json_object_put(value);
}

static int get(const json_t *obj, const char *key, json_type type, json_t **ret)
{
    json_t *v;

    if (!json_object_object_get_ex(obj, key, &v))
        return -ENOENT;
    if (!json_object_is_type(v, type))
        return -EINVAL;
    *ret = v;
    return 0;
}

int json_get_str(const json_t *obj, const char *key, const char **ret)
{
    json_t *v;
    int r = get(obj, key, json_type_string, &v);

    if (r == 0)
        *ret = json_object_get_string(v);
    return r;
}

int json_to_u64(const json_t *v, uint64_t *ret)
{
    if (!json_object_is_type(v, json_type_int))
        return -EINVAL;
    /* json-c saturates: a negative number reads as 0 when asked for as unsigned. */
    if (json_object_get_int64(v) < 0)
        return -ERANGE;
    *ret = json_object_get_uint64(v);
    return 0;
}

int json_get_u64(const json_t *obj, const char *key, uint64_t *ret)
{
    json_t *v;
    int r = get(obj, key, json_type_int, &v);

    return r < 0 ? r : json_to_u64(v, ret);
}

int json_get_bool(const json_t *obj, const char *key, bool *ret)
{
    json_t *v;
    int r = get(obj, key, json_type_boolean, &v);

    if (r == 0)
        *ret = json_object_get_boolean(v);
    return r;
}

int json_get_obj(const json_t *obj, const char *key, json_t **ret)
{
    return get(obj, key, json_type_object, ret);
}

int json_get_array(const json_t *obj, const char *key, json_t **ret)
{
    return get(obj, key, json_type_array, ret);
}

/* Decode one UTF-8 sequence at p; its length in *ret_len. Malformed bytes decode to U+FFFD, one byte at a time. */
static uint32_t utf8_next(const unsigned char *p, size_t left, size_t *ret_len)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned int n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    uint32_t c;

    *ret_len = 1;
    if (p[0] < 0xc0 || p[0] > 0xf7 || n > left)
        return 0xfffd;
    c = p[0] & (0x7fu >> n);
    for (unsigned int i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0xfffd;
        c = c << 6 | (p[i] & 0x3f);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        return 0xfffd;
    *ret_len = n;
    return c;
}

char *json_to_ascii(const json_t *obj, size_t *ret_len)
{
    size_t len, o = 0, extra = 0;
    const char *text = json_object_to_json_string_length(
        (json_t *)(uintptr_t)obj, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &len);
    char *out;

    if (!text)
        return NULL;
    for (size_t i = 0; i < len; i++)
        extra += (unsigned char)text[i] >= 0x80 ? 11 : 0;
    out = malloc(len + extra + 1);
    if (!out)
        return NULL;
    for (size_t i = 0; i < len;) {
        size_t n = 1;
        uint32_t c;

        if ((unsigned char)text[i] < 0x80) {
            out[o++] = text[i++];
            continue;
        }
        c = utf8_next((const unsigned char *)text + i, len - i, &n);
        if (c >= 0x10000)
            o += (size_t)sprintf(out + o, "\\u%04x\\u%04x", 0xd7c0u + (c >> 10), 0xdc00u + (c & 0x3ff));
        else
            o += (size_t)sprintf(out + o, "\\u%04x", c);
        i += n;
    }
    out[o] = '\0';
    if (ret_len)
        *ret_len = o;
    return out;
}
