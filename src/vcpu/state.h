/*
 * Complete state of a paused VM's vCPUs and in-kernel devices as named fields.
 *
 * Sections: "vcpu" (instance = index), "pic" 0 (master) and 1 (slave), "ioapic" 0, "pit" 0, "clock" 0 (kvmclock). A
 * vCPU's fields:
 *
 *   regs.* sregs.* debug.* events.*   members of KVM's structures by name
 *   mp_state, tsc_khz
 *   msr.NNNNNNNN                      every readable MSR of KVM_GET_MSR_INDEX_LIST, its index in hexadecimal
 *   cpuid.NNNNNNNN[.MMMMMMMM]         leaf and, where it counts, sub-leaf: EAX, EBX, ECX, EDX as the guest sees them
 *   xcr.NNNNNNNN                      extended control registers
 *   xsave, lapic                      the areas as the CPU and the LAPIC lay them out
 *   nested.*                          of a vCPU that may run guests of its own; its data is opaque
 *
 * So what another host lacks can be told by name. MSRs of Hyper-V are left out: no guest of ours is offered them, and
 * reading them makes KVM set up its Hyper-V emulation.
 *
 * A VM's clocks go on while it is paused, and stand still between save and load unless it is said otherwise. The TSCs of
 * all vCPUs (msr.00000010) are those of one instant, so they keep their distance to each other.
 */
#ifndef UMBRA_VCPU_STATE_H
#define UMBRA_VCPU_STATE_H

#include "base/state.h"
#include "vcpu/vm.h"

/*
 * Both functions want every vCPU parked with no instruction half done: KVM finishes one that exited for I/O on the next
 * KVM_RUN, and after a load it would finish it over the registers just loaded.
 */

/*
 * Append the sections of all vCPUs and in-kernel devices. VM paused; main thread. 0, -ENOMEM, or
 * -errno of KVM, logged with the ioctl's name.
 */
int vm_state_save(struct vm *vm, struct state_writer *w);

/*
 * Load them, in the order KVM wants; VM paused; main thread. The whole state is read and checked before the VM is
 * touched. -ENOENT or -EBADMSG (missing or malformed section or field), -ENOMEM, or -errno of KVM, which refuses values
 * that make no sense to it; r->error always tells what and where. After a failure of KVM the VM is in an undefined state
 * and must not run. Nothing is logged.
 *
 * captured_ns is when the state was saved, on this host's CLOCK_MONOTONIC: TSCs and kvmclock go on as if they had never
 * stopped. 0: they go on from the values saved.
 */
int vm_state_load(struct vm *vm, struct state_reader *r, uint64_t captured_ns);
/* How long ago that is, for clocks that are elsewhere; 0 for 0 and for a time to come. */
uint64_t vm_state_age(uint64_t captured_ns);

/*
 * Tell all in which a VM whose state that is and this one differ so that it could not go on here: features and sizes of
 * CPUID, MSRs, the TSC's frequency, capabilities of KVM. `report` gets one line for each, and is not called when it fits.
 * For a VM in which no guest has run; its vCPUs' MSRs and frequency are undefined afterwards (vm_state_load sets
 * them). 0; -ENOENT or -EBADMSG with r->error set when the state itself is bad; -ENOMEM or -errno of KVM, logged.
 */
int vm_state_compare(struct vm *vm, struct state_reader *r, void (*report)(void *opaque, const char *text), void *opaque);

#endif
