/* What the loader handed over, PVH or multiboot, copied out of its way. */
#ifndef GUEST_BOOTINFO_H
#define GUEST_BOOTINFO_H

#include <stdint.h>

#define BOOT_CMDLINE_SIZE 2048
#define BOOT_RANGES 64

struct boot_range {
    uint64_t base, size;
};

/* Returns NULL, or what is wrong with it. */
const char *boot_parse(void);

const char *boot_cmdline(void);

/* Ranges of usable RAM. */
unsigned int boot_ranges(const struct boot_range **ret_ranges);

#endif
