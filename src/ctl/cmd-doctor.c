/* vmctl doctor: ask everything, let the rules look at it, print what they found. */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"
#include "ctl/doctor.h"
#include "ctl/format.h"
#include "ctl/vms.h"

#define BANDWIDTH_DEFAULT 1000 /* MiB a second: what 10 Gbit/s carries */

const char *severity_name(enum severity s)
{
    static const char *const names[] = {
        [SEVERITY_INFO] = "info",
        [SEVERITY_NOTICE] = "notice",
        [SEVERITY_WARNING] = "warning",
        [SEVERITY_CRITICAL] = "critical",
    };

    return names[s];
}

struct finding *doctor_found(struct findings *f, enum severity severity, const char *subject, const char *evidence, ...)
{
    struct finding *x = &f->list[MIN(f->count, (size_t)DOCTOR_MAX_FINDINGS - 1)];
    va_list ap;

    if (f->count < DOCTOR_MAX_FINDINGS)
        f->count++;
    *x = (struct finding){.severity = severity, .subject = subject};
    va_start(ap, evidence);
    vsnprintf(x->evidence, sizeof(x->evidence), evidence, ap);
    va_end(ap);
    return x;
}

void doctor_advise(struct finding *finding, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(finding->advice, sizeof(finding->advice), fmt, ap);
    va_end(ap);
}

void doctor_sort(struct findings *f)
{
    for (size_t i = 1; i < f->count; i++)
        for (size_t k = i; k > 0 && f->list[k].severity > f->list[k - 1].severity; k--) {
            struct finding x = f->list[k];

            f->list[k] = f->list[k - 1];
            f->list[k - 1] = x;
        }
}

/* -- output ------------------------------------------------------------------ */

static void print_findings(const char *name, const struct findings *f)
{
    if (f->count == 0)
        printf("%s: nothing to say\n", name);
    else
        printf("%s: %zu finding%s\n", name, f->count, f->count == 1 ? "" : "s");
    for (size_t i = 0; i < f->count; i++) {
        const struct finding *x = &f->list[i];
        char evidence[2 * sizeof(x->evidence)], advice[2 * sizeof(x->advice)];

        printf("\n%s, %s\n  %s\n", severity_name(x->severity), x->subject, fmt_safe(x->evidence, evidence, sizeof(evidence)));
        if (*x->advice)
            printf("  -> %s\n", fmt_safe(x->advice, advice, sizeof(advice)));
    }
}

static json_t *findings_json(const struct findings *f)
{
    json_t *list = json_object_new_array();

    for (size_t i = 0; i < f->count; i++) {
        json_t *o = json_object_new_object();

        json_add_str(o, "severity", severity_name(f->list[i].severity));
        json_add_str(o, "subject", f->list[i].subject);
        json_add_str(o, "evidence", f->list[i].evidence);
        json_add_str(o, "advice", f->list[i].advice);
        json_push(list, o);
    }
    return list;
}

static int tell(const struct ctl *ctl, const char *name, struct findings *f)
{
    doctor_sort(f);
    if (ctl->output == CTL_JSON) {
        _cleanup_json_ json_t *list = findings_json(f);

        ctl_print_json(list);
    } else {
        print_findings(name, f);
    }
    return ctl_opt(ctl, "strict") && f->count > 0 && f->list[0].severity >= SEVERITY_WARNING ? CTL_FAILED : CTL_DONE;
}

/* -- asking ------------------------------------------------------------------ */

static json_t *target(const char *name)
{
    json_t *o = json_object_new_object();

    json_add_str(o, "target", name);
    return o;
}

static int ask_all(const struct ctl *ctl, struct client *c, struct doctor_vm *vm)
{
    const struct {
        const char *command;
        const json_t **answer;
    } questions[] = {
        {"query-status", &vm->status},         {"query-host", &vm->host},   {"query-mmu", &vm->mmu},
        {"query-mmu-floods", &vm->floods},     {"query-dirty-log", &vm->dirty_log},
        {"query-dirty-rate", &vm->dirty_rate}, {"query-block", &vm->block}, {"query-migrate", &vm->migrate},
    };
    _cleanup_json_ json_t *of_vm = NULL, *schemas = NULL;
    int r = CTL_DONE;

    for (size_t i = 0; i < ARRAY_SIZE(questions) && r == CTL_DONE; i++) {
        json_t *answer = NULL;

        r = ctl_ask_maybe(ctl, c, questions[i].command, NULL, &answer);
        *questions[i].answer = answer;
    }
    if (r == CTL_DONE)
        r = ctl_ask_maybe(ctl, c, "query-stats", target("vm"), &of_vm);
    if (r == CTL_DONE)
        r = ctl_ask_maybe(ctl, c, "query-stats-schemas", NULL, &schemas);
    if (r == CTL_DONE && stats_read(&vm->stats, of_vm, NULL, schemas) < 0) {
        ctl_error("out of memory");
        r = CTL_FAILED;
    }
    return r;
}

static void forget(struct doctor_vm *vm)
{
    const json_t *const answers[] = {vm->status,    vm->host,       vm->mmu,   vm->floods,
                                     vm->dirty_log, vm->dirty_rate, vm->block, vm->migrate};

    for (size_t i = 0; i < ARRAY_SIZE(answers); i++)
        json_object_put((json_t *)(uintptr_t)answers[i]);
    stats_clear(&vm->stats);
}

static int examine_vm(struct ctl *ctl, uint64_t bandwidth)
{
    _cleanup_client_ struct client *c = NULL;
    struct doctor_vm vm = {.name = ctl->vm, .uptime = -1, .bandwidth = bandwidth};
    struct findings f = {.count = 0};
    pid_t pid;
    int r = ctl_connect(ctl, &c);

    if (r)
        return r;
    pid = vms_daemon_pid(ctl->runtime_dir, ctl->vm, c);
    if (pid > 0)
        vm.uptime = vms_uptime(pid);
    r = ask_all(ctl, c, &vm);
    if (r == CTL_DONE) {
        doctor_examine_vm(&vm, &f);
        r = tell(ctl, ctl->vm, &f);
    }
    forget(&vm);
    return r;
}

int ctl_cmd_doctor(struct ctl *ctl)
{
    struct findings f = {.count = 0};
    uint64_t bandwidth = BANDWIDTH_DEFAULT;
    int r = ctl_opt_number(ctl, "bandwidth", 1, 1000000, &bandwidth);

    if (r)
        return r;
    if (ctl->arg_count == 0) {
        doctor_examine_host("", ctl->runtime_dir, &f);
        return tell(ctl, "this host", &f);
    }
    if (!vm_name_valid(ctl->args[0])) {
        ctl_error("no such VM: %s", ctl->args[0]);
        return CTL_NO_VM;
    }
    strcpy(ctl->vm, ctl->args[0]);
    return examine_vm(ctl, bandwidth * MiB);
}
