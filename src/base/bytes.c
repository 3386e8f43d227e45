#include "config.h"

#include "base/bytes.h"

#include <stdlib.h>

#include "base/util.h"

const uint8_t *byte_read(struct byte_reader *r, size_t n)
{
    const uint8_t *p;

    if (r->failed || n > r->len - r->pos) {
        r->failed = true;
        return NULL;
    }
    p = r->data + r->pos;
    r->pos += n;
    return p;
}

uint8_t byte_read_u8(struct byte_reader *r)
{
    const uint8_t *p = byte_read(r, 1);

    return p ? *p : 0;
}

uint16_t byte_read_u16(struct byte_reader *r)
{
    const uint8_t *p = byte_read(r, 2);

    return p ? le16_get(p) : 0;
}

uint32_t byte_read_u32(struct byte_reader *r)
{
    const uint8_t *p = byte_read(r, 4);

    return p ? le32_get(p) : 0;
}

uint64_t byte_read_u64(struct byte_reader *r)
{
    const uint8_t *p = byte_read(r, 8);

    return p ? le64_get(p) : 0;
}

void byte_write(struct byte_writer *w, const void *p, size_t n)
{
    if (w->failed || n == 0)
        return;
    if (n > w->cap - w->len) {
        size_t cap = MAX(w->cap * 2, w->len + n);
        uint8_t *bigger;

        cap = MAX(cap, (size_t)256);
        bigger = realloc(w->data, cap);
        if (!bigger) {
            w->failed = true;
            return;
        }
        w->data = bigger;
        w->cap = cap;
    }
    memcpy(w->data + w->len, p, n);
    w->len += n;
}

void byte_write_u8(struct byte_writer *w, uint8_t v)
{
    byte_write(w, &v, sizeof(v));
}

void byte_write_u16(struct byte_writer *w, uint16_t v)
{
    byte_write(w, &v, sizeof(v));
}

void byte_write_u32(struct byte_writer *w, uint32_t v)
{
    byte_write(w, &v, sizeof(v));
}

void byte_write_u64(struct byte_writer *w, uint64_t v)
{
    byte_write(w, &v, sizeof(v));
}

void byte_writer_clear(struct byte_writer *w)
{
    free(w->data);
    *w = (struct byte_writer){0};
}
