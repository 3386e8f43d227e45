/*
 * virtio-mmio, version 2 of its registers ("Virtio Over MMIO" in the specification). A guest finds the devices through the
 * DSDT (HID "LNRO0005"), each with a page of registers and an edge-triggered interrupt line of its own.
 *
 * Reading a register has no side effect, so a page of read-only guest memory serves all reads without an exit where KVM has
 * such memory (vm_register_pages). Of the writes, QueueNotify is an ioeventfd, and so is InterruptACK of used buffers,
 * whose eventfd nobody reads: the line is edge-triggered, so nothing waits for the acknowledgement, and bit 0 of
 * InterruptStatus stays set once a buffer was used, until a reset or an acknowledgement of a configuration change. A
 * driver that sees the bit once too often finds its used rings unchanged.
 */
#ifndef UMBRA_DEVICE_VIRTIO_MMIO_H
#define UMBRA_DEVICE_VIRTIO_MMIO_H

#include <stdint.h>

#include "device/virtio/virtio.h"

#define VIRTIO_MMIO_BASE 0xd0000000u
#define VIRTIO_MMIO_SIZE 0x1000u
#define VIRTIO_MMIO_SLOTS 16
#define VIRTIO_MMIO_HID "LNRO0005"

/* Address and interrupt line of a slot below VIRTIO_MMIO_SLOTS. */
uint32_t virtio_mmio_base(unsigned int slot);
unsigned int virtio_mmio_gsi(unsigned int slot);

/*
 * Put v on the bus in that slot, which it has to itself. 0, or -errno with nothing left behind. Without the lock, before
 * the guest runs; v->config and config_len are set before.
 */
int virtio_mmio_attach(struct virtio_dev *v, unsigned int slot);

#endif
