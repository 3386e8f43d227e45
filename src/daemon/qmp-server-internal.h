/* What the parts of the control server share: the server (qmp-server.c) and one client's input and output (qmp-client.c). */
#ifndef UMBRA_DAEMON_QMP_SERVER_INTERNAL_H
#define UMBRA_DAEMON_QMP_SERVER_INTERNAL_H

#include <event2/event.h>
#include <event2/event_struct.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/clock.h"
#include "base/list.h"
#include "base/unix.h"
#include "daemon/qmp-frame.h"
#include "daemon/qmp-server.h"

/* Control and read-only control socket. */
#define QMP_MAX_LISTENERS 2
/* A client that takes nothing of what waits for it for so long is disconnected. */
#define QMP_STALL_SECONDS 30
/* How long one client's requests may keep the others waiting; a single request is never cut short. */
#define QMP_TURN_NS (5 * NSEC_PER_MSEC)
/* Where a client without a half-sent request is read into. */
#define QMP_READ_SIZE (64u << 10)

struct qmp_listener {
    struct qmp_server *server;
    struct unix_listener file;
    struct event event;
    bool read_only;
};

struct qmp_server {
    struct event_base *events;
    struct qmp_context context;
    struct json_tokener *tokener;
    struct list_node clients;
    unsigned int count[2]; /* clients that are not dead, by read_only */
    struct qmp_listener listeners[QMP_MAX_LISTENERS];
    unsigned int listener_count;
    struct event later;  /* at the next turn of the loop: go on with clients that have a backlog, free dead ones */
    struct event accept; /* accept again after descriptors ran out */
    struct timeval stall; /* QMP_STALL_SECONDS and QMP_TURN_NS, but for tests */
    uint64_t turn_ns;
    char buffer[QMP_READ_SIZE];
};

struct qmp_client {
    struct list_node node;
    struct qmp_server *server;
    struct qmp_session session;
    int fd;
    pid_t pid; /* who connected, for the log */
    uid_t uid;
    struct event readable, writable;
    bool reading; /* `readable` is added */
    bool backlog; /* input waits for output to drain, or for its turn */
    bool ended;   /* the client will send no more; close when all is answered and sent */
    bool dead;    /* to be freed at the next turn of the loop */

    /* Input: bytes of a request that is not complete, and of further ones when there is a backlog. */
    struct qmp_frame frame;
    char *in;
    size_t in_len, in_cap;

    /* Output that the socket did not take: out[out_head, out_len). */
    char *out;
    size_t out_head, out_len, out_cap;
    int out_fd; /* goes with the byte at out_fd_at; -1 for none */
    size_t out_fd_at;
    uint64_t dropped; /* events */
};

/* Take over fd (nonblocking) and send the greeting. NULL when out of memory (fd is closed). */
struct qmp_client *qmp_client_new(struct qmp_server *s, int fd, bool read_only);
/* Release everything; not from below a callback of this client. */
void qmp_client_free(struct qmp_client *c);

/* Go on with a backlog. */
void qmp_client_resume(struct qmp_client *c);

/* Send one event's text, or drop and count it when too much is waiting. */
void qmp_client_event(struct qmp_client *c, const char *text, size_t len);

/* Write what waits, as far as the socket takes it. */
void qmp_client_write(struct qmp_client *c);
static inline size_t qmp_client_waiting(const struct qmp_client *c)
{
    return c->out_len - c->out_head;
}

/* Run qmp_client_resume for clients with a backlog and free the dead, at the next turn of the loop. */
void qmp_server_later(struct qmp_server *s);

#endif
