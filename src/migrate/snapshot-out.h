/*
 * Write a snapshot: a directory with meta.json, state.bin, pages and memory.
 *
 * It is made under the name ".NAME.partial" beside its place and renamed when everything in it is on disk: whatever ends the
 * process, under NAME there is a whole snapshot or nothing. The partial directory is locked (flock) while it is written;
 * one that nobody holds was left behind and is used again. Files are made anew and are nobody else's to read.
 *
 * One thread at a time. After a failure the reason is in snapshot_out_error and only snapshot_out_free is left to call.
 */
#ifndef UMBRA_MIGRATE_SNAPSHOT_OUT_H
#define UMBRA_MIGRATE_SNAPSHOT_OUT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "migrate/snapshot-meta.h"

/* What follows guest RAM in the file "memory": it says whose memory this is. */
#define SNAPSHOT_TRAILER_SIZE 4096u

struct snapshot_out;

/*
 * Begin the snapshot `dir`, which must not exist, of RAM of so many pages; all of it is holes, and no page is in the
 * snapshot yet. -EEXIST, -EBUSY (somebody else writes it), -errno; the reason is in error (SNAPSHOT_ERROR_MAX).
 */
int snapshot_out_new(const char *dir, uint64_t pages, struct snapshot_out **ret, char *error);
/* Remove what was written, unless it was committed. NULL is fine. */
void snapshot_out_free(struct snapshot_out *out);
const char *snapshot_out_error(const struct snapshot_out *out);

/*
 * Put pages [first, first + count) in; those that are all zeros only by name. A page may be put in again. The memory may
 * change while it is read: then the page must be put in again before the commit. 0 or -errno.
 */
int snapshot_out_put(struct snapshot_out *out, uint64_t first, const void *data, uint64_t count);

/* A page, and where its bytes are. */
struct snapshot_piece {
    uint64_t page;
    const uint8_t *data;
};
/* The same for pages that are in ascending order but not side by side: much faster than one by one. */
int snapshot_out_put_pieces(struct snapshot_out *out, const struct snapshot_piece *pieces, size_t count);

/* Put pages in as zeros. */
int snapshot_out_put_zeros(struct snapshot_out *out, uint64_t first, uint64_t count);

uint64_t snapshot_out_pages(const struct snapshot_out *out);      /* in it, with zeros */
uint64_t snapshot_out_zero_pages(const struct snapshot_out *out); /* of them, zeros */

/*
 * Let the page cache go to disk now, without waiting for it: the commit has less to wait for.
 */
void snapshot_out_flush(struct snapshot_out *out);

/*
 * Whose it is to be once it is committed; before it is only written by us. For root, who makes it for somebody else: all others may
 * give files to themselves only.
 */
void snapshot_out_set_owner(struct snapshot_out *out, uid_t uid, gid_t gid);

/*
 * Write everything else, wait until it is on disk, and give it its name. meta has all members that snapshot_meta.h does not
 * derive from the content (id, parent, created, producer, paging, config, host, epoch); the rest is filled in. 0 or
 * -errno: then there is no snapshot `dir`, or (a failure of the very last step, after the rename) it may be gone after a
 * crash of the host.
 */
int snapshot_out_commit(struct snapshot_out *out, struct snapshot_meta *meta, const void *state, size_t state_len);

#endif
