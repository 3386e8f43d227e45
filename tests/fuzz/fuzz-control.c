/*
 * What a client sends to the control socket. The first byte says how, the rest is sent:
 *
 *   bit 0     on the read-only socket
 *   bit 1     negotiation is left to the input
 *   bit 2     the dirty log is a ring
 *   bit 3     the guest writes a page between two pieces
 *   bits 4-6  the size of the pieces
 *
 * Whatever comes back must be lines of ASCII, each a JSON object; the server must go on answering, and must answer
 * everybody else.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "daemon/qmp-server.h"
#include "fake-machine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);      \
            abort();                                                             \
        }                                                                        \
    } while (0)

#define PAGES 256
static const char capabilities[] = "{\"execute\":\"qmp_capabilities\"}";
static const char status[] = "{\"execute\":\"query-status\",\"id\":\"the end\"}";

struct client {
    int fd;
    char *line; /* what was read of a line so far */
    size_t len, cap;
    unsigned int lines;
    bool ended;
    bool last_is_status; /* the last line answers `status` */
};

static struct event_base *events;
static struct machine *machines[2];

static void check_line(struct client *c)
{
    json_t *o, *id;

    CHECK(c->len >= 2 && c->line[c->len - 2] == '\r');
    for (size_t i = 0; i < c->len - 2; i++)
        CHECK(c->line[i] >= ' ' && c->line[i] <= 0x7f);
    c->line[c->len - 2] = '\0';
    o = json_tokener_parse(c->line);
    CHECK(json_object_is_type(o, json_type_object));
    c->last_is_status = json_object_object_get_ex(o, "id", &id) && json_object_is_type(id, json_type_string) &&
                        strcmp(json_object_get_string(id), "the end") == 0;
    CHECK(json_object_object_get_ex(o, "return", NULL) || json_object_object_get_ex(o, "error", NULL) ||
          json_object_object_get_ex(o, "event", NULL) || json_object_object_get_ex(o, "QMP", NULL));
    json_object_put(o);
    c->len = 0;
    c->lines++;
}

static void drain(struct client *c)
{
    static char buf[65536];
    ssize_t n;

    event_base_loop(events, EVLOOP_NONBLOCK);
    while ((n = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            if (c->len == c->cap) {
                c->cap = c->cap * 2 + 4096;
                c->line = realloc(c->line, c->cap);
                CHECK(c->line);
            }
            c->line[c->len++] = buf[i];
            if (buf[i] == '\n')
                check_line(c);
        }
        event_base_loop(events, EVLOOP_NONBLOCK);
    }
    if (n == 0 || (n < 0 && errno != EAGAIN))
        c->ended = true;
}

static void send_all(struct client *c, const void *data, size_t len)
{
    const char *p = data;

    while (len > 0 && !c->ended) {
        ssize_t n = send(c->fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
        drain(c);
    }
}

static void connect_client(struct qmp_server *server, bool read_only, struct client *c)
{
    int fds[2];

    *c = (struct client){.fd = -1};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    CHECK(qmp_server_add_client(server, fds[1], read_only) == 0);
    c->fd = fds[0];
    drain(c);
    CHECK(c->lines == 1);
}

static void close_client(struct client *c)
{
    close(c->fd);
    free(c->line);
}

static void stop_consumers(struct machine *m)
{
    struct dirty_consumer_info consumers[DIRTY_MAX_CONSUMERS];
    struct dirty_log *log = vm_dirty_log(machine_vm(m));
    size_t n = dirty_log_consumers(log, consumers, DIRTY_MAX_CONSUMERS);

    for (size_t i = 0; i < n; i++)
        CHECK(dirty_log_stop(log, consumers[i].name) == 0);
}

static void feed(struct machine *m, struct client *c, uint8_t how, const uint8_t *data, size_t size)
{
    static const size_t pieces[8] = {1 << 20, 1, 2, 5, 16, 100, 1000, 10000};
    /* Each piece costs several system calls; a hundred of them cut a request everywhere that matters. */
    size_t piece = MAX(pieces[how >> 4 & 7], size / 100);

    if (!(how & 2))
        send_all(c, capabilities, strlen(capabilities));
    for (size_t at = 0, k = 0; at < size; at += piece, k++) {
        send_all(c, data + at, MIN(piece, size - at));
        if (how & 8)
            fake_machine_write(m, k % PAGES, (uint8_t)k);
    }
}

static void init(void)
{
    struct fake_options options = {.memory = PAGES * GUEST_PAGE_SIZE, .cpus = 2};

    log_set_level(LOG_LEVEL_ERR);
    events = event_base_new();
    CHECK(events);
    options.backend = DIRTY_BITMAP;
    machines[0] = fake_machine_new(events, &options);
    options.backend = DIRTY_RING;
    machines[1] = fake_machine_new(events, &options);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qmp_server *server;
    struct client c, other;
    struct machine *m;

    if (size == 0)
        return 0;
    if (!events)
        init();
    m = machines[data[0] >> 2 & 1];
    fake_machine_set_state(m, RUN_STATE_RUNNING);
    CHECK(qmp_server_new(events, m, &server) == 0);
    fake_machine_set_server(m, server);

    connect_client(server, data[0] & 1, &c);
    feed(m, &c, data[0], data + 1, size - 1);
    connect_client(server, false, &other);
    send_all(&other, capabilities, strlen(capabilities));
    send_all(&other, status, strlen(status));
    CHECK(other.last_is_status);

    /* The way out of any state: a byte that is always an error, then a request. */
    send_all(&c, "\xff\n", 2);
    send_all(&c, capabilities, strlen(capabilities));
    send_all(&c, status, strlen(status));
    CHECK(c.last_is_status);
    shutdown(c.fd, SHUT_WR);
    drain(&c);
    CHECK(c.ended);

    close_client(&c);
    close_client(&other);
    fake_machine_set_server(m, NULL);
    qmp_server_free(server);
    stop_consumers(m);
    return 0;
}
