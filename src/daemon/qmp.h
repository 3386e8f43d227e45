/*
 * QMP: the command table and what a handler sees. The wire is in qmp-server.h.
 */
#ifndef UMBRA_DAEMON_QMP_H
#define UMBRA_DAEMON_QMP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "daemon/machine.h"

enum qmp_class {
    QMP_GENERIC_ERROR,
    QMP_COMMAND_NOT_FOUND,
    QMP_DEVICE_NOT_FOUND,
};

struct qmp_error {
    bool set;
    enum qmp_class class;
    char desc[512];
};

void qmp_error_set(struct qmp_error *err, enum qmp_class class, const char *fmt, ...) PRINTF_LIKE(3, 4);

enum qmp_arg_type {
    QMP_ARG_STR,
    QMP_ARG_INT,
    QMP_ARG_BOOL,
    QMP_ARG_NUMBER,
    QMP_ARG_OBJECT,
    QMP_ARG_ARRAY,
    QMP_ARG_ANY,
};

struct qmp_arg {
    const char *name;
    enum qmp_arg_type type;
    bool optional;
    int64_t min, max;          /* integers; both 0: 0 to INT64_MAX */
    const char *const *values; /* strings: NULL-terminated list of what is allowed, or NULL */
};

/* What handlers work with; made by the server, the same for every client. */
struct qmp_context {
    struct machine *machine;
    struct dirty_rate *dirty_rate;
    struct qmp_stats *stats;
    struct qmp_snapshot *snapshot;
    struct migration *migration; /* NULL: none, as in tests without */
};

/* One request as a handler sees it. */
struct qmp_request {
    const struct qmp_context *context;
    struct machine *machine;
    bool read_only;     /* came in on the read-only socket */
    const json_t *args; /* checked against the command's spec; NULL when none were given (the readers take that) */
    /* Out: a descriptor to pass with the answer (SCM_RIGHTS), owned by the server from then on; -1 for none. */
    int reply_fd;
    int passed_fd; /* a descriptor the client passed, or -1; a handler may take it */
    /* Out: the value of "return" as JSON text in ASCII, for what is too large for objects; the server frees it. */
    char *text;
    size_t text_len;
    struct qmp_error error;
};

enum qmp_flags {
    QMP_READONLY = 1 << 0, /* also on control-ro.sock */
    QMP_WHOLE = 1 << 1,    /* not while a part of guest memory is still to come: it might wait for that */
};

struct qmp_command {
    const char *name;
    unsigned int flags;
    const struct qmp_arg *args; /* ends with a NULL name; NULL for none */
    const char *help; /* one sentence, as the manual has it */
    /*
     * The value of "return" (consumed by the server), or NULL with req->error or req->text set. Main thread; must not wait
     * for a guest.
     */
    json_t *(*run)(struct qmp_request *req);
};

/* The one table, sorted by name. */
extern const struct qmp_command qmp_commands[];
extern const unsigned int qmp_command_count;

const struct qmp_command *qmp_find_command(const char *name);
/* Check args (may be NULL) against the spec: unknown, missing, mistyped, out of range. False with *err set. */
bool qmp_check_args(const struct qmp_command *cmd, const json_t *args, struct qmp_error *err);

/* What the server knows of a client when it carries out its requests. */
struct qmp_session {
    const struct qmp_context *context;
    bool read_only;
    bool negotiated;
    int passed_fd; /* what came last over SCM_RIGHTS and no command took, or -1; the session's owner closes it */
};

/* An answer, all of it the caller's; {0} with fd -1 is empty. */
struct qmp_answer {
    bool is_error;
    json_t *value; /* of "return" or "error"; NULL without text: out of memory */
    char *text;    /* the value as text instead, text_len bytes */
    size_t text_len;
    bool has_id;
    json_t *id; /* NULL is JSON's null */
    int fd;     /* to pass with it, or -1 */
};

void qmp_answer_clear(struct qmp_answer *answer);

/*
 * Carry out one request, the text of one JSON object or array that qmp_frame_scan cut out (which checked its
 * syntax more strictly than json-c does). Always answers. `tokener` takes QMP_MAX_DEPTH levels; it is reset here.
 */
struct qmp_answer qmp_execute(struct qmp_session *session, struct json_tokener *tokener, const char *text, size_t len);

/* The value of "error"; NULL when out of memory. */
json_t *qmp_error_value(enum qmp_class class, const char *desc);

#endif
