/* The driver's side of a split virtqueue in guest memory, for tests that drive or mislead a device. */
#ifndef UMBRA_TESTS_VIRTQ_DRIVER_H
#define UMBRA_TESTS_VIRTQ_DRIVER_H

#include <linux/virtio_ring.h>
#include <stdint.h>
#include <stdlib.h>

#include "mmu/mem.h"

struct vdriver {
    struct mem *mem;
    uint64_t desc, avail, used;
    uint16_t size;
    uint16_t avail_idx; /* as it stands in memory */
};

/* A queue of `size` entries whose areas begin at `base`; its rings are zeroed. The pages after it are free: vd_end. */
static inline struct vdriver vd_new(struct mem *mem, uint64_t base, uint16_t size)
{
    struct vdriver d = {.mem = mem, .desc = base, .size = size};

    d.avail = base + 16u * size;
    d.used = (d.avail + 6u + 2u * size + 3u) & ~UINT64_C(3);
    if (mem_set(mem, base, 0, (size_t)(d.used - base) + 6u + 8u * size) < 0)
        abort();
    return d;
}

static inline uint64_t vd_end(const struct vdriver *d)
{
    return (d->used + 6u + 8u * d->size + 4095u) & ~UINT64_C(4095);
}

static inline void vd_put16(struct vdriver *d, uint64_t gpa, uint16_t v)
{
    if (mem_write(d->mem, gpa, &v, sizeof(v)) < 0)
        abort();
}

static inline uint16_t vd_get16(const struct vdriver *d, uint64_t gpa)
{
    uint16_t v = 0;

    if (mem_read(d->mem, gpa, &v, sizeof(v)) < 0)
        abort();
    return v;
}

/* Descriptor i of the table at `table` (d->desc, or an indirect one). */
static inline void vd_desc_at(struct vdriver *d, uint64_t table, unsigned int i, uint64_t addr, uint32_t len, uint16_t flags,
                              uint16_t next)
{
    struct vring_desc desc = {.addr = addr, .len = len, .flags = flags, .next = next};

    if (mem_write(d->mem, table + 16u * i, &desc, sizeof(desc)) < 0)
        abort();
}

static inline void vd_desc(struct vdriver *d, unsigned int i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    vd_desc_at(d, d->desc, i, addr, len, flags, next);
}

static inline void vd_set_avail_idx(struct vdriver *d, uint16_t idx)
{
    d->avail_idx = idx;
    vd_put16(d, d->avail + 2, idx);
}

/* Put a head into the available ring, and show it. */
static inline void vd_offer(struct vdriver *d, uint16_t head)
{
    vd_put16(d, d->avail + 4 + 2u * (d->avail_idx % d->size), head);
    vd_set_avail_idx(d, (uint16_t)(d->avail_idx + 1));
}

static inline uint16_t vd_used_idx(const struct vdriver *d)
{
    return vd_get16(d, d->used + 2);
}

static inline struct vring_used_elem vd_used_elem(const struct vdriver *d, uint16_t i)
{
    struct vring_used_elem e;

    if (mem_read(d->mem, d->used + 4 + 8u * (i % d->size), &e, sizeof(e)) < 0)
        abort();
    return e;
}

static inline void vd_set_used_event(struct vdriver *d, uint16_t v)
{
    vd_put16(d, d->avail + 4 + 2u * d->size, v);
}

static inline uint16_t vd_avail_event(const struct vdriver *d)
{
    return vd_get16(d, d->used + 4 + 8u * d->size);
}

#endif
