#include "config.h"

#include "fake-linux.h"

#include <bpf/btf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define IMAGE_BASE UINT64_C(0xffffffff81000000)
#define DIRECT_4 UINT64_C(0xffff888000000000)
#define DIRECT_5 UINT64_C(0xff11000000000000)

static int must(int r, const char *what)
{
    if (r < 0) {
        fprintf(stderr, "fake linux: %s failed: %d\n", what, r);
        abort();
    }
    return r;
}

/* -- BTF ---------------------------------------------------------------------- */

struct ids {
    int u8, comm, pid, u64, list, pointer, mm_pointer;
};

static int add_mm(struct btf *btf, const struct ids *ids, enum fl_btf kind)
{
    int inner = must(btf__add_struct(btf, "", 0x100), "struct");

    if (kind != FL_BTF_NO_PGD)
        must(btf__add_field(btf, "pgd", ids->pointer, FL_PGD * 8, 0), "pgd");
    btf__add_struct(btf, "mm_struct", 0x100);
    return must(btf__add_field(btf, "", inner, 0, 0), "field");
}

static void add_task(struct btf *btf, const struct ids *ids, enum fl_btf kind)
{
    int inner = must(btf__add_struct(btf, "", 0x80), "struct");
    uint32_t size = kind == FL_BTF_WIDE ? 0x10000 : FL_TASK_SIZE;
    uint32_t comm = kind == FL_BTF_WIDE ? 0x8000 : kind == FL_BTF_OUTSIDE ? FL_TASK_SIZE - 8 : FL_COMM;

    must(btf__add_field(btf, "tasks", kind == FL_BTF_TASKS_POINTER ? ids->pointer : ids->list, (FL_TASKS_LINK - 0x20) * 8, 0),
         "tasks");
    for (int i = 0; kind == FL_BTF_DEEP && i < 20; i++) {
        int outer = must(btf__add_struct(btf, "", 0x80), "struct");

        must(btf__add_field(btf, "", inner, 0, 0), "field");
        inner = outer;
    }
    must(btf__add_struct(btf, "task_struct", size), "task_struct");
    must(btf__add_field(btf, "", inner, 0x20 * 8, 0), "field");
    must(btf__add_field(btf, "mm", kind == FL_BTF_MM_OTHER ? ids->pointer : ids->mm_pointer, FL_MM * 8, 0), "mm");
    must(btf__add_field(btf, "pid", kind == FL_BTF_LONG_PID ? ids->u64 : ids->pid, FL_PID * 8,
                        kind == FL_BTF_BIT_PID ? 22 : 0), "pid");
    must(btf__add_field(btf, "tgid", ids->pid, FL_TGID * 8, 0), "tgid");
    if (kind != FL_BTF_NO_START)
        must(btf__add_field(btf, "start_time", ids->u64, FL_START * 8, 0), "start_time");
    must(btf__add_field(btf, "comm", ids->comm, comm * 8, 0), "comm");
}

void *fake_linux_btf(enum fl_btf kind, size_t *ret_len)
{
    struct btf *btf = btf__new_empty();
    struct ids ids = {.u8 = 0};
    int index, number, bare, mm;
    const void *data;
    uint32_t len;
    void *copy;

    ids.u8 = must(btf__add_int(btf, "char", 1, BTF_INT_SIGNED), "char");
    index = must(btf__add_int(btf, "unsigned int", 4, 0), "int");
    number = must(btf__add_int(btf, "unsigned long long", 8, 0), "long");
    ids.comm = must(btf__add_array(btf, index, ids.u8, kind == FL_BTF_LONG_COMM ? 32 : 16), "array");
    ids.pid = must(btf__add_typedef(btf, "pid_t", must(btf__add_const(btf, index), "const")), "typedef");
    ids.u64 = must(btf__add_typedef(btf, "u64", number), "typedef");
    ids.pointer = must(btf__add_ptr(btf, ids.u64), "pointer");
    bare = must(btf__add_ptr(btf, ids.u8), "pointer");
    ids.list = must(btf__add_struct(btf, "list_head", 16), "list_head");
    must(btf__add_field(btf, "next", bare, 0, 0), "next");
    must(btf__add_field(btf, "prev", bare, 64, 0), "prev");
    must(add_mm(btf, &ids, kind), "mm");
    mm = must(btf__find_by_name_kind(btf, "mm_struct", BTF_KIND_STRUCT), "mm_struct");
    ids.mm_pointer = must(btf__add_ptr(btf, mm), "pointer");
    if (kind != FL_BTF_NO_TASK)
        add_task(btf, &ids, kind);
    data = btf__raw_data(btf, &len);
    copy = malloc(len);
    memcpy(copy, data, len);
    btf__free(btf);
    *ret_len = len;
    return copy;
}

/* -- memory ------------------------------------------------------------------- */

gpa_t fake_linux_gpa(const struct fake_linux *fl, gva_t gva)
{
    return gva >= fl->image ? FL_RO + (gva - fl->image) : gva - fl->direct;
}

uint64_t fake_linux_get(struct fake_linux *fl, gva_t gva, size_t size)
{
    uint64_t v = 0;

    must(mem_read(fl->guest.mem, fake_linux_gpa(fl, gva), &v, size), "read");
    return v;
}

void fake_linux_set(struct fake_linux *fl, gva_t gva, uint64_t value, size_t size)
{
    must(mem_write(fl->guest.mem, fake_linux_gpa(fl, gva), &value, size), "write");
}

static void set_comm(struct fake_linux *fl, gva_t task, const char *comm)
{
    char bytes[INSPECT_COMM_SIZE] = {0};

    memcpy(bytes, comm, MIN(strlen(comm), sizeof(bytes) - 1));
    must(mem_write(fl->guest.mem, fake_linux_gpa(fl, task + FL_COMM), bytes, sizeof(bytes)), "comm");
}

void fake_linux_init(struct fake_linux *fl, unsigned int levels, uint64_t kaslr, enum fl_btf btf)
{
    struct mmu_paging paging = {.levels = (uint8_t)levels, .nx = true};
    const uint64_t pmd = UINT64_C(2) << 20;
    gva_t list;
    void *blob;

    *fl = (struct fake_linux){.image = IMAGE_BASE + kaslr, .direct = levels == 5 ? DIRECT_5 : DIRECT_4};
    fake_guest_init(&fl->guest, FL_SIZE, paging);
    /* No root of a process is one byte away from the kernel's. */
    fl->guest.next_table = 0x234;
    fl->kernel_root = gfn_to_gpa(fake_guest_frame(&fl->guest));
    fl->guest.next_table = 1;
    for (gpa_t at = 0; at < FL_SIZE; at += pmd)
        fake_guest_map(&fl->guest, fl->kernel_root, fl->direct + at, gpa_to_gfn(at), 2, FG_P | FG_W | FG_A | FG_D | FG_NX);
    for (uint64_t at = 0; at < FL_PART; at += GUEST_PAGE_SIZE) {
        fake_guest_map(&fl->guest, fl->kernel_root, fl->image + at, gpa_to_gfn(FL_RO + at), 1, FG_P | FG_A);
        fake_guest_map(&fl->guest, fl->kernel_root, fl->image + pmd + at, gpa_to_gfn(FL_RW + at), 1,
                       FG_P | FG_W | FG_A | FG_D | FG_NX);
    }
    blob = fake_linux_btf(btf, &fl->btf_len);
    must(mem_write(fl->guest.mem, FL_RO + FL_BTF_AT, blob, fl->btf_len), "BTF");
    free(blob);
    fl->init_task = fl->image + pmd + FL_INIT_AT;
    set_comm(fl, fl->init_task, "swapper/0");
    list = fl->init_task + FL_TASKS_LINK;
    fake_linux_set(fl, list, list, 8);
    fake_linux_set(fl, list + 8, list, 8);
}

void fake_linux_clear(struct fake_linux *fl)
{
    fake_guest_clear(&fl->guest);
}

/* -- processes ---------------------------------------------------------------- */

void fake_linux_link(struct fake_linux *fl, unsigned int process)
{
    gva_t entry = fl->tasks[process].task + FL_TASKS_LINK, head = fl->init_task + FL_TASKS_LINK;
    gva_t last = fake_linux_get(fl, head + 8, 8);

    fake_linux_set(fl, entry, head, 8);
    fake_linux_set(fl, entry + 8, last, 8);
    fake_linux_set(fl, last, entry, 8);
    fake_linux_set(fl, head + 8, entry, 8);
}

void fake_linux_unlink(struct fake_linux *fl, unsigned int process)
{
    gva_t entry = fl->tasks[process].task + FL_TASKS_LINK;
    gva_t next = fake_linux_get(fl, entry, 8), prev = fake_linux_get(fl, entry + 8, 8);

    fake_linux_set(fl, next + 8, prev, 8);
    fake_linux_set(fl, prev, next, 8);
    fake_linux_set(fl, entry + 8, UINT64_C(0xdead000000000122), 8);
}

static gpa_t new_root(struct fake_linux *fl)
{
    gfn_t gfn = fake_guest_frame(&fl->guest);

    for (unsigned int i = 256; i < 512; i++)
        fake_guest_set(&fl->guest, gfn, i, fake_guest_get(&fl->guest, gpa_to_gfn(fl->kernel_root), i));
    return gfn_to_gpa(gfn);
}

unsigned int fake_linux_thread(struct fake_linux *fl, uint32_t pid, const char *comm)
{
    unsigned int n = fl->count++;
    struct fake_linux_task *t = &fl->tasks[n];

    if (n >= FL_MAX)
        abort();
    *t = (struct fake_linux_task){.task = fl->direct + FL_TASKS + n * FL_TASK_SIZE, .pid = pid};
    memcpy(t->comm, comm, MIN(strlen(comm), sizeof(t->comm) - 1));
    fake_linux_set(fl, t->task + FL_PID, pid, 4);
    fake_linux_set(fl, t->task + FL_TGID, pid, 4);
    fake_linux_set(fl, t->task + FL_START, 1000000 + pid, 8);
    set_comm(fl, t->task, comm);
    fake_linux_link(fl, n);
    return n;
}

unsigned int fake_linux_process(struct fake_linux *fl, uint32_t pid, const char *comm)
{
    unsigned int n = fake_linux_thread(fl, pid, comm);
    struct fake_linux_task *t = &fl->tasks[n];

    t->mm = fl->direct + FL_MMS + n * FL_MM_SIZE;
    t->root = new_root(fl);
    fake_linux_set(fl, t->mm + FL_PGD, fl->direct + t->root, 8);
    fake_linux_set(fl, t->task + FL_MM, t->mm, 8);
    return n;
}

struct inspect *fake_linux_inspect(const struct fake_linux *fl)
{
    struct inspect_slot slot = {.base = 0, .size = FL_SIZE, .offset = 0};
    struct inspect *in;

    must(inspect_new(mem_fd(fl->guest.mem), &slot, 1, &in), "inspect_new");
    return in;
}
