#include "config.h"

#include "daemon/host-report.h"

#include <stdio.h>
#include <string.h>

#include "daemon/host-limits.h"
#include "vcpu/host.h"

static const char *yes_no(bool yes)
{
    return yes ? "yes" : "no";
}

int host_report(const char *kvm_path)
{
    struct host_limits limits;
    struct host_info h;
    int r = host_probe(kvm_path, &h);

    if (r < 0) {
        printf("%s: %s\n", kvm_path, strerrordesc_np(-r));
        return r;
    }
    printf("module: %s\n", h.module[0] ? h.module : "unknown");
    printf("paging: %s (%s)\n", host_paging_name(h.proven), h.how);
    printf("guest kernel code: %s, %.1f million instructions a second\n", h.ring0_emulated ? "emulated" : "native", h.ring0_mips);
    printf("runs stock kernels: %s\n", h.ring0_emulated ? "no, guest kernel code is emulated" : "yes");
    printf("kvm api: %d\n", h.api_version);
    printf("vcpus at most: %u\n", h.max_vcpus);
    printf("dirty log with manual protection: %s\n", yes_no(h.manual_dirty_log));
    printf("dirty ring: %s\n", yes_no(h.dirty_ring));
    printf("binary statistics: %s\n", yes_no(h.stats_fd));
    printf("userfaultfd: %s\n", yes_no(h.userfaultfd));
    host_limits_read("", &limits);
    host_limits_print(&limits, stdout);
    return 0;
}
