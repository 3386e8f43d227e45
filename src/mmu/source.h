/*
 * Where the tracker hears of changes to guest page tables. A source is a table of callbacks with its own data; which one is used
 * follows from the mode and from what runs anyway (tracker.c). All of them keep these rules:
 *
 *   - a frame is watched before it is read: what is written in between is then heard of (`watch` comes before the first read), or
 *     the frame is named at the next collect in any case
 *   - whoever takes notice of a write back (clears a dirty bit, protects again) does so before the table is read
 *   - upper levels are read first (mirror_sync does that)
 *
 * Every callback is called under the tracker's lock and none of them waits for a vCPU or for the main thread.
 */
#ifndef UMBRA_MMU_SOURCE_H
#define UMBRA_MMU_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/dirty.h"
#include "mmu/mem.h"
#include "mmu/mirror.h"
#include "mmu/pageset.h"

struct gfn_list {
    gfn_t *at;
    size_t count, room;
};

/* 0 or -ENOMEM. */
int gfn_list_add(struct gfn_list *list, gfn_t gfn);
void gfn_list_clear(struct gfn_list *list);

struct mmu_source;

struct mmu_source_ops {
    const char *name; /* as QMP has it */
    /* Begin. Every watched frame is told by `watch` and every table is read after this. 0 or -errno: it cannot be used. */
    int (*start)(struct mmu_source *s);
    void (*stop)(struct mmu_source *s);
    /* As in mirror_ops. NULL: nothing is watched. */
    void (*watch)(struct mmu_source *s, gfn_t gfn, bool on);
    /*
     * What was written since the last call: add the frames to be read to `changed`. `before_ns`: the tick before this one, for
     * those that must not protect again at once; UINT64_MAX while the guest stands still. SOURCE_ALL: every table is to
     * be read. -errno: the source is of no use any more, use another.
     */
    int (*collect)(struct mmu_source *s, struct mirror *m, uint64_t before_ns, struct gfn_list *changed);
    /* Move the pages that may have become roots since the last call into a set that is empty; false: any page. NULL: always. */
    bool (*fresh)(struct mmu_source *s, struct page_set *into);
    uint64_t (*events)(struct mmu_source *s); /* writes and pages it has told of so far; NULL: none */
    void (*free)(struct mmu_source *s);
};

#define SOURCE_ALL 1

struct mmu_source {
    const struct mmu_source_ops *ops;
};

/* Read all tables again and again. */
extern struct mmu_source source_reread;
/* The dirty log, while it has consumers. 0 or -ENOMEM. */
int source_dirty_new(struct mem *mem, struct dirty_log *log, struct mmu_source **ret);
/* userfaultfd. -errno as precise_new. */
int source_precise_new(struct mem *mem, struct mmu_source **ret);

#endif
