/* Going through the memory of a chain: checking it, and writing it anew as one full snapshot. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/fd.h"
#include "base/util.h"
#include "migrate/snapshot-internal.h"
#include "migrate/snapshot-open.h"
#include "migrate/snapshot-out.h"

#define READ_PAGES SNAPSHOT_CHUNK_PAGES
#define PROGRESS_PAGES 4096u

/* One run of pages read and checked; buf has room for READ_PAGES. */
static int read_run(const struct snapshot_chain *chain, const struct snapshot_run *run, uint8_t *buf, char *error)
{
    const struct snapshot *s = chain->links[run->link];
    int r = fd_pread_all(s->memory_fd, buf, run->count * SNAPSHOT_PAGE_SIZE, run->first * SNAPSHOT_PAGE_SIZE);

    if (r < 0) {
        snprintf(error, SNAPSHOT_ERROR_MAX, "%.300s/" SNAPSHOT_MEMORY ": %s", s->path, strerror(-r));
        return r;
    }
    for (uint64_t i = 0; i < run->count; i++) {
        uint32_t crc = 0;

        snapshot_index_get(&s->index, run->first + i, &crc);
        if (crc32c(0, buf + i * SNAPSHOT_PAGE_SIZE, SNAPSHOT_PAGE_SIZE) == crc)
            continue;
        snprintf(error, SNAPSHOT_ERROR_MAX,
                 "%.300s/" SNAPSHOT_MEMORY ": the page at offset 0x%" PRIx64 " does not have the checksum in pages", s->path,
                 (run->first + i) * SNAPSHOT_PAGE_SIZE);
        return -EBADMSG;
    }
    return 0;
}

/*
 * Pages that are zeros by name and lie in a file that is mapped as a whole must read as zeros: holes do, and whatever is
 * no hole is looked at.
 */
static int check_zeros(const struct snapshot_chain *chain, const struct snapshot_run *run, uint8_t *buf, char *error)
{
    const struct snapshot *s = chain->links[run->link];
    uint64_t at = run->first * SNAPSHOT_PAGE_SIZE, end = at + run->count * SNAPSHOT_PAGE_SIZE;

    while (at < end) {
        off_t data = lseek(s->memory_fd, (off_t)at, SEEK_DATA);
        uint64_t n;
        int r;

        if (data >= 0)
            at = MAX(at, (uint64_t)data & ~(uint64_t)(SNAPSHOT_PAGE_SIZE - 1));
        else if (errno == ENXIO)
            at = end;
        at = MIN(at, end);
        n = MIN(end - at, (uint64_t)READ_PAGES * SNAPSHOT_PAGE_SIZE);
        r = fd_pread_all(s->memory_fd, buf, n, at);
        if (r < 0) {
            snprintf(error, SNAPSHOT_ERROR_MAX, "%.300s/" SNAPSHOT_MEMORY ": %s", s->path, strerror(-r));
            return r;
        }
        for (uint64_t i = 0; i < n; i++) {
            if (buf[i] == 0)
                continue;
            snprintf(error, SNAPSHOT_ERROR_MAX,
                     "%.300s/" SNAPSHOT_MEMORY ": the page at offset 0x%" PRIx64 " is not zeros as pages says", s->path,
                     (at + i) & ~(uint64_t)(SNAPSHOT_PAGE_SIZE - 1));
            return -EBADMSG;
        }
        at += n;
    }
    return 0;
}

/* What is done with each run: `out` NULL only checks. */
static int handle_run(const struct snapshot_chain *chain, const struct snapshot_run *run, struct snapshot_out *out,
                      uint8_t *buf, char *error)
{
    int r = run->zero ? out || run->link + 1 < chain->count ? 0 : check_zeros(chain, run, buf, error)
                      : read_run(chain, run, buf, error);

    if (r < 0 || !out)
        return r;
    r = run->zero ? snapshot_out_put_zeros(out, run->first, run->count)
                  : snapshot_out_put(out, run->first, buf, run->count);
    if (r < 0)
        snprintf(error, SNAPSHOT_ERROR_MAX, "%s", snapshot_out_error(out));
    return r;
}

static int go_through(const struct snapshot_chain *chain, struct snapshot_out *out, snapshot_progress_fn *progress,
                      void *opaque, char *error)
{
    _cleanup_free_ uint8_t *buf = malloc((size_t)READ_PAGES * SNAPSHOT_PAGE_SIZE);
    struct snapshot_walk w = {.chain = chain};
    struct snapshot_run run;
    uint64_t told = 0;
    int r = 0;

    if (!buf) {
        snprintf(error, SNAPSHOT_ERROR_MAX, "out of memory");
        return -ENOMEM;
    }
    while (r == 0 && snapshot_walk_next(&w, READ_PAGES, &run)) {
        r = handle_run(chain, &run, out, buf, error);
        if (r == 0 && progress && w.page - told >= PROGRESS_PAGES) {
            told = w.page;
            if (out)
                snapshot_out_flush(out);
            if (!progress(opaque, told)) {
                snprintf(error, SNAPSHOT_ERROR_MAX, "cancelled");
                r = -ECANCELED;
            }
        }
    }
    return r;
}

int snapshot_chain_verify(const struct snapshot_chain *chain, snapshot_progress_fn *progress, void *opaque, char *error)
{
    return go_through(chain, NULL, progress, opaque, error);
}

/* Root merges what belongs to the user that the daemon runs as, which is to read it. */
static int keep_owner(const struct snapshot *top, struct snapshot_out *out, char *error)
{
    struct stat st;

    if (geteuid() != 0)
        return 0;
    if (fstat(top->memory_fd, &st) < 0) {
        int r = -errno;

        snprintf(error, SNAPSHOT_ERROR_MAX, "%.300s/" SNAPSHOT_MEMORY ": %s", top->path, strerror(-r));
        return r;
    }
    snapshot_out_set_owner(out, st.st_uid, st.st_gid);
    return 0;
}

int snapshot_merge(const struct snapshot_chain *chain, const char *dir, snapshot_progress_fn *progress, void *opaque,
                   char *error)
{
    const struct snapshot *top = chain->links[0];
    struct snapshot_meta meta = top->meta;
    struct snapshot_out *out;
    int r = snapshot_out_new(dir, snapshot_chain_pages(chain), &out, error);

    if (r < 0)
        return r;
    /* The objects stay the chain's. */
    meta.parent_id[0] = meta.parent_path[0] = '\0';
    r = keep_owner(top, out, error);
    if (r == 0)
        r = go_through(chain, out, progress, opaque, error);
    if (r == 0) {
        r = snapshot_out_commit(out, &meta, top->state, top->state_len);
        if (r < 0)
            snprintf(error, SNAPSHOT_ERROR_MAX, "%s", snapshot_out_error(out));
    }
    snapshot_out_free(out);
    return r;
}
