#include "config.h"

#include "base/http.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event_struct.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/list.h"
#include "base/log.h"
#include "base/size.h"
#include "base/util.h"

#define BACKLOG 1024

struct http_connection {
    struct list_node node;
    struct http_server *server;
    struct bufferevent *bev;
    struct event deadline;
    bool asked, head; /* the request is complete; it was HEAD */
    bool stream;
    bool answered; /* all is queued: close when it is sent */
    http_closed *closed;
    void *closed_opaque;
};

struct http_server {
    struct event_base *events;
    http_handler *handler;
    void *opaque;
    struct event listeners[HTTP_MAX_LISTENERS];
    unsigned int listener_count, connection_count;
    bool accepting;
    struct event accept_again;
    struct list_node connections;
};

/* -- connections ------------------------------------------------------------- */

static void set_accepting(struct http_server *s, bool on)
{
    if (s->accepting == on)
        return;
    s->accepting = on;
    for (unsigned int i = 0; i < s->listener_count; i++) {
        if (on)
            event_add(&s->listeners[i], NULL);
        else
            event_del(&s->listeners[i]);
    }
}

static void free_connection(struct http_connection *c)
{
    struct http_server *s = c->server;

    if (c->closed && (c->stream || !c->answered))
        c->closed(c->closed_opaque, c);
    evtimer_del(&c->deadline);
    bufferevent_free(c->bev);
    list_remove(&c->node);
    free(c);
    s->connection_count--;
    /* Whoever waits in the queue may have the place, unless there is no descriptor for it. */
    if (!evtimer_pending(&s->accept_again, NULL))
        set_accepting(s, true);
}

static void on_deadline(evutil_socket_t fd, short what, void *opaque)
{
    struct http_connection *c = opaque;

    /* Whoever has not even sent a request is told nothing. */
    free_connection(c);
}

static void on_written(struct bufferevent *bev, void *opaque)
{
    struct http_connection *c = opaque;

    if (!c->answered || evbuffer_get_length(bufferevent_get_output(bev)) > 0)
        return;
    shutdown(bufferevent_getfd(bev), SHUT_WR);
    free_connection(c);
}

static void on_event(struct bufferevent *bev, short what, void *opaque)
{
    struct http_connection *c = opaque;

    /* A client may close its side for writing as soon as it has asked. */
    if ((what & BEV_EVENT_EOF) && c->asked && !c->stream)
        return;
    free_connection(c);
}

static void on_readable(struct bufferevent *bev, void *opaque)
{
    struct http_connection *c = opaque;
    struct evbuffer *in = bufferevent_get_input(bev);
    struct http_request request;
    struct evbuffer_ptr end;
    char text[HTTP_MAX_HEADER];
    size_t len;
    int status;

    if (c->asked) {
        /* Nothing that comes behind the request is for anybody. */
        evbuffer_drain(in, evbuffer_get_length(in));
        return;
    }
    end = evbuffer_search(in, "\r\n\r\n", 4, NULL);
    if (end.pos < 0 && evbuffer_get_length(in) < sizeof(text))
        return;
    c->asked = true;
    len = end.pos < 0 ? sizeof(text) + 1 : (size_t)end.pos + 4;
    if (len > sizeof(text)) {
        http_reply_error(c, 431, "the request's headers are too long");
        return;
    }
    evbuffer_remove(in, text, len);
    status = http_parse_request(text, len, &request);
    c->head = status == 0 && request.head;
    if (status != 0)
        http_reply_error(c, status, "no request that makes sense here");
    else
        c->server->handler(c->server->opaque, c, &request);
}

static void add_connection(struct http_server *s, int fd)
{
    static const struct timeval deadline = {.tv_sec = HTTP_DEADLINE_SECONDS};
    struct http_connection *c = calloc(1, sizeof(*c));

    if (c)
        c->bev = bufferevent_socket_new(s->events, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!c || !c->bev) {
        free(c);
        fd_close(fd);
        return;
    }
    c->server = s;
    list_append(&s->connections, &c->node);
    s->connection_count++;
    evtimer_assign(&c->deadline, s->events, on_deadline, c);
    evtimer_add(&c->deadline, &deadline);
    bufferevent_setcb(c->bev, on_readable, on_written, on_event, c);
    bufferevent_setwatermark(c->bev, EV_READ, 0, HTTP_MAX_HEADER);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
}

static void on_accept_again(evutil_socket_t fd, short what, void *opaque)
{
    set_accepting(opaque, true);
}

static void on_connection(evutil_socket_t listening, short what, void *opaque)
{
    static const struct timeval second = {.tv_sec = 1};
    struct http_server *s = opaque;
    int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0) {
        add_connection(s, fd);
        if (s->connection_count >= HTTP_MAX_CONNECTIONS)
            set_accepting(s, false);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        /* Look away for a second, the listener would be readable all the time. */
        log_warn_limited("http: cannot accept a client: %s", strerrordesc_np(errno));
        set_accepting(s, false);
        evtimer_add(&s->accept_again, &second);
    }
}

/* -- the server -------------------------------------------------------------- */

int http_server_new(struct event_base *events, http_handler *handler, void *opaque, struct http_server **ret)
{
    struct http_server *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    s->events = events;
    s->handler = handler;
    s->opaque = opaque;
    s->accepting = true;
    list_init(&s->connections);
    evtimer_assign(&s->accept_again, events, on_accept_again, s);
    *ret = s;
    return 0;
}

void http_server_free(struct http_server *s)
{
    struct http_connection *c;

    if (!s)
        return;
    set_accepting(s, false);
    /* So that the last connections to go do not start accepting again. */
    s->listener_count = 0;
    list_for_each(c, &s->connections, node)
        free_connection(c);
    evtimer_del(&s->accept_again);
    free(s);
}

int http_server_serve(struct http_server *s, int fd)
{
    struct event *e = &s->listeners[s->listener_count];

    if (s->listener_count == HTTP_MAX_LISTENERS)
        return -ENOSPC;
    /* A thousand scrapes at once wait here for their turn. */
    if (listen(fd, BACKLOG) < 0)
        return -errno;
    if (event_assign(e, s->events, fd, EV_READ | EV_PERSIST, on_connection, s) < 0 || event_add(e, NULL) < 0)
        return -ENOMEM;
    s->listener_count++;
    return 0;
}

unsigned int http_server_connections(const struct http_server *s)
{
    return s->connection_count;
}

/* -- addresses --------------------------------------------------------------- */

int http_parse_address(const char *text, struct sockaddr_storage *ret, socklen_t *ret_len)
{
    const char *colon = strrchr(text, ':');
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT};
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    char host[INET6_ADDRSTRLEN + 2];
    size_t len = colon ? (size_t)(colon - text) : 0;
    uint64_t port;

    if (!colon || len >= sizeof(host) || size_parse_u64(colon + 1, 65535, &port) < 0)
        return -EINVAL;
    memcpy(host, text, len);
    host[len] = '\0';
    v6.sin6_port = v4.sin_port = htons((uint16_t)port);
    *ret = (struct sockaddr_storage){0};
    if (len > 0 && inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
        memcpy(ret, &v4, sizeof(v4));
        *ret_len = sizeof(v4);
        return 0;
    }
    if (len > 0) {
        if (host[0] != '[' || host[len - 1] != ']')
            return -EINVAL;
        host[len - 1] = '\0';
        if (inet_pton(AF_INET6, host + 1, &v6.sin6_addr) != 1)
            return -EINVAL;
    }
    memcpy(ret, &v6, sizeof(v6));
    *ret_len = sizeof(v6);
    return 0;
}

int http_listen(const struct sockaddr_storage *addr, socklen_t len)
{
    _cleanup_close_ int fd = socket(addr->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;

    if (fd < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(fd, (const struct sockaddr *)addr, len) < 0 || listen(fd, BACKLOG) < 0)
        return -errno;
    return take_fd(fd);
}

unsigned int http_port(int fd)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof(addr);

    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
        return 0;
    if (addr.ss_family == AF_INET)
        return ntohs(((struct sockaddr_in *)&addr)->sin_port);
    return addr.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)&addr)->sin6_port) : 0;
}

/* -- answers ----------------------------------------------------------------- */

static const char *reason(int status)
{
    switch (status) {
    case 200:
        return "OK";
    case 400:
        return "Bad Request";
    case 403:
        return "Forbidden";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 414:
        return "URI Too Long";
    case 431:
        return "Request Header Fields Too Large";
    case 503:
        return "Service Unavailable";
    case 505:
        return "HTTP Version Not Supported";
    default:
        return "Internal Server Error";
    }
}

void http_on_close(struct http_connection *c, http_closed *closed, void *opaque)
{
    c->closed = closed;
    c->closed_opaque = opaque;
}

static void write_head(struct http_connection *c, int status, const char *type, const char *headers)
{
    evbuffer_add_printf(bufferevent_get_output(c->bev),
                        "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nCache-Control: no-store\r\n"
                        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n%s%s",
                        status, reason(status), type, status == 405 ? "Allow: GET, HEAD\r\n" : "", headers ? headers : "");
}

void http_reply(struct http_connection *c, int status, const char *type, const char *headers, const void *body, size_t len)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);

    assert(!c->answered && !c->stream);
    write_head(c, status, type, headers);
    evbuffer_add_printf(out, "Content-Length: %zu\r\n\r\n", len);
    if (!c->head)
        evbuffer_add(out, body, len);
    c->answered = true;
}

void http_reply_error(struct http_connection *c, int status, const char *text)
{
    char line[160];
    int n = snprintf(line, sizeof(line), "%d %s: %.100s\n", status, reason(status), text);

    http_reply(c, status, "text/plain; charset=utf-8", NULL, line, (size_t)n);
}

void http_stream(struct http_connection *c)
{
    static const struct timeval stall = {.tv_sec = HTTP_STALL_SECONDS};

    assert(!c->answered && !c->stream);
    write_head(c, 200, "text/event-stream", NULL);
    evbuffer_add(bufferevent_get_output(c->bev), "\r\n", 2);
    if (c->head) {
        c->answered = true;
        return;
    }
    c->stream = true;
    evtimer_del(&c->deadline);
    bufferevent_set_timeouts(c->bev, NULL, &stall);
}

bool http_stream_send(struct http_connection *c, const void *data, size_t len)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);

    assert(c->stream);
    return evbuffer_get_length(out) + len <= HTTP_MAX_STREAM_QUEUE && evbuffer_add(out, data, len) == 0;
}
