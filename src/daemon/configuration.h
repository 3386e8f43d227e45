/*
 * What a VM is made of, from the command line and a JSON file (same keys). Strings belong to the config. Main thread.
 */
#ifndef UMBRA_DAEMON_CONFIGURATION_H
#define UMBRA_DAEMON_CONFIGURATION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "base/log.h"
#include "device/chardev.h"
#include "device/net-backend.h"
#include "device/virtio/balloon.h"
#include "device/virtio/blk.h"
#include "device/virtio/rng.h"
#include "mmu/dirty.h"
#include "vcpu/cpuid.h"
#include "mmu/tracker.h"

#define CONFIG_ERROR_MAX 320
#define CONFIG_FILE_MAX (1u << 20)
#define CONFIG_MAX_DISKS 12
#define CONFIG_MAX_NETS 4
#define CONFIG_DEFAULT_MEMORY (UINT64_C(512) << 20)

enum config_paging {
    CONFIG_PAGING_SHADOW,
    CONFIG_PAGING_ANY,
};

/* KVM's limit on shadow pages. */
enum config_page_limit {
    CONFIG_PAGE_LIMIT_AUTO,
    CONFIG_PAGE_LIMIT_OFF,    /* as KVM chooses it */
    CONFIG_PAGE_LIMIT_MANUAL, /* page_limit_pages */
};

/* What becomes of a system call that a thread has no need of; see daemon/sandbox.h. */
enum sandbox_mode {
    SANDBOX_ENFORCE,
    SANDBOX_ERRNO,
    SANDBOX_LOG,
    SANDBOX_OFF,
};

enum config_action {
    CONFIG_RUN,
    CONFIG_CHECK_CONFIG,
    CONFIG_PRINT_CONFIG,
    CONFIG_CHECK_HOST,
    CONFIG_VERSION,
    CONFIG_HELP,
};

struct config {
    enum config_action action;
    char *name;
    char *kernel, *initrd, *cmdline;
    uint64_t memory; /* bytes */
    unsigned int cpus;
    bool hugepages, prealloc, paused, test_device;
    enum chardev_kind console;
    char *console_path; /* file:PATH */
    char *incoming;     /* where a guest arrives from, instead of starting one; NULL: none */
    char *restore;      /* the snapshot that the guest goes on from; NULL: none */
    char *tls_creds; /* directory of certificates for migration; NULL: it is not encrypted */
    char *snapshot_dir; /* below it snapshots may be written, besides the VM's own directories; NULL: nowhere else */
    bool eager, verify; /* how: see umbra-snapshot(5) */
    struct vblk_config disks[CONFIG_MAX_DISKS];
    unsigned int disk_count;
    unsigned int disk_inherited; /* the first of them, which a snapshot brought: named anew they go */
    struct net_config nets[CONFIG_MAX_NETS];
    unsigned int net_count;
    unsigned int net_inherited; /* as disk_inherited */
    struct vrng_config rng;
    struct vballoon_config balloon;
    bool virtio_console;
    enum chardev_kind virtio_console_kind;
    char *virtio_console_path; /* file:PATH */
    enum config_paging paging;
    enum dirty_backend dirty_log;
    unsigned int page_limit_share; /* percent */
    bool thp;                      /* ask for transparent huge pages */
    cpuid_features cpu_off;
    bool set_halt_poll;
    uint32_t halt_poll_ns;
    struct tracker_settings mmu;
    enum config_page_limit page_limit;
    uint64_t page_limit_pages;
    char *runtime_dir;    /* as resolved */
    const char *kvm_path; /* $UMBRA_KVM or /dev/kvm; not owned */
    char *config_file;    /* that was read, or NULL */
    char *metrics;        /* ADDR:PORT to serve metrics on too, or NULL */
    enum log_level log_level;
    enum sandbox_mode sandbox;
    char *user;    /* to run as; NULL: the default */
    json_t *given; /* what the command line said, as a configuration file would; may be NULL */
};

/* As configuration and QMP spell enum tracker_mode; ends with NULL. */
extern const char *const config_tracking_names[];

void config_init(struct config *c);
void config_clear(struct config *c);

/*
 * Read argv (and the --config file it names; the command line wins). -EINVAL for a usage error, -EBADMSG for a file that
 * makes no sense, else -errno; `error` (CONFIG_ERROR_MAX) holds one line: option, value and limit, or file, line and key.
 */
int config_parse_args(struct config *c, int argc, char **argv, char *error);

/* Parse configuration text (comments allowed); `file` is its name in errors. -EINVAL. */
int config_parse_json(struct config *c, const char *file, const char *text, size_t len, char *error);

/* Whole-config checks (kernel given, names, ranges); -EINVAL. */
int config_check(const struct config *c, char *error);

/* Print what the command line said as a configuration file. */
void config_print(const struct config *c);

/* The table of options, for tests of the manuals: false beyond the last. */
struct config_option {
    const char *key, *arg, *help; /* arg: NULL for a flag */
    bool in_file;
};
bool config_option_at(unsigned int index, struct config_option *ret);

/* True for a guest that comes from elsewhere instead of being started: by migration or from a snapshot. */
static inline bool config_arrives(const struct config *c)
{
    return c->incoming || c->restore;
}

/*
 * What the guest sees of the configuration, as keys that config_parse_json takes, paths absolute: for a snapshot. NULL when
 * out of memory.
 */
json_t *config_describe(const struct config *c);

void config_print_help(void);

#endif
