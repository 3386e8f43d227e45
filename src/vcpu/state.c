#include "config.h"

#include "vcpu/state.h"

#include <asm/kvm_para.h>
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "mmu/mem.h"
#include "vcpu/state-internal.h"
#include "vcpu/vm-internal.h"

/* A clock of the peer's that makes no sense is held to a month. */
#define ADVANCE_MAX_NS (31 * 86400 * NSEC_PER_SEC)
/* struct pvclock_wall_clock, see "MSR_KVM_WALL_CLOCK_NEW" in the kernel's virt/kvm/x86/msr.rst: version, seconds, nanoseconds. */
#define WALL_CLOCK_SIZE 12u

/* All vCPUs of a VM while their state is on its way. */
struct vm_image {
    struct state_kvm kvm;
    unsigned int cpus;
    int fds[VM_MAX_VCPUS];
    struct vcpu_image *vcpus;
    struct chip_image chips;
};

static void vm_image_clear(struct vm_image *im)
{
    for (unsigned int i = 0; im->vcpus && i < im->cpus; i++)
        vcpu_image_clear(&im->vcpus[i]);
    free(im->vcpus);
    state_kvm_clear(&im->kvm);
}

static int vm_image_init(struct vm_image *im, struct vm *vm, struct state_failure *f)
{
    *im = (struct vm_image){.cpus = vm->cpus};
    for (unsigned int i = 0; i < vm->cpus; i++)
        im->fds[i] = vm->vcpus[i]->fd;
    im->vcpus = calloc(vm->cpus, sizeof(*im->vcpus));
    if (!im->vcpus) {
        snprintf(f->text, sizeof(f->text), "no memory for the state of %u vcpus", vm->cpus);
        return -ENOMEM;
    }
    return state_kvm_init(&im->kvm, vm->kvm_fd, vm->fd, im->fds[0], f);
}

static int capture_all(struct vm_image *im, struct state_failure *f)
{
    int r = 0;

    for (unsigned int i = 0; i < im->cpus && r == 0; i++)
        r = vcpu_capture(&im->kvm, im->fds[i], &im->vcpus[i], f);
    if (r == 0)
        r = vcpu_tsc_align(&im->kvm, im->fds, im->vcpus, im->cpus, f);
    return r < 0 ? r : chips_capture(im->kvm.vm_fd, &im->chips, f);
}

int vm_state_save(struct vm *vm, struct state_writer *w)
{
    struct state_failure f = {""};
    struct vm_image im;
    int r = vm_image_init(&im, vm, &f);

    if (r == 0)
        r = capture_all(&im, &f);
    if (r < 0) {
        log_err("kvm: cannot save its state: %s", f.text);
    } else {
        for (unsigned int i = 0; i < im.cpus; i++) {
            state_begin(w, "vcpu", i, VCPU_STATE_VERSION);
            vcpu_image_put(&im.vcpus[i], w);
            state_end(w);
        }
        chip_image_put(&im.chips, w);
    }
    vm_image_clear(&im);
    return r;
}

static int read_all(struct vm_image *im, struct state_reader *r)
{
    const struct state_section *s;
    int err = 0;

    for (unsigned int i = 0; i < im->cpus && err == 0; i++) {
        err = state_open(r, "vcpu", i, VCPU_STATE_VERSION, &s);
        if (err == 0)
            err = vcpu_image_get(&im->vcpus[i], r, s);
    }
    if (err == 0 && state_find(r, "vcpu", im->cpus))
        err = state_bad(r, NULL, "the state has more vcpus than the %u of this VM", im->cpus);
    return err < 0 ? err : chip_image_get(&im->chips, r);
}

/* -- loading -- */

/* By either of its names: where in guest memory KVM says what time it was when the guest started. */
static const uint32_t wall_clock_msrs[] = {MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_NEW};

struct wall_clock {
    gpa_t gpa;
    uint8_t bytes[WALL_CLOCK_SIZE];
    bool there;
};

/* The address is what the state says: where there is no RAM nothing is kept, and KVM writes nothing. */
static void keep_wall_clock(const struct mem *mem, const struct vcpu_image *im, uint32_t index, struct wall_clock *ret)
{
    const struct kvm_msr_entry *e = vcpu_image_msr(im, index);

    ret->gpa = e ? e->data : 0;
    ret->there = ret->gpa != 0 && mem_read(mem, ret->gpa, ret->bytes, sizeof(ret->bytes)) == 0;
}

/*
 * KVM writes the wall clock whenever the MSR is set. It has been there since the guest asked for it, and comes with its
 * memory: written anew it would differ from the source's, and be the time of a start that never was.
 */
static int apply_vcpu(const struct vm_image *im, unsigned int i, struct mem *mem, struct state_failure *f)
{
    struct wall_clock kept[ARRAY_SIZE(wall_clock_msrs)];
    int r;

    for (size_t k = 0; k < ARRAY_SIZE(kept); k++)
        keep_wall_clock(mem, &im->vcpus[i], wall_clock_msrs[k], &kept[k]);
    r = vcpu_apply(&im->kvm, im->fds[i], &im->vcpus[i], f);
    for (size_t k = 0; k < ARRAY_SIZE(kept); k++)
        if (kept[k].there)
            (void)mem_write(mem, kept[k].gpa, kept[k].bytes, sizeof(kept[k].bytes));
    return r;
}

uint64_t vm_state_age(uint64_t captured_ns)
{
    uint64_t now = clock_ns();

    return captured_ns == 0 || captured_ns > now ? 0 : MIN(now - captured_ns, ADVANCE_MAX_NS);
}

/* Let TSCs go on since they were read. */
static void advance_tscs(struct vm_image *im, uint64_t captured_ns)
{
    uint64_t ns = vm_state_age(captured_ns);

    for (unsigned int i = 0; i < im->cpus; i++)
        vcpu_image_msr(&im->vcpus[i], MSR_TSC)->data += (uint64_t)((unsigned __int128)ns * im->vcpus[i].tsc_khz / 1000000);
}

/* To load takes time as well: every clock is told how old the state is when it is set, and no sooner. */
static int apply_all(struct vm_image *im, struct mem *mem, uint64_t captured_ns, unsigned int *vcpu, struct state_failure *f)
{
    int r = 0;

    for (*vcpu = 0; *vcpu < im->cpus && r == 0; ++*vcpu) {
        r = apply_vcpu(im, *vcpu, mem, f);
        if (r < 0)
            return r;
    }
    advance_tscs(im, captured_ns);
    r = vcpu_tsc_apply(&im->kvm, im->fds, im->vcpus, im->cpus, f);
    if (r < 0)
        return r;
    for (*vcpu = 0; *vcpu < im->cpus; ++*vcpu) {
        r = vcpu_apply_timers(&im->kvm, im->fds[*vcpu], &im->vcpus[*vcpu], f);
        if (r < 0)
            return r;
    }
    r = chips_apply(im->kvm.vm_fd, &im->chips, f);
    if (r == 0)
        r = clock_apply(im->kvm.vm_fd, im->chips.clock + vm_state_age(captured_ns), f);
    for (unsigned int i = 0; i < im->cpus && r == 0; i++)
        vcpu_kick_again(im->kvm.vm_fd, i, &im->vcpus[i]);
    return r;
}

int vm_state_load(struct vm *vm, struct state_reader *r, uint64_t captured_ns)
{
    struct state_failure f = {""};
    struct vm_image im;
    unsigned int vcpu = vm->cpus;
    int err = vm_image_init(&im, vm, &f);

    if (err < 0) {
        state_bad(r, NULL, "%s", f.text);
    } else {
        err = read_all(&im, r);
        if (err == 0) {
            /* A guest that is reset before it ran here leaves as much behind as one that ran. */
            vm->touched = true;
            err = apply_all(&im, vm->mem, captured_ns, &vcpu, &f);
            if (err < 0 && vcpu < vm->cpus)
                state_bad(r, NULL, "vcpu %u: %s", vcpu, f.text);
            else if (err < 0)
                state_bad(r, NULL, "%s", f.text);
        }
    }
    vm_image_clear(&im);
    return err;
}
