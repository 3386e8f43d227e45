/*
 * Complete state of a paused VM's vCPUs and in-kernel devices (LAPIC, IOAPIC, PIC, PIT, kvmclock) as named fields.
 *
 * Sections: "vcpu" (instance = index): regs, sregs, debug registers, xsave, xcrs, MSRs by number, LAPIC, MP state, events,
 * TSC frequency; "pic" 0 and 1, "ioapic", "pit", "clock". MSRs: every index of KVM_GET_MSR_INDEX_LIST that can be read.
 * All functions want the VM paused, and are called from the main thread.
 */
#ifndef UMBRA_VCPU_STATE_H
#define UMBRA_VCPU_STATE_H

#include "base/state.h"
#include "vcpu/vm.h"

/* Append the sections of all vCPUs and in-kernel devices. 0 or -errno of KVM, logged with the ioctl's name. */
int vm_state_save(struct vm *vm, struct state_writer *w);

/*
 * Load them in the order KVM wants. -EBADMSG (missing or malformed field, r->error names it), or -errno of KVM. On failure the
 * VM is in an undefined state and must not run.
 */
int vm_state_load(struct vm *vm, struct state_reader *r);

#endif
