/*
 * Images of vCPUs out of KVM and into it.
 *
 * Order of reading: MP state first, because reading it makes KVM act on a pending INIT or SIPI, which changes registers.
 * Order of loading: CPUID, which much of the rest is checked against; the frequency, before anything counts in it;
 * control registers with the LAPIC's base before the LAPIC; nested state once EFER allows it; the TSC before the deadline,
 * which is compared to it; events after registers, which drop pending exceptions; the deadline after the LAPIC is in
 * deadline mode.
 */
#include "config.h"

#include "vcpu/state-internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"

/* How many MSRs KVM takes at once. */
#define MSR_BATCH 256u

/* KVM itself does not scale the TSC for less. */
#define TSC_TOLERANCE_PPM 250

/* Bits of CPUID that KVM itself changes while a guest runs, with what the guest puts into CR4, XCR0 and the like. */
struct runtime_bits {
    uint32_t function, index, eax, ebx, ecx, edx;
};

static const struct runtime_bits runtime_bits[] = {
    {.function = 0x1, .ecx = 1u << 27 | 1u << 3, .edx = 1u << 9}, /* OSXSAVE, MWAIT; APIC */
    {.function = 0x7, .ecx = 1u << 4},                            /* OSPKE */
    {.function = 0xd, .index = 0, .ebx = UINT32_MAX},             /* size of the enabled XSAVE area */
    {.function = 0xd, .index = 1, .ebx = UINT32_MAX},
};

int state_kvm_fail(struct state_failure *f, int err, const char *what)
{
    snprintf(f->text, sizeof(f->text), "%s: %s", what, strerrordesc_np(-err));
    return err;
}

int state_kvm_call(int fd, unsigned long request, void *arg, const char *name, struct state_failure *f)
{
    int r = ioctl(fd, request, arg);

    return r < 0 ? state_kvm_fail(f, -errno, name) : r;
}

/* -- what KVM offers -- */

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

/* Synthetic MSRs of Hyper-V; see vcpu/state.h. */
static bool msr_left_out(uint32_t index)
{
    return index >= 0x40000000 && index <= 0x400001ff;
}

static int list_msrs(struct state_kvm *kvm, int kvm_fd, struct state_failure *f)
{
    struct kvm_msr_list probe = {.nmsrs = 0};
    struct kvm_msr_list *list;
    int r = 0;

    if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &probe) < 0 && errno != E2BIG)
        return state_kvm_fail(f, -errno, "KVM_GET_MSR_INDEX_LIST");
    if (probe.nmsrs > VCPU_MAX_MSRS)
        return state_kvm_fail(f, -E2BIG, "KVM_GET_MSR_INDEX_LIST");
    list = calloc(1, sizeof(*list) + probe.nmsrs * sizeof(list->indices[0]));
    /* One more for the TSC, in case the list is without. */
    kvm->msrs = calloc(probe.nmsrs + 1, sizeof(*kvm->msrs));
    if (!list || !kvm->msrs) {
        free(list);
        return state_kvm_fail(f, -ENOMEM, "list of MSRs");
    }
    list->nmsrs = probe.nmsrs;
    if (probe.nmsrs > 0)
        r = CALL(kvm_fd, KVM_GET_MSR_INDEX_LIST, list, f);
    for (uint32_t i = 0; r == 0 && i < list->nmsrs; i++)
        if (!msr_left_out(list->indices[i]) && list->indices[i] != MSR_TSC)
            kvm->msrs[kvm->msr_count++] = list->indices[i];
    kvm->msrs[kvm->msr_count++] = MSR_TSC;
    free(list);
    qsort(kvm->msrs, kvm->msr_count, sizeof(*kvm->msrs), compare_u32);
    return r;
}

static int extension(int vm_fd, unsigned int cap)
{
    int r = ioctl(vm_fd, KVM_CHECK_EXTENSION, (unsigned long)cap);

    return MAX(r, 0);
}

int state_kvm_init(struct state_kvm *kvm, int kvm_fd, int vm_fd, int vcpu_fd, struct state_failure *f)
{
    struct kvm_device_attr tsc = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET};
    int r;

    *kvm = (struct state_kvm){
        .vm_fd = vm_fd,
        .sregs2 = extension(vm_fd, KVM_CAP_SREGS2),
        .xcrs = extension(vm_fd, KVM_CAP_XCRS),
        .tsc_khz = extension(vm_fd, KVM_CAP_GET_TSC_KHZ),
        .tsc_scaling = extension(vm_fd, KVM_CAP_TSC_CONTROL),
        .clock_ctrl = extension(vm_fd, KVM_CAP_KVMCLOCK_CTRL),
        .tsc_offset = ioctl(vcpu_fd, KVM_HAS_DEVICE_ATTR, &tsc) == 0,
        .xsave_len = MAX((size_t)extension(vm_fd, KVM_CAP_XSAVE2), sizeof(struct kvm_xsave)),
        .nested_len = (size_t)extension(vm_fd, KVM_CAP_NESTED_STATE),
    };
    kvm->nested = kvm->nested_len >= sizeof(struct kvm_nested_state);
    if (kvm->xsave_len > VCPU_XSAVE_MAX || kvm->nested_len > VCPU_NESTED_MAX)
        return state_kvm_fail(f, -E2BIG, "size of KVM's XSAVE area or nested state");
    r = list_msrs(kvm, kvm_fd, f);
    if (r < 0)
        state_kvm_clear(kvm);
    return r;
}

void state_kvm_clear(struct state_kvm *kvm)
{
    free(kvm->msrs);
    kvm->msrs = NULL;
    kvm->msr_count = 0;
}

/* -- MSRs -- */

/* struct kvm_msrs with room for entries. */
struct msr_batch {
    uint32_t count, pad;
    struct kvm_msr_entry entries[MSR_BATCH];
};

static_assert(offsetof(struct msr_batch, entries) == offsetof(struct kvm_msrs, entries), "what KVM takes for its own");

static int get_msr(int fd, uint32_t index, uint64_t *ret)
{
    struct msr_batch b = {.count = 1, .entries[0].index = index};

    if (ioctl(fd, KVM_GET_MSRS, &b) != 1)
        return -ENOENT;
    *ret = b.entries[0].data;
    return 0;
}

/* Read all that can be read. KVM stops at the first it refuses; go on behind it. */
static int capture_msrs(const struct state_kvm *kvm, int fd, struct vcpu_image *im, struct state_failure *f)
{
    struct msr_batch b;

    im->msrs = calloc(kvm->msr_count, sizeof(*im->msrs));
    if (!im->msrs)
        return state_kvm_fail(f, -ENOMEM, "MSRs");
    for (uint32_t at = 0; at < kvm->msr_count;) {
        uint32_t n = MIN(kvm->msr_count - at, MSR_BATCH);
        int done;

        b.count = n;
        b.pad = 0;
        for (uint32_t i = 0; i < n; i++)
            b.entries[i] = (struct kvm_msr_entry){.index = kvm->msrs[at + i]};
        done = CALL(fd, KVM_GET_MSRS, &b, f);
        if (done < 0)
            return done;
        memcpy(im->msrs + im->msr_count, b.entries, (size_t)done * sizeof(b.entries[0]));
        im->msr_count += (uint32_t)done;
        at += (uint32_t)done + ((uint32_t)done < n);
    }
    return vcpu_image_msr(im, MSR_TSC) ? 0 : state_kvm_fail(f, -ENOENT, "TSC");
}

/* What KVM refuses to write is fine where it has that value already: some MSRs only tell what there is. */
static int refused_msr(int fd, const struct kvm_msr_entry *e, struct state_failure *f)
{
    uint64_t now;

    if (get_msr(fd, e->index, &now) < 0) {
        snprintf(f->text, sizeof(f->text), "msr.%08x: not known to this host's KVM", e->index);
        return -ENOTSUP;
    }
    if (now == e->data)
        return 0;
    snprintf(f->text, sizeof(f->text), "msr.%08x: KVM refuses %#llx, it has %#llx", e->index, e->data,
             (unsigned long long)now);
    return -EINVAL;
}

static int apply_msrs(int fd, const struct vcpu_image *im, struct state_failure *f)
{
    struct msr_batch b;
    uint32_t at = 0;

    while (at < im->msr_count) {
        uint32_t n = 0;
        int done = 0;

        b.pad = 0;
        for (uint32_t i = at; i < im->msr_count && n < MSR_BATCH; i++, n++)
            b.entries[n] = im->msrs[i];
        /* These two are set by themselves, at their time. */
        while ((uint32_t)done < n && b.entries[done].index != MSR_TSC && b.entries[done].index != MSR_TSC_DEADLINE)
            done++;
        n = (uint32_t)done;
        b.count = n;
        done = n ? CALL(fd, KVM_SET_MSRS, &b, f) : 0;
        if (done < 0)
            return done;
        at += (uint32_t)done;
        if ((uint32_t)done < n) {
            int r = refused_msr(fd, &im->msrs[at], f);

            if (r < 0)
                return r;
            at++;
        } else if (at < im->msr_count &&
                   (im->msrs[at].index == MSR_TSC || im->msrs[at].index == MSR_TSC_DEADLINE)) {
            at++;
        }
    }
    return 0;
}

int vcpu_try_msr(int fd, const struct kvm_msr_entry *e, struct state_failure *f)
{
    struct msr_batch b = {.count = 1, .entries[0] = *e};
    int r = CALL(fd, KVM_SET_MSRS, &b, f);

    return r < 0 ? r : r == 1 ? 0 : refused_msr(fd, e, f);
}

static int apply_one_msr(int fd, const struct vcpu_image *im, uint32_t index, struct state_failure *f)
{
    const struct kvm_msr_entry *e = vcpu_image_msr(im, index);

    return e ? vcpu_try_msr(fd, e, f) : 0;
}

/* KVM gives those that tell of features without a VM, too. */
bool state_kvm_feature_msr(int kvm_fd, uint32_t index)
{
    uint64_t value;

    return get_msr(kvm_fd, index, &value) == 0;
}

/* -- CPUID -- */

static struct kvm_cpuid2 *cpuid_table(uint32_t entries)
{
    struct kvm_cpuid2 *t = calloc(1, sizeof(*t) + entries * sizeof(t->entries[0]));

    if (t)
        t->nent = entries;
    return t;
}

int vcpu_get_cpuid(int fd, struct kvm_cpuid2 **ret, struct state_failure *f)
{
    static const struct kvm_cpuid_entry2 nothing;
    struct kvm_cpuid2 *t = cpuid_table(VCPU_MAX_CPUID);
    int r;

    if (!t)
        return state_kvm_fail(f, -ENOMEM, "CPUID");
    r = CALL(fd, KVM_GET_CPUID2, t, f);
    if (r < 0) {
        free(t);
        return r;
    }
    /* Up to Linux 6.3 KVM does not say how many it filled in. */
    while (t->nent > 0 && memcmp(&t->entries[t->nent - 1], &nothing, sizeof(nothing)) == 0)
        t->nent--;
    *ret = t;
    return 0;
}

static int capture_cpuid(int fd, struct vcpu_image *im, struct state_failure *f)
{
    struct kvm_cpuid2 *t;
    int r = vcpu_get_cpuid(fd, &t, f);

    if (r < 0)
        return r;
    im->cpuid = calloc(MAX(t->nent, 1u), sizeof(*im->cpuid));
    if (im->cpuid) {
        memcpy(im->cpuid, t->entries, t->nent * sizeof(*im->cpuid));
        im->cpuid_count = t->nent;
    } else {
        r = state_kvm_fail(f, -ENOMEM, "CPUID");
    }
    free(t);
    return r;
}

static bool same_but_runtime(const struct kvm_cpuid_entry2 *a, const struct kvm_cpuid_entry2 *b)
{
    struct runtime_bits ignore = {0};

    for (size_t i = 0; i < ARRAY_SIZE(runtime_bits); i++)
        if (runtime_bits[i].function == a->function && runtime_bits[i].index == a->index)
            ignore = runtime_bits[i];
    return ((a->eax ^ b->eax) & ~ignore.eax) == 0 && ((a->ebx ^ b->ebx) & ~ignore.ebx) == 0 &&
           ((a->ecx ^ b->ecx) & ~ignore.ecx) == 0 && ((a->edx ^ b->edx) & ~ignore.edx) == 0;
}

static bool has_cpuid(const struct kvm_cpuid2 *t, const struct vcpu_image *im)
{
    if (t->nent != im->cpuid_count)
        return false;
    for (uint32_t i = 0; i < im->cpuid_count; i++) {
        const struct kvm_cpuid_entry2 *e = &im->cpuid[i];
        bool found = false;

        for (uint32_t k = 0; k < t->nent && !found; k++)
            found = t->entries[k].function == e->function && t->entries[k].index == e->index &&
                    t->entries[k].flags == e->flags && same_but_runtime(&t->entries[k], e);
        if (!found)
            return false;
    }
    return true;
}

/* KVM takes another CPUID only until a vCPU has run, and then the same only in the same order: leave it alone if it fits. */
static int apply_cpuid(int fd, const struct vcpu_image *im, struct state_failure *f)
{
    struct kvm_cpuid2 *t;
    int r = vcpu_get_cpuid(fd, &t, f);
    bool fits;

    if (r < 0)
        return r;
    fits = has_cpuid(t, im);
    free(t);
    if (fits)
        return 0;
    t = cpuid_table(im->cpuid_count);
    if (!t)
        return state_kvm_fail(f, -ENOMEM, "CPUID");
    memcpy(t->entries, im->cpuid, im->cpuid_count * sizeof(t->entries[0]));
    r = CALL(fd, KVM_SET_CPUID2, t, f);
    free(t);
    return r;
}

/* -- control registers, XSAVE, nested state -- */

static_assert(offsetof(struct kvm_sregs, interrupt_bitmap) == offsetof(struct kvm_sregs2, flags),
              "the two forms are the same up to there");

static int capture_sregs(const struct state_kvm *kvm, int fd, struct vcpu_image *im, struct state_failure *f)
{
    struct kvm_sregs old;
    int r;

    if (kvm->sregs2)
        return CALL(fd, KVM_GET_SREGS2, &im->sregs, f);
    r = CALL(fd, KVM_GET_SREGS, &old, f);
    if (r == 0)
        memcpy(&im->sregs, &old, offsetof(struct kvm_sregs2, flags));
    return r;
}

static int apply_sregs(const struct state_kvm *kvm, int fd, const struct vcpu_image *im, struct state_failure *f)
{
    struct kvm_sregs old = {0};

    if (kvm->sregs2)
        return CALL_SET(fd, KVM_SET_SREGS2, &im->sregs, f);
    /* An interrupt that is being delivered is among the events. */
    memcpy(&old, &im->sregs, offsetof(struct kvm_sregs2, flags));
    return CALL(fd, KVM_SET_SREGS, &old, f);
}

static int capture_xsave(const struct state_kvm *kvm, int fd, struct vcpu_image *im, struct state_failure *f)
{
    im->xsave = calloc(1, kvm->xsave_len);
    if (!im->xsave)
        return state_kvm_fail(f, -ENOMEM, "XSAVE area");
    im->xsave_len = kvm->xsave_len;
    if (kvm->xsave_len > sizeof(struct kvm_xsave))
        return CALL(fd, KVM_GET_XSAVE2, im->xsave, f);
    return CALL(fd, KVM_GET_XSAVE, im->xsave, f);
}

/* KVM reads as many bytes as its own area has, whatever came. */
static int apply_xsave(const struct state_kvm *kvm, int fd, const struct vcpu_image *im, struct state_failure *f)
{
    uint8_t *area;
    int r;

    if (im->xsave_len > kvm->xsave_len) {
        snprintf(f->text, sizeof(f->text), "xsave: %zu bytes, this host's KVM takes %zu", im->xsave_len, kvm->xsave_len);
        return -ENOTSUP;
    }
    area = calloc(1, kvm->xsave_len);
    if (!area)
        return state_kvm_fail(f, -ENOMEM, "XSAVE area");
    memcpy(area, im->xsave, im->xsave_len);
    r = CALL(fd, KVM_SET_XSAVE, area, f);
    free(area);
    return r;
}

static int capture_nested(const struct state_kvm *kvm, int fd, struct vcpu_image *im, struct state_failure *f)
{
    struct kvm_nested_state *n;
    int r;

    if (!kvm->nested)
        return 0;
    n = calloc(1, kvm->nested_len);
    im->nested_data = malloc(kvm->nested_len);
    if (!n || !im->nested_data) {
        free(n);
        return state_kvm_fail(f, -ENOMEM, "nested state");
    }
    n->size = (uint32_t)kvm->nested_len;
    r = CALL(fd, KVM_GET_NESTED_STATE, n, f);
    if (r == 0 && (n->size < sizeof(*n) || n->size > kvm->nested_len))
        r = state_kvm_fail(f, -EPROTO, "KVM_GET_NESTED_STATE");
    if (r == 0) {
        im->has_nested = true;
        im->nested_flags = n->flags;
        im->nested_format = n->format;
        memcpy(im->nested_header, n->hdr.pad, sizeof(im->nested_header));
        im->nested_len = n->size - sizeof(*n);
        memcpy(im->nested_data, n + 1, im->nested_len);
    }
    free(n);
    return r;
}

static int apply_nested(const struct state_kvm *kvm, int fd, const struct vcpu_image *im, struct state_failure *f)
{
    size_t len = sizeof(struct kvm_nested_state) + im->nested_len;
    struct kvm_nested_state *n;
    int r;

    if (!im->has_nested)
        return 0;
    if (!kvm->nested) {
        /* A vCPU that could have run guests, but runs none, is one that cannot. */
        return im->nested_len == 0 ? 0 : state_kvm_fail(f, -ENOTSUP, "nested state");
    }
    n = calloc(1, len);
    if (!n)
        return state_kvm_fail(f, -ENOMEM, "nested state");
    n->flags = im->nested_flags;
    n->format = im->nested_format;
    n->size = (uint32_t)len;
    memcpy(n->hdr.pad, im->nested_header, sizeof(im->nested_header));
    memcpy(n + 1, im->nested_data, im->nested_len);
    r = CALL(fd, KVM_SET_NESTED_STATE, n, f);
    free(n);
    return r;
}

/* -- time -- */

static int get_tsc_offset(int fd, uint64_t *ret, struct state_failure *f)
{
    struct kvm_device_attr a = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)ret};

    return CALL(fd, KVM_GET_DEVICE_ATTR, &a, f);
}

static int set_tsc_offset(int fd, uint64_t offset, struct state_failure *f)
{
    struct kvm_device_attr a = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset};

    return CALL(fd, KVM_SET_DEVICE_ATTR, &a, f);
}

int vcpu_tsc_align(const struct state_kvm *kvm, const int *vcpu_fds, struct vcpu_image *images, unsigned int n,
                   struct state_failure *f)
{
    uint64_t first_offset, offset, now = vcpu_image_msr(&images[0], MSR_TSC)->data;
    int r;

    if (!kvm->tsc_offset)
        return 0;
    r = get_tsc_offset(vcpu_fds[0], &first_offset, f);
    for (unsigned int i = 1; i < n && r == 0; i++) {
        r = get_tsc_offset(vcpu_fds[i], &offset, f);
        if (r == 0)
            vcpu_image_msr(&images[i], MSR_TSC)->data = now + offset - first_offset;
    }
    return r;
}

/*
 * KVM takes a write of a TSC that comes close to the others' as a try to synchronise them, and then sets something else;
 * an offset is set as it is given. Where there are none, the write is all there is.
 */
int vcpu_tsc_apply(const struct state_kvm *kvm, const int *vcpu_fds, const struct vcpu_image *images, unsigned int n,
                   struct state_failure *f)
{
    uint64_t now, offset;
    int r;

    for (unsigned int i = 0; !kvm->tsc_offset && i < n; i++) {
        r = apply_one_msr(vcpu_fds[i], &images[i], MSR_TSC, f);
        if (r < 0)
            return r;
    }
    if (!kvm->tsc_offset)
        return 0;
    r = get_tsc_offset(vcpu_fds[0], &offset, f);
    if (r == 0 && get_msr(vcpu_fds[0], MSR_TSC, &now) < 0)
        r = state_kvm_fail(f, -ENOENT, "TSC");
    for (unsigned int i = 0; i < n && r == 0; i++)
        r = set_tsc_offset(vcpu_fds[i], offset + vcpu_image_msr(&images[i], MSR_TSC)->data - now, f);
    return r;
}

int vcpu_try_tsc_khz(const struct state_kvm *kvm, int fd, const struct vcpu_image *im, struct state_failure *f)
{
    int now;

    if (!kvm->tsc_khz || im->tsc_khz == 0)
        return 0;
    now = CALL(fd, KVM_GET_TSC_KHZ, NULL, f);
    if (now < 0)
        return now;
    if (llabs((long long)im->tsc_khz - now) * 1000000 <= (long long)now * TSC_TOLERANCE_PPM)
        return 0;
    /* Without scaling KVM takes a higher frequency and drags the TSC after it in jumps: no guest should live with that. */
    if (kvm->tsc_scaling && ioctl(fd, KVM_SET_TSC_KHZ, (unsigned long)im->tsc_khz) == 0)
        return 0;
    snprintf(f->text, sizeof(f->text), "tsc_khz: the host runs at %d and cannot give %u", now, im->tsc_khz);
    return -ENOTSUP;
}

/* -- a vCPU -- */

static int capture(const struct state_kvm *kvm, int fd, struct vcpu_image *im, struct state_failure *f)
{
    int r = CALL(fd, KVM_GET_MP_STATE, &im->mp, f);

    if (r == 0)
        r = CALL(fd, KVM_GET_VCPU_EVENTS, &im->events, f);
    if (r == 0)
        r = CALL(fd, KVM_GET_REGS, &im->regs, f);
    if (r == 0)
        r = capture_sregs(kvm, fd, im, f);
    if (r == 0)
        r = CALL(fd, KVM_GET_DEBUGREGS, &im->debug, f);
    if (r == 0)
        r = capture_xsave(kvm, fd, im, f);
    if (r == 0 && kvm->xcrs)
        r = CALL(fd, KVM_GET_XCRS, &im->xcrs, f);
    if (r == 0)
        r = capture_nested(kvm, fd, im, f);
    if (r == 0)
        r = CALL(fd, KVM_GET_LAPIC, &im->lapic, f);
    if (r == 0)
        r = capture_cpuid(fd, im, f);
    if (r == 0 && kvm->tsc_khz) {
        r = CALL(fd, KVM_GET_TSC_KHZ, NULL, f);
        if (r >= 0)
            im->tsc_khz = (uint32_t)r;
    }
    return r < 0 ? r : capture_msrs(kvm, fd, im, f);
}

int vcpu_capture(const struct state_kvm *kvm, int vcpu_fd, struct vcpu_image *im, struct state_failure *f)
{
    int r;

    *im = (struct vcpu_image){0};
    r = capture(kvm, vcpu_fd, im, f);
    if (r < 0)
        vcpu_image_clear(im);
    return r;
}

int vcpu_apply(const struct state_kvm *kvm, int fd, const struct vcpu_image *im, struct state_failure *f)
{
    int r = apply_cpuid(fd, im, f);

    if (r == 0)
        r = vcpu_try_tsc_khz(kvm, fd, im, f);
    /* CR4.VMXE and nested state are refused without it. */
    if (r == 0)
        r = apply_one_msr(fd, im, MSR_FEATURE_CONTROL, f);
    if (r == 0)
        r = apply_sregs(kvm, fd, im, f);
    if (r == 0)
        r = apply_nested(kvm, fd, im, f);
    if (r == 0)
        r = CALL_SET(fd, KVM_SET_REGS, &im->regs, f);
    if (r == 0)
        r = apply_xsave(kvm, fd, im, f);
    if (r == 0 && kvm->xcrs && im->xcrs.nr_xcrs > 0)
        r = CALL_SET(fd, KVM_SET_XCRS, &im->xcrs, f);
    if (r == 0)
        r = CALL_SET(fd, KVM_SET_LAPIC, &im->lapic, f);
    return r < 0 ? r : apply_msrs(fd, im, f);
}

int vcpu_apply_timers(const struct state_kvm *kvm, int fd, const struct vcpu_image *im, struct state_failure *f)
{
    int r = CALL_SET(fd, KVM_SET_VCPU_EVENTS, &im->events, f);

    if (r == 0)
        r = CALL_SET(fd, KVM_SET_MP_STATE, &im->mp, f);
    if (r == 0)
        r = apply_one_msr(fd, im, MSR_TSC_DEADLINE, f);
    if (r == 0)
        r = CALL_SET(fd, KVM_SET_DEBUGREGS, &im->debug, f);
    /* Tell the guest that it was stopped, for its watchdogs' sake. KVM refuses where it uses no kvmclock. */
    if (r == 0 && kvm->clock_ctrl && ioctl(fd, KVM_KVMCLOCK_CTRL, 0) < 0 && errno != EINVAL)
        r = state_kvm_fail(f, -errno, "KVM_KVMCLOCK_CTRL");
    return r;
}
