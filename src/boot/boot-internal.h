/* What the loaders of src/boot share. Nothing outside of this directory includes it. */
#ifndef UMBRA_BOOT_BOOT_INTERNAL_H
#define UMBRA_BOOT_BOOT_INTERNAL_H

#include <asm/bootparam.h>
#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"
#include "boot/boot.h"

/* -- where things stand: see boot.c -- */

#define BOOT_AREA 0x90000
#define BOOT_GDT 0x90000
#define BOOT_INFO 0x91000    /* boot_params, hvm_start_info or multiboot information */
#define BOOT_CMDLINE 0x92000 /* one page */
#define BOOT_PML4 0x93000
#define BOOT_PDPT 0x94000
#define BOOT_PD 0x95000 /* one page a GiB */
#define BOOT_IDENTITY_GIB 4
#define BOOT_AREA_END 0x99000
#define LOW_RAM_END 0xa0000
#define HIGH_RAM_START 0x100000

static_assert(BOOT_PD + BOOT_IDENTITY_GIB * GUEST_PAGE_SIZE == BOOT_AREA_END, "the boot area has no holes");
static_assert(BOOT_AREA_END <= LOW_RAM_END, "it is RAM in every memory map");
static_assert(ACPI_TABLES_BASE + ACPI_TABLES_SIZE == HIGH_RAM_START, "the ACPI tables end low memory");

/* The start of a file, where every kind of image has its header. */
#define BOOT_HEAD_SIZE 8192

#define BOOT_MAX_SEGMENTS 32

struct boot_file {
    const char *what; /* what errors call it: "kernel", "initrd" */
    char *path;
    int fd; /* -1 when there is none */
    uint64_t size;
};

/* A piece of the kernel's file that goes to memory. Offset and sizes are checked against the file. */
struct boot_segment {
    uint64_t offset, file_size; /* in the file */
    uint64_t vaddr;             /* where the image says it runs */
    uint64_t paddr;             /* where it goes, from boot_plan.base */
    uint64_t mem_size;          /* at least file_size; the rest is zero */
    unsigned int index;         /* of its program header */
};

struct boot_plan;

struct boot_loader {
    enum boot_protocol protocol;
    /* Claim the memory of the kernel and set plan->base and plan->initrd_limit. -ENOSPC with the error set. */
    int (*place)(const struct boot_image *image, struct boot_plan *plan);
    /* Everything is in place: write what the kernel is told, and say where it starts. */
    void (*enter)(const struct boot_image *image, const struct boot_plan *plan, struct vcpu_entry *entry);
};

struct boot_image {
    struct boot_file kernel, initrd;
    char cmdline[BOOT_CMDLINE_MAX + 1];
    struct acpi_config acpi;
    const struct boot_loader *loader;
    struct boot_segment segments[BOOT_MAX_SEGMENTS];
    unsigned int segment_count;
    /* How errors call a segment, its address and its size. */
    const char *segment_word, *paddr_field, *size_field;
    uint64_t entry; /* PVH, multiboot: physical */
    struct setup_header linux_header; /* bzImage */
};

struct boot_claim {
    gpa_t start, end;
    char name[24];
};

/* What goes where; made by boot_load before it writes anything. */
struct boot_plan {
    struct mem *mem;
    char *error;
    gpa_t low_end; /* end of RAM below 4 GiB */
    struct boot_claim claims[BOOT_MAX_SEGMENTS + 4];
    unsigned int claim_count;
    gpa_t base;         /* added to the segments' paddr */
    gpa_t kernel_end;   /* of its highest piece below low_end */
    gpa_t initrd_limit; /* it has to end at or below */
    gpa_t initrd;
    uint64_t initrd_size; /* 0: none */
};

/* Write "WHAT PATH: message" (file may be NULL: only the message) to error and return -err. */
int boot_fail(char *error, const struct boot_file *file, int err, const char *fmt, ...) PRINTF_LIKE(4, 5);

/* Read all of [offset, offset + len) of the file; -EIO, or -errno, with the error set. */
int boot_read(const struct boot_file *file, char *error, const char *what, void *buf, size_t len, uint64_t offset);

/* Write to memory that was claimed, and so is RAM. */
void boot_write(const struct boot_plan *plan, gpa_t gpa, const void *buf, size_t len);

/* The last component of a file's path, with '_' for what would end a word of a command line. */
void boot_file_name(const struct boot_file *file, char *buf, size_t len);

/* -- layout.c -- */

void boot_plan_init(struct boot_plan *plan, const struct boot_image *image, struct mem *mem, char *error);
/*
 * Take [start, start + size), not empty, for a piece of the kernel; -ENOSPC when it is not all RAM or somebody has it.
 * Errors call the two numbers by the given names.
 */
int boot_claim(struct boot_plan *plan, const struct boot_file *file, const char *name, const char *start_field,
               uint64_t start, const char *size_field, uint64_t size);
/* Claim every segment of the image. */
int boot_claim_segments(struct boot_plan *plan, const struct boot_image *image);
/* Find the highest place for the initrd above the kernel; -ENOSPC. */
int boot_place_initrd(struct boot_plan *plan, const struct boot_image *image);
/* True when an initrd of `size` bytes fits between the two. */
bool boot_initrd_fits(uint64_t size, gpa_t kernel_end, gpa_t limit);

/* The memory map. The types are numbered alike by the BIOS's E820, Xen's memmap and multiboot. */
enum boot_map_type {
    BOOT_MAP_RAM = 1,
    BOOT_MAP_RESERVED = 2,
    BOOT_MAP_ACPI = 3,
};
struct boot_map {
    struct boot_map_entry {
        uint64_t base, size;
        enum boot_map_type type;
    } entries[5];
    unsigned int count;
};
void boot_make_map(const struct mem *mem, struct boot_map *ret);

/* -- entry.c -- */

/* 64-bit mode, the first 4 GiB mapped one to one. */
void boot_enter_long(const struct boot_plan *plan, gpa_t rip, struct vcpu_entry *entry);
/* 32-bit protected mode with flat segments, no paging. */
void boot_enter_flat(const struct boot_plan *plan, gpa_t eip, struct vcpu_entry *entry);

/*
 * Kinds of images. Each examines the image's head and sets the loader and all it needs, or fails with the error set;
 * the _found functions tell whether it is theirs.
 */
bool boot_bzimage_found(const uint8_t *head, size_t len);
int boot_bzimage_open(struct boot_image *image, const uint8_t *head, size_t len, char *error);

struct boot_elf {
    bool has_pvh_entry;
    uint64_t pvh_entry; /* physical */
    uint64_t entry;     /* virtual */
};
bool boot_elf_found(const uint8_t *head, size_t len);
/* Fill in the segments. */
int boot_elf_open(struct boot_image *image, const uint8_t *head, size_t len, struct boot_elf *ret, char *error);

int boot_pvh_open(struct boot_image *image, const struct boot_elf *elf, char *error);

bool boot_multiboot_found(const uint8_t *head, size_t len);
/* elf is NULL where the image is none. */
int boot_multiboot_open(struct boot_image *image, const uint8_t *head, size_t len, const struct boot_elf *elf,
                        char *error);

#endif
