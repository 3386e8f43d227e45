/* What this host's KVM offers, found by asking and by measuring: for query-host, --check-host and the refusal to start. */
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
    char how[96];               /* e.g. "kvm_amd npt=N; 10 INVLPG exited 10 times" */
    bool ring0_emulated;        /* guest kernel code is emulated */
    double ring0_mips;          /* measured, millions of guest kernel instructions a second */
    int api_version;
    bool dirty_ring, manual_dirty_log, stats_fd, userfaultfd;
    unsigned int max_vcpus;
};

/* Ask and measure (a throw-away VM; under 50 ms). -errno of opening KVM; other failures leave their fields unknown. */
int host_probe(const char *kvm_path, struct host_info *ret);

#endif
