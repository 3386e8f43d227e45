#include "config.h"

#include "daemon/json-ranges.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/printbuf.h>

#include "base/util.h"

/* "[18446744073709551615,18446744073709551615]," */
#define PAIR_MAX 44

int json_ranges_reserve(struct json_ranges *r, size_t count)
{
    /* And the brackets around them. */
    size_t want = r->len + count * PAIR_MAX + 2, cap = MAX(r->cap * 2, want);
    char *text;

    if (want <= r->cap)
        return 0;
    text = realloc(r->text, cap);
    if (!text)
        return -ENOMEM;
    r->text = text;
    r->cap = cap;
    return 0;
}

/* Write v in decimal at p; where the text ends. */
static char *put_number(char *p, uint64_t v)
{
    static const char pairs[] = "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
                                "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
                                "8081828384858687888990919293949596979899";
    char digits[20];
    size_t at = sizeof(digits);

    while (v >= 100) {
        at -= 2;
        memcpy(digits + at, pairs + 2 * (v % 100), 2);
        v /= 100;
    }
    if (v >= 10) {
        at -= 2;
        memcpy(digits + at, pairs + 2 * v, 2);
    } else {
        digits[--at] = (char)('0' + v);
    }
    memcpy(p, digits + at, sizeof(digits) - at);
    return p + (sizeof(digits) - at);
}

void json_ranges_add(struct json_ranges *r, uint64_t first, uint64_t count)
{
    char *p = r->text + r->len;

    *p++ = r->len == 0 ? '[' : ',';
    *p++ = '[';
    p = put_number(p, first);
    *p++ = ',';
    p = put_number(p, count);
    *p++ = ']';
    r->len = (size_t)(p - r->text);
}

/* The text stands in the object as its user data; json-c writes it out as it is. */
static int write_text(json_t *o, struct printbuf *out, int level, int flags)
{
    const struct json_ranges *r = json_object_get_userdata(o);

    return printbuf_memappend(out, r->text, (int)r->len);
}

static void free_text(json_t *o, void *userdata)
{
    struct json_ranges *r = userdata;

    json_ranges_clear(r);
    free(r);
}

json_t *json_ranges_finish(struct json_ranges *r)
{
    struct json_ranges *kept = json_ranges_reserve(r, 0) == 0 ? malloc(sizeof(*kept)) : NULL;
    json_t *array = kept ? json_object_new_array() : NULL;

    if (!array) {
        free(kept);
        json_ranges_clear(r);
        return NULL;
    }
    if (r->len == 0)
        r->text[r->len++] = '[';
    r->text[r->len++] = ']';
    *kept = *r;
    *r = (struct json_ranges){0};
    json_object_set_serializer(array, write_text, kept, free_text);
    return array;
}

void json_ranges_clear(struct json_ranges *r)
{
    free(r->text);
    *r = (struct json_ranges){0};
}
