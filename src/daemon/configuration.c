/*
 * One table of options serves the command line, the configuration file and the help text: a key of the file is the long
 * option of the same name, its value written as JSON (a flag is a boolean, a count may be a number).
 * Here: the command line. The table is in configuration-options.c, the file's reader in configuration-file.c.
 */
#include "config.h"

#include "daemon/configuration.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "base/json.h"
#include "base/paths.h"
#include "base/size.h"
#include "daemon/configuration-internal.h"
#include "mmu/page-limit.h"

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
    for (unsigned int i = 0; i < c->disk_count; i++)
        config_clear_disk(&c->disks[i]);
    for (unsigned int i = 0; i < c->net_count; i++)
        config_clear_net(&c->nets[i]);
    *c = (struct config){0};
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

static int apply_args(struct config *c, int argc, char **argv, bool first, char *error)
{
    struct option longopts[CONFIG_OPTIONS_MAX + 1] = {0};
    int index, opt;

    for (size_t i = 0; i < config_option_count; i++) {
        longopts[i].name = config_options[i].key;
        longopts[i].has_arg = config_options[i].arg ? required_argument : no_argument;
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
            index = (int)(config_find_option("help") - config_options);
        else if (opt == '?')
            return config_fail(error, "%.80s: no such option, or a value where none belongs (--help lists them)", argv[optind - 1]);
        o = &config_options[index];
        if (first && o->where != CMDLINE_FIRST)
            continue;
        r = o->set(c, o->arg ? optarg : "true", why);
        if (r == -EINVAL)
            return config_fail(error, "--%s: %.250s", o->key, why);
        if (r == 0 && !first)
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
        r = config_read_file(c, error);
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
    if (index >= config_option_count)
        return false;
    *ret = (struct config_option){
        .key = config_options[index].key,
        .arg = config_options[index].arg,
        .help = config_options[index].help,
        .in_file = config_options[index].where == EVERYWHERE,
    };
    return true;
}

void config_print_help(void)
{
    printf("usage: umbrad --kernel FILE [OPTION]...\n\n"
           "Run one virtual machine. Its sockets are in the runtime directory; vmctl talks to them.\n\n");
    for (size_t i = 0; i < config_option_count; i++) {
        char head[40];

        snprintf(head, sizeof(head), "--%s%s%s", config_options[i].key, config_options[i].arg ? " " : "",
                 config_options[i].arg ? config_options[i].arg : "");
        printf("  %-22s %s\n", head, config_options[i].help);
    }
    printf("\nEnvironment: UMBRA_KVM names the KVM device (default /dev/kvm).\n"
           "Exit status: 0 the guest powered off, 1 host or configuration error, 2 usage, 3 the guest crashed.\n");
}
