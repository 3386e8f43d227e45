/* Constants that the assembly and the C half of the guests share. */
#ifndef GUEST_CPU_H
#define GUEST_CPU_H

#define SEL_KERNEL_CODE 0x08
#define SEL_KERNEL_DATA 0x10
#define SEL_BOOT_CODE32 0x18
#define SEL_USER_DATA 0x2b
#define SEL_USER_CODE 0x33
#define SEL_TSS(cpu) (0x40 + 16 * (cpu))

#define MAX_CPUS 32
#define STACK_SIZE 16384
#define KERNEL_STACK_SIZE 4096
#define TSS_SIZE 104

/* Where a started CPU begins, in real mode: page 8. */
#define AP_START_PAGE 8
#define AP_START_ADDR (AP_START_PAGE << 12)

/* Interrupt vectors. */
#define VEC_SYSCALL 3
#define VEC_PF 14
#define VEC_IRQ0 0x20
#define VEC_WAKE 0xf0
#define VEC_SPURIOUS 0xff
#define TRAP_STUB_SIZE 16
#define TRAP_STUBS 0x30

#define BOOT_PVH 1
#define BOOT_MULTIBOOT 2

#define COM1 0x3f8
#define EXIT_PORT 0xf4

/*
 * System calls are made with int3: number in rax, arguments in rdi, rsi, rdx, result in rax. A breakpoint is the one
 * software interrupt that also works where ring 3 runs natively but `int n` is left to an instruction emulator
 * without it (kvm_pvm).
 */
#define SYS_INIT 0     /* (flags) set up UART and PIC; INIT_IRQ: turn interrupts on */
#define SYS_WRITE 1    /* (buf, len) to the serial port */
#define SYS_POLL 2     /* () move what the serial port holds into the receive ring */
#define SYS_WAIT 3     /* (ns) sleep until input, an interrupt, or ns (0: for ever) */
#define SYS_HALT 4     /* () for ever */
#define SYS_EXIT 5     /* (code) through port 0xf4; returns where nothing listens there */
#define SYS_CR3 6      /* (root) load it */
#define SYS_INVLPG 7   /* (va) */
#define SYS_CPUID 8    /* (leaf, subleaf, uint32_t[4]) */
#define SYS_RDMSR 9    /* (msr) */
#define SYS_WRMSR 10   /* (msr, value) */
#define SYS_IN 11      /* (port) one byte */
#define SYS_OUT 12     /* (port, value) one byte */
#define SYS_PIT_WAIT 13 /* (ticks) busy wait on PIT channel 0; 1 when it worked */
#define SYS_START_CPU 14 /* (cpu) INIT and SIPI to the CPU with that APIC id */
#define SYS_WAKE_CPU 15  /* (cpu) */
#define SYS_WAIT_WORK 16 /* (const uint32_t *word, uint32_t old) sleep while *word == old */
#define SYS_COUNT 17

#define INIT_IRQ 1

#endif
