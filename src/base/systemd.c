#include "config.h"

#include "base/systemd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"

#define JOURNAL_SOCKET "/run/systemd/journal/socket"
#define LISTEN_FDS_START 3
#define LISTEN_FDS_MAX 16
#define MESSAGE_MAX 1024
/* Fields of one entry, and a newline behind each. */
#define JOURNAL_FIELDS_MAX 8

static struct {
    int notify_fd;
    struct sockaddr_un notify_to;
    socklen_t notify_len;
    uint64_t watchdog_us;
    int listeners[LISTEN_FDS_MAX];
    unsigned int listener_count;
    int journal_fd;
} manager = {.notify_fd = -1, .journal_fd = -1};

static int datagram_socket(void)
{
    return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

/* A number in the environment; false where it is not there or is none. */
static bool number_from(const char *name, uint64_t *ret)
{
    const char *text = getenv(name);
    char *end;

    if (!text || *text < '0' || *text > '9')
        return false;
    errno = 0;
    *ret = strtoull(text, &end, 10);
    return *end == '\0' && errno == 0;
}

/* Whether the variable names this process; where it is not there, nobody else is meant. */
static bool for_us(const char *name)
{
    uint64_t pid;

    return !getenv(name) || (number_from(name, &pid) && pid == (uint64_t)getpid());
}

static void find_notify_socket(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    size_t len = path ? strlen(path) : 0;

    /* @ stands for the NUL that begins an abstract address. */
    if (len < 2 || !strchr("/@", path[0]) || len >= sizeof(manager.notify_to.sun_path))
        return;
    manager.notify_to.sun_family = AF_UNIX;
    memcpy(manager.notify_to.sun_path, path, len);
    if (path[0] == '@')
        manager.notify_to.sun_path[0] = '\0';
    manager.notify_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    manager.notify_fd = datagram_socket();
}

static void find_listeners(void)
{
    uint64_t n;

    if (!getenv("LISTEN_PID") || !for_us("LISTEN_PID") || !number_from("LISTEN_FDS", &n))
        return;
    for (int i = 0; i < (int)MIN(n, (uint64_t)LISTEN_FDS_MAX); i++) {
        int fd = LISTEN_FDS_START + i;

        if (fcntl(fd, F_SETFD, FD_CLOEXEC) == 0)
            manager.listeners[manager.listener_count++] = fd;
    }
}

void systemd_init(void)
{
    static const char *const ours[] = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS",
                                       "LISTEN_FDNAMES"};

    find_notify_socket();
    find_listeners();
    if (!for_us("WATCHDOG_PID") || !number_from("WATCHDOG_USEC", &manager.watchdog_us))
        manager.watchdog_us = 0;
    for (size_t i = 0; i < ARRAY_SIZE(ours); i++)
        unsetenv(ours[i]);
}

bool systemd_present(void)
{
    return manager.notify_fd >= 0;
}

uint64_t systemd_watchdog_us(void)
{
    return systemd_present() ? manager.watchdog_us : 0;
}

void systemd_notify(const char *fmt, ...)
{
    char text[MESSAGE_MAX];
    va_list ap;
    int n;

    if (!systemd_present())
        return;
    va_start(ap, fmt);
    n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (n <= 0)
        return;
    /* A manager that does not listen is not waited for; there is nobody to tell. */
    if (sendto(manager.notify_fd, text, MIN((size_t)n, sizeof(text) - 1), MSG_NOSIGNAL | MSG_DONTWAIT,
               (const struct sockaddr *)&manager.notify_to, manager.notify_len) < 0)
        return;
}

static bool listens_at(int fd, const char *path)
{
    struct sockaddr_un at = {0};
    socklen_t len = sizeof(at) - 1;
    int listens = 0;
    socklen_t size = sizeof(listens);

    return getsockname(fd, (struct sockaddr *)&at, &len) == 0 && at.sun_family == AF_UNIX &&
           strcmp(at.sun_path, path) == 0 && getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens;
}

int systemd_listener(const char *path)
{
    for (unsigned int i = 0; i < manager.listener_count; i++) {
        int fd = manager.listeners[i];

        if (fd >= 0 && listens_at(fd, path)) {
            manager.listeners[i] = -1;
            return fd;
        }
    }
    return -1;
}

bool systemd_journal_open(void)
{
    if (manager.journal_fd < 0)
        manager.journal_fd = datagram_socket();
    return manager.journal_fd >= 0;
}

bool systemd_journal(const struct iovec *fields, int count)
{
    static char newline[] = "\n";
    struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = JOURNAL_SOCKET};
    struct iovec iov[2 * JOURNAL_FIELDS_MAX];
    /* Not connected: a journal that is started again is another socket at the same place. */
    struct msghdr msg = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = iov};

    for (int i = 0; i < MIN(count, JOURNAL_FIELDS_MAX); i++) {
        iov[msg.msg_iovlen++] = fields[i];
        iov[msg.msg_iovlen++] = (struct iovec){newline, 1};
    }
    return sendmsg(manager.journal_fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}
