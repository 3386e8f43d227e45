/*
 * Fetching the metrics pages of all VMs of a runtime directory, some at a time, each within its time.
 *
 * On the caller's event loop; nothing blocks. A VM that does not answer costs the others nothing but the time-out.
 */
#ifndef UMBRA_EXPORTER_COLLECT_H
#define UMBRA_EXPORTER_COLLECT_H

#include <event2/event.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How many VMs are asked at a time. */
#define COLLECT_PARALLEL 16u
#define COLLECT_MAX_VMS 1024u
/* All of them together; those who have not answered by then are given up. */
#define COLLECT_TOTAL_SECONDS 8

struct collect_page {
    const char *vm;
    const char *text; /* the page, `len` bytes; NULL when there is none */
    size_t len;
    const char *error; /* why not */
    uint64_t took_ns;
};

/* All VMs were asked; `pages` (sorted by name) are valid during the call. */
typedef void collect_done(void *opaque, const struct collect_page *pages, size_t count);

struct collect;

/* The collection begins at once and calls `done` from the loop; it is over then, and frees itself. -ENOMEM, or -errno of
 * the runtime directory. */
int collect_start(struct event_base *events, const char *runtime_dir, unsigned int timeout_ms, collect_done *done,
                  void *opaque, struct collect **ret);
/* Before it is done: forget about it. NULL is fine. */
void collect_cancel(struct collect *c);

#endif
