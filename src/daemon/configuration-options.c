/* The table of options, and what each makes of its value. Those of devices are in configuration-devices.c and -net.c. */
#include "config.h"

#include "daemon/configuration-internal.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/http.h"
#include "base/paths.h"
#include "base/size.h"
#include "boot/boot.h"
#include "mmu/mem.h"
#include "mmu/page-limit.h"
#include "vcpu/vm.h"

const char *const config_tracking_names[] = {
    [TRACKER_OFF] = "off",
    [TRACKER_ON_DEMAND] = "on-demand",
    [TRACKER_LIVE] = "live",
    [TRACKER_PRECISE] = "precise",
    [TRACKER_PRECISE + 1] = NULL,
};

static int set_flag(bool *to, const char *value)
{
    *to = strcmp(value, "true") == 0;
    return 0;
}

static int set_name(struct config *c, const char *value, char *error)
{
    if (!vm_name_valid(value))
        return config_fail(error, "\"%.80s\" is no VM name (1 to %d letters, digits, '.', '_', '-', first a letter or digit)",
                    value, VM_NAME_MAX);
    return config_set_string(&c->name, value);
}

static int set_kernel(struct config *c, const char *value, char *error)
{
    return config_set_path(&c->kernel, value, error);
}

static int set_initrd(struct config *c, const char *value, char *error)
{
    return config_set_path(&c->initrd, value, error);
}

static int set_cmdline(struct config *c, const char *value, char *error)
{
    if (strlen(value) > BOOT_CMDLINE_MAX)
        return config_fail(error, "%zu bytes exceed %d", strlen(value), BOOT_CMDLINE_MAX);
    return config_set_string(&c->cmdline, value);
}

static int set_memory(struct config *c, const char *value, char *error)
{
    char least[32], most[32];
    uint64_t v;

    if (size_parse(value, &v) < 0)
        return config_fail(error, "\"%.40s\" is no size (write it like 512M or 4G)", value);
    if (v < MEM_SIZE_MIN || v > MEM_SIZE_MAX)
        return config_fail(error, "%" PRIu64 " bytes is not between %s and %s", v, size_format(MEM_SIZE_MIN, least, sizeof(least)),
                    size_format(MEM_SIZE_MAX, most, sizeof(most)));
    if (!is_aligned(v, MEM_SIZE_ALIGN))
        return config_fail(error, "%" PRIu64 " bytes is not a multiple of %s", v, size_format(MEM_SIZE_ALIGN, least, sizeof(least)));
    c->memory = v;
    return 0;
}

static int set_cpus(struct config *c, const char *value, char *error)
{
    uint64_t v;

    if (size_parse_u64(value, VM_MAX_VCPUS, &v) < 0 || v == 0)
        return config_fail(error, "\"%.40s\" is not a number from 1 to %d", value, VM_MAX_VCPUS);
    c->cpus = (unsigned int)v;
    return 0;
}

static int set_paging(struct config *c, const char *value, char *error)
{
    static const char *const values[] = {[CONFIG_PAGING_SHADOW] = "shadow", [CONFIG_PAGING_ANY] = "any", NULL};
    int i = config_choose(values, value, error);

    if (i < 0)
        return i;
    c->paging = (enum config_paging)i;
    return 0;
}

static int set_dirty_log(struct config *c, const char *value, char *error)
{
    static const char *const values[] = {[DIRTY_BITMAP] = "bitmap", [DIRTY_RING] = "ring", NULL};
    int i = config_choose(values, value, error);

    if (i < 0)
        return i;
    c->dirty_log = (enum dirty_backend)i;
    return 0;
}

static int set_mmu(struct config *c, const char *value, char *error)
{
    int i = config_choose(config_tracking_names, value, error);

    if (i < 0)
        return i;
    c->mmu.mode = (enum tracker_mode)i;
    return 0;
}

static int set_number(const char *value, uint64_t min, uint64_t max, uint64_t *ret, char *error)
{
    uint64_t v;

    if (size_parse_u64(value, max, &v) < 0 || v < min)
        return config_fail(error, "\"%.40s\" is not a number from %" PRIu64 " to %" PRIu64, value, min, max);
    *ret = v;
    return 0;
}

static int set_mmu_sync_interval(struct config *c, const char *value, char *error)
{
    if (strcmp(value, "0") != 0)
        return set_number(value, TRACKER_INTERVAL_MIN_US, TRACKER_INTERVAL_MAX_US, &c->mmu.interval_us, error);
    c->mmu.interval_us = 0;
    return 0;
}

static int set_mmu_cpu_budget(struct config *c, const char *value, char *error)
{
    uint64_t v = 0;
    int r = set_number(value, 1, 100, &v, error);

    if (r == 0)
        c->mmu.cpu_budget = (unsigned int)v;
    return r;
}

static int set_mmu_max_memory(struct config *c, const char *value, char *error)
{
    char least[32];
    uint64_t v;

    if (size_parse(value, &v) < 0)
        return config_fail(error, "\"%.40s\" is no size (write it like 64M)", value);
    if (v < MIRROR_MAX_MEMORY_MIN)
        return config_fail(error, "%" PRIu64 " bytes is less than %s", v, size_format(MIRROR_MAX_MEMORY_MIN, least, sizeof(least)));
    c->mmu.max_memory = v;
    return 0;
}

static int set_mmu_page_limit(struct config *c, const char *value, char *error)
{
    if (strcmp(value, "auto") == 0 || strcmp(value, "off") == 0) {
        c->page_limit = *value == 'a' ? CONFIG_PAGE_LIMIT_AUTO : CONFIG_PAGE_LIMIT_OFF;
        return 0;
    }
    if (set_number(value, PAGE_LIMIT_MIN, UINT32_MAX, &c->page_limit_pages, error) < 0)
        return config_fail(error, "\"%.40s\" is neither auto nor off nor a number of pages from %u", value, (unsigned int)PAGE_LIMIT_MIN);
    c->page_limit = CONFIG_PAGE_LIMIT_MANUAL;
    return 0;
}

static int set_mmu_floods(struct config *c, const char *value, char *error)
{
    static const char *const values[] = {"on", "off", NULL};
    int i = config_choose(values, value, error);

    if (i < 0)
        return i;
    c->mmu.floods = i == 0;
    return 0;
}

static int set_log_level(struct config *c, const char *value, char *error)
{
    static const char *const values[] = {"error", "warning", "info", "debug", NULL};
    static const enum log_level levels[] = {LOG_LEVEL_ERR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG};
    int i = config_choose(values, value, error);

    if (i < 0)
        return i;
    c->log_level = levels[i];
    return 0;
}

static int set_metrics(struct config *c, const char *value, char *error)
{
    struct sockaddr_storage addr;
    socklen_t len;

    if (http_parse_address(value, &addr, &len) < 0)
        return config_fail(error, "\"%.80s\" is not ADDR:PORT with a numeric address, as in 127.0.0.1:9750 or [::1]:9750", value);
    return config_set_string(&c->metrics, value);
}

static int set_runtime_dir(struct config *c, const char *value, char *error)
{
    return config_set_path(&c->runtime_dir, value, error);
}

static int set_config_file(struct config *c, const char *value, char *error)
{
    return config_set_path(&c->config_file, value, error);
}

static int set_check_config(struct config *c, const char *value, char *error)
{
    c->action = CONFIG_CHECK_CONFIG;
    return config_set_path(&c->config_file, value, error);
}

static int set_incoming(struct config *c, const char *value, char *error)
{
    return config_set_path(&c->incoming, value, error);
}

static int set_mmu_page_limit_share(struct config *c, const char *value, char *error)
{
    uint64_t v = 0;
    int r = set_number(value, 1, 50, &v, error);

    if (r == 0)
        c->page_limit_share = (unsigned int)v;
    return r;
}

static int set_thp(struct config *c, const char *value, char *error)
{
    static const char *const values[] = {"off", "on", NULL};
    int v = config_choose(values, value, error);

    if (v < 0)
        return v;
    c->thp = v;
    return 0;
}

static int set_halt_poll(struct config *c, const char *value, char *error)
{
    uint64_t ns = 0;
    bool set = strcmp(value, "host") != 0;
    int r = set ? set_number(value, 0, 1000000, &ns, error) : 0;

    if (r < 0)
        return r;
    c->set_halt_poll = set;
    c->halt_poll_ns = (uint32_t)ns;
    return 0;
}

static int fail_feature(const char *name, char *error)
{
    char list[CONFIG_ERROR_MAX - 64] = "";
    size_t len = 0;

    for (unsigned int i = 0; cpuid_feature_name(i) && len < sizeof(list); i++)
        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", i ? ", " : "", cpuid_feature_name(i));
    return config_fail(error, "\"%.20s\" is none of %s", name, list);
}

static int set_cpu_off(struct config *c, const char *value, char *error)
{
    cpuid_features off = 0;

    for (const char *at = value; *at;) {
        size_t len = strcspn(at, ",");
        char name[32] = "";
        cpuid_features bit;

        memcpy(name, at, MIN(len, sizeof(name) - 1));
        bit = cpuid_feature(name);
        if (!bit)
            return fail_feature(name, error);
        off |= bit;
        at += len + (at[len] == ',');
    }
    c->cpu_off = off;
    return 0;
}

static int set_restore(struct config *c, const char *value, char *error)
{
    return config_set_path(&c->restore, value, error);
}

static int set_tls_creds(struct config *c, const char *value, char *error)
{
    return config_set_path(&c->tls_creds, value, error);
}

static int set_snapshot_dir(struct config *c, const char *value, char *error)
{
    return config_set_path(&c->snapshot_dir, value, error);
}

static int set_eager(struct config *c, const char *value, char *error)
{
    return set_flag(&c->eager, value);
}

static int set_verify(struct config *c, const char *value, char *error)
{
    return set_flag(&c->verify, value);
}

static int set_hugepages(struct config *c, const char *value, char *error)
{
    return set_flag(&c->hugepages, value);
}

static int set_prealloc(struct config *c, const char *value, char *error)
{
    return set_flag(&c->prealloc, value);
}

static int set_paused(struct config *c, const char *value, char *error)
{
    return set_flag(&c->paused, value);
}

static int set_test_device(struct config *c, const char *value, char *error)
{
    return set_flag(&c->test_device, value);
}

static int set_sandbox(struct config *c, const char *value, char *error)
{
    static const char *const values[] = {[SANDBOX_ENFORCE] = "enforce", [SANDBOX_ERRNO] = "errno", [SANDBOX_LOG] = "log",
                                         [SANDBOX_OFF] = "off", NULL};
    int i = config_choose(values, value, error);

    if (i < 0)
        return i;
    c->sandbox = (enum sandbox_mode)i;
    return 0;
}

static int set_user(struct config *c, const char *value, char *error)
{
    if (!user_name_valid(value))
        return config_fail(error, "\"%.40s\" is no user name", value);
    return config_set_string(&c->user, value);
}

static int set_print_config(struct config *c, const char *value, char *error)
{
    c->action = CONFIG_PRINT_CONFIG;
    return 0;
}

static int set_check_host(struct config *c, const char *value, char *error)
{
    c->action = CONFIG_CHECK_HOST;
    return 0;
}

static int set_version(struct config *c, const char *value, char *error)
{
    c->action = CONFIG_VERSION;
    return 0;
}

static int set_help(struct config *c, const char *value, char *error)
{
    c->action = CONFIG_HELP;
    return 0;
}

const struct option_row config_options[] = {
    {"name", "NAME", "the VM's name (default: the configuration file's, else \"umbra\")", EVERYWHERE, set_name, false},
    {"config", "FILE", "read this configuration first; the command line wins", CMDLINE_FIRST, set_config_file, false},
    {"kernel", "FILE", "bzImage, PVH ELF or multiboot image to start", EVERYWHERE, set_kernel, false},
    {"initrd", "FILE", "initial RAM disk", EVERYWHERE, set_initrd, false},
    {"cmdline", "TEXT", "kernel command line", EVERYWHERE, set_cmdline, false},
    {"memory", "SIZE", "guest memory, as 512M or 4G (default 512M)", EVERYWHERE, set_memory, false},
    {"cpus", "N", "virtual CPUs, 1 to 32 (default 1)", EVERYWHERE, set_cpus, false},
    {"console", "WHERE", "first serial port: socket (default), stdio, pty, file:PATH, none", EVERYWHERE, config_set_console, false},
    {"net", "KIND[,WORD]...", "add a network card: tap, user, passt,socket=PATH, fd=N[:N...]; ifname=, queues=, mac=, mtu=, tcp=, udp=",
     EVERYWHERE, config_add_net, true},
    {"disk", "PATH[,WORD]...", "add a raw image or block device: ro, direct, aio=io_uring|threads, serial=TEXT, queues=N",
     EVERYWHERE, config_add_disk, true},
    {"rng", "off|on[,rate=BYTES]", "random numbers for the guest (default on), so many bytes a second at most", EVERYWHERE,
     config_set_rng, false},
    {"balloon", "off|on[,WORD]...", "lend memory back to the host (default off): free-page-reporting, deflate-on-oom", EVERYWHERE,
     config_set_balloon, false},
    {"virtio-console", "WHERE", "a second, fast console (hvc0): off (default), socket, stdio, pty, file:PATH, none", EVERYWHERE,
     config_set_virtio_console, false},
    {"paging", "MODE", "shadow: start only where KVM uses shadow page tables (default); any", EVERYWHERE, set_paging, false},
    {"dirty-log", "KIND", "how KVM reports written pages: bitmap (default) or ring", EVERYWHERE, set_dirty_log, false},
    {"mmu", "MODE", "track guest page tables: live (default), precise, on-demand, off", EVERYWHERE, set_mmu, false},
    {"mmu-sync-interval-us", "N", "time from one look at them to the next (default 0: as many as there are)", EVERYWHERE,
     set_mmu_sync_interval, false},
    {"mmu-cpu-budget", "PERCENT", "how much of one CPU looking may take (default 1)", EVERYWHERE, set_mmu_cpu_budget, false},
    {"mmu-max-memory", "SIZE", "how much memory the bookkeeping may take (default 256M)", EVERYWHERE, set_mmu_max_memory, false},
    {"mmu-page-limit", "PAGES", "KVM's limit on shadow pages: auto (default), off, or a number", EVERYWHERE,
     set_mmu_page_limit, false},
    {"mmu-floods", "on|off", "let go of page tables that are written all the time (default on)", EVERYWHERE,
     set_mmu_floods, false},
    {"mmu-page-limit-share", "PERCENT", "auto gives at most so much of the host's memory (default 5)", EVERYWHERE,
     set_mmu_page_limit_share, false},
    {"cpu-off", "LIST", "CPU features that are not offered: pcid, invpcid, pge, async-pf and others", EVERYWHERE, set_cpu_off, false},
    {"halt-poll", "NS", "how long a halted vCPU polls for work: host (default: as the kvm module says) or 0 to 1000000",
     EVERYWHERE, set_halt_poll, false},
    {"thp", "on|off", "transparent huge pages behind guest memory, where the host gives them (default on)", EVERYWHERE, set_thp,
     false},
    {"metrics", "ADDR:PORT", "serve metrics there too (they always are on the socket metrics.sock)", EVERYWHERE, set_metrics,
     false},
    {"hugepages", NULL, "back guest memory with 2 MiB hugetlb pages", EVERYWHERE, set_hugepages, false},
    {"prealloc", NULL, "touch all guest memory before the start", EVERYWHERE, set_prealloc, false},
    {"paused", NULL, "do not run the guest until cont", EVERYWHERE, set_paused, false},
    {"incoming", "URI", "wait for a guest that migrates here: tcp:HOST:PORT, unix:PATH, fd:N, or defer", CMDLINE_ONLY,
     set_incoming, false},
    {"restore", "DIR", "go on from a snapshot, with its configuration unless said otherwise", CMDLINE_FIRST, set_restore, false},
    {"eager", NULL, "with --restore: copy guest memory instead of mapping the snapshot's file", CMDLINE_ONLY, set_eager, false},
    {"verify", NULL, "with --restore: check the checksums of guest memory first", CMDLINE_ONLY, set_verify, false},
    {"tls-creds", "DIR", "migrate over tcp: and fd: encrypted, with DIR/{ca,cert,key}.pem", EVERYWHERE, set_tls_creds, false},
    {"snapshot-dir", "DIR", "where snapshots may be written (default: below /var/lib/umbra/NAME only)", EVERYWHERE, set_snapshot_dir,
     false},
    {"test-device", NULL, "a guest's write of CODE to port 0xf4 ends umbrad with (CODE << 1) | 1", EVERYWHERE, set_test_device, false},
    {"sandbox", "MODE", "a system call beyond what is needed: enforce (default) ends umbrad, errno refuses it, log, off",
     EVERYWHERE, set_sandbox, false},
    {"user", "NAME", "run as that user (default, where root starts it: \"umbra\", if there is one)", EVERYWHERE, set_user, false},
    {"log-level", "LEVEL", "error, warning, info (default) or debug", EVERYWHERE, set_log_level, false},
    {"runtime-dir", "DIR", "where sockets go (default /run/umbra, or $XDG_RUNTIME_DIR/umbra)", CMDLINE_ONLY, set_runtime_dir, false},
    {"check-config", "FILE", "say what is wrong with a configuration file, and end", CMDLINE_FIRST, set_check_config, false},
    {"print-config", NULL, "print the other options as a configuration file, and end", CMDLINE_ONLY, set_print_config, false},
    {"check-host", NULL, "say what this host offers, and end", CMDLINE_ONLY, set_check_host, false},
    {"version", NULL, "print the version, and end", CMDLINE_ONLY, set_version, false},
    {"help", NULL, "print this, and end", CMDLINE_ONLY, set_help, false},
};

const size_t config_option_count = ARRAY_SIZE(config_options);
static_assert(ARRAY_SIZE(config_options) <= CONFIG_OPTIONS_MAX, "room for all options");

const struct option_row *config_find_option(const char *key)
{
    for (size_t i = 0; i < config_option_count; i++)
        if (strcmp(config_options[i].key, key) == 0)
            return &config_options[i];
    return NULL;
}
