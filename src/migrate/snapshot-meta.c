#include "config.h"

#include "migrate/snapshot-meta.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/crc32c.h"
#include "base/util.h"

/* What follows the bytes that the checksum is of. */
#define TRAILER_FORMAT ",\n  \"checksum\": \"crc32c:%08" PRIx32 "\"\n}\n"
#define TRAILER_LEN (sizeof(",\n  \"checksum\": \"crc32c:00000000\"\n}\n") - 1)
#define META_DEPTH 8
/* 512 GiB of guest physical addresses: no RAM is larger (mmu/mem.h). */
#define MEMORY_MAX (UINT64_C(512) << 30)
#define MEMORY_ALIGN ((uint64_t)SNAPSHOT_CHUNK_PAGES * SNAPSHOT_PAGE_SIZE)

static const char *const paging_modes[] = {"shadow", "tdp", "unknown"};

void snapshot_meta_clear(struct snapshot_meta *m)
{
    json_object_put(m->config);
    json_object_put(m->host);
    *m = (struct snapshot_meta){0};
}

int snapshot_meta_new_id(struct snapshot_meta *m)
{
    uint8_t raw[SNAPSHOT_ID_LEN / 2];

    /* So few bytes come at once or not at all. */
    if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
        return errno ? -errno : -EIO;
    for (size_t i = 0; i < sizeof(raw); i++)
        snprintf(m->id + 2 * i, 3, "%02x", raw[i]);
    return 0;
}

/* -- writing ------------------------------------------------------------------ */

static json_t *file_object(uint64_t size, uint32_t crc)
{
    json_t *o = json_object_new_object();
    char text[16];

    snprintf(text, sizeof(text), "%08" PRIx32, crc);
    json_add_u64(o, "size", size);
    json_add_str(o, "crc32c", text);
    return o;
}

static json_t *memory_object(const struct snapshot_meta *m)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "size", m->memory);
    json_add_u64(o, "page-size", SNAPSHOT_PAGE_SIZE);
    json_add_u64(o, "byte-pages", m->byte_pages);
    json_add_u64(o, "zero-pages", m->zero_pages);
    return o;
}

static json_t *to_json(const struct snapshot_meta *m)
{
    json_t *o = json_object_new_object(), *parent = NULL;

    json_add_u64(o, "format", SNAPSHOT_FORMAT);
    json_add_str(o, "id", m->id);
    if (m->parent_id[0]) {
        parent = json_object_new_object();
        json_add_str(parent, "id", m->parent_id);
        json_add_str(parent, "path", m->parent_path);
    }
    json_add(o, "parent", parent);
    json_add_u64(o, "created", m->created);
    json_add_str(o, "producer", m->producer);
    json_add_str(o, "paging", m->paging);
    json_add(o, "host", m->host ? json_object_get(m->host) : json_object_new_object());
    json_add(o, "config", m->config ? json_object_get(m->config) : json_object_new_object());
    json_add_u64(o, "epoch", m->epoch);
    json_add(o, "memory", memory_object(m));
    json_add(o, "state.bin", file_object(m->state_size, m->state_crc));
    json_add(o, "pages", file_object(m->pages_size, m->pages_crc));
    return o;
}

char *snapshot_meta_format(const struct snapshot_meta *m, size_t *ret_len)
{
    _cleanup_json_ json_t *o = to_json(m);
    const char *text;
    char *out;
    size_t len;

    text = json_object_to_json_string_length(
        o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED | JSON_C_TO_STRING_NOSLASHESCAPE, &len);
    if (!o || !text || len < 2)
        return NULL;
    /* The object's end makes room for one more member. */
    len--;
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == ' '))
        len--;
    out = malloc(len + TRAILER_LEN + 1);
    if (!out)
        return NULL;
    memcpy(out, text, len);
    snprintf(out + len, TRAILER_LEN + 1, TRAILER_FORMAT, crc32c(0, text, len));
    *ret_len = len + TRAILER_LEN;
    return out;
}

/* -- reading ------------------------------------------------------------------ */

struct parser {
    struct snapshot_meta *meta;
    char *error;
};

static int bad(struct parser *p, const char *fmt, ...) PRINTF_LIKE(2, 3);
static int bad(struct parser *p, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(p->error, SNAPSHOT_ERROR_MAX, fmt, ap);
    va_end(ap);
    return -EBADMSG;
}

/* Copy a string member of at least one character. */
static int get_text(struct parser *p, const json_t *o, const char *key, char *ret, size_t size)
{
    json_t *v = NULL;
    const char *text = NULL;

    if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_string))
        return bad(p, "\"%s\" is missing or no string", key);
    text = json_object_get_string(v);
    if (!*text || strlen(text) != (size_t)json_object_get_string_len(v) || strlen(text) >= size)
        return bad(p, "\"%s\" is empty, has a NUL in it, or is longer than %zu bytes", key, size - 1);
    strcpy(ret, text);
    return 0;
}

static int get_number(struct parser *p, const json_t *o, const char *key, uint64_t max, uint64_t *ret)
{
    uint64_t v;

    if (json_get_u64(o, key, &v) < 0)
        return bad(p, "\"%s\" is missing or no number from 0 on", key);
    if (v > max)
        return bad(p, "\"%s\" is %" PRIu64 ", the limit is %" PRIu64, key, v, max);
    *ret = v;
    return 0;
}

static int get_object(struct parser *p, const json_t *o, const char *key, json_t **ret)
{
    return json_get_obj(o, key, ret) < 0 ? bad(p, "\"%s\" is missing or no object", key) : 0;
}

static int get_hex(struct parser *p, const json_t *o, const char *key, size_t digits, char *ret)
{
    int r = get_text(p, o, key, ret, digits + 1);

    if (r == 0 && (strlen(ret) != digits || strspn(ret, "0123456789abcdef") != digits))
        return bad(p, "\"%s\" is not %zu hexadecimal digits", key, digits);
    return r;
}

/* `keys` is all that the object may have. */
static int check_keys(struct parser *p, const json_t *o, const char *where, const char *const *keys)
{
    json_object_object_foreach(o, key, value)
    {
        size_t i = 0;

        while (keys[i] && strcmp(keys[i], key) != 0)
            i++;
        if (!keys[i])
            return bad(p, "%s has a member \"%.64s\" that format %u does not know", where, key, SNAPSHOT_FORMAT);
        (void)value;
    }
    return 0;
}

static int get_file(struct parser *p, const json_t *o, const char *key, uint64_t max, uint64_t *ret_size,
                    uint32_t *ret_crc)
{
    static const char *const keys[] = {"size", "crc32c", NULL};
    json_t *file = NULL;
    char crc[9];
    int r = get_object(p, o, key, &file);

    if (r == 0)
        r = check_keys(p, file, key, keys);
    if (r == 0)
        r = get_number(p, file, "size", max, ret_size);
    if (r == 0)
        r = get_hex(p, file, "crc32c", 8, crc);
    if (r == 0)
        *ret_crc = (uint32_t)strtoul(crc, NULL, 16);
    return r;
}

static int get_memory(struct parser *p, const json_t *root)
{
    static const char *const keys[] = {"size", "page-size", "byte-pages", "zero-pages", NULL};
    struct snapshot_meta *m = p->meta;
    uint64_t page_size, pages;
    json_t *o = NULL;
    int r = get_object(p, root, "memory", &o);

    if (r == 0)
        r = check_keys(p, o, "\"memory\"", keys);
    if (r == 0)
        r = get_number(p, o, "page-size", UINT32_MAX, &page_size);
    if (r == 0 && page_size != SNAPSHOT_PAGE_SIZE)
        r = bad(p, "\"page-size\" is %" PRIu64 ", not %u", page_size, SNAPSHOT_PAGE_SIZE);
    if (r == 0)
        r = get_number(p, o, "size", MEMORY_MAX, &m->memory);
    if (r == 0 && (m->memory == 0 || m->memory % MEMORY_ALIGN != 0))
        r = bad(p, "\"size\" of memory is %" PRIu64 ", not a multiple of 1 MiB", m->memory);
    pages = m->memory / SNAPSHOT_PAGE_SIZE;
    if (r == 0)
        r = get_number(p, o, "byte-pages", pages, &m->byte_pages);
    if (r == 0)
        r = get_number(p, o, "zero-pages", pages - m->byte_pages, &m->zero_pages);
    if (r == 0 && !m->parent_id[0] && m->byte_pages + m->zero_pages != pages)
        r = bad(p, "a full snapshot of %" PRIu64 " pages has %" PRIu64, pages, m->byte_pages + m->zero_pages);
    return r;
}

static int get_parent(struct parser *p, const json_t *root)
{
    static const char *const keys[] = {"id", "path", NULL};
    struct snapshot_meta *m = p->meta;
    json_t *o = NULL;
    int r;

    if (!json_object_object_get_ex(root, "parent", &o))
        return bad(p, "\"parent\" is missing");
    if (!o)
        return 0;
    if (!json_object_is_type(o, json_type_object))
        return bad(p, "\"parent\" is neither null nor an object");
    r = check_keys(p, o, "\"parent\"", keys);
    if (r == 0)
        r = get_hex(p, o, "id", SNAPSHOT_ID_LEN, m->parent_id);
    if (r == 0)
        r = get_text(p, o, "path", m->parent_path, sizeof(m->parent_path));
    if (r == 0 && strcmp(m->parent_id, m->id) == 0)
        r = bad(p, "it is its own parent");
    return r;
}

static int get_paging(struct parser *p, const json_t *root)
{
    int r = get_text(p, root, "paging", p->meta->paging, sizeof(p->meta->paging));

    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(paging_modes); i++)
        if (strcmp(p->meta->paging, paging_modes[i]) == 0)
            return 0;
    return r < 0 ? r : bad(p, "\"paging\" is \"%.40s\", not shadow, tdp or unknown", p->meta->paging);
}

static int read_root(struct parser *p, const json_t *root)
{
    static const char *const keys[] = {"format", "id",    "parent", "created",   "producer", "paging",   "host",
                                       "config", "epoch", "memory", "state.bin", "pages",    "checksum", NULL};
    struct snapshot_meta *m = p->meta;
    json_t *host = NULL, *config = NULL;
    uint64_t format;
    int r = get_number(p, root, "format", UINT32_MAX, &format);

    /* First of all: another format may have anything else. */
    if (r == 0 && format != SNAPSHOT_FORMAT)
        return bad(p, "format %" PRIu64 " is not %u, the one this umbra knows", format, SNAPSHOT_FORMAT);
    if (r == 0)
        r = check_keys(p, root, "it", keys);
    if (r == 0)
        r = get_hex(p, root, "id", SNAPSHOT_ID_LEN, m->id);
    if (r == 0)
        r = get_parent(p, root);
    if (r == 0)
        r = get_number(p, root, "created", INT64_MAX, &m->created);
    if (r == 0)
        r = get_text(p, root, "producer", m->producer, sizeof(m->producer));
    if (r == 0)
        r = get_paging(p, root);
    if (r == 0)
        r = get_number(p, root, "epoch", INT64_MAX, &m->epoch);
    if (r == 0)
        r = get_memory(p, root);
    if (r == 0)
        r = get_file(p, root, "state.bin", SNAPSHOT_STATE_MAX, &m->state_size, &m->state_crc);
    if (r == 0)
        r = get_file(p, root, "pages", snapshot_index_size_max(m->memory / SNAPSHOT_PAGE_SIZE), &m->pages_size,
                     &m->pages_crc);
    if (r == 0)
        r = get_object(p, root, "host", &host);
    if (r == 0)
        r = get_object(p, root, "config", &config);
    if (r == 0) {
        m->host = json_object_get(host);
        m->config = json_object_get(config);
    }
    return r;
}

/* The checksum stands where it always stands, so it needs no parser. */
static int check_checksum(struct parser *p, const char *text, size_t len)
{
    char want[TRAILER_LEN + 1];

    if (len > SNAPSHOT_META_MAX)
        return bad(p, "%zu bytes exceed %u", len, SNAPSHOT_META_MAX);
    if (len <= TRAILER_LEN)
        return bad(p, "it ends early (%zu bytes)", len);
    snprintf(want, sizeof(want), TRAILER_FORMAT, crc32c(0, text, len - TRAILER_LEN));
    if (memcmp(text + len - TRAILER_LEN, want, TRAILER_LEN) != 0)
        return bad(p, "the checksum at its end is missing or wrong: it was cut, damaged or edited");
    return 0;
}

int snapshot_meta_parse(struct snapshot_meta *ret, const char *text, size_t len, char *error)
{
    struct snapshot_meta meta = {0};
    struct parser p = {.meta = &meta, .error = error};
    _cleanup_json_ json_t *root = NULL;
    struct json_tokener *tok;
    int r = check_checksum(&p, text, len);

    if (r < 0)
        return r;
    tok = json_tokener_new_ex(META_DEPTH);
    if (!tok) {
        snprintf(error, SNAPSHOT_ERROR_MAX, "out of memory");
        return -ENOMEM;
    }
    json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    root = json_tokener_parse_ex(tok, text, (int)len);
    if (json_tokener_get_error(tok) != json_tokener_success)
        r = bad(&p, "%s at byte %zu", json_tokener_error_desc(json_tokener_get_error(tok)),
                json_tokener_get_parse_end(tok));
    else if (!json_object_is_type(root, json_type_object))
        r = bad(&p, "it is no JSON object");
    json_tokener_free(tok);
    if (r == 0)
        r = read_root(&p, root);
    if (r < 0) {
        snapshot_meta_clear(&meta);
        return r;
    }
    *ret = meta;
    return 0;
}
