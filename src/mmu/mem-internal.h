/* Guest memory, as the files mmu/mem*.c share it. */
#ifndef UMBRA_MMU_MEM_INTERNAL_H
#define UMBRA_MMU_MEM_INTERNAL_H

#include "mmu/mem.h"

struct mem {
    uint64_t size;
    int fd;
    bool hugepages, prealloc, transparent;
    bool private; /* atomic: a snapshot may be written while the guest resets */
    bool held;    /* atomic; see mem_hold_pages */
    uint8_t *area; /* guard, RAM, guard, alias, guard */
    size_t area_size;
    uint8_t *ram, *alias;
    struct mem_slot slots[MEM_MAX_SLOTS];
    unsigned int slot_count;

    /*
     * Pages that were given back, and may have come again since: atomic words, a bit for each page, set before it goes. Whoever finds
     * contents clears it. Where that meets another going it is lost, which costs a page of zeros; huge pages, which may be gone for
     * good, keep theirs.
     */
    uint64_t *given;

    /* Notes of VMM writes; see above. */
    uint8_t tracking;    /* atomic; bit i: listener i */
    bool writers_fence;  /* there is no membarrier: every write has its own fence. Set once by mem_new */
    struct notes {
        uint64_t *map;     /* atomic words */
        uint64_t *summary; /* atomic words; bit i: group i of the map may have a bit */
    } notes[MEM_LISTENERS];
    size_t note_words, summary_words;
    size_t notes_size; /* of the mapping that holds all of them, bytes */
};

/* mem.c: bytes [offset, offset + len) of RAM were written by the VMM. */
void mem_note_range(struct mem *mem, uint64_t offset, uint64_t len);
/* mem-given.c: they are about to be given back. */
void mem_note_given(struct mem *mem, uint64_t offset, uint64_t len);

#endif
