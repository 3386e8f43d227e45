/* Listening Unix stream sockets in the file system. */
#ifndef UMBRA_BASE_UNIX_H
#define UMBRA_BASE_UNIX_H

#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>

/* The longest path a Unix socket can have, in bytes. */
#define UNIX_PATH_MAX_LEN (sizeof(((struct sockaddr_un *)0)->sun_path) - 1)

struct unix_listener {
    int fd; /* nonblocking, close-on-exec */
    dev_t dev;
    ino_t ino;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* "" for a socket of systemd's */
};

/*
 * Listen on `path`, or take over the socket that systemd made there for this process (systemd_listener): that one stays
 * when it is closed, and its mode is systemd's business. Nobody but user and group of `mode` can ever connect, whatever the umask is. The socket is given to
 * `group` (may be NULL) where that group exists and this process may do so.
 *
 * What stands at path: nothing, or a socket that nobody listens on any more (it is replaced). -EADDRINUSE when somebody
 * does listen on it, -EEXIST when it is no socket, -ENAMETOOLONG (limit: UNIX_PATH_MAX_LEN), -EINVAL (empty), or -errno
 * of socket, bind, listen, chmod. On failure nothing is left behind. Two processes that start on one path at one time
 * are not kept apart here.
 */
int unix_listen(const char *path, mode_t mode, const char *group, struct unix_listener *ret);

/* Close it, and remove the socket from the file system if it still is the one that unix_listen made. */
void unix_listener_close(struct unix_listener *l);

#endif
