/*
 * Have a thread of another process make one system call that it would never make (getppid), in place of the one it waits in, and
 * go on as if nothing had been: a fault that looks like a thread somebody has taken over.
 *
 * usage: inject-call TID; prints "result N", what the call returned to the thread, or "signal N" when its process ended by it.
 */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/user.h>
#include <sys/wait.h>

/* The length of the syscall instruction: the thread stands behind one. */
#define SYSCALL_LENGTH 2

static pid_t tid;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void get(struct user_regs_struct *regs)
{
    if (ptrace(PTRACE_GETREGS, tid, NULL, regs) < 0)
        die("PTRACE_GETREGS");
}

static void set(const struct user_regs_struct *regs)
{
    if (ptrace(PTRACE_SETREGS, tid, NULL, regs) < 0)
        die("PTRACE_SETREGS");
}

/* Let it go on to the next stop; the signal of it, SIGTRAP | 0x80 at a system call's begin or end. Ends the program with the process. */
static int next_stop(int signal)
{
    int status;

    if (ptrace(PTRACE_SYSCALL, tid, NULL, (long)signal) < 0)
        die("PTRACE_SYSCALL");
    if (waitpid(tid, &status, __WALL) != tid)
        die("waitpid");
    if (WIFSIGNALED(status)) {
        printf("signal %d\n", WTERMSIG(status));
        exit(0);
    }
    if (!WIFSTOPPED(status))
        exit(1);
    return WSTOPSIG(status);
}

/* From the call's begin until it has returned, through the handler of a signal it may have raised. */
static long long result_of_call(void)
{
    struct user_regs_struct regs;
    bool in_handler = false, returning = false;
    int signal = 0;

    for (;;) {
        int stop = next_stop(signal);

        signal = 0;
        get(&regs);
        if (stop != (SIGTRAP | 0x80)) {
            signal = stop;
            in_handler |= stop == SIGSYS;
        } else if (!in_handler || returning) {
            /* One that a filter refuses ends with the registers it began with, and the signal comes then. */
            if (returning || regs.rax != SYS_getppid)
                return (long long)regs.rax;
        } else {
            returning = regs.orig_rax == SYS_rt_sigreturn;
        }
    }
}

int main(int argc, char **argv)
{
    struct user_regs_struct before, now;
    int status;

    tid = argc == 2 ? (pid_t)atoi(argv[1]) : 0;
    if (tid <= 0) {
        fprintf(stderr, "usage: inject-call TID\n");
        return 2;
    }
    if (ptrace(PTRACE_SEIZE, tid, NULL, PTRACE_O_TRACESYSGOOD) < 0 || ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0 ||
        waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status))
        die("inject-call");
    get(&before);
    if ((long long)before.orig_rax < 0) {
        fprintf(stderr, "the thread waits in no system call\n");
        return 1;
    }
    now = before;
    now.rip -= SYSCALL_LENGTH;
    now.rax = SYS_getppid;
    now.orig_rax = (unsigned long long)-1;
    set(&now);
    if (next_stop(0) != (SIGTRAP | 0x80))
        return 1;
    printf("result %lld\n", result_of_call());
    /* The call that was interrupted is begun again. */
    before.rip -= SYSCALL_LENGTH;
    before.rax = before.orig_rax;
    before.orig_rax = (unsigned long long)-1;
    set(&before);
    return ptrace(PTRACE_DETACH, tid, NULL, NULL) < 0;
}
