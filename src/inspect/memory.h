/*
 * Guest memory as a client has it: a read-only file, a slot table, and the root of page tables that map the guest's kernel.
 * The guest runs meanwhile, so two reads of one place may differ, and what was read is copied before it is judged.
 *
 * It is read, never mapped: a read fault in a mapping would allocate what the guest has not touched yet.
 * Not thread safe.
 */
#ifndef UMBRA_INSPECT_MEMORY_H
#define UMBRA_INSPECT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/types.h"
#include "mmu/walk.h"

#define INSPECT_MAX_SLOTS 2
#define INSPECT_TLB_SIZE 256u

struct inspect_slot {
    gpa_t base;
    uint64_t size, offset; /* bytes; offset in the file */
};

struct inspect_memory {
    int fd; /* not owned */
    struct inspect_slot slots[INSPECT_MAX_SLOTS];
    unsigned int slot_count;
    struct mmu_view view;
    struct gpt_cpu cpu;
    struct mmu_paging paging;
    gpa_t root;
    /* Translations of the running look; forgotten with inspect_memory_use. */
    struct {
        bool valid;
        gva_t page;
        gpa_t frame;
    } tlb[INSPECT_TLB_SIZE];
};

/* -EINVAL unless the slots are RAM as this VMM lays it out: one from 0, and perhaps one from 4 GiB. m does not move after. */
int inspect_memory_init(struct inspect_memory *m, int fd, const struct inspect_slot *slots, unsigned int count);

/* Walk from this root from now on. -EINVAL: not 4 or 5 levels. */
int inspect_memory_use(struct inspect_memory *m, gpa_t root, unsigned int levels);

/* Copy guest physical memory: 0, -EFAULT (not all of it in one slot), or -EIO. */
int inspect_read(const struct inspect_memory *m, gpa_t gpa, void *buf, size_t len);

/* Where the kernel's address leads: 0 or -EFAULT. */
int inspect_translate(struct inspect_memory *m, gva_t gva, gpa_t *ret);

/* Copy the kernel's virtual memory: 0, or -EFAULT with buf in any state. */
int inspect_read_virtual(struct inspect_memory *m, gva_t gva, void *buf, size_t len);

/* An address of the upper half that is canonical and a multiple of 8: what a pointer to an object of the kernel's is. */
bool inspect_is_pointer(const struct inspect_memory *m, gva_t gva);

#endif
