/*
 * Fuzzes the devices from all sides: the guest's port accesses, what is typed on the console, time, and the states
 * that a peer sends. An input is a list of operations, each a byte and its arguments; see run_operation.
 *
 * Time stands still but for the operation that moves it, so a run depends on its input alone.
 */
#include "config.h"

#include <assert.h>
#include <event2/event.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/state.h"
#include "base/util.h"
#include "device/chardev-internal.h"
#include "device/devices.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define DEVICES 5
#define RING 16
#define LINES 24

struct machine {
    struct bus *bus;
    struct device_env env;
    struct irq_sink sink;
    struct device_host host;
    struct device_clock clock;
    struct event_base *events;
    struct chardev *console;
    struct device *devices[DEVICES];
    uint64_t mono_ns;
    int64_t real_ns;
    unsigned int requests;
};

static void set_irq(void *opaque, unsigned int gsi, int level)
{
    assert(gsi < LINES && (level == 0 || level == 1));
}

static void request(void *opaque)
{
    ((struct machine *)opaque)->requests++;
}

static void request_exit(void *opaque, int status)
{
    assert(status >= 0 && status <= 255 && (status & 1));
    request(opaque);
}

static uint64_t mono_ns(void *opaque)
{
    return ((struct machine *)opaque)->mono_ns;
}

static int64_t real_ns(void *opaque)
{
    return ((struct machine *)opaque)->real_ns;
}

static void machine_start(struct machine *m)
{
    struct chardev_config config = {.kind = CHARDEV_FILE, .path = "/dev/null", .buffer_size = RING};
    int err;

    m->mono_ns = 3600 * NSEC_PER_SEC;
    m->real_ns = INT64_C(1800000000) * (int64_t)NSEC_PER_SEC;
    m->sink = (struct irq_sink){.set = set_irq, .opaque = m};
    m->host = (struct device_host){
        .request_reset = request, .request_poweroff = request, .request_exit = request_exit, .opaque = m};
    m->clock = (struct device_clock){.monotonic_ns = mono_ns, .realtime_ns = real_ns, .opaque = m};
    m->events = event_base_new();
    err = bus_new(&m->bus);
    m->env = (struct device_env){
        .bus = m->bus, .irq = &m->sink, .events = m->events, .host = &m->host, .clock = &m->clock};
    err |= chardev_new(&config, m->events, &m->console);
    err |= serial_create(&m->env, m->console, &m->devices[0]);
    err |= rtc_create(&m->env, &m->devices[1]);
    err |= acpi_pm_create(&m->env, &m->devices[2]);
    err |= i8042_create(&m->env, &m->devices[3]);
    err |= testdev_create(&m->env, &m->devices[4]);
    assert(err == 0);
}

static void machine_stop(struct machine *m)
{
    for (int i = DEVICES - 1; i >= 0; i--)
        device_destroy(m->devices[i]);
    chardev_free(m->console);
    bus_free(m->bus);
    event_base_free(m->events);
}

static void save(struct machine *m, uint8_t **ret, size_t *ret_len)
{
    struct state_writer w;
    int err;

    state_writer_init(&w);
    for (int i = 0; i < DEVICES; i++)
        device_save(m->devices[i], &w);
    err = state_finish(&w, ret, ret_len);
    assert(err == 0);
}

/* 0 when every device took its part. */
static int restore(struct machine *m, const uint8_t *data, size_t len)
{
    struct state_reader r;
    int err = state_reader_init(&r, data, len);

    if (err < 0)
        return err;
    for (int i = 0; i < DEVICES; i++) {
        int e = device_restore(m->devices[i], &r);

        assert(e <= 0 && (e == 0 || r.error[0]));
        err |= e;
    }
    state_reader_clear(&r);
    return err;
}

/* A state of our own is taken, and saves as it was. */
static void round_trip(struct machine *m)
{
    uint8_t *data, *again;
    size_t len, again_len;
    int err;

    /* What waits in the transmitter would go out when it is restored. */
    chardev_drain(m->console, 0);
    save(m, &data, &len);
    err = restore(m, data, len);
    assert(err == 0);
    save(m, &again, &again_len);
    assert(len == again_len && memcmp(data, again, len) == 0);
    free(data);
    free(again);
}

/* One of ours, with some bytes changed. */
static void restore_changed(struct machine *m, struct byte_reader *r)
{
    unsigned int changes = byte_read_u8(r) % 8 + 1;
    uint8_t *data;
    size_t len;

    save(m, &data, &len);
    while (changes-- > 0)
        data[byte_read_u16(r) % len] ^= byte_read_u8(r);
    restore(m, data, len);
    free(data);
}

static void run_access(struct machine *m, struct byte_reader *r, bool write)
{
    static const uint16_t ports[] = {SERIAL_PORT, RTC_PORT, ACPI_PM_BASE, I8042_PORT_DATA, I8042_PORT_CMD, TESTDEV_PORT};
    uint8_t where = byte_read_u8(r), how = byte_read_u8(r), buf[8] = {0};
    uint16_t port = (uint16_t)(ports[(where >> 4) % ARRAY_SIZE(ports)] + (where & 15));
    unsigned int size = how % 8 + 1;

    if (write) {
        for (unsigned int i = 0; i < size; i++)
            buf[i] = byte_read_u8(r);
        bus_write(m->bus, BUS_PIO, port, buf, size);
    } else {
        bus_read(m->bus, BUS_PIO, port, buf, size);
    }
}

static void run_operation(struct machine *m, struct byte_reader *r)
{
    uint8_t what = byte_read_u8(r), n;
    const uint8_t *p;

    switch (what % 12) {
    case 0:
    case 1:
        run_access(m, r, false);
        break;
    case 2:
    case 3:
        run_access(m, r, true);
        break;
    case 4:
        n = byte_read_u8(r);
        n = (uint8_t)MIN((size_t)n, r->len - r->pos);
        p = byte_read(r, n);
        if (p)
            chardev_inject_input(m->console, p, n);
        break;
    case 5:
        event_base_loop(m->events, EVLOOP_NONBLOCK);
        break;
    case 6:
        n = byte_read_u8(r);
        m->mono_ns += (uint64_t)(n & 15) << (n >> 4) * 3;
        m->real_ns += (int64_t)(n & 15) << (n >> 4) * 3;
        break;
    case 7:
        /* The host's clock is set. */
        m->real_ns = (int64_t)byte_read_u32(r) * (int64_t)NSEC_PER_SEC;
        break;
    case 8:
        round_trip(m);
        break;
    case 9:
        restore_changed(m, r);
        break;
    case 10:
        n = byte_read_u8(r);
        if (n & 1)
            acpi_pm_power_button(m->devices[2]);
        if (n & 2)
            m->console->handler.on_break(m->console->handler.opaque);
        if (n & 4)
            device_reset(m->devices[(n >> 3) % DEVICES]);
        break;
    default:
        /* All that is left is a state. */
        restore(m, r->data + r->pos, r->len - r->pos);
        byte_read(r, r->len - r->pos);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct machine m = {0};
    struct byte_reader r = byte_reader_new(data, size);

    log_set_level(LOG_LEVEL_ERR);
    machine_start(&m);
    for (unsigned int n = 0; n < 4096 && !r.failed && r.pos < r.len; n++)
        run_operation(&m, &r);
    round_trip(&m);
    machine_stop(&m);
    return 0;
}
