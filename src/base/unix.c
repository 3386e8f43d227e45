#include "config.h"

#include "base/unix.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/paths.h"
#include "base/systemd.h"
#include "base/util.h"

#define BACKLOG 16

/* Find out who is behind an existing path; 0 when a dead socket was removed. */
static int remove_stale(const struct sockaddr_un *addr)
{
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct stat st;

    if (fd < 0)
        return -errno;
    if (lstat(addr->sun_path, &st) < 0)
        return -errno;
    if (!S_ISSOCK(st.st_mode))
        return -EEXIST;
    /* A full backlog (EAGAIN) and a refusal by access rights also mean that it is not known to be dead. */
    if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno != ECONNREFUSED)
        return -EADDRINUSE;
    return unlink(addr->sun_path) < 0 ? -errno : 0;
}

static int bind_path(int fd, const struct sockaddr_un *addr, mode_t mode)
{
    int err;

    /* The mode of the socket's own inode is what bind gives the new file, less the umask. */
    if (fchmod(fd, mode) < 0)
        return -errno;
    if (bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0)
        return 0;
    if (errno != EADDRINUSE)
        return -errno;
    err = remove_stale(addr);
    if (err < 0)
        return err;
    return bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 ? -errno : 0;
}

static void give_to_group(const char *path, const char *group)
{
    gid_t gid;

    /* A user who is not in the group keeps the socket. */
    if (group && paths_group_id(group, &gid) == 0 && lchown(path, (uid_t)-1, gid) < 0)
        return;
}

static int finish(int fd, const char *path, mode_t mode, const char *group, struct stat *ret_st)
{
    give_to_group(path, group);
    if (chmod(path, mode) < 0 || lstat(path, ret_st) < 0 || listen(fd, BACKLOG) < 0)
        return -errno;
    return 0;
}

int unix_listen(const char *path, mode_t mode, const char *group, struct unix_listener *ret)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    _cleanup_close_ int fd = -1;
    struct stat st;
    int err;

    /* An empty one would be taken for an abstract address. */
    if (!path[0])
        return -EINVAL;
    if (strlen(path) > UNIX_PATH_MAX_LEN)
        return -ENAMETOOLONG;
    strcpy(addr.sun_path, path);
    fd = systemd_listener(path);
    if (fd >= 0) {
        err = fd_set_nonblock(fd, 1);
        if (err == 0)
            *ret = (struct unix_listener){.fd = take_fd(fd)};
        return err;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    err = bind_path(fd, &addr, mode);
    if (err < 0)
        return err;
    err = finish(fd, path, mode, group, &st);
    if (err < 0) {
        unlink(path);
        return err;
    }
    *ret = (struct unix_listener){.dev = st.st_dev, .ino = st.st_ino};
    strcpy(ret->path, path);
    ret->fd = take_fd(fd);
    return 0;
}

void unix_listener_close(struct unix_listener *l)
{
    struct stat st;

    if (l->fd < 0)
        return;
    /* The open socket keeps its inode's number from being used again. */
    if (l->path[0] && lstat(l->path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
        unlink(l->path);
    l->fd = fd_close(l->fd);
}
