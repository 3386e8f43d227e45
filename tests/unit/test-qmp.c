/* The control server: protocol, limits and slow clients, over a machine without KVM. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"
#include "daemon/qmp-server-internal.h"
#include "qmp-harness.h"

#define GENERIC "GenericError"
#define NOT_FOUND "CommandNotFound"
#define STATUS "{\"execute\":\"query-status\"}"
#define STATUS_ANSWER "{\"return\":{\"status\":\"running\",\"singlestep\":false,\"running\":true}}"

static int setup(void **state)
{
    static const struct fake_options options = {.memory = 4 * MiB, .cpus = 2, .backend = DIRTY_BITMAP};
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    fixture_init(f, &options);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture_clear(*state);
    free(*state);
    return 0;
}

/* -- protocol ---------------------------------------------------------------- */

static void test_negotiation(void **state)
{
    struct peer *p = peer_new(*state, false);

    peer_expect_next(p, "{'QMP':{'version':{'qemu':{'major':7,'minor':2,'micro':0},"
                        "'package':'" PACKAGE_NAME " " PACKAGE_VERSION "'},'capabilities':[]}}");
    peer_expect_error(p, STATUS, NOT_FOUND, "Expecting capabilities negotiation with 'qmp_capabilities'");
    peer_expect_error(p, "{\"execute\":\"nope\"}", NOT_FOUND,
                      "Expecting capabilities negotiation with 'qmp_capabilities'");
    peer_expect_error(p, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}", GENERIC,
                      "Capability oob is not available");
    peer_expect_error(p, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[1]}}", GENERIC,
                      "Invalid parameter type for 'enable[0]', expected: string");
    peer_expect_error(p, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":1}}", GENERIC,
                      "Invalid parameter type for 'enable', expected: array");
    peer_expect_error(p, STATUS, NOT_FOUND, "Expecting capabilities negotiation with 'qmp_capabilities'");
    peer_expect(p, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[]}}", "{\"return\":{}}");
    peer_expect_error(p, "{\"execute\":\"qmp_capabilities\"}", NOT_FOUND,
                      "Capabilities negotiation is already complete, command ignored");
    peer_expect(p, STATUS, STATUS_ANSWER);
    peer_free(p);
}

static void test_id(void **state)
{
    static const char *const ids[] = {
        "1",    "-1",   "1.50",               "1e3",         "\"x\"",                "\"\"",
        "null", "true", "[1,{\"a\":null}]", "{\"b\":[]}", "18446744073709551615", "\"\\u00e9\\\"\"",
    };
    struct peer *p = peer_ready(*state, false);

    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        char request[128], answer[192], *line;

        snprintf(request, sizeof(request), "{\"id\":%s,\"execute\":\"query-name\"}", ids[i]);
        snprintf(answer, sizeof(answer), "{\"return\":{\"name\":\"fake\"},\"id\":%s}\r\n", ids[i]);
        peer_send(p, request);
        line = peer_line(p);
        assert_string_equal(line, answer);
        free(line);
        snprintf(request, sizeof(request), "{\"id\":%s,\"execute\":\"nope\"}", ids[i]);
        snprintf(answer, sizeof(answer),
                 "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"The command nope has not been found\"},\"id\":%s}\r\n",
                 ids[i]);
        peer_send(p, request);
        line = peer_line(p);
        assert_string_equal(line, answer);
        free(line);
    }
    peer_free(p);
}

static void test_bad_requests(void **state)
{
    static const struct {
        const char *request, *class, *desc;
    } cases[] = {
        {"[]", GENERIC, "QMP input must be a JSON object"},
        {"7\n", GENERIC, "QMP input must be a JSON object"},
        {"{}", GENERIC, "QMP input lacks member 'execute'"},
        {"{\"execute\":7}", GENERIC, "QMP input member 'execute' must be a string"},
        {"{\"execute\":null}", GENERIC, "QMP input member 'execute' must be a string"},
        {"{\"foo\":1}", GENERIC, "QMP input member 'foo' is unexpected"},
        {"{\"execute\":\"query-status\",\"x\":1}", GENERIC, "QMP input member 'x' is unexpected"},
        {"{\"exec-oob\":\"query-status\"}", GENERIC, "QMP input member 'exec-oob' is unexpected"},
        {"{\"execute\":\"query-status\",\"arguments\":[]}", GENERIC, "QMP input member 'arguments' must be an object"},
        {"{\"execute\":\"query-status\",\"arguments\":null}", GENERIC, "QMP input member 'arguments' must be an object"},
        {"{\"execute\":\"query-status\",\"arguments\":{\"foo\":1}}", GENERIC, "Parameter 'foo' is unexpected"},
        {"{\"execute\":\"nope\"}", NOT_FOUND, "The command nope has not been found"},
        {"{\"execute\":\"\"}", NOT_FOUND, "The command  has not been found"},
        {"{\"execute\":\"Query-status\"}", NOT_FOUND, "The command Query-status has not been found"},
        {"{\"execute\":\"calc-dirty-rate\"}", GENERIC, "Parameter 'calc-time' is missing"},
        {"{\"execute\":\"calc-dirty-rate\",\"arguments\":{\"calc-time\":\"x\"}}", GENERIC,
         "Invalid parameter type for 'calc-time', expected: integer"},
        {"{\"execute\":\"calc-dirty-rate\",\"arguments\":{\"calc-time\":1.5}}", GENERIC,
         "Invalid parameter type for 'calc-time', expected: integer"},
        {"{\"execute\":\"calc-dirty-rate\",\"arguments\":{\"calc-time\":0}}", GENERIC,
         "Parameter 'calc-time' is 0, out of range (1 to 60)"},
        {"{\"execute\":\"calc-dirty-rate\",\"arguments\":{\"calc-time\":18446744073709551615}}", GENERIC,
         "Parameter 'calc-time' is 18446744073709551615, out of range (1 to 60)"},
        {"{\"execute\":\"dirty-log-ack\",\"arguments\":{\"name\":\"x\",\"epoch\":-1}}", GENERIC,
         "Parameter 'epoch' is -1, out of range (0 to 9223372036854775807)"},
        {"{\"execute\":\"dirty-log-ack\",\"arguments\":{\"name\":\"x\",\"epoch\":9223372036854775808}}", GENERIC,
         "Parameter 'epoch' is 9223372036854775808, out of range (0 to 9223372036854775807)"},
        {"{\"execute\":\"calc-dirty-rate\",\"arguments\":{\"calc-time\":1,\"mode\":\"foo\"}}", GENERIC,
         "Parameter 'mode' does not accept value 'foo'"},
        {"{\"execute\":\"dirty-log-snapshot\",\"arguments\":{\"name\":\"x\",\"peek\":1}}", GENERIC,
         "Invalid parameter type for 'peek', expected: boolean"},
        {"{\"execute\":\"query-status\"]\n", GENERIC, "JSON parse error, unexpected ']' after a value"},
        {"{\"execute\":\"\xff\"}\n", GENERIC, "JSON parse error, byte 0xff in a string"},
    };
    struct peer *p = peer_ready(*state, false);

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        peer_expect_error(p, cases[i].request, cases[i].class, cases[i].desc);
    peer_expect(p, "{'execute':'query-status'}", STATUS_ANSWER);
    peer_free(p);
}

/* peer_read refuses a byte that is not ASCII. */
static void test_ascii_output(void **state)
{
    struct peer *p = peer_ready(*state, false);
    char request[2048] = "{\"execute\":\"";

    peer_expect_error(p, "{\"execute\":\"caf\xc3\xa9\xf0\x9f\x98\x80\"}", NOT_FOUND,
                      "The command caf\xc3\xa9\xf0\x9f\x98\x80 has not been found");
    /* A long name is cut, between two bytes of a character too. */
    for (int i = 0; i < 100; i++)
        strcat(request, "\xe2\x82\xac");
    strcat(request, "\"}");
    json_object_put(peer_call(p, request));
    peer_expect(p, STATUS, STATUS_ANSWER);
    peer_free(p);
}

static void test_half_sent(void **state)
{
    struct peer *half = peer_ready(*state, false), *other = peer_ready(*state, false);

    peer_send(half, "{\"execute\":");
    peer_expect(other, STATUS, STATUS_ANSWER);
    assert_null(peer_poll(half));
    peer_send(half, "\"query-");
    fixture_run(*state);
    assert_null(peer_poll(half));
    peer_expect(half, "status\"}", STATUS_ANSWER);
    for (const char *c = STATUS; *c; c++) {
        peer_send_bytes(half, c, 1);
        fixture_run(*state);
    }
    peer_expect_next(half, STATUS_ANSWER);

    peer_send(half, "{\"execute\":");
    peer_expect_error(half, "\xff", GENERIC, "JSON parse error, byte 0xff where a value should be");
    peer_expect(half, STATUS, STATUS_ANSWER);
    peer_free(half);
    peer_free(other);
}

static void test_end_of_input(void **state)
{
    struct peer *p = peer_ready(*state, false);

    /* All that was asked is answered after the client closed its side. */
    peer_send(p, STATUS STATUS "\n" STATUS);
    shutdown(p->fd, SHUT_WR);
    for (int i = 0; i < 3; i++)
        peer_expect_next(p, STATUS_ANSWER);
    peer_expect_end(p);
    peer_free(p);

    p = peer_ready(*state, false);
    peer_send(p, "{\"execute\":\"que");
    shutdown(p->fd, SHUT_WR);
    peer_expect_next(p, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"the input ends in the middle of a request, "
                        "after 15 bytes of it\"}}");
    peer_expect_end(p);
    peer_free(p);
}

static void test_events(void **state)
{
    struct peer *before = peer_new(*state, false), *first = peer_ready(*state, false), *ro = peer_ready(*state, true);
    _cleanup_json_ json_t *event = NULL;
    const char *name;
    json_t *stamp, *data;
    uint64_t v;

    peer_send(first, "{\"execute\":\"stop\"}");
    event = peer_read(first);
    assert_int_equal(json_get_str(event, "event", &name), 0);
    assert_string_equal(name, "STOP");
    assert_int_equal(json_get_obj(event, "timestamp", &stamp), 0);
    assert_int_equal(json_get_u64(stamp, "seconds", &v), 0);
    assert_int_equal(json_get_u64(stamp, "microseconds", &v), 0);
    assert_in_range(v, 0, 999999);
    assert_false(json_object_object_get_ex(event, "data", NULL));
    peer_expect_next(first, "{\"return\":{}}");

    json_object_put(event);
    event = peer_read(ro);
    assert_int_equal(json_get_str(event, "event", &name), 0);
    assert_string_equal(name, "STOP");

    peer_send(first, "{\"execute\":\"system_reset\"}");
    json_object_put(event);
    event = peer_read(first);
    assert_int_equal(json_get_obj(event, "data", &data), 0);
    assert_string_equal(json_object_to_json_string_ext(data, JSON_C_TO_STRING_PLAIN),
                        "{\"guest\":false,\"reason\":\"host-qmp-system-reset\"}");
    peer_expect_next(first, "{\"return\":{}}");

    /* Who has not negotiated has heard nothing. */
    json_object_put(peer_read(before));
    peer_expect(before, "{\"execute\":\"qmp_capabilities\"}", "{\"return\":{}}");
    peer_free(before);
    peer_free(first);
    peer_free(ro);
}

static void test_read_only(void **state)
{
    struct peer *p = peer_ready(*state, true), *full = peer_ready(*state, false);
    _cleanup_json_ json_t *answer = NULL, *all = NULL;
    json_t *list;

    peer_expect(p, STATUS, STATUS_ANSWER);
    for (unsigned int i = 0; i < qmp_command_count; i++) {
        const char *name = qmp_commands[i].name;
        char request[96], desc[128];

        if (qmp_commands[i].flags & QMP_READONLY) {
            assert_true(strncmp(name, "query-", 6) == 0 || strcmp(name, "qmp_capabilities") == 0);
            continue;
        }
        snprintf(request, sizeof(request), "{\"execute\":\"%s\"}", name);
        snprintf(desc, sizeof(desc), "The command %s is not available on the read-only socket", name);
        peer_expect_error(p, request, GENERIC, desc);
    }
    answer = peer_call(p, "{\"execute\":\"query-commands\"}");
    assert_int_equal(json_get_array(answer, "return", &list), 0);
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        const char *name = "";

        json_get_str(json_object_array_get_idx(list, i), "name", &name);
        assert_true(qmp_find_command(name)->flags & QMP_READONLY);
    }
    all = peer_call(full, "{\"execute\":\"query-commands\"}");
    assert_int_equal(json_get_array(all, "return", &list), 0);
    assert_int_equal(json_object_array_length(list), qmp_command_count);
    peer_free(p);
    peer_free(full);
}

/* -- limits ------------------------------------------------------------------ */

/* A request of exactly `len` bytes. */
static char *long_request(size_t len)
{
    char *text = malloc(len + 1);
    int n;

    assert_non_null(text);
    n = sprintf(text, "{\"execute\":\"query-name\",\"id\":\"");
    memset(text + n, 'i', len - (size_t)n - 2);
    strcpy(text + len - 2, "\"}");
    return text;
}

static void test_request_size(void **state)
{
    struct peer *p = peer_ready(*state, false);
    _cleanup_free_ char *fits = long_request(QMP_MAX_REQUEST), *exceeds = long_request(QMP_MAX_REQUEST + 1);
    _cleanup_json_ json_t *answer = NULL;
    const char *id;

    peer_send_bytes(p, fits, QMP_MAX_REQUEST);
    answer = peer_read(p);
    assert_int_equal(json_get_str(answer, "id", &id), 0);
    assert_int_equal(strlen(id), QMP_MAX_REQUEST - strlen("{\"execute\":\"query-name\",\"id\":\"\"}"));
    peer_expect_error(p, exceeds, GENERIC, "request size exceeds the limit of 1048576 bytes");
    peer_expect(p, STATUS, STATUS_ANSWER);
    peer_free(p);
}

static void test_depth(void **state)
{
    struct peer *p = peer_ready(*state, false);
    char request[256], answer[256], brackets[80];

    memset(brackets, '[', 31);
    memset(brackets + 31, ']', 31);
    brackets[62] = '\0';
    snprintf(request, sizeof(request), "{\"execute\":\"query-name\",\"id\":%s}", brackets);
    snprintf(answer, sizeof(answer), "{\"return\":{\"name\":\"fake\"},\"id\":%s}", brackets);
    peer_expect(p, request, answer);
    memset(brackets, '[', 32);
    memset(brackets + 32, ']', 32);
    brackets[64] = '\0';
    snprintf(request, sizeof(request), "{\"execute\":\"query-name\",\"id\":%s}", brackets);
    peer_expect_error(p, request, GENERIC, "JSON nesting exceeds the limit of 32 levels");
    peer_expect(p, STATUS, STATUS_ANSWER);
    peer_free(p);
}

static void test_clients(void **state)
{
    struct fixture *f = *state;
    struct peer *peers[QMP_MAX_CLIENTS], *late, *ro;
    int fds[2];

    for (int i = 0; i < QMP_MAX_CLIENTS; i++)
        peers[i] = peer_ready(f, false);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(qmp_server_add_client(f->server, fds[1], false), -EUSERS);
    late = peer_adopt(f, fds[0]);
    peer_expect_next(late, "{'error':{'class':'GenericError','desc':'too many control clients, the limit is 64'}}");
    peer_expect_end(late);
    peer_free(late);
    /* Watchers cannot lock out those who control. */
    ro = peer_ready(f, true);
    peer_expect(ro, STATUS, STATUS_ANSWER);
    peer_expect(peers[63], STATUS, STATUS_ANSWER);
    peer_free(peers[0]);
    peers[0] = peer_ready(f, false);
    for (int i = 0; i < QMP_MAX_CLIENTS; i++)
        peer_free(peers[i]);
    peer_free(ro);
}

/* -- slow clients ------------------------------------------------------------ */

/* Send as many requests as the socket takes while the server works; how many. */
static unsigned int stuff(struct peer *p, const char *request)
{
    size_t len = strlen(request), at = 0;
    unsigned int count = 0;
    int refused = 0;

    while (refused < 3) {
        ssize_t n = send(p->fd, request + at, len - at, MSG_NOSIGNAL);

        if (n < 0) {
            assert_int_equal(errno, EAGAIN);
            refused++;
            fixture_run(p->fixture);
            continue;
        }
        refused = 0;
        at += (size_t)n;
        if (at == len) {
            at = 0;
            count++;
        }
    }
    /* The rest of a request that was cut by the full socket is sent when there is room again. */
    if (at > 0) {
        while (at < len) {
            _cleanup_free_ char *line = peer_line(p);
            ssize_t n;

            assert_non_null(line);
            assert_string_equal(line, "{\"return\":{\"name\":\"fake\"}}\r\n");
            count--;
            n = send(p->fd, request + at, len - at, MSG_NOSIGNAL);
            at += n > 0 ? (size_t)n : 0;
        }
        count++;
    }
    return count;
}

static struct qmp_client *client_of(struct fixture *f)
{
    return list_first(&f->server->clients, struct qmp_client, node);
}

static void test_never_reads(void **state)
{
    struct fixture *f = *state;
    struct peer *slow = peer_ready(f, false), *other;
    unsigned int count = stuff(slow, "{\"execute\":\"query-name\"}");
    struct qmp_client *c = client_of(f);

    /* The socket's buffers are full on both ways; what the server holds itself is a piece of one answer. */
    assert_true(count > 100);
    assert_in_range(qmp_client_waiting(c), 1, 64);
    assert_true(c->in_len <= 2 * QMP_READ_SIZE);
    other = peer_ready(f, false);
    peer_expect(other, STATUS, STATUS_ANSWER);
    /* And when it reads at last, nothing is missing. */
    for (unsigned int i = 0; i < count; i++)
        peer_expect_next(slow, "{\"return\":{\"name\":\"fake\"}}");
    peer_expect(slow, STATUS, STATUS_ANSWER);
    peer_free(slow);
    peer_free(other);
}

static void test_events_are_dropped(void **state)
{
    struct fixture *f = *state;
    struct peer *slow = peer_ready(f, false), *other = peer_ready(f, false);
    struct qmp_client *c = client_of(f);
    _cleanup_free_ char *filler = malloc(100001);
    unsigned int sent = 0, got = 0;

    assert_non_null(filler);
    memset(filler, 'f', 100000);
    filler[100000] = '\0';
    for (; sent < 100; sent++) {
        json_t *data = json_object_new_object();

        json_add_str(data, "filler", filler);
        qmp_server_event(f->server, "FILLER", data);
        json_object_put(peer_read(other));
    }
    assert_in_range(qmp_client_waiting(c), 1, QMP_MAX_QUEUE / 2);
    assert_in_range(c->dropped, 1, sent - 1);
    got = sent - (unsigned int)c->dropped;
    for (unsigned int i = 0; i < got; i++)
        json_object_put(peer_read(slow));
    fixture_run(f);
    assert_int_equal(c->dropped, 0);
    assert_int_equal(c->out_cap, 0);
    peer_expect(slow, STATUS, STATUS_ANSWER);
    peer_free(slow);
    peer_free(other);
}

static void test_stalled_is_disconnected(void **state)
{
    struct fixture *f = *state;
    struct peer *slow;

    f->server->stall = (struct timeval){.tv_usec = 20000};
    slow = peer_ready(f, false);
    stuff(slow, "{\"execute\":\"query-name\"}\n");
    while (f->server->count[0] > 0)
        event_base_loop(f->events, EVLOOP_ONCE);
    peer_free(slow);
}

/* A client that hangs up while answers wait for it. */
static void test_hangs_up(void **state)
{
    struct fixture *f = *state;
    struct peer *p = peer_ready(f, false);

    stuff(p, "{\"execute\":\"query-name\"}");
    peer_free(p);
    assert_int_equal(f->server->count[0], 0);
    assert_true(list_empty(&f->server->clients));
}

static void test_flush(void **state)
{
    struct fixture *f = *state;
    struct peer *p = peer_ready(f, false);
    json_t *data = json_object_new_object();
    _cleanup_free_ char *filler = malloc(1000001);

    assert_non_null(filler);
    memset(filler, 'f', 1000000);
    filler[1000000] = '\0';
    json_add_str(data, "filler", filler);
    qmp_server_event(f->server, "FILLER", data);
    assert_true(qmp_client_waiting(client_of(f)) > 0);
    /* Nobody reads: it comes back all the same. */
    qmp_server_flush(f->server, 10);
    assert_true(qmp_client_waiting(client_of(f)) > 0);
    while (qmp_client_waiting(client_of(f)) > 0) {
        free(peer_poll(p));
        qmp_server_flush(f->server, 10);
    }
    peer_free(p);
}

/* Requests of one client that come in one go must not keep another waiting for their end. */
static void test_turns(void **state)
{
    struct fixture *f = *state;
    struct peer *busy = peer_ready(f, false), *other = peer_ready(f, false);
    unsigned int answered = 0;
    char requests[100 * sizeof(STATUS)] = "";
    char *line;

    f->server->turn_ns = 0;
    for (int i = 0; i < 100; i++)
        strcat(requests, STATUS);
    peer_send(busy, requests);
    peer_send(other, STATUS);
    event_base_loop(f->events, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    while ((line = peer_poll(busy))) {
        answered++;
        free(line);
    }
    assert_in_range(answered, 1, 99);
    line = peer_poll(other);
    assert_non_null(line);
    free(line);
    for (; answered < 100; answered++)
        peer_expect_next(busy, STATUS_ANSWER);
    peer_free(busy);
    peer_free(other);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        TEST(test_negotiation), TEST(test_id), TEST(test_bad_requests), TEST(test_ascii_output), TEST(test_half_sent),
        TEST(test_end_of_input), TEST(test_events), TEST(test_read_only), TEST(test_request_size), TEST(test_depth),
        TEST(test_clients), TEST(test_never_reads), TEST(test_events_are_dropped), TEST(test_stalled_is_disconnected),
        TEST(test_hangs_up), TEST(test_flush), TEST(test_turns),
    };

    return cmocka_run_group_tests_name("qmp", tests, NULL, NULL);
}
