/*
 * The rules for a VM. Counters run since its start, so what is said of rates is an average over its life; the thresholds are
 * where the cost begins to be felt, not where something breaks.
 */
#include "config.h"

#include <string.h>

#include "base/size.h"
#include "ctl/answer.h"
#include "ctl/doctor.h"
#include "ctl/format.h"

#define PAGE_SIZE UINT64_C(4096)
/* A second: below, nobody would notice. */
#define RECYCLED_MUCH 100.0
#define FLOODS_MUCH 10.0
#define UNCLAIMED_MUCH 100.0
#define UPTIME_SHORT 10.0
/* Average time of a harvest. */
#define HARVEST_LONG_NS 10e6
/* A migration with less to spare than this share of its bandwidth has no end to speak of. */
#define CONVERGES_BELOW 0.8

static const char *text(const json_t *o, const char *key)
{
    const char *v = "";

    json_get_str(o, key, &v);
    return v;
}

static uint64_t own_stat(const struct doctor_vm *vm, const char *name)
{
    const struct stats_row *row = stats_find(&vm->stats, true, "umbra", name);

    return row ? row->total : 0;
}

/* A second, over the VM's life; a start is no rate. */
static double per_second(const struct doctor_vm *vm, uint64_t count)
{
    return vm->uptime > 0 ? (double)count / MAX(vm->uptime, UPTIME_SHORT) : 0;
}

/* -- state and host ---------------------------------------------------------- */

static void rule_state(const struct doctor_vm *vm, struct findings *f)
{
    const char *state = text(vm->status, "status");
    struct finding *x;

    if (strcmp(state, "internal-error") == 0 || strcmp(state, "guest-panicked") == 0) {
        x = doctor_found(f, SEVERITY_CRITICAL, "state", "the guest cannot go on: its state is %s", state);
        doctor_advise(x, "the journal has its registers; vmctl reset %s starts it anew", vm->name);
    } else if (strcmp(state, "io-error") == 0) {
        x = doctor_found(f, SEVERITY_CRITICAL, "state", "the guest waits because a disk failed");
        doctor_advise(x, "make room or mend the disk, then vmctl resume %s: held-back requests are tried again", vm->name);
    } else if (strcmp(state, "paused") == 0 || strcmp(state, "prelaunch") == 0) {
        x = doctor_found(f, SEVERITY_NOTICE, "state", "the guest does not run: its state is %s", state);
        doctor_advise(x, "vmctl resume %s lets it go on", vm->name);
    }
}

static void rule_host(const struct doctor_vm *vm, struct findings *f)
{
    const json_t *paging = answer_obj(vm->host, "paging"), *kernel = answer_obj(vm->host, "guest-kernel");
    struct finding *x;

    if (paging && strcmp(text(paging, "mode"), "shadow") != 0) {
        x = doctor_found(f, SEVERITY_NOTICE, "paging", "KVM does not use shadow page tables here (%s)", text(paging, "mode"));
        doctor_advise(x, "what is said of shadow pages costs nothing on this host");
    }
    if (answer_bool(kernel, "emulated")) {
        x = doctor_found(f, SEVERITY_WARNING, "guest kernel", "KVM emulates kernel code of this guest instruction by instruction");
        doctor_advise(x, "use a guest kernel made for this KVM, or a host that runs stock kernels");
    }
}

/* -- page tables ------------------------------------------------------------- */

static void rule_kpti(const struct doctor_vm *vm, struct findings *f)
{
    const json_t *guest = answer_obj(vm->mmu, "guest");
    struct finding *x;

    if (!answer_bool(guest, "kpti"))
        return;
    x = doctor_found(f, SEVERITY_NOTICE, "KPTI", "the guest runs user code on page tables of its own: each system call changes "
                                                  "CR3 twice, which exits under shadow paging (getpid: 0.06 us without, 2 us with)");
    doctor_advise(x, "pti=off on the guest's command line, if its user code is trusted: it gives up the defence against Meltdown");
}

static void rule_page_limit(const struct doctor_vm *vm, struct findings *f)
{
    const json_t *limit = answer_obj(vm->mmu, "page-limit");
    uint64_t pages = answer_u64(limit, "limit") ? answer_u64(limit, "limit") : answer_u64(limit, "default");
    uint64_t recycled = answer_u64(limit, "recycled"), tables = answer_u64(answer_obj(vm->mmu, "tables"), "total");
    char a[FMT_MAX], b[FMT_MAX], c[FMT_MAX];
    struct finding *x;

    if (!limit || per_second(vm, recycled) < RECYCLED_MUCH)
        return;
    x = doctor_found(f, SEVERITY_WARNING, "page limit",
                     "KVM threw away %s shadow pages (%.0f a second) to keep to its limit of %s; the guest has %s page tables",
                     fmt_count(recycled, true, a, sizeof(a)), per_second(vm, recycled), fmt_count(pages, true, b, sizeof(b)),
                     fmt_count(tables, true, c, sizeof(c)));
    if (strcmp(text(limit, "mode"), "auto") == 0)
        doctor_advise(x, "the limit follows the guest's need up to a share of the host's memory: give the guest less to map, or "
                         "vmctl mmu set %s page-limit=%llu", vm->name, (unsigned long long)(2 * MAX(pages, tables)));
    else
        doctor_advise(x, "vmctl mmu set %s page-limit=auto", vm->name);
}

static void rule_floods(const struct doctor_vm *vm, struct findings *f)
{
    uint64_t count = answer_u64(vm->mmu, "flood-count");
    json_t *list = NULL, *worst = NULL;
    char a[FMT_MAX], who[80] = "";
    struct finding *x;

    if (per_second(vm, count) < FLOODS_MUCH)
        return;
    if (json_get_array(vm->floods, "floods", &list) == 0)
        for (size_t i = 0; i < json_object_array_length(list); i++) {
            json_t *flood = json_object_array_get_idx(list, i);

            if (!worst || answer_u64(flood, "count") > answer_u64(worst, "count"))
                worst = flood;
        }
    if (worst)
        snprintf(who, sizeof(who), "; most of late: the level %llu table at frame %#llx",
                 (unsigned long long)answer_u64(worst, "level"), (unsigned long long)answer_u64(worst, "gfn"));
    x = doctor_found(f, SEVERITY_NOTICE, "floods", "%s page tables were written too often to be shadowed (%.1f a second)%s",
                     fmt_count(count, true, a, sizeof(a)), per_second(vm, count), who);
    doctor_advise(x, "work that forks, or maps and unmaps much, does this; vmctl floods %s and vmctl rmap %s GFN show whose they are",
                  vm->name, vm->name);
}

static void rule_tracking(const struct doctor_vm *vm, struct findings *f)
{
    uint64_t incomplete = answer_u64(answer_obj(vm->mmu, "tables"), "incomplete"), evicted = answer_u64(answer_obj(vm->mmu, "roots"), "evicted");
    char size[FMT_MAX];
    struct finding *x;

    if (incomplete == 0 && evicted == 0)
        return;
    x = doctor_found(f, SEVERITY_NOTICE, "bookkeeping", "%llu page tables and %llu address spaces had no room in %s",
                     (unsigned long long)incomplete, (unsigned long long)evicted,
                     size_format(answer_u64(vm->mmu, "max-memory"), size, sizeof(size)));
    doctor_advise(x, "vmctl mmu set %s max-memory=BYTES gives it more", vm->name);
}

/* -- the dirty log ----------------------------------------------------------- */

/* The daemon's own, by the names that it gives them: they come and go with what they are for, and nobody else ends them. */
static bool is_passing(const char *consumer)
{
    return strcmp(consumer, "migration") == 0 || strcmp(consumer, "snapshot-copy") == 0 ||
           strcmp(consumer, "calc-dirty-rate") == 0;
}

/* This one stays between two snapshots, so that the next may be a diff. */
static bool is_for_diffs(const char *consumer)
{
    return strcmp(consumer, "snapshot") == 0;
}

static void consumer_lost(const struct doctor_vm *vm, struct findings *f, const char *name)
{
    struct finding *x = doctor_found(f, SEVERITY_CRITICAL, "dirty log", "consumer %.32s may have missed pages", name);

    if (is_passing(name))
        doctor_advise(x, "what it is for fails by itself and can be begun anew");
    else if (is_for_diffs(name))
        doctor_advise(x, "the next snapshot has to be a full one (vmctl snapshot without --diff)");
    else
        doctor_advise(x, "its copy cannot be trusted: end it with vmctl dirty stop %s %.32s and begin anew with everything",
                      vm->name, name);
}

static void consumer_behind(const struct doctor_vm *vm, struct findings *f, const char *name)
{
    struct finding *x;

    if (is_passing(name))
        return;
    x = doctor_found(f, SEVERITY_NOTICE, "dirty log", "more than half of memory waits for consumer %.32s", name);
    if (is_for_diffs(name))
        doctor_advise(x, "a diff would be hardly smaller than a full snapshot: take one or the other more often");
    else
        doctor_advise(x, "if nobody reads it any more: vmctl dirty stop %s %.32s", vm->name, name);
}

static void rule_consumers(const struct doctor_vm *vm, struct findings *f)
{
    uint64_t pages = answer_u64(vm->dirty_log, "memory-pages");
    json_t *list;

    if (json_get_array(vm->dirty_log, "consumers", &list) < 0)
        return;
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        const json_t *c = json_object_array_get_idx(list, i);
        const char *name = text(c, "name");

        if (answer_bool(c, "lost"))
            consumer_lost(vm, f, name);
        else if (pages > 0 && answer_u64(c, "pending") + answer_u64(c, "unacknowledged") > pages / 2)
            consumer_behind(vm, f, name);
    }
}

static void rule_harvests(const struct doctor_vm *vm, struct findings *f)
{
    uint64_t harvests = own_stat(vm, "dirty_harvests"), failures = own_stat(vm, "dirty_failures");
    uint64_t full = own_stat(vm, "dirty_ring_full");
    double each = harvests ? (double)own_stat(vm, "dirty_harvest_ns") / (double)harvests : 0;
    struct finding *x;

    if (failures > 0) {
        x = doctor_found(f, SEVERITY_WARNING, "dirty log", "KVM refused or broke off %llu harvests", (unsigned long long)failures);
        doctor_advise(x, "no page is lost; the journal has the error");
    }
    if (each > HARVEST_LONG_NS) {
        x = doctor_found(f, SEVERITY_NOTICE, "stalls", "a harvest of the dirty log takes %.1f ms on average", each / 1e6);
        doctor_advise(x, "the guest's faults wait for parts of it: take snapshots more often, so that each has less to do");
    }
    if (per_second(vm, full) > 1) {
        x = doctor_found(f, SEVERITY_WARNING, "stalls", "vCPUs stopped %llu times because their dirty ring was full",
                         (unsigned long long)full);
        doctor_advise(x, "take snapshots more often, or start the VM with --dirty-log bitmap");
    }
}

static void rule_migration(const struct doctor_vm *vm, struct findings *f)
{
    uint64_t rate = answer_u64(vm->dirty_rate, "dirty-rate") * MiB, wide = vm->bandwidth;
    char a[FMT_MAX], b[FMT_MAX];
    struct finding *x;

    if (strcmp(text(vm->migrate, "status"), "postcopy-paused") == 0) {
        x = doctor_found(f, SEVERITY_CRITICAL, "migration", "%.300s", text(vm->migrate, "error-desc"));
        doctor_advise(x, "bring the network back, then vmctl migrate --resume where the guest came from; end neither of the two before");
        return;
    }
    if (strcmp(text(vm->migrate, "status"), "failed") == 0) {
        x = doctor_found(f, SEVERITY_WARNING, "migration", "the last migration failed: %.300s", text(vm->migrate, "error-desc"));
        doctor_advise(x, "the guest goes on here; what the message names has to be mended first");
    }
    if (!*text(vm->dirty_rate, "status"))
        return;
    if (strcmp(text(vm->dirty_rate, "status"), "measured") != 0) {
        x = doctor_found(f, SEVERITY_INFO, "migration", "whether a migration would come to an end is not known: no dirty rate was measured");
        doctor_advise(x, "vmctl dirty rate %s measures one, for a second", vm->name);
        return;
    }
    fmt_rate((double)rate, a, sizeof(a));
    fmt_rate((double)wide, b, sizeof(b));
    if ((double)rate > CONVERGES_BELOW * (double)wide) {
        x = doctor_found(f, SEVERITY_WARNING, "migration", "the guest writes %s: a migration at %s would not come to an end", a, b);
        doctor_advise(x, "migrate in a quieter hour, over a wider link (--bandwidth tells this command), or let the guest be slowed down");
    } else {
        doctor_found(f, SEVERITY_INFO, "migration", "the guest writes %s: a migration at %s would come to an end", a, b);
    }
}

/* -- devices and limits ------------------------------------------------------ */

static void rule_disks(const struct doctor_vm *vm, struct findings *f)
{
    size_t n = answer_length(vm->block);
    struct finding *x;

    for (size_t i = 0; i < n; i++) {
        const json_t *disk = json_object_array_get_idx(vm->block, i);
        const char *status = text(disk, "io-status");

        if (answer_bool(disk, "needs-reset")) {
            x = doctor_found(f, SEVERITY_WARNING, "devices", "%.40s waits for a reset: the guest's driver broke the protocol",
                             text(disk, "device"));
            doctor_advise(x, "the journal has what it did; reload the driver in the guest or reset the guest");
        }
        if (*status && strcmp(status, "ok") != 0) {
            x = doctor_found(f, SEVERITY_CRITICAL, "devices", "%.40s: %s, %llu requests are held back", text(disk, "device"),
                             strcmp(status, "nospace") == 0 ? "no space is left for its image" : "its image cannot be read or written",
                             (unsigned long long)answer_u64(disk, "held-back"));
            doctor_advise(x, "mend that, then vmctl resume %s", vm->name);
        }
    }
}

static void rule_bus(const struct doctor_vm *vm, struct findings *f)
{
    uint64_t count = own_stat(vm, "bus_unclaimed");
    struct finding *x;

    if (per_second(vm, count) < UNCLAIMED_MUCH)
        return;
    x = doctor_found(f, SEVERITY_NOTICE, "exits", "the guest asks for devices that are not there, %.0f times a second",
                     per_second(vm, count));
    doctor_advise(x, "some driver of the guest polls for nothing: take it out of the guest");
}

static void rule_sandbox(const struct doctor_vm *vm, struct findings *f)
{
    uint64_t count = own_stat(vm, "sandbox_refusals");
    struct finding *x;

    if (count == 0)
        return;
    x = doctor_found(f, SEVERITY_CRITICAL, "sandbox", "%llu system calls were refused", (unsigned long long)count);
    doctor_advise(x, "the journal names call and thread; it is a defect of umbrad or an attack on it");
}

void doctor_examine_vm(const struct doctor_vm *vm, struct findings *f)
{
    static void (*const rules[])(const struct doctor_vm *vm, struct findings *f) = {
        rule_state,     rule_host,     rule_kpti,      rule_page_limit, rule_floods, rule_tracking,
        rule_consumers, rule_harvests, rule_migration, rule_disks,      rule_bus,    rule_sandbox,
    };

    for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
        rules[i](vm, f);
}
