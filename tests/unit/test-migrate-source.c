/*
 * A source, and a target that is played by hand, frame by frame: what the source makes of one that is slow, silent or gone at a
 * moment at which a target that works never is.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "fake-kvm.h"
#include "migrate/source.h"
#include "migrate/stream.h"

#define MEMORY (8 * MiB)
#define PAGES (MEMORY / GUEST_PAGE_SIZE)
#define TIMEOUT_MS 10000

struct play {
    struct fake_kvm kvm;
    struct mem *mem;
    struct dirty_log *dirty;
    struct mig_source *source;
    struct mig_listener listener;
    struct mig_stream s[2];
    bool connected[2];
    char path[64], uri[80];

    uint64_t absent[PAGES / 64], got[2][PAGES / 64]; /* what was told to come later; what came, by channel */
    uint64_t ended; /* channels that said END */
    unsigned int heard_on; /* the channel of the newest frame */
    atomic_bool stopped, given, resumed;
    atomic_uint written_out, written_out_late;
    bool keeps, goes_on; /* the guest cannot be given away, or stopped */
};

/* -- the source's guest -- */

static int on_facts(void *opaque, uint8_t **ret, size_t *ret_len)
{
    *ret = (uint8_t *)strdup("facts");
    *ret_len = 5;
    return 0;
}

static void on_write_out(void *opaque)
{
    struct play *p = opaque;

    atomic_fetch_add(atomic_load(&p->stopped) ? &p->written_out_late : &p->written_out, 1);
}

static int on_stop(void *opaque, bool *ret_run, struct mig_downtime *times, struct mig_error *err)
{
    struct play *p = opaque;

    if (p->goes_on)
        return mig_error(err, -EIO, "a disk cannot be written out");
    atomic_store(&p->stopped, true);
    *ret_run = true;
    return 0;
}

static int on_save(void *opaque, uint8_t **ret, size_t *ret_len, uint64_t *ret_captured_ns)
{
    *ret_captured_ns = clock_ns();
    return on_facts(opaque, ret, ret_len);
}

static void on_resume(void *opaque)
{
    struct play *p = opaque;

    atomic_store(&p->resumed, true);
}

static int on_give_away(void *opaque, bool needed)
{
    struct play *p = opaque;

    atomic_store(&p->given, !p->keeps);
    return p->keeps ? -ECANCELED : 0;
}

static void on_changed(void *opaque, bool round)
{
}

static const struct mig_source_ops ops = {
    .facts = on_facts,
    .write_out = on_write_out,
    .stop = on_stop,
    .save = on_save,
    .resume = on_resume,
    .give_away = on_give_away,
    .changed = on_changed,
};

/* -- the play -- */

static struct play *playing;

static void play_new(struct play *p)
{
    struct mem_config mem_config = {.size = MEMORY};
    struct dirty_config config = {.backend = DIRTY_BITMAP, .ops = &fake_ops, .opaque = &p->kvm};
    struct mig_error err = {""};

    memset(p, 0, sizeof(*p));
    assert_int_equal(mem_new(&mem_config, &p->mem), 0);
    p->kvm.mem = p->mem;
    p->kvm.vcpus = 1;
    fake_init(&p->kvm, 1);
    assert_int_equal(dirty_log_new(p->mem, &config, &p->dirty), 0);
    memset(mem_ptr(p->mem, 0, MEMORY), 0x5a, MEMORY);
    snprintf(p->path, sizeof(p->path), "/tmp/umbra-source-%d", (int)getpid());
    snprintf(p->uri, sizeof(p->uri), "unix:%s", p->path);
    if (mig_listen(p->uri, &p->listener, &err) < 0)
        fail_msg("%s", err.text);
    playing = p;
}

static void hang_up(struct play *p)
{
    for (int i = 0; i < 2; i++) {
        if (p->connected[i])
            mig_stream_clear(&p->s[i]);
        p->connected[i] = false;
    }
}

static int end_play(void **state)
{
    struct play *p = playing;

    if (!p)
        return 0;
    hang_up(p);
    mig_source_free(p->source);
    mig_listener_close(&p->listener);
    dirty_log_free(p->dirty);
    fake_destroy(&p->kvm);
    mem_free(p->mem);
    playing = NULL;
    return 0;
}

static void start(struct play *p, const struct mig_parameters *parameters)
{
    struct mig_source_config config = {
        .mem = p->mem, .dirty = p->dirty, .ops = &ops, .opaque = p, .parameters = *parameters, .uri = p->uri, .fd = -1};

    assert_int_equal(mig_source_start(&config, &p->source), 0);
}

static struct mig_report wait_status(struct play *p, enum mig_status wanted)
{
    uint64_t end = clock_ns() + 60 * NSEC_PER_SEC;
    struct mig_report r;

    do {
        mig_source_report(p->source, &r);
        if (clock_ns() > end)
            fail_msg("status %s after a minute, not %s: %s", mig_status_name(r.status), mig_status_name(wanted), r.why);
        sched_yield();
    } while (r.status != wanted);
    return r;
}

/* -- lines of the play -- */

static struct mig_hello pick_up(struct play *p, unsigned int channel)
{
    struct pollfd poll_fd = {.fd = p->listener.fd, .events = POLLIN};
    struct mig_error err = {""};
    struct mig_hello hello;
    int fd;

    assert_int_equal(poll(&poll_fd, 1, TIMEOUT_MS), 1);
    fd = accept4(p->listener.fd, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd >= 0);
    mig_stream_init(&p->s[channel], fd, false);
    mig_stream_set_timeout(&p->s[channel], TIMEOUT_MS);
    p->connected[channel] = true;
    if (mig_receive_hello(&p->s[channel], &hello, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(hello.channel, channel);
    return hello;
}

static void say(struct play *p, enum mig_type type, const void *payload, size_t len)
{
    struct mig_error err = {""};

    if (mig_send_frame(&p->s[0], type, payload, len, &err) < 0)
        fail_msg("%s: %s", mig_type_name(type), err.text);
}

static void say_u64(struct play *p, enum mig_type type, uint64_t value)
{
    uint8_t buf[8];

    le64_put(buf, value);
    say(p, type, buf, sizeof(buf));
}

static void take_pages(struct play *p, unsigned int channel, const struct mig_frame *f)
{
    static uint8_t data[MIG_BATCH_PAGES * GUEST_PAGE_SIZE];
    struct mig_run runs[MIG_BATCH_RUNS];
    struct mig_error err = {""};
    struct iovec iov;
    unsigned int count;
    uint32_t pages;

    assert_int_equal(mig_runs_get(f->payload, f->length, PAGES, runs, &count, &pages, &err), 0);
    iov = (struct iovec){data, pages_to_bytes(pages)};
    if (pages > 0)
        assert_int_equal(mig_receive_raw(&p->s[channel], &iov, 1, &err), 0);
    for (unsigned int i = 0; i < count; i++)
        for (pfn_t page = runs[i].pfn; page < runs[i].pfn + runs[i].pages; page++)
            bitmap_set(p->got[channel], page);
}

static void take_map(struct play *p, const struct mig_frame *f)
{
    static uint64_t bits[MIG_MAP_WORDS];
    struct mig_error err = {""};
    size_t words;
    pfn_t first;

    assert_int_equal(mig_map_get(f->payload, f->length, PAGES, &first, bits, &words, &err), 0);
    for (size_t i = 0; i < words; i++)
        p->absent[first / 64 + i] |= bits[i];
}

/* The next frame that is no pages and no END. */
static struct mig_frame hear_next(struct play *p)
{
    struct mig_error err = {""};
    struct mig_frame f;

    for (;;) {
        struct pollfd fds[2] = {{.fd = p->s[0].fd, .events = POLLIN}, {.fd = p->connected[1] ? p->s[1].fd : -1, .events = POLLIN}};
        unsigned int channel;

        if (poll(fds, 2, TIMEOUT_MS) <= 0)
            fail_msg("nothing is heard");
        /* What was said last is on the first, where the other is closed already. */
        p->heard_on = channel = fds[1].revents == POLLIN ? 1 : 0;
        if (mig_receive(&p->s[channel], &f, &err) < 0)
            fail_msg("channel %u: %s", channel, err.text);
        if (f.type == MIG_BATCH)
            take_pages(p, channel, &f);
        else if (f.type == MIG_END)
            p->ended |= UINT64_C(1) << channel;
        else
            return f;
    }
}

static struct mig_frame hear(struct play *p, enum mig_type type)
{
    struct mig_frame f = hear_next(p);

    if (f.type != type)
        fail_msg("%s instead of %s", mig_type_name(f.type), mig_type_name(type));
    return f;
}

static void answer(struct play *p, const struct mig_frame *ping)
{
    struct mig_error err = {""};

    if (mig_send_u64(&p->s[p->heard_on], MIG_PONG, le64_get(ping->payload), &err) < 0)
        fail_msg("%s", err.text);
}

/* The next frame that is no ping, either. */
static struct mig_frame hear_answering(struct play *p)
{
    struct mig_frame f;

    while ((f = hear_next(p)).type == MIG_PING)
        answer(p, &f);
    return f;
}

/* Until pages may come. */
static void agree(struct play *p)
{
    struct mig_hello hello = pick_up(p, 0);
    struct mig_error err = {""};
    struct mig_frame f;

    hear(p, MIG_SETUP);
    assert_int_equal(mig_send_hello(&p->s[0], &hello, &err), 0);
    say(p, MIG_ACCEPT, NULL, 0);
    pick_up(p, 1);
    f = hear(p, MIG_PING);
    answer(p, &f);
}

static const struct mig_parameters into_postcopy = {
    .downtime_limit_ns = 300 * NSEC_PER_MSEC, .postcopy_bandwidth = 64 * KiB, .channels = 2, .postcopy = true};

/* Post-copy from the start, up to COMMIT. */
static void until_commit(struct play *p)
{
    struct mig_frame f;

    start(p, &into_postcopy);
    assert_int_equal(mig_source_postcopy(p->source), 0);
    agree(p);
    while ((f = hear_next(p)).type == MIG_ABSENT)
        take_map(p, &f);
    assert_int_equal(f.type, MIG_PING);
    assert_int_equal(p->ended, 3);
    answer(p, &f);
    hear(p, MIG_STATE);
    say_u64(p, MIG_READY, 0);
    hear(p, MIG_COMMIT);
    assert_true(atomic_load(&p->stopped) && atomic_load(&p->given));
}

/* -- tests -- */

/* Another channel has taken the page up and waits for bandwidth, for as long as the test has time: it comes all the same. */
static void test_asked_for_goes_first(void **state)
{
    static struct play p;
    struct mig_error err = {""};
    struct mig_frame f;
    uint64_t first;

    play_new(&p);
    until_commit(&p);
    say_u64(&p, MIG_RUNNING, 0);
    first = bitmap_next_set(p.absent, PAGES, 0);
    assert_true(first + 2 * MIG_BATCH_PAGES < PAGES);
    while (!bitmap_test(p.got[0], first)) {
        assert_int_equal(mig_receive(&p.s[0], &f, &err), 0);
        take_pages(&p, 0, &f);
    }
    for (pfn_t page = first + MIG_BATCH_PAGES; page < first + 2 * MIG_BATCH_PAGES; page += 16) {
        say_u64(&p, MIG_REQUEST, page);
        while (!bitmap_test(p.got[1], page)) {
            if (mig_receive(&p.s[1], &f, &err) < 0)
                fail_msg("page %llu: %s", (unsigned long long)page, err.text);
            take_pages(&p, 1, &f);
        }
    }
    end_play(state);
}

/* One that ends as it is told to run the guest: whoever knows that may give it up, and nobody else. */
static void test_given_up_after_commit(void **state)
{
    static struct play p;
    struct mig_report r;

    log_set_level(LOG_LEVEL_ERR - 1);
    play_new(&p);
    until_commit(&p);
    mig_source_cancel(p.source);
    hang_up(&p);
    r = wait_status(&p, MIG_STATUS_POSTCOPY_PAUSED);
    assert_memory_equal(r.why, "lost the target, where the guest may be running", 47);
    mig_source_cancel(p.source);
    r = wait_status(&p, MIG_STATUS_FAILED);
    assert_string_equal(r.why, "given up after the target was told to run the guest and did not answer: it may be running there");
    end_play(state);

    /* It said that it runs it. */
    play_new(&p);
    until_commit(&p);
    say_u64(&p, MIG_RUNNING, 0);
    wait_status(&p, MIG_STATUS_POSTCOPY_ACTIVE);
    hang_up(&p);
    wait_status(&p, MIG_STATUS_POSTCOPY_PAUSED);
    mig_source_cancel(p.source);
    mig_source_report(p.source, &r);
    assert_int_equal(r.status, MIG_STATUS_POSTCOPY_PAUSED);
    end_play(state);
    log_set_level(LOG_LEVEL_ERR);
}

/* Everything was sent when post-copy is asked for: the target has to hear of it nonetheless. */
static void test_postcopy_of_nothing(void **state)
{
    static struct play p;
    struct mig_parameters parameters = into_postcopy;
    struct mig_frame f;

    play_new(&p);
    start(&p, &parameters);
    agree(&p);
    /* All is there, as the answer to the ping behind it is to tell. */
    f = hear(&p, MIG_PING);
    assert_int_equal(mig_source_postcopy(p.source), 0);
    answer(&p, &f);
    f = hear_answering(&p);
    assert_int_equal(f.type, MIG_ABSENT);
    take_map(&p, &f);
    assert_true(bitmap_next_set(p.absent, PAGES, 0) == PAGES);
    end_play(state);
}

/* Disks are written out while the guest runs, as often as there is reason to. */
static void test_writes_out_before(void **state)
{
    static struct play p;

    play_new(&p);
    until_commit(&p);
    assert_true(atomic_load(&p.written_out) >= 2);
    assert_int_equal(atomic_load(&p.written_out_late), 0);
    end_play(state);
}

/* A daemon that ends just then keeps its guest, and the target is not told to run it. */
static void test_cannot_give_away(void **state)
{
    static struct play p;
    struct mig_error err = {""};
    struct mig_report r;
    struct mig_frame f;

    play_new(&p);
    p.keeps = true;
    start(&p, &into_postcopy);
    agree(&p);
    f = hear_answering(&p);
    assert_int_equal(f.type, MIG_STATE);
    say_u64(&p, MIG_READY, 0);
    r = wait_status(&p, MIG_STATUS_FAILED);
    assert_string_equal(r.why, "the daemon is ending");
    assert_true(atomic_load(&p.resumed) && !atomic_load(&p.given));
    while (mig_receive(&p.s[0], &f, &err) == 0)
        assert_int_not_equal(f.type, MIG_COMMIT);
    end_play(state);
}

/* What keeps the guest here is what the target is told, too. */
static void test_says_why(void **state)
{
    static struct play p;
    struct mig_report r;
    struct mig_frame f;

    play_new(&p);
    p.goes_on = true;
    start(&p, &into_postcopy);
    agree(&p);
    f = hear_answering(&p);
    assert_int_equal(f.type, MIG_CANCEL);
    assert_int_equal(f.length, strlen("a disk cannot be written out"));
    assert_memory_equal(f.payload, "a disk cannot be written out", f.length);
    r = wait_status(&p, MIG_STATUS_FAILED);
    assert_string_equal(r.why, "a disk cannot be written out");
    assert_false(atomic_load(&p.given));
    end_play(state);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_asked_for_goes_first, end_play),
        cmocka_unit_test_teardown(test_given_up_after_commit, end_play),
        cmocka_unit_test_teardown(test_postcopy_of_nothing, end_play),
        cmocka_unit_test_teardown(test_writes_out_before, end_play),
        cmocka_unit_test_teardown(test_cannot_give_away, end_play),
        cmocka_unit_test_teardown(test_says_why, end_play),
    };

    log_init("test-migrate-source", NULL);
    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests_name("migrate-source", tests, NULL, NULL);
}
