#include "config.h"

#include "daemon/lockdown.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "daemon/landlock.h"
#include "daemon/privileges.h"
#include "daemon/sandbox.h"

/* What is opened while the VM runs, besides the VM's own directories. */
static const struct {
    const char *path;
    enum landlock_rights rights;
} always[] = {
    {"/dev/userfaultfd", LANDLOCK_WRITE}, /* query-host, precise tracking, post-copy */
    /* The names of a migration's peers. */
    {"/etc/hosts", LANDLOCK_READ},
    {"/etc/resolv.conf", LANDLOCK_READ},
    {"/etc/nsswitch.conf", LANDLOCK_READ},
    {"/etc/gai.conf", LANDLOCK_READ},
    {"/etc/host.conf", LANDLOCK_READ},
    {"/etc/services", LANDLOCK_READ},
};

int lockdown_begin(const struct config *c, const struct rundir *rundir)
{
    struct identity to;
    int r = privileges_find(c->user, &to), other = r;

    if (r > 0)
        r = rundir_give(rundir, to.uid, to.gid);
    if (r == 0)
        r = privileges_drop(c->user, other > 0 ? &to : NULL);
    if (r == 0)
        r = sandbox_init(c->sandbox);
    return r;
}

/* Where a source is waited for. */
static int allow_incoming(struct landlock *l, const char *uri)
{
    char path[PATH_MAX];

    if (!uri || strncmp(uri, "unix:", 5) != 0 || snprintf(path, sizeof(path), "%s", uri + 5) >= (int)sizeof(path))
        return 0;
    return landlock_allow(l, dirname(path), LANDLOCK_SOCKETS);
}

/* One that is not there would be found out about at the first snapshot only, as a refusal. */
static int allow_snapshots(struct landlock *l, const char *dir)
{
    int r = dir && access(dir, W_OK | X_OK) < 0 ? -errno : 0;

    if (r < 0)
        log_err_errno(r, "snapshot-dir: %s: nothing can be written there", dir);
    return r < 0 || !dir ? r : landlock_allow(l, dir, LANDLOCK_WRITE);
}

static int allow_all(struct landlock *l, const struct config *c, const struct rundir *rundir)
{
    char state[PATH_MAX];
    int r = landlock_allow(l, rundir_path(rundir), LANDLOCK_WRITE);

    /* Removing the VM's directory takes a right to the one it is in. */
    if (r == 0)
        r = landlock_allow(l, c->runtime_dir, LANDLOCK_WRITE);
    if (r == 0 && snprintf(state, sizeof(state), "%s/%s", UMBRA_STATEDIR, c->name) < (int)sizeof(state))
        r = landlock_allow(l, state, LANDLOCK_WRITE);
    if (r == 0)
        r = allow_snapshots(l, c->snapshot_dir);
    /* Certificates expire: they are read again for each migration. */
    if (r == 0 && c->tls_creds)
        r = landlock_allow(l, c->tls_creds, LANDLOCK_READ);
    if (r == 0)
        r = allow_incoming(l, c->incoming);
    for (size_t i = 0; i < ARRAY_SIZE(always) && r == 0; i++)
        r = landlock_allow(l, always[i].path, always[i].rights);
    return r;
}

int lockdown_finish(const struct config *c, const struct rundir *rundir)
{
    struct landlock *l = NULL;
    int r;

    if (c->sandbox == SANDBOX_OFF)
        return 0;
    /* Landlock has no way to only tell: what it refuses it refuses. */
    r = c->sandbox == SANDBOX_LOG ? 0 : landlock_new(&l);
    if (r == 0)
        r = allow_all(l, c, rundir);
    if (r == 0)
        r = landlock_enter(l);
    landlock_free(l);
    if (r < 0) {
        log_err_errno(r, "sandbox: files cannot be closed off (--sandbox off goes without)");
        return r;
    }
    sandbox_enter(THREAD_MAIN);
    return 0;
}
