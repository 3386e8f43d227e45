/*
 * The complete state of a machine as named sections: its facts ("machine" 0), vCPUs and in-kernel chips (vcpu/state.h),
 * devices (each by its name). Guest memory is not among it. Live migration and snapshots use it alike.
 *
 * Main thread; the machine stopped, or not started yet: vCPUs parked, devices quiet.
 */
#ifndef UMBRA_DAEMON_MACHINE_STATE_H
#define UMBRA_DAEMON_MACHINE_STATE_H

#include "base/json.h"
#include "base/state.h"
#include "daemon/machine.h"

/* Append all sections. 0, or -errno, logged. The machine may go on afterwards. */
int machine_save(struct machine *m, struct state_writer *w);

/*
 * Everything for which a guest with that state could not go on here, as a JSON array of lines; empty when it could. Machine
 * facts, devices, CPUID, MSRs, capabilities of KVM. For a machine that has not run (inmigrate). 0; -EBADMSG or -ENOENT when
 * the state itself is bad (r->error says what), -ENOMEM, or -errno of KVM, logged.
 */
int machine_compare(struct machine *m, struct state_reader *r, json_t **ret_differences);

/*
 * Load the state into a machine that has not run (inmigrate); guest memory may come before or after. captured_ns as for
 * vm_state_load. 0; -errno with r->error set, and then the machine must not run.
 */
int machine_load(struct machine *m, struct state_reader *r, uint64_t captured_ns);

/*
 * Stop a running guest for as long as machine_release is away, without a word to anybody: the run state stays. Nothing for a
 * guest that is stopped already. Both in one turn of the main loop.
 */
void machine_hold(struct machine *m);
void machine_release(struct machine *m);

/*
 * Descriptors, the caller's, of the disks that machine_leave is to write out: fdatasync(2) of them, on any thread, leaves it
 * less to do. At most `max`, and how many.
 */
unsigned int machine_sync_fds(struct machine *m, int *ret_fds, unsigned int max);

/*
 * The guest is to leave: stop it (STOP), write its disks out unless it stays on this host, and go to finish-migrate.
 * *ret_running: it ran. -ESHUTDOWN when there is no guest to move any more (it powered off, it cannot go on); -errno of a disk,
 * logged, and then it stays as it was. How long vCPUs and devices took, in nanoseconds.
 */
int machine_leave(struct machine *m, bool same_host, bool *ret_running, uint64_t *ret_pause_ns, uint64_t *ret_drain_ns);
/* It stays after all: as before machine_leave (RESUME). */
void machine_stay(struct machine *m);
/* It is gone, and its disks are whoever's has it: postmigrate. With its memory (`memory`) it can never run here again. */
void machine_left(struct machine *m, bool memory);

/* The memory of a guest that has left is needed as it is (post-copy): it can neither go on nor be reset. */
void machine_keep_memory(struct machine *m, bool on);

/*
 * In inmigrate: guest memory is that of another process of this host, in this file, which is taken over also on failure. As
 * mem_adopt.
 */
int machine_adopt(struct machine *m, int fd);
/*
 * From inmigrate, the state complete, to running (RESUME) or paused. arriving: some of guest memory is still to come, and whoever touches
 * it waits. Until machine_whole nothing is done then that looks at guest memory or waits for a vCPU or a device: no
 * ticks of the tracker, no request of the guest's (it waits), no command that does (machine_memory_arrives). Disks that cannot be
 * claimed keep it paused, logged.
 */
void machine_arrived(struct machine *m, bool run, bool arriving);
/* All of it is here. Nothing where it was before. */
void machine_whole(struct machine *m);
bool machine_memory_arrives(const struct machine *m);

#endif
