#include "config.h"

#include "migrate/snapshot-out.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/util.h"
#include "migrate/snapshot-internal.h"

#define PARTIAL_PREFIX "."
#define PARTIAL_SUFFIX ".partial"
/* One write at most: what was just checksummed is still in the CPU's cache when it is copied. */
#define WRITE_PAGES 128u
#define CHECKSUM_PAGES 3u
#define CACHE_LINE 64u

static const uint8_t zeros[SNAPSHOT_PAGE_SIZE];
static const char *const file_names[] = {SNAPSHOT_META, SNAPSHOT_STATE, SNAPSHOT_PAGES, SNAPSHOT_MEMORY};

struct snapshot_out {
    char dir[SNAPSHOT_PATH_MAX + 1]; /* as it was asked for */
    char name[NAME_MAX + 1], partial[NAME_MAX + 1];
    int parent_fd, fd; /* of the directory that both are in, and of the partial one */
    int memory_fd;
    bool committed, owned; /* owned: by uid and gid in the end */
    uid_t uid;
    gid_t gid;
    uint64_t memory; /* bytes */
    struct snapshot_index index;
    uint32_t zero_crc; /* of a page of zeros */
    char error[SNAPSHOT_ERROR_MAX];
};

/* Note what failed with which file ("" for the directory itself); returns err. */
static int fail(struct snapshot_out *out, int err, const char *file)
{
    snprintf(out->error, sizeof(out->error), "%.400s%s%s: %s", out->dir, *file ? "/" : "", file, strerror(-err));
    return err;
}

/* -- beginning ---------------------------------------------------------------- */

/* Split the path into the directory it is in (into `parent`) and its name. */
static int split_path(struct snapshot_out *out, char *parent)
{
    size_t len = strlen(out->dir);
    char *slash;

    while (len > 1 && out->dir[len - 1] == '/')
        out->dir[--len] = '\0';
    strcpy(parent, out->dir);
    slash = strrchr(parent, '/');
    if (strlen(slash ? slash + 1 : parent) > NAME_MAX - strlen(PARTIAL_PREFIX PARTIAL_SUFFIX))
        return fail(out, -ENAMETOOLONG, "");
    strcpy(out->name, slash ? slash + 1 : parent);
    if (!slash)
        strcpy(parent, ".");
    else if (slash == parent)
        parent[1] = '\0';
    else
        *slash = '\0';
    if (!*out->name || strcmp(out->name, ".") == 0 || strcmp(out->name, "..") == 0)
        return fail(out, -EINVAL, "");
    snprintf(out->partial, sizeof(out->partial), PARTIAL_PREFIX "%.200s%s" PARTIAL_SUFFIX, out->name,
             strlen(out->name) > 200 ? out->name + 200 : "");
    return 0;
}

static int sync_dir(int fd)
{
    /* Some file systems have nothing to sync in a directory and say so. */
    return fsync(fd) < 0 && errno != EINVAL && errno != EROFS ? -errno : 0;
}

/* Open the partial directory, ours from then on. */
static int lock_partial(struct snapshot_out *out)
{
    struct stat st, at;

    if (mkdirat(out->parent_fd, out->partial, 0700) < 0 && errno != EEXIST)
        return fail(out, -errno, "");
    out->fd = openat(out->parent_fd, out->partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (out->fd < 0 || fstat(out->fd, &st) < 0)
        return fail(out, -errno, "");
    if (st.st_uid != geteuid())
        return fail(out, -EPERM, "");
    if (flock(out->fd, LOCK_EX | LOCK_NB) < 0)
        return fail(out, errno == EWOULDBLOCK ? -EBUSY : -errno, "");
    /* Whoever had the lock before may have renamed it in the meantime. */
    if (fstatat(out->parent_fd, out->partial, &at, AT_SYMLINK_NOFOLLOW) < 0 || at.st_ino != st.st_ino ||
        at.st_dev != st.st_dev) {
        out->fd = fd_close(out->fd);
        return fail(out, -EBUSY, "");
    }
    return 0;
}

static void remove_files(const struct snapshot_out *out)
{
    for (size_t i = 0; i < ARRAY_SIZE(file_names); i++)
        unlinkat(out->fd, file_names[i], 0);
}

/*
 * Nobody is meant to write to it again, and it is made like that: a change of the mode at the end would have every fsync wait for
 * the journal once more.
 */
static int create_file(struct snapshot_out *out, const char *name)
{
    int fd = openat(out->fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0400);

    return fd < 0 ? fail(out, -errno, name) : fd;
}

static int begin(struct snapshot_out *out)
{
    char parent[SNAPSHOT_PATH_MAX + 1];
    struct stat st;
    int r = split_path(out, parent);

    if (r < 0)
        return r;
    out->parent_fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (out->parent_fd < 0)
        return fail(out, -errno, "");
    if (fstatat(out->parent_fd, out->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        return fail(out, -EEXIST, "");
    r = lock_partial(out);
    if (r < 0)
        return r;
    remove_files(out);
    out->memory_fd = create_file(out, SNAPSHOT_MEMORY);
    if (out->memory_fd < 0)
        return out->memory_fd;
    if (ftruncate(out->memory_fd, (off_t)(out->memory + SNAPSHOT_TRAILER_SIZE)) < 0)
        return fail(out, -errno, SNAPSHOT_MEMORY);
    return 0;
}

int snapshot_out_new(const char *dir, uint64_t pages, struct snapshot_out **ret, char *error)
{
    struct snapshot_out *out;
    int r;

    if (strlen(dir) > SNAPSHOT_PATH_MAX) {
        snprintf(error, SNAPSHOT_ERROR_MAX, "%.100s...: %s", dir, strerror(ENAMETOOLONG));
        return -ENAMETOOLONG;
    }
    out = calloc(1, sizeof(*out));
    if (!out || snapshot_index_init(&out->index, pages) < 0) {
        free(out);
        snprintf(error, SNAPSHOT_ERROR_MAX, "out of memory");
        return -ENOMEM;
    }
    strcpy(out->dir, dir);
    out->parent_fd = out->fd = out->memory_fd = -1;
    out->memory = pages * SNAPSHOT_PAGE_SIZE;
    out->zero_crc = crc32c(0, zeros, sizeof(zeros));
    r = begin(out);
    if (r < 0) {
        strcpy(error, out->error);
        snapshot_out_free(out);
        return r;
    }
    *ret = out;
    return 0;
}

void snapshot_out_free(struct snapshot_out *out)
{
    if (!out)
        return;
    /* Without the lock (no descriptor, or somebody else's) there is nothing of ours. */
    if (!out->committed && out->memory_fd >= 0) {
        remove_files(out);
        unlinkat(out->parent_fd, out->partial, AT_REMOVEDIR);
    }
    fd_close(out->memory_fd);
    fd_close(out->fd);
    fd_close(out->parent_fd);
    snapshot_index_clear(&out->index);
    free(out);
}

const char *snapshot_out_error(const struct snapshot_out *out)
{
    return out->error;
}

/* -- memory ------------------------------------------------------------------- */

static bool is_zero(const uint8_t *page)
{
    return le64_get(page) == 0 && memcmp(page, page + 8, SNAPSHOT_PAGE_SIZE - 8) == 0;
}

static int write_at(struct snapshot_out *out, const char *name, int fd, const void *data, size_t len, uint64_t offset)
{
    const uint8_t *p = data;

    while (len > 0) {
        ssize_t n = pwrite(fd, p, len, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return fail(out, n < 0 ? -errno : -EIO, name);
        p += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

/* A page of zeros whose place in the file may have bytes from before. */
static int put_zero(struct snapshot_out *out, uint64_t page)
{
    uint64_t offset = page * SNAPSHOT_PAGE_SIZE;
    int r = 0;

    if (snapshot_index_get(&out->index, page, NULL) == SNAPSHOT_PAGE_BYTES &&
        fallocate(out->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, SNAPSHOT_PAGE_SIZE) < 0)
        r = write_at(out, SNAPSHOT_MEMORY, out->memory_fd, zeros, sizeof(zeros), offset);
    if (r == 0 && snapshot_index_set(&out->index, page, SNAPSHOT_PAGE_ZERO, 0) < 0)
        r = fail(out, -ENOMEM, SNAPSHOT_PAGES);
    return r;
}

int snapshot_out_put_zeros(struct snapshot_out *out, uint64_t first, uint64_t count)
{
    int r = 0;

    for (uint64_t i = 0; i < count && r == 0; i++)
        r = put_zero(out, first + i);
    return r;
}

static void checksum(const struct snapshot_piece *pieces, size_t count, uint32_t ret[CHECKSUM_PAGES])
{
    if (count == CHECKSUM_PAGES) {
        crc32c_three((const uint8_t *const[]){pieces[0].data, pieces[1].data, pieces[2].data}, SNAPSHOT_PAGE_SIZE, ret);
        return;
    }
    for (size_t i = 0; i < count; i++)
        ret[i] = crc32c(0, pieces[i].data, SNAPSHOT_PAGE_SIZE);
}

/* Have the CPU fetch a page while others are written: it finds out by itself only where pages lie side by side. */
static void prefetch(const struct snapshot_piece *piece)
{
    for (size_t i = 0; i < SNAPSHOT_PAGE_SIZE; i += CACHE_LINE)
        __builtin_prefetch(piece->data + i);
}

/* -- pages ---------------------------------------------------------------------- */

/* Pieces that lie side by side both in memory and in the file, with one write. */
static int write_pieces(struct snapshot_out *out, const struct snapshot_piece *pieces, size_t count)
{
    if (count == 0)
        return 0;
    return write_at(out, SNAPSHOT_MEMORY, out->memory_fd, pieces->data, count * SNAPSHOT_PAGE_SIZE,
                    pieces->page * SNAPSHOT_PAGE_SIZE);
}

static bool follows(const struct snapshot_piece *piece, const struct snapshot_piece *last)
{
    return piece->page == last->page + 1 && piece->data == last->data + SNAPSHOT_PAGE_SIZE;
}

/* Put a piece in, but its bytes are left to the caller if *ret_zero is false. */
static int note_piece(struct snapshot_out *out, const struct snapshot_piece *piece, uint32_t crc, bool *ret_zero)
{
    /* Bytes that have another checksum than zeros need no look. */
    bool zero = crc == out->zero_crc && is_zero(piece->data);

    *ret_zero = zero;
    if (zero)
        return put_zero(out, piece->page);
    return snapshot_index_set(&out->index, piece->page, SNAPSHOT_PAGE_BYTES, crc) < 0
               ? fail(out, -ENOMEM, SNAPSHOT_PAGES)
               : 0;
}

int snapshot_out_put_pieces(struct snapshot_out *out, const struct snapshot_piece *pieces, size_t count)
{
    uint32_t crc[CHECKSUM_PAGES];
    size_t done = 0; /* pieces before it are in the file */
    bool zero;
    int r = 0;

    for (size_t i = 0; i < count && r == 0; i++) {
        if (i % CHECKSUM_PAGES == 0)
            checksum(pieces + i, MIN(count - i, (size_t)CHECKSUM_PAGES), crc);
        if (i + CHECKSUM_PAGES < count)
            prefetch(&pieces[i + CHECKSUM_PAGES]);
        if (i > done && (i - done == WRITE_PAGES || !follows(&pieces[i], &pieces[i - 1]))) {
            r = write_pieces(out, pieces + done, i - done);
            done = i;
        }
        if (r == 0)
            r = note_piece(out, &pieces[i], crc[i % CHECKSUM_PAGES], &zero);
        if (r == 0 && zero) {
            r = write_pieces(out, pieces + done, i - done);
            done = i + 1;
        }
    }
    return r < 0 ? r : write_pieces(out, pieces + done, count - done);
}

int snapshot_out_put(struct snapshot_out *out, uint64_t first, const void *data, uint64_t count)
{
    struct snapshot_piece pieces[WRITE_PAGES];
    const uint8_t *p = data;
    int r = 0;

    while (r == 0 && count > 0) {
        size_t n = (size_t)MIN(count, (uint64_t)WRITE_PAGES);

        for (size_t i = 0; i < n; i++, p += SNAPSHOT_PAGE_SIZE)
            pieces[i] = (struct snapshot_piece){.page = first++, .data = p};
        r = snapshot_out_put_pieces(out, pieces, n);
        count -= n;
    }
    return r;
}

uint64_t snapshot_out_pages(const struct snapshot_out *out)
{
    return out->index.byte_pages + out->index.zero_pages;
}

uint64_t snapshot_out_zero_pages(const struct snapshot_out *out)
{
    return out->index.zero_pages;
}

void snapshot_out_flush(struct snapshot_out *out)
{
    sync_file_range(out->memory_fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

/* -- the end ------------------------------------------------------------------ */

void snapshot_trailer_make(uint8_t trailer[SNAPSHOT_TRAILER_SIZE], const char *id, uint64_t memory)
{
    memset(trailer, 0, SNAPSHOT_TRAILER_SIZE);
    memcpy(trailer, "UMBRAMEM", 8);
    le32_put(trailer + 8, SNAPSHOT_FORMAT);
    le64_put(trailer + 16, memory);
    memcpy(trailer + 24, id, SNAPSHOT_ID_LEN);
    le32_put(trailer + 24 + SNAPSHOT_ID_LEN, crc32c(0, trailer, 24 + SNAPSHOT_ID_LEN));
}

void snapshot_out_set_owner(struct snapshot_out *out, uid_t uid, gid_t gid)
{
    out->owned = true;
    out->uid = uid;
    out->gid = gid;
}

/* The last thing that is done to a file, so that what is left of a failure is still ours to use again. */
static int sync_file(struct snapshot_out *out, int fd, const char *name)
{
    if (out->owned && fchown(fd, out->uid, out->gid) < 0)
        return fail(out, -errno, name);
    return fsync(fd) < 0 ? fail(out, -errno, name) : 0;
}

/* A small file as a whole. *ret_fd is open and not yet synced, so that all of them wait for the disk together. */
static int write_file(struct snapshot_out *out, const char *name, const void *data, size_t len, int *ret_fd)
{
    int fd = create_file(out, name), r;

    if (fd < 0)
        return fd;
    r = write_at(out, name, fd, data, len, 0);
    if (r < 0) {
        fd_close(fd);
        return r;
    }
    sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    *ret_fd = fd;
    return 0;
}

static int write_pages(struct snapshot_out *out, struct snapshot_meta *meta, int *ret_fd)
{
    struct byte_writer w = {0};
    int r;

    snapshot_index_write(&out->index, &w);
    meta->pages_size = w.len;
    meta->pages_crc = crc32c(0, w.data, w.len);
    r = w.failed ? fail(out, -ENOMEM, SNAPSHOT_PAGES) : write_file(out, SNAPSHOT_PAGES, w.data, w.len, ret_fd);
    byte_writer_clear(&w);
    return r;
}

/* A snapshot that nobody can open is none: a path that is no UTF-8 gets into the text and not out of it. */
static int check_meta(struct snapshot_out *out, const char *text, size_t len)
{
    char error[SNAPSHOT_ERROR_MAX];
    struct snapshot_meta again;
    int r = snapshot_meta_parse(&again, text, len, error);

    if (r < 0)
        snprintf(out->error, sizeof(out->error), "%.200s/" SNAPSHOT_META ": could not be read again: %.200s", out->dir, error);
    else
        snapshot_meta_clear(&again);
    return r;
}

static int write_meta(struct snapshot_out *out, struct snapshot_meta *meta, int *ret_fd)
{
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r;

    meta->memory = out->memory;
    meta->byte_pages = out->index.byte_pages;
    meta->zero_pages = out->index.zero_pages;
    text = snapshot_meta_format(meta, &len);
    if (!text)
        return fail(out, -ENOMEM, SNAPSHOT_META);
    if (len > SNAPSHOT_META_MAX)
        return fail(out, -EFBIG, SNAPSHOT_META);
    r = check_meta(out, text, len);
    return r < 0 ? r : write_file(out, SNAPSHOT_META, text, len, ret_fd);
}

static int write_trailer(struct snapshot_out *out, const char *id)
{
    uint8_t trailer[SNAPSHOT_TRAILER_SIZE];

    snapshot_trailer_make(trailer, id, out->memory);
    return write_at(out, SNAPSHOT_MEMORY, out->memory_fd, trailer, sizeof(trailer), out->memory);
}

static int give_name(struct snapshot_out *out)
{
    int r = renameat2(out->parent_fd, out->partial, out->parent_fd, out->name, RENAME_NOREPLACE);

    /* Where the file system does not know the flag: a directory replaces nothing but an empty directory. */
    if (r < 0 && errno == EINVAL)
        r = renameat(out->parent_fd, out->partial, out->parent_fd, out->name);
    if (r < 0)
        return fail(out, -errno, "");
    out->committed = true;
    r = sync_dir(out->parent_fd);
    return r < 0 ? fail(out, r, "") : 0;
}

static int sync_own_dir(struct snapshot_out *out)
{
    int r = out->owned && fchown(out->fd, out->uid, out->gid) < 0 ? -errno : sync_dir(out->fd);

    return r < 0 ? fail(out, r, "") : 0;
}

int snapshot_out_commit(struct snapshot_out *out, struct snapshot_meta *meta, const void *state, size_t state_len)
{
    _cleanup_close_ int state_fd = -1, pages_fd = -1, meta_fd = -1;
    int r;

    meta->state_size = state_len;
    meta->state_crc = crc32c(0, state, state_len);
    r = write_trailer(out, meta->id);
    if (r == 0)
        r = write_file(out, SNAPSHOT_STATE, state, state_len, &state_fd);
    if (r == 0)
        r = write_pages(out, meta, &pages_fd);
    if (r == 0)
        r = write_meta(out, meta, &meta_fd);
    if (r == 0)
        r = sync_file(out, out->memory_fd, SNAPSHOT_MEMORY);
    if (r == 0)
        r = sync_file(out, state_fd, SNAPSHOT_STATE);
    if (r == 0)
        r = sync_file(out, pages_fd, SNAPSHOT_PAGES);
    if (r == 0)
        r = sync_file(out, meta_fd, SNAPSHOT_META);
    if (r == 0)
        r = sync_own_dir(out);
    return r < 0 ? r : give_name(out);
}
