/*
 * Loading a kernel: bzImage by the 64-bit boot protocol, ELF by PVH, multiboot 1, with an initial RAM disk, a command
 * line and ACPI tables.
 *
 * Every field of an image is hostile: read once, checked against the file's and the guest memory's size, then used.
 * The files are opened once (boot_open) and kept, so that a reset can load them again after the sandbox is closed.
 * Main thread only; boot_load wants no vCPU running.
 */
#ifndef UMBRA_BOOT_BOOT_H
#define UMBRA_BOOT_BOOT_H

#include <stdint.h>

#include "mmu/mem.h"
#include "vcpu/vm.h"

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
    unsigned int cpus;
};

/*
 * Open and examine kernel and initrd. On failure -errno, and `error` (BOOT_ERROR_MAX bytes) holds one line that names
 * the file, the field and the limit. Nothing is written to guest memory yet.
 */
int boot_open(const struct boot_config *config, char *error, struct boot_image **ret);
void boot_close(struct boot_image *image);
enum boot_protocol boot_image_protocol(const struct boot_image *image);

/*
 * Write kernel, initrd, command line, memory map and ACPI tables into guest memory and say where vCPU 0 starts.
 * -ENOSPC when something does not fit (error says what and how much there is), -EINVAL, -EIO.
 */
int boot_load(const struct boot_image *image, struct mem *mem, char *error, struct vcpu_entry *ret_entry);

#endif
