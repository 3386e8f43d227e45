/* Which VMs have a directory in the runtime directory. */
#ifndef UMBRA_BASE_VM_NAMES_H
#define UMBRA_BASE_VM_NAMES_H

#include <stddef.h>

struct vm_names {
    char **names; /* sorted */
    size_t count;
};

/* Every VM with a directory, running or not. 0 (also where the runtime directory is not there) or -errno. */
int vm_names_scan(const char *runtime_dir, struct vm_names *ret);
void vm_names_clear(struct vm_names *v);
#define _cleanup_vm_names_ __attribute__((cleanup(vm_names_clear)))

#endif
