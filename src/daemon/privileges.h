/* Who umbrad is: root's identity and all capabilities are given up before there is a second thread or anything to attack. */
#ifndef UMBRA_DAEMON_PRIVILEGES_H
#define UMBRA_DAEMON_PRIVILEGES_H

#include <sys/types.h>

/* Who to be from now on. */
struct identity {
    uid_t uid;
    gid_t gid;
};

/*
 * Find out whom to become: `user`, or where that is NULL and root asks, UMBRA_USER if there is such a user. 1 with *ret
 * filled in, 0 when everything stays as it is, -errno (no such user, or somebody else's), logged.
 */
int privileges_find(const char *user, struct identity *ret);

/*
 * Become that identity (NULL: keep the present one), with the groups /etc/group gives the user; give up every capability
 * for good, and the way to new ones through a program that is run. 0 or -errno, logged. Main thread, before others.
 */
int privileges_drop(const char *user, const struct identity *to);

#endif
