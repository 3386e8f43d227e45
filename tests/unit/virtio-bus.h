/* A driver of virtio-mmio over the bus, as a guest's is: for tests of devices. After virtq-driver.h and device-fixture.h. */
#ifndef UMBRA_TESTS_VIRTIO_BUS_H
#define UMBRA_TESTS_VIRTIO_BUS_H

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>

#include "device-fixture.h"
#include "device/virtio/mmio.h"
#include "virtq-driver.h"

#define VB_READY \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK)

static inline uint32_t vb_read(struct fixture *f, unsigned int reg)
{
    uint32_t v = 0;

    bus_read(f->bus, BUS_MMIO, VIRTIO_MMIO_BASE + reg, &v, sizeof(v));
    return v;
}

static inline void vb_write(struct fixture *f, unsigned int reg, uint32_t v)
{
    bus_write(f->bus, BUS_MMIO, VIRTIO_MMIO_BASE + reg, &v, sizeof(v));
}

static inline uint64_t vb_features(struct fixture *f)
{
    uint64_t v;

    vb_write(f, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    v = (uint64_t)vb_read(f, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
    vb_write(f, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    return v | vb_read(f, VIRTIO_MMIO_DEVICE_FEATURES);
}

/* Reset, and negotiate these features up to FEATURES_OK; true when the device takes them. */
static inline bool vb_negotiate(struct fixture *f, uint64_t features)
{
    vb_write(f, VIRTIO_MMIO_STATUS, 0);
    vb_write(f, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    vb_write(f, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    vb_write(f, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
    vb_write(f, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    vb_write(f, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
    vb_write(f, VIRTIO_MMIO_STATUS, VB_READY & ~VIRTIO_CONFIG_S_DRIVER_OK);
    return vb_read(f, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK;
}

static inline void vb_queue(struct fixture *f, unsigned int index, const struct vdriver *d)
{
    vb_write(f, VIRTIO_MMIO_QUEUE_SEL, index);
    vb_write(f, VIRTIO_MMIO_QUEUE_NUM, d->size);
    vb_write(f, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)d->desc);
    vb_write(f, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(d->desc >> 32));
    vb_write(f, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)d->avail);
    vb_write(f, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(d->avail >> 32));
    vb_write(f, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)d->used);
    vb_write(f, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(d->used >> 32));
    vb_write(f, VIRTIO_MMIO_QUEUE_READY, 1);
}

static inline void vb_driver_ok(struct fixture *f)
{
    vb_write(f, VIRTIO_MMIO_STATUS, VB_READY);
}

static inline void vb_kick(struct fixture *f, unsigned int index)
{
    vb_write(f, VIRTIO_MMIO_QUEUE_NOTIFY, index);
}

static inline bool vb_needs_reset(struct fixture *f)
{
    return vb_read(f, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

#endif
