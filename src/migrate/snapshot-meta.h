/*
 * What a snapshot is: the file meta.json, one JSON object whose last member, "checksum", is the CRC-32C of all bytes
 * before it. man/umbra-snapshot.5 has every member.
 *
 * What is read is hostile: every member is there, of its type and in its range, and there is no other; numbers that
 * belong together agree. Not thread safe.
 */
#ifndef UMBRA_MIGRATE_SNAPSHOT_META_H
#define UMBRA_MIGRATE_SNAPSHOT_META_H

#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "migrate/snapshot-index.h"

#define SNAPSHOT_FORMAT 1u
#define SNAPSHOT_ID_LEN 32
#define SNAPSHOT_META_MAX (1u << 20)
#define SNAPSHOT_STATE_MAX (256u << 20)
#define SNAPSHOT_TEXT_MAX 128
#define SNAPSHOT_PATH_MAX 4095

struct snapshot_meta {
    char id[SNAPSHOT_ID_LEN + 1];        /* lower-case hexadecimal */
    char parent_id[SNAPSHOT_ID_LEN + 1]; /* empty for a full snapshot */
    char parent_path[SNAPSHOT_PATH_MAX + 1];
    uint64_t created; /* seconds since 1970 */
    char producer[SNAPSHOT_TEXT_MAX];
    char paging[SNAPSHOT_TEXT_MAX]; /* "shadow", "tdp" or "unknown" */
    uint64_t memory;                /* bytes of guest RAM, a multiple of 1 MiB */
    uint64_t byte_pages, zero_pages;
    uint64_t epoch; /* of the dirty log's consumer, 0 without */
    uint64_t state_size, pages_size;
    uint32_t state_crc, pages_crc;
    json_t *config; /* what the guest sees, as keys of a configuration file; owned */
    json_t *host;   /* of the host that took it: "kernel", "kvm-module", "capabilities"; owned */
};

/* Forget and free. A zeroed struct is fine. */
void snapshot_meta_clear(struct snapshot_meta *m);

/* A new random id. 0 or -errno of getrandom. */
int snapshot_meta_new_id(struct snapshot_meta *m);

/* The text of the file, NUL-terminated, the caller's to free; NULL when out of memory. */
char *snapshot_meta_format(const struct snapshot_meta *m, size_t *ret_len);

/*
 * Read the text of the file. -EBADMSG with the reason in error (SNAPSHOT_ERROR_MAX), -ENOMEM; *ret needs no clearing
 * then.
 */
int snapshot_meta_parse(struct snapshot_meta *ret, const char *text, size_t len, char *error);

#endif
