/*
 * One client of the control socket.
 *
 * A request is read, carried out and answered within one turn of the main loop: one recv(), one sendmsg(), straight from
 * the text json-c made. Only what the socket does not take at once is copied and waits for the descriptor to be writable;
 * until it is gone no further request of that client is looked at, so its queue holds one answer and some events at most.
 * A client that sends many requests in one go gives way to the others after a while (QMP_TURN_NS).
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/log.h"
#include "base/util.h"
#include "daemon/qmp-internal.h"
#include "daemon/qmp-server-internal.h"

/* Buffers up to this size are kept for the next time. */
#define KEEP_SIZE (16u << 10)
#define END_OF_LINE "\r\n"

/* The connection is over; the memory lives until the next turn, because callers up the stack still look at it. */
static void client_kill(struct qmp_client *c)
{
    if (c->dead)
        return;
    c->dead = true;
    c->server->count[c->session.read_only]--;
    event_del(&c->readable);
    event_del(&c->writable);
    c->reading = false;
    c->fd = fd_close(c->fd);
    c->out_fd = fd_close(c->out_fd);
    c->session.passed_fd = fd_close(c->session.passed_fd);
    log_debug("control client (pid %d, uid %u) is gone", (int)c->pid, (unsigned int)c->uid);
    qmp_server_later(c->server);
}

static void set_reading(struct qmp_client *c, bool on)
{
    if (c->dead || c->reading == on)
        return;
    if (on ? event_add(&c->readable, NULL) : event_del(&c->readable)) {
        client_kill(c);
        return;
    }
    c->reading = on;
}

/* -- output ------------------------------------------------------------------ */

/* Send, with a descriptor when pass_fd is one. The number of bytes taken (0 when the socket is full) or -errno. */
static ssize_t send_some(int fd, struct iovec *iov, size_t count, int pass_fd)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = count};
    ssize_t n;

    if (pass_fd >= 0) {
        struct cmsghdr *h;

        msg.msg_control = control.buf;
        msg.msg_controllen = sizeof(control.buf);
        h = CMSG_FIRSTHDR(&msg);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(h), &pass_fd, sizeof(int));
    }
    do
        n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n >= 0)
        return n;
    return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
}

/* Make room for `more` bytes; false when out of memory. */
static bool grow(char **buf, size_t *cap, size_t len, size_t more)
{
    size_t want = MAX(*cap, (size_t)4096);
    char *p;

    if (len + more <= *cap)
        return true;
    while (want < len + more)
        want *= 2;
    p = realloc(*buf, want);
    if (!p)
        return false;
    *buf = p;
    *cap = want;
    return true;
}

/* Make room for `more` bytes of output. */
static bool grow_output(struct qmp_client *c, size_t more)
{
    size_t head = c->out_head;

    if (c->out_len + more > c->out_cap && head > 0) {
        memmove(c->out, c->out + head, c->out_len - head);
        c->out_len -= head;
        c->out_fd_at -= c->out_fd >= 0 ? head : 0;
        c->out_head = 0;
    }
    return grow(&c->out, &c->out_cap, c->out_len, more);
}

/* Queue what is left of a message after `taken` bytes of it, which fd goes with. False when the client is to go. */
static bool queue_rest(struct qmp_client *c, const struct iovec *iov, size_t count, size_t taken, size_t rest, int fd)
{
    if (qmp_client_waiting(c) + rest > QMP_MAX_QUEUE || !grow_output(c, rest)) {
        log_warn_limited("control client (pid %d, uid %u) does not read: %zu bytes are waiting, the limit is %u",
                         (int)c->pid, (unsigned int)c->uid, qmp_client_waiting(c) + rest, QMP_MAX_QUEUE);
        fd_close(fd);
        return false;
    }
    if (fd >= 0) {
        /* A request is carried out only when nothing but its own events is waiting. */
        c->out_fd = fd;
        c->out_fd_at = c->out_len;
    }
    for (size_t i = 0; i < count; i++) {
        size_t skip = MIN(taken, iov[i].iov_len);

        memcpy(c->out + c->out_len, (const char *)iov[i].iov_base + skip, iov[i].iov_len - skip);
        c->out_len += iov[i].iov_len - skip;
        taken -= skip;
    }
    return true;
}

/* Send a message, or as much as the socket takes and queue the rest. fd goes with its first byte and is closed here. */
static void client_send(struct qmp_client *c, struct iovec *iov, size_t count, int fd)
{
    bool was_empty = qmp_client_waiting(c) == 0;
    size_t total = 0;
    ssize_t n = 0;

    for (size_t i = 0; i < count; i++)
        total += iov[i].iov_len;
    if (!c->dead && was_empty)
        n = send_some(c->fd, iov, count, fd);
    if (c->dead || n < 0) {
        fd_close(fd);
        client_kill(c);
        return;
    }
    if (n > 0)
        fd = fd_close(fd);
    if ((size_t)n == total)
        return;
    if (!queue_rest(c, iov, count, (size_t)n, total - (size_t)n, fd) ||
        (was_empty && event_add(&c->writable, &c->server->stall) < 0))
        client_kill(c);
}

static struct iovec piece(const char *text, size_t len)
{
    return (struct iovec){.iov_base = (void *)(uintptr_t)text, .iov_len = len};
}

#define LITERAL(text) piece(text, strlen(text))

/* Send an answer, and the descriptor that it has. */
static void client_send_answer(struct qmp_client *c, struct qmp_answer *answer)
{
    static const char no_memory[] = "{\"class\":\"GenericError\",\"desc\":\"out of memory\"}";
    _cleanup_free_ char *copy = NULL, *id_copy = NULL;
    size_t len = answer->text_len, id_len = strlen("null");
    const char *text = answer->text, *id = answer->id ? qmp_text(answer->id, &id_len, &id_copy) : "null";
    struct iovec iov[5];
    size_t n = 0;

    if (!text && answer->value)
        text = qmp_text(answer->value, &len, &copy);
    if (!text || !id) {
        answer->is_error = true;
        text = no_memory;
        len = strlen(no_memory);
    }
    iov[n++] = answer->is_error ? LITERAL("{\"error\":") : LITERAL("{\"return\":");
    iov[n++] = piece(text, len);
    if (answer->has_id && id) {
        iov[n++] = LITERAL(",\"id\":");
        iov[n++] = piece(id, id_len);
    }
    iov[n++] = LITERAL("}" END_OF_LINE);
    client_send(c, iov, n, take_fd(answer->fd));
}

static void client_send_error(struct qmp_client *c, const char *desc)
{
    struct qmp_answer answer = {.is_error = true, .value = qmp_error_value(QMP_GENERIC_ERROR, desc), .fd = -1};

    client_send_answer(c, &answer);
    qmp_answer_clear(&answer);
}

void qmp_client_event(struct qmp_client *c, const char *text, size_t len)
{
    struct iovec iov[] = {piece(text, len), LITERAL(END_OF_LINE)};

    if (c->dead || !c->session.negotiated)
        return;
    if (qmp_client_waiting(c) + len > QMP_MAX_QUEUE / 2) {
        c->dropped++;
        return;
    }
    client_send(c, iov, ARRAY_SIZE(iov), -1);
}

static void output_done(struct qmp_client *c)
{
    event_del(&c->writable);
    c->out_head = c->out_len = 0;
    if (c->out_cap > KEEP_SIZE) {
        free(c->out);
        c->out = NULL;
        c->out_cap = 0;
    }
    if (c->dropped)
        log_warn("control client (pid %d, uid %u) reads again: %" PRIu64 " events to it were dropped", (int)c->pid,
                 (unsigned int)c->uid, c->dropped);
    c->dropped = 0;
}

void qmp_client_write(struct qmp_client *c)
{
    while (!c->dead && qmp_client_waiting(c) > 0) {
        bool pass = c->out_fd >= 0 && c->out_head == c->out_fd_at;
        size_t end = c->out_fd >= 0 && !pass ? c->out_fd_at : c->out_len;
        struct iovec iov = {.iov_base = c->out + c->out_head, .iov_len = end - c->out_head};
        ssize_t n = send_some(c->fd, &iov, 1, pass ? c->out_fd : -1);

        if (n < 0) {
            client_kill(c);
            return;
        }
        if (n == 0)
            return;
        c->out_head += (size_t)n;
        if (pass)
            c->out_fd = fd_close(c->out_fd);
    }
    if (!c->dead)
        output_done(c);
}

static void on_writable(evutil_socket_t fd, short what, void *opaque)
{
    struct qmp_client *c = opaque;

    if (what & EV_TIMEOUT) {
        log_warn("control client (pid %d, uid %u) took none of %zu bytes for %ld s, disconnected; %" PRIu64
                 " events to it were dropped",
                 (int)c->pid, (unsigned int)c->uid, qmp_client_waiting(c), (long)c->server->stall.tv_sec, c->dropped);
        client_kill(c);
        return;
    }
    qmp_client_write(c);
    if (!c->dead && qmp_client_waiting(c) == 0)
        qmp_client_resume(c);
}

/* -- input ------------------------------------------------------------------- */

static void run_request(struct qmp_client *c, const char *text, size_t len)
{
    struct qmp_answer answer = qmp_execute(&c->session, c->server->tokener, text, len);

    client_send_answer(c, &answer);
    qmp_answer_clear(&answer);
}

/* Carry out the requests in data; true when it had to stop before the end of them. */
static bool run_requests(struct qmp_client *c, const char *data, size_t len)
{
    uint64_t start = 0;

    for (;;) {
        enum qmp_frame_result r;

        if (c->dead || qmp_client_waiting(c) > 0)
            return true;
        r = qmp_frame_scan(&c->frame, data, len);
        if (r == QMP_FRAME_MORE)
            return false;
        if (r == QMP_FRAME_ERROR)
            client_send_error(c, c->frame.error);
        else
            run_request(c, data + c->frame.begin, c->frame.pos - c->frame.begin);
        /* The clock is read for those only who send more than one at a time. */
        if (c->frame.pos == len)
            continue;
        if (start == 0)
            start = clock_ns();
        else if (clock_ns() - start > c->server->turn_ns)
            return true;
    }
}

/* Keep what is still needed of data, which is c->in or the server's buffer. */
static void keep_rest(struct qmp_client *c, const char *data, size_t len)
{
    size_t used = qmp_frame_discard(&c->frame), rest = len - used;

    if (rest > 0 && data != c->in && !grow(&c->in, &c->in_cap, 0, rest)) {
        client_kill(c);
        return;
    }
    if (rest > 0 && (used > 0 || data != c->in))
        memmove(c->in, data + used, rest);
    c->in_len = rest;
    if (rest == 0 && c->in_cap > 0) {
        free(c->in);
        c->in = NULL;
        c->in_cap = 0;
    }
}

/* All requests are answered and no more will come. */
static void finish(struct qmp_client *c)
{
    if (qmp_frame_pending(&c->frame)) {
        char desc[80];

        snprintf(desc, sizeof(desc), "the input ends in the middle of a request, after %zu bytes of it", c->in_len);
        qmp_frame_init(&c->frame);
        client_send_error(c, desc);
    }
    if (!c->dead && qmp_client_waiting(c) == 0)
        client_kill(c);
}

static void take_input(struct qmp_client *c, const char *data, size_t len)
{
    c->backlog = run_requests(c, data, len);
    if (c->dead)
        return;
    keep_rest(c, data, len);
    if (c->dead)
        return;
    if (!c->backlog && c->ended) {
        finish(c);
        return;
    }
    set_reading(c, !c->backlog && !c->ended);
    /* A full socket resumes the client when it has drained. */
    if (c->backlog && qmp_client_waiting(c) == 0)
        qmp_server_later(c->server);
}

void qmp_client_resume(struct qmp_client *c)
{
    if (!c->dead && qmp_client_waiting(c) == 0 && (c->backlog || c->ended))
        take_input(c, c->in, c->in_len);
}

/* As recv; a descriptor that comes along is kept for the command that takes it. */
static ssize_t receive(struct qmp_client *c, char *buf, size_t room)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec iov = {buf, room};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control.space)};
    ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    for (struct cmsghdr *h = n < 0 ? NULL : CMSG_FIRSTHDR(&msg); h; h = CMSG_NXTHDR(&msg, h)) {
        size_t count = h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS ? (h->cmsg_len - CMSG_LEN(0)) / sizeof(int)
                                                                                 : 0;

        for (size_t i = 0; i < count; i++) {
            fd_close(c->session.passed_fd);
            memcpy(&c->session.passed_fd, CMSG_DATA(h) + i * sizeof(int), sizeof(int));
        }
    }
    return n;
}

static void on_readable(evutil_socket_t fd, short what, void *opaque)
{
    struct qmp_client *c = opaque;
    char *buf = c->server->buffer;
    size_t room = sizeof(c->server->buffer);
    ssize_t n;

    if (c->in_len > 0) {
        if (!grow(&c->in, &c->in_cap, c->in_len, 4096)) {
            client_kill(c);
            return;
        }
        buf = c->in + c->in_len;
        room = MIN(c->in_cap - c->in_len, (size_t)QMP_READ_SIZE);
    }
    n = receive(c, buf, room);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0) {
        client_kill(c);
        return;
    }
    c->ended = n == 0;
    if (c->in_len > 0) {
        c->in_len += (size_t)n;
        take_input(c, c->in, c->in_len);
    } else {
        take_input(c, buf, (size_t)n);
    }
}

/* -- life -------------------------------------------------------------------- */

static void client_send_greeting(struct qmp_client *c)
{
    _cleanup_json_ json_t *greeting = qmp_greeting();
    _cleanup_free_ char *copy = NULL;
    size_t len;
    const char *text = greeting ? qmp_text(greeting, &len, &copy) : NULL;
    struct iovec iov[] = {text ? piece(text, len) : LITERAL(""), LITERAL(END_OF_LINE)};

    if (text)
        client_send(c, iov, ARRAY_SIZE(iov), -1);
    else
        client_kill(c);
}

struct qmp_client *qmp_client_new(struct qmp_server *s, int fd, bool read_only)
{
    struct qmp_client *c = calloc(1, sizeof(*c));
    struct ucred cred = {0};
    socklen_t len = sizeof(cred);

    if (!c) {
        close(fd);
        return NULL;
    }
    c->server = s;
    c->session = (struct qmp_session){.context = &s->context, .read_only = read_only, .passed_fd = -1};
    c->fd = fd;
    c->out_fd = -1;
    qmp_frame_init(&c->frame);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0) {
        c->pid = cred.pid;
        c->uid = cred.uid;
    }
    log_debug("control client (pid %d, uid %u) connected%s", (int)c->pid, (unsigned int)c->uid,
              read_only ? ", read-only" : "");
    list_append(&s->clients, &c->node);
    s->count[read_only]++;
    event_assign(&c->readable, s->events, fd, EV_READ | EV_PERSIST, on_readable, c);
    event_assign(&c->writable, s->events, fd, EV_WRITE | EV_PERSIST, on_writable, c);
    set_reading(c, true);
    client_send_greeting(c);
    return c;
}

void qmp_client_free(struct qmp_client *c)
{
    if (!c)
        return;
    client_kill(c);
    list_remove(&c->node);
    free(c->in);
    free(c->out);
    free(c);
}
