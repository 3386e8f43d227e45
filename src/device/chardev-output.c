/*
 * Output of the console backends: the ring, who writes into it, and the streams that read it.
 *
 * Who wakes whom. A writer (vCPU thread) that finds the main loop asleep marks it awake and signals the eventfd. The
 * main loop writes out what there is and sets a timer; when that ends and nothing has come in between, it marks itself
 * asleep, else it writes and sets the timer again. So a stream of single bytes costs the writer one signal, and silence
 * costs nothing. While no stream takes output (none is connected, or all are blocked) nobody is woken: opening or
 * unblocking a stream flushes by itself.
 */
#include "config.h"

#include "device/chardev-internal.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fd.h"

#define FLUSH_INTERVAL_US 2000
#define FLUSH_CHUNK (16u << 10)

/* -- the ring; all under the lock -- */

/* The position of the oldest byte still there. */
static uint64_t ring_oldest(const struct chardev *c)
{
    return c->written > c->ring_size ? c->written - c->ring_size : 0;
}

static void ring_put(struct chardev *c, const uint8_t *data, size_t len)
{
    size_t at, first;

    c->written += len;
    if (len > c->ring_size) {
        data += len - c->ring_size;
        len = c->ring_size;
    }
    at = (c->written - len) & (c->ring_size - 1);
    first = MIN(len, (size_t)c->ring_size - at);
    memcpy(c->ring + at, data, first);
    memcpy(c->ring, data + first, len - first);
}

static void ring_copy(const struct chardev *c, uint64_t pos, uint8_t *buf, size_t len)
{
    size_t at = pos & (c->ring_size - 1), first = MIN(len, (size_t)c->ring_size - at);

    memcpy(buf, c->ring + at, first);
    memcpy(buf + first, c->ring, len - first);
}

/* Move a position that fell out of the ring to its oldest byte; returns how many bytes that skips. */
static uint64_t ring_catch_up(struct chardev *c, uint64_t *pos)
{
    uint64_t oldest = ring_oldest(c), lost = *pos < oldest ? oldest - *pos : 0;

    *pos += lost;
    c->dropped += lost;
    c->seen = MAX(c->seen, *pos);
    return lost;
}

static bool has_output(const struct chardev *c)
{
    struct chardev_stream *s;

    list_for_each(s, &c->streams, node)
        if (s->out_fd >= 0)
            return true;
    return false;
}

/*
 * How much may be written: what the stream that the guest waits for has sent is free; else, while there are streams that
 * take output, what the main loop has looked at. So a client that reads loses nothing, and one that does not holds
 * nobody up.
 */
static size_t ring_room(const struct chardev *c)
{
    if (c->holder)
        return c->ring_size - (size_t)(c->written - c->holder->pos);
    return c->ready ? c->ring_size - (size_t)(c->written - c->flushed) : SIZE_MAX;
}

/* -- writers -- */

size_t chardev_write(struct chardev *c, const uint8_t *data, size_t len)
{
    bool wake;
    size_t n;

    if (!c->ring)
        return len;
    pthread_mutex_lock(&c->lock);
    n = MIN(len, ring_room(c));
    ring_put(c, data, n);
    c->starved |= n < len;
    wake = c->ready > 0 && (!c->awake || n < len);
    c->awake |= wake;
    pthread_mutex_unlock(&c->lock);
    if (wake)
        fd_event_signal(c->wake_fd);
    return n;
}

uint64_t chardev_dropped(struct chardev *c)
{
    struct chardev_stream *s;
    uint64_t total, oldest;

    pthread_mutex_lock(&c->lock);
    total = c->dropped;
    oldest = ring_oldest(c);
    list_for_each(s, &c->streams, node)
        if (s->out_fd >= 0 && s->pos < oldest)
            total += oldest - s->pos;
    if (!has_output(c) && c->seen < oldest)
        total += oldest - c->seen;
    pthread_mutex_unlock(&c->lock);
    return total;
}

/* -- output of a stream -- */

static ssize_t stream_send(const struct chardev_stream *s, const void *buf, size_t len)
{
    ssize_t n;

    do
        n = s->out_socket ? send(s->out_fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL) : write(s->out_fd, buf, len);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* The guest may be waiting for room, and there may be some now. Without the lock. */
static void notify_writable(struct chardev *c)
{
    bool notify;

    pthread_mutex_lock(&c->lock);
    notify = c->starved && ring_room(c) >= c->ring_size / 2;
    if (notify)
        c->starved = false;
    pthread_mutex_unlock(&c->lock);
    if (notify && c->handler.on_writable)
        c->handler.on_writable(c->handler.opaque);
}

/* Count one more or less of the streams that take output. Under the lock. */
static void count_ready(struct chardev *c, bool more)
{
    /* The first one is flushed by whoever adds it. */
    if (more && c->ready++ == 0)
        c->flushed = c->written;
    else if (!more)
        c->ready--;
}

void chardev_stream_set_blocked(struct chardev_stream *s, bool blocked)
{
    struct chardev *c = s->chardev;

    if (s->blocked == blocked)
        return;
    if (blocked)
        event_add(s->out_event, NULL);
    else
        event_del(s->out_event);
    pthread_mutex_lock(&c->lock);
    s->blocked = blocked;
    count_ready(c, !blocked);
    pthread_mutex_unlock(&c->lock);
    notify_writable(c);
}

static void stream_advance(struct chardev_stream *s, size_t n)
{
    struct chardev *c = s->chardev;

    pthread_mutex_lock(&c->lock);
    s->pos += n;
    c->seen = MAX(c->seen, s->pos);
    pthread_mutex_unlock(&c->lock);
    notify_writable(c);
}

/* Forget what is queued for it. */
static void stream_drop(struct chardev_stream *s)
{
    struct chardev *c = s->chardev;

    s->note_done = s->note_len;
    pthread_mutex_lock(&c->lock);
    c->dropped += c->written - s->pos;
    s->pos = c->seen = c->written;
    pthread_mutex_unlock(&c->lock);
    notify_writable(c);
}

/* The next bytes to write, at most up to position `until`: a note of ours when it is due, or output. */
static size_t stream_next(struct chardev_stream *s, uint64_t until, uint8_t *buf, bool *ret_note)
{
    struct chardev *c = s->chardev;
    uint64_t lost;
    size_t n = 0;

    pthread_mutex_lock(&c->lock);
    lost = ring_catch_up(c, &s->pos);
    pthread_mutex_unlock(&c->lock);
    if (lost && s->note_done == s->note_len) {
        chardev_stream_note(s, "%llu bytes of output lost", (unsigned long long)lost);
        s->note_pos = 0;
    }

    *ret_note = s->note_done < s->note_len && s->note_pos <= s->pos;
    if (*ret_note) {
        n = s->note_len - s->note_done;
        memcpy(buf, s->note + s->note_done, n);
        return n;
    }
    if (s->note_done < s->note_len)
        until = MIN(until, s->note_pos);
    pthread_mutex_lock(&c->lock);
    /* The writer may have gone on since, so that this is not what was asked for; the next turn catches up. */
    if (s->pos >= ring_oldest(c) && s->pos < until) {
        n = MIN((size_t)(until - s->pos), (size_t)FLUSH_CHUNK);
        ring_copy(c, s->pos, buf, n);
    }
    pthread_mutex_unlock(&c->lock);
    return n;
}

static void stream_sent(struct chardev_stream *s, bool note, size_t n)
{
    if (note)
        s->note_done += (unsigned int)n;
    else
        stream_advance(s, n);
}

void chardev_stream_flush(struct chardev_stream *s)
{
    struct chardev *c = s->chardev;
    uint8_t buf[FLUSH_CHUNK];
    uint64_t until;

    static_assert(CHARDEV_NOTE_MAX <= FLUSH_CHUNK, "a note fits into the buffer");
    pthread_mutex_lock(&c->lock);
    until = c->written;
    pthread_mutex_unlock(&c->lock);
    while (s->out_fd >= 0 && !s->blocked) {
        bool note;
        size_t len = stream_next(s, until, buf, &note);
        ssize_t n;

        if (!len && s->pos >= until)
            break;
        n = len ? stream_send(s, buf, len) : 0;
        if (n >= 0) {
            stream_sent(s, note, (size_t)n);
        } else if (n == -EAGAIN && s->out_event) {
            chardev_stream_set_blocked(s, true);
        } else {
            if (c->backend->on_output_error(s, (int)-n))
                return;
            if (s->out_fd >= 0)
                stream_drop(s);
        }
    }
}

void chardev_flush(struct chardev *c)
{
    struct chardev_stream *s;
    uint64_t until;

    pthread_mutex_lock(&c->lock);
    until = c->written;
    pthread_mutex_unlock(&c->lock);
    list_for_each(s, &c->streams, node)
        chardev_stream_flush(s);
    pthread_mutex_lock(&c->lock);
    c->flushed = MAX(c->flushed, until);
    pthread_mutex_unlock(&c->lock);
    notify_writable(c);
}

/* -- when to flush -- */

static void set_flush_timer(struct chardev *c)
{
    static const struct timeval interval = {.tv_usec = FLUSH_INTERVAL_US};

    if (!event_pending(c->flush_timer, EV_TIMEOUT, NULL))
        event_add(c->flush_timer, &interval);
}

void chardev_output_woken(struct chardev *c)
{
    bool awake;

    chardev_flush(c);
    pthread_mutex_lock(&c->lock);
    awake = c->awake;
    pthread_mutex_unlock(&c->lock);
    if (awake)
        set_flush_timer(c);
}

void chardev_on_flush_timer(evutil_socket_t fd, short what, void *opaque)
{
    struct chardev *c = opaque;
    bool awake;

    pthread_mutex_lock(&c->lock);
    awake = c->awake = c->ready > 0 && c->written != c->flushed;
    pthread_mutex_unlock(&c->lock);
    if (!awake)
        return;
    chardev_flush(c);
    set_flush_timer(c);
}

/* -- streams come and go -- */

void chardev_stream_begin_output(struct chardev_stream *s)
{
    struct chardev *c = s->chardev;

    pthread_mutex_lock(&c->lock);
    /* What nobody was there for, and is gone, is lost to all, not to this one. */
    if (!has_output(c))
        ring_catch_up(c, &c->seen);
    s->pos = ring_oldest(c);
    count_ready(c, true);
    if (c->backend->lossless)
        c->holder = s;
    pthread_mutex_unlock(&c->lock);
}

void chardev_stream_end_output(struct chardev_stream *s)
{
    struct chardev *c = s->chardev;

    if (s->out_fd < 0)
        return;
    if (s->out_event)
        event_free(s->out_event);
    s->out_event = NULL;
    pthread_mutex_lock(&c->lock);
    ring_catch_up(c, &s->pos);
    if (!s->blocked)
        count_ready(c, false);
    s->blocked = false;
    if (c->holder == s)
        c->holder = NULL;
    pthread_mutex_unlock(&c->lock);
    if (s->in_fd != s->out_fd)
        fd_close(s->out_fd);
    s->out_fd = -1;
    notify_writable(c);
}

void chardev_stream_note(struct chardev_stream *s, const char *fmt, ...)
{
    struct chardev *c = s->chardev;
    char text[CHARDEV_NOTE_MAX - 20];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    s->note_len = (unsigned int)snprintf(s->note, sizeof(s->note), "\r\n[umbra: %s]\r\n", text);
    s->note_done = 0;
    pthread_mutex_lock(&c->lock);
    s->note_pos = c->written;
    pthread_mutex_unlock(&c->lock);
}

void chardev_drain(struct chardev *c, int timeout_ms)
{
    uint64_t now = clock_ns(), end = now + (uint64_t)MAX(timeout_ms, 0) * NSEC_PER_MSEC;

    for (;;) {
        struct pollfd fds[CHARDEV_MAX_CLIENTS];
        struct chardev_stream *s;
        nfds_t n = 0;

        chardev_flush(c);
        list_for_each(s, &c->streams, node)
            if (s->blocked && n < ARRAY_SIZE(fds))
                fds[n++] = (struct pollfd){.fd = s->out_fd, .events = POLLOUT};
        now = clock_ns();
        if (!n || now >= end || poll(fds, n, (int)((end - now) / NSEC_PER_MSEC + 1)) <= 0)
            return;
        list_for_each(s, &c->streams, node)
            for (nfds_t i = 0; i < n; i++)
                if (s->blocked && fds[i].fd == s->out_fd && fds[i].revents)
                    chardev_stream_set_blocked(s, false);
    }
}
