/* A listening Unix socket in the file system: made, checked, and removed only by who made it. Main thread. */
#ifndef UMBRA_DAEMON_SOCKET_FILE_H
#define UMBRA_DAEMON_SOCKET_FILE_H

#include <stdint.h>
#include <sys/types.h>

/* Who owns the socket besides the daemon's user, when the group is in /etc/group. */
#define SOCKET_FILE_GROUP "umbra"
#define SOCKET_FILE_MODE 0660

struct socket_file {
    int fd;     /* listening, nonblocking, close-on-exec; the caller may take it by setting -1 */
    char *path;
    dev_t dev;  /* what was made at path */
    ino_t ino;
};

/*
 * Listen on path. A socket file whose process is gone is replaced. -ENAMETOOLONG (107 bytes is the most a Unix socket
 * takes), -EADDRINUSE (somebody listens there), -EEXIST (path is something else; left alone), or -errno; logged.
 * The caller keeps other daemons from setting up the same path meanwhile (the lock of the runtime directory does).
 */
int socket_file_listen(const char *path, int backlog, struct socket_file *ret);

/* Close it and remove the file if it is still the one that was made. */
void socket_file_close(struct socket_file *s);

#endif
