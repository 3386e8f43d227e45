/*
 * A driver that lies to virtio-rng, virtio-balloon and virtio-console: registers, configuration space, rings, descriptors, lists
 * of frames, and states that a peer sends. Everything runs at once on one thread, so a run depends on its input alone.
 *
 * The first byte of an input chooses the device; what follows is a list of operations (run_operation). Guest addresses are kept
 * small, so that most of them hit something.
 */
#include "config.h"

#include <assert.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/state.h"
#include "base/util.h"
#include "device/chardev-internal.h"
#include "device/virtio/balloon.h"
#include "device/virtio/console.h"
#include "device/virtio/mmio.h"
#include "device/virtio/rng.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MEMORY (1 * MiB)
#define RING_SIZE 8
#define QUEUES 4
#define DEVICES 3
#define DESC(n) (0x1000u + 0x3000u * (n))
#define AVAIL(n) (DESC(n) + 0x1000u)
#define USED(n) (DESC(n) + 0x2000u)
#define TABLES 0x10000u

static struct bus *bus;
static struct mem *mem;
static struct irq_sink sink;
static struct device_host host;
static struct device_clock device_clock;
static struct chardev *chardev;
static struct event_base *events;
static struct device *devices[DEVICES];
static unsigned int slot; /* of the device that the input is for */
static uint64_t now;

static void set_irq(void *opaque, unsigned int gsi, int level)
{
    assert(gsi < 24 && (level == 0 || level == 1));
}

static uint64_t monotonic(void *opaque)
{
    return now;
}

static int64_t realtime(void *opaque)
{
    return (int64_t)now;
}

static void end(void)
{
    for (unsigned int i = 0; i < DEVICES; i++)
        device_destroy(devices[i]);
    chardev_free(chardev);
    event_base_free(events);
    mem_free(mem);
    bus_free(bus);
}

/* Made once: memory for each input would be most of the work. */
static void make(void)
{
    const struct mem_config memory = {.size = MEMORY};
    const struct chardev_config console = {.kind = CHARDEV_FILE, .path = "/dev/null", .buffer_size = 1024};
    const struct vrng_config rng = {.on = true, .rate = 4096};
    const struct vballoon_config balloon = {.on = true, .reporting = true, .deflate_on_oom = true};
    struct device_env env;
    int err = bus_new(&bus);

    err |= mem_new(&memory, &mem);
    events = event_base_new();
    err |= chardev_new(&console, events, &chardev);
    sink = (struct irq_sink){.set = set_irq};
    device_clock = (struct device_clock){.monotonic_ns = monotonic, .realtime_ns = realtime};
    env = (struct device_env){.bus = bus, .mem = mem, .irq = &sink, .host = &host, .clock = &device_clock};
    err |= vrng_create(&env, &rng, 0, &devices[0]);
    err |= vballoon_create(&env, &balloon, 1, &devices[1]);
    err |= vconsole_create(&env, chardev, 2, &devices[2]);
    assert(err == 0);
    atexit(end);
}

static void write_reg(unsigned int reg, uint32_t value)
{
    bus_write(bus, BUS_MMIO, virtio_mmio_base(slot) + reg, &value, sizeof(value));
}

/* As a driver that means well brings the device up; the rings are what they are. */
static void bring_up(uint32_t features)
{
    write_reg(VIRTIO_MMIO_STATUS, 0);
    write_reg(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    /* What all of them offer, and what is the balloon's. */
    write_reg(VIRTIO_MMIO_DRIVER_FEATURES,
              features & (1u << VIRTIO_RING_F_EVENT_IDX | 1u << VIRTIO_RING_F_INDIRECT_DESC | (slot == 1 ? 0x37u : 0)));
    write_reg(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    write_reg(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    write_reg(VIRTIO_MMIO_STATUS, 11);
    for (unsigned int i = 0; i < QUEUES; i++) {
        write_reg(VIRTIO_MMIO_QUEUE_SEL, i);
        write_reg(VIRTIO_MMIO_QUEUE_NUM, RING_SIZE);
        write_reg(VIRTIO_MMIO_QUEUE_DESC_LOW, DESC(i));
        write_reg(VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL(i));
        write_reg(VIRTIO_MMIO_QUEUE_USED_LOW, USED(i));
        write_reg(VIRTIO_MMIO_QUEUE_READY, 1);
    }
    write_reg(VIRTIO_MMIO_STATUS, 15);
}

static void put_descriptor(struct byte_reader *r)
{
    uint8_t where = byte_read_u8(r), how = byte_read_u8(r);
    struct vring_desc d = {
        .addr = (how & 0x80) ? byte_read_u64(r) : (uint64_t)byte_read_u16(r) << 4,
        .len = (how & 0x40) ? byte_read_u32(r) : byte_read_u8(r) * ((how & 0x20) ? 512u : (how & 0x10) ? 16u : 1u),
        .flags = how & 7,
        .next = byte_read_u8(r),
    };
    gpa_t table = (where & 0x80) ? TABLES + (where >> 4 & 7) * 0x100u : DESC(where >> 5 & 3);

    mem_write(mem, table + 16u * (where & 15), &d, sizeof(d));
}

static void offer(struct byte_reader *r)
{
    uint8_t how = byte_read_u8(r);
    unsigned int queue = how & 3;
    uint16_t idx, head = byte_read_u8(r);

    mem_read(mem, AVAIL(queue) + 2, &idx, sizeof(idx));
    mem_write(mem, AVAIL(queue) + 4 + 2u * (idx % RING_SIZE), &head, sizeof(head));
    idx = (uint16_t)(idx + ((how & 0x80) ? how : 1));
    mem_write(mem, AVAIL(queue) + 2, &idx, sizeof(idx));
    if (how & 4)
        write_reg(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

/* Frames, statistics, text: any bytes. */
static void put_bytes(struct byte_reader *r)
{
    gpa_t gpa = (gpa_t)byte_read_u16(r) << 4;
    uint8_t n = byte_read_u8(r);
    const uint8_t *p;

    n = (uint8_t)MIN((size_t)n, r->len - r->pos);
    p = byte_read(r, n);
    if (p)
        mem_write(mem, gpa, p, n);
}

static int restore(struct device *dev, const uint8_t *data, size_t len)
{
    struct state_reader r;
    int err = state_reader_init(&r, data, len);

    if (err < 0)
        return err;
    err = device_restore(dev, &r);
    assert(err == 0 || r.error[0]);
    state_reader_clear(&r);
    return err;
}

/* A state of ours, as it is or with bytes changed, comes back. */
static void round_trip(struct device *dev, struct byte_reader *r)
{
    unsigned int changes = byte_read_u8(r) % 5;
    bool changed = changes > 0;
    struct state_writer w;
    uint8_t *data;
    size_t len;
    int err;

    device_quiesce(dev);
    state_writer_init(&w);
    device_save(dev, &w);
    err = state_finish(&w, &data, &len);
    assert(err == 0);
    while (changes-- > 0)
        data[byte_read_u16(r) % len] ^= byte_read_u8(r);
    err = restore(dev, data, len);
    assert(changed || err == 0);
    free(data);
    device_resume(dev);
}

static void access_registers(struct byte_reader *r)
{
    uint8_t reg = byte_read_u8(r), how = byte_read_u8(r);
    unsigned int size = 1u << (how & 3);
    uint64_t value = (how & 4) ? byte_read_u32(r) : byte_read_u8(r);

    if (how & 8)
        bus_read(bus, BUS_MMIO, virtio_mmio_base(slot) + 2u * reg, &value, size);
    else if (how & 16)
        bus_write(bus, BUS_MMIO, virtio_mmio_base(slot) + 2u * reg, &value, size);
    else
        write_reg(4u * (reg & 0x7f), (uint32_t)value);
}

/* What is not the driver's doing: time, a person at the console, an administrator. */
static void outside(struct byte_reader *r)
{
    uint8_t what = byte_read_u8(r), value = byte_read_u8(r);

    switch (what % 5) {
    case 0:
        now += (uint64_t)value << 24;
        break;
    case 1:
        chardev_inject_input(chardev, &what, 1);
        break;
    case 2:
        chardev_run(chardev);
        break;
    case 3:
        vballoon_set_memory(devices[1], (uint64_t)value << 12);
        break;
    default:
        vballoon_set_interval(devices[1], value);
        break;
    }
}

static void run_operation(struct device *dev, struct byte_reader *r)
{
    switch (byte_read_u8(r) % 10) {
    case 0:
        bring_up(byte_read_u32(r));
        break;
    case 1:
    case 2:
        put_descriptor(r);
        break;
    case 3:
    case 4:
        offer(r);
        break;
    case 5:
    case 6:
        put_bytes(r);
        break;
    case 7:
        access_registers(r);
        break;
    case 8:
        round_trip(dev, r);
        break;
    default:
        outside(r);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct byte_reader r = byte_reader_new(data, size);
    struct device *dev;

    log_set_level(LOG_LEVEL_ERR);
    if (!bus)
        make();
    slot = byte_read_u8(&r) % DEVICES;
    dev = devices[slot];
    device_quiesce(dev);
    device_reset(dev);
    mem_set(mem, 0, 0, MEMORY);
    now = 0;
    device_resume(dev);
    for (unsigned int n = 0; n < 512 && !r.failed && r.pos < r.len; n++)
        run_operation(dev, &r);
    /* After all of that a reset makes it as new. */
    mem_set(mem, 0, 0, MEMORY);
    bring_up(0);
    return 0;
}
