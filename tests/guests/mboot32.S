/* Entry of mboot32.elf: an ELF32 image whose program headers, not the multiboot header, say where it is loaded. */
    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002
    .long 3                             /* modules on page boundaries, memory information */
    .long -(0x1badb002 + 3)

    .text
    .code32
    .globl mboot_entry
mboot_entry:
    movl $stack_end, %esp
    cld
    pushl %ebx
    pushl %eax
    call mboot_main
1:  cli
    hlt
    jmp 1b

    .bss
    .balign 16
    .skip 8192
stack_end:

    .section .note.GNU-stack, "", @progbits
