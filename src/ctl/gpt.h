/* The root partition of a raw disk image with a GUID partition table ("GUID Partition Table" in the UEFI specification). */
#ifndef UMBRA_CTL_GPT_H
#define UMBRA_CTL_GPT_H

#include <stdint.h>

#define GPT_ERROR_MAX 160

struct gpt_root {
    unsigned int number;    /* of the partition, from 1 */
    uint64_t offset, bytes; /* in the image */
    char uuid[37];          /* of the partition, as root=PARTUUID= wants it */
};

/*
 * Find it in the image of `size` bytes that fd is open for reading: the partition whose type says root of x86-64, else the
 * largest with a Linux file system. 0; -EBADMSG (no such table, or one that lies) or -errno, with one line in error
 * (GPT_ERROR_MAX bytes).
 */
int gpt_find_root(int fd, uint64_t size, struct gpt_root *ret, char *error);

#endif
