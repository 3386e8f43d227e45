#include "config.h"

#include "vcpu/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/clock.h"
#include "base/log.h"
#include "vcpu/state.h"
#include "vcpu/vm-internal.h"

int vm_check_extension(const struct vm *vm, unsigned int cap)
{
    int r = ioctl(vm->fd, KVM_CHECK_EXTENSION, (unsigned long)cap);

    return r < 0 ? 0 : r;
}

int vm_start(struct vm *vm)
{
    for (unsigned int i = 0; i < vm->cpus; i++) {
        int r = vcpu_start(vm->vcpus[i]);

        if (r < 0)
            return r;
    }
    return 0;
}

void vm_pause(struct vm *vm)
{
    bool was_running = atomic_exchange(&vm->run, false);
    unsigned int started = 0;

    if (was_running)
        vm->paused_since = clock_ns();
    for (unsigned int i = 0; i < vm->cpus; i++)
        if (vm->vcpus[i] && vm->vcpus[i]->started) {
            if (was_running)
                vcpu_kick(vm->vcpus[i]);
            started++;
        }
    pthread_mutex_lock(&vm->lock);
    while (vm->parked < started)
        pthread_cond_wait(&vm->parked_cv, &vm->lock);
    pthread_mutex_unlock(&vm->lock);
}

void vm_resume(struct vm *vm)
{
    vm->paused_ns = vm_paused_ns(vm);
    vm->paused_since = 0;
    pthread_mutex_lock(&vm->lock);
    vm->touched = true;
    atomic_store(&vm->run, true);
    pthread_cond_broadcast(&vm->go_cv);
    pthread_mutex_unlock(&vm->lock);
}

void vm_may_wait(struct vm *vm, bool on)
{
    vm->may_wait = on;
}

/*
 * A vCPU inside KVM_RUN may be there for long with good reason: it computes, or waits in HLT. One whose count of entries has
 * not moved is kicked, which every one that lives answers by coming out and going in again.
 */
static bool is_stuck(struct vcpu *vcpu)
{
    unsigned int entries = atomic_load(&vcpu->entries);

    if (vcpu->parked || entries != vcpu->seen) {
        vcpu->seen = entries;
        vcpu->doubted = false;
        return false;
    }
    if (vcpu->doubted)
        return true;
    vcpu->doubted = true;
    if (entries % 2 == 1)
        vcpu_kick(vcpu);
    return false;
}

int vm_stuck_vcpu(struct vm *vm, const char **ret_where)
{
    int stuck = -1;

    pthread_mutex_lock(&vm->lock);
    for (unsigned int i = 0; i < vm->cpus; i++) {
        struct vcpu *vcpu = vm->vcpus[i];

        if (!vcpu->started || !is_stuck(vcpu))
            continue;
        if (vcpu->seen % 2 == 1 && vm->may_wait)
            continue;
        *ret_where = vcpu->seen % 2 == 1 ? " inside KVM_RUN" : " at an exit of the guest";
        stuck = (int)i;
    }
    pthread_mutex_unlock(&vm->lock);
    return stuck;
}

uint64_t vm_paused_ns(const struct vm *vm)
{
    return vm->paused_ns + (vm->paused_since ? clock_ns() - vm->paused_since : 0);
}

bool vm_running(const struct vm *vm)
{
    return atomic_load(&vm->run);
}

/*
 * A guest that came from elsewhere has the CPUID it brought along, and KVM takes no other now that it has run.
 */
static int copy_cpuids(struct vm *to, const struct vm *from)
{
    struct kvm_cpuid2 *t = calloc(1, sizeof(*t) + CPUID_MAX_ENTRIES * sizeof(t->entries[0]));
    int r = t ? 0 : -ENOMEM;

    for (unsigned int i = 0; i < to->cpus && r == 0; i++) {
        t->nent = CPUID_MAX_ENTRIES;
        if (ioctl(from->vcpus[i]->fd, KVM_GET_CPUID2, t) < 0 || ioctl(to->vcpus[i]->fd, KVM_SET_CPUID2, t) < 0) {
            r = -errno;
            log_err_errno(r, "vcpu%u: CPUID cannot be copied", i);
        }
    }
    free(t);
    return r;
}

/* -- paging registers ---------------------------------------------------------- */

void vm_ask_paging(struct vm *vm, bool kick)
{
    for (unsigned int i = 0; i < vm->cpus; i++) {
        struct vcpu *vcpu = vm->vcpus[i];

        if (!vcpu->started)
            continue;
        atomic_store(&vcpu->look, true);
        if (kick && atomic_load(&vm->run))
            vcpu_kick(vcpu);
    }
}

void vm_look_paging(struct vm *vm, uint64_t timeout_ns)
{
    struct timespec until;
    uint64_t seq[VM_MAX_VCPUS], end;

    clock_gettime(CLOCK_REALTIME, &until);
    end = (uint64_t)until.tv_nsec + timeout_ns;
    until.tv_sec += (time_t)(end / NSEC_PER_SEC);
    until.tv_nsec = (long)(end % NSEC_PER_SEC);
    pthread_mutex_lock(&vm->lock);
    for (unsigned int i = 0; i < vm->cpus; i++)
        seq[i] = vm->vcpus[i]->paging.seq;
    pthread_mutex_unlock(&vm->lock);
    vm_ask_paging(vm, true);
    pthread_mutex_lock(&vm->lock);
    for (unsigned int i = 0; i < vm->cpus; i++)
        while (atomic_load(&vm->run) && vm->vcpus[i]->paging.seq == seq[i] &&
               pthread_cond_timedwait(&vm->paging_cv, &vm->lock, &until) == 0)
            ;
    pthread_mutex_unlock(&vm->lock);
}

void vm_note_paging(struct vm *vm)
{
    for (unsigned int i = 0; i < vm->cpus; i++)
        vcpu_note_paging(vm->vcpus[i]);
}

void vm_paging(struct vm *vm, unsigned int vcpu, struct vcpu_paging *ret)
{
    pthread_mutex_lock(&vm->lock);
    *ret = vm->vcpus[vcpu]->paging;
    pthread_mutex_unlock(&vm->lock);
}

void vm_paging_features(const struct vm *vm, unsigned int *ret_maxphyaddr, bool *ret_gbpages)
{
    *ret_maxphyaddr = vm->maxphyaddr;
    *ret_gbpages = vm->gbpages;
}

/* -- KVM's shadow pages --------------------------------------------------------- */

int vm_set_mmu_pages(struct vm *vm, uint64_t pages)
{
    return ioctl(vm->fd, KVM_SET_NR_MMU_PAGES, (unsigned long)pages) < 0 ? -errno : 0;
}

uint64_t vm_cpu_time(const struct vm *vm)
{
    uint64_t sum = 0;

    for (unsigned int i = 0; i < vm->cpus; i++) {
        struct timespec ts;
        clockid_t clock;

        if (vm->vcpus[i]->started && pthread_getcpuclockid(vm->vcpus[i]->thread, &clock) == 0 &&
            clock_gettime(clock, &ts) == 0)
            sum += (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
    }
    return sum;
}

/* Load what a VM that was just made has: KVM itself says what power-on state is, MSR by MSR. */
static int load_power_on_state(struct vm *vm)
{
    struct vm *fresh = vm_alloc(vm->cpus, NULL);
    struct state_writer w;
    struct state_reader r = {0};
    _cleanup_free_ uint8_t *data = NULL;
    size_t len;
    int err;

    if (!fresh)
        return -ENOMEM;
    state_writer_init(&w);
    fresh->cpuid = vm->cpuid;
    fresh->cpu_off = vm->cpu_off;
    fresh->kvm_fd = fcntl(vm->kvm_fd, F_DUPFD_CLOEXEC, 0);
    err = fresh->kvm_fd < 0 ? -errno : vm_build(fresh, NULL);
    if (err == 0)
        err = copy_cpuids(fresh, vm);
    if (err == 0)
        err = vm_state_save(fresh, &w);
    if (err == 0)
        err = state_finish(&w, &data, &len);
    if (err == 0)
        err = state_reader_init(&r, data, len);
    if (err == 0)
        err = vm_state_load(vm, &r, 0);
    if (err < 0 && r.error[0])
        log_err("reset: %s", r.error);
    state_reader_clear(&r);
    state_writer_clear(&w);
    vm_free(fresh);
    return err;
}

static int set_entry(struct vm *vm, const struct vcpu_entry *entry)
{
    struct kvm_regs regs = entry->regs;
    struct kvm_sregs sregs, now;
    int fd = vm->vcpus[0]->fd;

    if (ioctl(fd, KVM_GET_SREGS, &now) < 0)
        return -errno;
    sregs = entry->sregs;
    sregs.apic_base = now.apic_base;
    sregs.cr8 = 0;
    memset(sregs.interrupt_bitmap, 0, sizeof(sregs.interrupt_bitmap));
    if (ioctl(fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(fd, KVM_SET_REGS, &regs) < 0) {
        int r = -errno;

        log_err_errno(r, "vcpu0: cannot set its first registers");
        return r;
    }
    return 0;
}

int vm_reset(struct vm *vm, const struct vcpu_entry *entry)
{
    int r = 0;

    if (vm->touched)
        r = load_power_on_state(vm);
    if (r == 0)
        r = set_entry(vm, entry);
    if (r < 0)
        return r;
    pthread_mutex_lock(&vm->lock);
    vm->touched = false;
    for (unsigned int i = 0; i < vm->cpus; i++)
        vm->vcpus[i]->blocked = false;
    pthread_mutex_unlock(&vm->lock);
    return 0;
}

int vm_ioeventfd(struct vm *vm, int fd, enum bus_space space, uint64_t addr, unsigned int size, bool match,
                 uint64_t value, bool on)
{
    struct kvm_ioeventfd arg = {
        .fd = fd,
        .addr = addr,
        .len = size,
        .datamatch = value,
        .flags = (space == BUS_PIO ? KVM_IOEVENTFD_FLAG_PIO : 0u) | (match ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0u) |
                 (on ? 0u : KVM_IOEVENTFD_FLAG_DEASSIGN),
    };

    return ioctl(vm->fd, KVM_IOEVENTFD, &arg) < 0 ? -errno : 0;
}

int vm_irqfd(struct vm *vm, int fd, unsigned int gsi, int resample_fd, bool on)
{
    struct kvm_irqfd arg = {
        .fd = (uint32_t)fd,
        .gsi = gsi,
        .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
    };

    if (on && resample_fd >= 0) {
        arg.flags |= KVM_IRQFD_FLAG_RESAMPLE;
        arg.resamplefd = (uint32_t)resample_fd;
    }
    return ioctl(vm->fd, KVM_IRQFD, &arg) < 0 ? -errno : 0;
}

void vm_irq_line(struct vm *vm, unsigned int gsi, int level)
{
    struct kvm_irq_level arg = {.irq = gsi, .level = (uint32_t)level};

    /* KVM refuses only a line that does not exist, and the lines are ours. */
    if (ioctl(vm->fd, KVM_IRQ_LINE, &arg) < 0)
        log_warn_limited("irq %u: cannot set level %d", gsi, level);
}

uint8_t *vm_register_pages(const struct vm *vm)
{
    return vm->registers;
}

void vm_set_dirty_buffered(struct vm *vm, bool on)
{
    vm->dirty_buffered = on;
}

struct bus *vm_bus(struct vm *vm)
{
    return vm->bus;
}

struct mem *vm_mem(struct vm *vm)
{
    return vm->mem;
}

struct dirty_log *vm_dirty_log(struct vm *vm)
{
    return vm->dirty;
}

const struct irq_sink *vm_irq_sink(struct vm *vm)
{
    return &vm->irq;
}

unsigned int vm_cpus(const struct vm *vm)
{
    return vm->cpus;
}

int vm_fd(const struct vm *vm)
{
    return vm->fd;
}

int vm_kvm_fd(const struct vm *vm)
{
    return vm->kvm_fd;
}

struct vcpu *vm_vcpu(struct vm *vm, unsigned int index)
{
    return vm->vcpus[index];
}
