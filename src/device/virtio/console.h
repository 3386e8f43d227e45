/*
 * virtio-console ("Console Device" in the specification) with one port: a console that moves bytes in buffers, beside the serial
 * port that exits for each. Linux calls it hvc0.
 */
#ifndef UMBRA_DEVICE_VIRTIO_CONSOLE_H
#define UMBRA_DEVICE_VIRTIO_CONSOLE_H

#include "device/chardev.h"
#include "device/device.h"

struct vconsole_counters {
    uint64_t in_bytes, out_bytes;
    uint64_t waits; /* how often output had to wait until somebody took it */
};

/* `chardev` must outlive it; its handler is the device's from here on. 0 or -errno. */
int vconsole_create(const struct device_env *env, struct chardev *chardev, unsigned int slot, struct device **ret);

/* Any thread. */
void vconsole_counters(struct device *dev, struct vconsole_counters *ret);

#endif
