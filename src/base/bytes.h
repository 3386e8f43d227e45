/* Little-endian access to byte buffers, and a reader that cannot leave its bounds. */
#ifndef UMBRA_BASE_BYTES_H
#define UMBRA_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "umbra runs on little-endian machines only"
#endif

static inline uint16_t le16_get(const void *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint32_t le32_get(const void *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint64_t le64_get(const void *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void le16_put(void *p, uint16_t v)
{
    memcpy(p, &v, sizeof(v));
}

static inline void le32_put(void *p, uint32_t v)
{
    memcpy(p, &v, sizeof(v));
}

static inline void le64_put(void *p, uint64_t v)
{
    memcpy(p, &v, sizeof(v));
}

/*
 * A reader over [data, data + len). A read past the end returns zeros and sets `failed`, so that a caller may read a
 * whole header and check once.
 */
struct byte_reader {
    const uint8_t *data;
    size_t len;
    size_t pos;
    bool failed;
};

static inline struct byte_reader byte_reader_new(const void *data, size_t len)
{
    return (struct byte_reader){.data = data, .len = len};
}

/* The next n bytes, or NULL (and failed) when there are not as many. */
const uint8_t *byte_read(struct byte_reader *r, size_t n);
uint8_t byte_read_u8(struct byte_reader *r);
uint16_t byte_read_u16(struct byte_reader *r);
uint32_t byte_read_u32(struct byte_reader *r);
uint64_t byte_read_u64(struct byte_reader *r);

/* A growing buffer. After a failed allocation `failed` is set and further writes do nothing. */
struct byte_writer {
    uint8_t *data;
    size_t len;
    size_t cap;
    bool failed;
};

void byte_write(struct byte_writer *w, const void *p, size_t n);
void byte_write_u8(struct byte_writer *w, uint8_t v);
void byte_write_u16(struct byte_writer *w, uint16_t v);
void byte_write_u32(struct byte_writer *w, uint32_t v);
void byte_write_u64(struct byte_writer *w, uint64_t v);

/* Free the buffer and make w an empty writer again. */
void byte_writer_clear(struct byte_writer *w);

#endif
