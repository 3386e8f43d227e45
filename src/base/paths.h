/* Where a VM's runtime files are, and what a VM may be called. Shared by the daemon and its client. */
#ifndef UMBRA_BASE_PATHS_H
#define UMBRA_BASE_PATHS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define VM_NAME_MAX 64

/* Who may use the sockets besides the daemon's own user, where the group exists. */
#define UMBRA_GROUP "umbra"

/* A VM name: 1 to VM_NAME_MAX of [A-Za-z0-9._-], first letter or digit (it becomes a directory and a unit instance). */
bool vm_name_valid(const char *name);

/*
 * The runtime directory, by default: /run/umbra as root, $XDG_RUNTIME_DIR/umbra else. `override` (may be NULL) wins.
 * Writes into buf; -ENOENT when the user has no XDG_RUNTIME_DIR, -ENAMETOOLONG.
 */
int paths_runtime_dir(const char *override, char *buf, size_t len);

/* A user's name as useradd(8) takes it: at most 32 of [a-z0-9_-], first a letter or _. */
bool user_name_valid(const char *name);

/* Numbers of a user in /etc/passwd; -ENOENT, or -errno of reading it. Not through NSS, as with groups. */
int paths_user_ids(const char *user, uid_t *ret_uid, gid_t *ret_gid);

/*
 * The groups in /etc/group that the user is a member of, at most `max` of them; the number of them, or -errno. A group
 * beyond `max` is left out.
 */
int paths_user_groups(const char *user, gid_t *groups, unsigned int max);

/*
 * The number of a group in /etc/group; -ENOENT, or -errno of reading it. Not through NSS, which loads a handful of modules
 * and files for one line: a system user's group is local.
 */
int paths_group_id(const char *group, gid_t *ret);

/* DIR/NAME/FILE into buf; -ENAMETOOLONG. */
int paths_vm_file(const char *dir, const char *name, const char *file, char *buf, size_t len);

#endif
