/*
 * vmctl: its table of commands and what the commands share.
 *
 * Everything here runs in one thread. Messages for the person go to stderr through ctl_error and ctl_note; stdout holds
 * only what was asked for.
 */
#ifndef UMBRA_CTL_CTL_H
#define UMBRA_CTL_CTL_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "base/paths.h"
#include "base/util.h"
#include "ctl/client.h"

#define CTL_MAX_OPTIONS 12
#define CTL_DEFAULT_REPLY_TIMEOUT_MS 15000

/* How vmctl ends. */
enum ctl_exit {
    CTL_DONE = 0,
    CTL_FAILED = 1, /* the daemon refused, or something else failed */
    CTL_USAGE = 2,
    CTL_NO_VM = 3, /* no such VM, or it does not answer */
};

enum ctl_output {
    CTL_TABLE,
    CTL_JSON,
};

struct ctl_option {
    char letter;       /* '\0' for none */
    const char *name;  /* without dashes; NULL ends a list */
    const char *value; /* what the help calls its value, or NULL for a flag */
    const char *help;
};

struct ctl;

enum ctl_flags {
    CTL_VM = 1 << 0, /* the first argument is a VM, which may be left out where there is only one */
    CTL_VM_OR_NONE = 1 << 2, /* with CTL_VM: where no VM runs and none is named, vm is "" */
    CTL_FOREIGN = 1 << 1, /* what follows the first argument is another program's, options too */
};

struct ctl_command {
    const char *name; /* "status", or two words: "dirty watch" */
    const char *arguments;
    const char *help;
    const struct ctl_option *options; /* ends with a NULL name; NULL for none */
    unsigned int flags;
    int max_args; /* arguments after the VM; -1 for no limit */
    int (*run)(struct ctl *ctl);
};

/* The one table: what vmctl can do, in the order of its help. */
extern const struct ctl_command ctl_commands[];
extern const unsigned int ctl_command_count;

/* What may stand before or after any command. */
extern const struct ctl_option ctl_global_options[];

/* One run of vmctl. */
struct ctl {
    const struct ctl_command *command;
    enum ctl_output output;
    int reply_timeout_ms;
    char runtime_dir[PATH_MAX];
    char vm[VM_NAME_MAX + 1]; /* with CTL_VM */
    /* Parallel to command->options: the value, "" for a flag that was given, or NULL. */
    const char *option[CTL_MAX_OPTIONS];
    char **args; /* what is left beyond options and VM */
    int arg_count;
    bool runtime_dir_given, reply_timeout_given, help;
};

/* All of vmctl: parse, run, flush; the exit status. */
int ctl_main(int argc, char **argv);

/* -- arguments (args.c) -- */

/*
 * Read argv into *ctl; argv is reordered. CTL_DONE, or CTL_USAGE with the message printed. On CTL_DONE without a command
 * (--help, --version) *ret_done is true and all is done.
 */
int ctl_parse(struct ctl *ctl, int argc, char **argv, bool *ret_done);

/* The row of that name ("dirty watch" matches with one space), or NULL. */
const struct ctl_command *ctl_find_command(const char *name);

/* The value of an option of the running command, "" for a flag that was given, NULL when it was not. */
const char *ctl_opt(const struct ctl *ctl, const char *name);

/* An option that is a time in seconds ("2", "0.5") between min_ms and max_ms; *ret_ms is left alone when it was not
 * given. CTL_DONE, or CTL_USAGE with the message printed. */
int ctl_opt_seconds(const struct ctl *ctl, const char *name, int min_ms, int max_ms, int *ret_ms);
/* The same for a whole number. */
int ctl_opt_number(const struct ctl *ctl, const char *name, uint64_t min, uint64_t max, uint64_t *ret);

/* Parse "2" or "0.5" into milliseconds; -EINVAL or -ERANGE. */
int ctl_parse_seconds(const char *text, int min_ms, int max_ms, int *ret_ms);

/* Print vmctl's help, or that of every command that is called `name` or starts with that word; CTL_USAGE if none. */
int ctl_help(const char *name);

/* -- messages (message.c) -- */

/* One line "vmctl: ..." on stderr, control bytes escaped. */
void ctl_error(const char *fmt, ...) PRINTF_LIKE(1, 2);
#define ctl_note ctl_error

/* A usage error of the running command; returns CTL_USAGE. */
int ctl_usage(const struct ctl *ctl, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Tell what became of a request ("NAME: why") and return the exit status it means. */
int ctl_fail(const struct ctl *ctl, const struct failure *failure);

/* Flush stdout; CTL_FAILED with a message when what was printed did not arrive. */
int ctl_flush(void);

/* -- talking to the VM (session.c) -- */

/* Connect to ctl->vm; CTL_DONE, or the exit status with the message printed. */
int ctl_connect(const struct ctl *ctl, struct client **ret);

/* Ask and return the value of "return". CTL_DONE, or the exit status with the message printed. `arguments` is consumed
 * and may be NULL; *ret (may be NULL) is the caller's. */
int ctl_ask(const struct ctl *ctl, struct client *client, const char *command, json_t *arguments, json_t **ret);

/* Like ctl_ask, but CTL_DONE with *ret NULL when the daemon refuses: for what a page can do without. */
int ctl_ask_maybe(const struct ctl *ctl, struct client *client, const char *command, json_t *arguments, json_t **ret);

/* Print a value as JSON: indented for a person, on one line in a pipe. */
void ctl_print_json(const json_t *value);

/* umbrad of this installation; $UMBRAD for one that is not installed. */
char *ctl_umbrad(void);

/* -- the commands, a file a group -- */

int ctl_cmd_help(struct ctl *ctl);

int ctl_cmd_list(struct ctl *ctl);

int ctl_cmd_create(struct ctl *ctl);
int ctl_cmd_edit(struct ctl *ctl);
int ctl_cmd_remove(struct ctl *ctl);

int ctl_cmd_status(struct ctl *ctl);

int ctl_cmd_pause(struct ctl *ctl);
int ctl_cmd_resume(struct ctl *ctl);
int ctl_cmd_reset(struct ctl *ctl);
int ctl_cmd_shutdown(struct ctl *ctl);
int ctl_cmd_kill(struct ctl *ctl);

int ctl_cmd_balloon(struct ctl *ctl);

int ctl_cmd_console(struct ctl *ctl);

int ctl_cmd_stats(struct ctl *ctl);

int ctl_cmd_dirty_start(struct ctl *ctl);
int ctl_cmd_dirty_snapshot(struct ctl *ctl);
int ctl_cmd_dirty_ack(struct ctl *ctl);
int ctl_cmd_dirty_stop(struct ctl *ctl);
int ctl_cmd_dirty_show(struct ctl *ctl);
int ctl_cmd_dirty_rate(struct ctl *ctl);
int ctl_cmd_dirty_watch(struct ctl *ctl);
int ctl_cmd_dirty_top(struct ctl *ctl);

int ctl_cmd_mmu(struct ctl *ctl);
int ctl_cmd_mmu_spaces(struct ctl *ctl);
int ctl_cmd_mmu_set(struct ctl *ctl);
int ctl_cmd_mmu_verify(struct ctl *ctl);

int ctl_cmd_rmap(struct ctl *ctl);
int ctl_cmd_floods(struct ctl *ctl);

int ctl_cmd_migrate(struct ctl *ctl);
int ctl_cmd_snapshot(struct ctl *ctl);
int ctl_cmd_snapshot_merge(struct ctl *ctl);
int ctl_cmd_snapshot_show(struct ctl *ctl);
int ctl_cmd_restore(struct ctl *ctl);

int ctl_cmd_host(struct ctl *ctl);

int ctl_cmd_doctor(struct ctl *ctl);

int ctl_cmd_qmp(struct ctl *ctl);

#endif
