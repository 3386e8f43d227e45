/* The migration stream's encoding: what is written is read again, and each thing that is wrong is refused by its name. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "migrate/compress.h"
#include "migrate/pages.h"
#include "migrate/report.h"
#include "migrate/stream.h"

static void refused(int r, const struct mig_error *err, const char *text)
{
    assert_int_equal(r, -EBADMSG);
    if (!strstr(err->text, text))
        fail_msg("'%s', not '%s'", err->text, text);
}

/* -- addresses -- */

static void test_ports(void **state)
{
    static const char *const bad[] = {"tcp:localhost:65536", "tcp:[::1]:70000", "tcp:127.0.0.1:99999999999", "tcp::-1",
                                      "tcp:localhost: 65537"};
    struct mig_listener l;
    char host[64];

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct mig_error err = {""};

        assert_int_equal(mig_connect(bad[i], 1000, -1, &err), -EINVAL);
        assert_non_null(strstr(err.text, "a port is a number from 0 to 65535"));
        assert_int_equal(mig_listen(bad[i], &l, &err), -EINVAL);
    }
    assert_int_equal(mig_uri_host("tcp:a:65535", host, sizeof(host), &(struct mig_error){""}), 0);
    assert_int_equal(mig_uri_host("tcp:a:http", host, sizeof(host), &(struct mig_error){""}), 0);
}

/* -- hello -- */

static void put_hello(uint8_t buf[MIG_HELLO_SIZE], uint32_t version, uint16_t channel, uint16_t channels)
{
    struct mig_hello h = {.version = version, .channel = channel, .channels = channels, .session = 0x1122334455667788};

    mig_hello_put(&h, buf);
}

static void test_hello(void **state)
{
    static const struct {
        uint32_t version;
        uint16_t channel, channels;
        const char *error;
    } bad[] = {
        {0, 0, 1, "hello: version 0 is not within 1 and 1"}, {2, 0, 1, "hello: version 2 is not within 1 and 1"},
        {UINT32_MAX, 0, 1, "hello: version"},                {1, 0, 0, "hello: 0 channels"},
        {1, 0, 17, "hello: 17 channels"},                    {1, 1, 1, "hello: channel 1 of 1"},
        {1, 65535, 16, "hello: channel 65535 of 16"},
    };
    uint8_t buf[MIG_HELLO_SIZE];
    struct mig_hello h;

    for (uint16_t channels = 1; channels <= MIG_MAX_CHANNELS; channels++) {
        struct mig_error err = {""};

        put_hello(buf, MIG_VERSION, (uint16_t)(channels - 1), channels);
        assert_int_equal(mig_hello_get(buf, &h, &err), 0);
        assert_int_equal(h.channels, channels);
        assert_int_equal(h.channel, channels - 1);
        assert_true(h.session == 0x1122334455667788);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct mig_error err = {""};

        put_hello(buf, bad[i].version, bad[i].channel, bad[i].channels);
        refused(mig_hello_get(buf, &h, &err), &err, bad[i].error);
    }
    /* Any bit that is another is noticed. */
    for (unsigned int bit = 0; bit < MIG_HELLO_SIZE * 8; bit++) {
        struct mig_error err = {""};

        put_hello(buf, MIG_VERSION, 0, 4);
        buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(mig_hello_get(buf, &h, &err), -EBADMSG);
        assert_string_not_equal(err.text, "");
    }
}

/* -- maps -- */

static void test_maps(void **state)
{
    static const struct {
        uint64_t first, last_word;
        size_t words, cut;
        uint64_t limit;
        const char *error; /* NULL: fine */
    } rows[] = {
        {0, 1, 1, 0, 64, NULL},
        {64, UINT64_MAX, 2, 0, 192, NULL},
        {128, 1, 1, 0, 129, NULL},
        {128, 2, 1, 0, 129, "map: pages beyond 129"},
        {0, 1, 2, 0, 64, "map: 2 words at page 0 of 64"},
        {1, 1, 1, 0, 64, "map: 1 words at page 1 of 64"},
        {64, 1, 1, 0, 64, "map: 1 words at page 64 of 64"},
        {UINT64_MAX - 63, 1, 1, 0, 64, "map: 1 words at page 18446744073709551552 of 64"},
        {0, 1, 1, 8, 64, "map: 8 bytes are no 1 to 8192 words"},
        {0, 1, 1, 3, 64, "map: 13 bytes are no 1 to 8192 words"},
        {0, 1, MIG_MAP_WORDS, 0, 64 * MIG_MAP_WORDS, NULL},
    };
    static uint64_t bits[MIG_MAP_WORDS], got[MIG_MAP_WORDS];
    static uint8_t buf[MIG_MAP_FIXED + 8 * MIG_MAP_WORDS];

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct mig_error err = {""};
        size_t len, words;
        pfn_t first;
        int r;

        memset(bits, 0x5a, sizeof(bits));
        bits[rows[i].words - 1] = rows[i].last_word;
        len = mig_map_put(rows[i].first, bits, rows[i].words, buf);
        r = mig_map_get(buf, len - rows[i].cut, rows[i].limit, &first, got, &words, &err);
        if (rows[i].error) {
            refused(r, &err, rows[i].error);
            continue;
        }
        assert_int_equal(r, 0);
        assert_true(first == rows[i].first && words == rows[i].words);
        assert_memory_equal(got, bits, words * 8);
    }
}

/* -- headers -- */

static void test_headers(void **state)
{
    static const struct {
        unsigned int type;
        bool from_source;
        uint32_t length, sequence;
        const char *error; /* NULL: fine */
    } rows[] = {
        {MIG_COMMIT, true, 0, 7, NULL},
        {MIG_COMMIT, true, 1, 7, "frame 7 (commit): length 1, 0 to 0"},
        {MIG_COMMIT, false, 0, 7, "frame 7: type 5 is not known"},
        {MIG_COMMIT, true, 0, 6, "frame 7 (commit): its number is 6"},
        {MIG_COMMIT, true, 0, 8, "frame 7 (commit): its number is 8"},
        {MIG_SETUP, true, MIG_SETUP_FIXED - 1, 7, "frame 7 (setup): length 23"},
        {MIG_SETUP, true, UINT32_MAX, 7, "frame 7 (setup): length 4294967295"},
        {MIG_BATCH, true, 0, 7, "frame 7 (batch): length 0"},
        {MIG_BATCH, true, 17, 7, "frame 7 (batch): length 17"},
        {MIG_BATCH, true, MIG_RUN_SIZE * MIG_BATCH_RUNS, 7, NULL},
        {MIG_BATCH, true, MIG_RUN_SIZE * (MIG_BATCH_RUNS + 1), 7, "frame 7 (batch): length 4112"},
        {MIG_END, true, 4, 7, "frame 7 (end): length 4"},
        {MIG_STATE, true, 11, 7, "frame 7 (state): length 11"},
        {MIG_CANCEL, true, MIG_TEXT_MAX + 1, 7, "frame 7 (cancel): length 65537"},
        {MIG_ABSENT, true, 16, 7, NULL},
        {MIG_ABSENT, true, 8, 7, "frame 7 (absent): length 8"},
        {MIG_ABSENT, true, 20, 7, "frame 7 (absent): length 20"},
        {MIG_ABSENT, true, MIG_MAP_FIXED + 8 * (MIG_MAP_WORDS + 1), 7, "frame 7 (absent): length 65552"},
        {MIG_ABSENT, false, 16, 7, "frame 7: type 10 is not known"},
        {MIG_RESUME, true, 1, 7, "frame 7 (resume): length 1"},
        {MIG_REQUEST, false, 8, 7, NULL},
        {MIG_REQUEST, false, 7, 7, "frame 7 (request): length 7"},
        {MIG_WHOLE, true, 0, 7, "frame 7: type 24 is not known"},
        {MIG_READY, false, 8, 7, NULL},
        {MIG_READY, true, 8, 7, "frame 7: type 18 is not known"},
        {MIG_FAILED, false, MIG_TEXT_MAX, 7, NULL},
        {0, true, 0, 7, "frame 7: type 0 is not known"},
        {15, true, 0, 7, "frame 7: type 15 is not known"},
        {MIG_TYPE_END, false, 0, 7, "frame 7: type 25 is not known"},
        {65535, true, 0, 7, "frame 7: type 65535 is not known"},
    };
    uint8_t buf[MIG_HEADER_SIZE];
    struct mig_header h;

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct mig_header in = {
            .type = (enum mig_type)rows[i].type, .length = rows[i].length, .sequence = rows[i].sequence, .payload_crc = 5};
        struct mig_error err = {""};
        int r;

        mig_header_put(&in, buf);
        r = mig_header_get(buf, rows[i].from_source, 7, &h, &err);
        if (rows[i].error) {
            refused(r, &err, rows[i].error);
            continue;
        }
        assert_int_equal(r, 0);
        assert_int_equal(h.length, rows[i].length);
        assert_int_equal(h.payload_crc, 5);
    }
    for (unsigned int bit = 0; bit < MIG_HEADER_SIZE * 8; bit++) {
        struct mig_header in = {.type = MIG_READY, .length = 8, .sequence = 7};
        struct mig_error err = {""};

        mig_header_put(&in, buf);
        buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
        refused(mig_header_get(buf, false, 7, &h, &err), &err, "frame 7: the header's checksum is wrong");
    }
}

/* -- payloads -- */

static void test_setup_and_state(void **state)
{
    uint8_t buf[MIG_SETUP_FIXED + 3] = {0};
    struct mig_setup setup = {.memory = 123 << 20, .page_size = 4096, .flags = MIG_SETUP_LOCAL}, got;
    struct mig_state st = {.age_ns = 77, .run = 1}, got_state;
    struct mig_error err = {""};

    mig_setup_put(&setup, buf);
    assert_int_equal(mig_setup_get(buf, sizeof(buf), &got, &err), 0);
    assert_true(got.memory == setup.memory && got.flags == MIG_SETUP_LOCAL && got.state_len == 3);
    refused(mig_setup_get(buf, MIG_SETUP_FIXED - 1, &got, &err), &err, "setup: length 23");
    err.text[0] = '\0';
    setup.page_size = 8192;
    mig_setup_put(&setup, buf);
    refused(mig_setup_get(buf, sizeof(buf), &got, &err), &err, "setup: page size 8192");
    err.text[0] = '\0';
    setup = (struct mig_setup){.page_size = 4096, .flags = 0xc0};
    mig_setup_put(&setup, buf);
    refused(mig_setup_get(buf, sizeof(buf), &got, &err), &err, "setup: flags 0xc0");
    err.text[0] = '\0';
    setup = (struct mig_setup){.page_size = 4096, .reserved = 1};
    mig_setup_put(&setup, buf);
    refused(mig_setup_get(buf, sizeof(buf), &got, &err), &err, "setup: reserved");
    err.text[0] = '\0';

    mig_state_put(&st, buf);
    assert_int_equal(mig_state_get(buf, sizeof(buf), &got_state, &err), 0);
    assert_true(got_state.age_ns == 77 && got_state.run == 1 && got_state.state_len == sizeof(buf) - MIG_STATE_FIXED);
    refused(mig_state_get(buf, 3, &got_state, &err), &err, "state: length 3");
    err.text[0] = '\0';
    st.run = 2;
    mig_state_put(&st, buf);
    refused(mig_state_get(buf, sizeof(buf), &got_state, &err), &err, "state: run is 2");
}

static void test_runs(void **state)
{
    static const struct {
        struct mig_run run;
        const char *error;
    } rows[] = {
        {{0, 1, MIG_RUN_DATA}, NULL},
        {{999, 1, MIG_RUN_ZERO}, NULL},
        {{0, 1000, MIG_RUN_ZERO}, NULL},
        {{744, MIG_BATCH_PAGES, MIG_RUN_DATA}, NULL},
        {{1000, 1, MIG_RUN_DATA}, "1 pages at page 1000 of 1000"},
        {{UINT64_MAX, 1, MIG_RUN_ZERO}, "at page 18446744073709551615 of 1000"},
        {{999, 2, MIG_RUN_DATA}, "2 pages at page 999 of 1000"},
        {{1, UINT32_MAX, MIG_RUN_ZERO}, "4294967295 pages at page 1"},
        {{0, 0, MIG_RUN_DATA}, "0 pages"},
        {{0, 1, 2}, "kind 2 is not known"},
        {{0, MIG_BATCH_PAGES + 1, MIG_RUN_DATA}, "more than 256 pages"},
    };
    struct mig_run runs[MIG_BATCH_RUNS];
    uint8_t buf[MIG_RUN_SIZE * (MIG_BATCH_RUNS + 1)];
    uint32_t count, data;

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct mig_error err = {""};
        int r;

        mig_run_put(&rows[i].run, buf);
        r = mig_runs_get(buf, MIG_RUN_SIZE, 1000, runs, &count, &data, &err);
        if (rows[i].error)
            refused(r, &err, rows[i].error);
        else
            assert_true(r == 0 && count == 1 && data == (rows[i].run.kind == MIG_RUN_DATA ? rows[i].run.pages : 0));
    }
    /* Together no more than a batch has room for; and only whole runs. */
    for (unsigned int i = 0; i <= MIG_BATCH_RUNS; i++)
        mig_run_put(&(struct mig_run){i, 1, MIG_RUN_DATA}, buf + i * MIG_RUN_SIZE);
    for (size_t len = 0; len <= sizeof(buf); len += 4) {
        struct mig_error err = {""};
        bool good = len > 0 && len % MIG_RUN_SIZE == 0 && len <= MIG_RUN_SIZE * MIG_BATCH_RUNS;

        assert_int_equal(mig_runs_get(buf, len, 1000, runs, &count, &data, &err), good ? 0 : -EBADMSG);
    }
    mig_run_put(&(struct mig_run){5, 2, MIG_RUN_DATA}, buf);
    {
        struct mig_error err = {""};

        refused(mig_runs_get(buf, MIG_RUN_SIZE * MIG_BATCH_RUNS, 1000, runs, &count, &data, &err), &err,
                "run 255: more than 256 pages");
    }
}

/* -- streams -- */

static void make_pair(struct mig_stream *source, struct mig_stream *target)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    mig_stream_init(source, fds[0], true);
    mig_stream_init(target, fds[1], false);
    mig_stream_set_timeout(target, 5000);
}

/* Frames of several kinds, with bytes behind them and a descriptor, as they were sent. */
static void test_stream(void **state)
{
    struct mig_stream source, target;
    struct mig_error err = {""};
    uint8_t pages[5000], got[5000], head[3] = {1, 2, 3};
    struct iovec iov[2] = {{pages, 1000}, {pages + 1000, 4000}}, in[2] = {{got, 4999}, {got + 4999, 1}};
    struct mig_message m = {.type = MIG_CANCEL, .head = head, .head_len = 3, .rest = "abc", .rest_len = 3, .raw = iov,
                            .raw_count = 2, .pass_fd = STDIN_FILENO};
    struct mig_frame f;

    make_pair(&source, &target);
    for (size_t i = 0; i < sizeof(pages); i++)
        pages[i] = (uint8_t)(i * 7);
    assert_int_equal(mig_send(&source, &m, &err), 0);
    assert_int_equal(mig_send_u64(&source, MIG_PING, 42, &err), 0);
    assert_int_equal(mig_receive(&target, &f, &err), 0);
    assert_int_equal(f.type, MIG_CANCEL);
    assert_int_equal(f.length, 6);
    assert_memory_equal(f.payload, "\1\2\3abc", 6);
    assert_true(target.passed_fd >= 0);
    assert_int_equal(mig_receive_raw(&target, in, 2, &err), 0);
    assert_memory_equal(got, pages, sizeof(got));
    assert_int_equal(mig_receive(&target, &f, &err), 0);
    assert_true(f.type == MIG_PING && le64_get(f.payload) == 42);
    assert_int_equal(target.passed_fd, -1);
    mig_stream_clear(&source);
    assert_int_equal(mig_receive(&target, &f, &err), -ECONNRESET);
    mig_stream_clear(&target);
}

/* A byte now and then, and a descriptor for whoever waits. */
static void *dribble(void *arg)
{
    const int *fd = arg;
    uint8_t byte = 0;

    while (write(*fd, &byte, 1) == 1)
        usleep(1000);
    return NULL;
}

/* One that goes on and on is given up all the same. */
static void test_deadline(void **state)
{
    struct mig_stream source, target;
    struct mig_error err = {""};
    uint8_t got[100000];
    struct iovec iov = {got, sizeof(got)};
    pthread_t thread;

    make_pair(&source, &target);
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(pthread_create(&thread, NULL, dribble, &source.fd), 0);
    mig_stream_set_deadline(&target, clock_ns() + 50 * NSEC_PER_MSEC);
    assert_int_equal(mig_receive_raw(&target, &iov, 1, &err), -ETIMEDOUT);
    mig_stream_clear(&target);
    pthread_join(thread, NULL);
    mig_stream_clear(&source);
}

/* A target that does not answer, where somebody wants it to end. */
static void test_connect_is_cancelled(void **state)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int listener = socket(AF_INET, SOCK_STREAM, 0), wake = fd_eventfd(), fds[8], r = 0;
    struct mig_error err = {""};
    char uri[64];
    size_t n = 0;

    assert_true(listener >= 0 && wake >= 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(listener, 0), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&a, &len), 0);
    snprintf(uri, sizeof(uri), "tcp:127.0.0.1:%u", ntohs(a.sin_port));
    /* Until nobody takes any more. */
    while (n < ARRAY_SIZE(fds) && (r = mig_connect(uri, 200, -1, &err)) >= 0)
        fds[n++] = r;
    assert_int_equal(r, -ETIMEDOUT);
    fd_event_signal(wake);
    assert_int_equal(mig_connect(uri, 60000, wake, &err), -ECANCELED);
    while (n > 0)
        close(fds[--n]);
    close(listener);
    close(wake);
}

/* Cut a stream of two frames behind each of its bytes: what came whole is given out, and the cut is an error. */
static void test_cut_at_every_byte(void **state)
{
    uint8_t bytes[2 * (MIG_HEADER_SIZE + 8)];
    struct mig_stream source, target;
    struct mig_error err = {""};
    struct mig_frame f;

    make_pair(&source, &target);
    assert_int_equal(mig_send_u64(&source, MIG_PING, 1, &err), 0);
    assert_int_equal(mig_send_u64(&source, MIG_END, 2, &err), 0);
    assert_int_equal(read(target.fd, bytes, sizeof(bytes)), sizeof(bytes));
    mig_stream_clear(&source);
    mig_stream_clear(&target);
    for (size_t cut = 0; cut < sizeof(bytes); cut++) {
        struct mig_error e = {""};

        make_pair(&source, &target);
        assert_int_equal(write(source.fd, bytes, cut), cut);
        mig_stream_break(&source);
        assert_int_equal(mig_receive(&target, &f, &e), cut < sizeof(bytes) / 2 ? -ECONNRESET : 0);
        if (cut >= sizeof(bytes) / 2)
            assert_int_equal(mig_receive(&target, &f, &e), -ECONNRESET);
        assert_string_not_equal(e.text, "");
        mig_stream_clear(&source);
        mig_stream_clear(&target);
    }
}

/* A frame that comes again, and a payload that was changed. */
static void test_replay_and_damage(void **state)
{
    uint8_t bytes[MIG_HEADER_SIZE + 8];
    struct mig_stream source, target;
    struct mig_error err = {""};
    struct mig_frame f;

    make_pair(&source, &target);
    assert_int_equal(mig_send_u64(&source, MIG_PING, 1, &err), 0);
    assert_int_equal(read(target.fd, bytes, sizeof(bytes)), sizeof(bytes));
    for (int i = 0; i < 2; i++)
        assert_int_equal(write(source.fd, bytes, sizeof(bytes)), sizeof(bytes));
    assert_int_equal(mig_receive(&target, &f, &err), 0);
    refused(mig_receive(&target, &f, &err), &err, "frame 1 (ping): its number is 0");
    mig_stream_clear(&source);
    mig_stream_clear(&target);

    make_pair(&source, &target);
    err.text[0] = '\0';
    bytes[MIG_HEADER_SIZE] ^= 1;
    assert_int_equal(write(source.fd, bytes, sizeof(bytes)), sizeof(bytes));
    refused(mig_receive(&target, &f, &err), &err, "frame 0 (ping): the payload's checksum is wrong");
    mig_stream_clear(&source);
    mig_stream_clear(&target);
}

/* -- pages, checksum, forecast -- */

static void test_zero_pages(void **state)
{
    static uint8_t page[GUEST_PAGE_SIZE] __attribute__((aligned(4096)));

    assert_true(mig_page_is_zero(page));
    for (size_t i = 0; i < sizeof(page); i++) {
        page[i] = 0x80;
        assert_false(mig_page_is_zero(page));
        page[i] = 0;
    }
    assert_true(mig_page_is_zero(page));
}

static void test_untouched(void **state)
{
    struct mem_config config = {.size = 8 * MiB};
    uint64_t bits[8 * MiB / GUEST_PAGE_SIZE / 64];
    struct mem *mem;

    assert_int_equal(mem_new(&config, &mem), 0);
    memset(bits, 0xff, sizeof(bits));
    assert_int_equal(mig_skip_untouched(mem, bits), 2048);
    assert_int_equal(mem_set(mem, 5 * 4096 + 10, 1, 4096), 0);
    assert_int_equal(mem_set(mem, 8 * MiB - 1, 1, 1), 0);
    memset(bits, 0xff, sizeof(bits));
    /* A page of the file is at least one of the guest's. */
    assert_true(mig_skip_untouched(mem, bits) <= 2045);
    assert_true(bits[0] & 1u << 5 && bits[0] & 1u << 6);
    assert_true(bits[31] >> 63);
    assert_int_equal(mig_skip_untouched(mem, bits), 0);
    mem_free(mem);
}

static void test_forecast(void **state)
{
    /* 1 GB/s is 244140 pages a second. */
    struct mig_trend t = {.pending = 24414, .memory = 262144, .throughput = 1000000000, .limit_ns = 10 * NSEC_PER_MSEC,
                          .last_ns = UINT64_MAX};
    struct mig_forecast f = mig_forecast(&t);

    /* A round that takes all, one in which nothing is left to do, and the switchover. */
    assert_true(f.valid && f.converges);
    assert_in_range(f.downtime_ns, 101 * NSEC_PER_MSEC, 103 * NSEC_PER_MSEC);
    assert_in_range(f.end_ns, 102 * NSEC_PER_MSEC, 104 * NSEC_PER_MSEC);
    assert_int_equal(f.rounds, 2);
    assert_int_equal(f.final_ns, MIG_OVERHEAD_NS);
    /* Half as fast as they go out: 100 + 50 + 25 + 12.5 ms until 2 + 6.25 are in the limit, and no less than half of 2 + 12.5. */
    t.dirty_rate = 122070;
    f = mig_forecast(&t);
    assert_true(f.converges);
    assert_in_range(f.end_ns, 198 * NSEC_PER_MSEC, 202 * NSEC_PER_MSEC);
    assert_in_range(f.final_ns, 5 * NSEC_PER_MSEC, 6 * NSEC_PER_MSEC);
    /* Inside a limit that is not tight it goes on all the same. */
    t.limit_ns = 300 * NSEC_PER_MSEC;
    t.dirty_rate = 24414;
    f = mig_forecast(&t);
    assert_true(f.converges);
    assert_in_range(f.final_ns, 2 * NSEC_PER_MSEC, 3 * NSEC_PER_MSEC);
    /* More than go out: where it stands is within this limit, where it would get is not. */
    t.dirty_rate = 2441400;
    f = mig_forecast(&t);
    assert_false(f.converges);
    /* No more than all of memory. */
    t.dirty_rate = UINT64_MAX;
    f = mig_forecast(&t);
    assert_false(f.converges);
    assert_in_range(f.final_ns, 1073 * NSEC_PER_MSEC, 1079 * NSEC_PER_MSEC);
    t.memory = 2000;
    assert_true(mig_forecast(&t).converges);
    /* The same pages again and again. */
    t.memory = 262144;
    t.dirty_rate = 100000;
    t.pending = 100;
    assert_true(mig_forecast(&t).converges);
    t.limit_ns = 1;
    assert_false(mig_forecast(&t).converges);
    t.throughput = 0;
    assert_false(mig_forecast(&t).valid);
}

/* -- packed batches -- */

static void test_packed_header(void **state)
{
    uint8_t buf[MIG_PACKED_FIXED];
    struct mig_error err = {""};
    uint32_t packed;

    mig_packed_put(MIG_PACKED_MAX, buf);
    assert_int_equal(mig_packed_get(buf, sizeof(buf), &packed, &err), 0);
    assert_int_equal(packed, MIG_PACKED_MAX);
    refused(mig_packed_get(buf, sizeof(buf) - 1, &packed, &err), &err, "packed: length 7");
    err.text[0] = '\0';
    buf[7] = 1;
    refused(mig_packed_get(buf, sizeof(buf), &packed, &err), &err, "reserved");
    err.text[0] = '\0';
    mig_packed_put(0, buf);
    refused(mig_packed_get(buf, sizeof(buf), &packed, &err), &err, "packed: 0 bytes");
    err.text[0] = '\0';
    mig_packed_put(MIG_PACKED_MAX + 1, buf);
    refused(mig_packed_get(buf, sizeof(buf), &packed, &err), &err, "bytes are not within");
}

#define SOME_PAGES 5u

static void unpack_fails(struct mig_unpacker *u, const uint8_t *frame, size_t len, size_t pages, const char *text)
{
    uint8_t *to = malloc(SOME_PAGES * GUEST_PAGE_SIZE);
    struct iovec iov[2] = {{to, GUEST_PAGE_SIZE}, {to + GUEST_PAGE_SIZE, (pages - 1) * GUEST_PAGE_SIZE}};
    struct mig_error err = {""};

    memcpy(mig_unpacker_buffer(u), frame, len);
    refused(mig_unpack(u, len, iov, 2, &err), &err, text);
    free(to);
}

static void test_packed_pages(void **state)
{
    static uint8_t from[SOME_PAGES * GUEST_PAGE_SIZE], to[SOME_PAGES * GUEST_PAGE_SIZE];
    struct iovec out[2] = {{from, 2 * GUEST_PAGE_SIZE}, {from + 2 * GUEST_PAGE_SIZE, 3 * GUEST_PAGE_SIZE}};
    struct iovec in[3] = {{to, GUEST_PAGE_SIZE}, {to + GUEST_PAGE_SIZE, GUEST_PAGE_SIZE},
                          {to + 2 * GUEST_PAGE_SIZE, 3 * GUEST_PAGE_SIZE}};
    struct mig_unpacker *u;
    struct mig_error err = {""};
    struct mig_packer *p;
    const uint8_t *frame;
    uint8_t *copy;
    size_t len;

    for (size_t i = 0; i < sizeof(from); i++)
        from[i] = (uint8_t)(i / 64);
    assert_int_equal(mig_packer_new(MIG_ZSTD_LEVEL_DEFAULT, &p), 0);
    assert_int_equal(mig_unpacker_new(&u), 0);
    assert_true(mig_pack(p, out, 2, &frame, &len));
    assert_true(len > 0 && len < sizeof(from) / 4);
    copy = malloc(len + 1);
    memcpy(copy, frame, len);
    memcpy(mig_unpacker_buffer(u), frame, len);
    assert_int_equal(mig_unpack(u, len, in, 3, &err), 0);
    assert_memory_equal(from, to, sizeof(from));

    /* More or less than was announced, cut, and with something behind it. */
    unpack_fails(u, copy, len, SOME_PAGES - 1, "the frame says 20480 bytes, 16384 are expected");
    unpack_fails(u, copy, len - 1, SOME_PAGES, "packed:");
    unpack_fails(u, copy, 3, SOME_PAGES, "packed:");
    copy[len] = 0;
    unpack_fails(u, copy, len + 1, SOME_PAGES, "are no one frame");
    /* Contents that are others: the frame has a checksum. */
    copy[len - 1] ^= 1;
    unpack_fails(u, copy, len, SOME_PAGES, "checksum");
    /* And any byte of it may be anything: refused, or the frame's own reserved bits. */
    copy[len - 1] ^= 1;
    for (size_t i = 0; i < len; i++) {
        struct mig_error unheard = {""};

        memcpy(mig_unpacker_buffer(u), copy, len);
        mig_unpacker_buffer(u)[i] ^= 0x55;
        memset(to, 0, sizeof(to));
        if (mig_unpack(u, len, in, 3, &unheard) == 0)
            assert_memory_equal(from, to, sizeof(from));
        else
            assert_string_not_equal(unheard.text, "");
    }

    /* What cannot be packed goes out as it is, and so do some after it. */
    for (size_t i = 0, x = 1; i < sizeof(from); i++, x = x * 6364136223846793005u + 1442695040888963407u)
        from[i] = (uint8_t)(x >> 56);
    assert_false(mig_pack(p, out, 2, &frame, &len));
    memset(from, 7, sizeof(from));
    assert_false(mig_pack(p, out, 2, &frame, &len));
    for (int i = 0; i < 14; i++)
        assert_false(mig_pack(p, out, 2, &frame, &len));
    assert_true(mig_pack(p, out, 2, &frame, &len));
    free(copy);
    mig_packer_free(p);
    mig_unpacker_free(u);
}

/* umbra-migration(7) has each frame with its number, and no other. */
static void test_manual(void **state)
{
    const char *src = getenv("UMBRA_SRCDIR");
    _cleanup_free_ char *manual = NULL;
    char path[4096], item[64];
    unsigned int frames = 0, items = 0;

    snprintf(path, sizeof(path), "%.4000s/man/umbra-migration.7", src ? src : ".");
    assert_int_equal(fd_read_file(path, 1 << 20, &manual, NULL), 0);
    for (unsigned int type = 0; type < MIG_TYPE_END; type++) {
        const char *name = mig_type_name((enum mig_type)type);

        if (strcmp(name, "unknown") == 0)
            continue;
        frames++;
        snprintf(item, sizeof(item), "\n.It %u Cm %s\n", type, name);
        if (!strstr(manual, item))
            fail_msg("umbra-migration(7) has no frame %u, %s", type, name);
    }
    for (const char *at = manual; (at = strstr(at, "\n.It ")); at++)
        items += strncmp(at + 5 + strspn(at + 5, "0123456789"), " Cm ", 4) == 0 && at[5] <= '9';
    assert_int_equal(items, frames);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ports),
        cmocka_unit_test(test_hello),
        cmocka_unit_test(test_maps),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_setup_and_state),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_connect_is_cancelled),
        cmocka_unit_test(test_cut_at_every_byte),
        cmocka_unit_test(test_replay_and_damage),
        cmocka_unit_test(test_zero_pages),
        cmocka_unit_test(test_untouched),
        cmocka_unit_test(test_forecast),
        cmocka_unit_test(test_packed_header),
        cmocka_unit_test(test_packed_pages),
        cmocka_unit_test(test_manual),
    };

    log_init("test-migrate-wire", NULL);
    return cmocka_run_group_tests_name("migrate-wire", tests, NULL, NULL);
}
