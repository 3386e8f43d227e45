/*
 * A target in post-copy, and a source that is played by hand, frame by frame: what it may say when, what becomes of a thread that
 * waits for a page, and how the two find each other again. Skipped where userfaultfd is not to be had.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "migrate/stream.h"
#include "migrate/target.h"
#include "mmu/absent.h"

#define MEMORY (1 * MiB)
#define PAGES (MEMORY / GUEST_PAGE_SIZE)
#define SESSION UINT64_C(0x1122334455667788)
#define TIMEOUT_MS 20000

struct play {
    struct mem *mem;
    struct mig_target *target;
    struct mig_stream s[2];
    bool connected[2];
    char path[64], uri[80];
    atomic_bool ran;
    pfn_t load_reads; /* loading the state touches this page; UINT64_MAX: none */
    uint8_t load_read;
};

static int on_compare(void *opaque, const uint8_t *state, size_t len, char **ret_why, struct mig_error *err)
{
    *ret_why = NULL;
    return 0;
}

static int on_adopt(void *opaque, int fd, struct mig_error *err)
{
    return mig_error(err, -EINVAL, "no");
}

static const uint8_t *page_of(struct play *p, pfn_t page)
{
    return mem_ram(p->mem) + page * GUEST_PAGE_SIZE;
}

static int on_load(void *opaque, const uint8_t *state, size_t len, uint64_t captured_ns, struct mig_error *err)
{
    struct play *p = opaque;

    if (p->load_reads != UINT64_MAX)
        p->load_read = *(const volatile uint8_t *)page_of(p, p->load_reads);
    return 0;
}

static int on_run(void *opaque, bool run, bool arriving)
{
    struct play *p = opaque;

    atomic_store(&p->ran, true);
    return 0;
}

static void on_changed(void *opaque, bool postcopy)
{
}

static const struct mig_target_ops ops = {on_compare, on_adopt, on_load, on_run, on_changed};

static struct play *playing;

static void play_new(struct play *p)
{
    struct mem_config config = {.size = MEMORY};
    struct mig_error err = {""};
    const char *why;

    *p = (struct play){.load_reads = UINT64_MAX};
    assert_int_equal(mem_new(&config, &p->mem), 0);
    if (absent_possible(p->mem, &why) < 0) {
        print_message("# no post-copy: %s\n", why);
        mem_free(p->mem);
        skip();
    }
    snprintf(p->path, sizeof(p->path), "/tmp/umbra-play-%d", (int)getpid());
    snprintf(p->uri, sizeof(p->uri), "unix:%s", p->path);
    if (mig_target_start(p->mem, p->uri, NULL, &ops, p, &p->target, &err) < 0)
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

static void play_free(struct play *p)
{
    hang_up(p);
    mig_target_free(p->target);
    mem_free(p->mem);
    unlink(p->path);
    playing = NULL;
}

static int end_play(void **state)
{
    if (playing)
        play_free(playing);
    return 0;
}

/* -- lines of the play -- */

/* After a cut the target may not wait yet. */
static int connect_to(const struct play *p)
{
    uint64_t end = clock_ns() + 10 * NSEC_PER_SEC;
    struct mig_error err = {""};
    int fd;

    /* After a cut the target may not wait yet. */
    while ((fd = mig_connect(p->uri, TIMEOUT_MS, -1, &err)) < 0 && clock_ns() < end)
        err = (struct mig_error){""};
    if (fd < 0)
        fail_msg("%s", err.text);
    return fd;
}

static void wait_until_read(int fd)
{
    int left = 1;

    while (left > 0) {
        assert_int_equal(ioctl(fd, SIOCOUTQ, &left), 0);
        sched_yield();
    }
}

static void dial(struct play *p, unsigned int channel, uint64_t session)
{
    struct mig_hello hello = {.version = MIG_VERSION, .channel = (uint16_t)channel, .channels = 2, .session = session};
    struct mig_error err = {""};

    mig_stream_init(&p->s[channel], connect_to(p), true);
    mig_stream_set_timeout(&p->s[channel], TIMEOUT_MS);
    p->connected[channel] = true;
    assert_int_equal(mig_send_hello(&p->s[channel], &hello, &err), 0);
}

static void say(struct play *p, unsigned int channel, enum mig_type type, const void *payload, size_t len)
{
    struct mig_error err = {""};

    if (mig_send_frame(&p->s[channel], type, payload, len, &err) < 0)
        fail_msg("%s: %s", mig_type_name(type), err.text);
}

static void say_u64(struct play *p, unsigned int channel, enum mig_type type, uint64_t value)
{
    uint8_t buf[8];

    le64_put(buf, value);
    say(p, channel, type, buf, sizeof(buf));
}

static struct mig_frame hear(struct play *p, enum mig_type type)
{
    struct mig_error err = {""};
    struct mig_frame f;

    if (mig_receive(&p->s[0], &f, &err) < 0)
        fail_msg("%s expected: %s", mig_type_name(type), err.text);
    if (f.type != type)
        fail_msg("%s instead of %s: %.*s", mig_type_name(f.type), mig_type_name(type), (int)f.length, (const char *)f.payload);
    return f;
}

/* The connection is closed, without another word. */
static void hear_nothing(struct play *p)
{
    struct mig_error err = {""};
    struct mig_frame f;

    assert_int_equal(mig_receive(&p->s[0], &f, &err), -ECONNRESET);
}

static void say_setup(struct play *p, uint32_t flags)
{
    struct mig_setup setup = {.memory = MEMORY, .page_size = GUEST_PAGE_SIZE, .flags = flags};
    uint8_t buf[MIG_SETUP_FIXED];

    mig_setup_put(&setup, buf);
    say(p, 0, MIG_SETUP, buf, sizeof(buf));
}

static void hear_hello(struct play *p)
{
    struct mig_error err = {""};
    struct mig_hello hello;

    if (mig_receive_hello(&p->s[0], &hello, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(hello.session == SESSION && hello.channels == 2);
}

static void begin(struct play *p, uint32_t flags)
{
    dial(p, 0, SESSION);
    say_setup(p, flags);
    hear_hello(p);
    hear(p, MIG_ACCEPT);
    dial(p, 1, SESSION);
}

static void say_ends(struct play *p)
{
    for (unsigned int i = 0; i < 2; i++)
        say_u64(p, i, MIG_END, 0);
}

static void say_absent(struct play *p, pfn_t first, uint64_t bits)
{
    uint8_t buf[MIG_MAP_FIXED + 8];

    say(p, 0, MIG_ABSENT, buf, mig_map_put(first, &bits, 1, buf));
}

static void say_state(struct play *p)
{
    uint8_t buf[MIG_STATE_FIXED];

    mig_state_put(&(struct mig_state){.run = 1}, buf);
    say(p, 0, MIG_STATE, buf, sizeof(buf));
}

/* A page of that byte; 0: a run of zeros. */
static void say_page(struct play *p, unsigned int channel, pfn_t page, uint8_t byte)
{
    uint8_t run[MIG_RUN_SIZE], data[GUEST_PAGE_SIZE];
    struct iovec raw = {data, sizeof(data)};
    struct mig_message m = {
        .type = MIG_BATCH, .head = run, .head_len = sizeof(run), .raw = &raw, .raw_count = byte ? 1 : 0, .pass_fd = -1};
    struct mig_error err = {""};

    memset(data, byte, sizeof(data));
    mig_run_put(&(struct mig_run){.pfn = page, .pages = 1, .kind = byte ? MIG_RUN_DATA : MIG_RUN_ZERO}, run);
    if (mig_send(&p->s[channel], &m, &err) < 0)
        fail_msg("%s", err.text);
}

static void until_it_runs(struct play *p, uint64_t absent)
{
    begin(p, MIG_SETUP_POSTCOPY);
    say_ends(p);
    say_absent(p, 0, absent);
    say_state(p);
    hear(p, MIG_READY);
    say(p, 0, MIG_COMMIT, NULL, 0);
    hear(p, MIG_RUNNING);
}

static void wait_status(struct play *p, enum mig_status wanted)
{
    uint64_t end = clock_ns() + 20 * NSEC_PER_SEC;
    struct mig_report r;

    do {
        mig_target_report(p->target, &r);
        if (clock_ns() > end)
            fail_msg("status %s, not %s: %s", mig_status_name(r.status), mig_status_name(wanted), r.why);
        sched_yield();
    } while (r.status != wanted);
}

/* It ends, and that is why. */
static void check_failed(struct play *p, const char *why)
{
    struct mig_report r;

    wait_status(p, MIG_STATUS_FAILED);
    mig_target_report(p->target, &r);
    assert_string_equal(r.why, why);
    assert_false(atomic_load(&p->ran));
}

/* -- a guest that touches a page -- */

struct touch {
    pthread_t thread;
    struct play *p;
    pfn_t page;
    uint8_t byte;
};

static void *touch_thread(void *arg)
{
    struct touch *t = arg;

    t->byte = *(const volatile uint8_t *)page_of(t->p, t->page);
    return NULL;
}

static void begin_touch(struct touch *t, struct play *p, pfn_t page)
{
    *t = (struct touch){.p = p, .page = page};
    assert_int_equal(pthread_create(&t->thread, NULL, touch_thread, t), 0);
}

static uint8_t end_touch(struct touch *t)
{
    pthread_join(t->thread, NULL);
    return t->byte;
}

static void hear_request(struct play *p, pfn_t page)
{
    struct mig_frame f = hear(p, MIG_REQUEST);

    assert_int_equal(le64_get(f.payload), page);
}

/* -- tests -- */

static void test_pages_follow(void **state)
{
    struct mig_report r;
    static struct play p;
    struct touch t;

    play_new(&p);
    until_it_runs(&p, 0x1f);
    begin_touch(&t, &p, 3);
    hear_request(&p, 3);
    say_page(&p, 1, 3, 0x33);
    assert_int_equal(end_touch(&t), 0x33);
    /* It goes on a little before the page is counted. */
    do
        mig_target_report(p.target, &r);
    while (r.remaining == 5 * GUEST_PAGE_SIZE);
    assert_true(r.status == MIG_STATUS_POSTCOPY_ACTIVE && r.remaining == 4 * GUEST_PAGE_SIZE && r.requests == 1);
    say_page(&p, 0, 0, 0x10);
    say_page(&p, 0, 1, 0);
    say_page(&p, 1, 2, 0x12);
    /* Twice, and one that was never absent. */
    say_page(&p, 0, 3, 0x44);
    say_page(&p, 0, 9, 0x99);
    say_page(&p, 0, 4, 0x14);
    hear(&p, MIG_WHOLE);
    wait_status(&p, MIG_STATUS_COMPLETED);
    say(&p, 0, MIG_DONE, NULL, 0);
    for (pfn_t page = 0; page < 5; page++)
        assert_int_equal(*page_of(&p, page), ((const uint8_t[]){0x10, 0, 0x12, 0x33, 0x14})[page]);
    assert_int_equal(*page_of(&p, 9), 0);
    play_free(&p);
}

static void test_load_may_touch(void **state)
{
    static struct play p;

    play_new(&p);
    p.load_reads = 2;
    begin(&p, MIG_SETUP_POSTCOPY);
    say_ends(&p);
    say_absent(&p, 0, 4);
    say_state(&p);
    hear_request(&p, 2);
    say_page(&p, 1, 2, 0x22);
    hear(&p, MIG_READY);
    assert_int_equal(p.load_read, 0x22);
    say(&p, 0, MIG_COMMIT, NULL, 0);
    /* All is there already. */
    wait_status(&p, MIG_STATUS_COMPLETED);
    play_free(&p);
}

/* Cut before COMMIT: nothing runs, and what loads the state does not wait for ever. */
static void test_cut_before_commit(void **state)
{
    static struct play p;

    play_new(&p);
    p.load_reads = 2;
    begin(&p, MIG_SETUP_POSTCOPY);
    say_ends(&p);
    say_absent(&p, 0, 4);
    say_state(&p);
    hear_request(&p, 2);
    hang_up(&p);
    wait_status(&p, MIG_STATUS_FAILED);
    assert_false(atomic_load(&p.ran));
    play_free(&p);
}

static void test_resumes(void **state)
{
    struct mig_frame f;
    static struct play p;
    struct touch t;

    play_new(&p);
    until_it_runs(&p, 0x7);
    begin_touch(&t, &p, 1);
    hear_request(&p, 1);
    say_page(&p, 0, 0, 0x10);
    say_u64(&p, 0, MIG_PING, 5);
    hear(&p, MIG_PONG);
    hang_up(&p);
    wait_status(&p, MIG_STATUS_POSTCOPY_PAUSED);
    /* Somebody else; one that begins anew; and one that asks for something else. */
    dial(&p, 0, SESSION + 1);
    hear_nothing(&p);
    hang_up(&p);
    dial(&p, 0, SESSION);
    say_setup(&p, MIG_SETUP_POSTCOPY);
    hear_nothing(&p);
    hang_up(&p);
    dial(&p, 0, SESSION);
    say(&p, 0, MIG_COMMIT, NULL, 0);
    hear_nothing(&p);
    hang_up(&p);
    wait_status(&p, MIG_STATUS_POSTCOPY_PAUSED);
    /* Itself. */
    dial(&p, 0, SESSION);
    say(&p, 0, MIG_RESUME, NULL, 0);
    hear_hello(&p);
    f = hear(&p, MIG_MISSING);
    assert_true(f.length == 16 && le64_get(f.payload) == 0 && le64_get(f.payload + 8) == 6);
    hear(&p, MIG_ACCEPT);
    dial(&p, 1, SESSION);
    hear_request(&p, 1);
    say_page(&p, 1, 1, 0x11);
    assert_int_equal(end_touch(&t), 0x11);
    say_page(&p, 0, 2, 0x12);
    hear(&p, MIG_WHOLE);
    /* That was not heard: it comes again, as often as it takes. */
    for (int i = 0; i < 3; i++) {
        hang_up(&p);
        dial(&p, 0, SESSION);
        say(&p, 0, MIG_RESUME, NULL, 0);
        hear_hello(&p);
        hear(&p, MIG_ACCEPT);
        dial(&p, 1, SESSION);
        hear(&p, MIG_WHOLE);
        wait_status(&p, MIG_STATUS_COMPLETED);
    }
    say(&p, 0, MIG_DONE, NULL, 0);
    hear_nothing(&p);
    play_free(&p);
}

/* The last page comes while the target finds its source again: it is told of, by whoever sees it. */
static void test_last_page_at_once(void **state)
{
    for (int i = 0; i < 20; i++) {
        static struct play p;

        play_new(&p);
        until_it_runs(&p, 1);
        hang_up(&p);
        dial(&p, 0, SESSION);
        say(&p, 0, MIG_RESUME, NULL, 0);
        hear_hello(&p);
        hear(&p, MIG_MISSING);
        hear(&p, MIG_ACCEPT);
        dial(&p, 1, SESSION);
        say_page(&p, 1, 0, 0x11);
        hear(&p, MIG_WHOLE);
        say(&p, 0, MIG_DONE, NULL, 0);
        wait_status(&p, MIG_STATUS_COMPLETED);
        play_free(&p);
    }
}

/* The source is gone after its last page, without a word: memory is as good as it would be after one. */
static void test_source_ends_unheard(void **state)
{
    uint64_t end = clock_ns() + 20 * NSEC_PER_SEC;
    static struct play p;
    const char *why;
    struct mig_report r;

    play_new(&p);
    until_it_runs(&p, 1);
    assert_int_equal(mem_give_back(p.mem, mem_ptr(p.mem, 9 * GUEST_PAGE_SIZE, 1), GUEST_PAGE_SIZE), 0);
    say_page(&p, 1, 0, 0x11);
    hear(&p, MIG_WHOLE);
    hang_up(&p);
    while (absent_possible(p.mem, &why) < 0) {
        if (clock_ns() > end)
            fail_msg("%s", why);
        sched_yield();
    }
    while (mem_give_back(p.mem, mem_ptr(p.mem, 9 * GUEST_PAGE_SIZE, 1), GUEST_PAGE_SIZE) == 0)
        assert_true(clock_ns() < end);
    assert_int_equal(*page_of(&p, 0), 0x11);
    mig_target_report(p.target, &r);
    assert_true(r.status == MIG_STATUS_COMPLETED && r.remaining == 0);
    /* But if it lives after all it is told, and a page that it sends all the same ends its connection only. */
    for (int i = 0; i < 2; i++) {
        dial(&p, 0, SESSION);
        say(&p, 0, MIG_RESUME, NULL, 0);
        hear_hello(&p);
        hear(&p, MIG_ACCEPT);
        dial(&p, 1, SESSION);
        hear(&p, MIG_WHOLE);
        if (i == 0)
            say_page(&p, 1, 0, 0x22);
        else
            say(&p, 0, MIG_DONE, NULL, 0);
        hear_nothing(&p);
        hang_up(&p);
    }
    assert_int_equal(*page_of(&p, 0), 0x11);
    play_free(&p);
}

static void test_paused_and_ended(void **state)
{
    static struct play p;
    struct touch t;

    play_new(&p);
    until_it_runs(&p, 0x7);
    begin_touch(&t, &p, 1);
    hear_request(&p, 1);
    assert_int_equal(mig_target_pause(p.target), 0);
    wait_status(&p, MIG_STATUS_POSTCOPY_PAUSED);
    assert_int_equal(mig_target_pause(p.target), -EINVAL);
    /* In a daemon the process ends after this. */
    mig_target_abandon(p.target);
    assert_int_equal(access(p.path, F_OK), -1);
    hang_up(&p);
    mig_target_free(p.target);
    p.target = NULL;
    end_touch(&t);
    play_free(&p);
}

/* Somebody who connects and does not say what he is does not hold up the end: neither at first nor while the source is lost. */
static void test_end_while_greeting(void **state)
{
    static struct play p;

    for (int lost = 0; lost < 2; lost++) {
        uint64_t start;
        int fd;

        play_new(&p);
        if (lost) {
            until_it_runs(&p, 1);
            hang_up(&p);
            wait_status(&p, MIG_STATUS_POSTCOPY_PAUSED);
        }
        fd = connect_to(&p);
        assert_int_equal(write(fd, "UMBRA", 5), 5);
        /* Until it is read it may not even be accepted. */
        wait_until_read(fd);
        start = clock_ns();
        mig_target_abandon(p.target);
        assert_true(clock_ns() - start < 5 * NSEC_PER_SEC);
        close(fd);
        play_free(&p);
    }
}

/* Everything that must not come where it does. */
static void test_out_of_order(void **state)
{
    static const struct {
        uint32_t flags;
        bool ends, twice;
        enum mig_type type;
        const char *why;
    } cases[] = {
        {0, true, false, MIG_ABSENT, "absent: not expected"},
        {MIG_SETUP_POSTCOPY, false, false, MIG_ABSENT, "absent: not expected"},
        {MIG_SETUP_POSTCOPY, true, false, MIG_RESUME, "frame: resume is not expected on channel 0"},
        {MIG_SETUP_POSTCOPY, true, false, MIG_DONE, "frame: done is not expected on channel 0"},
        {MIG_SETUP_POSTCOPY, true, false, MIG_COMMIT, "commit: not expected"},
        {MIG_SETUP_POSTCOPY, true, false, MIG_BATCH, "batch: pages after the end of the channel"},
        {MIG_SETUP_POSTCOPY, true, true, MIG_ABSENT, "map: 1 words at page 256 of 256"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        static struct play p;

        play_new(&p);
        begin(&p, cases[i].flags);
        if (cases[i].ends)
            say_ends(&p);
        if (cases[i].type == MIG_ABSENT)
            say_absent(&p, cases[i].twice ? PAGES : 0, 1);
        else if (cases[i].type == MIG_BATCH)
            say_page(&p, 0, 1, 1);
        else
            say(&p, 0, cases[i].type, NULL, 0);
        check_failed(&p, cases[i].why);
        play_free(&p);
    }
}

static void test_absent_after_state(void **state)
{
    static struct play p;

    play_new(&p);
    begin(&p, MIG_SETUP_POSTCOPY);
    say_ends(&p);
    say_state(&p);
    hear(&p, MIG_READY);
    say_absent(&p, 0, 1);
    check_failed(&p, "absent: not expected");
    play_free(&p);
}

/* In post-copy the connection ends, and the guest stays. */
static void test_lies_in_postcopy(void **state)
{
    static const enum mig_type types[] = {MIG_SETUP, MIG_STATE, MIG_COMMIT, MIG_END, MIG_DONE, MIG_ABSENT};

    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        static struct play p;

        play_new(&p);
        until_it_runs(&p, 0x7);
        switch (types[i]) {
        case MIG_SETUP:
            say_setup(&p, 0);
            break;
        case MIG_STATE:
            say_state(&p);
            break;
        case MIG_END:
            say_u64(&p, 0, MIG_END, 0);
            break;
        case MIG_ABSENT:
            say_absent(&p, 0, 1);
            break;
        default:
            say(&p, 0, types[i], NULL, 0);
        }
        wait_status(&p, MIG_STATUS_POSTCOPY_PAUSED);
        assert_true(atomic_load(&p.ran));
        play_free(&p);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_pages_follow, end_play),
        cmocka_unit_test_teardown(test_load_may_touch, end_play),
        cmocka_unit_test_teardown(test_cut_before_commit, end_play),
        cmocka_unit_test_teardown(test_resumes, end_play),
        cmocka_unit_test_teardown(test_last_page_at_once, end_play),
        cmocka_unit_test_teardown(test_source_ends_unheard, end_play),
        cmocka_unit_test_teardown(test_paused_and_ended, end_play),
        cmocka_unit_test_teardown(test_end_while_greeting, end_play),
        cmocka_unit_test_teardown(test_out_of_order, end_play),
        cmocka_unit_test_teardown(test_absent_after_state, end_play),
        cmocka_unit_test_teardown(test_lies_in_postcopy, end_play),
    };

    log_init("test-migrate-postcopy", NULL);
    log_set_level(LOG_LEVEL_ERR - 1);
    return cmocka_run_group_tests_name("migrate-postcopy", tests, NULL, NULL);
}
