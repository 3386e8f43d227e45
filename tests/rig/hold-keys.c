/*
 * Keep KVM's code as it is: hold what has the kernel patch it when the first VM of a kind comes and the last one goes.
 *
 * QEMU 7.2's TCG with several threads may go on running code that another CPU has just patched: on an int3 that is not there
 * any more, a CPU takes the trap for ever, and the rig's machine stands still. These static keys of the kernel (6.1) are
 * switched by VMs: preempt_notifier_key (any VM), kvm_has_noapic_vcpu (a vCPU without a local APIC in the kernel),
 * apic_sw_disabled (one whose APIC nobody has switched on yet, as each starts) and apic_hw_disabled (one whose APIC base says
 * that there is none). Two VMs that never run hold all four. They come while one CPU alone is online, and go so on SIGTERM: those
 * are the times when the code is patched.
 *
 * hold-keys: prints its process id once it holds them, and lives until SIGTERM. Exit status 1: what KVM refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define APIC_BASE_ENABLE (1u << 11)
/* KVM lets go of its keys for APICs a second after their last vCPU. */
#define DEFERRED_US 1500000

static int fds[5];
static unsigned int fd_count;

static int refused(const char *what)
{
    fprintf(stderr, "hold-keys: %s: %s\n", what, strerror(errno));
    return 1;
}

/* All CPUs but the first; there is none, or it cannot be switched: then that is how it is. */
static void set_other_cpus(bool online)
{
    char path[64];

    for (unsigned int i = 1; i < 64; i++) {
        int fd;

        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/online", i);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0)
            return;
        if (write(fd, online ? "1" : "0", 1) != 1)
            refused(path);
        close(fd);
    }
}

static int keep(int fd)
{
    if (fd >= 0)
        fds[fd_count++] = fd;
    return fd;
}

static void let_go(void)
{
    set_other_cpus(false);
    while (fd_count > 0)
        close(fds[--fd_count]);
    usleep(DEFERRED_US);
    set_other_cpus(true);
}

static void on_term(int sig)
{
    let_go();
    _exit(0);
}

static int hold(int kvm, bool lapic)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP};
    struct kvm_sregs sregs;
    int vm = keep(ioctl(kvm, KVM_CREATE_VM, 0));
    int vcpu;

    if (vm < 0)
        return refused("KVM_CREATE_VM");
    if (lapic && ioctl(vm, KVM_ENABLE_CAP, &cap) < 0)
        return refused("KVM_CAP_SPLIT_IRQCHIP");
    vcpu = keep(ioctl(vm, KVM_CREATE_VCPU, 0));
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
    int kvm, r;

    if (!getenv("UMBRA_RIG")) {
        fprintf(stderr, "hold-keys: for the rig only: it takes CPUs offline\n");
        return 1;
    }
    kvm = keep(open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (kvm < 0)
        return refused("/dev/kvm");
    set_other_cpus(false);
    r = hold(kvm, true);
    if (r == 0)
        r = hold(kvm, false);
    set_other_cpus(true);
    if (r != 0)
        return r;
    signal(SIGTERM, on_term);
    if (printf("%d\n", (int)getpid()) < 0 || fflush(stdout) != 0)
        return refused("stdout");
    for (;;)
        pause();
}
