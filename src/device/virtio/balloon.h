/*
 * virtio-balloon ("Traditional Memory Balloon Device" in the specification): the guest lends memory to the host. It inflates its
 * balloon up to the size it is asked for, and it may report pages that are free anyway. Both are given back to the host at
 * once (mem_give_back).
 */
#ifndef UMBRA_DEVICE_VIRTIO_BALLOON_H
#define UMBRA_DEVICE_VIRTIO_BALLOON_H

#include <linux/virtio_balloon.h>
#include <stdint.h>

#include "device/device.h"

/* Frame numbers of a request, at most. */
#define VBALLOON_PFNS_MAX 16384u
#define VBALLOON_INTERVAL_MAX 3600u /* seconds */

struct vballoon_config {
    bool on;
    bool reporting;      /* offer that the guest reports free pages */
    bool deflate_on_oom; /* offer that it takes pages out of the balloon by itself before it runs out of memory */
};

struct vballoon_counters {
    uint64_t inflated, deflated;   /* pages the driver put in and took out */
    uint64_t reported_bytes;       /* free ones that it reported */
    uint64_t given_back_bytes;     /* of all of them, what went to the host */
    uint64_t ignored;              /* frame numbers that are not RAM */
    uint64_t failures;             /* of the host */
    uint64_t misuses;
};

struct vballoon_info {
    uint64_t memory;  /* bytes that the guest has outside of the balloon, as its driver says */
    uint64_t target;  /* what it was asked for */
    bool driver;      /* there is one */
    bool reporting;   /* it reports free pages */
    bool needs_reset;
    unsigned int interval;      /* seconds between two looks at the statistics; 0: none */
    uint64_t stats_time;        /* seconds since 1970; 0: there are none */
    uint64_t stats_present;     /* bit i: stats[i] is there */
    uint64_t stats[VIRTIO_BALLOON_S_NR];
    struct vballoon_counters counters;
};

/* 0 or -errno. */
int vballoon_create(const struct device_env *env, const struct vballoon_config *config, unsigned int slot,
                    struct device **ret);

/* Ask the guest to keep `bytes` of its memory (more than it has: all). The rest is up to it. Main thread. */
void vballoon_set_memory(struct device *dev, uint64_t bytes);
/* Ask for its statistics every so many seconds, up to VBALLOON_INTERVAL_MAX; 0: not at all. Main thread. */
void vballoon_set_interval(struct device *dev, unsigned int seconds);

/* Any thread. */
void vballoon_info(struct device *dev, struct vballoon_info *ret);
/* The name of a statistic, as QEMU's guest-stats has it: "stat-free-memory". index < VIRTIO_BALLOON_S_NR. */
const char *vballoon_stat_name(unsigned int index);

#endif
