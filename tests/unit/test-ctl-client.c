/* vmctl's QMP client against the other end of a socket pair, which says what a daemon, good or bad, may say. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "ctl/client.h"

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"

struct pair {
    struct client *client;
    int peer;
};

static int setup(void **state)
{
    struct pair *p = calloc(1, sizeof(*p));
    struct failure f;
    int fds[2];

    if (!p || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return -1;
    p->peer = fds[1];
    *state = p;
    return client_adopt(fds[0], &p->client, &f);
}

static int teardown(void **state)
{
    struct pair *p = *state;

    client_close(p->client);
    fd_close(p->peer);
    free(p);
    return 0;
}

static void say(const struct pair *p, const char *text)
{
    assert_int_equal(fd_write_all(p->peer, text, strlen(text)), 0);
}

/* What the client has sent so far. */
static const char *heard(const struct pair *p, char *buf, size_t len)
{
    ssize_t n = recv(p->peer, buf, len - 1, MSG_DONTWAIT);

    buf[n > 0 ? n : 0] = '\0';
    return buf;
}

static void test_negotiation(void **state)
{
    struct pair *p = *state;
    struct failure f = {0};
    char buf[256];

    say(p, GREETING "{\"return\": {}}\r\n");
    assert_int_equal(client_negotiate(p->client, 1000, &f), 0);
    assert_string_equal(heard(p, buf, sizeof(buf)), "{\"execute\":\"qmp_capabilities\"}\n");
    assert_int_equal(client_pid(p->client), getpid());
}

static void test_call(void **state)
{
    struct pair *p = *state;
    _cleanup_json_ json_t *value = NULL;
    json_t *arguments = json_object_new_object();
    struct failure f = {0};
    char buf[256];
    uint64_t epoch = 0;

    json_add_str(arguments, "name", "caf\xc3\xa9");
    say(p, "{\"return\": {\"epoch\": 7}, \"id\": 1}\n");
    assert_int_equal(client_call(p->client, "x", arguments, 1000, &value, NULL, &f), 0);
    assert_int_equal(json_get_u64(value, "epoch", &epoch), 0);
    assert_int_equal(epoch, 7);
    assert_string_equal(heard(p, buf, sizeof(buf)),
                        "{\"execute\":\"x\",\"arguments\":{\"name\":\"caf\\u00e9\"}}\n");
}

/* A message may come in any number of pieces, cut anywhere. */
static void test_pieces(void **state)
{
    static const char text[] = "{\"return\": {\"a\\u0041\": [1, 2.5, \"}\\\"{\"], \"b\": null}}\r\n{\"event\": \"X\"}\n";
    struct pair *p = *state;
    struct failure f = {0};
    json_t *message = NULL;
    int messages = 0;

    for (size_t i = 0; i < strlen(text); i++) {
        int r;

        assert_int_equal(fd_write_all(p->peer, text + i, 1), 0);
        r = client_receive(p->client, 0, &message, &f);
        assert_true(r == 0 || r == 1);
        if (r == 0) {
            messages++;
            assert_int_equal(text[i], '}');
            json_object_put(message);
        }
    }
    assert_int_equal(messages, 2);
}

static void count_event(void *opaque, const char *name, const json_t *event)
{
    char *seen = opaque;

    strcat(seen, name);
    strcat(seen, " ");
}

static void test_events_between(void **state)
{
    struct pair *p = *state;
    _cleanup_json_ json_t *value = NULL;
    struct failure f = {0};
    char seen[64] = "";

    client_on_event(p->client, count_event, seen);
    say(p, "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"event\": \"RESUME\"}{\"return\": [1]}\n{\"event\": \"RESET\"}\n");
    assert_int_equal(client_call(p->client, "x", NULL, 1000, &value, NULL, &f), 0);
    assert_int_equal(json_object_array_length(value), 1);
    assert_string_equal(seen, "STOP RESUME ");
}

static void test_refusal(void **state)
{
    struct pair *p = *state;
    json_t *value = NULL;
    struct failure f = {0};

    say(p, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such consumer\"}}\n");
    assert_int_equal(client_call(p->client, "x", NULL, 1000, &value, NULL, &f), -1);
    assert_int_equal(f.kind, FAILURE_REFUSED);
    assert_string_equal(f.text, "no such consumer");
    assert_null(value);
}

/* The connection goes on being of use after a refusal. */
static void test_after_refusal(void **state)
{
    struct pair *p = *state;
    struct failure f = {0};

    say(p, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n{\"return\": {}}\n");
    assert_int_equal(client_call(p->client, "x", NULL, 1000, NULL, NULL, &f), -1);
    assert_int_equal(client_call(p->client, "y", NULL, 1000, NULL, NULL, &f), 0);
}

static void test_silence(void **state)
{
    struct pair *p = *state;
    struct failure f = {0};

    assert_int_equal(client_negotiate(p->client, 30, &f), -1);
    assert_int_equal(f.kind, FAILURE_TIMEOUT);
}

/* A daemon that reads nothing: a large request cannot be sent, and that ends, too. */
static void test_deaf(void **state)
{
    struct pair *p = *state;
    struct failure f = {0};
    size_t len = 8u << 20;
    char *text = calloc(1, len);

    assert_non_null(text);
    assert_int_equal(client_send_text(p->client, text, len, 30, &f), -1);
    assert_int_equal(f.kind, FAILURE_TIMEOUT);
    free(text);
}

static void test_gone(void **state)
{
    static const struct {
        const char *said, *text;
    } cases[] = {
        {"", "the daemon closed the connection"},
        {"{\"return\": {\"a\"", "the daemon closed the connection in the middle of an answer"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        void *s = NULL;
        struct pair *p;
        struct failure f = {0};

        assert_int_equal(setup(&s), 0);
        p = s;
        say(p, cases[i].said);
        shutdown(p->peer, SHUT_WR);
        assert_int_equal(client_call(p->client, "x", NULL, 1000, NULL, NULL, &f), -1);
        assert_int_equal(f.kind, FAILURE_GONE);
        assert_string_equal(f.text, cases[i].text);
        /* And when nobody reads either. */
        p->peer = fd_close(p->peer);
        assert_int_equal(client_send(p->client, "x", NULL, 1000, &f), -1);
        assert_int_equal(f.kind, FAILURE_GONE);
        teardown(&s);
    }
}

static void test_not_qmp(void **state)
{
    static const char *const said[] = {
        "SSH-2.0-OpenSSH\r\n", "[1]\n", "{\"return\": }\n", "{\"foo\": 1}\n", "{\"error\": 3}\n",
        /* Deeper than anything the daemon says. */
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    };

    for (size_t i = 0; i < ARRAY_SIZE(said); i++) {
        void *s = NULL;
        struct pair *p;
        struct failure f = {0};

        print_message("# %s\n", said[i]);
        assert_int_equal(setup(&s), 0);
        p = s;
        say(p, said[i]);
        assert_int_equal(client_call(p->client, "x", NULL, 1000, NULL, NULL, &f), -1);
        assert_int_equal(f.kind, FAILURE_PROTOCOL);
        teardown(&s);
    }
}

static void test_no_room(void **state)
{
    struct pair *p = *state;
    struct failure f = {0};

    say(p, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"too many clients\"}}\n");
    assert_int_equal(client_negotiate(p->client, 1000, &f), -1);
    assert_int_equal(f.kind, FAILURE_REFUSED);
    assert_string_equal(f.text, "too many clients");
}

#define HUGE_BYTES (3u << 20)

static void *say_huge(void *arg)
{
    struct pair *p = arg;
    char *text = malloc(HUGE_BYTES);

    memset(text, 'x', HUGE_BYTES);
    memcpy(text, "{\"return\": \"", 12);
    memcpy(text + HUGE_BYTES - 3, "\"}\n", 3);
    fd_write_all(p->peer, text, HUGE_BYTES);
    free(text);
    return NULL;
}

static void test_huge_answer(void **state)
{
    struct pair *p = *state;
    _cleanup_json_ json_t *value = NULL;
    struct failure f = {0};
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, say_huge, p), 0);
    assert_int_equal(client_call(p->client, "x", NULL, 20000, &value, NULL, &f), 0);
    pthread_join(thread, NULL);
    assert_int_equal(json_object_get_string_len(value), HUGE_BYTES - 15);
}

static void say_with_fd(const struct pair *p, const char *text, const int *fds, size_t count)
{
    union {
        char space[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {(void *)(uintptr_t)text, strlen(text)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.space,
                         .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *m = CMSG_FIRSTHDR(&msg);

    m->cmsg_level = SOL_SOCKET;
    m->cmsg_type = SCM_RIGHTS;
    m->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(m), fds, count * sizeof(int));
    assert_int_equal(sendmsg(p->peer, &msg, 0), iov.iov_len);
}

static int open_count(void)
{
    int n = 0;

    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void test_descriptor(void **state)
{
    struct pair *p = *state;
    struct failure f = {0};
    int fds[2] = {memfd_create("a", 0), memfd_create("b", 0)}, got = -1, before;
    char buf[8] = "";

    assert_int_equal(write(fds[0], "hello", 6), 6);
    before = open_count();
    /* Between events, cut in two, and one descriptor more than is wanted, which must not stay open. */
    say(p, "{\"event\": \"A\"}\n");
    say_with_fd(p, "{\"return\"", fds, 2);
    say(p, ": {}}\n{\"event\": \"B\"}\n");
    assert_int_equal(client_call(p->client, "x", NULL, 1000, NULL, &got, &f), 0);
    assert_true(got >= 0);
    assert_int_equal(open_count(), before + 1);
    assert_int_equal(fcntl(got, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    assert_int_equal(fd_pread_all(got, buf, 6, 0), 0);
    assert_string_equal(buf, "hello");
    close(got);
    /* An answer that nobody wants a descriptor of, and one with a refusal: nothing is left open. */
    say_with_fd(p, "{\"return\": {}}\n", fds, 1);
    assert_int_equal(client_call(p->client, "x", NULL, 1000, NULL, NULL, &f), 0);
    say_with_fd(p, "{\"error\": {\"desc\": \"no\"}}\n", fds, 1);
    assert_int_equal(client_call(p->client, "x", NULL, 1000, NULL, &got, &f), -1);
    assert_int_equal(open_count(), before);
    close(fds[0]);
    close(fds[1]);
}

static void test_connect_errors(void **state)
{
    struct client *c = NULL;
    struct failure f = {0};
    char longer[200];

    assert_int_equal(client_connect("/nonexistent/control.sock", &c, &f), -1);
    assert_int_equal(f.kind, FAILURE_NO_VM);
    memset(longer, 'a', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    assert_int_equal(client_connect(longer, &c, &f), -1);
    assert_int_equal(f.kind, FAILURE_LOCAL);
    assert_null(c);
}

int main(void)
{
#define PAIR_TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
    static const struct CMUnitTest tests[] = {
        PAIR_TEST(test_negotiation),
        PAIR_TEST(test_call),
        PAIR_TEST(test_pieces),
        PAIR_TEST(test_events_between),
        PAIR_TEST(test_refusal),
        PAIR_TEST(test_after_refusal),
        PAIR_TEST(test_silence),
        PAIR_TEST(test_deaf),
        cmocka_unit_test(test_gone),
        cmocka_unit_test(test_not_qmp),
        PAIR_TEST(test_no_room),
        PAIR_TEST(test_huge_answer),
        PAIR_TEST(test_descriptor),
        cmocka_unit_test(test_connect_errors),
    };

    return cmocka_run_group_tests_name("ctl-client", tests, NULL, NULL);
}
