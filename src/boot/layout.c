/* Who has which guest memory, where the initrd goes, and the memory map. */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "boot/boot-internal.h"

/* From here on the hole below 4 GiB is the platform's: IOAPIC, LAPIC, and the pages that KVM needs on some CPUs. */
#define PLATFORM_START UINT64_C(0xfec00000)

static_assert(MEM_HOLE_START <= PLATFORM_START && MEM_HOLE_END > PLATFORM_START, "it lies in the hole");
static_assert(MEM_SIZE_MIN >= HIGH_RAM_START, "low memory is always complete");

static void add_claim(struct boot_plan *plan, gpa_t start, gpa_t end, const char *name)
{
    struct boot_claim *c = &plan->claims[plan->claim_count];

    assert(plan->claim_count < ARRAY_SIZE(plan->claims));
    plan->claim_count++;
    c->start = start;
    c->end = end;
    snprintf(c->name, sizeof(c->name), "%s", name);
}

void boot_plan_init(struct boot_plan *plan, const struct boot_image *image, struct mem *mem, char *error)
{
    unsigned int count;

    *plan = (struct boot_plan){.mem = mem, .error = error};
    plan->low_end = mem_slots(mem, &count)[0].size;
    plan->initrd_limit = plan->low_end;
    plan->initrd_size = image->initrd.fd >= 0 ? image->initrd.size : 0;
    add_claim(plan, BOOT_AREA, BOOT_AREA_END, "the boot area");
    add_claim(plan, LOW_RAM_END, ACPI_TABLES_BASE, "the hole of low memory");
    add_claim(plan, ACPI_TABLES_BASE, ACPI_TABLES_BASE + ACPI_TABLES_SIZE, "the ACPI tables");
}

static int fail_not_ram(const struct boot_plan *plan, const struct boot_file *file, const char *what)
{
    const struct mem_slot *slots;
    unsigned int count;

    slots = mem_slots(plan->mem, &count);
    if (count > 1)
        return boot_fail(plan->error, file, ENOSPC, "%s is outside of guest RAM, which is 0-0x%llx and 0x%llx-0x%llx", what,
                         (unsigned long long)plan->low_end, (unsigned long long)slots[1].base,
                         (unsigned long long)(slots[1].base + slots[1].size));
    return boot_fail(plan->error, file, ENOSPC, "%s is outside of guest RAM, which ends at 0x%llx", what,
                     (unsigned long long)plan->low_end);
}

int boot_claim(struct boot_plan *plan, const struct boot_file *file, const char *name, const char *start_field,
               uint64_t start, const char *size_field, uint64_t size)
{
    char what[112];

    assert(size > 0);
    snprintf(what, sizeof(what), "%s: %s 0x%llx, %s 0x%llx", name, start_field, (unsigned long long)start, size_field,
             (unsigned long long)size);
    if (!mem_is_ram(plan->mem, start, size))
        return fail_not_ram(plan, file, what);
    for (unsigned int i = 0; i < plan->claim_count; i++) {
        const struct boot_claim *c = &plan->claims[i];

        if (start < c->end && c->start < start + size)
            return boot_fail(plan->error, file, ENOSPC, "%s overlaps %s at 0x%llx-0x%llx", what, c->name,
                             (unsigned long long)c->start, (unsigned long long)c->end);
    }
    add_claim(plan, start, start + size, name);
    if (start + size <= plan->low_end)
        plan->kernel_end = MAX(plan->kernel_end, start + size);
    return 0;
}

int boot_claim_segments(struct boot_plan *plan, const struct boot_image *image)
{
    for (unsigned int i = 0; i < image->segment_count; i++) {
        const struct boot_segment *s = &image->segments[i];
        char name[24];
        int r;

        snprintf(name, sizeof(name), "%s %u", image->segment_word, s->index);
        r = boot_claim(plan, &image->kernel, name, image->paddr_field, s->paddr, image->size_field, s->mem_size);
        if (r < 0)
            return r;
    }
    return 0;
}

bool boot_initrd_fits(uint64_t size, gpa_t kernel_end, gpa_t limit)
{
    gpa_t floor = align_up(kernel_end, GUEST_PAGE_SIZE);
    gpa_t top = align_down(limit, GUEST_PAGE_SIZE);

    /* An initrd that starts on a page takes whole pages. */
    return size == 0 || (top > floor && size <= top - floor);
}

int boot_place_initrd(struct boot_plan *plan, const struct boot_image *image)
{
    gpa_t floor = MAX(plan->kernel_end, (gpa_t)HIGH_RAM_START);

    if (plan->initrd_size == 0)
        return 0;
    if (!boot_initrd_fits(plan->initrd_size, floor, plan->initrd_limit))
        return boot_fail(plan->error, &image->initrd, ENOSPC,
                         "%llu bytes do not fit between the end of the kernel at 0x%llx and 0x%llx, %s",
                         (unsigned long long)plan->initrd_size, (unsigned long long)floor,
                         (unsigned long long)plan->initrd_limit,
                         plan->initrd_limit < plan->low_end ? "the kernel's initrd_addr_max"
                                                            : "the end of guest RAM below 4 GiB");
    plan->initrd = align_down(align_down(plan->initrd_limit, GUEST_PAGE_SIZE) - plan->initrd_size, GUEST_PAGE_SIZE);
    return 0;
}

static void add_entry(struct boot_map *map, uint64_t start, uint64_t end, enum boot_map_type type)
{
    if (end <= start)
        return;
    assert(map->count < ARRAY_SIZE(map->entries));
    map->entries[map->count++] = (struct boot_map_entry){.base = start, .size = end - start, .type = type};
}

void boot_make_map(const struct mem *mem, struct boot_map *ret)
{
    const struct mem_slot *slots;
    unsigned int count;

    slots = mem_slots(mem, &count);
    ret->count = 0;
    add_entry(ret, 0, LOW_RAM_END, BOOT_MAP_RAM);
    add_entry(ret, ACPI_TABLES_BASE, ACPI_TABLES_BASE + ACPI_TABLES_SIZE, BOOT_MAP_ACPI);
    add_entry(ret, HIGH_RAM_START, slots[0].size, BOOT_MAP_RAM);
    add_entry(ret, PLATFORM_START, MEM_HOLE_END, BOOT_MAP_RESERVED);
    for (unsigned int i = 1; i < count; i++)
        add_entry(ret, slots[i].base, slots[i].base + slots[i].size, BOOT_MAP_RAM);
}
