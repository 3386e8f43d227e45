/*
 * What the service manager hears of the machine: that it is ready, its state, that it needs more time to stop, and every so
 * often, where a watchdog is asked for, that all its threads are alive. Main thread. Nothing of it happens without a service
 * manager.
 */
#ifndef UMBRA_DAEMON_SERVICE_H
#define UMBRA_DAEMON_SERVICE_H

#include <event2/event.h>

#include "base/json.h"
#include "daemon/machine.h"

struct service;

/* The machine has been started and the control socket listens: READY=1. -ENOMEM. */
int service_new(struct event_base *events, struct machine *machine, struct service **ret);
void service_free(struct service *s);

/* An event of the machine, as control clients get it. `data` may be NULL and stays the caller's. */
void service_event(struct service *s, const char *name, const json_t *data);

/* The daemon ends. */
void service_stopping(void);

#endif
