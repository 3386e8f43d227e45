#include "bootinfo.h"

#include <stddef.h>

#include "runtime.h"

#define START_INFO_MAGIC 0x336ec578u
#define MAP_RAM 1u
#define MULTIBOOT_HAS_MEM 0x01u
#define MULTIBOOT_HAS_CMDLINE 0x04u
#define MULTIBOOT_HAS_MMAP 0x40u

/* Start of day structure of the Xen PVH ABI, version 1. */
struct start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modules, cmdline, rsdp, memmap;
    uint32_t memmap_entries, reserved;
};

struct start_info_memmap {
    uint64_t addr, size;
    uint32_t type, reserved;
};

/* Multiboot 1 information, as far as it is used. */
struct multiboot_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};

struct multiboot_mmap {
    uint32_t size; /* of what follows */
    uint32_t addr_low, addr_high, len_low, len_high, type;
};

static char cmdline[BOOT_CMDLINE_SIZE];
static struct boot_range ranges[BOOT_RANGES];
static unsigned int range_count;

static const char *copy_cmdline(uint64_t addr)
{
    const char *from = (const char *)addr;

    for (size_t i = 0; i < sizeof(cmdline); i++) {
        cmdline[i] = from[i];
        if (!from[i])
            return NULL;
    }
    cmdline[0] = '\0';
    return "the command line is too long";
}

static const char *add_range(uint64_t base, uint64_t size)
{
    if (size == 0)
        return NULL;
    if (range_count == BOOT_RANGES)
        return "the memory map has too many ranges of RAM";
    if (base + size < base)
        return "the memory map has a range that wraps";
    ranges[range_count++] = (struct boot_range){.base = base, .size = size};
    return NULL;
}

static const char *parse_pvh(const struct start_info *info)
{
    const struct start_info_memmap *map = (const struct start_info_memmap *)info->memmap;
    const char *error = NULL;

    if (info->magic != START_INFO_MAGIC)
        return "the PVH start info has no magic";
    if (info->version < 1 || info->memmap_entries == 0)
        return "the PVH start info has no memory map";
    if (info->cmdline)
        error = copy_cmdline(info->cmdline);
    for (uint32_t i = 0; i < info->memmap_entries && !error; i++)
        if (map[i].type == MAP_RAM)
            error = add_range(map[i].addr, map[i].size);
    return error;
}

static const char *parse_multiboot(const struct multiboot_info *info)
{
    const char *error = NULL;
    uint64_t at, end;

    if (info->flags & MULTIBOOT_HAS_CMDLINE)
        error = copy_cmdline(info->cmdline);
    if (!(info->flags & MULTIBOOT_HAS_MMAP)) {
        if (!(info->flags & MULTIBOOT_HAS_MEM))
            return "the multiboot information has no memory map";
        return error ? error : add_range(0x100000, (uint64_t)info->mem_upper * 1024);
    }
    at = info->mmap_addr;
    end = at + info->mmap_length;
    while (at + sizeof(struct multiboot_mmap) <= end && !error) {
        const struct multiboot_mmap *m = (const struct multiboot_mmap *)at;

        if (m->size < sizeof(*m) - sizeof(m->size))
            return "the multiboot memory map has an entry that is too short";
        if (m->type == MAP_RAM)
            error = add_range((uint64_t)m->addr_high << 32 | m->addr_low, (uint64_t)m->len_high << 32 | m->len_low);
        at += sizeof(m->size) + m->size;
    }
    return error;
}

const char *boot_parse(void)
{
    if (boot_kind == BOOT_MULTIBOOT)
        return parse_multiboot((const struct multiboot_info *)(uintptr_t)boot_info);
    return parse_pvh((const struct start_info *)(uintptr_t)boot_info);
}

const char *boot_cmdline(void)
{
    return cmdline;
}

unsigned int boot_ranges(const struct boot_range **ret_ranges)
{
    *ret_ranges = ranges;
    return range_count;
}
