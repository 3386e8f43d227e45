#include "config.h"

#include "ctl/gpt.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/util.h"

#define SECTOR 512u
#define HEADER_BYTES 92u
#define ENTRY_BYTES 128u
#define MAX_ENTRIES 1024u

/* As they stand on the disk: the first three parts are little-endian. */
static const uint8_t linux_root_x86_64[16] = {0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d,
                                              0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09};
static const uint8_t linux_data[16] = {0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47,
                                       0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4};

static int fail(char *error, const char *fmt, ...) PRINTF_LIKE(2, 3);
static int fail(char *error, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(error, GPT_ERROR_MAX, fmt, ap);
    va_end(ap);
    return -EBADMSG;
}

static void put_uuid(const uint8_t *g, char ret[37])
{
    snprintf(ret, 37, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", le32_get(g), le16_get(g + 4), le16_get(g + 6), g[8],
             g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

/* Whether the entry is a better root than what there is so far; a table that lies is -EBADMSG. */
static int look_at(const uint8_t *e, unsigned int number, uint64_t size, struct gpt_root *root, bool *is_root, char *error)
{
    bool named = memcmp(e, linux_root_x86_64, 16) == 0;
    uint64_t first = le64_get(e + 32), last = le64_get(e + 40);

    if (!named && memcmp(e, linux_data, 16) != 0)
        return 0;
    if (first < 2 || last < first || last >= size / SECTOR)
        return fail(error, "partition %u is sectors %llu to %llu of %llu", number, (unsigned long long)first,
                    (unsigned long long)last, (unsigned long long)(size / SECTOR));
    if (*is_root || (!named && (last - first + 1) * SECTOR <= root->bytes))
        return 0;
    *is_root = named;
    root->number = number;
    root->offset = first * SECTOR;
    root->bytes = (last - first + 1) * SECTOR;
    put_uuid(e + 16, root->uuid);
    return 0;
}

static int check_header(const uint8_t *h, uint64_t size, char *error)
{
    uint64_t at = le64_get(h + 72);
    uint32_t count = le32_get(h + 80), bytes = le32_get(h + 84);

    if (memcmp(h, "EFI PART", 8) != 0)
        return fail(error, "no GUID partition table");
    if (bytes != ENTRY_BYTES || count == 0 || count > MAX_ENTRIES)
        return fail(error, "a partition table of %u entries of %u bytes", count, bytes);
    if (at < 2 || at > size / SECTOR || (uint64_t)count * bytes > size - at * SECTOR)
        return fail(error, "the partition table lies at sector %llu, outside of the image", (unsigned long long)at);
    return 0;
}

int gpt_find_root(int fd, uint64_t size, struct gpt_root *ret, char *error)
{
    struct gpt_root root = {0};
    uint8_t header[HEADER_BYTES], start[4], entry[ENTRY_BYTES];
    bool is_root = false;
    int r = 0;

    if (size < 34 * SECTOR)
        return fail(error, "%llu bytes are no disk", (unsigned long long)size);
    r = fd_pread_all(fd, start, sizeof(start), 0);
    if (r == 0 && memcmp(start, "QFI\xfb", 4) == 0)
        return fail(error, "this is a qcow2 image (qemu-img convert -O raw makes a raw one)");
    if (r == 0)
        r = fd_pread_all(fd, header, sizeof(header), SECTOR);
    if (r == 0)
        r = check_header(header, size, error);
    if (r == -EBADMSG)
        return r;
    for (uint32_t i = 0; r == 0 && i < le32_get(header + 80); i++) {
        r = fd_pread_all(fd, entry, sizeof(entry), le64_get(header + 72) * SECTOR + (uint64_t)i * ENTRY_BYTES);
        if (r == 0)
            r = look_at(entry, i + 1, size, &root, &is_root, error);
        if (r == -EBADMSG)
            return r;
    }
    if (r < 0) {
        fail(error, "%s", strerror(-r));
        return r;
    }
    if (root.bytes == 0)
        return fail(error, "no partition with a Linux file system");
    *ret = root;
    return 0;
}
