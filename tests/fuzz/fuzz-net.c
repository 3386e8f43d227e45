/*
 * A driver and a network that lie: registers, rings, descriptors, control commands, frames of any length on any pair, states that
 * a peer sends, and what comes over a stream socket. Fake memory and a fake network; everything runs at once on one thread, so a
 * run depends on its input alone.
 *
 * An input is a list of operations, each a byte and its arguments; see run_operation.
 */
#include "config.h"

#include <assert.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/state.h"
#include "device/virtio/mmio.h"
#include "device/virtio/net.h"
#include "unit/fake-net.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MEMORY (1 * MiB)
#define RING_SIZE 8
#define PAIRS 2
#define QUEUES (2 * PAIRS + 1)
/* Of queue n, a page each. */
#define DESC(n) (0x1000u + 0x3000u * (n))
#define AVAIL(n) (DESC(n) + 0x1000u)
#define USED(n) (DESC(n) + 0x2000u)
#define TABLES 0x20000u

struct machine {
    struct bus *bus;
    struct mem *mem;
    struct irq_sink sink;
    struct device_host host;
    struct device_env env;
    struct fake_net *net;
    struct device *card;
};

static struct machine machine;

static void set_irq(void *opaque, unsigned int gsi, int level)
{
    assert(gsi == virtio_mmio_gsi(0) && (level == 0 || level == 1));
}

static void end(void)
{
    device_destroy(machine.card);
    mem_free(machine.mem);
    bus_free(machine.bus);
    free(machine.net);
}

/* Memory once, the card for each input: what it keeps is not to be another input's. */
static void machine_start(struct machine *m)
{
    const struct mem_config memory = {.size = MEMORY};
    struct vnet_config config = {.mac = {2, 1, 2, 3, 4, 5}, .mtu = 1500};
    int err = 0;

    if (!m->mem) {
        m->sink = (struct irq_sink){.set = set_irq, .opaque = m};
        err = bus_new(&m->bus);
        err |= mem_new(&memory, &m->mem);
        m->net = calloc(1, sizeof(*m->net));
        assert(m->net);
        m->env = (struct device_env){.bus = m->bus, .mem = m->mem, .irq = &m->sink, .host = &m->host};
        atexit(end);
    }
    device_destroy(m->card);
    fake_net_init(m->net, PAIRS, true);
    config.backend = &m->net->b;
    err |= vnet_create(&m->env, &config, 0, 0, &m->card);
    assert(err == 0);
    mem_set(m->mem, 0, 0, MEMORY);
    device_resume(m->card);
}

static void write_reg(struct machine *m, unsigned int reg, uint32_t value)
{
    bus_write(m->bus, BUS_MMIO, VIRTIO_MMIO_BASE + reg, &value, sizeof(value));
}

/* As a driver that means well brings the device up; the rings are what they are. */
static void bring_up(struct machine *m, uint32_t features)
{
    uint32_t offered = 0;

    /* What the device does not offer would only be refused. */
    write_reg(m, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    bus_read(m->bus, BUS_MMIO, VIRTIO_MMIO_BASE + VIRTIO_MMIO_DEVICE_FEATURES, &offered, sizeof(offered));
    features &= offered;
    write_reg(m, VIRTIO_MMIO_STATUS, 0);
    write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES, features);
    write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES, 1);
    write_reg(m, VIRTIO_MMIO_STATUS, 11);
    for (unsigned int i = 0; i < QUEUES; i++) {
        write_reg(m, VIRTIO_MMIO_QUEUE_SEL, i);
        write_reg(m, VIRTIO_MMIO_QUEUE_NUM, RING_SIZE);
        write_reg(m, VIRTIO_MMIO_QUEUE_DESC_LOW, DESC(i));
        write_reg(m, VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL(i));
        write_reg(m, VIRTIO_MMIO_QUEUE_USED_LOW, USED(i));
        write_reg(m, VIRTIO_MMIO_QUEUE_READY, 1);
    }
    write_reg(m, VIRTIO_MMIO_STATUS, 15);
}

static void put_descriptor(struct machine *m, struct byte_reader *r)
{
    uint8_t where = byte_read_u8(r), how = byte_read_u8(r);
    struct vring_desc d = {
        .addr = (how & 0x80) ? byte_read_u64(r) : (uint64_t)byte_read_u16(r) << 4,
        .len = (how & 0x40) ? byte_read_u32(r) : byte_read_u8(r) * ((how & 0x20) ? 512u : (how & 0x10) ? 16u : 1u),
        .flags = how & 7,
        .next = byte_read_u8(r),
    };
    gpa_t table = (where & 0x80) ? TABLES + (where >> 4 & 7) * 0x100u : DESC((where >> 4) % QUEUES);

    mem_write(m->mem, table + 16u * (where & 15), &d, sizeof(d));
}

/* A long indirect table of short buffers. */
static void put_table(struct machine *m, struct byte_reader *r)
{
    uint16_t count = byte_read_u16(r) % 600;
    uint8_t len = byte_read_u8(r), flags = byte_read_u8(r) & VRING_DESC_F_WRITE;

    for (uint16_t i = 0; i < count; i++) {
        struct vring_desc d = {.addr = 0x80000u + i * 16u, .len = len, .flags = flags, .next = (uint16_t)(i + 1)};

        if (i + 1 < count)
            d.flags |= VRING_DESC_F_NEXT;
        mem_write(m->mem, TABLES + 16u * i, &d, sizeof(d));
    }
}

static void offer(struct machine *m, struct byte_reader *r)
{
    uint8_t how = byte_read_u8(r);
    unsigned int queue = (how & 7) % QUEUES;
    uint16_t idx, head = byte_read_u8(r);

    mem_read(m->mem, AVAIL(queue) + 2, &idx, sizeof(idx));
    mem_write(m->mem, AVAIL(queue) + 4 + 2u * (idx % RING_SIZE), &head, sizeof(head));
    idx = (uint16_t)(idx + ((how & 0x80) ? how : 1));
    mem_write(m->mem, AVAIL(queue) + 2, &idx, sizeof(idx));
    if (how & 8)
        write_reg(m, VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

static void put_bytes(struct machine *m, struct byte_reader *r)
{
    gpa_t gpa = (gpa_t)byte_read_u16(r) << 4;
    size_t n = byte_read_u8(r) & 15;
    const uint8_t *p = byte_read(r, n);

    if (p)
        mem_write(m->mem, gpa, p, n);
}

/* The network does something, and the device is told. */
static void network(struct machine *m, struct byte_reader *r)
{
    uint8_t how = byte_read_u8(r);
    uint32_t len = byte_read_u16(r);

    m->net->in_pair = how & 1;
    if (m->net->in_count < FAKE_NET_FRAMES)
        fake_net_arrive(m->net, (how & 2) ? len : len & 0xfff, how);
    m->net->out_room = (how & 4) ? how >> 4 : UINT32_MAX;
    m->net->refuse = (how & 8) ? -EINVAL : 0;
    m->net->dead = how == 0xff;
    write_reg(m, VIRTIO_MMIO_QUEUE_NOTIFY, 2 * m->net->in_pair);
}

static void round_trip(struct machine *m, struct byte_reader *r)
{
    unsigned int changes = byte_read_u8(r) % 5;
    bool changed = changes > 0;
    struct state_writer w;
    struct state_reader reader;
    uint8_t *data;
    size_t len;
    int err;

    device_quiesce(m->card);
    state_writer_init(&w);
    device_save(m->card, &w);
    err = state_finish(&w, &data, &len);
    assert(err == 0);
    while (changes-- > 0)
        data[byte_read_u16(r) % len] ^= byte_read_u8(r);
    err = state_reader_init(&reader, data, len);
    if (err == 0) {
        err = device_restore(m->card, &reader);
        assert(err == 0 || reader.error[0]);
        state_reader_clear(&reader);
    }
    assert(changed || err == 0);
    free(data);
    device_resume(m->card);
}

static void access_registers(struct machine *m, struct byte_reader *r)
{
    uint8_t reg = byte_read_u8(r), how = byte_read_u8(r);
    unsigned int size = 1u << (how & 3);
    uint64_t value = (how & 4) ? byte_read_u32(r) : byte_read_u8(r);

    if (how & 8)
        bus_read(m->bus, BUS_MMIO, VIRTIO_MMIO_BASE + 2u * reg, &value, size);
    else if (how & 16)
        bus_write(m->bus, BUS_MMIO, VIRTIO_MMIO_BASE + 2u * reg, &value, size);
    else
        write_reg(m, 4u * (reg & 0x3f), (uint32_t)value);
}

/* What a peer may send over a stream: all of the rest. */
static void stream(struct byte_reader *r)
{
    static uint8_t buf[NET_FRAME_MAX];
    size_t n = r->len - r->pos;
    const uint8_t *p = byte_read(r, n);
    struct iovec iov = {.iov_base = buf, .iov_len = sizeof(buf)};
    struct net_backend *b;
    int ends[2], err;

    err = socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends);
    assert(err == 0);
    err = net_stream_new(ends[0], "fuzz", &b);
    assert(err == 0);
    if (n > 0 && write(ends[1], p, n) != (ssize_t)n)
        n = 0;
    for (size_t i = 0; i < n; i++) {
        ssize_t got = b->ops->receive(b, 0, &iov, 1);

        if (got < 0)
            break;
        assert(got >= (ssize_t)NET_HEADER && got <= (ssize_t)sizeof(buf));
    }
    net_backend_close(b);
    close(ends[1]);
}

static void run_operation(struct machine *m, struct byte_reader *r)
{
    switch (byte_read_u8(r) % 13) {
    case 0:
        bring_up(m, byte_read_u32(r));
        break;
    case 1:
    case 2:
        put_descriptor(m, r);
        break;
    case 3:
    case 4:
        offer(m, r);
        break;
    case 5:
        put_bytes(m, r);
        break;
    case 6:
        access_registers(m, r);
        break;
    case 7:
        round_trip(m, r);
        break;
    case 8:
    case 9:
        network(m, r);
        break;
    case 10:
        put_table(m, r);
        break;
    case 11:
        vnet_set_link(m->card, byte_read_u8(r) & 1);
        break;
    default:
        if (byte_read_u8(r) & 1) {
            stream(r);
        } else {
            device_quiesce(m->card);
            device_resume(m->card);
        }
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct machine *m = &machine;
    struct byte_reader r = byte_reader_new(data, size);
    struct vnet_info info;

    log_set_level(LOG_LEVEL_ERR);
    machine_start(m);
    for (unsigned int n = 0; n < 512 && !r.failed && r.pos < r.len; n++)
        run_operation(m, &r);
    /* After all of that a reset makes it as new. */
    bring_up(m, 0);
    vnet_info(m->card, &info);
    assert(!info.needs_reset || info.counters.misuses > 0);
    return 0;
}
