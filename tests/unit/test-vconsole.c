/* virtio-console: text goes both ways, whoever is slow makes only the other end wait, and nothing is lost over a restore. */
#include "config.h"

#include "virtio-small.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device/chardev-internal.h"
#include "device/virtio/console.h"

#define DATA 0x40000
#define WRITE VRING_DESC_F_WRITE
#define RING 1024u
#define EMERGENCY (VIRTIO_MMIO_CONFIG + 8)

static struct small s;
static struct event_base *events;
static struct chardev *chardev;
static char path[64];
static int reader; /* of the FIFO */

static void start(void)
{
    const struct chardev_config config = {.kind = CHARDEV_FILE, .path = path, .buffer_size = RING};

    small_init(&s, 4 * MiB);
    snprintf(path, sizeof(path), "/tmp/test-vconsole-%d", (int)getpid());
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    reader = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    assert_true(reader >= 0);
    assert_int_equal(fcntl(reader, F_SETPIPE_SZ, 4096), 4096);
    events = event_base_new();
    assert_int_equal(chardev_new(&config, events, &chardev), 0);
    assert_int_equal(vconsole_create(&s.f.env, chardev, 0, &s.dev), 0);
    small_start(&s, 2, 0);
}

static int teardown(void **state)
{
    device_destroy(s.dev);
    s.dev = NULL;
    chardev_free(chardev);
    event_base_free(events);
    close(reader);
    unlink(path);
    small_fini(&s);
    return 0;
}

static void turn(void)
{
    for (int i = 0; i < 3; i++)
        event_base_loop(events, EVLOOP_NONBLOCK);
}

static size_t read_all(char *buf, size_t size)
{
    size_t len = 0;
    ssize_t n;

    for (;;) {
        chardev_flush(chardev);
        turn();
        n = read(reader, buf + len, size - len);
        if (n <= 0)
            return len;
        len += (size_t)n;
    }
}

static void test_output(void **state)
{
    char buf[256];
    size_t n;

    start();
    mem_write(s.mem, DATA, "hello ", 6);
    mem_write(s.mem, DATA + 4096, "world", 5);
    vd_desc(&s.d[1], 0, DATA, 6, VRING_DESC_F_NEXT, 1);
    vd_desc(&s.d[1], 1, DATA + 4096, 5, 0, 0);
    vd_offer(&s.d[1], 0);
    vb_kick(&s.f, 1);
    assert_int_equal(vd_used_idx(&s.d[1]), 1);
    vb_write(&s.f, EMERGENCY, '!');
    n = read_all(buf, sizeof(buf));
    assert_int_equal(n, 12);
    assert_memory_equal(buf, "hello world!", 12);
}

static void fill_data(unsigned int len)
{
    for (unsigned int i = 0; i < len; i++) {
        uint8_t byte = (uint8_t)('a' + i % 23);

        mem_write(s.mem, DATA + i, &byte, 1);
    }
}

static void check_data(const char *buf, size_t len)
{
    for (size_t i = 0; i < len; i++)
        assert_int_equal(buf[i], 'a' + i % 23);
}

/* A reader that stands still: the guest's buffer waits, half written, in this device or in a restored one. */
static void backpressure(bool restore)
{
    struct vconsole_counters counters;
    static char buf[32768];
    uint8_t *data;
    size_t n = 0, len;

    start();
    fill_data(20000);
    small_offer(&s, 1, 5, DATA, 20000, 0);
    turn();
    assert_int_equal(vd_used_idx(&s.d[1]), 0);
    vconsole_counters(s.dev, &counters);
    assert_true(counters.out_bytes >= RING && counters.out_bytes < 20000);
    if (restore) {
        device_quiesce(s.dev);
        len = save_device(s.dev, &data);
        device_reset(s.dev);
        assert_int_equal(restore_device(s.dev, data, len), 0);
        device_resume(s.dev);
        free(data);
    }
    for (int i = 0; i < 200 && n < 20000; i++)
        n += read_all(buf + n, sizeof(buf) - n);
    assert_int_equal(n, 20000);
    check_data(buf, n);
    assert_int_equal(vd_used_idx(&s.d[1]), 1);
    assert_int_equal(small_last(&s, 1).id, 5);
}

static void test_backpressure(void **state)
{
    backpressure(false);
}

static void test_backpressure_restored(void **state)
{
    backpressure(true);
}

/* A driver that goes away while its buffer waits. */
static void test_drop(void **state)
{
    start();
    fill_data(20000);
    small_offer(&s, 1, 5, DATA, 20000, 0);
    turn();
    small_start(&s, 2, 0);
    turn();
    small_offer(&s, 1, 6, DATA, 100, 0);
    for (int i = 0; i < 200 && vd_used_idx(&s.d[1]) == 0; i++) {
        static char buf[32768];

        read_all(buf, sizeof(buf));
    }
    assert_int_equal(small_last(&s, 1).id, 6);
}

static void type(const char *text)
{
    assert_int_equal(chardev_inject_input(chardev, (const uint8_t *)text, strlen(text)), strlen(text));
}

static void expect(uint64_t gpa, const char *text)
{
    char buf[64];

    assert_int_equal(mem_read(s.mem, gpa, buf, strlen(text)), 0);
    assert_memory_equal(buf, text, strlen(text));
}

static void test_input(void **state)
{
    struct vconsole_counters counters;

    start();
    /* Nobody wants it yet. */
    type("abcdefgh");
    assert_int_equal(vd_used_idx(&s.d[0]), 0);
    small_forget_dirty(&s);
    small_offer(&s, 0, 0, DATA, 5, WRITE);
    turn();
    assert_int_equal(small_last(&s, 0).len, 5);
    expect(DATA, "abcde");
    assert_true(small_is_dirty(&s, DATA));
    small_offer(&s, 0, 1, DATA + 4096, 64, WRITE);
    turn();
    assert_int_equal(small_last(&s, 0).len, 3);
    expect(DATA + 4096, "fgh");
    /* There is a buffer already. */
    small_offer(&s, 0, 2, DATA + 8192, 64, WRITE);
    type("xyz");
    assert_int_equal(small_last(&s, 0).id, 2);
    expect(DATA + 8192, "xyz");
    vconsole_counters(s.dev, &counters);
    assert_int_equal(counters.in_bytes, 11);
}

/* What is typed while the guest is paused arrives when it runs. */
static void test_input_quiet(void **state)
{
    start();
    small_offer(&s, 0, 0, DATA, 64, WRITE);
    device_quiesce(s.dev);
    type("later");
    turn();
    assert_int_equal(vd_used_idx(&s.d[0]), 0);
    device_resume(s.dev);
    turn();
    assert_int_equal(vd_used_idx(&s.d[0]), 1);
    expect(DATA, "later");
}

static void test_malformed(void **state)
{
    start();
    small_offer(&s, 0, 0, DATA, 64, 0);
    type("x");
    assert_true(vb_needs_reset(&s.f));
    small_start(&s, 2, 0);
    small_offer(&s, 0, 0, DATA, 64, WRITE);
    turn();
    expect(DATA, "x");
    /* Nothing to read is nothing to write. */
    small_offer(&s, 1, 0, DATA, 64, WRITE);
    assert_int_equal(small_last(&s, 1).len, 0);
    small_offer(&s, 1, 0, 0xfffffffff000, 64, 0);
    assert_true(vb_needs_reset(&s.f));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_output, teardown),       cmocka_unit_test_teardown(test_backpressure, teardown),
        cmocka_unit_test_teardown(test_drop, teardown),         cmocka_unit_test_teardown(test_backpressure_restored, teardown),
        cmocka_unit_test_teardown(test_input, teardown),        cmocka_unit_test_teardown(test_input_quiet, teardown),
        cmocka_unit_test_teardown(test_malformed, teardown),
    };

    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
