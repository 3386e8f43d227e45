#include "config.h"

#include "daemon/socket-file.h"

#include <errno.h>
#include <grp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"

/* Somebody answers at the address: 1, nobody does: 0, or -errno. */
static int is_alive(const struct sockaddr_un *addr)
{
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0)
        return 1;
    switch (errno) {
    case EAGAIN: /* its queue of connections is full */
    case EINPROGRESS:
        return 1;
    case ECONNREFUSED:
    case ENOENT:
        return 0;
    default:
        return -errno;
    }
}

/* Make room at path: nothing there, or a socket file whose process is gone. */
static int clear_path(const struct sockaddr_un *addr)
{
    struct stat st;
    int r;

    if (lstat(addr->sun_path, &st) < 0) {
        if (errno == ENOENT)
            return 0;
        r = -errno;
        log_err_errno(r, "%s", addr->sun_path);
        return r;
    }
    if (!S_ISSOCK(st.st_mode)) {
        log_err("%s exists and is not a socket", addr->sun_path);
        return -EEXIST;
    }
    r = is_alive(addr);
    if (r > 0) {
        log_err("%s is in use by another process", addr->sun_path);
        return -EADDRINUSE;
    }
    if (r < 0) {
        log_err_errno(r, "%s: cannot find out whether it is in use", addr->sun_path);
        return r;
    }
    if (unlink(addr->sun_path) < 0 && errno != ENOENT) {
        r = -errno;
        log_err_errno(r, "%s: cannot remove the socket of an ended process", addr->sun_path);
        return r;
    }
    log_info("%s: replacing the socket of an ended process", addr->sun_path);
    return 0;
}

/* The group's number from /etc/group; asking NSS would load its modules for one line. */
static bool find_group(gid_t *ret)
{
    _cleanup_fclose_ FILE *f = fopen("/etc/group", "re");
    struct group *g;

    while (f && (g = fgetgrent(f)))
        if (strcmp(g->gr_name, SOCKET_FILE_GROUP) == 0) {
            *ret = g->gr_gid;
            return true;
        }
    return false;
}

static void give_to_group(const char *path)
{
    gid_t gid;

    if (!find_group(&gid))
        return;
    if (lchown(path, (uid_t)-1, gid) < 0)
        log_warn_errno(errno, "%s: cannot give it to group %s", path, SOCKET_FILE_GROUP);
}

/* Bind and listen. The file never has more rights than it will have, not even between two calls. */
static int bind_listen(int fd, const struct sockaddr_un *addr, int backlog)
{
    /* On Linux the file takes its rights from the socket, less the umask. */
    if (fchmod(fd, SOCKET_FILE_MODE) < 0 || bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0)
        return -errno;
    give_to_group(addr->sun_path);
    if (chmod(addr->sun_path, SOCKET_FILE_MODE) < 0 || listen(fd, backlog) < 0) {
        int r = -errno;

        unlink(addr->sun_path);
        return r;
    }
    return 0;
}

int socket_file_listen(const char *path, int backlog, struct socket_file *ret)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    _cleanup_close_ int fd = -1;
    _cleanup_free_ char *copy = NULL;
    struct stat st;
    int r;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        log_err("%s: %zu bytes are too long for a socket path, the limit is %zu", path, strlen(path),
                sizeof(addr.sun_path) - 1);
        return -ENAMETOOLONG;
    }
    strcpy(addr.sun_path, path);
    copy = strdup(path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (!copy || fd < 0)
        return copy ? -errno : -ENOMEM;
    r = clear_path(&addr);
    if (r < 0)
        return r;
    r = bind_listen(fd, &addr, backlog);
    if (r < 0 || lstat(path, &st) < 0) {
        r = r < 0 ? r : -errno;
        log_err_errno(r, "%s: cannot listen", path);
        return r;
    }
    *ret = (struct socket_file){.fd = take_fd(fd), .path = take_ptr(copy), .dev = st.st_dev, .ino = st.st_ino};
    return 0;
}

void socket_file_close(struct socket_file *s)
{
    struct stat st;

    if (!s->path)
        return;
    /* Before the close: while the socket is open its inode number cannot be given to another file. */
    if (lstat(s->path, &st) == 0 && st.st_dev == s->dev && st.st_ino == s->ino)
        unlink(s->path);
    s->fd = fd_close(s->fd);
    free(s->path);
    s->path = NULL;
}
