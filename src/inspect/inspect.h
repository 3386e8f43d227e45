/*
 * Names for address spaces, from outside and without an agent: which process of a Linux guest has which root of page
 * tables. The guest's kernel describes its own structures (BTF, in its read-only memory); with that and its page tables
 * the list of processes is read from guest memory.
 *
 * Everything read is hostile: the guest's kernel may lie, and any process of the guest may own a page that looks like what is
 * searched. So the description is taken from memory that the kernel maps read-only, each pointer is checked, the list must
 * be linked both ways and closed, each process is read twice, work is bounded, and where two things could be meant there
 * is no answer. A wrong name is worse than none.
 *
 * Not thread safe. Stands on src/base and on the page-table walker (src/mmu/walk.h), not on the rest of the daemon.
 */
#ifndef UMBRA_INSPECT_INSPECT_H
#define UMBRA_INSPECT_INSPECT_H

#include <stddef.h>
#include <stdint.h>

#include "inspect/layout.h"
#include "inspect/memory.h"
#include "inspect/why.h"

struct inspect;

struct inspect_process {
    gpa_t root;             /* of its page tables */
    gva_t task, mm;         /* its structures */
    uint64_t start;         /* when it was started, in the kernel's time; 0 where that is not known */
    uint32_t pid;           /* as the guest's first PID namespace has it */
    uint32_t others;        /* processes besides this one that run in the same address space (vfork) */
    char comm[INSPECT_COMM_SIZE]; /* printable ASCII, not empty */
};

/*
 * Begin with guest RAM: a file that can be read (it stays the caller's and open) and where it is in guest memory. 0,
 * -EINVAL (slots) or -ENOMEM.
 */
int inspect_new(int fd, const struct inspect_slot *slots, unsigned int count, struct inspect **ret);
/* NULL is fine. */
void inspect_free(struct inspect *in);

/*
 * Of page tables that are said to be some address space's, choose those to look through: *ret is the index of the first whose
 * kernel half begins like that of most. (A page that was a root a moment ago may be a process's by now, with anything in it.)
 * 0, -ENOENT (none has a kernel half) or -ENOTUNIQ (no majority), with the reason in inspect_why.
 */
int inspect_choose_root(struct inspect *in, const gpa_t *roots, size_t count, size_t *ret);

/*
 * Look at the processes as they are now, through page tables with `levels` levels that map the kernel (any process's, or
 * the kernel's own). The first time the kernel is searched, which reads all of its image; later looks only check that it
 * is still the same. 0, or -errno with the reason in inspect_why: then there are no processes.
 */
int inspect_look(struct inspect *in, gpa_t root, unsigned int levels);

/* Forget the processes of the last look (not the kernel that was found). */
void inspect_forget(struct inspect *in);

/* Why the last look failed; or what it left out, "" when it left out nothing. */
const char *inspect_why(const struct inspect *in);

/* What the last look found, by root. Valid until the next look. */
const struct inspect_process *inspect_processes(const struct inspect *in, size_t *ret_count);
/* The process with that root, or NULL. */
const struct inspect_process *inspect_find(const struct inspect *in, gpa_t root);

#endif
