/*
 * Read snapshots, which somebody may have damaged, swapped or made up: every file is a regular one reached without a
 * symbolic link, of the size that the metadata says, with the checksum that it says, and the memory file says itself whose it is.
 * Checksums of memory are checked by snapshot_chain_verify and snapshot_merge only: the guest's pages are what takes time.
 *
 * Errors are texts in `error` (SNAPSHOT_ERROR_MAX): file and reason. Nothing is logged. Not thread safe.
 */
#ifndef UMBRA_MIGRATE_SNAPSHOT_OPEN_H
#define UMBRA_MIGRATE_SNAPSHOT_OPEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migrate/snapshot-index.h"
#include "migrate/snapshot-meta.h"

/* A longer one is to be merged first. */
#define SNAPSHOT_CHAIN_MAX 256u

struct snapshot {
    char *path; /* where it was found, for messages */
    int dir_fd, memory_fd;
    struct snapshot_meta meta;
    struct snapshot_index index;
    uint8_t *state; /* of the first of a chain only */
    size_t state_len;
};

/* A snapshot and its ancestors: links[0] is what was asked for, the last one is a full snapshot. */
struct snapshot_chain {
    struct snapshot *links[SNAPSHOT_CHAIN_MAX];
    unsigned int count;
};

/* Read meta.json alone. -EBADMSG, -ENOMEM, -errno; clear *ret after success. */
int snapshot_read_meta(const char *path, struct snapshot_meta *ret, char *error);

/* Open the snapshot at `path` and all it stands on. -EBADMSG, -ELOOP (a loop of parents), -E2BIG, -ENOMEM, -errno. */
int snapshot_chain_open(const char *path, struct snapshot_chain *ret, char *error);
/* A zeroed struct is fine. */
void snapshot_chain_close(struct snapshot_chain *chain);

uint64_t snapshot_chain_pages(const struct snapshot_chain *chain);

/* Consecutive pages that one snapshot of the chain has. */
struct snapshot_run {
    uint64_t first, count;
    bool zero;
    unsigned int link;
};
struct snapshot_walk {
    const struct snapshot_chain *chain;
    uint64_t page;  /* where the next run begins; from 0 */
    uint64_t chunk; /* private: whose owners these are, plus 1 */
    int16_t owner[SNAPSHOT_CHUNK_PAGES];
};
/* The next run of at most max pages, in order and without a gap; false after the end of RAM. Begin with {.chain = chain}. */
bool snapshot_walk_next(struct snapshot_walk *w, uint64_t max, struct snapshot_run *ret);

/* Called now and then with the pages done; true to go on. */
typedef bool snapshot_progress_fn(void *opaque, uint64_t pages);

/*
 * Check the memory of the whole chain against its checksums. -EBADMSG (the first page that differs), -ECANCELED, -ENOMEM, -errno.
 * progress may be NULL.
 */
int snapshot_chain_verify(const struct snapshot_chain *chain, snapshot_progress_fn *progress, void *opaque, char *error);

/*
 * Write the chain as one full snapshot `dir`, checking what it reads. It has the same id, since it is the same machine: diffs
 * of chain->links[0] may stand on it. Errors as those of snapshot_chain_verify and snapshot_out_new.
 */
int snapshot_merge(const struct snapshot_chain *chain, const char *dir, snapshot_progress_fn *progress, void *opaque,
                   char *error);

/*
 * How many snapshots there are in the chain that ends in `path`, as their metadata tell; SNAPSHOT_CHAIN_MAX also for more. 0, or -errno
 * with `error` (SNAPSHOT_ERROR_MAX).
 */
int snapshot_chain_length(const char *path, unsigned int *ret, char *error);

/*
 * How a snapshot at `dir` can name the one at `parent` in its metadata: by a path from the one to the other where both are in one
 * directory, else by the absolute path. `parent` exists, and so does the directory that `dir` is to be in. -errno.
 */
int snapshot_parent_path(const char *dir, const char *parent, char ret[SNAPSHOT_PATH_MAX + 1]);

#endif
