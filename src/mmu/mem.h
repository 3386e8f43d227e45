/*
 * Guest memory: one memfd, cut into memory slots around the hole below 4 GiB.
 *
 *   RAM file offset   guest physical
 *   0 .. low          0 .. low                  low = min(size, 3 GiB)
 *   low .. size       4 GiB .. 4 GiB + rest
 *
 * The order of the RAM file is the order of "RAM pages" (pfn_t): bitmaps of guest memory (dirty log) have one bit a RAM
 * page, and no gap for the hole.
 *
 * It is mapped twice. One mapping is the guest's: KVM's slots lie in it, and it may be registered with userfaultfd, so that a
 * write there can wait. The VMM reads in it too, since its pages are there already, and writes through the other, the
 * alias: a thread of the VMM never waits for what only another one can resolve. What the guest's mapping would have told
 * is told by the notes of VMM writes.
 *
 * Private memory (mem_config.private, a lazily restored snapshot) is other: it has one mapping, whose pages are copies on
 * write of files' pages. There is no descriptor that shows it to anyone else (mem_fd is -1) and no alias, so nothing may let
 * writes to it wait. Once it is discarded it is the RAM file again, still without an alias.
 *
 * Ownership: struct mem is created before the VM and destroyed after it. Slots do not change in between.
 * Threads: all accessors may be called from any thread at any time; guest memory changes under the caller's feet, so
 * what was read is copied before it is checked.
 * VMM writes: every write through mem_write/mem_set/mem_mark_dirty is noted in a bitmap for each listener that is on; the
 * note is made after the bytes are there, so a harvest that misses the note is followed by one that has it.
 */
#ifndef UMBRA_MMU_MEM_H
#define UMBRA_MMU_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/pageset.h"
#include "mmu/types.h"

#define MEM_MAX_SLOTS 2
#define MEM_HOLE_START (UINT64_C(3) << 30)
#define MEM_HOLE_END (UINT64_C(4) << 30)
#define MEM_SIZE_MIN (UINT64_C(1) << 20)
/* 512 GiB of guest physical address space, the hole among it. */
#define MEM_SIZE_MAX ((UINT64_C(512) << 30) - (MEM_HOLE_END - MEM_HOLE_START))
/* Sizes are multiples of this, so that every slot is whole words of a dirty bitmap. */
#define MEM_SIZE_ALIGN (UINT64_C(1) << 20)
#define MEM_HUGE_PAGE_SIZE (UINT64_C(2) << 20)

struct mem;

struct mem_config {
    uint64_t size;  /* bytes, MEM_SIZE_MIN to MEM_SIZE_MAX, multiple of MEM_SIZE_ALIGN */
    bool hugepages; /* back with 2 MiB hugetlb pages (size must be a multiple of 2 MiB) */
    bool prealloc;  /* touch every page now */
    bool private;   /* see mem_map_file; neither hugepages nor prealloc */
    bool transparent; /* ask for transparent huge pages, where the host gives them on advice */
};

struct mem_slot {
    uint32_t id;     /* KVM memory slot number, and index in the array */
    gpa_t base;      /* guest physical start */
    uint64_t size;   /* bytes */
    uint64_t offset; /* in the RAM file */
    uint8_t *hva;    /* in the guest's mapping: for KVM and userfaultfd, and to read */
    uint8_t *alias;  /* in the VMM's own mapping: to write */
};

/*
 * What mem_new asks of the kernel for the whole process. With a second thread about, the kernel makes it wait until every CPU has
 * been through the scheduler, which takes milliseconds: call it before there is one, or leave it to mem_new.
 */
void mem_init_process(void);

/*
 * Create guest memory, all zeros. -EINVAL (size), -ENOMEM (also: too few huge pages), or -errno of memfd_create,
 * ftruncate, mmap or madvise; the reason is logged. Call it before threads that write guest memory exist.
 */
int mem_new(const struct mem_config *config, struct mem **ret);
/* NULL is fine. */
void mem_free(struct mem *mem);

uint64_t mem_size(const struct mem *mem);
uint64_t mem_pages(const struct mem *mem);
const struct mem_slot *mem_slots(const struct mem *mem, unsigned int *ret_count);

/* Backed with hugetlb pages (mem_config.hugepages). */
bool mem_hugepages(const struct mem *mem);

/* The RAM file. It stays the property of mem, and can be neither shrunk nor grown. -1 while memory is private. */
int mem_fd(const struct mem *mem);

/*
 * Let RAM be another file, made like ours by another process, from here on: the same addresses, other contents. Before a guest
 * runs, and not for private memory. Takes over fd, also on failure. -EINVAL (its size, kind of pages, or seals are other),
 * or -errno of mmap, after which memory must not be used; not logged.
 */
int mem_adopt(struct mem *mem, int fd);

/*
 * Copy RAM pages [first, first + count) to `to`. What was never touched or was given back is zeros, and takes no memory by being read:
 * a mapping would have it made, or where there are no huge pages left end in SIGBUS. 0, or -errno of the file. Any thread.
 */
int mem_copy_pages(const struct mem *mem, pfn_t first, uint64_t count, uint8_t *to);

/*
 * A RAM page to read: *ret is the mapping, or `buf`, to which it was copied because it may have been given back; mem_copy_pages says
 * why. 0, or -errno of the file. Any thread.
 */
int mem_view_page(struct mem *mem, pfn_t page, uint8_t buf[GUEST_PAGE_SIZE], const uint8_t **ret);
/* Whether mem_view_page may copy one of these. A hint; never so for private memory. Any thread. */
bool mem_some_given_back(const struct mem *mem, pfn_t first, uint64_t count);

/* All of RAM in the order of RAM pages, to read: the guest's mapping. Valid for the life of mem. */
const uint8_t *mem_ram(const struct mem *mem);

/*
 * Private memory only, before a VM is made with it: let [offset, offset + len) of RAM read as the same part of the file,
 * which stays as it is whatever is written here. It must neither shrink nor change from now on. fd -1: zeros, as all of
 * private memory is at first. Multiples of the page size within RAM; 0 or -errno of mmap, not logged.
 */
int mem_map_file(struct mem *mem, uint64_t offset, uint64_t len, int fd);

/*
 * The first stretch of RAM at or after `offset` that may be other than zeros: [*ret_start, *ret_end), whole pages; false
 * when there is none. What lies between was never touched. Any thread.
 */
bool mem_next_data(const struct mem *mem, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end);

/*
 * Which of RAM pages [first, first + count) the guest may have touched: ret[i] is 0 for one of private memory whose contents the
 * host would have to read from the file first. All others are 1. A hint: it may change at once. Any thread.
 */
void mem_resident(const struct mem *mem, pfn_t first, size_t count, uint8_t *ret);

/*
 * Copy out of (into) guest memory. -EFAULT, and nothing copied, unless all of [gpa, gpa + len) is RAM of one slot.
 * len 0 is fine anywhere.
 */
int mem_read(const struct mem *mem, gpa_t gpa, void *buf, size_t len);
int mem_write(struct mem *mem, gpa_t gpa, const void *buf, size_t len);
int mem_set(struct mem *mem, gpa_t gpa, int byte, size_t len);

/* True when all of [gpa, gpa + len) is RAM of one slot; len 0 is. */
bool mem_is_ram(const struct mem *mem, gpa_t gpa, uint64_t len);

/*
 * A pointer for direct access (device I/O), or NULL unless gpa and all of [gpa, gpa + len) is RAM of one slot. Whoever
 * writes through it calls mem_mark_dirty for the range once the bytes are there; marking what is not RAM is a bug of
 * the caller's (assert).
 */
void *mem_ptr(const struct mem *mem, gpa_t gpa, uint64_t len);
void mem_mark_dirty(struct mem *mem, gpa_t gpa, uint64_t len);
/* The same for a range that mem_ptr gave out, or a part of it. */
void mem_mark_dirty_ptr(struct mem *mem, const void *ptr, size_t len);

/*
 * Fill all RAM with zeros (every page counts as written) and give the memory back to the host, unless it was
 * preallocated: then it is allocated again. 0 or -errno of fallocate or madvise. No guest runs.
 */
int mem_discard(struct mem *mem);

/*
 * Give memory back to the host that the guest has no use for: those whole pages (huge ones, where memory has them) that lie in
 * a range which mem_ptr gave out. They are zeros afterwards and count as written, but private memory shows its file again
 * (mem_given_is_zero). The number of bytes, or -errno of fallocate or madvise, when a part may be gone. Any thread.
 */
int64_t mem_give_back(struct mem *mem, const void *ptr, uint64_t len);
bool mem_given_is_zero(const struct mem *mem);
/*
 * While it is held no page comes or goes by itself: nothing is given back (pages stay as they are, which a guest has to expect as
 * well), and the kernel puts no huge pages together. Not for private memory.
 */
void mem_hold_pages(struct mem *mem, bool on);
/* Bytes of guest memory that the host has allocated (the RAM file's), or -errno; -ENOTSUP while memory is private. */
int64_t mem_allocated(const struct mem *mem);

/* Converters; mem_gfn_to_pfn gives false outside of RAM, mem_pfn_to_gfn wants pfn < mem_pages. */
bool mem_gfn_to_pfn(const struct mem *mem, gfn_t gfn, pfn_t *ret);
gfn_t mem_pfn_to_gfn(const struct mem *mem, pfn_t pfn);

/* Who wants to know of VMM writes. Each has notes of its own, and one thread (or lock) that calls the two functions below. */
enum mem_listener {
    MEM_LISTENER_DIRTY_LOG, /* the dirty log, under its lock */
    MEM_LISTENER_PRECISE,   /* the userfaultfd source (precise.h) */
    MEM_LISTENERS,
};

/*
 * Switch noting of VMM writes on or off, forgetting earlier notes. A write whose bytes are not visible to the caller
 * when switching on returns is noted.
 */
void mem_track_writes(struct mem *mem, enum mem_listener who, bool on);
/*
 * Move the notes into `into`, a set for mem_pages pages; the number of pages that it did not have. The bytes of a page
 * that is handed out are visible to the caller. Costs a few loads when there is nothing (one for each GiB of RAM).
 */
uint64_t mem_collect_writes(struct mem *mem, enum mem_listener who, struct page_set *into);

#endif
