/* A network that a test holds in its hands: frames to be received are put into it, those that were sent are found in it. */
#ifndef UMBRA_TESTS_FAKE_NET_H
#define UMBRA_TESTS_FAKE_NET_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/util.h"
#include "device/net-backend.h"

#define FAKE_NET_FRAMES 64u

struct fake_frame {
    uint32_t len;
    uint8_t bytes[NET_FRAME_MAX];
};

struct fake_net {
    struct net_backend b;
    struct fake_frame in[FAKE_NET_FRAMES]; /* for all pairs, in this order */
    unsigned int in_first, in_count;
    unsigned int in_pair; /* the pair they come in on */
    struct fake_frame out;      /* the last one */
    unsigned int out_count, out_pair;
    unsigned int out_room; /* frames that may be sent before it would block */
    int refuse;            /* instead of sending: this error */
    bool dead;
    uint64_t offloads;
    unsigned int offloads_set, pairs;
    int carrier;
};

static inline struct fake_net *fake_net_of(const struct net_backend *b)
{
    return container_of((struct net_backend *)(uintptr_t)b, struct fake_net, b);
}

static inline ssize_t fake_net_receive(struct net_backend *b, unsigned int pair, const struct iovec *iov, int iovcnt)
{
    struct fake_net *f = fake_net_of(b);
    const struct fake_frame *frame = &f->in[f->in_first];
    size_t done = 0;

    if (f->dead)
        return -EPIPE;
    if (f->in_count == 0 || pair != f->in_pair)
        return -EAGAIN;
    for (int i = 0; i < iovcnt && done < frame->len; i++) {
        size_t n = MIN(iov[i].iov_len, (size_t)frame->len - done);

        memcpy(iov[i].iov_base, frame->bytes + done, n);
        done += n;
    }
    f->in_first = (f->in_first + 1) % FAKE_NET_FRAMES;
    f->in_count--;
    return (ssize_t)done;
}

static inline bool fake_net_pending(const struct net_backend *b)
{
    return fake_net_of(b)->in_count > 0;
}

static inline int fake_net_send(struct net_backend *b, unsigned int pair, const struct iovec *iov, int iovcnt)
{
    struct fake_net *f = fake_net_of(b);

    if (f->dead)
        return -EPIPE;
    if (f->refuse)
        return f->refuse;
    if (f->out_room == 0)
        return -EAGAIN;
    f->out_room--;
    f->out.len = 0;
    for (int i = 0; i < iovcnt; i++) {
        memcpy(f->out.bytes + f->out.len, iov[i].iov_base, iov[i].iov_len);
        f->out.len += (uint32_t)iov[i].iov_len;
    }
    f->out_count++;
    f->out_pair = pair;
    return 0;
}

static inline int fake_net_set_offloads(struct net_backend *b, uint64_t features)
{
    fake_net_of(b)->offloads = features;
    fake_net_of(b)->offloads_set++;
    return 0;
}

static inline int fake_net_set_pairs(struct net_backend *b, unsigned int pairs)
{
    fake_net_of(b)->pairs = pairs;
    return 0;
}

static inline void fake_net_set_carrier(struct net_backend *b, bool up)
{
    fake_net_of(b)->carrier = up;
}

static inline void fake_net_close(struct net_backend *b)
{
}

static const struct net_backend_ops fake_net_ops = {
    .kind = "fake",
    .receive = fake_net_receive,
    .pending = fake_net_pending,
    .send = fake_net_send,
    .set_offloads = fake_net_set_offloads,
    .set_pairs = fake_net_set_pairs,
    .set_carrier = fake_net_set_carrier,
    .close = fake_net_close,
};

/* f may be large: zero it, then this. */
static inline void fake_net_init(struct fake_net *f, unsigned int pairs, bool offloads)
{
    f->b = (struct net_backend){.ops = &fake_net_ops, .name = "it", .offloads = offloads, .pairs = pairs};
    for (unsigned int i = 0; i < NET_MAX_PAIRS; i++)
        f->b.fds[i] = -1;
    f->in_first = f->in_count = f->in_pair = f->out_count = 0;
    f->out_room = UINT32_MAX;
    f->refuse = 0;
    f->dead = false;
    f->carrier = -1;
}

/* A frame comes in: a header of zeros but for its first byte, and `len` bytes in all. */
static inline void fake_net_arrive(struct fake_net *f, uint32_t len, uint8_t seed)
{
    struct fake_frame *frame = &f->in[(f->in_first + f->in_count++) % FAKE_NET_FRAMES];

    frame->len = len;
    for (uint32_t i = 0; i < len; i++)
        frame->bytes[i] = i < NET_HEADER ? (i == 0) : (uint8_t)(seed + i * 7 + i / 251);
}

#endif
