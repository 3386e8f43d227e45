#include "config.h"

#include "ctl/program.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ctl/ctl.h"

static void become(const struct program *p)
{
    const struct rlimit limit = {.rlim_cur = p->max_file, .rlim_max = p->max_file};

    if ((p->out >= 0 && dup2(p->out, STDOUT_FILENO) < 0) || (p->err >= 0 && dup2(p->err, STDERR_FILENO) < 0) ||
        (p->dir && chdir(p->dir) < 0) || (p->max_file && setrlimit(RLIMIT_FSIZE, &limit) < 0))
        _exit(PROGRAM_NOT_FOUND - 1);
    execvp(p->argv[0], p->argv);
    ctl_error("%s: %s", p->argv[0], strerror(errno));
    _exit(PROGRAM_NOT_FOUND);
}

int program_run(const struct program *p)
{
    int status;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0)
        become(p);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
