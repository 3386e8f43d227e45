/*
 * Logging. On a terminal or a pipe: plain text on stderr. Under systemd (stderr is the journal's stream): journal
 * fields, UMBRA_VM= among them. Text of a message: lower case, object first, value and limit, no full stop.
 * Every function may be called from any thread. Untrusted bytes (control characters) in a message are escaped.
 */
#ifndef UMBRA_BASE_LOG_H
#define UMBRA_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"

/* Values are those of syslog(3). */
enum log_level {
    LOG_LEVEL_ERR = 3,
    LOG_LEVEL_WARN = 4,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7,
};

/* Set the program's and the VM's name (vm may be NULL) and find out where messages go. Call once, before threads. */
void log_init(const char *program, const char *vm);

void log_set_level(enum log_level level);

/* Write one message; err is an errno value whose text is appended, or 0. */
void log_msg(enum log_level level, int err, const char *fmt, ...) PRINTF_LIKE(3, 4);

#define log_err(...) log_msg(LOG_LEVEL_ERR, 0, __VA_ARGS__)
#define log_warn(...) log_msg(LOG_LEVEL_WARN, 0, __VA_ARGS__)
#define log_info(...) log_msg(LOG_LEVEL_INFO, 0, __VA_ARGS__)
#define log_debug(...) log_msg(LOG_LEVEL_DEBUG, 0, __VA_ARGS__)

/* The error may be given as errno or -errno. */
#define log_err_errno(err, ...) log_msg(LOG_LEVEL_ERR, (err) < 0 ? -(err) : (err), __VA_ARGS__)
#define log_warn_errno(err, ...) log_msg(LOG_LEVEL_WARN, (err) < 0 ? -(err) : (err), __VA_ARGS__)

/*
 * For messages that a guest or a peer can provoke: at most `burst` messages in `interval_ns`, then one that tells how
 * many were left out. Use through log_warn_limited, which keeps its state in a static variable.
 */
struct log_limit {
    uint64_t window_start_ns;
    uint32_t count;
    uint32_t suppressed;
};

/* Tell whether a message may go out now; *ret_suppressed is how many were held back since the last one. */
bool log_limit_pass(struct log_limit *limit, uint32_t *ret_suppressed);

#define log_warn_limited(fmt, ...)                                                             \
    do {                                                                                       \
        static struct log_limit log_limit_;                                                    \
        uint32_t suppressed_;                                                                  \
        if (log_limit_pass(&log_limit_, &suppressed_)) {                                       \
            if (suppressed_)                                                                   \
                log_warn(fmt " (and %u more like it)", ##__VA_ARGS__, suppressed_);            \
            else                                                                               \
                log_warn(fmt, ##__VA_ARGS__);                                                  \
        }                                                                                      \
    } while (0)

#endif
