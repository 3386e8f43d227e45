/*
 * vmctl dirty watch: a live map of what the guest writes. It is a consumer of the dirty log of its own, so nobody else's
 * snapshots change; every epoch is acknowledged once it is on the screen, and the consumer ends with the watch.
 */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "ctl/ctl.h"
#include "ctl/dirty-client.h"
#include "ctl/format.h"
#include "ctl/map-draw.h"
#include "ctl/map.h"
#include "ctl/watch.h"

#define HOTTEST_MAX 3
/* Lines of a picture beside the map: the title, the legend, two of totals. */
#define FRAME_LINES 4
#define ONCE_ROWS 20

struct dirty_view {
    struct ctl *ctl;
    struct client *client;
    char consumer[32];
    bool once;
    struct map map; /* pages == 0 before the first snapshot */
    uint64_t *bitmap;
    uint64_t start_ns, last_ns;
    double seconds; /* of the last interval */
    bool lost;
    json_t *answer; /* the last one, for JSON output */
};

/* -- values -- */

static int first_snapshot(struct dirty_view *v, const json_t *answer)
{
    json_t *bitmap = NULL;
    int r = json_get_obj(answer, "bitmap", &bitmap);

    if (r == 0)
        r = map_init(&v->map, bitmap);
    if (r == 0) {
        v->bitmap = calloc(map_words(&v->map), sizeof(*v->bitmap));
        r = v->bitmap ? 0 : -ENOMEM;
    }
    if (r == 0)
        return CTL_DONE;
    if (r == -ENOMEM)
        ctl_error("out of memory");
    else
        ctl_error("%s: the snapshot does not tell the layout of guest memory", v->ctl->vm);
    return CTL_FAILED;
}

static int sample(void *opaque)
{
    struct dirty_view *v = opaque;
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_close_ int fd = -1;
    struct dirty_snapshot s;
    uint64_t now;
    int r = dirty_snapshot(v->ctl, v->client, v->consumer, "bitmap", 0, &s, &answer, &fd);

    if (r)
        return r;
    now = clock_ns();
    v->seconds = (double)(now - v->last_ns) / 1e9;
    v->last_ns = now;
    v->lost |= s.lost;
    if (v->map.pages == 0)
        r = first_snapshot(v, answer);
    if (r == CTL_DONE)
        r = dirty_read_bitmap(v->ctl, fd, v->bitmap, map_words(&v->map));
    if (r == CTL_DONE)
        r = dirty_ack(v->ctl, v->client, v->consumer, s.epoch, NULL);
    if (r)
        return r;
    map_add(&v->map, v->bitmap);
    json_object_put(v->answer);
    v->answer = take_ptr(answer);
    return CTL_DONE;
}

/* -- pictures -- */

static double rate_of(const struct dirty_view *v, uint64_t pages)
{
    return v->seconds > 0 ? (double)(pages * MAP_PAGE_SIZE) / v->seconds : 0;
}

static double share_of(const struct dirty_view *v, uint64_t pages)
{
    return (double)pages / (double)v->map.pages;
}

static void draw_totals(const struct dirty_view *v, FILE *out)
{
    char count[FMT_MAX], rate[FMT_MAX], share[FMT_MAX], took[FMT_MAX], total[FMT_MAX], touched[FMT_MAX];

    fprintf(out, "%*s %s pages, %s, %s of memory\n", MAP_LABEL_WIDTH - 1, "now",
            fmt_count(v->map.dirty_pages, true, count, sizeof(count)),
            fmt_rate(rate_of(v, v->map.dirty_pages), rate, sizeof(rate)),
            fmt_share(share_of(v, v->map.dirty_pages), share, sizeof(share)));
    fprintf(out, "%*s %s written in %s, %s of memory touched%s\n", MAP_LABEL_WIDTH - 1, "in all",
            size_format(v->map.total_pages * MAP_PAGE_SIZE, total, sizeof(total)),
            fmt_duration((double)(v->last_ns - v->start_ns) / 1e9, took, sizeof(took)),
            fmt_share(share_of(v, v->map.touched_pages), touched, sizeof(touched)),
            v->lost ? "; pages may be missing" : "");
}

static void format_region(const struct dirty_view *v, const struct map_region *r, char *buf, size_t len)
{
    char rate[FMT_MAX], size[FMT_MAX], share[FMT_MAX];

    snprintf(buf, len, "0x%09llx-0x%09llx  %10s  %s of %s", (unsigned long long)(r->gfn * MAP_PAGE_SIZE),
             (unsigned long long)((r->gfn + r->pages) * MAP_PAGE_SIZE - 1),
             fmt_rate(rate_of(v, r->dirty), rate, sizeof(rate)),
             fmt_share((double)r->dirty / (double)r->pages, share, sizeof(share)),
             size_format(r->pages * MAP_PAGE_SIZE, size, sizeof(size)));
}

static void draw_hottest(const struct dirty_view *v, unsigned int max, FILE *out)
{
    struct map_region hot[HOTTEST_MAX];
    size_t n = map_hottest(&v->map, hot, max);

    for (size_t i = 0; i < n; i++) {
        char text[160];

        format_region(v, &hot[i], text, sizeof(text));
        fprintf(out, "%*s %s\n", MAP_LABEL_WIDTH - 1, i == 0 ? "hottest" : "", text);
    }
}

static void draw_picture(void *opaque, const struct watch *w, FILE *out)
{
    struct dirty_view *v = opaque;
    enum map_style style = map_style(&w->caps);
    unsigned int hottest = w->in_place && w->rows < 20 ? 1 : HOTTEST_MAX;
    unsigned int frame = FRAME_LINES + hottest + 1, lines = w->in_place ? w->rows - MIN(w->rows, frame) : ONCE_ROWS;
    char size[FMT_MAX];

    if (v->map.pages == 0) {
        fprintf(out, "%s%s  measuring for %g s, q ends\n", w->caps.colour ? "\033[1m" : "", v->ctl->vm,
                w->interval_ms / 1e3);
        return;
    }
    if (map_fit(&v->map, w->columns - MIN(w->columns, (unsigned int)MAP_LABEL_WIDTH),
                map_style_rows(style, MAX(lines, 1u))) < 0)
        return;
    fprintf(out, "%s%s  %s  every %g s%s%s\n", w->caps.colour ? "\033[1m" : "", v->ctl->vm,
            size_format(v->map.pages * MAP_PAGE_SIZE, size, sizeof(size)), w->interval_ms / 1e3,
            w->in_place ? ", q ends" : "", w->caps.colour ? "\033[0m" : "");
    map_draw(&v->map, style, w->caps.colour, out);
    map_draw_legend(&v->map, style, w->caps.colour, out);
    draw_totals(v, out);
    draw_hottest(v, hottest, out);
}

/* One line for a log. */
static void draw_line(void *opaque, const struct watch *w, FILE *out)
{
    struct dirty_view *v = opaque;
    char clock[16], rate[FMT_MAX], share[FMT_MAX], text[160];
    struct map_region hot;
    time_t now = time(NULL);
    struct tm tm;

    strftime(clock, sizeof(clock), "%H:%M:%S", localtime_r(&now, &tm));
    fprintf(out, "%s  %8llu pages  %10s  %6s of memory", clock, (unsigned long long)v->map.dirty_pages,
            fmt_rate(rate_of(v, v->map.dirty_pages), rate, sizeof(rate)),
            fmt_share(share_of(v, v->map.dirty_pages), share, sizeof(share)));
    if (map_hottest(&v->map, &hot, 1) > 0) {
        format_region(v, &hot, text, sizeof(text));
        fprintf(out, "  hottest %s", text);
    }
    fprintf(out, "%s\n", v->lost ? "  pages may be missing" : "");
}

static void draw_json(void *opaque, const struct watch *w, FILE *out)
{
    struct dirty_view *v = opaque;
    _cleanup_free_ char *text = json_to_ascii(v->answer, NULL);

    fprintf(out, "%s\n", text ? text : "null");
}

/* -- the command -- */

/* What is left on the ordinary screen once the map is gone. */
static void say_goodbye(const struct dirty_view *v)
{
    char took[FMT_MAX], total[FMT_MAX], touched[FMT_MAX];

    printf("%s: %s written in %s, %s of memory touched\n", v->ctl->vm,
           size_format(v->map.total_pages * MAP_PAGE_SIZE, total, sizeof(total)),
           fmt_duration((double)(v->last_ns - v->start_ns) / 1e9, took, sizeof(took)),
           fmt_share(share_of(v, v->map.touched_pages), touched, sizeof(touched)));
}

static int watch(struct dirty_view *v, int interval_ms, uint64_t count)
{
    struct failure f = {0};
    struct watch w;
    bool in_place;
    int r, stopped;

    watch_init(&w, v->ctl, v->client);
    w.interval_ms = interval_ms;
    w.count = v->once ? 1 : count;
    w.in_place = in_place = w.in_place && !v->once;
    w.sample = sample;
    w.draw = v->ctl->output == CTL_JSON ? draw_json : in_place || v->once ? draw_picture : draw_line;
    w.opaque = v;
    v->start_ns = v->last_ns = clock_ns();
    r = watch_run(&w);
    /* A daemon that is gone has no consumer either. */
    stopped = client_call(v->client, "dirty-log-stop", dirty_arguments(v->consumer), v->ctl->reply_timeout_ms, NULL,
                          NULL, &f);
    if (r == CTL_DONE && in_place && v->map.pages > 0)
        say_goodbye(v);
    return r == CTL_DONE && stopped < 0 ? ctl_fail(v->ctl, &f) : r;
}

int ctl_cmd_dirty_watch(struct ctl *ctl)
{
    struct dirty_view v = {.ctl = ctl, .once = ctl_opt(ctl, "once") != NULL};
    int interval_ms = 1000, r;
    uint64_t count = 0;

    r = ctl_opt_seconds(ctl, "interval", 50, INT_MAX / 2, &interval_ms);
    if (r == CTL_DONE)
        r = ctl_opt_number(ctl, "count", 1, UINT32_MAX, &count);
    if (r == CTL_DONE && v.once && count)
        r = ctl_usage(ctl, "--once and --count exclude each other");
    if (r == CTL_DONE)
        r = ctl_connect(ctl, &v.client);
    if (r)
        return r;
    snprintf(v.consumer, sizeof(v.consumer), "vmctl-watch-%d", (int)getpid());
    /* Catching signals comes first: from the start on there is something to stop. */
    r = term_catch_signals() < 0 ? CTL_FAILED : dirty_start(ctl, v.client, v.consumer, false, NULL, NULL);
    if (r == CTL_DONE)
        r = watch(&v, interval_ms, count);
    map_clear(&v.map);
    free(v.bitmap);
    json_object_put(v.answer);
    client_close(v.client);
    return r;
}
