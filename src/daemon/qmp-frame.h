/*
 * Cuts a client's byte stream into requests before anything is parsed.
 *
 * The scanner is an incremental JSON recogniser: it looks at every byte once, keeps no copy, and knows at each byte
 * whether the text can still become a request. So a half-sent request costs its own bytes and nothing else, limits apply
 * before memory is spent, and an error is answered at the byte that made it.
 *
 * After an error the scanner finds its way back like this:
 *   - wrong syntax, a control character or a byte that is not UTF-8: what was read of the request is dropped; the next
 *     '{' or the end of the line starts afresh, the bytes before it are skipped without a further error. A client that
 *     does not know what state it left the stream in sends one such byte (0xff will do) and begins anew.
 *   - too long or too deep: the rest of that request is skipped up to its closing bracket.
 */
#ifndef UMBRA_DAEMON_QMP_FRAME_H
#define UMBRA_DAEMON_QMP_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QMP_FRAME_ERROR_MAX 96

struct qmp_frame {
    /* Offsets into the caller's buffer: where the request under way begins, and up to where bytes were looked at. */
    size_t begin, pos;
    uint64_t objects; /* bit n: level n is an object, not an array */
    unsigned int depth;
    uint8_t state;
    uint8_t expect;
    uint8_t quote;      /* of the string under way */
    uint8_t utf8_left;  /* continuation bytes to come */
    uint8_t utf8_low, utf8_high; /* bounds of the next one */
    uint8_t hex_left;   /* digits of a \u escape to come */
    uint16_t hex_value;
    size_t token;       /* where the literal or number under way begins */
    char error[QMP_FRAME_ERROR_MAX];
};

enum qmp_frame_result {
    QMP_FRAME_MORE,    /* all of the buffer was looked at; bytes from `begin` on must be kept and shown again */
    QMP_FRAME_REQUEST, /* [begin, pos) is a request: one JSON object or array */
    QMP_FRAME_ERROR,   /* `error` says what is wrong; call again to go on */
};

void qmp_frame_init(struct qmp_frame *f);

/* Look at data[f->pos, len). `data` is the same stream as in the last call, less what qmp_frame_discard took off. */
enum qmp_frame_result qmp_frame_scan(struct qmp_frame *f, const char *data, size_t len);

/* How many bytes at the front of the buffer are not needed any more; the caller drops them, the offsets are moved. */
size_t qmp_frame_discard(struct qmp_frame *f);

/* True in the middle of a request. */
bool qmp_frame_pending(const struct qmp_frame *f);

#endif
