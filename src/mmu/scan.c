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
    if (mirror_root_seen(m, cr3, &sig->paging, now_ns) == 0) {
        ret->seen++;
    } else if (mirror_root_add(m, cr3, &sig->paging, kind, now_ns) == 0) {
        ret->found++;
        ret->kpti += kind == MMU_ROOT_KPTI;
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
        /* Almost every page falls out here, for one word read. */
        if (mem_read(mem, gpa + GUEST_PAGE_SIZE - sizeof(last), &last, sizeof(last)) < 0 ||
            ((last & ~ENTRY_AD) ^ sig->half[LAST]) != 0 || mem_read(mem, gpa, table, sizeof(table)) < 0)
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
