#include "config.h"

#include "daemon/qmp-server.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/paths.h"
#include "base/util.h"
#include "daemon/dirty-rate.h"
#include "daemon/qmp-internal.h"
#include "daemon/qmp-server-internal.h"

/* For the group: whoever may control the VM is in it. */
#define SOCKET_MODE 0660

void qmp_server_later(struct qmp_server *s)
{
    static const struct timeval at_once = {0};

    if (!evtimer_pending(&s->later, NULL))
        evtimer_add(&s->later, &at_once);
}

static void on_later(evutil_socket_t fd, short what, void *opaque)
{
    struct qmp_server *s = opaque;
    struct qmp_client *c;

    list_for_each(c, &s->clients, node) {
        if (c->dead)
            qmp_client_free(c);
        else
            qmp_client_resume(c);
    }
}

/* -- connections ------------------------------------------------------------- */

/* Tell a client that is one too many, if it takes that without waiting. */
static void refuse_client(int fd)
{
    static const char text[] =
        "{\"error\":{\"class\":\"GenericError\",\"desc\":\"too many control clients, the limit is %u\"}}\r\n";
    char line[sizeof(text) + 16];
    int n = snprintf(line, sizeof(line), text, QMP_MAX_CLIENTS);

    if (send(fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        log_debug("a refused control client was gone already");
    close(fd);
    log_warn_limited("a control client was refused: there are %u, the limit", QMP_MAX_CLIENTS);
}

int qmp_server_add_client(struct qmp_server *s, int fd, bool read_only)
{
    int r;

    if (s->count[read_only] >= QMP_MAX_CLIENTS) {
        refuse_client(fd);
        return -EUSERS;
    }
    r = fd_set_nonblock(fd, 1);
    if (r < 0) {
        close(fd);
        return r;
    }
    return qmp_client_new(s, fd, read_only) ? 0 : -ENOMEM;
}

/* No descriptor or memory for a connection: look away for a second, the listener would be readable all the time. */
static void pause_accepting(struct qmp_server *s, int err)
{
    static const struct timeval second = {.tv_sec = 1};

    log_warn_limited("control socket: cannot accept a client: %s", strerror(err));
    for (unsigned int i = 0; i < s->listener_count; i++)
        event_del(&s->listeners[i].event);
    evtimer_add(&s->accept, &second);
}

static void on_accept_again(evutil_socket_t fd, short what, void *opaque)
{
    struct qmp_server *s = opaque;

    for (unsigned int i = 0; i < s->listener_count; i++)
        event_add(&s->listeners[i].event, NULL);
}

static void on_connection(evutil_socket_t listening, short what, void *opaque)
{
    struct qmp_listener *l = opaque;
    int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0)
        qmp_server_add_client(l->server, fd, l->read_only);
    else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
        pause_accepting(l->server, errno);
}

static void log_listen_error(const char *path, int err)
{
    switch (err) {
    case -EADDRINUSE:
        log_err("%s: another process listens on it", path);
        break;
    case -EEXIST:
        log_err("%s: exists and is not a socket", path);
        break;
    case -ENAMETOOLONG:
        log_err("%s: %zu bytes are too long for a socket path, the limit is %zu", path, strlen(path), UNIX_PATH_MAX_LEN);
        break;
    default:
        log_err_errno(err, "%s: cannot listen", path);
    }
}

int qmp_server_listen(struct qmp_server *s, const char *path, bool read_only)
{
    struct qmp_listener *l = &s->listeners[s->listener_count];
    int r;

    if (s->listener_count == QMP_MAX_LISTENERS)
        return -ENOSPC;
    r = unix_listen(path, SOCKET_MODE, UMBRA_GROUP, &l->file);
    if (r < 0) {
        log_listen_error(path, r);
        return r;
    }
    l->server = s;
    l->read_only = read_only;
    if (event_assign(&l->event, s->events, l->file.fd, EV_READ | EV_PERSIST, on_connection, l) < 0 ||
        event_add(&l->event, NULL) < 0) {
        log_err("%s: cannot be watched by the main loop", path);
        unix_listener_close(&l->file);
        return -EIO;
    }
    s->listener_count++;
    return 0;
}

/* -- events ------------------------------------------------------------------ */

void qmp_server_event(struct qmp_server *s, const char *name, json_t *data)
{
    _cleanup_json_ json_t *event = json_object_new_object();
    json_t *timestamp = json_object_new_object();
    _cleanup_free_ char *copy = NULL;
    struct qmp_client *c;
    struct timeval now;
    const char *text;
    size_t len;

    gettimeofday(&now, NULL);
    json_add_i64(timestamp, "seconds", now.tv_sec);
    json_add_i64(timestamp, "microseconds", now.tv_usec);
    json_add(event, "timestamp", timestamp);
    json_add_str(event, "event", name);
    if (data)
        json_add(event, "data", data);
    text = event ? qmp_text(event, &len, &copy) : NULL;
    if (!text) {
        log_err("event %s is lost: out of memory", name);
        return;
    }
    list_for_each(c, &s->clients, node)
        qmp_client_event(c, text, len);
}

/* -- life -------------------------------------------------------------------- */

int qmp_server_new(struct event_base *events, struct machine *machine, struct qmp_server **ret)
{
    struct qmp_server *s = calloc(1, sizeof(*s));
    int r = -ENOMEM;

    if (!s)
        return r;
    s->events = events;
    s->context.machine = machine;
    s->stall.tv_sec = QMP_STALL_SECONDS;
    s->turn_ns = QMP_TURN_NS;
    list_init(&s->clients);
    evtimer_assign(&s->later, events, on_later, s);
    evtimer_assign(&s->accept, events, on_accept_again, s);
    s->tokener = json_tokener_new_ex(QMP_MAX_DEPTH + 1);
    if (s->tokener)
        r = dirty_rate_new(events, machine, &s->context.dirty_rate);
    if (r == 0)
        r = qmp_stats_new(machine, &s->context.stats);
    if (r == 0)
        r = qmp_snapshot_new(events, machine, s, &s->context.snapshot);
    if (r < 0) {
        qmp_server_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

void qmp_server_set_migration(struct qmp_server *s, struct migration *migration)
{
    s->context.migration = migration;
}

const struct qmp_context *qmp_server_context(const struct qmp_server *s)
{
    return &s->context;
}

void qmp_server_free(struct qmp_server *s)
{
    struct qmp_client *c;

    if (!s)
        return;
    for (unsigned int i = 0; i < s->listener_count; i++) {
        event_del(&s->listeners[i].event);
        unix_listener_close(&s->listeners[i].file);
    }
    list_for_each(c, &s->clients, node)
        qmp_client_free(c);
    evtimer_del(&s->later);
    evtimer_del(&s->accept);
    qmp_snapshot_free(s->context.snapshot);
    qmp_stats_free(s->context.stats);
    dirty_rate_free(s->context.dirty_rate);
    if (s->tokener)
        json_tokener_free(s->tokener);
    free(s);
}

/* Write to every client that has something waiting and is ready; true when nothing is left. */
static bool flush_once(struct qmp_server *s, int wait_ms)
{
    struct pollfd fds[2 * QMP_MAX_CLIENTS];
    struct qmp_client *clients[ARRAY_SIZE(fds)], *c;
    nfds_t n = 0;

    list_for_each(c, &s->clients, node)
        if (!c->dead && qmp_client_waiting(c) > 0) {
            fds[n] = (struct pollfd){.fd = c->fd, .events = POLLOUT};
            clients[n++] = c;
        }
    if (n == 0 || poll(fds, n, wait_ms) < 0)
        return n == 0;
    for (nfds_t i = 0; i < n; i++)
        if (fds[i].revents)
            qmp_client_write(clients[i]);
    return false;
}

void qmp_server_flush(struct qmp_server *s, int timeout_ms)
{
    uint64_t end = clock_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
    int left = timeout_ms;

    while (!flush_once(s, left)) {
        uint64_t now = clock_ns();

        if (now >= end)
            return;
        left = (int)((end - now) / NSEC_PER_MSEC);
    }
}
