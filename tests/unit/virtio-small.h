/* What tests of the small virtio devices share: memory, a device on the bus, requests of one or more buffers. */
#ifndef UMBRA_TESTS_VIRTIO_SMALL_H
#define UMBRA_TESTS_VIRTIO_SMALL_H

#include "virtio-bus.h"

#include "base/bitmap.h"
#include "base/log.h"
#include "mmu/pageset.h"

#define SMALL_V1 (UINT64_C(1) << VIRTIO_F_VERSION_1)
#define SMALL_INDIRECT (UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC)
#define SMALL_QUEUES 4
#define SMALL_RING(i) (0x10000u + 0x4000u * (i))
#define SMALL_RING_SIZE 16

struct small {
    struct fixture f;
    struct mem *mem;
    struct device *dev;
    struct vdriver d[SMALL_QUEUES];
    struct page_set dirty;
};

static inline void small_init(struct small *s, uint64_t memory)
{
    const struct mem_config config = {.size = memory};

    memset(s, 0, sizeof(*s));
    fixture_init(&s->f);
    assert_int_equal(mem_new(&config, &s->mem), 0);
    assert_int_equal(page_set_init(&s->dirty, mem_pages(s->mem)), 0);
    mem_track_writes(s->mem, MEM_LISTENER_DIRTY_LOG, true);
    s->f.env.mem = s->mem;
}

static inline void small_fini(struct small *s)
{
    device_destroy(s->dev);
    page_set_free(&s->dirty);
    mem_free(s->mem);
    fixture_fini(&s->f);
}

/* As a driver does that means well. */
static inline void small_start(struct small *s, unsigned int queues, uint64_t features)
{
    device_resume(s->dev);
    assert_true(vb_negotiate(&s->f, SMALL_V1 | SMALL_INDIRECT | features));
    for (unsigned int i = 0; i < queues; i++) {
        s->d[i] = vd_new(s->mem, SMALL_RING(i), SMALL_RING_SIZE);
        vb_queue(&s->f, i, &s->d[i]);
    }
    vb_driver_ok(&s->f);
}

/* Offer one buffer as descriptor `head`, and kick. */
static inline void small_offer(struct small *s, unsigned int queue, uint16_t head, uint64_t gpa, uint32_t len, uint16_t flags)
{
    vd_desc(&s->d[queue], head, gpa, len, flags, 0);
    vd_offer(&s->d[queue], head);
    vb_kick(&s->f, queue);
}

static inline struct vring_used_elem small_last(const struct small *s, unsigned int queue)
{
    return vd_used_elem(&s->d[queue], (uint16_t)(vd_used_idx(&s->d[queue]) - 1));
}

static inline bool small_is_dirty(struct small *s, uint64_t gpa)
{
    pfn_t pfn;

    mem_collect_writes(s->mem, MEM_LISTENER_DIRTY_LOG, &s->dirty);
    assert_true(mem_gfn_to_pfn(s->mem, gpa_to_gfn(gpa), &pfn));
    return bitmap_test(s->dirty.map, pfn);
}

static inline void small_forget_dirty(struct small *s)
{
    mem_collect_writes(s->mem, MEM_LISTENER_DIRTY_LOG, &s->dirty);
    page_set_clear(&s->dirty);
}

#endif
