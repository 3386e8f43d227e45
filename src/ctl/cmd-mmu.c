/* vmctl mmu, mmu spaces, mmu set, mmu verify: what the daemon knows of the guest's page tables, for a person. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "ctl/answer.h"
#include "ctl/ctl.h"
#include "ctl/format.h"
#include "ctl/names.h"
#include "ctl/qmp-words.h"
#include "ctl/table.h"
#include "ctl/term.h"

/* -- values ------------------------------------------------------------------- */

static const char *count_of(const json_t *o, const char *key, char *buf, size_t len)
{
    return fmt_count(answer_u64(o, key), term_stdout_is_tty(), buf, len);
}

static const char *size_of(const json_t *o, const char *key, char *buf, size_t len)
{
    return size_format(answer_u64(o, key), buf, len);
}

/* 0.4 ms, 12 ms, 3.5 s. */
static const char *time_text(uint64_t us, char *buf, size_t len)
{
    if (us >= 10000000)
        return fmt_duration((double)us / 1e6, buf, len);
    if (us >= 1000000)
        snprintf(buf, len, "%.1f s", (double)us / 1e6);
    else if (us >= 10000)
        snprintf(buf, len, "%llu ms", (unsigned long long)(us / 1000));
    else
        snprintf(buf, len, "%.1f ms", (double)us / 1e3);
    return buf;
}

/* -- mmu ---------------------------------------------------------------------- */

static void print_tracking(const json_t *o)
{
    char every[FMT_MAX], age[FMT_MAX];
    uint64_t interval = answer_u64(o, "interval-us"), us;
    bool known = json_get_u64(o, "age-us", &us) == 0;

    table_field(stdout, "tracking", "%s, by %s%s%s%s%s%s", answer_str(o, "tracking"), answer_str(o, "source"),
                interval ? ", every " : "", interval ? time_text(interval, every, sizeof(every)) : "",
                known ? "; looked " : "", known ? time_text(us, age, sizeof(age)) : "", known ? " ago" : "");
}

static void print_guest(const json_t *o)
{
    const json_t *guest = answer_obj(o, "guest"), *large = answer_obj(o, "large-pages");
    uint64_t levels;
    bool kpti;

    if (json_get_u64(guest, "paging-levels", &levels) == 0)
        table_field(stdout, "guest", "%llu page-table levels%s", (unsigned long long)levels,
                    json_get_bool(guest, "kpti", &kpti) < 0 ? ""
                    : kpti ? ", KPTI: user code has page tables of its own, which costs much here"
                           : ", no KPTI");
    else
        table_field(stdout, "guest", "no paging yet");
    if (large)
        table_field(stdout, "large pages", "%llu of 2 MiB, %llu of 4 MiB, %llu of 1 GiB",
                    (unsigned long long)answer_u64(large, "2m"), (unsigned long long)answer_u64(large, "4m"),
                    (unsigned long long)answer_u64(large, "1g"));
}

static void print_tables(const json_t *o)
{
    const json_t *tables = answer_obj(o, "tables"), *spaces = answer_obj(o, "spaces");
    char total[FMT_MAX], bytes[FMT_MAX], entries[FMT_MAX], levels[200] = "";
    size_t at = 0;
    json_t *list;

    if (json_get_array(tables, "levels", &list) == 0)
        for (size_t i = json_object_array_length(list); i-- > 0 && at < sizeof(levels);) {
            uint64_t n;

            if (json_to_u64(json_object_array_get_idx(list, i), &n) == 0 && n > 0)
                at += (size_t)snprintf(levels + at, sizeof(levels) - at, "%s%llu of level %zu", at ? ", " : "; ",
                                       (unsigned long long)n, i + 1);
        }
    table_field(stdout, "page tables", "%s (%s)%s", count_of(tables, "total", total, sizeof(total)),
                size_of(tables, "bytes", bytes, sizeof(bytes)), levels);
    if (answer_u64(tables, "flooded") || answer_u64(tables, "incomplete"))
        table_field(stdout, "", "%llu let go of as flooded, %llu not followed for want of memory",
                    (unsigned long long)answer_u64(tables, "flooded"), (unsigned long long)answer_u64(tables, "incomplete"));
    table_field(stdout, "entries", "%s", count_of(o, "entries", entries, sizeof(entries)));
    table_field(stdout, "address spaces", "%llu: %llu of the kernel, %llu of processes, %llu KPTI halves",
                (unsigned long long)answer_u64(spaces, "total"), (unsigned long long)answer_u64(spaces, "kernel"),
                (unsigned long long)answer_u64(spaces, "user"), (unsigned long long)answer_u64(spaces, "kpti"));
}

/* How many frames have how many mappings. */
static void print_rmap(const json_t *o)
{
    const json_t *rmap = answer_obj(o, "rmap");
    char text[400] = "";
    uint64_t stride = answer_u64(rmap, "stride");
    size_t at = 0;
    json_t *list;

    if (json_get_array(rmap, "histogram", &list) < 0)
        return;
    for (size_t i = 0; i < json_object_array_length(list) && i < 63 && at < sizeof(text); i++) {
        unsigned long long low = 1ull << i, high = (2ull << i) - 1;
        char count[FMT_MAX], range[64];
        uint64_t n;

        if (json_to_u64(json_object_array_get_idx(list, i), &n) < 0 || n == 0)
            continue;
        if (low == high)
            snprintf(range, sizeof(range), "once");
        else
            snprintf(range, sizeof(range), "%llu-%llu times", low, high);
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%s %s", at ? ", " : "",
                               fmt_count(n, term_stdout_is_tty(), count, sizeof(count)), range);
    }
    if (at == 0)
        return;
    if (stride > 1)
        table_field(stdout, "frames mapped", "%s (one frame in %llu was looked at)", text, (unsigned long long)stride);
    else
        table_field(stdout, "frames mapped", "%s", text);
}

static void print_cost(const json_t *o)
{
    const json_t *memory = answer_obj(o, "memory"), *sync = answer_obj(o, "sync"), *roots = answer_obj(o, "roots");
    char a[FMT_MAX], b[FMT_MAX], c[FMT_MAX];

    table_field(stdout, "bookkeeping", "%s for tables (at most %s), %s for frames",
                size_of(memory, "tables", a, sizeof(a)), size_of(o, "max-memory", b, sizeof(b)),
                size_of(memory, "frames", c, sizeof(c)));
    table_field(stdout, "looks", "%s, CPU time %s, the longest %s", count_of(sync, "ticks", a, sizeof(a)),
                time_text(answer_u64(sync, "cpu-us"), b, sizeof(b)), time_text(answer_u64(sync, "longest-us"), c, sizeof(c)));
    table_field(stdout, "tables read", "%s, changed %s", count_of(sync, "tables-read", a, sizeof(a)),
                count_of(sync, "tables-changed", b, sizeof(b)));
    table_field(stdout, "changes", "%s entries linked, %s unlinked, %s changed in place",
                count_of(sync, "entries-linked", a, sizeof(a)), count_of(sync, "entries-unlinked", b, sizeof(b)),
                count_of(sync, "entries-updated", c, sizeof(c)));
    table_field(stdout, "roots", "%s added, %s dropped, %s evicted", count_of(roots, "added", a, sizeof(a)),
                count_of(roots, "dropped", b, sizeof(b)), count_of(roots, "evicted", c, sizeof(c)));
    table_field(stdout, "floods", "%s", count_of(o, "flood-count", a, sizeof(a)));
}

static void print_page_limit(const json_t *o)
{
    const json_t *limit = answer_obj(o, "page-limit");
    char now[FMT_MAX], normal[FMT_MAX], recycled[FMT_MAX];
    uint64_t v = answer_u64(limit, "limit");

    if (!limit)
        return;
    count_of(limit, v ? "limit" : "default", now, sizeof(now));
    count_of(limit, "recycled", recycled, sizeof(recycled));
    table_field(stdout, "page limit", "%s, %s (%s%s%s), raised %llu times%s%s", answer_str(limit, "mode"), now,
                v ? "KVM chose " : "as KVM chose", v ? count_of(limit, "default", normal, sizeof(normal)) : "", "",
                (unsigned long long)answer_u64(limit, "changes"),
                json_object_object_get_ex(limit, "recycled", NULL) ? "; shadow pages recycled: " : "",
                json_object_object_get_ex(limit, "recycled", NULL) ? recycled : "");
}

int ctl_cmd_mmu(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *o = NULL;
    int r = ctl_connect(ctl, &c);

    if (r == CTL_DONE)
        r = ctl_ask(ctl, c, "query-mmu", NULL, &o);
    if (r)
        return r;
    if (ctl->output == CTL_JSON) {
        ctl_print_json(o);
        return CTL_DONE;
    }
    print_tracking(o);
    print_guest(o);
    print_tables(o);
    print_rmap(o);
    print_cost(o);
    print_page_limit(o);
    return CTL_DONE;
}

/* -- mmu set, mmu verify ------------------------------------------------------ */

static void print_settings(const struct ctl *ctl, const json_t *o)
{
    char memory[FMT_MAX], every[FMT_MAX] = "as it needs";
    uint64_t interval = answer_u64(o, "sync-interval-us");
    bool floods = true;

    if (interval)
        time_text(interval, every, sizeof(every));
    json_get_bool(o, "floods", &floods);
    table_field(stdout, "tracking", "%s", answer_str(o, "tracking"));
    table_field(stdout, "interval", "%s", every);
    table_field(stdout, "CPU budget", "%llu %%", (unsigned long long)answer_u64(o, "cpu-budget"));
    table_field(stdout, "memory", "at most %s", size_of(o, "max-memory", memory, sizeof(memory)));
    table_field(stdout, "floods", "%s", floods ? "let go of" : "followed");
    print_page_limit(o);
}

int ctl_cmd_mmu_set(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *request = NULL, *answer = NULL;
    char command[] = "mmu-set", error[200];
    char *words[16] = {command};
    json_t *arguments = NULL;
    int r;

    if (ctl->arg_count == 0 || ctl->arg_count >= (int)ARRAY_SIZE(words))
        return ctl_usage(ctl, "what to set? KEY=VALUE, as in tracking=live");
    memcpy(words + 1, ctl->args, (size_t)ctl->arg_count * sizeof(*words));
    if (qmp_words_request(words, ctl->arg_count + 1, &request, error, sizeof(error)) < 0)
        return ctl_usage(ctl, "%s", error);
    json_get_obj(request, "arguments", &arguments);
    r = ctl_connect(ctl, &c);
    if (r == CTL_DONE)
        r = ctl_ask(ctl, c, "mmu-set", json_object_get(arguments), &answer);
    if (r)
        return r;
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    else
        print_settings(ctl, answer);
    return CTL_DONE;
}

int ctl_cmd_mmu_verify(struct ctl *ctl)
{
    static const char *const counts[] = {"missing", "extra", "mismatched", "broken-links"};
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *o = NULL;
    bool same = true;
    int r = ctl_connect(ctl, &c);

    if (r == CTL_DONE)
        r = ctl_ask(ctl, c, "mmu-verify", NULL, &o);
    if (r)
        return r;
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        uint64_t n;

        same &= json_get_u64(o, counts[i], &n) == 0 && n == 0;
    }
    if (ctl->output == CTL_JSON) {
        ctl_print_json(o);
        return same ? CTL_DONE : CTL_FAILED;
    }
    printf("%s: %s: %llu address spaces, %llu tables: %llu entries missing, %llu extra, %llu mismatched, %llu broken links\n",
           ctl->vm, same ? "the same" : "DIFFERENT", (unsigned long long)answer_u64(o, "roots"),
           (unsigned long long)answer_u64(o, "tables"), (unsigned long long)answer_u64(o, "missing"),
           (unsigned long long)answer_u64(o, "extra"), (unsigned long long)answer_u64(o, "mismatched"),
           (unsigned long long)answer_u64(o, "broken-links"));
    return same ? CTL_DONE : CTL_FAILED;
}

/* -- mmu spaces --------------------------------------------------------------- */

static void process_cells(struct table *t, const json_t *space)
{
    const json_t *process = answer_obj(space, "process");
    uint64_t pid = 0;
    bool named = json_get_u64(process, "pid", &pid) == 0;

    table_cell_number(t, named, pid);
    table_cell(t, "%s", process ? answer_str(process, "comm") : "");
}

static void print_spaces(const json_t *answer)
{
    _cleanup_table_ struct table *t = table_new(9, "rlllrrrrr");
    static const char *const headers[] = {"PID", "PROCESS", "ROOT", "KIND", "LEVELS", "MAPPED", "TABLES", "DIRTY", "SEEN"};
    uint64_t total = answer_u64(answer, "total");
    json_t *list;
    size_t n;

    if (json_get_array(answer, "spaces", &list) < 0)
        return;
    n = json_object_array_length(list);
    for (size_t i = 0; i < ARRAY_SIZE(headers); i++)
        table_cell(t, "%s", headers[i]);
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_object_array_get_idx(list, i);
        char size[FMT_MAX], tables[FMT_MAX], dirty[FMT_MAX], seen[FMT_MAX];

        process_cells(t, s);
        table_cell(t, "0x%09llx", (unsigned long long)answer_u64(s, "root"));
        table_cell(t, "%s", answer_str(s, "kind"));
        table_cell(t, "%llu", (unsigned long long)answer_u64(s, "levels"));
        table_cell(t, "%s", size_format(answer_u64(s, "pages") * 4096, size, sizeof(size)));
        table_cell(t, "%s", count_of(s, "tables", tables, sizeof(tables)));
        table_cell(t, "%s", answer_u64(s, "dirty") ? count_of(s, "dirty", dirty, sizeof(dirty)) : "");
        table_cell(t, "%s ago", time_text(answer_u64(s, "seen-us"), seen, sizeof(seen)));
    }
    table_print(t, stdout);
    if (total > n)
        ctl_note("%zu of %llu address spaces; --limit shows more", n, (unsigned long long)total);
}

int ctl_cmd_mmu_spaces(struct ctl *ctl)
{
    static const char *const orders[] = {"pages", "tables", "dirty", "seen", "root"};
    _cleanup_client_ struct client *c = NULL;
    _cleanup_names_ struct names *names = NULL;
    _cleanup_json_ json_t *answer = NULL;
    json_t *arguments, *list;
    const char *sort = ctl_opt(ctl, "sort");
    uint64_t limit = 64;
    int r = ctl_opt_number(ctl, "limit", 1, 4096, &limit);
    bool known = !sort;

    for (size_t i = 0; i < ARRAY_SIZE(orders) && !known; i++)
        known = strcmp(sort, orders[i]) == 0;
    if (r == CTL_DONE && !known)
        r = ctl_usage(ctl, "--sort %s: must be pages, tables, dirty, seen or root", sort);
    if (r == CTL_DONE)
        r = ctl_connect(ctl, &c);
    if (r == CTL_DONE)
        r = names_open(ctl, c, &names);
    if (r == CTL_DONE)
        r = names_look(names);
    if (r)
        return r;
    arguments = json_object_new_object();
    json_add_u64(arguments, "limit", limit);
    if (sort)
        json_add_str(arguments, "sort", sort);
    r = ctl_ask(ctl, c, "query-mmu-spaces", arguments, &answer);
    if (r == CTL_DONE)
        r = names_look(names);
    if (r)
        return r;
    if (json_get_array(answer, "spaces", &list) == 0)
        names_annotate_all(names, list);
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    else
        print_spaces(answer);
    if (ctl_opt(ctl, "verbose"))
        names_explain(names);
    return CTL_DONE;
}
