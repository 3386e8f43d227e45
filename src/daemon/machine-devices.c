#include "config.h"

#include "daemon/machine-devices.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "device/devices.h"
#include "device/io-thread.h"
#include "device/virtio/net.h"
#include "device/virtio/balloon.h"
#include "device/virtio/console.h"
#include "device/virtio/rng.h"
#include "vcpu/state.h"

struct entry {
    enum machine_device kind;
    unsigned int index; /* among those of the kind */
    struct device *device;
};

struct machine_devices {
    const struct config *config;
    struct chardev *console, *virtio_console;
    struct net_backend *const *nets;
    struct io_thread *io; /* NULL: no device wants one */
    struct entry *entries;
    unsigned int count;
};

/* What a row's function is given. */
struct making {
    const struct config *config;
    const struct device_env *env;
    struct chardev *console, *virtio_console;
    struct net_backend *const *nets;
    unsigned int index; /* among those of the kind */
    unsigned int slot;  /* virtio-mmio's, of a virtio device */
};

/* -- the one table ------------------------------------------------------------ */

struct row {
    const char *name; /* in messages */
    bool virtio;
    unsigned int (*count)(const struct config *c); /* NULL: one */
    int (*create)(const struct making *m, struct device **ret);
};

static int create_serial(const struct making *m, struct device **ret)
{
    return serial_create(m->env, m->console, ret);
}

static int create_i8042(const struct making *m, struct device **ret)
{
    return i8042_create(m->env, ret);
}

static int create_rtc(const struct making *m, struct device **ret)
{
    return rtc_create(m->env, ret);
}

static int create_acpi_pm(const struct making *m, struct device **ret)
{
    return acpi_pm_create(m->env, ret);
}

static int create_testdev(const struct making *m, struct device **ret)
{
    return testdev_create(m->env, ret);
}

static unsigned int count_testdev(const struct config *c)
{
    return c->test_device;
}

static int create_disk(const struct making *m, struct device **ret)
{
    struct vblk_config disk = m->config->disks[m->index];

    /* The source of a migration has it; a snapshot's guest has none. */
    disk.unclaimed = m->config->incoming;
    return vblk_create(m->env, &disk, m->index, m->slot, ret);
}

static unsigned int count_disks(const struct config *c)
{
    return c->disk_count;
}

static int create_net(const struct making *m, struct device **ret)
{
    const struct net_config *net = &m->config->nets[m->index];
    struct vnet_config config = {.backend = m->nets[m->index], .mtu = net->mtu};

    if (net->set_mac)
        memcpy(config.mac, net->mac, NET_MAC_LEN);
    else
        net_default_mac(m->config->name, m->index, config.mac);
    return vnet_create(m->env, &config, m->index, m->slot, ret);
}

static unsigned int count_nets(const struct config *c)
{
    return c->net_count;
}

static int create_rng(const struct making *m, struct device **ret)
{
    return vrng_create(m->env, &m->config->rng, m->slot, ret);
}

static unsigned int count_rng(const struct config *c)
{
    return c->rng.on;
}

static int create_balloon(const struct making *m, struct device **ret)
{
    return vballoon_create(m->env, &m->config->balloon, m->slot, ret);
}

static unsigned int count_balloon(const struct config *c)
{
    return c->balloon.on;
}

static int create_virtio_console(const struct making *m, struct device **ret)
{
    return vconsole_create(m->env, m->virtio_console, m->slot, ret);
}

static unsigned int count_virtio_console(const struct config *c)
{
    return c->virtio_console;
}

static const struct row table[DEVICE_KINDS] = {
    [DEVICE_SERIAL] = {"serial port", false, NULL, create_serial},
    [DEVICE_I8042] = {"keyboard controller", false, NULL, create_i8042},
    [DEVICE_RTC] = {"clock", false, NULL, create_rtc},
    [DEVICE_ACPI_PM] = {"ACPI power", false, NULL, create_acpi_pm},
    [DEVICE_TEST] = {"test device", false, count_testdev, create_testdev},
    [DEVICE_DISK] = {"disk", true, count_disks, create_disk},
    [DEVICE_NET] = {"network card", true, count_nets, create_net},
    [DEVICE_RNG] = {"random numbers", true, count_rng, create_rng},
    [DEVICE_BALLOON] = {"balloon", true, count_balloon, create_balloon},
    [DEVICE_VIRTIO_CONSOLE] = {"virtio console", true, count_virtio_console, create_virtio_console},
};

static unsigned int count_of(const struct config *config, enum machine_device kind)
{
    return table[kind].count ? table[kind].count(config) : 1;
}

/* -- making and freeing ------------------------------------------------------- */

unsigned int machine_devices_describe(const struct config *config, struct acpi_mmio_device ret[VIRTIO_MMIO_SLOTS])
{
    unsigned int slots = 0;

    for (unsigned int kind = 0; kind < DEVICE_KINDS; kind++)
        for (unsigned int i = 0; table[kind].virtio && i < count_of(config, kind) && slots < VIRTIO_MMIO_SLOTS; i++) {
            ret[slots] = (struct acpi_mmio_device){
                .hid = VIRTIO_MMIO_HID,
                .uid = slots,
                .base = virtio_mmio_base(slots),
                .size = VIRTIO_MMIO_SIZE,
                .gsi = virtio_mmio_gsi(slots),
            };
            slots++;
        }
    return slots;
}

static int create(struct machine_devices *d, enum machine_device kind, struct making *making)
{
    struct entry *e = &d->entries[d->count];
    int r;

    if (table[kind].virtio && making->slot >= VIRTIO_MMIO_SLOTS) {
        log_err("%s %u: there are more than %d virtio devices", table[kind].name, making->index, VIRTIO_MMIO_SLOTS);
        return -ENOSPC;
    }
    r = table[kind].create(making, &e->device);
    if (r < 0) {
        log_err_errno(r, "%s %u: cannot create", table[kind].name, making->index);
        return r;
    }
    e->kind = kind;
    e->index = making->index;
    d->count++;
    making->slot += table[kind].virtio;
    return 0;
}

static int create_all(struct machine_devices *d, const struct device_env *env)
{
    struct making making = {.config = d->config, .env = env, .console = d->console,
                             .virtio_console = d->virtio_console, .nets = d->nets};

    for (unsigned int kind = 0; kind < DEVICE_KINDS; kind++)
        for (making.index = 0; making.index < count_of(d->config, kind); making.index++) {
            int r = create(d, kind, &making);

            if (r < 0)
                return r;
        }
    return 0;
}

static int start_io(struct machine_devices *d)
{
    struct acpi_mmio_device mmio[VIRTIO_MMIO_SLOTS];
    int r = 0;

    if (machine_devices_describe(d->config, mmio) > 0)
        r = io_thread_new(&d->io);
    if (r < 0)
        log_err_errno(r, "cannot start the I/O thread");
    return r;
}

int machine_devices_new(const struct config *config, const struct device_env *env, struct chardev *console,
                        struct chardev *virtio_console, struct net_backend *const *nets, struct machine_devices **ret)
{
    struct machine_devices *d = calloc(1, sizeof(*d));
    struct device_env with_io = *env;
    unsigned int n = 0;
    int r;

    if (!d)
        return -ENOMEM;
    d->config = config;
    d->console = console;
    d->nets = nets;
    d->virtio_console = virtio_console;
    for (unsigned int kind = 0; kind < DEVICE_KINDS; kind++)
        n += count_of(config, kind);
    d->entries = calloc(n, sizeof(*d->entries));
    r = d->entries ? start_io(d) : -ENOMEM;
    with_io.io = d->io;
    if (r == 0)
        r = create_all(d, &with_io);
    if (r < 0) {
        machine_devices_free(d);
        return r;
    }
    *ret = d;
    return 0;
}

void machine_devices_free(struct machine_devices *d)
{
    if (!d)
        return;
    while (d->count > 0)
        device_destroy(d->entries[--d->count].device);
    io_thread_free(d->io);
    free(d->entries);
    free(d);
}

/* -- what is done to all of them ---------------------------------------------- */

void machine_devices_quiesce(struct machine_devices *d)
{
    for (unsigned int i = 0; i < d->count; i++)
        device_quiesce(d->entries[i].device);
}

void machine_devices_resume(struct machine_devices *d)
{
    for (unsigned int i = 0; i < d->count; i++)
        device_resume(d->entries[i].device);
}

void machine_devices_reset(struct machine_devices *d)
{
    for (unsigned int i = 0; i < d->count; i++)
        device_reset(d->entries[i].device);
}

static const char *claim_error(int r)
{
    switch (r) {
    case -EBUSY:
        return "another process has its image open";
    case -ESTALE:
        return "its image has another size than when it was opened";
    default:
        return strerrordesc_np(-r);
    }
}

int machine_devices_claim(struct machine_devices *d, bool same_host, char error[MACHINE_CLAIM_ERROR_MAX])
{
    for (unsigned int i = 0; i < d->count; i++) {
        int r = d->entries[i].kind == DEVICE_DISK ? vblk_claim(d->entries[i].device, same_host) : 0;

        if (r == 0)
            continue;
        snprintf(error, MACHINE_CLAIM_ERROR_MAX, "disk%u: %s", d->entries[i].index, claim_error(r));
        /* Two sides with half of the disks each would both wait for ever. */
        machine_devices_yield(d);
        return r;
    }
    return 0;
}

int machine_devices_sync(struct machine_devices *d)
{
    for (unsigned int i = 0; i < d->count; i++) {
        int r = d->entries[i].kind == DEVICE_DISK ? vblk_sync(d->entries[i].device) : 0;

        if (r < 0)
            return r;
    }
    return 0;
}

unsigned int machine_devices_sync_fds(struct machine_devices *d, int *ret_fds, unsigned int max)
{
    unsigned int n = 0;

    for (unsigned int i = 0; i < d->count && n < max; i++) {
        int fd = d->entries[i].kind == DEVICE_DISK ? vblk_sync_fd(d->entries[i].device) : -1;

        if (fd >= 0)
            ret_fds[n++] = fd;
    }
    return n;
}

void machine_devices_yield(struct machine_devices *d)
{
    for (unsigned int i = 0; i < d->count; i++)
        if (d->entries[i].kind == DEVICE_DISK)
            vblk_yield(d->entries[i].device);
}

void machine_devices_save(struct machine_devices *d, struct state_writer *w)
{
    for (unsigned int i = 0; i < d->count; i++)
        device_save(d->entries[i].device, w);
}

int machine_devices_restore(struct machine_devices *d, struct state_reader *r, uint64_t captured_ns)
{
    for (unsigned int i = 0; i < d->count; i++) {
        int err = device_restore(d->entries[i].device, r);

        if (err < 0)
            return err;
        /* At once: another may have to wait for a page of the guest's before it is restored. */
        device_advance(d->entries[i].device, vm_state_age(captured_ns));
    }
    return 0;
}

static bool is_one_of(const char *name, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(name, *list) == 0)
            return true;
    return false;
}

static bool has_device(const struct machine_devices *d, const struct state_section *s)
{
    for (unsigned int i = 0; i < d->count; i++)
        if (strcmp(d->entries[i].device->ops->name, s->name) == 0 && d->entries[i].device->instance == s->instance)
            return true;
    return false;
}

void machine_devices_compare(struct machine_devices *d, struct state_reader *r, const char *const *others,
                             void (*report)(void *opaque, const char *text), void *opaque)
{
    char text[STATE_NAME_MAX + 64];

    for (unsigned int i = 0; i < d->count; i++) {
        struct device *dev = d->entries[i].device;

        device_compare(dev, r, report, opaque);
        if (!dev->ops->save || state_find(r, dev->ops->name, dev->instance))
            continue;
        snprintf(text, sizeof(text), "device %s %u: only here", dev->ops->name, dev->instance);
        report(opaque, text);
    }
    for (uint32_t i = 0; i < r->count; i++) {
        const struct state_section *s = &r->sections[i];

        if (is_one_of(s->name, others) || has_device(d, s))
            continue;
        snprintf(text, sizeof(text), "device %s %u: not here", s->name, s->instance);
        report(opaque, text);
    }
}

struct device *machine_devices_find(const struct machine_devices *d, enum machine_device kind, unsigned int index)
{
    for (unsigned int i = 0; i < d->count; i++)
        if (d->entries[i].kind == kind && d->entries[i].index == index)
            return d->entries[i].device;
    return NULL;
}
