/* What tests of devices share: a bus, an interrupt sink that counts, a host that counts, a clock that stands still. */
#ifndef UMBRA_TESTS_DEVICE_FIXTURE_H
#define UMBRA_TESTS_DEVICE_FIXTURE_H

#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/clock.h"
#include "base/state.h"
#include "base/util.h"
#include "device/devices.h"

#define FIXTURE_LINES 24

struct fixture {
    struct bus *bus;
    struct device_env env;
    struct irq_sink sink;
    struct device_host host;
    struct device_clock clock;
    int level[FIXTURE_LINES];
    unsigned int edges[FIXTURE_LINES]; /* from low to high */
    unsigned int irq_calls;
    unsigned int resets, poweroffs, exits;
    int exit_status;
    uint64_t mono_ns;
    int64_t real_ns;
};

static void fixture_irq(void *opaque, unsigned int gsi, int level)
{
    struct fixture *f = opaque;

    assert_true(gsi < FIXTURE_LINES);
    f->edges[gsi] += level && !f->level[gsi];
    f->level[gsi] = level;
    f->irq_calls++;
}

static void fixture_reset(void *opaque)
{
    ((struct fixture *)opaque)->resets++;
}

static void fixture_poweroff(void *opaque)
{
    ((struct fixture *)opaque)->poweroffs++;
}

static void fixture_exit(void *opaque, int status)
{
    struct fixture *f = opaque;

    f->exits++;
    f->exit_status = status;
}

static uint64_t fixture_mono(void *opaque)
{
    return ((struct fixture *)opaque)->mono_ns;
}

static int64_t fixture_real(void *opaque)
{
    return ((struct fixture *)opaque)->real_ns;
}

static void fixture_init(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    assert_int_equal(bus_new(&f->bus), 0);
    f->sink = (struct irq_sink){.set = fixture_irq, .opaque = f};
    f->host = (struct device_host){.request_reset = fixture_reset,
                                   .request_poweroff = fixture_poweroff,
                                   .request_exit = fixture_exit,
                                   .opaque = f};
    f->clock = (struct device_clock){.monotonic_ns = fixture_mono, .realtime_ns = fixture_real, .opaque = f};
    f->env = (struct device_env){.bus = f->bus, .irq = &f->sink, .host = &f->host, .clock = &f->clock};
    f->mono_ns = 1000 * NSEC_PER_SEC;
}

static void fixture_fini(struct fixture *f)
{
    bus_free(f->bus);
}

static inline uint64_t in_size(struct fixture *f, uint16_t port, unsigned int size)
{
    uint64_t v = 0;

    bus_read(f->bus, BUS_PIO, port, &v, size);
    return v;
}

static inline uint8_t in8(struct fixture *f, uint16_t port)
{
    return (uint8_t)in_size(f, port, 1);
}

static inline void out_size(struct fixture *f, uint16_t port, uint64_t v, unsigned int size)
{
    bus_write(f->bus, BUS_PIO, port, &v, size);
}

static inline void out8(struct fixture *f, uint16_t port, uint8_t v)
{
    out_size(f, port, v, 1);
}

/* The state of one device; *ret is the caller's to free. */
static inline size_t save_device(struct device *dev, uint8_t **ret)
{
    struct state_writer w;
    size_t len;

    state_writer_init(&w);
    device_save(dev, &w);
    assert_int_equal(state_finish(&w, ret, &len), 0);
    return len;
}

/* Restore it; the error is checked to be told. */
static inline int restore_device(struct device *dev, const uint8_t *data, size_t len)
{
    struct state_reader r;
    int err = state_reader_init(&r, data, len);

    if (err < 0)
        return err;
    err = device_restore(dev, &r);
    if (err < 0)
        assert_true(r.error[0] != '\0');
    state_reader_clear(&r);
    return err;
}

/* What a comparison with the state tells: lines, each with its end. */
static inline void add_difference(void *opaque, const char *text)
{
    strcat(strcat(opaque, text), "\n");
}

static inline void expect_differences(struct device *dev, const uint8_t *data, size_t len, const char *lines)
{
    struct state_reader r;
    char text[1024] = "";

    assert_int_equal(state_reader_init(&r, data, len), 0);
    device_compare(dev, &r, add_difference, text);
    assert_string_equal(text, lines);
    state_reader_clear(&r);
}

/* Where the value of a one-section state's field lies. */
static inline uint8_t *find_field(uint8_t *data, size_t len, const char *name)
{
    size_t n = strlen(name);

    for (size_t i = 0; i + 1 + n + 4 <= len; i++)
        if (data[i] == n && memcmp(data + i + 1, name, n) == 0)
            return data + i + 1 + n + 4;
    fail_msg("no field %s", name);
    return NULL;
}

#endif
