/*
 * The list of processes: struct task_struct of each group leader, in a ring through `tasks` that begins at the first task.
 *
 * The guest changes it meanwhile, with RCU: an entry that is taken out still points forward, its `prev` does not lead back to
 * it. So at every step the next entry's prev must be where the walk comes from. Where it is not, the step is done again; where
 * that does not help, the whole walk.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "inspect/inspect-internal.h"

#define PID_LIMIT (UINT32_C(1) << 22) /* PID_MAX_LIMIT of 64-bit Linux */
#define MAX_ATTEMPTS 8
#define MAX_STEP_TRIES 8
/* Processes that are read in all attempts together. */
#define MAX_STEPS (UINT32_C(1) << 18)

int inspect_read_task(struct inspect_memory *m, const struct inspect_layout *l, gva_t at, struct inspect_task *ret)
{
    uint8_t buf[INSPECT_TASK_SPAN_MAX];

    if (inspect_read_virtual(m, at + l->span_start, buf, l->span_len) < 0)
        return -EFAULT;
#define AT(member) (buf + (l->member - l->span_start))
    *ret = (struct inspect_task){
        .at = at,
        .mm = le64_get(AT(mm)),
        .next = le64_get(AT(tasks) + l->next),
        .prev = le64_get(AT(tasks) + l->prev),
        .start = l->has_start ? le64_get(AT(start)) : 0,
        .pid = le32_get(AT(pid)),
        .tgid = le32_get(AT(tgid)),
    };
    memcpy(ret->comm, AT(comm), INSPECT_COMM_SIZE);
#undef AT
    return 0;
}

static bool comm_is(const char *comm, const char *text)
{
    return memcmp(comm, text, strlen(text) + 1) == 0;
}

static bool comm_printable(const char *comm)
{
    size_t len = strnlen(comm, INSPECT_COMM_SIZE);

    if (len == 0 || len == INSPECT_COMM_SIZE)
        return false;
    for (size_t i = 0; i < len; i++)
        if (comm[i] < 0x20 || comm[i] > 0x7e)
            return false;
    return true;
}

static int read_pointer(struct inspect_memory *m, gva_t gva, gva_t *ret)
{
    uint8_t bytes[8];

    if (inspect_read_virtual(m, gva, bytes, sizeof(bytes)) < 0)
        return -EFAULT;
    *ret = le64_get(bytes);
    return 0;
}

enum init_task_verdict inspect_check_init_task(struct inspect_memory *m, const struct inspect_layout *l, gva_t at)
{
    gva_t head = at + l->tasks;

    for (int i = 0; i < MAX_ATTEMPTS; i++) {
        struct inspect_task t;
        gva_t back, forth;

        if (!inspect_is_pointer(m, at) || inspect_read_task(m, l, at, &t) < 0 || t.pid != 0 || t.tgid != 0 || t.mm != 0 ||
            !(comm_is(t.comm, "swapper/0") || comm_is(t.comm, "swapper")) || !inspect_is_pointer(m, t.next) ||
            !inspect_is_pointer(m, t.prev))
            return INIT_TASK_NO;
        /* The end of the list changes with each new process. */
        if (read_pointer(m, t.next + l->prev, &back) == 0 && read_pointer(m, t.prev + l->next, &forth) == 0 &&
            back == head && forth == head)
            return INIT_TASK_YES;
    }
    return INIT_TASK_BROKEN;
}

/* -- one process -------------------------------------------------------------- */

/* Everything but the links, which change with its neighbours. */
static bool same_task(const struct inspect_task *a, const struct inspect_task *b)
{
    return a->mm == b->mm && a->start == b->start && a->pid == b->pid && a->tgid == b->tgid &&
           memcmp(a->comm, b->comm, sizeof(a->comm)) == 0;
}

uint64_t inspect_kernel_entry(const struct inspect_memory *m, gpa_t root)
{
    uint8_t bytes[8];
    uint64_t entry;

    if (inspect_read(m, root + GUEST_PAGE_SIZE - sizeof(bytes), bytes, sizeof(bytes)) < 0)
        return 0;
    entry = le64_get(bytes);
    return entry & GPTE_RAW_P ? entry & ~(GPTE_RAW_A | GPTE_RAW_D) : 0;
}

/* Do the page tables at `root` have the kernel in the same place as those in use? */
static bool has_kernel_half(const struct inspect_memory *m, gpa_t root)
{
    uint64_t entry = inspect_kernel_entry(m, root);

    return entry && entry == inspect_kernel_entry(m, m->root);
}

/* From its memory descriptor to its page tables. */
static int find_root(struct inspect_memory *m, const struct inspect_layout *l, gva_t mm, gpa_t *ret)
{
    gva_t pgd;
    gpa_t root;

    if (!inspect_is_pointer(m, mm) || read_pointer(m, mm + l->pgd, &pgd) < 0 || !inspect_is_pointer(m, pgd) ||
        inspect_translate(m, pgd, &root) < 0 || !is_aligned(root, GUEST_PAGE_SIZE) || !has_kernel_half(m, root))
        return -EFAULT;
    *ret = root;
    return 0;
}

static int add_process(struct inspect_list *list, const struct inspect_task *t, gpa_t root)
{
    struct inspect_process *p;

    if (list->count == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 256;
        struct inspect_process *bigger = reallocarray(list->processes, cap, sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        list->processes = bigger;
        list->cap = cap;
    }
    p = &list->processes[list->count++];
    *p = (struct inspect_process){.root = root, .task = t->at, .mm = t->mm, .start = t->start, .pid = t->pid};
    memcpy(p->comm, t->comm, sizeof(p->comm));
    return 0;
}

/* Note a process that has an address space. It is read again after its root was found: then both belong together. */
static int take_process(struct inspect_memory *m, const struct inspect_layout *l, const struct inspect_task *first,
                        struct inspect_list *list)
{
    struct inspect_task t = *first;

    for (int i = 0; i < MAX_STEP_TRIES; i++) {
        struct inspect_task again;
        gpa_t root = 0;
        int found;

        if (t.mm == 0)
            return 0; /* a kernel thread, or one that is about to end */
        found = find_root(m, l, t.mm, &root);
        if (inspect_read_task(m, l, t.at, &again) < 0)
            break;
        if (same_task(&t, &again)) {
            if (found < 0 || !comm_printable(t.comm))
                break;
            return add_process(list, &t, root);
        }
        t = again;
    }
    list->unnamed++;
    return 0;
}

/* -- the walk ----------------------------------------------------------------- */

struct list_walk {
    struct inspect_memory *m;
    const struct inspect_kernel *k;
    struct inspect_list *list;
    struct inspect_why *why;
    uint32_t steps; /* of all attempts */
};

/*
 * From the list entry `from` to the next one: *ret_entry, and the task there unless it is the first one again. -EAGAIN:
 * the two do not point at each other.
 */
static int step(struct list_walk *w, gva_t from, gva_t *ret_entry, struct inspect_task *ret)
{
    const struct inspect_layout *l = &w->k->layout;
    gva_t head = w->k->init_task + l->tasks, next = 0, prev = 0;

    for (int i = 0; i < MAX_STEP_TRIES; i++) {
        if (++w->steps > MAX_STEPS)
            return inspect_because(w->why, -E2BIG, "tasks: %u were read and the list has no end", MAX_STEPS);
        if (read_pointer(w->m, from + l->next, &next) < 0)
            return inspect_because(w->why, -EAGAIN, "tasks: the entry at 0x%llx cannot be read", (unsigned long long)from);
        if (!inspect_is_pointer(w->m, next) || inspect_read_task(w->m, l, next - l->tasks, ret) < 0)
            return inspect_because(w->why, -EAGAIN, "tasks: the entry at 0x%llx points at 0x%llx, which is none",
                                   (unsigned long long)from, (unsigned long long)next);
        prev = ret->prev;
        if (prev == from) {
            *ret_entry = next;
            return next == head ? 1 : 0;
        }
    }
    return inspect_because(w->why, -EAGAIN, "tasks: the entry at 0x%llx points back at 0x%llx, not at 0x%llx",
                           (unsigned long long)next, (unsigned long long)prev, (unsigned long long)from);
}

static int walk_once(struct list_walk *w)
{
    gva_t at = w->k->init_task + w->k->layout.tasks;

    w->list->count = 0;
    w->list->unnamed = 0;
    for (;;) {
        struct inspect_task t;
        int r = step(w, at, &at, &t);

        if (r != 0)
            return r < 0 ? r : 0;
        /* Only leaders of thread groups are in the list. */
        if (t.pid != t.tgid || t.pid == 0 || t.pid > PID_LIMIT)
            return inspect_because(w->why, -EAGAIN, "tasks: the one at 0x%llx has pid %u in group %u",
                                   (unsigned long long)t.at, t.pid, t.tgid);
        r = take_process(w->m, &w->k->layout, &t, w->list);
        if (r < 0)
            return inspect_because(w->why, r, "out of memory");
    }
}

static int by_pid(const void *a, const void *b)
{
    const struct inspect_process *x = a, *y = b;

    return (x->pid > y->pid) - (x->pid < y->pid);
}

static bool pids_differ(struct inspect_list *list)
{
    if (list->count > 1)
        qsort(list->processes, list->count, sizeof(*list->processes), by_pid);
    for (size_t i = 1; i < list->count; i++)
        if (list->processes[i].pid == list->processes[i - 1].pid)
            return false;
    return true;
}

/* The oldest first among those of one root: a process's child that it has lent its memory (vfork) is younger. */
static int by_root(const void *a, const void *b)
{
    const struct inspect_process *x = a, *y = b;

    if (x->root != y->root)
        return x->root < y->root ? -1 : 1;
    if (x->start != y->start)
        return x->start < y->start ? -1 : 1;
    return by_pid(a, b);
}

/* One process a root. Two memory descriptors with the same page tables cannot be: then neither is believed. */
static void merge_roots(struct inspect_list *list)
{
    size_t kept = 0, end;

    if (list->count > 1)
        qsort(list->processes, list->count, sizeof(*list->processes), by_root);
    for (size_t i = 0; i < list->count; i = end) {
        struct inspect_process p = list->processes[i];
        bool same = true;

        for (end = i + 1; end < list->count && list->processes[end].root == p.root; end++)
            same &= list->processes[end].mm == p.mm;
        p.others = (uint32_t)(end - i - 1);
        if (same)
            list->processes[kept++] = p;
        else
            list->unnamed += end - i;
    }
    list->count = kept;
}

int inspect_read_list(struct inspect_memory *m, const struct inspect_kernel *k, struct inspect_list *list,
                      struct inspect_why *why)
{
    struct list_walk w = {.m = m, .k = k, .list = list, .why = why};
    int r = -EAGAIN;

    for (int i = 0; i < MAX_ATTEMPTS && r == -EAGAIN; i++) {
        r = walk_once(&w);
        if (r == 0 && !pids_differ(list))
            r = inspect_because(why, -EAGAIN, "tasks: two have the same pid");
    }
    if (r < 0) {
        list->count = 0;
        return r;
    }
    merge_roots(list);
    return 0;
}
