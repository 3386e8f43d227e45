/*
 * More CPUs: started with INIT and SIPI through the local APIC (APIC ids 0 to n - 1 are taken for granted), each
 * waiting in hlt for a work number to change.
 */
#include "runtime.h"

#define START_SECONDS 10

static struct {
    unsigned int cpus;
    volatile uint32_t online; /* CPUs that have come up after the first */
    volatile uint32_t serial; /* number of the present work */
    volatile uint32_t left;   /* CPUs that have not finished it */
    void (*work)(void *arg, unsigned int cpu);
    void *arg;
} smp = {.cpus = 1};

static uint8_t tss[MAX_CPUS][TSS_SIZE] __attribute__((aligned(8)));

void runtime_ap_main(void) __attribute__((noreturn));

/* Task state segment of a CPU: all it serves for is the ring-0 stack. */
static void tss_init(unsigned int cpu)
{
    uint64_t *gdt = (uint64_t *)((char *)boot_gdt + SEL_TSS(cpu));
    uint64_t base = (uint64_t)tss[cpu];
    uint64_t stack = (uint64_t)kernel_stacks + KERNEL_STACK_SIZE * (cpu + 1);

    memcpy(tss[cpu] + 4, &stack, sizeof(stack));
    tss[cpu][TSS_SIZE - 2] = TSS_SIZE;
    gdt[0] = (TSS_SIZE - 1) | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
    gdt[1] = base >> 32;
}

void runtime_ap_main(void)
{
    unsigned int cpu = ap_cpu;
    uint32_t seen = smp.serial;

    __atomic_add_fetch(&smp.online, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        syscall(SYS_WAIT_WORK, (uint64_t)&smp.serial, seen, 0);
        seen = smp.serial;
        smp.work(smp.arg, cpu);
        __atomic_sub_fetch(&smp.left, 1, __ATOMIC_SEQ_CST);
    }
}

void smp_start(unsigned int n)
{
    if (n == 1)
        return;
    if (!kernel_irq_on)
        fail("cpus=%u needs interrupts", n);
    if (!memory_is_ram(AP_START_ADDR, PAGE_SIZE))
        fail("no RAM at 0x%x, where further cpus start", AP_START_ADDR);
    memcpy((void *)AP_START_ADDR, ap_start, (size_t)(ap_start_end - ap_start));
    for (unsigned int cpu = 1; cpu < n; cpu++) {
        uint64_t start = rdtsc();

        tss_init(cpu);
        ap_cpu = cpu;
        syscall(SYS_START_CPU, cpu, 0, 0);
        while (smp.online < cpu) {
            if (rdtsc() - start > START_SECONDS * 1000 * clock_khz())
                fail("cpu %u did not start", cpu);
            cpu_relax();
        }
    }
    smp.cpus = n;
}

unsigned int smp_cpus(void)
{
    return smp.cpus;
}

void smp_run(void (*work)(void *arg, unsigned int cpu), void *arg)
{
    if (smp.cpus > 1) {
        smp.work = work;
        smp.arg = arg;
        smp.left = smp.cpus - 1;
        __atomic_add_fetch(&smp.serial, 1, __ATOMIC_SEQ_CST);
        for (unsigned int cpu = 1; cpu < smp.cpus; cpu++)
            syscall(SYS_WAKE_CPU, cpu, 0, 0);
    }
    work(arg, 0);
    while (smp.left)
        cpu_relax();
}
