/* Repeated measurements of one figure. */
#ifndef UMBRA_BENCH_SAMPLE_H
#define UMBRA_BENCH_SAMPLE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define SAMPLE_MAX 256

struct sample {
    uint64_t ns[SAMPLE_MAX];
    size_t count;
};

static inline void sample_add(struct sample *s, uint64_t ns)
{
    assert(s->count < SAMPLE_MAX);
    s->ns[s->count++] = ns;
}

static inline int sample_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Microseconds: the smallest at 0, the median at 0.5, the largest at 1. */
static inline double sample_us(struct sample *s, double at)
{
    if (s->count == 0)
        return 0;
    qsort(s->ns, s->count, sizeof(s->ns[0]), sample_compare);
    return (double)s->ns[(size_t)(at * (double)(s->count - 1) + 0.5)] / 1e3;
}

#endif
