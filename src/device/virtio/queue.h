/*
 * Split virtqueues, as the "Virtual I/O Device (VIRTIO) Version 1.2" describes them in "Split Virtqueues".
 *
 * The driver is hostile. Every descriptor is copied once, then checked, then used; a chain is bounded in descriptors and
 * bytes; every address must be RAM. What breaks a rule stops the queue: the owner's misuse() is told why, and nothing comes
 * out of the queue until it is set up anew.
 *
 * A device takes chains (virtq_pop), gives them back (virtq_push) and makes what it gave back visible, with an interrupt
 * where the driver wants one (virtq_flush): several chains a flush cost one index and one interrupt. All that is
 * written to guest memory is marked dirty once the bytes are there.
 *
 * Not thread safe: the caller holds the device's lock.
 */
#ifndef UMBRA_DEVICE_VIRTIO_QUEUE_H
#define UMBRA_DEVICE_VIRTIO_QUEUE_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/bitmap.h"
#include "base/state.h"
#include "mmu/mem.h"

/* Entries of a queue; a device says how many it takes at most. */
#define VIRTQ_MAX_SIZE 1024u
/* Descriptors of a chain. A driver may have more of them in an indirect table than the queue has entries. */
#define VIRTQ_CHAIN_MAX 1024u

struct virtq;

/* Who owns the queue; called under the device's lock. */
struct virtq_owner {
    /* Used buffers became visible and the driver wants to know. */
    void (*notify)(struct virtq *q);
    /* The driver broke a rule; `why` names the value and the limit. */
    void (*misuse)(struct virtq *q, const char *why);
};

/* What the driver sets, and what goes on: saved and restored by name. */
struct virtq_state {
    uint16_t size;
    bool ready;
    uint64_t desc, avail, used; /* guest physical */
    uint16_t next_avail;        /* the next entry of the available ring to look at */
    uint16_t next_used;
};

struct virtq {
    struct mem *mem;
    const struct virtq_owner *owner;
    void *opaque;   /* the owner's */
    uint16_t index; /* of the queue in its device */
    uint16_t max_size;
    bool event_idx, indirect; /* negotiated */
    struct virtq_state s;

    /* Private from here on; the pointers are valid while s.ready. */
    const struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint16_t seen_avail;    /* the driver's index as it was read last */
    uint16_t flushed_used;  /* the index that the driver sees */
    uint16_t signalled;     /* the index at the last interrupt */
    bool signalled_valid;   /* else the next flush interrupts */
    bool broken;            /* the driver broke a rule: nothing comes out any more */
    bool kicks_off;         /* without the event index: VRING_USED_F_NO_NOTIFY is set */
    bool kicks_known;       /* else the flag may be either, as who had the queue before left it */
    unsigned int in_flight;
    uint64_t taken[VIRTQ_MAX_SIZE / BITMAP_WORD_BITS]; /* heads that the device has */
};

/*
 * One request. The caller provides `iov` and its capacity; the rest is filled in. What the device reads comes first:
 * iov[0, readable), then what it writes: iov[readable, readable + writable).
 */
struct virtq_chain {
    uint16_t head;
    uint16_t readable, writable;
    uint16_t capacity;
    uint32_t readable_bytes, writable_bytes;
    struct iovec *iov;
};

/* All but mem, owner, opaque, index and max_size is as after virtq_stop. max_size: a power of two up to VIRTQ_MAX_SIZE. */
void virtq_init(struct virtq *q, struct mem *mem, const struct virtq_owner *owner, void *opaque, uint16_t index,
                uint16_t max_size);
/* Forget what the driver set; the device has let go of all chains. */
void virtq_reset(struct virtq *q);

/*
 * The driver (or a restored state) says that s is complete: check it and start. -EINVAL with the reason in why
 * (VIRTQ_WHY_MAX bytes); the queue is not ready then. event_idx and indirect are set before.
 */
#define VIRTQ_WHY_MAX 128
int virtq_start(struct virtq *q, char *why);

/* Take the next chain. False when there is none (the driver is asked for kicks again), or when it is malformed. */
bool virtq_pop(struct virtq *q, struct virtq_chain *c);
/* The last popped chain stays the driver's, to be popped again later; nothing of it was used. */
void virtq_unpop(struct virtq *q, const struct virtq_chain *c);
/* True when virtq_pop has something to look at. False: the driver will kick. */
bool virtq_has_chain(struct virtq *q);
/* After a restore: the chain that the device had taken already. False when it is malformed (misuse was told). */
bool virtq_retake(struct virtq *q, uint16_t head, struct virtq_chain *c);

/* Give a chain back, `written` bytes of its writable part were written. The driver sees it with the next flush. */
void virtq_push(struct virtq *q, uint16_t head, uint32_t written);
void virtq_flush(struct virtq *q);

/*
 * Copy out of the readable (into the writable) part, from byte `offset` of it on. The number of bytes copied, less
 * than len only where the part ends.
 */
size_t virtq_chain_read(const struct virtq_chain *c, size_t offset, void *buf, size_t len);
size_t virtq_chain_write(struct virtq *q, const struct virtq_chain *c, size_t offset, const void *buf, size_t len);
/* The first `bytes` of the writable part were written through the iovecs: mark them dirty. */
void virtq_chain_written(struct virtq *q, const struct virtq_chain *c, size_t bytes);

/* The open section gets (gives) what a restored queue needs, under names that begin with "qN-". */
void virtq_save(const struct virtq *q, struct state_writer *w);
/*
 * Take s and the heads that the device had. 0 or -EBADMSG; checks what needs no memory, the rest virtq_start does. Not
 * started yet.
 */
int virtq_restore(struct virtq *q, struct state_reader *r, const struct state_section *section);

#endif
