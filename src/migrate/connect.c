/* Where a migration goes to and comes from: addresses as URIs. */
#include "config.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"
#include "migrate/stream.h"

#define BACKLOG 32

/* The C library takes a number modulo 65536, which is somebody else's port. What is no number may be a service's name. */
static int check_port(const char *text, const char *port, struct mig_error *err)
{
    char *end;
    long number = strtol(port, &end, 10);

    if (!*end && (number < 0 || number > UINT16_MAX))
        return mig_error(err, -EINVAL, "address tcp:%.80s: a port is a number from 0 to 65535", text);
    return 0;
}

/* Cut HOST:PORT or [HOST]:PORT in two. */
static int split_host(const char *text, char host[256], char port[16], struct mig_error *err)
{
    const char *colon = strrchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : 0;
    int r;

    if (!colon || !colon[1] || strlen(colon + 1) >= 16)
        return mig_error(err, -EINVAL, "address tcp:%.80s: HOST:PORT is expected", text);
    r = check_port(text, colon + 1, err);
    if (r < 0)
        return r;
    if (len >= 2 && text[0] == '[' && text[len - 1] == ']') {
        text++;
        len -= 2;
    }
    if (len >= 256)
        return mig_error(err, -EINVAL, "address: a host name of %zu bytes", len);
    memcpy(host, text, len);
    host[len] = '\0';
    strcpy(port, colon + 1);
    return 0;
}

static int resolve(const char *text, bool listening, struct addrinfo **ret, struct mig_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = listening ? AI_PASSIVE : 0};
    char host[256], port[16];
    int r = split_host(text, host, port, err);

    if (r < 0)
        return r;
    r = getaddrinfo(host[0] ? host : NULL, port, &hints, ret);
    return r == 0 ? 0 : mig_error(err, -EHOSTUNREACH, "address tcp:%.80s: %s", text, gai_strerror(r));
}

int mig_uri_host(const char *uri, char *host, size_t size, struct mig_error *err)
{
    char name[256], port[16];
    int r;

    if (strncmp(uri, "tcp:", 4) != 0)
        return mig_error(err, -EINVAL, "address %.80s: it has no host", uri);
    r = split_host(uri + 4, name, port, err);
    if (r == 0 && snprintf(host, size, "%s", name) >= (int)size)
        r = mig_error(err, -EINVAL, "address: the host's name is too long");
    return r;
}

static int wait_connected(int fd, unsigned int timeout_ms, int wake_fd)
{
    struct pollfd p[] = {{.fd = fd, .events = POLLOUT}, {.fd = wake_fd, .events = POLLIN}};
    socklen_t len = sizeof(int);
    int error = 0, r = poll(p, ARRAY_SIZE(p), (int)timeout_ms);

    if (r <= 0)
        return r == 0 ? -ETIMEDOUT : -errno;
    if (p[1].revents)
        return -ECANCELED;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
        return -errno;
    return -error;
}

static int connect_to(const struct sockaddr *addr, socklen_t len, unsigned int timeout_ms, int wake_fd)
{
    int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r = 0;

    if (fd < 0)
        return -errno;
    if (connect(fd, addr, len) < 0)
        r = errno == EINPROGRESS ? wait_connected(fd, timeout_ms, wake_fd) : -errno;
    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

static int connect_unix(const char *path, unsigned int timeout_ms, int wake_fd, struct mig_error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd;

    if (!*path || strlen(path) > UNIX_PATH_MAX_LEN)
        return mig_error(err, -EINVAL, "address unix:%.80s: a path has 1 to %zu bytes", path, UNIX_PATH_MAX_LEN);
    strcpy(addr.sun_path, path);
    fd = connect_to((const struct sockaddr *)&addr, sizeof(addr), timeout_ms, wake_fd);
    return fd >= 0 ? fd : mig_error(err, fd, "address unix:%.80s: %s", path, strerrordesc_np(-fd));
}

static int connect_tcp(const char *text, unsigned int timeout_ms, int wake_fd, struct mig_error *err)
{
    struct addrinfo *list;
    int fd = -EHOSTUNREACH, r = resolve(text, false, &list, err);

    if (r < 0)
        return r;
    for (struct addrinfo *a = list; a && fd < 0 && fd != -ECANCELED; a = a->ai_next)
        fd = connect_to(a->ai_addr, a->ai_addrlen, timeout_ms, wake_fd);
    freeaddrinfo(list);
    return fd >= 0 ? fd : mig_error(err, fd, "address tcp:%.80s: %s", text, strerrordesc_np(-fd));
}

int mig_connect(const char *uri, unsigned int timeout_ms, int wake_fd, struct mig_error *err)
{
    if (strncmp(uri, "tcp:", 4) == 0)
        return connect_tcp(uri + 4, timeout_ms, wake_fd, err);
    if (strncmp(uri, "unix:", 5) == 0)
        return connect_unix(uri + 5, timeout_ms, wake_fd, err);
    return mig_error(err, -EINVAL, "address %.80s: none of tcp:HOST:PORT, unix:PATH, fd:NAME", uri);
}

static int listen_tcp(const char *text, struct mig_error *err)
{
    struct addrinfo *list;
    int fd = -1, on = 1, r = resolve(text, true, &list, err);

    if (r < 0)
        return r;
    r = -EADDRNOTAVAIL;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd >= 0 && (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
                        bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)) {
            r = -errno;
            fd = fd_close(fd);
        }
    }
    freeaddrinfo(list);
    return fd >= 0 ? fd : mig_error(err, r, "address tcp:%.80s: cannot listen: %s", text, strerrordesc_np(-r));
}

int mig_listen(const char *uri, struct mig_listener *ret, struct mig_error *err)
{
    int r;

    *ret = (struct mig_listener){.fd = -1, .file.fd = -1};
    if (strncmp(uri, "tcp:", 4) == 0) {
        r = listen_tcp(uri + 4, err);
        if (r < 0)
            return r;
        ret->fd = r;
        return 0;
    }
    if (strncmp(uri, "unix:", 5) != 0)
        return mig_error(err, -EINVAL, "address %.80s: none of tcp:HOST:PORT, unix:PATH, fd:NUMBER", uri);
    r = unix_listen(uri + 5, 0600, NULL, &ret->file);
    if (r < 0)
        return mig_error(err, r, "address unix:%.80s: cannot listen: %s", uri + 5, strerrordesc_np(-r));
    ret->fd = ret->file.fd;
    return 0;
}

void mig_listener_close(struct mig_listener *l)
{
    if (l->file.fd >= 0)
        unix_listener_close(&l->file);
    else
        fd_close(l->fd);
    *l = (struct mig_listener){.fd = -1, .file.fd = -1};
}
