#include "config.h"

#include "inspect/inspect.h"

#include <errno.h>
#include <stdlib.h>

#include "inspect/inspect-internal.h"

struct inspect {
    struct inspect_memory memory;
    struct inspect_kernel kernel;
    bool known; /* kernel is one that was found */
    struct inspect_list list;
    struct inspect_why why;
};

int inspect_new(int fd, const struct inspect_slot *slots, unsigned int count, struct inspect **ret)
{
    struct inspect *in = calloc(1, sizeof(*in));
    int r;

    if (!in)
        return -ENOMEM;
    r = inspect_memory_init(&in->memory, fd, slots, count);
    if (r < 0) {
        free(in);
        return r;
    }
    *ret = in;
    return 0;
}

void inspect_free(struct inspect *in)
{
    if (!in)
        return;
    free(in->list.processes);
    free(in);
}

int inspect_choose_root(struct inspect *in, const gpa_t *roots, size_t count, size_t *ret)
{
    uint64_t winner = 0;
    size_t votes = 0, with = 0, winners = 0, first = 0;

    /* Boyer and Moore's majority vote, then a count. */
    for (size_t i = 0; i < count; i++) {
        uint64_t entry = inspect_kernel_entry(&in->memory, roots[i]);

        if (!entry)
            continue;
        with++;
        if (votes == 0)
            winner = entry;
        votes += entry == winner ? 1 : (size_t)-1;
    }
    if (with == 0)
        return inspect_because(&in->why, -ENOENT, "kernel: no page tables of it are known");
    for (size_t i = count; i-- > 0;) {
        if (inspect_kernel_entry(&in->memory, roots[i]) != winner)
            continue;
        winners++;
        first = i;
    }
    if (winners <= with / 2)
        return inspect_because(&in->why, -ENOTUNIQ, "kernel: the page tables of %zu address spaces do not agree where it is", with);
    *ret = first;
    return 0;
}

void inspect_forget(struct inspect *in)
{
    in->list.count = 0;
    in->why.text[0] = '\0';
}

int inspect_look(struct inspect *in, gpa_t root, unsigned int levels)
{
    int r;

    inspect_forget(in);
    r = inspect_memory_use(&in->memory, root, levels);
    if (r < 0)
        return inspect_because(&in->why, r, "the guest's page tables have %u levels: no 64-bit kernel", levels);
    if (in->known && !inspect_same_kernel(&in->memory, &in->kernel))
        in->known = false;
    if (!in->known) {
        r = inspect_find_kernel(&in->memory, &in->kernel, &in->why);
        if (r < 0)
            return r;
        in->known = true;
        in->why.text[0] = '\0'; /* of blobs that were none */
    }
    r = inspect_read_list(&in->memory, &in->kernel, &in->list, &in->why);
    if (r < 0)
        return r;
    in->why.text[0] = '\0'; /* of earlier attempts */
    if (in->list.unnamed)
        inspect_because(&in->why, 0, "tasks: %zu processes have no name or no page tables that can be believed",
                        in->list.unnamed);
    return 0;
}

const char *inspect_why(const struct inspect *in)
{
    return in->why.text;
}

const struct inspect_process *inspect_processes(const struct inspect *in, size_t *ret_count)
{
    *ret_count = in->list.count;
    return in->list.processes;
}

static int compare_root(const void *key, const void *item)
{
    const gpa_t *root = key;
    const struct inspect_process *p = item;

    return *root < p->root ? -1 : *root > p->root;
}

const struct inspect_process *inspect_find(const struct inspect *in, gpa_t root)
{
    if (in->list.count == 0)
        return NULL;
    return bsearch(&root, in->list.processes, in->list.count, sizeof(*in->list.processes), compare_root);
}
