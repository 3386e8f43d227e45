/* The real-time clock: what Linux and firmware-style code do with it, and what it does at the edges. */
#include "config.h"

#include "device-fixture.h"

#include <errno.h>
#include <time.h>

enum { SEC = 0, SEC_ALARM = 1, MIN = 2, MIN_ALARM = 3, HOUR = 4, HOUR_ALARM = 5, WDAY = 6, MDAY = 7, MONTH = 8, YEAR = 9,
       A = 10, B = 11, C = 12, D = 13, CENTURY = 0x32 };

#define SET 0x80
#define PIE 0x40
#define AIE 0x20
#define UIE 0x10
#define BINARY 0x04
#define H24 0x02
#define ANY 0xff

struct rtc_test {
    struct fixture f;
    struct device *dev;
};

static int64_t utc(int year, int month, int day, int hour, int min, int sec)
{
    struct tm tm = {.tm_year = year - 1900, .tm_mon = month - 1, .tm_mday = day, .tm_hour = hour, .tm_min = min, .tm_sec = sec};

    return (int64_t)timegm(&tm) * (int64_t)NSEC_PER_SEC;
}

static int setup(void **state)
{
    struct rtc_test *t = malloc(sizeof(*t));

    fixture_init(&t->f);
    t->f.real_ns = utc(2026, 2, 28, 23, 59, 45) + 250 * (int64_t)NSEC_PER_MSEC;
    assert_int_equal(rtc_create(&t->f.env, &t->dev), 0);
    *state = t;
    return 0;
}

static int teardown(void **state)
{
    struct rtc_test *t = *state;

    device_destroy(t->dev);
    fixture_fini(&t->f);
    free(t);
    return 0;
}

static uint8_t get(struct rtc_test *t, uint8_t reg)
{
    out8(&t->f, RTC_PORT, reg);
    return in8(&t->f, RTC_PORT + 1);
}

static void set(struct rtc_test *t, uint8_t reg, uint8_t v)
{
    out8(&t->f, RTC_PORT, reg);
    out8(&t->f, RTC_PORT + 1, v);
}

static void advance_ms(struct rtc_test *t, int64_t ms)
{
    t->f.real_ns += ms * (int64_t)NSEC_PER_MSEC;
}

/* Every time register, as one number to compare with. */
static void assert_time(struct rtc_test *t, const char *expected)
{
    char now[64];

    snprintf(now, sizeof(now), "%02x%02x-%02x-%02x %02x:%02x:%02x %x", get(t, CENTURY), get(t, YEAR), get(t, MONTH),
             get(t, MDAY), get(t, HOUR), get(t, MIN), get(t, SEC), get(t, WDAY));
    assert_string_equal(now, expected);
}

static void test_time(void **state)
{
    struct rtc_test *t = *state;

    assert_int_equal(get(t, B), H24);
    assert_int_equal(get(t, D), 0x80);
    assert_int_equal(get(t, A), 0x26);
    assert_time(t, "2026-02-28 23:59:45 7");
    advance_ms(t, 15000);
    assert_time(t, "2026-03-01 00:00:00 1");
    /* The bit that masks NMIs is no part of the index, and the index cannot be read */
    assert_int_equal(get(t, 0x80 | MONTH), 0x03);
    assert_int_equal(in8(&t->f, RTC_PORT), 0xff);
    t->f.real_ns = utc(2099, 12, 31, 23, 59, 59);
    assert_time(t, "2099-12-31 23:59:59 5");
    advance_ms(t, 1000);
    assert_time(t, "2100-01-01 00:00:00 6");
}

static void test_formats(void **state)
{
    static const uint8_t hours[24][2] = {/* binary, BCD: 12 hours */
        {12, 0x12}, {1, 0x01}, {2, 0x02}, {3, 0x03}, {4, 0x04}, {5, 0x05}, {6, 0x06}, {7, 0x07},
        {8, 0x08}, {9, 0x09}, {10, 0x10}, {11, 0x11}, {0x80 | 12, 0x92}, {0x81, 0x81}, {0x82, 0x82}, {0x83, 0x83},
        {0x84, 0x84}, {0x85, 0x85}, {0x86, 0x86}, {0x87, 0x87}, {0x88, 0x88}, {0x89, 0x89}, {0x8a, 0x90}, {0x8b, 0x91}};
    struct rtc_test *t = *state;

    set(t, B, H24 | BINARY);
    assert_int_equal(get(t, SEC), 45);
    assert_int_equal(get(t, MIN), 59);
    assert_int_equal(get(t, HOUR), 23);
    assert_int_equal(get(t, YEAR), 26);
    assert_int_equal(get(t, CENTURY), 20);
    for (int h = 0; h < 24; h++) {
        t->f.real_ns = utc(2026, 5, 6, h, 30, 0);
        set(t, B, BINARY);
        assert_int_equal(get(t, HOUR), hours[h][0]);
        set(t, HOUR, hours[h][0]);
        assert_int_equal(get(t, HOUR), hours[h][0]);
        set(t, B, 0);
        assert_int_equal(get(t, HOUR), hours[h][1]);
        set(t, HOUR, hours[h][1]);
        set(t, B, H24 | BINARY);
        assert_int_equal(get(t, HOUR), h);
        assert_int_equal(get(t, MDAY), 6);
    }
}

/* As Linux sets it: under SET, with the divider in reset; the first second then ends after half a second. */
static void test_set_like_linux(void **state)
{
    struct rtc_test *t = *state;
    uint8_t a = get(t, A), b = get(t, B);

    set(t, B, b | SET);
    set(t, A, a | 0x70);
    set(t, YEAR, 0x31);
    set(t, MONTH, 0x12);
    set(t, MDAY, 0x25);
    set(t, HOUR, 0x18);
    set(t, MIN, 0x20);
    set(t, SEC, 0x30);
    set(t, CENTURY, 0x20);
    /* It stands, and reads back */
    advance_ms(t, 5000);
    assert_int_equal(get(t, SEC), 0x30);
    assert_int_equal(get(t, A) & 0x80, 0);
    set(t, B, b);
    advance_ms(t, 5000);
    assert_int_equal(get(t, SEC), 0x30);
    set(t, A, a);
    assert_time(t, "2031-12-25 18:20:30 5");
    advance_ms(t, 499);
    assert_int_equal(get(t, SEC), 0x30);
    advance_ms(t, 1);
    assert_int_equal(get(t, SEC), 0x31);
    advance_ms(t, 86400 * 1000);
    assert_time(t, "2031-12-26 18:20:31 6");
}

static void test_set_plain(void **state)
{
    struct rtc_test *t = *state;

    /* SET alone keeps the divider running: the second ends when the host's does */
    set(t, B, H24 | SET);
    assert_int_equal(get(t, SEC), 0x45);
    advance_ms(t, 10000);
    assert_int_equal(get(t, SEC), 0x45);
    set(t, B, H24);
    assert_int_equal(get(t, SEC), 0x45);
    advance_ms(t, 749);
    assert_int_equal(get(t, SEC), 0x45);
    advance_ms(t, 1);
    assert_int_equal(get(t, SEC), 0x46);
    /* Fields of a running clock */
    set(t, MIN, 0x07);
    set(t, HOUR, 0x08);
    set(t, MDAY, 0x09);
    set(t, MONTH, 0x10);
    set(t, YEAR, 0x11);
    assert_time(t, "2011-10-09 08:07:46 1");
    /* The day of the week follows the date */
    set(t, WDAY, 5);
    assert_int_equal(get(t, WDAY), 1);
    /* A format that changes under SET reinterprets what stands there */
    set(t, B, H24 | SET);
    set(t, SEC, 0x10);
    set(t, B, H24 | SET | BINARY);
    set(t, B, H24 | BINARY);
    assert_int_equal(get(t, SEC), 0x10);
    set(t, B, H24);
    assert_int_equal(get(t, SEC), 0x16);
}

static void test_set_nonsense(void **state)
{
    struct rtc_test *t = *state;

    set(t, B, H24 | SET);
    for (uint8_t reg = SEC; reg <= YEAR; reg++)
        set(t, reg, 0xff);
    set(t, CENTURY, 0xff);
    set(t, B, H24);
    /* No BCD numbers: the least of each */
    assert_time(t, "0000-01-01 00:00:00 7");
    set(t, B, H24 | BINARY | SET);
    for (uint8_t reg = SEC; reg <= YEAR; reg++)
        set(t, reg, 0xff);
    set(t, CENTURY, 0xff);
    set(t, B, H24 | BINARY);
    set(t, B, H24);
    assert_time(t, "9999-12-31 23:59:59 6");
    set(t, MONTH, 0x02);
    assert_int_equal(get(t, MDAY), 0x28);
    /* Leap years */
    set(t, CENTURY, 0x20);
    set(t, YEAR, 0x24);
    set(t, MDAY, 0x31);
    assert_time(t, "2024-02-29 23:59:59 5");
    /* Registers that cannot be written */
    set(t, C, 0xff);
    set(t, D, 0);
    assert_int_equal(get(t, D), 0x80);
    assert_int_equal(get(t, C), 0);
}

static void test_cmos_bytes(void **state)
{
    struct rtc_test *t = *state;

    for (unsigned int reg = 0x0e; reg < 0x80; reg++)
        if (reg != CENTURY) {
            assert_int_equal(get(t, (uint8_t)reg), 0);
            set(t, (uint8_t)reg, (uint8_t)(reg ^ 0x5a));
        }
    for (unsigned int reg = 0x0e; reg < 0x80; reg++)
        if (reg != CENTURY)
            assert_int_equal(get(t, (uint8_t)reg), reg ^ 0x5a);
    /* They and the time survive a reset, as on a battery */
    set(t, YEAR, 0x40);
    device_reset(t->dev);
    assert_int_equal(get(t, 0x0f), 0x0f ^ 0x5a);
    assert_int_equal(get(t, YEAR), 0x40);
    /* Both ports in one go: index, then data */
    out_size(&t->f, RTC_PORT, 0x770f, 2);
    assert_int_equal(get(t, 0x0f), 0x77);
    assert_int_equal(in_size(&t->f, RTC_PORT, 2), 0x77ff);
    assert_int_equal(in_size(&t->f, RTC_PORT, 4), 0xffff77ff);
}

static void test_update_in_progress(void **state)
{
    struct rtc_test *t = *state;
    int64_t second = utc(2026, 1, 1, 12, 0, 0);

    t->f.real_ns = second + (int64_t)NSEC_PER_SEC - 244 * (int64_t)NSEC_PER_USEC - 1;
    assert_int_equal(get(t, A), 0x26);
    t->f.real_ns++;
    assert_int_equal(get(t, A), 0xa6);
    t->f.real_ns = second + (int64_t)NSEC_PER_SEC;
    assert_int_equal(get(t, A), 0x26);
    /* Not while the clock stands */
    t->f.real_ns = second + (int64_t)NSEC_PER_SEC - 1;
    set(t, B, H24 | SET);
    assert_int_equal(get(t, A), 0x26);
}

/* A guest that was held up between the registers must not see a time that never was. */
static void test_latch(void **state)
{
    struct rtc_test *t = *state;

    t->f.real_ns = utc(2026, 1, 1, 11, 59, 59) + 900 * (int64_t)NSEC_PER_MSEC;
    assert_int_equal(get(t, A) & 0x80, 0);
    advance_ms(t, 200);
    assert_int_equal(get(t, HOUR), 0x11);
    assert_int_equal(get(t, MIN), 0x59);
    assert_int_equal(get(t, SEC), 0x59);
    /* Polled for its change, the seconds do change */
    assert_int_equal(get(t, SEC), 0x00);
    assert_int_equal(get(t, MIN), 0x00);
    assert_int_equal(get(t, HOUR), 0x12);

    /* Seconds first */
    t->f.real_ns = utc(2026, 12, 31, 23, 59, 59) + 999 * (int64_t)NSEC_PER_MSEC;
    assert_int_equal(get(t, SEC), 0x59);
    advance_ms(t, 500);
    assert_int_equal(get(t, MIN), 0x59);
    assert_int_equal(get(t, YEAR), 0x26);
    /* A latch of long ago counts for nothing */
    advance_ms(t, 500);
    assert_int_equal(get(t, YEAR), 0x27);
    /* Nor does one of the future, when the host's clock is set back */
    assert_int_equal(get(t, SEC), 0x00);
    t->f.real_ns = utc(2020, 6, 1, 1, 2, 3);
    assert_int_equal(get(t, YEAR), 0x20);
    /* Setting the time ends it */
    assert_int_equal(get(t, SEC), 0x03);
    set(t, MIN, 0x33);
    assert_int_equal(get(t, MIN), 0x33);
}

static void test_flags(void **state)
{
    struct rtc_test *t = *state;

    assert_int_equal(get(t, C), 0);
    advance_ms(t, 1000);
    /* UF, and PF at the default rate of 1024 Hz; not enabled, so no interrupt */
    assert_int_equal(get(t, C), 0x50);
    assert_int_equal(get(t, C), 0);
    set(t, A, 0x20);
    advance_ms(t, 500);
    assert_int_equal(get(t, C), 0);
    advance_ms(t, 1000);
    assert_int_equal(get(t, C), 0x10);
    assert_int_equal(t->f.irq_calls, 0);
    /* Enabled after the fact */
    advance_ms(t, 1000);
    set(t, B, H24 | UIE);
    assert_int_equal(t->f.level[RTC_IRQ], 1);
    assert_int_equal(get(t, C), 0x90);
    assert_int_equal(t->f.level[RTC_IRQ], 0);
    assert_int_equal(get(t, C), 0);
    /* SET takes the update interrupt away */
    set(t, B, H24 | SET | UIE);
    assert_int_equal(get(t, B), H24 | SET);
    set(t, B, H24);
}

static void test_periodic(void **state)
{
    static const struct {
        uint8_t rate;
        int64_t us;
    } rates[] = {{1, 3906}, {2, 7812}, {3, 122}, {6, 976}, {8, 3906}, {15, 499999}};
    struct rtc_test *t = *state;

    for (size_t i = 0; i < ARRAY_SIZE(rates); i++) {
        t->f.real_ns = utc(2026, 1, 1, 0, 0, (int)i);
        set(t, A, 0x20 | rates[i].rate);
        get(t, C);
        t->f.real_ns += rates[i].us * 1000;
        assert_int_equal(get(t, C) & 0x40, 0);
        t->f.real_ns += 1000;
        assert_int_equal(get(t, C) & 0x40, 0x40);
    }
    set(t, B, H24 | PIE);
    advance_ms(t, 501);
    get(t, A);
    assert_int_equal(get(t, C) & 0xe0, 0xc0);
    device_reset(t->dev);
    assert_int_equal(get(t, B), H24);
}

static void set_alarm(struct rtc_test *t, uint8_t hour, uint8_t min, uint8_t sec)
{
    set(t, HOUR_ALARM, hour);
    set(t, MIN_ALARM, min);
    set(t, SEC_ALARM, sec);
    get(t, C);
}

/* Seconds until the alarm flag comes up, looking every second; -1 beyond two days. */
static int seconds_to_alarm(struct rtc_test *t)
{
    for (int s = 1; s <= 2 * 86400; s++) {
        advance_ms(t, 1000);
        if (get(t, C) & 0x20)
            return s;
    }
    return -1;
}

static void test_alarm(void **state)
{
    static const struct {
        uint8_t b, hour, min, sec;
        int seconds; /* from 10:20:30 */
    } cases[] = {
        {H24, 0x10, 0x20, 0x31, 1},
        {H24, 0x10, 0x20, 0x30, 86400},
        {H24, 0x10, 0x21, 0x00, 30},
        {H24, 0x09, 0x00, 0x00, 86400 - 4830},
        {H24, ANY, 0x00, 0x00, 39 * 60 + 30},
        {H24, ANY, ANY, 0x29, 59},
        {H24, 0xc0, 0xc0, 0xc0, 1},
        {H24, 0x11, ANY, 0x05, 39 * 60 + 35},
        {H24, 0x24, ANY, ANY, -1},
        {H24, ANY, 0x60, ANY, -1},
        {H24, ANY, ANY, 0x5a, -1},
        {H24 | BINARY, 10, 20, 59, 29},
        {0, 0x82, 0x20, 0x30, 4 * 3600},
        {0, 0x12, 0x00, 0x00, 13 * 3600 + 39 * 60 + 30},
        {0, 0x00, 0x00, 0x00, -1},
        {BINARY, 0x80 | 12, 0, 0, 3600 + 39 * 60 + 30},
    };
    struct rtc_test *t = *state;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        print_message("# case %zu\n", i);
        t->f.real_ns = utc(2026, 3, 4, 10, 20, 30);
        set(t, B, cases[i].b);
        set_alarm(t, cases[i].hour, cases[i].min, cases[i].sec);
        assert_int_equal(seconds_to_alarm(t), cases[i].seconds);
        /* The same when nobody looks in between */
        for (int late = -1; late <= 0; late++) {
            t->f.real_ns = utc(2026, 3, 4, 10, 20, 30);
            get(t, C);
            advance_ms(t, (cases[i].seconds < 0 ? 2 * 86400 : cases[i].seconds + late) * INT64_C(1000));
            assert_int_equal(get(t, C) & 0x20, cases[i].seconds >= 0 && late == 0 ? 0x20 : 0);
        }
    }
}

static void test_alarm_unwatched(void **state)
{
    struct rtc_test *t = *state;

    /* It is noticed however late somebody looks, and raises the line then */
    t->f.real_ns = utc(2026, 3, 4, 10, 20, 30);
    set_alarm(t, 0x23, 0x00, 0x00);
    set(t, B, H24 | AIE);
    assert_int_equal(t->f.level[RTC_IRQ], 0);
    advance_ms(t, 40 * 86400 * INT64_C(1000));
    get(t, C);
    assert_int_equal(t->f.edges[RTC_IRQ], 1);
    assert_int_equal(t->f.level[RTC_IRQ], 0);
    /* The host's clock going back makes no alarm */
    t->f.real_ns = utc(2026, 3, 4, 10, 20, 30);
    assert_int_equal(get(t, C), 0);
    /* Neither does setting the guest's across it */
    set(t, HOUR, 0x23);
    set(t, MIN, 0x30);
    assert_int_equal(get(t, C) & 0x20, 0);
}

static void test_state(void **state)
{
    struct rtc_test *t = *state;
    struct fixture g;
    struct device *other;
    uint8_t *data, *again;
    size_t len;

    set(t, YEAR, 0x43);
    set(t, 0x20, 0x99);
    set_alarm(t, ANY, ANY, ANY);
    set(t, B, H24 | AIE | UIE);
    advance_ms(t, 1000);
    out8(&t->f, RTC_PORT, 0x20);
    len = save_device(t->dev, &data);
    assert_int_equal(t->f.level[RTC_IRQ], 1);

    fixture_init(&g);
    g.real_ns = t->f.real_ns;
    assert_int_equal(rtc_create(&g.env, &other), 0);
    assert_int_equal(restore_device(other, data, len), 0);
    assert_int_equal(g.level[RTC_IRQ], 1);
    assert_int_equal(in8(&g, RTC_PORT + 1), 0x99);
    assert_int_equal(save_device(other, &again), len);
    assert_memory_equal(data, again, len);
    free(again);
    out8(&g, RTC_PORT, YEAR);
    assert_int_equal(in8(&g, RTC_PORT + 1), 0x43);
    /* Its time goes on with the other host's clock */
    g.real_ns += 14 * (int64_t)NSEC_PER_SEC;
    out8(&g, RTC_PORT, MONTH);
    assert_int_equal(in8(&g, RTC_PORT + 1), 0x03);
    out8(&g, RTC_PORT, C);
    assert_int_equal(in8(&g, RTC_PORT + 1), 0xf0);
    assert_int_equal(g.level[RTC_IRQ], 0);
    device_destroy(other);
    fixture_fini(&g);
    free(data);

    /* One that stands */
    set(t, B, H24 | SET);
    set(t, A, 0x76);
    set(t, SEC, 0x12);
    len = save_device(t->dev, &data);
    set(t, A, 0x26);
    set(t, B, H24);
    advance_ms(t, 100000);
    assert_int_equal(restore_device(t->dev, data, len), 0);
    assert_int_equal(get(t, SEC), 0x12);
    set(t, A, 0x26);
    set(t, B, H24);
    advance_ms(t, 499);
    assert_int_equal(get(t, SEC), 0x12);
    advance_ms(t, 1);
    assert_int_equal(get(t, SEC), 0x13);
    free(data);
}

static void test_state_rejected(void **state)
{
    static const struct {
        const char *field;
        size_t at;
        uint8_t value[8];
        size_t len;
    } bad[] = {
        {"index", 0, {128}, 1},
        {"cmos", A, {0xa6}, 1},
        {"cmos", C, {0x80}, 1},
        {"cmos", C, {0x08}, 1},
        {"cmos", D, {0x00}, 1},
        {"offset_s", 0, {255, 255, 255, 255, 255, 255, 255, 127}, 8},
        {"offset_s", 0, {0, 0, 0, 0, 0, 0, 0, 128}, 8},
        {"offset_ns", 0, {0x00, 0xca, 0x9a, 0x3b}, 4},
        {"seen_s", 0, {0, 0, 0, 0, 0, 0, 0, 128}, 8},
        {"seen_ns", 0, {0xff, 0xff, 0xff, 0xff}, 4},
        {"divider_was_reset", 0, {2}, 1},
    };
    struct rtc_test *t = *state;
    uint8_t *data;
    size_t len;

    set(t, 0x20, 0x99);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        print_message("# %s\n", bad[i].field);
        len = save_device(t->dev, &data);
        memcpy(find_field(data, len, bad[i].field) + bad[i].at, bad[i].value, bad[i].len);
        set(t, 0x21, (uint8_t)i);
        assert_int_equal(restore_device(t->dev, data, len), -EBADMSG);
        free(data);
        assert_int_equal(get(t, 0x20), 0x99);
        assert_int_equal(get(t, 0x21), i);
    }
    assert_time(t, "2026-02-28 23:59:45 7");
    /* At the very edge of what is taken, nothing overflows */
    len = save_device(t->dev, &data);
    int64_t edge = -400000000000;
    memcpy(find_field(data, len, "offset_s"), &edge, 8);
    edge = 400000000000;
    memcpy(find_field(data, len, "seen_s"), &edge, 8);
    assert_int_equal(restore_device(t->dev, data, len), 0);
    for (uint8_t reg = 0; reg < 0x80; reg++)
        get(t, reg);
    set(t, B, H24 | PIE | AIE | UIE);
    set(t, SEC, 0);
    free(data);
}

/* -- with the host's clock and a main loop -- */

static void alarm_guard(evutil_socket_t fd, short what, void *opaque)
{
    fail_msg("no interrupt came");
}

static void wait_for_line(struct event_base *events, struct fixture *f)
{
    const struct timeval limit = {.tv_sec = 20};
    struct event *guard = evtimer_new(events, alarm_guard, NULL);

    evtimer_add(guard, &limit);
    while (!f->level[RTC_IRQ])
        event_base_loop(events, EVLOOP_ONCE);
    event_free(guard);
}

static void test_timer(void **state)
{
    struct event_base *events = event_base_new();
    struct rtc_test t;
    int64_t now;

    fixture_init(&t.f);
    t.f.env.clock = NULL;
    t.f.env.events = events;
    assert_int_equal(rtc_create(&t.f.env, &t.dev), 0);

    /* Nothing is enabled: nothing happens */
    assert_int_equal(event_base_loop(events, EVLOOP_NONBLOCK), 0);
    set(&t, A, 0x2f);
    set(&t, B, H24 | PIE);
    wait_for_line(events, &t.f);
    assert_int_equal(get(&t, C) & 0xc0, 0xc0);
    assert_int_equal(t.f.level[RTC_IRQ], 0);
    /* And again */
    wait_for_line(events, &t.f);
    set(&t, B, H24);
    get(&t, C);

    set(&t, B, H24 | UIE);
    wait_for_line(events, &t.f);
    assert_int_equal(get(&t, C) & 0x90, 0x90);
    set(&t, B, H24);

    /* The alarm of the next second but one, as a guest's hwclock waits for it */
    set(&t, B, H24 | BINARY);
    now = get(&t, SEC);
    set_alarm(&t, ANY, ANY, (uint8_t)((now + 1) % 60));
    set(&t, B, H24 | BINARY | AIE);
    wait_for_line(events, &t.f);
    assert_int_equal(get(&t, C) & 0xa0, 0xa0);
    device_destroy(t.dev);
    event_base_free(events);
    fixture_fini(&t.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_time, setup, teardown),
        cmocka_unit_test_setup_teardown(test_formats, setup, teardown),
        cmocka_unit_test_setup_teardown(test_set_like_linux, setup, teardown),
        cmocka_unit_test_setup_teardown(test_set_plain, setup, teardown),
        cmocka_unit_test_setup_teardown(test_set_nonsense, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cmos_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_update_in_progress, setup, teardown),
        cmocka_unit_test_setup_teardown(test_latch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flags, setup, teardown),
        cmocka_unit_test_setup_teardown(test_periodic, setup, teardown),
        cmocka_unit_test_setup_teardown(test_alarm, setup, teardown),
        cmocka_unit_test_setup_teardown(test_alarm_unwatched, setup, teardown),
        cmocka_unit_test_setup_teardown(test_state, setup, teardown),
        cmocka_unit_test_setup_teardown(test_state_rejected, setup, teardown),
        cmocka_unit_test(test_timer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
