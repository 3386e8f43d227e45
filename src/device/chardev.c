/* The core of the console backends: what they are made of, their streams, and the input buffer. */
#include "config.h"

#include "device/chardev-internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/log.h"

void chardev_wake(struct chardev *c)
{
    if (c->wake_fd >= 0)
        fd_event_signal(c->wake_fd);
}

void chardev_accept_input(struct chardev *c)
{
    chardev_wake(c);
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
    chardev_flush(c);
    move_input(c);
}

/* -- events -- */

static void on_wake(evutil_socket_t fd, short what, void *opaque)
{
    struct chardev *c = opaque;

    fd_event_clear(c->wake_fd);
    chardev_output_woken(c);
    move_input(c);
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

    chardev_stream_set_blocked(s, false);
    chardev_stream_flush(s);
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
        chardev_stream_begin_output(s);
    pthread_mutex_lock(&c->lock);
    list_append(&c->streams, &s->node);
    pthread_mutex_unlock(&c->lock);
    *ret = s;
    return 0;
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

/* -- the whole -- */

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
    c->flush_timer = evtimer_new(events, chardev_on_flush_timer, c);
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

void chardev_leave(struct chardev *c)
{
    struct chardev_stream *s;

    if (!c)
        return;
    c->handler = (struct chardev_handler){0};
    list_for_each(s, &c->streams, node)
        chardev_stream_close(s);
    if (c->backend && c->backend->free)
        c->backend->free(c);
    c->backend = NULL;
}

void chardev_free(struct chardev *c)
{
    if (!c)
        return;
    chardev_leave(c);
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
