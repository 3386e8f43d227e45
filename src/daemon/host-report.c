#include "config.h"

#include "daemon/host-report.h"

#include <stdio.h>
#include <string.h>

#include "vcpu/host.h"

static const char *yes_no(bool yes)
{
    return yes ? "yes" : "no";
}

/* Emulated guest kernel code means minutes or hours for a stock kernel; the speed was measured. */
static const char *stock_kernels(enum host_ring0 ring0)
{
    switch (ring0) {
    case HOST_RING0_NATIVE:
        return "yes";
    case HOST_RING0_EMULATED:
        return "no, guest kernel code is emulated";
    case HOST_RING0_UNKNOWN:
        break;
    }
    return "unknown";
}

int host_report(const char *kvm_path)
{
    struct host_info h;
    int r = host_probe(kvm_path, &h);

    if (r < 0) {
        printf("%s: %s\n", kvm_path, strerrordesc_np(-r));
        return r;
    }
    printf("module: %s\n", h.module[0] ? h.module : "unknown");
    printf("paging: %s (%s)\n", host_paging_name(h.proven), h.how);
    printf("guest kernel code: %s, %.1f million instructions a second\n", host_ring0_name(h.ring0), h.ring0_mips);
    printf("runs stock kernels: %s\n", stock_kernels(h.ring0));
    printf("kvm api: %d\n", h.api_version);
    printf("vcpus at most: %u\n", h.max_vcpus);
    printf("dirty log with manual protection: %s\n", yes_no(h.manual_dirty_log));
    printf("dirty ring: %s\n", yes_no(h.dirty_ring));
    printf("binary statistics: %s\n", yes_no(h.stats_fd));
    printf("userfaultfd: %s\n", yes_no(h.userfaultfd));
    printf("userfaultfd write protection: %s\n", yes_no(h.userfaultfd_wp));
    return 0;
}
