/*
 * vmctl snapshot, restore: take a snapshot and wait for it, go on from one, and what can be done with snapshots without
 * a daemon (the files are read and written by the daemon's own code).
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/size.h"
#include "ctl/answer.h"
#include "ctl/ctl.h"
#include "ctl/format.h"
#include "ctl/progress.h"
#include "ctl/term.h"
#include "migrate/snapshot-open.h"

#define POLL_MS 50
#define UMBRAD "umbrad"

/* -- taking one ---------------------------------------------------------------- */

/* The daemon has a working directory of its own. What a shell completes ends in a slash, which is no part of the name. */
static json_t *snapshot_arguments(const struct ctl *ctl)
{
    json_t *arguments = json_object_new_object();
    _cleanup_free_ char *cwd = getcwd(NULL, 0), *path = NULL;
    char *dir = ctl->args[0];

    for (size_t len = strlen(dir); len > 1 && dir[len - 1] == '/'; len--)
        dir[len - 1] = '\0';
    if (*dir != '/' && cwd && asprintf(&path, "%s/%s", strcmp(cwd, "/") ? cwd : "", dir) >= 0)
        dir = path;
    json_add_str(arguments, "dir", dir);
    if (ctl_opt(ctl, "diff"))
        json_add_bool(arguments, "diff", true);
    if (ctl_opt(ctl, "no-track"))
        json_add_bool(arguments, "track", false);
    return arguments;
}

static void show_progress(const struct ctl *ctl, const json_t *answer, const char *status)
{
    uint64_t pages = answer_u64(answer, "pages"), written = answer_u64(answer, "written"), us = answer_u64(answer, "total-us");
    char rate[FMT_MAX], size[FMT_MAX];

    progress("%s: %s, %s (%.0f %%) written, %s", ctl->vm, status,
             size_format(written * SNAPSHOT_PAGE_SIZE, size, sizeof(size)),
             pages ? 100.0 * (double)written / (double)pages : 0,
             fmt_rate(us ? (double)(written * SNAPSHOT_PAGE_SIZE) * 1e6 / (double)us : 0, rate, sizeof(rate)));
}

/* ^C is for the snapshot, not for vmctl: it is cancelled, and its end still awaited. */
static int look_at_signals(const struct ctl *ctl, struct client *c)
{
    struct pollfd p = {.fd = term_signal_fd(), .events = POLLIN};

    if (poll(&p, 1, POLL_MS) <= 0 || term_signals(NULL) == 0)
        return CTL_DONE;
    return ctl_ask(ctl, c, "snapshot-cancel", NULL, NULL);
}

/* The daemon tells of its newest snapshot. Another client may have begun one as soon as ours had ended. */
static bool is_other(const json_t *answer, const char *dir)
{
    const char *newest = dir;

    json_get_str(answer, "dir", &newest);
    return strcmp(newest, dir) != 0;
}

static int wait_for_snapshot(const struct ctl *ctl, struct client *c, const char *dir, json_t **ret)
{
    for (;;) {
        _cleanup_json_ json_t *answer = NULL;
        const char *status = "";
        int r = ctl_ask(ctl, c, "query-snapshot", NULL, &answer);

        if (r)
            return r;
        if (is_other(answer, dir)) {
            progress_clear();
            ctl_error("%s: it takes another snapshot by now; vmctl snapshot show tells whether there is one in %s", ctl->vm, dir);
            return CTL_FAILED;
        }
        json_get_str(answer, "status", &status);
        if (strcmp(status, "active") != 0 && strcmp(status, "finishing") != 0) {
            *ret = take_ptr(answer);
            return CTL_DONE;
        }
        show_progress(ctl, answer, status);
        r = look_at_signals(ctl, c);
        if (r)
            return r;
    }
}

static int tell_result(const struct ctl *ctl, const json_t *answer)
{
    const char *status = "unknown", *error = NULL, *dir = "", *id = "";
    char size[FMT_MAX], took[FMT_MAX];
    uint64_t bytes;

    json_get_str(answer, "status", &status);
    json_get_str(answer, "error", &error);
    json_get_str(answer, "dir", &dir);
    json_get_str(answer, "id", &id);
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    if (strcmp(status, "completed") != 0) {
        ctl_error("%s: snapshot %s%s%s", ctl->vm, status, error ? ": " : "", error ? error : "");
        return CTL_FAILED;
    }
    if (ctl->output == CTL_JSON)
        return CTL_DONE;
    bytes = (answer_u64(answer, "stored-pages") - answer_u64(answer, "zero-pages")) * SNAPSHOT_PAGE_SIZE;
    printf("%s: %s, %s in %s, guest paused for %.1f ms\n", ctl->vm, dir, size_format(bytes, size, sizeof(size)),
           fmt_duration((double)answer_u64(answer, "total-us") / 1e6, took, sizeof(took)),
           (double)answer_u64(answer, "pause-us") / 1e3);
    return CTL_DONE;
}

int ctl_cmd_snapshot(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *answer = NULL, *arguments = NULL;
    const char *dir = "";
    int r;

    if (ctl->arg_count != 1)
        return ctl_usage(ctl, "wants the directory that the snapshot is to be");
    arguments = snapshot_arguments(ctl);
    json_get_str(arguments, "dir", &dir);
    r = ctl_connect(ctl, &c);
    if (r == CTL_DONE && term_catch_signals() < 0)
        r = CTL_FAILED;
    if (r == CTL_DONE)
        r = ctl_ask(ctl, c, "snapshot", json_object_get(arguments), NULL);
    if (r == CTL_DONE)
        r = wait_for_snapshot(ctl, c, dir, &answer);
    progress_clear();
    return r ? r : tell_result(ctl, answer);
}

/* -- with the files alone -------------------------------------------------------- */

static int open_chain(const char *dir, struct snapshot_chain **ret)
{
    struct snapshot_chain *chain = calloc(1, sizeof(*chain));
    char error[SNAPSHOT_ERROR_MAX] = "out of memory";

    if (!chain || snapshot_chain_open(dir, chain, error) < 0) {
        ctl_error("%s", error);
        free(chain);
        return CTL_FAILED;
    }
    *ret = chain;
    return CTL_DONE;
}

static void close_chain(struct snapshot_chain *chain)
{
    snapshot_chain_close(chain);
    free(chain);
}

struct work {
    const char *what;
    uint64_t pages;
};

static bool on_progress(void *opaque, uint64_t pages)
{
    const struct work *work = opaque;

    progress("%s, %.0f %%", work->what, 100.0 * (double)pages / (double)work->pages);
    return term_signals(NULL) == 0;
}

int ctl_cmd_snapshot_merge(struct ctl *ctl)
{
    struct work work = {.what = "merging"};
    struct snapshot_chain *chain;
    char error[SNAPSHOT_ERROR_MAX];
    unsigned int count;
    int r;

    if (ctl->arg_count != 2)
        return ctl_usage(ctl, "wants a snapshot and the directory that the merged one is to be");
    r = term_catch_signals() < 0 ? CTL_FAILED : open_chain(ctl->args[0], &chain);
    if (r)
        return r;
    work.pages = snapshot_chain_pages(chain);
    count = chain->count;
    r = snapshot_merge(chain, ctl->args[1], on_progress, &work, error) < 0 ? CTL_FAILED : CTL_DONE;
    progress_clear();
    close_chain(chain);
    if (r)
        ctl_error("%s", error);
    else if (ctl->output == CTL_JSON)
        puts("{}");
    else
        printf("%s: %u snapshot%s merged\n", ctl->args[1], count, count == 1 ? "" : "s");
    return r;
}

static json_t *link_object(const struct snapshot *s)
{
    json_t *o = json_object_new_object();

    json_add_str(o, "path", s->path);
    json_add_str(o, "id", s->meta.id);
    json_add_u64(o, "created", s->meta.created);
    json_add_u64(o, "memory", s->meta.memory);
    json_add_u64(o, "byte-pages", s->meta.byte_pages);
    json_add_u64(o, "zero-pages", s->meta.zero_pages);
    json_add_str(o, "paging", s->meta.paging);
    json_add_str(o, "producer", s->meta.producer);
    json_add(o, "host", json_object_get(s->meta.host));
    json_add(o, "config", json_object_get(s->meta.config));
    return o;
}

static void print_link(const struct snapshot *s)
{
    char size[FMT_MAX], memory[FMT_MAX], date[32] = "", safe[4 * PATH_MAX + 1];
    time_t created = (time_t)s->meta.created;
    struct tm tm;

    if (localtime_r(&created, &tm))
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    printf("%s: %s, taken %s, %s of %s, %s paging, by %s\n", fmt_safe(s->path, safe, sizeof(safe)),
           s->meta.parent_id[0] ? "diff" : "full", date,
           size_format(s->meta.byte_pages * SNAPSHOT_PAGE_SIZE, size, sizeof(size)),
           size_format(s->meta.memory, memory, sizeof(memory)), s->meta.paging, s->meta.producer);
}

/* What a chain is; with --verify, whether its memory is as it was written. */
int ctl_cmd_snapshot_show(struct ctl *ctl)
{
    struct work work = {.what = "verifying"};
    struct snapshot_chain *chain;
    char error[SNAPSHOT_ERROR_MAX];
    int r;

    if (ctl->arg_count != 1)
        return ctl_usage(ctl, "wants a snapshot");
    r = term_catch_signals() < 0 ? CTL_FAILED : open_chain(ctl->args[0], &chain);
    if (r)
        return r;
    work.pages = snapshot_chain_pages(chain);
    if (ctl_opt(ctl, "verify") && snapshot_chain_verify(chain, on_progress, &work, error) < 0) {
        progress_clear();
        ctl_error("%s", error);
        r = CTL_FAILED;
    }
    progress_clear();
    if (r == CTL_DONE && ctl->output == CTL_JSON) {
        _cleanup_json_ json_t *list = json_object_new_array();

        for (unsigned int i = 0; i < chain->count; i++)
            json_push(list, link_object(chain->links[i]));
        ctl_print_json(list);
    } else if (r == CTL_DONE) {
        for (unsigned int i = 0; i < chain->count; i++)
            print_link(chain->links[i]);
    }
    close_chain(chain);
    return r;
}

/* -- going on ------------------------------------------------------------------ */

#define RESTORE_ARGS_MAX 64

/* umbrad where it was installed, or beside vmctl in a build, or wherever PATH has it. */
static void run_umbrad(char **argv)
{
    char self[PATH_MAX], path[2 * PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    static const char *const places[] = {"../sbin/" UMBRAD, "../daemon/" UMBRAD, UMBRAD};
    char *slash;

    self[MAX(n, 0)] = '\0';
    slash = strrchr(self, '/');
    for (size_t i = 0; slash && i < ARRAY_SIZE(places); i++) {
        snprintf(path, sizeof(path), "%.*s%s", (int)(slash - self + 1), self, places[i]);
        execv(path, argv);
    }
    execvp(UMBRAD, argv);
}

int ctl_cmd_restore(struct ctl *ctl)
{
    static const char *const flags[] = {"eager", "verify", "paused"};
    char *argv[RESTORE_ARGS_MAX + 16], flag[ARRAY_SIZE(flags)][16];
    int n = 0;

    if (ctl->arg_count < 1)
        return ctl_usage(ctl, "wants a snapshot");
    if (ctl->arg_count > RESTORE_ARGS_MAX)
        return ctl_usage(ctl, "more than %d arguments", RESTORE_ARGS_MAX);
    argv[n++] = (char[]){UMBRAD};
    argv[n++] = (char[]){"--restore"};
    argv[n++] = ctl->args[0];
    argv[n++] = (char[]){"--runtime-dir"};
    argv[n++] = ctl->runtime_dir;
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        if (!ctl_opt(ctl, flags[i]))
            continue;
        snprintf(flag[i], sizeof(flag[i]), "--%s", flags[i]);
        argv[n++] = flag[i];
    }
    if (ctl_opt(ctl, "name")) {
        argv[n++] = (char[]){"--name"};
        argv[n++] = (char *)(uintptr_t)ctl_opt(ctl, "name");
    }
    for (int i = 1; i < ctl->arg_count; i++)
        argv[n++] = ctl->args[i];
    argv[n] = NULL;
    run_umbrad(argv);
    ctl_error("cannot start " UMBRAD ": %s", strerror(errno));
    return CTL_FAILED;
}
