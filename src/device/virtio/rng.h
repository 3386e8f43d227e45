/* virtio-rng: random numbers of the host's for the guest ("Entropy Device" in the specification). */
#ifndef UMBRA_DEVICE_VIRTIO_RNG_H
#define UMBRA_DEVICE_VIRTIO_RNG_H

#include <stdint.h>

#include "device/device.h"

/* The least and the most of vrng_config.rate, and the most a request gets, in bytes. */
#define VRNG_RATE_MIN 64u
#define VRNG_RATE_MAX (UINT64_C(1) << 40)
#define VRNG_REQUEST_MAX 65536u

struct vrng_config {
    bool on;
    uint64_t rate; /* bytes a second; 0: no limit */
};

struct vrng_counters {
    uint64_t bytes;
    uint64_t waits; /* how often the guest had to wait because of the rate */
};

/*
 * Make one and put it on the bus. 0 or -errno. A guest within its rate costs no timer, and one beyond it one wake-up of the
 * main loop every 100 ms.
 */
int vrng_create(const struct device_env *env, const struct vrng_config *config, unsigned int slot, struct device **ret);

/* Any thread. */
void vrng_counters(struct device *dev, struct vrng_counters *ret);

#endif
