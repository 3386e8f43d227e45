/* The command line: options anywhere, commands of one or two words, and the help made from the same table. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "ctl/ctl.h"
#include "ctl/table.h"

const struct ctl_option ctl_global_options[] = {
    {'o', "output", "FORMAT", "table (for people, the default) or json (the daemon's own answer)"},
    {0, "runtime-dir", "DIR", "where the VMs' sockets are"},
    {0, "reply-timeout", "SECONDS", "how long to wait for an answer (default 15; list: 1)"},
    {'h', "help", NULL, "print help and end"},
    {'V', "version", NULL, "print the version and end"},
    {0, NULL, NULL, NULL},
};

static const struct ctl_option no_options[] = {{0, NULL, NULL, NULL}};

const struct ctl_command *ctl_find_command(const char *name)
{
    for (unsigned int i = 0; i < ctl_command_count; i++)
        if (strcmp(ctl_commands[i].name, name) == 0)
            return &ctl_commands[i];
    return NULL;
}

/* True when `name` is the first of two words of a command. */
static bool is_group(const char *name)
{
    size_t len = strlen(name);

    for (unsigned int i = 0; i < ctl_command_count; i++)
        if (strncmp(ctl_commands[i].name, name, len) == 0 && ctl_commands[i].name[len] == ' ')
            return true;
    return false;
}

static const struct ctl_option *options_of(const struct ctl *ctl)
{
    return ctl->command && ctl->command->options ? ctl->command->options : no_options;
}

const char *ctl_opt(const struct ctl *ctl, const char *name)
{
    const struct ctl_option *options = options_of(ctl);

    for (int i = 0; options[i].name; i++)
        if (strcmp(options[i].name, name) == 0)
            return ctl->option[i];
    return NULL;
}

int ctl_parse_seconds(const char *text, int min_ms, int max_ms, int *ret_ms)
{
    char *end;
    double v;

    /* strtod would take signs, white space, "nan", "inf" and hexadecimal. */
    if (strspn(text, "0123456789.") != strlen(text) || !*text)
        return -EINVAL;
    v = strtod(text, &end);
    if (*end || end == text)
        return -EINVAL;
    v = v * 1000 + 0.5;
    if (v < min_ms || v >= max_ms + 1.0)
        return -ERANGE;
    *ret_ms = (int)v;
    return 0;
}

int ctl_opt_seconds(const struct ctl *ctl, const char *name, int min_ms, int max_ms, int *ret_ms)
{
    const char *text = ctl_opt(ctl, name);
    int r = text ? ctl_parse_seconds(text, min_ms, max_ms, ret_ms) : 0;

    if (r == -ERANGE)
        return ctl_usage(ctl, "--%s %s: must be %g to %g seconds", name, text, min_ms / 1e3, max_ms / 1e3);
    if (r < 0)
        return ctl_usage(ctl, "--%s %s: not a number of seconds", name, text);
    return CTL_DONE;
}

int ctl_opt_number(const struct ctl *ctl, const char *name, uint64_t min, uint64_t max, uint64_t *ret)
{
    const char *text = ctl_opt(ctl, name);
    uint64_t v = min;
    int r = text ? size_parse_u64(text, max, &v) : 0;

    if (r == -ERANGE || v < min)
        return ctl_usage(ctl, "--%s %s: must be %llu to %llu", name, text, (unsigned long long)min,
                         (unsigned long long)max);
    if (r < 0)
        return ctl_usage(ctl, "--%s %s: not a number", name, text);
    if (text)
        *ret = v;
    return CTL_DONE;
}

/* -- reading argv -- */

/* What a parse in progress knows. */
struct scan {
    struct ctl *ctl;
    char **argv;
    int argc, at;
    int kept; /* positional arguments, moved to the front of argv */
    bool version;
};

static int set_global(struct scan *s, const struct ctl_option *o, const char *value)
{
    struct ctl *ctl = s->ctl;

    if (strcmp(o->name, "help") == 0) {
        ctl->help = true;
    } else if (strcmp(o->name, "version") == 0) {
        s->version = true;
    } else if (strcmp(o->name, "output") == 0) {
        if (strcmp(value, "json") != 0 && strcmp(value, "table") != 0)
            return ctl_usage(ctl, "--output %s: must be table or json", value);
        ctl->output = strcmp(value, "json") == 0 ? CTL_JSON : CTL_TABLE;
    } else if (strcmp(o->name, "runtime-dir") == 0) {
        if (!*value || strlen(value) >= sizeof(ctl->runtime_dir))
            return ctl_usage(ctl, "--runtime-dir %.40s: must be 1 to %zu bytes long", value,
                             sizeof(ctl->runtime_dir) - 1);
        strcpy(ctl->runtime_dir, value);
        ctl->runtime_dir_given = true;
    } else {
        int r = ctl_parse_seconds(value, 10, 3600 * 1000, &ctl->reply_timeout_ms);

        if (r < 0)
            return ctl_usage(ctl, "--reply-timeout %s: must be 0.01 to 3600 seconds", value);
        ctl->reply_timeout_given = true;
    }
    return CTL_DONE;
}

/* One option, found; `given` is how the person wrote it, `value` what stood behind = or the letter, or NULL. */
static int take_option(struct scan *s, const struct ctl_option *list, int index, const char *given, const char *value)
{
    const struct ctl_option *o = &list[index];

    if (!o->value && value)
        return ctl_usage(s->ctl, "option %s takes no value", given);
    if (o->value && !value) {
        if (s->at + 1 >= s->argc)
            return ctl_usage(s->ctl, "option %s needs a value: %s", given, o->value);
        value = s->argv[++s->at];
    }
    if (list == ctl_global_options)
        return set_global(s, o, value);
    s->ctl->option[index] = value ? value : "";
    return CTL_DONE;
}

static int find_option(const struct ctl_option *list, char letter, const char *name, size_t name_len)
{
    for (int i = 0; list[i].name; i++)
        if (letter ? list[i].letter == letter
                   : strlen(list[i].name) == name_len && strncmp(list[i].name, name, name_len) == 0)
            return i;
    return -1;
}

static int scan_long(struct scan *s, const char *arg)
{
    const struct ctl_option *list = options_of(s->ctl);
    const char *equals = strchr(arg, '=');
    size_t len = equals ? (size_t)(equals - arg) : strlen(arg);
    char given[64];
    int i;

    snprintf(given, sizeof(given), "%.*s", (int)MIN(len, sizeof(given)), arg);
    i = find_option(list, 0, arg + 2, len - 2);
    if (i < 0) {
        list = ctl_global_options;
        i = find_option(list, 0, arg + 2, len - 2);
    }
    if (i < 0)
        return ctl_usage(s->ctl, "unknown option %s", given);
    return take_option(s, list, i, given, equals ? equals + 1 : NULL);
}

/* A cluster of letters; the rest of it is the value of the first that takes one. */
static int scan_letters(struct scan *s, const char *arg)
{
    for (const char *p = arg + 1; *p; p++) {
        const struct ctl_option *list = options_of(s->ctl);
        char given[] = {'-', *p, '\0'};
        int i = find_option(list, *p, NULL, 0), r;

        if (i < 0) {
            list = ctl_global_options;
            i = find_option(list, *p, NULL, 0);
        }
        if (i < 0)
            return ctl_usage(s->ctl, "unknown option %s", given);
        r = take_option(s, list, i, given, list[i].value && p[1] ? p + 1 : NULL);
        if (r || list[i].value)
            return r;
    }
    return CTL_DONE;
}

/* The first word that is no option names the command; some have a second one. */
static int take_command(struct scan *s)
{
    const char *word = s->argv[s->at], *second = s->at + 1 < s->argc ? s->argv[s->at + 1] : NULL;
    char name[64];

    /* "mmu spaces" before "mmu". */
    if (second && *second != '-') {
        snprintf(name, sizeof(name), "%s %s", word, second);
        s->ctl->command = ctl_find_command(name);
        s->at += s->ctl->command != NULL;
    }
    if (!s->ctl->command)
        s->ctl->command = ctl_find_command(word);
    if (s->ctl->command)
        return CTL_DONE;
    if (!is_group(word)) {
        ctl_error("unknown command '%s' (vmctl help lists them)", word);
        return CTL_USAGE;
    }
    if (s->ctl->help || (second && (strcmp(second, "--help") == 0 || strcmp(second, "-h") == 0))) {
        s->ctl->help = true;
        return CTL_DONE;
    }
    if (second && *second != '-') {
        ctl_error("unknown command '%s %s' (see vmctl help %s)", word, second, word);
        return CTL_USAGE;
    }
    ctl_error("%s: which of its commands? (see vmctl help %s)", word, word);
    return CTL_USAGE;
}

static int scan_all(struct scan *s, const char **ret_word)
{
    bool options = true;

    for (s->at = 1; s->at < s->argc; s->at++) {
        char *arg = s->argv[s->at];
        int r = CTL_DONE;

        if (options && strcmp(arg, "--") == 0) {
            options = false;
        } else if (options && strncmp(arg, "--", 2) == 0) {
            r = scan_long(s, arg);
        } else if (options && arg[0] == '-' && arg[1]) {
            r = scan_letters(s, arg);
        } else if (!s->ctl->command && !*ret_word) {
            *ret_word = arg;
            r = take_command(s);
        } else {
            s->argv[s->kept++] = arg;
        }
        if (r)
            return r;
    }
    return CTL_DONE;
}

int ctl_parse(struct ctl *ctl, int argc, char **argv, bool *ret_done)
{
    struct scan s = {.ctl = ctl, .argv = argv, .argc = argc};
    const char *word = NULL;
    int r;

    memset(ctl, 0, sizeof(*ctl));
    ctl->reply_timeout_ms = CTL_DEFAULT_REPLY_TIMEOUT_MS;
    *ret_done = false;
    r = scan_all(&s, &word);
    if (r)
        return r;
    ctl->args = argv;
    ctl->arg_count = s.kept;
    if (s.version) {
        printf("vmctl (umbra) %s\n", PACKAGE_VERSION);
        *ret_done = true;
    } else if (ctl->help) {
        *ret_done = true;
        return ctl_help(ctl->command ? ctl->command->name : word);
    } else if (!ctl->command) {
        ctl_error("a command is missing (vmctl help lists them)");
        return CTL_USAGE;
    }
    return CTL_DONE;
}

/* -- help -- */

static void print_options(const struct ctl_option *list)
{
    for (; list->name; list++) {
        char left[64];

        snprintf(left, sizeof(left), "%c%c%c --%s%s%s", list->letter ? '-' : ' ', list->letter ? list->letter : ' ',
                 list->letter ? ',' : ' ', list->name, list->value ? " " : "", list->value ? list->value : "");
        printf("  %-28s  %s\n", left, list->help);
    }
}

static void print_command_help(const struct ctl_command *c)
{
    printf("vmctl %s%s%s%s\n  %s\n", c->name, c->options ? " [OPTION]..." : "", *c->arguments ? " " : "", c->arguments,
           c->help);
    if (c->options)
        print_options(c->options);
}

static int help_width(void)
{
    size_t width = 0;

    for (unsigned int i = 0; i < ctl_command_count; i++)
        width = MAX(width, strlen(ctl_commands[i].name) + 1 + strlen(ctl_commands[i].arguments));
    return (int)width;
}

static void print_all_help(void)
{
    int width = help_width();

    printf("vmctl [OPTION]... COMMAND [VM] [ARGUMENT]...\n"
           "Asks and steers the VMs of this host. VM may be left out where there is only one.\n\nCommands:\n");
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        const struct ctl_command *c = &ctl_commands[i];
        char left[64];

        snprintf(left, sizeof(left), "%s %s", c->name, c->arguments);
        printf("  %-*s  %s\n", width, left, c->help);
    }
    printf("\nOptions:\n");
    print_options(ctl_global_options);
    printf("\nvmctl help COMMAND tells the options of a command; vmctl(1) tells all.\n");
}

int ctl_help(const char *name)
{
    size_t len = name ? strlen(name) : 0;
    bool found = false;

    if (!name) {
        print_all_help();
        return CTL_DONE;
    }
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        const char *n = ctl_commands[i].name;

        if (strncmp(n, name, len) != 0 || (n[len] && n[len] != ' '))
            continue;
        if (found)
            putchar('\n');
        print_command_help(&ctl_commands[i]);
        found = true;
    }
    if (found)
        return CTL_DONE;
    ctl_error("unknown command '%s' (vmctl help lists them)", name);
    return CTL_USAGE;
}
