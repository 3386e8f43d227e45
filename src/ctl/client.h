/*
 * A QMP client over one blocking conversation: requests out, answers in, events in between, descriptors that come with
 * an answer. Every wait has an end. Not thread safe.
 */
#ifndef UMBRA_CTL_CLIENT_H
#define UMBRA_CTL_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/json.h"
#include "base/util.h"

/* A message beyond this is not an answer of ours. */
#define CLIENT_MAX_MESSAGE (UINT64_C(256) << 20)

enum failure_kind {
    FAILURE_NONE,
    FAILURE_REFUSED,  /* the daemon answered with an error */
    FAILURE_TIMEOUT,  /* no answer in time */
    FAILURE_BUSY,     /* it takes no more connections */
    FAILURE_GONE,     /* the connection ended */
    FAILURE_NO_VM,    /* nobody listens */
    FAILURE_PROTOCOL, /* what came is no QMP */
    FAILURE_LOCAL,    /* permission, memory, descriptors: this side */
};

struct failure {
    enum failure_kind kind;
    char text[512]; /* one line, no full stop */
};

void failure_set(struct failure *f, enum failure_kind kind, const char *fmt, ...) PRINTF_LIKE(3, 4);

struct client;

/* Called for each event that comes while an answer is awaited; the event belongs to the client. */
typedef void client_event_fn(void *opaque, const char *name, const json_t *event);

/*
 * Connect to the socket at `path` without speaking yet; 0, or -1 with *f set. The socket's other end is known from then
 * on (client_pid).
 */
int client_connect(const char *path, struct client **ret, struct failure *f);

/* Take over a connected socket (tests). The client owns fd. */
int client_adopt(int fd, struct client **ret, struct failure *f);

/* Take no message larger than this (at first CLIENT_MAX_MESSAGE): for a daemon that is not trusted with this side's memory. */
void client_limit(struct client *c, uint64_t max_message);

/* Read the greeting and negotiate, in at most timeout_ms; 0, or -1 with *f set. */
int client_negotiate(struct client *c, int timeout_ms, struct failure *f);

void client_close(struct client *c);
#define _cleanup_client_ __attribute__((cleanup(cleanup_client)))
static inline void cleanup_client(struct client **c)
{
    client_close(*c);
}

int client_fd(const struct client *c);
/* The process at the other end, or 0 where the kernel does not tell. */
pid_t client_pid(const struct client *c);

void client_on_event(struct client *c, client_event_fn *fn, void *opaque);

/* Send a request; `arguments` is consumed and may be NULL. 0, or -1 with *f set. */
int client_send(struct client *c, const char *command, json_t *arguments, int timeout_ms, struct failure *f);
/* Send bytes as they are. */
int client_send_text(struct client *c, const char *text, size_t len, int timeout_ms, struct failure *f);

/*
 * The next message of any kind, by deadline_ns (clock_ns); 0 with *ret the caller's, or -1 with *f set. With deadline 0:
 * only what has come already; 1 when that is no whole message yet.
 */
int client_receive(struct client *c, uint64_t deadline_ns, json_t **ret, struct failure *f);

/*
 * The next answer by deadline_ns; events before it go to the event function. 0 with *ret (may be NULL) the value of
 * "return", the caller's, and *ret_fd (may be NULL) the descriptor that came with it, the caller's, or -1. -1 with *f
 * set.
 */
int client_answer(struct client *c, uint64_t deadline_ns, json_t **ret, int *ret_fd, struct failure *f);

/* client_send and client_answer. */
int client_call(struct client *c, const char *command, json_t *arguments, int timeout_ms, json_t **ret, int *ret_fd,
                struct failure *f);

/* The time timeout_ms from now, as client_receive takes it. */
uint64_t client_deadline(int timeout_ms);

#endif
