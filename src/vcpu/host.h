/*
 * What this host's KVM offers, found by asking and by measuring: for query-host, --check-host and the refusal to start.
 *
 * Paging is proved, as parameters can lie: a vCPU executes INVLPGs, which leave the guest only where KVM keeps shadow page
 * tables, and its statistics tell how many did. A start has the guest's own VM do it, before there is a guest in it: that
 * proves the very VM and costs 0.2 ms, most of which the guest's first entry costs otherwise. A throw-away VM costs 1 ms,
 * and as much again beside the VM that is being made: both want the locks of one address space.
 */
#ifndef UMBRA_VCPU_HOST_H
#define UMBRA_VCPU_HOST_H

#include <stdbool.h>
#include <stdint.h>

enum host_paging {
    HOST_PAGING_UNKNOWN,
    HOST_PAGING_SHADOW,
    HOST_PAGING_TDP, /* EPT or NPT */
};

struct host_info {
    char module[32];            /* kvm_pvm, kvm_amd, kvm_intel, or "" */
    enum host_paging by_module; /* what the module and its parameter say */
    enum host_paging proven;    /* what INVLPG showed */
    char how[128];              /* e.g. "kvm_amd npt=N; 10 of 10 INVLPGs exited", or why nothing is known */
    bool ring0_emulated;        /* guest kernel code is emulated; false too where that cannot be found out */
    double ring0_mips;          /* millions of guest kernel instructions a second; 0 until measured */
    int api_version;
    unsigned int max_vcpus;
    bool dirty_ring, manual_dirty_log, stats_fd;
    bool userfaultfd; /* missing pages and write protection, of shared memory, also when KVM touches it */
};

/* Everything; under 50 ms. 0, or -errno of opening KVM; other failures leave their fields unknown. */
int host_probe(const char *kvm_path, struct host_info *ret);

/* The same on an open /dev/kvm but for module and by_module; what is proven already, and how, stays. */
void host_examine(int kvm_fd, struct host_info *info);

/*
 * Fill in module, by_module, proven and how by means of a VM made by vm_new whose vCPUs have not run. Afterwards vCPU 0 has
 * other registers (vm_reset sets them), guest memory is zero where its code was, KVM takes no other CPUID for the vCPU, and
 * the vCPU's statistics do not begin at 0. For vCPU 0's thread (vm_callbacks.on_start): until Linux 6.13 KVM waits for an
 * RCU grace period where another thread comes to run a vCPU.
 */
struct vm;
void host_prove_paging(struct vm *vm, struct host_info *info);

/*
 * The same in a throw-away VM, for a VM whose CPUID is not known yet; takes 1 ms. Any thread.
 */
void host_prove_paging_apart(int kvm_fd, struct host_info *info);

/*
 * Find the module that serves /dev/kvm and what its parameter says: module, by_module and how. `dir` is /sys/module but
 * for tests.
 */
void host_read_module(const char *dir, struct host_info *info);

/* "shadow", "tdp" or "unknown". */
const char *host_paging_name(enum host_paging paging);
#endif
