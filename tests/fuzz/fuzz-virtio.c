/*
 * A driver that lies in every field: registers, rings, descriptors, indirect tables and requests of a virtio-blk device, with
 * fake memory and a small image, and states that a peer sends. Everything runs at once on one thread, so a run depends on its
 * input alone.
 *
 * An input is a list of operations, each a byte and its arguments; see run_operation. Guest addresses are kept small, so
 * that most of them hit something.
 */
#include "config.h"

#include <assert.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/state.h"
#include "base/util.h"
#include "device/virtio/blk.h"
#include "device/virtio/mmio.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MEMORY (1 * MiB)
#define DISK (64 * KiB)
#define RING_SIZE 8
#define QUEUES 2
/* Of queue n, a page each. */
#define DESC(n) (0x1000u + 0x3000u * (n))
#define AVAIL(n) (DESC(n) + 0x1000u)
#define USED(n) (DESC(n) + 0x2000u)
#define TABLES 0x10000u

struct machine {
    struct bus *bus;
    struct mem *mem;
    struct irq_sink sink;
    struct device_host host;
    struct device_env env;
    struct device *disk;
};

static char path[] = "/tmp/umbra-fuzz-virtio-XXXXXX";

static struct machine machine;

static void set_irq(void *opaque, unsigned int gsi, int level)
{
    assert(gsi == virtio_mmio_gsi(0) && (level == 0 || level == 1));
}

static void end(void)
{
    device_destroy(machine.disk);
    mem_free(machine.mem);
    bus_free(machine.bus);
    unlink(path);
}

static void make_image(void)
{
    int fd = mkstemp(path);

    assert(fd >= 0 && ftruncate(fd, DISK) == 0);
    close(fd);
}

/* Made once: threads and memory for each input would be most of the work. */
static void machine_make(struct machine *m)
{
    const struct mem_config memory = {.size = MEMORY};
    const struct vblk_config config = {.path = path, .aio = DISK_AIO_THREADS, .queues = QUEUES};
    int err;

    make_image();
    m->sink = (struct irq_sink){.set = set_irq, .opaque = m};
    err = bus_new(&m->bus);
    err |= mem_new(&memory, &m->mem);
    m->env = (struct device_env){.bus = m->bus, .mem = m->mem, .irq = &m->sink, .host = &m->host};
    err |= vblk_create(&m->env, &config, 0, 0, &m->disk);
    assert(err == 0);
    atexit(end);
}

/* As new, but for what the image holds, which decides nothing. */
static void machine_start(struct machine *m)
{
    if (!m->disk)
        machine_make(m);
    device_quiesce(m->disk);
    device_reset(m->disk);
    mem_set(m->mem, 0, 0, MEMORY);
    device_resume(m->disk);
}

static void write_reg(struct machine *m, unsigned int reg, uint32_t value)
{
    bus_write(m->bus, BUS_MMIO, VIRTIO_MMIO_BASE + reg, &value, sizeof(value));
}

/* What is in flight ends. */
static void settle(struct machine *m)
{
    device_quiesce(m->disk);
    device_resume(m->disk);
}

/* As a driver that means well brings the device up; the rings are what they are. */
static void bring_up(struct machine *m, uint32_t features)
{
    write_reg(m, VIRTIO_MMIO_STATUS, 0);
    write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES, features & (1u << VIRTIO_RING_F_EVENT_IDX | 1u << VIRTIO_RING_F_INDIRECT_DESC));
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
    gpa_t table = (where & 0x80) ? TABLES + (where >> 4 & 7) * 0x100u : DESC(where >> 6 & 1);

    mem_write(m->mem, table + 16u * (where & 15), &d, sizeof(d));
}

static void offer(struct machine *m, struct byte_reader *r)
{
    uint8_t how = byte_read_u8(r);
    unsigned int queue = how & 1;
    uint16_t idx, head = byte_read_u8(r);

    mem_read(m->mem, AVAIL(queue) + 2, &idx, sizeof(idx));
    mem_write(m->mem, AVAIL(queue) + 4 + 2u * (idx % RING_SIZE), &head, sizeof(head));
    idx = (uint16_t)(idx + ((how & 0x80) ? how : 1));
    mem_write(m->mem, AVAIL(queue) + 2, &idx, sizeof(idx));
    if (how & 2)
        write_reg(m, VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

/* A request's header, or any bytes. */
static void put_bytes(struct machine *m, struct byte_reader *r)
{
    gpa_t gpa = (gpa_t)byte_read_u16(r) << 4;
    uint8_t n = byte_read_u8(r);
    const uint8_t *p;

    n = (uint8_t)MIN((size_t)n, r->len - r->pos);
    p = byte_read(r, n);
    if (p)
        mem_write(m->mem, gpa, p, n);
}

static void put_header(struct machine *m, struct byte_reader *r)
{
    uint8_t header[16] = {0};
    gpa_t gpa = (gpa_t)byte_read_u16(r) << 4;

    le32_put(header, byte_read_u8(r));
    le64_put(header + 8, byte_read_u16(r));
    mem_write(m->mem, gpa, header, sizeof(header));
}

static void save(struct machine *m, uint8_t **ret, size_t *ret_len)
{
    struct state_writer w;
    int err;

    state_writer_init(&w);
    device_save(m->disk, &w);
    err = state_finish(&w, ret, ret_len);
    assert(err == 0);
}

static int restore(struct machine *m, const uint8_t *data, size_t len)
{
    struct state_reader r;
    int err = state_reader_init(&r, data, len);

    if (err < 0)
        return err;
    err = device_restore(m->disk, &r);
    assert(err == 0 || r.error[0]);
    state_reader_clear(&r);
    return err;
}

/* A state of ours, as it is or with bytes changed, comes back. */
static void round_trip(struct machine *m, struct byte_reader *r)
{
    unsigned int changes = byte_read_u8(r) % 5;
    bool changed = changes > 0;
    uint8_t *data;
    size_t len;
    int err;

    device_quiesce(m->disk);
    save(m, &data, &len);
    while (changes-- > 0)
        data[byte_read_u16(r) % len] ^= byte_read_u8(r);
    err = restore(m, data, len);
    assert(changed || err == 0);
    free(data);
    device_resume(m->disk);
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

static void run_operation(struct machine *m, struct byte_reader *r)
{
    switch (byte_read_u8(r) % 10) {
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
        put_header(m, r);
        break;
    case 6:
        put_bytes(m, r);
        break;
    case 7:
        access_registers(m, r);
        break;
    case 8:
        round_trip(m, r);
        break;
    default:
        settle(m);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct machine *m = &machine;
    struct byte_reader r = byte_reader_new(data, size);

    log_set_level(LOG_LEVEL_ERR);
    machine_start(m);
    for (unsigned int n = 0; n < 512 && !r.failed && r.pos < r.len; n++)
        run_operation(m, &r);
    settle(m);
    /* After all of that a reset makes it as new. */
    bring_up(m, 0);
    return 0;
}
