/* Walks over guest memory as the daemon holds it. Apart from walk.c, which a client links that has no struct mem. */
#include "config.h"

#include "mmu/walk.h"

static int read_mem(const void *opaque, gpa_t gpa, void *buf, size_t len)
{
    const struct mem *mem = opaque;

    return mem_read(mem, gpa, buf, len);
}

struct mmu_view mem_view(const struct mem *mem)
{
    unsigned int count;
    const struct mem_slot *slots = mem_slots(mem, &count);

    return (struct mmu_view){
        .low_end = bytes_to_pages(slots[0].size),
        .high_end = count > 1 ? gpa_to_gfn(slots[1].base + slots[1].size) : 0,
        .read = read_mem,
        .opaque = mem,
    };
}

void gpt_format_init(struct gpt_format *f, const struct mem *mem, const struct gpt_cpu *cpu, union shadow_role role)
{
    struct mmu_view view = mem_view(mem);

    gpt_format_init_view(f, &view, cpu, role);
}

int mmu_walk(const struct mem *mem, const struct gpt_cpu *cpu, const struct mmu_paging *paging, gpa_t cr3, gva_t gva,
             struct mmu_translation *ret)
{
    struct mmu_view view = mem_view(mem);

    return mmu_walk_view(&view, cpu, paging, cr3, gva, ret);
}
