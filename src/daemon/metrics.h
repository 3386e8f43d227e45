/*
 * The VM's metrics, served over HTTP on its metrics socket and, where asked for, on a TCP address.
 *
 * A scrape reads counters that exist anyway: it starts no measurement, harvests nothing, wakes no vCPU and takes no lock
 * that the guest waits on. A part of the daemon that has something to tell has one function in the table in metrics.c.
 * Main thread.
 */
#ifndef UMBRA_DAEMON_METRICS_H
#define UMBRA_DAEMON_METRICS_H

#include <event2/event.h>

#include "base/openmetrics.h"
#include "daemon/qmp.h"

struct metrics;

/* `context` outlives it. -ENOMEM. */
int metrics_new(struct event_base *events, const struct qmp_context *context, struct metrics **ret);
/* Closes connections, and removes the socket. NULL is fine. */
void metrics_free(struct metrics *m);

/* Serve on a Unix socket (mode 0660, group umbra) or an address as http_parse_address takes it; -errno, logged. */
int metrics_listen_unix(struct metrics *m, const char *path);
int metrics_listen_tcp(struct metrics *m, const char *address);

/* Write the page; false when memory ran out. The caller clears w->out. */
bool metrics_write(struct metrics *m, bool plain, struct om_writer *w);

#endif
