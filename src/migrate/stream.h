/*
 * One connection of a migration: whole frames over a blocking socket.
 *
 * One thread receives; any may send, frame by frame under a lock. mig_stream_break (any thread) makes both fail from then
 * on, those that wait now included.
 */
#ifndef UMBRA_MIGRATE_STREAM_H
#define UMBRA_MIGRATE_STREAM_H

#include <pthread.h>
#include <sys/uio.h>

#include "base/unix.h"
#include "migrate/tls.h"
#include "migrate/wire.h"

struct mig_stream {
    int fd;
    bool source; /* which end this is */
    struct mig_tls_session *tls; /* NULL: as it is */
    unsigned int timeout_ms;     /* relaxed atomic */
    uint64_t deadline_ns;        /* relaxed atomic */
    pthread_mutex_t send_lock;
    uint32_t send_sequence, receive_sequence;
    uint64_t sent; /* bytes; relaxed atomic */
    int passed_fd; /* received with the newest frame, -1 for none; the stream's unless it is taken */
    uint64_t received_ns; /* when the newest frame's header came */
    uint8_t *buffer; /* payload of the newest frame */
    size_t buffer_size;
};

struct mig_frame {
    enum mig_type type;
    const uint8_t *payload; /* until the next mig_receive */
    uint32_t length;
};

/* Takes over fd, a connected stream socket, and sets it up. */
void mig_stream_init(struct mig_stream *s, int fd, bool source);
/*
 * Encrypt it from here on, and know who is at the other end; before anything is sent or received. host: see mig_tls_begin. The
 * timeout holds for each step. -errno with *err, and then the stream is of no use.
 */
int mig_stream_secure(struct mig_stream *s, const struct mig_tls *tls, const char *host, struct mig_error *err);
/* Nobody uses it any more. */
void mig_stream_clear(struct mig_stream *s);
void mig_stream_break(struct mig_stream *s);
/* How long one read or write may wait; 0: for ever. A connection whose write timed out is of no use any more. */
void mig_stream_set_timeout(struct mig_stream *s, unsigned int ms);

/*
 * When (clock_ns) whatever is still read or written fails with -ETIMEDOUT, however little the peer takes or gives at a time; of
 * what is read it takes the timeout's place. Until the next mig_stream_set_timeout.
 */
void mig_stream_set_deadline(struct mig_stream *s, uint64_t ns);

/* How long a peer may be silent in post-copy. */
#define MIG_PATIENCE_MS 10000
/* From here on a TCP peer of whom nothing is heard for so long is given up; others are waited for, as with a timeout of 0. */
void mig_stream_watch(struct mig_stream *s, unsigned int ms);

int mig_send_hello(struct mig_stream *s, const struct mig_hello *h, struct mig_error *err);
int mig_receive_hello(struct mig_stream *s, struct mig_hello *ret, struct mig_error *err);

/*
 * Send one frame: `head` and `rest` (either may be empty) are its payload, `raw` (changed on the way) follows it. pass_fd
 * goes with it unless it is -1 (a Unix socket only). 0, -ETIMEDOUT, or -errno, with *err.
 */
struct mig_message {
    enum mig_type type;
    const void *head;
    size_t head_len;
    const void *rest;
    size_t rest_len;
    struct iovec *raw;
    unsigned int raw_count;
    int pass_fd;
};
int mig_send(struct mig_stream *s, const struct mig_message *m, struct mig_error *err);
/* One without raw bytes and descriptor. */
int mig_send_frame(struct mig_stream *s, enum mig_type type, const void *payload, size_t len, struct mig_error *err);
int mig_send_u64(struct mig_stream *s, enum mig_type type, uint64_t value, struct mig_error *err);

/* All bits of a bitmap of pages, in as many frames (MIG_ABSENT, MIG_MISSING) as it takes; none for an empty one. */
int mig_send_map(struct mig_stream *s, enum mig_type type, const uint64_t *bits, size_t words, struct mig_error *err);

/* The next frame, checked. -ECONNRESET at the end of the stream, -ETIMEDOUT, -EBADMSG, -ENOMEM or -errno, with *err. */
int mig_receive(struct mig_stream *s, struct mig_frame *ret, struct mig_error *err);
/* What follows a frame; iov is changed. */
int mig_receive_raw(struct mig_stream *s, struct iovec *iov, unsigned int count, struct mig_error *err);

/*
 * tcp:HOST:PORT or unix:PATH; a connected descriptor, or -errno with *err: -ECANCELED once wake_fd (-1: none) can be read. Names
 * are looked up first, however long that takes.
 */
int mig_connect(const char *uri, unsigned int timeout_ms, int wake_fd, struct mig_error *err);
/* The host of tcp:HOST:PORT, without brackets; empty where there is none. -EINVAL with *err. */
int mig_uri_host(const char *uri, char *host, size_t size, struct mig_error *err);
/* Where a target waits; zeroed with fd -1 it is closed. */
struct mig_listener {
    int fd; /* nonblocking */
    struct unix_listener file; /* of a Unix socket */
};
int mig_listen(const char *uri, struct mig_listener *ret, struct mig_error *err);
void mig_listener_close(struct mig_listener *l);

#endif
