#include "config.h"

#include "boot/aml.h"

#include <assert.h>
#include <string.h>

#define AML_ZERO 0x00
#define AML_ONE 0x01
#define AML_NAME 0x08
#define AML_BYTE 0x0a
#define AML_WORD 0x0b
#define AML_DWORD 0x0c
#define AML_STRING 0x0d
#define AML_QWORD 0x0e
#define AML_SCOPE 0x10
#define AML_BUFFER 0x11
#define AML_PACKAGE 0x12
#define AML_EXT 0x5b
#define AML_EXT_DEVICE 0x82

#define RES_IRQ_NO_FLAGS 0x22 /* small item 4, 2 bytes */
#define RES_IO 0x47           /* small item 8, 7 bytes */
#define RES_END 0x79          /* small item 15, 1 byte */
#define RES_MEMORY32_FIXED 0x86
#define RES_INTERRUPT 0x89

#define PKG_LENGTH_MAX 4

/*
 * A block's length counts its own bytes, and how many these are depends on it: the contents are written first and moved
 * up when the block is closed.
 */
static void open_block(struct aml *a)
{
    assert(a->depth < AML_MAX_DEPTH);
    a->open[a->depth++] = a->out->len;
}

/* Encode as PkgLength: one byte below 64, else the low nibble beside the number of bytes that follow. */
static unsigned int encode_length(size_t contents, uint8_t *buf)
{
    unsigned int n = 1;
    size_t total;

    if (contents + 1 < 64) {
        buf[0] = (uint8_t)(contents + 1);
        return 1;
    }
    do
        total = contents + ++n;
    while (total >> (4 + 8 * (n - 1)));
    assert(n <= PKG_LENGTH_MAX);
    buf[0] = (uint8_t)((n - 1) << 6 | (total & 0xf));
    for (unsigned int i = 1; i < n; i++)
        buf[i] = (uint8_t)(total >> (4 + 8 * (i - 1)));
    return n;
}

void aml_end(struct aml *a)
{
    static const uint8_t room[PKG_LENGTH_MAX];
    uint8_t length[PKG_LENGTH_MAX] = {0};
    size_t start, contents;
    unsigned int n;

    assert(a->depth > 0);
    start = a->open[--a->depth];
    contents = a->out->len - start;
    n = encode_length(contents, length);
    byte_write(a->out, room, n);
    if (a->out->failed)
        return;
    memmove(a->out->data + start + n, a->out->data + start, contents);
    memcpy(a->out->data + start, length, n);
}

void aml_finish(const struct aml *a)
{
    assert(a->depth == 0);
}

static void write_name(struct aml *a, const char *name)
{
    size_t len;

    if (*name == '\\')
        byte_write_u8(a->out, (uint8_t)*name++);
    len = strlen(name);
    assert(len >= 1 && len <= 4);
    byte_write(a->out, name, len);
    byte_write(a->out, "___", 4 - len);
}

void aml_scope(struct aml *a, const char *name)
{
    byte_write_u8(a->out, AML_SCOPE);
    open_block(a);
    write_name(a, name);
}

void aml_device(struct aml *a, const char *name)
{
    byte_write_u8(a->out, AML_EXT);
    byte_write_u8(a->out, AML_EXT_DEVICE);
    open_block(a);
    write_name(a, name);
}

void aml_package(struct aml *a, uint8_t elements)
{
    byte_write_u8(a->out, AML_PACKAGE);
    open_block(a);
    byte_write_u8(a->out, elements);
}

void aml_name(struct aml *a, const char *name)
{
    byte_write_u8(a->out, AML_NAME);
    write_name(a, name);
}

void aml_integer(struct aml *a, uint64_t value)
{
    if (value <= 1) {
        byte_write_u8(a->out, value ? AML_ONE : AML_ZERO);
    } else if (value <= UINT8_MAX) {
        byte_write_u8(a->out, AML_BYTE);
        byte_write_u8(a->out, (uint8_t)value);
    } else if (value <= UINT16_MAX) {
        byte_write_u8(a->out, AML_WORD);
        byte_write_u16(a->out, (uint16_t)value);
    } else if (value <= UINT32_MAX) {
        byte_write_u8(a->out, AML_DWORD);
        byte_write_u32(a->out, (uint32_t)value);
    } else {
        byte_write_u8(a->out, AML_QWORD);
        byte_write_u64(a->out, value);
    }
}

void aml_string(struct aml *a, const char *ascii)
{
    byte_write_u8(a->out, AML_STRING);
    byte_write(a->out, ascii, strlen(ascii) + 1);
}

static uint8_t hex_digit(char c)
{
    static const char digits[] = "0123456789ABCDEF";
    const char *p = strchr(digits, c);

    assert(c && p);
    return (uint8_t)(p - digits);
}

void aml_eisa_id(struct aml *a, const char *id)
{
    uint8_t bytes[4], letters[3];

    assert(strlen(id) == 7);
    for (int i = 0; i < 3; i++) {
        assert(id[i] >= 'A' && id[i] <= 'Z');
        letters[i] = (uint8_t)(id[i] - 'A' + 1);
    }
    /* Big-endian as on the EISA bus: 5 bits a letter, 4 bits a digit. */
    bytes[0] = (uint8_t)(letters[0] << 2 | letters[1] >> 3);
    bytes[1] = (uint8_t)(letters[1] << 5 | letters[2]);
    bytes[2] = (uint8_t)(hex_digit(id[3]) << 4 | hex_digit(id[4]));
    bytes[3] = (uint8_t)(hex_digit(id[5]) << 4 | hex_digit(id[6]));
    byte_write_u8(a->out, AML_DWORD);
    byte_write(a->out, bytes, sizeof(bytes));
}

/* -- resources ---------------------------------------------------------------- */

static uint8_t *add_resource(struct aml_resources *r, unsigned int len)
{
    uint8_t *p = r->data + r->len;

    assert(r->len + len <= AML_RESOURCES_MAX);
    r->len = (uint8_t)(r->len + len);
    return p;
}

void aml_add_io(struct aml_resources *r, uint16_t port, uint8_t count)
{
    uint8_t *p = add_resource(r, 8);

    p[0] = RES_IO;
    p[1] = 1;             /* 16-bit decode */
    le16_put(p + 2, port); /* lowest and highest base */
    le16_put(p + 4, port);
    p[6] = 1; /* alignment */
    p[7] = count;
}

void aml_add_irq(struct aml_resources *r, unsigned int irq)
{
    uint8_t *p = add_resource(r, 3);

    assert(irq < 16);
    p[0] = RES_IRQ_NO_FLAGS;
    le16_put(p + 1, (uint16_t)(1u << irq));
}

void aml_add_memory32(struct aml_resources *r, uint32_t base, uint32_t size)
{
    uint8_t *p = add_resource(r, 12);

    p[0] = RES_MEMORY32_FIXED;
    le16_put(p + 1, 9);
    p[3] = 1; /* writable */
    le32_put(p + 4, base);
    le32_put(p + 8, size);
}

void aml_add_interrupt(struct aml_resources *r, uint32_t gsi)
{
    uint8_t *p = add_resource(r, 9);

    p[0] = RES_INTERRUPT;
    le16_put(p + 1, 6);
    p[3] = 1 << 0 | 1 << 1; /* consumer, edge; active high, exclusive */
    p[4] = 1;               /* lines */
    le32_put(p + 5, gsi);
}

void aml_resources(struct aml *a, const struct aml_resources *r)
{
    byte_write_u8(a->out, AML_BUFFER);
    open_block(a);
    aml_integer(a, r->len + 2u);
    byte_write(a->out, r->data, r->len);
    byte_write_u8(a->out, RES_END);
    byte_write_u8(a->out, 0); /* no checksum */
    aml_end(a);
}
