/*
 * Entry and traps of the test guests. A guest enters in 32-bit protected mode
 * (PVH or multiboot), goes to long mode with the first GiB mapped one to one
 * and drops to ring 3 at once: where ring 0 is emulated instruction by
 * instruction, what runs there is kept to a few dozen instructions. Tables
 * that need relocations the linker cannot do (IDT, TSS descriptors) are filled
 * in from ring 3, which may write all of memory.
 */
#include "cpu.h"

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x00010002      /* memory information; address fields */

#ifndef GUEST_MULTIBOOT_ONLY
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18                      /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_entry
#endif

    .section .multiboot, "a"
multiboot_header:
    .long MULTIBOOT_MAGIC
    .long MULTIBOOT_FLAGS
    .long -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
    .long multiboot_header
    .long image_start
    .long image_data_end
    .long image_end
    .long multiboot_entry

/* -- 32-bit ------------------------------------------------------------------ */

    .section .head.text, "ax"
    .code32
    .globl pvh_entry
    .weak early_text
pvh_entry:
    movl $BOOT_PVH, %edi
    jmp 1f
multiboot_entry:
    movl $BOOT_MULTIBOOT, %edi
1:  cld
    /* A guest may have something to say before anything else is done. */
    movl $early_text, %esi
    testl %esi, %esi
    jz 4f
    movl $COM1, %edx
    lodsb
2:  outb %al, %dx
    lodsb
    testb %al, %al
    jz 4f
    movb %al, %cl
    addl $5, %edx
3:  inb %dx, %al
    testb $0x20, %al
    jz 3b
    subl $5, %edx
    movb %cl, %al
    jmp 2b
4:  movl %edi, boot_kind
    movl %ebx, boot_info
    movl $boot_tss, %eax
    movw %ax, boot_gdt + SEL_TSS(0) + 2
    shrl $16, %eax
    movb %al, boot_gdt + SEL_TSS(0) + 4
    movb %ah, boot_gdt + SEL_TSS(0) + 7
    lgdt gdt_pointer
    movl $0x80000001, %eax
    cpuid
    xorl %edi, %edi                     /* cpu 0 */
    movl %edx, %ebp
    jmp enter_long_mode

    /* In: edi cpu number, ebp CPUID 0x80000001 EDX. */
enter_long_mode:
    movl %cr4, %eax
    orl $0x20, %eax                     /* PAE */
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax                    /* LME */
    testl $(1 << 20), %ebp
    jz 1f
    orl $0x800, %eax                    /* NXE */
1:  wrmsr
    movl %cr0, %eax
    andl $~0x60000000, %eax             /* caches on */
    orl $0x80010001, %eax               /* PG, WP, PE */
    movl %eax, %cr0
    ljmp $SEL_KERNEL_CODE, $long_mode

/* -- a started CPU: real mode at AP_START_ADDR --------------------------------- */

    .section .rodata
    .code16
    .globl ap_start, ap_start_end
ap_start:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $SEL_BOOT_CODE32, $ap_start32
    .balign 4
ap_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
ap_start_end:

    .text
    .code32
ap_start32:
    movl $SEL_KERNEL_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $0x80000001, %eax
    cpuid
    movl %edx, %ebp
    movl ap_cpu, %edi
    jmp enter_long_mode

/* -- 64-bit, ring 0 ------------------------------------------------------------ */

    .code64
    /* In: edi cpu number. Its ring-3 stack is the edi-th of user_stacks. */
long_mode:
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $SEL_USER_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    xorl %eax, %eax
    movl %eax, %ss
    lgdt gdt_pointer
    lidt idt_pointer
    movl %edi, %eax
    shll $4, %eax
    addl $SEL_TSS(0), %eax
    ltr %ax
    movl %edi, %ecx
    incl %ecx
    imull $STACK_SIZE, %ecx
    addq $user_stacks, %rcx
    movl $user_start, %edx
    testl %edi, %edi
    jz 1f
    movl $user_start_ap, %edx
1:  movl %edi, %eax
    incl %eax
    imull $KERNEL_STACK_SIZE, %eax
    addl $kernel_stacks, %eax
    movl %eax, %esp
    pushq $SEL_USER_DATA
    pushq %rcx
    pushq $2
    pushq $SEL_USER_CODE
    pushq %rdx
    xorl %ebp, %ebp
    iretq

    /* Every stub is TRAP_STUB_SIZE long. 8, 10-14, 17, 21, 29 and 30 come with an error code. */
    .balign TRAP_STUB_SIZE
    .globl trap_stubs
trap_stubs:
    .set vec, 0
    .rept TRAP_STUBS
    .balign TRAP_STUB_SIZE
    .if (vec != 8) && ((vec < 10) || (vec > 14)) && (vec != 17) && (vec != 21) && (vec != 29) && (vec != 30)
    pushq $0
    .endif
    pushq $vec
    jmp trap_common
    .set vec, vec + 1
    .endr

    .globl trap_wake, trap_spurious
trap_wake:
    pushq $0
    pushq $VEC_WAKE
    jmp trap_common

trap_spurious:
    iretq

trap_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    movq %rsp, %rdi
    call trap
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    /* The caller (syscall() in runtime.h) gives up what a C function may clobber. */
    .globl trap_syscall
trap_syscall:
    cld
    movq %rax, %rcx
    movq %rsp, %r8
    call kernel_syscall
    iretq

    /*
     * A page fault in ring 3 with a handler set goes back to ring 3 as if the
     * faulting instruction had called page_fault_upcall: rip and rflags are
     * pushed on its own stack, the address and error code left in memory.
     */
    .globl trap_page_fault
trap_page_fault:
    cmpq $0, page_fault_handler
    je 1f
    testb $4, (%rsp)
    jz 1f
    pushq %rax
    pushq %rdx
    movq %cr2, %rax
    movq %rax, page_fault_address
    movq 16(%rsp), %rax
    movq %rax, page_fault_error
    movq 48(%rsp), %rdx
    movq 24(%rsp), %rax
    movq %rax, -8(%rdx)
    movq 40(%rsp), %rax
    movq %rax, -16(%rdx)
    subq $16, %rdx
    movq %rdx, 48(%rsp)
    movq $page_fault_upcall, 24(%rsp)
    popq %rdx
    popq %rax
    addq $8, %rsp
    iretq
1:  pushq $VEC_PF
    jmp trap_common

/* -- ring 3 -------------------------------------------------------------------- */

page_fault_upcall:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    movq page_fault_address, %rdi
    movq page_fault_error, %rsi
    call *page_fault_handler
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    popfq
    ret

user_start:
    call runtime_main
    ud2

user_start_ap:
    call runtime_ap_main
    ud2

/* -- tables -------------------------------------------------------------------- */

    .section .data.page, "aw"
    .balign 4096
    .globl boot_pml4, boot_pdpt
boot_pml4:
    .quad boot_pdpt + 7
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 7
    .fill 511, 8, 0
boot_pd:
    .set frame, 0
    .rept 512
    .quad frame + 0x87                  /* present, writable, user, 2M */
    .set frame, frame + 0x200000
    .endr

    .data
    .balign 16
    .globl boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            /* 0x08 kernel code */
    .quad 0x00cf93000000ffff            /* 0x10 kernel data */
    .quad 0x00cf9b000000ffff            /* 0x18 32-bit code */
    .quad 0
    .quad 0x00cff3000000ffff            /* 0x28 user data */
    .quad 0x00affb000000ffff            /* 0x30 user code */
    .quad 0
    .quad 0x0000890000000000 + TSS_SIZE - 1
    .quad 0
    .fill 2 * (MAX_CPUS - 1), 8, 0
boot_gdt_end:
    .balign 8
gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt
    .balign 8
idt_pointer:
    .word 4095
    .quad boot_idt
    .balign 8
    .globl boot_tss
boot_tss:
    .long 0
    .quad kernel_stacks + KERNEL_STACK_SIZE
    .fill TSS_SIZE - 14, 1, 0
    .word TSS_SIZE                      /* no I/O bitmap */

    .globl boot_kind, boot_info, ap_cpu
boot_kind:
    .long 0
boot_info:
    .long 0
ap_cpu:
    .long 0
    .globl page_fault_handler, page_fault_address, page_fault_error
    .balign 8
page_fault_handler:
    .quad 0
page_fault_address:
    .quad 0
page_fault_error:
    .quad 0

    .section .bss.page, "aw", @nobits
    .balign 4096
    .globl boot_idt, user_stacks, kernel_stacks
boot_idt:
    .skip 4096
kernel_stacks:
    .skip KERNEL_STACK_SIZE * MAX_CPUS
user_stacks:
    .skip STACK_SIZE * MAX_CPUS

    .section .note.GNU-stack, "", @progbits
