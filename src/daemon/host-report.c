#include "config.h"

#include "daemon/host-report.h"

#include <stdio.h>
#include <string.h>

#include "vcpu/host.h"

static const char *paging_name(enum host_paging paging)
{
    switch (paging) {
    case HOST_PAGING_SHADOW:
        return "shadow page tables";
    case HOST_PAGING_TDP:
        return "two-dimensional paging (EPT or NPT)";
    case HOST_PAGING_UNKNOWN:
        break;
    }
    return "unknown";
}

static const char *yes_no(bool yes)
{
    return yes ? "yes" : "no";
}

int host_report(const char *kvm_path)
{
    struct host_info host;
    int r = host_probe(kvm_path, &host);

    if (r < 0) {
        fprintf(stderr, "umbrad: %s: %s\n", kvm_path, strerrordesc_np(-r));
        return r;
    }
    printf("kvm               %s, API version %d\n", host.module[0] ? host.module : "unknown module", host.api_version);
    printf("paging            %s (module), %s (proven)\n", paging_name(host.by_module), paging_name(host.proven));
    printf("how it is known   %s\n", host.how);
    printf("guest kernel code %s, %.1f million instructions a second\n", host.ring0_emulated ? "emulated" : "native",
           host.ring0_mips);
    printf("stock kernels     %s\n", host.ring0_emulated ? "no: guest kernel code is emulated, a boot would take hours" : "yes");
    printf("vcpus             up to %u\n", host.max_vcpus);
    printf("dirty ring        %s\n", yes_no(host.dirty_ring));
    printf("dirty log         %s\n", host.manual_dirty_log ? "manual protect" : "no manual protect");
    printf("statistics        %s\n", yes_no(host.stats_fd));
    printf("userfaultfd       %s\n", yes_no(host.userfaultfd));
    return 0;
}
