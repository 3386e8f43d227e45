/* The exporter: /metrics of the whole host, and the page of the host at / with its live events. Main thread. */
#ifndef UMBRA_EXPORTER_EXPORTER_H
#define UMBRA_EXPORTER_EXPORTER_H

#include <event2/event.h>
#include <limits.h>
#include <stdbool.h>

struct exporter_config {
    char runtime_dir[PATH_MAX];
    const char *listen; /* ADDR:PORT */
    unsigned int timeout_ms; /* for one VM */
    bool no_page;            /* metrics only */
    bool no_map;             /* the page shows no maps of written memory */
};

struct exporter;

/* Listen and serve; -errno, logged. */
int exporter_new(struct event_base *events, const struct exporter_config *config, struct exporter **ret);
/* Ends connections and what was switched on for them, which may take some seconds. NULL is fine. */
void exporter_free(struct exporter *e);

/* The port it listens on. */
unsigned int exporter_port(const struct exporter *e);

#endif
