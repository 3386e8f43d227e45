/*
 * What a VM's state needs and this host does not give. Features are compared word by word, so that a host with more than
 * the state needs is fine; which words tell of features is said by the CPUs' manuals named in cpuid.c.
 */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "vcpu/cpuid.h"
#include "vcpu/state-internal.h"
#include "vcpu/state.h"
#include "vcpu/vm-internal.h"

enum cpuid_register {
    REG_EAX,
    REG_EBX,
    REG_ECX,
    REG_EDX,
};

static const char *const register_names[] = {"eax", "ebx", "ecx", "edx"};

/* A word whose bits are features; those of `ignore` follow what the guest does or how many vCPUs there are. */
struct feature_word {
    uint32_t function, index;
    enum cpuid_register reg;
    uint32_t ignore;
};

static const struct feature_word feature_words[] = {
    {0x1, 0, REG_ECX, 1u << 27 | 1u << 3},
    {0x1, 0, REG_EDX, 1u << 28 | 1u << 9},
    {0x7, 0, REG_EBX, 0},
    {0x7, 0, REG_ECX, 1u << 4 | 0x1fu << 17 /* MAWAU, a number */},
    {0x7, 0, REG_EDX, 0},
    {0x7, 1, REG_EAX, 0},
    {0x7, 1, REG_EDX, 0},
    {0x7, 2, REG_EDX, 0},
    {0xd, 0, REG_EAX, 0},
    {0xd, 0, REG_EDX, 0},
    {0xd, 1, REG_EAX, 0},
    {0xd, 1, REG_ECX, 0},
    {0x40000001, 0, REG_EAX, 0},
    {0x80000001, 0, REG_ECX, 1u << 1},
    {0x80000001, 0, REG_EDX, 0},
    {0x80000007, 0, REG_EDX, 0},
    {0x80000008, 0, REG_EBX, 0},
    {0x8000000a, 0, REG_EDX, 0},
    {0x80000021, 0, REG_EAX, 0},
};

struct comparison {
    struct vm *vm;
    struct state_kvm kvm;
    void (*report)(void *opaque, const char *text);
    void *opaque;
};

static void report(const struct comparison *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void report(const struct comparison *c, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    c->report(c->opaque, text);
}

static const struct kvm_cpuid_entry2 *find_in_image(const struct vcpu_image *im, uint32_t function, uint32_t index)
{
    for (uint32_t i = 0; i < im->cpuid_count; i++)
        if (im->cpuid[i].function == function && im->cpuid[i].index == index)
            return &im->cpuid[i];
    return NULL;
}

static uint32_t cpuid_word(const struct kvm_cpuid_entry2 *e, enum cpuid_register reg)
{
    if (!e)
        return 0;
    switch (reg) {
    case REG_EAX:
        return e->eax;
    case REG_EBX:
        return e->ebx;
    case REG_ECX:
        return e->ecx;
    case REG_EDX:
        return e->edx;
    }
    return 0;
}

static void compare_vendor(const struct comparison *c, const struct vcpu_image *im, struct kvm_cpuid2 *host)
{
    const struct kvm_cpuid_entry2 *a = find_in_image(im, 0, 0), *b = cpuid_find(host, 0, 0);

    if (a && b && (a->ebx != b->ebx || a->ecx != b->ecx || a->edx != b->edx))
        report(c, "cpuid: another vendor (%08x-%08x-%08x, here %08x-%08x-%08x)", a->ebx, a->edx, a->ecx, b->ebx, b->edx,
               b->ecx);
}

static void compare_sizes(const struct comparison *c, const struct vcpu_image *im, struct kvm_cpuid2 *host)
{
    uint32_t a = cpuid_word(find_in_image(im, 0x80000008, 0), REG_EAX);
    uint32_t b = cpuid_word(cpuid_find(host, 0x80000008, 0), REG_EAX);

    if ((a & 0xff) > (b & 0xff))
        report(c, "cpuid: physical addresses of %u bits, here %u", a & 0xff, b & 0xff);
    if ((a >> 8 & 0xff) > (b >> 8 & 0xff))
        report(c, "cpuid: linear addresses of %u bits, here %u", a >> 8 & 0xff, b >> 8 & 0xff);
}

static int compare_cpuid(const struct comparison *c, const struct vcpu_image *im)
{
    struct cpuid_options options = {.index = 0, .count = c->vm->cpus};
    const struct cpuid_host *from;
    struct kvm_cpuid2 *host = NULL, *given = NULL;
    struct state_failure f = {""};
    int r = cpuid_fetch_wait(c->vm->cpuid, &from);

    if (r == 0)
        r = cpuid_build(from, &options, &host);
    /* Some KVMs give a guest more than they say they support: what the CPU itself answers without an exit. */
    if (r == 0)
        r = vcpu_get_cpuid(c->vm->vcpus[0]->fd, &given, &f);
    if (r < 0) {
        log_err_errno(r, "kvm: cannot tell what CPUID it offers: %s", f.text);
        free(host);
        return r;
    }
    compare_vendor(c, im, host);
    compare_sizes(c, im, host);
    for (size_t i = 0; i < ARRAY_SIZE(feature_words); i++) {
        const struct feature_word *w = &feature_words[i];
        uint32_t missing = cpuid_word(find_in_image(im, w->function, w->index), w->reg) &
                           ~cpuid_word(cpuid_find(host, w->function, w->index), w->reg) &
                           ~cpuid_word(cpuid_find(given, w->function, w->index), w->reg) & ~w->ignore;

        if (missing)
            report(c, "cpuid.%08x.%u %s: bits %#x are not offered here", w->function, w->index, register_names[w->reg],
                   missing);
    }
    free(host);
    free(given);
    return 0;
}

static bool msr_listed(const struct state_kvm *kvm, uint32_t index)
{
    for (uint32_t i = 0; i < kvm->msr_count; i++)
        if (kvm->msrs[i] == index)
            return true;
    return false;
}

/* Those that KVM does not know here, and those that only tell what there is, by trying: KVM checks the values. */
static int compare_msrs(const struct comparison *c, const struct vcpu_image *im)
{
    int fd = c->vm->vcpus[0]->fd;

    for (uint32_t i = 0; i < im->msr_count; i++) {
        struct state_failure f;
        bool feature;

        if (!msr_listed(&c->kvm, im->msrs[i].index)) {
            report(c, "msr.%08x: not known to this host's KVM", im->msrs[i].index);
            continue;
        }
        feature = state_kvm_feature_msr(c->vm->kvm_fd, im->msrs[i].index);
        if (feature && vcpu_try_msr(fd, &im->msrs[i], &f) < 0)
            report(c, "%s", f.text);
    }
    return 0;
}

static void compare_capabilities(const struct comparison *c, const struct vcpu_image *im)
{
    struct state_failure f;

    if (im->xsave_len > c->kvm.xsave_len)
        report(c, "xsave: %zu bytes, here %zu", im->xsave_len, c->kvm.xsave_len);
    if (im->xcrs.nr_xcrs > 0 && !c->kvm.xcrs)
        report(c, "KVM_CAP_XCRS is missing here");
    if ((im->sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID) && !c->kvm.sregs2)
        report(c, "KVM_CAP_SREGS2 is missing here");
    if (im->has_nested && im->nested_len > 0 && !c->kvm.nested)
        report(c, "KVM_CAP_NESTED_STATE is missing here");
    if (vcpu_try_tsc_khz(&c->kvm, c->vm->vcpus[0]->fd, im, &f) < 0)
        report(c, "%s", f.text);
}

int vm_state_compare(struct vm *vm, struct state_reader *r, void (*report_line)(void *opaque, const char *text),
                     void *opaque)
{
    struct comparison c = {.vm = vm, .report = report_line, .opaque = opaque};
    const struct state_section *s;
    struct state_failure f = {""};
    struct vcpu_image im = {0};
    /* What differs between a VM's vCPUs is no feature. */
    int err = state_open(r, "vcpu", 0, VCPU_STATE_VERSION, &s);

    if (err == 0)
        err = vcpu_image_get(&im, r, s);
    if (err < 0)
        return err;
    err = state_kvm_init(&c.kvm, vm->kvm_fd, vm->fd, vm->vcpus[0]->fd, &f);
    if (err < 0) {
        log_err("kvm: %s", f.text);
    } else {
        err = compare_cpuid(&c, &im);
        if (err == 0)
            err = compare_msrs(&c, &im);
        if (err == 0)
            compare_capabilities(&c, &im);
        state_kvm_clear(&c.kvm);
    }
    vcpu_image_clear(&im);
    return err;
}
