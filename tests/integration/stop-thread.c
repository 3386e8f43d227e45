/*
 * Stop one thread of another process, and nothing else of it, until this program ends: a fault that looks like a thread stuck in
 * the kernel. usage: stop-thread TID; prints "stopped" when it is.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    pid_t tid = argc == 2 ? (pid_t)atoi(argv[1]) : 0;
    int status;

    if (tid <= 0) {
        fprintf(stderr, "usage: stop-thread TID\n");
        return 2;
    }
    if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0 || ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0 ||
        waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status)) {
        perror("stop-thread");
        return 1;
    }
    puts("stopped");
    fflush(stdout);
    /* The thread stays as it is. What ends its process is waited for. */
    while (waitpid(tid, &status, __WALL) == tid && !WIFEXITED(status) && !WIFSIGNALED(status))
        ;
    return 0;
}
