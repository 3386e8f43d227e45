/* What ring 0 (kernel.c, start.S) and ring 3 (runtime.c) of a guest share. All memory is mapped for both. */
#ifndef GUEST_KERNEL_H
#define GUEST_KERNEL_H

#include <stdint.h>

#include "cpu.h"

#define RX_RING_SIZE 4096u

/* Bytes from the serial port: ring 0 moves head, ring 3 moves tail; both run freely. */
struct rx_ring {
    volatile uint32_t head;
    volatile uint32_t tail;
    volatile uint32_t dropped;
    char bytes[RX_RING_SIZE];
};

extern struct rx_ring rx_ring;

/* From start.S. */
extern uint32_t boot_kind, boot_info;
extern uint32_t ap_cpu;
extern uint64_t boot_gdt[], boot_idt[];
extern uint64_t boot_pml4[512], boot_pdpt[512];
extern const char ap_start[], ap_start_end[];
extern const char trap_stubs[], trap_wake[], trap_spurious[], trap_syscall[], trap_page_fault[];
extern uint64_t page_fault_address, page_fault_error;
extern void (*page_fault_handler)(uint64_t va, uint64_t error);
extern char kernel_stacks[], user_stacks[];

/* From the linker script. */
extern char image_start[], image_end[];

/* Non-zero when the UART interrupt and hlt serve SYS_WAIT, zero when it has to poll. */
extern volatile uint32_t kernel_irq_on;

/* True when PIT channel 0 answers, so that SYS_WAIT may sleep for a time. */
extern volatile uint32_t kernel_has_pit;

/* What a panic calls the guest. */
extern const char *kernel_guest_name;

/* Called from start.S. */
struct trap_frame;
void trap(struct trap_frame *frame);
uint64_t kernel_syscall(uint64_t a, uint64_t b, uint64_t c, uint64_t nr, uint64_t *iret_frame);

#endif
