/*
 * What ties the tracker of guest page tables (mmu/tracker.h) to the VM: what vCPUs have in CR3, how long they ran, KVM's limit on
 * shadow pages. Main thread, unless a function says otherwise.
 */
#ifndef UMBRA_DAEMON_MACHINE_MMU_H
#define UMBRA_DAEMON_MACHINE_MMU_H

#include "daemon/configuration.h"
#include "mmu/tracker.h"
#include "vcpu/vm.h"

struct machine_mmu;

/* A change of KVM's limit that nobody asked for. */
struct page_limit_event {
    uint64_t previous, limit;
    uint64_t shadow_pages, recycled;
    const char *reason; /* as page_limit_reason_name has it */
};

/*
 * The guest does not run yet. `on_page_limit` is called on the tracker's thread when there is an event to fetch; it must not
 * wait. -ENOTSUP (precise, and the host does not offer it), -ENOMEM, -errno; logged.
 */
int machine_mmu_new(const struct config *config, struct vm *vm, void (*on_page_limit)(void *opaque), void *opaque,
                    struct machine_mmu **ret);
/* Before the VM is freed, and after that. NULL is fine for both. */
void machine_mmu_stop(struct machine_mmu *m);
void machine_mmu_free(struct machine_mmu *m);

/* After vm_pause and before vm_resume. */
void machine_mmu_paused(struct machine_mmu *m);
void machine_mmu_resuming(struct machine_mmu *m);
/* Guest memory is another, and the guest is paused. */
void machine_mmu_reset(struct machine_mmu *m);
/* The same, and vCPUs have the state of a guest that ran elsewhere: its address spaces are known again at the first look. */
void machine_mmu_loaded(struct machine_mmu *m);

struct tracker *machine_mmu_tracker(struct machine_mmu *m);

/* Remember how many pages each address space had in an attributed snapshot; and give that back, 0 for one that had none. */
void machine_mmu_note_dirty(struct machine_mmu *m, const struct mmu_attribution *a);
uint64_t machine_mmu_dirty_of(const struct machine_mmu *m, gpa_t cr3, uint64_t generation);

struct page_limit_info {
    enum config_page_limit mode;
    uint64_t limit; /* 0: as KVM chose it */
    uint64_t kvm_default;
    uint64_t changes; /* by mode auto */
    bool recycled_known;
    uint64_t recycled;
};
void machine_mmu_page_limit(struct machine_mmu *m, struct page_limit_info *ret);
/* `pages` counts with CONFIG_PAGE_LIMIT_MANUAL. -EINVAL, or -errno of KVM; then all is as before. */
int machine_mmu_set_page_limit(struct machine_mmu *m, enum config_page_limit mode, uint64_t pages);
/* The next event; false when there is none. */
bool machine_mmu_next_event(struct machine_mmu *m, struct page_limit_event *ret);

#endif
