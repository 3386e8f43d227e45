#include "config.h"

#include "vcpu/host.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/util.h"
#include "mmu/mem.h"
#include "mmu/userfault.h"
#include "vcpu/stats.h"
#include "vcpu/vm-internal.h"

#define PROBE_TSS_ADDR 0xfffbd000ul
/* How long the speed of ring 0 is measured at least, and how many times round a loop for that. */
#define MEASURE_NS (1 * NSEC_PER_MSEC)
#define MEASURE_ROUNDS_MIN 250u
#define MEASURE_ROUNDS_MAX (250u << 15)
#define EMULATED_MIPS 10

/* -- the throw-away VM -- */

#define CR0_PE (1u << 0)
#define CR0_ET (1u << 4)
#define CR0_PG (1u << 31)

#define GUEST_SIZE 0x10000u
#define GUEST_PML4 0x1000u
#define GUEST_PDPT 0x2000u
#define GUEST_PD 0x3000u
#define GUEST_INVLPG 0x4000u
#define GUEST_LOOP 0x5000u
#define INVLPG_COUNT 10u
/* INVLPG, DEC and JNZ each time round, and the OUT. */
#define INVLPG_INSTRUCTIONS (3 * INVLPG_COUNT + 1)

/* Code that means the same in 32 and 64 bits; both loops count ECX down and leave by OUT. */
static const uint8_t invlpg_loop[] = {
    0x0f, 0x01, 0x3c, 0x25, 0x00, 0x00, 0x00, 0x00, /* invlpg 0 */
    0xff, 0xc9,                                     /* dec %ecx */
    0x75, 0xf4,                                     /* jnz to the start */
    0xe6, 0x80,                                     /* out %al, $0x80 */
};
static const uint8_t count_loop[] = {
    0xff, 0xc9, /* dec %ecx */
    0x75, 0xfc, /* jnz to the start */
    0xe6, 0x80, /* out %al, $0x80 */
};

struct probe_vm {
    int fd, vcpu_fd;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *memory;
};

static void probe_vm_clear(struct probe_vm *vm)
{
    if (vm->run)
        munmap(vm->run, vm->run_size);
    fd_close(vm->vcpu_fd);
    fd_close(vm->fd);
    if (vm->memory)
        munmap(vm->memory, GUEST_SIZE);
}

static int make_memory(struct probe_vm *vm)
{
    struct kvm_userspace_memory_region region = {.memory_size = GUEST_SIZE};
    void *p = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const uint64_t present_writable = 3, large = 0x80;

    if (p == MAP_FAILED)
        return -errno;
    vm->memory = p;
    /* The first 2 MiB at their own addresses. */
    *(uint64_t *)(vm->memory + GUEST_PML4) = GUEST_PDPT | present_writable;
    *(uint64_t *)(vm->memory + GUEST_PDPT) = GUEST_PD | present_writable;
    *(uint64_t *)(vm->memory + GUEST_PD) = large | present_writable;
    memcpy(vm->memory + GUEST_INVLPG, invlpg_loop, sizeof(invlpg_loop));
    memcpy(vm->memory + GUEST_LOOP, count_loop, sizeof(count_loop));
    region.userspace_addr = (uintptr_t)vm->memory;
    return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

/*
 * A vCPU without a local APIC in the kernel, the first and the last of a host, has KVM patch the code that all vCPUs of all
 * guests run (kvm_has_noapic_vcpu, some 90 places): they would pay for our question. KVM before 4.4 has nothing but that.
 */
static void give_lapic(const struct probe_vm *vm)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP};

    ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

static int make_vcpu(struct probe_vm *vm, int kvm_fd)
{
    const struct kvm_segment code = {.selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1, .limit = 0xffffffff};
    const struct kvm_segment data = {.selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1, .limit = 0xffffffff};
    struct kvm_sregs s;
    int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    void *p;

    vm->vcpu_fd = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
    if (size < (int)sizeof(struct kvm_run) || vm->vcpu_fd < 0)
        return vm->vcpu_fd < 0 ? -errno : -EPROTO;
    p = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu_fd, 0);
    if (p == MAP_FAILED)
        return -errno;
    vm->run = p;
    vm->run_size = (size_t)size;
    if (ioctl(vm->vcpu_fd, KVM_GET_SREGS, &s) < 0)
        return -errno;
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.cr3 = GUEST_PML4;
    s.cr4 = 1u << 5; /* PAE */
    s.cr0 = CR0_PG | CR0_ET | CR0_PE;
    s.efer = 1u << 10 | 1u << 8;    /* LMA, LME */
    return ioctl(vm->vcpu_fd, KVM_SET_SREGS, &s) < 0 ? -errno : 0;
}

static int probe_vm_init(struct probe_vm *vm, int kvm_fd)
{
    int r;

    *vm = (struct probe_vm){.fd = -1, .vcpu_fd = -1};
    do
        vm->fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
    while (vm->fd < 0 && errno == EINTR);
    if (vm->fd < 0)
        return -errno;
    /* VMX wants it before a vCPU leaves real mode, which each starts in. */
    if (ioctl(vm->fd, KVM_SET_TSS_ADDR, PROBE_TSS_ADDR) < 0)
        r = -errno;
    else
        r = make_memory(vm);
    give_lapic(vm);
    if (r == 0)
        r = make_vcpu(vm, kvm_fd);
    if (r < 0)
        probe_vm_clear(vm);
    return r;
}

/* CPU time of this thread, that of guests it runs included: other work of the host does not count. */
static uint64_t thread_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* Run one of the loops `count` times round; *ret_ns is how much CPU time that took. */
static int probe_vm_run(struct probe_vm *vm, uint64_t code, uint32_t count, uint64_t *ret_ns)
{
    struct kvm_regs regs = {.rip = code, .rflags = 2, .rcx = count};
    uint64_t start;
    int r;

    if (ioctl(vm->vcpu_fd, KVM_SET_REGS, &regs) < 0)
        return -errno;
    start = thread_ns();
    do
        r = ioctl(vm->vcpu_fd, KVM_RUN, 0) < 0 ? -errno : 0;
    while (r == -EINTR);
    *ret_ns = thread_ns() - start;
    if (r < 0)
        return r;
    if (vm->run->exit_reason != KVM_EXIT_IO)
        return -EPROTO;
    /* Let KVM finish the OUT, which would move whatever RIP is set next. */
    vm->run->immediate_exit = 1;
    r = ioctl(vm->vcpu_fd, KVM_RUN, 0);
    vm->run->immediate_exit = 0;
    return r < 0 && errno == EINTR ? 0 : -EPROTO;
}

/* -- paging -- */

struct module {
    const char *name;
    const char *parameter; /* on: two-dimensional paging; NULL: shadow paging always */
};

/* In this order where more than one is there; the proof has the last word anyway. */
static const struct module modules[] = {{"kvm_pvm", NULL}, {"kvm_amd", "npt"}, {"kvm_intel", "ept"}};

static bool is_directory(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

void host_read_module(const char *dir, struct host_info *info)
{
    char path[4096];
    const struct module *m = NULL;
    _cleanup_free_ char *value = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(modules) && !m; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, modules[i].name);
        if (is_directory(path))
            m = &modules[i];
    }
    if (!m) {
        snprintf(info->how, sizeof(info->how), "no known KVM module in %.64s", dir);
        return;
    }
    snprintf(info->module, sizeof(info->module), "%s", m->name);
    if (!m->parameter) {
        info->by_module = HOST_PAGING_SHADOW;
        snprintf(info->how, sizeof(info->how), "%s has shadow paging only", m->name);
        return;
    }
    snprintf(path, sizeof(path), "%s/%s/parameters/%s", dir, m->name, m->parameter);
    if (fd_read_file(path, 16, &value, NULL) < 0 || !strchr("YN10", value[0]) || value[0] == '\0') {
        snprintf(info->how, sizeof(info->how), "%s %s cannot be read", m->name, m->parameter);
        return;
    }
    info->by_module = strchr("Y1", value[0]) ? HOST_PAGING_TDP : HOST_PAGING_SHADOW;
    snprintf(info->how, sizeof(info->how), "%s %s=%c", m->name, m->parameter, value[0]);
}

static void add_how(struct host_info *info, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void add_how(struct host_info *info, const char *fmt, ...)
{
    size_t at = strlen(info->how);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(info->how + at, sizeof(info->how) - at, fmt, ap);
    va_end(ap);
}

/* How far a statistic of that name stands; false when there is none. */
static bool stat_value(const struct kvm_stats_source *s, const char *name, uint64_t *ret)
{
    const struct stats_desc *d = stats_find(s, name);

    if (d)
        *ret = stats_values(s, d)[0];
    return d;
}

/*
 * Have the vCPU run the loop of INVLPGs at that address. It has just been made, so its statistics stand at 0 and what they
 * say afterwards is what the loop did.
 */
static int prove_paging(struct probe_vm *vm, uint64_t code, struct host_info *info)
{
    struct kvm_stats_source *stats;
    uint64_t exited = 0, emulated = 0, ns;
    int r = stats_open(vm->vcpu_fd, &stats);

    if (r < 0)
        return r;
    r = probe_vm_run(vm, code, INVLPG_COUNT, &ns);
    if (r == 0)
        r = stats_read(stats);
    if (r == 0 && !stat_value(stats, "invlpg", &exited))
        r = -ENOENT;
    /* Shadow paging has KVM emulate one instruction or another, but not all of them. */
    if (r == 0 && stat_value(stats, "insn_emulation", &emulated))
        info->ring0_emulated = emulated >= INVLPG_INSTRUCTIONS;
    if (r == 0 && info->proven == HOST_PAGING_UNKNOWN) {
        info->proven = exited == INVLPG_COUNT ? HOST_PAGING_SHADOW : exited == 0 ? HOST_PAGING_TDP : HOST_PAGING_UNKNOWN;
        add_how(info, "; %llu of %u INVLPGs exited", (unsigned long long)exited, INVLPG_COUNT);
    }
    stats_close(stats);
    return r;
}

/* -- other capabilities -- */

static bool has(int kvm_fd, unsigned int cap)
{
    return ioctl(kvm_fd, KVM_CHECK_EXTENSION, (unsigned long)cap) > 0;
}

static void ask_capabilities(int kvm_fd, struct host_info *info)
{
    int max = ioctl(kvm_fd, KVM_CHECK_EXTENSION, (unsigned long)KVM_CAP_MAX_VCPUS);

    info->api_version = ioctl(kvm_fd, KVM_GET_API_VERSION, 0);
    info->max_vcpus = max > 0 ? (unsigned int)max : 0;
    info->dirty_ring = has(kvm_fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL) || has(kvm_fd, KVM_CAP_DIRTY_LOG_RING);
    info->manual_dirty_log = has(kvm_fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    info->stats_fd = has(kvm_fd, KVM_CAP_BINARY_STATS_FD);
}

static void ask_userfaultfd(struct host_info *info)
{
    int fd = userfault_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);

    info->userfaultfd = fd >= 0;
    fd_close(fd);
}

/* -- the speed of ring 0 -- */

/* The shorter of two runs: what comes between is not the guest's. */
static int time_loop(struct probe_vm *vm, uint32_t rounds, uint64_t *ret_ns)
{
    uint64_t first, second;
    int r = probe_vm_run(vm, GUEST_LOOP, rounds, &first);

    if (r == 0)
        r = probe_vm_run(vm, GUEST_LOOP, rounds, &second);
    if (r == 0)
        *ret_ns = MIN(first, second);
    return r;
}

static int measure_ring0(struct probe_vm *vm, struct host_info *info)
{
    const uint64_t instructions_a_round = 2;
    uint64_t base, ns = 0;
    uint32_t rounds = MEASURE_ROUNDS_MIN;
    int r = time_loop(vm, 1, &base);

    /* Ever longer, until the loop and not the way in and out of the guest is what takes the time. */
    for (; r == 0; rounds *= 8) {
        r = time_loop(vm, rounds, &ns);
        ns = ns > base ? ns - base : 0;
        if (rounds >= MEASURE_ROUNDS_MAX || ns >= MAX(MEASURE_NS, base))
            break;
    }
    if (r < 0)
        return r;
    info->ring0_mips = (double)(instructions_a_round * (rounds - 1)) * 1000 / (double)MAX(ns, UINT64_C(1));
    /* Where no statistic tells: an emulator is near 1, the slowest machine that runs them itself far above. */
    if (info->proven == HOST_PAGING_UNKNOWN)
        info->ring0_emulated = info->ring0_mips < EMULATED_MIPS;
    return 0;
}

/* -- all together -- */

void host_examine(int kvm_fd, struct host_info *info)
{
    struct probe_vm vm;
    int r;

    ask_capabilities(kvm_fd, info);
    ask_userfaultfd(info);
    r = probe_vm_init(&vm, kvm_fd);
    if (r == 0) {
        r = prove_paging(&vm, GUEST_INVLPG, info);
        if (r == 0)
            (void)measure_ring0(&vm, info);
        probe_vm_clear(&vm);
    }
    if (r < 0 && info->proven == HOST_PAGING_UNKNOWN)
        add_how(info, "; not proved: %s", strerrordesc_np(-r));
}

int host_probe(const char *kvm_path, struct host_info *ret)
{
    _cleanup_close_ int kvm_fd = open(kvm_path, O_RDWR | O_CLOEXEC);
    struct host_info info = {0};

    if (kvm_fd < 0)
        return -errno;
    host_read_module("/sys/module", &info);
    host_examine(kvm_fd, &info);
    *ret = info;
    return 0;
}

/* -- on the VM of the guest itself -- */

static int set_flat_segments(int vcpu_fd)
{
    const struct kvm_segment code = {.selector = 8, .type = 11, .present = 1, .s = 1, .db = 1, .g = 1, .limit = 0xffffffff};
    const struct kvm_segment data = {.selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1, .limit = 0xffffffff};
    struct kvm_sregs s;

    if (ioctl(vcpu_fd, KVM_GET_SREGS, &s) < 0)
        return -errno;
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.cr0 = CR0_ET | CR0_PE;
    return ioctl(vcpu_fd, KVM_SET_SREGS, &s) < 0 ? -errno : 0;
}

void host_prove_paging(struct vm *vm, struct host_info *info)
{
    struct probe_vm borrowed = {.fd = vm->fd, .vcpu_fd = vm->vcpus[0]->fd, .run = vm->vcpus[0]->run};
    int r;

    host_read_module("/sys/module", info);
    r = mem_write(vm->mem, GUEST_INVLPG, invlpg_loop, sizeof(invlpg_loop));
    if (r == 0)
        r = set_flat_segments(borrowed.vcpu_fd);
    if (r == 0)
        r = prove_paging(&borrowed, GUEST_INVLPG, info);
    if (r < 0)
        add_how(info, "; not proved: %s", strerrordesc_np(-r));
    (void)mem_set(vm->mem, GUEST_INVLPG, 0, sizeof(invlpg_loop));
}

void host_prove_paging_apart(int kvm_fd, struct host_info *info)
{
    struct probe_vm vm;
    int r;

    host_read_module("/sys/module", info);
    r = probe_vm_init(&vm, kvm_fd);
    if (r == 0) {
        r = prove_paging(&vm, GUEST_INVLPG, info);
        probe_vm_clear(&vm);
    }
    if (r < 0)
        add_how(info, "; not proved: %s", strerrordesc_np(-r));
}

const char *host_paging_name(enum host_paging paging)
{
    static const char *const names[] = {"unknown", "shadow", "tdp"};

    return names[paging];
}
