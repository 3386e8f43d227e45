/* Snapshots on disk: what is written is what is read, and what was damaged, swapped or made up is refused. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/fd.h"
#include "base/util.h"
#include "migrate/snapshot-internal.h"
#include "migrate/snapshot-open.h"
#include "migrate/snapshot-out.h"
#include "migrate/snapshot-restore.h"
#include "rand.h"

#define PAGES 512u /* 2 MiB */

static char dir[64];

static int set_up(void **state)
{
    strcpy(dir, "/tmp/test-snapshot.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static int tear_down(void **state)
{
    return nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static const char *at(const char *name)
{
    static char path[4][256];
    static unsigned int next;
    char *p = path[next++ % 4];

    snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
    return p;
}

/* A guest of a test: its memory, and the pages written since its last snapshot. */
struct guest {
    uint8_t ram[PAGES * SNAPSHOT_PAGE_SIZE];
    bool dirty[PAGES];
    char last[SNAPSHOT_ID_LEN + 1], last_path[256];
};

static struct guest *guest_new(void)
{
    struct guest *g = calloc(1, sizeof(*g));

    assert_non_null(g);
    return g;
}

static void guest_write(struct guest *g, uint64_t page, uint8_t byte)
{
    memset(g->ram + page * SNAPSHOT_PAGE_SIZE, byte, SNAPSHOT_PAGE_SIZE);
    g->dirty[page] = true;
}

/* A diff's pages all at once, some of them from where they were copied aside; a full snapshot's one by one. */
static void guest_put(const struct guest *g, struct snapshot_out *out, bool diff)
{
    static uint8_t aside[PAGES][SNAPSHOT_PAGE_SIZE];
    struct snapshot_piece pieces[PAGES];
    size_t n = 0;

    for (uint64_t i = 0; i < PAGES; i++) {
        const uint8_t *data = g->ram + i * SNAPSHOT_PAGE_SIZE;

        if (!diff)
            assert_int_equal(snapshot_out_put(out, i, data, 1), 0);
        if (!diff || !g->dirty[i])
            continue;
        if (i % 5 == 0)
            data = memcpy(aside[i], data, SNAPSHOT_PAGE_SIZE);
        pieces[n++] = (struct snapshot_piece){.page = i, .data = data};
    }
    assert_int_equal(snapshot_out_put_pieces(out, pieces, n), 0);
}

static void guest_snapshot(struct guest *g, const char *name, bool diff)
{
    struct snapshot_meta meta = {.created = 1, .producer = "test", .paging = "shadow", .epoch = 3};
    char error[SNAPSHOT_ERROR_MAX];
    struct snapshot_out *out;

    assert_int_equal(snapshot_out_new(at(name), PAGES, &out, error), 0);
    assert_int_equal(snapshot_meta_new_id(&meta), 0);
    guest_put(g, out, diff);
    memset(g->dirty, 0, sizeof(g->dirty));
    if (diff) {
        strcpy(meta.parent_id, g->last);
        assert_int_equal(snapshot_parent_path(at(name), g->last_path, meta.parent_path), 0);
    }
    assert_int_equal(snapshot_out_commit(out, &meta, "state", 5), 0);
    snapshot_out_free(out);
    strcpy(g->last, meta.id);
    strcpy(g->last_path, at(name));
}

static int open_error(const char *name, char *error)
{
    struct snapshot_chain chain;
    int r = snapshot_chain_open(at(name), &chain, error);

    if (r == 0)
        snapshot_chain_close(&chain);
    return r;
}

static void assert_refused(const char *name, int want, const char *text)
{
    char error[SNAPSHOT_ERROR_MAX] = "";
    int r = open_error(name, error);

    if (r != want || !strstr(error, text))
        fail_msg("%s: got %d '%s', wanted %d '%s'", name, r, error, want, text);
}

/* The chain gives the guest's memory, read in both ways, and verifies. */
static void assert_memory(const struct guest *g, const char *name)
{
    struct mem_config config = {.size = PAGES * SNAPSHOT_PAGE_SIZE};
    struct snapshot_chain chain;
    char error[SNAPSHOT_ERROR_MAX];
    struct mem *mem;

    assert_int_equal(snapshot_chain_open(at(name), &chain, error), 0);
    assert_int_equal(snapshot_chain_verify(&chain, NULL, NULL, error), 0);
    for (int lazy = 0; lazy < 2; lazy++) {
        config.private = lazy;
        assert_int_equal(mem_new(&config, &mem), 0);
        assert_int_equal((lazy ? snapshot_restore_lazily : snapshot_restore_eagerly)(&chain, mem, error), 0);
        assert_memory_equal(mem_ram(mem), g->ram, sizeof(g->ram));
        assert_int_equal(mem_fd(mem) < 0, lazy);
        mem_free(mem);
    }
    snapshot_chain_close(&chain);
}

/* -- what is written is read ----------------------------------------------------- */

static void test_crc(void **state)
{
    uint8_t buf[301];
    uint32_t three[3];
    struct rng rnd = rng_seeded(rng_test_seed(__func__));

    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(crc32c_portable(0, "123456789", 9), 0xe3069283);
    for (size_t i = 0; i < sizeof(buf); i++)
        buf[i] = (uint8_t)rng_next(&rnd);
    for (size_t n = 0; n < sizeof(buf); n += 7)
        assert_int_equal(crc32c(crc32c(0, buf, n), buf + n, sizeof(buf) - n), crc32c_portable(0, buf, sizeof(buf)));
    crc32c_three((const uint8_t *const[]){buf, buf + 8, buf + 16}, 24, three);
    for (int i = 0; i < 3; i++)
        assert_int_equal(three[i], crc32c_portable(0, buf + 8 * i, 24));
}

static void test_full(void **state)
{
    struct guest *g = guest_new();
    struct stat st;

    guest_write(g, 0, 1);
    guest_write(g, 7, 2);
    guest_write(g, PAGES - 1, 3);
    guest_snapshot(g, "s", false);
    assert_memory(g, "s");
    /* Zeros are holes, and nobody else may read or change it. */
    assert_int_equal(stat(at("s/memory"), &st), 0);
    assert_true(st.st_blocks * 512 <= 8 * (off_t)SNAPSHOT_PAGE_SIZE);
    assert_int_equal(st.st_mode & 0777, 0400);
    assert_int_equal(stat(at("s"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(stat(at(".s.partial"), &st), -1);
    free(g);
}

static void test_random_chain(void **state)
{
    struct guest *g = guest_new();
    struct rng rnd = rng_seeded(rng_test_seed(__func__));
    struct snapshot_chain chain;
    char error[SNAPSHOT_ERROR_MAX], name[16];

    for (int i = 0; i < 12; i++) {
        uint64_t writes = rng_next(&rnd) % (PAGES / 2), run = rng_next(&rnd) % PAGES;

        for (uint64_t w = 0; w < writes; w++)
            guest_write(g, rng_next(&rnd) % PAGES, rng_next(&rnd) % 3 ? (uint8_t)rng_next(&rnd) : 0);
        /* A long run, of bytes or zeros, that a lazy restore maps. */
        for (uint64_t w = run; w < PAGES && w < run + 100; w++)
            guest_write(g, w, i % 2 ? 0 : (uint8_t)i);
        snprintf(name, sizeof(name), "c%d", i);
        guest_snapshot(g, name, i > 0);
        assert_memory(g, name);
    }
    assert_int_equal(snapshot_chain_open(at("c11"), &chain, error), 0);
    assert_int_equal(chain.count, 12);
    assert_int_equal(snapshot_merge(&chain, at("merged"), NULL, NULL, error), 0);
    snapshot_chain_close(&chain);
    assert_memory(g, "merged");
    /* A diff of the last one may stand on the merged one. */
    strcpy(g->last_path, at("merged"));
    guest_write(g, 5, 55);
    guest_snapshot(g, "after", true);
    assert_memory(g, "after");
    free(g);
}

static void test_page_changes_kind(void **state)
{
    struct snapshot_meta meta = {.created = 1, .producer = "test", .paging = "tdp"};
    uint8_t page[SNAPSHOT_PAGE_SIZE] = {1};
    char error[SNAPSHOT_ERROR_MAX];
    struct snapshot_chain chain;
    struct snapshot_out *out;

    assert_int_equal(snapshot_out_new(at("s"), PAGES, &out, error), 0);
    assert_int_equal(snapshot_out_put_zeros(out, 0, PAGES), 0);
    assert_int_equal(snapshot_out_put(out, 9, page, 1), 0);
    assert_int_equal(snapshot_out_zero_pages(out), PAGES - 1);
    page[0] = 0;
    assert_int_equal(snapshot_out_put(out, 9, page, 1), 0);
    assert_int_equal(snapshot_out_zero_pages(out), PAGES);
    assert_int_equal(snapshot_out_pages(out), PAGES);
    assert_int_equal(snapshot_meta_new_id(&meta), 0);
    assert_int_equal(snapshot_out_commit(out, &meta, "", 0), 0);
    snapshot_out_free(out);
    assert_int_equal(snapshot_chain_open(at("s"), &chain, error), 0);
    /* The bytes from before are gone: a lazy restore maps the file as it is. */
    assert_int_equal(snapshot_chain_verify(&chain, NULL, NULL, error), 0);
    snapshot_chain_close(&chain);
}

/* Root merges for the user whose snapshots they are. */
static void test_merge_keeps_owner(void **state)
{
    static const char *const names[] = {"a", "a/meta.json", "a/state.bin", "a/pages", "a/memory"};
    struct snapshot_chain chain;
    char error[SNAPSHOT_ERROR_MAX], name[32];
    struct guest *g;
    struct stat st;

    if (geteuid() != 0)
        skip();
    g = guest_new();
    guest_write(g, 3, 9);
    guest_snapshot(g, "a", false);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        assert_int_equal(lchown(at(names[i]), 4711, 4712), 0);
    assert_int_equal(snapshot_chain_open(at("a"), &chain, error), 0);
    assert_int_equal(snapshot_merge(&chain, at("m"), NULL, NULL, error), 0);
    snapshot_chain_close(&chain);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(name, sizeof(name), "m%s", names[i] + 1);
        assert_int_equal(lstat(at(name), &st), 0);
        assert_int_equal(st.st_uid, 4711);
        assert_int_equal(st.st_gid, 4712);
    }
    assert_memory(g, "m");
    free(g);
}

/* -- places ----------------------------------------------------------------------- */

static void assert_no_place(const char *name, int want)
{
    char error[SNAPSHOT_ERROR_MAX] = "";
    struct snapshot_out *out;

    assert_int_equal(snapshot_out_new(name, PAGES, &out, error), want);
    assert_true(strlen(error) > 0);
}

static void test_places(void **state)
{
    char error[SNAPSHOT_ERROR_MAX], longest[300];
    struct snapshot_out *out, *second;

    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = '\0';
    assert_no_place(at("no/where"), -ENOENT);
    assert_no_place(dir, -EEXIST);
    assert_no_place("", -EINVAL);
    assert_no_place("/", -EINVAL);
    assert_no_place("..", -EINVAL);
    assert_no_place(longest, -ENAMETOOLONG);
    assert_int_equal(symlink("/nowhere", at("link")), 0);
    assert_no_place(at("link"), -EEXIST);
    assert_int_equal(symlink("/tmp", at(".s.partial")), 0);
    assert_no_place(at("s"), -ENOTDIR);
    assert_int_equal(unlink(at(".s.partial")), 0);
    assert_int_equal(snapshot_out_new(at("s//"), PAGES, &out, error), 0);
    /* Somebody else writes it. */
    assert_int_equal(snapshot_out_new(at("s"), PAGES, &second, error), -EBUSY);
    snapshot_out_free(out);
    assert_int_equal(access(at(".s.partial"), F_OK), -1);
}

static void test_left_behind(void **state)
{
    struct guest *g = guest_new();
    int fd;

    assert_int_equal(mkdir(at(".s.partial"), 0700), 0);
    fd = open(at(".s.partial/memory"), O_CREAT | O_WRONLY, 0600);
    assert_int_equal(pwrite(fd, "old", 3, 4096), 3);
    close(fd);
    guest_snapshot(g, "s", false);
    assert_memory(g, "s");
    free(g);
}

/* -- damage ------------------------------------------------------------------------ */

static void change(const char *name, off_t offset, const void *bytes, size_t len)
{
    int fd;

    assert_int_equal(chmod(at(name), 0600), 0);
    fd = open(at(name), O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, len, offset), (ssize_t)len);
    close(fd);
}

static const char *const files[] = {"meta.json", "state.bin", "pages", "memory"};

static void test_damaged_files(void **state)
{
    struct guest *g = guest_new();
    char name[64], moved[64], text[64];

    guest_write(g, 3, 9);
    guest_snapshot(g, "s", false);
    snprintf(moved, sizeof(moved), "%s", at("moved"));
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        struct stat st;

        snprintf(name, sizeof(name), "s/%s", files[i]);
        assert_int_equal(rename(at(name), moved), 0);
        assert_refused("s", -ENOENT, files[i]);
        assert_int_equal(symlink(moved, at(name)), 0);
        assert_refused("s", -ELOOP, "is a symbolic link");
        assert_int_equal(unlink(at(name)), 0);
        assert_int_equal(mkfifo(at(name), 0600), 0);
        assert_refused("s", -EBADMSG, "is no regular file");
        assert_int_equal(unlink(at(name)), 0);
        assert_int_equal(mkdir(at(name), 0700), 0);
        assert_refused("s", -EBADMSG, "is no regular file");
        assert_int_equal(rmdir(at(name)), 0);
        assert_int_equal(rename(moved, at(name)), 0);
        assert_int_equal(stat(at(name), &st), 0);
        assert_int_equal(chmod(at(name), 0600), 0);
        assert_int_equal(truncate(at(name), st.st_size + 1), 0);
        snprintf(text, sizeof(text), "s/%s: ", files[i]);
        assert_refused("s", -EBADMSG, text);
        assert_int_equal(truncate(at(name), st.st_size), 0);
    }
    assert_memory(g, "s");
    change("s/memory", PAGES * SNAPSHOT_PAGE_SIZE + 30, "X", 1);
    assert_refused("s", -EBADMSG, "belongs to another snapshot");
    free(g);
}

static void test_damaged_memory(void **state)
{
    struct guest *g = guest_new();
    char error[SNAPSHOT_ERROR_MAX];
    struct snapshot_chain chain;

    guest_write(g, 3, 9);
    guest_snapshot(g, "s", false);
    change("s/memory", 5 * SNAPSHOT_PAGE_SIZE + 7, "X", 1);
    assert_int_equal(snapshot_chain_open(at("s"), &chain, error), 0);
    assert_int_equal(snapshot_chain_verify(&chain, NULL, NULL, error), -EBADMSG);
    assert_non_null(strstr(error, "offset 0x5000 is not zeros"));
    change("s/memory", 3 * SNAPSHOT_PAGE_SIZE + 7, "X", 1);
    assert_int_equal(snapshot_chain_verify(&chain, NULL, NULL, error), -EBADMSG);
    assert_non_null(strstr(error, "offset 0x3000 does not have"));
    assert_int_equal(snapshot_merge(&chain, at("merged"), NULL, NULL, error), -EBADMSG);
    assert_int_equal(access(at("merged"), F_OK), -1);
    assert_int_equal(access(at(".merged.partial"), F_OK), -1);
    snapshot_chain_close(&chain);
    free(g);
}

/* Write the metadata of "b" anew with another parent. */
static void set_parent(struct snapshot_meta *meta, const char *id, const char *path)
{
    char file[] = "b/meta.json";
    char *text;
    size_t len;

    snprintf(meta->parent_id, sizeof(meta->parent_id), "%s", id);
    snprintf(meta->parent_path, sizeof(meta->parent_path), "%s", path);
    text = snapshot_meta_format(meta, &len);
    assert_non_null(text);
    assert_int_equal(chmod(at(file), 0600), 0);
    assert_int_equal(truncate(at(file), (off_t)len), 0);
    change(file, 0, text, len);
    free(text);
}

static void test_parents(void **state)
{
    struct guest *g = guest_new();
    char a[SNAPSHOT_ID_LEN + 1], b[SNAPSHOT_ID_LEN + 1], error[SNAPSHOT_ERROR_MAX];
    struct snapshot_meta meta;

    guest_snapshot(g, "a", false);
    strcpy(a, g->last);
    guest_write(g, 1, 1);
    guest_snapshot(g, "b", true);
    strcpy(b, g->last);
    guest_write(g, 2, 1);
    guest_snapshot(g, "c", true);
    assert_memory(g, "c");
    assert_int_equal(snapshot_read_meta(at("b"), &meta, error), 0);
    set_parent(&meta, b, "../b");
    assert_refused("b", -EBADMSG, "it is its own parent");
    set_parent(&meta, g->last, "../c");
    assert_refused("b", -ELOOP, "ancestor of itself");
    assert_refused("c", -ELOOP, "ancestor of itself");
    set_parent(&meta, g->last, "../a");
    assert_refused("c", -EBADMSG, "but the parent of");
    set_parent(&meta, a, "../gone");
    assert_refused("c", -ENOENT, "cannot open its parent");
    set_parent(&meta, a, "../a");
    assert_memory(g, "c");
    /* A diff that says it is full has too few pages. */
    set_parent(&meta, "", "");
    assert_refused("b", -EBADMSG, "a full snapshot of 512 pages has 1");
    snapshot_meta_clear(&meta);
    free(g);
}

/* Paths of a chain's links stay as short as that of the first, unless a symbolic link stands in the place of a directory. */
static void test_paths_of_parents(void **state)
{
    static const char *const names[] = {"a", "b", "c"};
    struct guest *g = guest_new();
    char error[SNAPSHOT_ERROR_MAX];
    struct snapshot_chain chain;

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        guest_snapshot(g, names[i], i > 0);
    assert_int_equal(snapshot_chain_open(at("c/"), &chain, error), 0);
    assert_int_equal(chain.count, 3);
    assert_string_equal(chain.links[1]->path, at("b"));
    assert_string_equal(chain.links[2]->path, at("a"));
    snapshot_chain_close(&chain);
    assert_int_equal(mkdir(at("elsewhere"), 0700), 0);
    assert_int_equal(symlink("../c", at("elsewhere/link")), 0);
    assert_int_equal(snapshot_chain_open(at("elsewhere/link"), &chain, error), 0);
    assert_string_equal(chain.links[1]->path, at("elsewhere/link/../b"));
    snapshot_chain_close(&chain);
    free(g);
}

/* However long the paths are, what is wrong is told. */
static void test_long_paths(void **state)
{
    struct guest *g = guest_new();
    char error[SNAPSHOT_ERROR_MAX], path[2000], a[SNAPSHOT_ID_LEN + 1], *end;
    struct snapshot_meta meta;

    guest_snapshot(g, "a", false);
    strcpy(a, g->last);
    guest_snapshot(g, "b", true);
    assert_int_equal(snapshot_read_meta(at("b"), &meta, error), 0);
    strcpy(path, at(""));
    for (end = path + strlen(path); end < path + sizeof(path) - 60; end = path + strlen(path))
        strcpy(end, "a-directory-with-a-long-name/../");
    strcpy(end, "gone");
    set_parent(&meta, a, path);
    assert_refused("b", -ENOENT, "/gone: No such file or directory");
    *end = '\0';
    assert_true(snapshot_chain_open(path, &(struct snapshot_chain){.count = 0}, error) < 0);
    assert_string_equal(strrchr(error, ':'), ": No such file or directory");
    snapshot_meta_clear(&meta);
    free(g);
}

/* -- metadata ---------------------------------------------------------------------- */

/* Text with the checksum that belongs to it. */
static int parse(const char *body, char *error)
{
    char text[4096];
    struct snapshot_meta meta;
    int n = snprintf(text, sizeof(text), "%s,\n  \"checksum\": \"crc32c:%08" PRIx32 "\"\n}\n", body,
                     crc32c(0, body, strlen(body))), r;

    r = snapshot_meta_parse(&meta, text, (size_t)n, error);
    if (r == 0)
        snapshot_meta_clear(&meta);
    return r;
}

#define ID "0123456789abcdef0123456789abcdef"
static const char *const members[][2] = {
    {"format", "1"},
    {"id", "\"" ID "\""},
    {"parent", "null"},
    {"created", "5"},
    {"producer", "\"umbra\""},
    {"paging", "\"shadow\""},
    {"host", "{}"},
    {"config", "{}"},
    {"epoch", "1"},
    {"memory", "{\"size\":1048576,\"page-size\":4096,\"byte-pages\":200,\"zero-pages\":56}"},
    {"state.bin", "{\"size\":5,\"crc32c\":\"00000001\"}"},
    {"pages", "{\"size\":5,\"crc32c\":\"00000001\"}"},
};

/* The members with one of them replaced, or left out for NULL. */
static int parse_with(const char *key, const char *value, char *error)
{
    char body[3072] = "{";

    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        const char *v = key && strcmp(key, members[i][0]) == 0 ? value : members[i][1];
        size_t len = strlen(body);

        if (v)
            snprintf(body + len, sizeof(body) - len, "%s\"%s\": %s", len > 1 ? "," : "", members[i][0], v);
    }
    return parse(body, error);
}

static void test_metadata(void **state)
{
    static const char *const bad[][2] = {
        {"format", "2"},
        {"format", "-1"},
        {"format", "\"1\""},
        {"id", "\"0123\""},
        {"id", "\"0123456789ABCDEF0123456789ABCDEF\""},
        {"id", "5"},
        {"parent", "5"},
        {"parent", "{\"id\":\"" ID "\",\"path\":\"../x\"}"},
        {"parent", "{\"id\":\"fedcba98765432100123456789abcdef\",\"path\":\"\"}"},
        {"parent", "{\"id\":\"fedcba98765432100123456789abcdef\",\"path\":\"a\\u0000b\"}"},
        {"parent", "{\"id\":\"fedcba98765432100123456789abcdef\",\"path\":\"a\",\"x\":1}"},
        {"created", "-5"},
        {"created", "99999999999999999999"},
        {"producer", "\"\""},
        {"paging", "\"none\""},
        {"host", "[]"},
        {"config", "null"},
        {"epoch", "1.5"},
        {"memory", "{\"size\":1048577,\"page-size\":4096,\"byte-pages\":200,\"zero-pages\":56}"},
        {"memory", "{\"size\":0,\"page-size\":4096,\"byte-pages\":0,\"zero-pages\":0}"},
        {"memory", "{\"size\":18446744073708503040,\"page-size\":4096,\"byte-pages\":200,\"zero-pages\":56}"},
        {"memory", "{\"size\":1048576,\"page-size\":8192,\"byte-pages\":200,\"zero-pages\":56}"},
        {"memory", "{\"size\":1048576,\"page-size\":4096,\"byte-pages\":257,\"zero-pages\":0}"},
        {"memory", "{\"size\":1048576,\"page-size\":4096,\"byte-pages\":200,\"zero-pages\":57}"},
        {"memory", "{\"size\":1048576,\"page-size\":4096,\"byte-pages\":200,\"zero-pages\":55}"},
        {"memory", "{\"size\":1048576,\"page-size\":4096,\"byte-pages\":200}"},
        {"state.bin", "{\"size\":268435457,\"crc32c\":\"00000001\"}"},
        {"state.bin", "{\"size\":5,\"crc32c\":\"0000001\"}"},
        {"pages", "{\"size\":1000000,\"crc32c\":\"00000001\"}"},
        {"pages", "{\"size\":5,\"crc32c\":1}"},
    };
    char error[SNAPSHOT_ERROR_MAX];

    assert_int_equal(parse_with(NULL, NULL, error), 0);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        error[0] = '\0';
        if (parse_with(bad[i][0], bad[i][1], error) != -EBADMSG || !error[0])
            fail_msg("%s %s is taken", bad[i][0], bad[i][1]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        if (parse_with(members[i][0], NULL, error) != -EBADMSG)
            fail_msg("without %s it is taken", members[i][0]);
    assert_int_equal(parse_with("epoch", "1, \"new\": 2", error), -EBADMSG);
    assert_non_null(strstr(error, "\"new\""));
    assert_int_equal(parse("{", error), -EBADMSG);
    assert_int_equal(parse("[1", error), -EBADMSG);
    assert_int_equal(parse("", error), -EBADMSG);
    assert_int_equal(parse("{\"a\":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]", error), -EBADMSG);
}

static void test_metadata_round_trip(void **state)
{
    struct snapshot_meta a = {.parent_id = ID, .parent_path = "../\xc3\xa4", .created = 7, .producer = "p", .paging = "tdp",
                              .memory = 1 << 20, .byte_pages = 3, .epoch = 9, .state_size = 5, .state_crc = 0xdeadbeef,
                              .pages_size = 12, .pages_crc = 1};
    char error[SNAPSHOT_ERROR_MAX];
    struct snapshot_meta b;
    size_t len;
    char *text;

    assert_int_equal(snapshot_meta_new_id(&a), 0);
    text = snapshot_meta_format(&a, &len);
    assert_non_null(text);
    assert_int_equal(snapshot_meta_parse(&b, text, len, error), 0);
    assert_string_equal(a.id, b.id);
    assert_string_equal(a.parent_path, b.parent_path);
    assert_int_equal(a.state_crc, b.state_crc);
    assert_int_equal(a.byte_pages, b.byte_pages);
    snapshot_meta_clear(&b);
    for (size_t n = 0; n < len; n++) {
        assert_int_equal(snapshot_meta_parse(&b, text, n, error), -EBADMSG);
        text[n] ^= 1;
        assert_int_equal(snapshot_meta_parse(&b, text, len, error), -EBADMSG);
        text[n] ^= 1;
    }
    free(text);
}

/* The name of a disk in Latin-1: said when the snapshot is taken, not when it is needed. */
static void test_metadata_not_utf8(void **state)
{
    struct snapshot_meta meta = {.created = 1, .producer = "test", .paging = "tdp"};
    char error[SNAPSHOT_ERROR_MAX];
    struct snapshot_out *out;

    meta.config = json_object_new_object();
    json_add_str(meta.config, "disk", "/images/\xe4.img");
    assert_int_equal(snapshot_out_new(at("s"), PAGES, &out, error), 0);
    assert_int_equal(snapshot_out_put_zeros(out, 0, PAGES), 0);
    assert_int_equal(snapshot_meta_new_id(&meta), 0);
    assert_int_equal(snapshot_out_commit(out, &meta, "", 0), -EBADMSG);
    assert_non_null(strstr(snapshot_out_error(out), "s/meta.json: could not be read again: "));
    assert_non_null(strstr(snapshot_out_error(out), "utf-8"));
    snapshot_out_free(out);
    assert_int_equal(access(at("s"), F_OK), -1);
    assert_int_equal(access(at(".s.partial"), F_OK), -1);
    snapshot_meta_clear(&meta);
}

/* -- the list of pages ------------------------------------------------------------- */

static void assert_index_refused(const struct byte_writer *w, size_t len, const char *text)
{
    char error[SNAPSHOT_ERROR_MAX] = "";
    struct snapshot_index ix;

    assert_int_equal(snapshot_index_read(&ix, PAGES, w->data, len, error), -EBADMSG);
    if (!strstr(error, text))
        fail_msg("'%s' where '%s' is wanted", error, text);
}

static void test_index(void **state)
{
    char error[SNAPSHOT_ERROR_MAX];
    struct snapshot_index ix, copy;
    struct byte_writer w = {0};
    uint32_t crc = 0;

    assert_int_equal(snapshot_index_init(&ix, PAGES), 0);
    assert_int_equal(snapshot_index_set(&ix, 300, SNAPSHOT_PAGE_BYTES, 77), 0);
    assert_int_equal(snapshot_index_set(&ix, 301, SNAPSHOT_PAGE_ZERO, 0), 0);
    assert_int_equal(snapshot_index_set(&ix, 5, SNAPSHOT_PAGE_BYTES, 1), 0);
    assert_int_equal(snapshot_index_set(&ix, 5, SNAPSHOT_PAGE_NONE, 0), 0);
    snapshot_index_write(&ix, &w);
    assert_int_equal(snapshot_index_read(&copy, PAGES, w.data, w.len, error), 0);
    assert_int_equal(snapshot_index_get(&copy, 300, &crc), SNAPSHOT_PAGE_BYTES);
    assert_int_equal(crc, 77);
    assert_int_equal(snapshot_index_get(&copy, 301, NULL), SNAPSHOT_PAGE_ZERO);
    assert_int_equal(snapshot_index_get(&copy, 5, NULL), SNAPSHOT_PAGE_NONE);
    assert_int_equal(copy.byte_pages + copy.zero_pages, 2);
    snapshot_index_clear(&copy);
    snapshot_index_clear(&ix);
    for (size_t n = 0; n < w.len; n++)
        assert_index_refused(&w, n, n < 24 ? "is no list of pages" : "ends within");
    byte_write_u8(&w, 0);
    assert_index_refused(&w, w.len, "1 bytes too many");
    w.len--;
    w.data[8] = 2;
    assert_index_refused(&w, w.len, "format 2");
    w.data[8] = 1;
    w.data[16] = 1;
    assert_index_refused(&w, w.len, "pages of guest memory");
    w.data[16] = 0;
    w.data[12] = 3;
    assert_index_refused(&w, w.len, "3 chunks");
    w.data[12] = 2;
    assert_index_refused(&w, w.len, "ends within the chunk after 1");
    w.data[12] = 1;
    w.data[24] = 2;
    assert_index_refused(&w, w.len, "chunk 2 is beyond");
    w.data[24] = 1;
    /* Page 300 is bit 44 of the chunk. */
    w.data[28 + 32 + 5] |= 1 << 4;
    assert_index_refused(&w, w.len, "both zeros and bytes");
    byte_writer_clear(&w);
}

int main(void)
{
#define DISK_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc),
        DISK_TEST(test_full),
        DISK_TEST(test_random_chain),
        DISK_TEST(test_page_changes_kind),
        DISK_TEST(test_merge_keeps_owner),
        DISK_TEST(test_places),
        DISK_TEST(test_left_behind),
        DISK_TEST(test_damaged_files),
        DISK_TEST(test_damaged_memory),
        DISK_TEST(test_parents),
        DISK_TEST(test_paths_of_parents),
        DISK_TEST(test_long_paths),
        cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_metadata_round_trip),
        DISK_TEST(test_metadata_not_utf8),
        cmocka_unit_test(test_index),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
