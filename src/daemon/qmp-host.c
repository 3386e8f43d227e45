/* query-host: what the host probe found, and what that means for a guest. */
#include "config.h"

#include "daemon/machine.h"
#include "daemon/qmp-internal.h"

static void add_verdict(json_t *list, const char *what, bool good, const char *text)
{
    json_t *v = json_object_new_object();

    json_add_str(v, "what", what);
    json_add_bool(v, "good", good);
    json_add_str(v, "text", text);
    json_push(list, v);
}

static json_t *verdicts(const struct host_info *h)
{
    json_t *list = json_object_new_array();

    if (h->proven == HOST_PAGING_SHADOW)
        add_verdict(list, "paging", true, "KVM keeps shadow page tables, which a guest of this host has proven");
    else if (h->proven == HOST_PAGING_TDP)
        add_verdict(list, "paging", false,
                    "KVM uses nested page tables: what the MMU bookkeeping counts costs nothing here");
    else
        add_verdict(list, "paging", false, "whether KVM keeps shadow page tables could not be proven");
    if (h->ring0_mips == 0)
        add_verdict(list, "guest-kernel", false, "whether guest kernel code runs natively could not be measured");
    else if (h->ring0_emulated)
        add_verdict(list, "guest-kernel", false, "KVM emulates guest kernel code: too slow for stock kernels");
    else
        add_verdict(list, "guest-kernel", true, "guest kernel code runs natively");
    add_verdict(list, "dirty-log", h->manual_dirty_log,
                h->manual_dirty_log ? "KVM leaves it to umbrad when a dirty page is protected again"
                                    : "KVM protects dirty pages by itself whenever they are read");
    add_verdict(list, "dirty-ring", h->dirty_ring, h->dirty_ring ? "dirty-log ring is available" : "KVM has no dirty ring");
    add_verdict(list, "stats", h->stats_fd, h->stats_fd ? "KVM's own statistics are available" : "KVM gives no statistics");
    add_verdict(list, "userfaultfd", h->userfaultfd,
                h->userfaultfd ? "writes to single pages can be heard of at once" : "userfaultfd cannot write-protect here");
    return list;
}

json_t *qmp_query_host(struct qmp_request *req)
{
    const struct host_info *h = machine_host(req->machine);
    json_t *answer = json_object_new_object(), *paging = json_object_new_object();
    json_t *kernel = json_object_new_object(), *kvm = json_object_new_object();

    json_add_str(paging, "mode", host_paging_name(h->proven != HOST_PAGING_UNKNOWN ? h->proven : h->by_module));
    json_add_str(paging, "by-module", host_paging_name(h->by_module));
    json_add_str(paging, "proven", host_paging_name(h->proven));
    json_add_str(paging, "how", h->how);
    json_add_bool(kernel, "emulated", h->ring0_emulated);
    json_add_str(kvm, "module", h->module);
    json_add_i64(kvm, "api-version", h->api_version);
    json_add_i64(kvm, "max-vcpus", h->max_vcpus);
    json_add_bool(kvm, "dirty-ring", h->dirty_ring);
    json_add_bool(kvm, "manual-dirty-log", h->manual_dirty_log);
    json_add_bool(kvm, "stats", h->stats_fd);
    json_add(answer, "paging", paging);
    json_add(answer, "guest-kernel", kernel);
    json_add(answer, "kvm", kvm);
    json_add_bool(answer, "userfaultfd", h->userfaultfd);
    json_add(answer, "verdicts", verdicts(h));
    return answer;
}
