/* The ACPI power block, the reset line of the keyboard controller, the exit port, and the device core they share. */
#include "config.h"

#include "device-fixture.h"

#include <errno.h>

#define PM_HZ 3579545u
#define STS ACPI_PM1_EVT
#define EN (ACPI_PM1_EVT + 2)
#define PWRBTN 0x100
#define TMR 0x1
#define SLP_EN (1u << 13)
#define SLP_TYP(n) ((unsigned int)(n) << 10)

static int setup(void **state)
{
    struct fixture *f = malloc(sizeof(*f));

    fixture_init(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture_fini(*state);
    free(*state);
    return 0;
}

/* -- i8042 -- */

static void test_i8042(void **state)
{
    struct fixture *f = *state;
    struct device *dev;

    assert_int_equal(i8042_create(&f->env, &dev), 0);
    /* Output full for ever: Linux's driver gives up. Input never full: reboot=k does not wait. */
    assert_int_equal(in8(f, 0x64) & 0x03, 0x01);
    assert_int_equal(in8(f, 0x60), 0xff);

    out8(f, 0x64, 0xfe);
    assert_int_equal(f->resets, 1);
    out8(f, 0x64, 0xf0);
    assert_int_equal(f->resets, 2);
    /* Line 0 not pulled, and other commands */
    out8(f, 0x64, 0xff);
    out8(f, 0x64, 0xfd);
    out8(f, 0x64, 0xaa);
    out8(f, 0x64, 0x20);
    out8(f, 0x60, 0xfe);
    /* Wide: only the byte at 0x64 counts */
    out_size(f, 0x63, 0xfefeaa, 4);
    assert_int_equal(f->resets, 3);
    out_size(f, 0x61, 0xfefefe, 2);
    assert_int_equal(f->resets, 3);
    device_reset(dev);
    device_destroy(dev);
    /* Nobody is left there */
    out8(f, 0x64, 0xfe);
    assert_int_equal(f->resets, 3);
    assert_int_equal(in8(f, 0x64), 0xff);
}

static void test_create_conflict(void **state)
{
    struct fixture *f = *state;
    struct device *dev, *again = NULL;
    static const struct bus_ops none;

    assert_int_equal(i8042_create(&f->env, &dev), 0);
    assert_int_equal(i8042_create(&f->env, &again), -EEXIST);
    assert_null(again);
    device_destroy(dev);
    /* The second region is in the way: the first is taken off again. */
    assert_int_equal(bus_add(f->bus, BUS_PIO, 0x64, 1, "x", &none, f, NULL), 0);
    assert_int_equal(i8042_create(&f->env, &again), -EEXIST);
    assert_int_equal(bus_add(f->bus, BUS_PIO, 0x60, 1, "y", &none, f, NULL), 0);
    assert_int_equal(testdev_create(&f->env, &dev), 0);
    assert_int_equal(testdev_create(&f->env, &again), -EEXIST);
    device_destroy(dev);
    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    assert_int_equal(acpi_pm_create(&f->env, &again), -EEXIST);
    device_destroy(dev);
    device_destroy(NULL);
}

/* -- exit port -- */

static void test_exit_port(void **state)
{
    static const struct {
        unsigned int size;
        uint32_t code;
        int status;
    } cases[] = {{1, 0, 1}, {1, 0x10, 0x21}, {1, 0x7f, 0xff}, {1, 0x80, 1}, {2, 0x1234, 0x69}, {4, 0xdeadbeef, 0xdf}};
    struct fixture *f = *state;
    struct device *dev;

    out8(f, TESTDEV_PORT, 3);
    assert_int_equal(f->exits, 0);
    assert_int_equal(testdev_create(&f->env, &dev), 0);
    for (unsigned int i = 0; i < ARRAY_SIZE(cases); i++) {
        out_size(f, TESTDEV_PORT, cases[i].code, cases[i].size);
        assert_int_equal(f->exits, i + 1);
        assert_int_equal(f->exit_status, cases[i].status);
    }
    assert_int_equal(in8(f, TESTDEV_PORT), 0xff);
    assert_int_equal(f->exits, ARRAY_SIZE(cases));
    device_reset(dev);
    device_destroy(dev);
}

/* -- ACPI -- */

static void test_pm_registers(void **state)
{
    struct fixture *f = *state;
    struct device *dev;

    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    assert_int_equal(in_size(f, STS, 2), 0);
    assert_int_equal(in_size(f, EN, 2), 0);
    /* ACPI mode at all times */
    assert_int_equal(in_size(f, ACPI_PM1_CNT, 2), 1);
    out_size(f, ACPI_PM1_CNT, 0, 2);
    assert_int_equal(in_size(f, ACPI_PM1_CNT, 2), 1);
    /* SLP_EN and GBL_RLS are never read back */
    out_size(f, ACPI_PM1_CNT, 0xffff & ~SLP_EN, 2);
    assert_int_equal(in_size(f, ACPI_PM1_CNT, 2), SLP_TYP(7) | 3);
    /* Enables that ACPI drivers read back stick; the rest do not */
    out_size(f, EN, 0xffff, 2);
    assert_int_equal(in_size(f, EN, 2), 0x721);
    out8(f, EN + 1, 0);
    assert_int_equal(in_size(f, EN, 2), 0x21);
    assert_int_equal(in8(f, EN), 0x21);
    /* Nothing can be set in the status by writing */
    out_size(f, STS, 0xffffffff, 4);
    assert_int_equal(in_size(f, STS, 2), 0);
    /* The whole block at any width is harmless */
    for (unsigned int size = 1; size <= 8; size++)
        for (unsigned int at = 0; at < ACPI_PM_PORTS; at++) {
            uint8_t buf[8];

            bus_read(f->bus, BUS_PIO, ACPI_PM_BASE + at, buf, size);
            if (at + size <= ACPI_RESET_PORT - ACPI_PM_BASE)
                bus_write(f->bus, BUS_PIO, ACPI_PM_BASE + at, "\0\0\0\0\0\0\0", size);
        }
    assert_int_equal(f->resets + f->poweroffs, 0);
    device_destroy(dev);
}

static void test_pm_sleep_and_reset(void **state)
{
    struct fixture *f = *state;
    struct device *dev;

    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    for (unsigned int type = 0; type < 8; type++) {
        out_size(f, ACPI_PM1_CNT, SLP_TYP(type), 2);
        assert_int_equal(f->poweroffs, type > ACPI_S5_SLP_TYP);
        out_size(f, ACPI_PM1_CNT, SLP_TYP(type) | SLP_EN, 2);
        assert_int_equal(f->poweroffs, type >= ACPI_S5_SLP_TYP);
    }
    /* By its high byte alone */
    out8(f, ACPI_PM1_CNT + 1, (SLP_TYP(ACPI_S5_SLP_TYP) | SLP_EN) >> 8);
    assert_int_equal(f->poweroffs, 2);

    out8(f, ACPI_RESET_PORT, 0);
    out8(f, ACPI_RESET_PORT, 0xff);
    assert_int_equal(f->resets, 0);
    out8(f, ACPI_RESET_PORT, ACPI_RESET_VALUE);
    assert_int_equal(f->resets, 1);
    device_destroy(dev);
}

static void test_power_button(void **state)
{
    struct fixture *f = *state;
    struct device *dev;

    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    /* Not before the guest's driver is there, and not remembered either */
    assert_int_equal(acpi_pm_power_button(dev), -ENODEV);
    out_size(f, EN, PWRBTN, 2);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 0);
    assert_int_equal(in_size(f, STS, 2), 0);

    assert_int_equal(acpi_pm_power_button(dev), 0);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 1);
    assert_int_equal(in_size(f, STS, 2), PWRBTN);
    /* A level: it stays until the status is cleared, and a second press adds nothing */
    assert_int_equal(acpi_pm_power_button(dev), 0);
    assert_int_equal(f->edges[ACPI_SCI_IRQ], 1);
    out_size(f, STS, TMR, 2);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 1);
    out_size(f, STS, PWRBTN, 2);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 0);
    assert_int_equal(in_size(f, STS, 2), 0);

    /* Masking lowers the line, the event stays; unmasking raises it again */
    assert_int_equal(acpi_pm_power_button(dev), 0);
    out_size(f, EN, 0, 2);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 0);
    assert_int_equal(in_size(f, STS, 2), PWRBTN);
    out_size(f, EN, PWRBTN, 2);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 1);
    out8(f, STS + 1, PWRBTN >> 8);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 0);

    assert_int_equal(acpi_pm_power_button(dev), 0);
    device_reset(dev);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 0);
    assert_int_equal(in_size(f, STS, 4), 0);
    device_destroy(dev);
}

static void test_pm_timer(void **state)
{
    struct fixture *f = *state;
    struct device *dev;
    uint32_t before;

    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    before = (uint32_t)in_size(f, ACPI_PM_TMR, 4);
    f->mono_ns += NSEC_PER_SEC;
    assert_int_equal((uint32_t)in_size(f, ACPI_PM_TMR, 4) - before, PM_HZ);
    /* 100 days later it has wrapped, and is right to the tick */
    f->mono_ns += 8640000 * NSEC_PER_SEC;
    assert_int_equal((uint32_t)in_size(f, ACPI_PM_TMR, 4) - before, (uint32_t)(UINT64_C(8640001) * PM_HZ));
    before = (uint32_t)in_size(f, ACPI_PM_TMR, 4);
    assert_int_equal(in_size(f, ACPI_PM_TMR, 2), before & 0xffff);
    assert_int_equal(in8(f, ACPI_PM_TMR + 3), before >> 24);
    /* It cannot be written */
    out_size(f, ACPI_PM_TMR, 0, 4);
    assert_int_equal(in_size(f, ACPI_PM_TMR, 4), before);
    device_destroy(dev);
}

static void test_pm_timer_carry(void **state)
{
    const uint64_t carry_ns = ((UINT64_C(1) << 31) * NSEC_PER_SEC) / PM_HZ;
    struct fixture *f = *state;
    struct device *dev;

    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    f->mono_ns += carry_ns - NSEC_PER_MSEC;
    assert_int_equal(in_size(f, STS, 2), 0);
    f->mono_ns += 2 * NSEC_PER_MSEC;
    assert_int_equal(in_size(f, STS, 2), TMR);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 0);
    out_size(f, EN, TMR, 2);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 1);
    out_size(f, STS, TMR, 2);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 0);
    /* The other way round, too */
    f->mono_ns += carry_ns;
    assert_int_equal(in_size(f, STS, 2), TMR);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 1);
    device_destroy(dev);
}

static void no_interrupt(evutil_socket_t fd, short what, void *opaque)
{
    fail_msg("no interrupt came");
}

/* With the host's clock and a main loop: the carry interrupts by itself. */
static void test_pm_timer_interrupt(void **state)
{
    const struct timeval limit = {.tv_sec = 20};
    struct event_base *events = event_base_new();
    struct event *guard = evtimer_new(events, no_interrupt, NULL);
    uint64_t ticks = (UINT64_C(1) << 31) - PM_HZ / 50;
    struct fixture *f = *state;
    struct device *dev;
    uint8_t *data;
    size_t len;

    f->env.clock = NULL;
    f->env.events = events;
    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    /* 20 ms ahead of it */
    out_size(f, EN, TMR, 2);
    len = save_device(dev, &data);
    memcpy(find_field(data, len, "ticks"), &ticks, sizeof(ticks));
    assert_int_equal(restore_device(dev, data, len), 0);
    free(data);
    evtimer_add(guard, &limit);
    while (!f->level[ACPI_SCI_IRQ])
        event_base_loop(events, EVLOOP_ONCE);
    assert_int_equal(in_size(f, STS, 2), TMR);
    assert_true(in_size(f, ACPI_PM_TMR, 4) >= UINT64_C(1) << 31);
    out_size(f, STS, TMR, 2);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 0);
    device_destroy(dev);
    event_free(guard);
    event_base_free(events);
}

static void test_pm_state(void **state)
{
    struct fixture *f = *state;
    struct device *dev, *other;
    struct fixture g;
    uint8_t *data, *again;
    uint32_t ticks;
    size_t len;

    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    out_size(f, EN, PWRBTN, 2);
    out_size(f, ACPI_PM1_CNT, SLP_TYP(3) | 2, 2);
    f->mono_ns += 123 * NSEC_PER_SEC;
    assert_int_equal(acpi_pm_power_button(dev), 0);
    ticks = (uint32_t)in_size(f, ACPI_PM_TMR, 4);
    len = save_device(dev, &data);

    /* On another host, with another clock, later */
    fixture_init(&g);
    g.mono_ns = 7;
    assert_int_equal(acpi_pm_create(&g.env, &other), 0);
    g.mono_ns += 99 * NSEC_PER_SEC;
    assert_int_equal(restore_device(other, data, len), 0);
    assert_int_equal(g.level[ACPI_SCI_IRQ], 1);
    assert_int_equal(in_size(&g, STS, 2), PWRBTN);
    assert_int_equal(in_size(&g, EN, 2), PWRBTN);
    assert_int_equal(in_size(&g, ACPI_PM1_CNT, 2), SLP_TYP(3) | 3);
    assert_int_equal(in_size(&g, ACPI_PM_TMR, 4), ticks);
    assert_int_equal(save_device(other, &again), len);
    assert_memory_equal(data, again, len);
    free(again);
    g.mono_ns += NSEC_PER_SEC;
    assert_int_equal((uint32_t)in_size(&g, ACPI_PM_TMR, 4) - ticks, PM_HZ);
    /* The line follows a restored state that has no event, too */
    out_size(f, STS, PWRBTN, 2);
    free(data);
    len = save_device(dev, &data);
    assert_int_equal(restore_device(other, data, len), 0);
    assert_int_equal(g.level[ACPI_SCI_IRQ], 0);
    free(data);
    device_destroy(dev);
    device_destroy(other);
    fixture_fini(&g);
}

/* The timer goes on as the TSC does: what a state is old it has moved on, and a change of its top bit meanwhile has come. */
static void test_pm_timer_advances(void **state)
{
    struct fixture *f = *state;
    struct device *dev;
    uint32_t ticks;
    uint8_t *data;
    size_t len;

    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    f->mono_ns += 7 * NSEC_PER_SEC;
    out_size(f, EN, TMR, 2);
    ticks = (uint32_t)in_size(f, ACPI_PM_TMR, 4);
    len = save_device(dev, &data);
    assert_int_equal(restore_device(dev, data, len), 0);
    device_advance(dev, 3 * NSEC_PER_SEC);
    assert_int_equal((uint32_t)in_size(f, ACPI_PM_TMR, 4) - ticks, 3 * PM_HZ);
    assert_int_equal(in_size(f, STS, 2), 0);
    f->mono_ns += NSEC_PER_SEC;
    assert_int_equal((uint32_t)in_size(f, ACPI_PM_TMR, 4) - ticks, 4 * PM_HZ);
    /* Longer ago than this host runs. */
    assert_int_equal(restore_device(dev, data, len), 0);
    device_advance(dev, 600 * NSEC_PER_SEC);
    assert_int_equal((uint32_t)in_size(f, ACPI_PM_TMR, 4) - ticks, 600 * PM_HZ);
    assert_int_equal(in_size(f, STS, 2), TMR);
    assert_int_equal(f->level[ACPI_SCI_IRQ], 1);
    free(data);
    device_destroy(dev);
}

static void test_pm_state_rejected(void **state)
{
    static const struct {
        const char *field;
        uint8_t value[8];
        size_t len;
    } bad[] = {
        {"status", {0x02, 0x00}, 2}, {"status", {0x00, 0x80}, 2},
        {"enable", {0x02, 0x00}, 2}, {"control", {0x01, 0x00}, 2},
        {"control", {0x00, 0x20}, 2}, {"ticks", {255, 255, 255, 255, 255, 255, 255, 255}, 8},
    };
    struct fixture *f = *state;
    struct state_writer w;
    struct device *dev;
    uint8_t *data, *again;
    size_t len;

    assert_int_equal(acpi_pm_create(&f->env, &dev), 0);
    out_size(f, EN, PWRBTN, 2);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        print_message("# %s\n", bad[i].field);
        len = save_device(dev, &data);
        memcpy(find_field(data, len, bad[i].field), bad[i].value, bad[i].len);
        assert_int_equal(restore_device(dev, data, len), -EBADMSG);
        free(data);
        assert_int_equal(in_size(f, EN, 2), PWRBTN);
    }
    /* Another device's section, an unknown version, a missing and an unknown field */
    state_writer_init(&w);
    state_begin(&w, "other", 0, 1);
    state_end(&w);
    assert_int_equal(state_finish(&w, &data, &len), 0);
    assert_int_equal(restore_device(dev, data, len), -ENOENT);
    free(data);
    for (uint32_t version = 1; version <= 2; version++) {
        state_writer_init(&w);
        state_begin(&w, "acpi-pm", 0, version);
        state_end(&w);
        assert_int_equal(state_finish(&w, &data, &len), 0);
        assert_int_equal(restore_device(dev, data, len), version == 1 ? -ENOENT : -EBADMSG);
        free(data);
    }
    state_writer_init(&w);
    state_begin(&w, "acpi-pm", 0, 1);
    state_put_bytes(&w, "status", "\0", 2);
    state_put_bytes(&w, "enable", "\0", 2);
    state_put_bytes(&w, "control", "\0", 2);
    state_put_u64(&w, "ticks", 5);
    state_put_u64(&w, "more", 5);
    state_end(&w);
    assert_int_equal(state_finish(&w, &data, &len), 0);
    assert_int_equal(restore_device(dev, data, len), -EBADMSG);
    free(data);
    len = save_device(dev, &again);
    assert_int_equal(restore_device(dev, again, len), 0);
    free(again);
    device_destroy(dev);
}

/* A device without state writes no section and takes any. */
static void test_stateless(void **state)
{
    struct fixture *f = *state;
    struct state_reader r;
    struct device *dev;
    uint8_t *data;
    size_t len;

    assert_int_equal(i8042_create(&f->env, &dev), 0);
    len = save_device(dev, &data);
    assert_int_equal(state_reader_init(&r, data, len), 0);
    assert_int_equal(r.count, 0);
    assert_int_equal(device_restore(dev, &r), 0);
    state_reader_clear(&r);
    free(data);
    device_destroy(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_i8042, setup, teardown),
        cmocka_unit_test_setup_teardown(test_create_conflict, setup, teardown),
        cmocka_unit_test_setup_teardown(test_exit_port, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pm_registers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pm_sleep_and_reset, setup, teardown),
        cmocka_unit_test_setup_teardown(test_power_button, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pm_timer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pm_timer_carry, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pm_timer_interrupt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pm_state, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pm_timer_advances, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pm_state_rejected, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stateless, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
