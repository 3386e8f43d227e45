/* The table of commands, and the way from main to a row of it. vmctl(1) has the same rows; a test compares them. */
#include "config.h"

#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ctl/ctl.h"
#include "ctl/vms.h"

#define CTL_SYSTEM_DIR "/run/umbra"
#define END_OF_OPTIONS {0, NULL, NULL, NULL}

static const struct ctl_option shutdown_options[] = {
    {'t', "timeout", "SECONDS", "how long to wait for the guest (default 60; 0: do not wait)"},
    {0, "now", NULL, "do not ask the guest, end the VM at once"},
    {0, "if-running", NULL, "do nothing, and succeed, if it does not run (for a service manager)"},
    END_OF_OPTIONS,
};

static const struct ctl_option balloon_options[] = {
    {0, "stats", "SECONDS", "read the guest's memory statistics so often (0: not any more)"},
    END_OF_OPTIONS,
};

static const struct ctl_option console_options[] = {
    {0, "virtio", NULL, "the second console (umbrad --virtio-console socket)"},
    {'e', "escape", "KEY", "escape key: ^] (default), ^A and the like, or none"},
    {0, "idle", "SECONDS", "end when input is over and nothing was printed for so long"},
    END_OF_OPTIONS,
};

static const struct ctl_option stats_options[] = {
    {'a', "all", NULL, "those that are zero too"},
    {'w', "watch", "SECONDS", "rates a second, again every SECONDS"},
    {'c', "count", "N", "with --watch: end after N times"},
    END_OF_OPTIONS,
};

static const struct ctl_option dirty_start_options[] = {
    {0, "all", NULL, "the first snapshot gives every page, not only what was written since"},
    END_OF_OPTIONS,
};

static const struct ctl_option dirty_snapshot_options[] = {
    {'f', "format", "FORMAT", "count (default), ranges or bitmap"},
    {'s', "save", "FILE", "where the bitmap goes: a bit for each page of guest RAM"},
    {'p', "peek", NULL, "look only, start no epoch"},
    END_OF_OPTIONS,
};

static const struct ctl_option dirty_rate_options[] = {
    {'t', "time", "SECONDS", "how long to measure (default 1)"},
    END_OF_OPTIONS,
};

static const struct ctl_option dirty_watch_options[] = {
    {'i', "interval", "SECONDS", "time between two pictures (default 1)"},
    {0, "once", NULL, "one picture, then end"},
    {'c', "count", "N", "end after N pictures"},
    END_OF_OPTIONS,
};

static const struct ctl_option snapshot_options[] = {
    {'d', "diff", NULL, "only what was written since the last snapshot"},
    {0, "no-track", NULL, "of a full one: no diff is to follow, so do not log what is written"},
    END_OF_OPTIONS,
};

static const struct ctl_option snapshot_show_options[] = {
    {0, "verify", NULL, "check guest memory against its checksums"},
    END_OF_OPTIONS,
};

static const struct ctl_option restore_options[] = {
    {'n', "name", "NAME", "what the VM is called (default \"umbra\")"},
    {0, "eager", NULL, "copy guest memory instead of mapping the snapshot's file"},
    {0, "verify", NULL, "check guest memory against its checksums first"},
    {0, "paused", NULL, "do not run the guest"},
    END_OF_OPTIONS,
};

static const struct ctl_option dirty_top_options[] = {
    {'i', "interval", "SECONDS", "time between two pictures (default 1)"},
    {0, "once", NULL, "one picture, then end"},
    {'c', "count", "N", "end after N pictures"},
    {'n', "lines", "N", "at most N address spaces"},
    {'v', "verbose", NULL, "say why names are missing"},
    END_OF_OPTIONS,
};

static const struct ctl_option mmu_spaces_options[] = {
    {'s', "sort", "ORDER", "by pages (default), tables, dirty, seen or root"},
    {'l', "limit", "N", "how many (default 64)"},
    {'v', "verbose", NULL, "say why names are missing"},
    END_OF_OPTIONS,
};

static const struct ctl_option rmap_options[] = {
    {'l', "limit", "N", "how many mappings (default 64)"},
    {'v', "verbose", NULL, "say why names are missing"},
    END_OF_OPTIONS,
};

static const struct ctl_option floods_options[] = {
    {'l', "limit", "N", "how many (default 64)"},
    END_OF_OPTIONS,
};

static const struct ctl_option migrate_options[] = {
    {'l', "local", NULL, "hand guest memory over to another process of this host (unix:PATH)"},
    {'b', "bandwidth", "SIZE", "at most so many bytes a second; with --plan: what the network takes"},
    {'d', "downtime", "MS", "how long the guest may stand still (default 300)"},
    {'n', "channels", "N", "over so many connections, 1 to 16 (default 2)"},
    {'z', "zstd", NULL, "pack the pages, for a slow network"},
    {'s', "strategy", "WHAT", "when it does not converge: cancel (default), throttle, stop, postcopy"},
    {0, "postcopy", NULL, "let the guest go after the first round, the rest of its memory follows"},
    {'r', "resume", NULL, "go on with a post-copy that has lost its connection"},
    {'p', "plan", NULL, "only measure the guest and tell how it would go"},
    END_OF_OPTIONS,
};

static const struct ctl_option config_options[] = {
    {0, "config-dir", "DIR", "where configuration files are (default " UMBRA_SYSCONFDIR ")"},
    END_OF_OPTIONS,
};

static const struct ctl_option create_options[] = {
    {0, "config-dir", "DIR", "where configuration files are (default " UMBRA_SYSCONFDIR ")"},
    {0, "cloud-image", "FILE", "make the VM from a raw cloud image: a copy is its root disk"},
    {0, "user-data", "FILE", "with --cloud-image: cloud-init's user data"},
    {0, "meta-data", "FILE", "cloud-init's meta data (default: the VM's name as host name)"},
    {0, "disk-size", "SIZE", "how large the root disk is (default: as the image)"},
    {0, "state-dir", "DIR", "where its disks go (default " UMBRA_STATEDIR ")"},
    END_OF_OPTIONS,
};

static const struct ctl_option doctor_options[] = {
    {0, "bandwidth", "MIB", "what a migration could send a second (default 1000)"},
    {0, "strict", NULL, "fail if something is a warning or worse"},
    END_OF_OPTIONS,
};

const struct ctl_command ctl_commands[] = {
    {"list", "", "the VMs of this host", NULL, 0, 0, ctl_cmd_list},
    {"status", "[VM]", "what a VM is and does", NULL, CTL_VM, 0, ctl_cmd_status},
    {"pause", "[VM]", "stop the vCPUs", NULL, CTL_VM, 0, ctl_cmd_pause},
    {"resume", "[VM]", "let the vCPUs run again", NULL, CTL_VM, 0, ctl_cmd_resume},
    {"reset", "[VM]", "press the reset button", NULL, CTL_VM, 0, ctl_cmd_reset},
    {"shutdown", "[VM]", "press the power button and wait for the guest", shutdown_options, CTL_VM, 0,
     ctl_cmd_shutdown},
    {"kill", "[VM]", "end a VM at once, even one that does not answer", NULL, CTL_VM, 0, ctl_cmd_kill},
    {"balloon", "[VM] [SIZE]", "how much memory the guest keeps, or is to keep", balloon_options, CTL_VM, 1, ctl_cmd_balloon},
    {"console", "[VM]", "the guest's serial console", console_options, CTL_VM, 0, ctl_cmd_console},
    {"stats", "[VM] [NAME]...", "KVM's statistics, by KVM's names", stats_options, CTL_VM, -1, ctl_cmd_stats},
    {"dirty start", "[VM] [CONSUMER]", "begin to log which pages are written", dirty_start_options, CTL_VM, 1,
     ctl_cmd_dirty_start},
    {"dirty snapshot", "[VM] [CONSUMER]", "the pages written since, as a new epoch", dirty_snapshot_options, CTL_VM, 1,
     ctl_cmd_dirty_snapshot},
    {"dirty ack", "[VM] [CONSUMER [EPOCH]]", "an epoch is dealt with: forget its pages", NULL, CTL_VM, 2,
     ctl_cmd_dirty_ack},
    {"dirty stop", "[VM] [CONSUMER]", "end logging", NULL, CTL_VM, 1, ctl_cmd_dirty_stop},
    {"dirty show", "[VM]", "who consumes the dirty log", NULL, CTL_VM, 0, ctl_cmd_dirty_show},
    {"dirty rate", "[VM]", "measure how much the guest writes", dirty_rate_options, CTL_VM, 0, ctl_cmd_dirty_rate},
    {"dirty watch", "[VM]", "live map of what the guest writes", dirty_watch_options, CTL_VM, 0,
     ctl_cmd_dirty_watch},
    {"dirty top", "[VM]", "live list of who writes memory", dirty_top_options, CTL_VM, 0, ctl_cmd_dirty_top},
    {"mmu", "[VM]", "what is known of the guest's page tables", NULL, CTL_VM, 0, ctl_cmd_mmu},
    {"mmu spaces", "[VM]", "the guest's address spaces and their processes", mmu_spaces_options, CTL_VM, 0,
     ctl_cmd_mmu_spaces},
    {"mmu set", "[VM] KEY=VALUE...", "how page tables are tracked", NULL, CTL_VM, -1, ctl_cmd_mmu_set},
    {"mmu verify", "[VM]", "compare the bookkeeping with a paused guest", NULL, CTL_VM, 0, ctl_cmd_mmu_verify},
    {"rmap", "[VM] ADDRESS|gfn=N", "who maps a frame of guest memory", rmap_options, CTL_VM, 1, ctl_cmd_rmap},
    {"floods", "[VM]", "page tables that are written all the time", floods_options, CTL_VM, 0, ctl_cmd_floods},
    {"migrate", "[VM] [URI]", "move a guest to another daemon (umbrad --incoming URI)", migrate_options, CTL_VM, 1,
     ctl_cmd_migrate},
    {"snapshot", "[VM] DIR", "write a snapshot of the guest, which goes on", snapshot_options, CTL_VM, 1,
     ctl_cmd_snapshot},
    {"snapshot merge", "DIR OUT", "write a diff and all it stands on as one full snapshot", NULL, 0, 2,
     ctl_cmd_snapshot_merge},
    {"snapshot show", "DIR", "what a snapshot is and stands on", snapshot_show_options, 0, 1, ctl_cmd_snapshot_show},
    {"restore", "DIR [-- OPTION]...", "go on from a snapshot, with options of umbrad", restore_options, 0, -1,
     ctl_cmd_restore},
    {"create", "NAME [UMBRAD-OPTION]...", "write a VM's configuration file", create_options, CTL_FOREIGN, -1, ctl_cmd_create},
    {"edit", "NAME", "change a VM's configuration file in an editor", config_options, 0, 1, ctl_cmd_edit},
    {"remove", "NAME", "remove the configuration file of a VM that does not run", config_options, 0, 1, ctl_cmd_remove},
    {"doctor", "[VM]", "what an expert would say of a VM, or of this host", doctor_options, 0, 1, ctl_cmd_doctor},
    {"host", "[VM]", "what this host offers to VMs", NULL, CTL_VM | CTL_VM_OR_NONE, 0, ctl_cmd_host},
    {"qmp", "[VM] [REQUEST]...", "pass anything to the control socket", NULL, CTL_VM, -1, ctl_cmd_qmp},
    {"help", "[COMMAND]", "this help, or that of a command", NULL, 0, 2, ctl_cmd_help},
};

const unsigned int ctl_command_count = ARRAY_SIZE(ctl_commands);

int ctl_cmd_help(struct ctl *ctl)
{
    char name[64];

    if (ctl->arg_count == 0)
        return ctl_help(NULL);
    snprintf(name, sizeof(name), "%s%s%s", ctl->args[0], ctl->arg_count > 1 ? " " : "",
             ctl->arg_count > 1 ? ctl->args[1] : "");
    return ctl_help(name);
}

/* A user without VMs of his own means those of the system. */
static int find_runtime_dir(struct ctl *ctl)
{
    int r;

    if (ctl->runtime_dir_given)
        return CTL_DONE;
    r = paths_runtime_dir(NULL, ctl->runtime_dir, sizeof(ctl->runtime_dir));
    if (r == -ENAMETOOLONG) {
        ctl_error("XDG_RUNTIME_DIR is longer than a path may be");
        return CTL_FAILED;
    }
    if (r == -ENOENT || access(ctl->runtime_dir, F_OK) < 0)
        strcpy(ctl->runtime_dir, CTL_SYSTEM_DIR);
    return CTL_DONE;
}

static int run(struct ctl *ctl)
{
    int r = find_runtime_dir(ctl);

    if (r)
        return r;
    if (ctl->command->flags & CTL_VM) {
        if (ctl->command->flags & CTL_VM_OR_NONE && ctl->arg_count == 0 && !vms_any_running(ctl->runtime_dir))
            return ctl->command->run(ctl);
        r = vms_choose(ctl);
        if (r)
            return r;
    }
    if (ctl->command->max_args >= 0 && ctl->arg_count > ctl->command->max_args)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->args[ctl->command->max_args]);
    return ctl->command->run(ctl);
}

int ctl_main(int argc, char **argv)
{
    struct ctl ctl;
    bool done;
    int r, flushed;

    /* Only what encoding the terminal has: numbers stay as they are everywhere. */
    setlocale(LC_CTYPE, "");
    r = ctl_parse(&ctl, argc, argv, &done);
    if (r == CTL_DONE && !done)
        r = run(&ctl);
    flushed = ctl_flush();
    return r ? r : flushed;
}
