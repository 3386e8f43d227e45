/*
 * Machine state as versioned, named fields: what snapshots and migration carry.
 *
 * A state is a list of sections; a section has a name ("vcpu", "serial"), an instance number and a version, and holds
 * fields; a field has a name and little-endian bytes. Nothing is a raw struct: a field's width is what the describing
 * table says, never what the compiler lays out. Encoding (all little-endian, every length checked on reading):
 *
 *   state   := "UMBRASTA" u32 format(1) u32 section-count section*
 *   section := str name, u32 instance, u32 version, u32 body-length, field*
 *   field   := str name, u32 length, bytes
 *   str     := u8 length (1-63), bytes
 *
 * Not thread safe. A reader keeps pointers into the caller's buffer.
 */
#ifndef UMBRA_BASE_STATE_H
#define UMBRA_BASE_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

#define STATE_NAME_MAX 63
#define STATE_MAX_SECTIONS 4096

/* -- writing -- */

struct state_writer {
    struct byte_writer out;
    uint32_t sections;
    size_t section_start; /* where the open section's body length stands; 0 when none is open */
};

void state_writer_init(struct state_writer *w);
void state_begin(struct state_writer *w, const char *name, uint32_t instance, uint32_t version);
void state_put_bytes(struct state_writer *w, const char *name, const void *data, size_t len);
void state_put_u64(struct state_writer *w, const char *name, uint64_t value);
void state_end(struct state_writer *w);

/* Close the state: *ret_data is the caller's to free. -ENOMEM when any write ran out of memory. w is empty after. */
int state_finish(struct state_writer *w, uint8_t **ret_data, size_t *ret_len);
void state_writer_clear(struct state_writer *w);

/* -- reading -- */

struct state_section {
    char name[STATE_NAME_MAX + 1];
    uint32_t instance;
    uint32_t version;
    const uint8_t *body;
    uint32_t body_len;
};

struct state_reader {
    struct state_section *sections;
    uint32_t count;
    char error[160]; /* what was wrong, after a failure of any function below */
};

/*
 * Check the whole structure of a state (magic, format, every length, no section or field twice) and index it.
 * -EBADMSG with r->error set, -ENOMEM. `data` must outlive r. Release with state_reader_clear.
 */
int state_reader_init(struct state_reader *r, const void *data, size_t len);
void state_reader_clear(struct state_reader *r);

/* The section, or NULL when there is none (r->error says so). */
const struct state_section *state_find(struct state_reader *r, const char *name, uint32_t instance);

/* 0; -ENOENT; -EBADMSG when the length differs from len. r->error names the section and field. */
int state_get_bytes(struct state_reader *r, const struct state_section *s, const char *name, void *buf, size_t len);
int state_get_u64(struct state_reader *r, const struct state_section *s, const char *name, uint64_t *ret);
/* A field of any length up to max; *ret points into the state. */
int state_get_blob(struct state_reader *r, const struct state_section *s, const char *name, size_t max,
                   const uint8_t **ret, size_t *ret_len);

/* -- tables: a C struct's members by name -- */

struct state_field {
    const char *name;
    uint32_t offset;
    uint16_t size;  /* of one element: 1, 2, 4, 8, or any size when count is 0 (opaque bytes) */
    uint16_t count; /* elements; 0 for opaque bytes */
    uint32_t since; /* the section version that brought the field; older states leave it as it is */
};

#define STATE_FIELD(type, member) \
    {#member, offsetof(type, member), sizeof(((type *)0)->member), 1, 1}
#define STATE_ARRAY(type, member)                                                                       \
    {#member, offsetof(type, member), sizeof(((type *)0)->member[0]),                                  \
     sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]), 1}
#define STATE_BYTES(type, member) \
    {#member, offsetof(type, member), sizeof(((type *)0)->member), 0, 1}

/* Write (read) the members of *obj that the table names into (from) the open section (section s); prefix may be "". */
void state_put_fields(struct state_writer *w, const char *prefix, const struct state_field *fields, size_t n,
                      const void *obj);
int state_get_fields(struct state_reader *r, const struct state_section *s, const char *prefix,
                     const struct state_field *fields, size_t n, void *obj);

#endif
