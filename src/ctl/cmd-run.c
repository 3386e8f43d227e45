/* vmctl pause, resume, reset, shutdown, kill: what changes whether a VM runs. */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "ctl/ctl.h"
#include "ctl/format.h"
#include "ctl/progress.h"
#include "ctl/vms.h"

#define SHUTDOWN_DEFAULT_MS 60000
#define SHUTDOWN_MAX_MS (24 * 3600 * 1000)
#define KILL_ANSWER_MS 1000
#define KILL_END_MS 5000

/* Send a command without arguments, then tell the state it led to. */
static int change_state(struct ctl *ctl, const char *command, const char *done)
{
    _cleanup_client_ struct client *c = NULL;
    _cleanup_json_ json_t *answer = NULL, *status = NULL;
    const char *state = NULL;
    int r = ctl_connect(ctl, &c);

    if (r == CTL_DONE)
        r = ctl_ask(ctl, c, command, NULL, &answer);
    if (r == CTL_DONE && ctl->output == CTL_JSON)
        ctl_print_json(answer);
    if (r || ctl->output == CTL_JSON)
        return r;
    if (ctl_ask_maybe(ctl, c, "query-status", NULL, &status) == CTL_DONE && status)
        json_get_str(status, "status", &state);
    printf("%s: %s%s%s\n", ctl->vm, done ? done : "", done && state ? ", " : "", state ? state : done ? "" : "done");
    return CTL_DONE;
}

int ctl_cmd_pause(struct ctl *ctl)
{
    return change_state(ctl, "stop", NULL);
}

int ctl_cmd_resume(struct ctl *ctl)
{
    return change_state(ctl, "cont", NULL);
}

int ctl_cmd_reset(struct ctl *ctl)
{
    return change_state(ctl, "system_reset", "reset");
}

/* -- waiting for the end -- */

/* What is heard while a VM ends. */
struct ending {
    struct ctl *ctl;
    char reason[64]; /* of the SHUTDOWN event */
    bool reset;      /* the guest started again instead */
};

static void on_event(void *opaque, const char *name, const json_t *event)
{
    struct ending *e = opaque;
    const char *reason;
    json_t *data;

    if (strcmp(name, "RESET") == 0)
        e->reset = true;
    if (strcmp(name, "SHUTDOWN") == 0 && json_get_obj(event, "data", &data) == 0 &&
        json_get_str(data, "reason", &reason) == 0)
        snprintf(e->reason, sizeof(e->reason), "%s", reason);
}

static bool ended(int pidfd, int timeout_ms)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};

    return pidfd < 0 || poll(&p, 1, timeout_ms) == 1;
}

/* A descriptor for the daemon's process, or -1 where it is not known. */
static int open_process(const struct ctl *ctl, const struct client *c)
{
    pid_t pid = vms_daemon_pid(ctl->runtime_dir, ctl->vm, c);

    return pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
}

/*
 * Read what comes until the connection and the process end, for at most timeout_ms; with a line of progress on a
 * terminal. 0 when they have ended, -ETIMEDOUT, or -ECANCELED when the guest reset itself.
 */
static int wait_for_end(struct client *c, int pidfd, struct ending *e, int timeout_ms, const char *what)
{
    uint64_t start = clock_ns(), end = start + (uint64_t)timeout_ms * NSEC_PER_MSEC;
    int r = -ETIMEDOUT;

    while (clock_ns() < end) {
        struct failure f = {0};
        _cleanup_json_ json_t *message = NULL;
        uint64_t tick = MIN(end, clock_ns() + NSEC_PER_SEC / 4);
        const char *event;

        progress("%s: %s, %.0f s", e->ctl->vm, what, (double)(clock_ns() - start) / 1e9);
        if (client_receive(c, tick, &message, &f) == 0) {
            if (json_get_str(message, "event", &event) == 0)
                on_event(e, event, message);
            if (e->reset) {
                r = -ECANCELED;
                break;
            }
        } else if (f.kind != FAILURE_TIMEOUT) {
            r = ended(pidfd, (int)((end - MIN(end, clock_ns())) / NSEC_PER_MSEC)) ? 0 : -ETIMEDOUT;
            break;
        }
    }
    progress_clear();
    return r;
}

static int print_answer(const struct ctl *ctl, const json_t *answer)
{
    if (ctl->output == CTL_JSON)
        ctl_print_json(answer);
    return CTL_DONE;
}

/* A guest that is not running cannot react to its power button; say so instead of waiting in vain. */
static int check_running(const struct ctl *ctl, struct client *c)
{
    _cleanup_json_ json_t *status = NULL;
    const char *state;
    int r = ctl_ask(ctl, c, "query-status", NULL, &status);

    if (r || json_get_str(status, "status", &state) < 0 || strcmp(state, "running") == 0)
        return r;
    ctl_error("%s is %s and cannot react to its power button (vmctl resume, or vmctl shutdown --now)", ctl->vm, state);
    return CTL_FAILED;
}

static int shutdown_and_wait(struct ctl *ctl, struct client *c, int timeout_ms)
{
    struct ending e = {.ctl = ctl};
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_close_ int pidfd = open_process(ctl, c);
    uint64_t start = clock_ns();
    char took[FMT_MAX];
    int r;

    client_on_event(c, on_event, &e);
    r = ctl_ask(ctl, c, "system_powerdown", NULL, &answer);
    if (r)
        return r;
    if (timeout_ms == 0) {
        if (ctl->output == CTL_TABLE)
            printf("%s: power button pressed\n", ctl->vm);
        return print_answer(ctl, answer);
    }
    r = wait_for_end(c, pidfd, &e, timeout_ms, "power button pressed, waiting for the guest");
    fmt_duration((double)(clock_ns() - start) / 1e9, took, sizeof(took));
    if (r == -ETIMEDOUT) {
        ctl_error("%s still runs %s after its power button was pressed (vmctl shutdown --now ends it)", ctl->vm, took);
        return CTL_FAILED;
    }
    if (r < 0) {
        ctl_error("%s started again instead of shutting down, after %s", ctl->vm, took);
        return CTL_FAILED;
    }
    if (ctl->output == CTL_TABLE)
        printf("%s: shut down after %s%s%s%s\n", ctl->vm, took, e.reason[0] ? " (" : "", e.reason,
               e.reason[0] ? ")" : "");
    return print_answer(ctl, answer);
}

int ctl_cmd_shutdown(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    int timeout_ms = SHUTDOWN_DEFAULT_MS, r;

    r = ctl_opt_seconds(ctl, "timeout", 0, SHUTDOWN_MAX_MS, &timeout_ms);
    if (r)
        return r;
    if (ctl_opt(ctl, "if-running") && !vms_running(ctl->runtime_dir, ctl->vm))
        return CTL_DONE;
    if (ctl_opt(ctl, "now"))
        return ctl_cmd_kill(ctl);
    r = ctl_connect(ctl, &c);
    if (r == CTL_DONE)
        r = check_running(ctl, c);
    return r ? r : shutdown_and_wait(ctl, c, timeout_ms);
}

/* -- kill -- */

/* SIGKILL for the process in the VM's pid file, when it still is a umbrad. */
static int kill_process(struct ctl *ctl, const char *why)
{
    _cleanup_close_ int pidfd = -1;
    pid_t pid;
    int r = vms_pid_file(ctl->runtime_dir, ctl->vm, &pid);

    if (r < 0) {
        ctl_error("%s: %s, and its pid file cannot be read: %s", ctl->vm, why,
                  r == -EINVAL ? "no number in it" : strerror(-r));
        return CTL_NO_VM;
    }
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0 ? errno == ESRCH : ended(pidfd, 0)) {
        ctl_error("%s is not running (process %d is gone, its files in %s/%s are stale)", ctl->vm, (int)pid,
                  ctl->runtime_dir, ctl->vm);
        return CTL_NO_VM;
    }
    if (pidfd >= 0 && !vms_is_umbrad(pid)) {
        ctl_error("%s is not running (process %d in its pid file is not umbrad)", ctl->vm, (int)pid);
        return CTL_NO_VM;
    }
    if (pidfd < 0 || syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) < 0) {
        ctl_error("%s: %s, and process %d cannot be killed: %s", ctl->vm, why, (int)pid, strerror(errno));
        return CTL_FAILED;
    }
    if (!ended(pidfd, KILL_END_MS)) {
        ctl_error("%s: process %d does not end even by SIGKILL (it hangs in the kernel)", ctl->vm, (int)pid);
        return CTL_FAILED;
    }
    if (ctl->output == CTL_JSON)
        puts("{}");
    else
        printf("%s: %s, killed process %d\n", ctl->vm, why, (int)pid);
    return CTL_DONE;
}

/* Ask the daemon to end; 0 when it has, or -1 with *f set. */
static int quit(struct ctl *ctl, struct client *c, struct failure *f)
{
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_close_ int pidfd = open_process(ctl, c);
    struct ending e = {.ctl = ctl};

    /* A daemon that ends at once may have no time to answer: that it is gone is good enough. */
    if ((client_negotiate(c, KILL_ANSWER_MS, f) < 0 ||
         client_call(c, "quit", NULL, KILL_ANSWER_MS, &answer, NULL, f) < 0) &&
        f->kind != FAILURE_GONE) {
        if (f->kind == FAILURE_TIMEOUT)
            failure_set(f, FAILURE_TIMEOUT, "did not answer within a second");
        return -1;
    }
    if (wait_for_end(c, pidfd, &e, KILL_END_MS, "ending") < 0) {
        failure_set(f, FAILURE_TIMEOUT, "did not end within 5 seconds");
        return -1;
    }
    return 0;
}

int ctl_cmd_kill(struct ctl *ctl)
{
    _cleanup_client_ struct client *c = NULL;
    struct failure f = {0};
    char path[PATH_MAX];
    int r = vms_path(ctl, "control.sock", path, sizeof(path));

    if (r)
        return r;
    if (client_connect(path, &c, &f) < 0) {
        if (f.kind == FAILURE_LOCAL)
            return ctl_fail(ctl, &f);
        return kill_process(ctl, f.kind == FAILURE_BUSY ? "takes no more connections" : "control socket is dead");
    }
    if (quit(ctl, c, &f) < 0)
        return kill_process(ctl, f.text);
    if (ctl->output == CTL_JSON)
        puts("{}");
    else
        printf("%s: ended\n", ctl->vm);
    return CTL_DONE;
}
