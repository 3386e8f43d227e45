/*
 * A source that sends anything: the target's whole session over a socket pair, with a small guest memory and callbacks that
 * take what they are given. Each input is a list of pieces, so that the checksums, which no mutation would hit, are right:
 *
 *   0 LEN BYTES   these bytes as they are
 *   1 TYPE LEN16 BYTES RAW16   a frame with that payload and so many zeros behind it
 *   3 TYPE LEN16 BYTES RAW16 BYTES   the same with these bytes behind it
 *
 * The pieces plus 4 go to the second channel, which is there when the input begins with 0xfe: then post-copy is possible.
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

#define TWO_CHANNELS 0xfe

struct session {
    int fds[2];
    uint32_t sequences[2];
    unsigned int channels;
    bool ran, commit_sent;
    struct mem *mem;
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
    struct session *s = opaque;
    uint32_t sum = crc32c(0, state, len);

    /* As a device may that is restored: it may be one that is still to come. */
    (void)*(const volatile uint8_t *)(mem_ram(s->mem) + pages_to_bytes(sum % 8));
    return sum % 5 == 0 ? mig_error(err, -1, "bad state") : 0;
}

static int on_run(void *opaque, bool run, bool arriving)
{
    struct session *s = opaque;

    s->ran = true;
    return 0;
}

static void on_changed(void *opaque, bool postcopy)
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

static bool push_frame(struct session *s, unsigned int channel, struct byte_reader *in, bool own_raw)
{
    static const uint8_t zeros[65536];
    uint8_t header[MIG_HEADER_SIZE];
    struct mig_header h = {.type = (enum mig_type)(byte_read_u8(in) % MIG_TYPE_END)};
    const uint8_t *payload, *raw = zeros;
    int fd = s->fds[channel];
    uint16_t raw_len;

    h.length = byte_read_u16(in);
    h.length = (uint32_t)MIN((size_t)h.length, in->len - in->pos);
    payload = byte_read(in, h.length);
    raw_len = byte_read_u16(in);
    if (own_raw) {
        raw_len = (uint16_t)MIN((size_t)raw_len, in->len - in->pos);
        raw = byte_read(in, raw_len);
    }
    h.sequence = s->sequences[channel]++;
    h.payload_crc = crc32c(0, payload, h.length);
    mig_header_put(&h, header);
    s->commit_sent |= h.type == MIG_COMMIT;
    return push(fd, header, sizeof(header)) && push(fd, payload, h.length) && push(fd, raw, raw_len);
}

static void feed(struct session *s, const uint8_t *data, size_t len)
{
    struct byte_reader in = byte_reader_new(data, len);
    bool fine = true;

    while (fine && in.pos < in.len) {
        uint8_t piece = byte_read_u8(&in);
        unsigned int channel = s->channels > 1 && (piece & 4) ? 1 : 0;

        if (piece & 1) {
            fine = push_frame(s, channel, &in, (piece & 3) == 3);
        } else {
            size_t n = byte_read_u8(&in);
            const uint8_t *p;

            n = MIN(n, in.len - in.pos);
            p = byte_read(&in, n);
            fine = push(s->fds[channel], p, n);
            /* Bytes that are none of a frame we count. */
            s->commit_sent |= n >= MIG_HEADER_SIZE;
        }
    }
}

/* It ends by itself at the end of the streams, or waits for a source that comes back. */
static enum mig_status wait_for_end(struct session *s)
{
    struct mig_report report;

    for (;;) {
        char waste[4096];

        for (unsigned int i = 0; i < s->channels; i++)
            while (recv(s->fds[i], waste, sizeof(waste), MSG_DONTWAIT) > 0)
                ;
        mig_target_report(s->target, &report);
        if (report.status == MIG_STATUS_COMPLETED || report.status == MIG_STATUS_FAILED ||
            report.status == MIG_STATUS_POSTCOPY_PAUSED)
            break;
        usleep(50);
    }
    assert(report.status == MIG_STATUS_COMPLETED || report.why[0]);
    return report.status;
}

static void play(struct session *s, const uint8_t *data, size_t len)
{
    bool fine = true;

    for (unsigned int i = 0; i < s->channels && fine; i++) {
        struct mig_hello hello = {.version = MIG_VERSION, .channel = (uint16_t)i, .channels = (uint16_t)s->channels, .session = 1};
        uint8_t buf[MIG_HELLO_SIZE];

        mig_hello_put(&hello, buf);
        fine = push(s->fds[i], buf, sizeof(buf));
    }
    if (fine)
        feed(s, data, len);
    for (unsigned int i = 0; i < s->channels; i++)
        shutdown(s->fds[i], SHUT_WR);
}

/* A target, and connections to it. */
static bool begin(struct session *s, bool two)
{
    struct mig_error err = {""};
    char uri[64];
    int pair[2];

    s->channels = two ? 2 : 1;
    s->fds[0] = s->fds[1] = -1;
    if (two) {
        snprintf(uri, sizeof(uri), "unix:/tmp/umbra-fuzz-%d", (int)getpid());
    } else {
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
            return false;
        s->fds[0] = pair[0];
        snprintf(uri, sizeof(uri), "fd:%d", pair[1]);
    }
    if (mig_target_start(s->mem, uri, NULL, &ops, s, &s->target, &err) < 0)
        return false;
    for (unsigned int i = 0; two && i < 2; i++)
        s->fds[i] = mig_connect(uri, 1000, -1, &err);
    return s->fds[0] >= 0 && (!two || s->fds[1] >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct mem_config config = {.size = MEM_SIZE_MIN};
    bool two = len > 0 && data[0] == TWO_CHANNELS;
    static struct mem *mem;
    struct session s = {0};

    log_set_level(LOG_LEVEL_ERR - 1);
    if (!mem && mem_new(&config, &mem) < 0)
        abort();
    s.mem = mem;
    if (begin(&s, two)) {
        enum mig_status status;

        play(&s, data + two, len - two);
        status = wait_for_end(&s);
        mig_target_free(s.target);
        s.target = NULL;
        assert(s.ran == (status != MIG_STATUS_FAILED));
        assert(!s.ran || s.commit_sent);
    }
    mig_target_free(s.target);
    for (unsigned int i = 0; i < 2; i++)
        fd_close(s.fds[i]);
    return 0;
}
