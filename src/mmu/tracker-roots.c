/*
 * How the tracker finds address spaces: from what vCPUs have in CR3 it learns what a kernel half looks like, and a scan of memory
 * for that finds the rest (scan.h).
 *
 * A vCPU's registers cost an exit and an ioctl, so they are looked at rarely: at an exit that comes anyway, twice a second at
 * most, and by a kick while nothing is known, or every few seconds. What is seen is some milliseconds old when it is used; so
 * it is only ever taken for a root if it looks like one, or if nothing can be said of looks (32-bit and PAE paging).
 */
#include "config.h"

#include <limits.h>

#include "base/util.h"
#include "mmu/tracker-internal.h"

#define CR0_PG (UINT64_C(1) << 31)
#define CR4_PSE (UINT64_C(1) << 4)
#define CR4_PAE (UINT64_C(1) << 5)
#define CR4_LA57 (UINT64_C(1) << 12)
#define EFER_LMA (UINT64_C(1) << 10)
#define EFER_NXE (UINT64_C(1) << 11)
/* Under KPTI the root that runs user code is the odd one of two frames. */
#define CR3_KPTI_USER GUEST_PAGE_SIZE

#define KICK_INTERVAL_NS (4 * NSEC_PER_SEC)
/* Sightings in a row of a kernel that looks different, before it is one. */
#define STRANGE_MAX 4u
/* A freed root keeps its kernel half: it goes when it was not seen for so long. */
#define RETIRE_NS NSEC_PER_SEC
/* Pages looked at before others get the lock, and in one tick. */
#define SCAN_SLICE_PAGES 4096u
#define SCAN_TICK_SLICES 16u
/* And while somebody waits for an answer: 1 GiB, some 10 ms. */
#define SCAN_QUESTION_SLICES 64u
#define SCAN_FOUND 64u
/* Roots that one scan may push out for others, each of which costs a walk over all of them: a guest can fake millions. */
#define SCAN_EVICTIONS 64u

static bool paging_of(const struct tracker_vcpu *v, struct mmu_paging *ret)
{
    if (!(v->cr0 & CR0_PG))
        return false;
    *ret = (struct mmu_paging){.levels = 2, .pse = (v->cr4 & CR4_PSE) != 0};
    if (v->cr4 & CR4_PAE)
        *ret = (struct mmu_paging){
            .levels = !(v->efer & EFER_LMA) ? 3 : v->cr4 & CR4_LA57 ? 5 : 4,
            .nx = (v->efer & EFER_NXE) != 0,
        };
    return true;
}

/* -- what vCPUs have in CR3 ---------------------------------------------------------------------------------------------- */

/*
 * Whether what the kernel has in CR3 is to be believed. What a vCPU had some milliseconds ago may be a page of somebody else's by now,
 * and to believe that would throw out every root there is. So where several look as the kernel was known to, one that does not
 * is only believed when nothing else is seen (another kernel runs: kexec).
 */
static bool believable(struct tracker *t, gpa_t cr3)
{
    struct mmu_root root;
    unsigned int as_known = 0;

    if (!t->signature.known || root_signature_fits(&t->signature, t->config.mem, cr3)) {
        t->strange = 0;
        return true;
    }
    for (uint32_t cursor = 0; as_known < 2 && mirror_root_next(t->mirror, &cursor, &root);)
        as_known += root.paging.levels >= 4 && root_signature_fits(&t->signature, t->config.mem, root.cr3);
    return as_known < 2 || ++t->strange >= STRANGE_MAX;
}

static void seen_in_kernel(struct tracker *t, gpa_t cr3, const struct mmu_paging *paging, uint64_t now)
{
    /* At its gates a KPTI kernel runs on the user's half, and that is where CR3 is written: where exits are. */
    if (root_is_kpti_half(t->config.mem, cr3))
        cr3 &= ~CR3_KPTI_USER;
    if (!believable(t, cr3))
        return;
    root_signature_learn(&t->signature, t->config.mem, cr3, paging);
    if (mirror_root_add(t->mirror, cr3, paging, MMU_ROOT_USER, now) == 0 && !root_has_user_half(t->config.mem, cr3)) {
        t->kernel_cr3 = cr3;
        t->kernel_paging = *paging;
    }
}

static void seen_in_user(struct tracker *t, gpa_t cr3, const struct mmu_paging *paging, uint64_t now)
{
    gpa_t partner = cr3 & ~CR3_KPTI_USER;

    /*
     * Better than to wait until some vCPU is seen in the kernel. But only while the guest stands still: else the root may be gone by
     * now, its KPTI partner with it, and what is left of it teaches nothing.
     */
    if (!t->signature.known && !t->running)
        root_signature_learn(&t->signature, t->config.mem, root_is_kpti_half(t->config.mem, cr3) ? partner : cr3, paging);
    if (partner != cr3)
        (void)mirror_root_seen(t->mirror, partner, paging, now);
    if (mirror_root_seen(t->mirror, cr3, paging, now) == 0) {
        t->strange = 0;
        return;
    }
    /* A KPTI half has another kernel half, and is found beside its partner. */
    if (!t->signature.known || root_signature_fits(&t->signature, t->config.mem, cr3))
        (void)mirror_root_add(t->mirror, cr3, paging, MMU_ROOT_USER, now);
}

static void sighting(struct tracker *t, const struct tracker_vcpu *v, uint64_t now)
{
    struct mmu_paging paging;

    if (!paging_of(v, &paging))
        return;
    /* What mirror_root_add refuses (not in RAM, no memory) is no root to us, or is counted. */
    if (paging.levels < 4)
        (void)mirror_root_add(t->mirror, v->cr3, &paging, MMU_ROOT_USER, now);
    else if (v->kernel)
        seen_in_kernel(t, v->cr3, &paging, now);
    else
        seen_in_user(t, v->cr3, &paging, now);
}

/* A root that some vCPU had when last looked at, and the kernel's own, stay: however long ago that was. */
static void keep_roots_in_use(struct tracker *t, uint64_t now)
{
    struct tracker_vcpu v;
    struct mmu_paging paging;

    for (unsigned int i = 0; i < TRACKER_MAX_VCPUS && t->config.ops->vcpu(t->config.opaque, i, &v); i++)
        if (v.seq && paging_of(&v, &paging)) {
            (void)mirror_root_seen(t->mirror, v.cr3, &paging, now);
            (void)mirror_root_seen(t->mirror, v.cr3 & ~CR3_KPTI_USER, &paging, now);
        }
    if (t->kernel_cr3 && root_signature_fits(&t->signature, t->config.mem, t->kernel_cr3))
        (void)mirror_root_seen(t->mirror, t->kernel_cr3, &t->kernel_paging, now);
}

bool tick_kick_due(const struct tracker *t, uint64_t now)
{
    return !t->signature.known || now - t->kicked_ns >= KICK_INTERVAL_NS;
}

void tick_sightings(struct tracker *t, uint64_t now)
{
    const struct tracker_ops *ops = t->config.ops;
    struct tracker_vcpu v;
    bool kick;

    if (!ops->vcpu)
        return;
    for (unsigned int i = 0; i < TRACKER_MAX_VCPUS && ops->vcpu(t->config.opaque, i, &v); i++)
        if (v.seq != t->vcpu_seq[i]) {
            t->vcpu_seq[i] = v.seq;
            sighting(t, &v, now);
        }
    if (!ops->look || !t->running || now - t->asked_ns < SCAN_INTERVAL_NS)
        return;
    kick = tick_kick_due(t, now);
    t->asked_ns = now;
    if (kick)
        t->kicked_ns = now;
    ops->look(t->config.opaque, kick);
}

/* -- the scan ------------------------------------------------------------------------------------------------------------ */

static void scan_begin(struct tracker *t, uint64_t now)
{
    bool some;

    page_set_clear(&t->scan_set);
    some = t->source && t->source->ops->fresh && t->source->ops->fresh(t->source, &t->scan_set);
    /* With another signature pages that were passed over may be roots. */
    t->scan_some = some && t->scanned_signature == t->signature.learned;
    t->scanned_signature = t->signature.learned;
    t->scan_at = (struct root_scan_cursor){0};
    t->scan_ns = now;
    t->scan_evictions = mirror_evictions(t->mirror);
    t->scanning = true;
}

static void scan_end(struct tracker *t, uint64_t now)
{
    t->scanning = false;
    t->stats.scans++;
    if (t->config.ops->vcpu)
        keep_roots_in_use(t, now);
    t->stats.retired += mirror_roots_retire(t->mirror, now, RETIRE_NS);
    t->stats.retired += root_scan_drop_strangers(t->mirror, t->config.mem, &t->signature, now);
}

/* False at the end. */
static bool scan_slice(struct tracker *t, uint64_t now)
{
    gfn_t found[SCAN_FOUND];
    struct root_scan result = {0};
    pfn_t end = mem_pages(t->config.mem);
    size_t n;

    if (t->scan_some)
        n = root_scan_candidates_in(t->config.mem, &t->signature, &t->scan_set, &t->scan_at, SCAN_SLICE_PAGES, found,
                                    SCAN_FOUND);
    else
        n = root_scan_candidates(t->config.mem, &t->signature, &t->scan_at, end, SCAN_SLICE_PAGES, found, SCAN_FOUND);
    t->stats.scanned_pages += t->scan_at.looked;
    t->scan_at.looked = 0;
    root_scan(t->mirror, t->config.mem, &t->signature, found, n, now, &result);
    return t->scan_at.next < end && mirror_evictions(t->mirror) - t->scan_evictions < SCAN_EVICTIONS;
}

/* On demand there is no later tick that would go on with it. */
static unsigned int scan_slices(const struct tracker *t, enum tick_kind kind)
{
    if (kind == TICK_SETTLED || t->settings.mode == TRACKER_ON_DEMAND)
        return UINT_MAX;
    return kind == TICK_SLICED ? SCAN_TICK_SLICES : SCAN_QUESTION_SLICES;
}

void tick_scan(struct tracker *t, uint64_t now, enum tick_kind kind)
{
    unsigned int slices = scan_slices(t, kind);


    if (!t->signature.known)
        return;
    if (!t->scanning) {
        if (t->stats.scans && now - t->scan_ns < SCAN_INTERVAL_NS && t->scanned_signature == t->signature.learned &&
            t->settings.mode != TRACKER_ON_DEMAND)
            return;
        scan_begin(t, now);
    }
    for (unsigned int i = 0; i < slices; i++) {
        if (!scan_slice(t, now)) {
            scan_end(t, now);
            return;
        }
        if (kind == TICK_SLICED)
            tracker_yield(t);
    }
}

void roots_forget(struct tracker *t)
{
    struct tracker_vcpu v;

    t->signature = (struct root_signature){.known = false};
    t->scanned_signature = 0;
    t->kernel_cr3 = 0;
    t->strange = 0;
    t->scanning = false;
    t->asked_ns = t->kicked_ns = t->scan_ns = 0;
    /* What was noted before is of the life that is over. */
    for (unsigned int i = 0; t->config.ops->vcpu && i < TRACKER_MAX_VCPUS && t->config.ops->vcpu(t->config.opaque, i, &v); i++)
        t->vcpu_seq[i] = v.seq;
}
