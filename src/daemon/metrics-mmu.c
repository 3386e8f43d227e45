/*
 * The bookkeeping of guest page tables. tracker_info copies its counters under the tracker's lock, which a tick gives up between
 * slices; sums that would have to go over the mirror (query-mmu has them) are not made for a scrape.
 */
#include "config.h"

#include "base/util.h"
#include "daemon/machine-mmu.h"
#include "daemon/metrics-internal.h"

static void write_tables(struct om_writer *w, const struct mirror_stats *s)
{
    static const struct om_family pages = {"umbra_mmu_shadow_pages", OM_GAUGE, NULL,
                                           "Guest page tables that are mirrored, by level."};
    static const struct om_family bytes = {"umbra_mmu_memory_bytes", OM_GAUGE, "bytes", "Memory that the bookkeeping takes."};

    om_begin(w, &pages);
    for (unsigned int level = 1; level < ARRAY_SIZE(s->pages); level++) {
        char text[16];

        snprintf(text, sizeof(text), "%u", level);
        om_u64(w, &(struct om_label){"level", text}, 1, s->pages[level]);
    }
    om_begin(w, &bytes);
    om_u64(w, &(struct om_label){"kind", "tables"}, 1, s->memory);
    om_u64(w, &(struct om_label){"kind", "frames"}, 1, s->frame_memory);
}

static void write_counters(struct om_writer *w, const struct tracker_stats *s)
{
    static const struct {
        struct om_family family;
        size_t at; /* in struct tracker_stats */
    } rows[] = {
        {{"umbra_mmu_rmap_entries", OM_GAUGE, NULL, "Present entries of guest page tables."},
         offsetof(struct tracker_stats, mirror.entries)},
        {{"umbra_mmu_flooded_tables", OM_GAUGE, NULL, "Page tables let go of because they are written all the time."},
         offsetof(struct tracker_stats, mirror.stale)},
        {{"umbra_mmu_incomplete_tables", OM_GAUGE, NULL, "Page tables for which there was no memory."},
         offsetof(struct tracker_stats, mirror.incomplete)},
        {{"umbra_mmu_floods", OM_COUNTER, NULL, "Page tables found to be written all the time."},
         offsetof(struct tracker_stats, mirror.floods)},
        {{"umbra_mmu_zapped", OM_COUNTER, NULL, "Mirrored page tables that went away."},
         offsetof(struct tracker_stats, mirror.zapped_pages)},
        {{"umbra_mmu_tables_read", OM_COUNTER, NULL, "Page tables read again."},
         offsetof(struct tracker_stats, mirror.tables_read)},
        {{"umbra_mmu_roots_added", OM_COUNTER, NULL, "Address spaces found."},
         offsetof(struct tracker_stats, mirror.roots_added)},
        {{"umbra_mmu_roots_evicted", OM_COUNTER, NULL, "Address spaces dropped for lack of memory."},
         offsetof(struct tracker_stats, mirror.roots_evicted)},
        {{"umbra_mmu_ticks", OM_COUNTER, NULL, "Looks at the guest's page tables."}, offsetof(struct tracker_stats, ticks)},
        {{"umbra_mmu_events", OM_COUNTER, NULL, "Writes and pages that sources of changes reported."},
         offsetof(struct tracker_stats, events)},
    };
    static const struct om_family roots = {"umbra_mmu_address_spaces", OM_GAUGE, NULL, "Address spaces of the guest."};
    static const struct om_family cpu = {"umbra_mmu_cpu_seconds", OM_COUNTER, "seconds",
                                         "CPU time that looking at page tables took."};

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        om_single_u64(w, &rows[i].family, *(const uint64_t *)((const char *)s + rows[i].at));
    om_single_u64(w, &roots, s->mirror.roots);
    om_single_ns(w, &cpu, s->cpu_ns);
}

static void write_limit(struct om_writer *w, struct machine_mmu *mmu)
{
    static const struct om_family limit = {"umbra_mmu_page_limit", OM_GAUGE, NULL, "How many shadow pages KVM may keep."};
    static const struct om_family changes = {"umbra_mmu_page_limit_changes", OM_COUNTER, NULL,
                                             "Changes of that limit that the guest's need made."};
    struct page_limit_info info;

    machine_mmu_page_limit(mmu, &info);
    om_single_u64(w, &limit, info.limit ? info.limit : info.kvm_default);
    om_single_u64(w, &changes, info.changes);
}

void metrics_write_mmu(struct om_writer *w, const struct metrics_source *s)
{
    struct machine_mmu *mmu = machine_mmu(s->context->machine);
    struct tracker_info info;

    tracker_info(machine_mmu_tracker(mmu), &info);
    write_tables(w, &info.stats.mirror);
    write_counters(w, &info.stats);
    write_limit(w, mmu);
}
