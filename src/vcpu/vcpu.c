/*
 * A vCPU thread: enter the guest, handle the exit, and park when asked to.
 *
 * A vCPU parks only after KVM_RUN returned EINTR. KVM finishes an I/O instruction when it is entered again, and does so
 * before it looks at immediate_exit; so a vCPU that parks has no half-done instruction, and its state may be saved.
 */
#include "config.h"

#include "vcpu/vcpu.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/thread.h"
#include "vcpu/vm-internal.h"

#define VCPU_STACK_SIZE (256 * KiB)
#define KICK_SIGNAL SIGRTMIN
/* More than an instruction has pieces that KVM exits for one by one. */
#define FINISH_TRIES 64

unsigned int vcpu_index(const struct vcpu *vcpu)
{
    return vcpu->index;
}

int vcpu_fd(const struct vcpu *vcpu)
{
    return vcpu->fd;
}

pid_t vcpu_tid(const struct vcpu *vcpu)
{
    return atomic_load(&vcpu->tid);
}

void vcpu_exits(const struct vcpu *vcpu, struct vcpu_exits *ret)
{
    const uint64_t *from = (const uint64_t *)&vcpu->exits;
    uint64_t *to = (uint64_t *)ret;

    static_assert(sizeof(struct vcpu_exits) % sizeof(uint64_t) == 0, "the counters are copied word by word");
    for (size_t i = 0; i < sizeof(*ret) / sizeof(*to); i++)
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

/* One writer, so a plain load and an atomic store are enough for readers to see whole values. */
static void count(uint64_t *counter)
{
    __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
}

static void on_kick_signal(int sig)
{
    /* Nothing to do: its arrival makes KVM_RUN return. */
}

static void install_kick_handler(void)
{
    struct sigaction sa = {.sa_handler = on_kick_signal};

    sigemptyset(&sa.sa_mask);
    sigaction(KICK_SIGNAL, &sa, NULL);
}

void vcpu_kick(struct vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pthread_kill(vcpu->thread, KICK_SIGNAL);
}

static void log_registers(const struct vcpu *vcpu)
{
    struct kvm_sregs s;
    struct kvm_regs r;

    if (ioctl(vcpu->fd, KVM_GET_REGS, &r) < 0 || ioctl(vcpu->fd, KVM_GET_SREGS, &s) < 0) {
        log_err_errno(errno, "vcpu%u: cannot read registers", vcpu->index);
        return;
    }
    log_err("vcpu%u: rip %016llx rflags %08llx rsp %016llx rbp %016llx", vcpu->index, r.rip, r.rflags, r.rsp, r.rbp);
    log_err("vcpu%u: rax %016llx rbx %016llx rcx %016llx rdx %016llx", vcpu->index, r.rax, r.rbx, r.rcx, r.rdx);
    log_err("vcpu%u: rsi %016llx rdi %016llx r8  %016llx r9  %016llx", vcpu->index, r.rsi, r.rdi, r.r8, r.r9);
    log_err("vcpu%u: r10 %016llx r11 %016llx r12 %016llx r13 %016llx", vcpu->index, r.r10, r.r11, r.r12, r.r13);
    log_err("vcpu%u: r14 %016llx r15 %016llx cr0 %08llx cr2 %016llx", vcpu->index, r.r14, r.r15, s.cr0, s.cr2);
    log_err("vcpu%u: cr3 %016llx cr4 %08llx cr8 %llx efer %llx apic base %llx", vcpu->index, s.cr3, s.cr4, s.cr8, s.efer,
            s.apic_base);
    log_err("vcpu%u: cs %04x base %llx limit %x type %x dpl %u l %u db %u", vcpu->index, s.cs.selector, s.cs.base,
            s.cs.limit, s.cs.type, s.cs.dpl, s.cs.l, s.cs.db);
    log_err("vcpu%u: gdt %llx limit %x idt %llx limit %x tr %04x base %llx", vcpu->index, s.gdt.base, s.gdt.limit,
            s.idt.base, s.idt.limit, s.tr.selector, s.tr.base);
}

/* Park until resumed; false when the thread is to end. */
static bool park(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    bool go_on;

    (void)dirty_log_ring_left(vm->dirty, vcpu->index);
    pthread_mutex_lock(&vm->lock);
    vm->parked++;
    vcpu->parked = true;
    pthread_cond_signal(&vm->parked_cv);
    while (!vm->quit && (!atomic_load(&vm->run) || vcpu->blocked))
        pthread_cond_wait(&vm->go_cv, &vm->lock);
    vm->parked--;
    vcpu->parked = false;
    go_on = !vm->quit;
    pthread_mutex_unlock(&vm->lock);
    return go_on;
}

/* The vCPU cannot go on: mark it first, so that nobody can resume it between the report and its parking. */
static void stop_here(struct vcpu *vcpu, enum vm_exit_kind kind, const char *reason)
{
    struct vm *vm = vcpu->vm;

    pthread_mutex_lock(&vm->lock);
    vcpu->blocked = true;
    pthread_mutex_unlock(&vm->lock);
    vm->callbacks.on_exit(vm->callbacks.opaque, vcpu->index, kind, reason);
}

static void internal_error(struct vcpu *vcpu, const char *reason)
{
    log_err("vcpu%u: %s", vcpu->index, reason);
    log_registers(vcpu);
    stop_here(vcpu, VM_EXIT_INTERNAL_ERROR, reason);
}

static void handle_io(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    bool in = run->io.direction == KVM_EXIT_IO_IN;

    count(in ? &vcpu->exits.io_in : &vcpu->exits.io_out);
    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        if (in)
            bus_read(vcpu->vm->bus, BUS_PIO, run->io.port, data, run->io.size);
        else
            bus_write(vcpu->vm->bus, BUS_PIO, run->io.port, data, run->io.size);
    }
}

static void handle_mmio(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    if (run->mmio.len == 0 || run->mmio.len > sizeof(run->mmio.data)) {
        internal_error(vcpu, "mmio exit with an impossible length");
        return;
    }
    if (run->mmio.is_write) {
        count(&vcpu->exits.mmio_write);
        bus_write(vcpu->vm->bus, BUS_MMIO, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
    } else {
        count(&vcpu->exits.mmio_read);
        bus_read(vcpu->vm->bus, BUS_MMIO, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
    }
}

static void handle_system_event(struct vcpu *vcpu)
{
    char reason[64];

    count(&vcpu->exits.system_event);
    switch (vcpu->run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
        stop_here(vcpu, VM_EXIT_SHUTDOWN, "guest-shutdown");
        break;
    case KVM_SYSTEM_EVENT_RESET:
        stop_here(vcpu, VM_EXIT_RESET, "guest-reset");
        break;
    case KVM_SYSTEM_EVENT_CRASH:
        stop_here(vcpu, VM_EXIT_CRASH, "guest-panic");
        break;
    default:
        snprintf(reason, sizeof(reason), "unknown system event %u", vcpu->run->system_event.type);
        internal_error(vcpu, reason);
    }
}

static void handle_internal_error(struct vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    char reason[160];
    int n = snprintf(reason, sizeof(reason), "KVM internal error, suberror %u", run->internal.suberror);

    for (uint32_t i = 0; i < MIN(run->internal.ndata, 4u) && n > 0 && (size_t)n < sizeof(reason); i++)
        n += snprintf(reason + n, sizeof(reason) - (size_t)n, " %016llx", run->internal.data[i]);
    internal_error(vcpu, reason);
}

static void handle_exit(struct vcpu *vcpu)
{
    char reason[96];

    count(&vcpu->exits.total);
    switch (vcpu->run->exit_reason) {
    case KVM_EXIT_IO:
        handle_io(vcpu);
        break;
    case KVM_EXIT_MMIO:
        handle_mmio(vcpu);
        break;
    case KVM_EXIT_DIRTY_RING_FULL:
        count(&vcpu->exits.dirty_ring_full);
        if (dirty_log_ring_full(vcpu->vm->dirty, vcpu->index) < 0)
            internal_error(vcpu, "dirty ring cannot be reset");
        break;
    case KVM_EXIT_SHUTDOWN:
        count(&vcpu->exits.shutdown);
        log_info("vcpu%u: triple fault, resetting", vcpu->index);
        stop_here(vcpu, VM_EXIT_RESET, "guest-reset");
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        handle_system_event(vcpu);
        break;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        count(&vcpu->exits.intr);
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        handle_internal_error(vcpu);
        break;
    case KVM_EXIT_FAIL_ENTRY:
        snprintf(reason, sizeof(reason), "CPU refused to enter the guest, hardware reason %#llx",
                 vcpu->run->fail_entry.hardware_entry_failure_reason);
        internal_error(vcpu, reason);
        break;
    default:
        count(&vcpu->exits.other);
        snprintf(reason, sizeof(reason), "exit reason %u is not handled", vcpu->run->exit_reason);
        internal_error(vcpu, reason);
    }
}

static int enter_guest(struct vcpu *vcpu)
{
    int r;

    atomic_fetch_add(&vcpu->entries, 1);
    r = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? errno : 0;
    atomic_fetch_add(&vcpu->entries, 1);
    return r;
}

/*
 * Let KVM finish an instruction that exited for I/O (a write to the reset port) before this vCPU parks for good: after
 * a reset it would finish it over the new registers. What else the instruction has to say is not heard any more.
 */
static void finish_instruction(struct vcpu *vcpu)
{
    int tries = 0;

    do
        __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    while (enter_guest(vcpu) == 0 && ++tries < FINISH_TRIES);
}

void vcpu_note_paging(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    struct kvm_sregs s;

    atomic_store(&vcpu->look, false);
    if (ioctl(vcpu->fd, KVM_GET_SREGS, &s) < 0)
        return;
    pthread_mutex_lock(&vm->lock);
    vcpu->paging = (struct vcpu_paging){
        .cr0 = s.cr0,
        .cr3 = s.cr3,
        .cr4 = s.cr4,
        .efer = s.efer,
        .kernel = s.ss.dpl == 0,
        .seq = vcpu->paging.seq + 1,
    };
    pthread_cond_broadcast(&vm->paging_cv);
    pthread_mutex_unlock(&vm->lock);
}

static void *vcpu_thread(void *arg)
{
    struct vcpu *vcpu = arg;
    struct vm *vm = vcpu->vm;
    char name[16], reason[96];
    bool go_on;

    snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
    atomic_store(&vcpu->tid, (int)syscall(SYS_gettid));
    if (vcpu->index == 0 && vm->callbacks.on_start)
        vm->callbacks.on_start(vm->callbacks.opaque);
    thread_enter(THREAD_VCPU, name);
    go_on = park(vcpu);
    while (go_on) {
        int err = enter_guest(vcpu);

        if (unlikely(atomic_load_explicit(&vcpu->look, memory_order_relaxed)))
            vcpu_note_paging(vcpu);
        switch (err) {
        case 0:
            handle_exit(vcpu);
            break;
        case EINTR:
            count(&vcpu->exits.intr);
            /* Clear before looking at `run`: a kick that comes between the two is seen as run == false. */
            __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
            if (!atomic_load(&vm->run))
                go_on = park(vcpu);
            else
                (void)dirty_log_ring_left(vm->dirty, vcpu->index);
            continue;
        case EAGAIN:
            /* An application processor was woken by INIT/SIPI. */
            continue;
        default:
            snprintf(reason, sizeof(reason), "KVM_RUN failed: %s", strerrordesc_np(err));
            internal_error(vcpu, reason);
        }
        if (vcpu->blocked) {
            finish_instruction(vcpu);
            go_on = park(vcpu);
        }
    }
    thread_leave();
    return NULL;
}

int vcpu_start(struct vcpu *vcpu)
{
    sigset_t all, old;
    pthread_attr_t attr;
    int r;

    install_kick_handler();
    /* The thread starts with everything blocked but the kick: the other signals are the main thread's. */
    sigfillset(&all);
    sigdelset(&all, KICK_SIGNAL);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSYS);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, VCPU_STACK_SIZE);
    r = -pthread_create(&vcpu->thread, &attr, vcpu_thread, vcpu);
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r < 0) {
        log_err_errno(r, "vcpu%u: cannot create its thread", vcpu->index);
        return r;
    }
    vcpu->started = true;
    return 0;
}

static int map_ring(struct vcpu *vcpu)
{
    size_t size = vcpu->vm->ring_entries * sizeof(struct kvm_dirty_gfn);
    long page = sysconf(_SC_PAGESIZE);
    void *p;

    if (vcpu->vm->dirty_backend != DIRTY_RING)
        return 0;
    p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, KVM_DIRTY_LOG_PAGE_OFFSET * page);
    if (p == MAP_FAILED)
        return -errno;
    vcpu->ring = p;
    return dirty_log_add_ring(vcpu->vm->dirty, vcpu->ring, vcpu->vm->ring_entries);
}

int vcpu_new(struct vm *vm, unsigned int index, struct vcpu **ret)
{
    struct vcpu *vcpu = calloc(1, sizeof(*vcpu));
    int r;

    if (!vcpu)
        return -ENOMEM;
    vcpu->vm = vm;
    vcpu->index = index;
    vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)index);
    if (vcpu->fd < 0) {
        r = -errno;
        log_err_errno(r, "vcpu%u: KVM_CREATE_VCPU failed", index);
        goto fail;
    }
    vcpu->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (vcpu->run == MAP_FAILED) {
        vcpu->run = NULL;
        r = -errno;
        log_err_errno(r, "vcpu%u: cannot map its run area", index);
        goto fail;
    }
    r = map_ring(vcpu);
    if (r < 0) {
        log_err_errno(r, "vcpu%u: cannot map its dirty ring", index);
        goto fail;
    }
    *ret = vcpu;
    return 0;
fail:
    vcpu_free(vcpu);
    return r;
}

void vcpu_free(struct vcpu *vcpu)
{
    if (!vcpu)
        return;
    if (vcpu->ring)
        munmap(vcpu->ring, vcpu->vm->ring_entries * sizeof(struct kvm_dirty_gfn));
    if (vcpu->run)
        munmap(vcpu->run, vcpu->vm->run_size);
    if (vcpu->fd >= 0)
        close(vcpu->fd);
    free(vcpu);
}
