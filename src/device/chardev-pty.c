/*
 * The console on a pseudo-terminal, for people who bring their own terminal program.
 *
 * Whether somebody has the other side open shows as POLLHUP on ours, which cannot be waited for without spinning; so
 * inotify tells when it is opened and closed. While it is closed nothing is written: what the guest prints stays in the
 * ring, and whoever opens it gets that first.
 */
#include "config.h"

#include "device/chardev-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <termios.h>

#include "base/fd.h"
#include "base/log.h"

struct pty {
    int master;
    int watch_fd;
    struct event *watch_event;
    struct chardev_stream *stream; /* NULL while nobody has it open */
    char *link;                    /* made by us, or NULL */
};

static bool is_open(const struct pty *pty)
{
    struct pollfd p = {.fd = pty->master};

    return poll(&p, 1, 0) >= 0 && !(p.revents & (POLLHUP | POLLERR));
}

static void attach(struct chardev *c)
{
    struct pty *pty = c->backend_data;
    int fd = fcntl(pty->master, F_DUPFD_CLOEXEC, 3), err = fd < 0 ? -errno : 0;

    if (err == 0)
        err = chardev_stream_open(c, fd, fd, &pty->stream);
    if (err < 0)
        log_warn_errno(err, "console %s: cannot attach", c->path);
    else
        chardev_run(c);
}

static void detach(struct chardev *c)
{
    struct pty *pty = c->backend_data;

    if (pty->stream)
        chardev_stream_close(take_ptr(pty->stream));
}

static void on_watch(evutil_socket_t fd, short what, void *opaque)
{
    struct chardev *c = opaque;
    struct pty *pty = c->backend_data;
    char events[1024];

    /* What happened exactly may be old; look at how it is now. */
    while (read(fd, events, sizeof(events)) > 0)
        continue;
    if (is_open(pty) && !pty->stream)
        attach(c);
    else if (!is_open(pty))
        detach(c);
}

static void on_input_end(struct chardev_stream *s, int err)
{
    detach(s->chardev);
}

static bool on_output_error(struct chardev_stream *s, int err)
{
    detach(s->chardev);
    return true;
}

/* A link may take the place of an old link only. */
static int make_link(struct pty *pty, const char *target, const char *path)
{
    struct stat st;

    if (lstat(path, &st) == 0 && !S_ISLNK(st.st_mode))
        return -EEXIST;
    if (unlink(path) < 0 && errno != ENOENT)
        return -errno;
    if (symlink(target, path) < 0)
        return -errno;
    pty->link = strdup(path);
    return pty->link ? 0 : -ENOMEM;
}

static void remove_link(const struct pty *pty, const char *target)
{
    char now[64];
    ssize_t len = readlink(pty->link, now, sizeof(now));

    if (len >= 0 && (size_t)len == strlen(target) && memcmp(now, target, (size_t)len) == 0)
        unlink(pty->link);
}

/* Bytes pass as they are: without this the terminal's line discipline would echo our output back as input. */
static int make_raw(const char *path)
{
    _cleanup_close_ int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios t;

    if (fd < 0 || tcgetattr(fd, &t) < 0)
        return -errno;
    cfmakeraw(&t);
    return tcsetattr(fd, TCSANOW, &t) < 0 ? -errno : 0;
}

static int open_pty(struct chardev *c, struct pty *pty)
{
    char path[64];
    int err;

    pty->master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (pty->master < 0 || grantpt(pty->master) < 0 || unlockpt(pty->master) < 0)
        return -errno;
    err = ptsname_r(pty->master, path, sizeof(path));
    if (err != 0)
        return -err;
    c->path = strdup(path);
    if (!c->path)
        return -ENOMEM;
    return make_raw(path);
}

static int watch(struct chardev *c, struct pty *pty)
{
    pty->watch_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (pty->watch_fd < 0 || inotify_add_watch(pty->watch_fd, c->path, IN_OPEN | IN_CLOSE) < 0)
        return -errno;
    pty->watch_event = event_new(c->events, pty->watch_fd, EV_READ | EV_PERSIST, on_watch, c);
    return pty->watch_event && event_add(pty->watch_event, NULL) == 0 ? 0 : -ENOMEM;
}

static void pty_free(struct chardev *c)
{
    struct pty *pty = c->backend_data;

    if (!pty)
        return;
    if (pty->link)
        remove_link(pty, c->path);
    if (pty->watch_event)
        event_free(pty->watch_event);
    fd_close(pty->watch_fd);
    fd_close(pty->master);
    free(pty->link);
    free(pty);
}

static const struct chardev_backend pty_backend = {
    .on_input_end = on_input_end,
    .on_output_error = on_output_error,
    .free = pty_free,
};

int chardev_pty_init(struct chardev *c, const char *link)
{
    struct pty *pty = calloc(1, sizeof(*pty));
    int err;

    if (!pty)
        return -ENOMEM;
    pty->master = pty->watch_fd = -1;
    c->backend = &pty_backend;
    c->backend_data = pty;
    err = open_pty(c, pty);
    if (err == 0)
        err = watch(c, pty);
    if (err < 0) {
        log_err_errno(err, "console: cannot make a pty");
        return err;
    }
    err = link ? make_link(pty, c->path, link) : 0;
    if (err < 0)
        log_err_errno(err, "console link %s", link);
    return err;
}
