/* vmctl dirty start, snapshot, ack, stop, show, rate: the dirty log by hand. The live map is in cmd-dirty-watch.c. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/size.h"
#include "ctl/ctl.h"
#include "ctl/dirty-client.h"
#include "ctl/format.h"
#include "ctl/map.h"
#include "ctl/progress.h"
#include "ctl/table.h"
#include "ctl/term.h"

#define DEFAULT_CONSUMER "vmctl"
#define RATE_POLL_MS 50

static const char *consumer(const struct ctl *ctl)
{
    return ctl->arg_count > 0 ? ctl->args[0] : DEFAULT_CONSUMER;
}

static const char *pages_text(uint64_t pages, char *buf, size_t len)
{
    char count[FMT_MAX], size[FMT_MAX];

    snprintf(buf, len, "%s page%s (%s)", fmt_count(pages, term_stdout_is_tty(), count, sizeof(count)),
             pages == 1 ? "" : "s", size_format(pages * MAP_PAGE_SIZE, size, sizeof(size)));
    return buf;
}

int ctl_cmd_dirty_start(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *answer = NULL;
    char text[96];
    uint64_t pages;
    int r = ctl_connect(ctl, &c);

    if (r == CTL_DONE)
        r = dirty_start(ctl, c, consumer(ctl), ctl_opt(ctl, "all") != NULL, &pages, &answer);
    if (r)
        return r;
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    else
        printf("%s: logging for %s, over %s\n", ctl->vm, consumer(ctl), pages_text(pages, text, sizeof(text)));
    return CTL_DONE;
}

int ctl_cmd_dirty_stop(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *answer = NULL;
    int r = ctl_connect(ctl, &c);

    if (r == CTL_DONE)
        r = ctl_ask(ctl, c, "dirty-log-stop", dirty_arguments(consumer(ctl)), &answer);
    if (r)
        return r;
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    else
        printf("%s: no more logging for %s\n", ctl->vm, consumer(ctl));
    return CTL_DONE;
}

/* -- snapshots -- */

static void print_ranges(const json_t *answer)
{
    _cleanup_table_ struct table *t = table_new(4, "llrr");
    json_t *ranges;

    if (json_get_array(answer, "ranges", &ranges) < 0)
        return;
    table_cell(t, "FROM");
    table_cell(t, "TO");
    table_cell(t, "PAGES");
    table_cell(t, "SIZE");
    for (size_t i = 0; i < json_object_array_length(ranges); i++) {
        const json_t *range = json_object_array_get_idx(ranges, i);
        uint64_t gfn, pages;
        char size[FMT_MAX];

        /* A pair: first guest page, number of pages. */
        if (!json_object_is_type(range, json_type_array) || json_object_array_length(range) != 2 ||
            json_to_u64(json_object_array_get_idx(range, 0), &gfn) < 0 ||
            json_to_u64(json_object_array_get_idx(range, 1), &pages) < 0)
            continue;
        table_cell(t, "0x%09llx", (unsigned long long)(gfn * MAP_PAGE_SIZE));
        table_cell(t, "0x%09llx", (unsigned long long)((gfn + pages) * MAP_PAGE_SIZE - 1));
        table_cell(t, "%llu", (unsigned long long)pages);
        table_cell(t, "%s", size_format(pages * MAP_PAGE_SIZE, size, sizeof(size)));
    }
    table_print(t, stdout);
}

/* Copy the bitmap into a file, which is there in whole or not at all. */
static int save_bitmap(const struct ctl *ctl, int bitmap_fd, const char *path)
{
    _cleanup_free_ uint64_t *bitmap = NULL;
    _cleanup_close_ int fd = -1;
    struct stat st;
    int r;

    if (bitmap_fd < 0 || fstat(bitmap_fd, &st) < 0)
        st.st_size = 0;
    bitmap = calloc(1, MAX((size_t)st.st_size, sizeof(*bitmap)));
    if (!bitmap) {
        ctl_error("out of memory");
        return CTL_FAILED;
    }
    r = dirty_read_bitmap(ctl, bitmap_fd, bitmap, (size_t)st.st_size / sizeof(*bitmap));
    if (r)
        return r;
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    r = fd < 0 ? -errno : fd_write_all(fd, bitmap, (size_t)st.st_size);
    if (r == 0)
        return CTL_DONE;
    ctl_error("cannot write %s: %s", path, strerror(-r));
    if (fd >= 0)
        unlink(path);
    return CTL_FAILED;
}

static void print_snapshot(const struct ctl *ctl, const struct dirty_snapshot *s, const json_t *answer)
{
    char text[96];

    if (ctl_opt(ctl, "peek"))
        printf("%s: %s pending for %s\n", ctl->vm, pages_text(s->pages, text, sizeof(text)), consumer(ctl));
    else
        printf("%s: epoch %llu of %s: %s, harvested in %llu us\n", ctl->vm, (unsigned long long)s->epoch,
               consumer(ctl), pages_text(s->pages, text, sizeof(text)), (unsigned long long)s->harvest_us);
    if (s->lost)
        ctl_note("%s: pages may be missing: begin again with vmctl dirty start --all", ctl->vm);
    print_ranges(answer);
}

int ctl_cmd_dirty_snapshot(struct ctl *ctl)
{
    const char *format = ctl_opt(ctl, "format"), *save = ctl_opt(ctl, "save");
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_close_ int fd = -1;
    struct dirty_snapshot s;
    int r;

    if (!format)
        format = save ? "bitmap" : "count";
    if (strcmp(format, "count") != 0 && strcmp(format, "ranges") != 0 && strcmp(format, "bitmap") != 0)
        return ctl_usage(ctl, "--format %s: must be count, ranges or bitmap", format);
    if ((strcmp(format, "bitmap") == 0) != (save != NULL))
        return ctl_usage(ctl, save ? "--save goes with --format bitmap" : "--format bitmap needs --save FILE");
    r = ctl_connect(ctl, &c);
    if (r == CTL_DONE)
        r = dirty_snapshot(ctl, c, consumer(ctl), format, ctl_opt(ctl, "peek") ? DIRTY_PEEK : 0, &s, &answer, &fd);
    if (r == CTL_DONE && save)
        r = save_bitmap(ctl, fd, save);
    if (r)
        return r;
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    else
        print_snapshot(ctl, &s, answer);
    return CTL_DONE;
}

/* -- consumers -- */

/* Ask for all consumers; *ret_list belongs to *ret_answer. */
static int ask_consumers(const struct ctl *ctl, struct client *c, json_t **ret_answer, json_t **ret_list)
{
    int r = ctl_ask(ctl, c, "query-dirty-log", NULL, ret_answer);

    if (r)
        return r;
    if (json_get_array(*ret_answer, "consumers", ret_list) == 0)
        return CTL_DONE;
    ctl_error("%s: the answer to query-dirty-log has no consumers", ctl->vm);
    return CTL_FAILED;
}

/* The newest epoch of the consumer. */
static int newest_epoch(const struct ctl *ctl, struct client *c, uint64_t *ret)
{
    _cleanup_json_ json_t *answer = NULL;
    json_t *list;
    int r = ask_consumers(ctl, c, &answer, &list);

    if (r)
        return r;
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        const json_t *o = json_object_array_get_idx(list, i);
        const char *name;

        if (json_get_str(o, "name", &name) < 0 || strcmp(name, consumer(ctl)) != 0)
            continue;
        if (json_get_u64(o, "epoch", ret) == 0 && *ret > 0)
            return CTL_DONE;
        ctl_error("%s: %s has taken no snapshot yet", ctl->vm, consumer(ctl));
        return CTL_FAILED;
    }
    ctl_error("%s: the dirty log has no consumer %s", ctl->vm, consumer(ctl));
    return CTL_FAILED;
}

int ctl_cmd_dirty_ack(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *answer = NULL;
    uint64_t epoch = 0;
    int r;

    if (ctl->arg_count > 1 && size_parse_u64(ctl->args[1], INT64_MAX, &epoch) < 0)
        return ctl_usage(ctl, "EPOCH %s: not a number", ctl->args[1]);
    r = ctl_connect(ctl, &c);
    if (r == CTL_DONE && ctl->arg_count < 2)
        r = newest_epoch(ctl, c, &epoch);
    if (r == CTL_DONE)
        r = dirty_ack(ctl, c, consumer(ctl), epoch, &answer);
    if (r)
        return r;
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    else
        printf("%s: epoch %llu of %s acknowledged\n", ctl->vm, (unsigned long long)epoch, consumer(ctl));
    return CTL_DONE;
}

static void number_cell(struct table *t, const json_t *o, const char *key)
{
    char text[FMT_MAX];
    uint64_t v;

    if (json_get_u64(o, key, &v) == 0)
        table_cell(t, "%s", fmt_count(v, term_stdout_is_tty(), text, sizeof(text)));
    else
        table_cell(t, "-");
}

static void print_consumers(const struct ctl *ctl, const json_t *list)
{
    static const char *const header[] = {"CONSUMER", "EPOCH", "PENDING", "UNACKNOWLEDGED", "SNAPSHOTS", "PAGES", "LOST"};
    static const char *const keys[] = {"epoch", "pending", "unacknowledged", "snapshots", "pages"};
    _cleanup_table_ struct table *t = table_new(ARRAY_SIZE(header), "lrrrrrl");
    size_t count = json_object_array_length(list);

    if (count == 0) {
        printf("%s: nobody consumes the dirty log, so it is off\n", ctl->vm);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(header); i++)
        table_cell(t, "%s", header[i]);
    for (size_t i = 0; i < count; i++) {
        const json_t *o = json_object_array_get_idx(list, i);
        const char *name = "?";
        bool lost = false;

        json_get_str(o, "name", &name);
        json_get_bool(o, "lost", &lost);
        table_cell(t, "%s", name);
        for (size_t k = 0; k < ARRAY_SIZE(keys); k++)
            number_cell(t, o, keys[k]);
        table_cell(t, "%s", lost ? "pages may be missing" : "");
    }
    table_print(t, stdout);
}

int ctl_cmd_dirty_show(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *answer = NULL;
    json_t *list;
    int r = ctl_connect(ctl, &c);

    if (r == CTL_DONE)
        r = ask_consumers(ctl, c, &answer, &list);
    if (r)
        return r;
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    else
        print_consumers(ctl, list);
    return CTL_DONE;
}

/* -- rate -- */

/* Which way to measure fits the VM: its dirty log is a bitmap or a ring. */
static int start_rate(const struct ctl *ctl, struct client *c, uint64_t seconds)
{
    json_t *arguments = json_object_new_object();
    _cleanup_json_ json_t *log = NULL;
    const char *backend = "bitmap";
    int r = ctl_ask(ctl, c, "query-dirty-log", NULL, &log);

    if (r == CTL_DONE) {
        json_get_str(log, "backend", &backend);
        json_add_u64(arguments, "calc-time", seconds);
        json_add_str(arguments, "mode", strcmp(backend, "ring") == 0 ? "dirty-ring" : "dirty-bitmap");
        return ctl_ask(ctl, c, "calc-dirty-rate", arguments, NULL);
    }
    json_object_put(arguments);
    return r;
}

/* Ask until the measurement is over. *ret is the caller's. */
static int wait_for_rate(const struct ctl *ctl, struct client *c, int time_ms, json_t **ret)
{
    uint64_t start = clock_ns(), end = client_deadline(time_ms + ctl->reply_timeout_ms);

    for (;;) {
        _cleanup_json_ json_t *answer = NULL;
        const char *status = "";
        int r = ctl_ask(ctl, c, "query-dirty-rate", NULL, &answer);

        if (r)
            return r;
        json_get_str(answer, "status", &status);
        if (strcmp(status, "measured") == 0) {
            *ret = take_ptr(answer);
            return CTL_DONE;
        }
        if (strcmp(status, "measuring") != 0) {
            ctl_error("%s: the measurement came to nothing (umbrad's log tells why)", ctl->vm);
            return CTL_FAILED;
        }
        if (clock_ns() >= end) {
            ctl_error("%s: the dirty rate is still not measured after %g s", ctl->vm,
                      (double)(clock_ns() - start) / 1e9);
            return CTL_NO_VM;
        }
        progress("%s: measuring, %.0f of %g s", ctl->vm, (double)(clock_ns() - start) / 1e9, time_ms / 1e3);
        poll(NULL, 0, RATE_POLL_MS);
    }
}

int ctl_cmd_dirty_rate(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *answer = NULL;
    uint64_t seconds = 1, rate;
    char text[FMT_MAX];
    int r = ctl_opt_number(ctl, "time", 1, 60, &seconds);

    if (r == CTL_DONE)
        r = ctl_connect(ctl, &c);
    if (r)
        return r;
    r = start_rate(ctl, c, seconds);
    if (r == CTL_DONE)
        r = wait_for_rate(ctl, c, (int)seconds * 1000, &answer);
    progress_clear();
    if (r)
        return r;
    if (ctl->output == CTL_JSON) {
        ctl_print_json(answer);
    } else if (json_get_u64(answer, "dirty-rate", &rate) == 0) {
        printf("%s: %s of memory written, measured over %llu s\n", ctl->vm,
               fmt_rate((double)(rate * MiB), text, sizeof(text)), (unsigned long long)seconds);
    } else {
        ctl_error("%s: the answer to query-dirty-rate has no dirty-rate", ctl->vm);
        r = CTL_FAILED;
    }
    return r;
}
