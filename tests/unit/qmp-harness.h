/* A client of the control server inside the test's own thread: whoever waits for bytes runs the server's loop. */
#ifndef UMBRA_TESTS_UNIT_QMP_HARNESS_H
#define UMBRA_TESTS_UNIT_QMP_HARNESS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/json.h"
#include "daemon/qmp-server.h"
#include "fake-machine.h"

struct fixture {
    struct event_base *events;
    struct machine *machine;
    struct qmp_server *server;
};

void fixture_init(struct fixture *f, const struct fake_options *options);
void fixture_clear(struct fixture *f);

struct peer {
    struct fixture *fixture;
    int fd;
    char *buf;
    size_t len, cap;
    int got_fd; /* that came with the bytes read so far, or -1 */
};

/* Connect; the greeting has not been read. */
struct peer *peer_new(struct fixture *f, bool read_only);
/* The same, past negotiation. */
struct peer *peer_ready(struct fixture *f, bool read_only);
/* Take over a connected descriptor. */
struct peer *peer_adopt(struct fixture *f, int fd);
void peer_free(struct peer *p);

void peer_send_bytes(struct peer *p, const char *data, size_t len);
void peer_send(struct peer *p, const char *text);
/* The next line, the caller's to free; NULL at the end of the stream. Fails the test when there is none within 20 s. */
char *peer_line(struct peer *p);
/* The same as JSON; fails the test unless it is one line of ASCII that holds one JSON object and ends with CR LF. */
json_t *peer_read(struct peer *p);
/* Take what has come so far, if that is a whole line, without waiting; NULL else. */
char *peer_poll(struct peer *p);
/* Fails the test unless the stream has ended. */
void peer_expect_end(struct peer *p);

/* Send a request and read the next line. */
json_t *peer_call(struct peer *p, const char *request);
/* Send a request; the answer must be equal to `answer`, whatever the order of members. */
void peer_expect(struct peer *p, const char *request, const char *answer);
/* The next line must be equal to this. */
void peer_expect_next(struct peer *p, const char *answer);
/* Send a request; the answer must be an error of that class and text. */
void peer_expect_error(struct peer *p, const char *request, const char *class, const char *desc);

/* A server and one client of it, as most tests want them: state of a cmocka test. */
struct env {
    struct fixture f;
    struct peer *p;
};

int env_setup(void **state, const struct fake_options *options);
int env_teardown(void **state);
/* Send COMMAND with `arguments`; strings may stand in single quotes. */
json_t *env_call(struct env *e, const char *command, const char *arguments);
/* And the answer must be equal to `answer`, or be an error of class GenericError with that text. */
void env_expect(struct env *e, const char *command, const char *arguments, const char *answer);
void env_expect_error(struct env *e, const char *command, const char *arguments, const char *desc);
/* The number `key` of an answer. */
uint64_t env_number(const json_t *answer, const char *key);

/* Run the server's loop until nothing is ready. */
void fixture_run(struct fixture *f);

#endif
