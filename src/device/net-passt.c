/*
 * User-mode network by passt: one that runs and is connected to, or one that is started here, with one end of a socket pair. Such
 * a one ends when the other end is closed, by whatever death umbrad dies; nobody waits for it, the kernel reaps it.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "device/net-backend.h"

/* The descriptor that passt finds its end of the socket at. */
#define PASST_FD 3
#define PASST_FD_TEXT "3"

static int take_stream(int *fd, const char *name, struct net_backend **ret)
{
    int r = fd_set_nonblock(*fd, 1);

    if (r == 0)
        r = net_stream_new(*fd, name, ret);
    if (r == 0)
        *fd = -1;
    return r;
}

int net_passt_connect(const struct net_config *c, struct net_backend **ret)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    if (strlen(c->socket) >= sizeof(addr.sun_path)) {
        log_err("passt %s: longer than %zu bytes", c->socket, sizeof(addr.sun_path) - 1);
        return -ENAMETOOLONG;
    }
    memcpy(addr.sun_path, c->socket, strlen(c->socket) + 1);
    if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
        log_err_errno(-errno, "passt %s", c->socket);
        return -errno;
    }
    return take_stream(&fd, c->socket, ret);
}

/* -- starting one ------------------------------------------------------------- */

/* In the child; async-signal-safe calls alone. Does not return. */
static void run_passt(const struct net_config *c, pid_t parent, int sock, int report)
{
    const char *argv[12] = {"passt", "--foreground", "--quiet", "--fd", PASST_FD_TEXT};
    unsigned int n = 5;
    sigset_t none;
    int err;

    if (c->tcp) {
        argv[n++] = "--tcp-ports";
        argv[n++] = c->tcp;
    }
    if (c->udp) {
        argv[n++] = "--udp-ports";
        argv[n++] = c->udp;
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGCHLD, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    /* Only until it makes its own user namespace, which clears it: a passt that hangs before that goes, too. */
    prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
    if (getppid() != parent)
        _exit(1);
    /* Above what is about to be taken: neither end may be overwritten. */
    report = fcntl(report, F_DUPFD_CLOEXEC, PASST_FD + 1);
    if (report >= 0 && dup2(sock, PASST_FD) >= 0 && fcntl(PASST_FD, F_SETFD, 0) == 0)
        execvp("passt", (char *const *)(uintptr_t)argv);
    err = errno;
    if (write(report, &err, sizeof(err)) < 0)
        _exit(2);
    _exit(1);
}

/* 0 when it runs, or -errno of what kept it from it. */
static int spawn(const struct net_config *c, int sock)
{
    const struct sigaction reap = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
    pid_t parent = getpid(), pid;
    int report[2], err = 0;
    ssize_t n;

    if (pipe2(report, O_CLOEXEC) < 0)
        return -errno;
    /* No other part has children. */
    if (sigaction(SIGCHLD, &reap, NULL) < 0)
        err = errno;
    pid = err ? -1 : fork();
    if (pid == 0)
        run_passt(c, parent, sock, report[1]);
    if (pid < 0)
        err = err ? err : errno;
    fd_close(report[1]);
    do
        n = pid > 0 ? read(report[0], &err, sizeof(err)) : 0;
    while (n < 0 && errno == EINTR);
    fd_close(report[0]);
    return -err;
}

int net_passt_start(const struct net_config *c, struct net_backend **ret)
{
    int ends[2], r;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    r = spawn(c, ends[1]);
    fd_close(ends[1]);
    if (r == -ENOENT)
        log_err("net: there is no passt, which user-mode network needs (Debian's package passt)");
    else if (r < 0)
        log_err_errno(r, "passt cannot be started");
    if (r == 0)
        r = take_stream(&ends[0], "", ret);
    fd_close(ends[0]);
    return r;
}
