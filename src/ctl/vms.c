#include "config.h"

#include "ctl/vms.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/size.h"

bool vms_listening(const char *runtime_dir, const char *name)
{
    _cleanup_client_ struct client *c = NULL;
    struct failure f = {0};
    char path[PATH_MAX];

    if (paths_vm_file(runtime_dir, name, "control.sock", path, sizeof(path)) < 0)
        return false;
    return client_connect(path, &c, &f) == 0 || f.kind != FAILURE_NO_VM;
}

bool vms_is_umbrad(pid_t pid)
{
    _cleanup_free_ char *comm = NULL;
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    return fd_read_file(path, 64, &comm, NULL) == 0 && strcmp(comm, "umbrad\n") == 0;
}

bool vms_running(const char *runtime_dir, const char *name)
{
    char path[64];
    pid_t pid;

    if (vms_pid_file(runtime_dir, name, &pid) < 0)
        return false;
    snprintf(path, sizeof(path), "/proc/%d", (int)pid);
    if (access(path, F_OK) == 0)
        return vms_is_umbrad(pid);
    /* The stop command of a service may not be shown the processes of others, as its service's main process is there to it. */
    return kill(pid, 0) == 0 || errno == EPERM;
}

bool vms_waiting(const char *runtime_dir, const char *name)
{
    char path[PATH_MAX];
    pid_t pid;

    return vms_pid_file(runtime_dir, name, &pid) == -ENOENT &&
           paths_vm_file(runtime_dir, name, "control.sock", path, sizeof(path)) == 0 && access(path, F_OK) == 0;
}

const char *vms_join(const struct vm_names *v, char *buf, size_t len)
{
    size_t o = 0;

    buf[0] = '\0';
    for (size_t i = 0; i < v->count; i++) {
        size_t need = strlen(v->names[i]) + 2;

        if (o + need + sizeof(", ...") > len) {
            snprintf(buf + o, len - o, ", ...");
            break;
        }
        o += (size_t)snprintf(buf + o, len - o, "%s%s", i ? ", " : "", v->names[i]);
    }
    return buf;
}

static bool has_name(const struct vm_names *v, const char *name)
{
    for (size_t i = 0; i < v->count; i++)
        if (strcmp(v->names[i], name) == 0)
            return true;
    return false;
}

/* Drop the names that nobody listens for. */
static void keep_listening(const char *runtime_dir, struct vm_names *v)
{
    size_t kept = 0;

    for (size_t i = 0; i < v->count; i++) {
        if (!vms_waiting(runtime_dir, v->names[i]) && vms_listening(runtime_dir, v->names[i]))
            v->names[kept++] = v->names[i];
        else
            free(v->names[i]);
    }
    v->count = kept;
}

bool vms_any_running(const char *runtime_dir)
{
    _cleanup_vm_names_ struct vm_names v = {0};
    bool any = vm_names_scan(runtime_dir, &v) < 0;

    for (size_t i = 0; i < v.count && !any; i++)
        any = !vms_waiting(runtime_dir, v.names[i]) && vms_listening(runtime_dir, v.names[i]);
    return any;
}

static int no_such_vm(const struct ctl *ctl, const struct vm_names *v)
{
    char names[400];

    if (v->count == 0)
        ctl_error("no such VM: %s (there is none in %s)", ctl->args[0], ctl->runtime_dir);
    else
        ctl_error("no such VM: %s (there %s %s)", ctl->args[0], v->count == 1 ? "is" : "are",
                  vms_join(v, names, sizeof(names)));
    return CTL_NO_VM;
}

/* No name was given: only a single running VM makes clear which is meant. */
static int choose_only(struct ctl *ctl, struct vm_names *v)
{
    size_t all = v->count;
    char names[400];

    keep_listening(ctl->runtime_dir, v);
    if (v->count == 1) {
        strcpy(ctl->vm, v->names[0]);
        ctl_note("taking %s, the only VM", ctl->vm);
        return CTL_DONE;
    }
    if (v->count > 1)
        return ctl_usage(ctl, "which VM? There are %s", vms_join(v, names, sizeof(names)));
    ctl_error("no VM is running (%s in %s)", all ? "only stale files are" : "there is nothing", ctl->runtime_dir);
    return CTL_NO_VM;
}

/* -- what no VM is called: arguments by the names that the help has for them -- */

static bool is_uri(int count, char **args)
{
    return strchr(args[0], ':') != NULL;
}

static bool is_number(int count, char **args)
{
    return args[0][0] >= '0' && args[0][0] <= '9';
}

static bool is_setting(int count, char **args)
{
    return strchr(args[0], '=') != NULL;
}

static bool is_frame(int count, char **args)
{
    return is_number(count, args) || is_setting(count, args);
}

/* A command and settings, or JSON. */
static bool is_request(int count, char **args)
{
    return args[0][0] == '{' || count < 2 || is_setting(count - 1, args + 1);
}

/* Whether what was given may be the command's own arguments, with the VM left out. */
static bool fits_command(const struct ctl *ctl)
{
    static const struct {
        const char *name;
        bool (*is)(int count, char **args);
    } known[] = {{"URI", is_uri}, {"SIZE", is_number}, {"KEY=VALUE", is_setting}, {"ADDRESS", is_frame}, {"REQUEST", is_request}};
    const struct ctl_command *c = ctl->command;

    if (c->max_args >= 0 && ctl->arg_count > c->max_args)
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (strstr(c->arguments, known[i].name))
            return known[i].is(ctl->arg_count, ctl->args);
    return true;
}

static void shift(struct ctl *ctl)
{
    ctl->args++;
    ctl->arg_count--;
}

int vms_choose(struct ctl *ctl)
{
    _cleanup_vm_names_ struct vm_names v = {0};
    int r = vm_names_scan(ctl->runtime_dir, &v);

    if (r < 0) {
        ctl_error("cannot read %s: %s", ctl->runtime_dir, strerror(-r));
        return CTL_FAILED;
    }
    if (ctl->arg_count > 0 && has_name(&v, ctl->args[0])) {
        strcpy(ctl->vm, ctl->args[0]);
        shift(ctl);
        return CTL_DONE;
    }
    /* The first may be an argument of the command. */
    if (ctl->arg_count > 0 && (v.count == 0 || !fits_command(ctl)))
        return no_such_vm(ctl, &v);
    if (ctl->arg_count > 0) {
        keep_listening(ctl->runtime_dir, &v);
        if (v.count != 1)
            return no_such_vm(ctl, &v);
    }
    return choose_only(ctl, &v);
}

int vms_path(const struct ctl *ctl, const char *file, char *buf, size_t len)
{
    if (paths_vm_file(ctl->runtime_dir, ctl->vm, file, buf, len) == 0)
        return CTL_DONE;
    ctl_error("path of %s in %s/%s is longer than %zu bytes", file, ctl->runtime_dir, ctl->vm, len - 1);
    return CTL_FAILED;
}

int vms_pid_file(const char *runtime_dir, const char *name, pid_t *ret)
{
    _cleanup_free_ char *text = NULL;
    char path[PATH_MAX];
    uint64_t pid;
    int r;

    r = paths_vm_file(runtime_dir, name, "pid", path, sizeof(path));
    if (r == 0)
        r = fd_read_file(path, 64, &text, NULL);
    if (r < 0)
        return r;
    text[strcspn(text, "\r\n")] = '\0';
    if (size_parse_u64(text, INT_MAX, &pid) < 0 || pid == 0)
        return -EINVAL;
    *ret = (pid_t)pid;
    return 0;
}

pid_t vms_daemon_pid(const char *runtime_dir, const char *name, const struct client *c)
{
    pid_t pid = client_pid(c), written;

    if (pid <= 1 && vms_pid_file(runtime_dir, name, &written) == 0)
        pid = written;
    return pid;
}

double vms_uptime(pid_t pid)
{
    _cleanup_free_ char *text = NULL;
    unsigned long long start;
    struct timespec now;
    char path[64], *p;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    if (fd_read_file(path, 4096, &text, NULL) < 0)
        return -1;
    /* The command's name may hold anything, closing brackets too; the fields go on behind the last. proc_pid_stat(5). */
    p = strrchr(text, ')');
    if (!p || sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                     &start) != 1)
        return -1;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return MAX(0.0, (double)now.tv_sec + (double)now.tv_nsec / 1e9 - (double)start / (double)sysconf(_SC_CLK_TCK));
}
