/* The two steps by which the daemon gives up what it does not need: who it is, and what its threads may do. */
#ifndef UMBRA_DAEMON_LOCKDOWN_H
#define UMBRA_DAEMON_LOCKDOWN_H

#include "daemon/configuration.h"
#include "daemon/rundir.h"

/*
 * Become the user that the configuration names, without any capability, and have every thread that is made from now on locked in.
 * Before the first thread, and before anything but the runtime directory is opened: what the VM needs must be that user's
 * to open. 0 or -errno, logged.
 */
int lockdown_begin(const struct config *c, const struct rundir *rundir);

/*
 * Lock the main thread in: no file but in the directories of this VM, no system call but those on its list. Everything that
 * the configuration names is open; nothing that a guest or a peer wrote has been read. 0 or -errno, logged.
 */
int lockdown_finish(const struct config *c, const struct rundir *rundir);

#endif
