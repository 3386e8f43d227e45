/* Consumers of the dirty log: whose they are, and how they go with a guest that migrates. Main thread. */
#ifndef UMBRA_DAEMON_CONSUMERS_H
#define UMBRA_DAEMON_CONSUMERS_H

#include "base/state.h"
#include "daemon/machine.h"

/* The command that owns the consumer of that name; NULL: anybody may begin it. */
const char *consumer_owner(const char *name);

/*
 * The consumers of the dirty log that somebody else than the daemon began: their names, as a section of the state of a guest
 * that migrates. They go on at the target, where each is told that pages were lost. A state without the section has none.
 * consumers_load: 0, -EBADMSG, -ENOSPC, -ENOMEM, -EEXIST or -errno of KVM with r->error set.
 */
void consumers_save(struct machine *m, struct state_writer *w);
int consumers_load(struct machine *m, struct state_reader *r);

#endif
