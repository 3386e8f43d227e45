/* A userfaultfd that KVM's own accesses fault in, too. */
#ifndef UMBRA_MMU_USERFAULT_H
#define UMBRA_MMU_USERFAULT_H

#include <stdint.h>

#define USERFAULT_DEVICE "/dev/userfaultfd"

/* From the device, else from the system call, with these UFFD_FEATURE_*. Nonblocking; -EOPNOTSUPP where the kernel lacks one of them, or -errno. */
int userfault_open(uint64_t features);

#endif
