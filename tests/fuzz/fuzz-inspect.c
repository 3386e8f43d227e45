/*
 * Process names from the memory of a guest that lies: the input spoils a small kernel that was right (BTF, page tables, tasks,
 * memory descriptors), between looks. Whatever it does, a look ends, what it gives is well formed, and once the memory is
 * as it was the names are, too.
 *
 * Input: operations of a byte and its arguments.
 */
#include "config.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "base/log.h"
#include "fake-linux.h"
#include "inspect/btf-check.h"

#define MAX_OPS 60
#define PAGES (FL_SIZE / GUEST_PAGE_SIZE)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct fake_linux fl;
static uint8_t *pristine;    /* guest memory as it was made */
static bool touched[PAGES];

static void make(void)
{
    log_set_level(LOG_LEVEL_ERR);
    fake_linux_init(&fl, 4, 0x6400000, FL_BTF_GOOD);
    fake_linux_thread(&fl, 2, "kthreadd");
    fake_linux_process(&fl, 1, "init");
    fake_linux_process(&fl, 100, "sh");
    fake_linux_process(&fl, 101, "dirty");
    pristine = malloc(FL_SIZE);
    if (!pristine || mem_read(fl.guest.mem, 0, pristine, FL_SIZE) < 0)
        abort();
}

static void restore(void)
{
    for (size_t i = 0; i < PAGES; i++) {
        if (touched[i] && mem_write(fl.guest.mem, i * GUEST_PAGE_SIZE, pristine + i * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE) < 0)
            abort();
        touched[i] = false;
    }
}

static void spoil(gpa_t at, const uint8_t *bytes, size_t len)
{
    if (mem_write(fl.guest.mem, at, bytes, len) < 0)
        return;
    touched[at / GUEST_PAGE_SIZE] = touched[(at + len - 1) / GUEST_PAGE_SIZE] = true;
}

struct input {
    const uint8_t *data;
    size_t left;
};

static uint64_t take(struct input *in, size_t bytes)
{
    uint64_t v = 0;

    bytes = MIN(bytes, in->left);
    if (bytes)
        memcpy(&v, in->data, bytes);
    in->data += bytes;
    in->left -= bytes;
    return v;
}

/* Where things are, so that an input of a few bytes meets them. */
static gpa_t take_place(struct input *in)
{
    uint64_t what = take(in, 1), offset = take(in, 2);
    const struct fake_linux_task *t = &fl.tasks[(what >> 4) % fl.count];

    switch (what % 16) {
    case 0:
    case 1:
        return FL_RO + FL_BTF_AT + offset % fl.btf_len;
    case 2:
        return fake_linux_gpa(&fl, fl.init_task) + offset % FL_TASK_SIZE;
    case 3:
        return fake_linux_gpa(&fl, fl.init_task + FL_TASKS_LINK) + offset % 16;
    case 4:
        return fake_linux_gpa(&fl, t->task) + offset % FL_TASK_SIZE;
    case 5:
        return fake_linux_gpa(&fl, t->task + FL_TASKS_LINK) + offset % 16;
    case 6:
        return fake_linux_gpa(&fl, t->task + FL_MM) + offset % 8;
    case 7:
        return FL_MMS + offset % (FL_MAX * FL_MM_SIZE);
    case 8:
        return fl.kernel_root + 2048 + offset % 2048;
    case 9:
        return FL_RW + offset * 4;
    case 10:
        return FL_RO + offset * 4;
    case 11:
        return take(in, 4) % FL_SIZE;
    default:
        return gfn_to_gpa(1) + offset % gfn_to_gpa(fl.guest.next_table - 1);
    }
}

/* A value that leads somewhere. */
static uint64_t take_pointer(struct input *in)
{
    uint64_t what = take(in, 1), n = (what >> 4) % fl.count;

    switch (what % 6) {
    case 0:
        return fl.tasks[n].task + FL_TASKS_LINK;
    case 1:
        return fl.tasks[n].mm;
    case 2:
        return fl.direct + fl.tasks[n].root;
    case 3:
        return fl.init_task + FL_TASKS_LINK;
    case 4:
        return fl.direct + take(in, 3);
    default:
        return fl.image + take(in, 3);
    }
}

static void look(struct inspect *in, gpa_t root, unsigned int levels)
{
    int r = inspect_look(in, root, levels);
    size_t count;
    const struct inspect_process *p = inspect_processes(in, &count);

    assert(r == 0 || (count == 0 && inspect_why(in)[0]));
    for (size_t i = 0; i < count; i++) {
        size_t len = strnlen(p[i].comm, sizeof(p[i].comm));

        assert(len > 0 && len < sizeof(p[i].comm) && p[i].pid > 0 && p[i].root < FL_SIZE);
        assert(i == 0 || p[i - 1].root < p[i].root);
        for (size_t c = 0; c < len; c++)
            assert(p[i].comm[c] >= 0x20 && p[i].comm[c] <= 0x7e);
        assert(inspect_find(in, p[i].root) == &p[i]);
    }
}

static void one(struct inspect *in, struct input *input)
{
    uint8_t bytes[64];
    uint64_t value, op = take(input, 1);
    gpa_t at;

    switch (op % 5) {
    case 0:
        at = take_place(input);
        value = take(input, 1) % sizeof(bytes);
        for (uint64_t i = 0; i <= value; i++)
            bytes[i] = (uint8_t)take(input, 1);
        spoil(at, bytes, (size_t)value + 1);
        break;
    case 1:
        at = take_place(input) & ~UINT64_C(7);
        value = take_pointer(input);
        spoil(at, (uint8_t *)&value, sizeof(value));
        break;
    case 2:
        at = take_place(input);
        value = take(input, 4);
        spoil(at, (uint8_t *)&value, 4);
        break;
    case 3:
        look(in, fl.kernel_root, 4);
        break;
    case 4:
        look(in, gfn_to_gpa(take(input, 2)), 4 + (op >> 7));
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {.data = data, .left = size};
    struct inspect_layout layout;
    struct inspect_why why;
    struct inspect *in;
    size_t count;

    if (!pristine)
        make();
    /* The input as a blob, too. */
    (void)inspect_layout_read(data, size, &layout, &why);
    in = fake_linux_inspect(&fl);
    for (int i = 0; i < MAX_OPS && input.left; i++)
        one(in, &input);
    look(in, fl.kernel_root, 4);
    restore();
    look(in, fl.kernel_root, 4);
    inspect_processes(in, &count);
    assert(count == 3);
    inspect_free(in);
    return 0;
}
