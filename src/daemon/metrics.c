#include "config.h"

#include "daemon/machine-state.h"
#include "daemon/metrics.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/http.h"
#include "base/log.h"
#include "base/paths.h"
#include "base/unix.h"
#include "base/util.h"
#include "daemon/metrics-internal.h"
#include "device/virtio/balloon.h"
#include "vcpu/bus.h"
#include "vcpu/vcpu.h"
#include "vcpu/vm.h"

#define SOCKET_MODE 0660

struct metrics {
    struct metrics_source source;
    struct http_server *http;
    struct unix_listener file;
    int tcp_fd;
};

/* -- the machine ------------------------------------------------------------- */

static void write_machine(struct om_writer *w, const struct metrics_source *s)
{
    static const struct om_family build = {"umbra_build", OM_INFO, NULL, "Version of umbrad."};
    static const struct om_family state = {"umbra_vm_state", OM_GAUGE, NULL, "1 for the run state that the VM is in."};
    static const struct om_family memory = {"umbra_vm_memory_bytes", OM_GAUGE, "bytes", "Size of guest memory."};
    static const struct om_family vcpus = {"umbra_vm_vcpus", OM_GAUGE, NULL, "Number of vCPUs."};
    struct machine *m = s->context->machine;
    struct vm *vm = machine_vm(m);

    om_begin(w, &build);
    om_u64(w, &(struct om_label){"version", PACKAGE_VERSION}, 1, 1);
    om_begin(w, &state);
    for (int i = RUN_STATE_PRELAUNCH; i <= RUN_STATE_POSTMIGRATE; i++) {
        enum run_state state_i = (enum run_state)i;

        om_u64(w, &(struct om_label){"state", machine_run_state_name(state_i)}, 1, machine_run_state(m) == state_i);
    }
    om_single_u64(w, &memory, mem_size(vm_mem(vm)));
    om_single_u64(w, &vcpus, vm_cpus(vm));
}

static void write_vcpus(struct om_writer *w, const struct metrics_source *s)
{
    static const struct om_family family = {"umbra_vcpu_exits", OM_COUNTER, NULL, "Exits of a vCPU to umbrad, by reason."};
    static const struct {
        const char *reason;
        size_t at; /* in struct vcpu_exits */
    } rows[] = {
        {"io_in", offsetof(struct vcpu_exits, io_in)},
        {"io_out", offsetof(struct vcpu_exits, io_out)},
        {"mmio_read", offsetof(struct vcpu_exits, mmio_read)},
        {"mmio_write", offsetof(struct vcpu_exits, mmio_write)},
        {"intr", offsetof(struct vcpu_exits, intr)},
        {"shutdown", offsetof(struct vcpu_exits, shutdown)},
        {"dirty_ring_full", offsetof(struct vcpu_exits, dirty_ring_full)},
        {"system_event", offsetof(struct vcpu_exits, system_event)},
        {"other", offsetof(struct vcpu_exits, other)},
    };
    struct vm *vm = machine_vm(s->context->machine);

    om_begin(w, &family);
    for (unsigned int i = 0; i < vm_cpus(vm); i++) {
        struct vcpu_exits exits;
        char index[16];

        vcpu_exits(vm_vcpu(vm, i), &exits);
        snprintf(index, sizeof(index), "%u", i);
        for (size_t k = 0; k < ARRAY_SIZE(rows); k++) {
            const struct om_label labels[] = {{"vcpu", index}, {"reason", rows[k].reason}};

            om_u64(w, labels, ARRAY_SIZE(labels), *(const uint64_t *)((const char *)&exits + rows[k].at));
        }
    }
}

static void write_bus(struct om_writer *w, const struct metrics_source *s)
{
    static const struct om_family family = {"umbra_bus_unclaimed", OM_COUNTER, NULL,
                                            "Guest accesses to ports and addresses where no device is."};

    om_single_u64(w, &family, bus_unclaimed(vm_bus(machine_vm(s->context->machine))));
}

static void write_balloon(struct om_writer *w, const struct metrics_source *s)
{
    static const struct om_family memory = {"umbra_balloon_memory_bytes", OM_GAUGE, "bytes",
                                            "Guest memory outside of the balloon."};
    static const struct om_family given = {"umbra_balloon_given_back_bytes", OM_COUNTER, "bytes",
                                           "Memory that the guest gave back to the host, by its balloon or as free pages."};
    struct device *balloon = machine_balloon(s->context->machine);
    struct vballoon_info info;

    /* While memory arrives the device may wait for a page. */
    if (!balloon || machine_memory_arrives(s->context->machine))
        return;
    vballoon_info(balloon, &info);
    om_single_u64(w, &memory, info.memory);
    om_single_u64(w, &given, info.counters.given_back_bytes);
}

/* -- the dirty log ----------------------------------------------------------- */

static void write_harvest_times(struct om_writer *w, const struct dirty_stats *d)
{
    static const struct om_family family = {"umbra_dirty_log_harvest_seconds", OM_HISTOGRAM, "seconds",
                                            "How long snapshots of the dirty log took to harvest."};
    double bounds[DIRTY_TIME_BUCKETS - 1], sum = (double)d->harvest_ns / 1e9;
    uint64_t ns = DIRTY_TIME_FIRST_NS;

    for (size_t i = 0; i < ARRAY_SIZE(bounds); i++, ns *= 4)
        bounds[i] = (double)ns / 1e9;
    om_begin(w, &family);
    om_histogram(w, bounds, d->harvest_times, DIRTY_TIME_BUCKETS, &sum);
}

static void write_dirty(struct om_writer *w, const struct metrics_source *s)
{
    static const struct {
        struct om_family family;
        size_t at; /* in struct dirty_stats */
    } rows[] = {
        {{"umbra_dirty_pages", OM_COUNTER, NULL, "Pages that the dirty log reported as written, while it had consumers."},
         offsetof(struct dirty_stats, pages)},
        {{"umbra_dirty_vmm_pages", OM_COUNTER, NULL, "Of them, pages that only umbrad wrote."},
         offsetof(struct dirty_stats, vmm_pages)},
        {{"umbra_dirty_log_failures", OM_COUNTER, NULL, "Harvests that KVM refused or broke off."},
         offsetof(struct dirty_stats, failures)},
        {{"umbra_dirty_log_get_ioctls", OM_COUNTER, NULL, "Calls of KVM_GET_DIRTY_LOG."},
         offsetof(struct dirty_stats, get_ioctls)},
        {{"umbra_dirty_log_clear_ioctls", OM_COUNTER, NULL, "Calls of KVM_CLEAR_DIRTY_LOG."},
         offsetof(struct dirty_stats, clear_ioctls)},
        {{"umbra_dirty_ring_full", OM_COUNTER, NULL, "Exits because a vCPU's dirty ring was full."},
         offsetof(struct dirty_stats, ring_full)},
        {{"umbra_dirty_ring_entries", OM_COUNTER, NULL, "Entries taken from dirty rings."},
         offsetof(struct dirty_stats, ring_entries)},
        {{"umbra_dirty_ring_overruns", OM_COUNTER, NULL, "Times KVM wrote over entries of a ring; every page was dirty then."},
         offsetof(struct dirty_stats, ring_overruns)},
    };
    static const struct om_family consumers = {"umbra_dirty_log_consumers", OM_GAUGE, NULL,
                                               "Consumers of the dirty log; without any nothing is logged."};
    struct dirty_stats d;

    dirty_log_stats(vm_dirty_log(machine_vm(s->context->machine)), &d);
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        om_single_u64(w, &rows[i].family, *(const uint64_t *)((const char *)&d + rows[i].at));
    om_single_u64(w, &consumers, d.consumers);
    write_harvest_times(w, &d);
}

static void write_stalls(struct om_writer *w, const struct metrics_source *s)
{
    static const struct om_family family = {"umbra_guest_stall_seconds", OM_COUNTER, "seconds",
                                            "Time in which vCPUs could not run, by reason."};
    struct vm *vm = machine_vm(s->context->machine);
    struct dirty_stats d;

    dirty_log_stats(vm_dirty_log(vm), &d);
    om_begin(w, &family);
    om_ns(w, &(struct om_label){"reason", "paused"}, 1, vm_paused_ns(vm));
    om_ns(w, &(struct om_label){"reason", "dirty_ring_full"}, 1, d.ring_full_ns);
}

/* -- scrapes themselves ------------------------------------------------------ */

static void write_scrapes(struct om_writer *w, const struct metrics_source *s)
{
    static const struct om_family scrapes = {"umbra_scrapes", OM_COUNTER, NULL, "Pages like this one made before."};
    static const struct om_family seconds = {"umbra_scrape_cpu_seconds", OM_COUNTER, "seconds",
                                             "CPU time of the main thread that making them took."};

    om_single_u64(w, &scrapes, s->scrapes);
    om_single_ns(w, &seconds, s->scrape_ns);
}

/* The one table: every part that has metrics, in the order of the page. */
static void (*const parts[])(struct om_writer *w, const struct metrics_source *s) = {
    write_machine, write_vcpus, write_bus, write_balloon, write_dirty, write_stalls, metrics_write_mmu, metrics_write_kvm,
    metrics_write_process, write_scrapes,
};

static uint64_t thread_cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

bool metrics_write(struct metrics *m, bool plain, struct om_writer *w)
{
    uint64_t start = thread_cpu_ns();
    bool complete;

    om_start(w, plain);
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
        parts[i](w, &m->source);
    complete = om_finish(w);
    m->source.scrapes++;
    m->source.scrape_ns += thread_cpu_ns() - start;
    return complete;
}

/* -- the server -------------------------------------------------------------- */

static void on_request(void *opaque, struct http_connection *c, const struct http_request *request)
{
    struct metrics *m = opaque;
    struct om_writer w;
    bool plain = strstr(request->accept, "application/openmetrics-text") == NULL;

    if (strcmp(request->path, "/metrics") != 0) {
        http_reply_error(c, 404, "there is /metrics only");
        return;
    }
    if (metrics_write(m, plain, &w))
        http_reply(c, 200, plain ? OM_CONTENT_TYPE_PLAIN : OM_CONTENT_TYPE, NULL, w.out.data, w.out.len);
    else
        http_reply_error(c, 503, "out of memory");
    byte_writer_clear(&w.out);
}

int metrics_new(struct event_base *events, const struct qmp_context *context, struct metrics **ret)
{
    struct metrics *m = calloc(1, sizeof(*m));

    if (!m)
        return -ENOMEM;
    m->source.context = context;
    m->file.fd = m->tcp_fd = -1;
    m->source.process = process_files_open();
    if (!m->source.process || http_server_new(events, on_request, m, &m->http) < 0) {
        metrics_free(m);
        return -ENOMEM;
    }
    *ret = m;
    return 0;
}

void metrics_free(struct metrics *m)
{
    if (!m)
        return;
    http_server_free(m->http);
    unix_listener_close(&m->file);
    fd_close(m->tcp_fd);
    process_files_close(m->source.process);
    free(m);
}

int metrics_listen_unix(struct metrics *m, const char *path)
{
    int r = unix_listen(path, SOCKET_MODE, UMBRA_GROUP, &m->file);

    if (r == 0)
        r = http_server_serve(m->http, m->file.fd);
    if (r < 0)
        log_err_errno(r, "%s: cannot listen", path);
    return r;
}

int metrics_listen_tcp(struct metrics *m, const char *address)
{
    struct sockaddr_storage addr;
    socklen_t len;
    int r = http_parse_address(address, &addr, &len);

    if (r == 0)
        r = m->tcp_fd = http_listen(&addr, len);
    if (r >= 0)
        r = http_server_serve(m->http, m->tcp_fd);
    if (r < 0)
        log_err_errno(r, "metrics: cannot listen on %s", address);
    else
        log_info("metrics: serving on %s, port %u", address, http_port(m->tcp_fd));
    return r;
}
