/* Where a guest kernel keeps what names a process: offsets from its BTF. Pure functions. */
#ifndef UMBRA_INSPECT_LAYOUT_H
#define UMBRA_INSPECT_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "inspect/why.h"

#define INSPECT_COMM_SIZE 16u
/* The largest distance between two members that are read together. */
#define INSPECT_TASK_SPAN_MAX 16384u

struct inspect_layout {
    uint32_t comm, pid, tgid, tasks, mm; /* in struct task_struct */
    uint32_t start;                      /* its start_time, where has_start */
    uint32_t has_start; /* 0 or 1: a struct without padding can be compared */
    uint32_t pgd;        /* in struct mm_struct */
    uint32_t next, prev; /* in struct list_head */
    uint32_t span_start, span_len; /* the part of struct task_struct with all of the members above */
};

/*
 * Read them from a whole BTF blob, which may hold anything. 0, -EBADMSG (no BTF), -ENOENT (something is missing, or is not
 * what it was in every kernel so far), -ENOMEM, or -EOPNOTSUPP (built without libbpf), with the reason.
 */
int inspect_layout_read(const void *blob, size_t len, struct inspect_layout *ret, struct inspect_why *why);

#endif
