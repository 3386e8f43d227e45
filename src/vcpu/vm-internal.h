/* What vm.c, vm-create.c and vcpu.c share. */
#ifndef UMBRA_VCPU_VM_INTERNAL_H
#define UMBRA_VCPU_VM_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "vcpu/vcpu.h"
#include "vcpu/vm.h"

struct vm {
    int kvm_fd;
    int fd;
    size_t run_size; /* bytes of a vCPU's mapped kvm_run */
    struct mem *mem;
    struct cpuid_fetch *cpuid; /* what the host can give; that of another VM where mem is NULL */
    struct bus *bus;
    struct dirty_log *dirty;
    struct vm_callbacks callbacks;
    struct irq_sink irq;
    enum dirty_backend dirty_backend;
    uint32_t ring_entries;
    uint8_t *registers; /* vm_register_pages */
    size_t register_size;
    unsigned int maxphyaddr; /* of the vCPUs, and whether they have 1 GiB pages */
    bool gbpages;
    bool initially_set; /* KVM took KVM_DIRTY_LOG_INITIALLY_SET */
    bool dirty_buffered; /* vm_set_dirty_buffered */
    bool may_wait; /* vm_may_wait */
    uint64_t paused_since, paused_ns; /* vm_paused_ns: since when, 0 while it runs; and before that. Main thread */
    bool touched; /* since the VM was made or reset, a vCPU has run or state was loaded: a reset has something to undo */
    cpuid_features cpu_off;
    unsigned int cpus;
    struct vcpu *vcpus[VM_MAX_VCPUS];

    /*
     * Run control. `run` is written by the main thread under the lock and read by vCPU threads without it, after each
     * return of KVM_RUN with EINTR.
     */
    atomic_bool run;
    pthread_mutex_t lock;     /* protects what follows, and every vCPU's parked/blocked/quit */
    pthread_cond_t parked_cv; /* main waits: a vCPU has parked */
    pthread_cond_t go_cv;     /* vCPUs wait: run or quit has changed */
    unsigned int parked;
    bool quit;
    pthread_cond_t paging_cv; /* vm_look_paging waits: a vCPU has noted its registers */
};

struct vcpu {
    struct vm *vm;
    unsigned int index;
    int fd;
    struct kvm_run *run;
    struct kvm_dirty_gfn *ring; /* mapped; NULL without the ring backend */
    pthread_t thread;
    bool started;
    bool parked;  /* under vm->lock */
    bool blocked; /* under vm->lock: cannot go on until a reset */
    atomic_int tid;
    atomic_uint entries; /* odd while inside KVM_RUN */
    atomic_bool look; /* note the paging registers after the next return of KVM_RUN */
    struct vcpu_paging paging; /* under vm->lock */
    /* vm_stuck_vcpu, main thread: `entries` of last time, and whether the vCPU has been asked to show itself since. */
    unsigned int seen;
    bool doubted;
    struct vcpu_exits exits; /* written by its own thread only, read with relaxed loads */
};

/* vm-create.c: no file descriptor yet. NULL: out of memory. vm_free takes what has got no further. */
struct vm *vm_alloc(unsigned int cpus, struct mem *mem);
/* On vm->kvm_fd: a VM with its chips and vCPUs but no thread running. Without memory: one to read power-on state from. Logged. */
int vm_build(struct vm *vm, const struct vm_config *config);
/* vcpu.c: create the vCPU and map its run area and ring; 0 or -errno, logged. vcpu_free takes NULL and half-built ones. */
int vcpu_new(struct vm *vm, unsigned int index, struct vcpu **ret);
void vcpu_free(struct vcpu *vcpu);
int vcpu_start(struct vcpu *vcpu);
/* Note the paging registers. On its thread, or by the main thread while it is parked. */
void vcpu_note_paging(struct vcpu *vcpu);
/* Make the vCPU leave KVM_RUN and look at vm->run. Any thread. */
void vcpu_kick(struct vcpu *vcpu);

#endif
