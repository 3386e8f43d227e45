/*
 * The partition table of a cloud image, as somebody else made it. An input is the image's first bytes, from the table's header on
 * (the sector before it is empty); the first two bytes say how large the image claims to be, in units of 64 KiB.
 */
#include "config.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fd.h"
#include "ctl/gpt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char error[GPT_ERROR_MAX] = "";
    struct gpt_root root;
    uint64_t claimed;
    int fd, r;

    if (size < 2)
        return 0;
    claimed = (uint64_t)le16_get(data) << 16;
    fd = memfd_create("gpt", MFD_CLOEXEC);
    assert(fd >= 0 && lseek(fd, 512, SEEK_SET) == 512);
    r = fd_write_all(fd, data + 2, size - 2);
    assert(r == 0);
    r = gpt_find_root(fd, claimed, &root, error);
    if (r == 0) {
        assert(root.number > 0 && strlen(root.uuid) == 36);
        assert(root.offset >= 1024 && root.bytes > 0 && root.offset + root.bytes <= claimed);
    } else {
        assert(error[0]);
    }
    close(fd);
    return 0;
}
