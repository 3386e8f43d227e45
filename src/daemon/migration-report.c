/* What query-migrate answers: QEMU's members by QEMU's names and units, and ours beside them. */
#include "config.h"

#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/util.h"
#include "daemon/migration-internal.h"
#include "mmu/types.h"

static void add_ram(json_t *to, const struct mig_report *r)
{
    json_t *ram = json_object_new_object();

    json_add_u64(ram, "total", r->memory);
    json_add_u64(ram, "transferred", r->transferred);
    json_add_u64(ram, "remaining", r->remaining);
    json_add_u64(ram, "duplicate", r->zero);
    json_add_u64(ram, "skipped", r->untouched);
    json_add_u64(ram, "normal", r->normal);
    json_add_u64(ram, "normal-bytes", pages_to_bytes(r->normal));
    json_add_u64(ram, "page-size", GUEST_PAGE_SIZE);
    json_add_u64(ram, "dirty-sync-count", r->passes);
    json_add_u64(ram, "dirty-pages-rate", r->dirty_rate);
    json_add_double(ram, "mbps", (double)r->throughput * 8 / 1e6);
    json_add_u64(ram, "pages-per-second", bytes_to_pages(r->throughput));
    json_add_u64(ram, "postcopy-requests", r->requests);
    json_add_u64(ram, "postcopy-bytes", r->postcopy_bytes);
    json_add_u64(ram, "multifd-bytes", r->channels > 1 ? r->transferred : 0);
    json_add_u64(ram, "precopy-bytes", r->transferred - MIN(r->postcopy_bytes, r->transferred));
    json_add_u64(ram, "held-back", r->held);
    json_add_u64(ram, "held-back-tables", r->held_tables);
    json_add(to, "ram", ram);
}

static void add_compression(json_t *to, const struct mig_report *r)
{
    json_t *o;

    if (r->packed_bytes == 0)
        return;
    o = json_object_new_object();
    json_add_u64(o, "pages", r->packed_pages);
    json_add_u64(o, "compressed-size", r->packed_bytes);
    json_add_double(o, "compression-rate", (double)pages_to_bytes(r->packed_pages) / (double)r->packed_bytes);
    json_add(to, "compression", o);
}

static void add_downtime(json_t *to, const struct mig_downtime *d)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "pause", d->pause / NSEC_PER_USEC);
    json_add_u64(o, "drain", d->drain / NSEC_PER_USEC);
    json_add_u64(o, "final-harvest", d->final_harvest / NSEC_PER_USEC);
    json_add_u64(o, "final-pages", d->final_pages / NSEC_PER_USEC);
    json_add_u64(o, "device-state", d->device_state / NSEC_PER_USEC);
    json_add_u64(o, "load", d->load / NSEC_PER_USEC);
    json_add_u64(o, "resume", d->resume / NSEC_PER_USEC);
    json_add(to, "downtime-breakdown", o);
}

static void add_rounds(json_t *to, const struct mig_report *r)
{
    json_t *list = json_object_new_array();
    uint64_t done = r->passes ? r->passes - 1 : 0, first = done > MIG_KEEP_ROUNDS ? done - MIG_KEEP_ROUNDS : 0;

    for (uint64_t i = first; i < done; i++) {
        const struct mig_round *round = &r->rounds[i % MIG_KEEP_ROUNDS];
        json_t *o = json_object_new_object();

        json_add_u64(o, "pages", round->pages);
        json_add_u64(o, "dirtied", round->dirtied);
        json_add_u64(o, "held-back", round->held);
        json_add_double(o, "seconds", (double)round->ns / (double)NSEC_PER_SEC);
        json_add_u64(o, "dirty-rate", round->dirty_rate);
        json_add_u64(o, "throughput", round->throughput);
        json_push(list, o);
    }
    json_add(to, "rounds", list);
}

static void add_forecast(json_t *to, const struct mig_report *r)
{
    const struct mig_forecast *f = &r->forecast;
    json_t *o;

    if (!f->valid)
        return;
    o = json_object_new_object();
    json_add_bool(o, "converges", f->converges);
    json_add_u64(o, "downtime", f->downtime_ns / NSEC_PER_MSEC);
    if (f->converges)
        json_add_u64(o, "time", f->end_ns / NSEC_PER_MSEC);
    if (r->who[0])
        json_add_str(o, "who", r->who);
    json_add(to, "forecast", o);
}

static void add_plan(json_t *to, const struct mig_plan *p)
{
    json_t *o;

    if (!p->valid)
        return;
    o = json_object_new_object();
    json_add_bool(o, "converges", p->converges);
    if (p->converges)
        json_add_u64(o, "total-time", p->total_ns / NSEC_PER_MSEC);
    json_add_u64(o, "downtime", DIV_ROUND_UP(p->downtime_ns, NSEC_PER_MSEC));
    json_add(to, "plan", o);
}

json_t *migration_report_json(const struct mig_report *r, uint64_t stall_ns, const char *blocker)
{
    json_t *o = json_object_new_object(), *blockers;

    /* As QEMU: an empty object before the first. */
    if (r->status == MIG_STATUS_NONE)
        return o;
    json_add_str(o, "status", mig_status_name(r->status));
    json_add_u64(o, "total-time", r->total_ns / NSEC_PER_MSEC);
    json_add_u64(o, "setup-time", r->setup_ns / NSEC_PER_MSEC);
    if (r->status == MIG_STATUS_COMPLETED || mig_status_is_postcopy(r->status))
        json_add_u64(o, "downtime", DIV_ROUND_UP(r->downtime.total, NSEC_PER_MSEC));
    else
        json_add_u64(o, "expected-downtime", r->expected_downtime_ns / NSEC_PER_MSEC);
    if (r->why[0])
        json_add_str(o, "error-desc", r->why);
    if (r->throttle)
        json_add_u64(o, "cpu-throttle-percentage", r->throttle);
    json_add_bool(o, "local", r->local);
    json_add_u64(o, "channels", r->channels);
    add_ram(o, r);
    add_compression(o, r);
    add_downtime(o, &r->downtime);
    add_rounds(o, r);
    add_forecast(o, r);
    add_plan(o, &r->plan);
    if (r->postcopy_ns) {
        json_add_u64(o, "postcopy-time", r->postcopy_ns / NSEC_PER_MSEC);
        json_add_u64(o, "postcopy-recoveries", r->recoveries);
    }
    json_add_u64(o, "harvest-us", r->harvest_ns / NSEC_PER_USEC);
    json_add_u64(o, "guest-stall", stall_ns / NSEC_PER_USEC);
    blockers = json_object_new_array();
    if (blocker)
        json_push(blockers, json_object_new_string(blocker));
    json_add(o, "blockers", blockers);
    return o;
}

/* What the two sides differ in has a line for each. */
static void log_failure(const char *why)
{
    const char *prefix = "failed: ";

    for (size_t len; *why; why += len + (why[len] == '\n')) {
        len = strcspn(why, "\n");
        log_err("migration: %s%.*s", prefix, (int)len, why);
        prefix = "";
    }
}

static void log_end(const struct mig_report *r)
{
    char downtime[48] = "", plan[80] = "";

    /* The source's to know. */
    if (r->downtime.total)
        snprintf(downtime, sizeof(downtime), ", downtime %llu us", (unsigned long long)(r->downtime.total / NSEC_PER_USEC));
    if (r->plan.valid && r->plan.converges)
        snprintf(plan, sizeof(plan), " (foreseen: %llu ms, %llu us)", (unsigned long long)(r->plan.total_ns / NSEC_PER_MSEC),
                 (unsigned long long)(r->plan.downtime_ns / NSEC_PER_USEC));
    else if (r->plan.valid)
        snprintf(plan, sizeof(plan), " (foreseen: no end)");
    if (r->status == MIG_STATUS_COMPLETED)
        log_info("migration: completed in %llu ms%s%s", (unsigned long long)(r->total_ns / NSEC_PER_MSEC), downtime, plan);
    else if (r->status == MIG_STATUS_FAILED)
        log_failure(r->why);
    else if (r->status == MIG_STATUS_CANCELLED)
        log_info("migration: cancelled");
}

void migration_tell(struct migration *mg, const struct mig_report *r)
{
    json_t *data = json_object_new_object();

    json_add_str(data, "status", mig_status_name(r->status));
    mg->observer.on_event(mg->observer.opaque, "MIGRATION", data);
    log_end(r);
}
