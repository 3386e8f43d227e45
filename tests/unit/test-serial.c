/* The UART: registers, FIFOs, interrupts, what Linux's driver probes for, back pressure, saved states. */
#include "config.h"

#include "device-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "base/fd.h"
#include "device/chardev-internal.h"

enum { DATA = SERIAL_PORT, IER, IIR, LCR, MCR, LSR, MSR, SCR };
#define FCR IIR
#define DLL DATA
#define DLM IER
#define EMPTY 0x60 /* THRE, TEMT */
#define LINE (t->f.level[SERIAL_IRQ])
#define EDGES (t->f.edges[SERIAL_IRQ])

/* The guest's side is the fixture; the console is a pipe with a ring of 256 bytes, or one that takes everything. */
struct serial_test {
    struct fixture f;
    struct event_base *events;
    struct chardev *chardev;
    struct device *dev;
    int out; /* what the guest prints comes out here; -1 */
};

static void start(struct serial_test *t, bool pipe_console)
{
    struct chardev_config config = {.kind = CHARDEV_NULL};
    char path[64];
    int fds[2];

    fixture_init(&t->f);
    t->out = -1;
    t->events = event_base_new();
    if (pipe_console) {
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        assert_int_equal(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
        assert_true(fcntl(fds[1], F_SETPIPE_SZ, 4096) > 0);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[1]);
        config = (struct chardev_config){.kind = CHARDEV_FILE, .path = path, .buffer_size = 256};
        t->out = fds[0];
    }
    assert_int_equal(chardev_new(&config, t->events, &t->chardev), 0);
    if (pipe_console)
        close(fds[1]);
    assert_int_equal(serial_create(&t->f.env, t->chardev, &t->dev), 0);
}

static void stop(struct serial_test *t)
{
    device_destroy(t->dev);
    chardev_free(t->chardev);
    event_base_free(t->events);
    fixture_fini(&t->f);
    if (t->out >= 0)
        close(t->out);
}

static int setup(void **state)
{
    struct serial_test *t = malloc(sizeof(*t));

    start(t, false);
    *state = t;
    return 0;
}

static int setup_pipe(void **state)
{
    struct serial_test *t = malloc(sizeof(*t));

    start(t, true);
    *state = t;
    return 0;
}

static int teardown(void **state)
{
    stop(*state);
    free(*state);
    return 0;
}

static uint8_t in(struct serial_test *t, uint16_t port)
{
    return in8(&t->f, port);
}

static void out(struct serial_test *t, uint16_t port, uint8_t v)
{
    out8(&t->f, port, v);
}

static size_t type(struct serial_test *t, const char *text)
{
    return chardev_inject_input(t->chardev, (const uint8_t *)text, strlen(text));
}

/* Let the main loop do what is to be done now. */
static void run_loop(struct serial_test *t)
{
    event_base_loop(t->events, EVLOOP_NONBLOCK);
}

static void test_reset_values(void **state)
{
    struct serial_test *t = *state;

    for (int round = 0; round < 2; round++) {
        assert_int_equal(in(t, IER), 0);
        assert_int_equal(in(t, IIR), 0x01);
        assert_int_equal(in(t, LCR), 0);
        assert_int_equal(in(t, MCR), 0);
        assert_int_equal(in(t, LSR), EMPTY);
        assert_int_equal(in(t, MSR), 0xb0);
        assert_int_equal(in(t, SCR), 0);
        assert_int_equal(in(t, DATA), 0);
        out(t, LCR, 0x80);
        assert_int_equal(in(t, DLL), 12);
        assert_int_equal(in(t, DLM), 0);
        out(t, DLL, 1);
        out(t, DLM, 2);
        assert_int_equal(in(t, DLL), 1);
        assert_int_equal(in(t, DLM), 2);
        out(t, LCR, 0x03);
        assert_int_equal(in(t, LCR), 0x03);
        assert_int_equal(in(t, IER), 0);
        out(t, IER, 0xff);
        assert_int_equal(in(t, IER), 0x0f);
        assert_int_equal(LINE, 1);
        out(t, MCR, 0xff);
        assert_int_equal(in(t, MCR), 0x1f);
        out(t, SCR, 0xa5);
        assert_int_equal(in(t, SCR), 0xa5);
        out(t, FCR, 0xff);
        type(t, "input");
        /* LSR and MSR are not writable */
        out(t, LSR, 0xff);
        out(t, MSR, 0xff);
        assert_int_equal(in(t, LSR), EMPTY);
        device_reset(t->dev);
        assert_int_equal(LINE, 0);
        /* What was typed before is the new guest's */
        run_loop(t);
        assert_int_equal(in(t, DATA), round ? 'n' : 'i');
        out(t, FCR, 0x01);
        out(t, FCR, 0x00);
    }
}

/* What Linux's 8250 driver does to find out what it has. */
static void test_linux_autoconfig(void **state)
{
    struct serial_test *t = *state;
    uint8_t lsr, first;

    out(t, IER, 0);
    assert_int_equal(in(t, IER) & 0x0f, 0);
    out(t, IER, 0x0f);
    assert_int_equal(in(t, IER) & 0x0f, 0x0f);
    out(t, IER, 0);
    /* Loopback: LOOP, OUT2, RTS show as DCD and CTS */
    out(t, MCR, 0x1a);
    assert_int_equal(in(t, MSR) & 0xf0, 0x90);
    out(t, MCR, 0);
    /* No enhanced registers behind LCR 0xbf: a 16550A, without the 64-byte FIFO of a 16750 */
    out(t, LCR, 0xbf);
    out(t, FCR, 0);
    out(t, LCR, 0);
    out(t, FCR, 0x01);
    assert_int_equal(in(t, IIR) >> 6, 3);
    out(t, LCR, 0xbf);
    assert_int_not_equal(in(t, FCR), 0);
    out(t, LCR, 0x80);
    assert_int_not_equal(in(t, FCR), 0);
    out(t, LCR, 0);
    out(t, FCR, 0x01 | 0x20);
    assert_int_equal(in(t, IIR) >> 5, 6);
    out(t, LCR, 0x80);
    out(t, FCR, 0x01 | 0x20);
    out(t, LCR, 0);
    assert_int_equal(in(t, IIR) >> 5, 6);
    /* An XScale's unit enable bit does not stick */
    out(t, IER, 0x40);
    assert_int_equal(in(t, IER), 0);
    /* The interrupt of an empty transmitter comes back each time it is enabled, though IIR was read */
    out(t, IER, 0x02);
    first = in(t, IIR);
    out(t, IER, 0);
    out(t, IER, 0x02);
    assert_int_equal(first & 0x0f, 0x02);
    assert_int_equal(in(t, IIR) & 0x0f, 0x02);
    out(t, IER, 0);
    assert_int_equal(in(t, IIR) & 0x0f, 0x01);
    out(t, IER, 0x02);
    lsr = in(t, LSR);
    assert_int_equal(lsr & 0x40, 0x40);
    assert_int_equal(in(t, IIR) & 0x01, 0);
}

static void test_thre_interrupt(void **state)
{
    struct serial_test *t = *state;
    unsigned int calls;

    /* printk polls: not one interrupt call */
    out(t, DATA, 'a');
    out(t, DATA, 'b');
    assert_int_equal(t->f.irq_calls, 0);
    out(t, IER, 0x02);
    assert_int_equal(LINE, 1);
    assert_int_equal(EDGES, 1);
    assert_int_equal(in(t, IIR), 0x02);
    assert_int_equal(LINE, 0);
    assert_int_equal(in(t, IIR), 0x01);
    /* The byte is out at once: a new interrupt */
    out(t, DATA, 'c');
    assert_int_equal(LINE, 1);
    assert_int_equal(EDGES, 2);
    /* A handler that acknowledges by the next byte only gets an edge for it */
    out(t, DATA, 'd');
    assert_int_equal(EDGES, 3);
    /* Reading LSR does not acknowledge */
    assert_int_equal(in(t, LSR), EMPTY);
    assert_int_equal(LINE, 1);
    out(t, IER, 0);
    assert_int_equal(LINE, 0);
    calls = t->f.irq_calls;
    out(t, DATA, 'e');
    assert_int_equal(t->f.irq_calls, calls);
}

static void test_receive(void **state)
{
    struct serial_test *t = *state;

    /* One byte at a time without the FIFO; the rest waits in the chardev */
    type(t, "xyz");
    assert_int_equal(in(t, LSR), EMPTY | 1);
    assert_int_equal(in(t, DATA), 'x');
    assert_int_equal(in(t, LSR), EMPTY);
    run_loop(t);
    assert_int_equal(in(t, DATA), 'y');
    run_loop(t);
    out(t, IER, 0x01);
    assert_int_equal(LINE, 1);
    assert_int_equal(in(t, IIR), 0x04);
    assert_int_equal(in(t, DATA), 'z');
    assert_int_equal(LINE, 0);
    assert_int_equal(in(t, IIR), 0x01);
    assert_int_equal(in(t, DATA), 0);
}

static void test_receive_fifo(void **state)
{
    static const unsigned int triggers[] = {1, 4, 8, 14};
    struct serial_test *t = *state;

    for (unsigned int level = 0; level < 4; level++) {
        out(t, FCR, (uint8_t)(0x07 | level << 6));
        out(t, IER, 0x01);
        for (unsigned int n = 1; n <= 16; n++) {
            type(t, "c");
            assert_int_equal(LINE, 1);
            /* "Character timeout" below the level: Linux takes both alike */
            assert_int_equal(in(t, IIR), 0xc0 | (n >= triggers[level] ? 0x04 : 0x0c));
        }
        for (unsigned int n = 0; n < 16; n++) {
            assert_int_equal(in(t, LSR), EMPTY | 1);
            assert_int_equal(in(t, DATA), 'c');
        }
        assert_int_equal(LINE, 0);
        assert_int_equal(in(t, LSR), EMPTY);
    }
}

static void test_input_flood(void **state)
{
    struct serial_test *t = *state;
    char text[CHARDEV_INPUT_SIZE + 100];
    unsigned int got = 0;

    for (unsigned int i = 0; i < sizeof(text); i++)
        text[i] = (char)('a' + i % 26);
    out(t, FCR, 0x01);
    assert_int_equal(chardev_inject_input(t->chardev, (uint8_t *)text, sizeof(text)), CHARDEV_INPUT_SIZE);
    /* Nothing overruns, nothing is lost, all of it arrives in order */
    for (unsigned int rounds = 0; got < CHARDEV_INPUT_SIZE && rounds < 10000; rounds++) {
        uint8_t lsr = in(t, LSR);

        assert_int_equal(lsr & 0x9e, 0);
        if (lsr & 1)
            assert_int_equal(in(t, DATA), text[got++]);
        else
            run_loop(t);
    }
    assert_int_equal(got, CHARDEV_INPUT_SIZE);
    assert_int_equal(in(t, LSR), EMPTY);
}

static void test_fifo_control(void **state)
{
    struct serial_test *t = *state;

    /* Without the enable bit nothing else is programmed */
    out(t, FCR, 0xc8);
    assert_int_equal(in(t, IIR), 0x01);
    out(t, FCR, 0xc9);
    assert_int_equal(in(t, IIR), 0xc1);
    type(t, "abcdefghijklmnopqr");
    /* Clearing makes room for what waits */
    out(t, FCR, 0x03);
    assert_int_equal(in(t, LSR), EMPTY);
    run_loop(t);
    assert_int_equal(in(t, DATA), 'q');
    /* Clearing the transmitter leaves the receiver alone */
    out(t, FCR, 0x05);
    assert_int_equal(in(t, DATA), 'r');
    /* Changing the mode empties both */
    type(t, "z");
    out(t, FCR, 0x00);
    assert_int_equal(in(t, LSR), EMPTY);
    assert_int_equal(in(t, IIR), 0x01);
}

static void test_loopback(void **state)
{
    struct serial_test *t = *state;

    out(t, FCR, 0x01);
    out(t, MCR, 0x10);
    in(t, MSR);
    out(t, IER, 0x01);
    for (unsigned int i = 0; i < 20; i++)
        out(t, DATA, (uint8_t)('0' + i));
    /* The FIFO keeps the first 16 and says that it lost some */
    assert_int_equal(in(t, LSR), EMPTY | 0x03);
    assert_int_equal(in(t, LSR), EMPTY | 0x01);
    for (unsigned int i = 0; i < 16; i++)
        assert_int_equal(in(t, DATA), '0' + i);
    assert_int_equal(in(t, LSR), EMPTY);
    /* The single register keeps the last */
    out(t, FCR, 0);
    out(t, DATA, 'a');
    out(t, DATA, 'b');
    assert_int_equal(in(t, LSR), EMPTY | 0x03);
    assert_int_equal(in(t, DATA), 'b');
    /* The pin is cut off; what waits comes in when the loop is opened */
    out(t, FCR, 0x01);
    type(t, "hi");
    assert_int_equal(in(t, LSR), EMPTY);
    out(t, MCR, 0);
    run_loop(t);
    assert_int_equal(in(t, DATA), 'h');
    assert_int_equal(in(t, DATA), 'i');
    assert_int_equal(in(t, DATA), 0);
}

static void test_modem_status(void **state)
{
    struct serial_test *t = *state;

    out(t, IER, 0x08);
    assert_int_equal(LINE, 0);
    out(t, MCR, 0x10);
    /* CTS, DSR and DCD fell */
    assert_int_equal(LINE, 1);
    assert_int_equal(in(t, IIR), 0x00);
    assert_int_equal(in(t, MSR), 0x0b);
    assert_int_equal(LINE, 0);
    assert_int_equal(in(t, MSR), 0x00);
    out(t, MCR, 0x11);
    assert_int_equal(in(t, MSR), 0x22);
    out(t, MCR, 0x13);
    assert_int_equal(in(t, MSR), 0x31);
    /* RI tells its end only */
    out(t, MCR, 0x17);
    assert_int_equal(LINE, 0);
    assert_int_equal(in(t, MSR), 0x70);
    out(t, MCR, 0x1b);
    assert_int_equal(in(t, MSR), 0xbc);
    out(t, MCR, 0x00);
    assert_int_equal(in(t, MSR), 0xb0);
}

static void test_break_and_priority(void **state)
{
    struct serial_test *t = *state;

    out(t, FCR, 0x01);
    type(t, "a");
    t->chardev->handler.on_break(t->chardev->handler.opaque);
    type(t, "b");
    /* The break is the second in the FIFO: an error somewhere, but not at its head */
    assert_int_equal(in(t, LSR), EMPTY | 0x81);
    assert_int_equal(in(t, DATA), 'a');
    out(t, IER, 0x0f);
    out(t, MCR, 0x10);
    out(t, MCR, 0x00);
    /* All four sources, by priority */
    assert_int_equal(in(t, IIR), 0xc6);
    assert_int_equal(in(t, LSR), EMPTY | 0x91);
    assert_int_equal(in(t, IIR), 0xc4);
    assert_int_equal(in(t, LSR), EMPTY | 0x01);
    assert_int_equal(in(t, DATA), 0);
    assert_int_equal(in(t, DATA), 'b');
    assert_int_equal(in(t, IIR), 0xc2);
    assert_int_equal(in(t, IIR), 0xc0);
    assert_int_equal(LINE, 1);
    in(t, MSR);
    assert_int_equal(in(t, IIR), 0xc1);
    assert_int_equal(LINE, 0);
    /* Breaks without end overrun like anything else */
    for (unsigned int i = 0; i < 40; i++)
        t->chardev->handler.on_break(t->chardev->handler.opaque);
    assert_int_equal(in(t, LSR), EMPTY | 0x93);
}

static void test_odd_accesses(void **state)
{
    struct serial_test *t = *state;
    uint8_t buf[8];

    /* Two registers at a time */
    out_size(&t->f, IER, 0x0103, 2);
    assert_int_equal(in(t, IER), 0x03);
    assert_int_equal(in(t, IIR), 0xc2);
    assert_int_equal(in_size(&t->f, LCR, 4), 0xb0600000);
    /* Every width everywhere, also across the end */
    for (unsigned int size = 1; size <= 8; size++)
        for (unsigned int at = 0; at < 8; at++) {
            memset(buf, 0x55, sizeof(buf));
            bus_write(t->f.bus, BUS_PIO, SERIAL_PORT + at, buf, size);
            bus_read(t->f.bus, BUS_PIO, SERIAL_PORT + at, buf, size);
            for (unsigned int i = 8; i < at + size; i++)
                assert_int_equal(buf[i - at], 0xff);
        }
}

/* -- the transmitter and a console that is not read -- */

static size_t drain_pipe(struct serial_test *t, char *buf, size_t size)
{
    size_t len = 0;
    ssize_t n;

    while ((n = read(t->out, buf + len, size - len)) > 0)
        len += (size_t)n;
    return len;
}

static char nth(size_t i)
{
    return (char)('!' + i % 90);
}

/* Print until the transmitter is full, and no turn of the main loop changes that; returns how many bytes were printed. */
static size_t fill(struct serial_test *t, size_t from)
{
    size_t n = from;

    do {
        while (in(t, LSR) & 0x20) {
            out(t, DATA, (uint8_t)nth(n++));
            assert_true(n < 100000);
        }
        chardev_drain(t->chardev, 0);
    } while (in(t, LSR) & 0x20);
    return n;
}

static void test_back_pressure(void **state)
{
    struct serial_test *t = *state;
    char *got = malloc(200000);
    size_t sent, len = 0, i;

    out(t, FCR, 0x01);
    sent = fill(t, 0);
    /* The pipe (4 KiB) and the ring are full, the last byte is in the FIFO */
    assert_true(sent >= 4096 + 256);
    assert_int_equal(in(t, LSR), 0);
    /* The FIFO takes 15 more; beyond that a guest that does not look loses the newest */
    for (i = 0; i < 15; i++)
        out(t, DATA, (uint8_t)nth(sent++));
    out(t, DATA, '!');
    out(t, DATA, (uint8_t)nth(sent - 1));
    out(t, IER, 0x02);
    assert_int_equal(LINE, 0);

    /* Reading the pipe lets it all out, and tells the guest */
    for (unsigned int rounds = 0; len < sent && rounds < 1000; rounds++) {
        struct pollfd p = {.fd = t->out, .events = POLLIN};

        event_base_loop(t->events, EVLOOP_NONBLOCK);
        if (poll(&p, 1, 0) > 0)
            len += drain_pipe(t, got + len, 200000 - len);
        chardev_drain(t->chardev, 0);
    }
    assert_int_equal(len, sent);
    for (i = 0; i < len; i++)
        if (got[i] != nth(i))
            fail_msg("byte %zu of %zu differs", i, len);
    assert_int_equal(LINE, 1);
    assert_int_equal(in(t, IIR), 0xc2);
    assert_int_equal(in(t, LSR), EMPTY);
    assert_int_equal(chardev_dropped(t->chardev), 0);
    free(got);
}

static void test_clear_transmitter(void **state)
{
    struct serial_test *t = *state;

    out(t, FCR, 0x01);
    fill(t, 0);
    out(t, IER, 0x02);
    assert_int_equal(LINE, 0);
    out(t, FCR, 0x05);
    assert_int_equal(in(t, LSR), EMPTY);
    assert_int_equal(LINE, 1);
    /* Without the FIFO there is one byte of room, and the newest counts */
    out(t, FCR, 0x00);
    fill(t, 0);
    assert_int_equal(in(t, LSR), 0);
    out(t, DATA, 'X');
    assert_int_equal(in(t, LSR), 0);
    device_reset(t->dev);
    assert_int_equal(in(t, LSR), EMPTY);
}

/* -- states -- */

static void test_state(void **state)
{
    struct serial_test *t = *state, other;
    uint8_t *data, *again;
    char *got = malloc(200000), *tail;
    size_t len, n, sent;

    out(t, LCR, 0x80);
    out(t, DLM, 0x12);
    out(t, DLL, 0x34);
    out(t, LCR, 0x1b);
    out(t, FCR, 0x81);
    out(t, SCR, 0x77);
    out(t, MCR, 0x0b);
    sent = fill(t, 0);
    for (n = 0; n < 9; n++)
        out(t, DATA, (uint8_t)nth(sent++));
    type(t, "in");
    t->chardev->handler.on_break(t->chardev->handler.opaque);
    out(t, IER, 0x0f);
    len = save_device(t->dev, &data);

    start(&other, true);
    assert_int_equal(restore_device(other.dev, data, len), 0);
    assert_int_equal(other.f.level[SERIAL_IRQ], 1);
    assert_int_equal(in(&other, LCR), 0x1b);
    assert_int_equal(in(&other, SCR), 0x77);
    assert_int_equal(in(&other, MCR), 0x0b);
    assert_int_equal(in(&other, IER), 0x0f);
    assert_int_equal(in(&other, IIR), 0xcc);
    assert_int_equal(in(&other, DATA), 'i');
    assert_int_equal(in(&other, DATA), 'n');
    assert_int_equal(in(&other, IIR), 0xc6);
    /* What waited in the transmitter goes out over there, where there is room */
    assert_int_equal(in(&other, LSR), EMPTY | 0x91);
    chardev_drain(other.chardev, 0);
    n = drain_pipe(&other, got, 200000);
    assert_int_equal(n, 10);
    tail = got;
    for (size_t i = 0; i < n; i++)
        assert_int_equal(tail[i], nth(sent - n + i));
    out(&other, LCR, 0x80);
    assert_int_equal(in(&other, DLM), 0x12);
    assert_int_equal(in(&other, DLL), 0x34);
    stop(&other);

    /* Restored where it came from (still no room): the same again, byte for byte */
    assert_int_equal(restore_device(t->dev, data, len), 0);
    assert_int_equal(save_device(t->dev, &again), len);
    assert_memory_equal(data, again, len);
    free(again);
    /* And it still goes on when there is room */
    for (unsigned int rounds = 0; !(in(t, LSR) & 0x20) && rounds < 1000; rounds++) {
        drain_pipe(t, got, 200000);
        chardev_drain(t->chardev, 0);
    }
    assert_int_equal(in(t, LSR) & EMPTY, EMPTY);
    free(data);
    free(got);
}

static void test_state_rejected(void **state)
{
    static const struct {
        const char *field;
        uint8_t at, value;
    } bad[] = {
        {"ier", 0, 0x10}, {"fcr", 0, 0x02}, {"fcr", 0, 0xc0}, {"mcr", 0, 0x20}, {"msr_deltas", 0, 0x10},
        {"overrun", 0, 2}, {"thre_pending", 0, 0xff}, {"rx_len", 0, 17}, {"rx_len", 0, 255}, {"tx_len", 0, 17},
        {"tx_len", 0, 255}, {"rx", 1, 0x02},
    };
    struct serial_test *t = *state;
    uint8_t *data;
    size_t len;

    out(t, FCR, 0x01);
    out(t, SCR, 0x42);
    type(t, "abc");
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        print_message("# %s\n", bad[i].field);
        len = save_device(t->dev, &data);
        find_field(data, len, bad[i].field)[bad[i].at] = bad[i].value;
        assert_int_equal(restore_device(t->dev, data, len), -EBADMSG);
        free(data);
        assert_int_equal(in(t, SCR), 0x42);
    }
    /* More bytes than the mode has room for; an idle transmitter that holds bytes */
    len = save_device(t->dev, &data);
    *find_field(data, len, "fcr") = 0;
    assert_int_equal(restore_device(t->dev, data, len), -EBADMSG);
    *find_field(data, len, "rx_len") = 1;
    assert_int_equal(restore_device(t->dev, data, len), 0);
    *find_field(data, len, "tx_len") = 2;
    assert_int_equal(restore_device(t->dev, data, len), -EBADMSG);
    *find_field(data, len, "tx_len") = 1;
    *find_field(data, len, "thre_pending") = 1;
    assert_int_equal(restore_device(t->dev, data, len), -EBADMSG);
    assert_int_equal(in(t, DATA), 'a');
    free(data);
}

/* -- a vCPU thread and the main loop at once -- */

#define STRESS_BYTES 20000

static void *print_thread(void *opaque)
{
    struct serial_test *t = opaque;

    for (size_t i = 0; i < STRESS_BYTES;) {
        if (in(t, LSR) & 0x20)
            out(t, DATA, (uint8_t)nth(i++));
        if (in(t, LSR) & 0x01)
            in(t, DATA);
    }
    return NULL;
}

static void give_up(evutil_socket_t fd, short what, void *opaque)
{
    fail_msg("the output does not arrive");
}

static void test_threads(void **state)
{
    const struct timeval limit = {.tv_sec = 60};
    struct serial_test *t = *state;
    char *got = malloc(STRESS_BYTES + 4096);
    struct event *guard = evtimer_new(t->events, give_up, NULL);
    pthread_t thread;
    size_t len = 0, typed = 0;

    evtimer_add(guard, &limit);
    out(t, FCR, 0x01);
    out(t, IER, 0x03);
    assert_int_equal(pthread_create(&thread, NULL, print_thread, t), 0);
    while (len < STRESS_BYTES) {
        event_base_loop(t->events, EVLOOP_ONCE);
        len += drain_pipe(t, got + len, STRESS_BYTES + 4096 - len);
        typed += type(t, "0123456789");
    }
    pthread_join(thread, NULL);
    assert_int_equal(len, STRESS_BYTES);
    for (size_t i = 0; i < len; i++)
        if (got[i] != nth(i))
            fail_msg("byte %zu differs", i);
    assert_true(typed > 0);
    event_free(guard);
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_reset_values, setup, teardown),
        cmocka_unit_test_setup_teardown(test_linux_autoconfig, setup, teardown),
        cmocka_unit_test_setup_teardown(test_thre_interrupt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_receive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_receive_fifo, setup, teardown),
        cmocka_unit_test_setup_teardown(test_input_flood, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fifo_control, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loopback, setup, teardown),
        cmocka_unit_test_setup_teardown(test_modem_status, setup, teardown),
        cmocka_unit_test_setup_teardown(test_break_and_priority, setup, teardown),
        cmocka_unit_test_setup_teardown(test_odd_accesses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_back_pressure, setup_pipe, teardown),
        cmocka_unit_test_setup_teardown(test_clear_transmitter, setup_pipe, teardown),
        cmocka_unit_test_setup_teardown(test_state, setup_pipe, teardown),
        cmocka_unit_test_setup_teardown(test_state_rejected, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads, setup_pipe, teardown),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
