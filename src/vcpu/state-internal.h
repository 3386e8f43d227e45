/* A vCPU's state between KVM's structures and named fields; what the files vcpu/state*.c share. */
#ifndef UMBRA_VCPU_STATE_INTERNAL_H
#define UMBRA_VCPU_STATE_INTERNAL_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/state.h"

#define VCPU_STATE_VERSION 1u
#define MSR_TSC 0x10u
#define MSR_FEATURE_CONTROL 0x3au
#define MSR_TSC_DEADLINE 0x6e0u

/* What bounds the tables that a loaded state makes us allocate. */
#define VCPU_MAX_MSRS 1024u
#define VCPU_MAX_CPUID 256u
#define VCPU_XSAVE_MIN 576u /* the legacy area and the header */
#define VCPU_XSAVE_MAX (64u << 10)
#define VCPU_NESTED_MAX (1u << 20)

struct vcpu_image {
    struct kvm_mp_state mp;
    struct kvm_vcpu_events events;
    struct kvm_regs regs;
    struct kvm_sregs2 sregs;
    struct kvm_debugregs debug;
    struct kvm_xcrs xcrs;
    struct kvm_lapic_state lapic;
    uint32_t tsc_khz;
    bool has_nested;
    uint16_t nested_flags, nested_format;
    uint8_t nested_header[sizeof(((struct kvm_nested_state *)0)->hdr.pad)];
    uint8_t *nested_data;
    size_t nested_len;
    uint8_t *xsave;
    size_t xsave_len;
    struct kvm_msr_entry *msrs; /* by index, ascending */
    uint32_t msr_count;
    struct kvm_cpuid_entry2 *cpuid;
    uint32_t cpuid_count;
};

/* Release what an image points to; a zeroed image is fine. */
void vcpu_image_clear(struct vcpu_image *im);
struct kvm_msr_entry *vcpu_image_msr(const struct vcpu_image *im, uint32_t index);

/* state-fields.c: as fields of the open section, and from section s. On failure the image holds nothing to release. */
void vcpu_image_put(const struct vcpu_image *im, struct state_writer *w);
int vcpu_image_get(struct vcpu_image *im, struct state_reader *r, const struct state_section *s);

/* The in-kernel chips and the clock, likewise; their sections as named in vcpu/state.h. */
struct chip_image {
    struct kvm_pic_state pic[2];
    struct kvm_ioapic_state ioapic;
    struct kvm_pit_state2 pit;
    uint64_t clock; /* kvmclock, nanoseconds */
};
void chip_image_put(const struct chip_image *im, struct state_writer *w);
int chip_image_get(struct chip_image *im, struct state_reader *r);

/* -- state-kvm.c: between an image and KVM -- */

/* What of the VM's KVM the functions below need to know. */
struct state_kvm {
    int vm_fd;
    bool sregs2, xcrs, tsc_khz, tsc_scaling, nested, clock_ctrl;
    bool tsc_offset;     /* the TSC's offset can be set by itself */
    size_t xsave_len;    /* bytes of KVM's XSAVE area */
    size_t nested_len;   /* most bytes of nested state, 0 without */
    uint32_t *msrs;      /* indexes to save, ascending */
    uint32_t msr_count;
};

/* Which ioctl failed, or what about a value was refused; for the log or a reader's error. */
struct state_failure {
    char text[128];
};

/* Failure `err` (-errno) of `what`; returns err. */
int state_kvm_fail(struct state_failure *f, int err, const char *what);
/* ioctl(2), returning -errno, with *f told which. */
int state_kvm_call(int fd, unsigned long request, void *arg, const char *name, struct state_failure *f);
#define CALL(fd, request, arg, f) state_kvm_call(fd, request, arg, #request, f)
/* KVM's requests that only set are declared to read. */
#define CALL_SET(fd, request, arg, f) state_kvm_call(fd, request, (void *)(uintptr_t)(arg), #request, f)

/* vcpu_fd may be that of any vCPU of the VM. 0 (release with state_kvm_clear), -ENOMEM, or -errno. */
int state_kvm_init(struct state_kvm *kvm, int kvm_fd, int vm_fd, int vcpu_fd, struct state_failure *f);
void state_kvm_clear(struct state_kvm *kvm);

/* Read one vCPU. The TSC in it is that of the moment; vcpu_tsc_align puts all of a VM to one instant. */
int vcpu_capture(const struct state_kvm *kvm, int vcpu_fd, struct vcpu_image *im, struct state_failure *f);
int vcpu_tsc_align(const struct state_kvm *kvm, const int *vcpu_fds, struct vcpu_image *images, unsigned int n,
                   struct state_failure *f);

/*
 * Load one vCPU: first everything that does not depend on time, then, with the TSCs of all set, the rest.
 */
int vcpu_apply(const struct state_kvm *kvm, int vcpu_fd, const struct vcpu_image *im, struct state_failure *f);
int vcpu_tsc_apply(const struct state_kvm *kvm, const int *vcpu_fds, const struct vcpu_image *images, unsigned int n,
                   struct state_failure *f);
int vcpu_apply_timers(const struct state_kvm *kvm, int vcpu_fd, const struct vcpu_image *im, struct state_failure *f);

/* For a comparison: the value of one MSR, the TSC's frequency, on a vCPU that is to be loaded afterwards. */
bool state_kvm_feature_msr(int kvm_fd, uint32_t index);
/* The table as the vCPU has it; *ret is the caller's to free. */
int vcpu_get_cpuid(int vcpu_fd, struct kvm_cpuid2 **ret, struct state_failure *f);
int vcpu_try_msr(int vcpu_fd, const struct kvm_msr_entry *e, struct state_failure *f);
int vcpu_try_tsc_khz(const struct state_kvm *kvm, int vcpu_fd, const struct vcpu_image *im, struct state_failure *f);

/* -- state-chips.c -- */

int chips_capture(int vm_fd, struct chip_image *im, struct state_failure *f);
/* All but the clock, which is set by itself. */
int chips_apply(int vm_fd, const struct chip_image *im, struct state_failure *f);
int clock_apply(int vm_fd, uint64_t ns, struct state_failure *f);

/*
 * A guest whose vCPU waits for a spinlock halts it, with interrupts off, until another kicks it (KVM_HC_KICK_CPU in the
 * kernel's virt/kvm/x86/hypercalls.rst). KVM keeps a kick that comes before the HLT, but tells nobody of it: saved just
 * then, the vCPU would halt for ever. So each that ran gets one, its chips loaded, and returns from its next HLT at once,
 * which those that halt expect. One that was halted has had none: KVM would have told it to be running. The vCPU's LAPIC
 * may be off; then no kick of the guest's can have come either, and this one goes nowhere.
 */
void vcpu_kick_again(int vm_fd, unsigned int apic_id, const struct vcpu_image *im);

#endif
