/*
 * The core of all virtio devices: features, status, queues, configuration space, state. A device is a struct that
 * begins with struct virtio_dev, one static const struct virtio_ops and one struct device_ops made by VIRTIO_DEVICE_OPS; the
 * transport (mmio.h) brings the driver's register accesses here.
 *
 * Threads and the lock. Everything of a device is protected by its lock (struct device): register accesses take it on vCPU
 * threads, kicks and completions on the I/O thread, quiesce and the like on the main thread. Every function here and
 * every callback but detach is called with the lock held, unless it says otherwise.
 *
 * Life: create -> quiet -> resume -> (driver: DRIVER_OK -> start -> run... -> reset -> stop, reset) -> quiesce -> destroy.
 */
#ifndef UMBRA_DEVICE_VIRTIO_VIRTIO_H
#define UMBRA_DEVICE_VIRTIO_VIRTIO_H

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>

#include "device/device.h"
#include "device/io-thread.h"
#include "device/virtio/queue.h"

#define VIRTIO_CONFIG_MAX 256u
#define VIRTIO_MAX_QUEUES 64u
#define VIRTIO_NAME_MAX 16

/* Bits of the interrupt status. */
#define VIRTIO_ISR_QUEUE 1u
#define VIRTIO_ISR_CONFIG 2u

struct virtio_dev;

struct virtio_ops {
    uint32_t id; /* VIRTIO_ID_* */
    /*
     * The driver kicked q, or the device goes on after a pause: take what is there (virtq_pop, virtq_push, and one virtq_flush
     * at the end). Only while the device is live.
     */
    void (*run)(struct virtio_dev *v, struct virtq *q);
    /* The device becomes live: the driver is ready and the VM runs. run follows for every queue. May be NULL. */
    void (*start)(struct virtio_dev *v);
    /*
     * The device is live no more. When it returns nothing is under way that touches guest memory or a queue: it has ended and was
     * pushed, or is held back (its chains stay taken, and restore_chain gets them after a migration). NULL for a device
     * that finishes everything in run.
     */
    void (*stop)(struct virtio_dev *v);
    /* Drop what is held back of q, whose chains the driver takes away. NULL for a device that holds nothing back. */
    void (*drop)(struct virtio_dev *v, struct virtq *q);
    /* The driver reset the device, the queues are gone. May be NULL. */
    void (*reset)(struct virtio_dev *v);
    /* The driver wrote `size` (1, 2, 4) bytes at `offset` of the configuration space, which is read-only where this is NULL. */
    void (*config_write)(struct virtio_dev *v, unsigned int offset, unsigned int size, uint64_t value);
    /* State of the device's own, as in struct device_ops; restore comes before the queues are there. May be NULL. */
    void (*save)(struct virtio_dev *v, struct state_writer *w);
    int (*restore)(struct virtio_dev *v, struct state_reader *r, const struct state_section *s);
    /* What is the device's own of the comparison in struct device_ops. May be NULL. */
    void (*compare)(struct virtio_dev *v, const struct device_comparison *c);
    /* After a restore, for each chain that was held back: virtq_retake it, or it is lost. May be NULL. */
    void (*restore_chain)(struct virtio_dev *v, struct virtq *q, uint16_t head);
    /* Without the lock: remove the device's own sources from the I/O thread. May be NULL. */
    void (*detach)(struct virtio_dev *v);
    void (*destroy)(struct virtio_dev *v);
};

/* What the transport does for the core. */
struct virtio_transport {
    /* An interrupt, v->regs.isr says what for. */
    void (*interrupt)(struct virtio_dev *v);
    /* Registers or configuration space have changed. */
    void (*update)(struct virtio_dev *v);
    void (*detach)(struct virtio_dev *v);
    void (*destroy)(struct virtio_dev *v);
};

/* What the driver sees and sets beside the queues. */
struct virtio_regs {
    uint64_t driver_features;
    uint32_t device_features_sel, driver_features_sel, queue_sel;
    uint32_t config_generation;
    uint8_t status, isr;
};

struct virtio_kick {
    struct io_source source;
    struct virtio_dev *device;
    struct virtq *queue;
};

/* Counted from the start of umbrad; read by anybody (relaxed). */
struct virtio_counters {
    uint64_t kicks, interrupts, misuses;
};

struct virtio_dev {
    struct device dev;
    const struct virtio_ops *ops;
    struct device_env env;
    char name[VIRTIO_NAME_MAX]; /* in messages: "vblk0" */
    uint64_t offered;           /* features */
    struct virtio_regs regs;
    uint8_t config[VIRTIO_CONFIG_MAX];
    unsigned int config_len;
    unsigned int queue_count;
    struct virtq *queues;
    struct virtio_kick *kicks; /* one a queue */
    bool quiet;                /* quiesced, not resumed */
    bool live;                 /* between start and stop */
    bool restored;             /* and not resumed since */
    const struct virtio_transport *transport;
    void *transport_data;
    struct virtio_counters counters;
};

/*
 * Make v (zeroed, first in the device's struct): device_ops from VIRTIO_DEVICE_OPS, `queue_size` entries at most in each of the
 * queues. `features` are those of the device; the ring's are added. 0, or -errno with everything released but v itself.
 * After it device_destroy is the way to free it. The caller attaches the transport next.
 */
int virtio_init(struct virtio_dev *v, const struct device_ops *device_ops, const struct virtio_ops *ops, uint32_t instance,
                const struct device_env *env, const char *name, uint64_t features, unsigned int queue_count,
                uint16_t queue_size);

static inline bool virtio_has(const struct virtio_dev *v, unsigned int feature)
{
    return v->regs.driver_features >> feature & 1;
}

/* Change the configuration space; the driver is told when it is ready. */
void virtio_config_set(struct virtio_dev *v, unsigned int offset, const void *data, unsigned int len);

/* The same for what the driver wrote itself (config_write), or what nobody needs to be told of. */
void virtio_config_written(struct virtio_dev *v, unsigned int offset, const void *data, unsigned int len);

/*
 * The driver broke a rule that is not the queue's (which finds out by itself): the device needs a reset. Logged, at a
 * limited rate.
 */
void virtio_misuse(struct virtio_dev *v, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Call ops->run for q soon, on the I/O thread. Any thread, with or without the lock. */
void virtio_kick_queue(struct virtio_dev *v, struct virtq *q);

/* True while ops->run may be called for q: to be asked by completions that come in from elsewhere. */
bool virtio_queue_live(const struct virtio_dev *v, const struct virtq *q);

/* -- for the transport -- */

uint64_t virtio_offered(const struct virtio_dev *v);
/* The driver writes the status, or one half of the features (by driver_features_sel). */
void virtio_write_status(struct virtio_dev *v, uint8_t status);
void virtio_write_features(struct virtio_dev *v, uint32_t value);
void virtio_write_queue_ready(struct virtio_dev *v, struct virtq *q, bool ready);
void virtio_write_config(struct virtio_dev *v, unsigned int offset, unsigned int size, uint64_t value);
/* The queue that queue_sel names, or NULL. */
struct virtq *virtio_selected(const struct virtio_dev *v);
/* Kicks that KVM does not deliver by itself. */
void virtio_kicked(struct virtio_dev *v, uint32_t index);

/* -- struct device_ops of every virtio device -- */

void virtio_device_reset(struct device *dev);
void virtio_device_save(struct device *dev, struct state_writer *w);
int virtio_device_restore(struct device *dev, struct state_reader *r, const struct state_section *s);
void virtio_device_compare(struct device *dev, const struct device_comparison *c);
void virtio_device_quiesce(struct device *dev);
void virtio_device_resume(struct device *dev);
void virtio_device_detach(struct device *dev);
void virtio_device_destroy(struct device *dev);

#define VIRTIO_DEVICE_OPS(name_, version_)                                                                      \
    {                                                                                                           \
        .name = name_, .state_version = version_, .reset = virtio_device_reset, .save = virtio_device_save,     \
        .restore = virtio_device_restore, .compare = virtio_device_compare, .quiesce = virtio_device_quiesce,   \
        .resume = virtio_device_resume, .detach = virtio_device_detach, .destroy = virtio_device_destroy        \
    }

#endif
