/*
 * The machine: one VM put together from memory, vCPUs, devices and a kernel, and its run state.
 *
 * Main thread only, but for what vCPU threads report through callbacks (they post to the main loop's eventfd).
 */
#ifndef UMBRA_DAEMON_MACHINE_H
#define UMBRA_DAEMON_MACHINE_H

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "boot/boot.h"
#include "daemon/configuration.h"
#include "daemon/machine-mmu.h"
#include "device/device.h"
#include "vcpu/host.h"
#include "vcpu/vm.h"

struct machine;

/* QEMU's names (RunState); machine_run_state_name gives them as QMP spells them. */
enum run_state {
    RUN_STATE_PRELAUNCH,
    RUN_STATE_RUNNING,
    RUN_STATE_PAUSED,
    RUN_STATE_SHUTDOWN,
    RUN_STATE_INTERNAL_ERROR,
    RUN_STATE_GUEST_PANICKED,
    RUN_STATE_IO_ERROR,
    RUN_STATE_INMIGRATE,
    RUN_STATE_POSTMIGRATE,
    RUN_STATE_FINISH_MIGRATE,
};

/* What the machine tells the daemon. Main thread. */
struct machine_observer {
    /* An event in QMP's name and data (consumed, may be NULL): STOP, RESUME, RESET, SHUTDOWN, POWERDOWN,
     * GUEST_PANICKED, BLOCK_IO_ERROR, BALLOON_CHANGE. */
    void (*on_event)(void *opaque, const char *name, json_t *data);
    /* The machine is over; umbrad ends with this exit status. */
    void (*on_end)(void *opaque, int exit_status);
    void *opaque;
};

/* Put everything together; vCPU 0 may be at the proof of paging, no other runs. Logs what is wrong; -errno. `config` and `nets`, the open backends of
 * its network cards, must outlive the machine. */
int machine_new(const struct config *config, struct net_backend *const *nets, struct event_base *events,
                const struct machine_observer *observer, struct machine **ret);
void machine_free(struct machine *m);
/*
 * Leave nothing outside of the process, which must end at once afterwards: some of its threads wait for pages that will not come,
 * and cannot be joined; and none of them may go on.
 */
void machine_abandon(struct machine *m);

/*
 * Load the guest and start it, unless --paused: then it stays in prelaunch. One that is to arrive from elsewhere
 * (--incoming) is waited for in inmigrate; see machine-state.h. Refuses where paging is not what was asked for.
 * Logs what is wrong; -errno. What can be done without the result of the proof is best done before.
 */
int machine_start(struct machine *m);

enum run_state machine_run_state(const struct machine *m);
const char *machine_run_state_name(enum run_state state);

/*
 * stop: running -> paused (a no-op in any state that is not running). -EPERM for a guest that is just leaving, which the target
 * is about to run.
 */
int machine_stop(struct machine *m);
/*
 * cont: -EPERM where the state does not allow it (after a shutdown or internal error: reset first), -errno where disks of a guest
 * that arrived, or left, cannot be claimed (-EBUSY: another process has one); the state stays. *ret_why is the text of it, the
 * machine's until the next call.
 */
int machine_cont(struct machine *m, const char **ret_why);
/* system_reset: also the way out of internal-error. 0 or -errno, logged; -EBUSY while the guest arrives, leaves, or is gone and its memory needed. */
int machine_reset(struct machine *m);
/* Press the power button; -ENODEV while the guest has not enabled it. */
int machine_powerdown(struct machine *m);
/* End at once: somebody's quit, or a signal to umbrad. */
void machine_quit(struct machine *m);
void machine_signalled(struct machine *m);

const struct config *machine_config(const struct machine *m);
struct vm *machine_vm(struct machine *m);
struct machine_mmu *machine_mmu(struct machine *m);
/* What this host offers; the first call looks at what a start does not need to know, which takes some 20 ms. */
const struct host_info *machine_host(struct machine *m);
/* The index-th disk (a vblk), or NULL. */
struct device *machine_disk(struct machine *m, unsigned int index);
/* The index-th network card (a vnet), or NULL. */
struct device *machine_net(struct machine *m, unsigned int index);
/* Each NULL where the guest has none. */
struct device *machine_rng(struct machine *m);
struct device *machine_balloon(struct machine *m);
struct device *machine_virtio_console(struct machine *m);
struct event_base *machine_events(struct machine *m);

#endif
