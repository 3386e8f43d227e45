/*
 * PVH ("x86/HVM direct boot ABI" of Xen): an ELF kernel is entered in 32-bit protected mode without paging, at the address
 * its note names, with the address of a struct hvm_start_info in EBX. No Xen is involved.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "boot/boot-internal.h"

#define START_INFO_MAGIC 0x336ec578
#define START_INFO_VERSION 1

/* struct hvm_start_info, and what follows it in its page. */
enum {
    INFO_MAGIC = 0,
    INFO_VERSION = 4,
    INFO_NR_MODULES = 12,
    INFO_MODLIST = 16,
    INFO_CMDLINE = 24,
    INFO_RSDP = 32,
    INFO_MEMMAP = 40,
    INFO_MEMMAP_ENTRIES = 48,
    INFO_SIZE = 56,

    MODULE = 64, /* struct hvm_modlist_entry */
    MODULE_PADDR = MODULE + 0,
    MODULE_BYTES = MODULE + 8,
    MODULE_SIZE = 32,

    MEMMAP = MODULE + MODULE_SIZE, /* struct hvm_memmap_table_entry */
    MEMMAP_ENTRY_SIZE = 24,
    MEMMAP_MAX = ARRAY_SIZE(((struct boot_map *)0)->entries),
    PAGE_USED = MEMMAP + MEMMAP_MAX * MEMMAP_ENTRY_SIZE,
};

static_assert(INFO_SIZE <= MODULE, "they do not overlap");
static_assert(PAGE_USED <= (int)GUEST_PAGE_SIZE, "it fits into its page");

static int place(const struct boot_image *image, struct boot_plan *plan)
{
    return boot_claim_segments(plan, image);
}

static void put_memory_map(const struct boot_plan *plan, uint8_t *page)
{
    struct boot_map map;

    boot_make_map(plan->mem, &map);
    for (unsigned int i = 0; i < map.count; i++) {
        uint8_t *e = page + MEMMAP + i * MEMMAP_ENTRY_SIZE;

        le64_put(e, map.entries[i].base);
        le64_put(e + 8, map.entries[i].size);
        le32_put(e + 16, map.entries[i].type);
    }
    le64_put(page + INFO_MEMMAP, BOOT_INFO + MEMMAP);
    le32_put(page + INFO_MEMMAP_ENTRIES, map.count);
}

static void enter(const struct boot_image *image, const struct boot_plan *plan, struct vcpu_entry *entry)
{
    uint8_t page[PAGE_USED] = {0};

    le32_put(page + INFO_MAGIC, START_INFO_MAGIC);
    le32_put(page + INFO_VERSION, START_INFO_VERSION);
    le64_put(page + INFO_CMDLINE, BOOT_CMDLINE);
    le64_put(page + INFO_RSDP, ACPI_TABLES_BASE);
    if (plan->initrd_size > 0) {
        le32_put(page + INFO_NR_MODULES, 1);
        le64_put(page + INFO_MODLIST, BOOT_INFO + MODULE);
        le64_put(page + MODULE_PADDR, plan->initrd);
        le64_put(page + MODULE_BYTES, plan->initrd_size);
    }
    put_memory_map(plan, page);
    boot_write(plan, BOOT_INFO, page, sizeof(page));
    boot_write(plan, BOOT_CMDLINE, image->cmdline, strlen(image->cmdline) + 1);
    boot_enter_flat(plan, image->entry, entry);
    entry->regs.rbx = BOOT_INFO;
}

int boot_pvh_open(struct boot_image *image, const struct boot_elf *elf, char *error)
{
    static const struct boot_loader loader = {.protocol = BOOT_PVH, .place = place, .enter = enter};

    if (elf->pvh_entry > UINT32_MAX)
        return boot_fail(error, &image->kernel, EINVAL, "PVH entry point 0x%llx is beyond 4 GiB",
                         (unsigned long long)elf->pvh_entry);
    for (unsigned int i = 0; i < image->segment_count; i++) {
        const struct boot_segment *s = &image->segments[i];

        if (elf->pvh_entry - s->paddr < s->file_size) {
            image->entry = elf->pvh_entry;
            image->loader = &loader;
            return 0;
        }
    }
    return boot_fail(error, &image->kernel, EINVAL, "PVH entry point 0x%llx is in none of the %u loaded segments",
                     (unsigned long long)elf->pvh_entry, image->segment_count);
}
