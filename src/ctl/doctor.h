/*
 * What an expert would say of a VM or a host, from counters that exist anyway. A rule looks at the answers that were
 * collected, and adds what it finds; an answer that is missing makes no finding.
 */
#ifndef UMBRA_CTL_DOCTOR_H
#define UMBRA_CTL_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "base/util.h"
#include "ctl/stats.h"

enum severity {
    SEVERITY_INFO,     /* worth knowing */
    SEVERITY_NOTICE,   /* costs something; a choice */
    SEVERITY_WARNING,  /* something is wrong, and can be helped */
    SEVERITY_CRITICAL, /* does not work */
};

const char *severity_name(enum severity s);

#define DOCTOR_MAX_FINDINGS 64u

struct finding {
    enum severity severity;
    const char *subject; /* static */
    char evidence[240], advice[240];
};

struct findings {
    struct finding list[DOCTOR_MAX_FINDINGS];
    size_t count;
};

/* Add one; the evidence comes first. More than DOCTOR_MAX_FINDINGS are left out. */
struct finding *doctor_found(struct findings *f, enum severity severity, const char *subject, const char *evidence, ...)
    PRINTF_LIKE(4, 5);
void doctor_advise(struct finding *finding, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* The gravest first, otherwise in the order they were found. */
void doctor_sort(struct findings *f);

/* What was asked of a VM; NULL where it had no answer. */
struct doctor_vm {
    const char *name;
    double uptime;      /* seconds, or -1 */
    uint64_t bandwidth; /* of a migration, bytes a second */
    const json_t *status, *host, *mmu, *floods, *dirty_log, *dirty_rate, *block, *migrate;
    struct stats_set stats;
};

/* Apply every rule to a VM. */
void doctor_examine_vm(const struct doctor_vm *vm, struct findings *f);

/* Apply every rule to this host; files are looked for below `root` ("" but for tests), VMs in runtime_dir. */
void doctor_examine_host(const char *root, const char *runtime_dir, struct findings *f);

#endif
