/*
 * The dirty log as KVM keeps it, in a model: pages are protected or not, a write to a protected page is logged and takes the
 * protection away, and only what the API says gives it back. Guest memory is a counter a page, counted up by each write.
 *
 * Guest writes and the operations may run in different threads.
 */
#ifndef UMBRA_TESTS_FAKE_KVM_H
#define UMBRA_TESTS_FAKE_KVM_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "mmu/dirty.h"
#include "mmu/mem.h"
#include "rand.h"

#define FAKE_MAX_VCPUS 3

struct fake_ring {
    struct kvm_dirty_gfn *entries;
    uint32_t dirty, reset; /* free-running */
};

struct fake_kvm {
    struct mem *mem;
    enum dirty_backend backend;
    bool initially_set;
    unsigned int vcpus;
    uint32_t ring_entries;

    pthread_mutex_t lock; /* KVM's MMU lock */
    bool logging[MEM_MAX_SLOTS];
    uint64_t *dirty;    /* words atomic; the bitmap backend's log */
    uint64_t *writable; /* under lock */
    uint64_t *content;  /* atomic */
    struct fake_ring rings[FAKE_MAX_VCPUS];

    /* Failures, in percent of the calls. One thread at a time uses the operations: the dirty log's lock sees to that. */
    struct rng rng;
    unsigned int fail_get, fail_clear, fail_reset, fail_logging;
    unsigned int reset_at_most; /* entries a call takes back, 0: all */
    int (*kick)(void *arg);
    void *kick_arg;
    /* Called when the operation has looked at an entry that was given back and not yet taken it: KVM holds no lock there. */
    void (*taking)(void *arg);
    void *taking_arg;
    bool overrun; /* atomic: entries were overwritten, or would have been by the next one */

    /* Calls, failed ones among them. */
    uint64_t gets, clears, resets, kicks;
    uint64_t misuse; /* calls that KVM would have refused */
};

/* Without kick_vcpus, and with it. opaque is the struct fake_kvm. */
extern const struct dirty_ops fake_ops, fake_ops_with_kick;

/* The fields above `lock` are set by the caller. */
void fake_init(struct fake_kvm *k, uint64_t seed);
void fake_destroy(struct fake_kvm *k);
/* Ring backend: make the rings known to the log. */
void fake_add_rings(struct fake_kvm *k, struct dirty_log *log);

/* The guest writes to a page; false when the vCPU's ring is (nearly) full, and the write has not happened. */
bool fake_guest_write(struct fake_kvm *k, unsigned int vcpu, pfn_t page);
/* The same, in the middle of what KVM does without a look at whether the ring is full. */
void fake_guest_burst(struct fake_kvm *k, unsigned int vcpu, pfn_t page);
/* Whether KVM would leave the guest at once, as its ring is full. */
bool fake_ring_full(struct fake_kvm *k, unsigned int vcpu);
/* The VMM does. */
void fake_vmm_write(struct fake_kvm *k, pfn_t page);

/* Put an entry into a ring as it is. */
void fake_push(struct fake_kvm *k, unsigned int vcpu, uint32_t slot, uint64_t offset);

bool fake_overrun(const struct fake_kvm *k);
bool fake_logging(const struct fake_kvm *k);
uint64_t fake_content(const struct fake_kvm *k, pfn_t page);

#endif
