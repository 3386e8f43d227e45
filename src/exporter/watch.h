/*
 * A map of what one VM writes, made once a second for as long as somebody looks at it: a consumer of the VM's dirty log, in a
 * thread of its own, since a conversation with a VM may wait. The consumer ends with the watch; one that an exporter which
 * was killed left behind is ended by watch_sweep.
 */
#ifndef UMBRA_EXPORTER_WATCH_H
#define UMBRA_EXPORTER_WATCH_H

#include <stdbool.h>

#include "base/paths.h"

struct watch;

struct watch_config {
    const char *runtime_dir; /* outlives the watch */
    char vm[VM_NAME_MAX + 1];
    char consumer[33];
    int notify_fd; /* an eventfd that is signalled when there is something to take, or the watch is over */
};

int watch_start(const struct watch_config *config, struct watch **ret);
/* Ask it to end; watch_over tells when it has. */
void watch_stop(struct watch *w);
bool watch_over(const struct watch *w);
/* Wait for its end, which takes no longer than a VM may take to answer, and free it. */
void watch_free(struct watch *w);

/* The newest map as JSON text, the caller's; NULL when there is none that was not taken. Main thread. */
char *watch_take(struct watch *w);

/* End the consumer where it is there and nobody of this process uses it. For every VM; blocks for a VM that does not answer. */
void watch_sweep(const char *runtime_dir, const char *consumer);

#endif
