/*
 * Element pool. Address space is reserved without memory behind it (MAP_NORESERVE) and filled from the front in steps, so
 * a pool for the worst case costs nothing until it is needed.
 */
#include "config.h"

#include "mmu/pool.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"

/* What is made ready at a time, at least: fewer system calls, little waste. */
#define POOL_STEP_BYTES (64 * KiB)

int pool_init(struct pool *pool, uint32_t size, uint32_t count)
{
    size_t bytes = ((size_t)count + 1) * size;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    assert(size >= sizeof(uint32_t));
    if (base == MAP_FAILED)
        return -ENOMEM;
    *pool = (struct pool){.base = base, .size = size, .limit = count + 1, .ready = 1, .next = 1};
    return 0;
}

void pool_clear(struct pool *pool)
{
    if (pool->base)
        munmap(pool->base, (size_t)pool->limit * pool->size);
    *pool = (struct pool){.base = NULL};
}

int pool_grow(struct pool *pool, uint32_t count)
{
    uint64_t missing, ready;

    if (pool_available(pool) >= count)
        return 0;
    missing = count - pool_available(pool);
    ready = pool->ready + MAX(missing, (uint64_t)(POOL_STEP_BYTES / pool->size));
    if (ready > pool->limit)
        ready = pool->limit;
    if (ready < pool->ready + missing)
        return -ENOSPC;
    /* Touched here, so that no page fault waits in the event path. */
    memset(pool_at(pool, pool->ready), 0, (size_t)(ready - pool->ready) * pool->size);
    pool->ready = (uint32_t)ready;
    return 0;
}

uint32_t pool_take(struct pool *pool)
{
    uint32_t number = pool->free;

    if (number)
        memcpy(&pool->free, pool_at(pool, number), sizeof(pool->free));
    else if (pool->next < pool->ready)
        number = pool->next++;
    else
        return 0;
    pool->used++;
    return number;
}

void pool_put(struct pool *pool, uint32_t number)
{
    assert(number && number < pool->next);
    memcpy(pool_at(pool, number), &pool->free, sizeof(pool->free));
    pool->free = number;
    pool->used--;
}
