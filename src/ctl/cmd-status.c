/* vmctl status and host: pages for a person, put together from what the daemon answers. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/size.h"
#include "ctl/answer.h"
#include "ctl/ctl.h"
#include "ctl/format.h"
#include "ctl/stats.h"
#include "ctl/table.h"
#include "ctl/term.h"
#include "ctl/vms.h"

/* What a status page asks, in this order; a daemon that refuses one of them leaves a line out. */
enum question {
    ASK_STATUS,
    ASK_CPUS,
    ASK_MEMORY,
    ASK_HOST,
    ASK_DIRTY_LOG,
    ASK_MIGRATE,
    ASK_BLOCK,
    ASK_NET,
    ASK_BALLOON,
    ASK_STATS,
    QUESTIONS,
};

static const char *const commands[QUESTIONS] = {
    [ASK_STATUS] = "query-status",  [ASK_CPUS] = "query-cpus-fast",
    [ASK_MEMORY] = "query-memory-size-summary", [ASK_HOST] = "query-host",
    [ASK_DIRTY_LOG] = "query-dirty-log", [ASK_MIGRATE] = "query-migrate", [ASK_BLOCK] = "query-block",
    [ASK_NET] = "query-net", [ASK_BALLOON] = "query-balloon",
    [ASK_STATS] = "query-stats",
};

static void print_state(const struct ctl *ctl, const struct client *c, const json_t *status, double *ret_uptime)
{
    pid_t pid = vms_daemon_pid(ctl->runtime_dir, ctl->vm, c);
    double uptime = pid > 0 ? vms_uptime(pid) : -1;
    char up[FMT_MAX];

    *ret_uptime = uptime;
    if (uptime >= 0)
        table_field(stdout, ctl->vm, "%s, up %s (process %d)", answer_str(status, "status"),
                    fmt_duration(uptime, up, sizeof(up)), (int)pid);
    else
        table_field(stdout, ctl->vm, "%s", answer_str(status, "status"));
}

static void print_cpus(const json_t *cpus)
{
    size_t n = answer_length(cpus), o = 0;
    char threads[200] = "";

    for (size_t i = 0; i < n && i < 8; i++) {
        uint64_t tid;

        if (json_get_u64(json_object_array_get_idx(cpus, i), "thread-id", &tid) == 0)
            o += (size_t)snprintf(threads + o, sizeof(threads) - o, "%s%llu", o ? ", " : "", (unsigned long long)tid);
    }
    table_field(stdout, "vCPUs", "%zu%s%s%s%s", n, o ? n == 1 ? " (thread " : " (threads " : "", threads,
                n > 8 && o ? ", ..." : "", o ? ")" : "");
}

static void print_memory(const json_t *memory)
{
    uint64_t bytes;
    char size[FMT_MAX];

    if (json_get_u64(memory, "base-memory", &bytes) == 0)
        table_field(stdout, "memory", "%s", size_format(bytes, size, sizeof(size)));
}

static void print_paging(const json_t *host)
{
    const char *how = "";
    json_t *paging;

    if (json_get_obj(host, "paging", &paging) < 0)
        return;
    json_get_str(paging, "how", &how);
    table_field(stdout, "paging", "%s%s%s%s", answer_str(paging, "mode"), *how ? " (" : "", how, *how ? ")" : "");
}

static void print_dirty_log(const json_t *log)
{
    char text[400];
    json_t *list;
    size_t n, o;

    if (json_get_array(log, "consumers", &list) < 0)
        return;
    n = json_object_array_length(list);
    o = (size_t)snprintf(text, sizeof(text), "%s, %s", answer_str(log, "backend"), n ? "read by " : "off");
    for (size_t i = 0; i < n && o < sizeof(text); i++) {
        const json_t *consumer = json_object_array_get_idx(list, i);
        uint64_t epoch = 0;

        json_get_u64(consumer, "epoch", &epoch);
        o += (size_t)snprintf(text + o, sizeof(text) - o, "%s%s (epoch %llu)", i ? ", " : "", answer_str(consumer, "name"),
                              (unsigned long long)epoch);
    }
    table_field(stdout, "dirty log", "%s", text);
}

/* Nothing unless one is on its way. */
static void print_migration(const json_t *report)
{
    static const char *const over[] = {"none", "completed", "failed", "cancelled"};
    const json_t *ram = answer_obj(report, "ram");
    const char *status = "none";
    char left[FMT_MAX];

    json_get_str(report, "status", &status);
    for (size_t i = 0; i < ARRAY_SIZE(over); i++)
        if (strcmp(status, over[i]) == 0)
            return;
    size_format(answer_u64(ram, "remaining"), left, sizeof(left));
    if (strcmp(status, "setup") == 0)
        table_field(stdout, "migration", "not connected yet");
    else if (strcmp(status, "postcopy-paused") == 0)
        table_field(stdout, "migration", "%s: the connection is lost, %s left (vmctl migrate --resume where the guest came from)",
                    status, left);
    else
        table_field(stdout, "migration", "%s, round %llu, %s left", status,
                    (unsigned long long)answer_u64(ram, "dirty-sync-count"), left);
}

static void print_disks(const json_t *disks)
{
    for (size_t i = 0; i < answer_length(disks); i++) {
        const json_t *disk = json_object_array_get_idx(disks, i), *inserted = answer_obj(disk, "inserted");
        const char *status = answer_str(disk, "io-status");
        char size[FMT_MAX];

        table_field(stdout, "disk", "%s: %s, %s%s%s%s%s", answer_str(disk, "device"), answer_str(inserted, "file"),
                    size_format(answer_u64(answer_obj(inserted, "image"), "virtual-size"), size, sizeof(size)),
                    answer_bool(inserted, "ro") ? ", read-only" : "", strcmp(status, "ok") != 0 ? ", " : "",
                    strcmp(status, "ok") != 0 ? status : "", answer_bool(disk, "needs-reset") ? ", waits for a reset" : "");
    }
}

static void print_networks(const json_t *cards)
{
    for (size_t i = 0; i < answer_length(cards); i++) {
        const json_t *card = json_object_array_get_idx(cards, i);
        const char *host = "";

        json_get_str(card, "host", &host);
        table_field(stdout, "network", "%s: %s%s%s, %s%s%s", answer_str(card, "name"), answer_str(card, "backend"), *host ? " " : "",
                    host, answer_str(card, "mac"), answer_bool(card, "link") ? "" : ", link down",
                    answer_bool(card, "needs-reset") ? ", waits for a reset" : "");
    }
}

/* Nothing where there is no balloon. */
static void print_balloon(const json_t *balloon, const json_t *memory)
{
    uint64_t actual;
    char left[FMT_MAX], all[FMT_MAX];

    if (json_get_u64(balloon, "actual", &actual) < 0)
        return;
    table_field(stdout, "balloon", "%s of %s left to the guest%s", size_format(actual, left, sizeof(left)),
                size_format(answer_u64(memory, "base-memory"), all, sizeof(all)),
                answer_bool(balloon, "driver") ? "" : ", which has no driver for it");
}

static void print_exits(const json_t *stats, double uptime)
{
    char count[FMT_MAX], rate[FMT_MAX];
    uint64_t exits;

    if (stats_sum(stats, "exits", &exits) < 0)
        return;
    fmt_count(exits, term_stdout_is_tty(), count, sizeof(count));
    if (uptime > 1)
        table_field(stdout, "exits", "%s, %s a second since the start", count,
                    fmt_count((uint64_t)((double)exits / uptime), term_stdout_is_tty(), rate, sizeof(rate)));
    else
        table_field(stdout, "exits", "%s", count);
}

static void print_page(const struct ctl *ctl, const struct client *c, json_t *const *answers)
{
    double uptime;

    print_state(ctl, c, answers[ASK_STATUS], &uptime);
    print_cpus(answers[ASK_CPUS]);
    print_memory(answers[ASK_MEMORY]);
    print_balloon(answers[ASK_BALLOON], answers[ASK_MEMORY]);
    print_disks(answers[ASK_BLOCK]);
    print_networks(answers[ASK_NET]);
    print_paging(answers[ASK_HOST]);
    print_dirty_log(answers[ASK_DIRTY_LOG]);
    print_migration(answers[ASK_MIGRATE]);
    print_exits(answers[ASK_STATS], uptime);
}

static void print_json(json_t *const *answers)
{
    _cleanup_json_ json_t *o = json_object_new_object();

    for (int i = 0; i < QUESTIONS; i++)
        if (answers[i])
            json_add(o, commands[i], json_object_get(answers[i]));
    ctl_print_json(o);
}

int ctl_cmd_status(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    json_t *answers[QUESTIONS] = {NULL};
    int r = ctl_connect(ctl, &c);

    for (int i = 0; r == CTL_DONE && i < QUESTIONS; i++) {
        json_t *arguments = NULL;

        if (i == ASK_STATS) {
            arguments = json_object_new_object();
            json_add_str(arguments, "target", "vcpu");
        }
        r = i == ASK_STATUS ? ctl_ask(ctl, c, commands[i], arguments, &answers[i])
                            : ctl_ask_maybe(ctl, c, commands[i], arguments, &answers[i]);
    }
    if (r == CTL_DONE && ctl->output == CTL_JSON)
        print_json(answers);
    else if (r == CTL_DONE)
        print_page(ctl, c, answers);
    for (int i = 0; i < QUESTIONS; i++)
        json_object_put(answers[i]);
    return r;
}

/* -- host -- */

static void print_kernel(const json_t *host)
{
    json_t *kernel;

    if (json_get_obj(host, "guest-kernel", &kernel) == 0)
        table_field(stdout, "guest kernel", "%s", answer_bool(kernel, "emulated") ? "emulated" : "native");
}

static void print_kvm(const json_t *host)
{
    uint64_t version = 0, vcpus = 0;
    json_t *kvm;

    if (json_get_obj(host, "kvm", &kvm) < 0)
        return;
    json_get_u64(kvm, "api-version", &version);
    json_get_u64(kvm, "max-vcpus", &vcpus);
    table_field(stdout, "KVM", "%s, API %llu, at most %llu vCPUs", answer_str(kvm, "module"),
                (unsigned long long)version, (unsigned long long)vcpus);
}

static void print_verdicts(const json_t *host)
{
    _cleanup_table_ struct table *t = table_new(3, "l");
    json_t *list;

    if (json_get_array(host, "verdicts", &list) < 0)
        return;
    table_cell(t, "GOOD");
    table_cell(t, "WHAT");
    table_cell(t, "WHY");
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        const json_t *v = json_object_array_get_idx(list, i);

        table_cell(t, "%s", answer_bool(v, "good") ? "yes" : "no");
        table_cell(t, "%s", answer_str(v, "what"));
        table_cell(t, "%s", answer_str(v, "text"));
    }
    putchar('\n');
    table_print(t, stdout);
}

/* No VM that could be asked: umbrad finds it out by itself. */
static int ask_umbrad(void)
{
    char check[] = "--check-host", *argv[] = {ctl_umbrad(), check, NULL};

    execv(argv[0], argv);
    ctl_error("%s: %s", argv[0], strerror(errno));
    return CTL_FAILED;
}

int ctl_cmd_host(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *host = NULL;
    int r;

    if (!ctl->vm[0] && ctl->output == CTL_JSON)
        return ctl_usage(ctl, "without a VM that runs there is no JSON");
    if (!ctl->vm[0])
        return ask_umbrad();
    r = ctl_connect(ctl, &c);
    if (r == CTL_DONE)
        r = ctl_ask(ctl, c, "query-host", NULL, &host);
    if (r)
        return r;
    if (ctl->output == CTL_JSON) {
        ctl_print_json(host);
        return CTL_DONE;
    }
    print_paging(host);
    print_kernel(host);
    print_kvm(host);
    print_verdicts(host);
    return CTL_DONE;
}
