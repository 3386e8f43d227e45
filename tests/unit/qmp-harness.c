#include "config.h"

#include "qmp-harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/util.h"

/* Long enough for a sanitizer on a loaded machine; a test that gets here has failed. */
#define PATIENCE_NS (20 * NSEC_PER_SEC)

void fixture_init(struct fixture *f, const struct fake_options *options)
{
    f->events = event_base_new();
    assert_non_null(f->events);
    f->machine = fake_machine_new(f->events, options);
    assert_int_equal(qmp_server_new(f->events, f->machine, &f->server), 0);
    fake_machine_set_server(f->machine, f->server);
}

void fixture_clear(struct fixture *f)
{
    qmp_server_free(f->server);
    fake_machine_free(f->machine);
    event_base_free(f->events);
}

void fixture_run(struct fixture *f)
{
    /* What is due at once (a timer of zero) may come up one turn later. */
    for (int i = 0; i < 4; i++)
        event_base_loop(f->events, EVLOOP_NONBLOCK);
}

struct peer *peer_adopt(struct fixture *f, int fd)
{
    struct peer *p = calloc(1, sizeof(*p));

    assert_non_null(p);
    p->fixture = f;
    p->fd = fd;
    p->got_fd = -1;
    assert_int_equal(fd_set_nonblock(fd, 1), 0);
    return p;
}

struct peer *peer_new(struct fixture *f, bool read_only)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(qmp_server_add_client(f->server, fds[1], read_only), 0);
    return peer_adopt(f, fds[0]);
}

struct peer *peer_ready(struct fixture *f, bool read_only)
{
    struct peer *p = peer_new(f, read_only);
    json_t *greeting = peer_read(p);

    json_object_put(greeting);
    peer_expect(p, "{\"execute\":\"qmp_capabilities\"}", "{\"return\":{}}");
    return p;
}

void peer_free(struct peer *p)
{
    struct fixture *f = p->fixture;

    fd_close(p->fd);
    fd_close(p->got_fd);
    free(p->buf);
    free(p);
    fixture_run(f);
}

void peer_send_bytes(struct peer *p, const char *data, size_t len)
{
    uint64_t end = clock_ns() + PATIENCE_NS;

    while (len > 0) {
        ssize_t n = send(p->fd, data, len, MSG_NOSIGNAL);

        if (n < 0) {
            assert_int_equal(errno, EAGAIN);
            assert_true(clock_ns() < end);
            event_base_loop(p->fixture->events, EVLOOP_NONBLOCK);
            continue;
        }
        data += n;
        len -= (size_t)n;
    }
}

void peer_send(struct peer *p, const char *text)
{
    peer_send_bytes(p, text, strlen(text));
}

/* Read what is there; false at the end of the stream. */
static bool receive(struct peer *p)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov;
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof(control.buf)};
    ssize_t n;

    if (p->cap - p->len < 65536) {
        p->cap = p->cap * 2 + 65536;
        p->buf = realloc(p->buf, p->cap);
        assert_non_null(p->buf);
    }
    iov = (struct iovec){.iov_base = p->buf + p->len, .iov_len = p->cap - p->len - 1};
    n = recvmsg(p->fd, &msg, MSG_CMSG_CLOEXEC);
    if (n < 0) {
        assert_true(errno == EAGAIN || errno == ECONNRESET);
        return errno == EAGAIN;
    }
    if (msg.msg_controllen > 0 && CMSG_FIRSTHDR(&msg)) {
        assert_int_equal(p->got_fd, -1);
        memcpy(&p->got_fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
    }
    p->len += (size_t)n;
    return n > 0;
}

static char *take_line(struct peer *p)
{
    char *end = p->len ? memchr(p->buf, '\n', p->len) : NULL, *line;
    size_t n;

    if (!end)
        return NULL;
    n = (size_t)(end - p->buf) + 1;
    line = strndup(p->buf, n);
    assert_non_null(line);
    memmove(p->buf, p->buf + n, p->len - n);
    p->len -= n;
    return line;
}

char *peer_poll(struct peer *p)
{
    receive(p);
    return take_line(p);
}

char *peer_line(struct peer *p)
{
    uint64_t end = clock_ns() + PATIENCE_NS;
    char *line;

    while (!(line = take_line(p))) {
        event_base_loop(p->fixture->events, EVLOOP_NONBLOCK);
        if (!receive(p))
            return NULL;
        assert_true(clock_ns() < end);
    }
    return line;
}

json_t *peer_read(struct peer *p)
{
    _cleanup_free_ char *line = peer_line(p);
    enum json_tokener_error e;
    json_t *o;
    size_t n;

    assert_non_null(line);
    n = strlen(line);
    assert_true(n > 2);
    assert_string_equal(line + n - 2, "\r\n");
    for (size_t i = 0; i < n - 2; i++)
        assert_in_range((unsigned char)line[i], ' ', 0x7f);
    o = json_tokener_parse_verbose(line, &e);
    assert_int_equal(e, json_tokener_success);
    assert_true(json_object_is_type(o, json_type_object));
    return o;
}

void peer_expect_end(struct peer *p)
{
    _cleanup_free_ char *line = peer_line(p);

    if (line)
        fail_msg("not the end of the stream: %s", line);
}

json_t *peer_call(struct peer *p, const char *request)
{
    peer_send(p, request);
    return peer_read(p);
}

void peer_expect_next(struct peer *p, const char *answer)
{
    _cleanup_json_ json_t *got = peer_read(p), *want = json_tokener_parse(answer);

    if (!json_object_equal(got, want))
        fail_msg("got %s\nwant %s", json_object_to_json_string(got), json_object_to_json_string(want));
}

void peer_expect(struct peer *p, const char *request, const char *answer)
{
    peer_send(p, request);
    peer_expect_next(p, answer);
}

void peer_expect_error(struct peer *p, const char *request, const char *class, const char *desc)
{
    _cleanup_json_ json_t *got = peer_call(p, request);
    const char *got_class, *got_desc;
    json_t *error;

    if (json_get_obj(got, "error", &error) < 0)
        fail_msg("%s: no error but %s", request, json_object_to_json_string(got));
    assert_int_equal(json_get_str(error, "class", &got_class), 0);
    assert_int_equal(json_get_str(error, "desc", &got_desc), 0);
    if (strcmp(got_class, class) != 0 || strcmp(got_desc, desc) != 0)
        fail_msg("%.200s\ngot  %s: %s\nwant %s: %s", request, got_class, got_desc, class, desc);
}

/* -- env --------------------------------------------------------------------- */

int env_setup(void **state, const struct fake_options *options)
{
    struct env *e = calloc(1, sizeof(*e));

    assert_non_null(e);
    fixture_init(&e->f, options);
    e->p = peer_ready(&e->f, false);
    *state = e;
    return 0;
}

int env_teardown(void **state)
{
    struct env *e = *state;

    peer_free(e->p);
    fixture_clear(&e->f);
    free(e);
    return 0;
}

#define REQUEST_MAX 1024

static const char *request_of(char buf[REQUEST_MAX], const char *command, const char *arguments)
{
    assert_true(snprintf(buf, REQUEST_MAX, "{'execute':'%s','arguments':%s}", command, arguments) < REQUEST_MAX);
    return buf;
}

json_t *env_call(struct env *e, const char *command, const char *arguments)
{
    char request[REQUEST_MAX];

    return peer_call(e->p, request_of(request, command, arguments));
}

void env_expect(struct env *e, const char *command, const char *arguments, const char *answer)
{
    char request[REQUEST_MAX];

    peer_expect(e->p, request_of(request, command, arguments), answer);
}

void env_expect_error(struct env *e, const char *command, const char *arguments, const char *desc)
{
    char request[REQUEST_MAX];

    peer_expect_error(e->p, request_of(request, command, arguments), "GenericError", desc);
}

uint64_t env_number(const json_t *answer, const char *key)
{
    json_t *value;
    uint64_t v = 0;

    assert_int_equal(json_get_obj(answer, "return", &value), 0);
    assert_int_equal(json_get_u64(value, key, &v), 0);
    return v;
}
