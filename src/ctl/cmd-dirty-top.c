/*
 * vmctl dirty top: which address spaces of the guest write memory, as top shows what uses the CPU. A consumer of the dirty
 * log of its own, like dirty watch: nobody else's snapshots change, every epoch is acknowledged, and it ends with the command.
 */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "ctl/ctl.h"
#include "ctl/dirty-client.h"
#include "ctl/format.h"
#include "ctl/map.h"
#include "ctl/names.h"
#include "ctl/table.h"
#include "ctl/watch.h"

#define ROWS_DEFAULT 20
/* The title, the totals, an empty line, the table's header, and room for what -v says. */
#define FRAME_LINES 5u
#define LINE_SPACES 3
#define OLD_SECONDS 2.0
#define KPTI_PAIR UINT64_C(0x1fff)

/* What is drawn as one row: an address space, its KPTI half included. */
struct row {
    const json_t *space; /* the one with the most pages */
    bool kernel;
    uint64_t root, pages;
};

struct top_view {
    struct ctl *ctl;
    struct client *client;
    struct names *names;
    char consumer[32];
    bool once, verbose, sampled;
    uint64_t lines;   /* at most so many address spaces; 0: as many as there is room for */
    uint64_t last_ns;
    double seconds;   /* of the last interval */
    uint64_t pages, user, kernel, unmapped;
    bool lost, incomplete;
    uint64_t age_us;  /* how long before the snapshot page tables were looked at */
    json_t *answer;   /* the last one, with names */
    const json_t *spaces; /* in it */
    struct row *rows;
    size_t row_count;
};

/* -- values ------------------------------------------------------------------- */

static bool same_row(const struct row *a, const struct row *b)
{
    return a->kernel == b->kernel && a->root == b->root;
}

static int by_pages(const void *a, const void *b)
{
    const struct row *x = a, *y = b;

    return x->pages != y->pages ? (x->pages < y->pages) - (x->pages > y->pages) : (x->root > y->root) - (x->root < y->root);
}

static int by_root(const void *a, const void *b)
{
    const struct row *x = a, *y = b;

    if (x->kernel != y->kernel)
        return x->kernel - y->kernel;
    return x->root != y->root ? (x->root > y->root) - (x->root < y->root) : by_pages(a, b);
}

/* Under KPTI a process has two roots, side by side, that share its memory. */
static void read_row(const json_t *space, struct row *ret)
{
    const char *kind = "?";

    *ret = (struct row){.space = space};
    json_get_str(space, "kind", &kind);
    json_get_u64(space, "root", &ret->root);
    json_get_u64(space, "pages", &ret->pages);
    ret->kernel = strcmp(kind, "kernel") == 0;
    if (strcmp(kind, "kpti") == 0)
        ret->root &= ~KPTI_PAIR;
}

static int make_rows(struct top_view *v)
{
    size_t n = json_object_array_length(v->spaces), kept = 0;

    free(v->rows);
    v->row_count = 0;
    v->rows = calloc(n ? n : 1, sizeof(*v->rows));
    if (!v->rows) {
        ctl_error("out of memory");
        return CTL_FAILED;
    }
    for (size_t i = 0; i < n; i++)
        read_row(json_object_array_get_idx(v->spaces, i), &v->rows[i]);
    qsort(v->rows, n, sizeof(*v->rows), by_root);
    for (size_t i = 0; i < n; i++) {
        if (kept > 0 && same_row(&v->rows[kept - 1], &v->rows[i]))
            v->rows[kept - 1].pages += v->rows[i].pages;
        else
            v->rows[kept++] = v->rows[i];
    }
    qsort(v->rows, kept, sizeof(*v->rows), by_pages);
    v->row_count = kept;
    return CTL_DONE;
}

/* Take the answer over: totals, names, rows. */
static int take_answer(struct top_view *v, json_t *answer)
{
    json_t *attribution, *spaces;

    json_object_put(v->answer);
    v->answer = answer;
    if (json_get_obj(answer, "attribution", &attribution) < 0 || json_get_array(attribution, "spaces", &spaces) < 0) {
        ctl_error("%s: the snapshot does not say who wrote the pages", v->ctl->vm);
        return CTL_FAILED;
    }
    v->user = v->kernel = v->unmapped = 0;
    json_get_u64(attribution, "user", &v->user);
    json_get_u64(attribution, "kernel", &v->kernel);
    json_get_u64(attribution, "unmapped", &v->unmapped);
    v->age_us = 0;
    json_get_u64(attribution, "age-us", &v->age_us);
    v->incomplete = false;
    json_get_bool(attribution, "incomplete", &v->incomplete);
    names_annotate_all(v->names, spaces);
    json_object_object_del(answer, "seconds");
    json_add_double(answer, "seconds", v->seconds);
    if (names_why(v->names)[0] && !json_object_object_get_ex(answer, "names-missing", NULL))
        json_add_str(answer, "names-missing", names_why(v->names));
    v->spaces = spaces;
    return make_rows(v);
}

static int sample(void *opaque)
{
    struct top_view *v = opaque;
    _cleanup_json_ json_t *answer = NULL;
    struct dirty_snapshot s;
    uint64_t now;
    int r = dirty_snapshot(v->ctl, v->client, v->consumer, "count", DIRTY_ATTRIBUTE, &s, &answer, NULL);

    if (r)
        return r;
    now = clock_ns();
    v->seconds = (double)(now - v->last_ns) / 1e9;
    v->last_ns = now;
    v->pages = s.pages;
    v->lost |= s.lost;
    r = dirty_ack(v->ctl, v->client, v->consumer, s.epoch, NULL);
    /* The look before was at the beginning of the interval: who is there at both is who wrote. */
    if (r == CTL_DONE)
        r = names_look(v->names);
    if (r == CTL_DONE)
        r = take_answer(v, take_ptr(answer));
    v->sampled = r == CTL_DONE;
    return r;
}

/* -- pictures ----------------------------------------------------------------- */

static double per_second(const struct top_view *v, uint64_t pages)
{
    return v->seconds > 0 ? (double)pages / v->seconds : 0;
}

static double share_of(const struct top_view *v, uint64_t pages)
{
    return v->pages ? (double)pages / (double)v->pages : 0;
}

static const char *rate_text(const struct top_view *v, uint64_t pages, char *buf, size_t len)
{
    return fmt_rate(per_second(v, pages) * (double)MAP_PAGE_SIZE, buf, len);
}

/* The process of an address space: true with its pid and name, or the kernel's; false: only the root is known. */
static bool row_process(const struct row *row, uint64_t *ret_pid, const char **ret_comm)
{
    json_t *process;

    return json_get_obj(row->space, "process", &process) == 0 && json_get_u64(process, "pid", ret_pid) == 0 &&
           json_get_str(process, "comm", ret_comm) == 0;
}

/* Its longest runs of dirty pages: "0x7f0012345000+512, 0x55d0c0000000+3". */
static const char *hottest_text(const struct row *row, char *buf, size_t len)
{
    size_t at = 0;
    json_t *list;

    buf[0] = '\0';
    if (json_get_array(row->space, "ranges", &list) < 0)
        return buf;
    for (size_t i = 0; i < json_object_array_length(list) && i < 2 && at < len; i++) {
        const json_t *range = json_object_array_get_idx(list, i);
        uint64_t gva, pages;

        if (json_get_u64(range, "gva", &gva) == 0 && json_get_u64(range, "pages", &pages) == 0)
            at += (size_t)snprintf(buf + at, len - at, "%s0x%llx+%llu", at ? ", " : "", (unsigned long long)gva,
                                   (unsigned long long)pages);
    }
    return buf;
}

static void draw_row(const struct top_view *v, struct table *t, const struct row *row)
{
    char count[FMT_MAX], rate[FMT_MAX], share[FMT_MAX], hot[100], root[24] = "";
    const char *comm = row->kernel ? "(kernel)" : "";
    uint64_t pid = 0;
    bool named = row_process(row, &pid, &comm);

    if (!row->kernel)
        snprintf(root, sizeof(root), "0x%09llx", (unsigned long long)row->root);
    table_cell_number(t, named, pid);
    table_cell(t, "%s", comm);
    table_cell(t, "%s", root);
    table_cell(t, "%s", fmt_count((uint64_t)(per_second(v, row->pages) + 0.5), true, count, sizeof(count)));
    table_cell(t, "%s", rate_text(v, row->pages, rate, sizeof(rate)));
    table_cell(t, "%s", fmt_share(share_of(v, row->pages), share, sizeof(share)));
    table_cell(t, "%s", hottest_text(row, hot, sizeof(hot)));
}

static void draw_totals(const struct top_view *v, FILE *out)
{
    char count[FMT_MAX], rate[FMT_MAX], a[FMT_MAX], b[FMT_MAX], c[FMT_MAX];
    /* Processes that came since then cannot have pages. */
    bool old = (double)v->age_us / 1e6 > MAX(v->seconds, OLD_SECONDS);

    fprintf(out, "%s pages in %.1f s, %s: processes %s, kernel %s, unmapped %s%s%s",
            fmt_count(v->pages, true, count, sizeof(count)), v->seconds, rate_text(v, v->pages, rate, sizeof(rate)),
            fmt_share(share_of(v, v->user), a, sizeof(a)), fmt_share(share_of(v, v->kernel), b, sizeof(b)),
            fmt_share(share_of(v, v->unmapped), c, sizeof(c)), v->lost ? "; pages may be missing" : "",
            v->incomplete ? "; some page tables are not known" : "");
    if (old)
        fprintf(out, "; page tables are those of %s ago", fmt_duration((double)v->age_us / 1e6, a, sizeof(a)));
    fputc('\n', out);
}

static void draw_table(const struct top_view *v, size_t lines, FILE *out)
{
    static const char *const headers[] = {"PID", "PROCESS", "ROOT", "PAGES/S", "RATE", "SHARE", "HOTTEST"};
    _cleanup_table_ struct table *t = table_new(7, "rllrrrl");

    for (size_t i = 0; i < ARRAY_SIZE(headers); i++)
        table_cell(t, "%s", headers[i]);
    for (size_t i = 0; i < v->row_count && i < lines; i++)
        draw_row(v, t, &v->rows[i]);
    table_print(t, out);
}

static void draw_picture(void *opaque, const struct watch *w, FILE *out)
{
    struct top_view *v = opaque;
    size_t room = w->in_place ? w->rows - MIN(w->rows, FRAME_LINES) : ROWS_DEFAULT;
    const char *bold = w->caps.colour ? "\033[1m" : "", *plain = w->caps.colour ? "\033[0m" : "";

    if (!v->sampled) {
        fprintf(out, "%s%s%s  measuring for %g s, q ends\n", bold, v->ctl->vm, plain, w->interval_ms / 1e3);
        return;
    }
    if (w->in_place)
        fprintf(out, "%s%s%s  every %g s, q ends\n", bold, v->ctl->vm, plain, w->interval_ms / 1e3);
    draw_totals(v, out);
    fputc('\n', out);
    if (v->row_count == 0)
        fprintf(out, "nobody wrote anything\n");
    else
        draw_table(v, v->lines ? v->lines : room, out);
    if (w->in_place && v->verbose && names_why(v->names)[0]) {
        char safe[512];

        fprintf(out, "%s\n", fmt_safe(names_why(v->names), safe, sizeof(safe)));
    }
}

/* One line for a log: the hottest few. */
static void draw_line(void *opaque, const struct watch *w, FILE *out)
{
    struct top_view *v = opaque;
    char clock[16], rate[FMT_MAX], share[FMT_MAX], safe[80];
    time_t now = time(NULL);
    struct tm tm;

    strftime(clock, sizeof(clock), "%H:%M:%S", localtime_r(&now, &tm));
    fprintf(out, "%s  %8llu pages  %10s", clock, (unsigned long long)v->pages, rate_text(v, v->pages, rate, sizeof(rate)));
    for (size_t i = 0; i < v->row_count && i < (v->lines ? v->lines : LINE_SPACES); i++) {
        const struct row *row = &v->rows[i];
        const char *comm = "";
        uint64_t pid = 0;

        fmt_share(share_of(v, row->pages), share, sizeof(share));
        if (row->kernel)
            fprintf(out, "  kernel %s", share);
        else if (row_process(row, &pid, &comm))
            fprintf(out, "  %s[%llu] %s", fmt_safe(comm, safe, sizeof(safe)), (unsigned long long)pid, share);
        else
            fprintf(out, "  root 0x%llx %s", (unsigned long long)row->root, share);
    }
    fprintf(out, "%s\n", v->lost ? "  pages may be missing" : "");
}

static void draw_json(void *opaque, const struct watch *w, FILE *out)
{
    struct top_view *v = opaque;
    _cleanup_free_ char *text = json_to_ascii(v->answer, NULL);

    fprintf(out, "%s\n", text ? text : "null");
}

/* -- the command -------------------------------------------------------------- */

static int watch(struct top_view *v, int interval_ms, uint64_t count)
{
    struct watch w;

    watch_init(&w, v->ctl, v->client);
    w.interval_ms = interval_ms;
    w.count = v->once ? 1 : count;
    w.in_place = w.in_place && !v->once;
    w.sample = sample;
    w.draw = v->ctl->output == CTL_JSON ? draw_json : w.in_place || v->once ? draw_picture : draw_line;
    w.opaque = v;
    v->last_ns = clock_ns();
    return watch_run(&w);
}

/* From the start of the consumer to its end, whatever happens in between. */
static int run(struct top_view *v, int interval_ms, uint64_t count)
{
    struct failure f = {0};
    int r = dirty_start(v->ctl, v->client, v->consumer, false, NULL, NULL), stopped;

    if (r)
        return r;
    r = names_look(v->names);
    if (r == CTL_DONE)
        r = watch(v, interval_ms, count);
    /* A daemon that is gone has no consumer either. */
    stopped = client_call(v->client, "dirty-log-stop", dirty_arguments(v->consumer), v->ctl->reply_timeout_ms, NULL, NULL, &f);
    if (r == CTL_DONE && v->verbose)
        names_explain(v->names);
    return r == CTL_DONE && stopped < 0 ? ctl_fail(v->ctl, &f) : r;
}

int ctl_cmd_dirty_top(struct ctl *ctl)
{
    struct top_view v = {.ctl = ctl, .once = ctl_opt(ctl, "once") != NULL, .verbose = ctl_opt(ctl, "verbose") != NULL};
    int interval_ms = 1000, r;
    uint64_t count = 0;

    r = ctl_opt_seconds(ctl, "interval", 50, INT_MAX / 2, &interval_ms);
    if (r == CTL_DONE)
        r = ctl_opt_number(ctl, "count", 1, UINT32_MAX, &count);
    if (r == CTL_DONE)
        r = ctl_opt_number(ctl, "lines", 1, 1024, &v.lines);
    if (r == CTL_DONE && v.once && count)
        r = ctl_usage(ctl, "--once and --count exclude each other");
    if (r == CTL_DONE)
        r = ctl_connect(ctl, &v.client);
    if (r)
        return r;
    snprintf(v.consumer, sizeof(v.consumer), "vmctl-top-%d", (int)getpid());
    r = names_open(ctl, v.client, &v.names);
    /* Catching signals comes first: from the start on there is something to stop. */
    if (r == CTL_DONE)
        r = term_catch_signals() < 0 ? CTL_FAILED : run(&v, interval_ms, count);
    names_close(v.names);
    free(v.rows);
    json_object_put(v.answer);
    client_close(v.client);
    return r;
}
