#include "config.h"

#include "migrate/snapshot-restore.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/util.h"

/* From here on a mapping is cheaper than a copy, page faults included. */
#define MAP_PAGES_MIN 16u
/* A process may have 65530 mappings by default, and one within another makes three of one. */
#define MAPS_MAX 8192u
#define COPY_PAGES 4096u

static_assert(SNAPSHOT_PAGE_SIZE == GUEST_PAGE_SIZE, "one idea of a page");

static int check_size(const struct snapshot_chain *chain, const struct mem *mem, char *error)
{
    if (chain->links[0]->meta.memory == mem_size(mem))
        return 0;
    snprintf(error, SNAPSHOT_ERROR_MAX, "%.300s: has %" PRIu64 " bytes of memory, this machine has %" PRIu64,
             chain->links[0]->path, chain->links[0]->meta.memory, mem_size(mem));
    return -EINVAL;
}

static int fail(const struct snapshot *s, int err, char *error)
{
    snprintf(error, SNAPSHOT_ERROR_MAX, "%.300s/memory: %s", s->path, strerror(-err));
    return err;
}

static int copy_run(const struct snapshot_chain *chain, const struct snapshot_run *run, struct mem *mem, char *error)
{
    const struct snapshot *s = chain->links[run->link];
    uint64_t offset = run->first * SNAPSHOT_PAGE_SIZE, len = run->count * SNAPSHOT_PAGE_SIZE;
    /* Nothing runs yet and nobody listens: there is no write to note. */
    uint8_t *at = (uint8_t *)(uintptr_t)mem_ram(mem) + offset;
    int r;

    if (run->zero) {
        memset(at, 0, len);
        return 0;
    }
    r = fd_pread_all(s->memory_fd, at, len, offset);
    return r < 0 ? fail(s, r, error) : 0;
}

int snapshot_restore_eagerly(const struct snapshot_chain *chain, struct mem *mem, char *error)
{
    struct snapshot_walk w = {.chain = chain};
    struct snapshot_run run;
    int r = check_size(chain, mem, error);

    while (r == 0 && snapshot_walk_next(&w, COPY_PAGES, &run))
        r = run.zero ? 0 : copy_run(chain, &run, mem, error);
    return r;
}

int snapshot_restore_lazily(const struct snapshot_chain *chain, struct mem *mem, char *error)
{
    const struct snapshot *base = chain->links[chain->count - 1];
    struct snapshot_walk w = {.chain = chain};
    struct snapshot_run run;
    unsigned int maps = 0;
    int r = check_size(chain, mem, error);

    if (r < 0)
        return r;
    r = mem_map_file(mem, 0, mem_size(mem), base->memory_fd);
    if (r < 0)
        return fail(base, r, error);
    /* A full snapshot's file has all there is, zeros as holes. */
    while (chain->count > 1 && r == 0 && snapshot_walk_next(&w, UINT64_MAX, &run)) {
        const struct snapshot *s = chain->links[run.link];

        if (s == base)
            continue;
        if (run.count < MAP_PAGES_MIN || maps == MAPS_MAX) {
            r = copy_run(chain, &run, mem, error);
            continue;
        }
        maps++;
        r = mem_map_file(mem, run.first * SNAPSHOT_PAGE_SIZE, run.count * SNAPSHOT_PAGE_SIZE,
                         run.zero ? -1 : s->memory_fd);
        if (r < 0)
            fail(s, r, error);
    }
    return r;
}
