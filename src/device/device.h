/*
 * The device model: a device is a set of static callbacks in one ops table; the machine's device table (src/daemon)
 * creates, resets, saves, restores and destroys all of them, unwinding in reverse.
 *
 * Threads: bus callbacks run on vCPU threads under the device's own lock (given to bus_add); create, reset, save,
 * restore and destroy run on the main thread, the last four with the vCPUs parked. A device's lock is a leaf but for the irq sink.
 */
#ifndef UMBRA_DEVICE_DEVICE_H
#define UMBRA_DEVICE_DEVICE_H

#include <event2/event.h>
#include <pthread.h>
#include <stdint.h>

#include "base/state.h"
#include "mmu/mem.h"
#include "vcpu/bus.h"
#include "vcpu/irq.h"

/* What a device asks of the machine; given from above. Any thread, never blocks, may be called under a device lock. */
struct device_host {
    void (*request_reset)(void *opaque);
    void (*request_poweroff)(void *opaque);
    /* The test device: end with this exit status. */
    void (*request_exit)(void *opaque, int status);
    void *opaque;
};

/* Where a device is put together. */
struct device_env {
    struct mem *mem;
    struct bus *bus;
    const struct irq_sink *irq;
    struct event_base *events; /* main loop, for backends; NULL in tests without one */
    const struct device_host *host;
};

struct device;

struct device_ops {
    const char *name; /* also its section name in a machine state */
    uint32_t state_version;
    void (*reset)(struct device *dev);
    /* Put (get) the fields of its open section. NULL for a device without state. */
    void (*save)(struct device *dev, struct state_writer *w);
    int (*restore)(struct device *dev, struct state_reader *r, const struct state_section *s);
    void (*destroy)(struct device *dev);
};

/* First member of every device. */
struct device {
    const struct device_ops *ops;
    uint32_t instance;
    pthread_mutex_t lock;
};

void device_init(struct device *dev, const struct device_ops *ops, uint32_t instance);

/* Call the callback under the device's lock (destroy: without it). Each takes a device; device_destroy takes NULL too. */
void device_reset(struct device *dev);
void device_save(struct device *dev, struct state_writer *w);
int device_restore(struct device *dev, struct state_reader *r);
void device_destroy(struct device *dev);

#endif
