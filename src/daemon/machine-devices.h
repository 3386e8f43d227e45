/*
 * The devices of a machine: one table says which there are, in which order they are made and how many of each; making,
 * resetting, pausing, saving, restoring and freeing all follow it. Main thread only.
 */
#ifndef UMBRA_DAEMON_MACHINE_DEVICES_H
#define UMBRA_DAEMON_MACHINE_DEVICES_H

#include "boot/acpi.h"
#include "daemon/configuration.h"
#include "device/chardev.h"
#include "device/device.h"
#include "device/virtio/mmio.h"

enum machine_device {
    DEVICE_SERIAL,
    DEVICE_I8042,
    DEVICE_RTC,
    DEVICE_ACPI_PM,
    DEVICE_TEST,
    DEVICE_DISK,
    DEVICE_NET,
    DEVICE_RNG,
    DEVICE_BALLOON,
    DEVICE_VIRTIO_CONSOLE,
    DEVICE_KINDS,
};

struct machine_devices;

/*
 * Make them all; -errno, logged. env without `io`: a thread is started if a device wants one. The consoles (the virtio one is
 * NULL where there is none), what env points to, and `nets` (one for each of the configuration, open) must outlive them. They
 * are quiet until machine_devices_resume.
 */
int machine_devices_new(const struct config *config, const struct device_env *env, struct chardev *console,
                        struct chardev *virtio_console, struct net_backend *const *nets, struct machine_devices **ret);
/* NULL is fine. */
void machine_devices_free(struct machine_devices *d);

/* With the vCPUs parked. Quiesce waits for what is under way (disk requests). Both idempotent. */
void machine_devices_quiesce(struct machine_devices *d);
void machine_devices_resume(struct machine_devices *d);
/* Quiet only. */
void machine_devices_reset(struct machine_devices *d);
/*
 * Images of disks, which belong to one process at a time. Claim all before the guest runs here: 0 when they are this
 * process's already; -errno with the text of why not, and then none is; same_host as in disk_claim. Sync, then yield, when it
 * runs somewhere else from now on; sync is 0 or -errno, logged. Quiet only.
 */
#define MACHINE_CLAIM_ERROR_MAX 128
int machine_devices_claim(struct machine_devices *d, bool same_host, char error[MACHINE_CLAIM_ERROR_MAX]);
int machine_devices_sync(struct machine_devices *d);
/* Descriptors as of disk_sync_fd, at most `max`, and how many. Main thread; also of a guest that runs. */
unsigned int machine_devices_sync_fds(struct machine_devices *d, int *ret_fds, unsigned int max);
void machine_devices_yield(struct machine_devices *d);
void machine_devices_save(struct machine_devices *d, struct state_writer *w);
/* As device_restore, of the first that fails. Time goes on in them as in vm_state_load. */
int machine_devices_restore(struct machine_devices *d, struct state_reader *r, uint64_t captured_ns);

/*
 * Tell of every device that only one of the two has: the state (whose sections named in `others`, NULL at its end, are no
 * devices) and this machine; and of those that both have what differs, as device_compare.
 */
void machine_devices_compare(struct machine_devices *d, struct state_reader *r, const char *const *others,
                             void (*report)(void *opaque, const char *text), void *opaque);

/* The index-th device of a kind, or NULL. */
struct device *machine_devices_find(const struct machine_devices *d, enum machine_device kind, unsigned int index);

/* What the guest is told of devices in memory, before they are made; the number of entries. */
unsigned int machine_devices_describe(const struct config *config, struct acpi_mmio_device ret[VIRTIO_MMIO_SLOTS]);

#endif
