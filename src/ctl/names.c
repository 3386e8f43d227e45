#include "config.h"

#include "ctl/names.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"

/* Roots whose kernel halves are compared. */
#define ROOTS_MAX 64u
/* A KPTI kernel's two roots are two pages side by side; user code's is the second. */
#define KPTI_PAIR UINT64_C(0x1fff)

struct names {
    const struct ctl *ctl;
    struct client *client;
    struct inspect *in; /* NULL: there will be no names */
    int fd;
    struct inspect_process *before; /* of the look before the last one, by root */
    size_t before_count;
    char why[sizeof(((struct failure *)0)->text)];
};

static int no_names(struct names *n, const char *why)
{
    snprintf(n->why, sizeof(n->why), "%s", why);
    return CTL_DONE;
}

/* -- guest memory ------------------------------------------------------------- */

static int read_slots(const json_t *answer, struct inspect_slot *slots, unsigned int *ret_count)
{
    json_t *list;
    size_t count;

    if (json_get_array(answer, "slots", &list) < 0)
        return -EINVAL;
    count = json_object_array_length(list);
    if (count > INSPECT_MAX_SLOTS)
        return -EINVAL;
    for (size_t i = 0; i < count; i++) {
        const json_t *slot = json_object_array_get_idx(list, i);

        if (json_get_u64(slot, "gpa", &slots[i].base) < 0 || json_get_u64(slot, "size", &slots[i].size) < 0 ||
            json_get_u64(slot, "offset", &slots[i].offset) < 0)
            return -EINVAL;
    }
    *ret_count = (unsigned int)count;
    return 0;
}

static int take_memory(struct names *n)
{
    _cleanup_json_ json_t *answer = NULL;
    struct inspect_slot slots[INSPECT_MAX_SLOTS];
    struct failure f = {0};
    unsigned int count;

    if (client_call(n->client, "get-guest-memory", NULL, n->ctl->reply_timeout_ms, &answer, &n->fd, &f) < 0) {
        if (f.kind != FAILURE_REFUSED)
            return ctl_fail(n->ctl, &f);
        return no_names(n, f.text);
    }
    if (n->fd < 0)
        return no_names(n, "guest memory: no descriptor came with the answer");
    if (read_slots(answer, slots, &count) < 0 || inspect_new(n->fd, slots, count, &n->in) < 0)
        return no_names(n, "guest memory: its layout is none that is known");
    return CTL_DONE;
}

int names_open(const struct ctl *ctl, struct client *client, struct names **ret)
{
    struct names *n = calloc(1, sizeof(*n));
    int r;

    if (!n) {
        ctl_error("out of memory");
        return CTL_FAILED;
    }
    *n = (struct names){.ctl = ctl, .client = client, .fd = -1};
    r = take_memory(n);
    if (r == CTL_DONE)
        *ret = n;
    else
        names_close(n);
    return r;
}

void names_close(struct names *n)
{
    if (!n)
        return;
    inspect_free(n->in);
    fd_close(n->fd);
    free(n->before);
    free(n);
}

/* -- looking ------------------------------------------------------------------ */

/* The address spaces to look through, and how many levels they have. */
struct spaces {
    gpa_t roots[ROOTS_MAX];
    uint64_t levels[ROOTS_MAX];
    size_t count;
};

/* `kind` first, so that the kernel's own root wins where it agrees with the others: it is never given back. */
static void add_spaces(struct spaces *s, const json_t *list, const char *kind)
{
    for (size_t i = 0; i < json_object_array_length(list) && s->count < ROOTS_MAX; i++) {
        const json_t *space = json_object_array_get_idx(list, i);
        const char *its_kind;
        uint64_t root, levels;

        if (json_get_str(space, "kind", &its_kind) < 0 || strcmp(its_kind, kind) != 0 ||
            json_get_u64(space, "root", &root) < 0 || json_get_u64(space, "levels", &levels) < 0 || levels > 5)
            continue;
        s->roots[s->count] = root;
        s->levels[s->count++] = levels;
    }
}

static int ask_spaces(struct names *n, struct spaces *ret)
{
    _cleanup_json_ json_t *answer = NULL;
    json_t *arguments = json_object_new_object(), *list;
    struct failure f = {0};

    ret->count = 0;
    json_add_u64(arguments, "limit", ROOTS_MAX);
    json_add_str(arguments, "sort", "seen");
    if (client_call(n->client, "query-mmu-spaces", arguments, n->ctl->reply_timeout_ms, &answer, NULL, &f) < 0) {
        if (f.kind != FAILURE_REFUSED)
            return ctl_fail(n->ctl, &f);
        return no_names(n, f.text);
    }
    if (json_get_array(answer, "spaces", &list) < 0)
        return CTL_DONE;
    add_spaces(ret, list, "kernel");
    add_spaces(ret, list, "user");
    return CTL_DONE;
}

/* Keep what the last look found; the next one forgets it. */
static void keep(struct names *n)
{
    size_t count;
    const struct inspect_process *now = inspect_processes(n->in, &count);

    free(n->before);
    n->before = count ? malloc(count * sizeof(*now)) : NULL;
    n->before_count = n->before ? count : 0;
    if (n->before)
        memcpy(n->before, now, count * sizeof(*now));
}

int names_look(struct names *n)
{
    char earlier[sizeof(n->why)];
    struct spaces s;
    size_t chosen;
    int r;

    if (!n->in)
        return CTL_DONE;
    keep(n);
    memcpy(earlier, n->why, sizeof(earlier));
    n->why[0] = '\0';
    inspect_forget(n->in);
    r = ask_spaces(n, &s);
    if (r || n->why[0])
        return r;
    if (inspect_choose_root(n->in, s.roots, s.count, &chosen) == 0)
        inspect_look(n->in, s.roots[chosen], (unsigned int)s.levels[chosen]);
    /* A name takes two looks: where the one before found nothing, its reason is the one. */
    return no_names(n, n->before_count || inspect_why(n->in)[0] ? inspect_why(n->in) : earlier);
}

/* -- finding ------------------------------------------------------------------ */

static int compare_root(const void *key, const void *item)
{
    const gpa_t *root = key;
    const struct inspect_process *p = item;

    return *root < p->root ? -1 : *root > p->root;
}

const struct inspect_process *names_find(const struct names *n, const char *kind, uint64_t root)
{
    const struct inspect_process *now, *before;

    if (!n->in || n->before_count == 0)
        return NULL;
    if (strcmp(kind, "kpti") == 0)
        root &= ~KPTI_PAIR;
    else if (strcmp(kind, "user") != 0)
        return NULL;
    now = inspect_find(n->in, root);
    before = bsearch(&root, n->before, n->before_count, sizeof(*n->before), compare_root);
    if (!now || !before || now->task != before->task || now->mm != before->mm || now->pid != before->pid ||
        now->start != before->start)
        return NULL;
    return now;
}

void names_annotate(const struct names *n, json_t *space)
{
    const struct inspect_process *p;
    const char *kind;
    uint64_t root;
    json_t *process;

    if (json_get_str(space, "kind", &kind) < 0 || json_get_u64(space, "root", &root) < 0)
        return;
    p = names_find(n, kind, root);
    if (!p || json_object_object_get_ex(space, "process", NULL))
        return;
    process = json_object_new_object();
    json_add_u64(process, "pid", p->pid);
    json_add_str(process, "comm", p->comm);
    if (p->others)
        json_add_u64(process, "others", p->others);
    json_add(space, "process", process);
}

void names_annotate_all(const struct names *n, json_t *spaces)
{
    for (size_t i = 0; i < json_object_array_length(spaces); i++)
        names_annotate(n, json_object_array_get_idx(spaces, i));
}

const char *names_why(const struct names *n)
{
    return n->why;
}

void names_explain(const struct names *n)
{
    if (n->why[0])
        ctl_note("%s: no names, or not all: %s", n->ctl->vm, n->why);
}
