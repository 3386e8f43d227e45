/*
 * A source that sends anything: the target's whole session over a socket pair, with a small guest memory and callbacks that
 * take what they are given. Each input is a list of pieces, so that the checksums, which no mutation would hit, are right:
 *
 *   0 LEN BYTES   these bytes as they are
 *   1 TYPE LEN16 BYTES RAW16   a frame with that payload and so many zeros behind it
 *   3 TYPE LEN16 BYTES RAW16 BYTES   the same with these bytes behind it
 *
 * What must hold: no access beyond bounds, no end without a status, the guest never runs without COMMIT.
 */
#include "config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/log.h"
#include "migrate/stream.h"
#include "migrate/target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct session {
    int over; /* eventfd */
    bool ran, commit_sent;
    struct mig_target *target;
};

static int on_compare(void *opaque, const uint8_t *state, size_t len, char **ret_why, struct mig_error *err)
{
    uint32_t sum = crc32c(0, state, len);

    *ret_why = sum % 5 == 0 ? strdup("differs") : NULL;
    return 0;
}

static int on_adopt(void *opaque, int fd, struct mig_error *err)
{
    fd_close(fd);
    return mig_error(err, -1, "no");
}

static int on_load(void *opaque, const uint8_t *state, size_t len, uint64_t captured_ns, struct mig_error *err)
{
    return crc32c(0, state, len) % 5 == 0 ? mig_error(err, -1, "bad state") : 0;
}

static int on_run(void *opaque, bool run, bool arriving)
{
    struct session *s = opaque;

    s->ran = true;
    return 0;
}

static void on_changed(void *opaque)
{
}

static const struct mig_target_ops ops = {on_compare, on_adopt, on_load, on_run, on_changed};

/* Send without waiting for ever: the target may have gone, and what it answers is thrown away. */
static bool push(int fd, const void *p, size_t n)
{
    char waste[4096];

    while (recv(fd, waste, sizeof(waste), MSG_DONTWAIT) > 0)
        ;
    return n == 0 || send(fd, p, n, MSG_NOSIGNAL) == (ssize_t)n;
}

static bool push_frame(struct session *s, int fd, struct byte_reader *in, bool own_raw, uint32_t *sequence)
{
    static const uint8_t zeros[65536];
    uint8_t header[MIG_HEADER_SIZE];
    struct mig_header h = {.type = (enum mig_type)(byte_read_u8(in) % 24)};
    const uint8_t *payload, *raw = zeros;
    uint16_t raw_len;

    h.length = byte_read_u16(in);
    h.length = (uint32_t)MIN((size_t)h.length, in->len - in->pos);
    payload = byte_read(in, h.length);
    raw_len = byte_read_u16(in);
    if (own_raw) {
        raw_len = (uint16_t)MIN((size_t)raw_len, in->len - in->pos);
        raw = byte_read(in, raw_len);
    }
    h.sequence = (*sequence)++;
    h.payload_crc = crc32c(0, payload, h.length);
    mig_header_put(&h, header);
    s->commit_sent |= h.type == MIG_COMMIT;
    return push(fd, header, sizeof(header)) && push(fd, payload, h.length) && push(fd, raw, raw_len);
}

static void feed(struct session *s, int fd, const uint8_t *data, size_t len)
{
    struct byte_reader in = byte_reader_new(data, len);
    uint32_t sequence = 0;
    bool fine = true;

    while (fine && in.pos < in.len) {
        uint8_t piece = byte_read_u8(&in);

        if (piece & 1) {
            fine = push_frame(s, fd, &in, (piece & 3) == 3, &sequence);
        } else {
            size_t n = byte_read_u8(&in);
            const uint8_t *p;

            n = MIN(n, in.len - in.pos);
            p = byte_read(&in, n);
            fine = push(fd, p, n);
            /* Bytes that are none of a frame we count. */
            s->commit_sent |= n >= MIG_HEADER_SIZE;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct mem_config config = {.size = MEM_SIZE_MIN};
    struct mig_hello hello = {.version = MIG_VERSION, .channels = 1, .session = 1};
    struct session s = {.over = -1};
    struct mig_error err = {""};
    struct mig_report report;
    uint8_t buf[MIG_HELLO_SIZE];
    static struct mem *mem;
    char uri[32];
    int fds[2];

    log_set_level(LOG_LEVEL_ERR);
    if (!mem && mem_new(&config, &mem) < 0)
        abort();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return 0;
    snprintf(uri, sizeof(uri), "fd:%d", fds[1]);
    mig_hello_put(&hello, buf);
    if (mig_target_start(mem, uri, NULL, &ops, &s, &s.target, &err) == 0) {
        if (push(fds[0], buf, sizeof(buf)))
            feed(&s, fds[0], data, len);
        shutdown(fds[0], SHUT_WR);
        /* It ends by itself at the end of the stream. */
        do {
            char waste[4096];

            if (recv(fds[0], waste, sizeof(waste), MSG_DONTWAIT) > 0)
                continue;
            mig_target_report(s.target, &report);
            if (report.status != MIG_STATUS_COMPLETED && report.status != MIG_STATUS_FAILED)
                usleep(50);
            else
                break;
        } while (true);
        assert(s.ran == (report.status == MIG_STATUS_COMPLETED));
        assert(!s.ran || s.commit_sent);
        assert(report.status == MIG_STATUS_COMPLETED || report.why[0]);
        mig_target_free(s.target);
    }
    close(fds[0]);
    return 0;
}
