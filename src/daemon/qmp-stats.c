/*
 * query-stats and query-stats-schemas: KVM's statistics by the names that KVM gives them, as provider "kvm", and the
 * VMM's own counters as provider "umbra".
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "daemon/machine-state.h"
#include "daemon/machine.h"
#include "daemon/qmp-internal.h"
#include "device/virtio/balloon.h"
#include "device/virtio/blk.h"
#include "device/virtio/net.h"
#include "device/virtio/console.h"
#include "device/virtio/rng.h"
#include "mmu/dirty.h"
#include "vcpu/bus.h"
#include "vcpu/stats.h"
#include "vcpu/vcpu.h"
#include "vcpu/vm.h"

/* What one request may ask for, so that its cost has a bound. */
#define FILTER_MAX_PROVIDERS 16
#define FILTER_MAX_NAMES 256
#define FILTER_MAX_VCPUS 256

enum provider { PROVIDER_KVM, PROVIDER_UMBRA, PROVIDERS };
/* Instead of a vCPU's index. */
#define OF_VM -1

/*
 * The sources are opened before the guest runs: KVM_GET_STATS_FD on a vCPU waits until it leaves KVM_RUN, which an idle one
 * never does. Reading an open source waits for nobody.
 */
struct qmp_stats {
    struct machine *machine;
    struct kvm_stats_source *vm; /* NULL where KVM gives none */
    struct kvm_stats_source *vcpus[VM_MAX_VCPUS];
};

static const char *const provider_names[] = {[PROVIDER_KVM] = "kvm", [PROVIDER_UMBRA] = "umbra"};

/* -- our own ----------------------------------------------------------------- */

/* What reading takes devices' locks. */
struct device_counters {
    struct vblk_counters disks; /* of all of them */
    struct vnet_counters nets;
    struct vballoon_info balloon; /* zeros where there is none, as the next two */
    struct vrng_counters rng;
    struct vconsole_counters console;
};

struct vm_counters {
    struct dirty_stats dirty;
    uint64_t bus_unclaimed;
    struct device_counters devices;
    uint64_t mmu_tables, mmu_entries, mmu_spaces, mmu_memory, mmu_flooded, mmu_incomplete;
    struct tracker_stats mmu;
};

struct own_stat {
    struct stats_desc desc;
    size_t at; /* of a uint64_t in struct vm_counters or struct vcpu_exits */
};

#define OWN(name_, type_, field_) {{.name = name_, .type = STATS_CUMULATIVE, .count = 1}, offsetof(type_, field_)}

#define NOW(name_, type_, field_) {{.name = name_, .type = STATS_INSTANT, .count = 1}, offsetof(type_, field_)}

#define BYTES(name_, type_, field_)                                                                              \
    {{.name = name_, .type = STATS_CUMULATIVE, .unit = STATS_BYTES, .base = 2, .count = 1}, offsetof(type_, field_)}

static const struct own_stat vm_stats[] = {
    {{.name = "balloon_memory", .type = STATS_INSTANT, .unit = STATS_BYTES, .base = 2, .count = 1},
     offsetof(struct vm_counters, devices.balloon.memory)},
    OWN("balloon_inflated_pages", struct vm_counters, devices.balloon.counters.inflated),
    OWN("balloon_deflated_pages", struct vm_counters, devices.balloon.counters.deflated),
    BYTES("balloon_reported_bytes", struct vm_counters, devices.balloon.counters.reported_bytes),
    BYTES("balloon_given_back_bytes", struct vm_counters, devices.balloon.counters.given_back_bytes),
    OWN("balloon_ignored", struct vm_counters, devices.balloon.counters.ignored),
    OWN("balloon_failures", struct vm_counters, devices.balloon.counters.failures),
    BYTES("rng_bytes", struct vm_counters, devices.rng.bytes),
    OWN("rng_waits", struct vm_counters, devices.rng.waits),
    BYTES("virtio_console_in_bytes", struct vm_counters, devices.console.in_bytes),
    BYTES("virtio_console_out_bytes", struct vm_counters, devices.console.out_bytes),
    OWN("virtio_console_waits", struct vm_counters, devices.console.waits),
    OWN("bus_unclaimed", struct vm_counters, bus_unclaimed),
    OWN("disk_reads", struct vm_counters, devices.disks.reads),
    {{.name = "disk_read_bytes", .unit = STATS_BYTES, .base = 2, .count = 1},
     offsetof(struct vm_counters, devices.disks.read_bytes)},
    OWN("disk_writes", struct vm_counters, devices.disks.writes),
    {{.name = "disk_write_bytes", .unit = STATS_BYTES, .base = 2, .count = 1},
     offsetof(struct vm_counters, devices.disks.write_bytes)},
    OWN("disk_flushes", struct vm_counters, devices.disks.flushes),
    OWN("disk_discards", struct vm_counters, devices.disks.discards),
    OWN("disk_zeroes", struct vm_counters, devices.disks.zeroes),
    OWN("disk_errors", struct vm_counters, devices.disks.errors),
    OWN("disk_kicks", struct vm_counters, devices.disks.kicks),
    OWN("disk_interrupts", struct vm_counters, devices.disks.interrupts),
    OWN("disk_misuses", struct vm_counters, devices.disks.misuses),
    OWN("net_rx_packets", struct vm_counters, devices.nets.rx_packets),
    {{.name = "net_rx_bytes", .unit = STATS_BYTES, .base = 2, .count = 1},
     offsetof(struct vm_counters, devices.nets.rx_bytes)},
    OWN("net_rx_dropped", struct vm_counters, devices.nets.rx_dropped),
    OWN("net_tx_packets", struct vm_counters, devices.nets.tx_packets),
    {{.name = "net_tx_bytes", .unit = STATS_BYTES, .base = 2, .count = 1},
     offsetof(struct vm_counters, devices.nets.tx_bytes)},
    OWN("net_tx_dropped", struct vm_counters, devices.nets.tx_dropped),
    OWN("net_kicks", struct vm_counters, devices.nets.kicks),
    OWN("net_interrupts", struct vm_counters, devices.nets.interrupts),
    OWN("net_misuses", struct vm_counters, devices.nets.misuses),
    OWN("dirty_harvests", struct vm_counters, dirty.harvests),
    {{.name = "dirty_harvest_ns", .unit = STATS_SECONDS, .exponent = -9, .base = 10, .count = 1},
     offsetof(struct vm_counters, dirty.harvest_ns)},
    OWN("dirty_pages", struct vm_counters, dirty.pages),
    OWN("dirty_vmm_pages", struct vm_counters, dirty.vmm_pages),
    OWN("dirty_get_ioctls", struct vm_counters, dirty.get_ioctls),
    OWN("dirty_clear_ioctls", struct vm_counters, dirty.clear_ioctls),
    OWN("dirty_clear_words", struct vm_counters, dirty.clear_words),
    OWN("dirty_ring_full", struct vm_counters, dirty.ring_full),
    OWN("dirty_ring_entries", struct vm_counters, dirty.ring_entries),
    OWN("dirty_ring_resets", struct vm_counters, dirty.ring_resets),
    OWN("dirty_ring_overruns", struct vm_counters, dirty.ring_overruns),
    OWN("dirty_failures", struct vm_counters, dirty.failures),
    NOW("mmu_tables", struct vm_counters, mmu_tables),
    NOW("mmu_entries", struct vm_counters, mmu_entries),
    NOW("mmu_spaces", struct vm_counters, mmu_spaces),
    {{.name = "mmu_memory", .type = STATS_INSTANT, .unit = STATS_BYTES, .count = 1},
     offsetof(struct vm_counters, mmu_memory)},
    NOW("mmu_flooded_tables", struct vm_counters, mmu_flooded),
    NOW("mmu_incomplete_tables", struct vm_counters, mmu_incomplete),
    OWN("mmu_ticks", struct vm_counters, mmu.ticks),
    {{.name = "mmu_cpu_ns", .unit = STATS_SECONDS, .exponent = -9, .base = 10, .count = 1},
     offsetof(struct vm_counters, mmu.cpu_ns)},
    OWN("mmu_events", struct vm_counters, mmu.events),
    OWN("mmu_scans", struct vm_counters, mmu.scans),
    OWN("mmu_scanned_pages", struct vm_counters, mmu.scanned_pages),
    OWN("mmu_tables_read", struct vm_counters, mmu.mirror.tables_read),
    OWN("mmu_tables_changed", struct vm_counters, mmu.mirror.tables_changed),
    OWN("mmu_entries_linked", struct vm_counters, mmu.mirror.entries_linked),
    OWN("mmu_entries_unlinked", struct vm_counters, mmu.mirror.entries_unlinked),
    OWN("mmu_entries_updated", struct vm_counters, mmu.mirror.entries_updated),
    OWN("mmu_ad_updates", struct vm_counters, mmu.mirror.ad_updates),
    OWN("mmu_bulk_clears", struct vm_counters, mmu.mirror.bulk_clears),
    OWN("mmu_zapped_tables", struct vm_counters, mmu.mirror.zapped_pages),
    OWN("mmu_floods", struct vm_counters, mmu.mirror.floods),
    OWN("mmu_roots_added", struct vm_counters, mmu.mirror.roots_added),
    OWN("mmu_roots_dropped", struct vm_counters, mmu.mirror.roots_dropped),
    OWN("mmu_roots_evicted", struct vm_counters, mmu.mirror.roots_evicted),
};

static const struct own_stat vcpu_stats[] = {
    OWN("exits", struct vcpu_exits, total),
    OWN("io_in_exits", struct vcpu_exits, io_in),
    OWN("io_out_exits", struct vcpu_exits, io_out),
    OWN("mmio_read_exits", struct vcpu_exits, mmio_read),
    OWN("mmio_write_exits", struct vcpu_exits, mmio_write),
    OWN("intr_exits", struct vcpu_exits, intr),
    OWN("shutdown_exits", struct vcpu_exits, shutdown),
    OWN("dirty_ring_full_exits", struct vcpu_exits, dirty_ring_full),
    OWN("system_event_exits", struct vcpu_exits, system_event),
    OWN("other_exits", struct vcpu_exits, other),
};

/* -- KVM's ------------------------------------------------------------------- */

struct kvm_stats_source *qmp_stats_source(const struct qmp_stats *s, int vcpu)
{
    return vcpu == OF_VM ? s->vm : s->vcpus[vcpu];
}

static void open_source(int fd, struct kvm_stats_source **ret)
{
    int r = stats_open(fd, ret);

    if (r < 0)
        log_warn_errno(r, "KVM gives no statistics");
}

int qmp_stats_new(struct machine *machine, struct qmp_stats **ret)
{
    struct qmp_stats *s = calloc(1, sizeof(*s));
    struct vm *vm = machine_vm(machine);

    if (!s)
        return -ENOMEM;
    s->machine = machine;
    open_source(vm_fd(vm), &s->vm);
    for (unsigned int i = 0; s->vm && i < vm_cpus(vm); i++)
        open_source(vcpu_fd(vm_vcpu(vm, i)), &s->vcpus[i]);
    *ret = s;
    return 0;
}

void qmp_stats_free(struct qmp_stats *s)
{
    if (!s)
        return;
    if (s->vm)
        stats_close(s->vm);
    for (size_t i = 0; i < ARRAY_SIZE(s->vcpus); i++)
        if (s->vcpus[i])
            stats_close(s->vcpus[i]);
    free(s);
}

/* -- reading ----------------------------------------------------------------- */

/* One value of a filter: which provider, and which of its names (NULL: all). */
struct wanted {
    enum provider provider;
    const json_t *names;
};

static bool in_list(const json_t *list, const char *name)
{
    size_t n = json_object_array_length(list);

    for (size_t i = 0; i < n; i++)
        if (strcmp(json_object_get_string(json_object_array_get_idx(list, i)), name) == 0)
            return true;
    return false;
}

static json_t *value_of(const struct stats_desc *desc, const uint64_t *values)
{
    json_t *list;

    if (desc->unit == STATS_BOOLEAN && desc->count == 1)
        return json_object_new_boolean(values[0] != 0);
    if (desc->type != STATS_LINEAR_HIST && desc->type != STATS_LOG_HIST)
        return json_object_new_uint64(values[0]);
    list = json_object_new_array();
    for (unsigned int i = 0; i < desc->count; i++)
        json_push(list, json_object_new_uint64(values[i]));
    return list;
}

static void add_value(json_t *list, const struct wanted *w, const struct stats_desc *desc, const uint64_t *values)
{
    json_t *stat;

    if (w->names && !in_list(w->names, desc->name))
        return;
    stat = json_object_new_object();
    json_add_str(stat, "name", desc->name);
    json_add(stat, "value", value_of(desc, values));
    json_push(list, stat);
}

static void add_up(void *sum, const void *counters, size_t size)
{
    for (size_t i = 0; i < size / sizeof(uint64_t); i++)
        ((uint64_t *)sum)[i] += ((const uint64_t *)counters)[i];
}

static void sum_disks(struct machine *machine, struct vblk_counters *ret)
{
    struct device *disk;

    static_assert(sizeof(*ret) % sizeof(uint64_t) == 0, "all of them are counters");
    memset(ret, 0, sizeof(*ret));
    for (unsigned int i = 0; (disk = machine_disk(machine, i)); i++) {
        struct vblk_info info;

        vblk_info(disk, &info);
        add_up(ret, &info.counters, sizeof(*ret));
    }
}

static void sum_nets(struct machine *machine, struct vnet_counters *ret)
{
    struct device *net;

    static_assert(sizeof(*ret) % sizeof(uint64_t) == 0, "all of them are counters");
    memset(ret, 0, sizeof(*ret));
    for (unsigned int i = 0; (net = machine_net(machine, i)); i++) {
        struct vnet_info info;

        vnet_info(net, &info);
        add_up(ret, &info.counters, sizeof(*ret));
    }
}

static void read_devices(struct machine *machine, struct device_counters *ret)
{
    *ret = (struct device_counters){0};
    sum_disks(machine, &ret->disks);
    sum_nets(machine, &ret->nets);
    if (machine_balloon(machine))
        vballoon_info(machine_balloon(machine), &ret->balloon);
    if (machine_rng(machine))
        vrng_counters(machine_rng(machine), &ret->rng);
    if (machine_virtio_console(machine))
        vconsole_counters(machine_virtio_console(machine), &ret->console);
}

static void read_mmu(struct qmp_stats *s, struct vm_counters *ret)
{
    const struct mirror_stats *m = &ret->mmu.mirror;
    struct tracker_info info;

    tracker_info(machine_mmu_tracker(machine_mmu(s->machine)), &info);
    ret->mmu = info.stats;
    ret->mmu_tables = m->table_memory / GUEST_PAGE_SIZE;
    ret->mmu_entries = m->entries;
    ret->mmu_spaces = m->roots;
    ret->mmu_memory = m->memory + m->frame_memory;
    ret->mmu_flooded = m->stale;
    ret->mmu_incomplete = m->incomplete;
}

static bool is_of_devices(const struct own_stat *stat)
{
    const size_t first = offsetof(struct vm_counters, devices);

    return stat->at >= first && stat->at < first + sizeof(struct device_counters);
}

static void add_own_values_of_vm(struct qmp_stats *s, const struct wanted *w, json_t *list)
{
    struct vm *vm = machine_vm(s->machine);
    struct vm_counters c = {.bus_unclaimed = bus_unclaimed(vm_bus(vm))};
    /* A device may wait for a page with its lock held, and would make this thread wait with it. */
    bool devices = !machine_memory_arrives(s->machine);

    dirty_log_stats(vm_dirty_log(vm), &c.dirty);
    if (devices)
        read_devices(s->machine, &c.devices);
    read_mmu(s, &c);
    for (size_t i = 0; i < ARRAY_SIZE(vm_stats); i++)
        if (devices || !is_of_devices(&vm_stats[i]))
            add_value(list, w, &vm_stats[i].desc, (const uint64_t *)((const char *)&c + vm_stats[i].at));
}

static void add_own_values_of_vcpu(struct qmp_stats *s, const struct wanted *w, unsigned int vcpu, json_t *list)
{
    struct vcpu_exits exits;

    vcpu_exits(vm_vcpu(machine_vm(s->machine), vcpu), &exits);
    for (size_t i = 0; i < ARRAY_SIZE(vcpu_stats); i++)
        add_value(list, w, &vcpu_stats[i].desc, (const uint64_t *)((const char *)&exits + vcpu_stats[i].at));
}

static int add_kvm_values(struct qmp_stats *s, const struct wanted *w, int vcpu, json_t *list)
{
    struct kvm_stats_source *source = qmp_stats_source(s, vcpu);
    const struct stats_desc *descs;
    uint32_t count;
    int r;

    if (!source)
        return 0;
    r = stats_read(source);
    if (r < 0)
        return r;
    descs = stats_descs(source, &count);
    for (uint32_t i = 0; i < count; i++)
        add_value(list, w, &descs[i], stats_values(source, &descs[i]));
    return 0;
}

/* The values of one provider for the VM or one vCPU; nothing when there is none. */
static int add_result(struct qmp_stats *s, const struct wanted *w, int vcpu, json_t *answer)
{
    json_t *list = json_object_new_array(), *result;
    int r = 0;

    if (w->provider == PROVIDER_KVM)
        r = add_kvm_values(s, w, vcpu, list);
    else if (vcpu == OF_VM)
        add_own_values_of_vm(s, w, list);
    else
        add_own_values_of_vcpu(s, w, (unsigned int)vcpu, list);
    if (r < 0 || !list || json_object_array_length(list) == 0) {
        json_object_put(list);
        return r;
    }
    result = json_object_new_object();
    json_add_str(result, "provider", provider_names[w->provider]);
    json_add(result, "stats", list);
    if (vcpu != OF_VM) {
        char path[QMP_VCPU_PATH_MAX];

        qmp_vcpu_path((unsigned int)vcpu, path);
        json_add_str(result, "qom-path", path);
    }
    json_push(answer, result);
    return 0;
}

/* -- the filter -------------------------------------------------------------- */

static bool too_many(struct qmp_request *req, const char *what, const json_t *list, size_t limit)
{
    if (json_object_array_length(list) <= limit)
        return false;
    qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Parameter '%s' has %zu entries, the limit is %zu", what,
                  json_object_array_length(list), limit);
    return true;
}

/* Every entry of a list must be a string. */
static bool check_strings(struct qmp_request *req, const char *what, const json_t *list, size_t limit)
{
    if (too_many(req, what, list, limit))
        return false;
    for (size_t i = 0; i < json_object_array_length(list); i++)
        if (!json_object_is_type(json_object_array_get_idx(list, i), json_type_string)) {
            qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Invalid parameter type for '%s[%zu]', expected: string", what,
                          i);
            return false;
        }
    return true;
}

static bool parse_provider(struct qmp_request *req, const char *what, const char *name, enum provider *ret)
{
    for (int p = 0; p < PROVIDERS; p++)
        if (strcmp(name, provider_names[p]) == 0) {
            *ret = (enum provider)p;
            return true;
        }
    qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Parameter '%s' does not accept value '%.64s'", what, name);
    return false;
}

/* One entry of "providers": {"provider": NAME, "names": [...]?}, named in errors as QEMU names it. */
static bool parse_wanted(struct qmp_request *req, size_t index, const json_t *entry, struct wanted *ret)
{
    char what[64];
    const char *provider;
    json_t *names;
    int r;

    snprintf(what, sizeof(what), "providers[%zu]", index);
    if (!json_object_is_type(entry, json_type_object)) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Invalid parameter type for '%s', expected: object", what);
        return false;
    }
    json_object_object_foreach((json_t *)(uintptr_t)entry, key, unused)
    {
        (void)unused;
        if (strcmp(key, "provider") != 0 && strcmp(key, "names") != 0) {
            qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Parameter '%s.%.64s' is unexpected", what, key);
            return false;
        }
    }
    r = json_get_str(entry, "provider", &provider);
    if (r < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR,
                      r == -ENOENT ? "Parameter '%s.provider' is missing"
                                   : "Invalid parameter type for '%s.provider', expected: string",
                      what);
        return false;
    }
    r = json_get_array(entry, "names", &names);
    ret->names = r == 0 ? names : NULL;
    if (r == -EINVAL) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Invalid parameter type for '%s.names', expected: array", what);
        return false;
    }
    snprintf(what, sizeof(what), "providers[%zu].names", index);
    if (ret->names && !check_strings(req, what, ret->names, FILTER_MAX_NAMES))
        return false;
    return parse_provider(req, "provider", provider, &ret->provider);
}

/* What is wanted, from the request or by default everything; the number of entries, or -1 with the error set. */
static int parse_filter(struct qmp_request *req, struct wanted wanted[FILTER_MAX_PROVIDERS])
{
    json_t *providers;
    size_t n;

    if (json_get_array(req->args, "providers", &providers) < 0) {
        for (int p = 0; p < PROVIDERS; p++)
            wanted[p] = (struct wanted){.provider = (enum provider)p};
        return PROVIDERS;
    }
    if (too_many(req, "providers", providers, FILTER_MAX_PROVIDERS))
        return -1;
    n = json_object_array_length(providers);
    for (size_t i = 0; i < n; i++)
        if (!parse_wanted(req, i, json_object_array_get_idx(providers, i), &wanted[i]))
            return -1;
    return (int)n;
}

static int add_vcpu_results(struct qmp_stats *s, const struct wanted *w, const json_t *vcpus, json_t *answer)
{
    unsigned int count = vm_cpus(machine_vm(s->machine));

    for (unsigned int i = 0; i < count; i++) {
        char path[QMP_VCPU_PATH_MAX];
        int r;

        qmp_vcpu_path(i, path);
        if (vcpus && !in_list(vcpus, path))
            continue;
        r = add_result(s, w, (int)i, answer);
        if (r < 0)
            return r;
    }
    return 0;
}

json_t *qmp_query_stats(struct qmp_request *req)
{
    struct wanted wanted[FILTER_MAX_PROVIDERS];
    struct qmp_stats *s = req->context->stats;
    const char *target = "";
    json_t *vcpus = NULL, *answer;
    bool of_vm;
    int n, r = 0;

    json_get_str(req->args, "target", &target);
    json_get_array(req->args, "vcpus", &vcpus);
    of_vm = strcmp(target, "vm") == 0;
    if (of_vm && vcpus) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Parameter 'vcpus' is unexpected");
        return NULL;
    }
    if (vcpus && !check_strings(req, "vcpus", vcpus, FILTER_MAX_VCPUS))
        return NULL;
    n = parse_filter(req, wanted);
    if (n < 0)
        return NULL;
    answer = json_object_new_array();
    for (int i = 0; i < n && r == 0; i++)
        r = of_vm ? add_result(s, &wanted[i], OF_VM, answer) : add_vcpu_results(s, &wanted[i], vcpus, answer);
    if (r < 0) {
        json_object_put(answer);
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "statistics cannot be read: %s", strerror(-r));
        return NULL;
    }
    return answer;
}

/* -- schemas ----------------------------------------------------------------- */

static json_t *schema_of(const struct stats_desc *desc)
{
    static const char *const types[] = {
        [STATS_CUMULATIVE] = "cumulative",
        [STATS_INSTANT] = "instant",
        [STATS_PEAK] = "peak",
        [STATS_LINEAR_HIST] = "linear-histogram",
        [STATS_LOG_HIST] = "log2-histogram",
    };
    static const char *const units[] = {
        [STATS_NONE] = NULL,
        [STATS_BYTES] = "bytes",
        [STATS_SECONDS] = "seconds",
        [STATS_CYCLES] = "cycles",
        [STATS_BOOLEAN] = "boolean",
    };
    json_t *o = json_object_new_object();

    json_add_str(o, "name", desc->name);
    json_add_str(o, "type", types[desc->type]);
    if (units[desc->unit])
        json_add_str(o, "unit", units[desc->unit]);
    if (desc->exponent != 0)
        json_add_i64(o, "base", desc->base);
    json_add_i64(o, "exponent", desc->exponent);
    if (desc->type == STATS_LINEAR_HIST)
        json_add_i64(o, "bucket-size", desc->bucket_size);
    return o;
}

static void add_schema(struct qmp_stats *s, enum provider provider, int vcpu, json_t *answer)
{
    json_t *list = json_object_new_array(), *schema;
    const struct stats_desc *descs = NULL;
    struct kvm_stats_source *source;
    uint32_t count = 0;

    if (provider == PROVIDER_UMBRA && vcpu == OF_VM) {
        for (size_t i = 0; i < ARRAY_SIZE(vm_stats); i++)
            json_push(list, schema_of(&vm_stats[i].desc));
    } else if (provider == PROVIDER_UMBRA) {
        for (size_t i = 0; i < ARRAY_SIZE(vcpu_stats); i++)
            json_push(list, schema_of(&vcpu_stats[i].desc));
    } else {
        source = qmp_stats_source(s, vcpu);
        if (source)
            descs = stats_descs(source, &count);
        for (uint32_t i = 0; i < count; i++)
            json_push(list, schema_of(&descs[i]));
    }
    if (!list || json_object_array_length(list) == 0) {
        json_object_put(list);
        return;
    }
    schema = json_object_new_object();
    json_add_str(schema, "provider", provider_names[provider]);
    json_add_str(schema, "target", vcpu == OF_VM ? "vm" : "vcpu");
    json_add(schema, "stats", list);
    json_push(answer, schema);
}

json_t *qmp_query_stats_schemas(struct qmp_request *req)
{
    json_t *answer = json_object_new_array();
    const char *only = NULL;

    json_get_str(req->args, "provider", &only);
    for (int p = 0; p < PROVIDERS; p++) {
        if (only && strcmp(only, provider_names[p]) != 0)
            continue;
        add_schema(req->context->stats, (enum provider)p, OF_VM, answer);
        add_schema(req->context->stats, (enum provider)p, 0, answer);
    }
    return answer;
}
