/*
 * A VM's runtime directory, /run/umbra/NAME: made and locked at the start, so that there is one daemon a name, and
 * removed at the end with everything in it that umbrad makes. Main thread.
 */
#ifndef UMBRA_DAEMON_RUNDIR_H
#define UMBRA_DAEMON_RUNDIR_H

#include <sys/types.h>

#include <stddef.h>

struct rundir;

/*
 * Make DIR and DIR/NAME (mode 0750, group umbra where there is one) and write and lock DIR/NAME/pid. What a daemon that was
 * killed left there is taken over. -EBUSY when another daemon has it (its pid is in the log), -errno; logged.
 */
int rundir_new(const char *dir, const char *name, struct rundir **ret);
/* Remove the pid file and the directory. NULL is fine. */
void rundir_free(struct rundir *r);

/* Give directory and pid file to the user that the daemon is going to be. 0 or -errno, logged. */
int rundir_give(const struct rundir *r, uid_t uid, gid_t gid);

/* The VM's own directory, as long as r lives. */
const char *rundir_path(const struct rundir *r);

/* DIR/NAME/FILE into buf, checked against the length a Unix socket address can have (107 bytes); -ENAMETOOLONG, logged. */
int rundir_socket(const struct rundir *r, const char *file, char *buf, size_t len);

#endif
