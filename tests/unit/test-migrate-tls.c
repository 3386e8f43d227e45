/* Mutual TLS below a migration's stream: who is let in, and two threads at one connection. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "certificates.h"
#include "migrate/stream.h"

#define TIMEOUT_MS 20000

static char top[] = "/tmp/umbra-tls-XXXXXX";
static struct authority *ours, *theirs;

static void path_of(char path[128], const char *name)
{
    snprintf(path, 128, "%s/%s", top, name);
}

static void add(const char *name, struct authority *signer, struct authority *trusted, long seconds)
{
    char path[128];

    path_of(path, name);
    certificate_make(path, signer, trusted, name, seconds);
}

static const char *const hosts[] = {"one", "two", "old", "stranger", "trusting"};

static int make_all(void **state)
{
    assert_non_null(mkdtemp(top));
    ours = authority_new();
    theirs = authority_new();
    add("one", ours, ours, 3600);
    add("two", ours, ours, 3600);
    add("old", ours, ours, -60);
    add("stranger", theirs, ours, 3600);
    add("trusting", ours, theirs, 3600);
    return 0;
}

static int remove_all(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
        char path[128];

        path_of(path, hosts[i]);
        certificate_remove(path);
    }
    rmdir(top);
    authority_free(ours);
    authority_free(theirs);
    return 0;
}

static struct mig_tls *load(const char *name)
{
    struct mig_error err = {""};
    struct mig_tls *tls;
    char path[128];

    path_of(path, name);
    if (mig_tls_load(path, &tls, &err) < 0)
        fail_msg("%s", err.text);
    return tls;
}

/* -- both ends of a connection -- */

struct end {
    struct mig_stream stream;
    struct mig_tls *tls;
    const char *host;
    struct mig_error err;
    int result;
};

static void *secure(void *arg)
{
    struct end *e = arg;

    e->result = mig_stream_secure(&e->stream, e->tls, e->host, &e->err);
    /* As the daemon does: the other side hears of it. */
    if (e->result < 0)
        mig_stream_break(&e->stream);
    return NULL;
}

/* The source has `from`, expects the target to be `host`, which has `to`. */
static void meet(struct end ends[2], const char *from, const char *host, const char *to)
{
    pthread_t thread;
    int fds[2];

    memset(ends, 0, 2 * sizeof(ends[0]));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    for (int i = 0; i < 2; i++) {
        mig_stream_init(&ends[i].stream, fds[i], i == 0);
        mig_stream_set_timeout(&ends[i].stream, TIMEOUT_MS);
        ends[i].tls = load(i ? to : from);
        ends[i].host = i ? NULL : host;
    }
    assert_int_equal(pthread_create(&thread, NULL, secure, &ends[1]), 0);
    secure(&ends[0]);
    pthread_join(thread, NULL);
}

static void part(struct end ends[2])
{
    for (int i = 0; i < 2; i++) {
        mig_stream_clear(&ends[i].stream);
        mig_tls_free(ends[i].tls);
    }
}

static void test_who_is_let_in(void **state)
{
    static const struct {
        const char *from, *host, *to;
        const char *source, *target; /* what each says; NULL: it is let in */
    } rows[] = {
        {"one", NULL, "two", NULL, NULL},
        {"one", "two", "two", NULL, NULL},
        {"one", "three", "two", "hostname mismatch", ""},
        {"stranger", NULL, "two", "", "the other side's certificate"},
        {"one", NULL, "stranger", "the other side's certificate", ""},
        {"old", NULL, "two", "", "certificate has expired"},
        {"one", NULL, "old", "certificate has expired", ""},
        {"trusting", NULL, "two", "the other side's certificate", ""},
        {"one", NULL, "trusting", "", "the other side's certificate"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct end ends[2];

        meet(ends, rows[i].from, rows[i].host, rows[i].to);
        for (int side = 0; side < 2; side++) {
            const char *text = side ? rows[i].target : rows[i].source;

            if ((ends[side].result == 0) != !text || (text && !strstr(ends[side].err.text, text)))
                fail_msg("row %zu, side %d: %d, '%s'", i, side, ends[side].result, ends[side].err.text);
        }
        part(ends);
    }
}

static void test_bad_files(void **state)
{
    struct mig_error err = {""};
    struct mig_tls *tls = NULL;
    char path[128], from[160], to[160];

    assert_int_equal(mig_tls_load("/nonexistent", &tls, &err), -EINVAL);
    assert_non_null(strstr(err.text, "/nonexistent/ca.pem: No such file"));
    path_of(path, "mixed");
    certificate_make(path, ours, ours, "mixed", 3600);
    snprintf(from, sizeof(from), "%s/one/key.pem", top);
    snprintf(to, sizeof(to), "%s/key.pem", path);
    unlink(to);
    assert_int_equal(symlink(from, to), 0);
    err.text[0] = '\0';
    assert_int_equal(mig_tls_load(path, &tls, &err), -EINVAL);
    assert_non_null(strstr(err.text, "mixed/key.pem"));
    assert_null(tls);
    certificate_remove(path);
}

/* -- a connection that is used both ways at once -- */

#define FRAMES 300u

static void *answer(void *arg)
{
    struct end *e = arg;
    struct mig_frame f;

    for (unsigned int i = 0; i < FRAMES && e->result == 0; i++) {
        e->result = mig_receive(&e->stream, &f, &e->err);
        if (e->result == 0)
            e->result = mig_send_frame(&e->stream, MIG_FAILED, f.payload, f.length, &e->err);
    }
    return NULL;
}

static void *send_all(void *arg)
{
    struct end *e = arg;
    uint8_t text[MIG_TEXT_MAX];

    for (unsigned int i = 0; i < FRAMES; i++) {
        memset(text, (int)i, sizeof(text));
        if (mig_send_frame(&e->stream, MIG_CANCEL, text, 1 + i * 37 % sizeof(text), &e->err) < 0)
            break;
    }
    return NULL;
}

static void test_both_ways(void **state)
{
    pthread_t sender, answerer;
    struct mig_frame f;
    struct end ends[2];

    meet(ends, "one", "two", "two");
    assert_int_equal(pthread_create(&answerer, NULL, answer, &ends[1]), 0);
    assert_int_equal(pthread_create(&sender, NULL, send_all, &ends[0]), 0);
    for (unsigned int i = 0; i < FRAMES; i++) {
        struct mig_error err = {""};

        if (mig_receive(&ends[0].stream, &f, &err) < 0)
            fail_msg("frame %u: %s", i, err.text);
        assert_int_equal(f.length, 1 + i * 37 % MIG_TEXT_MAX);
        assert_int_equal(f.payload[f.length - 1], (uint8_t)i);
    }
    pthread_join(sender, NULL);
    pthread_join(answerer, NULL);
    assert_int_equal(ends[1].result, 0);
    part(ends);
}

static void test_ends(void **state)
{
    struct mig_error err = {""};
    struct mig_frame f;
    struct end ends[2];
    int fd;

    meet(ends, "one", NULL, "two");
    mig_stream_set_timeout(&ends[0].stream, 10);
    assert_int_equal(mig_receive(&ends[0].stream, &f, &err), -ETIMEDOUT);
    mig_stream_break(&ends[1].stream);
    err.text[0] = '\0';
    assert_int_equal(mig_receive(&ends[0].stream, &f, &err), -ECONNRESET);
    part(ends);

    /* A peer that says nothing. */
    {
        struct mig_tls *tls = load("one");
        struct mig_stream silent;
        int fds[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        mig_stream_init(&silent, fds[0], true);
        mig_stream_set_timeout(&silent, 20);
        err.text[0] = '\0';
        assert_int_equal(mig_stream_secure(&silent, tls, NULL, &err), -ETIMEDOUT);
        mig_stream_clear(&silent);
        close(fds[1]);
        mig_tls_free(tls);
    }

    /* No descriptor goes through it. */
    meet(ends, "one", NULL, "two");
    fd = dup(0);
    err.text[0] = '\0';
    assert_int_equal(mig_send(&ends[0].stream, &(struct mig_message){.type = MIG_COMMIT, .pass_fd = fd}, &err), -EINVAL);
    close(fd);
    part(ends);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_is_let_in),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_both_ways),
        cmocka_unit_test(test_ends),
    };

    log_init("test-migrate-tls", NULL);
    return cmocka_run_group_tests_name("migrate-tls", tests, make_all, remove_all);
}
