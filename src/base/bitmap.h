/*
 * Bitmaps of 64-bit words, bit i in word i / 64. Sizes are in bits unless a name says words; the bits of the last word
 * beyond the size must be zero. The functions named atomic may run against each other; the others want the caller's lock.
 */
#ifndef UMBRA_BASE_BITMAP_H
#define UMBRA_BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"

#define BITMAP_WORD_BITS 64u

static inline size_t bitmap_words(uint64_t bits)
{
    return (size_t)DIV_ROUND_UP(bits, BITMAP_WORD_BITS);
}

static inline bool bitmap_test(const uint64_t *map, uint64_t bit)
{
    return map[bit / 64] >> (bit % 64) & 1;
}

static inline void bitmap_set(uint64_t *map, uint64_t bit)
{
    map[bit / 64] |= UINT64_C(1) << (bit % 64);
}

static inline void bitmap_set_atomic(uint64_t *map, uint64_t bit)
{
    __atomic_fetch_or(&map[bit / 64], UINT64_C(1) << (bit % 64), __ATOMIC_RELEASE);
}

/* Set bits [first, first + count), not atomic. */
void bitmap_set_range(uint64_t *map, uint64_t first, uint64_t count);

/* dst |= src over `words` words. */
void bitmap_or(uint64_t *dst, const uint64_t *src, size_t words);

/* Number of set bits in `words` words. */
uint64_t bitmap_count(const uint64_t *map, size_t words);

/* The first set (clear) bit at or after `from`, or `bits` when there is none. */
uint64_t bitmap_next_set(const uint64_t *map, uint64_t bits, uint64_t from);
uint64_t bitmap_next_clear(const uint64_t *map, uint64_t bits, uint64_t from);

/* The first non-zero word at or after `from`, or `words` when there is none. */
size_t bitmap_next_word(const uint64_t *map, size_t words, size_t from);

#endif
