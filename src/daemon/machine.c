/*
 * Life of the machine. vCPU threads and devices never act on the machine themselves: they leave a request (a bit and, for
 * some, a value) and signal an eventfd; the main loop takes the requests in the order of their weight. A guest that
 * powers off and resets at once is off.
 */
#include "config.h"

#include "daemon/machine.h"

#include <errno.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/paths.h"
#include "daemon/machine-devices.h"
#include "daemon/machine-internal.h"
#include "daemon/machine-state.h"
#include "device/devices.h"

static int create_devices(struct machine *m)
{
    struct device_env env = {
        .mem = m->mem,
        .bus = vm_bus(m->vm),
        .irq = vm_irq_sink(m->vm),
        .events = m->events,
        .host = &m->device_host,
        .vm = m->vm,
    };

    return machine_devices_new(m->config, &env, m->console, m->virtio_console, m->nets, &m->devices);
}

/* After it nothing changes guest memory but what the main thread does itself. */
void machine_guest_stop(struct machine *m)
{
    if (!m->vm)
        return;
    vm_pause(m->vm);
    if (m->devices)
        machine_devices_quiesce(m->devices);
    /* Last: a vCPU, or a device, may wait for it. */
    if (m->mmu)
        machine_mmu_paused(m->mmu);
}

void machine_guest_run(struct machine *m)
{
    if (!m->arriving)
        machine_mmu_resuming(m->mmu);
    machine_devices_resume(m->devices);
    vm_resume(m->vm);
}

/* -- requests from vCPU threads and devices -- */

static void post(struct machine *m, enum request request)
{
    atomic_fetch_or(&m->requests, (unsigned int)request);
    fd_event_signal(m->request_fd);
}

static void on_vcpu_exit(void *opaque, unsigned int vcpu, enum vm_exit_kind kind, const char *reason)
{
    static const enum request request_of[] = {
        [VM_EXIT_RESET] = REQUEST_RESET,
        [VM_EXIT_SHUTDOWN] = REQUEST_POWEROFF,
        [VM_EXIT_CRASH] = REQUEST_CRASH,
        [VM_EXIT_INTERNAL_ERROR] = REQUEST_INTERNAL_ERROR,
    };

    post(opaque, request_of[kind]);
}

static void on_vcpu_start(void *opaque)
{
    struct machine *m = opaque;

    /* The proof would settle the vCPU's CPUID, which an arriving guest brings along. */
    if (config_arrives(m->config))
        host_prove_paging_apart(vm_kvm_fd(m->vm), &m->host);
    else
        host_prove_paging(m->vm, &m->host);
}

static void on_device_reset(void *opaque)
{
    post(opaque, REQUEST_RESET);
}

static void on_device_poweroff(void *opaque)
{
    post(opaque, REQUEST_POWEROFF);
}

static void on_device_exit(void *opaque, int status)
{
    struct machine *m = opaque;

    atomic_store(&m->exit_status, status);
    post(m, REQUEST_EXIT);
}

static void on_device_balloon(void *opaque)
{
    post(opaque, REQUEST_BALLOON);
}

static void on_device_io_error(void *opaque, const struct device_io_error *error)
{
    struct machine *m = opaque;

    pthread_mutex_lock(&m->io_error_lock);
    if (m->io_error_count < MAX_IO_ERRORS)
        m->io_errors[m->io_error_count++] = *error;
    m->io_stop |= error->stop;
    pthread_mutex_unlock(&m->io_error_lock);
    post(m, REQUEST_IO_ERROR);
}

void machine_emit(struct machine *m, const char *name, json_t *data)
{
    m->observer.on_event(m->observer.opaque, name, data);
}

static void on_page_limit(void *opaque)
{
    post(opaque, REQUEST_PAGE_LIMIT);
}

static void emit_page_limits(struct machine *m)
{
    struct page_limit_event e;

    while (machine_mmu_next_event(m->mmu, &e)) {
        json_t *data = json_object_new_object();

        json_add_u64(data, "previous", e.previous);
        json_add_u64(data, "limit", e.limit);
        json_add_str(data, "reason", e.reason);
        json_add_u64(data, "shadow-pages", e.shadow_pages);
        json_add_u64(data, "recycled", e.recycled);
        machine_emit(m, "MMU_PAGE_LIMIT", data);
    }
}

/* The guest stands still, and goes on. */
static json_t *guest_reason(bool guest, const char *reason)
{
    json_t *data = json_object_new_object();

    json_add_bool(data, "guest", guest);
    json_add_str(data, "reason", reason);
    return data;
}

void machine_end(struct machine *m, int status)
{
    if (m->ended)
        return;
    m->ended = true;
    m->observer.on_end(m->observer.opaque, status);
}

static void halt(struct machine *m, enum run_state state)
{
    bool was_running = m->state == RUN_STATE_RUNNING;

    machine_guest_stop(m);
    m->state = state;
    if (was_running)
        machine_emit(m, "STOP", NULL);
}

static void guest_crashed(struct machine *m)
{
    json_t *data = json_object_new_object();

    json_add_str(data, "action", "poweroff");
    log_err("the guest panicked");
    halt(m, RUN_STATE_GUEST_PANICKED);
    machine_emit(m, "GUEST_PANICKED", data);
    machine_end(m, 3);
}

static void guest_poweroff(struct machine *m)
{
    log_info("the guest powered off");
    machine_guest_stop(m);
    m->state = RUN_STATE_SHUTDOWN;
    machine_emit(m, "SHUTDOWN", guest_reason(true, "guest-shutdown"));
    machine_end(m, 0);
}

static void emit_io_error(struct machine *m, const struct device_io_error *error)
{
    json_t *data = json_object_new_object();

    json_add_str(data, "device", error->device);
    json_add_str(data, "node-name", error->device);
    json_add_str(data, "operation", error->operation);
    json_add_str(data, "action", error->stop ? "stop" : "report");
    json_add_bool(data, "nospace", error->no_space);
    json_add_str(data, "reason", strerror(error->error));
    machine_emit(m, "BLOCK_IO_ERROR", data);
}

static void disks_failed(struct machine *m)
{
    struct device_io_error errors[MAX_IO_ERRORS];
    unsigned int n;
    bool stop;

    pthread_mutex_lock(&m->io_error_lock);
    stop = m->io_stop;
    pthread_mutex_unlock(&m->io_error_lock);
    /* First: what is under way may fail, too, and wait for the same cont. */
    if (m->state == RUN_STATE_RUNNING && stop)
        machine_guest_stop(m);
    pthread_mutex_lock(&m->io_error_lock);
    n = m->io_error_count;
    stop = m->io_stop;
    memcpy(errors, m->io_errors, n * sizeof(errors[0]));
    m->io_error_count = 0;
    m->io_stop = false;
    pthread_mutex_unlock(&m->io_error_lock);
    for (unsigned int i = 0; i < n; i++)
        emit_io_error(m, &errors[i]);
    if (!stop || m->state != RUN_STATE_RUNNING)
        return;
    log_err("the host's disk is full: state is io-error, cont tries again");
    halt(m, RUN_STATE_IO_ERROR);
}

static void forget_requests(struct machine *m)
{
    /* These are no wish of the guest, only news, and are told after a reset too. */
    atomic_fetch_and(&m->requests, (unsigned int)(REQUEST_PAGE_LIMIT | REQUEST_BALLOON));
    pthread_mutex_lock(&m->io_error_lock);
    m->io_error_count = 0;
    m->io_stop = false;
    pthread_mutex_unlock(&m->io_error_lock);
}

static int reset(struct machine *m, bool guest, const char *reason);

void machine_take_requests(struct machine *m)
{
    unsigned int requests;

    fd_event_clear(m->request_fd);
    /* To stop a vCPU or a device may take pages that are not here. */
    if (m->arriving)
        return;
    requests = atomic_exchange(&m->requests, 0);
    if (m->ended)
        return;
    /* Beside the others: they end nothing. */
    if (requests & REQUEST_IO_ERROR)
        disks_failed(m);
    if (requests & REQUEST_BALLOON)
        machine_balloon_changed(m);
    if (requests & REQUEST_PAGE_LIMIT)
        emit_page_limits(m);
    if (requests & REQUEST_EXIT) {
        machine_guest_stop(m);
        machine_end(m, atomic_load(&m->exit_status));
    } else if (requests & REQUEST_INTERNAL_ERROR) {
        log_err("the guest cannot go on: state is internal-error, system_reset starts it anew");
        halt(m, RUN_STATE_INTERNAL_ERROR);
    } else if (requests & REQUEST_CRASH) {
        guest_crashed(m);
    } else if (requests & REQUEST_POWEROFF) {
        guest_poweroff(m);
    } else if (requests & REQUEST_RESET) {
        log_info("the guest resets");
        if (reset(m, true, "guest-reset") < 0)
            halt(m, RUN_STATE_INTERNAL_ERROR);
    }
}

static void on_requests(evutil_socket_t fd, short what, void *arg)
{
    machine_take_requests(arg);
}

/* -- putting it together -- */

static int open_image(struct machine *m)
{
    struct boot_config config = {
        .kernel = m->config->kernel,
        .initrd = m->config->initrd,
        .cmdline = m->config->cmdline,
        .acpi = {.cpus = m->config->cpus, .mmio_devices = m->mmio},
    };
    char error[BOOT_ERROR_MAX];
    int r;

    config.acpi.mmio_device_count = machine_devices_describe(m->config, m->mmio);
    r = boot_open(&config, error, &m->image);
    if (r < 0 && m->config->restore) {
        /* Where a clone runs need not be where the guest was started. */
        log_warn("%s: the guest cannot be reset", error);
        return 0;
    }
    if (r < 0)
        log_err("%s", error);
    return r;
}

/* Bring guest memory, vCPUs and devices to what they are after power-on; `memory_used`: the guest has run in it. */
static int load(struct machine *m, bool memory_used)
{
    char error[BOOT_ERROR_MAX];
    struct vcpu_entry entry;
    int r;

    if (!m->image) {
        log_err("there is no kernel to load, see the warning at the start");
        return -ENOENT;
    }
    machine_devices_reset(m->devices);
    r = memory_used ? mem_discard(m->mem) : 0;
    if (r < 0) {
        log_err_errno(r, "guest memory: cannot be cleared");
        return r;
    }
    r = boot_load(m->image, m->mem, error, &entry);
    if (r < 0) {
        log_err("%s", error);
        return r;
    }
    return vm_reset(m->vm, &entry);
}

static int create_request_event(struct machine *m)
{
    m->request_fd = fd_eventfd();
    if (m->request_fd < 0)
        return m->request_fd;
    m->request_event = event_new(m->events, m->request_fd, EV_READ | EV_PERSIST, on_requests, m);
    if (!m->request_event || event_add(m->request_event, NULL) < 0)
        return -ENOMEM;
    return 0;
}

static int create_memory(struct machine *m)
{
    struct mem_config config = {
        .size = m->config->memory,
        .hugepages = m->config->hugepages,
        .prealloc = m->config->prealloc,
        .transparent = m->config->thp,
        .private = machine_restores_lazily(m->config),
    };
    int r = m->config->restore ? machine_restore_open(m) : 0;

    if (r == 0)
        r = mem_new(&config, &m->mem);
    return r == 0 && m->config->restore ? machine_restore_memory(m) : r;
}

static int create_vm(struct machine *m)
{
    struct vm_config config = {
        .kvm_path = m->config->kvm_path,
        .cpus = m->config->cpus,
        .dirty_backend = m->config->dirty_log,
        .callbacks = {.on_exit = on_vcpu_exit, .on_start = on_vcpu_start, .opaque = m},
        .register_base = VIRTIO_MMIO_BASE,
        .register_pages = machine_devices_describe(m->config, m->mmio),
        .cpu_off = m->config->cpu_off,
        .set_halt_poll = m->config->set_halt_poll,
        .halt_poll_ns = m->config->halt_poll_ns,
    };
    int r;

    if (boot_cmdline_has(m->config->cmdline, "nolapic") || boot_cmdline_has(m->config->cmdline, "disableapic"))
        config.cpu_off |= CPUID_ASYNC_PF;
    r = vm_new(&config, m->mem, &m->vm);
    if (r == 0)
        r = machine_mmu_new(m->config, m->vm, on_page_limit, m, &m->mmu);
    return r < 0 ? r : vm_start(m->vm);
}

/* A guest starts only where KVM keeps shadow page tables, unless it was said that any paging will do. */
static int check_paging(struct machine *m)
{
    /* The proof has ended when vCPU 0 is parked. */
    vm_pause(m->vm);
    vm_set_dirty_buffered(m->vm, m->host.proven != HOST_PAGING_SHADOW);
    if (m->config->paging == CONFIG_PAGING_ANY || m->host.proven == HOST_PAGING_SHADOW)
        return 0;
    log_err("paging: KVM uses %s page tables here (%s); umbra-shadow-paging forces shadow paging, --paging any does without",
            m->host.proven == HOST_PAGING_TDP ? "nested" : "unknown", m->host.how);
    return -ENOTSUP;
}

int machine_new(const struct config *config, struct net_backend *const *nets, struct event_base *events,
                const struct machine_observer *observer, struct machine **ret)
{
    struct machine *m = calloc(1, sizeof(*m));
    int r;

    if (!m)
        return -ENOMEM;
    m->config = config;
    m->nets = nets;
    m->events = events;
    m->observer = *observer;
    m->request_fd = -1;
    m->state = RUN_STATE_PRELAUNCH;
    pthread_mutex_init(&m->io_error_lock, NULL);
    m->device_host = (struct device_host){
        .request_reset = on_device_reset,
        .request_poweroff = on_device_poweroff,
        .request_exit = on_device_exit,
        .io_error = on_device_io_error,
        .balloon_changed = on_device_balloon,
        .opaque = m,
    };
    r = create_request_event(m);
    if (r == 0)
        r = open_image(m);
    if (r == 0)
        r = create_memory(m);
    if (r == 0)
        r = create_vm(m);
    if (r == 0)
        r = machine_consoles_open(m);
    if (r == 0)
        r = machine_balloon_init(m);
    if (r == 0)
        r = create_devices(m);
    if (r < 0) {
        machine_free(m);
        return r;
    }
    *ret = m;
    return 0;
}

void machine_abandon(struct machine *m)
{
    machine_consoles_drain(m);
    machine_consoles_leave(m);
}

void machine_free(struct machine *m)
{
    if (!m)
        return;
    machine_guest_stop(m);
    /* While the devices are there: they may hold bytes that a console had no room for. */
    machine_consoles_drain(m);
    machine_devices_free(m->devices);
    machine_consoles_free(m);
    machine_balloon_fini(m);
    machine_mmu_stop(m->mmu);
    vm_free(m->vm);
    /* Last: a vCPU may wait for it until its thread has ended. */
    machine_mmu_free(m->mmu);
    boot_close(m->image);
    machine_restore_close(m);
    mem_free(m->mem);
    if (m->request_event)
        event_free(m->request_event);
    fd_close(m->request_fd);
    pthread_mutex_destroy(&m->io_error_lock);
    free(m);
}

int machine_start(struct machine *m)
{
    int r = check_paging(m);

    if (r == 0 && config_arrives(m->config))
        machine_devices_reset(m->devices);
    else if (r == 0)
        r = load(m, false);
    if (r < 0)
        return r;
    machine_consoles_start(m);
    if (config_arrives(m->config)) {
        m->state = RUN_STATE_INMIGRATE;
    } else if (!m->config->paused) {
        m->state = RUN_STATE_RUNNING;
        machine_guest_run(m);
    }
    if (m->config->restore) {
        r = machine_restore_state(m);
        if (r < 0)
            return r;
        machine_arrived(m, !m->config->paused, false);
    }
    return 0;
}

/* -- run state -- */

enum run_state machine_run_state(const struct machine *m)
{
    return m->state;
}

const char *machine_run_state_name(enum run_state state)
{
    static const char *const names[] = {
        [RUN_STATE_PRELAUNCH] = "prelaunch",
        [RUN_STATE_RUNNING] = "running",
        [RUN_STATE_PAUSED] = "paused",
        [RUN_STATE_SHUTDOWN] = "shutdown",
        [RUN_STATE_INTERNAL_ERROR] = "internal-error",
        [RUN_STATE_GUEST_PANICKED] = "guest-panicked",
        [RUN_STATE_IO_ERROR] = "io-error",
        [RUN_STATE_INMIGRATE] = "inmigrate",
        [RUN_STATE_POSTMIGRATE] = "postmigrate",
        [RUN_STATE_FINISH_MIGRATE] = "finish-migrate",
    };

    return names[state];
}

int machine_stop(struct machine *m)
{
    if (m->state == RUN_STATE_FINISH_MIGRATE)
        return -EPERM;
    if (m->state == RUN_STATE_RUNNING)
        halt(m, RUN_STATE_PAUSED);
    return 0;
}

static int run(struct machine *m, const char **ret_why)
{
    int r = machine_claim_disks(m);

    if (r < 0) {
        *ret_why = m->claim_error;
        return r;
    }
    m->state = RUN_STATE_RUNNING;
    machine_emit(m, "RESUME", NULL);
    machine_guest_run(m);
    return 0;
}

int machine_cont(struct machine *m, const char **ret_why)
{
    switch (m->state) {
    case RUN_STATE_RUNNING:
        return 0;
    case RUN_STATE_POSTMIGRATE:
        if (m->memory_given) {
            *ret_why = "guest memory was handed over to another process";
            return -EPERM;
        }
        if (m->memory_kept) {
            *ret_why = "the guest runs at the target, which needs its memory here";
            return -EPERM;
        }
        __attribute__((fallthrough));
    case RUN_STATE_PRELAUNCH:
    case RUN_STATE_PAUSED:
    case RUN_STATE_IO_ERROR:
        return run(m, ret_why);
    case RUN_STATE_INMIGRATE:
        *ret_why = "the guest is still on its way here";
        return -EPERM;
    case RUN_STATE_FINISH_MIGRATE:
        *ret_why = "the guest is about to leave";
        return -EPERM;
    case RUN_STATE_SHUTDOWN:
    case RUN_STATE_INTERNAL_ERROR:
    case RUN_STATE_GUEST_PANICKED:
        *ret_why = "Resetting the Virtual Machine is required";
        return -EPERM;
    }
    return -EPERM;
}

/* QEMU's rule: a guest that ran goes on running; any other waits for cont in prelaunch. */
static int reset(struct machine *m, bool guest, const char *reason)
{
    bool go_on = m->state == RUN_STATE_RUNNING;
    int r;

    machine_guest_stop(m);
    /* What a vCPU asked for before it was stopped belongs to the life that ends here. */
    forget_requests(m);
    machine_mmu_reset(m->mmu);
    r = load(m, true);
    if (r < 0)
        return r;
    machine_emit(m, "RESET", guest_reason(guest, reason));
    if (go_on)
        machine_guest_run(m);
    else
        m->state = RUN_STATE_PRELAUNCH;
    return 0;
}

int machine_reset(struct machine *m)
{
    int r;

    if (m->state == RUN_STATE_INMIGRATE || m->state == RUN_STATE_FINISH_MIGRATE || m->memory_given || m->memory_kept)
        return -EBUSY;
    r = reset(m, false, "host-qmp-system-reset");

    if (r < 0)
        halt(m, RUN_STATE_INTERNAL_ERROR);
    return r;
}

int machine_powerdown(struct machine *m)
{
    int r = acpi_pm_power_button(machine_devices_find(m->devices, DEVICE_ACPI_PM, 0));

    if (r == 0)
        machine_emit(m, "POWERDOWN", NULL);
    return r;
}

static void quit(struct machine *m, const char *reason)
{
    if (m->ended)
        return;
    if (m->arriving || m->memory_kept)
        log_err("the guest is lost%s: a part of its memory had not come yet", m->memory_kept ? " where it runs" : "");
    if (!m->arriving)
        machine_guest_stop(m);
    m->state = RUN_STATE_SHUTDOWN;
    machine_emit(m, "SHUTDOWN", guest_reason(false, reason));
    machine_end(m, 0);
}

void machine_quit(struct machine *m)
{
    quit(m, "host-qmp-quit");
}

void machine_signalled(struct machine *m)
{
    quit(m, "host-signal");
}

const struct config *machine_config(const struct machine *m)
{
    return m->config;
}

struct vm *machine_vm(struct machine *m)
{
    return m->vm;
}

struct machine_mmu *machine_mmu(struct machine *m)
{
    return m->mmu;
}

const struct host_info *machine_host(struct machine *m)
{
    /* What a start does not need takes a VM of its own: only when somebody asks. */
    if (!m->host_examined)
        host_examine(vm_kvm_fd(m->vm), &m->host);
    m->host_examined = true;
    return &m->host;
}

struct device *machine_disk(struct machine *m, unsigned int index)
{
    return machine_devices_find(m->devices, DEVICE_DISK, index);
}

struct device *machine_net(struct machine *m, unsigned int index)
{
    return machine_devices_find(m->devices, DEVICE_NET, index);
}

struct device *machine_rng(struct machine *m)
{
    return machine_devices_find(m->devices, DEVICE_RNG, 0);
}

struct device *machine_balloon(struct machine *m)
{
    return machine_devices_find(m->devices, DEVICE_BALLOON, 0);
}

struct device *machine_virtio_console(struct machine *m)
{
    return machine_devices_find(m->devices, DEVICE_VIRTIO_CONSOLE, 0);
}

struct event_base *machine_events(struct machine *m)
{
    return m->events;
}
