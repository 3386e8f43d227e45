/*
 * Live migration of the daemon's machine: at most one at a time, out or in, started from the control socket or by --incoming.
 * src/migrate does the work on threads of its own; what they need of the machine is done here on the main loop.
 *
 * Main thread.
 */
#ifndef UMBRA_DAEMON_MIGRATION_H
#define UMBRA_DAEMON_MIGRATION_H

#include <event2/event.h>

#include "base/json.h"
#include "daemon/machine.h"
#include "migrate/source.h"

#define MIGRATION_ERROR_MAX 320
#define MIGRATION_MAX_FDS 16
#define MIGRATION_FD_NAME_MAX 64
#define MIGRATION_HOST_MAX 255

struct migration;

/* The settings that outlive a migration; QEMU's names on the socket. */
struct migration_settings {
    struct mig_parameters parameters;
    unsigned int multifd_channels; /* with multifd */
    bool multifd;
    bool zstd;
    unsigned int zstd_level;       /* with zstd */
    char tls_hostname[MIGRATION_HOST_MAX + 1]; /* whose certificate a target must have; "": that of the address */
};

int migration_new(struct event_base *events, struct machine *machine, const struct machine_observer *observer,
                  struct migration **ret);
/* Before the machine is freed. Cancels what runs. NULL is fine. */
void migration_free(struct migration *mg);
/* In post-copy, instead, when the process ends at once: see machine_abandon. */
void migration_abandon(struct migration *mg);

/*
 * Move the guest to a target at tcp:HOST:PORT, unix:PATH, or fd:NAME (a descriptor given by migration_keep_fd). `local`:
 * with its memory, to another process of this host. What becomes of it is told by events and query-migrate. -errno with
 * error[MIGRATION_ERROR_MAX].
 */
int migration_start(struct migration *mg, const char *uri, bool local, char *error);
/* Wait for a guest; the machine is in inmigrate. "defer": nothing until the next call. */
int migration_incoming(struct migration *mg, const char *uri, char *error);
/* Nothing when none runs. */
void migration_cancel(struct migration *mg);
/* Out of pre-switchover. -EINVAL when it is not in it. */
int migration_continue(struct migration *mg);

/* Leave pre-copy for post-copy. -EINVAL where that is not possible now. */
int migration_start_postcopy(struct migration *mg);
/* Cut the connection of a post-copy; either side. -EINVAL when there is none. */
int migration_pause(struct migration *mg);
/* A post-copy has lost its connection. Source: connect again. Target: wait at this address too. -errno with error[MIGRATION_ERROR_MAX]. */
int migration_resume(struct migration *mg, const char *uri, char *error);
int migration_recover(struct migration *mg, const char *uri, char *error);

const struct migration_settings *migration_settings(const struct migration *mg);
/* Also for a migration that runs, but for its channels. */
void migration_set(struct migration *mg, const struct migration_settings *settings);

/* Keep a descriptor under a name for fd:NAME; takes it over, also on failure, and closes one that had the name. -ENOSPC. */
int migration_keep_fd(struct migration *mg, const char *name, int fd);
/* -ENOENT */
int migration_close_fd(struct migration *mg, const char *name);

/* What query-migrate answers. */
json_t *migration_query(struct migration *mg);

#endif
