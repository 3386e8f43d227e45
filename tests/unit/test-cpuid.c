#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"
#include "vcpu/cpuid.h"

#define SIG KVM_CPUID_FLAG_SIGNIFCANT_INDEX
#define E(f, i, fl, a, b, c, d) \
    {.function = (f), .index = (i), .flags = (fl), .eax = (a), .ebx = (b), .ecx = (c), .edx = (d)}

/* What KVM gives on a two-CPU AMD host, cut down; the topology is that of the host. */
static const struct kvm_cpuid_entry2 amd[] = {
    E(0x0, 0, 0, 0x20, 0x68747541, 0x444d4163, 0x69746e65),
    E(0x1, 0, 0, 0x00a10f11, 0x01020800, 0x00202000, 0x178bfbff),
    E(0x7, 0, SIG, 0, 0x01800002, 0x00010004, 0x20000000),
    E(0xb, 0, SIG, 0, 0, 0, 1),
    E(0xd, 0, SIG, 7, 0x340, 0x340, 0),
    E(0xd, 1, SIG, 1, 0, 0, 0),
    E(0x80000000, 0, 0, 0x80000026, 0x68747541, 0x444d4163, 0x69746e65),
    E(0x80000001, 0, 0, 0x00a10f11, 0x40000000, 0x00400393, 0x23d3fbff),
    E(0x80000008, 0, 0, 0x3030, 0x10000005, 0x00017001, 0),
    E(0x8000001d, 0, SIG, 0x4121, 0x01c0003f, 0x3f, 0),
    E(0x8000001d, 2, SIG, 0x4143, 0x01c0003f, 0x7ff, 2),
    E(0x8000001d, 3, SIG, 0x1c163, 0x03c0003f, 0x7fff, 1),
    E(0x8000001d, 4, SIG, 0, 0, 0, 0),
    E(0x8000001e, 0, 0, 7, 0x107, 0x103, 0),
    E(0x80000026, 0, SIG, 1, 2, 0x100, 7),
    E(0x40000000, 0, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d),
    E(0x40000001, 0, 0, 0x01007efb, 0, 0, 0),
};

/* The same for an Intel host that has leaf 0x1f. */
static const struct kvm_cpuid_entry2 intel[] = {
    E(0x0, 0, 0, 0x1f, 0x756e6547, 0x6c65746e, 0x49656e69),
    E(0x1, 0, 0, 0x000806f8, 0x06400800, 0x00202000, 0x0f8bfbff),
    E(0x4, 0, SIG, 0xfc004121, 0x02c0003f, 0x3f, 0),
    E(0x4, 2, SIG, 0xfc004143, 0x03c0003f, 0x7ff, 0),
    E(0x4, 3, SIG, 0xfc1fc163, 0x0380003f, 0xffff, 4),
    E(0x4, 4, SIG, 0, 0, 0, 0),
    E(0x7, 0, SIG, 1, 0, 0x00010000, 0),
    E(0xb, 0, SIG, 0, 0, 0, 6),
    E(0x1f, 0, SIG, 0, 0, 0, 6),
    E(0x80000000, 0, 0, 0x80000008, 0, 0, 0),
    E(0x80000001, 0, 0, 0, 0, 0x121, 0x2c100800),
    E(0x80000008, 0, 0, 0x3934, 0, 0, 0),
    E(0x40000000, 0, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d),
    E(0x40000001, 0, 0, 0x01007efb, 0, 0, 0),
};

static struct kvm_cpuid2 *copy(const struct kvm_cpuid_entry2 *entries, size_t n)
{
    struct kvm_cpuid2 *t = malloc(sizeof(*t) + n * sizeof(*entries));

    assert_non_null(t);
    t->nent = (uint32_t)n;
    t->padding = 0;
    memcpy(t->entries, entries, n * sizeof(*entries));
    return t;
}

static struct kvm_cpuid2 *build(const struct cpuid_host *host, unsigned int index, unsigned int count, cpuid_features off)
{
    struct cpuid_options options = {.index = index, .count = count, .off = off};
    struct kvm_cpuid2 *t = NULL;

    assert_int_equal(cpuid_build(host, &options, &t), 0);
    return t;
}

static void assert_leaf(struct kvm_cpuid2 *t, uint32_t function, uint32_t index, uint32_t a, uint32_t b, uint32_t c,
                        uint32_t d)
{
    const struct kvm_cpuid_entry2 *e = cpuid_find(t, function, index);

    if (!e)
        fail_msg("no leaf %x.%x", function, index);
    if (e->eax != a || e->ebx != b || e->ecx != c || e->edx != d)
        fail_msg("leaf %x.%x is %08x %08x %08x %08x, not %08x %08x %08x %08x", function, index, e->eax, e->ebx, e->ecx,
                 e->edx, a, b, c, d);
}

static void assert_no_duplicates(struct kvm_cpuid2 *t)
{
    for (uint32_t i = 0; i < t->nent; i++)
        assert_ptr_equal(cpuid_find(t, t->entries[i].function, t->entries[i].index), &t->entries[i]);
}

static void test_amd_six(void **state)
{
    struct cpuid_host host = {.supported = copy(amd, ARRAY_SIZE(amd)), .tsc_deadline = true};
    struct kvm_cpuid2 *t = build(&host, 5, 6, 0);

    /* Six vCPUs need three bits of the APIC id. */
    assert_leaf(t, 0x1, 0, 0x00a10f11, 0x05060800, 0x81202000, 0x178bfbff);
    assert_leaf(t, 0x7, 0, 0, 0x01800002, 0x00000004, 0x20000000);
    assert_leaf(t, 0xb, 0, 0, 1, 0x100, 5);
    assert_leaf(t, 0xb, 1, 3, 6, 0x201, 5);
    assert_leaf(t, 0xb, 2, 0, 0, 0x002, 5);
    assert_leaf(t, 0x80000001, 0, 0x00a10f11, 0x40000000, 0x00400393, 0x23d3fbff);
    assert_leaf(t, 0x80000008, 0, 0x3030, 0x10000005, 0x00013005, 0);
    assert_leaf(t, 0x8000001d, 0, 0x0121, 0x01c0003f, 0x3f, 0);
    assert_leaf(t, 0x8000001d, 2, 0x0143, 0x01c0003f, 0x7ff, 2);
    assert_leaf(t, 0x8000001d, 3, 0x14163, 0x03c0003f, 0x7fff, 1);
    assert_leaf(t, 0x8000001d, 4, 0, 0, 0, 0);
    assert_leaf(t, 0x8000001e, 0, 5, 5, 0, 0);
    assert_null(cpuid_find(t, 0x80000026, 0));
    /* The host's table has no 0x1f, so the guest's has none. */
    assert_null(cpuid_find(t, 0x1f, 0));
    assert_no_duplicates(t);
    free(t);
    cpuid_host_clear(&host);
}

static void test_amd_one(void **state)
{
    struct cpuid_host host = {.supported = copy(amd, ARRAY_SIZE(amd)), .la57 = true};
    struct kvm_cpuid2 *t = build(&host, 0, 1, CPUID_ASYNC_PF);

    assert_leaf(t, 0x1, 0, 0x00a10f11, 0x00010800, 0x80202000, 0x078bfbff);
    assert_leaf(t, 0x7, 0, 0, 0x01800002, 0x00010004, 0x20000000);
    assert_leaf(t, 0xb, 1, 0, 1, 0x201, 0);
    assert_leaf(t, 0x80000001, 0, 0x00a10f11, 0x40000000, 0x00400391, 0x23d3fbff);
    assert_leaf(t, 0x80000008, 0, 0x3030, 0x10000005, 0x00010000, 0);
    assert_leaf(t, 0x8000001d, 3, 0x0163, 0x03c0003f, 0x7fff, 1);
    /* Async page faults are gone, the signature and the other offers are not. */
    assert_leaf(t, 0x40000000, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d);
    assert_leaf(t, 0x40000001, 0, 0x01003aeb, 0, 0, 0);
    free(t);
    cpuid_host_clear(&host);
}

static void test_intel_five(void **state)
{
    struct cpuid_host host = {.supported = copy(intel, ARRAY_SIZE(intel)), .tsc_deadline = true};
    struct kvm_cpuid2 *t = build(&host, 4, 5, 0);

    assert_leaf(t, 0x1, 0, 0x000806f8, 0x04080800, 0x81202000, 0x1f8bfbff);
    assert_leaf(t, 0x4, 0, 0x1c000121, 0x02c0003f, 0x3f, 0);
    assert_leaf(t, 0x4, 2, 0x1c000143, 0x03c0003f, 0x7ff, 0);
    assert_leaf(t, 0x4, 3, 0x1c01c163, 0x0380003f, 0xffff, 4);
    assert_leaf(t, 0x4, 4, 0, 0, 0, 0);
    for (uint32_t leaf = 0xb; leaf <= 0x1f; leaf += 0x14) {
        assert_leaf(t, leaf, 0, 0, 1, 0x100, 4);
        assert_leaf(t, leaf, 1, 3, 5, 0x201, 4);
        assert_leaf(t, leaf, 2, 0, 0, 0x002, 4);
    }
    /* What is AMD's stays as it was. */
    assert_leaf(t, 0x80000001, 0, 0, 0, 0x121, 0x2c100800);
    assert_leaf(t, 0x80000008, 0, 0x3934, 0, 0, 0);
    assert_leaf(t, 0x40000001, 0, 0x01007efb, 0, 0, 0);
    assert_no_duplicates(t);
    free(t);
    cpuid_host_clear(&host);
}

/* An old host whose leaves end before the topology leaf: none is added beyond what leaf 0 says there is. */
static void test_no_topology_leaf(void **state)
{
    static const struct kvm_cpuid_entry2 old[] = {
        E(0x0, 0, 0, 0x7, 0x68747541, 0x444d4163, 0x69746e65),
        E(0x1, 0, 0, 0, 0, 0, 0),
    };
    struct cpuid_host host = {.supported = copy(old, ARRAY_SIZE(old))};
    struct kvm_cpuid2 *t = build(&host, 1, 2, 0);

    assert_int_equal(t->nent, 2);
    assert_leaf(t, 0x1, 0, 0, 0x01020000, 0x80000000, 1u << 28);
    free(t);
    host.supported->nent = 0;
    t = build(&host, 0, 1, 0);
    assert_int_equal(t->nent, 0);
    free(t);
    cpuid_host_clear(&host);
}

static void test_features_off(void **state)
{
    struct cpuid_host host = {.supported = copy(amd, ARRAY_SIZE(amd)), .tsc_deadline = true};
    struct kvm_cpuid2 *all = build(&host, 0, 1, 0), *some, *none;
    cpuid_features every = 0;

    assert_int_equal(cpuid_feature("async-pf"), CPUID_ASYNC_PF);
    assert_int_equal(cpuid_feature("no-such"), 0);
    assert_int_equal(cpuid_feature(""), 0);
    for (unsigned int i = 0; cpuid_feature_name(i); i++) {
        assert_int_equal(cpuid_feature(cpuid_feature_name(i)), UINT64_C(1) << i);
        every |= UINT64_C(1) << i;
    }
    /* One bit goes, its neighbours stay. */
    some = build(&host, 0, 1, cpuid_feature("pge") | cpuid_feature("tsc-deadline"));
    assert_int_equal(cpuid_find(all, 1, 0)->edx & ~cpuid_find(some, 1, 0)->edx, 1u << 13);
    assert_int_equal(cpuid_find(all, 1, 0)->ecx & ~cpuid_find(some, 1, 0)->ecx, 1u << 24);
    assert_int_equal(cpuid_find(all, 7, 0)->ebx, cpuid_find(some, 7, 0)->ebx);
    none = build(&host, 0, 1, every);
    assert_int_equal(cpuid_find(none, 1, 0)->ecx & (1u << 17 | 1u << 21 | 1u << 24), 0);
    assert_int_equal(cpuid_find(none, 0x80000001, 0)->edx & 1u << 26, 0);
    assert_int_equal(cpuid_find(none, 0x40000001, 0)->eax & (1u << 4 | 1u << 10 | 1u << 14), 0);
    free(all);
    free(some);
    free(none);
    cpuid_host_clear(&host);
}

static void test_bounds(void **state)
{
    struct cpuid_host host = {.supported = copy(amd, ARRAY_SIZE(amd))};
    static const struct cpuid_options bad[] = {{0, 0, 0}, {1, 1, 0}, {0, 256, 0}, {UINT32_MAX, 2, 0}};
    struct kvm_cpuid2 *t = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(cpuid_build(&host, &bad[i], &t), -EINVAL);
    assert_null(t);
    t = build(&host, 254, 255, 0);
    assert_leaf(t, 0xb, 1, 8, 255, 0x201, 254);
    assert_leaf(t, 0x80000008, 0, 0x3030, 0x10000005, 0x000180fe, 0);
    free(t);
    cpuid_host_clear(&host);
}

static void test_fetch_fails(void **state)
{
    const struct cpuid_host *host = NULL;
    struct cpuid_fetch *fetch;

    assert_int_equal(cpuid_fetch_start(-1, &fetch), 0);
    assert_int_equal(cpuid_fetch_wait(fetch, &host), -EBADF);
    assert_int_equal(cpuid_fetch_wait(fetch, &host), -EBADF);
    assert_null(host);
    cpuid_fetch_free(fetch);
    assert_int_equal(cpuid_fetch_start(-1, &fetch), 0);
    cpuid_fetch_free(fetch);
    cpuid_fetch_free(NULL);
}

/* KVM itself takes the tables, and every vCPU sees its own id. */
static void test_kvm_takes_it(void **state)
{
    const char *path = getenv("UMBRA_KVM");
    int kvm = open(path ? path : "/dev/kvm", O_RDWR | O_CLOEXEC), vm;
    const struct cpuid_host *host;
    struct cpuid_fetch *fetch;

    if (kvm < 0)
        skip();
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    assert_true(vm >= 0);
    assert_int_equal(ioctl(vm, KVM_CREATE_IRQCHIP, 0), 0);
    assert_int_equal(cpuid_fetch_start(kvm, &fetch), 0);
    assert_int_equal(cpuid_fetch_wait(fetch, &host), 0);
    for (unsigned int i = 0; i < 3; i++) {
        struct kvm_cpuid2 *t = build(host, i, 3, true);
        int vcpu = ioctl(vm, KVM_CREATE_VCPU, i);

        assert_true(vcpu >= 0);
        assert_int_equal(ioctl(vcpu, KVM_SET_CPUID2, t), 0);
        t->nent = host->supported->nent + 6;
        assert_int_equal(ioctl(vcpu, KVM_GET_CPUID2, t), 0);
        assert_int_equal(cpuid_find(t, 1, 0)->ebx >> 24, i);
        assert_true(cpuid_find(t, 1, 0)->ecx >> 31);
        assert_memory_equal(&cpuid_find(t, 0x40000000, 0)->ebx, "KVMKVMKVM\0\0", 12);
        free(t);
        close(vcpu);
    }
    cpuid_fetch_free(fetch);
    close(vm);
    close(kvm);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_amd_six), cmocka_unit_test(test_amd_one),
        cmocka_unit_test(test_intel_five), cmocka_unit_test(test_no_topology_leaf),
        cmocka_unit_test(test_features_off), cmocka_unit_test(test_bounds), cmocka_unit_test(test_fetch_fails), cmocka_unit_test(test_kvm_takes_it),
    };

    return cmocka_run_group_tests_name("cpuid", tests, NULL, NULL);
}
