/* vmctl migrate: begin, watch, tell how it went; --plan measures the guest beforehand. */
#include "config.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "base/util.h"
#include "ctl/answer.h"
#include "ctl/ctl.h"
#include "ctl/dirty-client.h"
#include "ctl/format.h"
#include "ctl/names.h"
#include "ctl/progress.h"
#include "ctl/table.h"
#include "ctl/term.h"
#include "migrate/forecast.h"
#include "mmu/types.h"

#define POLL_MS 100
/* So far apart two looks tell how fast it goes. */
#define PACE_NS (500 * NSEC_PER_MSEC)
#define PLAN_SECONDS 1
#define PLAN_POLL_MS 50
/* How many of those who write are named. */
#define PLAN_WHO 3
/* What holds unless an option says otherwise. Bandwidth: no limit. */
#define DOWNTIME_DEFAULT_MS 300
#define CHANNELS_DEFAULT 2
#define STRATEGY_DEFAULT "cancel"

static const char *status_of(const json_t *report)
{
    const char *status = "none";

    json_get_str(report, "status", &status);
    return status;
}

static bool is_postcopy(const char *status)
{
    return strncmp(status, "postcopy-", strlen("postcopy-")) == 0;
}

static bool is_over(const char *status)
{
    return strcmp(status, "completed") == 0 || strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0 ||
           strcmp(status, "none") == 0 || strcmp(status, "postcopy-paused") == 0;
}

/* -- settings -- */

static int size_option(const struct ctl *ctl, const char *name, uint64_t *ret)
{
    const char *text = ctl_opt(ctl, name);

    if (text && size_parse(text, ret) < 0)
        return ctl_usage(ctl, "--%s: \"%.40s\" is no size (write it like 100M)", name, text);
    return CTL_DONE;
}

struct wishes {
    uint64_t bandwidth, channels; /* as given; UINT64_MAX: not */
    uint64_t downtime_ms;
    const char *strategy;
    bool zstd, postcopy;
};

static int read_wishes(const struct ctl *ctl, struct wishes *w)
{
    int r;

    *w = (struct wishes){.bandwidth = UINT64_MAX,
                         .channels = UINT64_MAX,
                         .downtime_ms = DOWNTIME_DEFAULT_MS,
                         .strategy = ctl_opt(ctl, "strategy"),
                         .zstd = ctl_opt(ctl, "zstd") != NULL,
                         .postcopy = ctl_opt(ctl, "postcopy") != NULL};
    r = size_option(ctl, "bandwidth", &w->bandwidth);
    if (r == CTL_DONE)
        r = ctl_opt_number(ctl, "downtime", 0, 2000000, &w->downtime_ms);
    if (r == CTL_DONE)
        r = ctl_opt_number(ctl, "channels", 1, 16, &w->channels);
    return r;
}

static void add_capability(json_t *list, const char *name, bool state)
{
    json_t *entry = json_object_new_object();

    json_add_str(entry, "capability", name);
    json_add_bool(entry, "state", state);
    json_push(list, entry);
}

/* All that has an option, given or not: what an earlier migration was told is not for this one. */
static int apply_wishes(const struct ctl *ctl, struct client *c, const struct wishes *w)
{
    json_t *args = json_object_new_object(), *list = json_object_new_array();
    uint64_t bandwidth = w->bandwidth != UINT64_MAX ? w->bandwidth : 0;
    uint64_t channels = w->channels != UINT64_MAX ? w->channels : CHANNELS_DEFAULT;
    int r;

    json_add_u64(args, "max-bandwidth", bandwidth);
    json_add_u64(args, "max-postcopy-bandwidth", bandwidth);
    json_add_u64(args, "downtime-limit", w->downtime_ms);
    json_add_u64(args, "multifd-channels", channels);
    json_add_str(args, "multifd-compression", w->zstd ? "zstd" : "none");
    json_add_str(args, "strategy", w->strategy ? w->strategy : STRATEGY_DEFAULT);
    r = ctl_ask(ctl, c, "migrate-set-parameters", args, NULL);
    add_capability(list, "multifd", channels > 1);
    add_capability(list, "postcopy-ram", w->postcopy);
    args = json_object_new_object();
    json_add(args, "capabilities", list);
    if (r == CTL_DONE)
        return ctl_ask(ctl, c, "migrate-set-capabilities", args, NULL);
    json_object_put(args);
    return r;
}

/* Settings hold for the migration that runs as well, so they are not touched while one does. */
static int prepare(const struct ctl *ctl, struct client *c, const struct wishes *w)
{
    _cleanup_json_ json_t *report = NULL;
    int r = ctl_ask(ctl, c, "query-migrate", NULL, &report);

    if (r)
        return r;
    if (strcmp(status_of(report), "postcopy-paused") == 0) {
        ctl_error("%s: the guest waits for the rest of its memory to follow it (vmctl migrate --resume)", ctl->vm);
        return CTL_FAILED;
    }
    if (!is_over(status_of(report))) {
        ctl_error("%s: a migration runs already (%.40s)", ctl->vm, status_of(report));
        return CTL_FAILED;
    }
    return apply_wishes(ctl, c, w);
}

/* On the way already: only the bandwidth can still be another. */
static int prepare_resume(const struct ctl *ctl, struct client *c, const struct wishes *w)
{
    json_t *args;

    if (w->bandwidth == UINT64_MAX)
        return CTL_DONE;
    args = json_object_new_object();
    json_add_u64(args, "max-postcopy-bandwidth", w->bandwidth);
    return ctl_ask(ctl, c, "migrate-set-parameters", args, NULL);
}

static int check_resume(const struct ctl *ctl)
{
    static const char *const fixed[] = {"local", "downtime", "channels", "zstd", "strategy", "postcopy", "plan"};

    for (size_t i = 0; ctl_opt(ctl, "resume") && i < ARRAY_SIZE(fixed); i++)
        if (ctl_opt(ctl, fixed[i]))
            return ctl_usage(ctl, "--%s does not go with --resume", fixed[i]);
    return CTL_DONE;
}

/* -- watching -- */

/* How fast bytes go out, between two looks that are some time apart: the daemon tells it of rounds that are over. */
struct pace {
    uint64_t at_ns, bytes; /* the look before; at_ns 0: none */
    double rate;           /* bytes a second; 0: not known */
};

static void pace_look(struct pace *p, uint64_t now_ns, uint64_t bytes)
{
    if (p->at_ns && now_ns - p->at_ns < PACE_NS)
        return;
    if (p->at_ns && bytes >= p->bytes)
        p->rate = (double)(bytes - p->bytes) * (double)NSEC_PER_SEC / (double)(now_ns - p->at_ns);
    p->at_ns = now_ns;
    p->bytes = bytes;
}

/* Text is added behind text. */
static void PRINTF_LIKE(3, 4) add(char *buf, size_t len, const char *fmt, ...)
{
    size_t at = strlen(buf);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(buf + at, len - at, fmt, ap);
    va_end(ap);
}

/* What the rounds so far tell, each with a comma before it. */
static void expect(const json_t *report, char *buf, size_t len)
{
    uint64_t throttle = answer_u64(report, "cpu-throttle-percentage");
    json_t *forecast = NULL;
    const char *who = NULL;
    bool converges = true;

    if (json_get_obj(report, "forecast", &forecast) == 0) {
        json_get_bool(forecast, "converges", &converges);
        add(buf, len, converges ? ", downtime now %llu ms" : ", does not converge (downtime now %llu ms)",
            (unsigned long long)answer_u64(forecast, "downtime"));
        if (!converges && json_get_str(forecast, "who", &who) == 0)
            add(buf, len, ", written by %.120s", who);
    }
    if (throttle)
        add(buf, len, ", %llu %% of its time taken", (unsigned long long)throttle);
}

static void show(const struct ctl *ctl, const json_t *report, struct pace *pace)
{
    const json_t *ram = answer_obj(report, "ram");
    uint64_t total = answer_u64(ram, "total"), remaining = answer_u64(ram, "remaining");
    uint64_t rounds = answer_u64(ram, "dirty-sync-count");
    char rate[FMT_MAX], left[FMT_MAX], more[400] = "";

    if (strcmp(status_of(report), "setup") == 0) {
        progress("%s: connecting", ctl->vm);
        return;
    }
    pace_look(pace, clock_ns(), answer_u64(ram, "transferred"));
    if (pace->rate > 0)
        add(more, sizeof(more), ", %s", fmt_rate(pace->rate, rate, sizeof(rate)));
    if (is_postcopy(status_of(report))) {
        progress("%s: the guest runs at the target, %s of its memory to follow, %llu pages it had to wait for%s", ctl->vm,
                 size_format(remaining, left, sizeof(left)), (unsigned long long)answer_u64(ram, "postcopy-requests"), more);
        return;
    }
    /* How much is written is known when a round is over. */
    if (rounds > 1)
        add(more, sizeof(more), ", %llu pages/s written", (unsigned long long)answer_u64(ram, "dirty-pages-rate"));
    expect(report, more, sizeof(more));
    progress("%s: %s, round %llu, %s of %llu MiB left%s", ctl->vm, status_of(report), (unsigned long long)rounds,
             size_format(remaining, left, sizeof(left)), (unsigned long long)(total >> 20), more);
}

/* Interrupted. *cancelled: it has been asked to end. */
static int interrupt(const struct ctl *ctl, struct client *c, const char *status, bool *cancelled)
{
    if (is_postcopy(status)) {
        progress_clear();
        ctl_note("%s: the guest is at the target, and its memory goes on following it", ctl->vm);
        return CTL_FAILED;
    }
    if (*cancelled)
        return CTL_DONE;
    *cancelled = true;
    return ctl_ask(ctl, c, "migrate_cancel", NULL, NULL);
}

/* The first round is over: the guest may go. */
static void go_early(const struct ctl *ctl, struct client *c, const json_t *report, bool *wanted)
{
    struct failure unheard = {0};

    if (!*wanted || strcmp(status_of(report), "active") != 0 || answer_u64(answer_obj(report, "ram"), "dirty-sync-count") < 2)
        return;
    *wanted = false;
    /* It may have come to its end just now. */
    (void)client_call(c, "migrate-start-postcopy", NULL, ctl->reply_timeout_ms, NULL, NULL, &unheard);
}

static int watch(const struct ctl *ctl, struct client *c, bool postcopy, json_t **ret)
{
    struct pace pace = {0};
    bool cancelled = false;

    for (;;) {
        struct pollfd p = {.fd = term_signal_fd(), .events = POLLIN};
        json_t *report = NULL;
        int r = ctl_ask(ctl, c, "query-migrate", NULL, &report);

        if (r) {
            progress_clear();
            return r;
        }
        if (is_over(status_of(report))) {
            progress_clear();
            *ret = report;
            return CTL_DONE;
        }
        show(ctl, report, &pace);
        go_early(ctl, c, report, &postcopy);
        if (poll(&p, 1, POLL_MS) > 0 && term_signals(NULL))
            r = interrupt(ctl, c, status_of(report), &cancelled);
        json_object_put(report);
        if (r)
            return r;
    }
}

static void print_breakdown(const json_t *report)
{
    static const char *const parts[] = {"pause", "drain", "final-harvest", "final-pages", "device-state", "load", "resume"};

    for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
        table_field(stdout, i ? "" : "downtime", "%-14s %8.2f ms", parts[i],
                    (double)answer_u64(answer_obj(report, "downtime-breakdown"), parts[i]) / 1e3);
}

/* Why it came to no end. What a target finds to be different there comes as lines. */
static void print_why(const struct ctl *ctl, const char *status, const char *why)
{
    static const char refuses[] = "the target refuses: ";
    size_t len;

    if (!*why || strcmp(why, status) == 0) {
        ctl_error("%s: migration %s", ctl->vm, status);
        return;
    }
    if (strncmp(why, refuses, strlen(refuses)) != 0) {
        ctl_error("%s: migration %s: %s", ctl->vm, status, why);
        return;
    }
    ctl_error("%s: migration %s: the target, which is \"here\" in what follows, refuses:", ctl->vm, status);
    for (why += strlen(refuses); *why; why += len + (why[len] == '\n')) {
        len = strcspn(why, "\n");
        ctl_error("  %.*s", (int)MIN(len, (size_t)INT_MAX), why);
    }
}

static int print_end(const struct ctl *ctl, const json_t *report)
{
    const char *status = status_of(report), *why = "", *who = NULL;
    const json_t *ram = answer_obj(report, "ram");
    uint64_t rounds = answer_u64(ram, "dirty-sync-count");
    json_t *forecast, *plan = NULL;
    bool converges = false;
    char moved[FMT_MAX];

    if (strcmp(status, "completed") != 0) {
        json_get_str(report, "error-desc", &why);
        print_why(ctl, status, why);
        if (is_postcopy(status))
            ctl_note("%s: the guest waits for it; vmctl migrate --resume goes on when the target can be reached", ctl->vm);
        else if (json_get_obj(report, "forecast", &forecast) == 0 && json_get_str(forecast, "who", &who) == 0)
            ctl_note("%s: most pages are written by: %s", ctl->vm, who);
        return CTL_FAILED;
    }
    if (answer_u64(report, "postcopy-time"))
        printf("%s: ran at the target after %.2f s, the rest of its memory came within %.2f s; %llu pages it waited for\n", ctl->vm,
               (double)(answer_u64(report, "total-time") - answer_u64(report, "postcopy-time")) / 1e3,
               (double)answer_u64(report, "postcopy-time") / 1e3, (unsigned long long)answer_u64(ram, "postcopy-requests"));
    printf("%s: moved in %.2f s, %llu round%s, %s sent, downtime %llu ms\n", ctl->vm,
           (double)answer_u64(report, "total-time") / 1e3, (unsigned long long)rounds, rounds == 1 ? "" : "s",
           size_format(answer_u64(ram, "transferred"), moved, sizeof(moved)), (unsigned long long)answer_u64(report, "downtime"));
    print_breakdown(report);
    if (json_get_obj(report, "plan", &plan) == 0 && json_get_bool(plan, "converges", &converges) == 0 && converges)
        table_field(stdout, "foreseen", "%.2f s, downtime %llu ms", (double)answer_u64(plan, "total-time") / 1e3,
                    (unsigned long long)answer_u64(plan, "downtime"));
    else if (plan)
        table_field(stdout, "foreseen", "no end");
    return CTL_DONE;
}

/* -- plan -- */

/* How many MiB a second the guest writes, measured by the daemon. */
static int measure(const struct ctl *ctl, struct client *c, uint64_t *ret_mib)
{
    json_t *args = json_object_new_object();
    const char *status = "measuring";
    int r;

    json_add_u64(args, "calc-time", PLAN_SECONDS);
    json_add_str(args, "mode", "dirty-bitmap");
    r = ctl_ask(ctl, c, "calc-dirty-rate", args, NULL);
    while (r == CTL_DONE && strcmp(status, "measuring") == 0) {
        _cleanup_json_ json_t *answer = NULL;

        progress("%s: looking at what the guest writes", ctl->vm);
        poll(NULL, 0, PLAN_POLL_MS);
        r = ctl_ask(ctl, c, "query-dirty-rate", NULL, &answer);
        if (r == CTL_DONE) {
            status = "measured";
            if (json_get_str(answer, "status", &status) == 0)
                status = strcmp(status, "measuring") == 0 ? "measuring" : "measured";
            *ret_mib = answer_u64(answer, "dirty-rate");
        }
    }
    progress_clear();
    return r;
}

/*
 * The same, and who it is that writes: *ret_spaces, the caller's, or NULL where page tables are not tracked.
 */
static int measure_who(const struct ctl *ctl, struct client *c, uint64_t *ret_mib, json_t **ret_spaces)
{
    _cleanup_names_ struct names *names = NULL;
    _cleanup_json_ json_t *answer = NULL;
    json_t *args, *attribution, *spaces;
    struct failure f = {0};
    char consumer[32];
    int r = names_open(ctl, c, &names);

    snprintf(consumer, sizeof(consumer), "vmctl-plan-%d", (int)getpid());
    if (r == CTL_DONE)
        r = dirty_start(ctl, c, consumer, false, NULL, NULL);
    if (r)
        return r;
    r = names_look(names);
    if (r == CTL_DONE)
        r = measure(ctl, c, ret_mib);
    args = dirty_arguments(consumer);
    json_add_bool(args, "attribute", true);
    /* Who has switched tracking off goes without. */
    if (client_call(c, "dirty-log-snapshot", args, ctl->reply_timeout_ms, &answer, NULL, &f) == 0 && r == CTL_DONE) {
        r = names_look(names);
        if (json_get_obj(answer, "attribution", &attribution) == 0 && json_get_array(attribution, "spaces", &spaces) == 0) {
            names_annotate_all(names, spaces);
            *ret_spaces = json_object_get(spaces);
        }
    }
    /* A daemon that is gone has no consumer either. */
    (void)client_call(c, "dirty-log-stop", dirty_arguments(consumer), ctl->reply_timeout_ms, NULL, NULL, &f);
    return r;
}

static void print_who(const json_t *spaces)
{
    for (size_t i = 0; spaces && i < MIN(json_object_array_length(spaces), (size_t)PLAN_WHO); i++) {
        const json_t *space = json_object_array_get_idx(spaces, i);
        const char *kind = "?", *comm = NULL;
        char who[80] = "the kernel";
        json_t *process;

        json_get_str(space, "kind", &kind);
        if (json_get_obj(space, "process", &process) == 0 && json_get_str(process, "comm", &comm) == 0)
            snprintf(who, sizeof(who), "%.32s (%llu)", comm, (unsigned long long)answer_u64(process, "pid"));
        else if (strcmp(kind, "kernel") != 0)
            snprintf(who, sizeof(who), "address space %#llx", (unsigned long long)answer_u64(space, "root"));
        printf("  %s %s: %llu pages\n", i ? "            " : "written by  ", who, (unsigned long long)answer_u64(space, "pages"));
    }
}

static int plan(const struct ctl *ctl, struct client *c, const struct wishes *w)
{
    _cleanup_json_ json_t *memory = NULL, *spaces = NULL;
    struct mig_trend trend = {.throughput = w->bandwidth, .last_ns = UINT64_MAX};
    struct mig_forecast f;
    char dirty[FMT_MAX], bandwidth[FMT_MAX];
    uint64_t mib = 0;
    int r;

    if (w->bandwidth == UINT64_MAX || w->bandwidth == 0)
        return ctl_usage(ctl, "--plan wants to know the --bandwidth of the network, bytes a second as 1G");
    r = ctl_ask(ctl, c, "query-memory-size-summary", NULL, &memory);
    if (r == CTL_DONE)
        r = measure_who(ctl, c, &mib, &spaces);
    if (r)
        return r;
    /* Over all of memory first. */
    trend.memory = trend.pending = bytes_to_pages(answer_u64(memory, "base-memory"));
    trend.dirty_rate = bytes_to_pages(mib * MiB);
    trend.limit_ns = w->downtime_ms * NSEC_PER_MSEC;
    f = mig_forecast(&trend);
    if (ctl->output == CTL_JSON) {
        _cleanup_json_ json_t *o = json_object_new_object();

        json_add_bool(o, "converges", f.converges);
        if (f.converges)
            json_add_double(o, "seconds", (double)f.end_ns / (double)NSEC_PER_SEC);
        json_add_double(o, "downtime-ms", (double)f.final_ns / (double)NSEC_PER_MSEC);
        json_add_i64(o, "rounds", f.rounds);
        json_add_u64(o, "dirty-bytes-per-second", mib * MiB);
        if (spaces)
            json_add(o, "spaces", json_object_get(spaces));
        ctl_print_json(o);
        return CTL_DONE;
    }
    printf("%s: at %s, with %s written by the guest:\n", ctl->vm, fmt_rate((double)w->bandwidth, bandwidth, sizeof(bandwidth)),
           fmt_rate((double)(mib * MiB), dirty, sizeof(dirty)));
    if (f.converges)
        printf("  at most %.2f s, %u round%s, downtime %.1f ms (limit %llu ms)\n", (double)f.end_ns / (double)NSEC_PER_SEC, f.rounds,
               f.rounds == 1 ? "" : "s", (double)f.final_ns / (double)NSEC_PER_MSEC, (unsigned long long)w->downtime_ms);
    else
        printf("  does not converge: downtime %.0f ms, the limit is %llu ms\n", (double)f.final_ns / (double)NSEC_PER_MSEC,
               (unsigned long long)w->downtime_ms);
    print_who(spaces);
    return CTL_DONE;
}

/* -- the command -- */

int ctl_cmd_migrate(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *report = NULL;
    json_t *args;
    struct wishes w;
    int r = read_wishes(ctl, &w);

    if (r == CTL_DONE)
        r = check_resume(ctl);
    if (r)
        return r;
    if (!ctl_opt(ctl, "plan") && ctl->arg_count != 1)
        return ctl_usage(ctl, "where to? tcp:HOST:PORT or unix:PATH");
    r = ctl_connect(ctl, &c);
    if (r)
        return r;
    if (ctl_opt(ctl, "plan"))
        return plan(ctl, c, &w);
    r = ctl_opt(ctl, "resume") ? prepare_resume(ctl, c, &w) : prepare(ctl, c, &w);
    if (r)
        return r;
    args = json_object_new_object();
    json_add_str(args, "uri", ctl->args[0]);
    json_add_bool(args, "local", ctl_opt(ctl, "local") != NULL);
    json_add_bool(args, "resume", ctl_opt(ctl, "resume") != NULL);
    term_catch_signals();
    r = ctl_ask(ctl, c, "migrate", args, NULL);
    if (r == CTL_DONE)
        r = watch(ctl, c, w.postcopy, &report);
    if (r)
        return r;
    if (ctl->output == CTL_JSON) {
        ctl_print_json(report);
        return strcmp(status_of(report), "completed") == 0 ? CTL_DONE : CTL_FAILED;
    }
    return print_end(ctl, report);
}
