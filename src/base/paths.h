/* Where a VM's runtime files are, and what a VM may be called. Shared by the daemon and its client. */
#ifndef UMBRA_BASE_PATHS_H
#define UMBRA_BASE_PATHS_H

#include <stdbool.h>
#include <stddef.h>

#define VM_NAME_MAX 64

/* A VM name: 1 to VM_NAME_MAX of [A-Za-z0-9._-], first letter or digit (it becomes a directory and a unit instance). */
bool vm_name_valid(const char *name);

/*
 * The runtime directory, by default: /run/umbra as root, $XDG_RUNTIME_DIR/umbra else. `override` (may be NULL) wins.
 * Writes into buf; -ENOENT when the user has no XDG_RUNTIME_DIR, -ENAMETOOLONG.
 */
int paths_runtime_dir(const char *override, char *buf, size_t len);

/* DIR/NAME/FILE into buf; -ENAMETOOLONG. */
int paths_vm_file(const char *dir, const char *name, const char *file, char *buf, size_t len);

#endif
