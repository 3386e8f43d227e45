/*
 * One table of options serves the command line, the configuration file and the help text: a key of the file is the long
 * option of the same name, its value written as JSON (a flag is a boolean, a count may be a number).
 */
#include "config.h"

#include "daemon/configuration.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "base/fd.h"
#include "base/http.h"
#include "base/json.h"
#include "base/paths.h"
#include "base/size.h"
#include "boot/boot.h"
#include "daemon/configuration-internal.h"
#include "daemon/configuration-keys.h"
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

enum option_where {
    CMDLINE_ONLY,
    EVERYWHERE,
};

struct option_row {
    const char *key;
    const char *arg; /* what the value is, for the help text; NULL for a flag */
    const char *help;
    enum option_where where;
    /* value is "true" or "false" for a flag. -EINVAL with the reason in error (without the option's name). */
    int (*set)(struct config *c, const char *value, char *error);
    bool list; /* may be given several times, and be an array in the file: all of them count */
};

int config_fail(char *error, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(error, CONFIG_ERROR_MAX, fmt, ap);
    va_end(ap);
    return -EINVAL;
}

int config_set_string(char **to, const char *value)
{
    char *copy = strdup(value);

    if (!copy)
        return -ENOMEM;
    free(*to);
    *to = copy;
    return 0;
}

int config_set_path(char **to, const char *value, char *error)
{
    if (!*value)
        return config_fail(error, "the path is empty");
    return config_set_string(to, value);
}

static int set_flag(bool *to, const char *value)
{
    *to = strcmp(value, "true") == 0;
    return 0;
}

int config_choose(const char *const *values, const char *value, char *error)
{
    char list[160] = "";
    size_t len = 0;

    for (int i = 0; values[i]; i++) {
        if (strcmp(values[i], value) == 0)
            return i;
        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", i ? ", " : "", values[i]);
    }
    return config_fail(error, "\"%.40s\" is none of %s", value, list);
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

static const struct option_row options[] = {
    {"name", "NAME", "the VM's name (default: the configuration file's, else \"umbra\")", EVERYWHERE, set_name, false},
    {"config", "FILE", "read this configuration first; the command line wins", CMDLINE_ONLY, set_config_file, false},
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
    {"restore", "DIR", "go on from a snapshot, with its configuration unless said otherwise", CMDLINE_ONLY, set_restore, false},
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
    {"check-config", "FILE", "say what is wrong with a configuration file, and end", CMDLINE_ONLY, set_check_config, false},
    {"print-config", NULL, "print the other options as a configuration file, and end", CMDLINE_ONLY, set_print_config, false},
    {"check-host", NULL, "say what this host offers, and end", CMDLINE_ONLY, set_check_host, false},
    {"version", NULL, "print the version, and end", CMDLINE_ONLY, set_version, false},
    {"help", NULL, "print this, and end", CMDLINE_ONLY, set_help, false},
};

void config_init(struct config *c)
{
    *c = (struct config){
        .action = CONFIG_RUN,
        .memory = CONFIG_DEFAULT_MEMORY,
        .cpus = 1,
        .console = CHARDEV_SOCKET,
        .rng = {.on = true},
        .paging = CONFIG_PAGING_SHADOW,
        .dirty_log = DIRTY_BITMAP,
        .page_limit_share = PAGE_LIMIT_SHARE_DEFAULT,
        .thp = true,
        .log_level = LOG_LEVEL_INFO,
    };
    tracker_default_settings(&c->mmu);
}

void config_clear(struct config *c)
{
    free(c->name);
    free(c->kernel);
    free(c->initrd);
    free(c->cmdline);
    free(c->console_path);
    free(c->virtio_console_path);
    free(c->incoming);
    free(c->metrics);
    free(c->restore);
    free(c->snapshot_dir);
    free(c->tls_creds);
    free(c->runtime_dir);
    free(c->config_file);
    free(c->user);
    json_object_put(c->given);
    for (unsigned int i = 0; i < c->disk_count; i++) {
        free(c->disks[i].path);
        free(c->disks[i].serial);
    }
    for (unsigned int i = 0; i < c->net_count; i++)
        config_clear_net(&c->nets[i]);
    *c = (struct config){0};
}

static const struct option_row *find_option(const char *key)
{
    for (size_t i = 0; i < ARRAY_SIZE(options); i++)
        if (strcmp(options[i].key, key) == 0)
            return &options[i];
    return NULL;
}

/* -- the file -- */

static unsigned int line_at(const char *text, size_t offset)
{
    unsigned int line = 1;

    for (size_t i = 0; i < offset; i++)
        line += text[i] == '\n';
    return line;
}

/* The value of a key as the command line would have it; -EINVAL with the reason. */
static int json_value_text(const struct option_row *o, json_t *v, const char **ret, char *error)
{
    if (!o->arg) {
        if (!json_object_is_type(v, json_type_boolean))
            return config_fail(error, "wants true or false");
        *ret = json_object_get_boolean(v) ? "true" : "false";
        return 0;
    }
    if (strcmp(o->arg, "on|off") == 0 && json_object_is_type(v, json_type_boolean)) {
        *ret = json_object_get_boolean(v) ? "on" : "off";
        return 0;
    }
    if (!json_object_is_type(v, json_type_string) && !json_object_is_type(v, json_type_int))
        return config_fail(error, "wants a string or a number");
    *ret = json_object_get_string(v);
    if (strlen(*ret) != (size_t)json_object_get_string_len(v) && json_object_is_type(v, json_type_string))
        return config_fail(error, "has a NUL character in it");
    return 0;
}

static int apply_json_value(struct config *c, const struct option_row *o, json_t *v, char *error)
{
    const char *value = NULL;
    int r = json_value_text(o, v, &value, error);

    return r < 0 ? r : o->set(c, value, error);
}

static int apply_json_key(struct config *c, const char *key, json_t *v, char *error);

/* "mmu": {"tracking": X, "cpu-budget": Y} is the same as "mmu": X and "mmu-cpu-budget": Y. */
static int apply_mmu_object(struct config *c, json_t *object, char *error)
{
    json_object_object_foreach(object, key, value)
    {
        char option[64], why[CONFIG_ERROR_MAX] = "";
        int n = snprintf(option, sizeof(option), "mmu-%s", key), r;

        if (n >= (int)sizeof(option) || json_object_is_type(value, json_type_object))
            return config_fail(error, "%.40s: is no key of mmu", key);
        r = apply_json_key(c, strcmp(key, "tracking") == 0 ? "mmu" : option, value, why);
        if (r == -EINVAL)
            return config_fail(error, "%.40s: %.200s", key, why);
        if (r < 0)
            return r;
    }
    return 0;
}

static int apply_json_key(struct config *c, const char *key, json_t *v, char *error)
{
    const struct option_row *o = find_option(key);
    size_t n;
    int r = 0;

    if (strcmp(key, "mmu") == 0 && json_object_is_type(v, json_type_object))
        return apply_mmu_object(c, v, error);
    if (!o || o->where != EVERYWHERE)
        return config_fail(error, "is no key of a configuration");
    if (!o->list || !json_object_is_type(v, json_type_array))
        return apply_json_value(c, o, v, error);
    n = json_object_array_length(v);
    for (size_t i = 0; i < n && r == 0; i++)
        r = apply_json_value(c, o, json_object_array_get_idx(v, i), error);
    return r;
}

int config_parse_json(struct config *c, const char *file, const char *text, size_t len, char *error)
{
    struct json_tokener *tok = json_tokener_new_ex(8);
    _cleanup_json_ json_t *root = NULL;
    enum json_tokener_error err;
    struct config_keys twice;
    size_t end;
    int r = 0;

    if (!tok)
        return -ENOMEM;
    if (len > CONFIG_FILE_MAX)
        r = config_fail(error, "%s: %zu bytes exceed %u", file, len, CONFIG_FILE_MAX);
    if (r == 0) {
        root = json_tokener_parse_ex(tok, text, (int)len);
        err = json_tokener_get_error(tok);
        end = json_tokener_get_parse_end(tok);
        if (err == json_tokener_continue)
            r = config_fail(error, "%s:%u: the text ends inside a value", file, line_at(text, len));
        else if (err != json_tokener_success)
            r = config_fail(error, "%s:%u: %s", file, line_at(text, end), json_tokener_error_desc(err));
        else if (!json_object_is_type(root, json_type_object))
            r = config_fail(error, "%s:1: wants an object in { }", file);
        else if (!config_text_blank(text + end, len - end))
            r = config_fail(error, "%s:%u: there is more after the end of the object", file, line_at(text, end));
    }
    json_tokener_free(tok);
    if (r < 0)
        return r;
    json_object_object_foreach(root, key, value)
    {
        char why[CONFIG_ERROR_MAX] = "";

        r = apply_json_key(c, key, value, why);
        if (r == -EINVAL)
            return config_fail(error, "%.120s:%u: %.40s: %.140s", file, config_keys_line(text, len, key), key, why);
        if (r < 0)
            return r;
    }
    /* Only now: all keys are known ones, so a repetition is among the first few. */
    if (config_keys_duplicate(text, len, &twice))
        return config_fail(error, "%.120s:%u: %.*s: stands there twice", file, twice.key_line, (int)MIN(twice.key_len, (size_t)40),
                    twice.key);
    return 0;
}

static int read_config_file(struct config *c, char *error)
{
    _cleanup_free_ char *text = NULL, *file = strdup(c->config_file);
    size_t len;
    int r;

    if (!file)
        return -ENOMEM;
    r = fd_read_file(file, CONFIG_FILE_MAX, &text, &len);
    if (r == -EFBIG) {
        config_fail(error, "%.200s: more than %u bytes", file, CONFIG_FILE_MAX);
        return r;
    }
    if (r < 0) {
        config_fail(error, "%.200s: %s", file, strerrordesc_np(-r));
        return r;
    }
    r = config_parse_json(c, file, text, len, error);
    return r == -EINVAL ? -EBADMSG : r;
}

/* -- the command line -- */

/* A value as a configuration file has it: a number where it is written as one. */
static json_t *value_as_json(const struct option_row *o, const char *value)
{
    uint64_t number;
    bool plain = value && (value[0] != '0' || value[1] == '\0');

    if (!o->arg)
        return json_object_new_boolean(true);
    if (plain && size_parse_u64(value, INT64_MAX, &number) == 0)
        return json_object_new_int64((int64_t)number);
    return json_object_new_string(value);
}

/* Remember an option for --print-config: the last one counts, or all of them as an array. */
static int remember(struct config *c, const struct option_row *o, const char *value)
{
    json_t *v, *list;
    int r;

    if (o->where != EVERYWHERE)
        return 0;
    if (!c->given)
        c->given = json_object_new_object();
    v = value_as_json(o, value);
    if (o->list && json_get_array(c->given, o->key, &list) == 0) {
        r = json_object_array_add(list, v);
    } else {
        if (o->list) {
            list = json_object_new_array();
            json_push(list, v);
            v = list;
        }
        r = c->given && v ? json_object_object_add(c->given, o->key, v) : -1;
    }
    if (r == 0)
        return 0;
    json_object_put(v);
    return -ENOMEM;
}

static int apply_args(struct config *c, int argc, char **argv, bool only_file, char *error)
{
    struct option longopts[ARRAY_SIZE(options) + 1] = {0};
    int index, opt;

    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        longopts[i].name = options[i].key;
        longopts[i].has_arg = options[i].arg ? required_argument : no_argument;
    }
    optind = 0; /* start afresh: this runs twice */
    opterr = 0;
    while ((opt = getopt_long(argc, argv, "+:h", longopts, &index)) != -1) {
        const struct option_row *o;
        char why[CONFIG_ERROR_MAX] = "";
        int r;

        if (opt == ':')
            return config_fail(error, "%.80s wants a value", argv[optind - 1]);
        if (opt == 'h')
            index = (int)(find_option("help") - options);
        else if (opt == '?')
            return config_fail(error, "%.80s: no such option, or a value where none belongs (--help lists them)", argv[optind - 1]);
        o = &options[index];
        if (only_file && o->set != set_config_file && o->set != set_check_config && o->set != set_restore)
            continue;
        r = o->set(c, o->arg ? optarg : "true", why);
        if (r == -EINVAL)
            return config_fail(error, "--%s: %.250s", o->key, why);
        if (r == 0 && !only_file)
            r = remember(c, o, optarg);
        if (r < 0)
            return r;
    }
    if (optind < argc)
        return config_fail(error, "\"%.80s\" is not an option", argv[optind]);
    return 0;
}

/* Defaults that come from the environment. */
static int resolve(struct config *c, char *error)
{
    char dir[4096];
    int r;

    c->kvm_path = getenv("UMBRA_KVM");
    if (!c->kvm_path || !*c->kvm_path)
        c->kvm_path = "/dev/kvm";
    r = paths_runtime_dir(c->runtime_dir, dir, sizeof(dir));
    if (r == -ENOENT && c->action != CONFIG_RUN)
        dir[0] = '\0';
    else if (r == -ENOENT)
        return config_fail(error, "XDG_RUNTIME_DIR is not set: give --runtime-dir");
    else if (r < 0)
        return config_fail(error, "--runtime-dir: longer than %zu bytes", sizeof(dir) - 1);
    r = config_set_string(&c->runtime_dir, dir);
    if (r == 0 && !c->name)
        r = config_set_string(&c->name, "umbra");
    return r;
}

int config_parse_args(struct config *c, int argc, char **argv, char *error)
{
    /* Twice: snapshot and file first, wherever the command line names them, then the options that win over them. */
    int r = apply_args(c, argc, argv, true, error);

    if (r == 0 && c->restore)
        r = config_read_snapshot(c, error);
    if (r == 0 && c->config_file)
        r = read_config_file(c, error);
    if (r == 0)
        r = apply_args(c, argc, argv, false, error);
    if (r == 0)
        r = resolve(c, error);
    if (r == -ENOMEM)
        config_fail(error, "out of memory");
    return r;
}

int config_check(const struct config *c, char *error)
{
    if (!c->kernel)
        return config_fail(error, "no kernel: give --kernel FILE");
    if (c->restore && c->incoming)
        return config_fail(error, "--restore and --incoming exclude each other");
    if ((c->eager || c->verify) && !c->restore)
        return config_fail(error, "--%s goes with --restore only", c->eager ? "eager" : "verify");
    if (c->console == CHARDEV_STDIO && c->virtio_console && c->virtio_console_kind == CHARDEV_STDIO)
        return config_fail(error, "--console and --virtio-console cannot both be stdio");
    if (c->hugepages && !is_aligned(c->memory, 2 * MiB))
        return config_fail(error, "--hugepages: memory of %" PRIu64 " bytes is not a multiple of 2 MiB", c->memory);
    return 0;
}

void config_print(const struct config *c)
{
    if (!c->given)
        puts("{}");
    else
        puts(json_object_to_json_string_ext(c->given, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                          JSON_C_TO_STRING_NOSLASHESCAPE));
}

bool config_option_at(unsigned int index, struct config_option *ret)
{
    if (index >= ARRAY_SIZE(options))
        return false;
    *ret = (struct config_option){
        .key = options[index].key,
        .arg = options[index].arg,
        .help = options[index].help,
        .in_file = options[index].where == EVERYWHERE,
    };
    return true;
}

void config_print_help(void)
{
    printf("usage: umbrad --kernel FILE [OPTION]...\n\n"
           "Run one virtual machine. Its sockets are in the runtime directory; vmctl talks to them.\n\n");
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        char head[40];

        snprintf(head, sizeof(head), "--%s%s%s", options[i].key, options[i].arg ? " " : "",
                 options[i].arg ? options[i].arg : "");
        printf("  %-22s %s\n", head, options[i].help);
    }
    printf("\nEnvironment: UMBRA_KVM names the KVM device (default /dev/kvm).\n"
           "Exit status: 0 the guest powered off, 1 host or configuration error, 2 usage, 3 the guest crashed.\n");
}
