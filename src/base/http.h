/*
 * As much of an HTTP/1.1 server as metrics need: GET and HEAD, one request a connection, and streams of server-sent events.
 *
 * Everything has a limit: header bytes, connections (those beyond wait in the listeners' queues), the time from a
 * connection to the end of its answer, what waits for a stream's reader. libevent's own server (evhttp, as of 2.1) limits
 * neither connections nor how long one may take.
 *
 * On the caller's event loop, in its thread; nothing here blocks.
 */
#ifndef UMBRA_BASE_HTTP_H
#define UMBRA_BASE_HTTP_H

#include <event2/event.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define HTTP_MAX_HEADER 8192u
#define HTTP_MAX_PATH 512u
#define HTTP_MAX_VALUE 512u
#define HTTP_MAX_CONNECTIONS 64u
#define HTTP_MAX_LISTENERS 4u
#define HTTP_DEADLINE_SECONDS 10
/* What may wait for the reader of a stream before messages to it are left out. */
#define HTTP_MAX_STREAM_QUEUE (1u << 20)
/* A stream whose reader takes nothing for so long is closed. */
#define HTTP_STALL_SECONDS 30

/* -- requests -- */

struct http_request {
    bool head;                    /* HEAD: the body is left out of the answer */
    char path[HTTP_MAX_PATH];     /* decoded, begins with a slash */
    char query[HTTP_MAX_PATH];    /* behind the question mark, as it came */
    /* Headers that somebody here looks at; "" where the request has none. */
    char host[HTTP_MAX_VALUE], accept[HTTP_MAX_VALUE], origin[HTTP_MAX_VALUE], fetch_site[HTTP_MAX_VALUE];
};

/*
 * Read a request: its line and headers with the empty line at the end, `len` bytes. 0, or the status to answer: 400 (no
 * HTTP), 405 (another method), 414 (path too long), 505 (version).
 */
int http_parse_request(const char *text, size_t len, struct http_request *ret);

/* The value of KEY=VALUE in a query, decoded, into buf; false when there is none, or it does not fit or make sense. */
bool http_query_value(const char *query, const char *key, char *buf, size_t len);

/* -- the server -- */

struct http_server;
struct http_connection;

/* A request has come. Answer it now or later, by http_reply or http_stream; until then it may be gone (on_close). */
typedef void http_handler(void *opaque, struct http_connection *c, const struct http_request *request);
/* The connection is about to be freed before its answer, or as a stream. */
typedef void http_closed(void *opaque, struct http_connection *c);

int http_server_new(struct event_base *events, http_handler *handler, void *opaque, struct http_server **ret);
/* Closes all connections. NULL is fine. */
void http_server_free(struct http_server *s);

/* Serve a listening, nonblocking socket; it stays the caller's, who closes it after http_server_free. -ENOSPC, -ENOMEM. */
int http_server_serve(struct http_server *s, int fd);

unsigned int http_server_connections(const struct http_server *s);

/*
 * "ADDR:PORT", "[V6]:PORT" or ":PORT" (every address) into *ret; numbers only. With port 0 the kernel chooses. -EINVAL.
 */
int http_parse_address(const char *text, struct sockaddr_storage *ret, socklen_t *ret_len);
/* A nonblocking socket that listens there, or -errno. */
int http_listen(const struct sockaddr_storage *addr, socklen_t len);
/* The port a socket listens on, 0 where it has none. */
unsigned int http_port(int fd);

/* Call `closed` when the connection goes before it is answered, or when its stream ends. */
void http_on_close(struct http_connection *c, http_closed *closed, void *opaque);

/* Answer; the connection closes when all is sent and is the caller's no more. `headers` holds further header lines, each
 * with its CR LF, or NULL. The body is copied. */
void http_reply(struct http_connection *c, int status, const char *type, const char *headers, const void *body, size_t len);
/* A short answer in plain text that says what is wrong. */
void http_reply_error(struct http_connection *c, int status, const char *text);

/* Answer with a stream of events that goes on until its reader or the server ends it. */
void http_stream(struct http_connection *c);
/* Send to a stream: all of it or, where too much waits already, nothing (false). */
bool http_stream_send(struct http_connection *c, const void *data, size_t len);

#endif
