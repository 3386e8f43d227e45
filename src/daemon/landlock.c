#include "config.h"

#include "daemon/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"

/* Newer than the header may be. */
#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER (1ull << 13)
#endif
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ull << 14)
#endif

/* What version 1 knows: all that stands before LANDLOCK_ACCESS_FS_REFER. */
#define ACCESS_V1 (LANDLOCK_ACCESS_FS_REFER - 1)
#define ACCESS_READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
/* What can be allowed for a file; the rest is about what is in directories. */
#define ACCESS_FILE (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE)
#define ACCESS_NEVER (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_BLOCK)

struct landlock {
    int fd;
    uint64_t handled;
};

int landlock_new(struct landlock **ret)
{
    struct landlock_ruleset_attr attr = {0};
    struct landlock *l;
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

    *ret = NULL;
    if (version < 1) {
        log_debug("this kernel has no landlock: file permissions alone decide what can be opened");
        return 0;
    }
    attr.handled_access_fs = ACCESS_V1 | (version >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0) |
                             (version >= 3 ? LANDLOCK_ACCESS_FS_TRUNCATE : 0);
    l = calloc(1, sizeof(*l));
    if (!l)
        return -ENOMEM;
    l->handled = attr.handled_access_fs;
    l->fd = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
    if (l->fd < 0) {
        int r = -errno;

        free(l);
        return r;
    }
    *ret = l;
    return 0;
}

int landlock_allow(struct landlock *l, const char *path, enum landlock_rights rights)
{
    static const uint64_t access[] = {
        [LANDLOCK_READ] = ACCESS_READ,
        [LANDLOCK_WRITE] = ~(uint64_t)ACCESS_NEVER,
        [LANDLOCK_SOCKETS] = LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_REMOVE_FILE,
    };
    struct landlock_path_beneath_attr rule = {.parent_fd = -1};
    _cleanup_close_ int fd = -1;
    struct stat st;

    if (!l)
        return 0;
    fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == EACCES ? 0 : -errno;
    if (fstat(fd, &st) < 0)
        return -errno;
    rule.parent_fd = fd;
    rule.allowed_access = l->handled & access[rights];
    if (!S_ISDIR(st.st_mode))
        rule.allowed_access &= ACCESS_FILE;
    return syscall(SYS_landlock_add_rule, l->fd, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0 ? -errno : 0;
}

int landlock_enter(struct landlock *l)
{
    if (!l)
        return 0;
    return syscall(SYS_landlock_restrict_self, l->fd, 0) < 0 ? -errno : 0;
}

void landlock_free(struct landlock *l)
{
    if (!l)
        return;
    fd_close(l->fd);
    free(l);
}
