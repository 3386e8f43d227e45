/* Landlock: which files can still be opened once the daemon is locked in. */
#ifndef UMBRA_DAEMON_LANDLOCK_H
#define UMBRA_DAEMON_LANDLOCK_H

struct landlock;

/*
 * Begin a list of what may be opened; *ret is NULL where the kernel has no Landlock (that is told in the log once), and all
 * functions take that. 0 or -errno.
 */
int landlock_new(struct landlock **ret);
void landlock_free(struct landlock *l);

enum landlock_rights {
    LANDLOCK_READ,
    LANDLOCK_WRITE,   /* and make, and remove */
    LANDLOCK_SOCKETS, /* make sockets, and remove what they are instead of; nothing else */
};

/* Allow a file or all below a directory to be used so. What does not exist is left out. 0 or -errno. */
int landlock_allow(struct landlock *l, const char *path, enum landlock_rights rights);

/* From now on the calling thread, and those it makes, open nothing else. 0 or -errno. */
int landlock_enter(struct landlock *l);

#endif
