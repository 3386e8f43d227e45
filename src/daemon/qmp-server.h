/*
 * The control socket: QMP over Unix stream sockets, on the main loop.
 *
 * Limits: QMP_MAX_CLIENTS clients that control and as many that only ask, QMP_MAX_REQUEST bytes a request, QMP_MAX_DEPTH
 * levels of nesting, QMP_MAX_QUEUE bytes waiting for a client that does not read. Its further requests are not looked at
 * while anything waits, events beyond half of that are dropped and counted, and a client that takes nothing for a while
 * is disconnected.
 * Nothing a client does can block the main loop.
 */
#ifndef UMBRA_DAEMON_QMP_SERVER_H
#define UMBRA_DAEMON_QMP_SERVER_H

#include <event2/event.h>

#include "daemon/qmp.h"

#define QMP_MAX_CLIENTS 64
#define QMP_MAX_REQUEST (1u << 20)
#define QMP_MAX_DEPTH 32
#define QMP_MAX_QUEUE (8u << 20)

struct qmp_server;

/* Make a server for the machine, which has not been started yet and outlives it. -ENOMEM. */
int qmp_server_new(struct event_base *events, struct machine *machine, struct qmp_server **ret);
/* What the migration commands work on; it outlives the server. */
void qmp_server_set_migration(struct qmp_server *s, struct migration *migration);
/* Closes every connection and unlinks the sockets it made. NULL is fine. */
void qmp_server_free(struct qmp_server *s);

/*
 * Listen on path (mode 0660; group umbra where it exists). -EADDRINUSE when another process listens there, -EEXIST when it
 * is no socket, -ENAMETOOLONG, -errno; logged.
 */
int qmp_server_listen(struct qmp_server *s, const char *path, bool read_only);

/* Send an event to every client past negotiation; `data` may be NULL and is consumed. */
void qmp_server_event(struct qmp_server *s, const char *name, json_t *data);

/* Push out what is queued before exit, for at most timeout_ms. */
void qmp_server_flush(struct qmp_server *s, int timeout_ms);

/* Take one client on an open descriptor, which the server owns from then on. -EUSERS (too many), -errno. */
int qmp_server_add_client(struct qmp_server *s, int fd, bool read_only);

#endif
