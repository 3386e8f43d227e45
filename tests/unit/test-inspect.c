/* Names of processes from guest memory: found where they are, and never a wrong one however that memory is spoilt. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "fake-linux.h"
#include "inspect/btf-check.h"
#include "rand.h"

static struct fake_linux fl;

/* -- helpers ---------------------------------------------------------------------------------------------------------- */

static int look(struct inspect *in)
{
    return inspect_look(in, fl.kernel_root, fl.guest.paging.levels);
}

/* Every name is that of the process with that root; how many there are. */
static size_t check_names(const struct inspect *in)
{
    size_t count;
    const struct inspect_process *found = inspect_processes(in, &count);

    for (size_t i = 0; i < count; i++) {
        const struct fake_linux_task *t = NULL;

        for (unsigned int n = 0; n < fl.count; n++)
            if (fl.tasks[n].root && fl.tasks[n].root == found[i].root)
                t = &fl.tasks[n];
        assert_non_null(t);
        assert_int_equal(found[i].pid, t->pid);
        assert_string_equal(found[i].comm, t->comm);
        assert_ptr_equal(inspect_find(in, t->root), &found[i]);
    }
    return count;
}

/* A kernel with threads and processes: 5 of 7 have names. */
static void make(unsigned int levels, uint64_t kaslr, enum fl_btf btf)
{
    static const char *const names[] = {"init", "sh", "dirty", "a b-c/d:e", "123456789012345"};

    fake_linux_init(&fl, levels, kaslr, btf);
    fake_linux_thread(&fl, 2, "kthreadd");
    for (unsigned int i = 0; i < ARRAY_SIZE(names); i++)
        fake_linux_process(&fl, i == 0 ? 1 : 99 + i, names[i]);
    fake_linux_thread(&fl, 333, "kworker/0:1");
}
#define NAMED 5u
enum { P_KTHREADD, P_INIT, P_SH, P_DIRTY, P_ODD, P_LONG, P_KWORKER };

static void expect_names(unsigned int levels, uint64_t kaslr, enum fl_btf btf)
{
    struct inspect *in;

    make(levels, kaslr, btf);
    in = fake_linux_inspect(&fl);
    assert_int_equal(look(in), 0);
    assert_string_equal(inspect_why(in), "");
    assert_int_equal(check_names(in), NAMED);
    assert_null(inspect_find(in, fl.kernel_root));
    /* Again, through a process's page tables, from what is known now. */
    assert_int_equal(inspect_look(in, fl.tasks[P_SH].root, levels), 0);
    assert_int_equal(check_names(in), NAMED);
    inspect_free(in);
    fake_linux_clear(&fl);
}

/* -- what is right ---------------------------------------------------------------------------------------------------- */

static void test_names(void **state)
{
    expect_names(4, 0, FL_BTF_GOOD);
    expect_names(4, 0x1ee00000, FL_BTF_GOOD);
    expect_names(5, 0, FL_BTF_GOOD);
    expect_names(5, 0x3ea00000, FL_BTF_GOOD);
    expect_names(4, 0, FL_BTF_NO_START);
}

static void test_names_change(void **state)
{
    struct inspect *in;

    make(4, 0, FL_BTF_GOOD);
    in = fake_linux_inspect(&fl);
    assert_int_equal(look(in), 0);
    fake_linux_unlink(&fl, P_DIRTY);
    assert_int_equal(look(in), 0);
    assert_int_equal(check_names(in), NAMED - 1);
    assert_null(inspect_find(in, fl.tasks[P_DIRTY].root));
    fake_linux_link(&fl, P_DIRTY);
    assert_int_equal(look(in), 0);
    assert_int_equal(check_names(in), NAMED);
    inspect_free(in);
    fake_linux_clear(&fl);
}

/* The guest starts another kernel: what was known of the first is not used. */
static void test_reboot(void **state)
{
    struct inspect *in;
    struct fake_linux next;
    uint8_t page[GUEST_PAGE_SIZE];

    make(4, 0, FL_BTF_GOOD);
    in = fake_linux_inspect(&fl);
    assert_int_equal(look(in), 0);
    next = fl;
    make(4, 0x200000, FL_BTF_NO_START);
    fake_linux_process(&fl, 4242, "later");
    for (gpa_t at = 0; at < FL_SIZE; at += sizeof(page)) {
        assert_int_equal(mem_read(fl.guest.mem, at, page, sizeof(page)), 0);
        assert_int_equal(mem_write(next.guest.mem, at, page, sizeof(page)), 0);
    }
    assert_int_equal(look(in), 0);
    assert_int_equal(check_names(in), NAMED + 1);
    inspect_free(in);
    fake_linux_clear(&next);
    fake_linux_clear(&fl);
}

/* A child that has its parent's memory until it starts a program: the address space is the parent's. */
static void test_vfork(void **state)
{
    struct inspect *in;
    const struct inspect_process *p;

    make(4, 0, FL_BTF_GOOD);
    fake_linux_thread(&fl, 500, "child");
    fake_linux_set(&fl, fl.tasks[fl.count - 1].task + FL_MM, fl.tasks[P_SH].mm, 8);
    in = fake_linux_inspect(&fl);
    assert_int_equal(look(in), 0);
    assert_int_equal(check_names(in), NAMED);
    p = inspect_find(in, fl.tasks[P_SH].root);
    assert_non_null(p);
    assert_int_equal(p->others, 1);
    inspect_free(in);
    fake_linux_clear(&fl);
}

/* -- what is wrong ---------------------------------------------------------------------------------------------------- */

static gpa_t btf_at(size_t offset)
{
    return FL_RO + FL_BTF_AT + offset;
}

static void write_gpa(gpa_t gpa, const void *data, size_t len)
{
    assert_int_equal(mem_write(fl.guest.mem, gpa, data, len), 0);
}

static void set32(gpa_t gpa, uint32_t v)
{
    write_gpa(gpa, &v, sizeof(v));
}

static uint32_t get32(gpa_t gpa)
{
    uint32_t v;

    assert_int_equal(mem_read(fl.guest.mem, gpa, &v, sizeof(v)), 0);
    return v;
}

static void spoil_magic(void) { set32(btf_at(0), 0x0001eb9e); }
static void spoil_version(void) { set32(btf_at(0), 0x0002eb9f); }
static void spoil_header(void) { set32(btf_at(4), 26); }
static void spoil_types_off(void) { set32(btf_at(8), 4); }
static void spoil_types_len(void) { set32(btf_at(12), get32(btf_at(12)) - 4); }
static void spoil_strings_len(void) { set32(btf_at(20), get32(btf_at(20)) - 1); }
static void spoil_huge(void) { set32(btf_at(20), UINT32_MAX - 100); }
static void spoil_beyond(void) { set32(btf_at(20), 4u << 20); }
static void spoil_kind(void) { set32(btf_at(24 + 4), 31u << 24); }
static void spoil_name(void) { set32(btf_at(24), get32(btf_at(20))); }
/* The array's element: type 4 is behind two integers of 16 bytes and one more. */
static void spoil_type_number(void) { set32(btf_at(24 + 3 * 16 + 12), 100000); }
static void spoil_type_loop(void)
{
    /* The pid's type is a typedef of a const: let the const be one of the typedef. */
    set32(btf_at(24 + 3 * 16 + 24 + 8), 6);
}

static void remap(gva_t gva, gpa_t gpa, uint64_t flags)
{
    for (uint64_t at = 0; at < FL_PART; at += GUEST_PAGE_SIZE)
        fake_guest_map(&fl.guest, fl.kernel_root, gva + at, gpa_to_gfn(gpa + at), 1, flags);
}

static void spoil_writable(void) { remap(fl.image, FL_RO, FG_P | FG_W | FG_A); }

static void spoil_user_image(void)
{
    remap(fl.image, FL_RO, FG_P | FG_U | FG_A);
    remap(fl.image + (2 << 20), FL_RW, FG_USER);
}

static void spoil_no_image(void)
{
    remap(fl.image, 0, 0);
    remap(fl.image + (2 << 20), 0, 0);
}

static void spoil_large_image(void)
{
    for (uint64_t i = 0; i < 200; i++)
        fake_guest_map(&fl.guest, fl.kernel_root, fl.image + ((i + 4) << 21), gpa_to_gfn(FL_RO), 2, FG_P | FG_A);
}

static void spoil_second_btf(void)
{
    size_t len;
    void *blob = fake_linux_btf(FL_BTF_NO_START, &len);

    write_gpa(FL_RO + 0x20001, blob, len);
    free(blob);
}

static gva_t init_link(void)
{
    return fl.init_task + FL_TASKS_LINK;
}

static void spoil_init_comm(void) { fake_linux_set(&fl, fl.init_task + FL_COMM, 'x', 1); }
static void spoil_init_pid(void) { fake_linux_set(&fl, fl.init_task + FL_PID, 1, 4); }
static void spoil_init_tgid(void) { fake_linux_set(&fl, fl.init_task + FL_TGID, 1, 4); }
static void spoil_init_mm(void) { fake_linux_set(&fl, fl.init_task + FL_MM, fl.tasks[P_INIT].mm, 8); }
static void spoil_init_next(void) { fake_linux_set(&fl, init_link(), fl.tasks[P_SH].task + FL_TASKS_LINK, 8); }
static void spoil_init_prev(void) { fake_linux_set(&fl, init_link() + 8, fl.tasks[P_SH].task + FL_TASKS_LINK, 8); }
static void spoil_init_zero(void) { fake_linux_set(&fl, init_link(), 0, 8); }

/* As another process of the guest could make it: all looks right, the list is its own. */
static void spoil_second_init(void)
{
    gva_t fake = fl.image + (2 << 20) + 0x20000;
    char comm[] = "swapper/0";

    write_gpa(fake_linux_gpa(&fl, fake + FL_COMM), comm, sizeof(comm));
    fake_linux_set(&fl, fake + FL_TASKS_LINK, fake + FL_TASKS_LINK, 8);
    fake_linux_set(&fl, fake + FL_TASKS_LINK + 8, fake + FL_TASKS_LINK, 8);
}

/* The true one is damaged, and there is a trap that is whole. */
static void spoil_init_and_trap(void)
{
    spoil_second_init();
    spoil_init_next();
}

static void spoil_many_swappers(void)
{
    char comm[] = "swapper/0";

    for (unsigned int i = 0; i < 70; i++)
        write_gpa(FL_RW + 0x20000 + i * 64, comm, sizeof(comm));
}

static void set_link(unsigned int process, bool prev, gva_t to)
{
    fake_linux_set(&fl, fl.tasks[process].task + FL_TASKS_LINK + (prev ? 8 : 0), to, 8);
}
static gva_t link_of(unsigned int process)
{
    return fl.tasks[process].task + FL_TASKS_LINK;
}

static void spoil_next_loop(void) { set_link(P_ODD, false, link_of(P_SH)); }
static void spoil_next_self(void) { set_link(P_ODD, false, link_of(P_ODD)); }
static void spoil_next_skip(void) { set_link(P_SH, false, link_of(P_ODD)); }
static void spoil_next_user(void) { set_link(P_SH, false, 0x400000); }
static void spoil_next_canonical(void) { set_link(P_SH, false, UINT64_C(0x8000888000000000)); }
static void spoil_next_unmapped(void) { set_link(P_SH, false, fl.direct + (UINT64_C(1) << 40)); }
static void spoil_next_odd(void) { set_link(P_SH, false, link_of(P_DIRTY) + 1); }
static void spoil_next_end(void) { set_link(P_SH, false, UINT64_MAX & ~UINT64_C(7)); }
static void spoil_prev(void) { set_link(P_DIRTY, true, link_of(P_INIT)); }
static void spoil_prev_poison(void) { set_link(P_DIRTY, true, UINT64_C(0xdead000000000122)); }
static void spoil_pid_zero(void) { fake_linux_set(&fl, fl.tasks[P_SH].task + FL_PID, 0, 8); }
static void spoil_pid_large(void)
{
    fake_linux_set(&fl, fl.tasks[P_SH].task + FL_PID, 5u << 20, 4);
    fake_linux_set(&fl, fl.tasks[P_SH].task + FL_TGID, 5u << 20, 4);
}
static void spoil_pid_thread(void) { fake_linux_set(&fl, fl.tasks[P_SH].task + FL_TGID, 1, 4); }
static void spoil_pid_twice(void)
{
    fake_linux_set(&fl, fl.tasks[P_SH].task + FL_PID, 1, 4);
    fake_linux_set(&fl, fl.tasks[P_SH].task + FL_TGID, 1, 4);
}

/* Everything that makes the whole answer unbelievable: no name at all, and the reason. */
static const struct {
    const char *what;
    void (*spoil)(void);
    int error;
    const char *why;
} spoilt[] = {
    {"magic", spoil_magic, -ENOENT, "BTF: none in the kernel's read-only memory"},
    {"version", spoil_version, -ENOENT, "BTF: none"},
    {"header length", spoil_header, -ENOENT, "BTF: none"},
    {"types offset", spoil_types_off, -ENOENT, "BTF: none"},
    {"types length", spoil_types_len, -ENOENT, "BTF: none"},
    {"strings length", spoil_strings_len, -ENOENT, "BTF: its strings have no end"},
    {"longer than any", spoil_huge, -ENOENT, "BTF: none"},
    {"longer than memory", spoil_beyond, -ENOENT, "goes beyond the kernel's read-only memory"},
    {"kind", spoil_kind, -ENOENT, "do not fit into their section"},
    {"name offset", spoil_name, -ENOENT, "BTF: type 1 is wrong"},
    {"type number", spoil_type_number, -ENOENT, "BTF: type 4 is wrong"},
    {"type loop", spoil_type_loop, -ENOENT, "struct task_struct has no member pid"},
    {"writable image", spoil_writable, -ENOENT, "BTF: none in the kernel's read-only memory"},
    {"user image", spoil_user_image, -ENOENT, "map no Linux kernel"},
    {"no image", spoil_no_image, -ENOENT, "map no Linux kernel"},
    {"large image", spoil_large_image, -E2BIG, "more than 256 MiB"},
    {"two blobs", spoil_second_btf, -ENOTUNIQ, "BTF: two blobs differ"},
    {"swapper's name", spoil_init_comm, -ENOENT, "there is no first task"},
    {"swapper's pid", spoil_init_pid, -ENOENT, "there is no first task"},
    {"swapper's group", spoil_init_tgid, -ENOENT, "there is no first task"},
    {"swapper's memory", spoil_init_mm, -ENOENT, "there is no first task"},
    {"swapper's next", spoil_init_next, -EBADMSG, "not linked both ways"},
    {"swapper's prev", spoil_init_prev, -EBADMSG, "not linked both ways"},
    {"swapper's list", spoil_init_zero, -ENOENT, "there is no first task"},
    {"two swappers", spoil_second_init, -ENOTUNIQ, "two that could be the first"},
    {"a trap", spoil_init_and_trap, -EBADMSG, "not linked both ways"},
    {"many swappers", spoil_many_swappers, -ENOTUNIQ, "more than 64 places"},
    {"loop", spoil_next_loop, -EAGAIN, "points back at"},
    {"self loop", spoil_next_self, -EAGAIN, "points back at"},
    {"one left out", spoil_next_skip, -EAGAIN, "points back at"},
    {"user pointer", spoil_next_user, -EAGAIN, "which is none"},
    {"pointer that is not canonical", spoil_next_canonical, -EAGAIN, "which is none"},
    {"pointer to nothing", spoil_next_unmapped, -EAGAIN, "which is none"},
    {"odd pointer", spoil_next_odd, -EAGAIN, "which is none"},
    {"pointer to the end", spoil_next_end, -EAGAIN, "which is none"},
    {"prev", spoil_prev, -EAGAIN, "points back at"},
    {"poison", spoil_prev_poison, -EAGAIN, "points back at"},
    {"pid 0", spoil_pid_zero, -EAGAIN, "has pid 0"},
    {"large pid", spoil_pid_large, -EAGAIN, "has pid 5242880"},
    {"a thread", spoil_pid_thread, -EAGAIN, "has pid 100 in group 1"},
    {"pid twice", spoil_pid_twice, -EAGAIN, "two have the same pid"},
};

static void expect_none(struct inspect *in, const char *what, int error, const char *why)
{
    int r = look(in);
    size_t count;

    inspect_processes(in, &count);
    if (r != error || count != 0 || !strstr(inspect_why(in), why)) {
        print_error("%s: %d (%s) with %zu names, not %d (%s)\n", what, r, inspect_why(in), count, error, why);
        fail();
    }
}

static void test_spoilt(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(spoilt); i++) {
        struct inspect *in;

        make(4, 0, FL_BTF_GOOD);
        in = fake_linux_inspect(&fl);
        spoilt[i].spoil();
        expect_none(in, spoilt[i].what, spoilt[i].error, spoilt[i].why);
        inspect_free(in);
        fake_linux_clear(&fl);
    }
}

/* The same where all was well at the first look. */
static void test_spoilt_later(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(spoilt); i++) {
        struct inspect *in;
        int r;

        /* What a second one would be is not searched for once there is one; samples need not meet every byte. */
        if (spoilt[i].error == -ENOTUNIQ || spoilt[i].error == -E2BIG || spoilt[i].spoil == spoil_writable ||
            spoilt[i].spoil == spoil_user_image)
            continue;
        make(4, 0, FL_BTF_GOOD);
        in = fake_linux_inspect(&fl);
        assert_int_equal(look(in), 0);
        spoilt[i].spoil();
        r = look(in);
        if (r == 0 || check_names(in) != 0) {
            print_error("%s: names of a kernel that was spoilt\n", spoilt[i].what);
            fail();
        }
        inspect_free(in);
        fake_linux_clear(&fl);
    }
}

static void test_btf_kinds(void **state)
{
    static const struct {
        enum fl_btf kind;
        const char *why;
    } kinds[] = {
        {FL_BTF_NO_TASK, "there is no struct task_struct"},
        {FL_BTF_NO_PGD, "struct mm_struct has no member pgd"},
        {FL_BTF_LONG_COMM, "has no member comm"},
        {FL_BTF_LONG_PID, "has no member pid"},
        {FL_BTF_BIT_PID, "has no member pid"},
        {FL_BTF_TASKS_POINTER, "has no member tasks"},
        {FL_BTF_MM_OTHER, "has no member mm"},
        {FL_BTF_WIDE, "bytes wide"},
        {FL_BTF_OUTSIDE, "has no member comm"},
        {FL_BTF_DEEP, "has no member tasks"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        struct inspect *in;

        make(4, 0, kinds[i].kind);
        in = fake_linux_inspect(&fl);
        expect_none(in, "BTF", -ENOENT, kinds[i].why);
        inspect_free(in);
        fake_linux_clear(&fl);
    }
}

/* One process that cannot be believed: it has no name, the others have. */
static void without(unsigned int process, gva_t at, uint64_t value, size_t size)
{
    struct inspect *in;

    fake_linux_set(&fl, at, value, size);
    in = fake_linux_inspect(&fl);
    assert_int_equal(look(in), 0);
    assert_int_equal(check_names(in), NAMED - 1);
    assert_null(inspect_find(in, fl.tasks[process].root));
    assert_non_null(strstr(inspect_why(in), "1 processes have no name"));
    inspect_free(in);
    fake_linux_clear(&fl);
}

static void test_one_spoilt(void **state)
{
    const struct fake_linux_task *t = &fl.tasks[P_DIRTY];

    make(4, 0, FL_BTF_GOOD);
    without(P_DIRTY, t->task + FL_COMM, 0x1b, 1);
    make(4, 0, FL_BTF_GOOD);
    without(P_DIRTY, t->task + FL_COMM, 0, 1);
    make(4, 0, FL_BTF_GOOD);
    without(P_LONG, fl.tasks[P_LONG].task + FL_COMM + 15, 'x', 1);
    make(4, 0, FL_BTF_GOOD);
    without(P_DIRTY, t->task + FL_MM, UINT64_C(0xffffc90000000000), 8);
    make(4, 0, FL_BTF_GOOD);
    without(P_DIRTY, t->task + FL_MM, 0x1000, 8);
    make(4, 0, FL_BTF_GOOD);
    without(P_DIRTY, t->mm + FL_PGD, 0, 8);
    make(4, 0, FL_BTF_GOOD);
    without(P_DIRTY, t->mm + FL_PGD, fl.direct + t->root + 8, 8);
    make(4, 0, FL_BTF_GOOD);
    without(P_DIRTY, t->mm + FL_PGD, fl.direct + FL_TASKS, 8); /* no page tables */
    make(4, 0, FL_BTF_GOOD);
    without(P_DIRTY, t->mm + FL_PGD, fl.direct + FL_SIZE, 8); /* not RAM */
}

/* Two memory descriptors with the same page tables: neither is believed. */
static void test_root_twice(void **state)
{
    struct inspect *in;

    make(4, 0, FL_BTF_GOOD);
    fake_linux_set(&fl, fl.tasks[P_DIRTY].mm + FL_PGD, fl.direct + fl.tasks[P_SH].root, 8);
    in = fake_linux_inspect(&fl);
    assert_int_equal(look(in), 0);
    assert_int_equal(check_names(in), NAMED - 2);
    assert_null(inspect_find(in, fl.tasks[P_SH].root));
    inspect_free(in);
    fake_linux_clear(&fl);
}

/* Which page tables are looked through: those that most agree with. A page that a process owns may be among them. */
static void test_choose(void **state)
{
    struct inspect *in;
    gpa_t roots[4];
    size_t chosen = 99;

    make(4, 0, FL_BTF_GOOD);
    in = fake_linux_inspect(&fl);
    roots[0] = FL_TASKS; /* no page tables */
    roots[1] = fl.tasks[P_SH].root;
    roots[2] = fl.tasks[P_DIRTY].root;
    roots[3] = fl.kernel_root;
    assert_int_equal(inspect_choose_root(in, roots, 4, &chosen), 0);
    assert_int_equal(chosen, 1);
    assert_int_equal(inspect_choose_root(in, roots + 3, 1, &chosen), 0);
    assert_int_equal(chosen, 0);
    /* A tie is no majority; nothing at all is none. */
    fake_guest_set(&fl.guest, gpa_to_gfn(FL_TASKS), 511, 0x5003);
    assert_int_equal(inspect_choose_root(in, roots, 2, &chosen), -ENOTUNIQ);
    assert_int_equal(inspect_choose_root(in, roots, 3, &chosen), 0);
    assert_int_equal(chosen, 1);
    roots[0] = FL_SIZE;
    assert_int_equal(inspect_choose_root(in, roots, 1, &chosen), -ENOENT);
    assert_int_equal(inspect_choose_root(in, roots, 0, &chosen), -ENOENT);
    assert_non_null(strstr(inspect_why(in), "no page tables"));
    inspect_free(in);
    fake_linux_clear(&fl);
}

static void test_bad_arguments(void **state)
{
    struct inspect_slot slot = {.size = FL_SIZE}, two[2] = {slot, slot};
    struct inspect *in;

    assert_int_equal(inspect_new(-1, &slot, 0, &in), -EINVAL);
    assert_int_equal(inspect_new(-1, two, 3, &in), -EINVAL);
    assert_int_equal(inspect_new(-1, two, 2, &in), -EINVAL);
    slot.size = 100;
    assert_int_equal(inspect_new(-1, &slot, 1, &in), -EINVAL);
    slot.size = UINT64_MAX & ~UINT64_C(0xfff);
    assert_int_equal(inspect_new(-1, &slot, 1, &in), -EINVAL);
    make(4, 0, FL_BTF_GOOD);
    in = fake_linux_inspect(&fl);
    assert_int_equal(inspect_look(in, fl.kernel_root, 3), -EINVAL);
    assert_int_equal(inspect_look(in, FL_SIZE, 4), -ENOENT);
    assert_int_equal(inspect_look(in, UINT64_MAX, 4), -ENOENT);
    inspect_free(in);
    /* A slot that is larger than its file. */
    slot.size = 2 * FL_SIZE;
    assert_int_equal(inspect_new(mem_fd(fl.guest.mem), &slot, 1, &in), 0);
    assert_int_equal(inspect_look(in, FL_SIZE + 0x1000, 4), -ENOENT);
    assert_int_equal(look(in), 0);
    inspect_free(in);
    fake_linux_clear(&fl);
}

/* -- at random -------------------------------------------------------------------------------------------------------- */

struct region {
    gpa_t gpa;
    size_t len;
};

/* Where something is, and a byte there tells who a process is or leads to it; names themselves are left alone. */
static struct region pick(struct rng *rng)
{
    unsigned int n = (unsigned int)rng_below(rng, fl.count);
    const struct fake_linux_task *t = &fl.tasks[n];

    switch (rng_below(rng, 8)) {
    case 0:
        return (struct region){btf_at(0), fl.btf_len};
    case 1:
        return (struct region){fake_linux_gpa(&fl, fl.init_task), FL_TASK_SIZE};
    case 2:
        return (struct region){fake_linux_gpa(&fl, init_link()), 16};
    case 3:
        return (struct region){fake_linux_gpa(&fl, t->task), FL_COMM};
    case 4:
        return (struct region){fake_linux_gpa(&fl, t->task + FL_TASKS_LINK), 16};
    case 5:
        return (struct region){fake_linux_gpa(&fl, t->task + FL_PID), 8};
    case 6:
        return (struct region){fake_linux_gpa(&fl, (t->mm ? t->mm : fl.tasks[P_SH].mm) + FL_PGD), 8};
    default:
        return (struct region){gfn_to_gpa(1), (size_t)gfn_to_gpa(fl.guest.next_table - 1)};
    }
}

/* One byte is wrong: there are the right names, or fewer, or none. */
static void test_random_byte(void **state)
{
    struct rng rng = rng_seeded(rng_test_seed("inspect"));
    unsigned int whole = 0, fewer = 0, none = 0;

    make(4, 0, FL_BTF_GOOD);
    for (unsigned int i = 0; i < 1500; i++) {
        struct inspect *in = fake_linux_inspect(&fl);
        struct region r = pick(&rng);
        gpa_t at = r.gpa + rng_below(&rng, r.len);
        uint8_t old, bad;
        size_t count;

        assert_int_equal(mem_read(fl.guest.mem, at, &old, 1), 0);
        bad = (uint8_t)(rng_chance(&rng, 50) ? old ^ 1u << rng_below(&rng, 8) : rng_next(&rng));
        write_gpa(at, &bad, 1);
        look(in);
        count = check_names(in);
        whole += count == NAMED;
        fewer += count > 0 && count < NAMED;
        none += count == 0;
        write_gpa(at, &old, 1);
        assert_int_equal(look(in), 0);
        assert_int_equal(check_names(in), NAMED);
        inspect_free(in);
    }
    /* Something of each kind, or bytes that matter were not met. */
    assert_true(whole > 0 && fewer > 0 && none > 0);
    fake_linux_clear(&fl);
}

/* -- while the guest runs --------------------------------------------------------------------------------------------- */

static bool stop;

/* Processes end and begin, as fast as this thread can. */
static void *guest(void *arg)
{
    unsigned int n = 0;

    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        unsigned int process = P_SH + n++ % 4;

        fake_linux_unlink(&fl, process);
        fake_linux_link(&fl, process);
    }
    return NULL;
}

static void test_running(void **state)
{
    struct inspect *in;
    pthread_t thread;

    make(4, 0, FL_BTF_GOOD);
    in = fake_linux_inspect(&fl);
    assert_int_equal(look(in), 0);
    stop = false;
    assert_int_equal(pthread_create(&thread, NULL, guest, NULL), 0);
    for (unsigned int i = 0; i < 300; i++) {
        look(in);
        check_names(in);
    }
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    assert_int_equal(look(in), 0);
    assert_int_equal(check_names(in), NAMED);
    inspect_free(in);
    fake_linux_clear(&fl);
}

/* -- BTF that is checked ---------------------------------------------------------------------------------------------- */

/* A blob cut short at any place is refused, and so is one with bytes behind it. */
static void test_btf_cut(void **state)
{
    struct inspect_why why = {""};
    size_t len;
    uint8_t *blob = fake_linux_btf(FL_BTF_GOOD, &len);

    assert_int_equal(btf_blob_check(blob, len, &why), 0);
    assert_int_equal(btf_blob_size(blob), len);
    for (size_t cut = 0; cut < len; cut++) {
        uint8_t *copy = malloc(cut ? cut : 1); /* exact, for the sanitizer */

        memcpy(copy, blob, cut);
        assert_int_equal(btf_blob_check(copy, cut, &why), -EBADMSG);
        free(copy);
    }
    free(blob);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_names_change),
        cmocka_unit_test(test_reboot),
        cmocka_unit_test(test_vfork),
        cmocka_unit_test(test_spoilt),
        cmocka_unit_test(test_spoilt_later),
        cmocka_unit_test(test_btf_kinds),
        cmocka_unit_test(test_one_spoilt),
        cmocka_unit_test(test_root_twice),
        cmocka_unit_test(test_choose),
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_random_byte),
        cmocka_unit_test(test_running),
        cmocka_unit_test(test_btf_cut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
