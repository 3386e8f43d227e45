/* What the files of the machine share. */
#ifndef UMBRA_DAEMON_MACHINE_INTERNAL_H
#define UMBRA_DAEMON_MACHINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/machine-devices.h"
#include "daemon/machine.h"

enum request {
    REQUEST_EXIT = 1 << 0, /* the test device; exit_status */
    REQUEST_INTERNAL_ERROR = 1 << 1,
    REQUEST_CRASH = 1 << 2,
    REQUEST_POWEROFF = 1 << 3,
    REQUEST_RESET = 1 << 4,
    REQUEST_IO_ERROR = 1 << 5, /* io_errors */
    REQUEST_BALLOON = 1 << 7, /* the guest's balloon has another size */
    REQUEST_PAGE_LIMIT = 1 << 6, /* KVM's page limit was changed */
};

/* Errors that wait to be told; of more at a time only the count is known. */
#define MAX_IO_ERRORS 16

struct machine {
    const struct config *config;
    struct net_backend *const *nets;
    struct event_base *events;
    struct machine_observer observer;
    struct mem *mem;
    struct vm *vm;
    struct machine_mmu *mmu;
    struct boot_image *image;
    struct chardev *console, *virtio_console; /* the latter NULL where the guest has none */
    struct event *balloon_event; /* pending: BALLOON_CHANGE was told within the last second */
    bool balloon_untold;         /* and the size has changed since */
    struct device_host device_host;
    struct machine_devices *devices;
    struct acpi_mmio_device mmio[VIRTIO_MMIO_SLOTS];
    enum run_state state;
    bool ended;
    enum run_state left_from; /* what finish-migrate came after */
    char claim_error[MACHINE_CLAIM_ERROR_MAX]; /* why disks were not claimed last */
    bool memory_given; /* guest memory is another process's now */
    bool same_host;    /* the guest comes from another process of this host: see machine_adopt; until its disks are claimed */
    bool memory_kept;  /* the guest runs elsewhere with a part of it: see machine_keep_memory */
    bool arriving;     /* some of it is still to come: see machine_arrived */
    struct host_info host;
    bool host_examined; /* all of it, not only paging */

    struct snapshot_chain *snapshot; /* that it is restored from; NULL once that is done */

    int request_fd;
    struct event *request_event;
    atomic_uint requests;
    atomic_int exit_status;
    pthread_mutex_t io_error_lock; /* protects what follows */
    struct device_io_error io_errors[MAX_IO_ERRORS];
    unsigned int io_error_count;
    bool io_stop; /* one of them, told or not, wants the machine to stop */
};

/* vCPUs parked and devices quiet: after it nothing changes guest memory but what the main thread does itself; and back. */
void machine_guest_stop(struct machine *m);
void machine_guest_run(struct machine *m);
void machine_emit(struct machine *m, const char *name, json_t *data);
void machine_end(struct machine *m, int status);
/* Carry out what vCPUs and devices asked for. */
void machine_take_requests(struct machine *m);

/* machine-state.c: as machine_devices_claim, the reason in claim_error. */
int machine_claim_disks(struct machine *m);

/* machine-console.c: the backends of both consoles; open: 0 or -errno, logged. Drain waits for at most a second each. */
int machine_consoles_open(struct machine *m);
void machine_consoles_start(struct machine *m);
void machine_consoles_drain(struct machine *m);
void machine_consoles_leave(struct machine *m);
void machine_consoles_free(struct machine *m);

/* machine-balloon.c: event BALLOON_CHANGE, once a second at most. */
int machine_balloon_init(struct machine *m);
void machine_balloon_fini(struct machine *m);
void machine_balloon_changed(struct machine *m);

/*
 * machine-restore.c, for config->restore; each 0 or -errno, logged. The first one opens and checks the snapshot, then memory
 * comes before the VM is made, and the state into the finished machine (inmigrate).
 */
int machine_restore_open(struct machine *m);
bool machine_restores_lazily(const struct config *c);
int machine_restore_memory(struct machine *m);
int machine_restore_state(struct machine *m);
void machine_restore_close(struct machine *m);

#endif
