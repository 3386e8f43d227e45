/*
 * Elements of one size, named by 32-bit numbers. They lie in one reserved piece of address space, so an element never
 * moves and its address is one multiplication away; memory is taken from the host only by pool_grow. So pool_take and
 * pool_put neither allocate nor fail for want of host memory: what they may use was made ready before. Number 0 is no
 * element. Not thread safe.
 */
#ifndef UMBRA_MMU_POOL_H
#define UMBRA_MMU_POOL_H

#include <stddef.h>
#include <stdint.h>

struct pool {
    uint8_t *base;
    uint32_t size;  /* bytes of an element, at least 4 */
    uint32_t limit; /* numbers are below this */
    uint32_t ready; /* numbers below this have memory */
    uint32_t next;  /* numbers from this on were never taken */
    uint32_t free;  /* first of those given back; linked through their first 4 bytes */
    uint32_t used;  /* elements taken */
};

/* Reserve address space for `count` elements of `size` bytes. 0 or -ENOMEM. */
int pool_init(struct pool *pool, uint32_t size, uint32_t count);
/* A zeroed struct is fine. */
void pool_clear(struct pool *pool);

/* Make sure that the next `count` calls of pool_take succeed. 0, -ENOSPC (beyond the pool's size) or -ENOMEM. */
int pool_grow(struct pool *pool, uint32_t count);

static inline void *pool_at(const struct pool *pool, uint32_t number)
{
    return pool->base + (size_t)number * pool->size;
}

/* How many elements can be taken now. */
static inline uint32_t pool_available(const struct pool *pool)
{
    return pool->ready - 1 - pool->used;
}

/* Host memory it has, in bytes; elements given back among it. */
static inline uint64_t pool_memory(const struct pool *pool)
{
    return (uint64_t)pool->ready * pool->size;
}

/* An element, its contents undefined, or 0 when none is ready. */
uint32_t pool_take(struct pool *pool);
void pool_put(struct pool *pool, uint32_t number);

#endif
