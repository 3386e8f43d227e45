/*
 * "Multiboot Specification", version 0.6.96: an image with a header in its first 8192 bytes is entered in 32-bit
 * protected mode without paging, with a magic number in EAX and the address of the information structure in EBX. What
 * is loaded where comes from the ELF program headers, or from address fields in the header, which win.
 *
 * As GRUB Legacy and QEMU have it, and test suites rely on it, the first word of the command line is the name of the
 * kernel (its last component). The initrd is the one module; its string is its name.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "boot/boot-internal.h"

#define HEADER_MAGIC 0x1badb002u
#define LOADER_MAGIC 0x2badb002u
#define HEADER_ALIGN 4

/* Flags of the header. The low half asks for things, and who does not know one must not load the image. */
#define HEADER_PAGE_ALIGN (1u << 0)
#define HEADER_MEMORY_INFO (1u << 1)
#define HEADER_REQUIRED 0xffffu
#define HEADER_ADDRESSES (1u << 16)

/* Offsets and sizes of the header. */
#define HEADER_SIZE 12
#define HEADER_SIZE_ADDRESSES 32
#define HEADER_FLAGS 4
#define HEADER_CHECKSUM 8
#define HEADER_HEADER_ADDR 12
#define HEADER_LOAD_ADDR 16
#define HEADER_LOAD_END_ADDR 20
#define HEADER_BSS_END_ADDR 24
#define HEADER_ENTRY_ADDR 28

/* The information structure, and what follows it in its page. */
#define INFO_HAS_MEMORY (1u << 0)
#define INFO_HAS_CMDLINE (1u << 2)
#define INFO_HAS_MODULES (1u << 3)
#define INFO_HAS_MMAP (1u << 6)
#define INFO_HAS_LOADER_NAME (1u << 9)
enum {
    INFO_FLAGS = 0,
    INFO_MEM_LOWER = 4,
    INFO_MEM_UPPER = 8,
    INFO_CMDLINE = 16,
    INFO_MODS_COUNT = 20,
    INFO_MODS_ADDR = 24,
    INFO_MMAP_LENGTH = 44,
    INFO_MMAP_ADDR = 48,
    INFO_LOADER_NAME = 64,
    INFO_SIZE = 116, /* with what a loader of today may fill in */

    MODULE = 128,
    MODULE_SIZE = 16,
    MMAP = MODULE + MODULE_SIZE,
    MMAP_ENTRY_SIZE = 24,
    MMAP_MAX = ARRAY_SIZE(((struct boot_map *)0)->entries),
    LOADER_NAME = MMAP + MMAP_MAX * MMAP_ENTRY_SIZE,
    LOADER_NAME_SIZE = 8,
    MODULE_NAME = LOADER_NAME + LOADER_NAME_SIZE,
    NAME_SIZE = 256,
    PAGE_USED = MODULE_NAME + NAME_SIZE,
};

static_assert(INFO_SIZE <= MODULE, "they do not overlap");
static_assert(PAGE_USED <= (int)GUEST_PAGE_SIZE, "it fits into its page");
static_assert(NAME_SIZE + BOOT_CMDLINE_MAX + 1 <= GUEST_PAGE_SIZE, "so does the command line");

/* The header, or NULL. */
static const uint8_t *find_header(const uint8_t *head, size_t len)
{
    for (size_t at = 0; at + HEADER_SIZE <= len; at += HEADER_ALIGN) {
        const uint8_t *h = head + at;

        if (le32_get(h) == HEADER_MAGIC && le32_get(h) + le32_get(h + HEADER_FLAGS) + le32_get(h + HEADER_CHECKSUM) == 0)
            return h;
    }
    return NULL;
}

bool boot_multiboot_found(const uint8_t *head, size_t len)
{
    return find_header(head, len);
}

/* -- address fields ----------------------------------------------------------- */

static int take_addresses(struct boot_image *image, const uint8_t *header, uint64_t header_offset, char *error)
{
    const struct boot_file *file = &image->kernel;
    uint32_t header_addr = le32_get(header + HEADER_HEADER_ADDR), load = le32_get(header + HEADER_LOAD_ADDR);
    uint32_t load_end = le32_get(header + HEADER_LOAD_END_ADDR), bss_end = le32_get(header + HEADER_BSS_END_ADDR);
    struct boot_segment s = {.vaddr = load, .paddr = load};

    if (load > header_addr || header_addr - load > header_offset)
        return boot_fail(error, file, EINVAL,
                         "multiboot: load_addr 0x%x is not within header_addr 0x%x and the 0x%llx bytes before it", load,
                         header_addr, (unsigned long long)header_offset);
    s.offset = header_offset - (header_addr - load);
    /* 0: all of the file. */
    s.file_size = file->size - s.offset;
    if (load_end) {
        if (load_end <= load || load_end - load > s.file_size)
            return boot_fail(error, file, EINVAL,
                             "multiboot: load_end_addr 0x%x is not within load_addr 0x%x and the 0x%llx bytes the file "
                             "has from there",
                             load_end, load, (unsigned long long)s.file_size);
        s.file_size = load_end - load;
    }
    /* 0: no bss. */
    s.mem_size = s.file_size;
    if (bss_end) {
        if (bss_end < load || bss_end - load < s.file_size)
            return boot_fail(error, file, EINVAL, "multiboot: bss_end_addr 0x%x is below the end of what is loaded, 0x%llx",
                             bss_end, (unsigned long long)(load + s.file_size));
        s.mem_size = bss_end - load;
    }
    image->segments[0] = s;
    image->segment_count = 1;
    image->segment_word = "segment";
    image->paddr_field = "load_addr";
    image->size_field = "size";
    return 0;
}

/* Entry points are virtual in ELF headers; with address fields there is no difference. */
static int set_entry(struct boot_image *image, const char *field, uint64_t entry, char *error)
{
    for (unsigned int i = 0; i < image->segment_count; i++) {
        const struct boot_segment *s = &image->segments[i];

        if (entry - s->vaddr >= s->file_size)
            continue;
        image->entry = s->paddr + (entry - s->vaddr);
        if (image->entry > UINT32_MAX)
            return boot_fail(error, &image->kernel, EINVAL, "multiboot: %s 0x%llx is loaded at 0x%llx, beyond 4 GiB",
                             field, (unsigned long long)entry, (unsigned long long)image->entry);
        return 0;
    }
    return boot_fail(error, &image->kernel, EINVAL, "multiboot: %s 0x%llx is in none of the %u loaded segments", field,
                     (unsigned long long)entry, image->segment_count);
}

/* -- loading ------------------------------------------------------------------ */

static int place(const struct boot_image *image, struct boot_plan *plan)
{
    return boot_claim_segments(plan, image);
}

static void put_memory_map(const struct boot_plan *plan, uint8_t *page)
{
    struct boot_map map;

    boot_make_map(plan->mem, &map);
    for (unsigned int i = 0; i < map.count; i++) {
        uint8_t *e = page + MMAP + i * MMAP_ENTRY_SIZE;

        le32_put(e, MMAP_ENTRY_SIZE - 4); /* of what follows */
        le64_put(e + 4, map.entries[i].base);
        le64_put(e + 12, map.entries[i].size);
        le32_put(e + 20, map.entries[i].type);
    }
    le32_put(page + INFO_MMAP_LENGTH, map.count * MMAP_ENTRY_SIZE);
    le32_put(page + INFO_MMAP_ADDR, BOOT_INFO + MMAP);
    le32_put(page + INFO_MEM_LOWER, LOW_RAM_END / KiB);
    le32_put(page + INFO_MEM_UPPER, (uint32_t)((plan->low_end - HIGH_RAM_START) / KiB));
}

static void put_module(const struct boot_image *image, const struct boot_plan *plan, uint8_t *page)
{
    le32_put(page + INFO_MODS_COUNT, 1);
    le32_put(page + INFO_MODS_ADDR, BOOT_INFO + MODULE);
    le32_put(page + MODULE, (uint32_t)plan->initrd);
    le32_put(page + MODULE + 4, (uint32_t)(plan->initrd + plan->initrd_size));
    le32_put(page + MODULE + 8, BOOT_INFO + MODULE_NAME);
    boot_file_name(&image->initrd, (char *)page + MODULE_NAME, NAME_SIZE);
}

static void write_cmdline(const struct boot_image *image, const struct boot_plan *plan)
{
    char line[NAME_SIZE + BOOT_CMDLINE_MAX + 1];
    size_t n;

    boot_file_name(&image->kernel, line, NAME_SIZE);
    n = strlen(line);
    if (image->cmdline[0])
        n += (size_t)snprintf(line + n, sizeof(line) - n, " %s", image->cmdline);
    boot_write(plan, BOOT_CMDLINE, line, n + 1);
}

static void enter(const struct boot_image *image, const struct boot_plan *plan, struct vcpu_entry *entry)
{
    uint32_t flags = INFO_HAS_MEMORY | INFO_HAS_CMDLINE | INFO_HAS_MMAP | INFO_HAS_LOADER_NAME;
    uint8_t page[PAGE_USED] = {0};

    put_memory_map(plan, page);
    if (plan->initrd_size > 0) {
        put_module(image, plan, page);
        flags |= INFO_HAS_MODULES;
    }
    le32_put(page + INFO_FLAGS, flags);
    le32_put(page + INFO_CMDLINE, BOOT_CMDLINE);
    le32_put(page + INFO_LOADER_NAME, BOOT_INFO + LOADER_NAME);
    memcpy(page + LOADER_NAME, "umbra", sizeof("umbra"));
    boot_write(plan, BOOT_INFO, page, sizeof(page));
    write_cmdline(image, plan);
    boot_enter_flat(plan, image->entry, entry);
    entry->regs.rax = LOADER_MAGIC;
    entry->regs.rbx = BOOT_INFO;
}

int boot_multiboot_open(struct boot_image *image, const uint8_t *head, size_t len, const struct boot_elf *elf,
                        char *error)
{
    static const struct boot_loader loader = {.protocol = BOOT_MULTIBOOT, .place = place, .enter = enter};
    const struct boot_file *file = &image->kernel;
    const uint8_t *header = find_header(head, len);
    uint32_t flags = le32_get(header + HEADER_FLAGS), unknown;
    int r;

    /* Modules start on pages, and the information has the memory, whether asked for or not. */
    unknown = flags & HEADER_REQUIRED & ~(HEADER_PAGE_ALIGN | HEADER_MEMORY_INFO);
    if (unknown)
        return boot_fail(error, file, EINVAL, "multiboot: flags 0x%x ask for 0x%x, which is not there (0x%x is)", flags,
                         unknown, HEADER_PAGE_ALIGN | HEADER_MEMORY_INFO);
    if (flags & HEADER_ADDRESSES) {
        if ((size_t)(head + len - header) < HEADER_SIZE_ADDRESSES)
            return boot_fail(error, file, EINVAL, "multiboot: the header at 0x%zx ends beyond 0x%zx",
                             (size_t)(header - head), len);
        r = take_addresses(image, header, (uint64_t)(header - head), error);
        if (r == 0)
            r = set_entry(image, "entry_addr", le32_get(header + HEADER_ENTRY_ADDR), error);
    } else if (elf) {
        r = set_entry(image, "e_entry", elf->entry, error);
    } else {
        r = boot_fail(error, file, ENOEXEC, "multiboot: flags 0x%x have no address fields (0x%x) and the file is no ELF",
                      flags, HEADER_ADDRESSES);
    }
    if (r == 0)
        image->loader = &loader;
    return r;
}
