/*
 * Which pages of guest memory a snapshot has, and their checksums: the file "pages".
 *
 * Every RAM page is one of three: in the snapshot with bytes (they are in the file "memory" at the page's offset), in
 * the snapshot as zeros, or not in it (its parent has it). A full snapshot has every page. Holes of the memory file say nothing of the sort:
 * a copy of it may have more or fewer of them. Encoding, little-endian:
 *
 *   pages := "UMBRAPGS" u32 format(1) u32 chunk-count u64 RAM-pages chunk*
 *   chunk := u32 number, u64 bytes[4], u64 zero[4], u32 crc32c for each page of `bytes`
 *
 * A chunk is 256 pages (1 MiB); chunks with no page in the snapshot are left out, the others come in ascending order. Bit i
 * of the masks is page number * 256 + i.
 *
 * What is read is hostile: a parsed index has no page twice, none beyond the end of RAM, and as many checksums as pages.
 * Not thread safe.
 */
#ifndef UMBRA_MIGRATE_SNAPSHOT_INDEX_H
#define UMBRA_MIGRATE_SNAPSHOT_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

#define SNAPSHOT_PAGE_SIZE 4096u
#define SNAPSHOT_CHUNK_PAGES 256u
#define SNAPSHOT_CHUNK_WORDS (SNAPSHOT_CHUNK_PAGES / 64)
#define SNAPSHOT_ERROR_MAX 640

struct snapshot_chunk {
    uint64_t bytes[SNAPSHOT_CHUNK_WORDS];
    uint64_t zero[SNAPSHOT_CHUNK_WORDS];
    uint32_t crc[SNAPSHOT_CHUNK_PAGES];
};

struct snapshot_index {
    uint64_t pages;                 /* of guest RAM */
    uint32_t chunk_count;           /* that RAM has */
    struct snapshot_chunk **chunks; /* NULL: no page of it is in the snapshot */
    uint64_t byte_pages, zero_pages;
};

enum snapshot_page {
    SNAPSHOT_PAGE_NONE,
    SNAPSHOT_PAGE_ZERO,
    SNAPSHOT_PAGE_BYTES,
};

/* An index of RAM of so many pages (a multiple of SNAPSHOT_CHUNK_PAGES) that has none of them. 0 or -ENOMEM. */
int snapshot_index_init(struct snapshot_index *ix, uint64_t pages);
/* A zeroed struct is fine. */
void snapshot_index_clear(struct snapshot_index *ix);

/* Put a page in, or change what it is. 0 or -ENOMEM. */
int snapshot_index_set(struct snapshot_index *ix, uint64_t page, enum snapshot_page kind, uint32_t crc);
/* ret_crc (may be NULL) is set for SNAPSHOT_PAGE_BYTES only. */
enum snapshot_page snapshot_index_get(const struct snapshot_index *ix, uint64_t page, uint32_t *ret_crc);

/* Append the encoding to w, which notes a lack of memory. */
void snapshot_index_write(const struct snapshot_index *ix, struct byte_writer *w);
/*
 * Read an encoding; RAM must have `pages` pages. -EBADMSG with the reason in error (SNAPSHOT_ERROR_MAX), -ENOMEM; *ret needs
 * no clearing then.
 */
int snapshot_index_read(struct snapshot_index *ret, uint64_t pages, const void *data, size_t len, char *error);

/* The most bytes that an encoding for RAM of so many pages can have. */
uint64_t snapshot_index_size_max(uint64_t pages);

#endif
