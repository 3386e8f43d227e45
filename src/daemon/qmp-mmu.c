/* The bookkeeping of guest page tables on the control socket. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "daemon/machine-mmu.h"
#include "daemon/qmp-internal.h"
#include "mmu/attribute.h"
#include "mmu/census.h"
#include "mmu/flood.h"
#include "mmu/page-limit.h"
#include "mmu/query.h"
#include "mmu/tracker.h"

#define SPACES_DEFAULT 64u
#define MAPPINGS_DEFAULT 64u

static const char *const kind_names[] = {
    [MMU_ROOT_KERNEL] = "kernel",
    [MMU_ROOT_USER] = "user",
    [MMU_ROOT_KPTI] = "kpti",
};

static struct tracker *tracker_of(const struct qmp_request *req)
{
    return machine_mmu_tracker(machine_mmu(req->machine));
}

/* The mirror with its lock held, or NULL with the error set. */
static struct mirror *lock_mirror(struct qmp_request *req, enum tracker_age age, uint64_t *ret_age_ns)
{
    struct mirror *m;
    int r = tracker_lock(tracker_of(req), age, &m, ret_age_ns);

    if (r == 0)
        return m;
    qmp_error_set(&req->error, QMP_GENERIC_ERROR,
                  r == -ENODATA ? "guest page tables are not tracked: mmu-set tracking first" : "guest page tables: %s",
                  strerror(-r));
    return NULL;
}

static bool incomplete(const struct mirror *m)
{
    struct mirror_stats s;

    mirror_stats(m, &s);
    return s.incomplete || s.stale;
}

static void add_root(json_t *o, gpa_t cr3, enum mmu_root_kind kind, uint64_t generation)
{
    json_add_u64(o, "root", cr3);
    json_add_str(o, "kind", kind_names[kind]);
    json_add_u64(o, "generation", generation);
}

/* -- query-mmu --------------------------------------------------------------- */

static void add_settings(json_t *o, const struct tracker_settings *s)
{
    json_add_str(o, "tracking", config_tracking_names[s->mode]);
    json_add_u64(o, "sync-interval-us", s->interval_us);
    json_add_u64(o, "cpu-budget", s->cpu_budget);
    json_add_u64(o, "max-memory", s->max_memory);
    json_add_bool(o, "floods", s->floods);
}

static json_t *tables_object(const struct mirror_stats *s)
{
    json_t *o = json_object_new_object(), *levels = json_object_new_array();
    uint64_t total = 0;

    for (unsigned int level = 1; level < ARRAY_SIZE(s->pages); level++) {
        json_push(levels, json_object_new_uint64(s->pages[level]));
        total += s->pages[level];
    }
    json_add_u64(o, "total", total);
    json_add(o, "levels", levels);
    json_add_u64(o, "bytes", s->table_memory);
    json_add_u64(o, "flooded", s->stale);
    json_add_u64(o, "incomplete", s->incomplete);
    return o;
}

static json_t *spaces_object(const struct mirror_census *c)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "total", (uint64_t)c->kernel + c->user + c->kpti);
    json_add_u64(o, "kernel", c->kernel);
    json_add_u64(o, "user", c->user);
    json_add_u64(o, "kpti", c->kpti);
    return o;
}

static json_t *rmap_object(const struct mirror_census *c)
{
    json_t *o = json_object_new_object(), *histogram = json_object_new_array();
    unsigned int last = 0;

    for (unsigned int i = 0; i < CENSUS_CHAINS; i++)
        last = c->chains[i] ? i + 1 : last;
    for (unsigned int i = 0; i < last; i++)
        json_push(histogram, json_object_new_uint64(c->chains[i]));
    json_add(o, "histogram", histogram);
    json_add_u64(o, "stride", c->stride);
    return o;
}

static json_t *large_object(const struct mirror_census *c)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "2m", c->large_2m);
    json_add_u64(o, "4m", c->large_4m);
    json_add_u64(o, "1g", c->large_1g);
    return o;
}

static json_t *guest_object(const struct mirror_census *c)
{
    json_t *o = json_object_new_object();

    if (c->levels)
        json_add_u64(o, "paging-levels", c->levels);
    /* No process was seen: nobody knows yet. */
    if (c->user || c->kpti)
        json_add_bool(o, "kpti", c->kpti > 0);
    return o;
}

static json_t *sync_object(const struct tracker_stats *s)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "ticks", s->ticks);
    json_add_u64(o, "tables-read", s->mirror.tables_read);
    json_add_u64(o, "tables-changed", s->mirror.tables_changed);
    json_add_u64(o, "entries-linked", s->mirror.entries_linked);
    json_add_u64(o, "entries-unlinked", s->mirror.entries_unlinked);
    json_add_u64(o, "entries-updated", s->mirror.entries_updated);
    json_add_u64(o, "ad-updates", s->mirror.ad_updates);
    json_add_u64(o, "bulk-clears", s->mirror.bulk_clears);
    json_add_u64(o, "events", s->events);
    json_add_u64(o, "cpu-us", s->cpu_ns / NSEC_PER_USEC);
    json_add_u64(o, "last-us", s->last_ns / NSEC_PER_USEC);
    json_add_u64(o, "longest-us", s->longest_ns / NSEC_PER_USEC);
    return o;
}

static json_t *roots_object(const struct tracker_stats *s)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "added", s->mirror.roots_added);
    json_add_u64(o, "dropped", s->mirror.roots_dropped);
    json_add_u64(o, "evicted", s->mirror.roots_evicted);
    json_add_u64(o, "scans", s->scans);
    json_add_u64(o, "scanned-pages", s->scanned_pages);
    return o;
}

static json_t *page_limit_object(struct qmp_request *req)
{
    static const char *const modes[] = {
        [CONFIG_PAGE_LIMIT_AUTO] = "auto",
        [CONFIG_PAGE_LIMIT_OFF] = "off",
        [CONFIG_PAGE_LIMIT_MANUAL] = "manual",
    };
    struct page_limit_info limit;
    json_t *o = json_object_new_object();

    machine_mmu_page_limit(machine_mmu(req->machine), &limit);
    json_add_str(o, "mode", modes[limit.mode]);
    json_add_u64(o, "limit", limit.limit);
    json_add_u64(o, "default", limit.kvm_default);
    if (limit.recycled_known)
        json_add_u64(o, "recycled", limit.recycled);
    json_add_u64(o, "changes", limit.changes);
    return o;
}

static json_t *memory_object(const struct mirror_stats *s)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "tables", s->memory);
    json_add_u64(o, "frames", s->frame_memory);
    return o;
}

json_t *qmp_query_mmu(struct qmp_request *req)
{
    struct tracker *t = tracker_of(req);
    struct mirror_census census = {.stride = 1};
    struct tracker_info info;
    struct mirror *m;
    json_t *answer = json_object_new_object();

    /* With tracking off the answer says so: it is no error to ask. */
    if (tracker_lock(t, TRACKER_RECENT, &m, NULL) == 0) {
        mirror_take_census(m, &census);
        tracker_unlock(t);
    }
    tracker_info(t, &info);
    add_settings(answer, &info.settings);
    json_add_str(answer, "source", info.source);
    json_add_u64(answer, "interval-us", info.interval_ns / NSEC_PER_USEC);
    if (info.looked)
        json_add_u64(answer, "age-us", info.age_ns / NSEC_PER_USEC);
    json_add(answer, "tables", tables_object(&info.stats.mirror));
    json_add_u64(answer, "entries", info.stats.mirror.entries);
    json_add(answer, "spaces", spaces_object(&census));
    json_add(answer, "memory", memory_object(&info.stats.mirror));
    json_add(answer, "rmap", rmap_object(&census));
    json_add(answer, "large-pages", large_object(&census));
    json_add(answer, "guest", guest_object(&census));
    json_add(answer, "sync", sync_object(&info.stats));
    json_add(answer, "roots", roots_object(&info.stats));
    json_add_u64(answer, "flood-count", info.stats.mirror.floods);
    json_add(answer, "page-limit", page_limit_object(req));
    return answer;
}

/* -- address spaces ---------------------------------------------------------- */

struct space {
    struct mmu_space_size size;
    uint64_t dirty;
};

static int descending(uint64_t x, uint64_t y)
{
    return x > y ? -1 : x < y;
}

static int by_root(const void *a, const void *b)
{
    const struct space *x = a, *y = b;

    return descending(y->size.root.cr3, x->size.root.cr3);
}

/* What is equal otherwise stands in the order of roots, so that an answer is the same twice. */
static int by_pages(const void *a, const void *b)
{
    const struct space *x = a, *y = b;
    int r = descending(x->size.pages, y->size.pages);

    return r ? r : by_root(a, b);
}

static int by_tables(const void *a, const void *b)
{
    const struct space *x = a, *y = b;
    int r = descending(x->size.tables, y->size.tables);

    return r ? r : by_root(a, b);
}

static int by_dirty(const void *a, const void *b)
{
    const struct space *x = a, *y = b;
    int r = descending(x->dirty, y->dirty);

    return r ? r : by_root(a, b);
}

static int by_seen(const void *a, const void *b)
{
    const struct space *x = a, *y = b;
    int r = descending(x->size.root.seen_ns, y->size.root.seen_ns);

    return r ? r : by_root(a, b);
}

static const struct {
    const char *name;
    int (*compare)(const void *, const void *);
} sorts[] = {{"pages", by_pages}, {"tables", by_tables}, {"dirty", by_dirty}, {"seen", by_seen}, {"root", by_root}};

static int (*sort_of(const struct qmp_request *req))(const void *, const void *)
{
    const char *sort = sorts[0].name;
    size_t i = 0;

    json_get_str(req->args, "sort", &sort);
    while (strcmp(sorts[i].name, sort) != 0)
        i++;
    return sorts[i].compare;
}

static json_t *space_object(const struct space *s, uint64_t now)
{
    const struct mmu_root *root = &s->size.root;
    json_t *o = json_object_new_object();

    add_root(o, root->cr3, root->kind, root->generation);
    json_add_u64(o, "levels", root->paging.levels);
    json_add_u64(o, "pages", s->size.pages);
    json_add_u64(o, "tables", s->size.tables);
    json_add_u64(o, "seen-us", now > root->seen_ns ? (now - root->seen_ns) / NSEC_PER_USEC : 0);
    json_add_u64(o, "dirty", s->dirty);
    return o;
}

/* All address spaces with their dirty pages; *ret is the caller's to free. The number, or 0 with *ret NULL: no memory. */
static size_t gather_spaces(struct qmp_request *req, struct mirror *m, struct space **ret, bool *ret_whole)
{
    struct mirror_stats s;
    struct mmu_space_size *sizes;
    struct space *spaces;
    size_t n = 0;

    mirror_stats(m, &s);
    sizes = calloc(s.roots + 1, sizeof(*sizes));
    spaces = calloc(s.roots + 1, sizeof(*spaces));
    if (sizes && spaces)
        n = mirror_spaces(m, sizes, s.roots, ret_whole);
    for (size_t i = 0; i < n; i++)
        spaces[i] = (struct space){
            .size = sizes[i],
            .dirty = machine_mmu_dirty_of(machine_mmu(req->machine), sizes[i].root.cr3, sizes[i].root.generation),
        };
    *ret_whole &= !s.incomplete && !s.stale;
    free(sizes);
    *ret = spaces;
    return n;
}

json_t *qmp_query_mmu_spaces(struct qmp_request *req)
{
    _cleanup_free_ struct space *spaces = NULL;
    uint64_t limit = SPACES_DEFAULT, age, now = clock_ns();
    json_t *answer, *list;
    struct mirror *m = lock_mirror(req, TRACKER_RECENT, &age);
    bool whole = true;
    size_t n;

    if (!m)
        return NULL;
    n = gather_spaces(req, m, &spaces, &whole);
    tracker_unlock(tracker_of(req));
    json_get_u64(req->args, "limit", &limit);
    if (spaces)
        qsort(spaces, n, sizeof(*spaces), sort_of(req));
    answer = json_object_new_object();
    list = json_object_new_array();
    json_add_u64(answer, "total", n);
    json_add_u64(answer, "age-us", age / NSEC_PER_USEC);
    json_add_bool(answer, "incomplete", !whole);
    for (size_t i = 0; i < MIN((uint64_t)n, limit); i++)
        json_push(list, space_object(&spaces[i], now));
    json_add(answer, "spaces", list);
    return answer;
}

/* -- one frame --------------------------------------------------------------- */

/* The frame that was asked for; false with the error set. */
static bool frame_of(struct qmp_request *req, gfn_t *ret)
{
    uint64_t gpa;
    bool have_gfn = json_get_u64(req->args, "gfn", ret) == 0, have_gpa = json_get_u64(req->args, "gpa", &gpa) == 0;

    if (have_gfn == have_gpa) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "give one of 'gfn' and 'gpa'");
        return false;
    }
    if (have_gpa)
        *ret = gpa_to_gfn(gpa);
    if (*ret < MEM_SIZE_MAX && mem_is_ram(vm_mem(machine_vm(req->machine)), gfn_to_gpa(*ret), GUEST_PAGE_SIZE))
        return true;
    qmp_error_set(&req->error, QMP_GENERIC_ERROR, "frame %llu is not guest memory", (unsigned long long)*ret);
    return false;
}

static json_t *mapping_object(const struct mmu_mapping *map)
{
    json_t *o = json_object_new_object();

    add_root(o, map->cr3, map->kind, map->generation);
    json_add_u64(o, "gva", map->gva);
    json_add_u64(o, "level", map->level);
    json_add_u64(o, "page-size", UINT64_C(1) << map->shift);
    json_add_bool(o, "write", map->write);
    json_add_bool(o, "user", map->user);
    json_add_bool(o, "execute", !map->nx);
    json_add_bool(o, "accessed", map->accessed);
    json_add_bool(o, "dirty", map->dirty);
    return o;
}

json_t *qmp_query_rmap(struct qmp_request *req)
{
    _cleanup_free_ struct mmu_mapping *maps = NULL;
    uint64_t limit = MAPPINGS_DEFAULT, age;
    json_t *answer, *list;
    bool more, table, part;
    struct mirror *m;
    gfn_t gfn;
    size_t n;

    if (!frame_of(req, &gfn))
        return NULL;
    json_get_u64(req->args, "limit", &limit);
    maps = calloc(limit, sizeof(*maps));
    m = maps ? lock_mirror(req, TRACKER_RECENT, &age) : NULL;
    if (!m)
        return NULL;
    n = mirror_query(m, gfn, maps, limit, &more);
    table = mirror_is_table(m, gfn);
    part = incomplete(m);
    tracker_unlock(tracker_of(req));
    answer = json_object_new_object();
    list = json_object_new_array();
    for (size_t i = 0; i < n; i++)
        json_push(list, mapping_object(&maps[i]));
    json_add_u64(answer, "gfn", gfn);
    json_add_bool(answer, "table", table);
    json_add_u64(answer, "age-us", age / NSEC_PER_USEC);
    json_add_bool(answer, "more", more);
    json_add_bool(answer, "incomplete", part);
    json_add(answer, "mappings", list);
    return answer;
}

/* -- floods ------------------------------------------------------------------ */

json_t *qmp_query_mmu_floods(struct qmp_request *req)
{
    struct mmu_flood floods[MIRROR_FLOODS_MAX];
    uint64_t limit = MIRROR_FLOODS_MAX, tick;
    struct mirror *m = lock_mirror(req, TRACKER_RECENT, NULL);
    json_t *answer, *list;
    struct mirror_stats s;
    size_t n;

    if (!m)
        return NULL;
    json_get_u64(req->args, "limit", &limit);
    n = mirror_floods(m, floods, limit);
    tick = mirror_tick(m);
    mirror_stats(m, &s);
    tracker_unlock(tracker_of(req));
    answer = json_object_new_object();
    list = json_object_new_array();
    for (size_t i = 0; i < n; i++) {
        json_t *o = json_object_new_object();

        json_add_u64(o, "gfn", floods[i].gfn);
        json_add_u64(o, "level", floods[i].level);
        json_add_str(o, "reason", floods[i].reason == MMU_FLOOD_WRITES ? "writes" : "ticks");
        json_add_u64(o, "count", floods[i].count);
        json_add_str(o, "action", floods[i].action == MMU_FLOOD_POLL ? "poll" : "drop");
        json_add_u64(o, "present", floods[i].present);
        json_add_u64(o, "accessed", floods[i].accessed);
        json_add_u64(o, "ticks-ago", tick - floods[i].tick);
        json_push(list, o);
    }
    json_add_u64(answer, "total", s.floods);
    json_add(answer, "floods", list);
    return answer;
}

/* -- mmu-set, mmu-verify ----------------------------------------------------- */

static void read_settings(const struct qmp_request *req, struct tracker_settings *s)
{
    const char *tracking;
    uint64_t budget;

    if (json_get_str(req->args, "tracking", &tracking) == 0)
        for (int i = 0; config_tracking_names[i]; i++)
            if (strcmp(config_tracking_names[i], tracking) == 0)
                s->mode = (enum tracker_mode)i;
    json_get_u64(req->args, "sync-interval-us", &s->interval_us);
    if (json_get_u64(req->args, "cpu-budget", &budget) == 0)
        s->cpu_budget = (unsigned int)budget;
    json_get_u64(req->args, "max-memory", &s->max_memory);
    json_get_bool(req->args, "floods", &s->floods);
}

/* What page-limit is to be; false with the error set. Left as it is where it was not given. */
static bool read_page_limit(struct qmp_request *req, enum config_page_limit *mode, uint64_t *pages)
{
    const char *name;
    json_t *value;

    if (!json_object_object_get_ex(req->args, "page-limit", &value))
        return true;
    if (json_get_str(req->args, "page-limit", &name) == 0 && (strcmp(name, "auto") == 0 || strcmp(name, "off") == 0)) {
        *mode = *name == 'a' ? CONFIG_PAGE_LIMIT_AUTO : CONFIG_PAGE_LIMIT_OFF;
        return true;
    }
    *mode = CONFIG_PAGE_LIMIT_MANUAL;
    if (json_object_is_type(value, json_type_int) && json_get_u64(req->args, "page-limit", pages) == 0 &&
        *pages >= PAGE_LIMIT_MIN && *pages <= UINT32_MAX)
        return true;
    qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Parameter 'page-limit' is neither auto nor off nor a number from %u",
                  (unsigned int)PAGE_LIMIT_MIN);
    return false;
}

static json_t *settings_answer(struct qmp_request *req)
{
    struct tracker_settings s;
    json_t *answer = json_object_new_object();

    tracker_settings(tracker_of(req), &s);
    add_settings(answer, &s);
    json_add(answer, "page-limit", page_limit_object(req));
    return answer;
}

json_t *qmp_mmu_set(struct qmp_request *req)
{
    struct machine_mmu *mmu = machine_mmu(req->machine);
    struct page_limit_info before;
    enum config_page_limit mode;
    struct tracker_settings s;
    uint64_t pages;
    int r;

    machine_mmu_page_limit(mmu, &before);
    mode = before.mode;
    pages = before.limit;
    tracker_settings(tracker_of(req), &s);
    read_settings(req, &s);
    if (!read_page_limit(req, &mode, &pages))
        return NULL;
    if (!tracker_settings_valid(&s)) {
        /* All others are checked against their ranges by the table. */
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Parameter 'sync-interval-us' is neither 0 nor from %u to %u",
                      TRACKER_INTERVAL_MIN_US, TRACKER_INTERVAL_MAX_US);
        return NULL;
    }
    r = machine_mmu_set_page_limit(mmu, mode, pages);
    if (r < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "KVM does not take a limit of %llu shadow pages: %s",
                      (unsigned long long)pages, strerror(-r));
        return NULL;
    }
    r = tracker_set(tracker_of(req), &s);
    if (r == 0)
        return settings_answer(req);
    (void)machine_mmu_set_page_limit(mmu, before.mode, before.limit);
    qmp_error_set(&req->error, QMP_GENERIC_ERROR,
                  r == -ENOTSUP ? "tracking precise is not possible here (the log says why)" : "guest page tables: %s",
                  strerror(-r));
    return NULL;
}

json_t *qmp_mmu_verify(struct qmp_request *req)
{
    struct mirror_verdict v;
    struct tracker_info info;
    json_t *answer;
    int r = tracker_verify(tracker_of(req), &v);

    if (r < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR,
                      r == -EBUSY     ? "the guest runs: stop it first"
                      : r == -ENODATA ? "guest page tables are not tracked: mmu-set tracking first"
                                      : "guest page tables: %s",
                      strerror(-r));
        return NULL;
    }
    tracker_info(tracker_of(req), &info);
    answer = json_object_new_object();
    json_add_u64(answer, "missing", v.missing);
    json_add_u64(answer, "extra", v.extra);
    json_add_u64(answer, "mismatched", v.mismatched);
    json_add_u64(answer, "broken-links", v.broken_links);
    json_add_u64(answer, "roots", v.roots);
    json_add_u64(answer, "tables", v.tables);
    json_add_u64(answer, "incomplete", info.stats.mirror.incomplete);
    json_add_str(answer, "source", info.source);
    return answer;
}

/* -- dirty-log-snapshot with attribute --------------------------------------- */

#define ATTRIBUTED_SPACES_MAX 1024u
#define ATTRIBUTED_RANGES_MAX 32u

static int by_length(const void *a, const void *b)
{
    const struct mmu_range *x = a, *y = b;

    return x->pages != y->pages ? descending(x->pages, y->pages) : descending(y->start, x->start);
}

static json_t *attributed_space(const struct mmu_space *s, struct mmu_range *ranges)
{
    json_t *o = json_object_new_object(), *list = json_object_new_array();

    if (s->kernel)
        json_add_str(o, "kind", kind_names[MMU_ROOT_KERNEL]);
    else
        add_root(o, s->cr3, s->kind, s->generation);
    json_add_u64(o, "pages", s->pages);
    json_add_u64(o, "range-count", s->ranges);
    qsort(ranges, s->ranges, sizeof(*ranges), by_length);
    for (size_t i = 0; i < MIN(s->ranges, (size_t)ATTRIBUTED_RANGES_MAX); i++) {
        json_t *range = json_object_new_object();

        json_add_u64(range, "gva", ranges[i].start);
        json_add_u64(range, "pages", ranges[i].pages);
        json_push(list, range);
    }
    json_add(o, "ranges", list);
    return o;
}

json_t *qmp_attribution(struct qmp_request *req, const struct page_set *dirty)
{
    uint64_t age, start = clock_ns();
    /* What was written before the pages were harvested has to be known: else a process that has just mapped them is not blamed. */
    struct mirror *m = lock_mirror(req, TRACKER_NOW, &age);
    struct mmu_attribution a;
    json_t *answer, *list;
    int r;

    if (!m)
        return NULL;
    r = mirror_attribute(m, dirty, &a);
    tracker_unlock(tracker_of(req));
    if (r < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "attribution of %llu pages: %s; no page is lost",
                      (unsigned long long)dirty->pages, strerror(-r));
        return NULL;
    }
    machine_mmu_note_dirty(machine_mmu(req->machine), &a);
    answer = json_object_new_object();
    list = json_object_new_array();
    json_add_u64(answer, "user", a.user);
    json_add_u64(answer, "kernel", a.kernel);
    json_add_u64(answer, "unmapped", a.unmapped);
    json_add_u64(answer, "shared", a.shared);
    json_add_bool(answer, "incomplete", a.incomplete);
    json_add_u64(answer, "space-count", a.space_count);
    for (size_t i = 0; i < MIN(a.space_count, (size_t)ATTRIBUTED_SPACES_MAX); i++)
        json_push(list, attributed_space(&a.spaces[i], a.ranges + a.spaces[i].first_range));
    json_add(answer, "spaces", list);
    json_add_u64(answer, "age-us", age / NSEC_PER_USEC);
    json_add_u64(answer, "attribute-us", (clock_ns() - start) / NSEC_PER_USEC);
    mmu_attribution_free(&a);
    return answer;
}
