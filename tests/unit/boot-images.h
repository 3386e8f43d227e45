/* Small valid kernel images of each kind, for tests to load or to damage. */
#ifndef TESTS_UNIT_BOOT_IMAGES_H
#define TESTS_UNIT_BOOT_IMAGES_H

#include <stddef.h>
#include <stdint.h>

#include "boot/boot.h"

struct test_image {
    uint8_t data[32768];
    size_t len;
};

/* Every byte of an image that no header claims has this value, so that a test knows what it finds in guest memory. */
static inline uint8_t test_image_byte(size_t offset)
{
    return (uint8_t)(offset * 7 + (offset >> 8) + 1);
}

/* bzImage: 4 setup sectors, TEST_BZ_SIZE bytes of kernel, then a "signature". */
#define TEST_BZ_PAYLOAD 2560
#define TEST_BZ_SIZE 0x2000
#define TEST_BZ_PREF 0x1000000
#define TEST_BZ_INIT_SIZE 0x300000
#define TEST_BZ_ALIGN 0x200000
#define TEST_BZ_SIGNATURE 100
void build_bzimage(struct test_image *im);

/*
 * ELF64 and ELF32 with three program headers: a note with a PVH entry, text and data (with as much bss as data).
 * The 64-bit one has virtual addresses that differ from the physical ones by TEST_ELF_VOFFSET.
 */
#define TEST_ELF_NOTE 0x200
#define TEST_ELF_TEXT 0x1000
#define TEST_ELF_TEXT_SIZE 0x800
#define TEST_ELF_TEXT_ADDR 0x100000
#define TEST_ELF_ENTRY 0x100040
#define TEST_ELF_DATA 0x1800
#define TEST_ELF_DATA_SIZE 0x400
#define TEST_ELF_DATA_ADDR 0x200000
#define TEST_ELF_VOFFSET 0xffffffff80000000ull
void build_elf64(struct test_image *im);
void build_elf32(struct test_image *im);
#define TEST_PHDR64(i) (64 + 56 * (i))
#define TEST_PHDR32(i) (52 + 32 * (i))
enum { TEST_PHDR_NOTE, TEST_PHDR_TEXT, TEST_PHDR_DATA };

/* The same ELF32 without the note, with a multiboot header at the start of its text. */
void build_multiboot_elf(struct test_image *im);

/* No ELF: a multiboot header with address fields. */
#define TEST_MB_HEADER 0x40
#define TEST_MB_LOAD_ADDR 0x100000
#define TEST_MB_LOAD_SIZE 0x1800
#define TEST_MB_BSS_SIZE 0x1000
#define TEST_MB_ENTRY 0x100100
#define TEST_MB_FILE_SIZE 0x2000
void build_multiboot_flat(struct test_image *im);

/* Write a multiboot header; `addresses` (5 words) may be NULL. */
void put_multiboot_header(uint8_t *at, uint32_t flags, const uint32_t *addresses);

/* A memfd with the bytes, and its path; the descriptor. */
int test_image_file(const void *data, size_t len, char *path, size_t path_len);

/* What became of loading an image. */
struct boot_attempt {
    int r; /* 0, or what boot_open or boot_load returned */
    char error[BOOT_ERROR_MAX];
    struct mem *mem;
    struct boot_image *image; /* NULL after a failed boot_open */
    struct vcpu_entry entry;
};

/* Open and load, with an initrd (test_image_byte all through) of initrd_size bytes unless that is 0. */
struct boot_attempt boot_attempt(const struct test_image *im, uint64_t mem_size, size_t initrd_size, const char *cmdline);
void boot_attempt_clear(struct boot_attempt *a);

#endif
