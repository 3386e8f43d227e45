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
 *   str     := u8 length (1-63), bytes of [A-Za-z0-9._-]
 *
 * A state that is read is hostile: the structure is checked as a whole before anything of it is used, and every value's
 * length when it is taken. What a value means, its range included, is checked by whoever takes it.
 *
 * Not thread safe. A reader keeps pointers into the caller's buffer.
 */
#ifndef UMBRA_BASE_STATE_H
#define UMBRA_BASE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/util.h"

#define STATE_NAME_MAX 63
#define STATE_MAX_SECTIONS 4096

/* -- writing -- */

struct state_writer {
    struct byte_writer out;
    uint32_t sections;
    size_t section_start; /* where the open section's body length stands; 0 when none is open */
    int error;            /* the first failure, returned by state_finish; later writes do nothing */
};

void state_writer_init(struct state_writer *w);

/* Open and close a section; fields are put in between. Names must be well formed, and unlike all others of their level. */
void state_begin(struct state_writer *w, const char *name, uint32_t instance, uint32_t version);
void state_put_bytes(struct state_writer *w, const char *name, const void *data, size_t len);
void state_put_u64(struct state_writer *w, const char *name, uint64_t value);
void state_end(struct state_writer *w);

/*
 * Close the state: *ret_data is the caller's to free. -ENOMEM when any write ran out of memory, -EFBIG when a section
 * went beyond 4 GiB or there are too many. w is empty after, also on failure.
 */
int state_finish(struct state_writer *w, uint8_t **ret_data, size_t *ret_len);
void state_writer_clear(struct state_writer *w);

/* -- reading -- */

struct state_section {
    char name[STATE_NAME_MAX + 1];
    uint32_t instance;
    uint32_t version;
    uint32_t first_field; /* private */
    uint32_t field_count;
};

struct state_reader {
    struct state_section *sections; /* by name, then instance */
    uint32_t count;
    struct state_value *values; /* private: fields of all sections */
    char error[256];            /* what was wrong, after a failure of any function below */
};

/*
 * Check the whole structure of a state (magic, format, every length, no section or field twice) and index it.
 * -EBADMSG with r->error set, -ENOMEM. `data` must outlive r. Release with state_reader_clear (not needed on failure).
 */
int state_reader_init(struct state_reader *r, const void *data, size_t len);
void state_reader_clear(struct state_reader *r);

/* The section, or NULL when there is none (r->error says so). */
const struct state_section *state_find(struct state_reader *r, const char *name, uint32_t instance);

/* The same for a reader that knows versions 1 to max_version: 0, -ENOENT, or -EBADMSG for any other version. */
int state_open(struct state_reader *r, const char *name, uint32_t instance, uint32_t max_version,
               const struct state_section **ret);

/* 0; -ENOENT; -EBADMSG when the length differs from len. r->error names the section and field. */
int state_get_bytes(struct state_reader *r, const struct state_section *s, const char *name, void *buf, size_t len);
int state_get_u64(struct state_reader *r, const struct state_section *s, const char *name, uint64_t *ret);
/* A field of any length up to max; *ret points into the state. */
int state_get_blob(struct state_reader *r, const struct state_section *s, const char *name, size_t max,
                   const uint8_t **ret, size_t *ret_len);

/*
 * Go through the fields whose names begin with `prefix` (may be ""), in the order of their names: start with *cursor 0;
 * false after the last. *ret_data points into the state.
 */
bool state_next_field(struct state_reader *r, const struct state_section *s, const char *prefix, uint32_t *cursor,
                      char ret_name[STATE_NAME_MAX + 1], const uint8_t **ret_data, uint32_t *ret_len);

/* -EBADMSG, naming the field, when the section holds one that none of the functions above gave out. */
int state_check_all_read(struct state_reader *r, const struct state_section *s);

/*
 * Note an error of a value that a caller found, for r->error: "vcpu 0: ..."; returns -EBADMSG. s may be NULL.
 */
int state_bad(struct state_reader *r, const struct state_section *s, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* -- tables: a C struct's members by name -- */

struct state_field {
    const char *name;
    uint32_t offset;
    uint16_t size;  /* of one element: 1, 2, 4, 8, or any size when count is 0 (opaque bytes) */
    uint16_t count; /* elements; 0 for opaque bytes */
    uint32_t since; /* the section version that brought the field; older states leave it as it is */
    bool is_bool;   /* found by the macros: any byte but 0 and 1 is refused, as C has no such bool */
};

#define STATE_MEMBER_(type, member) (((type *)0)->member)
/* size, which must be that of an integer; an error of the compiler else. */
#define STATE_INT_SIZE_(size) \
    ((size) + 0 * sizeof(char[(size) == 1 || (size) == 2 || (size) == 4 || (size) == 8 ? 1 : -1]))
#define STATE_IS_BOOL_(expr) __builtin_types_compatible_p(__typeof__(expr), bool)

/*
 * An integer, bool or enum member; an array of such; bytes that have no structure of ours. A loaded enum or index may
 * hold any value of its width: check its range before use.
 */
#define STATE_FIELD_SINCE(type, member, version)                                                       \
    {#member, offsetof(type, member), STATE_INT_SIZE_(sizeof(STATE_MEMBER_(type, member))), 1, version, \
     STATE_IS_BOOL_(STATE_MEMBER_(type, member))}
#define STATE_ARRAY_SINCE(type, member, version)                                                       \
    {#member, offsetof(type, member), STATE_INT_SIZE_(sizeof(STATE_MEMBER_(type, member)[0])),          \
     sizeof(STATE_MEMBER_(type, member)) / sizeof(STATE_MEMBER_(type, member)[0]), version,            \
     STATE_IS_BOOL_(STATE_MEMBER_(type, member)[0])}
#define STATE_BYTES_SINCE(type, member, version) \
    {#member, offsetof(type, member), sizeof(STATE_MEMBER_(type, member)), 0, version, false}
#define STATE_FIELD(type, member) STATE_FIELD_SINCE(type, member, 1)
#define STATE_ARRAY(type, member) STATE_ARRAY_SINCE(type, member, 1)
#define STATE_BYTES(type, member) STATE_BYTES_SINCE(type, member, 1)

/* Write the members of *obj that the table names into the open section; each field's name is prefix (may be "") + name. */
void state_put_fields(struct state_writer *w, const char *prefix, const struct state_field *fields, size_t n,
                      const void *obj);
/* Read them from section s. As state_get_bytes; *obj is changed only when all of them are there and well formed. */
int state_get_fields(struct state_reader *r, const struct state_section *s, const char *prefix,
                     const struct state_field *fields, size_t n, void *obj);

#endif
