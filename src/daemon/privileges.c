#include "config.h"

#include "daemon/privileges.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/paths.h"
#include "base/util.h"

#define UMBRA_USER "umbra"
#define GROUPS_MAX 64
/* More than any kernel has. */
#define CAPABILITIES_MAX 64

int privileges_find(const char *user, struct identity *ret)
{
    bool root = geteuid() == 0;
    int r;

    if (!user && !root)
        return 0;
    r = paths_user_ids(user ? user : UMBRA_USER, &ret->uid, &ret->gid);
    if (r < 0 && !user)
        return 0;
    if (r < 0) {
        log_err_errno(r == -ENOENT ? 0 : r, "user %s: %s", user, r == -ENOENT ? "there is none" : "cannot be looked up");
        return r;
    }
    if (root || ret->uid == geteuid())
        return root;
    log_err("user %s: only root can become somebody else", user);
    return -EPERM;
}

static int become(const char *user, const struct identity *to)
{
    gid_t groups[GROUPS_MAX];
    int n = paths_user_groups(user ? user : UMBRA_USER, groups, GROUPS_MAX);

    if (n < 0)
        return n;
    if (setgroups((size_t)n, groups) < 0 || setresgid(to->gid, to->gid, to->gid) < 0 ||
        setresuid(to->uid, to->uid, to->uid) < 0)
        return -errno;
    return 0;
}

/* None of what is left is ever needed, and where nothing is left nothing is asked: a service's filter may refuse the call. */
static int drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3] = {0}, none[_LINUX_CAPABILITY_U32S_3] = {0};

    if (syscall(SYS_capget, &header, caps) < 0)
        return -errno;
    if (memcmp(caps, none, sizeof(none)) == 0)
        return 0;
    /* The bounding set too, as long as CAP_SETPCAP is there. Beyond the last capability the call fails. */
    for (unsigned long cap = 0; cap < CAPABILITIES_MAX; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            break;
    return syscall(SYS_capset, &header, none) < 0 ? -errno : 0;
}

int privileges_drop(const char *user, const struct identity *to)
{
    int r = to ? become(user, to) : 0;

    /* Another user's process is not its own to look at: /proc/self would be root's, and with it a second view of guest memory. */
    if (r == 0 && to && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
        r = -errno;
    if (r == 0)
        r = drop_capabilities();
    if (r == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        r = -errno;
    if (r < 0)
        log_err_errno(r, "privileges cannot be given up");
    return r;
}
