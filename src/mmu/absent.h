/*
 * Absent pages: guest memory of which some pages are still elsewhere, while the guest runs (post-copy). Whoever touches one,
 * guest or VMM, waits until it has come; who needs it is told.
 *
 * Both mappings of guest memory (mem.h) are registered with userfaultfd. An absent page is one that the RAM file has no
 * memory for; pages that are not absent and have none are zeros, as ever.
 *
 * Threads. A thread of its own ("absent") reads the faults and calls `want`. absent_put may be called by any number of threads;
 * a page that is put twice is put once. All other functions are for one thread at a time.
 *
 * A thread that waits for a page cannot be called back: it goes on when the page was put, or after absent_end. The main
 * thread may be one of them, so nothing that makes pages come may wait for it.
 */
#ifndef UMBRA_MMU_ABSENT_H
#define UMBRA_MMU_ABSENT_H

#include <stdint.h>

#include "mmu/mem.h"
#include "mmu/types.h"

struct absent;

/* Somebody waits for the page: once for each page, and again for all of them after absent_ask_again. On the thread of absent pages. */
typedef void absent_want(void *opaque, pfn_t page);

/*
 * Whether pages of this memory can be absent. 0; -EOPNOTSUPP (pages of 2 MiB, private memory, a kernel without it), -EPERM (no
 * userfaultfd), -EBUSY (registered elsewhere), -errno; *ret_why is text that says it, static.
 */
int absent_possible(const struct mem *mem, const char **ret_why);

/* None is absent yet. Nobody uses guest memory meanwhile. Errors as above, and -ENOMEM. */
int absent_new(struct mem *mem, absent_want *want, void *opaque, struct absent **ret);

/*
 * Pages [first, first + 64 * words) whose bits are set are absent from here on: what the RAM file had for them is gone. first is a
 * multiple of 64. Before anybody uses guest memory. -EINVAL (beyond memory), -EIO (the kernel keeps such a page), -errno of fallocate.
 */
int absent_mark(struct absent *a, pfn_t first, const uint64_t *bits, size_t words);

/*
 * Put the contents of those of `count` pages that are absent, and let who waits for them go on. data NULL: zeros. 0; -ENOMEM or
 * another -errno of the kernel, and then some of them stay absent.
 */
int absent_put(struct absent *a, pfn_t first, uint64_t count, const uint8_t *data);

/* How many are. Any thread. */
uint64_t absent_left(const struct absent *a);
/* A word of the bitmap of absent pages. Any thread. */
uint64_t absent_word(const struct absent *a, size_t word);
/* Call `want` again for every page that somebody waits for: the first time may have gone unheard. */
void absent_ask_again(struct absent *a);

struct absent_stats {
    uint64_t wanted; /* pages that somebody waited for */
    uint64_t faults; /* all, those for zeros and pages on their way among them */
};
void absent_stats(const struct absent *a, struct absent_stats *ret);

/*
 * No page is absent any more; those that did not come are zeros. Threads that wait go on, so this must not be called while
 * pages are missing in a guest that has run. Any thread.
 */
void absent_let_go(struct absent *a);
/* The same, and free it. Nobody puts pages any more. NULL is fine. */
void absent_free(struct absent *a);

#endif
