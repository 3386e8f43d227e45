#include "config.h"

#include "daemon/range-text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ",[18446744073709551615,18446744073709551615]", and what copies of fixed size write beyond it. */
#define PAIR_MAX (44 + 24)

static int grow(struct range_text *t, size_t more)
{
    size_t cap = MAX(t->cap * 2, t->len + more);
    char *data;

    if (t->len + more <= t->cap)
        return 0;
    data = realloc(t->data, cap);
    if (!data)
        return -ENOMEM;
    t->data = data;
    t->cap = cap;
    return 0;
}

int range_text_printf(struct range_text *t, const char *fmt, ...)
{
    va_list ap;
    int n, r;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return -EINVAL;
    r = grow(t, (size_t)n + 1);
    if (r < 0)
        return r;
    va_start(ap, fmt);
    vsnprintf(t->data + t->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    t->len += (size_t)n;
    return 0;
}

int range_text_reserve(struct range_text *t, size_t count)
{
    return grow(t, count * PAIR_MAX);
}

/* Write v in decimal at p; where the text ends. */
static char *put_number(char *p, uint64_t v)
{
    char digits[20];
    size_t at = sizeof(digits);

    do {
        digits[--at] = (char)('0' + v % 10);
        v /= 10;
    } while (v > 0);
    memcpy(p, digits + at, sizeof(digits) - at);
    return p + (sizeof(digits) - at);
}

/* The same for numbers that come in order. May write up to 24 bytes beyond the end. */
static char *put_start(struct range_text *t, char *p, uint64_t v)
{
    uint64_t high = v / 1000;
    unsigned int low = (unsigned int)(v % 1000);

    if (high == 0)
        return put_number(p, v);
    if (high != t->high) {
        t->high = high;
        t->high_len = (size_t)(put_number(t->high_text, high) - t->high_text);
    }
    /* Of fixed size, because a call would cost more than the rest. */
    memcpy(p, t->high_text, 8);
    if (unlikely(t->high_len > 8))
        memcpy(p, t->high_text, sizeof(t->high_text));
    p += t->high_len;
    p[0] = (char)('0' + low / 100);
    p[1] = (char)('0' + low / 10 % 10);
    p[2] = (char)('0' + low % 10);
    return p + 3;
}

void range_text_add(struct range_text *t, uint64_t first, uint64_t count)
{
    char *p = t->data + t->len;

    if (t->open)
        *p++ = ',';
    t->open = true;
    *p++ = '[';
    p = put_start(t, p, first);
    *p++ = ',';
    if (count < 10)
        *p++ = (char)('0' + count);
    else
        p = put_number(p, count);
    *p++ = ']';
    t->len = (size_t)(p - t->data);
}

void range_text_clear(struct range_text *t)
{
    free(t->data);
    *t = (struct range_text){0};
}
