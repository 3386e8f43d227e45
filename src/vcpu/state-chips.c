/* Images of the in-kernel interrupt controllers, the timer and the clock, and what vCPUs are told through the former. */
#include "config.h"

#include "vcpu/state-internal.h"

#include <asm/kvm_para.h>
#include <sys/ioctl.h>

#include "base/util.h"

/* An MSI to one LAPIC by its id, with the delivery mode ("remote read") that is KVM's own for a kick. */
#define MSI_ADDRESS(apic_id) (0xfee00000u | (uint32_t)(apic_id) << 12)
#define MSI_KICK (3u << 8)

static int get_chip(int vm_fd, uint32_t id, struct kvm_irqchip *chip, struct state_failure *f)
{
    *chip = (struct kvm_irqchip){.chip_id = id};
    return CALL(vm_fd, KVM_GET_IRQCHIP, chip, f);
}

int chips_capture(int vm_fd, struct chip_image *im, struct state_failure *f)
{
    static const uint32_t pics[] = {KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};
    struct kvm_clock_data clock = {0};
    struct kvm_irqchip chip;
    int r = 0;

    *im = (struct chip_image){0};
    for (size_t i = 0; i < ARRAY_SIZE(pics) && r == 0; i++) {
        r = get_chip(vm_fd, pics[i], &chip, f);
        if (r == 0)
            im->pic[i] = chip.chip.pic;
    }
    if (r == 0)
        r = get_chip(vm_fd, KVM_IRQCHIP_IOAPIC, &chip, f);
    if (r == 0)
        im->ioapic = chip.chip.ioapic;
    if (r == 0)
        r = CALL(vm_fd, KVM_GET_PIT2, &im->pit, f);
    if (r == 0)
        r = CALL(vm_fd, KVM_GET_CLOCK, &clock, f);
    im->clock = clock.clock;
    return r;
}

int chips_apply(int vm_fd, const struct chip_image *im, struct state_failure *f)
{
    struct kvm_irqchip pic[2] = {{.chip_id = KVM_IRQCHIP_PIC_MASTER, .chip.pic = im->pic[0]},
                                 {.chip_id = KVM_IRQCHIP_PIC_SLAVE, .chip.pic = im->pic[1]}};
    struct kvm_irqchip ioapic = {.chip_id = KVM_IRQCHIP_IOAPIC, .chip.ioapic = im->ioapic};
    int r;

    /* The timer first: one that still runs could raise its line in a chip that has just been loaded. */
    r = CALL_SET(vm_fd, KVM_SET_PIT2, &im->pit, f);
    for (size_t i = 0; i < ARRAY_SIZE(pic) && r == 0; i++)
        r = CALL(vm_fd, KVM_SET_IRQCHIP, &pic[i], f);
    /* Last, as it passes on what it has pending to LAPICs, which are loaded by now. */
    if (r == 0)
        r = CALL(vm_fd, KVM_SET_IRQCHIP, &ioapic, f);
    return r;
}

int clock_apply(int vm_fd, uint64_t ns, struct state_failure *f)
{
    /* Without flags: the clock goes on from there, also when real time has gone further. */
    struct kvm_clock_data clock = {.clock = ns};

    return CALL(vm_fd, KVM_SET_CLOCK, &clock, f);
}

/* -- kicks -- */

static bool waits_for_kicks(const struct vcpu_image *im)
{
    for (uint32_t i = 0; i < im->cpuid_count; i++)
        if (im->cpuid[i].function == KVM_CPUID_FEATURES)
            return im->cpuid[i].eax & 1u << KVM_FEATURE_PV_UNHALT;
    return false;
}

void vcpu_kick_again(int vm_fd, unsigned int apic_id, const struct vcpu_image *im)
{
    struct kvm_msi msi = {.address_lo = MSI_ADDRESS(apic_id), .data = MSI_KICK};

    if (im->mp.mp_state == KVM_MP_STATE_RUNNABLE && waits_for_kicks(im))
        (void)ioctl(vm_fd, KVM_SIGNAL_MSI, &msi);
}
