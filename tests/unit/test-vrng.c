/* virtio-rng: bytes arrive where they should and nowhere else, the rate holds, a driver that lies does no harm. */
#include "config.h"

#include "virtio-small.h"

#include "device/virtio/rng.h"

#define DATA 0x40000
#define WRITE VRING_DESC_F_WRITE

static struct small s;

static void start(uint64_t rate)
{
    const struct vrng_config config = {.on = true, .rate = rate};

    small_init(&s, 4 * MiB);
    assert_int_equal(vrng_create(&s.f.env, &config, 0, &s.dev), 0);
    small_start(&s, 1, 0);
}

static int teardown(void **state)
{
    small_fini(&s);
    return 0;
}

static unsigned int zeros(uint64_t gpa, unsigned int len)
{
    unsigned int n = 0;
    uint8_t byte;

    for (unsigned int i = 0; i < len; i++) {
        assert_int_equal(mem_read(s.mem, gpa + i, &byte, 1), 0);
        n += byte == 0;
    }
    return n;
}

static void test_bytes(void **state)
{
    struct vrng_counters counters;
    uint64_t again, first;

    start(0);
    small_forget_dirty(&s);
    small_offer(&s, 0, 0, DATA + 4000, 1000, WRITE);
    assert_int_equal(vd_used_idx(&s.d[0]), 1);
    assert_int_equal(small_last(&s, 0).len, 1000);
    /* 4 are expected. */
    assert_in_range(zeros(DATA + 4000, 1000), 0, 60);
    assert_int_equal(zeros(DATA, 4000), 4000);
    assert_int_equal(zeros(DATA + 5000, 1000), 1000);
    assert_true(small_is_dirty(&s, DATA) && small_is_dirty(&s, DATA + 4096));
    assert_false(small_is_dirty(&s, DATA + 8192));
    mem_read(s.mem, DATA + 4000, &first, sizeof(first));
    small_offer(&s, 0, 0, DATA + 4000, 8, WRITE);
    mem_read(s.mem, DATA + 4000, &again, sizeof(again));
    assert_true(first != again);
    assert_true(s.f.edges[virtio_mmio_gsi(0)] > 0);
    vrng_counters(s.dev, &counters);
    assert_int_equal(counters.bytes, 1008);
    assert_int_equal(counters.waits, 0);
}

/* Several buffers, the last of which a huge request does not reach. */
static void test_large_request(void **state)
{
    start(0);
    vd_desc(&s.d[0], 0, DATA, 0x8000, WRITE | VRING_DESC_F_NEXT, 1);
    vd_desc(&s.d[0], 1, DATA + 0x10000, 0x10000, WRITE | VRING_DESC_F_NEXT, 2);
    vd_desc(&s.d[0], 2, DATA + 0x30000, 0x10000, WRITE, 0);
    vd_offer(&s.d[0], 0);
    small_forget_dirty(&s);
    vb_kick(&s.f, 0);
    assert_int_equal(small_last(&s, 0).len, VRNG_REQUEST_MAX);
    assert_in_range(zeros(DATA + 0x7000, 0x1000), 0, 100);
    assert_in_range(zeros(DATA + 0x10000, 0x8000), 0, 400);
    assert_int_equal(zeros(DATA + 0x18000, 0x8000), 0x8000);
    assert_false(small_is_dirty(&s, DATA + 0x18000));
    assert_false(small_is_dirty(&s, DATA + 0x30000));
}

static void test_rate(void **state)
{
    struct vrng_counters counters;

    /* 100 bytes each 100 ms. Answers are whole: the second owes 28 to the next period. */
    start(1000);
    small_offer(&s, 0, 0, DATA, 64, WRITE);
    small_offer(&s, 0, 0, DATA, 64, WRITE);
    assert_int_equal(small_last(&s, 0).len, 64);
    small_offer(&s, 0, 0, DATA, 64, WRITE);
    small_offer(&s, 0, 1, DATA, 64, WRITE);
    assert_int_equal(vd_used_idx(&s.d[0]), 2);
    s.f.mono_ns += 99 * NSEC_PER_MSEC;
    vb_kick(&s.f, 0);
    assert_int_equal(vd_used_idx(&s.d[0]), 2);
    s.f.mono_ns += 1 * NSEC_PER_MSEC;
    vb_kick(&s.f, 0);
    assert_int_equal(vd_used_idx(&s.d[0]), 4);
    assert_int_equal(small_last(&s, 0).len, 64);
    vrng_counters(s.dev, &counters);
    assert_int_equal(counters.bytes, 256);
    assert_true(counters.waits >= 2);
    /* What was not used does not add up. 400 bytes of 500 are owed: none for four periods. */
    s.f.mono_ns += 10 * NSEC_PER_SEC;
    small_offer(&s, 0, 0, DATA, 500, WRITE);
    assert_int_equal(small_last(&s, 0).len, 500);
    small_offer(&s, 0, 0, DATA, 1, WRITE);
    for (unsigned int i = 0; i < 4; i++) {
        s.f.mono_ns += 100 * NSEC_PER_MSEC;
        vb_kick(&s.f, 0);
        assert_int_equal(vd_used_idx(&s.d[0]), 5);
    }
    s.f.mono_ns += 100 * NSEC_PER_MSEC;
    vb_kick(&s.f, 0);
    assert_int_equal(vd_used_idx(&s.d[0]), 6);
}

/* Over time a driver that asks without end gets what the rate says, whatever the size of its requests. */
static void test_rate_holds(void **state)
{
    static const unsigned int sizes[] = {1, 7, 64, 99, 100, 101, 1000, 5000};

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        struct vrng_counters counters;

        start(1000);
        for (unsigned int offered = 0, ms = 0; ms < 60000; ms += 50) {
            vb_kick(&s.f, 0);
            while (offered == vd_used_idx(&s.d[0])) {
                small_offer(&s, 0, 0, DATA, sizes[i], WRITE);
                offered++;
            }
            s.f.mono_ns += 50 * NSEC_PER_MSEC;
        }
        vrng_counters(s.dev, &counters);
        assert_in_range(counters.bytes, 59000, 61000 + sizes[i]);
        teardown(state);
    }
    start(0);
}

/* The timer lets a request go on that waits, and only then is there one. */
static void test_timer(void **state)
{
    const struct vrng_config config = {.on = true, .rate = 1000};
    struct event_base *events = event_base_new();
    unsigned int turns = 0;

    small_init(&s, 4 * MiB);
    s.f.env.clock = NULL;
    s.f.env.events = events;
    assert_int_equal(vrng_create(&s.f.env, &config, 0, &s.dev), 0);
    small_start(&s, 1, 0);
    small_offer(&s, 0, 0, DATA, 90, WRITE);
    event_base_loop(events, EVLOOP_NONBLOCK);
    /* It owes 190: the second waits (or a new period has begun already, then the third does). */
    small_offer(&s, 0, 0, DATA, 200, WRITE);
    small_offer(&s, 0, 1, DATA, 200, WRITE);
    small_offer(&s, 0, 2, DATA, 200, WRITE);
    assert_true(vd_used_idx(&s.d[0]) < 4);
    while (vd_used_idx(&s.d[0]) < 4 && turns++ < 50)
        event_base_loop(events, EVLOOP_ONCE);
    assert_int_equal(vd_used_idx(&s.d[0]), 4);
    device_destroy(s.dev);
    s.dev = NULL;
    event_base_free(events);
}

static void test_malformed(void **state)
{
    start(0);
    small_offer(&s, 0, 0, DATA, 64, 0);
    assert_true(vb_needs_reset(&s.f));
    small_start(&s, 1, 0);
    assert_false(vb_needs_reset(&s.f));
    small_offer(&s, 0, 0, 0x10000000, 64, WRITE);
    assert_true(vb_needs_reset(&s.f));
    small_start(&s, 1, 0);
    small_offer(&s, 0, 0, DATA, 64, WRITE);
    assert_int_equal(small_last(&s, 0).len, 64);
}

/* A request that waits for its turn goes on in a restored device. */
static void test_state(void **state)
{
    uint8_t *data;
    size_t len;

    start(1000);
    small_offer(&s, 0, 0, DATA, 100, WRITE);
    small_offer(&s, 0, 1, DATA, 100, WRITE);
    assert_int_equal(vd_used_idx(&s.d[0]), 1);
    device_quiesce(s.dev);
    len = save_device(s.dev, &data);
    device_reset(s.dev);
    assert_int_equal(restore_device(s.dev, data, len), 0);
    s.f.mono_ns += NSEC_PER_SEC;
    assert_int_equal(vd_used_idx(&s.d[0]), 1);
    device_resume(s.dev);
    assert_int_equal(vd_used_idx(&s.d[0]), 2);
    assert_int_equal(small_last(&s, 0).id, 1);
    for (size_t i = 0; i < len; i++)
        assert_true(restore_device(s.dev, data, i) < 0);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_bytes, teardown),     cmocka_unit_test_teardown(test_large_request, teardown),
        cmocka_unit_test_teardown(test_rate, teardown),      cmocka_unit_test_teardown(test_rate_holds, teardown),
        cmocka_unit_test_teardown(test_timer, teardown),
        cmocka_unit_test_teardown(test_malformed, teardown), cmocka_unit_test_teardown(test_state, teardown),
    };

    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
