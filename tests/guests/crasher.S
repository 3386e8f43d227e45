/*
 * A multiboot guest that cannot go on, in the way that the last character of its command line says:
 *   i  it jumps to where there is no memory: KVM cannot fetch the instruction and gives up (internal error)
 *   t  it takes a fault without an interrupt table: a triple fault, which is a reset
 */
	.section .text
	.code32
	.balign 4
	.long 0x1badb002
	.long 0
	.long -0x1badb002

	.globl start
start:
	movl 16(%ebx), %esi
1:	lodsb
	testb %al, %al
	jnz 1b
	cmpb $'t', -2(%esi)
	je 2f
	movl $0xd8000000, %eax
	jmp *%eax
2:	lidt no_table
	ud2

	.balign 4
no_table:
	.word 0
	.long 0
