#include "config.h"

#include "base/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "base/systemd.h"

#define LOG_LINE_MAX 2048
#define LOG_LIMIT_BURST 10
#define LOG_LIMIT_INTERVAL_NS (5 * NSEC_PER_SEC)

static struct {
    char program[32];
    char vm[80];
    enum log_level level;
    bool journal;
    atomic_uint lost; /* entries that the journal did not take */
} log_state = {.program = "umbra", .level = LOG_LEVEL_INFO};

/* stderr is the journal when it is the very stream that systemd names in JOURNAL_STREAM (device:inode). */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long dev, ino;
    struct stat st;

    if (!stream || sscanf(stream, "%llu:%llu", &dev, &ino) != 2 || fstat(STDERR_FILENO, &st) < 0)
        return false;
    return st.st_dev == dev && st.st_ino == ino;
}

void log_init(const char *program, const char *vm)
{
    snprintf(log_state.program, sizeof(log_state.program), "%s", program);
    snprintf(log_state.vm, sizeof(log_state.vm), "%s", vm ? vm : "");
    log_state.journal = stderr_is_journal() && systemd_journal_open();
}

void log_set_level(enum log_level level)
{
    log_state.level = level;
}

/* Make the line safe for a terminal: control bytes become \xNN; UTF-8 passes. */
static void escape(const char *in, char *out, size_t size)
{
    static const char hex[] = "0123456789abcdef";
    size_t o = 0;

    for (; *in && o + 5 < size; in++) {
        unsigned char c = (unsigned char)*in;

        if (c >= 0x20 && c != 0x7f) {
            out[o++] = (char)c;
            continue;
        }
        out[o++] = '\\';
        out[o++] = 'x';
        out[o++] = hex[c >> 4];
        out[o++] = hex[c & 15];
    }
    out[o] = '\0';
}

static void write_journal(enum log_level level, const char *text)
{
    char message[LOG_LINE_MAX + 16], priority[32], ident[64], vm[112], field[32];
    struct iovec iov[5];
    unsigned int lost;
    int n = 0;

    iov[n++] = (struct iovec){message, (size_t)snprintf(message, sizeof(message), "MESSAGE=%s", text)};
    iov[n++] = (struct iovec){priority, (size_t)snprintf(priority, sizeof(priority), "PRIORITY=%d", (int)level)};
    iov[n++] = (struct iovec){ident, (size_t)snprintf(ident, sizeof(ident), "SYSLOG_IDENTIFIER=%s", log_state.program)};
    if (log_state.vm[0])
        iov[n++] = (struct iovec){vm, (size_t)snprintf(vm, sizeof(vm), "UMBRA_VM=%s", log_state.vm)};
    /* The first entry that gets through again tells what did not. */
    lost = atomic_exchange(&log_state.lost, 0);
    if (lost > 0)
        iov[n++] = (struct iovec){field, (size_t)snprintf(field, sizeof(field), "UMBRA_LOST=%u", lost)};
    if (!systemd_journal(iov, n))
        atomic_fetch_add(&log_state.lost, lost + 1);
}

static void write_stderr(enum log_level level, const char *text)
{
    static const char *const tag[] = {[LOG_LEVEL_ERR] = "error: ", [LOG_LEVEL_WARN] = "warning: "};
    char line[LOG_LINE_MAX + 160];
    const char *prefix = level < (int)ARRAY_SIZE(tag) && tag[level] ? tag[level] : "";
    int len = snprintf(line, sizeof(line), "%s%s%s%s: %s%s\n", log_state.program, log_state.vm[0] ? "[" : "",
                       log_state.vm, log_state.vm[0] ? "]" : "", prefix, text);

    /* One write, so that lines of several threads do not mix. Nobody can be told if it fails. */
    if (write(STDERR_FILENO, line, MIN((size_t)len, sizeof(line) - 1)) < 0)
        return;
}

void log_msg(enum log_level level, int err, const char *fmt, ...)
{
    char raw[LOG_LINE_MAX / 2], text[LOG_LINE_MAX];
    int saved = errno;
    va_list ap;
    int len;

    if (level > log_state.level)
        return;
    va_start(ap, fmt);
    len = vsnprintf(raw, sizeof(raw), fmt, ap);
    va_end(ap);
    if (err && len >= 0 && (size_t)len < sizeof(raw))
        snprintf(raw + len, sizeof(raw) - (size_t)len, ": %s", strerrordesc_np(err) ? strerrordesc_np(err) : "?");
    escape(raw, text, sizeof(text));
    if (log_state.journal)
        write_journal(level, text);
    else
        write_stderr(level, text);
    errno = saved;
}

bool log_limit_pass(struct log_limit *limit, uint32_t *ret_suppressed)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    uint64_t now = clock_ns();
    bool pass = true;

    pthread_mutex_lock(&lock);
    *ret_suppressed = 0;
    if (now - limit->window_start_ns >= LOG_LIMIT_INTERVAL_NS) {
        *ret_suppressed = limit->suppressed;
        limit->window_start_ns = now;
        limit->count = 1;
        limit->suppressed = 0;
    } else if (limit->count < LOG_LIMIT_BURST) {
        limit->count++;
    } else {
        limit->suppressed++;
        pass = false;
    }
    pthread_mutex_unlock(&lock);
    return pass;
}
