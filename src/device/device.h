/*
 * The device model: a device is a set of static callbacks in one ops table; the machine's device table (src/daemon)
 * creates, resets, saves, restores and destroys all of them, unwinding in reverse.
 *
 * Threads: bus callbacks run on vCPU threads under the device's own lock (given to bus_add); create, reset, save,
 * restore and destroy run on the main thread, the last four with the vCPUs parked. Under a device's lock only these are
 * called: the irq sink, struct device_host, and the serial's chardev (whose lock comes after the serial's).
 */
#ifndef UMBRA_DEVICE_DEVICE_H
#define UMBRA_DEVICE_DEVICE_H

#include <event2/event.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/state.h"
#include "mmu/mem.h"
#include "vcpu/bus.h"
#include "vcpu/irq.h"

/* A request of the guest's that the host could not carry out. Strings live as long as the device. */
struct device_io_error {
    const char *device;    /* "disk0" */
    const char *operation; /* "read" or "write" */
    int error;             /* errno */
    bool no_space;
    bool stop; /* the request is held back until the device is resumed: the machine is to stop */
};

/* What a device asks of the machine; given from above. Any thread, never blocks, may be called under a device lock. */
struct device_host {
    void (*request_reset)(void *opaque);
    void (*request_poweroff)(void *opaque);
    /* The test device: end with this exit status. */
    void (*request_exit)(void *opaque, int status);
    /* NULL: nobody wants to know. */
    void (*io_error)(void *opaque, const struct device_io_error *error);
    /* The guest's balloon has another size. NULL: nobody wants to know. */
    void (*balloon_changed)(void *opaque);
    void *opaque;
};

/* Where devices read the time. Both in nanoseconds, any thread; realtime is UTC since 1970. */
struct device_clock {
    uint64_t (*monotonic_ns)(void *opaque);
    int64_t (*realtime_ns)(void *opaque);
    void *opaque;
};

struct device;
struct io_thread;
struct vm;

/* Where a device is put together. A device copies it; what it points to must outlive the device. */
struct device_env {
    struct mem *mem;
    struct bus *bus;
    const struct irq_sink *irq;
    struct event_base *events; /* main loop; NULL in tests without one: no interrupts of timers then */
    const struct device_host *host;
    const struct device_clock *clock; /* NULL: the host's clocks; with one of a test, timers never fire */
    struct io_thread *io; /* NULL in tests without one: what it would do is done at once, by the caller */
    struct vm *vm;        /* for ioeventfd, irqfd and register pages; NULL in tests: bus and irq serve then */
};

/* A device and its section in a state that somebody wants to load here. */
struct device_comparison {
    struct state_reader *r;
    const struct state_section *s;
    void (*report)(void *opaque, const char *text);
    void *opaque;
};

struct device_ops {
    const char *name; /* also its section name in a machine state */
    uint32_t state_version;
    void (*reset)(struct device *dev);
    /*
     * Put (get) the fields of its open section. NULL for a device without state. restore takes everything, checks every
     * value and that nothing is left over (state_check_all_read) before it changes the device.
     */
    void (*save)(struct device *dev, struct state_writer *w);
    int (*restore)(struct device *dev, struct state_reader *r, const struct state_section *s);
    /*
     * Tell (device_differs) what this device and the one whose state it is do not have alike, such as the size of a disk, so that
     * restore would refuse it. What changes while the guest runs is no such thing. NULL where all are alike.
     */
    void (*compare)(struct device *dev, const struct device_comparison *c);
    /* After a restore: so much time has gone by since the save. NULL for a device that counts none of its own. */
    void (*advance)(struct device *dev, uint64_t ns);
    /*
     * Quiesce: after it no thread does anything for the device, and nothing of it touches guest memory, until resume.
     * Requests that were under way have ended, or are held back and part of the state. NULL for a device that acts only
     * in bus callbacks and on the main thread.
     */
    void (*quiesce)(struct device *dev);
    void (*resume)(struct device *dev);
    /* The only one that is called without the lock: other threads let go of the device. NULL: there are none. */
    void (*detach)(struct device *dev);
    /* Take the device off the bus and free it. */
    void (*destroy)(struct device *dev);
};

/* First member of every device. */
struct device {
    const struct device_ops *ops;
    uint32_t instance;
    pthread_mutex_t lock;
};

void device_init(struct device *dev, const struct device_ops *ops, uint32_t instance);

/* Both idempotent; a device begins quiet. With the vCPUs parked. */
void device_quiesce(struct device *dev);
void device_resume(struct device *dev);

/* Power-on state, its interrupt line low. */
void device_reset(struct device *dev);
/* Write the device's section. Also for a paused device only: timers are not stopped. */
void device_save(struct device *dev, struct state_writer *w);
/* 0; -ENOENT, -EBADMSG (r->error says what), and then the device is as it was. Sets its interrupt line anew. */
int device_restore(struct device *dev, struct state_reader *r);
/*
 * Whether a state could be restored here, as far as it can be known while its guest still runs elsewhere: `report` gets a line
 * for each difference. Nothing is told where it has no section of the device's.
 */
void device_compare(struct device *dev, struct state_reader *r, void (*report)(void *opaque, const char *text), void *opaque);
/* For ops->compare: a line about the device; and a number of its section, false when that is not well formed (and told). */
void device_differs(const struct device_comparison *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
bool device_compared_u64(const struct device_comparison *c, const char *field, uint64_t *ret);
/* After device_restore. */
void device_advance(struct device *dev, uint64_t ns);
/* NULL is fine. */
void device_destroy(struct device *dev);

#endif
