/*
 * Ring 0 of the test guests: serial port, interrupt controllers, sleep, and the privileged instructions that ring 3
 * asks for. Where a host emulates ring 0 this runs at about a million instructions a second, so nothing here loops
 * over memory.
 *
 * Interrupts are taken in ring 3 and in the sti-hlt of SYS_WAIT only; everywhere else ring 0 runs with them off, so
 * one CPU needs no locking against itself. With several CPUs only the first one touches devices.
 */
#include "kernel.h"

#include <stddef.h>

#define UART_DATA (COM1 + 0)
#define UART_IER (COM1 + 1)
#define UART_IIR (COM1 + 2)
#define UART_FCR (COM1 + 2)
#define UART_LCR (COM1 + 3)
#define UART_MCR (COM1 + 4)
#define UART_LSR (COM1 + 5)
#define LSR_DATA 0x01
#define LSR_THR_EMPTY 0x20
#define UART_FIFO_SIZE 16

#define PIC1 0x20
#define PIC2 0xa0
#define PIC_EOI 0x20
#define IRQ_TIMER 0
#define IRQ_SERIAL 4

#define PIT_CH0 0x40
#define PIT_COMMAND 0x43
#define PIT_HZ 1193182ul

#define LAPIC 0xfee00000ul
#define LAPIC_EOI 0xb0
#define LAPIC_SPURIOUS 0xf0
#define LAPIC_LINT0 0x350
#define LVT_EXTINT 0x700
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ICR_HIGH 0x310
#define ICR_INIT 0x4500
#define ICR_STARTUP 0x4600
#define ICR_FIXED 0x4000

#define RFLAGS_IF 0x200ul

struct trap_frame {
    uint64_t r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
    uint64_t vector, error;
    uint64_t rip, cs, rflags, rsp, ss;
};

struct rx_ring rx_ring;
volatile uint32_t kernel_irq_on;
volatile uint32_t kernel_has_pit;
const char *kernel_guest_name = "guest";

static uint32_t uart_burst = 1;
static uint8_t pic1_mask = 0xff;

static inline uint8_t inb(uint16_t port)
{
    uint8_t v;

    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline void outb(uint16_t port, uint8_t v)
{
    __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static inline uint64_t read_cr2(void)
{
    uint64_t v;

    __asm__ volatile("movq %%cr2, %0" : "=r"(v));
    return v;
}

static inline uint32_t lapic_read(uint32_t reg)
{
    return *(volatile uint32_t *)(LAPIC + reg);
}

static inline void lapic_write(uint32_t reg, uint32_t v)
{
    *(volatile uint32_t *)(LAPIC + reg) = v;
}

/* -- serial port -------------------------------------------------------------- */

static void serial_init(void)
{
    outb(UART_IER, 0);
    outb(UART_LCR, 0x80);
    outb(UART_DATA, 1); /* 115200 baud */
    outb(UART_IER, 0);
    outb(UART_LCR, 0x03); /* 8N1 */
    outb(UART_FCR, 0x07); /* FIFOs on and empty */
    outb(UART_MCR, 0x0b); /* DTR, RTS, OUT2 (which lets the interrupt out) */
    uart_burst = (inb(UART_IIR) & 0xc0) == 0xc0 ? UART_FIFO_SIZE : 1;
}

/* An empty transmitter takes as many bytes as its FIFO has, so the status is read once for each such burst. */
static void serial_write(const char *buf, uint64_t len)
{
    const char *end = buf + len;

    while (buf < end) {
        const char *burst_end = end - buf > uart_burst ? buf + uart_burst : end;

        while (!(inb(UART_LSR) & LSR_THR_EMPTY))
            ;
        while (buf < burst_end)
            outb(UART_DATA, (uint8_t)*buf++);
    }
}

static void serial_drain(void)
{
    uint32_t head = rx_ring.head;

    while (inb(UART_LSR) & LSR_DATA) {
        char c = (char)inb(UART_DATA);

        if (head - rx_ring.tail < RX_RING_SIZE)
            rx_ring.bytes[head++ % RX_RING_SIZE] = c;
        else
            rx_ring.dropped++;
    }
    rx_ring.head = head;
}

static uint64_t serial_rx_used(void)
{
    return rx_ring.head - rx_ring.tail;
}

/* -- 8259 and 8254 --------------------------------------------------------------- */

/* Both controllers to vectors 0x20-0x2f, everything masked. */
static void pic_init(void)
{
    outb(PIC1, 0x11);
    outb(PIC2, 0x11);
    outb(PIC1 + 1, VEC_IRQ0);
    outb(PIC2 + 1, VEC_IRQ0 + 8);
    outb(PIC1 + 1, 4);
    outb(PIC2 + 1, 2);
    outb(PIC1 + 1, 1);
    outb(PIC2 + 1, 1);
    outb(PIC1 + 1, 0xff);
    outb(PIC2 + 1, 0xff);
}

/* Virtual wire mode of the MP specification: the local APIC on, its LINT0 pin passing the 8259's interrupts through. */
static void lapic_init(void)
{
    lapic_write(LAPIC_SPURIOUS, 0x100 | VEC_SPURIOUS);
    lapic_write(LAPIC_LINT0, LVT_EXTINT);
}

/* An absent controller reads back as 0xff, or as nothing that was written. */
static int pic_present(void)
{
    int present;

    outb(PIC1 + 1, 0xfa);
    present = inb(PIC1 + 1) == 0xfa;
    outb(PIC1 + 1, 0xff);
    return present;
}

static void pic_unmask(uint32_t irq)
{
    pic1_mask &= (uint8_t)~(1u << irq);
    outb(PIC1 + 1, pic1_mask);
}

/* Stop channel 0, which firmware may have left ticking; the status byte gives the mode back where there is a PIT. */
static void pit_init(void)
{
    outb(PIT_COMMAND, 0x30); /* channel 0, mode 0, no count: does not fire */
    outb(PIT_COMMAND, 0xe2); /* read back the status of channel 0 */
    kernel_has_pit = (inb(PIT_CH0) & 0x3f) == 0x30;
}

/* Fire IRQ 0 once after ns, or after the longest time that the counter holds (55 ms). */
static void pit_arm(uint64_t ns)
{
    uint64_t ticks = ns >= 54900000 ? 0xffff : ns * PIT_HZ / 1000000000;

    if (ticks == 0)
        ticks = 1;
    outb(PIT_COMMAND, 0x30);
    outb(PIT_CH0, (uint8_t)ticks);
    outb(PIT_CH0, (uint8_t)(ticks >> 8));
}

/* OUT of channel 0 goes high at the end of the count; the status byte shows it. */
static uint64_t pit_busy_wait(uint64_t ticks)
{
    uint32_t spins = 0;

    if (!kernel_has_pit)
        return 0;
    outb(PIT_COMMAND, 0x30);
    outb(PIT_CH0, (uint8_t)ticks);
    outb(PIT_CH0, (uint8_t)(ticks >> 8));
    do {
        if (++spins == 1000000)
            return 0;
        outb(PIT_COMMAND, 0xe2);
    } while (!(inb(PIT_CH0) & 0x80));
    return 1;
}

/* -- sleep and exit ---------------------------------------------------------------- */

static void halt_forever(void)
{
    for (;;)
        __asm__ volatile("sti\n\thlt\n\tcli" : : : "memory");
}

static void wait_for_event(uint64_t ns)
{
    if (!kernel_irq_on) {
        while (!(inb(UART_LSR) & LSR_DATA))
            ;
        serial_drain();
        return;
    }
    if (serial_rx_used())
        return;
    if (ns)
        pit_arm(ns);
    /* sti takes effect after hlt has begun, so an interrupt cannot slip in between. */
    __asm__ volatile("sti\n\thlt\n\tcli" : : : "memory");
}

static void wait_for_work(const volatile uint32_t *word, uint32_t old)
{
    lapic_write(LAPIC_SPURIOUS, 0x100 | VEC_SPURIOUS);
    while (*word == old)
        __asm__ volatile("sti\n\thlt\n\tcli" : : : "memory");
}

static void ipi(uint32_t cpu, uint32_t command)
{
    lapic_write(LAPIC_ICR_HIGH, cpu << 24);
    lapic_write(LAPIC_ICR_LOW, command);
    while (lapic_read(LAPIC_ICR_LOW) & 0x1000)
        ;
}

static uint64_t start_cpu(uint32_t cpu)
{
    ipi(cpu, ICR_INIT);
    ipi(cpu, ICR_STARTUP | AP_START_PAGE);
    return 0;
}

/* -- traps ------------------------------------------------------------------------ */

static void panic_text(const char *text)
{
    size_t n = 0;

    while (text[n])
        n++;
    serial_write(text, n);
}

static void panic_hex(const char *name, uint64_t v)
{
    char digits[16];

    for (int i = 15; i >= 0; i--, v >>= 4)
        digits[i] = "0123456789abcdef"[v & 15];
    panic_text(name);
    serial_write(digits, sizeof(digits));
}

static void panic(const struct trap_frame *f)
{
    panic_text(kernel_guest_name);
    panic_hex(": panic vector=0x", f->vector);
    panic_hex(" error=0x", f->error);
    panic_hex(" rip=0x", f->rip);
    panic_hex(" cs=0x", f->cs);
    panic_hex(" rsp=0x", f->rsp);
    panic_hex(" cr2=0x", read_cr2());
    panic_text("\n");
    outb(EXIT_PORT, 126);
    halt_forever();
}

void trap(struct trap_frame *frame)
{
    uint64_t vec = frame->vector;

    if (vec == VEC_WAKE) {
        lapic_write(LAPIC_EOI, 0);
        return;
    }
    if (vec < VEC_IRQ0 || vec >= VEC_IRQ0 + 16)
        panic(frame);
    if (vec == VEC_IRQ0 + IRQ_SERIAL)
        serial_drain();
    if (vec >= VEC_IRQ0 + 8)
        outb(PIC2, PIC_EOI);
    outb(PIC1, PIC_EOI);
}

static void init(uint64_t flags, uint64_t *iret_frame)
{
    serial_init();
    pic_init();
    pit_init();
    if (!(flags & INIT_IRQ) || !pic_present())
        return;
    lapic_init();
    kernel_irq_on = 1;
    pic_unmask(IRQ_SERIAL);
    if (kernel_has_pit)
        pic_unmask(IRQ_TIMER);
    outb(UART_IER, 0x01);
    iret_frame[2] |= RFLAGS_IF;
}

static uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;

    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return (uint64_t)hi << 32 | lo;
}

static void cpuid(uint32_t leaf, uint32_t sub, uint32_t *r)
{
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "0"(leaf), "2"(sub));
}

uint64_t kernel_syscall(uint64_t a, uint64_t b, uint64_t c, uint64_t nr, uint64_t *iret_frame)
{
    switch (nr) {
    case SYS_INIT:
        init(a, iret_frame);
        return 0;
    case SYS_WRITE:
        serial_write((const char *)a, b);
        return b;
    case SYS_POLL:
        serial_drain();
        return serial_rx_used();
    case SYS_WAIT:
        wait_for_event(a);
        return 0;
    case SYS_HALT:
        halt_forever();
        return 0;
    case SYS_EXIT:
        outb(EXIT_PORT, (uint8_t)a);
        return 0;
    case SYS_CR3:
        __asm__ volatile("movq %0, %%cr3" : : "r"(a) : "memory");
        return 0;
    case SYS_INVLPG:
        __asm__ volatile("invlpg (%0)" : : "r"(a) : "memory");
        return 0;
    case SYS_CPUID:
        cpuid((uint32_t)a, (uint32_t)b, (uint32_t *)c);
        return 0;
    case SYS_RDMSR:
        return rdmsr((uint32_t)a);
    case SYS_WRMSR:
        __asm__ volatile("wrmsr" : : "c"((uint32_t)a), "a"((uint32_t)b), "d"((uint32_t)(b >> 32)) : "memory");
        return 0;
    case SYS_IN:
        return inb((uint16_t)a);
    case SYS_OUT:
        outb((uint16_t)a, (uint8_t)b);
        return 0;
    case SYS_PIT_WAIT:
        return pit_busy_wait(a);
    case SYS_START_CPU:
        return start_cpu((uint32_t)a);
    case SYS_WAKE_CPU:
        ipi((uint32_t)a, ICR_FIXED | VEC_WAKE);
        return 0;
    case SYS_WAIT_WORK:
        wait_for_work((const volatile uint32_t *)a, (uint32_t)b);
        return 0;
    default:
        return UINT64_MAX;
    }
}
