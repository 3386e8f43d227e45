/*
 * vmctl create, edit and remove: configuration files. What may stand in one is umbrad's business alone: it turns options
 * into a file (--print-config) and checks one (--check-config), so vmctl never knows an option that umbrad does not.
 *
 * A file is written beside its place and renamed into it: whoever reads it finds the old one or the new one.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "ctl/cloud.h"
#include "ctl/ctl.h"
#include "ctl/program.h"
#include "ctl/vms.h"

#define DEFAULT_EDITOR "vi"
#define FILE_MODE 0644

/* A configuration file and the one that is to take its place. */
struct config_file {
    char name[VM_NAME_MAX + 1];
    char dir[PATH_MAX];
    char path[PATH_MAX];
    char draft[PATH_MAX]; /* "" where there is none */
};

static void discard_draft(struct config_file *f)
{
    if (f->draft[0])
        unlink(f->draft);
    f->draft[0] = '\0';
}
#define _cleanup_config_file_ __attribute__((cleanup(discard_draft)))

/* Take the VM's name off the arguments and find its file. */
static int find_file(struct ctl *ctl, struct config_file *f)
{
    const char *dir = ctl_opt(ctl, "config-dir");

    if (ctl->arg_count == 0)
        return ctl_usage(ctl, "the VM's name is missing");
    if (!vm_name_valid(ctl->args[0]))
        return ctl_usage(ctl, "\"%.80s\" is no VM name (1 to %d letters, digits, '.', '_', '-', first a letter or digit)",
                         ctl->args[0], VM_NAME_MAX);
    strcpy(f->name, ctl->args[0]);
    ctl->args++;
    ctl->arg_count--;
    if (snprintf(f->dir, sizeof(f->dir), "%s", dir ? dir : UMBRA_SYSCONFDIR) >= (int)sizeof(f->dir) ||
        snprintf(f->path, sizeof(f->path), "%s/%s.json", f->dir, f->name) >= (int)sizeof(f->path))
        return ctl_usage(ctl, "--config-dir: longer than a path may be");
    return CTL_DONE;
}

/* Make the draft; *ret_fd is open for writing. */
static int open_draft(struct config_file *f, int *ret_fd)
{
    int n = snprintf(f->draft, sizeof(f->draft), "%s/.%s.json.XXXXXX", f->dir, f->name), fd = -1;

    if (n < (int)sizeof(f->draft))
        fd = mkostemp(f->draft, O_CLOEXEC);
    if (fd < 0) {
        f->draft[0] = '\0';
        ctl_error("%s: cannot make a file: %s", f->dir, strerror(errno));
        return CTL_FAILED;
    }
    *ret_fd = fd;
    return CTL_DONE;
}

/* -- running umbrad and the editor -- */

/* Its exit status, 128 + a signal, or -errno. */
static int run_program(char *const *argv, int out)
{
    const struct program p = {.argv = argv, .out = out, .err = -1};

    return program_run(&p);
}

char *ctl_umbrad(void)
{
    static char installed[] = UMBRA_SBINDIR "/umbrad";
    char *given = getenv("UMBRAD");

    return given && *given ? given : installed;
}

static bool draft_is_good(struct config_file *f)
{
    char check[] = "--check-config";
    char *argv[] = {ctl_umbrad(), check, f->draft, NULL};
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC), r = run_program(argv, null);

    fd_close(null);
    return r == 0;
}

static int run_editor(const char *path)
{
    static char shell[] = "sh", option[] = "-c", editor[] = "editor";
    const char *program = getenv("VISUAL");
    char command[PATH_MAX], file[PATH_MAX];
    char *argv[] = {shell, option, command, editor, file, NULL};
    int r;

    if (!program || !*program)
        program = getenv("EDITOR");
    if (!program || !*program)
        program = DEFAULT_EDITOR;
    /* As a shell command: "emacs -nw" is an editor too. */
    if (snprintf(command, sizeof(command), "%s \"$1\"", program) >= (int)sizeof(command))
        return CTL_FAILED;
    snprintf(file, sizeof(file), "%s", path);
    r = run_program(argv, -1);
    if (r == 0)
        return CTL_DONE;
    ctl_error("the editor (%s) ended with status %d", program, r);
    return CTL_FAILED;
}

/* -- putting the draft in its place -- */

static int sync_path(const char *path)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

/* With `only_new` a file that is there already stays, and -EEXIST comes back. */
static int put_in_place(struct config_file *f, mode_t mode, bool only_new)
{
    int r = chmod(f->draft, mode) < 0 ? -errno : 0;

    if (r == 0)
        r = sync_path(f->draft);
    if (r == 0 && only_new)
        r = link(f->draft, f->path) < 0 ? -errno : 0;
    else if (r == 0)
        r = rename(f->draft, f->path) < 0 ? -errno : 0;
    if (r == 0 && !only_new)
        f->draft[0] = '\0';
    if (r == 0)
        r = sync_path(f->dir);
    if (r < 0 && r != -EEXIST)
        ctl_error("%s: cannot be written: %s", f->path, strerror(-r));
    return r;
}

/* -- create -- */

/* Have umbrad turn the options into a file: those a cloud image led to, then the caller's. */
static int write_options(struct ctl *ctl, const struct cloud *cloud, int fd)
{
    char print[] = "--print-config", runtime_dir[] = "--runtime-dir=/run/umbra";
    _cleanup_free_ char **argv = calloc((size_t)ctl->arg_count + CLOUD_MAX_ARGS + 4, sizeof(*argv));
    int r;

    if (!argv)
        return -ENOMEM;
    argv[0] = ctl_umbrad();
    argv[1] = print;
    argv[2] = runtime_dir;
    memcpy(&argv[3], cloud->args, (size_t)cloud->arg_count * sizeof(*argv));
    memcpy(&argv[3 + cloud->arg_count], ctl->args, (size_t)ctl->arg_count * sizeof(*argv));
    r = run_program(argv, fd);
    if (r < 0)
        ctl_error("%s: %s", argv[0], strerror(-r));
    return r == 0 ? CTL_DONE : r == 2 ? CTL_USAGE : CTL_FAILED;
}

/* Take --NAME VALUE or --NAME=VALUE of ours off what stands behind the VM's name; the value, or NULL. */
static const char *take_option(struct ctl *ctl, const char *name)
{
    const char *value = ctl_opt(ctl, name);
    size_t len = strlen(name);

    for (int i = 0, n; i < ctl->arg_count; i++) {
        const char *arg = ctl->args[i];

        if (strncmp(arg, "--", 2) != 0 || strncmp(arg + 2, name, len) != 0)
            continue;
        if (arg[2 + len] == '=') {
            value = arg + 3 + len;
            n = 1;
        } else if (arg[2 + len] == '\0' && i + 1 < ctl->arg_count) {
            value = ctl->args[i + 1];
            n = 2;
        } else {
            continue;
        }
        memmove(&ctl->args[i], &ctl->args[i + n], (size_t)(ctl->arg_count - i - n) * sizeof(*ctl->args));
        ctl->arg_count -= n;
        i--;
    }
    return value;
}

static bool has_option(const struct ctl *ctl, const char *name)
{
    size_t len = strlen(name);

    for (int i = 0; i < ctl->arg_count; i++)
        if (strncmp(ctl->args[i], "--", 2) == 0 && strncmp(ctl->args[i] + 2, name, len) == 0 &&
            strchr("=", ctl->args[i][2 + len]))
            return true;
    return false;
}

static int make_cloud(struct ctl *ctl, struct cloud *cloud, const char *name)
{
    const char *state_dir = take_option(ctl, "state-dir");

    *cloud = (struct cloud){
        .name = name,
        .image = take_option(ctl, "cloud-image"),
        .user_data = take_option(ctl, "user-data"),
        .meta_data = take_option(ctl, "meta-data"),
        .disk_size = take_option(ctl, "disk-size"),
        .own_kernel = has_option(ctl, "kernel"),
        .own_initrd = has_option(ctl, "initrd"),
        .own_cmdline = has_option(ctl, "cmdline"),
    };
    if (cloud->image)
        return cloud_make(cloud, state_dir ? state_dir : UMBRA_STATEDIR);
    if (cloud->user_data || cloud->meta_data || cloud->disk_size)
        return ctl_usage(ctl, "--user-data, --meta-data and --disk-size go with --cloud-image");
    return CTL_DONE;
}

static int create(struct ctl *ctl, struct config_file *f, const struct cloud *cloud)
{
    _cleanup_close_ int fd = -1;
    int r = open_draft(f, &fd);

    if (r == CTL_DONE)
        r = write_options(ctl, cloud, fd);
    if (r)
        return r;
    switch (put_in_place(f, FILE_MODE, true)) {
    case 0:
        printf("%s: written; systemctl start umbra@%s starts it\n", f->path, f->name);
        return CTL_DONE;
    case -EEXIST:
        ctl_error("%s: somebody else has just made it", f->path);
        return CTL_FAILED;
    default:
        return CTL_FAILED;
    }
}

int ctl_cmd_create(struct ctl *ctl)
{
    _cleanup_config_file_ struct config_file f = {0};
    struct cloud cloud = {0};
    int r = find_file(ctl, &f);

    if (r == CTL_DONE && access(f.path, F_OK) == 0) {
        ctl_error("%s: is there already (vmctl edit %s changes it)", f.path, f.name);
        return CTL_FAILED;
    }
    if (r == CTL_DONE)
        r = make_cloud(ctl, &cloud, f.name);
    if (r == CTL_DONE)
        r = create(ctl, &f, &cloud);
    cloud_clear(&cloud, r == CTL_DONE);
    return r;
}

/* -- edit -- */

static int copy_to_draft(struct config_file *f, struct stat *ret_original)
{
    _cleanup_close_ int fd = -1;
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = stat(f->path, ret_original) < 0 ? -errno : fd_read_file(f->path, 1u << 20, &text, &len);

    if (r < 0) {
        ctl_error("%s: %s%s", f->path, strerror(-r), r == -ENOENT ? " (vmctl create makes one)" : "");
        return CTL_FAILED;
    }
    if (open_draft(f, &fd))
        return CTL_FAILED;
    r = fd_write_all(fd, text, len);
    if (r < 0)
        ctl_error("%s: %s", f->draft, strerror(-r));
    return r < 0 ? CTL_FAILED : CTL_DONE;
}

static bool same_contents(const char *a, const char *b)
{
    _cleanup_free_ char *ta = NULL, *tb = NULL;
    size_t la, lb;

    return fd_read_file(a, 1u << 20, &ta, &la) == 0 && fd_read_file(b, 1u << 20, &tb, &lb) == 0 && la == lb &&
           memcmp(ta, tb, la) == 0;
}

/* Only a person can decide: without one the answer is no. */
static bool edit_again(void)
{
    char answer[16] = "";

    if (!isatty(STDIN_FILENO))
        return false;
    fputs("Edit it again? [Y/n] ", stderr);
    return fgets(answer, sizeof(answer), stdin) && strchr("\nyY", answer[0]);
}

/* Whether the file is still the one that was copied. */
static bool unchanged_since(const struct config_file *f, const struct stat *then)
{
    struct stat now;

    return stat(f->path, &now) == 0 && now.st_ino == then->st_ino && now.st_mtim.tv_sec == then->st_mtim.tv_sec &&
           now.st_mtim.tv_nsec == then->st_mtim.tv_nsec;
}

int ctl_cmd_edit(struct ctl *ctl)
{
    _cleanup_config_file_ struct config_file f = {0};
    struct stat original;
    int r = find_file(ctl, &f);

    if (r == CTL_DONE && ctl->arg_count > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->args[0]);
    if (r == CTL_DONE)
        r = copy_to_draft(&f, &original);
    if (r)
        return r;
    do {
        r = run_editor(f.draft);
        if (r)
            return r;
        if (same_contents(f.path, f.draft)) {
            ctl_note("%s: nothing was changed", f.path);
            return CTL_DONE;
        }
        if (draft_is_good(&f))
            break;
        if (!edit_again()) {
            ctl_error("%s: stays as it was", f.path);
            return CTL_FAILED;
        }
    } while (true);
    if (!unchanged_since(&f, &original)) {
        ctl_error("%s: somebody else has changed it meanwhile; it stays as they left it", f.path);
        return CTL_FAILED;
    }
    if (put_in_place(&f, original.st_mode & 07777, false) < 0)
        return CTL_FAILED;
    printf("%s: written%s\n", f.path, vms_running(ctl->runtime_dir, f.name) ? "; it counts from the VM's next start on" : "");
    return CTL_DONE;
}

/* -- remove -- */

int ctl_cmd_remove(struct ctl *ctl)
{
    struct config_file f = {0};
    char state[PATH_MAX];
    int r = find_file(ctl, &f);

    if (r == CTL_DONE && ctl->arg_count > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->args[0]);
    if (r)
        return r;
    if (vms_running(ctl->runtime_dir, f.name)) {
        ctl_error("%s runs (vmctl shutdown %s ends it)", f.name, f.name);
        return CTL_FAILED;
    }
    if (unlink(f.path) < 0) {
        ctl_error("%s: %s", f.path, strerror(errno));
        return CTL_FAILED;
    }
    printf("%s: removed\n", f.path);
    if (snprintf(state, sizeof(state), "%s/%s", UMBRA_STATEDIR, f.name) < (int)sizeof(state) && access(state, F_OK) == 0)
        ctl_note("its state in %s stays", state);
    return CTL_DONE;
}
