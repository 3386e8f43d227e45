#include "config.h"

#include "inspect/memory.h"

#include <errno.h>
#include <string.h>

#include "base/fd.h"
#include "base/util.h"

static int read_view(const void *opaque, gpa_t gpa, void *buf, size_t len)
{
    const struct inspect_memory *m = opaque;

    return inspect_read(m, gpa, buf, len);
}

static bool slots_fit(const struct inspect_slot *slots, unsigned int count)
{
    if (count < 1 || count > INSPECT_MAX_SLOTS)
        return false;
    for (unsigned int i = 0; i < count; i++) {
        uint64_t base = i == 0 ? 0 : MEM_HOLE_END, max = i == 0 ? MEM_HOLE_START : MEM_SIZE_MAX;

        if (slots[i].base != base || slots[i].size == 0 || slots[i].size > max || slots[i].offset > MEM_SIZE_MAX ||
            !is_aligned(slots[i].size | slots[i].offset, GUEST_PAGE_SIZE))
            return false;
    }
    return true;
}

int inspect_memory_init(struct inspect_memory *m, int fd, const struct inspect_slot *slots, unsigned int count)
{
    if (!slots_fit(slots, count))
        return -EINVAL;
    *m = (struct inspect_memory){.fd = fd, .slot_count = count};
    memcpy(m->slots, slots, count * sizeof(*slots));
    m->view = (struct mmu_view){
        .low_end = bytes_to_pages(slots[0].size),
        .high_end = count > 1 ? gpa_to_gfn(slots[1].base + slots[1].size) : 0,
        .read = read_view,
        .opaque = m,
    };
    /* What the virtual CPU offers is not known here: the widest, as a wrong entry leads nowhere that is not checked. */
    m->cpu = (struct gpt_cpu){.maxphyaddr = 52, .gbpages = true};
    return 0;
}

int inspect_memory_use(struct inspect_memory *m, gpa_t root, unsigned int levels)
{
    if (levels != 4 && levels != 5)
        return -EINVAL;
    m->root = align_down(root, GUEST_PAGE_SIZE);
    m->paging = (struct mmu_paging){.levels = (uint8_t)levels, .nx = true};
    memset(m->tlb, 0, sizeof(m->tlb));
    return 0;
}

int inspect_read(const struct inspect_memory *m, gpa_t gpa, void *buf, size_t len)
{
    for (unsigned int i = 0; i < m->slot_count; i++) {
        const struct inspect_slot *slot = &m->slots[i];
        uint64_t offset = gpa - slot->base;

        if (offset >= slot->size)
            continue;
        if (len > slot->size - offset)
            return -EFAULT;
        return fd_pread_all(m->fd, buf, len, slot->offset + offset) < 0 ? -EIO : 0;
    }
    return -EFAULT;
}

int inspect_translate(struct inspect_memory *m, gva_t gva, gpa_t *ret)
{
    gva_t page = align_down(gva, GUEST_PAGE_SIZE);
    struct mmu_translation t;
    size_t i = (size_t)(page >> GUEST_PAGE_SHIFT) % INSPECT_TLB_SIZE;

    if (!m->tlb[i].valid || m->tlb[i].page != page) {
        if (mmu_walk_view(&m->view, &m->cpu, &m->paging, m->root, page, &t) < 0)
            return -EFAULT;
        m->tlb[i].valid = true;
        m->tlb[i].page = page;
        m->tlb[i].frame = t.gpa;
    }
    *ret = m->tlb[i].frame + (gva - page);
    return 0;
}

int inspect_read_virtual(struct inspect_memory *m, gva_t gva, void *buf, size_t len)
{
    uint8_t *to = buf;

    while (len > 0) {
        size_t part = MIN(len, (size_t)(GUEST_PAGE_SIZE - gva % GUEST_PAGE_SIZE));
        gpa_t gpa;

        if (inspect_translate(m, gva, &gpa) < 0 || inspect_read(m, gpa, to, part) < 0)
            return -EFAULT;
        gva += part; /* wraps to 0 at the end of the address space, which is no address of the kernel's */
        to += part;
        len -= part;
    }
    return 0;
}

bool inspect_is_pointer(const struct inspect_memory *m, gva_t gva)
{
    return gva >> 63 && is_aligned(gva, 8) && mmu_canonical(m->paging.levels, gva) == gva;
}
