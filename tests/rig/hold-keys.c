/*
 * Keep KVM's code as it is: hold what has the kernel patch it when the first VM of a kind comes and the last one goes.
 *
 * QEMU 7.2's TCG with several threads may go on running code that another CPU has just patched: on an int3 that is not there
 * any more, a CPU takes the trap for ever, and the rig's machine stands still. These static keys of the kernel (6.1) are
 * switched by VMs: preempt_notifier_key (any VM), kvm_has_noapic_vcpu (a vCPU without a local APIC in the kernel),
 * apic_sw_disabled (one whose APIC nobody has switched on yet, as each starts) and apic_hw_disabled (one whose APIC base says
 * that there is none). Two VMs that never run hold all four.
 *
 * hold-keys: prints its process id once it holds them, and lives until it is killed. Exit status 1: what KVM refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define APIC_BASE_ENABLE (1u << 11)

static int refused(const char *what)
{
    fprintf(stderr, "hold-keys: %s: %s\n", what, strerror(errno));
    return 1;
}

static int hold(int kvm, bool lapic)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP};
    struct kvm_sregs sregs;
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    int vcpu;

    if (vm < 0)
        return refused("KVM_CREATE_VM");
    if (lapic && ioctl(vm, KVM_ENABLE_CAP, &cap) < 0)
        return refused("KVM_CAP_SPLIT_IRQCHIP");
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    if (vcpu < 0)
        return refused("KVM_CREATE_VCPU");
    if (!lapic)
        return 0;
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
        return refused("KVM_GET_SREGS");
    sregs.apic_base &= ~(__u64)APIC_BASE_ENABLE;
    return ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 ? refused("KVM_SET_SREGS") : 0;
}

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (kvm < 0)
        return refused("/dev/kvm");
    if (hold(kvm, true) != 0 || hold(kvm, false) != 0)
        return 1;
    if (printf("%d\n", (int)getpid()) < 0 || fflush(stdout) != 0)
        return refused("stdout");
    for (;;)
        pause();
}
