/*
 * Leaves and bits are named as in "Intel 64 and IA-32 Architectures Software Developer's Manual" (CPUID instruction),
 * "AMD64 Architecture Programmer's Manual" volume 3 appendix E, and KVM's own leaves as in Documentation/virt/kvm/x86/cpuid.rst.
 */
#include "config.h"

#include "vcpu/cpuid.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/thread.h"
#include "base/util.h"

#define FETCH_STACK_SIZE (64 * KiB)

#define LEAF_FEATURES 0x1u
#define LEAF_CACHES 0x4u
#define LEAF_EXT_FEATURES 0x7u
#define LEAF_TOPOLOGY 0xbu
#define LEAF_TOPOLOGY_V2 0x1fu
#define LEAF_KVM_FEATURES 0x40000001u
#define LEAF_AMD_FEATURES 0x80000001u
#define LEAF_AMD_SIZES 0x80000008u
#define LEAF_AMD_CACHES 0x8000001du
#define LEAF_AMD_TOPOLOGY 0x8000001eu
#define LEAF_AMD_TOPOLOGY_V2 0x80000026u

#define FEATURES_ECX_TSC_DEADLINE (1u << 24)
#define FEATURES_ECX_HYPERVISOR (1u << 31)
#define FEATURES_EDX_HTT (1u << 28)
#define EXT_FEATURES_ECX_LA57 (1u << 16)
#define AMD_FEATURES_ECX_CMP_LEGACY (1u << 1)

/* Entries that cpuid_build may add: three sub-leaves for each of two topology leaves. */
#define EXTRA_ENTRIES 6u

enum reg { EAX, EBX, ECX, EDX };

/* The order is that of bits in cpuid_features; CPUID_ASYNC_PF is the first. KVM's own come with all their bits. */
static const struct feature {
    const char *name;
    uint32_t leaf;
    enum reg reg;
    uint32_t bits;
} features[] = {
    {"async-pf", LEAF_KVM_FEATURES, EAX, 1u << 4 | 1u << 10 | 1u << 14},
    {"pcid", LEAF_FEATURES, ECX, 1u << 17},
    {"x2apic", LEAF_FEATURES, ECX, 1u << 21},
    {"tsc-deadline", LEAF_FEATURES, ECX, FEATURES_ECX_TSC_DEADLINE},
    {"pge", LEAF_FEATURES, EDX, 1u << 13},
    {"fsgsbase", LEAF_EXT_FEATURES, EBX, 1u << 0},
    {"smep", LEAF_EXT_FEATURES, EBX, 1u << 7},
    {"invpcid", LEAF_EXT_FEATURES, EBX, 1u << 10},
    {"smap", LEAF_EXT_FEATURES, EBX, 1u << 20},
    {"umip", LEAF_EXT_FEATURES, ECX, 1u << 2},
    {"pku", LEAF_EXT_FEATURES, ECX, 1u << 3},
    {"la57", LEAF_EXT_FEATURES, ECX, EXT_FEATURES_ECX_LA57},
    {"pdpe1gb", LEAF_AMD_FEATURES, EDX, 1u << 26},
    {"kvmclock", LEAF_KVM_FEATURES, EAX, 1u << 0 | 1u << 3 | 1u << 24},
    {"steal-time", LEAF_KVM_FEATURES, EAX, 1u << 5},
    {"pv-eoi", LEAF_KVM_FEATURES, EAX, 1u << 6},
    {"pv-unhalt", LEAF_KVM_FEATURES, EAX, 1u << 7},
    {"pv-tlb-flush", LEAF_KVM_FEATURES, EAX, 1u << 9},
    {"pv-ipi", LEAF_KVM_FEATURES, EAX, 1u << 11},
    {"poll-control", LEAF_KVM_FEATURES, EAX, 1u << 12},
    {"pv-sched-yield", LEAF_KVM_FEATURES, EAX, 1u << 13},
};

static_assert(ARRAY_SIZE(features) <= 64, "a bit each");

cpuid_features cpuid_feature(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(features); i++)
        if (strcmp(features[i].name, name) == 0)
            return UINT64_C(1) << i;
    return 0;
}

const char *cpuid_feature_name(unsigned int index)
{
    return index < ARRAY_SIZE(features) ? features[index].name : NULL;
}

static struct kvm_cpuid2 *table_new(unsigned int entries)
{
    struct kvm_cpuid2 *t = calloc(1, sizeof(*t) + entries * sizeof(t->entries[0]));

    if (t)
        t->nent = entries;
    return t;
}

struct kvm_cpuid_entry2 *cpuid_find(struct kvm_cpuid2 *table, uint32_t function, uint32_t index)
{
    for (uint32_t i = 0; i < table->nent; i++) {
        struct kvm_cpuid_entry2 *e = &table->entries[i];

        if (e->function == function && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == index))
            return e;
    }
    return NULL;
}

static void table_remove(struct kvm_cpuid2 *table, uint32_t function)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < table->nent; i++)
        if (table->entries[i].function != function)
            table->entries[kept++] = table->entries[i];
    table->nent = kept;
}

/* -- the host -- */

/*
 * KVM reports LA57 where the CPU has it, also when the host kernel was booted without; then there are no tables of five
 * levels to shadow a guest's with. The kernel hands out addresses beyond 47 bits only when it uses five levels.
 */
static bool host_uses_la57(void)
{
    void *want = (void *)(UINT64_C(1) << 50), *p;

    p = mmap(want, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return false;
    munmap(p, 4096);
    return (uintptr_t)p >> 47 != 0;
}

/* Fill in what host->supported, a table of CPUID_MAX_ENTRIES, is there for. Allocates nothing. */
static int ask_host(struct cpuid_host *host, int kvm_fd)
{
    if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, host->supported) < 0)
        return -errno;
    host->tsc_deadline = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    host->la57 = host_uses_la57();
    return 0;
}

void cpuid_host_clear(struct cpuid_host *host)
{
    free(host->supported);
    host->supported = NULL;
}

struct cpuid_fetch {
    pthread_t thread;
    bool joined;
    int kvm_fd, result;
    struct cpuid_host host;
};

static void *fetch_thread(void *arg)
{
    struct cpuid_fetch *f = arg;

    f->result = ask_host(&f->host, f->kvm_fd);
    return NULL;
}

static int start_thread(struct cpuid_fetch *f)
{
    return thread_start(&f->thread, FETCH_STACK_SIZE, fetch_thread, f);
}

int cpuid_fetch_start(int kvm_fd, struct cpuid_fetch **ret)
{
    struct cpuid_fetch *f = calloc(1, sizeof(*f));
    int r = -ENOMEM;

    if (!f)
        return r;
    f->kvm_fd = kvm_fd;
    f->host.supported = table_new(CPUID_MAX_ENTRIES);
    if (f->host.supported)
        r = start_thread(f);
    if (r < 0) {
        cpuid_host_clear(&f->host);
        free(f);
        return r;
    }
    *ret = f;
    return 0;
}

int cpuid_fetch_wait(struct cpuid_fetch *f, const struct cpuid_host **ret)
{
    if (!f->joined)
        pthread_join(f->thread, NULL);
    f->joined = true;
    if (f->result == 0)
        *ret = &f->host;
    return f->result;
}

void cpuid_fetch_free(struct cpuid_fetch *f)
{
    const struct cpuid_host *unused;

    if (!f)
        return;
    (void)cpuid_fetch_wait(f, &unused);
    cpuid_host_clear(&f->host);
    free(f);
}

/* -- the table of one vCPU -- */

struct topology {
    unsigned int index, count;
    unsigned int shift; /* bits of an APIC id that number the cores */
    bool amd;
};

static bool vendor_is_amd(struct kvm_cpuid2 *t)
{
    const struct kvm_cpuid_entry2 *e = cpuid_find(t, 0, 0);
    char vendor[12];

    if (!e)
        return false;
    memcpy(vendor, &e->ebx, 4);
    memcpy(vendor + 4, &e->edx, 4);
    memcpy(vendor + 8, &e->ecx, 4);
    return memcmp(vendor, "AuthenticAMD", 12) == 0 || memcmp(vendor, "HygonGenuine", 12) == 0;
}

/* Put `value` into bits [low, low + width) of *reg. */
static void set_bits(uint32_t *reg, unsigned int low, unsigned int width, uint32_t value)
{
    uint32_t mask = (uint32_t)((UINT64_C(1) << width) - 1);

    *reg = (*reg & ~(mask << low)) | (value & mask) << low;
}

static void set_flag(uint32_t *reg, uint32_t flag, bool on)
{
    *reg = on ? *reg | flag : *reg & ~flag;
}

static void fix_features(struct kvm_cpuid2 *t, const struct cpuid_host *host, const struct topology *topo)
{
    struct kvm_cpuid_entry2 *e = cpuid_find(t, LEAF_FEATURES, 0);

    if (e) {
        /* Without the hypervisor bit a guest looks for neither kvm-clock nor KVM's other offers. */
        e->ecx |= FEATURES_ECX_HYPERVISOR;
        set_flag(&e->ecx, FEATURES_ECX_TSC_DEADLINE, host->tsc_deadline);
        set_flag(&e->edx, FEATURES_EDX_HTT, topo->count > 1);
        /* AMD counts the logical processors, Intel the ids they may have. */
        set_bits(&e->ebx, 16, 8, topo->amd ? topo->count : 1u << topo->shift);
        set_bits(&e->ebx, 24, 8, topo->index);
    }
    e = cpuid_find(t, LEAF_EXT_FEATURES, 0);
    if (e && !host->la57)
        e->ecx &= ~EXT_FEATURES_ECX_LA57;
}

static void hide_features(struct kvm_cpuid2 *t, cpuid_features off)
{
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        struct kvm_cpuid_entry2 *e = off >> i & 1 ? cpuid_find(t, features[i].leaf, 0) : NULL;

        if (e) {
            uint32_t *regs[] = {[EAX] = &e->eax, [EBX] = &e->ebx, [ECX] = &e->ecx, [EDX] = &e->edx};

            *regs[features[i].reg] &= ~features[i].bits;
        }
    }
}

/* How many share a cache: the last level all vCPUs, the others one. Type 0 (bits 4-0) is the end of the list. */
static void fix_caches(struct kvm_cpuid2 *t, const struct topology *topo)
{
    for (uint32_t i = 0; i < t->nent; i++) {
        struct kvm_cpuid_entry2 *e = &t->entries[i];
        bool last_level = (e->eax >> 5 & 7) >= 3;

        if ((e->eax & 0x1f) == 0)
            continue;
        if (e->function == LEAF_CACHES) {
            set_bits(&e->eax, 14, 12, last_level ? (1u << topo->shift) - 1 : 0);
            set_bits(&e->eax, 26, 6, MIN((1u << topo->shift) - 1, 63u));
        } else if (e->function == LEAF_AMD_CACHES) {
            set_bits(&e->eax, 14, 12, last_level ? topo->count - 1 : 0);
        }
    }
}

static void add_topology_level(struct kvm_cpuid2 *t, uint32_t leaf, uint32_t index, uint32_t type, uint32_t shift,
                               uint32_t count, uint32_t apic_id)
{
    t->entries[t->nent++] = (struct kvm_cpuid_entry2){
        .function = leaf,
        .index = index,
        .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        .eax = shift,
        .ebx = count,
        .ecx = type << 8 | index,
        .edx = apic_id,
    };
}

/* The extended topology leaves: a level of threads (one a core), one of cores, the end. */
static void fix_topology(struct kvm_cpuid2 *t, uint32_t leaf, const struct topology *topo)
{
    const struct kvm_cpuid_entry2 *max = cpuid_find(t, 0, 0);
    bool wanted = max && max->eax >= leaf;

    table_remove(t, leaf);
    if (!wanted)
        return;
    add_topology_level(t, leaf, 0, 1, 0, 1, topo->index);
    add_topology_level(t, leaf, 1, 2, topo->shift, topo->count, topo->index);
    add_topology_level(t, leaf, 2, 0, 0, 0, topo->index);
}

static void fix_amd(struct kvm_cpuid2 *t, const struct topology *topo)
{
    struct kvm_cpuid_entry2 *e = cpuid_find(t, LEAF_AMD_FEATURES, 0);

    /* The newest topology leaf describes the host; guests fall back to the older ones. */
    table_remove(t, LEAF_AMD_TOPOLOGY_V2);
    if (!topo->amd)
        return;
    if (e)
        set_flag(&e->ecx, AMD_FEATURES_ECX_CMP_LEGACY, topo->count > 1);
    e = cpuid_find(t, LEAF_AMD_SIZES, 0);
    if (e) {
        set_bits(&e->ecx, 0, 8, topo->count - 1);
        set_bits(&e->ecx, 12, 4, topo->shift);
    }
    e = cpuid_find(t, LEAF_AMD_TOPOLOGY, 0);
    if (e) {
        e->eax = topo->index;
        e->ebx = topo->index; /* core id; one thread a core */
        e->ecx = 0;           /* node 0 of 1 */
    }
}

int cpuid_build(const struct cpuid_host *host, const struct cpuid_options *options, struct kvm_cpuid2 **ret)
{
    const struct kvm_cpuid2 *from = host->supported;
    struct topology topo = {.index = options->index, .count = options->count};
    struct kvm_cpuid2 *t;

    if (options->index >= options->count || options->count > CPUID_MAX_VCPUS)
        return -EINVAL;
    t = table_new(from->nent + EXTRA_ENTRIES);
    if (!t)
        return -ENOMEM;
    t->nent = from->nent;
    memcpy(t->entries, from->entries, from->nent * sizeof(t->entries[0]));
    while (1u << topo.shift < topo.count)
        topo.shift++;
    topo.amd = vendor_is_amd(t);

    fix_features(t, host, &topo);
    hide_features(t, options->off);
    fix_caches(t, &topo);
    fix_topology(t, LEAF_TOPOLOGY, &topo);
    if (cpuid_find(t, LEAF_TOPOLOGY_V2, 0))
        fix_topology(t, LEAF_TOPOLOGY_V2, &topo);
    fix_amd(t, &topo);
    *ret = t;
    return 0;
}
