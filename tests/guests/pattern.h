/*
 * Which pages the dirtier touches and what it writes there, as functions that a host-side test evaluates as well (see
 * README.md). A region has `pages` pages of 4096 bytes, numbered from 0. Freestanding: no library call, integers only.
 *
 * A pattern gives two things:
 * - a set: pattern_page(p, count, i) for i in [0, count) are count distinct pages, count <= pages;
 * - a stream without end: pattern_stream(p, t) is the page of write number t.
 */
#ifndef GUEST_PATTERN_H
#define GUEST_PATTERN_H

#include <stddef.h>
#include <stdint.h>

#define PATTERN_PAGE_SIZE 4096u
#define PATTERN_PAGE_WORDS 512u
#define PATTERN_DEFAULT_STRIDE 8u
#define PATTERN_ROUNDS 3

enum pattern_kind {
    PATTERN_SEQ,    /* seed, seed + 1, ... */
    PATTERN_RANDOM, /* a permutation of the region */
    PATTERN_STRIDE, /* seed, seed + stride, ... */
    PATTERN_HOT,    /* nine writes of ten to the first tenth of the region */
};

/* A bijection of [0, n). */
struct pattern_perm {
    uint64_t n, mask;
    unsigned int shift;
    uint64_t mul[PATTERN_ROUNDS], add[PATTERN_ROUNDS];
};

struct pattern {
    enum pattern_kind kind;
    uint64_t stride; /* as asked for */
    uint64_t pages, seed;
    uint64_t step; /* stride made coprime to pages */
    struct pattern_perm all, hot, cold;
};

/* The finalizer of SplitMix64: every bit of x moves every bit of the result. */
static inline uint64_t pattern_mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static inline void pattern_perm_init(struct pattern_perm *perm, uint64_t n, uint64_t seed)
{
    unsigned int bits = 0;

    while (bits < 63 && (UINT64_C(1) << bits) < n)
        bits++;
    perm->n = n;
    perm->mask = (UINT64_C(1) << bits) - 1;
    perm->shift = bits / 2 + 1;
    for (unsigned int r = 0; r < PATTERN_ROUNDS; r++) {
        perm->mul[r] = pattern_mix(seed * 8 + 2 * r) | 1;
        perm->add[r] = pattern_mix(seed * 8 + 2 * r + 1);
    }
}

/* Each step is a bijection of [0, 2^bits); walking on while the result is outside makes it one of [0, n). i < n. */
static inline uint64_t pattern_perm_at(const struct pattern_perm *perm, uint64_t i)
{
    do {
        for (unsigned int r = 0; r < PATTERN_ROUNDS; r++) {
            i = (i * perm->mul[r] + perm->add[r]) & perm->mask;
            i ^= i >> perm->shift;
        }
    } while (i >= perm->n);
    return i;
}

static inline uint64_t pattern_gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t t = a % b;

        a = b;
        b = t;
    }
    return a;
}

static inline int pattern_word_is(const char *text, const char *word)
{
    while (*word && *text == *word) {
        text++;
        word++;
    }
    return !*word && !*text;
}

/*
 * Read `seq`, `random`, `hot`, `stride` or `stride:N` (N from 1 to 2^32 - 1). Returns 0, or -1 for anything else, in
 * which case *ret_kind and *ret_stride are untouched.
 */
static inline int pattern_parse(const char *text, enum pattern_kind *ret_kind, uint64_t *ret_stride)
{
    static const char prefix[] = "stride:";
    uint64_t stride = 0;
    size_t i;

    if (pattern_word_is(text, "seq")) {
        *ret_kind = PATTERN_SEQ;
        return 0;
    }
    if (pattern_word_is(text, "random")) {
        *ret_kind = PATTERN_RANDOM;
        return 0;
    }
    if (pattern_word_is(text, "hot")) {
        *ret_kind = PATTERN_HOT;
        return 0;
    }
    if (pattern_word_is(text, "stride")) {
        *ret_kind = PATTERN_STRIDE;
        *ret_stride = PATTERN_DEFAULT_STRIDE;
        return 0;
    }
    for (i = 0; prefix[i]; i++)
        if (text[i] != prefix[i])
            return -1;
    for (; text[i]; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        stride = stride * 10 + (uint64_t)(text[i] - '0');
        if (stride > UINT32_MAX)
            return -1;
    }
    if (stride == 0)
        return -1;
    *ret_kind = PATTERN_STRIDE;
    *ret_stride = stride;
    return 0;
}

/* pages > 0; stride counts for PATTERN_STRIDE only. */
static inline void pattern_init(struct pattern *p, enum pattern_kind kind, uint64_t stride, uint64_t pages,
                                uint64_t seed)
{
    uint64_t hot = pages < 10 ? 1 : pages / 10;

    p->kind = kind;
    p->stride = stride;
    p->pages = pages;
    p->seed = seed;
    p->step = stride ? stride : 1;
    while (pattern_gcd(p->step, pages) != 1)
        p->step++;
    p->step %= pages;
    pattern_perm_init(&p->all, pages, seed);
    pattern_perm_init(&p->hot, hot, seed + 1);
    pattern_perm_init(&p->cold, pages - hot, seed + 2);
}

static inline uint64_t pattern_linear(const struct pattern *p, uint64_t step, uint64_t i)
{
    /* Regions have less than 2^32 pages (16 TiB), so the product fits. */
    return (p->seed % p->pages + i % p->pages * step) % p->pages;
}

/* Page number i of the set of count pages; i < count <= pages. */
static inline uint64_t pattern_page(const struct pattern *p, uint64_t count, uint64_t i)
{
    uint64_t cold, hot;

    switch (p->kind) {
    case PATTERN_RANDOM:
        return pattern_perm_at(&p->all, i);
    case PATTERN_STRIDE:
        return pattern_linear(p, p->step, i);
    case PATTERN_HOT:
        /* A tenth of them cold; what does not fit into the hot part is cold as well, and the other way round. */
        cold = count / 10;
        if (cold > p->cold.n)
            cold = p->cold.n;
        hot = count - cold;
        if (hot > p->hot.n)
            hot = p->hot.n;
        return i < hot ? pattern_perm_at(&p->hot, i) : p->hot.n + pattern_perm_at(&p->cold, i - hot);
    case PATTERN_SEQ:
        break;
    }
    return pattern_linear(p, 1, i);
}

/* The page of write number t of the stream: the set of all pages again and again, or nine hot writes and a cold one. */
static inline uint64_t pattern_stream(const struct pattern *p, uint64_t t)
{
    if (p->kind != PATTERN_HOT)
        return pattern_page(p, p->pages, t % p->pages);
    if (t % 10 == 9 && p->cold.n)
        return p->hot.n + pattern_perm_at(&p->cold, t / 10 % p->cold.n);
    return pattern_perm_at(&p->hot, (t - t / 10) % p->hot.n);
}

/* The 64-bit word that dirtying a page writes (never 0), and its index in the page. */
static inline uint64_t pattern_word(uint64_t seed, uint64_t page)
{
    return pattern_mix(seed ^ pattern_mix(page)) | 1;
}

static inline unsigned int pattern_word_index(uint64_t word)
{
    return (unsigned int)(word >> 55);
}

/* Word number `index` of the region (page * 512 + index in page) after `fill random SEED`. */
static inline uint64_t pattern_fill_word(uint64_t seed, uint64_t index)
{
    return pattern_mix(pattern_mix(seed) + index);
}

/* The sum of a page depends on each word and its place. */
static inline uint64_t pattern_page_sum(const uint64_t *words)
{
    uint64_t a = 0, b = 0;

    for (unsigned int i = 0; i < PATTERN_PAGE_WORDS; i++) {
        a += words[i];
        b += a;
    }
    return pattern_mix(a) ^ b;
}

/* What a page adds to the sum of its region; the sum wraps, and pages may be added in any order. */
static inline uint64_t pattern_region_part(uint64_t page, uint64_t page_sum)
{
    return pattern_mix(page_sum ^ pattern_mix(page));
}

#endif
