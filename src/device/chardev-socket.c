/* The console on a listening Unix socket. Who may see and type what is told in chardev.h. */
#include "config.h"

#include "device/chardev-internal.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/paths.h"
#include "base/unix.h"

struct console {
    struct unix_listener listener;
    struct event *accept_event;
    struct event *retry_timer; /* set while the host is out of descriptors */
    unsigned int clients;
};

/* -- clients -- */

/* Who gave the keyboard away: the longest connected client that can type gets it. */
static void pass_keyboard(struct chardev *c)
{
    struct chardev_stream *s;

    list_for_each(s, &c->streams, node) {
        if (s->in_fd < 0 || s->out_fd < 0)
            continue;
        if (!s->keyboard) {
            s->keyboard = true;
            chardev_stream_note(s, "you have the keyboard now");
            chardev_wake(c);
        }
        return;
    }
}

static void drop_client(struct chardev_stream *s)
{
    struct chardev *c = s->chardev;
    struct console *console = c->backend_data;

    log_debug("console %s: %s has left", c->path, s->peer);
    console->clients--;
    chardev_stream_close(s);
    pass_keyboard(c);
}

static bool has_hung_up(const struct chardev_stream *s)
{
    struct pollfd p = {.fd = s->out_fd >= 0 ? s->out_fd : s->in_fd};

    return poll(&p, 1, 0) < 0 || p.revents & (POLLHUP | POLLERR);
}

static void on_input_end(struct chardev_stream *s, int err)
{
    /* A client that has only ended its own output still wants the guest's. */
    if (err || s->out_fd < 0 || has_hung_up(s)) {
        drop_client(s);
        return;
    }
    s->keyboard = false;
    pass_keyboard(s->chardev);
}

static bool on_output_error(struct chardev_stream *s, int err)
{
    /* What it typed before it left is still the guest's. */
    if (s->in_fd >= 0 && s->keyboard) {
        chardev_stream_end_output(s);
        pass_keyboard(s->chardev);
        return false;
    }
    drop_client(s);
    return true;
}

/*
 * A client that left while nothing was read from it (the guest takes no input) or written to it has not been noticed.
 * Look before somebody else is turned away or left without a keyboard because of it.
 */
static void sweep(struct chardev *c)
{
    struct console *console = c->backend_data;
    struct chardev_stream *s;

    list_for_each(s, &c->streams, node) {
        if (!has_hung_up(s))
            continue;
        /* Ghosts may finish typing as long as nobody needs their place. */
        if (s->in_fd < 0 || !s->keyboard || console->clients >= CHARDEV_MAX_CLIENTS)
            drop_client(s);
        else
            on_output_error(s, EPIPE);
    }
}

/* -- new clients -- */

static void name_peer(struct chardev_stream *s)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);

    if (getsockopt(s->out_fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0)
        snprintf(s->peer, sizeof(s->peer), "pid %d (uid %u)", (int)cred.pid, (unsigned int)cred.uid);
    else
        snprintf(s->peer, sizeof(s->peer), "somebody");
}

static const struct chardev_stream *keyboard_holder(const struct chardev *c)
{
    struct chardev_stream *s;

    list_for_each(s, &c->streams, node)
        if (s->keyboard && s->in_fd >= 0 && s->out_fd >= 0)
            return s;
    return NULL;
}

static void turn_away(int fd)
{
    char text[96];
    int len = snprintf(text, sizeof(text), "[umbra: this console has %d clients already, which is the limit]\r\n",
                       CHARDEV_MAX_CLIENTS);

    /* A fresh socket has room for a line; if not, closing it says as much. */
    if (send(fd, text, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        log_debug("console: a client left before it was turned away");
    fd_close(fd);
}

static void add_client(struct chardev *c, int fd)
{
    struct console *console = c->backend_data;
    const struct chardev_stream *holder;
    struct chardev_stream *s;
    int err;

    sweep(c);
    if (console->clients >= CHARDEV_MAX_CLIENTS) {
        log_warn_limited("console %s: a client was turned away: %d are connected", c->path, CHARDEV_MAX_CLIENTS);
        turn_away(fd);
        return;
    }
    holder = keyboard_holder(c);
    err = chardev_stream_open(c, fd, fd, &s);
    if (err < 0) {
        log_warn_errno(err, "console %s: cannot serve a client", c->path);
        return;
    }
    console->clients++;
    name_peer(s);
    log_debug("console %s: %s has connected", c->path, s->peer);
    if (holder) {
        s->keyboard = false;
        chardev_stream_note(s, "%s has the keyboard; you see the output, and get the keyboard when it is free",
                            holder->peer);
    }
    chardev_run(c);
}

static void on_retry(evutil_socket_t fd, short what, void *opaque)
{
    struct console *console = opaque;

    event_add(console->accept_event, NULL);
}

static void on_accept(evutil_socket_t listen_fd, short what, void *opaque)
{
    static const struct timeval pause = {.tv_sec = 1};
    struct chardev *c = opaque;
    struct console *console = c->backend_data;
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0) {
        add_client(c, fd);
        return;
    }
    if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS)
        return;
    /* The client stays in the queue and would be reported again and again. */
    log_warn_limited("console %s: cannot accept a client: %s", c->path, strerrordesc_np(errno));
    event_del(console->accept_event);
    event_add(console->retry_timer, &pause);
}

/* -- the backend -- */

static void socket_free(struct chardev *c)
{
    struct console *console = c->backend_data;

    if (!console)
        return;
    if (console->accept_event)
        event_free(console->accept_event);
    if (console->retry_timer)
        event_free(console->retry_timer);
    unix_listener_close(&console->listener);
    free(console);
}

static const struct chardev_backend socket_backend = {
    .on_input_end = on_input_end,
    .on_output_error = on_output_error,
    .free = socket_free,
};

static void log_listen_error(const char *path, int err)
{
    if (err == -ENAMETOOLONG)
        log_err("console socket %s: the path has %zu bytes, the limit is %zu", path, strlen(path),
                (size_t)UNIX_PATH_MAX_LEN);
    else if (err == -EADDRINUSE)
        log_err("console socket %s: another process listens there", path);
    else if (err == -EEXIST)
        log_err("console socket %s: it exists and is no socket", path);
    else
        log_err_errno(err, "console socket %s", path);
}

int chardev_socket_init(struct chardev *c, const char *path)
{
    struct console *console = calloc(1, sizeof(*console));
    int err;

    if (!console)
        return -ENOMEM;
    console->listener.fd = -1;
    c->backend = &socket_backend;
    c->backend_data = console;
    c->path = strdup(path);
    if (!c->path)
        return -ENOMEM;
    err = unix_listen(path, 0660, UMBRA_GROUP, &console->listener);
    if (err < 0) {
        log_listen_error(path, err);
        return err;
    }
    console->accept_event = event_new(c->events, console->listener.fd, EV_READ | EV_PERSIST, on_accept, c);
    console->retry_timer = evtimer_new(c->events, on_retry, console);
    if (!console->accept_event || !console->retry_timer || event_add(console->accept_event, NULL) < 0)
        return -ENOMEM;
    return 0;
}
