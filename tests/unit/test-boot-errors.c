/*
 * Images that lie, are cut short or do not fit: each is refused with one line that names the field. A case changes one
 * field of a valid image.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/util.h"
#include "boot-images.h"

struct damage {
    size_t offset;
    unsigned int width; /* bytes; 0: cut the file here */
    uint64_t value;
    int r;
    const char *text; /* has to be in the error */
};

static void assert_refused(const struct boot_attempt *a, int r, const char *text)
{
    print_message("# %s\n", a->error);
    assert_int_equal(a->r, r);
    assert_null(strchr(a->error, '\n'));
    assert_true(strlen(a->error) > 0 && strlen(a->error) < BOOT_ERROR_MAX - 1);
    if (!strstr(a->error, text))
        fail_msg("\"%s\" is not in \"%s\"", text, a->error);
}

static void assert_untouched(const struct mem *mem)
{
    const uint8_t *p = mem_ptr(mem, 0, MiB);

    assert_true(p[0] == 0 && memcmp(p, p + 1, MiB - 1) == 0);
}

static void run_cases(void (*build)(struct test_image *), uint64_t mem_size, const struct damage *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct damage *d = &cases[i];
        struct boot_attempt a;
        struct test_image im;

        build(&im);
        if (d->width == 0)
            im.len = d->offset;
        else
            memcpy(im.data + d->offset, &d->value, d->width);
        a = boot_attempt(&im, mem_size, 4096, "four");
        assert_refused(&a, d->r, d->text);
        assert_non_null(strstr(a.error, "kernel /proc/self/fd/"));
        assert_untouched(a.mem);
        boot_attempt_clear(&a);
    }
}

/* -- bzImage ------------------------------------------------------------------ */

static void test_bzimage_fields(void **state)
{
    static const struct damage cases[] = {
        {0x1fe, 2, 0xaa54, -EINVAL, "boot_flag is 0xaa54"},
        {0x206, 2, 0x20b, -EINVAL, "version 2.11 is older than 2.12"},
        {0x201, 1, 0x61, -EINVAL, "the setup header ends at 0x263"},
        {0x201, 1, 0, -EINVAL, "the setup header ends at 0x202"},
        {0x211, 1, 0x80, -EINVAL, "loadflags 0x80 lack LOADED_HIGH"},
        {0x236, 2, 0x7e, -EINVAL, "xloadflags 0x7e lack XLF_KERNEL_64"},
        {0x1f1, 1, 255, -EINVAL, "setup_sects 255 ends at byte 131072, the file has 10852"},
        {0x1f4, 4, 0x208, -EINVAL, "cut short: syssize 0x208 ends at byte 10880, the file has 10852"},
        {0x1f4, 4, UINT32_MAX, -EINVAL, "cut short: syssize 0xffffffff ends at byte 68719479280"},
        {0x1f4, 4, 0x20, -EINVAL, "syssize 0x20 leaves no 64-bit entry point"},
        {0x1f4, 4, 0, -EINVAL, "syssize 0x0 leaves no 64-bit entry point"},
        {0x260, 4, TEST_BZ_SIZE - 1, -EINVAL, "init_size 0x1fff is less than the kernel's 0x2000"},
        {0x260, 4, UINT32_MAX, -ENOSPC, "lowest address 0x200000, init_size 0xffffffff is outside of guest RAM"},
        {0x258, 8, 0, -EINVAL, "pref_address 0x0 is below 0x100000"},
        {0x258, 8, 0xfffff, -EINVAL, "pref_address 0xfffff is below 0x100000"},
        {0x258, 8, 0x1100000, -EINVAL, "pref_address 0x1100000 is not a multiple of kernel_alignment 0x200000"},
        {0x230, 4, 0, -EINVAL, "kernel_alignment 0x0 is not a power of 2"},
        {0x230, 4, 0x300000, -EINVAL, "kernel_alignment 0x300000 is not a power of 2"},
        {0x230, 4, 0x80000000, -EINVAL, "kernel_alignment 0x80000000 is not"},
        {0x230, 4, 0x800, -EINVAL, "kernel_alignment 0x800 is not"},
        {0x238, 4, 3, -E2BIG, "command line of 4 bytes exceeds cmdline_size 3"},
        /* Where it was cut. */
        {TEST_BZ_PAYLOAD + TEST_BZ_SIZE - 16, 0, 0, -EINVAL, "cut short: syssize 0x200"},
        {TEST_BZ_PAYLOAD + 1, 0, 0, -EINVAL, "cut short"},
        {TEST_BZ_PAYLOAD, 0, 0, -EINVAL, "setup_sects 4 ends at byte 2560, the file has 2560"},
        {0x263, 0, 0, -EINVAL, "the file has 611 bytes, its setup header needs 612"},
        {0x206, 0, 0, -EINVAL, "the file has 518 bytes, its setup header needs 612"},
        {0x205, 0, 0, -ENOEXEC, "not a bzImage, an ELF file or a multiboot image"},
        {1, 0, 0, -ENOEXEC, "not a bzImage, an ELF file or a multiboot image"},
        {0, 0, 0, -EINVAL, "the file is empty"},
    };

    run_cases(build_bzimage, 64 * MiB, cases, ARRAY_SIZE(cases));
}

/* A kernel that cannot be moved, in a guest too small for its pref_address. */
static void build_fixed_bzimage(struct test_image *im)
{
    build_bzimage(im);
    im->data[0x234] = 0;
}

static void test_bzimage_fixed(void **state)
{
    static const struct damage cases[] = {
        {0x258, 8, TEST_BZ_PREF, -ENOSPC, "pref_address 0x1000000, init_size 0x300000 is outside of guest RAM, which ends"},
        {0x258, 8, UINT64_MAX, -ENOSPC, "pref_address 0xffffffffffffffff, init_size 0x300000 is outside of guest RAM"},
        {0x258, 8, UINT64_MAX - TEST_BZ_INIT_SIZE + 1, -ENOSPC, "pref_address 0xffffffffffd00000"},
        {0x258, 8, MEM_HOLE_END, -ENOSPC, "pref_address 0x100000000"},
    };

    run_cases(build_fixed_bzimage, 16 * MiB, cases, ARRAY_SIZE(cases));
}

static void test_bzimage_needs_memory(void **state)
{
    struct boot_attempt a;
    struct test_image im;

    build_bzimage(&im);
    a = boot_attempt(&im, 4 * MiB, 0, NULL);
    assert_refused(&a, -ENOSPC,
                   "lowest address 0x200000, init_size 0x300000 is outside of guest RAM, which ends at 0x400000");
    boot_attempt_clear(&a);
    a = boot_attempt(&im, MiB, 0, NULL);
    assert_refused(&a, -ENOSPC, "outside of guest RAM, which ends at 0x100000");
    boot_attempt_clear(&a);
}

/* -- ELF ---------------------------------------------------------------------- */

#define EHDR64(field) offsetof(Elf64_Ehdr, field), sizeof(((Elf64_Ehdr *)0)->field)
#define PHDR64(i, field) TEST_PHDR64(i) + offsetof(Elf64_Phdr, field), sizeof(((Elf64_Phdr *)0)->field)
#define EHDR32(field) offsetof(Elf32_Ehdr, field), sizeof(((Elf32_Ehdr *)0)->field)
#define PHDR32(i, field) TEST_PHDR32(i) + offsetof(Elf32_Phdr, field), sizeof(((Elf32_Phdr *)0)->field)
#define XEN_NOTE (TEST_ELF_NOTE + 24)

static void test_elf64_fields(void **state)
{
    static const struct damage cases[] = {
        {EI_CLASS, 1, 3, -EINVAL, "e_ident: class 3"},
        {EI_DATA, 1, ELFDATA2MSB, -EINVAL, "e_ident: data encoding 2"},
        {EHDR64(e_type), ET_DYN, -EINVAL, "e_type 3 is not 2"},
        {EHDR64(e_machine), EM_386, -EINVAL, "e_machine 3 is not 62"},
        {EHDR64(e_phentsize), 55, -EINVAL, "e_phentsize 55 is not 56"},
        {EHDR64(e_phentsize), 0, -EINVAL, "e_phentsize 0 is not 56"},
        {EHDR64(e_phnum), 0, -EINVAL, "e_phnum 0 is not within 1 and 128"},
        {EHDR64(e_phnum), 129, -EINVAL, "e_phnum 129 is not within"},
        {EHDR64(e_phnum), 0xffff, -EINVAL, "e_phnum 65535 is not within"},
        {EHDR64(e_phoff), 0x1c00 - 3 * 56 + 1, -EINVAL, "e_phoff 0x1b59 with e_phnum 3 is beyond the file's 7168 bytes"},
        {EHDR64(e_phoff), UINT64_MAX, -EINVAL, "e_phoff 0xffffffffffffffff"},
        {PHDR64(TEST_PHDR_TEXT, p_type), PT_NULL, -EINVAL, "PVH entry point 0x100040 is in none of the 1 loaded segments"},
        {PHDR64(TEST_PHDR_TEXT, p_offset), 0x1c00 - TEST_ELF_TEXT_SIZE + 1, -EINVAL,
         "program header 1: p_offset 0x1401 with p_filesz 0x800 is beyond the file's 7168 bytes"},
        {PHDR64(TEST_PHDR_TEXT, p_offset), UINT64_MAX, -EINVAL, "program header 1: p_offset 0xffffffffffffffff"},
        {PHDR64(TEST_PHDR_TEXT, p_filesz), TEST_ELF_TEXT_SIZE + 1, -EINVAL, "p_filesz 0x801 exceeds p_memsz 0x800"},
        {PHDR64(TEST_PHDR_TEXT, p_filesz), UINT64_MAX, -EINVAL, "p_filesz 0xffffffffffffffff is beyond the file's"},
        {PHDR64(TEST_PHDR_TEXT, p_memsz), 0, -EINVAL, "p_filesz 0x800 exceeds p_memsz 0x0"},
        {PHDR64(TEST_PHDR_TEXT, p_memsz), UINT64_MAX, -EINVAL, "p_paddr 0x100000 with p_memsz 0xffffffffffffffff wraps"},
        {PHDR64(TEST_PHDR_DATA, p_memsz), UINT64_MAX - TEST_ELF_DATA_ADDR, -ENOSPC,
         "program header 2: p_paddr 0x200000, p_memsz 0xffffffffffdfffff is outside of guest RAM, which ends at 0x1000000"},
        {PHDR64(TEST_PHDR_DATA, p_memsz), 14 * MiB + 1, -ENOSPC,
         "program header 2: p_paddr 0x200000, p_memsz 0xe00001 is outside"},
        {PHDR64(TEST_PHDR_DATA, p_paddr), 0xe0000, -ENOSPC,
         "program header 2: p_paddr 0xe0000, p_memsz 0x800 overlaps the ACPI tables at 0xe0000-0x100000"},
        {PHDR64(TEST_PHDR_DATA, p_paddr), 0xff801, -ENOSPC, "overlaps the ACPI tables"},
        {PHDR64(TEST_PHDR_DATA, p_paddr), 0x98fff, -ENOSPC, "overlaps the boot area at 0x90000-0x99000"},
        {PHDR64(TEST_PHDR_DATA, p_paddr), 0x8f801, -ENOSPC, "overlaps the boot area"},
        {PHDR64(TEST_PHDR_DATA, p_paddr), 0x9f801, -ENOSPC, "overlaps the hole of low memory at 0xa0000-0xe0000"},
        {PHDR64(TEST_PHDR_DATA, p_paddr), 0x1007ff, -ENOSPC, "overlaps program header 1 at 0x100000-0x100800"},
        {PHDR64(TEST_PHDR_DATA, p_paddr), MEM_HOLE_END, -ENOSPC, "program header 2: p_paddr 0x100000000"},
        {PHDR64(TEST_PHDR_NOTE, p_offset), 0x1c00, -EINVAL, "program header 0: p_offset 0x1c00"},
        {PHDR64(TEST_PHDR_NOTE, p_filesz), UINT64_MAX, -EINVAL, "program header 0: p_offset 0x200"},
        {PHDR64(TEST_PHDR_NOTE, p_filesz), 24, -ENOEXEC, "without a PVH entry"},
        {PHDR64(TEST_PHDR_NOTE, p_filesz), 0, -ENOEXEC, "without a PVH entry"},
        {PHDR64(TEST_PHDR_NOTE, p_filesz), 43, -EINVAL, "note: n_namesz 4 with n_descsz 4 exceeds the 7 bytes left"},
        {XEN_NOTE, 4, UINT32_MAX, -EINVAL, "note: n_namesz 4294967295 with n_descsz 4 exceeds"},
        {XEN_NOTE + 4, 4, UINT32_MAX, -EINVAL, "note: n_namesz 4 with n_descsz 4294967295 exceeds"},
        {XEN_NOTE + 4, 4, 0, -EINVAL, "XEN_ELFNOTE_PHYS32_ENTRY: n_descsz 0 is neither 4 nor 8"},
        {XEN_NOTE + 4, 4, 3, -EINVAL, "XEN_ELFNOTE_PHYS32_ENTRY: n_descsz 3 is neither 4 nor 8"},
        {XEN_NOTE + 12, 1, 'x', -ENOEXEC, "without a PVH entry"},
        {XEN_NOTE + 16, 4, TEST_ELF_TEXT_ADDR + TEST_ELF_TEXT_SIZE, -EINVAL, "PVH entry point 0x100800 is in none of the 2"},
        {XEN_NOTE + 16, 4, TEST_ELF_TEXT_ADDR - 1, -EINVAL, "PVH entry point 0xfffff is in none of the 2"},
        /* In the bss. */
        {XEN_NOTE + 16, 4, TEST_ELF_DATA_ADDR + TEST_ELF_DATA_SIZE, -EINVAL, "PVH entry point 0x200400 is in none of the 2"},
        /* Where it was cut. */
        {0x1bff, 0, 0, -EINVAL, "program header 2: p_offset 0x1800 with p_filesz 0x400 is beyond the file's 7167 bytes"},
        {TEST_PHDR64(3) - 1, 0, 0, -EINVAL, "e_phoff 0x40 with e_phnum 3 is beyond the file's 231 bytes"},
        {63, 0, 0, -EINVAL, "the file has 63 bytes, an ELF header needs 64"},
        {4, 0, 0, -EINVAL, "the file has 4 bytes, an ELF header needs"},
    };

    run_cases(build_elf64, 16 * MiB, cases, ARRAY_SIZE(cases));
}

static void test_elf32_fields(void **state)
{
    static const struct damage cases[] = {
        {EHDR32(e_machine), EM_X86_64, -EINVAL, "e_machine 62 is not 3"},
        {EHDR32(e_phentsize), 56, -EINVAL, "e_phentsize 56 is not 32"},
        {EHDR32(e_phoff), UINT32_MAX, -EINVAL, "e_phoff 0xffffffff with e_phnum 3"},
        {PHDR32(TEST_PHDR_DATA, p_paddr), 0xfffffc00, -ENOSPC, "p_paddr 0xfffffc00, p_memsz 0x800 is outside of guest RAM"},
        {PHDR32(TEST_PHDR_DATA, p_memsz), UINT32_MAX, -ENOSPC, "p_paddr 0x200000, p_memsz 0xffffffff is outside"},
        {PHDR32(TEST_PHDR_DATA, p_offset), UINT32_MAX, -EINVAL, "program header 2: p_offset 0xffffffff"},
        {51, 0, 0, -EINVAL, "the file has 51 bytes, an ELF header needs 52"},
    };

    run_cases(build_elf32, 16 * MiB, cases, ARRAY_SIZE(cases));
}

/* An 8-byte entry point beyond 4 GiB, inside a segment. */
static void build_high_entry(struct test_image *im)
{
    build_elf64(im);
    le64_put(im->data + TEST_PHDR64(TEST_PHDR_TEXT) + offsetof(Elf64_Phdr, p_paddr), MEM_HOLE_END);
    le64_put(im->data + TEST_PHDR64(TEST_PHDR_NOTE) + offsetof(Elf64_Phdr, p_filesz), 48);
    le32_put(im->data + XEN_NOTE + 4, 8);
    le64_put(im->data + XEN_NOTE + 16, MEM_HOLE_END + 8);
}

/* 33 segments to load. */
static void build_many_segments(struct test_image *im)
{
    Elf64_Phdr *p = (Elf64_Phdr *)(im->data + TEST_PHDR64(0));

    build_elf64(im);
    ((Elf64_Ehdr *)im->data)->e_phnum = 33;
    for (int i = 0; i < 33; i++)
        p[i] = (Elf64_Phdr){.p_type = PT_LOAD, .p_paddr = 0x100000 + 4096u * (unsigned int)i, .p_memsz = 1};
}

static void build_no_segment(struct test_image *im)
{
    build_elf64(im);
    ((Elf64_Ehdr *)im->data)->e_phnum = 1;
}

/* With RAM on both sides of the hole, an error names both. */
static void test_elf_large_guest(void **state)
{
    struct boot_attempt a;
    struct test_image im;

    build_elf64(&im);
    le64_put(im.data + TEST_PHDR64(TEST_PHDR_DATA) + offsetof(Elf64_Phdr, p_paddr), MEM_HOLE_START - 1);
    a = boot_attempt(&im, 6 * GiB, 0, NULL);
    assert_refused(&a, -ENOSPC, "p_paddr 0xbfffffff, p_memsz 0x800 is outside of guest RAM, which is 0-0xc0000000 and "
                                "0x100000000-0x1c0000000");
    boot_attempt_clear(&a);
}

static void build_large_note(struct test_image *im)
{
    build_elf64(im);
    memset(im->data + im->len, 0, sizeof(im->data) - im->len);
}

static void test_elf_counts(void **state)
{
    _cleanup_free_ uint8_t *large = calloc(1, 0x10000 + 0x2000);
    struct boot_attempt a;
    struct test_image im;
    char path[64], error[BOOT_ERROR_MAX];
    struct boot_config config = {.kernel = path, .acpi = {.cpus = 1}};
    struct boot_image *image;
    int fd;

    build_high_entry(&im);
    a = boot_attempt(&im, 6 * GiB, 0, NULL);
    assert_refused(&a, -EINVAL, "PVH entry point 0x100000008 is beyond 4 GiB");
    boot_attempt_clear(&a);
    build_many_segments(&im);
    a = boot_attempt(&im, 16 * MiB, 0, NULL);
    assert_refused(&a, -EINVAL, "program header 32: more than 32 segments");
    boot_attempt_clear(&a);
    build_no_segment(&im);
    a = boot_attempt(&im, 16 * MiB, 0, NULL);
    assert_refused(&a, -EINVAL, "e_phnum 1 program headers, none of them to load");
    boot_attempt_clear(&a);

    build_large_note(&im);
    memcpy(large, im.data, im.len);
    le64_put(large + TEST_PHDR64(TEST_PHDR_NOTE) + offsetof(Elf64_Phdr, p_filesz), 0x10001);
    fd = test_image_file(large, 0x10000 + 0x2000, path, sizeof(path));
    assert_int_equal(boot_open(&config, error, &image), -EINVAL);
    assert_non_null(strstr(error, "program header 0: notes of 0x10001 bytes (p_filesz) exceed 0x10000"));
    close(fd);
}

/* -- multiboot ---------------------------------------------------------------- */

static void test_multiboot_fields(void **state)
{
    /* Address fields, from the header on: header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr. */
    static const struct damage cases[] = {
        {TEST_MB_HEADER + 12, 4, TEST_MB_LOAD_ADDR - 1, -EINVAL, "load_addr 0x100000 is not within header_addr 0xfffff"},
        {TEST_MB_HEADER + 12, 4, TEST_MB_LOAD_ADDR + 0x41, -EINVAL, "header_addr 0x100041 and the 0x40 bytes before it"},
        {TEST_MB_HEADER + 16, 4, 0, -EINVAL, "load_addr 0x0 is not within header_addr 0x100020"},
        {TEST_MB_HEADER + 16, 4, UINT32_MAX, -EINVAL, "load_addr 0xffffffff is not within"},
        {TEST_MB_HEADER + 20, 4, TEST_MB_LOAD_ADDR, -EINVAL, "load_end_addr 0x100000 is not within load_addr 0x100000"},
        {TEST_MB_HEADER + 20, 4, TEST_MB_LOAD_ADDR + TEST_MB_FILE_SIZE - 0x1f, -EINVAL, "the 0x1fe0 bytes the file has"},
        {TEST_MB_HEADER + 20, 4, UINT32_MAX, -EINVAL, "load_end_addr 0xffffffff is not within"},
        {TEST_MB_HEADER + 24, 4, TEST_MB_LOAD_ADDR + TEST_MB_LOAD_SIZE - 1, -EINVAL, "bss_end_addr 0x1017ff is below"},
        {TEST_MB_HEADER + 24, 4, 1, -EINVAL, "bss_end_addr 0x1 is below the end of what is loaded, 0x101800"},
        {TEST_MB_HEADER + 24, 4, UINT32_MAX, -ENOSPC,
         "segment 0: load_addr 0x100000, size 0xffefffff is outside of guest RAM"},
        {TEST_MB_HEADER + 28, 4, TEST_MB_LOAD_ADDR - 1, -EINVAL, "entry_addr 0xfffff is in none of the 1 loaded segments"},
        {TEST_MB_HEADER + 28, 4, TEST_MB_LOAD_ADDR + TEST_MB_LOAD_SIZE, -EINVAL, "entry_addr 0x101800 is in none"},
        {TEST_MB_HEADER + 8, 4, 0, -ENOEXEC, "not a bzImage, an ELF file or a multiboot image"},
        {TEST_MB_HEADER + 31, 0, 0, -EINVAL, "the header at 0x40 ends beyond 0x5f"},
        {TEST_MB_HEADER + 32, 0, 0, -EINVAL, "load_end_addr 0x101800 is not within"},
    };

    run_cases(build_multiboot_flat, 4 * MiB, cases, ARRAY_SIZE(cases));
}

static void build_video(struct test_image *im)
{
    build_multiboot_flat(im);
    put_multiboot_header(im->data + TEST_MB_HEADER, 0x10007, NULL);
}

static void build_without_addresses(struct test_image *im)
{
    build_multiboot_flat(im);
    put_multiboot_header(im->data + TEST_MB_HEADER, 3, NULL);
}

/* The header has to be within the first 8192 bytes. */
static void build_late_header(struct test_image *im)
{
    build_multiboot_flat(im);
    memset(im->data + TEST_MB_HEADER, 0, 12);
    memset(im->data + 8160, 0, 256);
    im->len = 8160 + 256;
    put_multiboot_header(im->data + 8192 - 12 + 4, 0x10003, NULL);
}

static void build_half_header(struct test_image *im)
{
    build_late_header(im);
    memset(im->data + 8160, 0, 256);
    put_multiboot_header(im->data + 8192 - 12, 0x10003, NULL);
}

static void test_multiboot_headers(void **state)
{
    static const struct damage none = {0, 1, 1, -EINVAL, ""};
    struct damage d = none;

    d.text = "multiboot: flags 0x10007 ask for 0x4, which is not there";
    run_cases(build_video, 4 * MiB, &d, 1);
    d.r = -ENOEXEC;
    d.text = "multiboot: flags 0x3 have no address fields (0x10000) and the file is no ELF";
    run_cases(build_without_addresses, 4 * MiB, &d, 1);
    d.text = "not a bzImage, an ELF file or a multiboot image";
    run_cases(build_late_header, 4 * MiB, &d, 1);
    d.r = -EINVAL;
    d.text = "multiboot: the header at 0x1ff4 ends beyond 0x2000";
    run_cases(build_half_header, 4 * MiB, &d, 1);
}

static void test_multiboot_elf_entry(void **state)
{
    static const struct damage cases[] = {
        {EHDR32(e_entry), TEST_ELF_TEXT_ADDR + TEST_ELF_TEXT_SIZE, -EINVAL, "e_entry 0x100800 is in none of the 2"},
        {EHDR32(e_entry), 0, -EINVAL, "e_entry 0x0 is in none of the 2"},
    };
    struct boot_attempt a;
    struct test_image im;

    run_cases(build_multiboot_elf, 16 * MiB, cases, ARRAY_SIZE(cases));

    build_elf64(&im);
    le32_put(im.data + TEST_PHDR64(TEST_PHDR_NOTE), PT_NULL);
    le64_put(im.data + TEST_PHDR64(TEST_PHDR_TEXT) + offsetof(Elf64_Phdr, p_paddr), MEM_HOLE_END);
    put_multiboot_header(im.data + TEST_ELF_TEXT, 0, NULL);
    a = boot_attempt(&im, 6 * GiB, 0, NULL);
    assert_refused(&a, -EINVAL, "e_entry 0xffffffff80100040 is loaded at 0x100000040, beyond 4 GiB");
    boot_attempt_clear(&a);
}

/* -- every cut ---------------------------------------------------------------- */

/* A file that ends anywhere before the last byte that is needed is refused. */
static void test_every_cut(void **state)
{
    static const struct {
        void (*build)(struct test_image *);
        size_t needed;
    } kinds[] = {
        {build_bzimage, TEST_BZ_PAYLOAD + TEST_BZ_SIZE - 15},
        {build_elf64, TEST_ELF_DATA + TEST_ELF_DATA_SIZE},
        {build_elf32, TEST_ELF_DATA + TEST_ELF_DATA_SIZE},
        {build_multiboot_elf, TEST_ELF_DATA + TEST_ELF_DATA_SIZE},
        {build_multiboot_flat, TEST_MB_LOAD_SIZE + 0x20},
    };

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        struct test_image im;
        char path[64];
        struct boot_config config = {.kernel = path, .acpi = {.cpus = 1}};
        int fd;

        kinds[i].build(&im);
        fd = test_image_file(im.data, im.len, path, sizeof(path));
        for (size_t len = im.len; len-- > 0;) {
            char error[BOOT_ERROR_MAX] = "";
            struct boot_image *image;
            int r;

            assert_int_equal(ftruncate(fd, (off_t)len), 0);
            r = boot_open(&config, error, &image);
            assert_int_equal(r == 0, len >= kinds[i].needed);
            if (r == 0)
                boot_close(image);
            else
                assert_true(error[0]);
        }
        close(fd);
    }
}

/* The file was whole when it was examined. */
static void test_cut_after_open(void **state)
{
    char path[64], error[BOOT_ERROR_MAX];
    struct boot_config config = {.kernel = path, .acpi = {.cpus = 1}};
    struct mem_config mem_config = {.size = 16 * MiB};
    struct vcpu_entry entry;
    struct boot_image *image;
    struct test_image im;
    struct mem *mem;
    int fd;

    build_elf64(&im);
    fd = test_image_file(im.data, im.len, path, sizeof(path));
    assert_int_equal(mem_new(&mem_config, &mem), 0);
    assert_int_equal(boot_open(&config, error, &image), 0);
    assert_int_equal(ftruncate(fd, (off_t)im.len - 1), 0);
    memset(&entry, 0x11, sizeof(entry));
    assert_int_equal(boot_load(image, mem, error, &entry), -EIO);
    assert_non_null(strstr(error, "1024 bytes at offset 6144"));
    assert_true(entry.regs.rip == 0x1111111111111111);
    boot_close(image);
    mem_free(mem);
    close(fd);
}

/* -- initrd, command line, paths ------------------------------------------------ */

static void test_initrd_too_large(void **state)
{
    struct boot_attempt a;
    struct test_image im;

    build_elf64(&im);
    a = boot_attempt(&im, 4 * MiB, 2 * MiB - 4096, NULL);
    assert_int_equal(a.r, 0);
    boot_attempt_clear(&a);
    a = boot_attempt(&im, 4 * MiB, 2 * MiB - 4095, NULL);
    assert_refused(&a, -ENOSPC,
                   "2093057 bytes do not fit between the end of the kernel at 0x200800 and 0x400000, the end of guest RAM");
    assert_non_null(strstr(a.error, "initrd /proc/self/fd/"));
    assert_untouched(a.mem);
    boot_attempt_clear(&a);

    build_bzimage(&im);
    le32_put(im.data + 0x22c, TEST_BZ_PREF - 1);
    a = boot_attempt(&im, 64 * MiB, 12 * MiB, NULL);
    assert_refused(&a, -ENOSPC, "between the end of the kernel at 0x500000 and 0x1000000, the kernel's initrd_addr_max");
    boot_attempt_clear(&a);
    /* No place is low enough. */
    le32_put(im.data + 0x22c, 0);
    a = boot_attempt(&im, 64 * MiB, 1, NULL);
    assert_refused(&a, -ENOSPC, "1 bytes do not fit between the end of the kernel at 0x500000 and 0x1, the kernel's");
    boot_attempt_clear(&a);
}

static void test_cmdline_too_long(void **state)
{
    char cmdline[BOOT_CMDLINE_MAX + 2];
    struct boot_attempt a;
    struct test_image im;

    memset(cmdline, 'x', sizeof(cmdline) - 1);
    cmdline[sizeof(cmdline) - 1] = '\0';
    build_elf64(&im);
    a = boot_attempt(&im, 4 * MiB, 0, cmdline);
    assert_refused(&a, -E2BIG, "command line: 2048 bytes exceed 2047");
    boot_attempt_clear(&a);
}

static void assert_open_fails(const char *kernel, const char *initrd, int r, const char *text)
{
    struct boot_config config = {.kernel = kernel, .initrd = initrd, .acpi = {.cpus = 1}};
    char error[BOOT_ERROR_MAX] = "";
    struct boot_image *image;

    assert_int_equal(boot_open(&config, error, &image), r);
    print_message("# %s\n", error);
    assert_non_null(strstr(error, text));
}

static void test_paths(void **state)
{
    char dir[] = "/tmp/umbra-test-XXXXXX", fifo[64], kernel[64], long_path[300];
    struct test_image im;
    int fd;

    build_elf64(&im);
    fd = test_image_file(im.data, im.len, kernel, sizeof(kernel));
    assert_non_null(mkdtemp(dir));
    snprintf(fifo, sizeof(fifo), "%s/fifo", dir);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_open_fails("/nonexistent/vmlinuz", NULL, -ENOENT, "kernel /nonexistent/vmlinuz: cannot open: No such file");
    assert_open_fails(kernel, "/nonexistent/initrd", -ENOENT, "initrd /nonexistent/initrd: cannot open: No such file");
    assert_open_fails(dir, NULL, -EINVAL, ": not a regular file");
    assert_open_fails(fifo, NULL, -EINVAL, ": not a regular file");
    assert_open_fails("/dev/null", NULL, -EINVAL, "kernel /dev/null: not a regular file");
    /* A long path does not push the reason out. */
    memset(long_path, 'p', sizeof(long_path) - 1);
    long_path[0] = '/';
    long_path[sizeof(long_path) - 1] = '\0';
    assert_open_fails(long_path, NULL, -ENAMETOOLONG, "pppp: cannot open: File name too long");
    unlink(fifo);
    rmdir(dir);
    close(fd);
}

static void test_cmdline_words(void **state)
{
    assert_true(boot_cmdline_has("nolapic", "nolapic"));
    assert_true(boot_cmdline_has("quiet  nolapic ", "nolapic"));
    assert_true(boot_cmdline_has("nolapics nolapic panic=1", "nolapic"));
    assert_false(boot_cmdline_has("nolapic_timer nolapic=1 xnolapic", "nolapic"));
    assert_false(boot_cmdline_has("  ", "nolapic"));
    assert_false(boot_cmdline_has("", "nolapic"));
    assert_false(boot_cmdline_has(NULL, "nolapic"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cmdline_words),
        cmocka_unit_test(test_bzimage_fields),    cmocka_unit_test(test_bzimage_fixed),
        cmocka_unit_test(test_bzimage_needs_memory), cmocka_unit_test(test_elf64_fields),
        cmocka_unit_test(test_elf32_fields),      cmocka_unit_test(test_elf_counts),
        cmocka_unit_test(test_elf_large_guest),
        cmocka_unit_test(test_multiboot_fields),  cmocka_unit_test(test_multiboot_headers),
        cmocka_unit_test(test_multiboot_elf_entry), cmocka_unit_test(test_every_cut),
        cmocka_unit_test(test_cut_after_open),    cmocka_unit_test(test_initrd_too_large),
        cmocka_unit_test(test_cmdline_too_long),  cmocka_unit_test(test_paths),
    };

    return cmocka_run_group_tests_name("boot-errors", tests, NULL, NULL);
}
