/* Valid images: what stands in guest memory, and how the vCPU starts. Offsets are those of the protocols' documents. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/util.h"
#include "boot-images.h"
#include "boot/acpi.h"
#include "mmu/pageset.h"

#define RAM_TYPE 1
#define RESERVED_TYPE 2
#define ACPI_TYPE 3

static const uint8_t *guest(const struct boot_attempt *a, uint64_t gpa, size_t len)
{
    const uint8_t *p = mem_ptr(a->mem, gpa, len);

    assert_non_null(p);
    return p;
}

/* Guest memory at gpa has the image's bytes from `offset` on. */
static void assert_loaded(const struct boot_attempt *a, uint64_t gpa, const uint8_t *data, size_t offset, size_t len)
{
    assert_memory_equal(guest(a, gpa, len), data + offset, len);
}

static void assert_initrd(const struct boot_attempt *a, uint64_t gpa, size_t len)
{
    const uint8_t *p = guest(a, gpa, len);

    for (size_t i = 0; i < len; i++)
        if (p[i] != test_image_byte(i))
            fail_msg("initrd differs at byte %zu", i);
    assert_true(is_aligned(gpa, 4096));
}

static void assert_loads(const struct boot_attempt *a, enum boot_protocol protocol)
{
    if (a->r < 0)
        fail_msg("%d: %s", a->r, a->error);
    assert_int_equal(boot_image_protocol(a->image), protocol);
}

/* The descriptor that the GDT in memory has for a selector is what the segment register holds. */
static void assert_segment(const struct boot_attempt *a, const struct kvm_segment *s)
{
    uint64_t d;

    assert_true(s->selector + 7 <= a->entry.sregs.gdt.limit);
    d = le64_get(guest(a, a->entry.sregs.gdt.base + s->selector, 8));
    assert_int_equal((d >> 16 & 0xffffff) | (d >> 56 << 24), s->base);
    assert_int_equal(d >> 40 & 0xf, s->type);
    assert_int_equal(d >> 44 & 1, s->s);
    assert_int_equal(d >> 47 & 1, s->present);
    assert_int_equal(d >> 53 & 1, s->l);
    assert_int_equal(d >> 54 & 1, s->db);
    assert_int_equal(d >> 55 & 1, s->g);
    assert_int_equal((d & 0xffff) | (d >> 32 & 0xf0000), s->g ? s->limit >> 12 : s->limit);
}

static void assert_flat_entry(const struct boot_attempt *a, uint64_t entry)
{
    const struct kvm_sregs *s = &a->entry.sregs;

    assert_int_equal(s->cr0 & 0x80000001, 1);
    assert_int_equal(s->cr4, 0);
    assert_int_equal(s->efer, 0);
    assert_int_equal(s->cs.type, 11);
    assert_int_equal(s->cs.db, 1);
    assert_int_equal(s->cs.l, 0);
    assert_int_equal(s->cs.limit, UINT32_MAX);
    assert_int_equal(s->ss.limit, UINT32_MAX);
    assert_segment(a, &s->cs);
    assert_segment(a, &s->ds);
    assert_segment(a, &s->es);
    assert_segment(a, &s->ss);
    assert_segment(a, &s->tr);
    assert_int_equal(a->entry.regs.rip, entry);
    assert_int_equal(a->entry.regs.rflags, 2);
}

/* -- memory maps, whatever their format ---------------------------------------- */

struct range {
    uint64_t base, size;
    uint32_t type;
};

static void assert_map(const struct range *map, size_t count, uint64_t mem_size)
{
    uint64_t low = MIN(mem_size, MEM_HOLE_START), ram = 0;

    for (size_t i = 0; i < count; i++) {
        assert_true(map[i].size > 0);
        assert_true(i == 0 || map[i].base >= map[i - 1].base + map[i - 1].size);
        if (map[i].type == RAM_TYPE)
            ram += map[i].size;
        else if (map[i].type == ACPI_TYPE)
            assert_true(map[i].base == 0xe0000 && map[i].size == 0x20000);
        else
            assert_true(map[i].type == RESERVED_TYPE && map[i].base >= MEM_HOLE_START &&
                        map[i].base + map[i].size <= MEM_HOLE_END);
    }
    assert_true(map[0].base == 0 && map[0].size == 0xa0000 && map[0].type == RAM_TYPE);
    assert_int_equal(ram, 0xa0000 + (low - 0x100000) + (mem_size - low));
    if (mem_size > low)
        assert_true(map[count - 1].base == MEM_HOLE_END && map[count - 1].size == mem_size - low);
}

static void assert_rsdp(const struct boot_attempt *a, uint64_t gpa)
{
    assert_memory_equal(guest(a, gpa, 8), "RSD PTR ", 8);
}

/* -- bzImage ------------------------------------------------------------------ */

static void assert_e820(const struct boot_attempt *a, const uint8_t *params)
{
    struct range map[16];
    size_t count = params[0x1e8];

    assert_true(count <= ARRAY_SIZE(map));
    for (size_t i = 0; i < count; i++) {
        const uint8_t *e = params + 0x2d0 + 20 * i;

        map[i] = (struct range){le64_get(e), le64_get(e + 8), le32_get(e + 16)};
    }
    assert_map(map, count, mem_size(a->mem));
}

/* Translate through the tables that CR3 points to; only 2 MiB pages are expected. */
static uint64_t translate(const struct boot_attempt *a, uint64_t va)
{
    uint64_t entry = a->entry.sregs.cr3;

    for (int shift = 39; shift >= 21; shift -= 9) {
        entry = le64_get(guest(a, (entry & 0xffffffffff000) + (va >> shift & 511) * 8, 8));
        assert_int_equal(entry & 3, 3);
        assert_int_equal(entry >> 7 & 1, shift == 21);
    }
    return (entry & 0xfffffffe00000) + (va & 0x1fffff);
}

static void test_bzimage(void **state)
{
    struct test_image im;
    struct boot_attempt a;
    const uint8_t *params;

    build_bzimage(&im);
    a = boot_attempt(&im, 64 * MiB, 123457, "console=ttyS0 quiet");
    assert_loads(&a, BOOT_LINUX64);
    assert_loaded(&a, TEST_BZ_PREF, im.data, TEST_BZ_PAYLOAD, TEST_BZ_SIZE);
    assert_int_equal(*guest(&a, TEST_BZ_PREF + TEST_BZ_SIZE, 1), 0);

    params = guest(&a, a.entry.regs.rsi, 4096);
    /* The header, as the image has it but for what the loader sets; nothing from around it. */
    assert_memory_equal(params + 0x1fe, im.data + 0x1fe, 0x210 - 0x1fe);
    assert_memory_equal(params + 0x22c, im.data + 0x22c, 0x250 - 0x22c);
    assert_int_equal(params[0x1f0], 0);
    assert_int_equal(params[0x1ef], 0); /* sentinel */
    assert_int_equal(params[0x26c], 0);
    assert_int_equal(params[0x210], 0xff); /* type_of_loader */
    assert_true(le64_get(params + 0x250) == 0);
    assert_string_equal((const char *)guest(&a, le32_get(params + 0x228), 20), "console=ttyS0 quiet");
    assert_int_equal(le32_get(params + 0x21c), 123457);
    assert_int_equal(le32_get(params + 0x218), 64 * MiB - align_up(123457, 4096));
    assert_initrd(&a, le32_get(params + 0x218), 123457);
    assert_rsdp(&a, le64_get(params + 0x70));
    assert_e820(&a, params);
    boot_attempt_clear(&a);
}

static void test_bzimage_entry(void **state)
{
    const struct kvm_sregs *s;
    struct test_image im;
    struct boot_attempt a;

    build_bzimage(&im);
    a = boot_attempt(&im, 64 * MiB, 0, NULL);
    assert_loads(&a, BOOT_LINUX64);
    s = &a.entry.sregs;
    assert_int_equal(a.entry.regs.rip, TEST_BZ_PREF + 0x200);
    assert_int_equal(a.entry.regs.rflags, 2);
    assert_int_equal(s->cs.selector, 0x10);
    assert_int_equal(s->ds.selector, 0x18);
    assert_int_equal(s->cs.l, 1);
    assert_int_equal(s->cs.db, 0);
    assert_segment(&a, &s->cs);
    assert_segment(&a, &s->ds);
    assert_segment(&a, &s->es);
    assert_segment(&a, &s->ss);
    assert_segment(&a, &s->tr);
    assert_int_equal(s->cr0 & 0x80000001, 0x80000001);
    assert_int_equal(s->cr4, 0x20);
    assert_int_equal(s->efer, 0x500);
    for (uint64_t va = 0; va < 4 * GiB; va += 2 * MiB)
        assert_int_equal(translate(&a, va + 0x1234), va + 0x1234);
    /* No command line is an empty one. */
    assert_int_equal(*guest(&a, le32_get(guest(&a, a.entry.regs.rsi + 0x228, 4)), 1), 0);
    boot_attempt_clear(&a);
}

/* Too small for pref_address: the kernel goes down; with an initrd, it makes room for that. */
static void test_bzimage_moves(void **state)
{
    struct test_image im;
    struct boot_attempt a;

    build_bzimage(&im);
    a = boot_attempt(&im, 8 * MiB, 0, NULL);
    assert_loads(&a, BOOT_LINUX64);
    assert_int_equal(a.entry.regs.rip, 0x200200);
    assert_int_equal(le32_get(guest(&a, a.entry.regs.rsi + 0x214, 4)), 0x200000);
    assert_loaded(&a, 0x200000, im.data, TEST_BZ_PAYLOAD, TEST_BZ_SIZE);
    boot_attempt_clear(&a);

    a = boot_attempt(&im, 20 * MiB, 2 * MiB, NULL);
    assert_loads(&a, BOOT_LINUX64);
    assert_int_equal(a.entry.regs.rip, 0x200200);
    assert_initrd(&a, 18 * MiB, 2 * MiB);
    boot_attempt_clear(&a);

    a = boot_attempt(&im, 20 * MiB, MiB, NULL);
    assert_loads(&a, BOOT_LINUX64);
    assert_int_equal(a.entry.regs.rip, TEST_BZ_PREF + 0x200);
    assert_initrd(&a, 19 * MiB, MiB);
    boot_attempt_clear(&a);
}

static void test_bzimage_limits(void **state)
{
    char cmdline[BOOT_CMDLINE_MAX + 1];
    struct test_image im;
    struct boot_attempt a;

    /* The initrd stays below initrd_addr_max (the last byte it may use). */
    build_bzimage(&im);
    le32_put(im.data + 0x22c, 0x17fffff);
    memset(cmdline, 'a', sizeof(cmdline) - 1);
    cmdline[sizeof(cmdline) - 1] = '\0';
    a = boot_attempt(&im, 64 * MiB, 4 * MiB + 1, cmdline);
    assert_loads(&a, BOOT_LINUX64);
    assert_initrd(&a, 0x1800000 - 4 * MiB - 4096, 4 * MiB + 1);
    assert_string_equal((const char *)guest(&a, le32_get(guest(&a, a.entry.regs.rsi + 0x228, 4)), sizeof(cmdline)),
                        cmdline);
    boot_attempt_clear(&a);

    /* setup_sects 0 means 4; syssize is rounded up beyond the end of the file; a short header is zero from its end. */
    build_bzimage(&im);
    im.data[0x1f1] = 0;
    im.len = TEST_BZ_PAYLOAD + TEST_BZ_SIZE - 15;
    im.data[0x201] = 0x264 - 0x202;
    le32_put(im.data + 0x264, 0x55555555);
    a = boot_attempt(&im, 64 * MiB, 0, NULL);
    assert_loads(&a, BOOT_LINUX64);
    assert_loaded(&a, TEST_BZ_PREF, im.data, TEST_BZ_PAYLOAD, TEST_BZ_SIZE - 15);
    assert_int_equal(le32_get(guest(&a, a.entry.regs.rsi + 0x264, 4)), 0);
    boot_attempt_clear(&a);
}

/* -- PVH ---------------------------------------------------------------------- */

static void assert_start_info(const struct boot_attempt *a, size_t initrd_size, const char *cmdline)
{
    const uint8_t *info = guest(a, a->entry.regs.rbx, 56);
    uint32_t count = le32_get(info + 48);
    struct range map[16];

    assert_int_equal(le32_get(info), 0x336ec578);
    assert_int_equal(le32_get(info + 4), 1);
    assert_int_equal(le32_get(info + 8), 0);
    assert_int_equal(le32_get(info + 12), initrd_size > 0);
    assert_string_equal((const char *)guest(a, le64_get(info + 24), 256), cmdline);
    assert_rsdp(a, le64_get(info + 32));
    assert_true(count <= ARRAY_SIZE(map));
    for (size_t i = 0; i < count; i++) {
        const uint8_t *e = guest(a, le64_get(info + 40) + 24 * i, 24);

        map[i] = (struct range){le64_get(e), le64_get(e + 8), le32_get(e + 16)};
        assert_int_equal(le32_get(e + 20), 0);
    }
    assert_map(map, count, mem_size(a->mem));
    if (initrd_size > 0) {
        const uint8_t *module = guest(a, le64_get(info + 16), 32);

        assert_int_equal(le64_get(module + 8), initrd_size);
        assert_initrd(a, le64_get(module), initrd_size);
    } else {
        assert_int_equal(le64_get(info + 16), 0);
    }
}

static void test_pvh(void **state)
{
    static void (*const builders[])(struct test_image *) = {build_elf64, build_elf32};

    for (size_t i = 0; i < ARRAY_SIZE(builders); i++) {
        struct test_image im;
        struct boot_attempt a;

        builders[i](&im);
        a = boot_attempt(&im, 16 * MiB, 5000, "a b=c");
        assert_loads(&a, BOOT_PVH);
        assert_loaded(&a, TEST_ELF_TEXT_ADDR, im.data, TEST_ELF_TEXT, TEST_ELF_TEXT_SIZE);
        assert_loaded(&a, TEST_ELF_DATA_ADDR, im.data, TEST_ELF_DATA, TEST_ELF_DATA_SIZE);
        assert_int_equal(*guest(&a, TEST_ELF_DATA_ADDR + TEST_ELF_DATA_SIZE, 1), 0);
        assert_flat_entry(&a, TEST_ELF_ENTRY);
        assert_start_info(&a, 5000, "a b=c");
        boot_attempt_clear(&a);
    }
}

/* Memory on both sides of the hole; a segment beyond it. */
static void test_pvh_large(void **state)
{
    struct test_image im;
    struct boot_attempt a;

    build_elf64(&im);
    le64_put(im.data + TEST_PHDR64(TEST_PHDR_DATA) + offsetof(Elf64_Phdr, p_paddr), 5 * GiB);
    a = boot_attempt(&im, 6 * GiB, 4097, NULL);
    assert_loads(&a, BOOT_PVH);
    assert_loaded(&a, 5 * GiB, im.data, TEST_ELF_DATA, TEST_ELF_DATA_SIZE);
    assert_start_info(&a, 4097, "");
    assert_initrd(&a, 3 * GiB - 8192, 4097);
    boot_attempt_clear(&a);
}

/* The smallest guest has RAM below 1 MiB only; a kernel may live there, around the boot area. */
static void test_pvh_small(void **state)
{
    struct test_image im;
    struct boot_attempt a;

    build_elf32(&im);
    le32_put(im.data + TEST_PHDR32(TEST_PHDR_TEXT) + offsetof(Elf32_Phdr, p_paddr), 0x90000 - TEST_ELF_TEXT_SIZE);
    le32_put(im.data + TEST_PHDR32(TEST_PHDR_DATA) + offsetof(Elf32_Phdr, p_paddr), 0x99000);
    le32_put(im.data + TEST_ELF_NOTE + 40, 0x90000 - 1);
    a = boot_attempt(&im, MiB, 0, NULL);
    assert_loads(&a, BOOT_PVH);
    assert_flat_entry(&a, 0x8ffff);
    assert_start_info(&a, 0, "");
    assert_loaded(&a, 0x99000, im.data, TEST_ELF_DATA, TEST_ELF_DATA_SIZE);
    boot_attempt_clear(&a);
}

/* Segments of nothing but zeros, and of nothing at all. */
static void test_pvh_empty_segments(void **state)
{
    struct test_image im;
    struct boot_attempt a;
    uint8_t *data;

    build_elf64(&im);
    data = im.data + TEST_PHDR64(TEST_PHDR_DATA);
    le64_put(data + offsetof(Elf64_Phdr, p_filesz), 0);
    /* The zeros take their room: the initrd would fit in without them. */
    a = boot_attempt(&im, 16 * MiB, 14 * MiB, NULL);
    assert_int_equal(a.r, -ENOSPC);
    boot_attempt_clear(&a);
    a = boot_attempt(&im, 16 * MiB, 14 * MiB - 4096, NULL);
    assert_loads(&a, BOOT_PVH);
    assert_int_equal(*guest(&a, TEST_ELF_DATA_ADDR, 1), 0);
    boot_attempt_clear(&a);

    le64_put(data + offsetof(Elf64_Phdr, p_memsz), 0);
    a = boot_attempt(&im, 16 * MiB, 15 * MiB - 0x1000, NULL);
    assert_loads(&a, BOOT_PVH);
    boot_attempt_clear(&a);
}

/* An 8-byte entry point; notes padded to 8 bytes, which a note of 4-byte padding would not be found in. */
static void test_pvh_notes(void **state)
{
    static const uint8_t property[] = {4, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 'G', 'N', 'U', 0, 1, 2, 3, 4, 0, 0, 0, 0};
    static const uint8_t xen[] = {4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0, 'X', 'e', 'n', 0};
    struct test_image im;
    struct boot_attempt a;
    uint8_t *note, *phdr;

    build_elf64(&im);
    note = im.data + TEST_ELF_NOTE;
    phdr = im.data + TEST_PHDR64(TEST_PHDR_NOTE);
    memcpy(note, property, sizeof(property));
    memcpy(note + sizeof(property), xen, sizeof(xen));
    le64_put(note + sizeof(property) + sizeof(xen), TEST_ELF_ENTRY + 4);
    le64_put(phdr + offsetof(Elf64_Phdr, p_filesz), sizeof(property) + sizeof(xen) + 8);
    le64_put(phdr + offsetof(Elf64_Phdr, p_align), 8);
    a = boot_attempt(&im, 16 * MiB, 0, NULL);
    assert_loads(&a, BOOT_PVH);
    assert_flat_entry(&a, TEST_ELF_ENTRY + 4);
    boot_attempt_clear(&a);
}

/* -- multiboot ---------------------------------------------------------------- */

static void assert_multiboot_info(const struct boot_attempt *a, size_t initrd_size, const char *cmdline)
{
    const uint8_t *info = guest(a, a->entry.regs.rbx, 116);
    uint32_t flags = le32_get(info), at = le32_get(info + 48), end = at + le32_get(info + 44);
    const char *line, *space;
    struct range map[16];
    size_t count = 0;

    assert_int_equal(a->entry.regs.rax, 0x2badb002);
    assert_int_equal(flags, initrd_size ? 0x24d : 0x245);
    assert_int_equal(le32_get(info + 4), 640);
    assert_int_equal(le32_get(info + 8), (mem_size(a->mem) - MiB) / KiB);
    for (; at < end && count < ARRAY_SIZE(map); count++, at += 24) {
        const uint8_t *e = guest(a, at, 24);

        assert_int_equal(le32_get(e), 20);
        map[count] = (struct range){le64_get(e + 4), le64_get(e + 12), le32_get(e + 20)};
    }
    assert_int_equal(at, end);
    assert_map(map, count, mem_size(a->mem));
    /* First word: the last component of the kernel's path, a descriptor's number here. */
    line = (const char *)guest(a, le32_get(info + 16), 256);
    space = strchr(line, ' ');
    assert_true(line[0] >= '0' && line[0] <= '9' && space);
    assert_string_equal(space + 1, cmdline);
    assert_string_equal((const char *)guest(a, le32_get(info + 64), 8), "umbra");
    if (initrd_size > 0) {
        const uint8_t *module = guest(a, le32_get(info + 24), 16);

        assert_int_equal(le32_get(info + 20), 1);
        assert_int_equal(le32_get(module + 4) - le32_get(module), initrd_size);
        assert_initrd(a, le32_get(module), initrd_size);
        assert_true(*guest(a, le32_get(module + 8), 1) >= '0');
        assert_int_equal(le32_get(module + 12), 0);
    }
}

static void test_multiboot_elf(void **state)
{
    struct test_image im;
    struct boot_attempt a;

    build_multiboot_elf(&im);
    a = boot_attempt(&im, 16 * MiB, 6000, "x=1 y");
    assert_loads(&a, BOOT_MULTIBOOT);
    assert_loaded(&a, TEST_ELF_TEXT_ADDR, im.data, TEST_ELF_TEXT, TEST_ELF_TEXT_SIZE);
    assert_loaded(&a, TEST_ELF_DATA_ADDR, im.data, TEST_ELF_DATA, TEST_ELF_DATA_SIZE);
    assert_flat_entry(&a, TEST_ELF_ENTRY);
    assert_multiboot_info(&a, 6000, "x=1 y");
    boot_attempt_clear(&a);

    /* 64-bit, virtual addresses in the upper half. */
    build_elf64(&im);
    le32_put(im.data + TEST_PHDR64(TEST_PHDR_NOTE), PT_NULL);
    put_multiboot_header(im.data + TEST_ELF_TEXT + 4, 3, NULL);
    a = boot_attempt(&im, 16 * MiB, 0, "z");
    assert_loads(&a, BOOT_MULTIBOOT);
    assert_flat_entry(&a, TEST_ELF_ENTRY);
    assert_multiboot_info(&a, 0, "z");
    boot_attempt_clear(&a);
}

static void test_multiboot_flat(void **state)
{
    struct test_image im;
    struct boot_attempt a;

    build_multiboot_flat(&im);
    a = boot_attempt(&im, 4 * MiB, 100, "q");
    assert_loads(&a, BOOT_MULTIBOOT);
    assert_loaded(&a, TEST_MB_LOAD_ADDR, im.data, 0x20, TEST_MB_LOAD_SIZE);
    assert_int_equal(*guest(&a, TEST_MB_LOAD_ADDR + TEST_MB_LOAD_SIZE, 1), 0);
    assert_flat_entry(&a, TEST_MB_ENTRY);
    assert_multiboot_info(&a, 100, "q");
    boot_attempt_clear(&a);

    /* load_end_addr 0: to the end of the file; bss_end_addr 0: no bss. */
    le32_put(im.data + TEST_MB_HEADER + 20, 0);
    le32_put(im.data + TEST_MB_HEADER + 24, 0);
    a = boot_attempt(&im, 4 * MiB, 0, NULL);
    assert_loads(&a, BOOT_MULTIBOOT);
    assert_loaded(&a, TEST_MB_LOAD_ADDR, im.data, 0x20, TEST_MB_FILE_SIZE - 0x20);
    boot_attempt_clear(&a);
}

/* An image of several kinds: the PVH note wins, then multiboot's address fields over ELF's. */
static void test_precedence(void **state)
{
    static const uint32_t addresses[] = {0x300000, 0x300000, 0x300400, 0, 0x300010};
    struct test_image im;
    struct boot_attempt a;

    build_elf32(&im);
    put_multiboot_header(im.data + TEST_ELF_TEXT, 0, NULL);
    a = boot_attempt(&im, 16 * MiB, 0, NULL);
    assert_loads(&a, BOOT_PVH);
    boot_attempt_clear(&a);

    build_multiboot_elf(&im);
    put_multiboot_header(im.data + TEST_ELF_TEXT, 0x10000, addresses);
    a = boot_attempt(&im, 16 * MiB, 0, NULL);
    assert_loads(&a, BOOT_MULTIBOOT);
    assert_flat_entry(&a, 0x300010);
    assert_loaded(&a, 0x300000, im.data, TEST_ELF_TEXT, 0x400);
    assert_int_equal(*guest(&a, TEST_ELF_TEXT_ADDR, 1), 0);
    boot_attempt_clear(&a);
}

/* -- again -------------------------------------------------------------------- */

/* What a reset does: the same files give the same memory and the same entry. */
static void test_reload(void **state)
{
    enum { SIZE = 4 * 1024 * 1024 };
    _cleanup_free_ uint8_t *before = malloc(SIZE);
    struct vcpu_entry entry;
    struct test_image im;
    struct boot_attempt a;

    build_multiboot_elf(&im);
    a = boot_attempt(&im, SIZE, 6000, "x=1 y");
    assert_loads(&a, BOOT_MULTIBOOT);
    memcpy(before, guest(&a, 0, SIZE), SIZE);
    assert_int_equal(mem_set(a.mem, 0, 0xa5, SIZE), 0);
    assert_int_equal(mem_discard(a.mem), 0);
    assert_int_equal(boot_load(a.image, a.mem, a.error, &entry), 0);
    assert_memory_equal(guest(&a, 0, SIZE), before, SIZE);
    assert_memory_equal(&entry, &a.entry, sizeof(entry));
    boot_attempt_clear(&a);
}

/* Every page that loading fills is known to the dirty log. */
static void test_writes_are_noted(void **state)
{
    struct vcpu_entry entry;
    struct test_image im;
    struct boot_attempt a;
    struct page_set noted;

    build_bzimage(&im);
    a = boot_attempt(&im, 8 * MiB, 3000, "x");
    assert_loads(&a, BOOT_LINUX64);
    assert_int_equal(mem_discard(a.mem), 0);
    mem_track_writes(a.mem, MEM_LISTENER_DIRTY_LOG, true);
    assert_int_equal(boot_load(a.image, a.mem, a.error, &entry), 0);
    assert_int_equal(page_set_init(&noted, mem_pages(a.mem)), 0);
    mem_collect_writes(a.mem, MEM_LISTENER_DIRTY_LOG, &noted);
    for (uint64_t page = 0; page < mem_pages(a.mem); page++) {
        const uint8_t *p = guest(&a, page * 4096, 4096);
        bool zero = p[0] == 0 && memcmp(p, p + 1, 4095) == 0;

        if (!zero && !bitmap_test(noted.map, page))
            fail_msg("page 0x%llx was written and is not noted", (unsigned long long)page);
    }
    page_set_free(&noted);
    boot_attempt_clear(&a);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bzimage),       cmocka_unit_test(test_bzimage_entry),
        cmocka_unit_test(test_bzimage_moves), cmocka_unit_test(test_bzimage_limits),
        cmocka_unit_test(test_pvh),           cmocka_unit_test(test_pvh_large),
        cmocka_unit_test(test_pvh_small),     cmocka_unit_test(test_pvh_notes),
        cmocka_unit_test(test_pvh_empty_segments),
        cmocka_unit_test(test_multiboot_elf), cmocka_unit_test(test_multiboot_flat),
        cmocka_unit_test(test_precedence),    cmocka_unit_test(test_reload),
        cmocka_unit_test(test_writes_are_noted),
    };

    return cmocka_run_group_tests_name("boot-load", tests, NULL, NULL);
}
