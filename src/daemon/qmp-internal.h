/* What the files of the control server share besides the interface: texts, shared objects, and the handlers of the table. */
#ifndef UMBRA_DAEMON_QMP_INTERNAL_H
#define UMBRA_DAEMON_QMP_INTERNAL_H

#include <stddef.h>

#include "daemon/qmp.h"
#include "daemon/qmp-server.h"

/* The level of QEMU's protocol that names and shapes follow; query-version reports it, as clients ask for it. */
#define QMP_LEVEL_MAJOR 7
#define QMP_LEVEL_MINOR 2
#define QMP_LEVEL_MICRO 0

/*
 * The text of an object in ASCII, *ret_len bytes: json-c's own where it is ASCII already (valid as long as the object),
 * else a copy that the caller frees through *ret_copy. NULL when out of memory.
 */
const char *qmp_text(const json_t *object, size_t *ret_len, char **ret_copy);

json_t *qmp_greeting(void);
json_t *qmp_version(void);

/* The path that names a vCPU in query-cpus-fast and in the filter of query-stats. */
#define QMP_VCPU_PATH_MAX 32
void qmp_vcpu_path(unsigned int index, char path[QMP_VCPU_PATH_MAX]);

/* Statistics sources. Made before vCPUs run, else it waits for them. Main thread. */
struct qmp_stats;
struct kvm_stats_source;
int qmp_stats_new(struct machine *machine, struct qmp_stats **ret);
void qmp_stats_free(struct qmp_stats *stats);
/* KVM's statistics of the VM (vcpu -1) or of one vCPU; NULL where it gives none. */
struct kvm_stats_source *qmp_stats_source(const struct qmp_stats *stats, int vcpu);

/* Snapshots; the machine and the server outlive it. 0 or -errno. Freeing cancels one that is under way. */
struct qmp_snapshot;
int qmp_snapshot_new(struct event_base *events, struct machine *machine, struct qmp_server *server,
                     struct qmp_snapshot **ret);
void qmp_snapshot_free(struct qmp_snapshot *q);
/* One is being taken. */
bool qmp_snapshot_busy(const struct qmp_snapshot *q);
/* End what is gathered for diffs: -EBUSY (a snapshot is under way), -ENOENT, -errno. */
int qmp_snapshot_untrack(struct qmp_snapshot *q);

/* Handlers, by the file they are in. */
json_t *qmp_capabilities(struct qmp_request *req);
json_t *qmp_query_commands(struct qmp_request *req);
json_t *qmp_query_cpus_fast(struct qmp_request *req);
json_t *qmp_query_host(struct qmp_request *req);
json_t *qmp_query_kvm(struct qmp_request *req);
json_t *qmp_query_memory_size_summary(struct qmp_request *req);
json_t *qmp_query_name(struct qmp_request *req);
json_t *qmp_query_status(struct qmp_request *req);
json_t *qmp_query_version(struct qmp_request *req);
json_t *qmp_get_guest_memory(struct qmp_request *req);

json_t *qmp_balloon(struct qmp_request *req);
json_t *qmp_balloon_set(struct qmp_request *req);
json_t *qmp_query_balloon(struct qmp_request *req);
json_t *qmp_query_block(struct qmp_request *req);
json_t *qmp_query_net(struct qmp_request *req);
json_t *qmp_set_link(struct qmp_request *req);
json_t *qmp_mmu_set(struct qmp_request *req);
json_t *qmp_mmu_verify(struct qmp_request *req);
json_t *qmp_query_mmu(struct qmp_request *req);
json_t *qmp_query_mmu_floods(struct qmp_request *req);
json_t *qmp_query_mmu_spaces(struct qmp_request *req);
json_t *qmp_query_rmap(struct qmp_request *req);
/* "attribution" of dirty-log-snapshot, or NULL with the error set. Without the dirty log's lock. */
struct page_set;
json_t *qmp_attribution(struct qmp_request *req, const struct page_set *dirty);

json_t *qmp_query_stats(struct qmp_request *req);
json_t *qmp_query_stats_schemas(struct qmp_request *req);

json_t *qmp_cont(struct qmp_request *req);
json_t *qmp_quit(struct qmp_request *req);
json_t *qmp_stop(struct qmp_request *req);
json_t *qmp_system_powerdown(struct qmp_request *req);
json_t *qmp_system_reset(struct qmp_request *req);

json_t *qmp_dirty_log_ack(struct qmp_request *req);
json_t *qmp_dirty_log_snapshot(struct qmp_request *req);
json_t *qmp_dirty_log_start(struct qmp_request *req);
json_t *qmp_dirty_log_stop(struct qmp_request *req);
json_t *qmp_query_dirty_log(struct qmp_request *req);

json_t *qmp_query_snapshot(struct qmp_request *req);
json_t *qmp_snapshot(struct qmp_request *req);
json_t *qmp_snapshot_cancel(struct qmp_request *req);

json_t *qmp_calc_dirty_rate(struct qmp_request *req);
json_t *qmp_query_dirty_rate(struct qmp_request *req);

extern const char *const qmp_migrate_strategies[];
extern const char *const qmp_migrate_compressions[];
json_t *qmp_migrate(struct qmp_request *req);
json_t *qmp_migrate_incoming(struct qmp_request *req);
json_t *qmp_migrate_start_postcopy(struct qmp_request *req);
json_t *qmp_migrate_pause(struct qmp_request *req);
json_t *qmp_migrate_recover(struct qmp_request *req);
json_t *qmp_migrate_cancel(struct qmp_request *req);
json_t *qmp_migrate_continue(struct qmp_request *req);
json_t *qmp_migrate_set_parameters(struct qmp_request *req);
json_t *qmp_migrate_set_capabilities(struct qmp_request *req);
json_t *qmp_query_migrate(struct qmp_request *req);
json_t *qmp_query_migrate_parameters(struct qmp_request *req);
json_t *qmp_query_migrate_capabilities(struct qmp_request *req);
json_t *qmp_getfd(struct qmp_request *req);
json_t *qmp_closefd(struct qmp_request *req);

#endif
