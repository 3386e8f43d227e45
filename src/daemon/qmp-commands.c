/* The command table: every command of the control socket, its arguments and who carries it out. Sorted by name. */
#include "config.h"

#include "base/util.h"
#include "daemon/dirty-rate.h"
#include "daemon/qmp-internal.h"
#include "device/virtio/balloon.h"
#include "migrate/compress.h"
#include "migrate/wire.h"
#include "mmu/flood.h"
#include "mmu/tracker.h"

static const char *const dirty_rate_modes[] = {"page-sampling", "dirty-ring", "dirty-bitmap", NULL};
static const char *const dirty_start_modes[] = {"changes", "all", NULL};
static const char *const dirty_formats[] = {"count", "ranges", "bitmap", NULL};
static const char *const space_sorts[] = {"pages", "tables", "dirty", "seen", "root", NULL};
static const char *const stats_targets[] = {"vm", "vcpu", NULL};
static const char *const stats_providers[] = {"kvm", "umbra", NULL};

static const struct qmp_arg balloon_args[] = {
    {.name = "value", .type = QMP_ARG_INT, .min = 1, .max = INT64_MAX},
    {0},
};

static const struct qmp_arg balloon_set_args[] = {
    {.name = "guest-stats-polling-interval", .type = QMP_ARG_INT, .max = VBALLOON_INTERVAL_MAX},
    {0},
};

static const struct qmp_arg calc_dirty_rate_args[] = {
    {.name = "calc-time", .type = QMP_ARG_INT, .min = DIRTY_RATE_TIME_MIN, .max = DIRTY_RATE_TIME_MAX},
    {.name = "sample-pages",
     .type = QMP_ARG_INT,
     .optional = true,
     .min = DIRTY_RATE_SAMPLES_MIN,
     .max = DIRTY_RATE_SAMPLES_MAX},
    {.name = "mode", .type = QMP_ARG_STR, .optional = true, .values = dirty_rate_modes},
    {0},
};

static const struct qmp_arg dirty_log_ack_args[] = {
    {.name = "name", .type = QMP_ARG_STR},
    {.name = "epoch", .type = QMP_ARG_INT},
    {0},
};

static const struct qmp_arg dirty_log_snapshot_args[] = {
    {.name = "name", .type = QMP_ARG_STR},
    {.name = "format", .type = QMP_ARG_STR, .optional = true, .values = dirty_formats},
    {.name = "peek", .type = QMP_ARG_BOOL, .optional = true},
    {.name = "attribute", .type = QMP_ARG_BOOL, .optional = true},
    {0},
};

static const struct qmp_arg dirty_log_start_args[] = {
    {.name = "name", .type = QMP_ARG_STR},
    {.name = "mode", .type = QMP_ARG_STR, .optional = true, .values = dirty_start_modes},
    {0},
};

static const struct qmp_arg dirty_log_stop_args[] = {
    {.name = "name", .type = QMP_ARG_STR},
    {0},
};

static const struct qmp_arg capabilities_args[] = {
    {.name = "enable", .type = QMP_ARG_ARRAY, .optional = true},
    {0},
};

static const struct qmp_arg fd_args[] = {
    {.name = "fdname", .type = QMP_ARG_STR},
    {0},
};

static const struct qmp_arg migrate_args[] = {
    {.name = "uri", .type = QMP_ARG_STR},
    {.name = "local", .type = QMP_ARG_BOOL, .optional = true},
    {.name = "resume", .type = QMP_ARG_BOOL, .optional = true},
    {0},
};

static const struct qmp_arg migrate_incoming_args[] = {
    {.name = "uri", .type = QMP_ARG_STR},
    {0},
};

static const struct qmp_arg migrate_continue_args[] = {
    {.name = "state", .type = QMP_ARG_STR},
    {0},
};

static const struct qmp_arg migrate_set_parameters_args[] = {
    {.name = "max-bandwidth", .type = QMP_ARG_INT, .optional = true},
    {.name = "max-postcopy-bandwidth", .type = QMP_ARG_INT, .optional = true},
    {.name = "downtime-limit", .type = QMP_ARG_INT, .optional = true, .max = 2000000},
    {.name = "multifd-channels", .type = QMP_ARG_INT, .optional = true, .min = 1, .max = MIG_MAX_CHANNELS},
    {.name = "strategy", .type = QMP_ARG_STR, .optional = true, .values = qmp_migrate_strategies},
    {.name = "multifd-compression", .type = QMP_ARG_STR, .optional = true, .values = qmp_migrate_compressions},
    {.name = "multifd-zstd-level", .type = QMP_ARG_INT, .optional = true, .min = 1, .max = MIG_ZSTD_LEVEL_MAX},
    {.name = "tls-hostname", .type = QMP_ARG_STR, .optional = true},
    {.name = "max-cpu-throttle", .type = QMP_ARG_INT, .optional = true, .min = 1, .max = 99},
    {0},
};

static const struct qmp_arg migrate_set_capabilities_args[] = {
    {.name = "capabilities", .type = QMP_ARG_ARRAY},
    {0},
};

static const struct qmp_arg mmu_set_args[] = {
    {.name = "tracking", .type = QMP_ARG_STR, .optional = true, .values = config_tracking_names},
    {.name = "sync-interval-us", .type = QMP_ARG_INT, .optional = true, .max = TRACKER_INTERVAL_MAX_US},
    {.name = "cpu-budget", .type = QMP_ARG_INT, .optional = true, .min = 1, .max = 100},
    {.name = "max-memory", .type = QMP_ARG_INT, .optional = true, .min = MIRROR_MAX_MEMORY_MIN, .max = INT64_MAX},
    {.name = "floods", .type = QMP_ARG_BOOL, .optional = true},
    {.name = "page-limit", .type = QMP_ARG_ANY, .optional = true},
    {0},
};

static const struct qmp_arg query_mmu_floods_args[] = {
    {.name = "limit", .type = QMP_ARG_INT, .optional = true, .min = 1, .max = MIRROR_FLOODS_MAX},
    {0},
};

static const struct qmp_arg query_mmu_spaces_args[] = {
    {.name = "limit", .type = QMP_ARG_INT, .optional = true, .min = 1, .max = 4096},
    {.name = "sort", .type = QMP_ARG_STR, .optional = true, .values = space_sorts},
    {0},
};

static const struct qmp_arg query_rmap_args[] = {
    {.name = "gfn", .type = QMP_ARG_INT, .optional = true},
    {.name = "gpa", .type = QMP_ARG_INT, .optional = true},
    {.name = "limit", .type = QMP_ARG_INT, .optional = true, .min = 1, .max = 4096},
    {0},
};

static const struct qmp_arg query_stats_args[] = {
    {.name = "target", .type = QMP_ARG_STR, .values = stats_targets},
    {.name = "vcpus", .type = QMP_ARG_ARRAY, .optional = true},
    {.name = "providers", .type = QMP_ARG_ARRAY, .optional = true},
    {0},
};

static const struct qmp_arg query_stats_schemas_args[] = {
    {.name = "provider", .type = QMP_ARG_STR, .optional = true, .values = stats_providers},
    {0},
};

static const struct qmp_arg set_link_args[] = {
    {.name = "name", .type = QMP_ARG_STR},
    {.name = "up", .type = QMP_ARG_BOOL},
    {0},
};

static const struct qmp_arg snapshot_args[] = {
    {.name = "dir", .type = QMP_ARG_STR},
    {.name = "diff", .type = QMP_ARG_BOOL, .optional = true},
    {.name = "track", .type = QMP_ARG_BOOL, .optional = true},
    {0},
};

const struct qmp_command qmp_commands[] = {
    {"balloon", QMP_WHOLE, balloon_args, "Ask the guest to keep so many bytes of its memory.", qmp_balloon},
    {"balloon-set", QMP_WHOLE, balloon_set_args, "Say how often the guest's memory statistics are read.", qmp_balloon_set},
    {"calc-dirty-rate", QMP_WHOLE, calc_dirty_rate_args, "Measure how fast the guest dirties its memory.", qmp_calc_dirty_rate},
    {"closefd", 0, fd_args, "Close a descriptor that getfd has kept.", qmp_closefd},
    {"cont", 0, NULL, "Let the guest run.", qmp_cont},
    {"dirty-log-ack", QMP_WHOLE, dirty_log_ack_args, "Forget the pages of a consumer's newest epoch.", qmp_dirty_log_ack},
    {"dirty-log-snapshot", QMP_WHOLE, dirty_log_snapshot_args, "Take the pages written since the last snapshot.",
     qmp_dirty_log_snapshot},
    {"dirty-log-start", QMP_WHOLE, dirty_log_start_args, "Add a consumer to the dirty log.", qmp_dirty_log_start},
    {"dirty-log-stop", QMP_WHOLE, dirty_log_stop_args, "Remove a consumer from the dirty log.", qmp_dirty_log_stop},
    {"get-guest-memory", QMP_WHOLE, NULL, "Pass a read-only descriptor of guest memory.", qmp_get_guest_memory},
    {"getfd", 0, fd_args, "Keep a descriptor that comes with the command (SCM_RIGHTS).", qmp_getfd},
    {"migrate", QMP_WHOLE, migrate_args, "Move the guest to another daemon.", qmp_migrate},
    {"migrate-continue", 0, migrate_continue_args, "Let a migration that waits go on.", qmp_migrate_continue},
    {"migrate-incoming", 0, migrate_incoming_args, "Wait for a guest at an address.", qmp_migrate_incoming},
    {"migrate-pause", 0, NULL, "Cut the connection of a post-copy.", qmp_migrate_pause},
    {"migrate-recover", 0, migrate_incoming_args, "Wait at another address for the source of a post-copy.", qmp_migrate_recover},
    {"migrate-set-capabilities", 0, migrate_set_capabilities_args, "Switch features of migration on or off.",
     qmp_migrate_set_capabilities},
    {"migrate-set-parameters", 0, migrate_set_parameters_args, "Set limits of migration.", qmp_migrate_set_parameters},
    {"migrate-start-postcopy", 0, NULL, "Let the guest go before its last pages.", qmp_migrate_start_postcopy},
    {"migrate_cancel", 0, NULL, "End the migration that runs.", qmp_migrate_cancel},
    {"mmu-set", QMP_WHOLE, mmu_set_args, "Change how guest page tables are tracked.", qmp_mmu_set},
    {"mmu-verify", QMP_WHOLE, NULL, "Compare the bookkeeping of a paused guest with its page tables.", qmp_mmu_verify},
    {"qmp_capabilities", QMP_READONLY, capabilities_args, "End negotiation.", qmp_capabilities},
    {"query-balloon", QMP_READONLY | QMP_WHOLE, NULL, "Tell the size of the balloon, and the guest's memory statistics.",
     qmp_query_balloon},
    {"query-block", QMP_READONLY | QMP_WHOLE, NULL, "List the disks and their images.", qmp_query_block},
    {"query-commands", QMP_READONLY, NULL, "List the commands of this socket.", qmp_query_commands},
    {"query-cpus-fast", QMP_READONLY, NULL, "List the vCPUs and their threads.", qmp_query_cpus_fast},
    {"query-dirty-log", QMP_READONLY, NULL, "Tell the state of the dirty log and of its consumers.",
     qmp_query_dirty_log},
    {"query-dirty-rate", QMP_READONLY, NULL, "Tell the result of calc-dirty-rate.", qmp_query_dirty_rate},
    {"query-host", QMP_READONLY, NULL, "Tell what this host's KVM offers.", qmp_query_host},
    {"query-kvm", QMP_READONLY, NULL, "Tell whether KVM is in use.", qmp_query_kvm},
    {"query-memory-size-summary", QMP_READONLY, NULL, "Tell the size of guest memory.",
     qmp_query_memory_size_summary},
    {"query-migrate", QMP_READONLY, NULL, "Tell how the newest migration goes or went.", qmp_query_migrate},
    {"query-migrate-capabilities", QMP_READONLY, NULL, "Tell the features of migration that are on.",
     qmp_query_migrate_capabilities},
    {"query-migrate-parameters", QMP_READONLY, NULL, "Tell the limits of migration.", qmp_query_migrate_parameters},
    {"query-mmu", QMP_READONLY | QMP_WHOLE, NULL, "Tell what is known of the guest's page tables, and how.", qmp_query_mmu},
    {"query-mmu-floods", QMP_READONLY | QMP_WHOLE, query_mmu_floods_args,
     "List page tables that were let go of because they are written all the time.", qmp_query_mmu_floods},
    {"query-mmu-spaces", QMP_READONLY | QMP_WHOLE, query_mmu_spaces_args, "List the guest's address spaces.", qmp_query_mmu_spaces},
    {"query-name", QMP_READONLY, NULL, "Tell the name of the VM.", qmp_query_name},
    {"query-net", QMP_READONLY | QMP_WHOLE, NULL, "List the network cards and how they are.", qmp_query_net},
    {"query-rmap", QMP_READONLY | QMP_WHOLE, query_rmap_args, "List every mapping of a frame of guest memory.", qmp_query_rmap},
    {"query-snapshot", QMP_READONLY, NULL, "Tell what became of the last snapshot.", qmp_query_snapshot},
    {"query-stats", QMP_READONLY, query_stats_args, "Read statistics of the VM or of its vCPUs.", qmp_query_stats},
    {"query-stats-schemas", QMP_READONLY, query_stats_schemas_args, "Describe the statistics that query-stats gives.",
     qmp_query_stats_schemas},
    {"query-status", QMP_READONLY, NULL, "Tell the run state of the VM.", qmp_query_status},
    {"query-version", QMP_READONLY, NULL, "Tell the version of the daemon and of the protocol.", qmp_query_version},
    {"quit", 0, NULL, "End the daemon and its VM at once.", qmp_quit},
    {"set_link", QMP_WHOLE, set_link_args, "Plug a network card's cable in or pull it out.", qmp_set_link},
    {"snapshot", QMP_WHOLE, snapshot_args, "Take a snapshot of the guest.", qmp_snapshot},
    {"snapshot-cancel", 0, NULL, "End the snapshot that is being taken.", qmp_snapshot_cancel},
    {"stop", QMP_WHOLE, NULL, "Pause the guest.", qmp_stop},
    {"system_powerdown", QMP_WHOLE, NULL, "Press the power button.", qmp_system_powerdown},
    {"system_reset", QMP_WHOLE, NULL, "Press the reset button.", qmp_system_reset},
};
const unsigned int qmp_command_count = ARRAY_SIZE(qmp_commands);
