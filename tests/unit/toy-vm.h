/*
 * A raw KVM virtual machine for tests and benches of the dirty log: guest RAM from struct mem, and vCPUs in ring 3 whose
 * only work is to write to the pages they are told. It stands on libmmu and the KVM API alone.
 *
 * Mailboxes, page tables and lists of pages live in a memory slot of their own, in the hole below 4 GiB, that is never
 * logged: what is dirty is exactly what was asked for.
 */
#ifndef UMBRA_TESTS_TOY_VM_H
#define UMBRA_TESTS_TOY_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/dirty.h"
#include "mmu/mem.h"

#define TOY_MAX_VCPUS 4

struct toy_vm;

struct toy_config {
    unsigned int vcpus;
    enum dirty_backend backend;
    bool initially_set;    /* bitmap backend: KVM_DIRTY_LOG_INITIALLY_SET as well as manual protect */
    uint32_t ring_entries; /* ring backend */
};

/* What dirty_config wants; opaque is the struct toy_vm. */
extern const struct dirty_ops toy_dirty_ops;

/*
 * Create the VM over `mem` and start its vCPU threads. -errno of KVM; -ENODEV when there is no usable KVM, with the
 * reason in *ret_reason, so that a test can skip.
 */
int toy_new(const struct toy_config *config, struct mem *mem, struct toy_vm **ret, const char **ret_reason);
void toy_free(struct toy_vm *vm);

/* Ring backend: who is told when a ring is full, and to whose log the rings are added. NULL takes it back. */
int toy_attach_log(struct toy_vm *vm, struct dirty_log *log);
/* Ring backend: the ring of one vCPU. */
struct kvm_dirty_gfn *toy_ring(struct toy_vm *vm, unsigned int vcpu);

/* The list of RAM pages that the vCPU writes to: `count` of at most toy_list_max, copied. The vCPU is idle. */
size_t toy_list_max(const struct toy_vm *vm);
void toy_set_list(struct toy_vm *vm, unsigned int vcpu, const pfn_t *pages, size_t count);

/*
 * Go through the list `rounds` times (0: until toy_stop). Each visit adds 1 to the first 64-bit word of the page.
 * toy_wait returns when it is done: 0, or -EIO when the vCPU died. toy_stop ends it after the current visit.
 */
void toy_go(struct toy_vm *vm, unsigned int vcpu, uint64_t rounds);
int toy_wait(struct toy_vm *vm, unsigned int vcpu);
int toy_stop(struct toy_vm *vm, unsigned int vcpu);
/* From the next toy_go on, wait for more work inside the guest instead of leaving it, so that the vCPU is "running". */
void toy_spin(struct toy_vm *vm, unsigned int vcpu, bool on);

/* Visits since toy_go, and the longest time between two, in TSC ticks; both may be read while it runs. */
uint64_t toy_visits(const struct toy_vm *vm, unsigned int vcpu);
uint64_t toy_longest_gap(const struct toy_vm *vm, unsigned int vcpu);
void toy_clear_longest_gap(struct toy_vm *vm, unsigned int vcpu);

/* Bring the vCPU threads out of the guest and keep them out, or let them in again (they are in, after toy_new). */
void toy_pause(struct toy_vm *vm);
void toy_resume(struct toy_vm *vm);

/* Exits with KVM_EXIT_DIRTY_RING_FULL. */
uint64_t toy_ring_full_exits(const struct toy_vm *vm);
int toy_fd(const struct toy_vm *vm);

#endif
