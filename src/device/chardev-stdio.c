/*
 * The console on stdin and stdout.
 *
 * Both must not block here, but O_NONBLOCK belongs to the open file, which a shell and other programs share. So a terminal
 * or pipe is opened anew through /proc; only where that is refused (another user's terminal) the flag is set on what there
 * is, and taken back at the end. Sockets have a flag for each call, regular files never block.
 *
 * A terminal is in raw mode only while this process is in its foreground: in the background, reading and setting modes
 * would stop the process, and the guest with it.
 */
#include "config.h"

#include "device/chardev-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>

#include "base/fd.h"
#include "base/log.h"

#define ESCAPE 0x01 /* Ctrl-A */

struct stdio {
    struct chardev_stream *stream;
    struct event *on_continue; /* SIGCONT: the shell has brought us to the foreground, or to the background */
    bool escape;               /* the last byte was ESCAPE */
    bool nonblock_set[2];      /* on descriptor 0, 1: to be taken back */
};

/* There is one terminal and one stdio; exit handlers take no argument. */
static struct {
    bool in_use, is_tty, raw;
    struct termios cooked;
} terminal;

/* -- the terminal -- */

/* Also when there is no job control: the terminal is not the controlling one of our session. */
static bool in_foreground(void)
{
    pid_t foreground = tcgetpgrp(STDIN_FILENO);

    return foreground < 0 || foreground == getpgrp();
}

static void terminal_restore(void)
{
    if (!terminal.raw)
        return;
    terminal.raw = false;
    if (in_foreground())
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal.cooked);
}

static void terminal_raw(void)
{
    struct termios t = terminal.cooked;

    cfmakeraw(&t);
    /* Log lines go to the same terminal and end in a bare line feed. */
    t.c_oflag |= OPOST | ONLCR;
    terminal.raw = tcsetattr(STDIN_FILENO, TCSANOW, &t) == 0;
}

/* Raw mode and input only in the foreground. */
static void terminal_follow(struct chardev *c)
{
    struct stdio *io = c->backend_data;
    bool foreground = in_foreground();

    if (foreground)
        terminal_raw();
    if (io->stream && io->stream->in_fd >= 0)
        chardev_stream_hold_input(io->stream, !foreground);
}

static void on_continue(evutil_socket_t sig, short what, void *opaque)
{
    terminal_follow(opaque);
}

static int terminal_init(struct chardev *c)
{
    static bool at_exit;
    struct stdio *io = c->backend_data;

    terminal.is_tty = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &terminal.cooked) == 0;
    if (!terminal.is_tty)
        return 0;
    if (!at_exit)
        at_exit = atexit(terminal_restore) == 0;
    io->on_continue = evsignal_new(c->events, SIGCONT, on_continue, c);
    if (!io->on_continue || evsignal_add(io->on_continue, NULL) < 0)
        return -ENOMEM;
    terminal_follow(c);
    return 0;
}

/* -- what a person types -- */

static void escape_command(struct chardev *c, uint8_t command)
{
    struct stdio *io = c->backend_data;

    switch (command) {
    case 'x':
    case 'X':
        if (c->on_quit)
            c->on_quit(c->on_quit_opaque);
        break;
    case 'b':
    case 'B':
        if (c->handler.on_break)
            c->handler.on_break(c->handler.opaque);
        break;
    case 'h':
    case 'H':
    case '?':
        chardev_stream_note(io->stream, "Ctrl-A x ends it, Ctrl-A b sends a break, Ctrl-A Ctrl-A sends a Ctrl-A");
        chardev_wake(c);
        break;
    default:
        break;
    }
}

static size_t filter(struct chardev *c, uint8_t *data, size_t len)
{
    struct stdio *io = c->backend_data;
    size_t kept = 0;

    if (!terminal.is_tty)
        return len;
    for (size_t i = 0; i < len; i++) {
        if (io->escape) {
            io->escape = false;
            if (data[i] == ESCAPE)
                data[kept++] = ESCAPE;
            else
                escape_command(c, data[i]);
        } else if (data[i] == ESCAPE) {
            io->escape = true;
        } else {
            data[kept++] = data[i];
        }
    }
    return kept;
}

/* -- the backend -- */

static bool on_output_error(struct chardev_stream *s, int err)
{
    log_warn("console: output to stdout has ended: %s", strerrordesc_np(err));
    chardev_stream_end_output(s);
    return false;
}

/* A descriptor for our own use that does not block. */
static int private_fd(struct stdio *io, int fd, int access)
{
    char path[32];
    struct stat st;
    int flags, copy;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        copy = open(path, access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (copy >= 0)
            return copy;
        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
            return -errno;
        io->nonblock_set[fd] = !(flags & O_NONBLOCK);
    }
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return copy < 0 ? -errno : copy;
}

static void stdio_free(struct chardev *c)
{
    struct stdio *io = c->backend_data;

    if (!io)
        return;
    if (io->on_continue)
        event_free(io->on_continue);
    terminal_restore();
    for (int fd = 0; fd < 2; fd++)
        if (io->nonblock_set[fd])
            fd_set_nonblock(fd, 0);
    terminal.in_use = false;
    free(io);
}

static const struct chardev_backend stdio_backend = {
    .lossless = true,
    .filter = filter,
    .on_output_error = on_output_error,
    .free = stdio_free,
};

static int open_stream(struct chardev *c)
{
    struct stdio *io = c->backend_data;
    int in_fd, out_fd;

    in_fd = private_fd(io, STDIN_FILENO, O_RDONLY);
    if (in_fd < 0) {
        log_err_errno(in_fd, "console: stdin");
        return in_fd;
    }
    out_fd = private_fd(io, STDOUT_FILENO, O_WRONLY);
    if (out_fd < 0) {
        log_err_errno(out_fd, "console: stdout");
        fd_close(in_fd);
        return out_fd;
    }
    return chardev_stream_open(c, in_fd, out_fd, &io->stream);
}

int chardev_stdio_init(struct chardev *c)
{
    int err;

    if (terminal.in_use) {
        log_err("console: stdio is in use by another one");
        return -EBUSY;
    }
    c->backend = &stdio_backend;
    c->backend_data = calloc(1, sizeof(struct stdio));
    if (!c->backend_data)
        return -ENOMEM;
    terminal.in_use = true;
    err = open_stream(c);
    if (err == 0)
        err = terminal_init(c);
    return err;
}
