/* Random numbers for model-based tests: repeatable, with a seed that is printed and can be set (UMBRA_TEST_SEED). */
#ifndef UMBRA_TESTS_RAND_H
#define UMBRA_TESTS_RAND_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"

struct rng {
    uint64_t state;
};

/* xorshift64* (Marsaglia; Vigna). */
static inline uint64_t rng_next(struct rng *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return r->state * UINT64_C(0x2545f4914f6cdd1d);
}

static inline uint64_t rng_below(struct rng *r, uint64_t n)
{
    return (rng_next(r) >> 16) % n;
}

/* True `percent` times in a hundred. */
static inline bool rng_chance(struct rng *r, unsigned int percent)
{
    return rng_below(r, 100) < percent;
}

static inline struct rng rng_seeded(uint64_t seed)
{
    struct rng r = {.state = seed ? seed : 1};

    /* Small seeds are far apart after a few steps. */
    for (int i = 0; i < 8; i++)
        rng_next(&r);
    return r;
}

/* The seed of this run. */
static inline uint64_t rng_test_seed(const char *test)
{
    const char *text = getenv("UMBRA_TEST_SEED");
    uint64_t seed = text && *text ? strtoull(text, NULL, 0) : clock_ns();

    printf("# %s: UMBRA_TEST_SEED=%" PRIu64 "\n", test, seed);
    fflush(stdout);
    return seed;
}

#endif
