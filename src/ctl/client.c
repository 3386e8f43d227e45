#include "config.h"

#include "ctl/client.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/clock.h"
#include "base/fd.h"

#define CLIENT_MAX_DEPTH 64
#define CLIENT_MAX_FDS 4
#define CLIENT_CHUNK 65536

struct client {
    int fd;
    pid_t pid;
    struct json_tokener *tokener;
    uint64_t message_bytes; /* of the message being read */
    uint64_t max_message;
    size_t pos, len;        /* unread bytes of chunk */
    int passed_fd;          /* came with the answer being read, or -1 */
    client_event_fn *on_event;
    void *opaque;
    char chunk[CLIENT_CHUNK];
};

void failure_set(struct failure *f, enum failure_kind kind, const char *fmt, ...)
{
    va_list ap;

    f->kind = kind;
    va_start(ap, fmt);
    vsnprintf(f->text, sizeof(f->text), fmt, ap);
    va_end(ap);
}

uint64_t client_deadline(int timeout_ms)
{
    return clock_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
}

int client_adopt(int fd, struct client **ret, struct failure *f)
{
    struct ucred cred;
    socklen_t cred_len = sizeof(cred);
    struct client *c = calloc(1, sizeof(*c));

    if (c)
        c->tokener = json_tokener_new_ex(CLIENT_MAX_DEPTH);
    if (!c || !c->tokener || fd_set_nonblock(fd, 1) < 0) {
        failure_set(f, FAILURE_LOCAL, "out of memory");
        free(c);
        fd_close(fd);
        return -1;
    }
    c->fd = fd;
    c->passed_fd = -1;
    c->max_message = CLIENT_MAX_MESSAGE;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len) == 0)
        c->pid = cred.pid;
    *ret = c;
    return 0;
}

int client_connect(const char *path, struct client **ret, struct failure *f)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    _cleanup_close_ int fd = -1;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        failure_set(f, FAILURE_LOCAL, "socket path %s is longer than %zu bytes", path, sizeof(addr.sun_path) - 1);
        return -1;
    }
    memcpy(addr.sun_path, path, strlen(path));
    /* Nonblocking, because connect waits without end for a daemon that has stopped accepting. */
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        failure_set(f, FAILURE_LOCAL, "cannot make a socket: %s", strerror(errno));
        return -1;
    }
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
        return client_adopt(take_fd(fd), ret, f);
    switch (errno) {
    case ENOENT:
    case ENOTDIR:
    case ECONNREFUSED:
        failure_set(f, FAILURE_NO_VM, "nobody listens on %s", path);
        break;
    case EAGAIN:
        failure_set(f, FAILURE_BUSY, "%s takes no more connections", path);
        break;
    case EACCES:
    case EPERM:
        failure_set(f, FAILURE_LOCAL, "permission denied on %s: be root, the VM's user or in group umbra", path);
        break;
    default:
        failure_set(f, FAILURE_LOCAL, "cannot connect to %s: %s", path, strerror(errno));
    }
    return -1;
}

void client_close(struct client *c)
{
    if (!c)
        return;
    fd_close(c->fd);
    fd_close(c->passed_fd);
    json_tokener_free(c->tokener);
    free(c);
}

void client_limit(struct client *c, uint64_t max_message)
{
    c->max_message = max_message;
}

int client_fd(const struct client *c)
{
    return c->fd;
}

pid_t client_pid(const struct client *c)
{
    return c->pid;
}

void client_on_event(struct client *c, client_event_fn *fn, void *opaque)
{
    c->on_event = fn;
    c->opaque = opaque;
}

/* Wait for the socket; 0 or -1 with *f set. */
static int wait_for(struct client *c, short events, uint64_t deadline, struct failure *f)
{
    for (;;) {
        struct pollfd p = {.fd = c->fd, .events = events};
        uint64_t now = clock_ns();
        uint64_t left_ms = now < deadline ? DIV_ROUND_UP(deadline - now, NSEC_PER_MSEC) : 0;
        int n = poll(&p, 1, (int)MIN(left_ms, (uint64_t)INT_MAX));

        if (n > 0)
            return 0;
        if (n == 0 && left_ms == 0) {
            failure_set(f, FAILURE_TIMEOUT, "no answer in time");
            return -1;
        }
        if (n < 0 && errno != EINTR) {
            failure_set(f, FAILURE_LOCAL, "cannot wait for the daemon: %s", strerror(errno));
            return -1;
        }
    }
}

int client_send_text(struct client *c, const char *text, size_t len, int timeout_ms, struct failure *f)
{
    uint64_t deadline = client_deadline(timeout_ms);

    while (len > 0) {
        ssize_t n = send(c->fd, text, len, MSG_NOSIGNAL);

        if (n >= 0) {
            text += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            if (wait_for(c, POLLOUT, deadline, f) < 0)
                return -1;
        } else if (errno != EINTR) {
            failure_set(f, FAILURE_GONE, "the daemon closed the connection");
            return -1;
        }
    }
    return 0;
}

int client_send(struct client *c, const char *command, json_t *arguments, int timeout_ms, struct failure *f)
{
    _cleanup_json_ json_t *request = json_object_new_object();
    _cleanup_free_ char *text = NULL;
    size_t len;

    json_add_str(request, "execute", command);
    if (arguments)
        json_add(request, "arguments", arguments);
    text = json_to_ascii(request, &len);
    if (!text) {
        failure_set(f, FAILURE_LOCAL, "out of memory");
        return -1;
    }
    text[len] = '\n'; /* in the place of the terminating NUL */
    return client_send_text(c, text, len + 1, timeout_ms, f);
}

/* Keep the first descriptor of a control message and close any other. */
static void take_fds(struct client *c, struct msghdr *msg)
{
    for (struct cmsghdr *m = CMSG_FIRSTHDR(msg); m; m = CMSG_NXTHDR(msg, m)) {
        size_t count;

        if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
            continue;
        count = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(m) + i * sizeof(int), sizeof(int));
            if (c->passed_fd < 0)
                c->passed_fd = fd;
            else
                fd_close(fd);
        }
    }
}

/* Read what the socket has into the chunk, which is empty: 0, 1 when there is nothing yet, or -1 with *f set. */
static int fill(struct client *c, struct failure *f)
{
    union {
        char space[CMSG_SPACE(sizeof(int) * CLIENT_MAX_FDS)];
        struct cmsghdr align;
    } control;
    struct iovec iov = {c->chunk, sizeof(c->chunk)};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof(control.space)};
    ssize_t n;

    do
        n = recvmsg(c->fd, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return 1;
    if (n <= 0) {
        failure_set(f, FAILURE_GONE, "the daemon closed the connection%s",
                    c->message_bytes ? " in the middle of an answer" : "");
        return -1;
    }
    take_fds(c, &msg);
    c->pos = 0;
    c->len = (size_t)n;
    return 0;
}

/* What the parser says about the message so far: 0 whole, 1 more is wanted, or -1 with *f set. */
static int parse(struct client *c, json_t **ret, struct failure *f)
{
    enum json_tokener_error e;
    size_t start, used;
    json_t *o;

    /* The line end of the last message is no part of the next. */
    while (c->message_bytes == 0 && c->pos < c->len && strchr(" \t\r\n", c->chunk[c->pos]) && c->chunk[c->pos])
        c->pos++;
    if (c->pos == c->len)
        return 1;
    start = c->pos;
    o = json_tokener_parse_ex(c->tokener, c->chunk + start, (int)(c->len - start));
    e = json_tokener_get_error(c->tokener);
    used = e == json_tokener_continue ? c->len - start : json_tokener_get_parse_end(c->tokener);
    c->pos += used;
    c->message_bytes += used;
    if (e == json_tokener_continue && c->message_bytes <= c->max_message)
        return 1;
    c->message_bytes = 0;
    if (e == json_tokener_continue) {
        failure_set(f, FAILURE_PROTOCOL, "answer larger than %llu MiB", (unsigned long long)(c->max_message / MiB));
        return -1;
    }
    if (e != json_tokener_success || !json_object_is_type(o, json_type_object)) {
        failure_set(f, FAILURE_PROTOCOL, "what it answers is no QMP (%s)",
                    e == json_tokener_success ? "not a JSON object" : json_tokener_error_desc(e));
        json_object_put(o);
        return -1;
    }
    *ret = o;
    return 0;
}

int client_receive(struct client *c, uint64_t deadline_ns, json_t **ret, struct failure *f)
{
    for (;;) {
        int r = parse(c, ret, f);

        if (r <= 0)
            return r;
        r = fill(c, f);
        if (r < 0)
            return -1;
        if (r > 0 && deadline_ns == 0)
            return 1;
        if (r > 0 && wait_for(c, POLLIN, deadline_ns, f) < 0)
            return -1;
    }
}

/* The error an answer carries, as a failure. */
static void refused(const json_t *answer, struct failure *f)
{
    const char *desc = NULL;
    json_t *error;

    if (json_get_obj(answer, "error", &error) == 0 && json_get_str(error, "desc", &desc) == 0)
        failure_set(f, FAILURE_REFUSED, "%s", desc);
    else
        failure_set(f, FAILURE_PROTOCOL, "an answer is neither \"return\" nor \"error\"");
}

int client_answer(struct client *c, uint64_t deadline_ns, json_t **ret, int *ret_fd, struct failure *f)
{
    for (;;) {
        _cleanup_json_ json_t *message = NULL;
        const char *event;
        json_t *value;
        int fd;

        if (client_receive(c, deadline_ns, &message, f) < 0)
            return -1;
        if (json_get_str(message, "event", &event) == 0) {
            if (c->on_event)
                c->on_event(c->opaque, event, message);
            continue;
        }
        fd = take_fd(c->passed_fd);
        if (!json_object_object_get_ex(message, "return", &value)) {
            fd_close(fd);
            refused(message, f);
            return -1;
        }
        if (ret_fd)
            *ret_fd = fd;
        else
            fd_close(fd);
        if (ret)
            *ret = json_object_get(value);
        return 0;
    }
}

int client_negotiate(struct client *c, int timeout_ms, struct failure *f)
{
    uint64_t deadline = client_deadline(timeout_ms);
    _cleanup_json_ json_t *greeting = NULL;

    if (client_receive(c, deadline, &greeting, f) < 0)
        return -1;
    if (!json_object_object_get_ex(greeting, "QMP", NULL)) {
        /* A server that has no room says so in the place of the greeting. */
        if (json_object_object_get_ex(greeting, "error", NULL))
            refused(greeting, f);
        else
            failure_set(f, FAILURE_PROTOCOL, "what listens there is no QMP server");
        return -1;
    }
    return client_call(c, "qmp_capabilities", NULL, timeout_ms, NULL, NULL, f);
}

int client_call(struct client *c, const char *command, json_t *arguments, int timeout_ms, json_t **ret, int *ret_fd,
                struct failure *f)
{
    /* What came with no answer or with an event is nobody's. */
    c->passed_fd = fd_close(c->passed_fd);
    if (client_send(c, command, arguments, timeout_ms, f) < 0)
        return -1;
    return client_answer(c, client_deadline(timeout_ms), ret, ret_fd, f);
}
