/*
 * Everything is made in a directory beside its place, which one rename puts there. The image and what is in it come from
 * elsewhere: its partition table is read by gpt.c; its file system by debugfs, which needs no mount and no root, and gets
 * names only that consist of harmless characters; what comes out must look like a kernel.
 */
#include "config.h"

#include "ctl/cloud.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/size.h"
#include "ctl/gpt.h"
#include "ctl/program.h"

#define SEED_FILE_MAX (1u << 20)
#define BOOT_FILE_MAX (UINT64_C(1) << 30)
#define LISTING_MAX (1u << 20)

/* What may be in the draft, for taking it back: directories last. */
static const char *const made[] = {"root.img",       "vmlinuz",        "initrd.img", "seed.iso", "listing",
                                   "messages", "seed/user-data", "seed/meta-data", "seed"};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    interrupted = sig;
}

/* Ctrl-C ends the program that runs, by which ours sees it, and takes back what there is. */
static void catch_signals(void)
{
    const struct sigaction action = {.sa_handler = on_signal};
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};

    for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
        sigaction(signals[i], &action, NULL);
}

static int failed(const char *what, int r)
{
    ctl_error("%s: %s", what, strerror(-r));
    return CTL_FAILED;
}

/* The path of a file in the draft. */
static const char *in_draft(const struct cloud *c, const char *name, char buf[PATH_MAX])
{
    snprintf(buf, PATH_MAX, "%.4000s/%s", c->draft, name);
    return buf;
}

/* What a tool said last before it failed. */
static void tell_why(const struct cloud *c, const char *tool, int status)
{
    _cleanup_free_ char *text = NULL;
    char path[PATH_MAX], *line = NULL;

    if (fd_read_file(in_draft(c, "messages", path), LISTING_MAX, &text, NULL) == 0)
        for (char *l = strtok(text, "\n"); l; l = strtok(NULL, "\n"))
            line = l;
    if (line)
        ctl_error("%.200s: %.300s", c->image, line);
    else
        ctl_error("%s failed with status %d", tool, status);
}

/*
 * Run a tool in the draft; its output goes to the file `out` there, or nowhere. CTL_DONE; CTL_FAILED, where `why` (NULL: its own
 * words) says what it means if the tool fails.
 */
static int run_tool(const struct cloud *c, char *const *argv, const char *package, const char *out, uint64_t max_file,
                    const char *why)
{
    const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC;
    char path[PATH_MAX];
    _cleanup_close_ int fd = open(out ? in_draft(c, out, path) : "/dev/null", flags, 0600);
    _cleanup_close_ int messages = open(in_draft(c, "messages", path), flags, 0600);
    const struct program p = {.argv = argv, .out = fd, .err = messages, .dir = c->draft, .max_file = max_file};
    int r = fd < 0 || messages < 0 ? -errno : program_run(&p);

    if (interrupted)
        ctl_error("interrupted");
    else if (r == PROGRAM_NOT_FOUND)
        ctl_error("%s cannot be run (Debian: package %s)", argv[0], package);
    else if (r < 0)
        return failed(argv[0], r);
    else if (r > 0 && why)
        ctl_error("%s: %s", c->image, why);
    else if (r > 0)
        tell_why(c, argv[0], r);
    return r == 0 && !interrupted ? CTL_DONE : CTL_FAILED;
}

/* -- the root disk ------------------------------------------------------------ */

/* Find the root partition, before anything is made. */
static int look_at_image(struct cloud *c, struct gpt_root *ret, uint64_t *ret_size)
{
    _cleanup_close_ int fd = open(c->image, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    char error[GPT_ERROR_MAX];
    struct stat st;
    off_t size;

    if (fd < 0 || fstat(fd, &st) < 0)
        return failed(c->image, -errno);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        ctl_error("%s: neither a file nor a block device", c->image);
        return CTL_FAILED;
    }
    size = lseek(fd, 0, SEEK_END);
    if (size < 0)
        return failed(c->image, -errno);
    if (gpt_find_root(fd, (uint64_t)size, ret, error) < 0) {
        ctl_error("%s: %s", c->image, error);
        return CTL_FAILED;
    }
    *ret_size = (uint64_t)size;
    return CTL_DONE;
}

static int wanted_size(const struct cloud *c, uint64_t size, uint64_t *ret)
{
    char now[32];
    uint64_t want = size;

    if (c->disk_size && (size_parse(c->disk_size, &want) < 0 || want > INT64_MAX)) {
        ctl_error("--disk-size: \"%.40s\" is no size (write it like 10G)", c->disk_size);
        return CTL_USAGE;
    }
    if (want < size) {
        ctl_error("--disk-size: %s is less than the image has, %s", c->disk_size, size_format(size, now, sizeof(now)));
        return CTL_FAILED;
    }
    /* umbrad takes whole sectors. */
    *ret = align_up(want, 512);
    return CTL_DONE;
}

static int copy_image(const struct cloud *c, uint64_t size)
{
    char cp[] = "cp", reflink[] = "--reflink=auto", sparse[] = "--sparse=always", end[] = "--", to[PATH_MAX];
    _cleanup_free_ char *from = realpath(c->image, NULL);
    char *argv[] = {cp, reflink, sparse, end, from, to, NULL};
    int r;

    if (!from)
        return failed(c->image, -errno);
    in_draft(c, "root.img", to);
    r = run_tool(c, argv, "coreutils", NULL, 0, NULL);
    if (r == CTL_DONE && (chmod(to, 0600) < 0 || truncate(to, (off_t)size) < 0))
        r = failed(to, -errno);
    return r;
}

/* -- kernel and initial RAM disk ---------------------------------------------- */

/* Run one of debugfs' requests on the root partition. */
static int ask_file_system(const struct cloud *c, const struct gpt_root *root, const char *request)
{
    char debugfs[] = "debugfs", catastrophic[] = "-c", run[] = "-R", text[600], device[64], why[128];
    char *argv[] = {debugfs, catastrophic, run, text, device, NULL};

    snprintf(text, sizeof(text), "%s", request);
    snprintf(device, sizeof(device), "root.img?offset=%llu", (unsigned long long)root->offset);
    snprintf(why, sizeof(why), "no ext4 in partition %u (--kernel and --initrd name files of the host)", root->number);
    return run_tool(c, argv, "e2fsprogs", "listing", BOOT_FILE_MAX, why);
}

static bool harmless(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+~-/";

    return *name && name[0] != '-' && strlen(name) < 255 && name[strspn(name, letters)] == '\0' && !strstr(name, "..");
}

/*
 * Where /NAME of the root file system leads to: itself, or what it is a link to, which debugfs does not follow by itself. False
 * when there is none.
 */
static bool follow(const struct cloud *c, const char *name, char *target, size_t size)
{
    static const char mark[] = "link dest: \"";
    _cleanup_free_ char *text = NULL;
    char path[PATH_MAX], *at, *end;

    if (fd_read_file(in_draft(c, "listing", path), LISTING_MAX, &text, NULL) < 0 || !strstr(text, "Inode:"))
        return false;
    at = strstr(text, mark);
    if (!at)
        return snprintf(target, size, "/%s", name) < (int)size;
    at += strlen(mark);
    end = strchr(at, '"');
    if (!end)
        return false;
    *end = '\0';
    return harmless(at) && snprintf(target, size, "%s%s", *at == '/' ? "" : "/", at) < (int)size;
}

/* Take /NAME out of the image. */
static int take_out(const struct cloud *c, const struct gpt_root *root, const char *name)
{
    char request[600], target[300], path[PATH_MAX];
    struct stat st;
    int r;

    snprintf(request, sizeof(request), "stat /%s", name);
    r = ask_file_system(c, root, request);
    if (r)
        return r;
    if (follow(c, name, target, sizeof(target))) {
        snprintf(request, sizeof(request), "dump %s %s", target, name);
        r = ask_file_system(c, root, request);
        if (r)
            return r;
        if (stat(in_draft(c, name, path), &st) == 0 && st.st_size > 0)
            return chmod(path, 0600) < 0 ? failed(path, -errno) : CTL_DONE;
    }
    ctl_error("%s: no /%s in partition %u (--kernel and --initrd name files of the host)", c->image, name,
              root->number);
    return CTL_FAILED;
}

/* The boot protocol's mark, at its place. */
static int check_kernel(const struct cloud *c)
{
    char path[PATH_MAX];
    _cleanup_close_ int fd = open(in_draft(c, "vmlinuz", path), O_RDONLY | O_CLOEXEC);
    char mark[4];

    if (fd >= 0 && fd_pread_all(fd, mark, sizeof(mark), 0x202) == 0 && memcmp(mark, "HdrS", 4) == 0)
        return CTL_DONE;
    ctl_error("%s: /vmlinuz is no bzImage (--kernel and --initrd name files of the host)", c->image);
    return CTL_FAILED;
}

static int take_boot_files(const struct cloud *c, const struct gpt_root *root)
{
    int r = CTL_DONE;

    if (!c->own_kernel) {
        r = take_out(c, root, "vmlinuz");
        if (r == CTL_DONE)
            r = check_kernel(c);
    }
    if (r == CTL_DONE && !c->own_kernel && !c->own_initrd)
        r = take_out(c, root, "initrd.img");
    return r;
}

/* -- the seed ----------------------------------------------------------------- */

static int write_seed_file(const struct cloud *c, const char *name, const char *text, size_t len)
{
    char path[PATH_MAX];
    _cleanup_close_ int fd = open(in_draft(c, name, path), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int r = fd < 0 ? -errno : fd_write_all(fd, text, len);

    return r < 0 ? failed(path, r) : CTL_DONE;
}

static int copy_seed_file(const struct cloud *c, const char *from, const char *name)
{
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = fd_read_file(from, SEED_FILE_MAX, &text, &len);

    if (r < 0)
        return failed(from, r);
    if (strcmp(name, "seed/user-data") == 0 && strncmp(text, "#", 1) != 0 && !strstr(text, "MIME-Version:"))
        ctl_note("%s: does not begin with #cloud-config or #!: cloud-init will not know what it is", from);
    return write_seed_file(c, name, text, len);
}

static int make_meta_data(const struct cloud *c)
{
    char text[256];
    int n;

    if (c->meta_data)
        return copy_seed_file(c, c->meta_data, "seed/meta-data");
    /* Another instance each time, so that cloud-init does its work again. */
    n = snprintf(text, sizeof(text), "instance-id: %s-%llx\nlocal-hostname: %s\n", c->name, (unsigned long long)time(NULL),
                 c->name);
    return write_seed_file(c, "seed/meta-data", text, (size_t)n);
}

static int make_seed(const struct cloud *c)
{
    char xorriso[] = "xorriso", as[] = "-as", mkisofs[] = "mkisofs", quiet[] = "-quiet", volid[] = "-volid",
         label[] = "cidata", joliet[] = "-joliet", rock[] = "-rock", o[] = "-o", iso[] = "seed.iso", seed[] = "seed";
    char *argv[] = {xorriso, as, mkisofs, quiet, volid, label, joliet, rock, o, iso, seed, NULL};
    char path[PATH_MAX];
    int r;

    if (mkdir(in_draft(c, "seed", path), 0700) < 0)
        return failed(path, -errno);
    r = copy_seed_file(c, c->user_data, "seed/user-data");
    if (r == CTL_DONE)
        r = make_meta_data(c);
    if (r == CTL_DONE)
        r = run_tool(c, argv, "xorriso", NULL, 0, NULL);
    if (r == CTL_DONE && chmod(in_draft(c, "seed.iso", path), 0600) < 0)
        r = failed(path, -errno);
    return r;
}

/* -- the whole ---------------------------------------------------------------- */

static void remove_made(const char *dir, size_t from)
{
    char path[PATH_MAX];

    for (size_t i = from; i < ARRAY_SIZE(made); i++) {
        snprintf(path, sizeof(path), "%.4000s/%s", dir, made[i]);
        (void)remove(path);
    }
}

void cloud_clear(struct cloud *c, bool keep)
{
    const char *dir = c->placed ? c->dir : c->draft;

    if (*dir && !keep) {
        remove_made(dir, 0);
        rmdir(dir);
    }
    for (int i = 0; i < c->arg_count; i++)
        free(c->args[i]);
    c->arg_count = 0;
    c->draft[0] = '\0';
}

/* The daemon's user reads and writes it, where there is one. */
static int give_away(const struct cloud *c)
{
    const struct passwd *user = geteuid() == 0 ? getpwnam("umbra") : NULL;
    char path[PATH_MAX];

    if (!user)
        return CTL_DONE;
    for (size_t i = 0; i < ARRAY_SIZE(made); i++)
        if (lchown(in_draft(c, made[i], path), user->pw_uid, user->pw_gid) < 0 && errno != ENOENT)
            return failed(path, -errno);
    return lchown(c->draft, user->pw_uid, user->pw_gid) < 0 ? failed(c->draft, -errno) : CTL_DONE;
}

/* Add "--OPTION VALUE", in which a comma stands twice if it is a disk's path. */
static int add_arg(struct cloud *c, const char *option, const char *dir, const char *rest)
{
    char value[2 * PATH_MAX];
    size_t n = 0;

    for (; dir && *dir && n + 2 < PATH_MAX; dir++) {
        value[n++] = *dir;
        if (*dir == ',' && strcmp(option, "--disk") == 0)
            value[n++] = ',';
    }
    snprintf(value + n, sizeof(value) - n, "%s", rest);
    c->args[c->arg_count] = strdup(option);
    c->args[c->arg_count + 1] = strdup(value);
    c->arg_count += 2;
    return c->args[c->arg_count - 1] && c->args[c->arg_count - 2] ? CTL_DONE : failed("vmctl", -ENOMEM);
}

static int fill_args(struct cloud *c)
{
    char cmdline[128];
    int r = CTL_DONE;

    snprintf(cmdline, sizeof(cmdline), "root=PARTUUID=%s ro console=ttyS0", c->partuuid);
    if (!c->own_kernel)
        r = add_arg(c, "--kernel", c->dir, "/vmlinuz");
    if (r == CTL_DONE && !c->own_kernel && !c->own_initrd)
        r = add_arg(c, "--initrd", c->dir, "/initrd.img");
    if (r == CTL_DONE && !c->own_cmdline)
        r = add_arg(c, "--cmdline", NULL, cmdline);
    if (r == CTL_DONE)
        r = add_arg(c, "--disk", c->dir, "/root.img");
    if (r == CTL_DONE)
        r = add_arg(c, "--disk", c->dir, "/seed.iso,ro");
    if (r == CTL_DONE)
        r = add_arg(c, "--balloon", NULL, "on,free-page-reporting");
    return r;
}

static int open_draft(struct cloud *c, const char *state_dir)
{
    /* Whole, because the tools run elsewhere and the configuration file is read elsewhere. */
    _cleanup_free_ char *real = realpath(state_dir, NULL);

    if (!real || strlen(real) > 3700)
        return failed(state_dir, real ? -ENAMETOOLONG : -errno);
    snprintf(c->dir, sizeof(c->dir), "%.3800s/%s", real, c->name);
    snprintf(c->draft, sizeof(c->draft), "%.3800s/.%s.XXXXXX", real, c->name);
    /* An empty one is what a service manager leaves. */
    if (rmdir(c->dir) < 0 && errno != ENOENT) {
        c->draft[0] = '\0';
        ctl_error("%s: is there already, with something in it", c->dir);
        return CTL_FAILED;
    }
    if (!mkdtemp(c->draft)) {
        c->draft[0] = '\0';
        return failed(state_dir, -errno);
    }
    return CTL_DONE;
}

static int fill_draft(struct cloud *c, const struct gpt_root *root, uint64_t size)
{
    int r = copy_image(c, size);

    if (r == CTL_DONE)
        r = take_boot_files(c, root);
    if (r == CTL_DONE)
        r = make_seed(c);
    if (r)
        return r;
    remove_made(c->draft, 4);
    return give_away(c);
}

int cloud_make(struct cloud *c, const char *state_dir)
{
    struct gpt_root root;
    uint64_t size, want;
    int r;

    if (!c->user_data) {
        ctl_error("--cloud-image: wants --user-data FILE too: who may log in, and how");
        return CTL_USAGE;
    }
    if (access(c->user_data, R_OK) < 0)
        return failed(c->user_data, -errno);
    if (c->meta_data && access(c->meta_data, R_OK) < 0)
        return failed(c->meta_data, -errno);
    r = look_at_image(c, &root, &size);
    if (r == CTL_DONE)
        r = wanted_size(c, size, &want);
    if (r)
        return r;
    strcpy(c->partuuid, root.uuid);
    catch_signals();
    r = open_draft(c, state_dir);
    if (r == CTL_DONE)
        r = fill_draft(c, &root, want);
    if (r == CTL_DONE)
        r = fill_args(c);
    if (r)
        return r;
    if (rename(c->draft, c->dir) < 0)
        return failed(c->dir, -errno);
    c->placed = true;
    return CTL_DONE;
}
