/*
 * Roots: where page tables begin. Their kind and generation are what tells an address space from the next one in the same
 * frame: a freed root's frame is usually the next process's root.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "mmu/mirror-internal.h"

/* CR3 without PCID, cache bits and the no-flush bit. */
static gpa_t cr3_address(const struct mmu_paging *paging, gpa_t cr3)
{
    if (paging->levels <= 3)
        cr3 &= UINT32_MAX;
    return cr3 & (paging->levels == 3 ? ~UINT64_C(0x1f) : UINT64_C(0xffffffffff000));
}

static struct root *root_find(const struct mirror *m, gpa_t cr3, const struct mmu_paging *paging)
{
    uint32_t page;

    if (!mmu_paging_valid(paging))
        return NULL;
    cr3 = cr3_address(paging, cr3);
    page = shadow_find(m, gpa_to_gfn(cr3), mmu_root_role(paging, cr3));
    return page && page_at(m, page)->root ? &m->roots[page_at(m, page)->root - 1] : NULL;
}

static void root_drop(struct mirror *m, struct root *root)
{
    struct shadow_page *p = page_at(m, root->page);

    p->root = 0;
    if (!p->parents)
        shadow_orphan(m, root->page);
    root->page = 0;
    m->stats.roots--;
    m->stats.roots_dropped++;
}

int roots_evict(struct mirror *m)
{
    struct root *oldest = NULL;

    if (m->stats.roots < 2)
        return -ENOENT;
    for (uint32_t i = 0; i < m->root_slots; i++) {
        struct root *root = &m->roots[i];

        if (root->page && !root->info.pinned && (!oldest || root->info.seen_ns < oldest->info.seen_ns))
            oldest = root;
    }
    if (!oldest)
        return -ENOENT;
    root_drop(m, oldest);
    m->stats.roots_evicted++;
    shadow_reap(m);
    return 0;
}

/* A free slot, or NULL. */
static struct root *root_slot(struct mirror *m)
{
    if (m->stats.roots < m->root_slots)
        for (uint32_t i = 0; i < m->root_slots; i++)
            if (!m->roots[i].page)
                return &m->roots[i];
    if (m->root_slots == m->root_room) {
        uint32_t room = m->root_room ? m->root_room * 2 : 64;
        struct root *roots;

        if ((uint64_t)room * sizeof(*roots) > m->max_memory / 4)
            return NULL;
        roots = realloc(m->roots, room * sizeof(*roots));
        if (!roots)
            return NULL;
        m->roots = roots;
        m->root_room = room;
    }
    m->roots[m->root_slots] = (struct root){.page = 0};
    return &m->roots[m->root_slots++];
}

/* The page of a new root; old roots make room for it. */
static uint32_t root_page(struct mirror *m, gfn_t gfn, union shadow_role role)
{
    uint32_t page;

    while ((page = shadow_get(m, gfn, role)) == 0)
        if (roots_evict(m) < 0)
            return 0;
    return page;
}

int mirror_root_add(struct mirror *m, gpa_t cr3, const struct mmu_paging *paging, enum mmu_root_kind kind, uint64_t now_ns)
{
    struct root *root = root_find(m, cr3, paging);
    union shadow_role role;
    uint32_t page;

    if (!mmu_paging_valid(paging))
        return -EINVAL;
    if (root) {
        root->info.seen_ns = now_ns;
        if (kind == MMU_ROOT_KPTI)
            root->info.kind = kind;
        return 0;
    }
    cr3 = cr3_address(paging, cr3);
    role = mmu_root_role(paging, cr3);
    if (!mem_is_ram(m->mem, gfn_to_gpa(gpa_to_gfn(cr3)), GUEST_PAGE_SIZE))
        return -EFAULT;
    page = root_page(m, gpa_to_gfn(cr3), role);
    if (!page)
        return -ENOMEM;
    root = root_slot(m);
    if (!root && roots_evict(m) == 0)
        root = root_slot(m);
    if (!root) {
        if (!page_at(m, page)->parents)
            shadow_orphan(m, page);
        shadow_reap(m);
        return -ENOMEM;
    }
    *root = (struct root){.page = page,
                          .info = {.cr3 = cr3, .paging = *paging, .kind = kind, .generation = ++m->generation, .seen_ns = now_ns}};
    page_at(m, page)->root = (uint32_t)(root - m->roots) + 1;
    m->stats.roots++;
    m->stats.roots_added++;
    return 0;
}

int mirror_root_seen(struct mirror *m, gpa_t cr3, const struct mmu_paging *paging, uint64_t now_ns)
{
    struct root *root = root_find(m, cr3, paging);

    if (!root)
        return -ENOENT;
    root->info.seen_ns = now_ns;
    return 0;
}

int mirror_root_pin(struct mirror *m, gpa_t cr3, const struct mmu_paging *paging)
{
    struct root *root = root_find(m, cr3, paging);

    if (!root)
        return -ENOENT;
    root->info.pinned = true;
    return 0;
}

static void root_drop_pair(struct mirror *m, struct root *root)
{
    gpa_t partner = root->info.cr3 | GUEST_PAGE_SIZE;
    struct root *other = partner != root->info.cr3 ? root_find(m, partner, &root->info.paging) : NULL;

    root_drop(m, root);
    if (other && other->info.kind == MMU_ROOT_KPTI)
        root_drop(m, other);
    shadow_reap(m);
}

int mirror_root_drop(struct mirror *m, gpa_t cr3, const struct mmu_paging *paging)
{
    struct root *root = root_find(m, cr3, paging);

    if (!root)
        return -ENOENT;
    root_drop_pair(m, root);
    return 0;
}

static bool user_half_empty(const struct mirror *m, const struct shadow_page *p)
{
    for (unsigned int group = 0; group < ROOT_USER_ENTRIES / GRANULE_ENTRIES; group++)
        if (page_granule(m, p, group))
            return false;
    return true;
}

uint32_t mirror_roots_retire(struct mirror *m, uint64_t now_ns, uint64_t idle_ns)
{
    uint32_t retired = 0;

    for (uint32_t i = 0; i < m->root_slots; i++) {
        struct root *root = &m->roots[i];

        if (!root->page || root->info.pinned || root->info.kind == MMU_ROOT_KPTI || root->info.paging.levels < 4)
            continue;
        if (now_ns < root->info.seen_ns + idle_ns || page_at(m, root->page)->flags & (PAGE_UNSYNC | PAGE_NEW) ||
            !user_half_empty(m, page_at(m, root->page)))
            continue;
        root_drop_pair(m, root);
        retired++;
    }
    return retired;
}

void roots_changed(struct mirror *m, struct shadow_page *p, unsigned int user_before, unsigned int user_kept)
{
    if (user_before && !user_kept)
        m->roots[p->root - 1].info.generation = ++m->generation;
}

void roots_set_kind(struct mirror *m, const struct shadow_page *p)
{
    struct mmu_root *root = &m->roots[p->root - 1].info;

    if (root->paging.levels >= 4 && root->kind != MMU_ROOT_KPTI)
        root->kind = user_half_empty(m, p) ? MMU_ROOT_KERNEL : MMU_ROOT_USER;
}

bool mirror_root_known(const struct mirror *m, gpa_t cr3, const struct mmu_paging *paging)
{
    return root_find(m, cr3, paging) != NULL;
}

bool mirror_root_next(const struct mirror *m, uint32_t *cursor, struct mmu_root *ret)
{
    while (*cursor < m->root_slots) {
        const struct root *root = &m->roots[(*cursor)++];

        if (root->page) {
            *ret = root->info;
            return true;
        }
    }
    return false;
}
