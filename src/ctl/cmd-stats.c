/* vmctl stats: what query-stats gives, as a table, or as rates that follow the VM. */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "ctl/ctl.h"
#include "ctl/format.h"
#include "ctl/stats.h"
#include "ctl/table.h"
#include "ctl/term.h"
#include "ctl/watch.h"

#define BAR_WIDTH 40

struct stats_view {
    struct ctl *ctl;
    struct client *client;
    bool group; /* 1,234,567: for a person */
    json_t *schemas;
    struct stats_set now, before;
    uint64_t now_ns, before_ns;
};

static json_t *target(const char *name)
{
    json_t *o = json_object_new_object();

    json_add_str(o, "target", name);
    return o;
}

/* Ask for both targets. CTL_DONE with *ret_vm and *ret_vcpus the caller's. */
static int ask(struct stats_view *v, json_t **ret_vm, json_t **ret_vcpus)
{
    _cleanup_json_ json_t *vm = NULL, *vcpus = NULL;
    int r = ctl_ask(v->ctl, v->client, "query-stats", target("vm"), &vm);

    if (r == CTL_DONE)
        r = ctl_ask(v->ctl, v->client, "query-stats", target("vcpu"), &vcpus);
    if (r)
        return r;
    stats_filter(vm, v->ctl->args, v->ctl->arg_count);
    stats_filter(vcpus, v->ctl->args, v->ctl->arg_count);
    *ret_vm = take_ptr(vm);
    *ret_vcpus = take_ptr(vcpus);
    return CTL_DONE;
}

static int get(struct stats_view *v)
{
    _cleanup_json_ json_t *vm = NULL, *vcpus = NULL;
    int r = ask(v, &vm, &vcpus);

    if (r)
        return r;
    stats_clear(&v->before);
    v->before = v->now;
    v->before_ns = v->now_ns;
    v->now = (struct stats_set){0};
    v->now_ns = clock_ns();
    if (stats_read(&v->now, vm, vcpus, v->schemas) == 0)
        return CTL_DONE;
    ctl_error("out of memory");
    return CTL_FAILED;
}

/* -- once -- */

static const char *row_name(const struct stats_row *r, char *buf, size_t len)
{
    bool kvm = strcmp(r->provider, "kvm") == 0;

    snprintf(buf, len, "%s%s%s", kvm ? "" : r->provider, kvm ? "" : "/", r->name);
    return buf;
}

static void value_cell(const struct stats_view *v, struct table *t, uint64_t value)
{
    char text[FMT_MAX];

    table_cell(t, "%s", fmt_count(value, v->group, text, sizeof(text)));
}

/* Rows of the VM (or of its vCPUs) under a header of their own: name, total, each vCPU, unit. */
static struct table *make_table(const struct stats_view *v, bool of_vm, bool each, bool zeros)
{
    unsigned int vcpus = of_vm || !each ? 0 : MIN(v->now.vcpus, TABLE_MAX_COLUMNS - 3);
    char align[TABLE_MAX_COLUMNS + 1] = "l";
    struct table *t;

    memset(align + 1, 'r', vcpus + 1);
    align[vcpus + 2] = 'l';
    t = table_new(3 + vcpus, align);
    table_cell(t, "%s", of_vm ? "WHOLE VM" : v->now.vcpus == 1 ? "1 VCPU" : "ALL VCPUS");
    table_cell(t, "%s", of_vm ? "VALUE" : "TOTAL");
    for (unsigned int c = 0; c < vcpus; c++)
        table_cell(t, "VCPU%u", c);
    table_cell(t, "UNIT");
    for (size_t i = 0; i < v->now.count; i++) {
        const struct stats_row *r = &v->now.rows[i];
        char name[160];

        if (r->of_vm != of_vm || (r->total == 0 && !zeros))
            continue;
        table_cell(t, "%s", row_name(r, name, sizeof(name)));
        value_cell(v, t, r->total);
        for (unsigned int c = 0; c < vcpus; c++)
            value_cell(v, t, r->per_vcpu[c]);
        table_cell(t, "%s", r->histogram ? "samples" : r->unit);
    }
    return t;
}

static void print_bucket(const struct stats_view *v, const struct stats_row *r, size_t i, uint64_t most)
{
    uint64_t low = r->linear ? i * MAX(r->bucket_size, UINT64_C(1)) : i ? UINT64_C(1) << MIN(i - 1, (size_t)63) : 0;
    uint64_t high = r->linear ? (i + 1) * MAX(r->bucket_size, UINT64_C(1)) : UINT64_C(1) << MIN(i, (size_t)63);
    char from[FMT_MAX], to[FMT_MAX] = "", count[FMT_MAX];
    char bar[BAR_WIDTH + 1];
    size_t len = most ? (size_t)((double)r->buckets[i] / (double)most * BAR_WIDTH + 0.5) : 0;

    if (i + 1 < r->bucket_count)
        fmt_count(high, v->group, to, sizeof(to));
    memset(bar, '#', len);
    bar[len] = '\0';
    printf("  %14s .. %-14s %12s%s%s\n", fmt_count(low, v->group, from, sizeof(from)), to,
           fmt_count(r->buckets[i], v->group, count, sizeof(count)), len ? "  " : "", bar);
}

/* The distribution of a histogram: its buckets, from the first to the last that is not empty. KVM's rule for their
 * bounds: bucket n of a logarithmic one ends below 2^n, that of a linear one below (n + 1) * size; the last has no end. */
static void print_histogram(const struct stats_view *v, const struct stats_row *r)
{
    size_t first = r->bucket_count, last = 0;
    uint64_t most = 0;

    for (size_t i = 0; i < r->bucket_count; i++) {
        if (!r->buckets[i])
            continue;
        first = MIN(first, i);
        last = i;
        most = MAX(most, r->buckets[i]);
    }
    printf("\n%s%s%s\n", r->name, *r->unit ? ", " : "", r->unit);
    for (size_t i = first; i <= last && i < r->bucket_count; i++)
        print_bucket(v, r, i, most);
}

/* A name that matches nothing is a mistake worth telling. */
static int check_names(const struct stats_view *v)
{
    for (int p = 0; p < v->ctl->arg_count; p++) {
        bool found = false;

        for (size_t i = 0; i < v->now.count && !found; i++)
            found = stats_wanted(v->now.rows[i].name, v->ctl->args + p, 1);
        if (!found) {
            ctl_error("%s has no statistic '%s' (vmctl stats --all lists them)", v->ctl->vm, v->ctl->args[p]);
            return CTL_FAILED;
        }
    }
    return CTL_DONE;
}

static int print_once(struct stats_view *v)
{
    bool zeros = ctl_opt(v->ctl, "all") || v->ctl->arg_count > 0;
    _cleanup_table_ struct table *vm = make_table(v, true, false, zeros);
    _cleanup_table_ struct table *vcpus = make_table(v, false, v->now.vcpus > 1, zeros);
    unsigned int columns, rows;
    int r = check_names(v);

    if (r)
        return r;
    term_size(&columns, &rows);
    if (term_stdout_is_tty() && table_width(vcpus) > columns) {
        table_free(vcpus);
        vcpus = make_table(v, false, false, zeros);
    }
    table_print(vm, stdout);
    if (table_width(vm) && table_width(vcpus))
        putchar('\n');
    table_print(vcpus, stdout);
    for (size_t i = 0; i < v->now.count && v->ctl->arg_count > 0; i++)
        if (v->now.rows[i].histogram && v->now.rows[i].total > 0)
            print_histogram(v, &v->now.rows[i]);
    if (v->now.count == 0)
        ctl_note("%s: KVM gives no statistics here", v->ctl->vm);
    return CTL_DONE;
}

static int print_json(struct stats_view *v)
{
    _cleanup_json_ json_t *o = json_object_new_object();
    json_t *vm = NULL, *vcpus = NULL;
    int r = ask(v, &vm, &vcpus);

    if (r)
        return r;
    json_add(o, "vm", vm);
    json_add(o, "vcpu", vcpus);
    ctl_print_json(o);
    return CTL_DONE;
}

/* -- again and again -- */

struct rate {
    const struct stats_row *row;
    const struct stats_row *before;
    double per_second;
};

static int by_rate(const void *a, const void *b)
{
    const struct rate *x = a, *y = b;

    if (x->per_second != y->per_second)
        return x->per_second < y->per_second ? 1 : -1;
    return strcmp(x->row->name, y->row->name);
}

static double per_second(uint64_t now, uint64_t before, double seconds)
{
    return now > before ? (double)(now - before) / seconds : 0;
}

/* What has changed since the last time, the fastest first; all with --all or names. */
static size_t find_rates(const struct stats_view *v, struct rate *rates)
{
    double seconds = (double)(v->now_ns - v->before_ns) / 1e9;
    bool zeros = ctl_opt(v->ctl, "all") || v->ctl->arg_count > 0;
    size_t n = 0;

    for (size_t i = 0; i < v->now.count; i++) {
        const struct stats_row *row = &v->now.rows[i];
        const struct stats_row *before = stats_find(&v->before, row->of_vm, row->provider, row->name);
        double rate;

        if (!row->cumulative || !before)
            continue;
        rate = per_second(row->total, before->total, seconds);
        if (rate > 0 || zeros)
            rates[n++] = (struct rate){row, before, rate};
    }
    if (n > 0)
        qsort(rates, n, sizeof(*rates), by_rate);
    return n;
}

static struct table *make_rates(const struct stats_view *v, const struct rate *rates, size_t count, bool each)
{
    unsigned int vcpus = each && v->now.vcpus > 1 ? MIN(v->now.vcpus, TABLE_MAX_COLUMNS - 2) : 0;
    double seconds = (double)(v->now_ns - v->before_ns) / 1e9;
    struct table *t = table_new(2 + vcpus, "lr");

    table_cell(t, "NAME");
    table_cell(t, "PER SECOND");
    for (unsigned int c = 0; c < vcpus; c++)
        table_cell(t, "VCPU%u", c);
    for (size_t i = 0; i < count; i++) {
        const struct stats_row *r = rates[i].row;
        char name[160];

        table_cell(t, "%s", row_name(r, name, sizeof(name)));
        value_cell(v, t, (uint64_t)(rates[i].per_second + 0.5));
        for (unsigned int c = 0; c < vcpus; c++) {
            if (r->of_vm || c >= v->before.vcpus)
                table_cell(t, "%s", "");
            else
                value_cell(v, t, (uint64_t)(per_second(r->per_vcpu[c], rates[i].before->per_vcpu[c], seconds) + 0.5));
        }
    }
    return t;
}

static void draw(void *opaque, const struct watch *w, FILE *out)
{
    struct stats_view *v = opaque;
    _cleanup_free_ struct rate *rates = calloc(MAX(v->now.count, (size_t)1), sizeof(*rates));
    _cleanup_table_ struct table *t = NULL;
    char clock[16];
    time_t now = time(NULL);
    struct tm tm;
    size_t n;

    strftime(clock, sizeof(clock), "%H:%M:%S", localtime_r(&now, &tm));
    fprintf(out, "%s%s  %s  every %g s%s\n", w->in_place ? "\033[1m" : "", v->ctl->vm, clock, w->interval_ms / 1e3,
            w->in_place ? ", q ends" : "");
    n = w->samples > 0 && rates ? find_rates(v, rates) : 0;
    t = make_rates(v, rates, n, true);
    if (w->in_place && table_width(t) > w->columns) {
        table_free(t);
        t = make_rates(v, rates, n, false);
    }
    table_print(t, out);
    if (n == 0)
        fputs(w->samples > 0 ? "nothing counts up\n" : "measuring\n", out);
    if (!w->in_place)
        fputc('\n', out);
}

static void draw_json(void *opaque, const struct watch *w, FILE *out)
{
    /* The sample printed it. */
}

static int sample(void *opaque)
{
    return get(opaque);
}

static int sample_json(void *opaque)
{
    return print_json(opaque);
}

static int follow(struct stats_view *v, int interval_ms, uint64_t count)
{
    struct watch w;
    int r = get(v);

    if (r == CTL_DONE)
        r = check_names(v);
    if (r)
        return r;
    watch_init(&w, v->ctl, v->client);
    w.interval_ms = interval_ms;
    w.count = count;
    w.sample = v->ctl->output == CTL_JSON ? sample_json : sample;
    w.draw = v->ctl->output == CTL_JSON ? draw_json : draw;
    w.opaque = v;
    return watch_run(&w);
}

static int show(struct stats_view *v, int interval_ms, uint64_t count)
{
    int r;

    if (v->ctl->output == CTL_JSON && !interval_ms)
        return print_json(v);
    r = ctl_ask_maybe(v->ctl, v->client, "query-stats-schemas", NULL, &v->schemas);
    if (r)
        return r;
    if (interval_ms)
        return follow(v, interval_ms, count);
    r = get(v);
    return r ? r : print_once(v);
}

int ctl_cmd_stats(struct ctl *ctl)
{
    struct stats_view v = {.ctl = ctl, .group = term_stdout_is_tty()};
    int interval_ms = 0, r;
    uint64_t count = 0;

    r = ctl_opt_seconds(ctl, "watch", 50, INT_MAX / 2, &interval_ms);
    if (r == CTL_DONE)
        r = ctl_opt_number(ctl, "count", 1, UINT32_MAX, &count);
    if (r == CTL_DONE && count && !interval_ms)
        r = ctl_usage(ctl, "--count goes with --watch");
    if (r == CTL_DONE)
        r = ctl_connect(ctl, &v.client);
    if (r == CTL_DONE)
        r = show(&v, interval_ms, count);
    stats_clear(&v.now);
    stats_clear(&v.before);
    json_object_put(v.schemas);
    client_close(v.client);
    return r;
}
