/*
 * A set of RAM pages: a bitmap, and a summary of it with one bit for each group of 64 words (4096 pages, 16 MiB of guest
 * memory), so that emptying, merging and walking a set costs as much as it has pages, not as much as the guest has memory.
 *
 * Invariants: a group whose summary bit is clear is all zeros; `pages` is the number of set bits. Not thread safe.
 */
#ifndef UMBRA_MMU_PAGESET_H
#define UMBRA_MMU_PAGESET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/types.h"

#define PAGE_SET_GROUP_WORDS ((size_t)64)
#define PAGE_SET_GROUP_PAGES (PAGE_SET_GROUP_WORDS * 64)

struct page_set {
    uint64_t *map;         /* whole groups: padded with zeros beyond `limit` */
    uint64_t *groups;      /* the summary */
    size_t group_count;    /* groups in map */
    size_t groups_words;   /* words in groups */
    uint64_t limit;        /* pages the set can hold */
    uint64_t pages;        /* pages it holds */
};

/* An empty set for pages below `limit`. 0 or -ENOMEM. It takes memory only where pages are added. */
int page_set_init(struct page_set *set, uint64_t limit);
/* A zeroed struct is fine. */
void page_set_free(struct page_set *set);

/* Make it empty. */
void page_set_clear(struct page_set *set);
/* Make it empty when map and summary may not agree, as after a failure while the map was written. */
void page_set_wipe(struct page_set *set);
/* Make it hold every page below the limit. */
void page_set_fill(struct page_set *set);

/* dst |= src, both with one limit; the number of pages that dst did not have. */
uint64_t page_set_merge(struct page_set *dst, const struct page_set *src);

static inline void page_set_swap(struct page_set *a, struct page_set *b)
{
    struct page_set t = *a;

    *a = *b;
    *b = t;
}

static inline void page_set_mark_group(struct page_set *set, size_t group)
{
    set->groups[group / 64] |= UINT64_C(1) << (group % 64);
}

/* Add one page below the limit. */
static inline void page_set_add(struct page_set *set, pfn_t page)
{
    uint64_t *word = &set->map[page / 64], bit = UINT64_C(1) << (page % 64);

    if (!(*word & bit)) {
        *word |= bit;
        set->pages++;
        page_set_mark_group(set, (size_t)(page / PAGE_SET_GROUP_PAGES));
    }
}

/* Take one page out. Its group stays marked: the summary may say more than there is. */
static inline void page_set_remove(struct page_set *set, pfn_t page)
{
    uint64_t *word = &set->map[page / 64], bit = UINT64_C(1) << (page % 64);

    set->pages -= (*word & bit) != 0;
    *word &= ~bit;
}

/* Add the pages of one word of the map; the number that were not there. */
static inline uint64_t page_set_add_word(struct page_set *set, size_t word, uint64_t bits)
{
    uint64_t added = (uint64_t)__builtin_popcountll(bits & ~set->map[word]);

    if (added) {
        set->map[word] |= bits;
        set->pages += added;
        page_set_mark_group(set, word / PAGE_SET_GROUP_WORDS);
    }
    return added;
}

/* The first group at or after `from` whose summary bit is set, or group_count. */
size_t page_set_next_group(const struct page_set *set, size_t from);

/* Where a walk over a set is: pages `bits` of word `word` are still to come. */
struct page_set_walk {
    size_t word;
    uint64_t bits;
};

/* Begin with a page below the limit. */
static inline struct page_set_walk page_set_walk_from(const struct page_set *set, pfn_t page)
{
    size_t word = (size_t)(page / 64);

    return (struct page_set_walk){.word = word, .bits = set->map[word] & (UINT64_MAX << (page % 64))};
}

/* Go on to a word with bits, unless there are some left in this one; false at the end, as often as it is asked. */
static inline bool page_set_walk_word(const struct page_set *set, struct page_set_walk *w)
{
    while (!w->bits) {
        if (++w->word % PAGE_SET_GROUP_WORDS == 0) {
            size_t group = page_set_next_group(set, w->word / PAGE_SET_GROUP_WORDS);

            w->word = group * PAGE_SET_GROUP_WORDS;
            if (group == set->group_count) {
                /* The next call comes here again, and not beyond the map. */
                w->word--;
                return false;
            }
        }
        w->bits = set->map[w->word];
    }
    return true;
}

/*
 * For a map that was written directly: the first group at or after `from` and before `end` that has a bit, or `end`;
 * *ret_pages is the number of its bits. The summary and `pages` are left to the caller.
 */
size_t page_set_scan_group(const struct page_set *set, size_t from, size_t end, uint64_t *ret_pages);

#endif
