#include "config.h"

#include "base/state.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define STATE_MAGIC "UMBRASTA"
#define STATE_FORMAT 1u
/* Least bytes a section and a field take: what bounds the tables made while reading. */
#define SECTION_MIN (1 + 1 + 4 + 4 + 4)
#define FIELD_MIN (1 + 1 + 4)

/* One field in the reader's index. */
struct state_value {
    const char *name; /* in the state, not terminated */
    const uint8_t *data;
    uint32_t len;
    uint8_t name_len;
    bool read;
};

static bool name_char_valid(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
}

static bool name_valid(const char *name, size_t len)
{
    if (len < 1 || len > STATE_NAME_MAX)
        return false;
    for (size_t i = 0; i < len; i++)
        if (!name_char_valid(name[i]))
            return false;
    return true;
}

/* -- writing -- */

static void put_name(struct state_writer *w, const char *prefix, const char *name)
{
    size_t prefix_len = strlen(prefix), len = strlen(name);

    assert(prefix_len + len <= STATE_NAME_MAX && name_valid(name, len));
    assert(prefix_len == 0 || name_valid(prefix, prefix_len));
    byte_write_u8(&w->out, (uint8_t)(prefix_len + len));
    byte_write(&w->out, prefix, prefix_len);
    byte_write(&w->out, name, len);
}

void state_writer_init(struct state_writer *w)
{
    *w = (struct state_writer){0};
    byte_write(&w->out, STATE_MAGIC, strlen(STATE_MAGIC));
    byte_write_u32(&w->out, STATE_FORMAT);
    byte_write_u32(&w->out, 0); /* the section count, known at the end */
}

void state_begin(struct state_writer *w, const char *name, uint32_t instance, uint32_t version)
{
    assert(w->section_start == 0 && version > 0);
    if (w->sections == STATE_MAX_SECTIONS && !w->error)
        w->error = -EFBIG;
    w->sections++;
    put_name(w, "", name);
    byte_write_u32(&w->out, instance);
    byte_write_u32(&w->out, version);
    w->section_start = w->out.len;
    byte_write_u32(&w->out, 0); /* the body's length, known at the end */
    /* After an allocation failed the position may be 0, which would mean that no section is open. */
    if (w->out.failed)
        w->section_start = SIZE_MAX;
}

static void put_field(struct state_writer *w, const char *prefix, const char *name, const void *data, size_t len)
{
    assert(w->section_start != 0);
    if (len > UINT32_MAX && !w->error)
        w->error = -EFBIG;
    if (w->error)
        return;
    put_name(w, prefix, name);
    byte_write_u32(&w->out, (uint32_t)len);
    byte_write(&w->out, data, len);
}

void state_put_bytes(struct state_writer *w, const char *name, const void *data, size_t len)
{
    put_field(w, "", name, data, len);
}

void state_put_u64(struct state_writer *w, const char *name, uint64_t value)
{
    put_field(w, "", name, &value, sizeof(value));
}

void state_end(struct state_writer *w)
{
    assert(w->section_start != 0);
    if (!w->out.failed) {
        size_t body = w->out.len - w->section_start - sizeof(uint32_t);

        if (body > UINT32_MAX && !w->error)
            w->error = -EFBIG;
        le32_put(w->out.data + w->section_start, (uint32_t)body);
    }
    w->section_start = 0;
}

int state_finish(struct state_writer *w, uint8_t **ret_data, size_t *ret_len)
{
    int r = w->out.failed ? -ENOMEM : w->error;

    assert(w->section_start == 0);
    if (r == 0) {
        le32_put(w->out.data + strlen(STATE_MAGIC) + sizeof(uint32_t), w->sections);
        *ret_len = w->out.len;
        *ret_data = take_ptr(w->out.data);
    }
    state_writer_clear(w);
    return r;
}

void state_writer_clear(struct state_writer *w)
{
    byte_writer_clear(&w->out);
    *w = (struct state_writer){0};
}

/* -- reading: the structure -- */

int state_bad(struct state_reader *r, const struct state_section *s, const char *fmt, ...)
{
    size_t at = 0;
    va_list ap;

    if (s)
        at = (size_t)snprintf(r->error, sizeof(r->error), "%s %u: ", s->name, s->instance);
    va_start(ap, fmt);
    vsnprintf(r->error + at, sizeof(r->error) - at, fmt, ap);
    va_end(ap);
    return -EBADMSG;
}

/* A name, or NULL when it is cut short or malformed. */
static const char *read_name(struct byte_reader *in, uint8_t *ret_len)
{
    uint8_t len = byte_read_u8(in);
    const char *name = (const char *)byte_read(in, len);

    if (!name || !name_valid(name, len))
        return NULL;
    *ret_len = len;
    return name;
}

static int compare_names(const char *a, size_t a_len, const char *b, size_t b_len)
{
    int d = memcmp(a, b, MIN(a_len, b_len));

    return d ? d : (a_len > b_len) - (a_len < b_len);
}

static int compare_values(const void *a, const void *b)
{
    const struct state_value *x = a, *y = b;

    return compare_names(x->name, x->name_len, y->name, y->name_len);
}

static int compare_sections(const void *a, const void *b)
{
    const struct state_section *x = a, *y = b;
    int d = strcmp(x->name, y->name);

    return d ? d : (x->instance > y->instance) - (x->instance < y->instance);
}

/* Index the fields of one section, its body in `in`; *cap is the room in r->values. */
static int read_fields(struct state_reader *r, struct state_section *s, struct byte_reader *in, size_t *cap)
{
    struct state_value *v;

    while (in->pos < in->len) {
        size_t used = (size_t)s->first_field + s->field_count;

        if (used == *cap) {
            size_t bigger = *cap ? *cap * 2 : 256;

            v = realloc(r->values, bigger * sizeof(*v));
            if (!v)
                return -ENOMEM;
            r->values = v;
            *cap = bigger;
        }
        v = &r->values[used];
        *v = (struct state_value){0};
        v->name = read_name(in, &v->name_len);
        if (!v->name)
            return state_bad(r, s, "field %u has a malformed name", s->field_count);
        v->len = byte_read_u32(in);
        if (in->failed || v->len > in->len - in->pos)
            return state_bad(r, s, "field %.*s: length %u exceeds the section", v->name_len, v->name, v->len);
        v->data = byte_read(in, v->len);
        s->field_count++;
    }
    if (s->field_count == 0)
        return 0;
    v = &r->values[s->first_field];
    qsort(v, s->field_count, sizeof(*v), compare_values);
    for (uint32_t i = 1; i < s->field_count; i++)
        if (compare_values(&v[i - 1], &v[i]) == 0)
            return state_bad(r, s, "field %.*s is there twice", v[i].name_len, v[i].name);
    return 0;
}

static int read_section(struct state_reader *r, uint32_t index, struct byte_reader *in, size_t *cap)
{
    struct state_section *s = &r->sections[index];
    struct byte_reader body;
    uint8_t name_len;
    const char *name = read_name(in, &name_len);
    uint32_t len;

    if (!name)
        return state_bad(r, NULL, "section %u has a malformed name", index);
    memcpy(s->name, name, name_len);
    s->instance = byte_read_u32(in);
    s->version = byte_read_u32(in);
    len = byte_read_u32(in);
    if (in->failed || len > in->len - in->pos)
        return state_bad(r, s, "body length %u exceeds the state", len);
    if (s->version == 0)
        return state_bad(r, s, "version 0 does not exist");
    if (index > 0)
        s->first_field = s[-1].first_field + s[-1].field_count;
    body = byte_reader_new(byte_read(in, len), len);
    return read_fields(r, s, &body, cap);
}

static int read_state(struct state_reader *r, struct byte_reader *in)
{
    const uint8_t *magic = byte_read(in, strlen(STATE_MAGIC));
    uint32_t format = byte_read_u32(in), count = byte_read_u32(in);
    size_t cap = 0;
    int err;

    if (!magic || memcmp(magic, STATE_MAGIC, strlen(STATE_MAGIC)) != 0)
        return state_bad(r, NULL, "not a machine state (no %s at its start)", STATE_MAGIC);
    if (in->failed)
        return state_bad(r, NULL, "machine state is cut short after %zu bytes", in->len);
    if (format != STATE_FORMAT)
        return state_bad(r, NULL, "machine state has format %u, only %u is known", format, STATE_FORMAT);
    if (count > STATE_MAX_SECTIONS || count > (in->len - in->pos) / SECTION_MIN)
        return state_bad(r, NULL, "section count %u exceeds %s", count,
                         count > STATE_MAX_SECTIONS ? "4096" : "what the state's length can hold");
    /* Indexes of fields are 32 bits wide. */
    if (in->len / FIELD_MIN > UINT32_MAX)
        return state_bad(r, NULL, "machine state of %zu bytes is too large", in->len);
    r->sections = calloc(MAX(count, 1u), sizeof(*r->sections));
    if (!r->sections)
        return -ENOMEM;
    for (; r->count < count; r->count++) {
        err = read_section(r, r->count, in, &cap);
        if (err < 0)
            return err;
    }
    if (in->pos != in->len)
        return state_bad(r, NULL, "%zu bytes follow the last section", in->len - in->pos);
    qsort(r->sections, count, sizeof(*r->sections), compare_sections);
    for (uint32_t i = 1; i < count; i++)
        if (compare_sections(&r->sections[i - 1], &r->sections[i]) == 0)
            return state_bad(r, &r->sections[i], "the section is there twice");
    return 0;
}

static_assert(STATE_MAX_SECTIONS == 4096, "the error of read_state tells the limit");

int state_reader_init(struct state_reader *r, const void *data, size_t len)
{
    struct byte_reader in = byte_reader_new(data, len);
    int err;

    *r = (struct state_reader){0};
    err = read_state(r, &in);
    if (err == -ENOMEM)
        snprintf(r->error, sizeof(r->error), "no memory for the index of a machine state of %zu bytes", len);
    if (err < 0)
        state_reader_clear(r);
    return err;
}

void state_reader_clear(struct state_reader *r)
{
    free(r->sections);
    free(r->values);
    r->sections = NULL;
    r->values = NULL;
    r->count = 0;
}

/* -- reading: sections and fields -- */

const struct state_section *state_find(struct state_reader *r, const char *name, uint32_t instance)
{
    const struct state_section *s;
    struct state_section key = {.instance = instance};

    assert(name_valid(name, strlen(name)));
    memcpy(key.name, name, strlen(name));
    s = r->count ? bsearch(&key, r->sections, r->count, sizeof(key), compare_sections) : NULL;
    if (!s)
        state_bad(r, &key, "the section is missing");
    return s;
}

int state_open(struct state_reader *r, const char *name, uint32_t instance, uint32_t max_version,
               const struct state_section **ret)
{
    const struct state_section *s = state_find(r, name, instance);

    if (!s)
        return -ENOENT;
    if (s->version > max_version)
        return state_bad(r, s, "version %u is newer than %u, the newest known here", s->version, max_version);
    *ret = s;
    return 0;
}

static struct state_value *find_value(struct state_reader *r, const struct state_section *s, const char *prefix,
                                      const char *name)
{
    char full[STATE_NAME_MAX + 1];
    size_t prefix_len = strlen(prefix), len = prefix_len + strlen(name);
    struct state_value key = {.name = full, .name_len = (uint8_t)len}, *v;

    assert(len <= STATE_NAME_MAX);
    memcpy(full, prefix, prefix_len);
    memcpy(full + prefix_len, name, len - prefix_len + 1);
    v = s->field_count ? bsearch(&key, &r->values[s->first_field], s->field_count, sizeof(key), compare_values) : NULL;
    if (!v)
        state_bad(r, s, "field %s is missing", full);
    return v;
}

static int check_length(struct state_reader *r, const struct state_section *s, const struct state_value *v, size_t len)
{
    if (v->len == len)
        return 0;
    return state_bad(r, s, "field %.*s: length %u, not %zu", v->name_len, v->name, v->len, len);
}

int state_get_bytes(struct state_reader *r, const struct state_section *s, const char *name, void *buf, size_t len)
{
    struct state_value *v = find_value(r, s, "", name);
    int err;

    if (!v)
        return -ENOENT;
    err = check_length(r, s, v, len);
    if (err < 0)
        return err;
    if (len > 0)
        memcpy(buf, v->data, len);
    v->read = true;
    return 0;
}

int state_get_u64(struct state_reader *r, const struct state_section *s, const char *name, uint64_t *ret)
{
    return state_get_bytes(r, s, name, ret, sizeof(*ret));
}

int state_get_blob(struct state_reader *r, const struct state_section *s, const char *name, size_t max,
                   const uint8_t **ret, size_t *ret_len)
{
    struct state_value *v = find_value(r, s, "", name);

    if (!v)
        return -ENOENT;
    if (v->len > max)
        return state_bad(r, s, "field %s: length %u exceeds %zu", name, v->len, max);
    *ret = v->data;
    *ret_len = v->len;
    v->read = true;
    return 0;
}

bool state_next_field(struct state_reader *r, const struct state_section *s, const char *prefix, uint32_t *cursor,
                      char ret_name[STATE_NAME_MAX + 1], const uint8_t **ret_data, uint32_t *ret_len)
{
    size_t prefix_len = strlen(prefix);

    for (; *cursor < s->field_count; ++*cursor) {
        struct state_value *v = &r->values[s->first_field + *cursor];

        if (v->name_len < prefix_len || memcmp(v->name, prefix, prefix_len) != 0)
            continue;
        memcpy(ret_name, v->name, v->name_len);
        ret_name[v->name_len] = '\0';
        *ret_data = v->data;
        *ret_len = v->len;
        v->read = true;
        ++*cursor;
        return true;
    }
    return false;
}

int state_check_all_read(struct state_reader *r, const struct state_section *s)
{
    for (uint32_t i = 0; i < s->field_count; i++) {
        const struct state_value *v = &r->values[s->first_field + i];

        if (!v->read)
            return state_bad(r, s, "field %.*s is not known here", v->name_len, v->name);
    }
    return 0;
}

/* -- tables -- */

static size_t field_len(const struct state_field *f)
{
    return (size_t)f->size * MAX(f->count, (uint16_t)1);
}

void state_put_fields(struct state_writer *w, const char *prefix, const struct state_field *fields, size_t n,
                      const void *obj)
{
    for (size_t i = 0; i < n; i++)
        put_field(w, prefix, fields[i].name, (const char *)obj + fields[i].offset, field_len(&fields[i]));
}

static int check_value(struct state_reader *r, const struct state_section *s, const struct state_field *f,
                       const struct state_value *v)
{
    int err = check_length(r, s, v, field_len(f));

    if (err < 0 || !f->is_bool)
        return err;
    for (uint32_t i = 0; i < v->len; i++)
        if (v->data[i] > 1)
            return state_bad(r, s, "field %.*s: %u is neither 0 nor 1", v->name_len, v->name, v->data[i]);
    return 0;
}

int state_get_fields(struct state_reader *r, const struct state_section *s, const char *prefix,
                     const struct state_field *fields, size_t n, void *obj)
{
    /* First check all, then copy: a failure leaves the object as it was. */
    for (int copy = 0; copy < 2; copy++) {
        for (size_t i = 0; i < n; i++) {
            struct state_value *v;
            int err;

            if (fields[i].since > s->version)
                continue;
            v = find_value(r, s, prefix, fields[i].name);
            if (!v)
                return -ENOENT;
            if (copy) {
                memcpy((char *)obj + fields[i].offset, v->data, v->len);
                v->read = true;
                continue;
            }
            err = check_value(r, s, &fields[i], v);
            if (err < 0)
                return err;
        }
    }
    return 0;
}
