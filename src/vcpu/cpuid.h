/*
 * The CPUID table of a vCPU: what KVM supports on this host, with the topology of this VM (one socket, one thread a core,
 * APIC ids equal to vCPU indexes) and the bits that KVM leaves to user space. Everything else is passed on as KVM gives
 * it, its own signature and feature leaves among it.
 */
#ifndef UMBRA_VCPU_CPUID_H
#define UMBRA_VCPU_CPUID_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

/* APIC id 255 is the broadcast. */
#define CPUID_MAX_VCPUS 255u
/* The largest table KVM itself takes. */
#define CPUID_MAX_ENTRIES 256u

/* What of the host the tables are made from. */
struct cpuid_host {
    struct kvm_cpuid2 *supported;
    bool tsc_deadline; /* KVM's LAPIC has the TSC deadline timer */
    bool la57;         /* the host itself runs with five-level paging */
};

void cpuid_host_clear(struct cpuid_host *host);

/*
 * Ask KVM for it, in a thread of its own while a VM is made: KVM executes CPUID some seventy times for it, 0.3 ms where a
 * hypervisor traps it. kvm_fd is that of /dev/kvm. Start the fetch (0, -ENOMEM, or -errno of making the thread); wait for
 * the result, as often as it is needed (0, or -errno of KVM; *ret lives as long as the fetch); free it. Any thread, but one
 * at a time.
 */
struct cpuid_fetch;
int cpuid_fetch_start(int kvm_fd, struct cpuid_fetch **ret);
int cpuid_fetch_wait(struct cpuid_fetch *fetch, const struct cpuid_host **ret);
/* Waits. NULL is fine. */
void cpuid_fetch_free(struct cpuid_fetch *fetch);

/* Features by name that can be kept from the guest: a set of them is the sum of their bits. */
typedef uint64_t cpuid_features;
/*
 * Async page faults: a task of the guest whose page is not there waits for an interrupt, others run on. Not for a guest that has
 * no usable LAPIC, because the interrupt never comes.
 */
#define CPUID_ASYNC_PF (UINT64_C(1) << 0)

/* The bit of a name ("pcid"), or 0. */
cpuid_features cpuid_feature(const char *name);
/* All names, for messages: the index'th, or NULL. */
const char *cpuid_feature_name(unsigned int index);

struct cpuid_options {
    unsigned int index; /* which vCPU */
    unsigned int count; /* vCPUs of the VM */
    cpuid_features off; /* not offered */
};

/*
 * The table for one vCPU; *ret is the caller's to free. -EINVAL unless index < count <= CPUID_MAX_VCPUS, -ENOMEM.
 * Takes a few microseconds. Any thread.
 */
int cpuid_build(const struct cpuid_host *host, const struct cpuid_options *options, struct kvm_cpuid2 **ret);

/* The entry for function and index (index counts only where the entry says so), or NULL. */
struct kvm_cpuid_entry2 *cpuid_find(struct kvm_cpuid2 *table, uint32_t function, uint32_t index);

#endif
