/* Reading an HTTP request that anybody may have sent. RFC 9112. */
#include "config.h"

#include <string.h>
#include <strings.h>

#include "base/http.h"
#include "base/util.h"

/* Part of a text. */
struct span {
    const char *p;
    size_t len;
};

static bool span_is(struct span s, const char *word)
{
    return s.len == strlen(word) && memcmp(s.p, word, s.len) == 0;
}

/* Cut off what stands before `end`; false when `end` is not there. */
static bool cut(struct span *rest, const char *end, struct span *ret)
{
    const char *at = memmem(rest->p, rest->len, end, strlen(end));

    if (!at)
        return false;
    *ret = (struct span){rest->p, (size_t)(at - rest->p)};
    rest->len -= ret->len + strlen(end);
    rest->p = at + strlen(end);
    return true;
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* Undo %XX. Control bytes and NUL make no sense in anything that is served here. */
static bool decode(struct span s, char *buf, size_t len)
{
    size_t o = 0;

    for (size_t i = 0; i < s.len; i++) {
        int c = (unsigned char)s.p[i];

        if (c == '%') {
            if (s.len - i < 3 || hex(s.p[i + 1]) < 0 || hex(s.p[i + 2]) < 0)
                return false;
            c = hex(s.p[i + 1]) << 4 | hex(s.p[i + 2]);
            i += 2;
        }
        if (c < ' ' || c == 0x7f || o + 1 >= len)
            return false;
        buf[o++] = (char)c;
    }
    buf[o] = '\0';
    return true;
}

static int parse_target(struct span target, struct http_request *ret)
{
    const char *mark = memchr(target.p, '?', target.len);
    struct span path = {target.p, mark ? (size_t)(mark - target.p) : target.len};
    size_t query = mark ? target.len - path.len - 1 : 0;

    if (target.len == 0 || *target.p != '/')
        return 400;
    if (path.len >= sizeof(ret->path) || query >= sizeof(ret->query))
        return 414;
    for (size_t i = 0; i < target.len; i++)
        if (target.p[i] <= ' ' || target.p[i] == 0x7f)
            return 400;
    if (!decode(path, ret->path, sizeof(ret->path)))
        return 400;
    if (mark)
        memcpy(ret->query, mark + 1, query);
    ret->query[query] = '\0';
    return 0;
}

static int parse_line(struct span line, struct http_request *ret)
{
    struct span method, target;

    if (!cut(&line, " ", &method) || !cut(&line, " ", &target))
        return 400;
    if (line.len != 8 || memcmp(line.p, "HTTP/", 5) != 0)
        return 400;
    if (!span_is(line, "HTTP/1.1") && !span_is(line, "HTTP/1.0"))
        return 505;
    ret->head = span_is(method, "HEAD");
    if (!ret->head && !span_is(method, "GET"))
        return 405;
    return parse_target(target, ret);
}

static int parse_header(struct span line, struct http_request *ret)
{
    const struct {
        const char *name;
        char *value;
    } known[] = {
        {"host", ret->host}, {"accept", ret->accept}, {"origin", ret->origin}, {"sec-fetch-site", ret->fetch_site}};
    struct span name;

    if (!cut(&line, ":", &name) || name.len == 0 || memchr(name.p, ' ', name.len) || memchr(name.p, '\t', name.len))
        return 400;
    while (line.len > 0 && (*line.p == ' ' || *line.p == '\t'))
        line.p++, line.len--;
    while (line.len > 0 && (line.p[line.len - 1] == ' ' || line.p[line.len - 1] == '\t'))
        line.len--;
    for (size_t i = 0; i < line.len; i++)
        if ((line.p[i] >= 0 && line.p[i] < ' ' && line.p[i] != '\t') || line.p[i] == 0x7f)
            return 400;
    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        size_t len = MIN(line.len, (size_t)HTTP_MAX_VALUE - 1);

        if (name.len != strlen(known[i].name) || strncasecmp(name.p, known[i].name, name.len) != 0)
            continue;
        memcpy(known[i].value, line.p, len);
        known[i].value[len] = '\0';
    }
    return 0;
}

int http_parse_request(const char *text, size_t len, struct http_request *ret)
{
    struct span rest = {text, len}, line;
    int r;

    *ret = (struct http_request){0};
    if (memchr(text, '\0', len) || !cut(&rest, "\r\n", &line))
        return 400;
    r = parse_line(line, ret);
    while (r == 0) {
        if (!cut(&rest, "\r\n", &line))
            return 400;
        if (line.len == 0)
            return rest.len == 0 ? 0 : 400;
        r = parse_header(line, ret);
    }
    return r;
}

bool http_query_value(const char *query, const char *key, char *buf, size_t len)
{
    struct span rest = {query, strlen(query)}, part, name;

    while (rest.len > 0) {
        if (!cut(&rest, "&", &part)) {
            part = rest;
            rest.len = 0;
        }
        if (cut(&part, "=", &name) && span_is(name, key))
            return decode(part, buf, len);
    }
    return false;
}
