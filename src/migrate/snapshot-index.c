#include "config.h"

#include "migrate/snapshot-index.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define MAGIC "UMBRAPGS"
#define FORMAT 1u
#define HEADER_SIZE (8 + 4 + 4 + 8)
#define CHUNK_HEADER_SIZE (4 + 2 * 8 * SNAPSHOT_CHUNK_WORDS)
#define CHUNK_SIZE_MAX (CHUNK_HEADER_SIZE + 4 * SNAPSHOT_CHUNK_PAGES)

int snapshot_index_init(struct snapshot_index *ix, uint64_t pages)
{
    *ix = (struct snapshot_index){.pages = pages, .chunk_count = (uint32_t)(pages / SNAPSHOT_CHUNK_PAGES)};
    ix->chunks = calloc(MAX(ix->chunk_count, 1u), sizeof(struct snapshot_chunk *));
    return ix->chunks ? 0 : -ENOMEM;
}

void snapshot_index_clear(struct snapshot_index *ix)
{
    for (uint32_t i = 0; ix->chunks && i < ix->chunk_count; i++)
        free(ix->chunks[i]);
    free(ix->chunks);
    *ix = (struct snapshot_index){0};
}

static void count(struct snapshot_index *ix, enum snapshot_page kind, int by)
{
    if (kind == SNAPSHOT_PAGE_BYTES)
        ix->byte_pages += (uint64_t)by;
    else if (kind == SNAPSHOT_PAGE_ZERO)
        ix->zero_pages += (uint64_t)by;
}

int snapshot_index_set(struct snapshot_index *ix, uint64_t page, enum snapshot_page kind, uint32_t crc)
{
    struct snapshot_chunk **slot = &ix->chunks[page / SNAPSHOT_CHUNK_PAGES], *c = *slot;
    unsigned int i = page % SNAPSHOT_CHUNK_PAGES;
    uint64_t bit = UINT64_C(1) << (i % 64);

    if (!c) {
        if (kind == SNAPSHOT_PAGE_NONE)
            return 0;
        c = *slot = calloc(1, sizeof(*c));
        if (!c)
            return -ENOMEM;
    }
    count(ix, snapshot_index_get(ix, page, NULL), -1);
    c->bytes[i / 64] &= ~bit;
    c->zero[i / 64] &= ~bit;
    if (kind == SNAPSHOT_PAGE_BYTES)
        c->bytes[i / 64] |= bit;
    else if (kind == SNAPSHOT_PAGE_ZERO)
        c->zero[i / 64] |= bit;
    c->crc[i] = crc;
    count(ix, kind, 1);
    return 0;
}

enum snapshot_page snapshot_index_get(const struct snapshot_index *ix, uint64_t page, uint32_t *ret_crc)
{
    const struct snapshot_chunk *c = ix->chunks[page / SNAPSHOT_CHUNK_PAGES];
    unsigned int i = page % SNAPSHOT_CHUNK_PAGES;

    if (!c)
        return SNAPSHOT_PAGE_NONE;
    if (c->zero[i / 64] >> (i % 64) & 1)
        return SNAPSHOT_PAGE_ZERO;
    if (!(c->bytes[i / 64] >> (i % 64) & 1))
        return SNAPSHOT_PAGE_NONE;
    if (ret_crc)
        *ret_crc = c->crc[i];
    return SNAPSHOT_PAGE_BYTES;
}

uint64_t snapshot_index_size_max(uint64_t pages)
{
    return HEADER_SIZE + pages / SNAPSHOT_CHUNK_PAGES * CHUNK_HEADER_SIZE + pages * 4;
}

static bool chunk_empty(const struct snapshot_chunk *c)
{
    uint64_t any = 0;

    for (unsigned int w = 0; c && w < SNAPSHOT_CHUNK_WORDS; w++)
        any |= c->bytes[w] | c->zero[w];
    return any == 0;
}

/* As one piece: an index of scattered pages is many small chunks. */
static void write_chunk(const struct snapshot_chunk *c, uint32_t number, struct byte_writer *w)
{
    uint8_t buf[CHUNK_SIZE_MAX], *p = buf;

    le32_put(p, number);
    p += 4;
    for (unsigned int i = 0; i < SNAPSHOT_CHUNK_WORDS; i++, p += 8)
        le64_put(p, c->bytes[i]);
    for (unsigned int i = 0; i < SNAPSHOT_CHUNK_WORDS; i++, p += 8)
        le64_put(p, c->zero[i]);
    for (unsigned int i = 0; i < SNAPSHOT_CHUNK_WORDS; i++)
        for (uint64_t bits = c->bytes[i]; bits; bits &= bits - 1, p += 4)
            le32_put(p, c->crc[64 * i + (unsigned int)__builtin_ctzll(bits)]);
    byte_write(w, buf, (size_t)(p - buf));
}

void snapshot_index_write(const struct snapshot_index *ix, struct byte_writer *w)
{
    uint32_t chunks = 0;

    for (uint32_t i = 0; i < ix->chunk_count; i++)
        chunks += !chunk_empty(ix->chunks[i]);
    byte_write(w, MAGIC, 8);
    byte_write_u32(w, FORMAT);
    byte_write_u32(w, chunks);
    byte_write_u64(w, ix->pages);
    for (uint32_t i = 0; i < ix->chunk_count; i++)
        if (!chunk_empty(ix->chunks[i]))
            write_chunk(ix->chunks[i], i, w);
}

/* -- reading ------------------------------------------------------------------ */

static int bad(char *error, const char *fmt, ...) PRINTF_LIKE(2, 3);
static int bad(char *error, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(error, SNAPSHOT_ERROR_MAX, fmt, ap);
    va_end(ap);
    return -EBADMSG;
}

static int read_chunk(struct snapshot_index *ix, struct byte_reader *r, int64_t *last, char *error)
{
    uint32_t number = byte_read_u32(r);
    struct snapshot_chunk *c;
    unsigned int crcs = 0;
    const uint8_t *p;

    if (r->failed)
        return bad(error, "ends within the chunk after %" PRId64, *last);
    if ((int64_t)number <= *last)
        return bad(error, "chunk %" PRIu32 " comes after chunk %" PRId64, number, *last);
    if (number >= ix->chunk_count)
        return bad(error, "chunk %" PRIu32 " is beyond the %" PRIu32 " of guest memory", number, ix->chunk_count);
    *last = number;
    c = ix->chunks[number] = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    for (unsigned int i = 0; i < SNAPSHOT_CHUNK_WORDS; i++) {
        c->bytes[i] = byte_read_u64(r);
        crcs += (unsigned int)__builtin_popcountll(c->bytes[i]);
    }
    for (unsigned int i = 0; i < SNAPSHOT_CHUNK_WORDS; i++) {
        c->zero[i] = byte_read_u64(r);
        if (c->zero[i] & c->bytes[i])
            return bad(error, "chunk %" PRIu32 ": a page is both zeros and bytes", number);
        ix->zero_pages += (uint64_t)__builtin_popcountll(c->zero[i]);
    }
    ix->byte_pages += crcs;
    p = byte_read(r, 4 * crcs);
    if (r->failed)
        return bad(error, "ends within chunk %" PRIu32, number);
    /* A guest waits for this: only the bits that are set, which of scattered pages nobody can foresee. */
    for (unsigned int i = 0; i < SNAPSHOT_CHUNK_WORDS; i++)
        for (uint64_t bits = c->bytes[i]; bits; bits &= bits - 1, p += 4)
            c->crc[64 * i + (unsigned int)__builtin_ctzll(bits)] = le32_get(p);
    return chunk_empty(c) ? bad(error, "chunk %" PRIu32 " is empty", number) : 0;
}

static int read_all(struct snapshot_index *ix, struct byte_reader *r, char *error)
{
    const uint8_t *magic = byte_read(r, 8);
    uint32_t format = byte_read_u32(r), chunks = byte_read_u32(r);
    uint64_t pages = byte_read_u64(r);
    int64_t last = -1;
    int err = 0;

    if (r->failed || memcmp(magic, MAGIC, 8) != 0)
        return bad(error, "is no list of pages");
    if (format != FORMAT)
        return bad(error, "format %" PRIu32 " is not %u, the one this umbra knows", format, FORMAT);
    if (pages != ix->pages)
        return bad(error, "%" PRIu64 " pages of guest memory where meta.json says %" PRIu64, pages, ix->pages);
    if (chunks > ix->chunk_count)
        return bad(error, "%" PRIu32 " chunks where guest memory has %" PRIu32, chunks, ix->chunk_count);
    for (uint32_t i = 0; i < chunks && err == 0; i++)
        err = read_chunk(ix, r, &last, error);
    if (err == 0 && r->pos != r->len)
        return bad(error, "%zu bytes too many", r->len - r->pos);
    return err;
}

int snapshot_index_read(struct snapshot_index *ret, uint64_t pages, const void *data, size_t len, char *error)
{
    struct byte_reader r = byte_reader_new(data, len);
    struct snapshot_index ix;
    int err = snapshot_index_init(&ix, pages);

    if (err == 0)
        err = read_all(&ix, &r, error);
    if (err == -ENOMEM)
        snprintf(error, SNAPSHOT_ERROR_MAX, "out of memory");
    if (err < 0) {
        snapshot_index_clear(&ix);
        return err;
    }
    *ret = ix;
    return 0;
}
