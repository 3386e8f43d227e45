/* The source that hears of nothing: every table is read at every tick. */
#include "config.h"

#include "mmu/source.h"

#include <errno.h>
#include <stdlib.h>

int gfn_list_add(struct gfn_list *list, gfn_t gfn)
{
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 256;
        gfn_t *at = realloc(list->at, room * sizeof(*at));

        if (!at)
            return -ENOMEM;
        list->at = at;
        list->room = room;
    }
    list->at[list->count++] = gfn;
    return 0;
}

void gfn_list_clear(struct gfn_list *list)
{
    free(list->at);
    *list = (struct gfn_list){0};
}

static int reread_start(struct mmu_source *s)
{
    return 0;
}

static void reread_stop(struct mmu_source *s)
{
    /* Nothing is held. */
}

static int reread_collect(struct mmu_source *s, struct mirror *m, uint64_t before_ns, struct gfn_list *changed)
{
    return SOURCE_ALL;
}

static const struct mmu_source_ops ops = {
    .name = "re-read",
    .start = reread_start,
    .stop = reread_stop,
    .collect = reread_collect,
};

struct mmu_source source_reread = {.ops = &ops};
