/*
 * The dirty bitmap as a source: KVM_GET_DIRTY_LOG with manual protect copies KVM's bitmap, KVM_CLEAR_DIRTY_LOG takes
 * the bits that were seen out of it and protects their pages again. A page that is written in between keeps its bit if it
 * had none, and is protected (and reported now) if it had one; contents are read after both, so neither is lost.
 *
 * What to clear with one ioctl is the choice that "write_protect_slot" (Nov 2011) made inside KVM between walking the
 * reverse maps of few dirty pages and walking everything. An ioctl has a fixed price: the call, and as soon as it
 * protects a page, a TLB flush on every vCPU that is in the guest. A word of the bitmap without a dirty page costs next
 * to nothing. So runs of dirty pages are merged over gaps that cost less than another ioctl; few dirty pages end as a
 * few short clears, many as one dense clear.
 *
 * Measured with bench/clear-strategy on kvm_pvm, Linux 6.18: 0.65 us a call, 0.9 us with a page in it; 0.7-0.9 ns a
 * clean word; 31-60 ns a dirty page. With a vCPU running the first call with a page in it takes 14-18 us, but those after it
 * little more than with the guest stopped: a vCPU that was just kicked is not back in the guest to be kicked again. Whole
 * harvests of 64 GiB with 64 to 1024 clusters of dirty pages break even between one call a cluster and one call in all at
 * gaps of about 1000 words, whether the vCPU runs or not.
 *
 * All the pages of one ioctl are protected under KVM's MMU lock, which every fault of the guest takes: with 258k pages in
 * one go the guest stands still for 8-9 ms, with 8192 a call for 0.3 ms, and the calls cost 5 % more in all. So a clear is
 * cut after CLEAR_MAX_PAGES.
 */
#include "config.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "base/util.h"
#include "mmu/dirty-internal.h"

/* Groups of 64 words: 1024 words, 256 MiB of guest memory. */
#define CLEAR_GAP_GROUPS 16u
#define CLEAR_MAX_PAGES 8192u

static_assert(MEM_HOLE_START % (PAGE_SET_GROUP_PAGES * GUEST_PAGE_SIZE) == 0, "slots begin with a group");

static size_t slot_first_group(const struct mem_slot *slot)
{
    return (size_t)(bytes_to_pages(slot->offset) / PAGE_SET_GROUP_PAGES);
}

static size_t slot_end_group(const struct mem_slot *slot)
{
    return (size_t)DIV_ROUND_UP(bytes_to_pages(slot->offset + slot->size), PAGE_SET_GROUP_PAGES);
}

static int get_slot(struct dirty_log *log, const struct mem_slot *slot)
{
    dirty_count(&log->stats.get_ioctls, 1);
    return log->config.ops->get(log->config.opaque, slot->id, log->harvest.map + bytes_to_pages(slot->offset) / 64);
}

/* Clear what the map has in groups [first, end) of the slot. */
static int clear_groups(struct dirty_log *log, const struct mem_slot *slot, size_t first, size_t end)
{
    uint64_t slot_page = bytes_to_pages(slot->offset);
    uint64_t first_page = first * PAGE_SET_GROUP_PAGES - slot_page;
    uint64_t end_page = MIN(end * PAGE_SET_GROUP_PAGES - slot_page, bytes_to_pages(slot->size));

    dirty_count(&log->stats.clear_ioctls, 1);
    dirty_count(&log->stats.clear_words, (end_page - first_page) / 64);
    return log->config.ops->clear(log->config.opaque, slot->id, first_page, (uint32_t)(end_page - first_page),
                                  log->harvest.map + first * PAGE_SET_GROUP_WORDS);
}

/* Groups that one ioctl is going to clear. */
struct run {
    size_t first, end; /* empty when equal */
    uint64_t pages;
};

/*
 * Complete the set of a slot whose map was written by KVM and, with `clear`, protect its pages again on the way: one pass
 * over the map. After a failed ioctl the rest is only counted; its bits are still in KVM's bitmap.
 */
static int absorb_slot(struct dirty_log *log, const struct mem_slot *slot, bool clear)
{
    size_t gap = log->config.clear_gap, end = slot_end_group(slot), g = slot_first_group(slot);
    uint64_t max_pages = log->config.clear_max_pages, pages = 0;
    struct run run = {0};
    int r = 0;

    for (; (g = page_set_scan_group(&log->harvest, g, end, &pages)) < end; g++) {
        page_set_mark_group(&log->harvest, g);
        log->harvest.pages += pages;
        if (!clear || r < 0)
            continue;
        if (run.pages > 0 && (g - run.end >= gap || run.pages + pages > max_pages)) {
            r = clear_groups(log, slot, run.first, run.end);
            run.pages = 0;
        }
        if (run.pages == 0)
            run.first = g;
        run.end = g + 1;
        run.pages += pages;
    }
    if (run.pages > 0 && r == 0)
        r = clear_groups(log, slot, run.first, run.end);
    return r;
}

static int harvest(struct dirty_log *log, bool clear)
{
    int r = 0;

    for (unsigned int i = 0; i < log->slot_count; i++) {
        r = get_slot(log, &log->slots[i]);
        if (r < 0) {
            /* KVM still has every bit. */
            page_set_wipe(&log->harvest);
            return r;
        }
    }
    for (unsigned int i = 0; i < log->slot_count; i++) {
        int err = absorb_slot(log, &log->slots[i], clear && r == 0);

        r = r < 0 ? r : err;
    }
    return r;
}

void dirty_bitmap_setup(struct dirty_log *log)
{
    struct dirty_config *c = &log->config;

    if (c->clear == DIRTY_CLEAR_AUTO) {
        c->clear_gap = c->clear_gap ? c->clear_gap : CLEAR_GAP_GROUPS;
        c->clear_max_pages = c->clear_max_pages ? c->clear_max_pages : CLEAR_MAX_PAGES;
    } else {
        c->clear_gap = c->clear == DIRTY_CLEAR_SPARSE ? 1 : UINT32_MAX;
        c->clear_max_pages = UINT32_MAX;
    }
}

int dirty_bitmap_take(struct dirty_log *log)
{
    return harvest(log, true);
}

int dirty_bitmap_look(struct dirty_log *log)
{
    return harvest(log, false);
}

int dirty_bitmap_take_only(struct dirty_log *log, const struct page_set *only)
{
    struct page_set *set = &log->harvest;
    int r = 0;

    for (size_t g = page_set_next_group(set, 0); g < set->group_count; g = page_set_next_group(set, g + 1))
        for (size_t word = g * PAGE_SET_GROUP_WORDS; word < (g + 1) * PAGE_SET_GROUP_WORDS; word++)
            set->map[word] &= only->map[word];
    memset(set->groups, 0, set->groups_words * sizeof(*set->groups));
    set->pages = 0;
    for (unsigned int i = 0; i < log->slot_count; i++) {
        int err = absorb_slot(log, &log->slots[i], r == 0);

        r = r < 0 ? r : err;
    }
    return r;
}
