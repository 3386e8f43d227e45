/* Making a VM of KVM's parts, and taking it apart. */
#include "config.h"

#include "vcpu/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "vcpu/cpuid.h"
#include "vcpu/vm-internal.h"

#define KVM_EXPECTED_API 12
/* Three pages for the real-mode TSS and one for its identity table, in the hole and away from APICs and firmware. */
#define VM_TSS_ADDR 0xfffbd000ul
#define VM_IDENTITY_MAP_ADDR 0xfffbc000ul
/* 1 MiB a vCPU: about 64k writes between two harvests before the guest has to wait. */
#define VM_RING_ENTRIES 65536u

struct capability {
    int cap;
    const char *name;
};

static const struct capability needed[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    {KVM_CAP_PIT2, "KVM_CAP_PIT2"},
    {KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"},
    {KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"},
    {KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR"},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
    {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
    {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
    {KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"},
    {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
    {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
};

static int open_kvm(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC), version;

    if (fd < 0) {
        int r = -errno;

        log_err_errno(r, "%s: cannot open", path);
        return r;
    }
    version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_EXPECTED_API) {
        if (version < 0)
            log_err_errno(errno, "%s: is not KVM", path);
        else
            log_err("%s: KVM API version %d, %d is needed", path, version, KVM_EXPECTED_API);
        close(fd);
        return -ENOTSUP;
    }
    return fd;
}

static int check_capabilities(const struct vm *vm)
{
    int missing = 0, max = vm_check_extension(vm, KVM_CAP_MAX_VCPUS);

    for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
        if (vm_check_extension(vm, (unsigned int)needed[i].cap) == 0) {
            log_err("kvm: %s is missing", needed[i].name);
            missing++;
        }
    if ((unsigned int)max < vm->cpus) {
        log_err("kvm: %u vcpus asked for, the host allows %d", vm->cpus, max);
        missing++;
    }
    return missing ? -ENOTSUP : 0;
}

static int vm_ioctl(struct vm *vm, unsigned long request, void *arg, const char *name)
{
    int r = ioctl(vm->fd, request, arg);

    if (r < 0) {
        r = -errno;
        log_err_errno(r, "kvm: %s failed", name);
    }
    return r;
}

/* In-kernel devices. The order is KVM's: chips before vCPUs. */
static int create_chips(struct vm *vm)
{
    uint64_t identity = VM_IDENTITY_MAP_ADDR;
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    int r;

    r = vm_ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity, "KVM_SET_IDENTITY_MAP_ADDR");
    if (r == 0)
        r = vm_ioctl(vm, KVM_SET_TSS_ADDR, (void *)VM_TSS_ADDR, "KVM_SET_TSS_ADDR");
    if (r == 0)
        r = vm_ioctl(vm, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP");
    if (r == 0)
        r = vm_ioctl(vm, KVM_CREATE_PIT2, &pit, "KVM_CREATE_PIT2");
    return r;
}

static int set_slots(struct vm *vm, bool logging)
{
    unsigned int n;
    const struct mem_slot *slots = mem_slots(vm->mem, &n);

    for (unsigned int i = 0; i < n; i++) {
        struct kvm_userspace_memory_region region = {
            .slot = slots[i].id,
            .flags = logging ? KVM_MEM_LOG_DIRTY_PAGES : 0,
            .guest_phys_addr = slots[i].base,
            .memory_size = slots[i].size,
            .userspace_addr = (uintptr_t)slots[i].hva,
        };
        int r = vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");

        if (r < 0)
            return r;
    }
    return 0;
}

/* Registers are an optimization: where it cannot be had, every read of them is an exit. 0 or -ENOMEM. */
static int set_register_slot(struct vm *vm, uint64_t base, unsigned int pages)
{
    struct kvm_userspace_memory_region region = {
        .slot = MEM_MAX_SLOTS,
        .flags = KVM_MEM_READONLY,
        .guest_phys_addr = base,
        .memory_size = pages_to_bytes(pages),
    };
    void *p;

    if (pages == 0 || vm_check_extension(vm, KVM_CAP_READONLY_MEM) <= 0)
        return 0;
    p = mmap(NULL, region.memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return -ENOMEM;
    region.userspace_addr = (uintptr_t)p;
    if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region) < 0) {
        log_debug("registers: no read-only memory slot: %s", strerror(errno));
        munmap(p, region.memory_size);
        return 0;
    }
    vm->registers = p;
    vm->register_size = region.memory_size;
    return 0;
}

/* -- the dirty log's view of KVM -- */

static int dirty_set_logging(void *opaque, bool on)
{
    return set_slots(opaque, on);
}

static int dirty_get(void *opaque, uint32_t slot, uint64_t *bitmap)
{
    struct vm *vm = opaque;
    struct kvm_dirty_log arg = {.slot = slot, .dirty_bitmap = bitmap};

    return ioctl(vm->fd, KVM_GET_DIRTY_LOG, &arg) < 0 ? -errno : 0;
}

static int dirty_clear(void *opaque, uint32_t slot, uint64_t first_page, uint32_t num_pages, const uint64_t *bitmap)
{
    struct vm *vm = opaque;
    struct kvm_clear_dirty_log arg = {
        .slot = slot,
        .num_pages = num_pages,
        .first_page = first_page,
        .dirty_bitmap = (void *)(uintptr_t)bitmap,
    };

    return ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &arg) < 0 ? -errno : 0;
}

static int dirty_reset_rings(void *opaque)
{
    struct vm *vm = opaque;
    int r = ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0);

    return r < 0 ? -errno : r;
}

/* Every vCPU that is inside KVM_RUN leaves it once. It needs no lock for that, so waiting here cannot deadlock. */
static int dirty_kick_vcpus(void *opaque, bool crowded)
{
    struct vm *vm = opaque;

    for (unsigned int i = 0; (vm->dirty_buffered || crowded) && i < vm->cpus; i++) {
        struct vcpu *vcpu = vm->vcpus[i];
        unsigned int entered = atomic_load(&vcpu->entries);

        if (!vcpu->started || entered % 2 == 0)
            continue;
        vcpu_kick(vcpu);
        while (atomic_load(&vcpu->entries) == entered)
            sched_yield();
    }
    return 0;
}

static const struct dirty_ops dirty_kvm_ops = {
    .set_logging = dirty_set_logging,
    .get = dirty_get,
    .clear = dirty_clear,
    .reset_rings = dirty_reset_rings,
    .kick_vcpus = dirty_kick_vcpus,
};

/* Choose how KVM reports dirty pages; it has to be settled before the first vCPU is made. */
static int enable_dirty_backend(struct vm *vm)
{
    struct kvm_enable_cap cap = {0};

    if (vm->dirty_backend == DIRTY_RING) {
        uint64_t bytes = VM_RING_ENTRIES * sizeof(struct kvm_dirty_gfn);
        int most = vm_check_extension(vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL);

        cap.cap = most ? KVM_CAP_DIRTY_LOG_RING_ACQ_REL : KVM_CAP_DIRTY_LOG_RING;
        if (most == 0)
            most = vm_check_extension(vm, KVM_CAP_DIRTY_LOG_RING);
        if (most == 0) {
            log_err("kvm: KVM_CAP_DIRTY_LOG_RING is missing: use --dirty-log bitmap");
            return -ENOTSUP;
        }
        bytes = MIN(bytes, (uint64_t)most);
        cap.args[0] = bytes;
        vm->ring_entries = (uint32_t)(bytes / sizeof(struct kvm_dirty_gfn));
        return vm_ioctl(vm, KVM_ENABLE_CAP, &cap, "KVM_ENABLE_CAP(KVM_CAP_DIRTY_LOG_RING)");
    }
    cap.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
    cap.args[0] = (uint64_t)vm_check_extension(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    cap.args[0] &= KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    if (!(cap.args[0] & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)) {
        log_err("kvm: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is missing");
        return -ENOTSUP;
    }
    vm->initially_set = cap.args[0] & KVM_DIRTY_LOG_INITIALLY_SET;
    return vm_ioctl(vm, KVM_ENABLE_CAP, &cap, "KVM_ENABLE_CAP(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)");
}

/* Only a wish: without it KVM polls as its module's parameters say. */
static void set_halt_poll(struct vm *vm, uint32_t ns)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_HALT_POLL, .args = {ns}};

    if (ioctl(vm->fd, KVM_ENABLE_CAP, &cap) < 0)
        log_warn_errno(errno, "kvm: halt polling cannot be set to %u ns", ns);
}

static int create_dirty_log(struct vm *vm)
{
    struct dirty_config config = {
        .backend = vm->dirty_backend,
        .initially_set = vm->initially_set,
        .ops = &dirty_kvm_ops,
        .opaque = vm,
    };

    return dirty_log_new(vm->mem, &config, &vm->dirty);
}

/* vCPUs as they are after power-on, with their CPUID. */
static int create_vcpus(struct vm *vm)
{
    int size = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

    if (size < (int)sizeof(struct kvm_run)) {
        log_err("kvm: run area of %d bytes makes no sense", size);
        return -EPROTO;
    }
    vm->run_size = (size_t)size;
    for (unsigned int i = 0; i < vm->cpus; i++) {
        int r = vcpu_new(vm, i, &vm->vcpus[i]);

        if (r < 0)
            return r;
    }
    return 0;
}

static void note_paging_features(struct vm *vm, struct kvm_cpuid2 *cpuid)
{
    const struct kvm_cpuid_entry2 *features = cpuid_find(cpuid, 0x80000001, 0), *sizes = cpuid_find(cpuid, 0x80000008, 0);

    vm->gbpages = features && (features->edx >> 26 & 1);
    /* What a CPU without the leaf has. */
    vm->maxphyaddr = sizes ? sizes->eax & 0xff : 36;
}

static int set_cpuids(struct vm *vm)
{
    const struct cpuid_host *host;
    int r = cpuid_fetch_wait(vm->cpuid, &host);

    if (r < 0) {
        log_err_errno(r, "kvm: KVM_GET_SUPPORTED_CPUID failed");
        return r;
    }
    for (unsigned int i = 0; i < vm->cpus && r == 0; i++) {
        struct cpuid_options options = {.index = i, .count = vm->cpus, .off = vm->cpu_off};
        struct kvm_cpuid2 *cpuid;

        r = cpuid_build(host, &options, &cpuid);
        if (r < 0)
            break;
        note_paging_features(vm, cpuid);
        if (ioctl(vm->vcpus[i]->fd, KVM_SET_CPUID2, cpuid) < 0) {
            r = -errno;
            log_err_errno(r, "vcpu%u: KVM_SET_CPUID2 failed", i);
        }
        free(cpuid);
    }
    return r;
}

static void irq_sink_set(void *opaque, unsigned int gsi, int level)
{
    vm_irq_line(opaque, gsi, level);
}

int vm_build(struct vm *vm, const struct vm_config *config)
{
    int r;

    do {
        vm->fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
    } while (vm->fd < 0 && errno == EINTR);
    if (vm->fd < 0) {
        r = -errno;
        log_err_errno(r, "kvm: KVM_CREATE_VM failed");
        return r;
    }
    r = check_capabilities(vm);
    if (r == 0 && vm->mem)
        r = enable_dirty_backend(vm);
    if (r == 0 && vm->mem)
        r = create_dirty_log(vm);
    /* Before the chips: with those there a change of slots waits for readers of the bus, 5 ms and more. */
    if (r == 0 && vm->mem)
        r = set_slots(vm, false);
    if (r == 0 && config)
        r = set_register_slot(vm, config->register_base, config->register_pages);
    if (r == 0)
        r = create_chips(vm);
    if (r == 0)
        r = create_vcpus(vm);
    if (r == 0)
        r = set_cpuids(vm);
    return r;
}

struct vm *vm_alloc(unsigned int cpus, struct mem *mem)
{
    struct vm *vm = calloc(1, sizeof(*vm));

    if (!vm)
        return NULL;
    vm->kvm_fd = vm->fd = -1;
    vm->cpus = cpus;
    vm->mem = mem;
    vm->irq = (struct irq_sink){.set = irq_sink_set, .opaque = vm};
    pthread_mutex_init(&vm->lock, NULL);
    pthread_cond_init(&vm->parked_cv, NULL);
    pthread_cond_init(&vm->go_cv, NULL);
    pthread_cond_init(&vm->paging_cv, NULL);
    return vm;
}

int vm_new(const struct vm_config *config, struct mem *mem, struct vm **ret)
{
    struct vm *vm;
    int r;

    if (config->cpus == 0 || config->cpus > VM_MAX_VCPUS)
        return -EINVAL;
    vm = vm_alloc(config->cpus, mem);
    if (!vm)
        return -ENOMEM;
    vm->callbacks = config->callbacks;
    vm->dirty_backend = config->dirty_backend;
    vm->cpu_off = config->cpu_off;
    r = bus_new(&vm->bus);
    if (r == 0)
        r = vm->kvm_fd = open_kvm(config->kvm_path ? config->kvm_path : "/dev/kvm");
    if (r >= 0)
        r = cpuid_fetch_start(vm->kvm_fd, &vm->cpuid);
    if (r == 0)
        r = vm_build(vm, config);
    if (r < 0) {
        vm_free(vm);
        return r;
    }
    if (config->set_halt_poll)
        set_halt_poll(vm, config->halt_poll_ns);
    *ret = vm;
    return 0;
}

static void join_threads(struct vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    vm->quit = true;
    pthread_cond_broadcast(&vm->go_cv);
    pthread_mutex_unlock(&vm->lock);
    for (unsigned int i = 0; i < vm->cpus; i++)
        if (vm->vcpus[i] && vm->vcpus[i]->started)
            pthread_join(vm->vcpus[i]->thread, NULL);
}

void vm_free(struct vm *vm)
{
    if (!vm)
        return;
    vm_pause(vm);
    join_threads(vm);
    dirty_log_free(vm->dirty);
    for (unsigned int i = 0; i < vm->cpus; i++)
        vcpu_free(vm->vcpus[i]);
    bus_free(vm->bus);
    if (vm->mem)
        cpuid_fetch_free(vm->cpuid);
    fd_close(vm->fd);
    fd_close(vm->kvm_fd);
    if (vm->registers)
        munmap(vm->registers, vm->register_size);
    pthread_cond_destroy(&vm->parked_cv);
    pthread_cond_destroy(&vm->go_cv);
    pthread_cond_destroy(&vm->paging_cv);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}
