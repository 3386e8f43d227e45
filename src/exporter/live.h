/*
 * The page of the host and its live events. While nobody has the page open nothing is asked; while somebody has, every VM's
 * metrics are, once a second, which reads counters that exist anyway. A map of written memory does cost a guest something:
 * it is made for a VM only while somebody looks at that VM's map, and what was switched on for it is switched off again.
 */
#ifndef UMBRA_EXPORTER_LIVE_H
#define UMBRA_EXPORTER_LIVE_H

#include <event2/event.h>

#include "base/http.h"
#include "exporter/exporter.h"

#define LIVE_MAX_STREAMS 32u

struct live;

int live_new(struct event_base *events, const struct exporter_config *config, unsigned int port, struct live **ret);
void live_free(struct live *l);

/* Answer a request for the page or for its events ("/", "/events"); false when it is for neither. */
bool live_request(struct live *l, struct http_connection *c, const struct http_request *request);

#endif
