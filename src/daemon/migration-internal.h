/* What migration.c and migration-report.c share. */
#ifndef UMBRA_DAEMON_MIGRATION_INTERNAL_H
#define UMBRA_DAEMON_MIGRATION_INTERNAL_H

#include "migrate/report.h"

/*
 * As query-migrate has it; stall_ns: how long the guest was held beside the switchover; blocker: why the guest could not be
 * moved now, NULL: it could.
 */
json_t *migration_report_json(const struct mig_report *r, uint64_t stall_ns, const char *blocker);

#endif
