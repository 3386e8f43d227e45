/*
 * Loading a kernel: bzImage by the 64-bit boot protocol, ELF by PVH, multiboot 1, with an initial RAM disk, a command
 * line and ACPI tables. Where things are put: see boot.c.
 *
 * Every field of an image is hostile: read once, checked against the file's and the guest memory's size, then used.
 * The files are opened once (boot_open) and kept, so that a reset can load them again after the sandbox is closed.
 * Main thread only; boot_load wants no vCPU running.
 */
#ifndef UMBRA_BOOT_BOOT_H
#define UMBRA_BOOT_BOOT_H

#include <stdbool.h>
#include <stdint.h>

#include "boot/acpi.h"
#include "mmu/mem.h"
#include "vcpu/vm.h"

/* Bytes of a command line, its NUL not among them. */
#define BOOT_CMDLINE_MAX 2047
#define BOOT_ERROR_MAX 256

struct boot_image;

enum boot_protocol {
    BOOT_LINUX64,
    BOOT_PVH,
    BOOT_MULTIBOOT,
};

struct boot_config {
    const char *kernel;  /* path */
    const char *initrd;  /* path or NULL */
    const char *cmdline; /* or NULL */
    struct acpi_config acpi; /* what it points to must live as long as the image */
};

/* Whether a command line (or NULL) has a word: "nolapic", not "nolapic=1" or "nolapics". */
bool boot_cmdline_has(const char *cmdline, const char *word);

/*
 * Open and examine kernel and initrd. On failure -errno, and `error` (BOOT_ERROR_MAX bytes) holds one line that names
 * the file, the field, its value and the limit. Nothing is written to guest memory yet.
 * -errno of opening or reading; -EINVAL (a field of the image makes no sense), -ENOEXEC (not a kernel of a known kind),
 * -E2BIG (command line), -ENOMEM.
 */
int boot_open(const struct boot_config *config, char *error, struct boot_image **ret);
/* NULL is fine. */
void boot_close(struct boot_image *image);
enum boot_protocol boot_image_protocol(const struct boot_image *image);

/*
 * Write kernel, initrd, command line, memory map and ACPI tables into guest memory and say where vCPU 0 starts.
 * All guest memory must be zero (new, or after mem_discard): what a kernel wants zeroed is not written.
 * -ENOSPC when something does not fit or overlaps (`error` says what, where and how much there is; nothing is written),
 * -EIO when a file became shorter since boot_open, -ENOMEM, or -errno of reading.
 */
int boot_load(const struct boot_image *image, struct mem *mem, char *error, struct vcpu_entry *ret_entry);

#endif
