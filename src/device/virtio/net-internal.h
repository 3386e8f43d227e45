/* What net.c (the device: configuration, control, state) and net-queues.c (the way of a frame) share. */
#ifndef UMBRA_DEVICE_VIRTIO_NET_INTERNAL_H
#define UMBRA_DEVICE_VIRTIO_NET_INTERNAL_H

#include "device/virtio/net.h"
#include "device/virtio/virtio.h"

#define VNET_NAME_MAX 16
/* Buffers that may stand ready for frames of a pair; readv takes so many, with one for what finds no room. */
#define VNET_STAGE_IOV 1023u

/*
 * A pair of queues. Chains for frames that come in are taken ahead of them and kept from frame to frame, so that a frame is
 * read straight into guest memory: `stage`, in the order in which they were taken.
 */
struct vnet_pair {
    struct vnet *n;
    unsigned int index;
    struct io_source source;
    uint32_t events; /* that are watched for */
    bool starved;    /* there are no buffers: the driver's kick goes on */
    bool tx_blocked; /* the backend takes nothing: EPOLLOUT goes on */

    struct virtq_chain stage[VNET_QUEUE_SIZE];
    struct iovec iov[VNET_STAGE_IOV + 1]; /* theirs: those of stage[stage_first] begin at iov[iov_first] */
    unsigned int stage_first, stage_end;
    unsigned int iov_first, iov_end;
    uint64_t stage_bytes;
    uint32_t want; /* bytes that should be ready: the longest frame there may be */

    /* A frame that found too few buffers: `frame` bytes of which the last `rest` are in bounce, from rest_at on. */
    uint32_t frame, rest, rest_at;
    uint8_t *bounce; /* NET_FRAME_MAX bytes */
};

struct vnet {
    struct virtio_dev v;
    char name[VNET_NAME_MAX];
    struct net_backend *backend;
    struct vnet_pair *pairs;
    unsigned int used_pairs; /* as the driver wants it */
    bool link_wanted;
    bool lost;     /* the backend is gone */
    bool announce; /* at the next start: the guest is in another place */
    unsigned int mtu;
    struct vnet_counters counters;
    struct iovec iov[VNET_QUEUE_SIZE]; /* of the chain at hand, control and transmit */
};

static inline struct virtq *vnet_rx_queue(const struct vnet_pair *p)
{
    return &p->n->v.queues[2 * p->index];
}

static inline struct virtq *vnet_tx_queue(const struct vnet_pair *p)
{
    return &p->n->v.queues[2 * p->index + 1];
}

/* -- net-queues.c, all with the lock -- */

/* The driver kicked, or frames may be there. */
void vnet_receive(struct vnet_pair *p);
void vnet_transmit(struct vnet_pair *p);
/* The device becomes live, and ends to be: nothing of the pair's is taken then. */
void vnet_pair_start(struct vnet_pair *p);
void vnet_pair_stop(struct vnet_pair *p);
/* Watch for what the pair waits for, and for nothing else. */
void vnet_pair_watch(struct vnet_pair *p);
/* io_source's callback; takes the lock. */
void vnet_pair_ready(void *opaque, uint32_t events);

/* -- net.c -- */

/* The backend ended. On the I/O thread, with the lock. */
void vnet_lose_backend(struct vnet *n);

static inline bool vnet_link_up(const struct vnet *n)
{
    return n->link_wanted && !n->lost;
}

#endif
