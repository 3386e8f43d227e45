#include "config.h"

#include "vcpu/state.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "vcpu/state-internal.h"
#include "vcpu/vm-internal.h"

#define ADVANCE_MAX_NS (31 * 86400 * NSEC_PER_SEC)

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

static int apply_all(const struct vm_image *im, unsigned int *vcpu, struct state_failure *f)
{
    int r = 0;

    for (*vcpu = 0; *vcpu < im->cpus && r == 0; ++*vcpu) {
        r = vcpu_apply(&im->kvm, im->fds[*vcpu], &im->vcpus[*vcpu], f);
        if (r < 0)
            return r;
    }
    r = vcpu_tsc_apply(&im->kvm, im->fds, im->vcpus, im->cpus, f);
    if (r < 0)
        return r;
    for (*vcpu = 0; *vcpu < im->cpus; ++*vcpu) {
        r = vcpu_apply_timers(&im->kvm, im->fds[*vcpu], &im->vcpus[*vcpu], f);
        if (r < 0)
            return r;
    }
    return chips_apply(im->kvm.vm_fd, &im->chips, f);
}

/* Let guest time go on since it was read. A clock of the peer's that makes no sense is held to a month. */
static void advance_time(struct vm_image *im, uint64_t captured_ns)
{
    uint64_t now = clock_ns(), ns = captured_ns == 0 || captured_ns > now ? 0 : MIN(now - captured_ns, ADVANCE_MAX_NS);

    for (unsigned int i = 0; i < im->cpus; i++)
        vcpu_image_msr(&im->vcpus[i], MSR_TSC)->data += (uint64_t)((unsigned __int128)ns * im->vcpus[i].tsc_khz / 1000000);
    im->chips.clock += ns;
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
            advance_time(&im, captured_ns);
            err = apply_all(&im, &vcpu, &f);
            if (err < 0 && vcpu < vm->cpus)
                state_bad(r, NULL, "vcpu %u: %s", vcpu, f.text);
            else if (err < 0)
                state_bad(r, NULL, "%s", f.text);
        }
    }
    vm_image_clear(&im);
    return err;
}
