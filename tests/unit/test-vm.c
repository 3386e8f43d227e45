/*
 * The VM and its vCPU threads on a real KVM: kicks, parking, resets, errors, event descriptors. The guests are a few
 * instructions of 32-bit code without paging. Skipped where there is no KVM.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "vcpu/vcpu.h"
#include "vcpu/vm.h"

#define CODE 0x1000
#define COUNTER 0x2000
#define PORT 0x80
#define WAIT_MS 20000

/* inc dword [COUNTER]; jmp back: never leaves the guest by itself. */
static const uint8_t code_spin[] = {0xff, 0x05, 0x00, 0x20, 0x00, 0x00, 0xeb, 0xf8};
/* mov edx, PORT; inc eax; out dx, eax; jmp back: leaves it all the time. */
static const uint8_t code_out[] = {0xba, 0x80, 0x00, 0x00, 0x00, 0x40, 0xef, 0xeb, 0xfc};
/* mov edx, PORT; in eax, dx; mov [COUNTER], eax; jmp back. */
static const uint8_t code_in[] = {0xba, 0x80, 0x00, 0x00, 0x00, 0xed, 0xa3, 0x00, 0x20, 0x00, 0x00, 0xeb, 0xf8};
/* mov eax, 0xd0000000; jmp eax: there is no memory. */
static const uint8_t code_nowhere[] = {0xb8, 0x00, 0x00, 0x00, 0xd0, 0xff, 0xe0};
/* ud2 without an interrupt table. */
static const uint8_t code_triple[] = {0x0f, 0x0b};

struct fixture {
    struct mem *mem;
    struct vm *vm;
    struct vcpu_entry entry;
    atomic_uint bus_writes, bus_reads;
    uint32_t last_written; /* on the vCPU's thread */
    bool out_of_order;
    atomic_int exit_kind; /* -1: none yet */
    int exit_event;
};

static const char *kvm_path(void)
{
    const char *path = getenv("UMBRA_KVM");

    return path && *path ? path : "/dev/kvm";
}

static void on_exit_callback(void *opaque, unsigned int vcpu, enum vm_exit_kind kind, const char *reason)
{
    struct fixture *f = opaque;

    atomic_store(&f->exit_kind, (int)kind);
    fd_event_signal(f->exit_event);
}

static uint64_t port_read(void *opaque, uint64_t offset, unsigned int size)
{
    struct fixture *f = opaque;

    return atomic_fetch_add(&f->bus_reads, 1) + 1;
}

static void port_write(void *opaque, uint64_t offset, unsigned int size, uint64_t value)
{
    struct fixture *f = opaque;

    if ((uint32_t)value != f->last_written + 1)
        f->out_of_order = true;
    f->last_written = (uint32_t)value;
    atomic_fetch_add(&f->bus_writes, 1);
}

static const struct bus_ops port_ops = {port_read, port_write};

static void flat_entry(struct vcpu_entry *e)
{
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_segment code = data;

    code.selector = 8;
    code.type = 11;
    *e = (struct vcpu_entry){.regs = {.rip = CODE, .rflags = 2, .rsp = 0x8000}};
    e->sregs.cs = code;
    e->sregs.ds = e->sregs.es = e->sregs.fs = e->sregs.gs = e->sregs.ss = data;
    e->sregs.tr = (struct kvm_segment){.limit = 0x67, .type = 11, .present = 1};
    e->sregs.ldt = (struct kvm_segment){.type = 2, .present = 1};
    e->sregs.cr0 = 0x11;
}

static void setup(struct fixture *f, unsigned int cpus, const uint8_t *code, size_t len)
{
    struct mem_config mem_config = {.size = 4 * MiB};
    struct vm_config config = {.kvm_path = kvm_path(), .cpus = cpus, .callbacks = {.on_exit = on_exit_callback, .opaque = f}};

    memset(f, 0, sizeof(*f));
    if (access(kvm_path(), R_OK | W_OK) < 0)
        skip();
    atomic_store(&f->exit_kind, -1);
    f->exit_event = fd_eventfd();
    assert_int_equal(mem_new(&mem_config, &f->mem), 0);
    assert_int_equal(vm_new(&config, f->mem, &f->vm), 0);
    assert_int_equal(bus_add(vm_bus(f->vm), BUS_PIO, PORT, 4, "test", &port_ops, f, NULL), 0);
    assert_int_equal(mem_write(f->mem, CODE, code, len), 0);
    flat_entry(&f->entry);
    assert_int_equal(vm_reset(f->vm, &f->entry), 0);
    assert_int_equal(vm_start(f->vm), 0);
}

static void teardown(struct fixture *f)
{
    vm_free(f->vm);
    mem_free(f->mem);
    fd_close(f->exit_event);
}

static uint32_t counter(struct fixture *f)
{
    return __atomic_load_n((uint32_t *)mem_ptr(f->mem, COUNTER, 4), __ATOMIC_SEQ_CST);
}

/* Wait until the counter is another than `old`. */
static void wait_progress(struct fixture *f, uint32_t old)
{
    for (int i = 0; counter(f) == old; i++) {
        assert_true(i < WAIT_MS);
        poll(NULL, 0, 1);
    }
}

static void wait_exit(struct fixture *f, enum vm_exit_kind kind)
{
    struct pollfd p = {.fd = f->exit_event, .events = POLLIN};

    assert_int_equal(poll(&p, 1, WAIT_MS), 1);
    fd_event_clear(f->exit_event);
    assert_int_equal(atomic_exchange(&f->exit_kind, -1), kind);
}

static void test_pause_stops_a_spinning_guest(void **state)
{
    struct fixture f;

    setup(&f, 1, code_spin, sizeof(code_spin));
    for (int i = 0; i < 200; i++) {
        uint32_t seen = counter(&f);

        vm_resume(f.vm);
        wait_progress(&f, seen);
        vm_pause(f.vm);
        assert_false(vm_running(f.vm));
        seen = counter(&f);
        if (i % 20 == 0) {
            poll(NULL, 0, 2);
            assert_int_equal(counter(&f), seen);
        }
    }
    teardown(&f);
}

/* A pause right after a resume meets the vCPU thread everywhere between parking and KVM_RUN. */
static void test_no_kick_is_lost(void **state)
{
    struct fixture f;

    setup(&f, 4, code_spin, sizeof(code_spin));
    for (int i = 0; i < 2000; i++) {
        vm_resume(f.vm);
        vm_pause(f.vm);
    }
    vm_pause(f.vm);
    vm_resume(f.vm);
    vm_resume(f.vm);
    wait_progress(&f, counter(&f));
    teardown(&f);
}

/* Each OUT arrives once and in order, however often the guest is paused: no half instruction, none twice. */
static void test_io_is_whole_across_pauses(void **state)
{
    struct fixture f;
    unsigned int writes;

    setup(&f, 1, code_out, sizeof(code_out));
    for (int i = 0; i < 500; i++) {
        struct kvm_regs regs;

        vm_resume(f.vm);
        writes = atomic_load(&f.bus_writes);
        for (int k = 0; atomic_load(&f.bus_writes) == writes && k < WAIT_MS; k++)
            usleep(20);
        vm_pause(f.vm);
        assert_int_equal(ioctl(vcpu_fd(vm_vcpu(f.vm, 0)), KVM_GET_REGS, &regs), 0);
        /* Written means completed: a parked vCPU stands behind the OUT, or before the next one. */
        assert_in_range((uint32_t)regs.rax - f.last_written, 0, 1);
    }
    assert_false(f.out_of_order);
    teardown(&f);
}

/* The same for IN: the value read is in the register when the vCPU has parked. */
static void test_reads_complete_before_parking(void **state)
{
    struct fixture f;

    setup(&f, 1, code_in, sizeof(code_in));
    for (int i = 0; i < 300; i++) {
        struct kvm_regs regs;

        vm_resume(f.vm);
        wait_progress(&f, counter(&f));
        vm_pause(f.vm);
        assert_int_equal(ioctl(vcpu_fd(vm_vcpu(f.vm, 0)), KVM_GET_REGS, &regs), 0);
        assert_int_equal((uint32_t)regs.rax, atomic_load(&f.bus_reads));
    }
    teardown(&f);
}

static void test_internal_error_and_reset(void **state)
{
    struct fixture f;

    setup(&f, 2, code_nowhere, sizeof(code_nowhere));
    for (int i = 0; i < 3; i++) {
        uint32_t seen;

        vm_resume(f.vm);
        wait_exit(&f, VM_EXIT_INTERNAL_ERROR);
        vm_pause(f.vm);
        /* Resumed without a reset it stays where it is. */
        vm_resume(f.vm);
        vm_pause(f.vm);
        assert_int_equal(atomic_load(&f.exit_kind), -1);
        assert_int_equal(mem_write(f.mem, CODE, code_spin, sizeof(code_spin)), 0);
        assert_int_equal(vm_reset(f.vm, &f.entry), 0);
        seen = counter(&f);
        vm_resume(f.vm);
        wait_progress(&f, seen);
        vm_pause(f.vm);
        assert_int_equal(mem_write(f.mem, CODE, code_nowhere, sizeof(code_nowhere)), 0);
        assert_int_equal(vm_reset(f.vm, &f.entry), 0);
    }
    teardown(&f);
}

static void test_triple_fault_asks_for_a_reset(void **state)
{
    struct fixture f;

    setup(&f, 1, code_triple, sizeof(code_triple));
    vm_resume(f.vm);
    wait_exit(&f, VM_EXIT_RESET);
    teardown(&f);
}

/* Every register a guest has touched is at its power-on value again: a second reset gives what the first gave. */
static void test_reset_undoes_everything(void **state)
{
    struct kvm_sregs first, second;
    struct kvm_regs regs;
    struct fixture f;
    int fd;

    setup(&f, 2, code_out, sizeof(code_out));
    fd = vcpu_fd(vm_vcpu(f.vm, 0));
    assert_int_equal(ioctl(fd, KVM_GET_SREGS, &first), 0);
    vm_resume(f.vm);
    for (int k = 0; atomic_load(&f.bus_writes) < 100 && k < WAIT_MS; k++)
        poll(NULL, 0, 1);
    vm_pause(f.vm);
    assert_int_equal(vm_reset(f.vm, &f.entry), 0);
    assert_int_equal(ioctl(fd, KVM_GET_SREGS, &second), 0);
    assert_int_equal(ioctl(fd, KVM_GET_REGS, &regs), 0);
    assert_memory_equal(&first, &second, sizeof(first));
    assert_int_equal(regs.rax, 0);
    assert_int_equal(regs.rip, CODE);
    /* It does not finish the OUT it was in over the new registers. */
    f.last_written = 0;
    f.out_of_order = false;
    vm_resume(f.vm);
    for (unsigned int k = 0, n = atomic_load(&f.bus_writes); atomic_load(&f.bus_writes) < n + 10 && k < WAIT_MS; k++)
        poll(NULL, 0, 1);
    vm_pause(f.vm);
    assert_false(f.out_of_order);
    teardown(&f);
}

static void test_ioeventfd(void **state)
{
    struct pollfd p = {.events = POLLIN};
    struct fixture f;

    setup(&f, 1, code_out, sizeof(code_out));
    p.fd = fd_eventfd();
    assert_true(p.fd >= 0);
    assert_int_equal(vm_ioeventfd(f.vm, p.fd, BUS_PIO, PORT, 4, false, 0, true), 0);
    assert_int_equal(vm_ioeventfd(f.vm, p.fd, BUS_PIO, PORT, 4, false, 0, true), -EEXIST);
    vm_resume(f.vm);
    assert_int_equal(poll(&p, 1, WAIT_MS), 1);
    vm_pause(f.vm);
    /* None of it came to the bus. */
    assert_int_equal(atomic_load(&f.bus_writes), 0);
    assert_int_equal(vm_ioeventfd(f.vm, p.fd, BUS_PIO, PORT, 4, false, 0, false), 0);
    assert_int_equal(vm_ioeventfd(f.vm, p.fd, BUS_PIO, PORT, 4, false, 0, false), -ENOENT);
    vm_resume(f.vm);
    for (int k = 0; atomic_load(&f.bus_writes) == 0 && k < WAIT_MS; k++)
        poll(NULL, 0, 1);
    assert_true(atomic_load(&f.bus_writes) > 0);
    close(p.fd);
    teardown(&f);
}

static bool pic_irr(struct fixture *f, unsigned int line)
{
    struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_PIC_MASTER};

    assert_int_equal(ioctl(vm_fd(f->vm), KVM_GET_IRQCHIP, &chip), 0);
    return chip.chip.pic.irr >> line & 1;
}

static void test_irqfd_and_irq_line(void **state)
{
    struct fixture f;
    int fd;

    setup(&f, 1, code_spin, sizeof(code_spin));
    fd = fd_eventfd();
    assert_int_equal(vm_irqfd(f.vm, fd, 4, -1, true), 0);
    assert_false(pic_irr(&f, 4));
    fd_event_signal(fd);
    for (int k = 0; !pic_irr(&f, 4) && k < WAIT_MS; k++)
        poll(NULL, 0, 1);
    assert_true(pic_irr(&f, 4));
    assert_int_equal(vm_irqfd(f.vm, fd, 4, -1, false), 0);
    irq_set(vm_irq_sink(f.vm), 5, 1);
    assert_true(pic_irr(&f, 5));
    close(fd);
    teardown(&f);
}

static void test_32_vcpus(void **state)
{
    struct fixture f;
    struct vcpu_exits exits;

    setup(&f, VM_MAX_VCPUS, code_spin, sizeof(code_spin));
    assert_int_equal(vm_cpus(f.vm), VM_MAX_VCPUS);
    vm_resume(f.vm);
    wait_progress(&f, 0);
    vm_pause(f.vm);
    for (unsigned int i = 0; i < VM_MAX_VCPUS; i++) {
        assert_int_equal(vcpu_index(vm_vcpu(f.vm, i)), i);
        assert_true(vcpu_tid(vm_vcpu(f.vm, i)) > 0);
        vcpu_exits(vm_vcpu(f.vm, i), &exits);
        assert_int_equal(exits.io_in + exits.io_out + exits.mmio_read + exits.mmio_write, 0);
    }
    teardown(&f);
}

static void test_refused_configurations(void **state)
{
    struct mem_config mem_config = {.size = MiB};
    struct vm_config config = {.kvm_path = "/nonexistent/kvm", .cpus = 1};
    struct mem *mem;
    struct vm *vm;

    assert_int_equal(mem_new(&mem_config, &mem), 0);
    assert_int_equal(vm_new(&config, mem, &vm), -ENOENT);
    config.kvm_path = "/dev/null";
    assert_true(vm_new(&config, mem, &vm) < 0);
    config.cpus = 0;
    assert_int_equal(vm_new(&config, mem, &vm), -EINVAL);
    config.cpus = VM_MAX_VCPUS + 1;
    assert_int_equal(vm_new(&config, mem, &vm), -EINVAL);
    vm_free(NULL);
    mem_free(mem);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused_configurations),
        cmocka_unit_test(test_pause_stops_a_spinning_guest),
        cmocka_unit_test(test_no_kick_is_lost),
        cmocka_unit_test(test_io_is_whole_across_pauses),
        cmocka_unit_test(test_reads_complete_before_parking),
        cmocka_unit_test(test_internal_error_and_reset),
        cmocka_unit_test(test_triple_fault_asks_for_a_reset),
        cmocka_unit_test(test_reset_undoes_everything),
        cmocka_unit_test(test_ioeventfd),
        cmocka_unit_test(test_irqfd_and_irq_line),
        cmocka_unit_test(test_32_vcpus),
    };

    log_init("test-vm", NULL);
    return cmocka_run_group_tests_name("vm", tests, NULL, NULL);
}
