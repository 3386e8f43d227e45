/* What the parts of the inspection share. */
#ifndef UMBRA_INSPECT_INTERNAL_H
#define UMBRA_INSPECT_INTERNAL_H

#include <stdbool.h>

#include "inspect/inspect.h"

/* Where Linux maps its image, whatever KASLR does: __START_KERNEL_map and the largest KERNEL_IMAGE_SIZE. */
#define KERNEL_IMAGE_FIRST UINT64_C(0xffffffff80000000)
#define KERNEL_IMAGE_LAST UINT64_C(0xffffffffbfffffff)
/* More than any kernel has mapped there; a guest that maps more is not searched beyond. */
#define KERNEL_IMAGE_BYTES_MAX (UINT64_C(256) << 20)

/* The kernel as it was found. */
struct inspect_kernel {
    struct inspect_layout layout;
    gva_t btf;        /* its blob */
    uint32_t btf_len;
    uint64_t digest;  /* of samples of the blob */
    gva_t init_task;
};

/* A process or thread as read from guest memory; nothing in it is checked. */
struct inspect_task {
    gva_t at, mm, next, prev;
    uint64_t start;
    uint32_t pid, tgid;
    char comm[INSPECT_COMM_SIZE];
};

/* The entry of a root that leads to the kernel's image, without the bits that the CPU sets; 0 when there is none. (tasks.c) */
uint64_t inspect_kernel_entry(const struct inspect_memory *m, gpa_t root);

/* Search the kernel through the root in use. 0, or -errno with the reason. (kernel.c) */
int inspect_find_kernel(struct inspect_memory *m, struct inspect_kernel *ret, struct inspect_why *why);
/* Is it still there? (kernel.c) */
bool inspect_same_kernel(struct inspect_memory *m, const struct inspect_kernel *k);

/* -EFAULT (not readable). (tasks.c) */
int inspect_read_task(struct inspect_memory *m, const struct inspect_layout *l, gva_t at, struct inspect_task *ret);

enum init_task_verdict {
    INIT_TASK_NO,    /* something else */
    INIT_TASK_BROKEN, /* looks like it, and its list is not linked both ways */
    INIT_TASK_YES,
};
/* Is the first task here, idle task of CPU 0 and head of the list of processes? (tasks.c) */
enum init_task_verdict inspect_check_init_task(struct inspect_memory *m, const struct inspect_layout *l, gva_t at);

struct inspect_list {
    struct inspect_process *processes; /* the caller's */
    size_t count, cap;
    size_t unnamed; /* processes that could not be read as they should be */
};

/*
 * Read the list of processes into an empty *list. 0; -EAGAIN: it kept changing; -EBADMSG, -E2BIG or -ENOMEM; with the
 * reason, and the list empty. (tasks.c)
 */
int inspect_read_list(struct inspect_memory *m, const struct inspect_kernel *k, struct inspect_list *list,
                      struct inspect_why *why);

#endif
