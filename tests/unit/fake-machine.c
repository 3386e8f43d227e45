#include "config.h"

#include "fake-machine.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/util.h"
#include "daemon/machine-state.h"
#include "daemon/qmp-server.h"
#include "device/virtio/balloon.h"
#include "device/virtio/blk.h"
#include "device/virtio/net.h"
#include "vcpu/stats.h"
#include "vcpu/vcpu.h"

struct vcpu {
    unsigned int index;
    struct vcpu_paging paging;
};

struct vm {
    struct mem *mem;
    struct bus *bus;
    struct dirty_log *log;
    unsigned int cpus;
    struct vcpu vcpus[VM_MAX_VCPUS];
    /* What KVM knows. */
    bool logging;
    int failure;
    uint64_t *dirty[MEM_MAX_SLOTS];
    struct kvm_dirty_gfn *rings[VM_MAX_VCPUS];
    uint32_t ring_in[VM_MAX_VCPUS], ring_out[VM_MAX_VCPUS];
};

struct machine {
    struct config config;
    struct vm vm;
    struct machine_mmu *mmu;
    struct host_info host;
    struct event_base *events;
    struct qmp_server *server;
    struct device_host host_of_devices;
    struct device *balloon;
    enum run_state state;
    bool power_button;
    int ended;
};

/* -- KVM --------------------------------------------------------------------- */

static int set_logging(void *opaque, bool on)
{
    struct vm *vm = opaque;

    if (vm->failure)
        return vm->failure;
    vm->logging = on;
    return 0;
}

static size_t slot_words(const struct vm *vm, uint32_t slot)
{
    unsigned int count;

    return bitmap_words(bytes_to_pages(mem_slots(vm->mem, &count)[slot].size));
}

static int get(void *opaque, uint32_t slot, uint64_t *bitmap)
{
    struct vm *vm = opaque;

    if (vm->failure)
        return vm->failure;
    memcpy(bitmap, vm->dirty[slot], slot_words(vm, slot) * sizeof(*bitmap));
    return 0;
}

static int clear(void *opaque, uint32_t slot, uint64_t first_page, uint32_t num_pages, const uint64_t *bitmap)
{
    struct vm *vm = opaque;

    if (vm->failure)
        return vm->failure;
    for (uint32_t i = 0; i < num_pages; i++)
        if (bitmap_test(bitmap, i))
            vm->dirty[slot][(first_page + i) / 64] &= ~(UINT64_C(1) << (first_page + i) % 64);
    return 0;
}

static int reset_rings(void *opaque)
{
    struct vm *vm = opaque;
    int count = 0;

    if (vm->failure)
        return vm->failure;
    for (unsigned int i = 0; i < vm->cpus; i++)
        for (; vm->ring_out[i] != vm->ring_in[i]; vm->ring_out[i]++, count++) {
            struct kvm_dirty_gfn *e = &vm->rings[i][vm->ring_out[i] % FAKE_RING_ENTRIES];

            if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_RESET))
                break;
            __atomic_store_n(&e->flags, 0, __ATOMIC_RELEASE);
        }
    return count;
}

static const struct dirty_ops ops = {
    .set_logging = set_logging, .get = get, .clear = clear, .reset_rings = reset_rings};

static void push_ring(struct vm *vm, uint32_t slot, uint64_t page)
{
    struct kvm_dirty_gfn *e = &vm->rings[0][vm->ring_in[0] % FAKE_RING_ENTRIES];

    assert(vm->ring_in[0] - vm->ring_out[0] < FAKE_RING_ENTRIES);
    e->slot = slot;
    e->offset = page;
    __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
    vm->ring_in[0]++;
}

void fake_machine_write(struct machine *m, gfn_t gfn, uint8_t byte)
{
    struct vm *vm = &m->vm;
    unsigned int count;
    const struct mem_slot *slots = mem_slots(vm->mem, &count);

    for (unsigned int i = 0; i < count; i++) {
        gfn_t first = gpa_to_gfn(slots[i].base);

        if (gfn < first || gfn - first >= bytes_to_pages(slots[i].size))
            continue;
        memset(slots[i].alias + pages_to_bytes(gfn - first), byte, GUEST_PAGE_SIZE);
        if (vm->logging && vm->rings[0])
            push_ring(vm, i, gfn - first);
        else if (vm->logging)
            bitmap_set(vm->dirty[i], gfn - first);
    }
}

void fake_machine_fail_kvm(struct machine *m, int r)
{
    m->vm.failure = r;
}

/* -- the VM ------------------------------------------------------------------ */

struct bus *vm_bus(struct vm *vm)
{
    return vm->bus;
}

struct mem *vm_mem(struct vm *vm)
{
    return vm->mem;
}

struct dirty_log *vm_dirty_log(struct vm *vm)
{
    return vm->log;
}

unsigned int vm_cpus(const struct vm *vm)
{
    return vm->cpus;
}

int vm_fd(const struct vm *vm)
{
    return 100;
}

uint64_t vm_paused_ns(const struct vm *vm)
{
    return UINT64_C(1500000000);
}

struct vcpu *vm_vcpu(struct vm *vm, unsigned int index)
{
    assert(index < vm->cpus);
    return &vm->vcpus[index];
}

/* What devices ask of a VM when they are made; none is, here. */
int vm_ioeventfd(struct vm *vm, int fd, enum bus_space space, uint64_t addr, unsigned int size, bool match,
                 uint64_t value, bool on)
{
    (void)vm, (void)fd, (void)space, (void)addr, (void)size, (void)match, (void)value, (void)on;
    return -ENOTSUP;
}

int vm_irqfd(struct vm *vm, int fd, unsigned int gsi, int resample_fd, bool on)
{
    (void)vm, (void)fd, (void)gsi, (void)resample_fd, (void)on;
    return -ENOTSUP;
}

uint8_t *vm_register_pages(const struct vm *vm)
{
    (void)vm;
    return NULL;
}

int vcpu_fd(const struct vcpu *vcpu)
{
    return 101 + (int)vcpu->index;
}

pid_t vcpu_tid(const struct vcpu *vcpu)
{
    return 1000 + (pid_t)vcpu->index;
}

void vcpu_exits(const struct vcpu *vcpu, struct vcpu_exits *ret)
{
    *ret = (struct vcpu_exits){.total = 10 + vcpu->index, .io_in = 3, .io_out = 4, .other = 3};
}

void vm_paging_features(const struct vm *vm, unsigned int *ret_maxphyaddr, bool *ret_gbpages)
{
    *ret_maxphyaddr = 46;
    *ret_gbpages = true;
}

int vm_set_mmu_pages(struct vm *vm, uint64_t pages)
{
    return vm->failure;
}

/* vCPUs of this machine do not run: what they have in CR3 is what the test says. */
void vm_ask_paging(struct vm *vm, bool kick)
{
}

void vm_look_paging(struct vm *vm, uint64_t timeout_ns)
{
}

/* Nobody runs. */
void vm_pause(struct vm *vm)
{
}

void vm_resume(struct vm *vm)
{
}

void vm_note_paging(struct vm *vm)
{
}

void vm_paging(struct vm *vm, unsigned int vcpu, struct vcpu_paging *ret)
{
    *ret = vm->vcpus[vcpu].paging;
}

uint64_t vm_cpu_time(const struct vm *vm)
{
    return 0;
}

void fake_machine_set_cr3(struct machine *m, uint64_t cr3)
{
    struct vcpu_paging *p = &m->vm.vcpus[0].paging;

    /* Long mode with NX, in the kernel. */
    *p = (struct vcpu_paging){
        .cr0 = 0x80000001, .cr3 = cr3, .cr4 = 0x20, .efer = 0xd00, .kernel = true, .seq = p->seq + 1};
}

/* -- statistics: of every kind one ------------------------------------------- */

struct kvm_stats_source {
    int fd;
    uint64_t values[8];
};

static const struct stats_desc descs_vm[] = {
    {.name = "pages_4k", .type = STATS_INSTANT, .count = 1, .offset = 0},
    {.name = "max_mmu_rmap_size", .type = STATS_PEAK, .count = 1, .offset = 1},
};
static const struct stats_desc descs_vcpu[] = {
    {.name = "exits", .type = STATS_CUMULATIVE, .count = 1, .offset = 0},
    {.name = "halt_wait_ns", .unit = STATS_SECONDS, .exponent = -9, .base = 10, .count = 1, .offset = 1},
    {.name = "blocking", .type = STATS_INSTANT, .unit = STATS_BOOLEAN, .count = 1, .offset = 2},
    {.name = "halt_wait_hist",
     .type = STATS_LOG_HIST,
     .unit = STATS_SECONDS,
     .exponent = -9,
     .base = 10,
     .count = 3,
     .offset = 3},
    {.name = "linear_hist", .type = STATS_LINEAR_HIST, .unit = STATS_BYTES, .bucket_size = 16, .count = 2, .offset = 6},
};

int stats_open(int fd, struct kvm_stats_source **ret)
{
    *ret = calloc(1, sizeof(**ret));
    if (!*ret)
        return -ENOMEM;
    (*ret)->fd = fd;
    return 0;
}

void stats_close(struct kvm_stats_source *s)
{
    free(s);
}

const struct stats_desc *stats_descs(const struct kvm_stats_source *s, uint32_t *ret_count)
{
    *ret_count = s->fd == 100 ? ARRAY_SIZE(descs_vm) : ARRAY_SIZE(descs_vcpu);
    return s->fd == 100 ? descs_vm : descs_vcpu;
}

const struct stats_desc *stats_find(const struct kvm_stats_source *s, const char *name)
{
    uint32_t count;
    const struct stats_desc *descs = stats_descs(s, &count);

    for (uint32_t i = 0; i < count; i++)
        if (strcmp(descs[i].name, name) == 0)
            return &descs[i];
    return NULL;
}

int stats_read(struct kvm_stats_source *s)
{
    for (unsigned int i = 0; i < ARRAY_SIZE(s->values); i++)
        s->values[i] = (uint64_t)(s->fd - 99) * 100 + i;
    return 0;
}

const uint64_t *stats_values(const struct kvm_stats_source *s, const struct stats_desc *d)
{
    return &s->values[d->offset];
}

/* -- the machine ------------------------------------------------------------- */

static void emit(struct machine *m, const char *name, json_t *data)
{
    if (m->server)
        qmp_server_event(m->server, name, data);
    else
        json_object_put(data);
}

static json_t *reason(const char *text)
{
    json_t *data = json_object_new_object();

    json_add_bool(data, "guest", false);
    json_add_str(data, "reason", text);
    return data;
}

enum run_state machine_run_state(const struct machine *m)
{
    return m->state;
}

const char *machine_run_state_name(enum run_state state)
{
    static const char *const names[] = {
        [RUN_STATE_PRELAUNCH] = "prelaunch",           [RUN_STATE_RUNNING] = "running",
        [RUN_STATE_PAUSED] = "paused",                 [RUN_STATE_SHUTDOWN] = "shutdown",
        [RUN_STATE_INTERNAL_ERROR] = "internal-error", [RUN_STATE_GUEST_PANICKED] = "guest-panicked",
        [RUN_STATE_IO_ERROR] = "io-error",             [RUN_STATE_INMIGRATE] = "inmigrate",
        [RUN_STATE_POSTMIGRATE] = "postmigrate",       [RUN_STATE_FINISH_MIGRATE] = "finish-migrate",
    };

    return names[state];
}

int machine_stop(struct machine *m)
{
    if (m->state == RUN_STATE_FINISH_MIGRATE)
        return -EPERM;
    if (m->state != RUN_STATE_RUNNING)
        return 0;
    m->state = RUN_STATE_PAUSED;
    machine_mmu_paused(m->mmu);
    emit(m, "STOP", NULL);
    return 0;
}

const char *host_paging_name(enum host_paging paging)
{
    return paging == HOST_PAGING_SHADOW ? "shadow" : "unknown";
}

void machine_hold(struct machine *m)
{
}

void machine_release(struct machine *m)
{
}

int machine_save(struct machine *m, struct state_writer *w)
{
    state_begin(w, "machine", 0, 1);
    state_put_u64(w, "memory", mem_size(vm_mem(machine_vm(m))));
    state_end(w);
    return 0;
}

/* A fake machine neither leaves nor arrives, but may be told that its memory does. */
bool fake_memory_arrives;

int machine_compare(struct machine *m, struct state_reader *r, json_t **ret_differences)
{
    return -EOPNOTSUPP;
}

int machine_load(struct machine *m, struct state_reader *r, uint64_t captured_ns)
{
    return -EOPNOTSUPP;
}

void machine_arrived(struct machine *m, bool run, bool arriving)
{
}

void machine_whole(struct machine *m)
{
}

bool machine_memory_arrives(const struct machine *m)
{
    return fake_memory_arrives;
}

int machine_adopt(struct machine *m, int fd)
{
    return mem_adopt(vm_mem(machine_vm(m)), fd);
}

void machine_keep_memory(struct machine *m, bool on)
{
}

unsigned int machine_sync_fds(struct machine *m, int *ret_fds, unsigned int max)
{
    return 0;
}

int machine_leave(struct machine *m, bool same_host, bool *ret_running, uint64_t *ret_pause_ns, uint64_t *ret_drain_ns)
{
    return -ESHUTDOWN;
}

void machine_stay(struct machine *m)
{
}

void machine_left(struct machine *m, bool memory)
{
}

int machine_cont(struct machine *m, const char **ret_why)
{
    if (m->state == RUN_STATE_RUNNING)
        return 0;
    if (m->state != RUN_STATE_PAUSED) {
        *ret_why = "Resetting the Virtual Machine is required";
        return -EPERM;
    }
    m->state = RUN_STATE_RUNNING;
    machine_mmu_resuming(m->mmu);
    emit(m, "RESUME", NULL);
    return 0;
}

int machine_reset(struct machine *m)
{
    if (m->vm.failure)
        return m->vm.failure;
    emit(m, "RESET", reason("host-qmp-system-reset"));
    return 0;
}

int machine_powerdown(struct machine *m)
{
    if (!m->power_button)
        return -ENODEV;
    emit(m, "POWERDOWN", NULL);
    return 0;
}

void machine_quit(struct machine *m)
{
    m->ended = 0;
    emit(m, "SHUTDOWN", reason("host-qmp-quit"));
}

const struct config *machine_config(const struct machine *m)
{
    return &m->config;
}

struct vm *machine_vm(struct machine *m)
{
    return &m->vm;
}

struct machine_mmu *machine_mmu(struct machine *m)
{
    return m->mmu;
}

const struct host_info *machine_host(struct machine *m)
{
    return &m->host;
}

void fake_machine_set_server(struct machine *m, struct qmp_server *server)
{
    m->server = server;
}

void fake_machine_set_state(struct machine *m, enum run_state state)
{
    m->state = state;
}

void fake_machine_enable_power_button(struct machine *m)
{
    m->power_button = true;
}

int fake_machine_ended(const struct machine *m)
{
    return m->ended;
}

static void init_host(struct host_info *h)
{
    *h = (struct host_info){
        .by_module = HOST_PAGING_SHADOW,
        .proven = HOST_PAGING_SHADOW,
        .ring0_mips = 2.5,
        .api_version = 12,
        .dirty_ring = true,
        .manual_dirty_log = true,
        .stats_fd = true,
        .max_vcpus = 32,
    };
    strcpy(h->module, "kvm_fake");
    strcpy(h->how, "told so");
}

static void init_vm(struct vm *vm, const struct fake_options *options)
{
    const struct mem_config mem_config = {.size = options->memory};
    const struct dirty_config dirty_config = {.backend = options->backend, .ops = &ops, .opaque = vm};
    unsigned int slots;
    int r = mem_new(&mem_config, &vm->mem);

    assert(r == 0);
    r = bus_new(&vm->bus);
    assert(r == 0);
    r = dirty_log_new(vm->mem, &dirty_config, &vm->log);
    assert(r == 0);
    mem_slots(vm->mem, &slots);
    for (unsigned int i = 0; i < slots; i++)
        vm->dirty[i] = calloc(slot_words(vm, i), sizeof(uint64_t));
    vm->cpus = options->cpus;
    for (unsigned int i = 0; i < vm->cpus; i++) {
        vm->vcpus[i].index = i;
        if (options->backend != DIRTY_RING)
            continue;
        vm->rings[i] = calloc(FAKE_RING_ENTRIES, sizeof(*vm->rings[i]));
        r = dirty_log_add_ring(vm->log, vm->rings[i], FAKE_RING_ENTRIES);
        assert(r == 0);
    }
}

static void on_page_limit(void *opaque)
{
    /* Nothing here makes KVM's limit move. */
}

static void init_balloon(struct machine *m)
{
    const struct vballoon_config config = {.on = true};
    const struct device_env env = {.mem = m->vm.mem, .bus = m->vm.bus, .host = &m->host_of_devices};
    int r = vballoon_create(&env, &config, 0, &m->balloon);

    assert(r == 0);
}

struct machine *fake_machine_new(struct event_base *events, const struct fake_options *options)
{
    struct machine *m = calloc(1, sizeof(*m));
    int r;

    assert(m);
    m->events = events;
    m->state = RUN_STATE_RUNNING;
    m->ended = -1;
    m->config.name = strdup("fake");
    m->config.cpus = options->cpus;
    m->config.memory = options->memory;
    m->config.disks[0].path = strdup("/images/a");
    m->config.disk_count = 1;
    init_host(&m->host);
    init_vm(&m->vm, options);
    init_balloon(m);
    tracker_default_settings(&m->config.mmu);
    r = machine_mmu_new(&m->config, &m->vm, on_page_limit, m, &m->mmu);
    assert(r == 0);
    return m;
}

void fake_machine_free(struct machine *m)
{
    machine_mmu_stop(m->mmu);
    machine_mmu_free(m->mmu);
    dirty_log_free(m->vm.log);
    for (int i = 0; i < MEM_MAX_SLOTS; i++)
        free(m->vm.dirty[i]);
    for (int i = 0; i < VM_MAX_VCPUS; i++)
        free(m->vm.rings[i]);
    device_destroy(m->balloon);
    bus_free(m->vm.bus);
    mem_free(m->vm.mem);
    free(m->config.name);
    free(m->config.disks[0].path);
    free(m);
}

/* -- one network card --------------------------------------------------------- */

static bool fake_link = true;

struct device *machine_net(struct machine *m, unsigned int index)
{
    static struct device net;

    return index == 0 ? &net : NULL;
}

void vnet_info(struct device *dev, struct vnet_info *ret)
{
    *ret = (struct vnet_info){
        .name = "net0",
        .backend_kind = "tap",
        .backend_name = "tap7",
        .mac = {0x52, 0x54, 0, 1, 2, 0xab},
        .queues = 4,
        .queues_used = 2,
        .mtu = 1400,
        .link_wanted = fake_link,
        .link = fake_link,
        .features = 3,
        .counters = {.rx_packets = 5},
    };
}

void vnet_set_link(struct device *dev, bool up)
{
    fake_link = up;
}

/* -- small devices: none but a balloon, which has no guest -------------------- */

struct device *machine_rng(struct machine *m)
{
    return NULL;
}

struct device *machine_virtio_console(struct machine *m)
{
    return NULL;
}

struct device *machine_balloon(struct machine *m)
{
    return m->balloon;
}

/* -- one disk ---------------------------------------------------------------- */

struct device *machine_disk(struct machine *m, unsigned int index)
{
    static struct device disk;

    return index == 0 ? &disk : NULL;
}

void vblk_info(struct device *dev, struct vblk_info *ret)
{
    *ret = (struct vblk_info){
        .name = "disk0",
        .serial = "S-1",
        .disk = {.size = 1 << 20, .block_size = 512, .read_only = true, .direct = true, .aio = "threads"},
        .queues = 2,
        .held_back = 3,
        .status = VBLK_NOSPACE,
        .counters = {.reads = 7},
    };
}

uint64_t vblk_allocated(struct device *dev)
{
    return 4096;
}
