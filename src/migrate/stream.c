#include "config.h"

#include "migrate/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/fd.h"

#define SOCKET_BUFFER (4 << 20)
/* A TCP peer that is gone without a word is noticed after idle + interval * count seconds. */
#define KEEPALIVE_IDLE 10
#define KEEPALIVE_INTERVAL 5
#define KEEPALIVE_COUNT 4
/* What a payload's buffer grows by: a length that lies costs a sender as many bytes. */
#define BUFFER_STEP (1u << 20)

static void set_option(int fd, int level, int option, int value)
{
    /* What a kind of socket does not have it does without. */
    (void)setsockopt(fd, level, option, &value, sizeof(value));
}

void mig_stream_init(struct mig_stream *s, int fd, bool source)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof(address);

    *s = (struct mig_stream){.fd = fd, .source = source, .passed_fd = -1};
    pthread_mutex_init(&s->send_lock, NULL);
    (void)fd_set_nonblock(fd, 0);
    /* TCP finds out by itself what a path needs, unless it is told. */
    if (source && getsockname(fd, (struct sockaddr *)&address, &len) == 0 && address.ss_family == AF_UNIX) {
        /* On a busy host both ends take turns: the more one turn carries, the fewer there are. */
        set_option(fd, SOL_SOCKET, SO_SNDBUF, SOCKET_BUFFER);
        set_option(fd, SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER);
    }
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT);
}

void mig_stream_clear(struct mig_stream *s)
{
    s->passed_fd = fd_close(s->passed_fd);
    mig_tls_end(s->tls);
    s->tls = NULL;
    s->fd = fd_close(s->fd);
    free(s->buffer);
    s->buffer = NULL;
    pthread_mutex_destroy(&s->send_lock);
}

void mig_stream_break(struct mig_stream *s)
{
    shutdown(s->fd, SHUT_RDWR);
}

static void wait_at_most(struct mig_stream *s, unsigned int ms)
{
    struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = (int)(ms % 1000 * 1000)};

    __atomic_store_n(&s->timeout_ms, ms, __ATOMIC_RELAXED);
    (void)setsockopt(s->fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    (void)setsockopt(s->fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
}

void mig_stream_set_timeout(struct mig_stream *s, unsigned int ms)
{
    __atomic_store_n(&s->deadline_ns, 0, __ATOMIC_RELAXED);
    wait_at_most(s, ms);
}

void mig_stream_set_deadline(struct mig_stream *s, uint64_t ns)
{
    __atomic_store_n(&s->deadline_ns, ns, __ATOMIC_RELAXED);
}

/* Before each read: a peer that sends a byte now and then gets no more time by that. */
static int keep_deadline(struct mig_stream *s)
{
    uint64_t end = __atomic_load_n(&s->deadline_ns, __ATOMIC_RELAXED), now = end ? clock_ns() : 0;

    if (!end)
        return 0;
    if (now >= end)
        return -ETIMEDOUT;
    wait_at_most(s, (unsigned int)((end - now) / NSEC_PER_MSEC) + 1);
    return 0;
}

void mig_stream_watch(struct mig_stream *s, unsigned int ms)
{
    mig_stream_set_timeout(s, 0);
    /* While something is on its way, and while nothing is. */
    set_option(s->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)ms);
    set_option(s->fd, IPPROTO_TCP, TCP_KEEPIDLE, 1);
    set_option(s->fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
}

int mig_stream_secure(struct mig_stream *s, const struct mig_tls *tls, const char *host, struct mig_error *err)
{
    int r = fd_set_nonblock(s->fd, 1);

    if (r < 0)
        return mig_error(err, r, "connection: %s", strerrordesc_np(-r));
    return mig_tls_begin(tls, s->fd, s->source, host, s->timeout_ms, &s->tls, err);
}

/* -- bytes -- */

static int io_error(struct mig_error *err, int r, const char *what)
{
    r = r == -EAGAIN ? -ETIMEDOUT : r;
    return mig_error(err, r, "connection: %s: %s", what, strerrordesc_np(-r));
}

/* The same after a part was written: how long one may wait is the timeout. */
static bool too_late(const struct mig_stream *s)
{
    uint64_t deadline = __atomic_load_n(&s->deadline_ns, __ATOMIC_RELAXED);

    return deadline && clock_ns() >= deadline;
}

/* Go on behind n bytes. */
static void advance(struct msghdr *msg, size_t n)
{
    while (msg->msg_iovlen > 0 && n >= msg->msg_iov->iov_len) {
        n -= msg->msg_iov->iov_len;
        msg->msg_iov++;
        msg->msg_iovlen--;
    }
    if (n > 0) {
        msg->msg_iov->iov_base = (char *)msg->msg_iov->iov_base + n;
        msg->msg_iov->iov_len -= n;
    }
}

static int send_all_tls(struct mig_stream *s, struct msghdr *msg, struct mig_error *err)
{
    for (advance(msg, 0); msg->msg_iovlen > 0;) {
        ssize_t n = mig_tls_write(s->tls, msg->msg_iov->iov_base, msg->msg_iov->iov_len,
                                  __atomic_load_n(&s->timeout_ms, __ATOMIC_RELAXED), err);

        if (n < 0)
            return io_error(err, (int)n, "cannot send");
        advance(msg, (size_t)n);
        __atomic_fetch_add(&s->sent, (uint64_t)n, __ATOMIC_RELAXED);
        if (msg->msg_iovlen > 0 && too_late(s))
            return io_error(err, -ETIMEDOUT, "cannot send");
    }
    return 0;
}

static int receive_all_tls(struct mig_stream *s, struct msghdr *msg, struct mig_error *err)
{
    for (advance(msg, 0); msg->msg_iovlen > 0;) {
        ssize_t n = keep_deadline(s);

        if (n == 0)
            n = mig_tls_read(s->tls, msg->msg_iov->iov_base, msg->msg_iov->iov_len,
                             __atomic_load_n(&s->timeout_ms, __ATOMIC_RELAXED), err);
        if (n < 0)
            return io_error(err, (int)n, "cannot receive");
        if (n == 0)
            return mig_error(err, -ECONNRESET, "connection: closed by the other side");
        advance(msg, (size_t)n);
    }
    return 0;
}

static int send_all(struct mig_stream *s, struct iovec *iov, unsigned int count, int pass_fd, struct mig_error *err)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = count};

    if (s->tls)
        return pass_fd >= 0 ? mig_error(err, -EINVAL, "connection: no descriptor goes through TLS") : send_all_tls(s, &msg, err);
    if (pass_fd >= 0) {
        memset(&control, 0, sizeof(control));
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control.space);
        *CMSG_FIRSTHDR(&msg) = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &pass_fd, sizeof(pass_fd));
    }
    advance(&msg, 0);
    while (msg.msg_iovlen > 0) {
        ssize_t n = sendmsg(s->fd, &msg, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return io_error(err, -errno, "cannot send");
        msg.msg_control = NULL;
        msg.msg_controllen = 0;
        advance(&msg, (size_t)n);
        __atomic_fetch_add(&s->sent, (uint64_t)n, __ATOMIC_RELAXED);
        if (msg.msg_iovlen > 0 && too_late(s))
            return io_error(err, -ETIMEDOUT, "cannot send");
    }
    return 0;
}

static void take_passed_fds(struct mig_stream *s, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        size_t n = c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;

        for (size_t i = 0; i < n; i++) {
            fd_close(s->passed_fd);
            memcpy(&s->passed_fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
        }
    }
}

static int receive_all(struct mig_stream *s, struct iovec *iov, unsigned int count, struct mig_error *err)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = count};

    if (s->tls)
        return receive_all_tls(s, &msg, err);
    while (msg.msg_iovlen > 0) {
        union {
            struct cmsghdr align;
            char space[CMSG_SPACE(4 * sizeof(int))];
        } control;
        ssize_t n = keep_deadline(s);

        if (n < 0)
            return io_error(err, (int)n, "cannot receive");
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control.space);
        n = recvmsg(s->fd, &msg, MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return io_error(err, -errno, "cannot receive");
        take_passed_fds(s, &msg);
        if (n == 0)
            return mig_error(err, -ECONNRESET, "connection: closed by the other side");
        advance(&msg, (size_t)n);
    }
    return 0;
}

/* -- hello and frames -- */

int mig_send_hello(struct mig_stream *s, const struct mig_hello *h, struct mig_error *err)
{
    uint8_t buf[MIG_HELLO_SIZE];
    struct iovec iov = {buf, sizeof(buf)};

    mig_hello_put(h, buf);
    return send_all(s, &iov, 1, -1, err);
}

int mig_receive_hello(struct mig_stream *s, struct mig_hello *ret, struct mig_error *err)
{
    uint8_t buf[MIG_HELLO_SIZE];
    struct iovec iov = {buf, sizeof(buf)};
    int r = receive_all(s, &iov, 1, err);

    return r < 0 ? r : mig_hello_get(buf, ret, err);
}

int mig_send(struct mig_stream *s, const struct mig_message *m, struct mig_error *err)
{
    struct iovec iov[3 + MIG_BATCH_RUNS];
    uint8_t header[MIG_HEADER_SIZE];
    struct mig_header h = {.type = m->type, .length = (uint32_t)(m->head_len + m->rest_len)};
    int r;

    h.payload_crc = crc32c(crc32c(0, m->head, m->head_len), m->rest, m->rest_len);
    iov[0] = (struct iovec){header, sizeof(header)};
    iov[1] = (struct iovec){(void *)(uintptr_t)m->head, m->head_len};
    iov[2] = (struct iovec){(void *)(uintptr_t)m->rest, m->rest_len};
    if (m->raw_count > 0)
        memcpy(iov + 3, m->raw, m->raw_count * sizeof(iov[0]));
    pthread_mutex_lock(&s->send_lock);
    h.sequence = s->send_sequence++;
    mig_header_put(&h, header);
    r = send_all(s, iov, 3 + m->raw_count, m->pass_fd, err);
    pthread_mutex_unlock(&s->send_lock);
    return r;
}

int mig_send_frame(struct mig_stream *s, enum mig_type type, const void *payload, size_t len, struct mig_error *err)
{
    struct mig_message m = {.type = type, .head = payload, .head_len = len, .pass_fd = -1};

    return mig_send(s, &m, err);
}

int mig_send_u64(struct mig_stream *s, enum mig_type type, uint64_t value, struct mig_error *err)
{
    uint8_t buf[8];

    le64_put(buf, value);
    return mig_send_frame(s, type, buf, sizeof(buf), err);
}

int mig_send_map(struct mig_stream *s, enum mig_type type, const uint64_t *bits, size_t words, struct mig_error *err)
{
    uint8_t *buf = malloc(MIG_MAP_FIXED + 8 * MIG_MAP_WORDS);
    int r = buf ? 0 : mig_error(err, -ENOMEM, "no memory");

    for (size_t w = bitmap_next_word(bits, words, 0); r == 0 && w < words;) {
        size_t n = MIN(words - w, (size_t)MIG_MAP_WORDS);

        while (bits[w + n - 1] == 0)
            n--;
        r = mig_send_frame(s, type, buf, mig_map_put(w * 64, bits + w, n, buf), err);
        w = bitmap_next_word(bits, words, w + n);
    }
    free(buf);
    return r;
}

/* Read the payload, in steps: memory is taken only for what comes. */
static int receive_payload(struct mig_stream *s, uint32_t len, struct mig_error *err)
{
    for (size_t at = 0; at < len;) {
        size_t n = MIN((size_t)len - at, (size_t)BUFFER_STEP);
        struct iovec iov;
        int r;

        if (at + n > s->buffer_size) {
            uint8_t *p = realloc(s->buffer, at + n);

            if (!p)
                return mig_error(err, -ENOMEM, "frame: no memory for %u bytes", len);
            s->buffer = p;
            s->buffer_size = at + n;
        }
        iov = (struct iovec){s->buffer + at, n};
        r = receive_all(s, &iov, 1, err);
        if (r < 0)
            return r;
        at += n;
    }
    return 0;
}

int mig_receive(struct mig_stream *s, struct mig_frame *ret, struct mig_error *err)
{
    uint8_t buf[MIG_HEADER_SIZE];
    struct iovec iov = {buf, sizeof(buf)};
    struct mig_header h;
    int r;

    s->passed_fd = fd_close(s->passed_fd);
    r = receive_all(s, &iov, 1, err);
    if (r < 0)
        return r;
    s->received_ns = clock_ns();
    r = mig_header_get(buf, !s->source, s->receive_sequence, &h, err);
    if (r == 0)
        r = receive_payload(s, h.length, err);
    if (r < 0)
        return r;
    if (crc32c(0, s->buffer, h.length) != h.payload_crc)
        return mig_error(err, -EBADMSG, "frame %u (%s): the payload's checksum is wrong", s->receive_sequence,
                         mig_type_name(h.type));
    s->receive_sequence++;
    *ret = (struct mig_frame){.type = h.type, .payload = s->buffer, .length = h.length};
    return 0;
}

int mig_receive_raw(struct mig_stream *s, struct iovec *iov, unsigned int count, struct mig_error *err)
{
    return receive_all(s, iov, count, err);
}
