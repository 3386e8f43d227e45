/*
 * The TSC's frequency. Under KVM its paravirtual clock tells it (the multiplier from cycles to nanoseconds);
 * elsewhere PIT channel 0 is counted down and the difference of a long and a short wait taken, so that the cost of
 * asking drops out. Cycles are only ever read in ring 3: where ring 0 is emulated, the two may differ by an offset.
 */
#include "runtime.h"

#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01u
#define KVM_SIGNATURE 0x40000000u
#define KVM_FEATURES 0x40000001u
#define KVM_FEATURE_CLOCKSOURCE2 (1u << 3)

#define PIT_HZ 1193182ul
#define PIT_SHORT 1193ul  /* 1 ms */
#define PIT_LONG 36989ul  /* 31 ms */

struct kvm_clock {
    volatile uint32_t version;
    uint32_t pad;
    uint64_t tsc, system_time;
    uint32_t mul;
    int8_t shift;
    uint8_t flags, pad2[2];
};

static uint64_t khz;

static uint64_t khz_from_kvmclock(void)
{
    static struct kvm_clock clock __attribute__((aligned(64)));
    uint64_t v;
    uint32_t r[4];

    syscall(SYS_CPUID, KVM_SIGNATURE, 0, (uint64_t)r);
    if (r[1] != 0x4b4d564b || r[2] != 0x564b4d56 || r[3] != 0x4d)
        return 0;
    syscall(SYS_CPUID, KVM_FEATURES, 0, (uint64_t)r);
    if (!(r[0] & KVM_FEATURE_CLOCKSOURCE2))
        return 0;
    syscall(SYS_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, (uint64_t)&clock | 1, 0);
    syscall(SYS_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, 0, 0);
    if (!clock.mul)
        return 0;
    /* ns = (cycles << shift) * mul / 2^32 */
    v = (1000000ul << 32) / clock.mul;
    return clock.shift < 0 ? v << -clock.shift : v >> clock.shift;
}

static uint64_t khz_from_pit(void)
{
    uint64_t t0 = rdtsc(), t1, t2;

    if (!syscall(SYS_PIT_WAIT, PIT_SHORT, 0, 0))
        return 0;
    t1 = rdtsc();
    if (!syscall(SYS_PIT_WAIT, PIT_LONG, 0, 0))
        return 0;
    t2 = rdtsc();
    return ((t2 - t1) - (t1 - t0)) * PIT_HZ / (PIT_LONG - PIT_SHORT) / 1000;
}

void clock_init(void)
{
    const char *how = "kvmclock";

    khz = khz_from_kvmclock();
    if (!khz) {
        how = "pit";
        khz = khz_from_pit();
    }
    if (!khz)
        fail("neither kvmclock nor the PIT gives the TSC frequency");
    print("%s: tsc khz=%lu by=%s\n", guest_name, khz, how);
}

uint64_t clock_khz(void)
{
    return khz;
}

uint64_t clock_us(uint64_t tsc_delta)
{
    return tsc_delta / khz * 1000 + tsc_delta % khz * 1000 / khz;
}
