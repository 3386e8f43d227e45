/* Root discovery by signature. */
#include "config.h"

#include "mmu/scan.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

#define ENTRIES 512u
#define ENTRY_P UINT64_C(1)
#define ENTRY_AD UINT64_C(0x60) /* the CPU sets them where it likes */
#define ENTRY_NX (UINT64_C(1) << 63)
#define ENTRY_ADDRESS UINT64_C(0xffffffffff000)
#define LAST (ROOT_SIGNATURE_ENTRIES - 1)
#define LAST_ENTRY_OFFSET (GUEST_PAGE_SIZE - sizeof(uint64_t))

static void read_half(const uint64_t *from, uint64_t *half)
{
    for (unsigned int i = 0; i < ROOT_SIGNATURE_ENTRIES; i++)
        half[i] = from[i] & ~ENTRY_AD;
}

int root_signature_learn(struct root_signature *sig, const struct mem *mem, gpa_t cr3, const struct mmu_paging *paging)
{
    uint64_t half[ROOT_SIGNATURE_ENTRIES];

    if (!mmu_paging_valid(paging) || paging->levels < 4)
        return -EINVAL;
    cr3 &= ENTRY_ADDRESS;
    if (mem_read(mem, cr3 + sizeof(half), half, sizeof(half)) < 0)
        return -EFAULT;
    if (!(half[LAST] & ENTRY_P))
        return -ENOENT;
    read_half(half, half);
    if (sig->known && sig->cr3 == cr3 && memcmp(sig->half, half, sizeof(half)) == 0)
        return 0;
    sig->known = true;
    sig->cr3 = cr3;
    sig->paging = *paging;
    memcpy(sig->half, half, sizeof(half));
    sig->learned++;
    return 0;
}

static bool same_half(const struct root_signature *sig, const uint64_t *half)
{
    uint64_t diff = 0;

    for (unsigned int i = 0; i < ROOT_SIGNATURE_ENTRIES; i++)
        diff |= (half[i] & ~ENTRY_AD) ^ sig->half[i];
    return diff == 0;
}

/*
 * KPTI: the kernel's view of a root is even, the user's is the odd page after it, and both point at the same user tables; the
 * kernel's view marks them NX, so that a return to user space with the wrong CR3 faults. At least one user entry, and every
 * one of them the same: a page that only happens to lie there does not pass.
 */
static bool is_kpti_pair(const uint64_t *kernel, const uint64_t *user)
{
    unsigned int shared = 0;

    for (unsigned int i = 0; i < ROOT_SIGNATURE_ENTRIES; i++) {
        if (!((kernel[i] | user[i]) & ENTRY_P))
            continue;
        if (!(kernel[i] & user[i] & ENTRY_P) || (kernel[i] ^ user[i]) & ENTRY_ADDRESS || !(kernel[i] & ENTRY_NX))
            return false;
        shared++;
    }
    return shared && memcmp(kernel + ROOT_SIGNATURE_ENTRIES, user + ROOT_SIGNATURE_ENTRIES,
                            ROOT_SIGNATURE_ENTRIES * sizeof(*user)) != 0;
}

static void add(struct mirror *m, struct root_signature *sig, gpa_t cr3, enum mmu_root_kind kind, uint64_t now_ns,
                struct root_scan *ret)
{
    bool known = mirror_root_seen(m, cr3, &sig->paging, now_ns) == 0;

    /* One that was met as some vCPU's CR3 may turn out to be a KPTI half. */
    if (known && kind != MMU_ROOT_KPTI) {
        ret->seen++;
    } else if (mirror_root_add(m, cr3, &sig->paging, kind, now_ns) == 0) {
        ret->seen += known;
        ret->found += !known;
        ret->kpti += !known && kind == MMU_ROOT_KPTI;
    } else {
        ret->refused++;
    }
}

static bool has_user_half(const uint64_t *table)
{
    for (unsigned int i = 0; i < ROOT_SIGNATURE_ENTRIES; i++)
        if (table[i] & ENTRY_P)
            return true;
    return false;
}

static bool last_fits(const struct root_signature *sig, uint64_t last)
{
    return ((last & ~ENTRY_AD) ^ sig->half[LAST]) == 0;
}

static const uint64_t *last_entry(const struct mem *mem, pfn_t pfn)
{
    return (const uint64_t *)(const void *)(mem_ram(mem) + pages_to_bytes(pfn) + LAST_ENTRY_OFFSET);
}

/* Entry 511 of a RAM page: almost every page falls out here, for one word read. */
static inline bool page_fits(const struct root_signature *sig, const uint64_t *last)
{
    return last_fits(sig, __atomic_load_n(last, __ATOMIC_RELAXED));
}

/* Advance to the next piece of RAM that is no hole. */
static void find_data(const struct mem *mem, struct root_scan_cursor *at, pfn_t end)
{
    uint64_t data, hole;

    if (!mem_next_data(mem, pages_to_bytes(at->next), &data, &hole)) {
        at->next = at->data_end = end;
        return;
    }
    at->next = MIN(bytes_to_pages(data), end);
    at->data_end = MIN(bytes_to_pages(hole), end);
}

static bool is_resident(const struct mem *mem, struct root_scan_cursor *at)
{
    if (!at->known || at->next - at->chunk >= ROOT_SCAN_CHUNK) {
        at->chunk = at->next;
        at->known = true;
        mem_resident(mem, at->chunk, (size_t)MIN(mem_pages(mem) - at->chunk, (uint64_t)ROOT_SCAN_CHUNK), at->resident);
    }
    return at->resident[at->next - at->chunk];
}

/* All of memory is looked at again and again: this loop is most of what a tick costs. */
static size_t look_at_run(const struct mem *mem, const struct root_signature *sig, pfn_t first, pfn_t *end, gfn_t *ret, size_t max)
{
    const uint64_t *last = last_entry(mem, first);
    size_t found = 0;

    for (pfn_t pfn = first; pfn < *end; pfn++, last += GUEST_PAGE_SIZE / sizeof(*last)) {
        if (!page_fits(sig, last))
            continue;
        ret[found++] = mem_pfn_to_gfn(mem, pfn);
        if (found == max)
            *end = pfn + 1;
    }
    return found;
}

size_t root_scan_candidates(const struct mem *mem, const struct root_signature *sig, struct root_scan_cursor *at, pfn_t end,
                            uint64_t pages, gfn_t *ret, size_t max)
{
    bool lazy = mem_fd(mem) < 0;
    size_t found = 0;

    while (at->next < end && pages > 0 && found < max) {
        pfn_t first = at->next, next = first + 1;

        if (first >= at->data_end) {
            find_data(mem, at, end);
            continue;
        }
        if (!lazy)
            next = first + MIN(pages, at->data_end - first);
        if (!lazy || is_resident(mem, at))
            found += look_at_run(mem, sig, first, &next, ret + found, max - found);
        at->next = next;
        at->looked += next - first;
        pages -= next - first;
    }
    return found;
}

size_t root_scan_candidates_in(const struct mem *mem, const struct root_signature *sig, const struct page_set *set,
                               struct root_scan_cursor *at, uint64_t pages, gfn_t *ret, size_t max)
{
    struct page_set_walk w;
    size_t found = 0;

    if (at->next >= set->limit)
        return 0;
    w = page_set_walk_from(set, at->next);
    while (pages > 0 && found < max) {
        if (!page_set_walk_word(set, &w)) {
            at->next = set->limit;
            break;
        }
        at->next = w.word * 64 + (unsigned int)__builtin_ctzll(w.bits);
        w.bits &= w.bits - 1;
        if (page_fits(sig, last_entry(mem, at->next)))
            ret[found++] = mem_pfn_to_gfn(mem, at->next);
        at->next++;
        at->looked++;
        pages--;
    }
    return found;
}

bool root_signature_fits(const struct root_signature *sig, const struct mem *mem, gpa_t cr3)
{
    uint64_t last;

    return sig->known && mem_read(mem, (cr3 & ENTRY_ADDRESS) + LAST_ENTRY_OFFSET, &last, sizeof(last)) == 0 &&
           last_fits(sig, last);
}

bool root_is_kpti_half(const struct mem *mem, gpa_t cr3)
{
    uint64_t kernel[ENTRIES], user[ENTRIES];

    cr3 &= ENTRY_ADDRESS;
    return cr3 & GUEST_PAGE_SIZE && mem_read(mem, cr3, user, sizeof(user)) == 0 &&
           mem_read(mem, cr3 - GUEST_PAGE_SIZE, kernel, sizeof(kernel)) == 0 && is_kpti_pair(kernel, user);
}

bool root_has_user_half(const struct mem *mem, gpa_t cr3)
{
    uint64_t half[ROOT_SIGNATURE_ENTRIES];

    return mem_read(mem, cr3 & ENTRY_ADDRESS, half, sizeof(half)) == 0 && has_user_half(half);
}

uint32_t root_scan_drop_strangers(struct mirror *m, const struct mem *mem, const struct root_signature *sig, uint64_t now_ns)
{
    struct mmu_root root;
    uint32_t dropped = 0;

    for (uint32_t cursor = 0; sig->known && mirror_root_next(m, &cursor, &root);) {
        if (root.paging.levels < 4 || root.kind == MMU_ROOT_KPTI || root.pinned || root.seen_ns >= now_ns ||
            root_signature_fits(sig, mem, root.cr3))
            continue;
        /* The cursor is beyond it, and a partner's slot is only emptied: the walk goes on. */
        dropped += mirror_root_drop(m, root.cr3, &root.paging) == 0;
    }
    return dropped;
}

int root_scan(struct mirror *m, const struct mem *mem, struct root_signature *sig, const gfn_t *candidates, size_t count,
              uint64_t now_ns, struct root_scan *ret)
{
    bool learned_again = false;

    if (!sig->known)
        return -ENOENT;
    for (size_t i = 0; i < count; i++) {
        gpa_t gpa = gfn_to_gpa(candidates[i]);
        uint64_t last, table[ENTRIES], user[ENTRIES];

        ret->candidates++;
        if (mem_read(mem, gpa + LAST_ENTRY_OFFSET, &last, sizeof(last)) < 0 || !last_fits(sig, last) || mem_read(mem, gpa, table, sizeof(table)) < 0)
            continue;
        if (!same_half(sig, table + ROOT_SIGNATURE_ENTRIES)) {
            if (learned_again)
                continue;
            learned_again = true;
            (void)root_signature_learn(sig, mem, sig->cr3, &sig->paging);
            if (!same_half(sig, table + ROOT_SIGNATURE_ENTRIES))
                continue;
        }
        /* A freed root keeps its kernel half: without a user half it was not seen. */
        if (!has_user_half(table))
            continue;
        add(m, sig, gpa, MMU_ROOT_USER, now_ns, ret);
        if (!(candidates[i] & 1) && mem_read(mem, gpa + GUEST_PAGE_SIZE, user, sizeof(user)) == 0 && is_kpti_pair(table, user))
            add(m, sig, gpa + GUEST_PAGE_SIZE, MMU_ROOT_KPTI, now_ns, ret);
    }
    return 0;
}
