#include "config.h"

#include "daemon/rundir.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/paths.h"

#define RUNDIR_PATH_MAX 4096

struct rundir {
    char dir[RUNDIR_PATH_MAX]; /* of this VM */
    int lock_fd;
};

static int make_dir(const char *path, mode_t mode)
{
    int r;

    if (mkdir(path, mode) == 0) {
        gid_t gid;

        if (geteuid() == 0 && paths_group_id(UMBRA_GROUP, &gid) == 0 && chown(path, (uid_t)-1, gid) < 0)
            log_warn_errno(errno, "%s: cannot give it to group umbra", path);
        return 0;
    }
    if (errno == EEXIST)
        return 0;
    r = -errno;
    log_err_errno(r, "%s: cannot create", path);
    return r;
}

static void log_owner(const char *path, int fd)
{
    char pid[32] = "";
    ssize_t n = pread(fd, pid, sizeof(pid) - 1, 0);

    pid[n > 0 ? strcspn(pid, "\n") : 0] = '\0';
    log_err("%s: a daemon of that name runs already, process %s", path, pid[0] ? pid : "unknown");
}

/* Open and lock the pid file. A daemon that ends unlinks it: make sure that what was locked is what the name stands for. */
static int lock_pid_file(const char *path, int *ret_fd)
{
    for (;;) {
        _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
        struct stat opened, named;

        if (fd < 0) {
            int r = -errno;

            log_err_errno(r, "%s: cannot create", path);
            return r;
        }
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
            int r = errno == EWOULDBLOCK ? -EBUSY : -errno;

            if (r == -EBUSY)
                log_owner(path, fd);
            else
                log_err_errno(r, "%s: cannot lock", path);
            return r;
        }
        if (fstat(fd, &opened) == 0 && stat(path, &named) == 0 && opened.st_ino == named.st_ino) {
            *ret_fd = take_fd(fd);
            return 0;
        }
    }
}

int rundir_new(const char *dir, const char *name, struct rundir **ret)
{
    struct rundir *rd = calloc(1, sizeof(*rd));
    char pid_path[RUNDIR_PATH_MAX], pid[32];
    int r, n;

    if (!rd)
        return -ENOMEM;
    rd->lock_fd = -1;
    n = snprintf(rd->dir, sizeof(rd->dir), "%s/%s", dir, name);
    r = n < 0 || (size_t)n >= sizeof(rd->dir) ? -ENAMETOOLONG : paths_vm_file(dir, name, "pid", pid_path, sizeof(pid_path));
    if (r < 0)
        log_err_errno(r, "%s: runtime directory", name);
    if (r == 0)
        r = make_dir(dir, 0755);
    if (r == 0)
        r = make_dir(rd->dir, 0750);
    if (r == 0)
        r = lock_pid_file(pid_path, &rd->lock_fd);
    if (r < 0) {
        /* As it is, if somebody's files are in it. */
        rmdir(rd->dir);
        free(rd);
        return r;
    }
    n = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
    if (ftruncate(rd->lock_fd, 0) < 0 || pwrite(rd->lock_fd, pid, (size_t)n, 0) != n) {
        r = -errno;
        log_err_errno(r, "%s: cannot write", pid_path);
        rundir_free(rd);
        return r;
    }
    *ret = rd;
    return 0;
}

int rundir_give(const struct rundir *r, uid_t uid, gid_t gid)
{
    gid_t group = gid;

    (void)paths_group_id(UMBRA_GROUP, &group);
    if (fchown(r->lock_fd, uid, gid) == 0 && chown(r->dir, uid, group) == 0)
        return 0;
    log_err_errno(errno, "%s: cannot be given to user %u", r->dir, (unsigned int)uid);
    return -errno;
}

const char *rundir_path(const struct rundir *r)
{
    return r->dir;
}

void rundir_free(struct rundir *r)
{
    char path[RUNDIR_PATH_MAX];

    if (!r)
        return;
    if (snprintf(path, sizeof(path), "%s/pid", r->dir) < (int)sizeof(path))
        unlink(path);
    fd_close(r->lock_fd);
    /* Somebody else's file in it keeps it; that is theirs to remove. */
    rmdir(r->dir);
    free(r);
}

int rundir_socket(const struct rundir *r, const char *file, char *buf, size_t len)
{
    size_t most = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;
    int n = snprintf(buf, len, "%s/%s", r->dir, file);

    if (n < 0 || (size_t)n >= len || (size_t)n > most) {
        log_err("%s/%s: a socket path may have %zu bytes, this one has %d", r->dir, file, most, n);
        return -ENAMETOOLONG;
    }
    return 0;
}
