/* vmctl rmap and floods: who maps a frame of guest memory, and which page tables are written all the time. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "ctl/answer.h"
#include "ctl/ctl.h"
#include "ctl/format.h"
#include "ctl/names.h"
#include "ctl/table.h"

/* -- rmap --------------------------------------------------------------------- */

/* "gfn=N", or an address. */
static int read_frame(const struct ctl *ctl, json_t *arguments)
{
    const char *text = ctl->arg_count > 0 ? ctl->args[0] : NULL;
    bool gfn = text && strncmp(text, "gfn=", 4) == 0;
    uint64_t v;

    if (!text)
        return ctl_usage(ctl, "which frame? An address in it, or gfn=N");
    if (size_parse_u64(gfn ? text + 4 : text, INT64_MAX, &v) < 0)
        return ctl_usage(ctl, "%s: no address (0x1234000) and no gfn=N", text);
    json_add_u64(arguments, gfn ? "gfn" : "gpa", v);
    return CTL_DONE;
}

static void mapping_row(struct table *t, const json_t *m)
{
    uint64_t root = 0, gva = 0, size = 0, pid = 0;
    const char *kind = "?", *comm = "";
    char text[FMT_MAX];
    json_t *process = NULL;
    bool named;

    json_get_u64(m, "root", &root);
    json_get_u64(m, "gva", &gva);
    json_get_u64(m, "page-size", &size);
    json_get_str(m, "kind", &kind);
    if (json_get_obj(m, "process", &process) == 0)
        json_get_str(process, "comm", &comm);
    named = json_get_u64(process, "pid", &pid) == 0;
    table_cell_number(t, named, pid);
    table_cell(t, "%s", comm);
    table_cell(t, "0x%09llx", (unsigned long long)root);
    table_cell(t, "%s", kind);
    table_cell(t, "0x%016llx", (unsigned long long)gva);
    table_cell(t, "%s", size_format(size, text, sizeof(text)));
    table_cell(t, "r%c%c%c", answer_bool(m, "write") ? 'w' : '-', answer_bool(m, "execute") ? 'x' : '-', answer_bool(m, "user") ? 'u' : '-');
    table_cell(t, "%s%s%s", answer_bool(m, "accessed") ? "accessed" : "", answer_bool(m, "accessed") && answer_bool(m, "dirty") ? ", " : "",
               answer_bool(m, "dirty") ? "dirty" : "");
}

static void print_mappings(const struct ctl *ctl, const json_t *answer)
{
    static const char *const headers[] = {"PID", "PROCESS", "ROOT", "KIND", "ADDRESS", "PAGE", "RIGHTS", "BITS"};
    _cleanup_table_ struct table *t = table_new(8, "rllllrll");
    uint64_t gfn = 0;
    json_t *list;

    json_get_u64(answer, "gfn", &gfn);
    printf("%s: frame 0x%llx%s%s\n", ctl->vm, (unsigned long long)gfn, answer_bool(answer, "table") ? ", a page table" : "",
           answer_bool(answer, "incomplete") ? "; some page tables are not known" : "");
    if (json_get_array(answer, "mappings", &list) < 0 || json_object_array_length(list) == 0) {
        printf("nothing maps it\n");
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(headers); i++)
        table_cell(t, "%s", headers[i]);
    for (size_t i = 0; i < json_object_array_length(list); i++)
        mapping_row(t, json_object_array_get_idx(list, i));
    table_print(t, stdout);
    if (answer_bool(answer, "more"))
        ctl_note("there are more; --limit shows them");
}

int ctl_cmd_rmap(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_names_ struct names *names = NULL;
    _cleanup_json_ json_t *answer = NULL, *arguments = json_object_new_object();
    uint64_t limit = 64;
    json_t *list;
    int r = read_frame(ctl, arguments);

    if (r == CTL_DONE)
        r = ctl_opt_number(ctl, "limit", 1, 4096, &limit);
    json_add_u64(arguments, "limit", limit);
    if (r == CTL_DONE)
        r = ctl_connect(ctl, &c);
    if (r == CTL_DONE)
        r = names_open(ctl, c, &names);
    if (r == CTL_DONE)
        r = names_look(names);
    if (r == CTL_DONE)
        r = ctl_ask(ctl, c, "query-rmap", take_ptr(arguments), &answer);
    if (r == CTL_DONE)
        r = names_look(names);
    if (r)
        return r;
    if (json_get_array(answer, "mappings", &list) == 0)
        names_annotate_all(names, list);
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    else
        print_mappings(ctl, answer);
    if (ctl_opt(ctl, "verbose"))
        names_explain(names);
    return CTL_DONE;
}

/* -- floods ------------------------------------------------------------------- */

static void flood_row(struct table *t, const json_t *f)
{
    static const char *const numbers[] = {"gfn", "level", "present", "accessed", "count", "ticks-ago"};
    uint64_t v[ARRAY_SIZE(numbers)] = {0};
    const char *reason = "?", *action = "?";

    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        json_get_u64(f, numbers[i], &v[i]);
    json_get_str(f, "reason", &reason);
    json_get_str(f, "action", &action);
    table_cell(t, "0x%llx", (unsigned long long)v[0]);
    for (size_t i = 1; i < 4; i++)
        table_cell(t, "%llu", (unsigned long long)v[i]);
    table_cell(t, "%llu %s in a row", (unsigned long long)v[4], reason);
    table_cell(t, "%s", strcmp(action, "poll") == 0 ? "looked at now and then"
                        : strcmp(action, "drop") == 0 ? "dropped, it is no page table any more"
                                                      : action);
    table_cell(t, "%llu", (unsigned long long)v[5]);
}

int ctl_cmd_floods(struct ctl *ctl)
{
    static const char *const headers[] = {"FRAME", "LEVEL", "PRESENT", "ACCESSED", "FOUND BY", "WHAT WAS DONE", "LOOKS AGO"};
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_table_ struct table *t = table_new(7, "lrrrllr");
    json_t *arguments, *list;
    uint64_t limit = 64, total = 0;
    int r = ctl_opt_number(ctl, "limit", 1, 64, &limit);

    if (r == CTL_DONE)
        r = ctl_connect(ctl, &c);
    if (r)
        return r;
    arguments = json_object_new_object();
    json_add_u64(arguments, "limit", limit);
    r = ctl_ask(ctl, c, "query-mmu-floods", arguments, &answer);
    if (r)
        return r;
    if (ctl->output == CTL_JSON) {
        ctl_print_json(answer);
        return CTL_DONE;
    }
    json_get_u64(answer, "total", &total);
    printf("%s: %llu floods so far\n", ctl->vm, (unsigned long long)total);
    for (size_t i = 0; i < ARRAY_SIZE(headers); i++)
        table_cell(t, "%s", headers[i]);
    if (json_get_array(answer, "floods", &list) == 0)
        for (size_t i = 0; i < json_object_array_length(list); i++)
            flood_row(t, json_object_array_get_idx(list, i));
    table_print(t, stdout);
    return CTL_DONE;
}
