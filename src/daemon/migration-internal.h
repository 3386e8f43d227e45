/*
 * What the parts of a daemon's migration share: migration.c (commands, life, and the way from the migration's threads to the main
 * loop), migration-source.c and migration-target.c (what either side asks of the daemon), migration-report.c (what is told).
 */
#ifndef UMBRA_DAEMON_MIGRATION_INTERNAL_H
#define UMBRA_DAEMON_MIGRATION_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "daemon/configuration.h"
#include "daemon/migration-guest.h"
#include "daemon/migration.h"
#include "migrate/report.h"
#include "migrate/source.h"
#include "migrate/target.h"

struct call;

struct kept_fd {
    char name[MIGRATION_FD_NAME_MAX + 1];
    int fd;
};

struct migration {
    struct machine *machine;
    struct machine_observer observer;
    struct migration_settings settings;
    struct mig_source *source; /* the newest, also after its end */
    struct mig_target *target;
    struct kept_fd fds[MIGRATION_MAX_FDS];
    unsigned int fd_count;
    uint64_t stall_ns;
    struct migration_throttle throttle;
    gpa_t writer; /* root of the address space that wrote the most when it was asked last */
    bool source_ended; /* its end was told: it needs the main loop no more */
    bool local;
    int sync_fds[CONFIG_MAX_DISKS]; /* of disks to be written out before the guest leaves; they stay while there is a source */
    unsigned int sync_count;
    bool whole; /* what arrived here is complete */

    int call_fd;
    struct event *call_event;
    pthread_mutex_t lock; /* protects what follows */
    pthread_cond_t answered;
    struct call *call; /* one at a time */
    bool news;         /* the target's status is another, and nobody waits until that is told */
    bool closing;
};

extern const struct mig_source_ops migration_source_ops;
extern const struct mig_target_ops migration_target_ops;

/* Run it on the main loop and wait; its result, -ECANCELED: the daemon is ending. A thread of the migration only. */
int migration_on_main(struct migration *mg, int (*run)(struct migration *mg, void *arg), void *arg);

/* What the source's write_out needs: before its thread is there, and when that has ended. Main thread. */
void migration_open_sync(struct migration *mg);
void migration_close_sync(struct migration *mg);

/* The target's status is another. Main thread; arg: not used, as of what is run on the main loop. Returns 0. */
int migration_target_told(struct migration *mg, void *arg);

/* The event, and at the end a line in the log. Main thread. */
void migration_tell(struct migration *mg, const struct mig_report *r);

/*
 * As query-migrate has it; stall_ns: how long the guest was held beside the switchover; blocker: why the guest could not be
 * moved now, NULL: it could.
 */
json_t *migration_report_json(const struct mig_report *r, uint64_t stall_ns, const char *blocker);

#endif
