#include "config.h"

#include "migrate/snapshot-open.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/fd.h"
#include "base/util.h"
#include "migrate/snapshot-internal.h"

/* How much of a path a message has: a long one loses its beginning, so that there is room for what is wrong with it. */
#define PATH_SHOWN 200

struct shown_path {
    char text[PATH_SHOWN + 1];
};

static struct shown_path path_shown(const char *path)
{
    struct shown_path s;
    size_t len = strlen(path);

    if (len <= PATH_SHOWN)
        snprintf(s.text, sizeof(s.text), "%s", path);
    else
        snprintf(s.text, sizeof(s.text), "...%s", path + len - (PATH_SHOWN - 3));
    return s;
}

static int fail(char *error, int err, const struct snapshot *s, const char *file, const char *fmt, ...)
    PRINTF_LIKE(5, 6);
static int fail(char *error, int err, const struct snapshot *s, const char *file, const char *fmt, ...)
{
    int n = snprintf(error, SNAPSHOT_ERROR_MAX, "%s%s%s: ", path_shown(s->path).text, *file ? "/" : "", file);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(error + n, SNAPSHOT_ERROR_MAX - (size_t)n, fmt, ap);
    va_end(ap);
    return err;
}

static int fail_errno(char *error, int err, const struct snapshot *s, const char *file)
{
    return fail(error, err, s, file, "%s", err == -ELOOP ? "is a symbolic link" : strerror(-err));
}

/* -- files -------------------------------------------------------------------- */

/* Open a regular file of the snapshot; *ret_size is its size. */
static int open_file(const struct snapshot *s, const char *name, uint64_t *ret_size, char *error)
{
    /* Nonblocking: a FIFO in its place must not make us wait. */
    int fd = openat(s->dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), r;
    struct stat st;

    if (fd < 0)
        return fail_errno(error, -errno, s, name);
    r = fstat(fd, &st) < 0 ? -errno : 0;
    if (r == 0 && !S_ISREG(st.st_mode)) {
        fd_close(fd);
        return fail(error, -EBADMSG, s, name, "is no regular file");
    }
    if (r < 0) {
        fd_close(fd);
        return fail_errno(error, r, s, name);
    }
    *ret_size = (uint64_t)st.st_size;
    return fd;
}

/* Read a file of just `size` bytes with that checksum into memory that the caller frees. */
static int read_file(const struct snapshot *s, const char *name, uint64_t size, uint32_t crc, uint8_t **ret, char *error)
{
    _cleanup_free_ uint8_t *data = NULL;
    _cleanup_close_ int fd = -1;
    uint64_t found = 0;
    int r;

    fd = open_file(s, name, &found, error);
    if (fd < 0)
        return fd;
    if (found != size)
        return fail(error, -EBADMSG, s, name, "has %" PRIu64 " bytes, meta.json says %" PRIu64, found, size);
    data = malloc(size ? size : 1);
    if (!data)
        return fail_errno(error, -ENOMEM, s, name);
    r = fd_pread_all(fd, data, size, 0);
    if (r < 0)
        return fail_errno(error, r, s, name);
    if (crc32c(0, data, size) != crc)
        return fail(error, -EBADMSG, s, name, "its checksum is not the one that meta.json has");
    *ret = take_ptr(data);
    return 0;
}

static int read_meta(struct snapshot *s, char *error)
{
    _cleanup_free_ char *text = NULL;
    _cleanup_close_ int fd = -1;
    char why[SNAPSHOT_ERROR_MAX];
    uint64_t size = 0;
    int r;

    fd = open_file(s, SNAPSHOT_META, &size, error);
    if (fd < 0)
        return fd;
    if (size > SNAPSHOT_META_MAX)
        return fail(error, -EBADMSG, s, SNAPSHOT_META, "%" PRIu64 " bytes exceed %u", size, SNAPSHOT_META_MAX);
    text = malloc(size + 1);
    if (!text)
        return fail_errno(error, -ENOMEM, s, SNAPSHOT_META);
    r = fd_pread_all(fd, text, size, 0);
    if (r < 0)
        return fail_errno(error, r, s, SNAPSHOT_META);
    text[size] = '\0';
    r = snapshot_meta_parse(&s->meta, text, size, why);
    return r < 0 ? fail(error, r, s, SNAPSHOT_META, "%.300s", why) : 0;
}

static int open_memory(struct snapshot *s, char *error)
{
    uint8_t want[SNAPSHOT_TRAILER_SIZE], trailer[SNAPSHOT_TRAILER_SIZE];
    uint64_t size = 0;
    int r;

    s->memory_fd = open_file(s, SNAPSHOT_MEMORY, &size, error);
    if (s->memory_fd < 0)
        return s->memory_fd;
    if (size != s->meta.memory + SNAPSHOT_TRAILER_SIZE)
        return fail(error, -EBADMSG, s, SNAPSHOT_MEMORY, "has %" PRIu64 " bytes, not %" PRIu64, size,
                    s->meta.memory + SNAPSHOT_TRAILER_SIZE);
    r = fd_pread_all(s->memory_fd, trailer, sizeof(trailer), s->meta.memory);
    if (r < 0)
        return fail_errno(error, r, s, SNAPSHOT_MEMORY);
    snapshot_trailer_make(want, s->meta.id, s->meta.memory);
    if (memcmp(trailer, want, sizeof(want)) != 0)
        return fail(error, -EBADMSG, s, SNAPSHOT_MEMORY, "is damaged or belongs to another snapshot");
    return 0;
}

static int read_index(struct snapshot *s, char *error)
{
    _cleanup_free_ uint8_t *data = NULL;
    char why[SNAPSHOT_ERROR_MAX];
    int r = read_file(s, SNAPSHOT_PAGES, s->meta.pages_size, s->meta.pages_crc, &data, error);

    if (r < 0)
        return r;
    r = snapshot_index_read(&s->index, s->meta.memory / SNAPSHOT_PAGE_SIZE, data, s->meta.pages_size, why);
    if (r < 0)
        return fail(error, r, s, SNAPSHOT_PAGES, "%.300s", why);
    if (s->index.byte_pages != s->meta.byte_pages || s->index.zero_pages != s->meta.zero_pages)
        return fail(error, -EBADMSG, s, SNAPSHOT_PAGES,
                    "%" PRIu64 " pages with bytes and %" PRIu64 " of zeros, meta.json says %" PRIu64 " and %" PRIu64,
                    s->index.byte_pages, s->index.zero_pages, s->meta.byte_pages, s->meta.zero_pages);
    return 0;
}

/* -- one snapshot ------------------------------------------------------------- */

static void snapshot_free(struct snapshot *s)
{
    if (!s)
        return;
    fd_close(s->dir_fd);
    fd_close(s->memory_fd);
    snapshot_meta_clear(&s->meta);
    snapshot_index_clear(&s->index);
    free(s->state);
    free(s->path);
    free(s);
}

/* A snapshot whose directory is open and nothing else; `name` is relative to at_fd, `path` is for messages and taken. */
static int snapshot_new(int at_fd, const char *name, char *path, struct snapshot **ret, char *error)
{
    struct snapshot *s = path ? calloc(1, sizeof(*s)) : NULL;
    int r;

    if (!s) {
        free(path);
        snprintf(error, SNAPSHOT_ERROR_MAX, "out of memory");
        return -ENOMEM;
    }
    s->path = path;
    s->memory_fd = -1;
    s->dir_fd = openat(at_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir_fd < 0) {
        r = -errno;
        fail(error, r, s, "", "%s", strerror(-r));
        snapshot_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

int snapshot_read_meta(const char *path, struct snapshot_meta *ret, char *error)
{
    struct snapshot *s;
    int r = snapshot_new(AT_FDCWD, path, strdup(path), &s, error);

    if (r < 0)
        return r;
    r = read_meta(s, error);
    if (r == 0) {
        *ret = s->meta;
        s->meta = (struct snapshot_meta){0};
    }
    snapshot_free(s);
    return r;
}

/* -- chains ------------------------------------------------------------------- */

/* Open the files of a link whose directory is open. */
static int load_link(struct snapshot *s, bool with_state, char *error)
{
    int r = read_meta(s, error);

    if (r == 0)
        r = open_memory(s, error);
    if (r == 0)
        r = read_index(s, error);
    if (r == 0 && with_state) {
        r = read_file(s, SNAPSHOT_STATE, s->meta.state_size, s->meta.state_crc, &s->state, error);
        s->state_len = s->meta.state_size;
    }
    return r;
}

/* Hold the newest link against its child and the rest of the chain. */
static int check_link(const struct snapshot_chain *chain, char *error)
{
    const struct snapshot *s = chain->links[chain->count - 1], *child;

    if (chain->count < 2)
        return 0;
    child = chain->links[chain->count - 2];
    if (strcmp(child->meta.parent_id, s->meta.id) != 0)
        return fail(error, -EBADMSG, s, "", "is snapshot %s, but the parent of %s is %s", s->meta.id,
                    path_shown(child->path).text, child->meta.parent_id);
    for (unsigned int i = 0; i + 1 < chain->count; i++)
        if (strcmp(chain->links[i]->meta.id, s->meta.id) == 0)
            return fail(error, -ELOOP, s, "", "is an ancestor of itself");
    if (child->meta.memory != s->meta.memory)
        return fail(error, -EBADMSG, s, "", "has %" PRIu64 " bytes of memory, but %s has %" PRIu64, s->meta.memory,
                    path_shown(child->path).text, child->meta.memory);
    return 0;
}

/*
 * The directory that the path of an open snapshot says it is in, "" for the working directory; NULL where that is not the one that
 * ".." leads to, as behind a symbolic link, or memory is out.
 */
static char *directory_of(const struct snapshot *s)
{
    size_t len = strlen(s->path);
    struct stat named, real;
    char *dir;

    while (len > 0 && s->path[len - 1] == '/')
        len--;
    while (len > 0 && s->path[len - 1] != '/')
        len--;
    dir = strndup(s->path, len);
    if (dir && stat(len ? dir : ".", &named) == 0 && fstatat(s->dir_fd, "..", &real, 0) == 0 && named.st_dev == real.st_dev &&
        named.st_ino == real.st_ino)
        return dir;
    free(dir);
    return NULL;
}

/* As short as it goes: with each link of a chain a path would grow by "CHILD/..". */
static char *path_of_parent(const struct snapshot *child)
{
    _cleanup_free_ char *dir = NULL;
    const char *name = child->meta.parent_path;
    bool sibling = strncmp(name, "../", 3) == 0;
    char *path;

    if (*name == '/')
        return strdup(name);
    if (sibling)
        dir = directory_of(child);
    return asprintf(&path, "%s%s%s", dir ? dir : child->path, dir ? "" : "/", dir ? name + 3 : name) < 0 ? NULL : path;
}

static int fail_parent(const struct snapshot *child, int err, char *error)
{
    _cleanup_free_ char *path = path_of_parent(child);

    return fail(error, err, child, "", "cannot open its parent %s: %s", path_shown(path ? path : child->meta.parent_path).text,
                strerror(-err));
}

static int open_links(struct snapshot_chain *chain, const char *path, char *error)
{
    struct snapshot *s;
    int r = snapshot_new(AT_FDCWD, path, strdup(path), &s, error);

    while (r == 0) {
        chain->links[chain->count++] = s;
        r = load_link(s, chain->count == 1, error);
        if (r == 0)
            r = check_link(chain, error);
        if (r < 0 || !s->meta.parent_id[0])
            return r;
        if (chain->count == SNAPSHOT_CHAIN_MAX)
            return fail(error, -E2BIG, s, "", "the chain has more than %u snapshots, merge some of them",
                        SNAPSHOT_CHAIN_MAX);
        r = snapshot_new(s->dir_fd, s->meta.parent_path, path_of_parent(s), &s, error);
        if (r < 0)
            return fail_parent(chain->links[chain->count - 1], r, error);
        /* A long chain must not need two descriptors a link. */
        chain->links[chain->count - 1]->dir_fd = fd_close(chain->links[chain->count - 1]->dir_fd);
    }
    return r;
}

int snapshot_chain_length(const char *path, unsigned int *ret, char *error)
{
    struct snapshot *s, *parent;
    unsigned int n = 1;
    int r = snapshot_new(AT_FDCWD, path, strdup(path), &s, error);

    if (r < 0)
        return r;
    for (r = read_meta(s, error); r == 0 && s->meta.parent_id[0] && n < SNAPSHOT_CHAIN_MAX; n++) {
        r = snapshot_new(s->dir_fd, s->meta.parent_path, strdup(s->meta.parent_path), &parent, error);
        if (r < 0)
            break;
        snapshot_free(s);
        s = parent;
        r = read_meta(s, error);
    }
    snapshot_free(s);
    *ret = n;
    return r;
}

int snapshot_chain_open(const char *path, struct snapshot_chain *ret, char *error)
{
    int r;

    ret->count = 0;
    r = open_links(ret, path, error);
    if (r < 0)
        snapshot_chain_close(ret);
    return r;
}

void snapshot_chain_close(struct snapshot_chain *chain)
{
    for (unsigned int i = 0; i < chain->count; i++)
        snapshot_free(chain->links[i]);
    chain->count = 0;
}

uint64_t snapshot_chain_pages(const struct snapshot_chain *chain)
{
    return chain->links[0]->index.pages;
}

/* -- whose page is it --------------------------------------------------------- */

static void find_owners(struct snapshot_walk *w, uint64_t chunk)
{
    const struct snapshot_chain *chain = w->chain;
    uint64_t missing[SNAPSHOT_CHUNK_WORDS];

    memset(missing, 0xff, sizeof(missing));
    for (unsigned int link = 0; link < chain->count; link++) {
        const struct snapshot_chunk *c = chain->links[link]->index.chunks[chunk];

        for (unsigned int i = 0; c && i < SNAPSHOT_CHUNK_WORDS; i++) {
            uint64_t bits = (c->bytes[i] | c->zero[i]) & missing[i];

            missing[i] &= ~bits;
            for (; bits; bits &= bits - 1) {
                unsigned int bit = (unsigned int)__builtin_ctzll(bits);

                /* Zeros as the complement of the link. */
                w->owner[i * 64 + bit] = (int16_t)(c->zero[i] >> bit & 1 ? ~(int)link : (int)link);
            }
        }
    }
    /* The last link is a full snapshot, which has every page; it was checked by number. */
    w->chunk = chunk + 1;
}

bool snapshot_walk_next(struct snapshot_walk *w, uint64_t max, struct snapshot_run *ret)
{
    uint64_t pages = snapshot_chain_pages(w->chain), first = w->page;
    int owner = 0;

    for (; w->page < pages && w->page - first < max; w->page++) {
        uint64_t chunk = w->page / SNAPSHOT_CHUNK_PAGES;

        if (w->chunk != chunk + 1)
            find_owners(w, chunk);
        if (w->page == first)
            owner = w->owner[w->page % SNAPSHOT_CHUNK_PAGES];
        else if (w->owner[w->page % SNAPSHOT_CHUNK_PAGES] != owner)
            break;
    }
    if (w->page == first)
        return false;
    *ret = (struct snapshot_run){.first = first,
                                 .count = w->page - first,
                                 .zero = owner < 0,
                                 .link = (unsigned int)(owner < 0 ? ~owner : owner)};
    return true;
}

int snapshot_parent_path(const char *dir, const char *parent, char ret[SNAPSHOT_PATH_MAX + 1])
{
    _cleanup_free_ char *copy = strdup(dir), *real_parent = realpath(parent, NULL), *real_dir = NULL;
    size_t len = strlen(dir);
    char *slash;

    if (!copy)
        return -ENOMEM;
    if (!real_parent)
        return -errno;
    while (len > 1 && copy[len - 1] == '/')
        copy[--len] = '\0';
    slash = strrchr(copy, '/');
    if (slash)
        slash[slash == copy] = '\0';
    real_dir = realpath(slash ? copy : ".", NULL);
    if (!real_dir)
        return -errno;
    if (strlen(real_parent) > SNAPSHOT_PATH_MAX)
        return -ENAMETOOLONG;
    strcpy(ret, real_parent);
    len = strlen(real_dir);
    slash = strrchr(real_parent, '/');
    if ((size_t)(slash - real_parent) == len && memcmp(real_parent, real_dir, len) == 0)
        snprintf(ret, SNAPSHOT_PATH_MAX + 1, "..%s", slash);
    return 0;
}
