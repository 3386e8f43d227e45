/*
 * vmctl list. Every VM is asked at the same time: all requests go out before the first answer is awaited, and one
 * deadline holds for all, so that a VM that hangs costs its time once.
 */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/size.h"
#include "ctl/ctl.h"
#include "ctl/format.h"
#include "ctl/table.h"
#include "ctl/vms.h"

#define LIST_TIMEOUT_MS 1000

struct vm_row {
    const char *name;
    struct client *client;
    char state[40];
    pid_t pid;
    uint64_t vcpus, memory; /* 0: not known */
    double uptime;          /* below 0: not known */
};

static const char *const questions[] = {"qmp_capabilities", "query-status", "query-cpus-fast",
                                        "query-memory-size-summary"};

static void set_state(struct vm_row *row, const struct failure *f)
{
    static const char *const names[] = {
        [FAILURE_NONE] = "?",          [FAILURE_REFUSED] = "refuses", [FAILURE_TIMEOUT] = "no answer",
        [FAILURE_GONE] = "ending",     [FAILURE_NO_VM] = "stale",     [FAILURE_PROTOCOL] = "not QMP",
        [FAILURE_LOCAL] = "no access", [FAILURE_BUSY] = "no answer",
    };

    snprintf(row->state, sizeof(row->state), "%s", names[f->kind]);
    client_close(row->client);
    row->client = NULL;
}

static void row_connect(const struct ctl *ctl, struct vm_row *row)
{
    struct failure f = {0};
    char path[PATH_MAX];

    if (paths_vm_file(ctl->runtime_dir, row->name, "control.sock", path, sizeof(path)) < 0) {
        f.kind = FAILURE_LOCAL;
        set_state(row, &f);
        return;
    }
    if (vms_waiting(ctl->runtime_dir, row->name)) {
        strcpy(row->state, "off");
        return;
    }
    if (client_connect(path, &row->client, &f) < 0) {
        set_state(row, &f);
        return;
    }
    row->pid = vms_daemon_pid(ctl->runtime_dir, row->name, row->client);
    row->uptime = row->pid > 0 ? vms_uptime(row->pid) : -1;
}

static void row_send(struct vm_row *row, uint64_t deadline)
{
    _cleanup_json_ json_t *greeting = NULL;
    struct failure f = {0};

    if (!row->client)
        return;
    if (client_receive(row->client, deadline, &greeting, &f) < 0) {
        set_state(row, &f);
        return;
    }
    if (!json_object_object_get_ex(greeting, "QMP", NULL)) {
        f.kind = json_object_object_get_ex(greeting, "error", NULL) ? FAILURE_REFUSED : FAILURE_PROTOCOL;
        set_state(row, &f);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(questions); i++) {
        if (client_send(row->client, questions[i], NULL, LIST_TIMEOUT_MS, &f) < 0) {
            set_state(row, &f);
            return;
        }
    }
}

static void take_answer(struct vm_row *row, size_t question, const json_t *answer)
{
    const char *state;

    switch (question) {
    case 1:
        if (json_get_str(answer, "status", &state) == 0)
            snprintf(row->state, sizeof(row->state), "%s", state);
        break;
    case 2:
        if (json_object_is_type(answer, json_type_array))
            row->vcpus = json_object_array_length(answer);
        break;
    case 3:
        json_get_u64(answer, "base-memory", &row->memory);
        break;
    default:
        break;
    }
}

static void row_receive(struct vm_row *row, uint64_t deadline)
{
    for (size_t i = 0; row->client && i < ARRAY_SIZE(questions); i++) {
        _cleanup_json_ json_t *answer = NULL;
        struct failure f = {0};

        if (client_answer(row->client, deadline, &answer, NULL, &f) == 0)
            take_answer(row, i, answer);
        else if (f.kind != FAILURE_REFUSED)
            set_state(row, &f);
    }
}

static void ask_all(const struct ctl *ctl, struct vm_row *rows, size_t count)
{
    uint64_t deadline;

    for (size_t i = 0; i < count; i++)
        row_connect(ctl, &rows[i]);
    deadline = client_deadline(ctl->reply_timeout_given ? ctl->reply_timeout_ms : LIST_TIMEOUT_MS);
    for (size_t i = 0; i < count; i++)
        row_send(&rows[i], deadline);
    for (size_t i = 0; i < count; i++)
        row_receive(&rows[i], deadline);
}

static void print_json(const struct vm_row *rows, size_t count)
{
    _cleanup_json_ json_t *list = json_object_new_array();

    for (size_t i = 0; i < count; i++) {
        json_t *o = json_object_new_object();

        json_add_str(o, "name", rows[i].name);
        json_add_str(o, "state", rows[i].state);
        if (rows[i].vcpus)
            json_add_u64(o, "vcpus", rows[i].vcpus);
        if (rows[i].memory)
            json_add_u64(o, "memory", rows[i].memory);
        if (rows[i].pid > 0)
            json_add_i64(o, "pid", rows[i].pid);
        if (rows[i].uptime >= 0)
            json_add_u64(o, "uptime", (uint64_t)rows[i].uptime);
        json_push(list, o);
    }
    ctl_print_json(list);
}

static void print_table(const struct vm_row *rows, size_t count)
{
    static const char *const header[] = {"NAME", "STATE", "VCPUS", "MEMORY", "PID", "UP"};
    _cleanup_table_ struct table *t = table_new(ARRAY_SIZE(header), "llrrrr");

    for (size_t i = 0; i < ARRAY_SIZE(header); i++)
        table_cell(t, "%s", header[i]);
    for (size_t i = 0; i < count; i++) {
        const struct vm_row *r = &rows[i];
        char number[FMT_MAX], size[FMT_MAX], up[FMT_MAX];

        table_cell(t, "%s", r->name);
        table_cell(t, "%s", r->state[0] ? r->state : "?");
        table_cell(t, "%s", r->vcpus ? fmt_count(r->vcpus, false, number, sizeof(number)) : "-");
        table_cell(t, "%s", r->memory ? size_format(r->memory, size, sizeof(size)) : "-");
        table_cell(t, r->pid > 0 ? "%d" : "-", (int)r->pid);
        table_cell(t, "%s", r->uptime >= 0 ? fmt_duration(r->uptime, up, sizeof(up)) : "-");
    }
    table_print(t, stdout);
}

int ctl_cmd_list(struct ctl *ctl)
{
    _cleanup_vm_names_ struct vm_names names = {0};
    _cleanup_free_ struct vm_row *rows = NULL;
    int r = vm_names_scan(ctl->runtime_dir, &names);

    if (r == 0) {
        rows = calloc(MAX(names.count, (size_t)1), sizeof(*rows));
        r = rows ? 0 : -ENOMEM;
    }
    if (r < 0) {
        ctl_error("cannot read %s: %s", ctl->runtime_dir, strerror(-r));
        return CTL_FAILED;
    }
    for (size_t i = 0; i < names.count; i++) {
        rows[i].name = names.names[i];
        rows[i].uptime = -1;
    }
    ask_all(ctl, rows, names.count);
    if (ctl->output == CTL_JSON)
        print_json(rows, names.count);
    else if (names.count == 0)
        ctl_note("no VMs in %s", ctl->runtime_dir);
    else
        print_table(rows, names.count);
    for (size_t i = 0; i < names.count; i++)
        client_close(rows[i].client);
    return CTL_DONE;
}
