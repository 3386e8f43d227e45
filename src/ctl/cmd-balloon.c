/* vmctl balloon: how much memory a guest keeps, and what it says of it. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "ctl/answer.h"
#include "ctl/ctl.h"
#include "ctl/format.h"
#include "ctl/table.h"

static const char *size_of(const json_t *o, const char *key, char *buf, size_t len)
{
    return size_format(answer_u64(o, key), buf, len);
}

static void print_stats(const json_t *balloon)
{
    static const struct {
        const char *key, *label;
    } rows[] = {
        {"stat-total-memory", "guest's total"},
        {"stat-available-memory", "available"},
        {"stat-free-memory", "free"},
        {"stat-disk-caches", "caches"},
    };
    json_t *part = NULL, *stats = NULL;
    char buf[FMT_MAX];
    uint64_t v;

    if (json_get_obj(balloon, "guest-stats", &part) < 0 || json_get_obj(part, "stats", &stats) < 0)
        return;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        if (json_get_u64(stats, rows[i].key, &v) == 0)
            table_field(stdout, rows[i].label, "%s", size_format(v, buf, sizeof(buf)));
}

static void print_balloon(const json_t *o)
{
    char actual[FMT_MAX], target[FMT_MAX], given[FMT_MAX];
    bool driver = false, reporting = false;

    json_get_bool(o, "driver", &driver);
    json_get_bool(o, "free-page-reporting", &reporting);
    table_field(stdout, "guest keeps", "%s", size_of(o, "actual", actual, sizeof(actual)));
    table_field(stdout, "asked for", "%s", size_of(o, "target", target, sizeof(target)));
    table_field(stdout, "driver", "%s", !driver ? "none: the guest does not answer" : reporting ? "reports free pages" : "yes");
    table_field(stdout, "given back", "%s so far", size_of(o, "given-back", given, sizeof(given)));
    print_stats(o);
}

static int set(struct ctl *ctl, struct client *client)
{
    uint64_t bytes;
    json_t *args;

    if (size_parse(ctl->args[0], &bytes) < 0 || bytes == 0 || bytes > INT64_MAX)
        return ctl_usage(ctl, "\"%.40s\" is no size (write it like 512M or 4G)", ctl->args[0]);
    args = json_object_new_object();
    json_add_u64(args, "value", bytes);
    return ctl_ask(ctl, client, "balloon", args, NULL);
}

static int show(const struct ctl *ctl, struct client *client)
{
    json_t *answer;
    int r = ctl_ask(ctl, client, "query-balloon", NULL, &answer);

    if (r)
        return r;
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    else
        print_balloon(answer);
    json_object_put(answer);
    return CTL_DONE;
}

static int set_interval(struct ctl *ctl, struct client *client)
{
    uint64_t seconds = 0;
    int r = ctl_opt_number(ctl, "stats", 0, 3600, &seconds);
    json_t *args;

    if (r || !ctl_opt(ctl, "stats"))
        return r;
    args = json_object_new_object();
    json_add_u64(args, "guest-stats-polling-interval", seconds);
    return ctl_ask(ctl, client, "balloon-set", args, NULL);
}

int ctl_cmd_balloon(struct ctl *ctl)
{
    struct client *client;
    int r = ctl_connect(ctl, &client);

    if (r)
        return r;
    r = set_interval(ctl, client);
    if (r == CTL_DONE && ctl->arg_count > 0)
        r = set(ctl, client);
    else if (r == CTL_DONE && !ctl_opt(ctl, "stats"))
        r = show(ctl, client);
    client_close(client);
    return r;
}
