#include "config.h"

#include "base/bitmap.h"

void bitmap_set_range(uint64_t *map, uint64_t first, uint64_t count)
{
    uint64_t last = first + count;

    for (; first < last && first % 64; first++)
        bitmap_set(map, first);
    for (; last - first >= 64; first += 64)
        map[first / 64] = UINT64_MAX;
    for (; first < last; first++)
        bitmap_set(map, first);
}

void bitmap_or(uint64_t *dst, const uint64_t *src, size_t words)
{
    for (size_t i = 0; i < words; i++)
        dst[i] |= src[i];
}

CPU_CLONES("default,popcnt") static uint64_t count_words(const uint64_t *map, size_t words)
{
    uint64_t n = 0;

    for (size_t i = 0; i < words; i++)
        n += (uint64_t)__builtin_popcountll(map[i]);
    return n;
}

uint64_t bitmap_count(const uint64_t *map, size_t words)
{
    return count_words(map, words);
}

size_t bitmap_next_word(const uint64_t *map, size_t words, size_t from)
{
    size_t i = from;

    while (i < words && map[i] == 0) {
        /* Eight words at a time once aligned: most of a dirty bitmap is zero. */
        if (i % 8 == 0) {
            while (i + 8 <= words &&
                   (map[i] | map[i + 1] | map[i + 2] | map[i + 3] | map[i + 4] | map[i + 5] | map[i + 6] | map[i + 7]) == 0)
                i += 8;
            if (i >= words || map[i] != 0)
                break;
        }
        i++;
    }
    return MIN(i, words);
}

uint64_t bitmap_next_set(const uint64_t *map, uint64_t bits, uint64_t from)
{
    size_t words = bitmap_words(bits), w = (size_t)(from / 64);
    uint64_t word;

    if (from >= bits)
        return bits;
    word = map[w] & (UINT64_MAX << (from % 64));
    if (!word) {
        w = bitmap_next_word(map, words, w + 1);
        if (w == words)
            return bits;
        word = map[w];
    }
    return MIN((uint64_t)w * 64 + (uint64_t)__builtin_ctzll(word), bits);
}

uint64_t bitmap_next_clear(const uint64_t *map, uint64_t bits, uint64_t from)
{
    size_t words = bitmap_words(bits), w = (size_t)(from / 64);
    uint64_t word;

    if (from >= bits)
        return bits;
    word = ~map[w] & (UINT64_MAX << (from % 64));
    while (!word) {
        if (++w == words)
            return bits;
        word = ~map[w];
    }
    return MIN((uint64_t)w * 64 + (uint64_t)__builtin_ctzll(word), bits);
}
