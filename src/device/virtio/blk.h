/* virtio-blk: a disk. See "Block Device" in the specification. */
#ifndef UMBRA_DEVICE_VIRTIO_BLK_H
#define UMBRA_DEVICE_VIRTIO_BLK_H

#include <stdbool.h>
#include <stdint.h>

#include "device/device.h"
#include "device/disk.h"

#define VBLK_MAX_QUEUES 16u
#define VBLK_QUEUE_SIZE 256u
/* Bytes of what GET_ID answers. */
#define VBLK_SERIAL_MAX 20u

struct vblk_config {
    char *path;
    char *serial; /* up to VBLK_SERIAL_MAX bytes, or NULL: "umbraN" */
    bool read_only, direct;
    bool unclaimed; /* vblk_claim locks the image, before the device is resumed for the first time */
    enum disk_aio aio;
    unsigned int queues; /* 1 to VBLK_MAX_QUEUES; 0: 1 */
};

/*
 * Open the image and make the device in that slot of virtio-mmio. 0 or -errno; what is wrong with the image is logged.
 *
 * A write that finds the host's disk full is held back, and device_host.io_error told to stop the machine; resuming it
 * tries again. Other errors go to the guest.
 */
int vblk_create(const struct device_env *env, const struct vblk_config *config, unsigned int index, unsigned int slot,
                struct device **ret);

enum vblk_io_status {
    VBLK_OK,
    VBLK_FAILED,
    VBLK_NOSPACE,
};

/* Since the start. */
struct vblk_counters {
    uint64_t reads, read_bytes, writes, write_bytes, flushes, discards, zeroes, errors;
    uint64_t kicks, interrupts, misuses;
};

struct vblk_info {
    const char *name; /* "disk0" */
    const char *serial;
    struct disk_info disk;
    unsigned int queues;
    unsigned int held_back; /* requests that wait for space */
    enum vblk_io_status status;
    bool needs_reset;
    struct vblk_counters counters;
};

/* What it is and how it is. Any thread, takes the lock. Strings live as long as the device. */
void vblk_info(struct device *dev, struct vblk_info *ret);

/*
 * The image changes hands with the guest: as disk_claim, disk_sync and disk_yield. Quiet only; main thread, take the lock.
 * Requests that are held back wait for whoever has the guest next.
 */
int vblk_claim(struct device *dev, bool same_host);
int vblk_sync(struct device *dev);
void vblk_yield(struct device *dev);
/* As disk_sync_fd. Main thread, takes the lock. */
int vblk_sync_fd(struct device *dev);

/* Bytes that the image takes on the host. */
uint64_t vblk_allocated(struct device *dev);

#endif
