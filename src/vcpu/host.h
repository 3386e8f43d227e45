/*
 * What this host's KVM offers, found by asking and by measuring: for query-host, --check-host and the refusal to start.
 *
 * Paging is proved, as parameters can lie: a throw-away VM with paging on executes INVLPGs, which leave the guest only
 * where KVM keeps shadow page tables, and the vCPU's statistics tell how many did. That VM costs 1 to 3 ms, a third of
 * a start: so a start does it in a thread while it makes the real VM, and remembers the proof (host_probe_start).
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
    enum host_paging proven;    /* what the INVLPG probe showed */
    char how[128];              /* e.g. "kvm_amd npt=N; 10 of 10 INVLPGs exited", or why nothing is known */
    bool ring0_emulated;        /* guest kernel code is emulated; false too where that cannot be found out */
    double ring0_mips;          /* millions of guest kernel instructions a second; 0 until measured */
    int api_version;
    unsigned int max_vcpus;
    bool dirty_ring, manual_dirty_log, stats_fd;
    bool userfaultfd; /* missing pages and write protection, of shared memory, also when KVM touches it */
};

/* Everything, ring-0 speed included; under 50 ms. 0, or -errno of opening KVM; other failures leave their fields unknown. */
int host_probe(const char *kvm_path, struct host_info *ret);

/*
 * The same for a start, in a thread and without waiting for ring0_mips. What was proved is remembered in `proof_dir`
 * (the runtime directory; NULL: nowhere) for as long as the KVM module stays loaded; then there is no throw-away VM, no
 * thread, and ring0_mips is known.
 *
 * Start it (0, -ENOMEM, or -errno of making the thread), wait for the result (as host_probe), free it. The result is
 * there before the throw-away VM is gone and the proof is written, which takes as long again: free it when there is
 * time, and before a sandbox closes. The strings are copied; wait and free are for the thread that started it; free
 * without wait is fine.
 */
struct host_probe;
int host_probe_start(const char *kvm_path, const char *proof_dir, struct host_probe **ret);
int host_probe_wait(struct host_probe *probe, struct host_info *ret);
void host_probe_free(struct host_probe *probe);

/* Measure ring0_mips with a throw-away VM on an open /dev/kvm; about 10 ms. 0 or -errno, info unchanged. */
int host_measure_ring0(int kvm_fd, struct host_info *info);

/*
 * Find the module that serves /dev/kvm and what its parameter says: module, by_module and how. `dir` is /sys/module but
 * for tests.
 */
void host_read_module(const char *dir, struct host_info *info);

/* "shadow", "tdp" or "unknown". */
const char *host_paging_name(enum host_paging paging);
#endif
