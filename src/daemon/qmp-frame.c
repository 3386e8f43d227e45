#include "config.h"

#include "daemon/qmp-frame.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "daemon/qmp-server.h"

enum state {
    BETWEEN, /* between requests */
    RESYNC,  /* skipping up to a line's end or a '{' */
    STRUCT,  /* inside a request, between tokens */
    STRING,
    ESCAPE,
    TOKEN, /* a number, true, false or null */
    /* Skipping a request that is too long or too deep; only strings and brackets count. */
    SKIP,
    SKIP_STRING,
    SKIP_ESCAPE,
};

enum expect {
    WANT_KEY_OR_END,
    WANT_KEY,
    WANT_COLON,
    WANT_VALUE,
    WANT_VALUE_OR_END,
    WANT_COMMA_OR_END,
};

/* The levels of `objects`. */
_Static_assert(QMP_MAX_DEPTH < 64, "nesting is kept in one word");

void qmp_frame_init(struct qmp_frame *f)
{
    memset(f, 0, sizeof(*f));
}

size_t qmp_frame_discard(struct qmp_frame *f)
{
    size_t n = qmp_frame_pending(f) ? f->begin : f->pos;

    f->begin = 0;
    f->pos -= n;
    if (f->state == TOKEN)
        f->token -= n;
    return n;
}

bool qmp_frame_pending(const struct qmp_frame *f)
{
    return f->state >= STRUCT && f->state < SKIP;
}

static bool in_object(const struct qmp_frame *f)
{
    return f->objects >> f->depth & 1;
}

static enum qmp_frame_result fail(struct qmp_frame *f, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Report an error; the byte at pos is looked at again, in state RESYNC. */
static enum qmp_frame_result fail(struct qmp_frame *f, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(f->error, sizeof(f->error), fmt, ap);
    va_end(ap);
    f->state = RESYNC;
    f->begin = f->pos;
    f->depth = 0;
    f->utf8_left = f->hex_left = 0;
    return QMP_FRAME_ERROR;
}

/* A byte that cannot stand where it stands. */
static enum qmp_frame_result fail_byte(struct qmp_frame *f, unsigned char c, const char *where)
{
    /* A byte that means nothing anywhere must not be looked at twice. */
    if (c < 0x20 || c >= 0x7f) {
        if (c != '\n')
            f->pos++;
        return fail(f, "JSON parse error, byte 0x%02x %s", c, where);
    }
    return fail(f, "JSON parse error, unexpected '%c' %s", c, where);
}

/* Report an error, but skip the rest of the request by its brackets. */
static enum qmp_frame_result fail_limit(struct qmp_frame *f, enum state skip, const char *what, unsigned int limit,
                                        const char *unit)
{
    unsigned int depth = f->depth;

    fail(f, "%s exceeds the limit of %u %s", what, limit, unit);
    f->state = skip;
    f->depth = depth;
    return QMP_FRAME_ERROR;
}

static void value_ended(struct qmp_frame *f)
{
    f->state = STRUCT;
    f->expect = WANT_COMMA_OR_END;
}

static enum qmp_frame_result open_bracket(struct qmp_frame *f, bool object)
{
    f->pos++;
    f->depth++;
    if (f->depth > QMP_MAX_DEPTH)
        return fail_limit(f, SKIP, "JSON nesting", QMP_MAX_DEPTH, "levels");
    f->objects = (f->objects & ~(UINT64_C(1) << f->depth)) | (uint64_t)object << f->depth;
    f->state = STRUCT;
    f->expect = object ? WANT_KEY_OR_END : WANT_VALUE_OR_END;
    return QMP_FRAME_MORE;
}

static enum qmp_frame_result close_bracket(struct qmp_frame *f)
{
    f->pos++;
    f->depth--;
    if (f->depth > 0) {
        value_ended(f);
        return QMP_FRAME_MORE;
    }
    f->state = BETWEEN;
    return QMP_FRAME_REQUEST;
}

static bool is_space(unsigned char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static enum qmp_frame_result scan_between(struct qmp_frame *f, unsigned char c)
{
    if (c != '{' && c != '[') {
        if (c < 0x20 || c >= 0x7f || c == '}' || c == ']')
            return fail_byte(f, c, "where a request should begin");
        return fail(f, "QMP input must be a JSON object");
    }
    f->begin = f->pos;
    return open_bracket(f, c == '{');
}

static enum qmp_frame_result scan_struct(struct qmp_frame *f, unsigned char c)
{
    bool value = f->expect == WANT_VALUE || f->expect == WANT_VALUE_OR_END;
    bool key = f->expect == WANT_KEY || f->expect == WANT_KEY_OR_END;
    bool end = f->expect == WANT_KEY_OR_END || f->expect == WANT_VALUE_OR_END || f->expect == WANT_COMMA_OR_END;

    if ((c == '{' || c == '[') && value)
        return open_bracket(f, c == '{');
    if (end && c == (in_object(f) ? '}' : ']'))
        return close_bracket(f);
    if ((c == '"' || c == '\'') && (value || key)) {
        f->quote = c;
        f->state = STRING;
        f->pos++;
        return QMP_FRAME_MORE;
    }
    if (c == ',' && f->expect == WANT_COMMA_OR_END) {
        f->expect = in_object(f) ? WANT_KEY : WANT_VALUE;
        f->pos++;
        return QMP_FRAME_MORE;
    }
    if (c == ':' && f->expect == WANT_COLON) {
        f->expect = WANT_VALUE;
        f->pos++;
        return QMP_FRAME_MORE;
    }
    if (value && ((c >= '0' && c <= '9') || c == '-' || (c >= 'a' && c <= 'z'))) {
        f->token = f->pos++;
        f->state = TOKEN;
        return QMP_FRAME_MORE;
    }
    return fail_byte(f, c, key ? "where a name should be" : value ? "where a value should be" : "after a value");
}

/* Set up for the bytes that follow a first byte of UTF-8, so that overlong forms and surrogates do not pass. */
static bool utf8_begin(struct qmp_frame *f, unsigned char c)
{
    f->utf8_low = 0x80;
    f->utf8_high = 0xbf;
    if (c >= 0xc2 && c <= 0xdf) {
        f->utf8_left = 1;
    } else if (c >= 0xe0 && c <= 0xef) {
        f->utf8_left = 2;
        f->utf8_low = c == 0xe0 ? 0xa0 : 0x80;
        f->utf8_high = c == 0xed ? 0x9f : 0xbf;
    } else if (c >= 0xf0 && c <= 0xf4) {
        f->utf8_left = 3;
        f->utf8_low = c == 0xf0 ? 0x90 : 0x80;
        f->utf8_high = c == 0xf4 ? 0x8f : 0xbf;
    } else {
        return false;
    }
    return true;
}

static enum qmp_frame_result scan_string(struct qmp_frame *f, const unsigned char *data, size_t len)
{
    for (; f->pos < len; f->pos++) {
        unsigned char c = data[f->pos];

        if (f->utf8_left > 0) {
            if (c < f->utf8_low || c > f->utf8_high)
                return fail_byte(f, c, "in a character of UTF-8");
            f->utf8_low = 0x80;
            f->utf8_high = 0xbf;
            f->utf8_left--;
        } else if (c == f->quote) {
            bool was_key = f->expect == WANT_KEY || f->expect == WANT_KEY_OR_END;

            f->pos++;
            f->state = STRUCT;
            f->expect = was_key ? WANT_COLON : WANT_COMMA_OR_END;
            return QMP_FRAME_MORE;
        } else if (c == '\\') {
            f->pos++;
            f->state = ESCAPE;
            f->hex_left = 0;
            return QMP_FRAME_MORE;
        } else if (c < 0x20 || (c >= 0x80 && !utf8_begin(f, c))) {
            return fail_byte(f, c, "in a string");
        }
    }
    return QMP_FRAME_MORE;
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static enum qmp_frame_result scan_escape(struct qmp_frame *f, unsigned char c)
{
    int digit;

    if (f->hex_left == 0) {
        if (!c || !strchr("\"\\/bfnrtu", c))
            return fail_byte(f, c, "in an escape");
        f->pos++;
        f->hex_left = c == 'u' ? 4 : 0;
        f->hex_value = 0;
        f->state = c == 'u' ? ESCAPE : STRING;
        return QMP_FRAME_MORE;
    }
    digit = hex_digit(c);
    if (digit < 0)
        return fail_byte(f, c, "in an escape");
    f->pos++;
    f->hex_value = (uint16_t)(f->hex_value << 4 | digit);
    if (--f->hex_left > 0)
        return QMP_FRAME_MORE;
    /* It would end a name early for everyone who treats it as a C string. */
    if (f->hex_value == 0)
        return fail(f, "JSON parse error, \\u0000 in a string");
    f->state = STRING;
    return QMP_FRAME_MORE;
}

static size_t skip_digits(const char *p, size_t i, size_t len)
{
    while (i < len && p[i] >= '0' && p[i] <= '9')
        i++;
    return i;
}

/* A number as JSON writes it; an integer must fit 64 bits, because a changed number is worse than a refused one. */
static bool number_valid(const char *p, size_t len)
{
    size_t i = p[0] == '-', from = i;
    char text[24];

    i = skip_digits(p, i, len);
    if (i == from || (p[from] == '0' && i > from + 1))
        return false;
    if (i == len) {
        if (len >= sizeof(text))
            return false;
        memcpy(text, p, len);
        text[len] = '\0';
        errno = 0;
        if (from)
            (void)strtoll(text, NULL, 10);
        else
            (void)strtoull(text, NULL, 10);
        return errno == 0;
    }
    if (p[i] == '.') {
        from = ++i;
        i = skip_digits(p, i, len);
        if (i == from)
            return false;
    }
    if (i < len && (p[i] == 'e' || p[i] == 'E')) {
        i++;
        i += i < len && (p[i] == '+' || p[i] == '-');
        from = i;
        i = skip_digits(p, i, len);
        if (i == from)
            return false;
    }
    return i == len;
}

static bool token_valid(const char *p, size_t len)
{
    if (p[0] == '-' || (p[0] >= '0' && p[0] <= '9'))
        return number_valid(p, len);
    return (len == 4 && (memcmp(p, "true", 4) == 0 || memcmp(p, "null", 4) == 0)) ||
           (len == 5 && memcmp(p, "false", 5) == 0);
}

static enum qmp_frame_result scan_token(struct qmp_frame *f, const char *data, size_t len)
{
    for (; f->pos < len; f->pos++) {
        unsigned char c = (unsigned char)data[f->pos];
        size_t n = f->pos - f->token;

        if ((c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || c == '.' || c == '-' || c == '+')
            continue;
        if (!token_valid(data + f->token, n))
            return fail(f, "JSON parse error, '%.*s'%s is no value or does not fit 64 bits", (int)MIN(n, (size_t)24),
                        data + f->token, n > 24 ? "..." : "");
        value_ended(f);
        return QMP_FRAME_MORE;
    }
    return QMP_FRAME_MORE;
}

/* Between requests, or behind an error: pass over what means nothing. True when a request may begin at pos. */
static bool scan_gap(struct qmp_frame *f, const unsigned char *data, size_t len)
{
    for (; f->pos < len; f->pos++) {
        unsigned char c = data[f->pos];

        if (f->state == RESYNC) {
            if (c == '\n')
                f->state = BETWEEN;
            if (c != '{')
                continue;
            f->state = BETWEEN;
        }
        if (!is_space(c))
            break;
    }
    f->begin = f->pos;
    return f->pos < len;
}

/* Pass over the rest of a request that was refused for its size. */
static void scan_skip(struct qmp_frame *f, const unsigned char *data, size_t len)
{
    while (f->pos < len && f->state >= SKIP) {
        unsigned char c = data[f->pos++];

        if (c == '\n' ? f->state != SKIP : ((c < 0x20 && !is_space(c)) || c >= 0xf8)) {
            f->state = c == '\n' ? BETWEEN : RESYNC;
            f->depth = 0;
        } else if (f->state == SKIP_ESCAPE) {
            f->state = SKIP_STRING;
        } else if (f->state == SKIP_STRING) {
            f->state = c == '\\' ? SKIP_ESCAPE : c == f->quote ? SKIP : SKIP_STRING;
        } else if (c == '"' || c == '\'') {
            f->quote = c;
            f->state = SKIP_STRING;
        } else if (c == '{' || c == '[') {
            f->depth += f->depth < UINT32_MAX;
        } else if (c == '}' || c == ']') {
            if (--f->depth == 0)
                f->state = BETWEEN;
        }
    }
    f->begin = f->pos;
}

static enum qmp_frame_result fail_length(struct qmp_frame *f)
{
    enum state skip = SKIP;

    if (f->state == STRING || (f->state == ESCAPE && f->hex_left > 0))
        skip = SKIP_STRING;
    else if (f->state == ESCAPE)
        skip = SKIP_ESCAPE;
    return fail_limit(f, skip, "request size", QMP_MAX_REQUEST, "bytes");
}

static enum qmp_frame_result scan_request(struct qmp_frame *f, const char *text, size_t len)
{
    const unsigned char *data = (const unsigned char *)text;

    switch (f->state) {
    case STRUCT:
        if (is_space(data[f->pos])) {
            f->pos++;
            return QMP_FRAME_MORE;
        }
        return scan_struct(f, data[f->pos]);
    case STRING:
        return scan_string(f, data, len);
    case ESCAPE:
        return scan_escape(f, data[f->pos]);
    case TOKEN:
        return scan_token(f, text, len);
    default:
        return scan_between(f, data[f->pos]);
    }
}

enum qmp_frame_result qmp_frame_scan(struct qmp_frame *f, const char *data, size_t len)
{
    enum qmp_frame_result r;
    size_t end;

    if (f->state == BETWEEN)
        f->begin = f->pos;
    while (f->pos < len) {
        if (f->state >= SKIP) {
            scan_skip(f, (const unsigned char *)data, len);
            continue;
        }
        if (f->state <= RESYNC && !scan_gap(f, (const unsigned char *)data, len))
            break;
        /* Never look beyond the limit, so that the error comes at the same byte however the stream is cut. */
        end = MIN(len, f->begin + QMP_MAX_REQUEST);
        if (f->pos >= end)
            return fail_length(f);
        r = scan_request(f, data, end);
        if (r != QMP_FRAME_MORE)
            return r;
    }
    return QMP_FRAME_MORE;
}
