/*
 * Guest physical memory: RAM from the loader's map, the pool that the runtime allocates from (right behind the image)
 * and the region that a guest works on (everything else of the largest range).
 */
#include "runtime.h"

#include "bootinfo.h"

#define GIB (1ul << 30)
#define MAX_RAM_END (512 * GIB) /* what the first PML4 entry maps */

static struct {
    uint64_t start, next, end; /* of the pool */
    uint64_t ram_end;
} mem;

/* The range that holds [base, base + size), NULL for none. */
static const struct boot_range *range_of(uint64_t base, uint64_t size)
{
    const struct boot_range *r;
    unsigned int n = boot_ranges(&r);

    for (; n > 0; n--, r++)
        if (base >= r->base && size <= r->size && base - r->base <= r->size - size)
            return r;
    return NULL;
}

bool memory_is_ram(uint64_t base, uint64_t size)
{
    return range_of(base, size) != NULL;
}

uint64_t memory_largest(void)
{
    const struct boot_range *r;
    unsigned int n = boot_ranges(&r);
    uint64_t size = 0;

    for (; n > 0; n--, r++)
        if (r->size > size)
            size = r->size;
    return size;
}

static void map_pd(uint64_t gib, uint64_t *pd)
{
    for (uint64_t i = 0; i < 512; i++)
        pd[i] = (gib * GIB + i * HUGE_SIZE) | PTE_P | PTE_W | PTE_U | PTE_PS;
    boot_pdpt[gib] = (uint64_t)pd | PTE_P | PTE_W | PTE_U;
}

void memory_map_lapic(void)
{
    static uint64_t pd[512] __attribute__((aligned(4096)));

    map_pd(LAPIC_BASE / GIB, pd);
    pd[LAPIC_BASE / HUGE_SIZE % 512] |= PTE_PCD;
}

void memory_init(void)
{
    const struct boot_range *r;
    unsigned int n = boot_ranges(&r);

    for (; n > 0; n--, r++) {
        uint64_t end = r->base + r->size;

        if (end > MAX_RAM_END)
            fail("RAM up to 0x%lx is beyond 512 GiB", end);
        if (end > mem.ram_end)
            mem.ram_end = end;
    }
    mem.start = align_up((uint64_t)image_end, PAGE_SIZE);
    mem.next = mem.start;
    mem.end = mem.start;
    if (!range_of((uint64_t)image_start, mem.start - (uint64_t)image_start))
        fail("the memory map does not hold the guest's own image");
}

/* Where a range of RAM begins to be free of the guest's own memory. */
static uint64_t overlap_end(uint64_t base, uint64_t size)
{
    uint64_t start = (uint64_t)image_start;

    return base < mem.end && start < base + size ? mem.end : base;
}

/* The usable part of a range: without the guest's own memory, from a 2M boundary on. */
static struct region usable(const struct boot_range *r)
{
    uint64_t end = r->base + r->size;
    uint64_t base = align_up(overlap_end(r->base, r->size), HUGE_SIZE);

    if (base >= end)
        return (struct region){.base = base, .pages = 0};
    return (struct region){.base = base, .pages = (end - base) / PAGE_SIZE};
}

static void region_choose(struct region *ret)
{
    const struct boot_range *r;
    unsigned int n = boot_ranges(&r);
    struct region best = {.pages = 0};
    uint64_t base, size;

    for (; n > 0; n--, r++) {
        struct region u = usable(r);

        if (u.pages > best.pages)
            best = u;
    }
    base = opt_size("base", best.base);
    if (base % PAGE_SIZE)
        fail("base=0x%lx is not a page boundary", base);
    size = (best.base + best.pages * PAGE_SIZE) - base;
    if (base < best.base || base >= best.base + best.pages * PAGE_SIZE)
        size = 0;
    size = opt_size("ws", size);
    if (size < PAGE_SIZE)
        fail("no memory left for a region");
    size &= ~(PAGE_SIZE - 1);
    if (!range_of(base, size))
        fail("region 0x%lx-0x%lx is not RAM", base, base + size);
    if (overlap_end(base, size) != base)
        fail("region 0x%lx-0x%lx overlaps the guest's own memory 0x%lx-0x%lx", base, base + size,
             (uint64_t)image_start, mem.end);
    *ret = (struct region){.base = base, .pages = size / PAGE_SIZE};
}

void memory_setup(uint64_t pool, struct region *ret_region)
{
    uint64_t gibs = align_up(mem.ram_end, GIB) / GIB;

    mem.end = mem.start + (pool + gibs + 4) * PAGE_SIZE;
    if (!range_of(mem.start, mem.end - mem.start))
        fail("no memory for %lu KiB of tables", (mem.end - mem.start) / 1024);
    for (uint64_t gib = 1; gib < gibs; gib++)
        if (!(boot_pdpt[gib] & PTE_P))
            map_pd(gib, pool_page());
    region_choose(ret_region);
}

uint64_t *pool_pages(uint64_t n)
{
    uint64_t *page = (uint64_t *)mem.next;

    if (n > (mem.end - mem.next) / PAGE_SIZE)
        fail("the guest's pool of %lu pages is used up", (mem.end - mem.start) / PAGE_SIZE);
    mem.next += n * PAGE_SIZE;
    return memset(page, 0, n * PAGE_SIZE);
}

uint64_t *pool_page(void)
{
    return pool_pages(1);
}

