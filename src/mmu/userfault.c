#include "config.h"

#include "mmu/userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

static int open_device(void)
{
    int device = open(USERFAULT_DEVICE, O_RDWR | O_CLOEXEC), fd, r;

    if (device < 0)
        return -errno;
    fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    r = -errno;
    close(device);
    return fd < 0 ? r : fd;
}

int userfault_open(uint64_t features)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    int r, fd = open_device();

    if (fd < 0)
        fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        r = errno == EINVAL ? -EOPNOTSUPP : -errno;
        close(fd);
        return r;
    }
    return fd;
}
