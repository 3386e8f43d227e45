/*
 * Guest memory with as much of a Linux kernel in it as the inspection looks at: page tables, a BTF blob in read-only memory,
 * the first task, a list of processes. What it writes is right; tests then spoil it.
 */
#ifndef UMBRA_TESTS_FAKE_LINUX_H
#define UMBRA_TESTS_FAKE_LINUX_H

#include "fake-guest.h"
#include "inspect/inspect.h"

#define FL_SIZE (UINT64_C(16) << 20)
/* Guest physical: the kernel's read-only and writable part, objects; the direct map is all of RAM. */
#define FL_RO (UINT64_C(4) << 20)
#define FL_RW (UINT64_C(6) << 20)
#define FL_PART 0x40000u /* of each part, as pages of 4 KiB */
#define FL_TASKS (UINT64_C(8) << 20)
#define FL_MMS (UINT64_C(10) << 20)
#define FL_BTF_AT 0x12345u /* in the read-only part; no section of a kernel's aligns it */
#define FL_INIT_AT 0x4940u /* in the writable part */
#define FL_TASK_SIZE 0x800u
#define FL_MM_SIZE 0x110u /* no two differ in one byte only */
#define FL_MAX 12u

/* Where the members are. */
#define FL_TASKS_LINK 0x60u /* in a struct without a name at 0x20 */
#define FL_MM 0x108u
#define FL_PID 0x200u
#define FL_TGID 0x204u
#define FL_START 0x300u
#define FL_COMM 0x400u
#define FL_PGD 0x48u

/* What the BTF says differently from a kernel's. */
enum fl_btf {
    FL_BTF_GOOD,
    FL_BTF_NO_START,
    FL_BTF_NO_TASK,
    FL_BTF_NO_PGD,
    FL_BTF_LONG_COMM, /* 32 bytes */
    FL_BTF_LONG_PID,  /* 8 bytes */
    FL_BTF_BIT_PID,   /* a bit field */
    FL_BTF_TASKS_POINTER,
    FL_BTF_MM_OTHER,  /* a pointer to another struct */
    FL_BTF_WIDE,      /* comm too far from the rest */
    FL_BTF_OUTSIDE,   /* comm beyond the end of the struct */
    FL_BTF_DEEP,      /* nested as no kernel does */
};

struct fake_linux_task {
    gva_t task, mm;
    gpa_t root;
    uint32_t pid;
    char comm[INSPECT_COMM_SIZE];
};

struct fake_linux {
    struct fake_guest guest;
    gpa_t kernel_root;
    gva_t image, direct; /* of FL_RO, and of guest physical 0 */
    gva_t init_task;
    size_t btf_len;
    struct fake_linux_task tasks[FL_MAX];
    unsigned int count;
};

/* A kernel with `levels` page-table levels, its image moved by `kaslr` (a multiple of 2 MiB), and no process. */
void fake_linux_init(struct fake_linux *fl, unsigned int levels, uint64_t kaslr, enum fl_btf btf);
void fake_linux_clear(struct fake_linux *fl);

/* A BTF blob; *ret_len bytes, the caller's to free. */
void *fake_linux_btf(enum fl_btf kind, size_t *ret_len);

/* Add a process at the end of the list; its number. A kernel thread: without an address space. */
unsigned int fake_linux_process(struct fake_linux *fl, uint32_t pid, const char *comm);
unsigned int fake_linux_thread(struct fake_linux *fl, uint32_t pid, const char *comm);
/* Take it out of the list as the kernel does, and put it back at the end. */
void fake_linux_unlink(struct fake_linux *fl, unsigned int process);
void fake_linux_link(struct fake_linux *fl, unsigned int process);

/* Read and write through the direct map or the image. */
uint64_t fake_linux_get(struct fake_linux *fl, gva_t gva, size_t size);
void fake_linux_set(struct fake_linux *fl, gva_t gva, uint64_t value, size_t size);
/* Guest physical address of what is in the direct map or the image. */
gpa_t fake_linux_gpa(const struct fake_linux *fl, gva_t gva);

/* An inspection of it. */
struct inspect *fake_linux_inspect(const struct fake_linux *fl);

#endif
