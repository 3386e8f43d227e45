/*
 * bzImage by the 64-bit boot protocol ("The Linux/x86 Boot Protocol" in the kernel's documentation): the part of the file
 * after the real-mode setup goes to memory as it is and is entered 0x200 bytes from its start in 64-bit mode, with the
 * address of a boot_params in RSI.
 *
 * The kernel unpacks itself within init_size bytes from where it was loaded, so all of that must be free RAM. It goes
 * to pref_address, or, where the guest is too small for that and the kernel can be moved, as low as its alignment allows.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "boot/boot-internal.h"

#define HEADER_OFFSET 0x1f1
#define BOOT_FLAG 0xaa55
#define HEADER_MAGIC 0x53726448 /* "HdrS" */
#define HEADER_MAGIC_OFFSET 0x202
/* The header ends this far behind the byte at 0x201. */
#define HEADER_LENGTH_OFFSET 0x201
#define HEADER_LENGTH_BASE 0x202

#define VERSION_MIN 0x20c /* has xloadflags */
#define SECTOR 512u
#define SETUP_SECTS_DEFAULT 4 /* what 0 means */
#define SYSSIZE_UNIT 16u
#define ENTRY_OFFSET 0x200
#define ALIGNMENT_MAX (1u << 30)
#define LOADER_UNDEFINED 0xff

static_assert(offsetof(struct boot_params, hdr) == HEADER_OFFSET, "boot_params is laid out as the protocol says");
static_assert(offsetof(struct boot_params, e820_table) == 0x2d0, "boot_params is laid out as the protocol says");
static_assert(sizeof(struct boot_params) == GUEST_PAGE_SIZE, "it takes its page in the boot area");
/* Of these, init_size is the last. */
#define HEADER_END_MIN (HEADER_OFFSET + offsetof(struct setup_header, handover_offset))

bool boot_bzimage_found(const uint8_t *head, size_t len)
{
    return len >= HEADER_MAGIC_OFFSET + 4 && le32_get(head + HEADER_MAGIC_OFFSET) == HEADER_MAGIC;
}

/* Take the header as far as the image has it and this program knows it; the rest is zero. */
static int read_header(struct boot_image *image, const uint8_t *head, size_t len, char *error)
{
    const struct boot_file *file = &image->kernel;
    size_t end = HEADER_LENGTH_BASE + head[HEADER_LENGTH_OFFSET];
    struct setup_header *h = &image->linux_header;

    if (len < HEADER_END_MIN)
        return boot_fail(error, file, EINVAL, "the file has %zu bytes, its setup header needs %zu", len, HEADER_END_MIN);
    memcpy(h, head + HEADER_OFFSET, MIN(len - HEADER_OFFSET, sizeof(*h)));
    if (h->boot_flag != BOOT_FLAG)
        return boot_fail(error, file, EINVAL, "boot_flag is 0x%x instead of 0x%x", h->boot_flag, BOOT_FLAG);
    if (h->version < VERSION_MIN)
        return boot_fail(error, file, EINVAL, "boot protocol version %u.%02u is older than %u.%02u", h->version >> 8,
                         h->version & 0xff, VERSION_MIN >> 8, VERSION_MIN & 0xff);
    if (end < HEADER_END_MIN)
        return boot_fail(error, file, EINVAL, "the setup header ends at 0x%zx, before 0x%zx", end, HEADER_END_MIN);
    if (end < HEADER_OFFSET + sizeof(*h))
        memset((uint8_t *)h + (end - HEADER_OFFSET), 0, HEADER_OFFSET + sizeof(*h) - end);
    if (!(h->loadflags & LOADED_HIGH))
        return boot_fail(error, file, EINVAL, "loadflags 0x%x lack LOADED_HIGH: not a bzImage", h->loadflags);
    if (!(h->xloadflags & XLF_KERNEL_64))
        return boot_fail(error, file, EINVAL, "xloadflags 0x%x lack XLF_KERNEL_64: not a 64-bit kernel", h->xloadflags);
    return 0;
}

/* The one segment: what follows the setup sectors. */
static int find_payload(struct boot_image *image, char *error)
{
    const struct setup_header *h = &image->linux_header;
    const struct boot_file *file = &image->kernel;
    unsigned int sects = h->setup_sects ? h->setup_sects : SETUP_SECTS_DEFAULT;
    uint64_t start = (sects + 1) * SECTOR, size = (uint64_t)h->syssize * SYSSIZE_UNIT, rest;

    if (start >= file->size)
        return boot_fail(error, file, EINVAL, "setup_sects %u ends at byte %llu, the file has %llu", h->setup_sects,
                         (unsigned long long)start, (unsigned long long)file->size);
    rest = file->size - start;
    /* syssize is rounded up; what follows (a signature) is not loaded. */
    if (size > align_up(rest, SYSSIZE_UNIT))
        return boot_fail(error, file, EINVAL, "the file is cut short: syssize 0x%x ends at byte %llu, the file has %llu",
                         h->syssize, (unsigned long long)(start + size), (unsigned long long)file->size);
    size = MIN(size, rest);
    if (size <= ENTRY_OFFSET)
        return boot_fail(error, file, EINVAL, "syssize 0x%x leaves no 64-bit entry point at byte 0x%x", h->syssize,
                         ENTRY_OFFSET);
    if (h->init_size < size)
        return boot_fail(error, file, EINVAL, "init_size 0x%x is less than the kernel's 0x%llx bytes", h->init_size,
                         (unsigned long long)size);
    image->segments[0] = (struct boot_segment){.offset = start, .file_size = size, .mem_size = h->init_size};
    image->segment_count = 1;
    return 0;
}

static int check_addresses(const struct boot_image *image, char *error)
{
    const struct setup_header *h = &image->linux_header;
    const struct boot_file *file = &image->kernel;
    uint32_t align = h->kernel_alignment;

    if (h->pref_address < HIGH_RAM_START)
        return boot_fail(error, file, EINVAL, "pref_address 0x%llx is below 0x%x", (unsigned long long)h->pref_address,
                         HIGH_RAM_START);
    if (!h->relocatable_kernel)
        return 0;
    if (align < GUEST_PAGE_SIZE || align > ALIGNMENT_MAX || (align & (align - 1)))
        return boot_fail(error, file, EINVAL, "kernel_alignment 0x%x is not a power of 2 from 0x%llx to 0x%x", align,
                         (unsigned long long)GUEST_PAGE_SIZE, ALIGNMENT_MAX);
    if (!is_aligned(h->pref_address, align))
        return boot_fail(error, file, EINVAL, "pref_address 0x%llx is not a multiple of kernel_alignment 0x%x",
                         (unsigned long long)h->pref_address, align);
    return 0;
}

/* -- loading ------------------------------------------------------------------ */

static bool kernel_fits(const struct boot_plan *plan, const struct setup_header *h, gpa_t start)
{
    return start < plan->low_end && h->init_size <= plan->low_end - start &&
           boot_initrd_fits(plan->initrd_size, start + h->init_size, plan->initrd_limit);
}

static int place(const struct boot_image *image, struct boot_plan *plan)
{
    const struct setup_header *h = &image->linux_header;
    const char *field = "pref_address";
    gpa_t start = h->pref_address;

    plan->initrd_limit = MIN(plan->low_end, (gpa_t)h->initrd_addr_max + 1);
    if (h->relocatable_kernel && !kernel_fits(plan, h, start)) {
        start = align_up(HIGH_RAM_START, h->kernel_alignment);
        field = "lowest address";
    }
    /* RAM beyond 4 GiB is not mapped where the kernel is entered. */
    if (start >= plan->low_end || h->init_size > plan->low_end - start)
        return boot_fail(plan->error, &image->kernel, ENOSPC,
                         "%s 0x%llx, init_size 0x%x is outside of guest RAM, which ends at 0x%llx", field,
                         (unsigned long long)start, h->init_size, (unsigned long long)plan->low_end);
    plan->base = start;
    return boot_claim(plan, &image->kernel, "the kernel", field, start, "init_size", h->init_size);
}

static void set_e820(const struct boot_plan *plan, struct boot_params *params)
{
    struct boot_map map;

    boot_make_map(plan->mem, &map);
    for (unsigned int i = 0; i < map.count; i++) {
        params->e820_table[i].addr = map.entries[i].base;
        params->e820_table[i].size = map.entries[i].size;
        params->e820_table[i].type = map.entries[i].type;
    }
    params->e820_entries = (uint8_t)map.count;
}

static void enter(const struct boot_image *image, const struct boot_plan *plan, struct vcpu_entry *entry)
{
    struct boot_params params = {0};
    struct setup_header *h = &params.hdr;

    *h = image->linux_header;
    h->type_of_loader = LOADER_UNDEFINED;
    /* For the real-mode code, which is not run. */
    h->loadflags = (uint8_t)(h->loadflags & ~CAN_USE_HEAP);
    h->code32_start = (uint32_t)plan->base;
    h->cmd_line_ptr = BOOT_CMDLINE;
    h->ramdisk_image = (uint32_t)plan->initrd;
    h->ramdisk_size = (uint32_t)plan->initrd_size;
    h->setup_data = 0;
    params.acpi_rsdp_addr = ACPI_TABLES_BASE;
    set_e820(plan, &params);
    boot_write(plan, BOOT_INFO, &params, sizeof(params));
    boot_write(plan, BOOT_CMDLINE, image->cmdline, strlen(image->cmdline) + 1);
    boot_enter_long(plan, plan->base + ENTRY_OFFSET, entry);
    entry->regs.rsi = BOOT_INFO;
}

int boot_bzimage_open(struct boot_image *image, const uint8_t *head, size_t len, char *error)
{
    static const struct boot_loader loader = {.protocol = BOOT_LINUX64, .place = place, .enter = enter};
    size_t cmdline_len = strlen(image->cmdline);
    int r = read_header(image, head, len, error);

    if (r < 0)
        return r;
    r = find_payload(image, error);
    if (r < 0)
        return r;
    r = check_addresses(image, error);
    if (r < 0)
        return r;
    if (cmdline_len > image->linux_header.cmdline_size)
        return boot_fail(error, &image->kernel, E2BIG, "command line of %zu bytes exceeds cmdline_size %u", cmdline_len,
                         image->linux_header.cmdline_size);
    image->loader = &loader;
    return 0;
}
