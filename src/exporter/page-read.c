/* Reading a page. The grammar is OpenMetrics 1.0, less what umbrad does not use: timestamps, exemplars, other types. */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "exporter/page.h"

/* Samples that were seen, as hashes of what identifies them: twice the room that they can need. */
#define SEEN_SLOTS (PAGE_MAX_SAMPLES * 2)

struct reader {
    const char *at, *end; /* of the line being read */
    unsigned int line;
    struct page_family family;
    bool has_family, has_type;
    char (*names)[OM_NAME_MAX + 1]; /* of families so far */
    size_t name_count, sample_count;
    uint64_t *seen;
    page_sample_fn *fn;
    void *opaque;
    char *error;
};

static int PRINTF_LIKE(2, 3) refuse(struct reader *r, const char *fmt, ...)
{
    int n = snprintf(r->error, PAGE_ERROR_MAX, "line %u: ", r->line);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r->error + n, PAGE_ERROR_MAX - (size_t)n, fmt, ap);
    va_end(ap);
    return -EPROTO;
}

/* -- pieces ------------------------------------------------------------------ */

static bool is_name_char(char c, bool first)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (!first && c >= '0' && c <= '9');
}

/* Take a name off the line; false when there is none, or it is too long. */
static bool take_name(struct reader *r, char name[OM_NAME_MAX + 1])
{
    size_t n = 0;

    while (r->at + n < r->end && is_name_char(r->at[n], n == 0))
        n++;
    if (n == 0 || n > OM_NAME_MAX)
        return false;
    memcpy(name, r->at, n);
    name[n] = '\0';
    r->at += n;
    return true;
}

static bool take(struct reader *r, const char *text)
{
    size_t n = strlen(text);

    if ((size_t)(r->end - r->at) < n || memcmp(r->at, text, n) != 0)
        return false;
    r->at += n;
    return true;
}

/* Bytes of one UTF-8 character at p, 0 when it is none, or a control character. RFC 3629. */
static size_t utf8_length(const char *p, const char *end)
{
    const unsigned char *u = (const unsigned char *)p;
    size_t n = u[0] < 0x80 ? 1 : u[0] < 0xc2 ? 0 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : u[0] < 0xf5 ? 4 : 0;

    if (n == 0 || (size_t)(end - p) < n || u[0] < ' ' || u[0] == 0x7f)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((u[i] & 0xc0) != 0x80)
            return 0;
    if ((u[0] == 0xe0 && u[1] < 0xa0) || (u[0] == 0xed && u[1] > 0x9f) || (u[0] == 0xf0 && u[1] < 0x90) ||
        (u[0] == 0xf4 && u[1] > 0x8f) || (u[0] == 0xc2 && u[1] < 0xa0))
        return 0;
    return n;
}

/* Take a quoted text. */
static bool take_quoted(struct reader *r, char *buf, size_t len)
{
    size_t o = 0;

    if (!take(r, "\""))
        return false;
    while (r->at < r->end && *r->at != '"') {
        bool escaped = *r->at == '\\';
        size_t n;

        /* A line break in a label makes no sense here, so its escape is refused too. */
        if (escaped && (++r->at == r->end || (*r->at != '\\' && *r->at != '"')))
            return false;
        n = utf8_length(r->at, r->end);
        if (n == 0 || o + n >= len)
            return false;
        memcpy(buf + o, r->at, n);
        o += n;
        r->at += n;
    }
    buf[o] = '\0';
    return take(r, "\"");
}

static bool number_valid(const char *s)
{
    size_t digits;

    if (strcmp(s, "NaN") == 0 || strcmp(s, "+Inf") == 0 || strcmp(s, "-Inf") == 0)
        return true;
    s += *s == '-' || *s == '+';
    digits = strspn(s, "0123456789");
    s += digits;
    if (*s == '.') {
        s++;
        digits += strspn(s, "0123456789");
        s += strspn(s, "0123456789");
    }
    if (digits > 0 && *s == 'e') {
        s++;
        s += *s == '-' || *s == '+';
        digits = strspn(s, "0123456789");
        s += digits;
    }
    return digits > 0 && *s == '\0';
}

/* -- families ---------------------------------------------------------------- */

static bool starts_with(const char *name, const char *start)
{
    return strncmp(name, start, strlen(start)) == 0;
}

/* Begin the family that a line of description names, unless it has begun. */
static int enter_family(struct reader *r, const char *name)
{
    if (r->has_family && strcmp(r->family.name, name) == 0)
        return 0;
    if (!starts_with(name, "umbra_") && !starts_with(name, "process_"))
        return refuse(r, "%.64s: no family that a VM has", name);
    if (starts_with(name, "umbra_exporter") || starts_with(name, "umbra_vm_up") || starts_with(name, "umbra_vm_scrape"))
        return refuse(r, "%.64s is the exporter's own", name);
    for (size_t i = 0; i < r->name_count; i++)
        if (strcmp(r->names[i], name) == 0)
            return refuse(r, "%.64s comes twice", name);
    if (r->name_count == PAGE_MAX_FAMILIES)
        return refuse(r, "more than %u families", PAGE_MAX_FAMILIES);
    strcpy(r->names[r->name_count++], name);
    r->family = (struct page_family){0};
    strcpy(r->family.name, name);
    r->has_family = true;
    r->has_type = false;
    return 0;
}

static int read_type(struct reader *r)
{
    static const char *const types[] = {
        [OM_COUNTER] = "counter", [OM_GAUGE] = "gauge", [OM_HISTOGRAM] = "histogram", [OM_INFO] = "info"};

    if (r->has_type)
        return refuse(r, "a second type of %.64s", r->family.name);
    for (size_t i = 0; i < ARRAY_SIZE(types); i++)
        if (take(r, types[i]) && r->at == r->end) {
            r->family.type = (enum om_type)i;
            r->has_type = true;
            return 0;
        }
    return refuse(r, "a type that no VM has");
}

static int read_help(struct reader *r)
{
    size_t len = (size_t)(r->end - r->at);

    if (len >= sizeof(r->family.help))
        return refuse(r, "a help text longer than %zu bytes", sizeof(r->family.help) - 1);
    for (const char *p = r->at; p < r->end;) {
        size_t n = *p == '\\' || *p == '"' ? 0 : utf8_length(p, r->end);

        if (n == 0)
            return refuse(r, "a help text that is none");
        p += n;
    }
    memcpy(r->family.help, r->at, len);
    r->family.help[len] = '\0';
    return 0;
}

static int read_unit(struct reader *r)
{
    char unit[OM_NAME_MAX + 1];

    if (!take_name(r, unit) || r->at != r->end || strlen(unit) >= sizeof(r->family.unit))
        return refuse(r, "a unit that is none");
    /* Prometheus refuses a page where this is not so. */
    if (strlen(r->family.name) <= strlen(unit) + 1 ||
        strcmp(r->family.name + strlen(r->family.name) - strlen(unit), unit) != 0 ||
        r->family.name[strlen(r->family.name) - strlen(unit) - 1] != '_')
        return refuse(r, "%.64s does not end in its unit", r->family.name);
    strcpy(r->family.unit, unit);
    return 0;
}

static int read_description(struct reader *r)
{
    static const struct {
        const char *word;
        int (*read)(struct reader *r);
    } words[] = {{"# TYPE ", read_type}, {"# HELP ", read_help}, {"# UNIT ", read_unit}};
    char name[OM_NAME_MAX + 1];

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        int e;

        if (!take(r, words[i].word))
            continue;
        if (!take_name(r, name) || !take(r, " "))
            return refuse(r, "a description of nothing");
        e = enter_family(r, name);
        return e < 0 ? e : words[i].read(r);
    }
    return refuse(r, "a comment");
}

/* -- samples ----------------------------------------------------------------- */

static int find_suffix(struct reader *r, const char *rest, struct page_sample *s)
{
    static const char *const suffixes[][4] = {
        [OM_COUNTER] = {"_total"}, [OM_GAUGE] = {""}, [OM_HISTOGRAM] = {"_bucket", "_sum", "_count"}, [OM_INFO] = {"_info"}};

    for (size_t i = 0; suffixes[r->family.type][i]; i++)
        if (strcmp(rest, suffixes[r->family.type][i]) == 0) {
            s->suffix = suffixes[r->family.type][i];
            return 0;
        }
    return refuse(r, "%.64s has no sample %.32s", r->family.name, rest);
}

static int read_labels(struct reader *r, struct page_sample *s)
{
    if (!take(r, "{") || take(r, "}"))
        return 0;
    do {
        struct page_label *l = &s->labels[s->label_count];

        if (s->label_count == PAGE_MAX_LABELS)
            return refuse(r, "more than %u labels", PAGE_MAX_LABELS);
        if (!take_name(r, l->name) || !take(r, "=") || !take_quoted(r, l->value, sizeof(l->value)))
            return refuse(r, "a label that is none, or is too long");
        if (strcmp(l->name, PAGE_VM_LABEL) == 0)
            return refuse(r, "a label that is the exporter's own");
        for (size_t i = 0; i < s->label_count; i++)
            if (strcmp(s->labels[i].name, l->name) == 0)
                return refuse(r, "a label that comes twice");
        s->label_count++;
    } while (take(r, ","));
    return take(r, "}") ? 0 : refuse(r, "labels without an end");
}

/* Whether this is the first sample of what stands in [from, to): its name and labels. */
static bool first_time(struct reader *r, const char *from, const char *to)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    size_t i;

    /* Fowler, Noll and Vo's. Who makes two samples collide has only their own page refused. */
    for (; from < to; from++)
        h = (h ^ (unsigned char)*from) * UINT64_C(0x100000001b3);
    h += h == 0;
    for (i = h % SEEN_SLOTS; r->seen[i]; i = (i + 1) % SEEN_SLOTS)
        if (r->seen[i] == h)
            return false;
    r->seen[i] = h;
    return true;
}

static int read_sample(struct reader *r)
{
    const char *start = r->at;
    struct page_sample s = {0};
    char name[OM_NAME_MAX + 1];
    size_t len = strlen(r->family.name);
    int e;

    if (!take_name(r, name))
        return refuse(r, "neither a sample nor a description");
    if (!r->has_family || !r->has_type || strncmp(name, r->family.name, len) != 0)
        return refuse(r, "%.64s: a sample outside its family", name);
    e = find_suffix(r, name + len, &s);
    if (e == 0)
        e = read_labels(r, &s);
    if (e < 0)
        return e;
    if (r->sample_count++ == PAGE_MAX_SAMPLES)
        return refuse(r, "more than %u samples", PAGE_MAX_SAMPLES);
    if (r->seen && !first_time(r, start, r->at))
        return refuse(r, "%.64s comes twice with the same labels", name);
    if (!take(r, " ") || (size_t)(r->end - r->at) > PAGE_MAX_NUMBER)
        return refuse(r, "%.64s: no number", name);
    memcpy(s.number, r->at, (size_t)(r->end - r->at));
    if (memchr(r->at, '\0', (size_t)(r->end - r->at)) || !number_valid(s.number))
        return refuse(r, "%.64s: no number", name);
    if (r->fn)
        r->fn(r->opaque, &r->family, &s);
    return 0;
}

/* -- the page ---------------------------------------------------------------- */

static int read_lines(struct reader *r, const char *text, size_t len)
{
    const char *end = text + len;

    while (text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        int e;

        r->line++;
        if (!newline)
            return refuse(r, "the page ends inside it");
        if (newline - text > (ptrdiff_t)PAGE_MAX_LINE)
            return refuse(r, "longer than %u bytes", PAGE_MAX_LINE);
        r->at = text;
        r->end = newline;
        text = newline + 1;
        if (take(r, "# EOF") && r->at == r->end)
            return text == end ? 0 : refuse(r, "there is more behind the end");
        e = r->at < r->end && *r->at == '#' ? read_description(r) : read_sample(r);
        if (e < 0)
            return e;
    }
    return refuse(r, "the page has no end");
}

int page_read(const char *text, size_t len, page_sample_fn *fn, void *opaque, char *error)
{
    _cleanup_free_ uint64_t *seen = calloc(SEEN_SLOTS, sizeof(*seen));
    struct reader r = {.names = calloc(PAGE_MAX_FAMILIES, sizeof(*r.names)), .seen = seen, .error = error};
    int e = seen && r.names ? 0 : -ENOMEM;

    if (e == 0 && len > PAGE_MAX_SIZE)
        e = refuse(&r, "the page has %zu bytes, the limit is %u", len, PAGE_MAX_SIZE);
    if (e == 0)
        e = read_lines(&r, text, len);
    if (e == 0 && fn) {
        /* It is sound: once more, for real. */
        r = (struct reader){.names = r.names, .fn = fn, .opaque = opaque, .error = error};
        e = read_lines(&r, text, len);
    }
    free(r.names);
    return e;
}
