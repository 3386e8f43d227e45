/* The HTTP server: what it takes, what it refuses, and what it does with those who do not play along. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/http.h"
#include "base/util.h"

#define PATIENCE_NS (20 * NSEC_PER_SEC)
#define BODY_SIZE (256u << 10)

struct fixture {
    struct event_base *events;
    struct http_server *server;
    int listener;
    unsigned int port, requests, closed;
    struct http_connection *stream, *held;
    char body[BODY_SIZE];
};

static void on_closed(void *opaque, struct http_connection *c)
{
    struct fixture *f = opaque;

    f->closed++;
    if (f->stream == c)
        f->stream = NULL;
    if (f->held == c)
        f->held = NULL;
}

static void on_request(void *opaque, struct http_connection *c, const struct http_request *r)
{
    struct fixture *f = opaque;

    f->requests++;
    if (strcmp(r->path, "/large") == 0) {
        http_reply(c, 200, "text/plain", NULL, f->body, sizeof(f->body));
    } else if (strcmp(r->path, "/stream") == 0) {
        http_on_close(c, on_closed, f);
        http_stream(c);
        f->stream = c;
    } else if (strcmp(r->path, "/held") == 0) {
        http_on_close(c, on_closed, f);
        f->held = c;
    } else {
        http_reply(c, 200, "text/plain", "X-Test: 1\r\n", r->query, strlen(r->query));
    }
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct sockaddr_storage addr;
    socklen_t len;

    assert_non_null(f);
    memset(f->body, 'x', sizeof(f->body));
    f->events = event_base_new();
    assert_int_equal(http_server_new(f->events, on_request, f, &f->server), 0);
    assert_int_equal(http_parse_address("127.0.0.1:0", &addr, &len), 0);
    f->listener = http_listen(&addr, len);
    assert_true(f->listener >= 0);
    assert_int_equal(http_server_serve(f->server, f->listener), 0);
    f->port = http_port(f->listener);
    assert_true(f->port > 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    http_server_free(f->server);
    fd_close(f->listener);
    event_base_free(f->events);
    free(f);
    return 0;
}

static int dial(struct fixture *f)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)f->port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(fd_set_nonblock(fd, 1), 0);
    return fd;
}

static void send_text(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* Read to the end, or until `want` has come; the caller's. */
static char *receive(struct fixture *f, int fd, const char *want)
{
    uint64_t end = clock_ns() + PATIENCE_NS;
    size_t len = 0, cap = BODY_SIZE + 4096;
    char *buf = calloc(1, cap);

    assert_non_null(buf);
    for (;;) {
        ssize_t n = recv(fd, buf + len, cap - len - 1, 0);

        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return buf;
        if (n > 0) {
            len += (size_t)n;
            if (want && strstr(buf, want))
                return buf;
            continue;
        }
        assert_int_equal(errno, EAGAIN);
        assert_true(clock_ns() < end);
        event_base_loop(f->events, EVLOOP_NONBLOCK);
    }
}

static void expect(struct fixture *f, const char *request, const char *start, const char *part)
{
    int fd = dial(f);
    char *answer;

    send_text(fd, request);
    answer = receive(f, fd, NULL);
    if (strncmp(answer, start, strlen(start)) != 0 || !strstr(answer, part))
        fail_msg("%.60s: %s", request, answer);
    free(answer);
    close(fd);
}

static void test_answers(void **state)
{
    struct fixture *f = *state;
    char *answer;
    int fd;

    expect(f, "GET /x?a=1 HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 200 OK\r\n", "Content-Length: 3\r\n\r\na=1");
    expect(f, "GET /x HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "X-Test: 1\r\n");
    expect(f, "HEAD /large HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n", "Content-Length: 262144\r\n\r\n");
    /* In pieces. */
    fd = dial(f);
    send_text(fd, "GET /large HT");
    event_base_loop(f->events, EVLOOP_NONBLOCK);
    send_text(fd, "TP/1.1\r\n");
    event_base_loop(f->events, EVLOOP_NONBLOCK);
    send_text(fd, "\r\n");
    answer = receive(f, fd, NULL);
    assert_int_equal(strlen(strstr(answer, "\r\n\r\n") + 4), BODY_SIZE);
    free(answer);
    close(fd);
    assert_int_equal(http_server_connections(f->server), 0);
}

static void test_refused(void **state)
{
    struct fixture *f = *state;
    char long_path[HTTP_MAX_PATH + 64], long_header[HTTP_MAX_HEADER + 64];
    unsigned int before = f->requests;

    expect(f, "POST /x HTTP/1.1\r\n\r\n", "HTTP/1.1 405 ", "Allow: GET, HEAD\r\n");
    expect(f, "GET /x HTTP/2.0\r\n\r\n", "HTTP/1.1 505 ", "\r\n\r\n505 ");
    expect(f, "GET x HTTP/1.1\r\n\r\n", "HTTP/1.1 400 ", "");
    expect(f, "GET /%0 HTTP/1.1\r\n\r\n", "HTTP/1.1 400 ", "");
    expect(f, "GET /%00 HTTP/1.1\r\n\r\n", "HTTP/1.1 400 ", "");
    expect(f, "GET /\t HTTP/1.1\r\n\r\n", "HTTP/1.1 400 ", "");
    expect(f, "GET / HTTP/1.1\r\nbad header: x\r\n\r\n", "HTTP/1.1 400 ", "");
    expect(f, "GET / HTTP/1.1\r\nno colon\r\n\r\n", "HTTP/1.1 400 ", "");
    expect(f, "GET / HTTP/1.1\r\nh: \x01\r\n\r\n", "HTTP/1.1 400 ", "");
    expect(f, "\r\n\r\n", "HTTP/1.1 400 ", "");
    snprintf(long_path, sizeof(long_path), "GET /%0*d HTTP/1.1\r\n\r\n", HTTP_MAX_PATH, 0);
    expect(f, long_path, "HTTP/1.1 414 ", "");
    snprintf(long_header, sizeof(long_header), "GET / HTTP/1.1\r\nh: %0*d", HTTP_MAX_HEADER - 19, 0);
    expect(f, long_header, "HTTP/1.1 431 ", "");
    assert_int_equal(f->requests, before);
}

/* More than there is room for: the rest wait, and all are served. Those who hold a place give it up after a while. */
static void test_many(void **state)
{
    struct fixture *f = *state;
    int fds[HTTP_MAX_CONNECTIONS * 3];

    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = dial(f);
    for (int i = 0; i < 10; i++)
        event_base_loop(f->events, EVLOOP_NONBLOCK);
    assert_int_equal(http_server_connections(f->server), HTTP_MAX_CONNECTIONS);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        send_text(fds[i], "GET /x?y HTTP/1.1\r\n\r\n");
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        char *answer = receive(f, fds[i], NULL);

        assert_memory_equal(answer, "HTTP/1.1 200", 12);
        free(answer);
        close(fds[i]);
    }
    assert_int_equal(http_server_connections(f->server), 0);
}

/* Somebody asks and never reads, somebody connects and never asks, somebody goes before the answer. */
static void test_silent(void **state)
{
    struct fixture *f = *state;
    int reader = dial(f), mute = dial(f), gone = dial(f), size = 4096;
    uint64_t end;

    setsockopt(reader, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    send_text(reader, "GET /large HTTP/1.1\r\n\r\n");
    send_text(gone, "GET /held HTTP/1.1\r\n\r\n");
    while (!f->held)
        event_base_loop(f->events, EVLOOP_ONCE);
    assert_int_equal(http_server_connections(f->server), 3);
    expect(f, "GET /x HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n", "");
    close(gone);
    /* HTTP_DEADLINE_SECONDS later they are gone. */
    end = clock_ns() + 2 * PATIENCE_NS;
    while (http_server_connections(f->server) > 0) {
        assert_true(clock_ns() < end);
        event_base_loop(f->events, EVLOOP_ONCE);
    }
    assert_null(f->held);
    assert_int_equal(f->closed, 1);
    close(reader);
    close(mute);
}

static void test_stream(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f), sent = 0;
    char *answer;

    send_text(fd, "GET /stream HTTP/1.1\r\n\r\n");
    answer = receive(f, fd, "\r\n\r\n");
    assert_non_null(strstr(answer, "Content-Type: text/event-stream\r\n"));
    free(answer);
    assert_true(http_stream_send(f->stream, "data: 1\n\n", 9));
    answer = receive(f, fd, "data: 1\n\n");
    free(answer);
    /* Nobody reads: messages are left out, whole ones, and the server lives on. */
    while (sent < 1000 && http_stream_send(f->stream, f->body, sizeof(f->body))) {
        event_base_loop(f->events, EVLOOP_NONBLOCK);
        sent++;
    }
    assert_in_range(sent, 4, 999);
    expect(f, "GET /x HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n", "");
    close(fd);
    while (f->stream)
        event_base_loop(f->events, EVLOOP_ONCE);
    assert_int_equal(f->closed, 1);
}

/* The server ends while connections are in every state. */
static void test_end(void **state)
{
    struct fixture *f = *state;
    int a = dial(f), b = dial(f), c = dial(f);

    send_text(a, "GET /stream HTTP/1.1\r\n\r\n");
    send_text(b, "GET /held HTTP/1.1\r\n\r\n");
    while (!f->stream || !f->held)
        event_base_loop(f->events, EVLOOP_ONCE);
    http_server_free(f->server);
    f->server = NULL;
    assert_int_equal(f->closed, 2);
    close(a);
    close(b);
    close(c);
}

static void test_addresses(void **state)
{
    static const char *const bad[] = {"", ":", "x", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
                                      "localhost:1", "::1:1", "[::1:1", "[1.2.3.4]:1", "1.2.3.4.5:1", " 127.0.0.1:1",
                                      "127.0.0.1:1 ", "[]:1"};
    struct sockaddr_storage addr;
    socklen_t len;

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        if (http_parse_address(bad[i], &addr, &len) != -EINVAL)
            fail_msg("\"%s\" is an address", bad[i]);
    assert_int_equal(http_parse_address("[::1]:9", &addr, &len), 0);
    assert_int_equal(addr.ss_family, AF_INET6);
    assert_int_equal(http_parse_address(":9", &addr, &len), 0);
    assert_int_equal(ntohs(((struct sockaddr_in6 *)&addr)->sin6_port), 9);
}

static void test_query(void **state)
{
    char v[8];

    assert_true(http_query_value("a=1&map=x%2dy&b", "map", v, sizeof(v)));
    assert_string_equal(v, "x-y");
    assert_true(http_query_value("map=", "map", v, sizeof(v)));
    assert_string_equal(v, "");
    assert_false(http_query_value("mapp=1", "map", v, sizeof(v)));
    assert_false(http_query_value("map=%0a", "map", v, sizeof(v)));
    assert_false(http_query_value("map=12345678", "map", v, sizeof(v)));
    assert_false(http_query_value("", "map", v, sizeof(v)));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_silent, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stream, setup, teardown),
        cmocka_unit_test_setup_teardown(test_end, setup, teardown),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_query),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
