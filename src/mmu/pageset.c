#include "config.h"

#include "mmu/pageset.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/platform/x86.h>

#include "base/bitmap.h"
#include "base/util.h"

/*
 * The inner loops are compiled twice, and cpu_is_fast() tells which to run. Not by the compiler's function clones: what
 * chooses among those executes CPUID two dozen times at every start, 5 us each where a hypervisor traps it. The C library
 * has asked already.
 */
#define FAST __attribute__((target("popcnt,avx2")))
#define INLINE static inline __attribute__((always_inline))

static bool cpu_is_fast(void)
{
    return CPU_FEATURE_ACTIVE(POPCNT) && CPU_FEATURE_ACTIVE(AVX2);
}

/* 32 bytes: one AVX2 register, or two of SSE2. */
typedef uint64_t vec __attribute__((vector_size(32)));
#define GROUP_VECS (PAGE_SET_GROUP_WORDS * sizeof(uint64_t) / sizeof(vec))

static size_t storage_size(const struct page_set *set)
{
    return (set->group_count * PAGE_SET_GROUP_WORDS + set->groups_words) * sizeof(uint64_t);
}

int page_set_init(struct page_set *set, uint64_t limit)
{
    struct page_set s = {.limit = limit};
    void *p;

    s.group_count = (size_t)DIV_ROUND_UP(limit, PAGE_SET_GROUP_PAGES);
    s.groups_words = bitmap_words(s.group_count);
    p = mmap(NULL, storage_size(&s), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -ENOMEM;
    s.map = p;
    s.groups = s.map + s.group_count * PAGE_SET_GROUP_WORDS;
    *set = s;
    return 0;
}

void page_set_free(struct page_set *set)
{
    if (set->map)
        munmap(set->map, storage_size(set));
    memset(set, 0, sizeof(*set));
}

size_t page_set_next_group(const struct page_set *set, size_t from)
{
    return (size_t)bitmap_next_set(set->groups, set->group_count, from);
}

static inline uint64_t *group_words(const struct page_set *set, size_t group)
{
    return set->map + group * PAGE_SET_GROUP_WORDS;
}

void page_set_clear(struct page_set *set)
{
    for (size_t i = 0; i < set->groups_words; i++) {
        uint64_t bits = set->groups[i];

        for (; bits; bits &= bits - 1)
            memset(group_words(set, i * 64 + (size_t)__builtin_ctzll(bits)), 0, PAGE_SET_GROUP_WORDS * sizeof(uint64_t));
        set->groups[i] = 0;
    }
    set->pages = 0;
}

void page_set_wipe(struct page_set *set)
{
    memset(set->map, 0, storage_size(set));
    set->pages = 0;
}

void page_set_fill(struct page_set *set)
{
    page_set_wipe(set);
    bitmap_set_range(set->map, 0, set->limit);
    bitmap_set_range(set->groups, 0, set->group_count);
    set->pages = set->limit;
}

INLINE uint64_t merge_group(uint64_t *dst, const uint64_t *src)
{
    uint64_t added = 0;

    for (size_t i = 0; i < PAGE_SET_GROUP_WORDS; i++) {
        added += (uint64_t)__builtin_popcountll(src[i] & ~dst[i]);
        dst[i] |= src[i];
    }
    return added;
}

INLINE uint64_t merge_groups(struct page_set *dst, const struct page_set *src)
{
    uint64_t added = 0;

    for (size_t i = 0; i < src->groups_words; i++) {
        for (uint64_t bits = src->groups[i]; bits; bits &= bits - 1) {
            size_t group = i * 64 + (size_t)__builtin_ctzll(bits);

            added += merge_group(group_words(dst, group), group_words(src, group));
        }
        dst->groups[i] |= src->groups[i];
    }
    return added;
}

FAST static uint64_t merge_groups_fast(struct page_set *dst, const struct page_set *src)
{
    return merge_groups(dst, src);
}

uint64_t page_set_merge(struct page_set *dst, const struct page_set *src)
{
    uint64_t added;

    assert(dst->limit == src->limit);
    added = cpu_is_fast() ? merge_groups_fast(dst, src) : merge_groups(dst, src);
    dst->pages += added;
    return added;
}

/*
 * True when a group is empty. An idle guest's bitmap is all zeros, and reading it is what its harvest costs beside the
 * ioctl: at the speed of the second-level cache when this is unrolled.
 */
INLINE bool group_empty(const uint64_t *words)
{
    const vec *v = __builtin_assume_aligned(words, sizeof(vec));
    vec a = v[0], b = v[1], c = v[2], d = v[3];

#pragma GCC unroll 4
    for (size_t i = 4; i < GROUP_VECS; i += 4) {
        a |= v[i];
        b |= v[i + 1];
        c |= v[i + 2];
        d |= v[i + 3];
    }
    a |= b | c | d;
    return (a[0] | a[1] | a[2] | a[3]) == 0;
}

INLINE size_t scan_group(const struct page_set *set, size_t from, size_t end, uint64_t *ret_pages)
{
    for (size_t group = from; group < end; group++) {
        const uint64_t *words = group_words(set, group);
        uint64_t n = 0;

        if (group_empty(words))
            continue;
        for (size_t i = 0; i < PAGE_SET_GROUP_WORDS; i++)
            n += (uint64_t)__builtin_popcountll(words[i]);
        *ret_pages = n;
        return group;
    }
    return end;
}

FAST static size_t scan_group_fast(const struct page_set *set, size_t from, size_t end, uint64_t *ret_pages)
{
    return scan_group(set, from, end, ret_pages);
}

size_t page_set_scan_group(const struct page_set *set, size_t from, size_t end, uint64_t *ret_pages)
{
    return cpu_is_fast() ? scan_group_fast(set, from, end, ret_pages) : scan_group(set, from, end, ret_pages);
}
