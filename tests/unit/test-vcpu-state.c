/*
 * Save and load of vCPUs and in-kernel devices, proved on a guest at work: paused, saved, everything set to garbage,
 * loaded, and it must go on as if nothing had happened. Its work runs in ring 3 (which every KVM runs natively): integer,
 * SSE and x87 arithmetic whose result depends on every step, while the LAPIC's timer interrupts it.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <asm/kvm_para.h>
#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/state.h"
#include "base/util.h"
#include "mmu/mem.h"
#include "vcpu/state.h"
#include "vcpu/vcpu.h"
#include "vcpu/vm.h"

/* -- the guest -- */

#define CPUS 2u
#define MEM_SIZE (UINT64_C(16) << 20)
#define PML4 0x1000u
#define GDT 0x5000u
#define TSS(cpu) (0x5100u + (cpu)*0x100u)
#define IDT 0x6000u
#define CODE 0x8000u
#define DATA(cpu) (0x9000u + (cpu)*0x1000u)
#define KERNEL_STACK(cpu) (0xd000u + (cpu)*0x1000u)
#define TIMER_VECTOR 0x40u
#define CPUID_MAX 256u
#define MULTIPLIER UINT64_C(6364136223846793005)
#define INCREMENT UINT64_C(1442695040888963407)

/* What a vCPU and the test tell each other, at DATA(cpu); rdi points to it. */
struct mailbox {
    volatile uint64_t steps;
    volatile uint32_t stop;
    uint32_t pad;
    uint64_t rax, rbx;
    uint64_t xmm[2];
    int64_t x87;
    uint64_t steps_done;
    volatile uint32_t done;
    uint32_t pad2;
    volatile uint64_t ticks;
};

static_assert(offsetof(struct mailbox, stop) == 8 && offsetof(struct mailbox, xmm) == 32 &&
                  offsetof(struct mailbox, done) == 64 && offsetof(struct mailbox, ticks) == 72,
              "the guest's code has these offsets");

/* Registers at the start: rax 0, rbx 0, r8 0 (steps), r10 MULTIPLIER, r11 INCREMENT. */
__asm__(".pushsection .rodata\n"
        ".balign 16\n"
        "guest_code:\n"
        "    fninit\n"
        "    fld1\n"
        "    fldz\n"
        "    pxor %xmm0, %xmm0\n"
        "1:  imul %r10, %rax\n"
        "    add %r11, %rax\n"
        "    xor %rax, %rbx\n"
        "    rol $7, %rbx\n"
        "    movq %rax, %xmm1\n"
        "    movq %rbx, %xmm2\n"
        "    punpcklqdq %xmm2, %xmm1\n"
        "    paddq %xmm1, %xmm0\n"
        "    fadd %st(1), %st\n"
        "    inc %r8\n"
        "    mov %r8, (%rdi)\n"
        "    cmpl $0, 8(%rdi)\n"
        "    je 1b\n"
        "    mov %rax, 16(%rdi)\n"
        "    mov %rbx, 24(%rdi)\n"
        "    movdqu %xmm0, 32(%rdi)\n"
        "    fistpll 48(%rdi)\n"
        "    mov %r8, 56(%rdi)\n"
        "    movl $1, 64(%rdi)\n"
        "2:  pause\n"
        "    jmp 2b\n"
        ".balign 16\n"
        "guest_timer:\n"
        "    push %rax\n"
        "    incq 72(%rdi)\n"
        "    mov $0xfee000b0, %eax\n"
        "    movl $0, (%rax)\n"
        "    pop %rax\n"
        "    iretq\n"
        ".balign 16\n"
        "guest_halt:\n"
        "    hlt\n"
        "    movl $1, 64(%rdi)\n"
        "    jmp 2b\n"
        "guest_end:\n"
        ".popsection\n");

extern const uint8_t guest_code[], guest_timer[], guest_halt[], guest_end[];

static void put64(struct mem *mem, gpa_t gpa, uint64_t v)
{
    assert_int_equal(mem_write(mem, gpa, &v, sizeof(v)), 0);
}

/* Identity mapping of the first 2 MiB for all rings, and of the LAPIC for the kernel. */
static void write_tables(struct mem *mem)
{
    const uint64_t user = 7, present = 3, large = 0x80, uncached = 0x18;

    put64(mem, PML4, 0x2000 | user);
    put64(mem, 0x2000, 0x3000 | user);
    put64(mem, 0x3000, large | user);
    put64(mem, 0x2000 + 3 * 8, 0x4000 | present);
    put64(mem, 0x4000 + 0x1f7 * 8, UINT64_C(0xfee00000) | large | uncached | present);
}

static void write_guest(struct mem *mem)
{
    const uint64_t handler = CODE + (uint64_t)(guest_timer - guest_code);

    write_tables(mem);
    put64(mem, GDT + 0x08, UINT64_C(0x00af9b000000ffff)); /* kernel code */
    put64(mem, GDT + 0x10, UINT64_C(0x00cf93000000ffff)); /* kernel data */
    put64(mem, GDT + 0x18, UINT64_C(0x00cff3000000ffff)); /* user data */
    put64(mem, GDT + 0x20, UINT64_C(0x00affb000000ffff)); /* user code */
    for (unsigned int i = 0; i < CPUS; i++)
        put64(mem, TSS(i) + 4, KERNEL_STACK(i) + 0x1000);
    put64(mem, IDT + TIMER_VECTOR * 16, (handler & 0xffff) | UINT64_C(0x8) << 16 | UINT64_C(0x8e00) << 32);
    assert_int_equal(mem_write(mem, CODE, guest_code, (size_t)(guest_end - guest_code)), 0);
}

static struct kvm_segment segment(uint16_t selector, uint8_t type, uint8_t dpl, bool code)
{
    return (struct kvm_segment){.selector = selector, .type = type, .dpl = dpl, .present = 1, .s = 1, .g = 1,
                                .limit = 0xffffffff, .l = code, .db = !code};
}

static void set_lapic_reg(struct kvm_lapic_state *l, unsigned int reg, uint32_t value)
{
    memcpy(l->regs + reg, &value, sizeof(value));
}

static int ask(int fd, unsigned long request, void *arg)
{
    return ioctl(fd, request, arg) < 0 ? -errno : 0;
}
#define ASK(fd, request, arg) assert_int_equal(ask(fd, request, arg), 0)

/* A vCPU in the guest's ring 3, and its LAPIC's timer ticking. */
static void prepare_vcpu(struct vm *vm, unsigned int i)
{
    int fd = vcpu_fd(vm_vcpu(vm, i));
    struct kvm_mp_state mp = {KVM_MP_STATE_RUNNABLE};
    struct kvm_lapic_state lapic;
    struct kvm_sregs s;
    struct kvm_regs r = {.rip = CODE, .rflags = 0x202, .rdi = DATA(i), .r10 = MULTIPLIER, .r11 = INCREMENT + i * 2};

    ASK(fd, KVM_GET_SREGS, &s);
    s.cs = segment(0x23, 11, 3, true);
    s.ds = s.es = s.fs = s.gs = s.ss = segment(0x1b, 3, 3, false);
    s.tr = (struct kvm_segment){.selector = 0x28, .type = 11, .present = 1, .base = TSS(i), .limit = 0x67};
    s.gdt = (struct kvm_dtable){.base = GDT, .limit = 0x2f};
    s.idt = (struct kvm_dtable){.base = IDT, .limit = 0xfff};
    s.cr3 = PML4;
    s.cr4 = 0x620; /* PAE, OSFXSR, OSXMMEXCPT */
    s.cr0 = 0x80000033;
    s.efer = 0xd00; /* LME, LMA, NXE */
    ASK(fd, KVM_SET_SREGS, &s);
    ASK(fd, KVM_SET_REGS, &r);
    ASK(fd, KVM_SET_MP_STATE, &mp);
    ASK(fd, KVM_GET_LAPIC, &lapic);
    set_lapic_reg(&lapic, 0xf0, 0x1ff);                    /* enabled, spurious vector 0xff */
    set_lapic_reg(&lapic, 0x320, 1u << 17 | TIMER_VECTOR); /* periodic */
    set_lapic_reg(&lapic, 0x3e0, 0xb);                     /* divide by 1 */
    set_lapic_reg(&lapic, 0x380, 2000000);                 /* 2 ms */
    ASK(fd, KVM_SET_LAPIC, &lapic);
}

static struct mailbox *mailbox(struct mem *mem, unsigned int cpu)
{
    return mem_ptr(mem, DATA(cpu), sizeof(struct mailbox));
}

struct guest {
    struct mem *mem;
    struct vm *vm;
};

static void on_exit_unexpected(void *opaque, unsigned int vcpu, enum vm_exit_kind kind, const char *reason)
{
    fprintf(stderr, "vcpu%u: unexpected exit %d: %s\n", vcpu, kind, reason);
    abort();
}

static const char *kvm_path(void)
{
    const char *path = getenv("UMBRA_KVM");

    return path ? path : "/dev/kvm";
}

static void guest_new(struct guest *g)
{
    const struct mem_config mem_config = {.size = MEM_SIZE};
    const struct vm_config config = {
        .kvm_path = kvm_path(), .cpus = CPUS, .dirty_backend = DIRTY_BITMAP, .callbacks.on_exit = on_exit_unexpected};

    assert_int_equal(mem_new(&mem_config, &g->mem), 0);
    assert_int_equal(vm_new(&config, g->mem, &g->vm), 0);
}

static void guest_free(struct guest *g)
{
    vm_free(g->vm);
    mem_free(g->mem);
}

/* Wait until every vCPU has done `steps` more and has been interrupted; a minute at most. */
static void wait_for_progress(struct guest *g, uint64_t steps)
{
    uint64_t end = clock_ns() + 60 * NSEC_PER_SEC;

    for (unsigned int i = 0; i < CPUS; i++) {
        struct mailbox *m = mailbox(g->mem, i);
        uint64_t step_goal = m->steps + steps, tick_goal = m->ticks + 3;

        while (m->steps < step_goal || m->ticks < tick_goal) {
            if (clock_ns() > end)
                fail_msg("vcpu%u stands still at %llu steps, %llu ticks", i, (unsigned long long)m->steps,
                         (unsigned long long)m->ticks);
            sched_yield();
        }
    }
}

/* Let the guest come to its end, and hold what it reports against the same arithmetic done here. */
static void check_results(struct guest *g)
{
    uint64_t end = clock_ns() + 60 * NSEC_PER_SEC;

    for (unsigned int i = 0; i < CPUS; i++)
        mailbox(g->mem, i)->stop = 1;
    for (unsigned int i = 0; i < CPUS; i++) {
        struct mailbox *m = mailbox(g->mem, i);
        uint64_t rax = 0, rbx = 0, xmm[2] = {0, 0};

        while (!m->done) {
            if (clock_ns() > end)
                fail_msg("vcpu%u does not come to its end", i);
            sched_yield();
        }
        for (uint64_t n = 0; n < m->steps_done; n++) {
            rax = rax * MULTIPLIER + INCREMENT + i * 2;
            rbx ^= rax;
            rbx = rbx << 7 | rbx >> 57;
            xmm[0] += rax;
            xmm[1] += rbx;
        }
        print_message("# vcpu%u: %llu steps, %llu ticks\n", i, (unsigned long long)m->steps_done,
                      (unsigned long long)m->ticks);
        assert_true(m->rax == rax);
        assert_true(m->rbx == rbx);
        assert_true(m->xmm[0] == xmm[0] && m->xmm[1] == xmm[1]);
        assert_true((uint64_t)m->x87 == m->steps_done);
    }
}

/* -- state -- */

struct saved {
    uint8_t *data;
    size_t len;
    struct state_reader r;
};

static void save(struct vm *vm, struct saved *s)
{
    struct state_writer w;

    state_writer_init(&w);
    assert_int_equal(vm_state_save(vm, &w), 0);
    assert_int_equal(state_finish(&w, &s->data, &s->len), 0);
    if (state_reader_init(&s->r, s->data, s->len) < 0)
        fail_msg("%s", s->r.error);
}

static void saved_clear(struct saved *s)
{
    state_reader_clear(&s->r);
    free(s->data);
}

static void load(struct vm *vm, struct saved *s)
{
    int err = vm_state_load(vm, &s->r, 0);

    if (err < 0)
        fail_msg("%d: %s", err, s->r.error);
}

/* What goes on while a VM is paused: it is compared by itself, or not at all. */
static bool is_time(const char *section, const char *field)
{
    return (strcmp(section, "clock") == 0 && strcmp(field, "kvmclock") == 0) || strcmp(field, "msr.00000010") == 0;
}

/* The LAPIC's count-down (0x390) goes on too. */
static void hide_lapic_count(const char *field, const uint8_t *data, uint32_t len, uint8_t *copy)
{
    memcpy(copy, data, len);
    if (strcmp(field, "lapic") == 0)
        memset(copy + 0x390, 0, 4);
}

static unsigned int compare_section(struct saved *a, struct saved *b, const struct state_section *s)
{
    static uint8_t copy_a[65536], copy_b[65536];
    const struct state_section *other = state_find(&b->r, s->name, s->instance);
    char name[STATE_NAME_MAX + 1];
    const uint8_t *data, *same;
    uint32_t cursor = 0, len;
    unsigned int compared = 0;
    size_t same_len;

    assert_non_null(other);
    assert_int_equal(other->field_count, s->field_count);
    while (state_next_field(&a->r, s, "", &cursor, name, &data, &len)) {
        if (is_time(s->name, name))
            continue;
        assert_int_equal(state_get_blob(&b->r, other, name, sizeof(copy_b), &same, &same_len), 0);
        assert_int_equal(same_len, len);
        hide_lapic_count(name, data, len, copy_a);
        hide_lapic_count(name, same, len, copy_b);
        for (uint32_t i = 0; i < len; i++)
            if (copy_a[i] != copy_b[i])
                fail_msg("%s %u: %s differs at byte %u: %02x, then %02x", s->name, s->instance, name, i, copy_a[i],
                         copy_b[i]);
        compared++;
    }
    return compared;
}

static uint64_t saved_u64(struct saved *s, const char *section, uint32_t instance, const char *field)
{
    uint64_t v = 0;

    assert_int_equal(state_get_u64(&s->r, state_find(&s->r, section, instance), field, &v), 0);
    return v;
}

/* `later` must be what `first` was, but for time, which has gone on for no longer than it could have. */
static void compare(struct saved *first, struct saved *later, uint64_t elapsed_ns)
{
    uint64_t clock = saved_u64(later, "clock", 0, "kvmclock") - saved_u64(first, "clock", 0, "kvmclock"), tsc[CPUS];
    unsigned int compared = 0;
    uint32_t khz;

    assert_int_equal(first->r.count, later->r.count);
    for (uint32_t i = 0; i < first->r.count; i++)
        compared += compare_section(first, later, &first->r.sections[i]);
    assert_true(compared > CPUS * 100);
    if (clock > elapsed_ns)
        fail_msg("kvmclock went from %#llx by %lld ns in %llu", (long long)saved_u64(first, "clock", 0, "kvmclock"),
                 (long long)clock, (unsigned long long)elapsed_ns);
    assert_int_equal(state_get_bytes(&first->r, state_find(&first->r, "vcpu", 0), "tsc_khz", &khz, sizeof(khz)), 0);
    for (unsigned int i = 0; i < CPUS; i++) {
        tsc[i] = saved_u64(later, "vcpu", i, "msr.00000010") - saved_u64(first, "vcpu", i, "msr.00000010");
        /* All TSCs have gone on by the same, as they are of one instant. */
        assert_true(tsc[i] == tsc[0]);
    }
    if (khz && tsc[0] / khz > elapsed_ns / 1000000 + 1)
        fail_msg("the TSC went on by %llu", (unsigned long long)tsc[0]);
}

/* -- values that stand out, and garbage -- */

/* struct kvm_msrs with one entry. */
struct one_msr {
    uint32_t count, pad;
    struct kvm_msr_entry entry;
};

static void set_msr(int fd, uint32_t index, uint64_t value)
{
    struct one_msr m = {.count = 1, .entry = {.index = index, .data = value}};

    assert_int_equal(ioctl(fd, KVM_SET_MSRS, &m), 1);
}

#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_SYSENTER_EIP 0x176u

/* Registers the guest's work does not use, the chips and the clock: all get values that are not those of a reset. */
static void set_marks(struct vm *vm, uint64_t salt)
{
    struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
    struct kvm_pit_state2 pit;

    for (unsigned int i = 0; i < CPUS; i++) {
        int fd = vcpu_fd(vm_vcpu(vm, i));
        struct kvm_debugregs dr = {.db = {0x1000 + salt, 0x2000 + i, 0x3000, 0x4000}, .dr6 = 0xffff0ff0, .dr7 = 0x400};

        set_msr(fd, MSR_STAR, 0x0013000800000000 + salt);
        set_msr(fd, MSR_LSTAR, 0x7000 + salt);
        set_msr(fd, MSR_KERNEL_GS_BASE, 0x123456000 + salt);
        set_msr(fd, MSR_SYSENTER_EIP, 0x5000 + salt + i);
        ASK(fd, KVM_SET_DEBUGREGS, &dr);
    }
    ASK(vm_fd(vm), KVM_GET_IRQCHIP, &chip);
    for (unsigned int i = 0; i < KVM_IOAPIC_NUM_PINS; i++)
        chip.chip.ioapic.redirtbl[i].bits = (0x10000 | 0x30) + i + salt; /* masked */
    chip.chip.ioapic.ioregsel = 0x10;
    ASK(vm_fd(vm), KVM_SET_IRQCHIP, &chip);
    for (uint32_t i = 0; i < 2; i++) {
        chip = (struct kvm_irqchip){.chip_id = i};
        ASK(vm_fd(vm), KVM_GET_IRQCHIP, &chip);
        chip.chip.pic.irq_base = (uint8_t)(0x20 + i * 8 + salt);
        chip.chip.pic.imr = 0xff;
        ASK(vm_fd(vm), KVM_SET_IRQCHIP, &chip);
    }
    ASK(vm_fd(vm), KVM_GET_PIT2, &pit);
    pit.channels[2].count = 0x1234 + (uint32_t)salt;
    pit.channels[2].mode = 3;
    pit.channels[2].rw_mode = 3;
    ASK(vm_fd(vm), KVM_SET_PIT2, &pit);
}

static void garbage_vcpu(int fd, unsigned int i)
{
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp = {KVM_MP_STATE_HALTED};
    struct kvm_lapic_state lapic;
    struct kvm_xsave xsave;
    struct kvm_sregs s;
    struct kvm_regs r;

    ASK(fd, KVM_GET_SREGS, &s);
    s.cr0 = 0x60000010;
    s.cr3 = 0;
    s.cr4 = 0;
    s.efer = 0;
    s.cs = s.ds = s.es = s.fs = s.gs = s.ss = (struct kvm_segment){.type = 3, .present = 1, .s = 1, .limit = 0xffff};
    s.cs.type = 11;
    s.gdt = s.idt = (struct kvm_dtable){.base = 0xbad000, .limit = 7};
    ASK(fd, KVM_SET_SREGS, &s);
    memset(&r, 0x5a, sizeof(r));
    r.rflags = 2;
    r.rip = 0xbad;
    ASK(fd, KVM_SET_REGS, &r);
    ASK(fd, KVM_GET_XSAVE, &xsave);
    memset((uint8_t *)&xsave + 32, 0xa5, 128 + 256); /* x87 and XMM registers */
    ASK(fd, KVM_SET_XSAVE, &xsave);
    ASK(fd, KVM_GET_LAPIC, &lapic);
    set_lapic_reg(&lapic, 0xf0, 0xff);
    set_lapic_reg(&lapic, 0x320, 1u << 16);
    set_lapic_reg(&lapic, 0x380, 0);
    set_lapic_reg(&lapic, 0x80, 0xf0);
    ASK(fd, KVM_SET_LAPIC, &lapic);
    ASK(fd, KVM_GET_VCPU_EVENTS, &events);
    events.nmi.masked = 1;
    ASK(fd, KVM_SET_VCPU_EVENTS, &events);
    ASK(fd, KVM_SET_MP_STATE, &mp);
    set_msr(fd, 0x10, 12345 + i * 1000);
}

static void garbage(struct vm *vm)
{
    struct kvm_clock_data clock = {.clock = 7 * NSEC_PER_SEC * 3600};

    for (unsigned int i = 0; i < CPUS; i++)
        garbage_vcpu(vcpu_fd(vm_vcpu(vm, i)), i);
    set_marks(vm, 0x40);
    ASK(vm_fd(vm), KVM_SET_CLOCK, &clock);
}

/* -- tests -- */

static bool no_kvm(void)
{
    return access(kvm_path(), R_OK | W_OK) < 0;
}

static void test_save_garbage_load(void **state)
{
    struct guest g;

    if (no_kvm())
        skip();
    guest_new(&g);
    write_guest(g.mem);
    for (unsigned int i = 0; i < CPUS; i++)
        prepare_vcpu(g.vm, i);
    set_marks(g.vm, 0);
    assert_int_equal(vm_start(g.vm), 0);
    for (unsigned int round = 0; round < 5; round++) {
        struct saved before, wrong, after;
        uint64_t start;

        vm_resume(g.vm);
        wait_for_progress(&g, 10000);
        vm_pause(g.vm);
        start = clock_ns();
        save(g.vm, &before);
        garbage(g.vm);
        save(g.vm, &wrong);
        assert_true(saved_u64(&wrong, "vcpu", 1, "regs.rax") == UINT64_C(0x5a5a5a5a5a5a5a5a));
        load(g.vm, &before);
        save(g.vm, &after);
        compare(&before, &after, clock_ns() - start);
        saved_clear(&before);
        saved_clear(&wrong);
        saved_clear(&after);
    }
    vm_resume(g.vm);
    wait_for_progress(&g, 10000);
    check_results(&g);
    guest_free(&g);
}

static void copy_memory(struct mem *from, struct mem *to)
{
    memcpy(mem_ptr(to, 0, MEM_SIZE), mem_ptr(from, 0, MEM_SIZE), MEM_SIZE);
}

/* The same, with another VM to go on in, as a migration does. */
static void test_go_on_in_another_vm(void **state)
{
    struct guest g, h;
    struct saved s, t;
    uint64_t start;

    if (no_kvm())
        skip();
    guest_new(&g);
    write_guest(g.mem);
    for (unsigned int i = 0; i < CPUS; i++)
        prepare_vcpu(g.vm, i);
    set_marks(g.vm, 3);
    assert_int_equal(vm_start(g.vm), 0);
    vm_resume(g.vm);
    wait_for_progress(&g, 10000);
    vm_pause(g.vm);
    start = clock_ns();
    save(g.vm, &s);
    guest_new(&h);
    copy_memory(g.mem, h.mem);
    guest_free(&g);
    load(h.vm, &s);
    save(h.vm, &t);
    compare(&s, &t, clock_ns() - start);
    assert_int_equal(vm_start(h.vm), 0);
    vm_resume(h.vm);
    wait_for_progress(&h, 10000);
    check_results(&h);
    saved_clear(&s);
    saved_clear(&t);
    guest_free(&h);
}

/* A reset leaves nothing of what the guest did, but for the entry it was given; and the guest runs from there. */
static void test_reset(void **state)
{
    struct vcpu_entry entry = {.regs = {.rip = 0x1234, .rflags = 2}};
    struct guest g, fresh;
    struct saved power_on, after;
    uint64_t rip = 0;

    if (no_kvm())
        skip();
    guest_new(&fresh);
    save(fresh.vm, &power_on);
    guest_new(&g);
    write_guest(g.mem);
    for (unsigned int i = 0; i < CPUS; i++)
        prepare_vcpu(g.vm, i);
    set_marks(g.vm, 5);
    assert_int_equal(vm_start(g.vm), 0);
    vm_resume(g.vm);
    wait_for_progress(&g, 10000);
    vm_pause(g.vm);
    ASK(vcpu_fd(vm_vcpu(fresh.vm, 0)), KVM_GET_SREGS, &entry.sregs);
    assert_int_equal(vm_reset(g.vm, &entry), 0);
    save(g.vm, &after);
    assert_int_equal(state_get_u64(&after.r, state_find(&after.r, "vcpu", 0), "regs.rip", &rip), 0);
    assert_int_equal(rip, 0x1234);
    for (uint32_t i = 0; i < power_on.r.count; i++) {
        const struct state_section *s = &power_on.r.sections[i];

        if (strcmp(s->name, "vcpu") != 0 || s->instance != 0)
            assert_true(compare_section(&power_on, &after, s) > 0 || strcmp(s->name, "clock") == 0);
    }
    saved_clear(&power_on);
    saved_clear(&after);
    guest_free(&fresh);

    memset(mem_ptr(g.mem, 0, MEM_SIZE), 0, MEM_SIZE);
    write_guest(g.mem);
    for (unsigned int i = 0; i < CPUS; i++)
        prepare_vcpu(g.vm, i);
    vm_resume(g.vm);
    wait_for_progress(&g, 10000);
    check_results(&g);
    guest_free(&g);
}

/* A guest that came here and never ran has left as much behind as one that did. */
static void test_reset_of_an_arrival(void **state)
{
    struct vcpu_entry entry = {.regs = {.rip = 0x1234, .rflags = 2}};
    struct kvm_mp_state halted = {KVM_MP_STATE_HALTED};
    struct guest g, fresh, target;
    struct saved power_on, arrived, after;

    if (no_kvm())
        skip();
    guest_new(&fresh);
    save(fresh.vm, &power_on);
    ASK(vcpu_fd(vm_vcpu(fresh.vm, 0)), KVM_GET_SREGS, &entry.sregs);
    guest_new(&g);
    write_guest(g.mem);
    for (unsigned int i = 0; i < CPUS; i++)
        prepare_vcpu(g.vm, i);
    set_marks(g.vm, 7);
    ASK(vcpu_fd(vm_vcpu(g.vm, 0)), KVM_SET_MP_STATE, &halted);
    save(g.vm, &arrived);

    guest_new(&target);
    load(target.vm, &arrived);
    assert_int_equal(vm_reset(target.vm, &entry), 0);
    ASK(vcpu_fd(vm_vcpu(target.vm, 0)), KVM_GET_MP_STATE, &halted);
    assert_int_equal(halted.mp_state, KVM_MP_STATE_RUNNABLE);
    save(target.vm, &after);
    for (uint32_t i = 0; i < power_on.r.count; i++) {
        const struct state_section *s = &power_on.r.sections[i];

        if (strcmp(s->name, "vcpu") != 0 || s->instance != 0)
            assert_true(compare_section(&power_on, &after, s) > 0 || strcmp(s->name, "clock") == 0);
    }
    saved_clear(&power_on);
    saved_clear(&arrived);
    saved_clear(&after);
    guest_free(&target);
    guest_free(&g);
    guest_free(&fresh);
}

/* Write the state again with one field changed: its name, its length, its bytes, or left out (len SIZE_MAX). */
struct change {
    const char *section, *field;
    const char *name; /* new name, or NULL */
    const void *data; /* NULL: as it was, but cut or filled with zeros to len */
    size_t len;
    int err;          /* 0: any */
    const char *error;
};

static void rewrite(struct saved *s, const struct change *c, struct saved *ret)
{
    static uint8_t longer[70000];
    char name[STATE_NAME_MAX + 1];
    const uint8_t *data;
    struct state_writer w;
    uint32_t len;

    state_writer_init(&w);
    for (uint32_t i = 0; i < s->r.count; i++) {
        const struct state_section *sec = &s->r.sections[i];
        bool here = strcmp(sec->name, c->section) == 0 && sec->instance == 0;

        if (here && !c->field)
            continue;
        state_begin(&w, sec->name, sec->instance, sec->version);
        for (uint32_t cursor = 0; state_next_field(&s->r, sec, "", &cursor, name, &data, &len);) {
            if (!here || strcmp(name, c->field) != 0) {
                state_put_bytes(&w, name, data, len);
            } else if (c->len != SIZE_MAX) {
                memset(longer, 0, sizeof(longer));
                memcpy(longer, data, MIN((size_t)len, c->len));
                state_put_bytes(&w, c->name ? c->name : name, c->data ? c->data : longer, c->len);
            }
        }
        state_end(&w);
    }
    assert_int_equal(state_finish(&w, &ret->data, &ret->len), 0);
    assert_int_equal(state_reader_init(&ret->r, ret->data, ret->len), 0);
}

static const uint64_t all_ones[2] = {UINT64_MAX, UINT64_MAX};

static const struct change changes[] = {
    {"vcpu", NULL, NULL, NULL, 0, -ENOENT, "vcpu 0: the section is missing"},
    {"pic", NULL, NULL, NULL, 0, -ENOENT, "pic 0: the section is missing"},
    {"ioapic", NULL, NULL, NULL, 0, -ENOENT, "ioapic 0: the section is missing"},
    {"pit", NULL, NULL, NULL, 0, -ENOENT, "pit 0: the section is missing"},
    {"clock", NULL, NULL, NULL, 0, -ENOENT, "clock 0: the section is missing"},
    {"vcpu", "regs.rax", NULL, NULL, SIZE_MAX, -ENOENT, "vcpu 0: field regs.rax is missing"},
    {"vcpu", "regs.rax", NULL, NULL, 4, -EBADMSG, "vcpu 0: field regs.rax: length 4, not 8"},
    {"vcpu", "regs.rax", "regs.eax", NULL, 8, -ENOENT, "vcpu 0: field regs.rax is missing"},
    {"vcpu", "sregs.pdptrs", NULL, NULL, 33, -EBADMSG, "vcpu 0: field sregs.pdptrs: length 33, not 32"},
    {"vcpu", "lapic", NULL, NULL, 1023, -EBADMSG, "vcpu 0: field lapic: length 1023, not 1024"},
    {"vcpu", "xsave", NULL, NULL, 575, -EBADMSG, "vcpu 0: field xsave: length 575 is below 576"},
    {"vcpu", "xsave", NULL, NULL, 65537, -EBADMSG, "vcpu 0: field xsave: length 65537 exceeds 65536"},
    {"vcpu", "xsave", NULL, NULL, 65536, -ENOTSUP, NULL},
    {"vcpu", "msr.00000010", NULL, NULL, SIZE_MAX, -EBADMSG, "vcpu 0: field msr.00000010 (TSC) is missing"},
    {"vcpu", "msr.c0000081", "msr.C0000081", NULL, 8, -EBADMSG,
     "vcpu 0: field msr.C0000081: no eight hexadecimal digits follow msr."},
    {"vcpu", "msr.c0000081", "msr.c00000811", NULL, 8, -EBADMSG,
     "vcpu 0: field msr.c00000811: no eight hexadecimal digits follow msr."},
    {"vcpu", "msr.c0000081", NULL, NULL, 7, -EBADMSG, "vcpu 0: field msr.c0000081: length 7, not 8"},
    {"vcpu", "msr.c0000081", "msr.00c0ffee", NULL, 8, -ENOTSUP,
     "vcpu 0: msr.00c0ffee: not known to this host's KVM"},
    {"vcpu", "cpuid.00000001", "cpuid.0000001", NULL, 16, -EBADMSG,
     "vcpu 0: field cpuid.0000001 is no CPUID leaf of 16 bytes"},
    {"vcpu", "cpuid.00000001", "cpuid.00000001-00000000", NULL, 16, -EBADMSG,
     "vcpu 0: field cpuid.00000001-00000000 is no CPUID leaf of 16 bytes"},
    {"vcpu", "cpuid.00000001", NULL, NULL, 15, -EBADMSG, "vcpu 0: field cpuid.00000001 is no CPUID leaf of 16 bytes"},
    {"vcpu", "mp_state", "mp-state", NULL, 4, -ENOENT, "vcpu 0: field mp_state is missing"},
    {"vcpu", "mp_state", NULL, all_ones, 4, -EINVAL, "vcpu 0: KVM_SET_MP_STATE: Invalid argument"},
    {"vcpu", "sregs.cr4", NULL, all_ones, 8, -EINVAL, NULL},
    {"vcpu", "debug.dr7", NULL, all_ones, 8, -EINVAL, "vcpu 0: KVM_SET_DEBUGREGS: Invalid argument"},
    {"vcpu", "events.flags", NULL, all_ones, 4, -EINVAL, "vcpu 0: KVM_SET_VCPU_EVENTS: Invalid argument"},
    {"vcpu", "tsc_khz", NULL, all_ones, 4, -ENOTSUP, NULL},
    {"vcpu", "regs.r15", "regs.r16", NULL, 8, -ENOENT, "vcpu 0: field regs.r15 is missing"},
    {"pic", "elcr_mask", "elcr-mask", NULL, 1, -ENOENT, "pic 0: field elcr_mask is missing"},
    {"ioapic", "redirtbl", NULL, NULL, 184, -EBADMSG, "ioapic 0: field redirtbl: length 184, not 192"},
    {"pit", "channel1.count", NULL, all_ones, 4, -EBADMSG, "pit 0: field channel1.count: 4294967295 exceeds 65536"},
    {"clock", "kvmclock", NULL, NULL, 9, -EBADMSG, "clock 0: field kvmclock: length 9, not 8"},
};

/* Whatever is wrong is refused by name, and the right state can be loaded after it. */
static void test_bad_state_is_refused(void **state)
{
    struct guest g;
    struct saved good, bad, again;
    uint64_t start;

    if (no_kvm())
        skip();
    guest_new(&g);
    write_guest(g.mem);
    for (unsigned int i = 0; i < CPUS; i++)
        prepare_vcpu(g.vm, i);
    start = clock_ns();
    save(g.vm, &good);
    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        const struct change *c = &changes[i];
        int err;

        rewrite(&good, c, &bad);
        err = vm_state_load(g.vm, &bad.r, 0);
        print_message("# %s %s: %d %s\n", c->section, c->field ? c->field : "", err, bad.r.error);
        assert_int_equal(err, c->err);
        if (c->error)
            assert_string_equal(bad.r.error, c->error);
        assert_string_not_equal(bad.r.error, "");
        saved_clear(&bad);
    }
    load(g.vm, &good);
    save(g.vm, &again);
    compare(&good, &again, clock_ns() - start);
    saved_clear(&again);
    saved_clear(&good);
    guest_free(&g);
}

/* A field that is not known is refused, and so is a state of another number of vCPUs. */
static void test_too_much_is_refused(void **state)
{
    struct guest g;
    struct vm_config one = {.kvm_path = kvm_path(), .cpus = 1, .callbacks.on_exit = on_exit_unexpected};
    struct vm *small;
    struct saved s;

    if (no_kvm())
        skip();
    guest_new(&g);
    save(g.vm, &s);
    assert_int_equal(vm_new(&one, g.mem, &small), 0);
    assert_int_equal(vm_state_load(small, &s.r, 0), -EBADMSG);
    assert_string_equal(s.r.error, "the state has more vcpus than the 1 of this VM");
    saved_clear(&s);
    save(small, &s);
    assert_int_equal(vm_state_load(g.vm, &s.r, 0), -ENOENT);
    assert_string_equal(s.r.error, "vcpu 1: the section is missing");
    saved_clear(&s);
    vm_free(small);
    guest_free(&g);
}

/* -- does it fit here? -- */

struct lines {
    unsigned int count;
    char text[1024];
};

static void add_line(void *opaque, const char *text)
{
    struct lines *l = opaque;
    size_t at = strlen(l->text);

    l->count++;
    snprintf(l->text + at, sizeof(l->text) - at, "%s\n", text);
}

static struct lines compare_to(struct vm *vm, struct saved *s)
{
    struct lines l = {0};
    int err = vm_state_compare(vm, &s->r, add_line, &l);

    if (err < 0)
        fail_msg("%d: %s", err, s->r.error);
    return l;
}

/* A state fits where it was made; each thing that is missing here gets its own line, all in one answer. */
static void test_differences(void **state)
{
    const struct change wrong[] = {
        {.section = "vcpu", .field = "cpuid.80000001", .data = (uint32_t[4]){0, 0, ~0u, 0}, .len = 16},
        {.section = "vcpu", .field = "msr.c0000081", .name = "msr.00c0ffee", .len = 8},
        {.section = "vcpu", .field = "tsc_khz", .data = all_ones, .len = 4},
        {.section = "vcpu", .field = "xsave", .len = 65536},
    };
    struct guest g;
    struct saved good, bad, next;
    struct lines l;

    if (no_kvm())
        skip();
    guest_new(&g);
    save(g.vm, &good);
    l = compare_to(g.vm, &good);
    if (l.count != 0)
        fail_msg("%s", l.text);
    rewrite(&good, &wrong[0], &bad);
    for (size_t i = 1; i < ARRAY_SIZE(wrong); i++) {
        rewrite(&bad, &wrong[i], &next);
        saved_clear(&bad);
        bad = next;
    }
    l = compare_to(g.vm, &bad);
    print_message("# %s", l.text);
    assert_int_equal(l.count, 4);
    assert_non_null(strstr(l.text, "cpuid.80000001.0 ecx: bits "));
    assert_non_null(strstr(l.text, "msr.00c0ffee: not known to this host's KVM\n"));
    assert_non_null(strstr(l.text, "xsave: 65536 bytes, here "));
    assert_non_null(strstr(l.text, "tsc_khz: the host runs at "));
    saved_clear(&bad);
    rewrite(&good, &(struct change){.section = "vcpu"}, &bad);
    assert_int_equal(vm_state_compare(g.vm, &bad.r, add_line, &l), -ENOENT);
    saved_clear(&bad);
    load(g.vm, &good);
    saved_clear(&good);
    guest_free(&g);
}

/* Some KVMs let the guest read the host's TSC, whatever they are told. */
static bool tsc_can_be_set(struct vm *vm)
{
    uint64_t before = 0, after = 0;
    struct kvm_device_attr a = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&before};
    int fd = vcpu_fd(vm_vcpu(vm, 0));

    if (ioctl(fd, KVM_GET_DEVICE_ATTR, &a) < 0)
        return true;
    before += UINT64_C(1) << 40;
    ASK(fd, KVM_SET_DEVICE_ATTR, &a);
    a.addr = (uintptr_t)&after;
    ASK(fd, KVM_GET_DEVICE_ATTR, &a);
    return after == before;
}

/* Told when the state was saved, a load lets time go on from then; a time to come is none. */
static void test_time_goes_on(void **state)
{
    const uint64_t gap_ns = 3600 * NSEC_PER_SEC;
    struct guest g;
    struct saved first, later;
    uint64_t clock, tsc, start;
    uint32_t khz;

    if (no_kvm())
        skip();
    guest_new(&g);
    start = clock_ns();
    save(g.vm, &first);
    assert_int_equal(vm_state_load(g.vm, &first.r, start > gap_ns ? start - gap_ns : 1), 0);
    save(g.vm, &later);
    clock = saved_u64(&later, "clock", 0, "kvmclock") - saved_u64(&first, "clock", 0, "kvmclock");
    tsc = saved_u64(&later, "vcpu", 1, "msr.00000010") - saved_u64(&first, "vcpu", 1, "msr.00000010");
    assert_int_equal(state_get_bytes(&first.r, state_find(&first.r, "vcpu", 0), "tsc_khz", &khz, sizeof(khz)), 0);
    assert_true(clock >= MIN(gap_ns, start - 1));
    assert_true(clock <= gap_ns + (clock_ns() - start));
    if (khz && tsc_can_be_set(g.vm))
        assert_true(tsc / khz >= MIN(gap_ns, start - 1) / 1000000 - 1);
    saved_clear(&later);
    assert_int_equal(vm_state_load(g.vm, &first.r, clock_ns() + gap_ns), 0);
    save(g.vm, &later);
    clock = saved_u64(&later, "clock", 0, "kvmclock") - saved_u64(&first, "clock", 0, "kvmclock");
    assert_true(clock <= clock_ns() - start);
    saved_clear(&later);
    saved_clear(&first);
    guest_free(&g);
}

/* What KVM would write as it is told where the guest has its wall clock is what a loaded guest has there already. */
static void test_wall_clock_stays(void **state)
{
    static const uint32_t msrs[] = {0x11, 0x4b564d00};
    /* Not aligned, over the end of a page, and at the last bytes there are. */
    static const gpa_t places[] = {0x200100, 0x200ffb, MEM_SIZE - 12};
    uint8_t mark[12], bytes[12];
    struct guest g;
    struct saved s;

    if (no_kvm())
        skip();
    guest_new(&g);
    memset(mark, 0x6b, sizeof(mark));
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        set_msr(vcpu_fd(vm_vcpu(g.vm, 1)), msrs[i % 2], places[i]);
        assert_int_equal(mem_read(g.mem, places[i], bytes, sizeof(bytes)), 0);
        save(g.vm, &s);
        assert_int_equal(saved_u64(&s, "vcpu", 1, "msr.4b564d00"), places[i]);
        /* It does write. */
        assert_memory_not_equal(bytes, (const uint8_t[12]){0}, sizeof(bytes));
        assert_int_equal(mem_write(g.mem, places[i], mark, sizeof(mark)), 0);
        load(g.vm, &s);
        assert_int_equal(mem_read(g.mem, places[i], bytes, sizeof(bytes)), 0);
        assert_memory_equal(bytes, mark, sizeof(mark));
        saved_clear(&s);
    }
    /* Where there is no memory, or not enough of it. */
    for (gpa_t gpa = MEM_SIZE - 11; gpa <= MEM_SIZE; gpa += 11) {
        set_msr(vcpu_fd(vm_vcpu(g.vm, 0)), 0x4b564d00, gpa);
        save(g.vm, &s);
        load(g.vm, &s);
        saved_clear(&s);
    }
    guest_free(&g);
}

/* -- a kick on its way -- */

static void offer_pv_unhalt(int fd, bool on)
{
    struct kvm_cpuid2 *table = calloc(1, sizeof(*table) + CPUID_MAX * sizeof(table->entries[0]));
    bool found = false;

    assert_non_null(table);
    table->nent = CPUID_MAX;
    ASK(fd, KVM_GET_CPUID2, table);
    for (uint32_t i = 0; i < table->nent; i++) {
        if (table->entries[i].function != KVM_CPUID_FEATURES)
            continue;
        table->entries[i].eax &= ~(1u << KVM_FEATURE_PV_UNHALT);
        table->entries[i].eax |= on ? 1u << KVM_FEATURE_PV_UNHALT : 0;
        found = true;
    }
    assert_true(found);
    ASK(fd, KVM_SET_CPUID2, table);
    free(table);
}

/* In ring 0 with interrupts off: before a HLT, or in it. No timer ticks. */
static void prepare_halt(struct vm *vm, unsigned int i, bool halted, bool pv_unhalt)
{
    int fd = vcpu_fd(vm_vcpu(vm, i));
    struct kvm_mp_state mp = {halted ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE};
    struct kvm_lapic_state lapic;
    struct kvm_sregs s;
    struct kvm_regs r = {.rip = CODE + (uint64_t)(guest_halt - guest_code) + (halted ? 1 : 0), .rflags = 2, .rdi = DATA(i)};

    offer_pv_unhalt(fd, pv_unhalt);
    prepare_vcpu(vm, i);
    ASK(fd, KVM_GET_SREGS, &s);
    s.cs = segment(0x08, 11, 0, true);
    s.ds = s.es = s.fs = s.gs = s.ss = segment(0x10, 3, 0, false);
    ASK(fd, KVM_SET_SREGS, &s);
    ASK(fd, KVM_SET_REGS, &r);
    ASK(fd, KVM_GET_LAPIC, &lapic);
    set_lapic_reg(&lapic, 0x380, 0);
    set_lapic_reg(&lapic, 0x320, 1u << 16);
    ASK(fd, KVM_SET_LAPIC, &lapic);
    ASK(fd, KVM_SET_MP_STATE, &mp);
}

static uint32_t mp_state(struct vm *vm, unsigned int i)
{
    struct kvm_mp_state mp;

    ASK(vcpu_fd(vm_vcpu(vm, i)), KVM_GET_MP_STATE, &mp);
    return mp.mp_state;
}

/* What its first vCPU comes to in another VM: that it went on behind its HLT (true), or stays in it. */
static bool goes_on_elsewhere(struct guest *g)
{
    uint64_t end = clock_ns() + 60 * NSEC_PER_SEC;
    bool went_on, halted;
    struct guest h;
    struct saved s;

    save(g->vm, &s);
    guest_new(&h);
    copy_memory(g->mem, h.mem);
    load(h.vm, &s);
    saved_clear(&s);
    /* One with a kick to come would say that it runs. */
    assert_int_equal(mp_state(h.vm, 1), KVM_MP_STATE_HALTED);
    assert_int_equal(vm_start(h.vm), 0);
    do {
        assert_true(clock_ns() < end);
        vm_resume(h.vm);
        sched_yield();
        vm_pause(h.vm);
        went_on = mailbox(h.mem, 0)->done;
        halted = mp_state(h.vm, 0) == KVM_MP_STATE_HALTED;
    } while (!went_on && !halted);
    assert_int_equal(mp_state(h.vm, 1), KVM_MP_STATE_HALTED);
    assert_int_equal(mailbox(h.mem, 1)->done, 0);
    guest_free(&h);
    return went_on;
}

/*
 * A vCPU that has been kicked and is about to halt does not halt; KVM does not say that it was kicked. One that halts is
 * left alone, and so is one whose guest knows no kicks.
 */
static void test_kick_on_its_way(void **state)
{
    struct kvm_msi kick = {.address_lo = 0xfee01000, .data = 0x300};
    struct guest g;

    if (no_kvm())
        skip();
    for (int pv_unhalt = 0; pv_unhalt <= 1; pv_unhalt++) {
        guest_new(&g);
        write_guest(g.mem);
        prepare_halt(g.vm, 0, false, pv_unhalt);
        prepare_halt(g.vm, 1, true, pv_unhalt);
        assert_int_equal(goes_on_elsewhere(&g), pv_unhalt);
        /* That those that halt need none: KVM tells when one has come. */
        ASK(vm_fd(g.vm), KVM_SIGNAL_MSI, &kick);
        assert_int_equal(mp_state(g.vm, 1), KVM_MP_STATE_RUNNABLE);
        guest_free(&g);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_save_garbage_load),
        cmocka_unit_test(test_go_on_in_another_vm),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_reset_of_an_arrival),
        cmocka_unit_test(test_bad_state_is_refused),
        cmocka_unit_test(test_too_much_is_refused),
        cmocka_unit_test(test_differences),
        cmocka_unit_test(test_time_goes_on),
        cmocka_unit_test(test_wall_clock_stays),
        cmocka_unit_test(test_kick_on_its_way),
    };

    log_init("test-vcpu-state", NULL);
    return cmocka_run_group_tests_name("vcpu-state", tests, NULL, NULL);
}
