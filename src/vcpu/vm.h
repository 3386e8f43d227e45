/*
 * A KVM virtual machine: its file descriptors, in-kernel devices, memory slots and vCPU threads.
 *
 * Threads: one thread a vCPU ("vcpuN"), made by vm_start and joined by vm_free; all other functions are called from the
 * main thread unless they say otherwise. vCPU threads call upward through struct vm_callbacks only.
 *
 * Run control. vm_pause asks every vCPU to stop (request flag, kvm_run->immediate_exit, signal) and returns when each has
 * parked outside KVM_RUN with its pending I/O completed; vm_resume lets them go. A kick is never lost: the signal is
 * blocked but inside KVM_RUN (KVM_SET_SIGNAL_MASK is not used; immediate_exit is set before the signal is sent, and the
 * vCPU thread tests its request flag after each return).
 */
#ifndef UMBRA_VCPU_VM_H
#define UMBRA_VCPU_VM_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "mmu/dirty.h"
#include "mmu/mem.h"
#include "vcpu/bus.h"
#include "vcpu/irq.h"
#include "vcpu/vcpu.h"

#define VM_MAX_VCPUS 32

struct vm;
struct vcpu;

enum vm_exit_kind {
    VM_EXIT_RESET,          /* the guest asked for a reset, or took a triple fault */
    VM_EXIT_SHUTDOWN,       /* the guest powered off */
    VM_EXIT_CRASH,          /* KVM_SYSTEM_EVENT_CRASH or the like: the guest panicked */
    VM_EXIT_INTERNAL_ERROR, /* KVM cannot go on with this vCPU; registers are in the log */
};

struct vm_callbacks {
    /*
     * A vCPU cannot go on as it was. Called on its thread; it has parked itself when this returns (the VM is to be
     * paused, reset or ended by the main thread). Must not block.
     */
    void (*on_exit)(void *opaque, unsigned int vcpu, enum vm_exit_kind kind, const char *reason);
    void *opaque;
    /* vCPU 0's thread calls it first, before it parks. NULL: nothing to do. */
    void (*on_start)(void *opaque);
};

struct vm_config {
    const char *kvm_path; /* NULL: /dev/kvm */
    unsigned int cpus;
    enum dirty_backend dirty_backend;
    struct vm_callbacks callbacks;
    /* Device registers in memory that the guest reads without an exit; see vm_register_pages. */
    uint64_t register_base;
    unsigned int register_pages; /* may be 0 */
};

/* Open KVM, check what is needed (one error line names each missing capability), create the VM with irqchip and PIT,
 * slots for `mem`, the bus, the dirty log and the vCPUs (threads are not running yet). `mem` must outlive it. */
int vm_new(const struct vm_config *config, struct mem *mem, struct vm **ret);
/* Ends and joins the vCPU threads first. NULL is fine. */
void vm_free(struct vm *vm);

/* Start the vCPU threads, which park by themselves. */
int vm_start(struct vm *vm);
/* Idempotent. vm_pause waits until all vCPUs are parked; both are for the main thread. */
void vm_pause(struct vm *vm);
void vm_resume(struct vm *vm);
bool vm_running(const struct vm *vm);

struct bus *vm_bus(struct vm *vm);
struct mem *vm_mem(struct vm *vm);
struct dirty_log *vm_dirty_log(struct vm *vm);
const struct irq_sink *vm_irq_sink(struct vm *vm);
unsigned int vm_cpus(const struct vm *vm);
int vm_fd(const struct vm *vm);
int vm_kvm_fd(const struct vm *vm);
struct vcpu *vm_vcpu(struct vm *vm, unsigned int index);

/*
 * Say whether the CPU may hold back dirty pages until a vCPU leaves the guest (page-modification logging, which goes with
 * nested page tables only): a harvest of the ring then kicks every vCPU. Off at first. VM paused.
 */
void vm_set_dirty_buffered(struct vm *vm, bool on);

/*
 * Pages at register_base that the guest sees as they stand here: it reads them without leaving the guest, and its writes
 * come to the bus as they do elsewhere. NULL where there are none or KVM has no read-only memory: then reads come to the
 * bus, too. Zero at first.
 */
uint8_t *vm_register_pages(const struct vm *vm);

/*
 * The vCPUs' paging registers. KVM gives a running vCPU's to its own thread only, so it is asked to note them: by
 * vm_ask_paging after the next exit to user space, with `kick` at once (any thread, does not wait). vm_look_paging
 * kicks and waits until all have done so or timeout_ns are over (any thread that no vCPU waits for). vm_note_paging reads
 * them all itself: VM paused, main thread. vm_paging gives what was noted last (any thread).
 */
void vm_ask_paging(struct vm *vm, bool kick);
void vm_look_paging(struct vm *vm, uint64_t timeout_ns);
void vm_note_paging(struct vm *vm);
void vm_paging(struct vm *vm, unsigned int vcpu, struct vcpu_paging *ret);

/* What the vCPUs' page tables may hold: width of physical addresses, and whether there are 1 GiB pages. Any thread. */
void vm_paging_features(const struct vm *vm, unsigned int *ret_maxphyaddr, bool *ret_gbpages);

/*
 * KVM's limit on shadow pages: KVM_SET_NR_MMU_PAGES. 0, or -errno of KVM (-EINVAL: fewer than it wants). Any thread but those that
 * vCPUs wait for: it takes KVM's locks.
 */
int vm_set_mmu_pages(struct vm *vm, uint64_t pages);

/* CPU time of the vCPU threads so far, in ns: what they have run in the guest or for it. 0 before vm_start. Any thread. */
uint64_t vm_cpu_time(const struct vm *vm);

/* KVM_CHECK_EXTENSION on the VM; any thread. */
int vm_check_extension(const struct vm *vm, unsigned int cap);

/*
 * ioeventfd: a guest write of `size` bytes (0: any) at addr signals fd without leaving the kernel; with `match`, only a
 * write of `value`. irqfd: writing fd raises the line; resample_fd (or -1) is signalled on its end of interrupt.
 * Both: 0 or -errno; remove with on = false and the same arguments. Any thread.
 */
int vm_ioeventfd(struct vm *vm, int fd, enum bus_space space, uint64_t addr, unsigned int size, bool match,
                 uint64_t value, bool on);
int vm_irqfd(struct vm *vm, int fd, unsigned int gsi, int resample_fd, bool on);

/* Level of an interrupt line; any thread. */
void vm_irq_line(struct vm *vm, unsigned int gsi, int level);

/* Where execution starts after a reset: vCPU 0 takes it, the others wait for INIT/SIPI. VM paused. */
struct vcpu_entry {
    struct kvm_regs regs;
    struct kvm_sregs sregs; /* segments, control registers, EFER, GDT, IDT; apic_base is filled in by vm_reset */
};
/* Bring every vCPU and in-kernel device to its power-on state and set the entry. VM paused. 0 or -errno. */
int vm_reset(struct vm *vm, const struct vcpu_entry *entry);

#endif
