/*
 * The core of the console backends: the output ring, the streams that read it, and the input buffer.
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
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"

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

void chardev_wake(struct chardev *c)
{
    if (c->wake_fd >= 0)
        fd_event_signal(c->wake_fd);
}

void chardev_accept_input(struct chardev *c)
{
    chardev_wake(c);
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

const char *chardev_path(const struct chardev *c)
{
    return c->path;
}

void chardev_set_handler(struct chardev *c, const struct chardev_handler *handler)
{
    c->handler = handler ? *handler : (struct chardev_handler){0};
    /* There may be input that nobody wanted so far. */
    chardev_accept_input(c);
}

void chardev_set_on_quit(struct chardev *c, void (*on_quit)(void *opaque), void *opaque)
{
    c->on_quit = on_quit;
    c->on_quit_opaque = opaque;
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

static void stream_set_blocked(struct chardev_stream *s, bool blocked)
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

/* Write what is queued now, until it is gone or the peer takes no more. The stream may be closed on return. */
static void stream_flush(struct chardev_stream *s)
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
            stream_set_blocked(s, true);
        } else {
            if (c->backend->on_output_error(s, (int)-n))
                return;
            if (s->out_fd >= 0)
                stream_drop(s);
        }
    }
}

static void flush_all(struct chardev *c)
{
    struct chardev_stream *s;
    uint64_t until;

    pthread_mutex_lock(&c->lock);
    until = c->written;
    pthread_mutex_unlock(&c->lock);
    list_for_each(s, &c->streams, node)
        stream_flush(s);
    pthread_mutex_lock(&c->lock);
    c->flushed = MAX(c->flushed, until);
    pthread_mutex_unlock(&c->lock);
    notify_writable(c);
}

/* -- input -- */

static void stream_end_input(struct chardev_stream *s, int err)
{
    if (s->in_event)
        event_free(s->in_event);
    s->in_event = NULL;
    s->reading = false;
    if (s->in_fd != s->out_fd)
        fd_close(s->in_fd);
    s->in_fd = -1;
    if (s->chardev->backend->on_input_end)
        s->chardev->backend->on_input_end(s, err);
}

/* Read once; true when something came. The stream may be closed on return. */
static bool stream_read(struct chardev_stream *s)
{
    struct chardev *c = s->chardev;
    uint8_t buf[CHARDEV_INPUT_SIZE];
    size_t room = s->keyboard ? sizeof(c->input) - c->input_len : sizeof(buf), len;
    ssize_t n;

    if (!room)
        return false;
    n = s->in_socket ? recv(s->in_fd, buf, room, MSG_DONTWAIT) : read(s->in_fd, buf, room);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n <= 0) {
        stream_end_input(s, n < 0 ? errno : 0);
        return false;
    }
    if (!s->keyboard)
        return true;
    len = c->backend->filter ? c->backend->filter(c, buf, (size_t)n) : (size_t)n;
    memcpy(c->input + c->input_len, buf, len);
    c->input_len += len;
    return true;
}

/* Give the guest what it takes; true when it took something. */
static bool give_input(struct chardev *c)
{
    size_t n;

    if (!c->input_len || !c->handler.on_input)
        return false;
    n = c->handler.on_input(c->handler.opaque, c->input, c->input_len);
    c->input_len -= n;
    memmove(c->input, c->input + n, c->input_len);
    return n > 0;
}

/* Wait for input only where there is room for it. */
static void stream_watch_input(struct chardev_stream *s)
{
    bool want = s->in_event && !s->held && (!s->keyboard || s->chardev->input_len < CHARDEV_INPUT_SIZE);

    if (want == s->reading)
        return;
    s->reading = want;
    if (want)
        event_add(s->in_event, NULL);
    else if (s->in_event)
        event_del(s->in_event);
}

static void move_input(struct chardev *c)
{
    struct chardev_stream *s;
    bool progress;

    do {
        progress = give_input(c);
        list_for_each(s, &c->streams, node)
            if (s->in_fd >= 0 && !s->in_event && s->keyboard && !s->held)
                progress |= stream_read(s);
    } while (progress);
    list_for_each(s, &c->streams, node)
        stream_watch_input(s);
}

void chardev_stream_hold_input(struct chardev_stream *s, bool hold)
{
    s->held = hold;
    stream_watch_input(s);
}

size_t chardev_inject_input(struct chardev *c, const uint8_t *data, size_t len)
{
    size_t n = MIN(len, sizeof(c->input) - c->input_len);

    if (n)
        memcpy(c->input + c->input_len, data, n);
    c->input_len += n;
    move_input(c);
    return n;
}

void chardev_run(struct chardev *c)
{
    flush_all(c);
    move_input(c);
}

/* -- events -- */

static void set_flush_timer(struct chardev *c)
{
    static const struct timeval interval = {.tv_usec = FLUSH_INTERVAL_US};

    if (!event_pending(c->flush_timer, EV_TIMEOUT, NULL))
        event_add(c->flush_timer, &interval);
}

static void on_wake(evutil_socket_t fd, short what, void *opaque)
{
    struct chardev *c = opaque;
    bool awake;

    fd_event_clear(c->wake_fd);
    chardev_run(c);
    pthread_mutex_lock(&c->lock);
    awake = c->awake;
    pthread_mutex_unlock(&c->lock);
    if (awake)
        set_flush_timer(c);
}

static void on_flush_timer(evutil_socket_t fd, short what, void *opaque)
{
    struct chardev *c = opaque;
    bool awake;

    pthread_mutex_lock(&c->lock);
    awake = c->awake = c->ready > 0 && c->written != c->flushed;
    pthread_mutex_unlock(&c->lock);
    if (!awake)
        return;
    flush_all(c);
    set_flush_timer(c);
}

static void on_readable(evutil_socket_t fd, short what, void *opaque)
{
    struct chardev_stream *s = opaque;
    struct chardev *c = s->chardev;

    stream_read(s);
    move_input(c);
}

static void on_writable(evutil_socket_t fd, short what, void *opaque)
{
    struct chardev_stream *s = opaque;

    stream_set_blocked(s, false);
    stream_flush(s);
}

/* -- streams -- */

/* Regular files, and some devices, are always ready and cannot be waited for. */
static bool can_wait(int fd)
{
    _cleanup_close_ int epfd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN};

    return epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) == 0 || errno != EPERM;
}

static bool is_socket(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

static int stream_make_events(struct chardev_stream *s)
{
    struct event_base *events = s->chardev->events;

    if (s->in_fd >= 0 && can_wait(s->in_fd)) {
        s->in_event = event_new(events, s->in_fd, EV_READ | EV_PERSIST, on_readable, s);
        if (!s->in_event)
            return -ENOMEM;
    }
    if (s->out_fd >= 0 && can_wait(s->out_fd)) {
        s->out_event = event_new(events, s->out_fd, EV_WRITE, on_writable, s);
        if (!s->out_event)
            return -ENOMEM;
    }
    return 0;
}

static void stream_free(struct chardev_stream *s)
{
    if (s->in_event)
        event_free(s->in_event);
    if (s->out_event)
        event_free(s->out_event);
    if (s->in_fd != s->out_fd)
        fd_close(s->in_fd);
    fd_close(s->out_fd);
    free(s);
}

/* It takes part in the output from now on. */
static void stream_begin_output(struct chardev_stream *s)
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

int chardev_stream_open(struct chardev *c, int in_fd, int out_fd, struct chardev_stream **ret)
{
    struct chardev_stream *s = calloc(1, sizeof(*s));
    int err;

    if (!s) {
        if (in_fd != out_fd)
            fd_close(in_fd);
        fd_close(out_fd);
        return -ENOMEM;
    }
    *s = (struct chardev_stream){.chardev = c, .in_fd = in_fd, .out_fd = out_fd, .keyboard = in_fd >= 0};
    s->in_socket = in_fd >= 0 && is_socket(in_fd);
    s->out_socket = out_fd >= 0 && is_socket(out_fd);
    err = stream_make_events(s);
    if (err < 0) {
        stream_free(s);
        return err;
    }
    if (out_fd >= 0)
        stream_begin_output(s);
    pthread_mutex_lock(&c->lock);
    list_append(&c->streams, &s->node);
    pthread_mutex_unlock(&c->lock);
    *ret = s;
    return 0;
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

void chardev_stream_close(struct chardev_stream *s)
{
    struct chardev *c = s->chardev;

    chardev_stream_end_output(s);
    pthread_mutex_lock(&c->lock);
    list_remove(&s->node);
    pthread_mutex_unlock(&c->lock);
    stream_free(s);
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

/* -- the whole -- */

void chardev_drain(struct chardev *c, int timeout_ms)
{
    uint64_t now = clock_ns(), end = now + (uint64_t)MAX(timeout_ms, 0) * NSEC_PER_MSEC;

    for (;;) {
        struct pollfd fds[CHARDEV_MAX_CLIENTS];
        struct chardev_stream *s;
        nfds_t n = 0;

        flush_all(c);
        list_for_each(s, &c->streams, node)
            if (s->blocked && n < ARRAY_SIZE(fds))
                fds[n++] = (struct pollfd){.fd = s->out_fd, .events = POLLOUT};
        now = clock_ns();
        if (!n || now >= end || poll(fds, n, (int)((end - now) / NSEC_PER_MSEC + 1)) <= 0)
            return;
        list_for_each(s, &c->streams, node)
            for (nfds_t i = 0; i < n; i++)
                if (s->blocked && fds[i].fd == s->out_fd && fds[i].revents)
                    stream_set_blocked(s, false);
    }
}

static int init_core(struct chardev *c, const struct chardev_config *config, struct event_base *events)
{
    c->events = events;
    c->wake_fd = -1;
    list_init(&c->streams);
    pthread_mutex_init(&c->lock, NULL);
    if (config->kind != CHARDEV_NULL) {
        c->ring_size = config->buffer_size ? config->buffer_size : CHARDEV_BUFFER_SIZE;
        assert((c->ring_size & (c->ring_size - 1)) == 0);
        c->ring = malloc(c->ring_size);
        if (!c->ring)
            return -ENOMEM;
    }
    if (!events)
        return config->kind == CHARDEV_NULL ? 0 : -EINVAL;
    c->wake_fd = fd_eventfd();
    if (c->wake_fd < 0)
        return c->wake_fd;
    c->wake_event = event_new(events, c->wake_fd, EV_READ | EV_PERSIST, on_wake, c);
    c->flush_timer = evtimer_new(events, on_flush_timer, c);
    return c->wake_event && c->flush_timer && event_add(c->wake_event, NULL) == 0 ? 0 : -ENOMEM;
}

static int init_backend(struct chardev *c, const struct chardev_config *config)
{
    switch (config->kind) {
    case CHARDEV_STDIO:
        return chardev_stdio_init(c);
    case CHARDEV_SOCKET:
        return chardev_socket_init(c, config->path);
    case CHARDEV_PTY:
        return chardev_pty_init(c, config->path);
    case CHARDEV_FILE:
        return chardev_file_init(c, config->path);
    case CHARDEV_NULL:
        break;
    }
    return 0;
}

int chardev_new(const struct chardev_config *config, struct event_base *events, struct chardev **ret)
{
    struct chardev *c = calloc(1, sizeof(*c));
    int err;

    if (!c)
        return -ENOMEM;
    err = init_core(c, config, events);
    if (err < 0)
        log_err_errno(err, "console: cannot set up");
    else
        err = init_backend(c, config);
    if (err < 0) {
        chardev_free(c);
        return err;
    }
    move_input(c);
    *ret = c;
    return 0;
}

void chardev_free(struct chardev *c)
{
    struct chardev_stream *s;

    if (!c)
        return;
    c->handler = (struct chardev_handler){0};
    list_for_each(s, &c->streams, node)
        chardev_stream_close(s);
    if (c->backend && c->backend->free)
        c->backend->free(c);
    if (c->wake_event)
        event_free(c->wake_event);
    if (c->flush_timer)
        event_free(c->flush_timer);
    fd_close(c->wake_fd);
    pthread_mutex_destroy(&c->lock);
    free(c->ring);
    free(c->path);
    free(c);
}
