/*
 * The way of a frame between backend and guest memory: one readv or writev each, into and out of the guest's buffers.
 *
 * Coming in: the length of a frame is known only when it was read. So chains are taken ahead, as many as the longest frame
 * needs, and stay taken from one frame to the next; a bounce buffer stands behind them for a frame that is longer than what
 * the driver has put up. Where the driver merges buffers, the rest is copied as soon as there are more; else the frame is dropped.
 * When the device stops, chains that hold no frame go back to the ring untouched.
 *
 * A turn ends after some frames: the I/O thread has other devices. What is left comes with the next turn, since poll says again
 * what it said before.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <linux/virtio_net.h>
#include <stddef.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "device/virtio/net-internal.h"

/* Frames of a turn, and after how many the other side may see them. */
#define TURN 64
#define FLUSH_EVERY 16
/* The longest frame without segmentation on the other side; what has been longer is remembered. */
#define WANT_PLAIN (NET_HEADER + 14u + 4u + 1500u)

static_assert(sizeof(struct virtio_net_hdr_v1) == NET_HEADER, "as the specification has it");
static_assert(VNET_STAGE_IOV + 1 <= 1024, "readv takes no more");
static_assert(VNET_STAGE_IOV >= 2 * VNET_QUEUE_SIZE - 1, "a chain fits behind another");

static bool merges(const struct vnet *n)
{
    return virtio_has(&n->v, VIRTIO_NET_F_MRG_RXBUF);
}

/* -- the stage ---------------------------------------------------------------- */

static unsigned int buffers(const struct virtq_chain *c)
{
    return (unsigned int)c->readable + c->writable;
}

/* Move what is staged to the front. */
static void compact(struct vnet_pair *p)
{
    unsigned int chains = p->stage_end - p->stage_first, iovs = p->iov_end - p->iov_first;

    memmove(p->iov, p->iov + p->iov_first, iovs * sizeof(p->iov[0]));
    memmove(p->stage, p->stage + p->stage_first, chains * sizeof(p->stage[0]));
    for (unsigned int i = 0; i < chains; i++)
        p->stage[i].iov -= p->iov_first;
    p->stage_first = p->iov_first = 0;
    p->stage_end = chains;
    p->iov_end = iovs;
}

/* Whether the longest chain finds room. */
static bool has_room(struct vnet_pair *p)
{
    if (p->stage_end == VNET_QUEUE_SIZE || p->iov_end > VNET_STAGE_IOV - VNET_QUEUE_SIZE)
        compact(p);
    return p->stage_end < VNET_QUEUE_SIZE && p->iov_end <= VNET_STAGE_IOV - VNET_QUEUE_SIZE;
}

/* Take one more chain from the driver. False when there is none, or it is no buffer for frames. */
static bool stage_one(struct vnet_pair *p)
{
    struct virtq *q = vnet_rx_queue(p);
    struct virtq_chain *c;

    if (!has_room(p))
        return false;
    c = &p->stage[p->stage_end];
    c->iov = p->iov + p->iov_end;
    c->capacity = VNET_QUEUE_SIZE;
    if (!virtq_pop(q, c))
        return false;
    if (c->readable > 0 || c->writable_bytes < NET_HEADER) {
        virtio_misuse(&p->n->v, "queue %u: chain %u of %u readable and %u writable bytes is no receive buffer", q->index,
                      c->head, c->readable_bytes, c->writable_bytes);
        return false;
    }
    p->stage_end++;
    p->iov_end += buffers(c);
    p->stage_bytes += c->writable_bytes;
    return true;
}

static unsigned int staged(const struct vnet_pair *p)
{
    return p->stage_end - p->stage_first;
}

/* Have room for a frame. False when there is none at all; the driver will kick. */
static bool stage(struct vnet_pair *p)
{
    if (!merges(p->n))
        return staged(p) > 0 || stage_one(p);
    while (p->stage_bytes < p->want && stage_one(p))
        continue;
    return staged(p) > 0;
}

/* Give the first chain back, `written` bytes of it used. */
static void unstage_used(struct vnet_pair *p, uint32_t written)
{
    struct virtq_chain *c = &p->stage[p->stage_first++];

    p->iov_first += buffers(c);
    p->stage_bytes -= c->writable_bytes;
    virtq_push(vnet_rx_queue(p), c->head, written);
    if (staged(p) == 0)
        p->stage_first = p->stage_end = p->iov_first = p->iov_end = 0;
}

/* -- coming in ---------------------------------------------------------------- */

/* The frame is all there: tell the driver of how many buffers it is, and give them back. */
static void deliver(struct vnet_pair *p)
{
    const struct virtq_chain *first = &p->stage[p->stage_first];
    uint32_t left = p->frame;
    uint16_t count = 0;

    for (unsigned int i = p->stage_first; left > 0; i++, count++) {
        assert(i < p->stage_end);
        left -= MIN(left, p->stage[i].writable_bytes);
    }
    virtq_chain_write(vnet_rx_queue(p), first, offsetof(struct virtio_net_hdr_v1, num_buffers), &count, sizeof(count));
    for (left = p->frame; left > 0;) {
        uint32_t part = MIN(left, p->stage[p->stage_first].writable_bytes);

        unstage_used(p, part);
        left -= part;
    }
    p->n->counters.rx_packets++;
    p->n->counters.rx_bytes += p->frame - NET_HEADER;
    p->frame = 0;
}

/* Put what did not fit into the buffers that the driver has added since. False while there are too few. */
static bool place_rest(struct vnet_pair *p)
{
    while (p->rest > 0) {
        unsigned int at = p->stage_end - p->stage_first;
        uint32_t n;

        if (!has_room(p)) {
            /* So many buffers, and so small ones: no frame of this length will ever fit. */
            p->frame = p->rest = 0;
            p->n->counters.rx_dropped++;
            return true;
        }
        if (!stage_one(p))
            return false;
        n = (uint32_t)virtq_chain_write(vnet_rx_queue(p), &p->stage[p->stage_first + at], 0, p->bounce + p->rest_at, p->rest);
        p->rest -= n;
        p->rest_at += n;
    }
    deliver(p);
    return true;
}

/* `bytes` were read into what is staged. */
static void mark_written(struct vnet_pair *p, uint64_t bytes)
{
    for (unsigned int i = p->stage_first; i < p->stage_end && bytes > 0; i++) {
        uint32_t part = (uint32_t)MIN(bytes, (uint64_t)p->stage[i].writable_bytes);

        virtq_chain_written(vnet_rx_queue(p), &p->stage[i], part);
        bytes -= part;
    }
}

/* Read one frame. 1: a frame is dealt with; 0: one waits for buffers; or the backend's error. */
static int receive_one(struct vnet_pair *p)
{
    struct vnet *n = p->n;
    unsigned int first = p->iov_first, count = merges(n) ? p->iov_end - first : buffers(&p->stage[p->stage_first]);
    uint64_t room = merges(n) ? p->stage_bytes : p->stage[p->stage_first].writable_bytes;
    struct iovec behind = p->iov[first + count];
    ssize_t got;

    p->iov[first + count] = (struct iovec){.iov_base = p->bounce, .iov_len = NET_FRAME_MAX};
    got = n->backend->ops->receive(n->backend, p->index, p->iov + first, (int)count + 1);
    p->iov[first + count] = behind;
    if (got < 0)
        return (int)got;
    mark_written(p, (uint64_t)got);
    if ((size_t)got < NET_HEADER || (size_t)got > NET_FRAME_MAX || ((uint64_t)got > room && !merges(n))) {
        n->counters.rx_dropped++;
        return 1;
    }
    p->frame = (uint32_t)got;
    p->want = MAX(p->want, p->frame);
    p->rest = (uint64_t)got > room ? (uint32_t)((uint64_t)got - room) : 0;
    p->rest_at = 0;
    return place_rest(p);
}

/* The link is down: what comes in is nobody's. */
static int drop_one(struct vnet_pair *p)
{
    const struct iovec iov = {.iov_base = p->bounce, .iov_len = NET_FRAME_MAX};
    ssize_t got = p->n->backend->ops->receive(p->n->backend, p->index, &iov, 1);

    if (got < 0)
        return (int)got;
    p->n->counters.rx_dropped++;
    return 1;
}

static int receive_or_drop(struct vnet_pair *p)
{
    if (!vnet_link_up(p->n) && p->rest == 0)
        return drop_one(p);
    if (p->rest > 0)
        return place_rest(p);
    return stage(p) ? receive_one(p) : 0;
}

void vnet_receive(struct vnet_pair *p)
{
    struct net_backend *b = p->n->backend;
    struct virtq *q = vnet_rx_queue(p);
    int r = 1;

    if (p->n->lost || p->index >= p->n->used_pairs || !virtio_queue_live(&p->n->v, q))
        return;
    for (unsigned int done = 0; done < TURN && r == 1; done++) {
        r = receive_or_drop(p);
        if (done % FLUSH_EVERY == FLUSH_EVERY - 1)
            virtq_flush(q);
    }
    virtq_flush(q);
    p->starved = r == 0;
    if (r < 0 && r != -EAGAIN)
        vnet_lose_backend(p->n);
    else if (r == 1 && b->ops->pending && b->ops->pending(b))
        virtio_kick_queue(&p->n->v, q);
    vnet_pair_watch(p);
}

/* -- going out ---------------------------------------------------------------- */

/* 0, or -EAGAIN: the chain is to be tried again. */
static int transmit_one(struct vnet_pair *p, const struct virtq_chain *c)
{
    struct vnet *n = p->n;
    int r = -EINVAL;

    if (vnet_link_up(n) && c->readable_bytes <= NET_FRAME_MAX)
        r = n->backend->ops->send(n->backend, p->index, c->iov, c->readable);
    if (r == -EAGAIN)
        return r;
    if (r == -EPIPE)
        vnet_lose_backend(n);
    if (r < 0) {
        n->counters.tx_dropped++;
    } else {
        n->counters.tx_packets++;
        n->counters.tx_bytes += c->readable_bytes - NET_HEADER;
    }
    return 0;
}

/* Take a chain and send it. 1: done; 0: there is none; -EAGAIN; -EINVAL: the driver broke a rule. */
static int transmit_next(struct vnet_pair *p)
{
    struct virtq *q = vnet_tx_queue(p);
    struct virtq_chain c = {.iov = p->n->iov, .capacity = ARRAY_SIZE(p->n->iov)};

    if (!virtq_pop(q, &c))
        return 0;
    if (c.writable > 0 || c.readable_bytes < NET_HEADER) {
        virtio_misuse(&p->n->v, "queue %u: chain %u of %u readable and %u writable bytes is no frame", q->index, c.head,
                      c.readable_bytes, c.writable_bytes);
        return -EINVAL;
    }
    if (transmit_one(p, &c) < 0) {
        virtq_unpop(q, &c);
        return -EAGAIN;
    }
    virtq_push(q, c.head, 0);
    return 1;
}

void vnet_transmit(struct vnet_pair *p)
{
    struct net_backend *b = p->n->backend;
    struct virtq *q = vnet_tx_queue(p);
    int r = 1;

    if (p->tx_blocked || !virtio_queue_live(&p->n->v, q))
        return;
    for (unsigned int done = 0; done < TURN && r == 1; done++) {
        r = transmit_next(p);
        if (done % FLUSH_EVERY == FLUSH_EVERY - 1)
            virtq_flush(q);
    }
    virtq_flush(q);
    p->tx_blocked = r == -EAGAIN || (!p->n->lost && b->ops->flush && b->ops->flush(b) == -EAGAIN);
    if (r == 1)
        virtio_kick_queue(&p->n->v, q);
    vnet_pair_watch(p);
}

/* -- waiting ------------------------------------------------------------------ */

void vnet_pair_watch(struct vnet_pair *p)
{
    const struct virtio_dev *v = &p->n->v;
    uint32_t events = 0;

    if (!p->source.thread)
        return;
    if (virtio_queue_live(v, vnet_rx_queue(p)) && p->index < p->n->used_pairs && !p->starved)
        events |= EPOLLIN;
    if (v->live && p->tx_blocked)
        events |= EPOLLOUT;
    /* It cannot fail for a descriptor that is watched. */
    if (events != p->events && io_thread_modify(&p->source, events) == 0)
        p->events = events;
}

void vnet_pair_ready(void *opaque, uint32_t events)
{
    struct vnet_pair *p = opaque;
    struct vnet *n = p->n;
    struct net_backend *b = n->backend;

    pthread_mutex_lock(&n->v.dev.lock);
    if (!n->lost && (events & (EPOLLERR | EPOLLHUP)))
        vnet_lose_backend(n);
    if (!n->lost && n->v.live && (events & EPOLLOUT) && (!b->ops->flush || b->ops->flush(b) != -EAGAIN)) {
        p->tx_blocked = false;
        vnet_transmit(p);
    }
    if (!n->lost && (events & EPOLLIN))
        vnet_receive(p);
    vnet_pair_watch(p);
    pthread_mutex_unlock(&n->v.dev.lock);
}

/* -- start and stop ----------------------------------------------------------- */

void vnet_pair_start(struct vnet_pair *p)
{
    bool large = virtio_has(&p->n->v, VIRTIO_NET_F_GUEST_TSO4) || virtio_has(&p->n->v, VIRTIO_NET_F_GUEST_TSO6);

    p->want = large ? NET_FRAME_MAX : WANT_PLAIN;
    p->starved = p->tx_blocked = false;
    vnet_pair_watch(p);
}

void vnet_pair_stop(struct vnet_pair *p)
{
    /* A frame that waits for buffers is lost, as frames may be. */
    p->n->counters.rx_dropped += p->rest > 0;
    p->frame = p->rest = 0;
    while (staged(p) > 0)
        virtq_unpop(vnet_rx_queue(p), &p->stage[--p->stage_end]);
    p->stage_first = p->stage_end = p->iov_first = p->iov_end = 0;
    p->stage_bytes = 0;
    vnet_pair_watch(p);
}
