/*
 * vmctl console: bytes to and fro between the terminal and the guest's serial line. On a terminal every key goes to the
 * guest but the escape key; in a pipe everything does, unless an escape key is asked for.
 */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "ctl/console-keys.h"
#include "ctl/ctl.h"
#include "ctl/term.h"
#include "ctl/vms.h"

#define CONSOLE_CHUNK 4096

struct console {
    struct ctl *ctl;
    int sock;
    struct console_keys keys;
    char escape_name[8];
    int idle_ms; /* -1: for ever */
    bool input_over;
    /* Typed bytes that the socket has not taken yet; no more are read meanwhile. */
    uint8_t pending[CONSOLE_CHUNK + 2];
    size_t pending_len;
    /* Typed bytes that have not been looked at yet: those behind an escape sequence. */
    uint8_t typed[CONSOLE_CHUNK];
    size_t typed_len;
};

/* What a step of the loop leads to; the exit status with END. */
enum step {
    GO_ON,
    END_DONE,
    END_CLOSED,
    END_FAILED,
};

static void print_help(const struct console *c)
{
    fprintf(stderr, "\r\n-- %s . or %s q ends, %s %s sends %s, %s ? prints this --\r\n", c->escape_name, c->escape_name,
            c->escape_name, c->escape_name, c->escape_name, c->escape_name);
}

/* Send what is pending as far as the socket takes it. */
static enum step send_pending(struct console *c)
{
    while (c->pending_len > 0) {
        ssize_t n = send(c->sock, c->pending, c->pending_len, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? GO_ON : END_CLOSED;
        c->pending_len -= (size_t)n;
        memmove(c->pending, c->pending + n, c->pending_len);
    }
    return GO_ON;
}

/* Give the keyboard back once all that was typed is with the guest; its output still comes. */
static void end_input(struct console *c)
{
    if (c->input_over && c->pending_len == 0)
        shutdown(c->sock, SHUT_WR);
}

/* Move typed bytes on to the socket. */
static enum step type(struct console *c)
{
    while (c->typed_len > 0 && c->pending_len == 0) {
        size_t used;
        enum console_action action =
            console_type(&c->keys, c->typed, c->typed_len, c->pending, &c->pending_len, &used);
        enum step step;

        c->typed_len -= used;
        memmove(c->typed, c->typed + used, c->typed_len);
        if (action == CONSOLE_HELP)
            print_help(c);
        step = send_pending(c);
        if (action == CONSOLE_QUIT)
            return END_DONE;
        if (step != GO_ON)
            return step;
    }
    return GO_ON;
}

static enum step read_input(struct console *c)
{
    ssize_t n = read(STDIN_FILENO, c->typed, sizeof(c->typed));

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return GO_ON;
    if (n <= 0) {
        c->input_over = true;
        end_input(c);
        return GO_ON;
    }
    c->typed_len = (size_t)n;
    return type(c);
}

static enum step read_guest(struct console *c)
{
    char buf[CONSOLE_CHUNK];
    ssize_t n = recv(c->sock, buf, sizeof(buf), 0);
    int r;

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return GO_ON;
    if (n <= 0)
        return END_CLOSED;
    r = fd_write_all(STDOUT_FILENO, buf, (size_t)n);
    if (r == 0)
        return GO_ON;
    term_restore();
    ctl_error("cannot write the output: %s", strerror(-r));
    return END_FAILED;
}

static enum step step(struct console *c)
{
    struct pollfd p[] = {
        {.fd = c->sock, .events = (short)(POLLIN | (c->pending_len ? POLLOUT : 0))},
        {.fd = c->input_over || c->pending_len ? -1 : STDIN_FILENO, .events = POLLIN},
    };
    enum step s = GO_ON;
    int n = poll(p, ARRAY_SIZE(p), c->input_over && c->pending_len == 0 ? c->idle_ms : -1);

    if (n < 0)
        return errno == EINTR ? GO_ON : END_FAILED;
    if (n == 0)
        return END_DONE;
    if (p[0].revents & POLLOUT) {
        s = send_pending(c);
        if (s == GO_ON)
            s = type(c);
        end_input(c);
    }
    if (s == GO_ON && p[0].revents & (POLLIN | POLLHUP | POLLERR))
        s = read_guest(c);
    if (s == GO_ON && p[1].revents)
        s = read_input(c);
    return s;
}

static int talk(struct console *c)
{
    bool terminal = isatty(STDIN_FILENO);
    enum step s;

    if (c->keys.escape == CONSOLE_NO_ESCAPE)
        ctl_note("connected to %s, no escape key", c->ctl->vm);
    else
        ctl_note("connected to %s, escape is %s", c->ctl->vm, c->escape_name);
    if (terminal && term_raw(STDIN_FILENO, false) < 0) {
        ctl_error("cannot set the terminal: %s", strerror(errno));
        return CTL_FAILED;
    }
    do
        s = step(c);
    while (s == GO_ON);
    term_restore();
    if (terminal)
        fputc('\n', stderr);
    if (s == END_CLOSED)
        ctl_note("%s closed the console", c->ctl->vm);
    else if (s == END_DONE && terminal)
        ctl_note("left the console of %s", c->ctl->vm);
    return s == END_FAILED ? CTL_FAILED : CTL_DONE;
}

/* Why there is nothing to connect to: the VM may be down, or its console elsewhere. */
static int no_console(struct ctl *ctl, const struct failure *f)
{
    if (f->kind != FAILURE_NO_VM)
        return ctl_fail(ctl, f);
    if (!vms_listening(ctl->runtime_dir, ctl->vm)) {
        ctl_error("%s: not running (nobody listens in %s/%s)", ctl->vm, ctl->runtime_dir, ctl->vm);
        return CTL_NO_VM;
    }
    ctl_error("%s has no console socket (umbrad was not started with --%s socket)", ctl->vm,
              ctl_opt(ctl, "virtio") ? "virtio-console" : "console");
    return CTL_FAILED;
}

int ctl_cmd_console(struct ctl *ctl)
{
    struct console c = {.ctl = ctl, .idle_ms = -1};
    _cleanup_client_ struct client *client = NULL;
    const char *escape = ctl_opt(ctl, "escape");
    struct failure f = {0};
    char path[PATH_MAX];
    int r;

    /* What a pipe brings may hold any byte. */
    c.keys.escape = isatty(STDIN_FILENO) ? CONSOLE_DEFAULT_ESCAPE : CONSOLE_NO_ESCAPE;
    if (escape && console_parse_escape(escape, &c.keys.escape) < 0)
        return ctl_usage(ctl, "--escape %s: must be ^ and a key, a single character, or none", escape);
    console_escape_name(c.keys.escape, c.escape_name);
    r = ctl_opt_seconds(ctl, "idle", 0, INT_MAX / 2, &c.idle_ms);
    if (r == CTL_DONE)
        r = vms_path(ctl, ctl_opt(ctl, "virtio") ? "virtio-console.sock" : "console.sock", path, sizeof(path));
    if (r)
        return r;
    if (client_connect(path, &client, &f) < 0)
        return no_console(ctl, &f);
    c.sock = client_fd(client);
    return talk(&c);
}
