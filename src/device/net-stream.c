/*
 * Frames over a stream socket, each after its length in four bytes, big-endian: what passt speaks, and QEMU's stream
 * backend. There is no virtio-net header on the wire: nothing is offloaded. What the peer sends is not trusted: a length that
 * no frame has ends the connection.
 */
#include "config.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "device/net-backend.h"

#define LENGTH 4u
#define ETHERNET_MIN 14u
#define ETHERNET_MAX (NET_FRAME_MAX - NET_HEADER)
/* Several full frames: one read fetches many. */
#define BUFFER (256u * KiB)
/* iovecs of a frame that is sent, those of a chain and one for the length. */
#define IOV_LIMIT 1024

struct stream {
    struct net_backend b;
    /* What has come in and was not taken: in[in_start, in_end). */
    uint8_t *in;
    size_t in_start, in_end;
    /* The rest of a frame that the socket took a part of: out[out_start, out_end). */
    uint8_t *out;
    size_t out_start, out_end;
    struct iovec iov[IOV_LIMIT];
};

static_assert(BUFFER >= LENGTH + ETHERNET_MAX, "a frame fits");

static struct stream *to_stream(const struct net_backend *b)
{
    return container_of((struct net_backend *)(uintptr_t)b, struct stream, b);
}

/* -- in ----------------------------------------------------------------------- */

/* Length of the frame that comes next, 0 while it is not all there, -EPIPE when there is no such frame. */
static ssize_t next_frame(const struct stream *s)
{
    size_t have = s->in_end - s->in_start;
    uint32_t len;

    if (have < LENGTH)
        return 0;
    memcpy(&len, s->in + s->in_start, LENGTH);
    len = be32toh(len);
    if (len < ETHERNET_MIN || len > ETHERNET_MAX) {
        log_warn("%s %s: a frame of %u bytes, not within %u and %u", s->b.ops->kind, s->b.name, len, ETHERNET_MIN, ETHERNET_MAX);
        return -EPIPE;
    }
    return have < LENGTH + len ? 0 : (ssize_t)len;
}

/* Read once. 0 when something came. */
static int fill(struct stream *s)
{
    ssize_t n;

    memmove(s->in, s->in + s->in_start, s->in_end - s->in_start);
    s->in_end -= s->in_start;
    s->in_start = 0;
    do
        n = read(s->b.fds[0], s->in + s->in_end, BUFFER - s->in_end);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? -EAGAIN : -EPIPE;
    s->in_end += (size_t)n;
    return n == 0 ? -EPIPE : 0;
}

/* Copy into iov from byte `offset` of it on. */
static size_t scatter(const struct iovec *iov, int iovcnt, size_t offset, const uint8_t *from, size_t len)
{
    size_t done = 0;

    for (int i = 0; i < iovcnt && done < len; i++) {
        size_t n;

        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        n = MIN(iov[i].iov_len - offset, len - done);
        memcpy((uint8_t *)iov[i].iov_base + offset, from + done, n);
        done += n;
        offset = 0;
    }
    return done;
}

static ssize_t stream_receive(struct net_backend *b, unsigned int pair, const struct iovec *iov, int iovcnt)
{
    static const uint8_t header[NET_HEADER];
    struct stream *s = to_stream(b);
    ssize_t len = next_frame(s);
    size_t n;

    while (len == 0) {
        int r = fill(s);

        if (r < 0)
            return r;
        len = next_frame(s);
    }
    if (len < 0)
        return len;
    n = scatter(iov, iovcnt, 0, header, NET_HEADER);
    n += scatter(iov, iovcnt, NET_HEADER, s->in + s->in_start + LENGTH, (size_t)len);
    s->in_start += LENGTH + (size_t)len;
    return (ssize_t)n;
}

static bool stream_pending(const struct net_backend *b)
{
    return next_frame(to_stream(b)) != 0;
}

/* -- out ---------------------------------------------------------------------- */

static int stream_flush(struct net_backend *b)
{
    struct stream *s = to_stream(b);

    while (s->out_start < s->out_end) {
        ssize_t n = send(b->fds[0], s->out + s->out_start, s->out_end - s->out_start, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? -EAGAIN : -EPIPE;
        s->out_start += (size_t)n;
    }
    s->out_start = s->out_end = 0;
    return 0;
}

/* Keep what is behind the first `sent` bytes of the frame in s->iov. */
static void keep_rest(struct stream *s, int iovcnt, size_t sent)
{
    for (int i = 0; i < iovcnt; i++) {
        size_t skip = MIN(sent, s->iov[i].iov_len);

        memcpy(s->out + s->out_end, (const uint8_t *)s->iov[i].iov_base + skip, s->iov[i].iov_len - skip);
        s->out_end += s->iov[i].iov_len - skip;
        sent -= skip;
    }
}

/* What goes out: the length, and the frame without its virtio header. The number of iovecs. */
static int prepare(struct stream *s, uint32_t *length, const struct iovec *iov, int iovcnt)
{
    size_t skip = NET_HEADER, bytes = 0;
    int n = 1;

    for (int i = 0; i < iovcnt; i++) {
        size_t off = MIN(skip, iov[i].iov_len);

        skip -= off;
        if (iov[i].iov_len == off)
            continue;
        s->iov[n++] = (struct iovec){.iov_base = (uint8_t *)iov[i].iov_base + off, .iov_len = iov[i].iov_len - off};
        bytes += iov[i].iov_len - off;
    }
    *length = htobe32((uint32_t)bytes);
    s->iov[0] = (struct iovec){.iov_base = length, .iov_len = LENGTH};
    return bytes < ETHERNET_MIN || bytes > ETHERNET_MAX ? -EINVAL : n;
}

static int stream_send(struct net_backend *b, unsigned int pair, const struct iovec *iov, int iovcnt)
{
    struct stream *s = to_stream(b);
    struct msghdr msg = {.msg_iov = s->iov};
    uint32_t length;
    int r = stream_flush(b), n;
    ssize_t sent;

    if (r < 0)
        return r;
    if (iovcnt >= IOV_LIMIT)
        return -EMSGSIZE;
    n = prepare(s, &length, iov, iovcnt);
    if (n < 0)
        return n;
    msg.msg_iovlen = (size_t)n;
    do
        sent = sendmsg(b->fds[0], &msg, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return errno == EAGAIN || errno == ENOBUFS ? -EAGAIN : -EPIPE;
    keep_rest(s, n, (size_t)sent);
    return 0;
}

static void stream_close(struct net_backend *b)
{
    struct stream *s = to_stream(b);

    fd_close(b->fds[0]);
    free(s->in);
    free(s->out);
    free(s);
}

static const struct net_backend_ops stream_ops = {
    .kind = "passt",
    .receive = stream_receive,
    .pending = stream_pending,
    .send = stream_send,
    .flush = stream_flush,
    .close = stream_close,
};

int net_stream_new(int fd, const char *name, struct net_backend **ret)
{
    struct stream *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    s->b.ops = &stream_ops;
    s->b.pairs = 1;
    s->b.fds[0] = -1;
    snprintf(s->b.name, sizeof(s->b.name), "%s", name);
    s->in = malloc(BUFFER);
    s->out = malloc(LENGTH + ETHERNET_MAX);
    if (!s->in || !s->out) {
        stream_close(&s->b);
        return -ENOMEM;
    }
    s->b.fds[0] = fd;
    *ret = &s->b;
    return 0;
}
