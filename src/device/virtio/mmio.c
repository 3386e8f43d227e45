#include "config.h"

#include "device/virtio/mmio.h"

#include <assert.h>
#include <errno.h>
#include <linux/virtio_mmio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "vcpu/vm.h"

#define MMIO_MAGIC 0x74726976u /* "virt" */
#define MMIO_VERSION 2
#define MMIO_VENDOR 0x41524d55u /* "UMRA" */

struct mmio {
    struct virtio_dev *v;
    unsigned int gsi;
    uint8_t *page; /* what the guest reads */
    bool own_page;
    int irq_fd; /* -1: the line is pulsed through env.irq */
    int ack_fd; /* nobody reads it */
    unsigned int kicks; /* ioeventfds of queues that are in place */
    bool acks;          /* so is that of InterruptACK */
};

static_assert(VIRTIO_MMIO_CONFIG + VIRTIO_CONFIG_MAX <= VIRTIO_MMIO_SIZE, "registers fit a page");

/* Lines above the ISA ones first; of those, what no other device of ours has. */
static const uint8_t gsis[VIRTIO_MMIO_SLOTS] = {16, 17, 18, 19, 20, 21, 22, 23, 10, 11, 5, 6, 7, 12, 14, 15};

uint32_t virtio_mmio_base(unsigned int slot)
{
    assert(slot < VIRTIO_MMIO_SLOTS);
    return VIRTIO_MMIO_BASE + slot * VIRTIO_MMIO_SIZE;
}

unsigned int virtio_mmio_gsi(unsigned int slot)
{
    assert(slot < VIRTIO_MMIO_SLOTS);
    return gsis[slot];
}

/* -- what the guest reads ----------------------------------------------------- */

static void put(struct mmio *m, unsigned int reg, uint32_t value)
{
    /* A vCPU may be reading just now. */
    __atomic_store_n((uint32_t *)(void *)(m->page + reg), value, __ATOMIC_RELEASE);
}

static void mmio_update(struct virtio_dev *v)
{
    struct mmio *m = v->transport_data;
    const struct virtq *q = virtio_selected(v);
    unsigned int sel = v->regs.device_features_sel;

    put(m, VIRTIO_MMIO_DEVICE_FEATURES, sel < 2 ? (uint32_t)(virtio_offered(v) >> (32 * sel)) : 0);
    put(m, VIRTIO_MMIO_QUEUE_NUM_MAX, q ? q->max_size : 0);
    put(m, VIRTIO_MMIO_QUEUE_READY, q && q->s.ready);
    put(m, VIRTIO_MMIO_INTERRUPT_STATUS, v->regs.isr);
    for (unsigned int i = 0; i < v->config_len; i++)
        __atomic_store_n(m->page + VIRTIO_MMIO_CONFIG + i, v->config[i], __ATOMIC_RELAXED);
    put(m, VIRTIO_MMIO_CONFIG_GENERATION, v->regs.config_generation);
    put(m, VIRTIO_MMIO_STATUS, v->regs.status);
}

static void put_constants(struct mmio *m)
{
    put(m, VIRTIO_MMIO_MAGIC_VALUE, MMIO_MAGIC);
    put(m, VIRTIO_MMIO_VERSION, MMIO_VERSION);
    put(m, VIRTIO_MMIO_DEVICE_ID, m->v->ops->id);
    put(m, VIRTIO_MMIO_VENDOR_ID, MMIO_VENDOR);
    /* No shared memory: its length reads all ones. */
    for (unsigned int reg = VIRTIO_MMIO_SHM_LEN_LOW; reg <= VIRTIO_MMIO_SHM_BASE_HIGH; reg += 4)
        put(m, reg, UINT32_MAX);
}

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned int size)
{
    struct mmio *m = ((struct virtio_dev *)opaque)->transport_data;
    uint64_t value = 0;

    memcpy(&value, m->page + offset, size);
    return value;
}

static void mmio_interrupt(struct virtio_dev *v)
{
    struct mmio *m = v->transport_data;

    put(m, VIRTIO_MMIO_INTERRUPT_STATUS, v->regs.isr);
    if (m->irq_fd >= 0) {
        fd_event_signal(m->irq_fd);
    } else {
        irq_set(v->env.irq, m->gsi, 1);
        irq_set(v->env.irq, m->gsi, 0);
    }
}

/* -- what the guest writes ---------------------------------------------------- */

static void set_half(uint64_t *address, bool high, uint32_t value)
{
    unsigned int shift = high ? 32 : 0;

    *address = (*address & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)value << shift;
}

/* Registers of the selected queue; while it is ready only QueueReady is writable. */
static void write_queue(struct virtio_dev *v, struct virtq *q, unsigned int reg, uint32_t value)
{
    if (reg == VIRTIO_MMIO_QUEUE_READY) {
        virtio_write_queue_ready(v, q, value & 1);
        return;
    }
    if (q->s.ready)
        return;
    switch (reg) {
    case VIRTIO_MMIO_QUEUE_NUM:
        q->s.size = value <= UINT16_MAX ? (uint16_t)value : 0;
        break;
    case VIRTIO_MMIO_QUEUE_DESC_LOW:
    case VIRTIO_MMIO_QUEUE_DESC_HIGH:
        set_half(&q->s.desc, reg == VIRTIO_MMIO_QUEUE_DESC_HIGH, value);
        break;
    case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
    case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
        set_half(&q->s.avail, reg == VIRTIO_MMIO_QUEUE_AVAIL_HIGH, value);
        break;
    case VIRTIO_MMIO_QUEUE_USED_LOW:
    case VIRTIO_MMIO_QUEUE_USED_HIGH:
        set_half(&q->s.used, reg == VIRTIO_MMIO_QUEUE_USED_HIGH, value);
        break;
    default:
        break;
    }
}

static void write_register(struct virtio_dev *v, unsigned int reg, uint32_t value)
{
    struct virtq *q;

    switch (reg) {
    case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
        v->regs.device_features_sel = value;
        break;
    case VIRTIO_MMIO_DRIVER_FEATURES:
        virtio_write_features(v, value);
        break;
    case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
        v->regs.driver_features_sel = value;
        break;
    case VIRTIO_MMIO_QUEUE_SEL:
        v->regs.queue_sel = value;
        break;
    case VIRTIO_MMIO_QUEUE_NOTIFY:
        virtio_kicked(v, value);
        return;
    case VIRTIO_MMIO_INTERRUPT_ACK:
        v->regs.isr &= (uint8_t)~value;
        break;
    case VIRTIO_MMIO_STATUS:
        /* A reset is a write of 0, of all 32 bits. */
        if (value == 0 || (uint8_t)value)
            virtio_write_status(v, (uint8_t)value);
        break;
    default:
        q = virtio_selected(v);
        if (q)
            write_queue(v, q, reg, value);
        break;
    }
    mmio_update(v);
}

static void mmio_write(void *opaque, uint64_t offset, unsigned int size, uint64_t value)
{
    struct virtio_dev *v = opaque;

    if (offset >= VIRTIO_MMIO_CONFIG)
        virtio_write_config(v, (unsigned int)offset - VIRTIO_MMIO_CONFIG, size, value);
    else if (size == 4 && offset % 4 == 0)
        write_register(v, (unsigned int)offset, (uint32_t)value);
}

static const struct bus_ops mmio_bus_ops = {.read = mmio_read, .write = mmio_write};

/* -- KVM's part --------------------------------------------------------------- */

static int notify_eventfd(struct mmio *m, unsigned int queue, uint64_t base, bool on)
{
    return vm_ioeventfd(m->v->env.vm, m->v->kicks[queue].source.fd, BUS_MMIO, base + VIRTIO_MMIO_QUEUE_NOTIFY, 4, true,
                        queue, on);
}

static int ack_eventfd(struct mmio *m, uint64_t base, bool on)
{
    return vm_ioeventfd(m->v->env.vm, m->ack_fd, BUS_MMIO, base + VIRTIO_MMIO_INTERRUPT_ACK, 4, true, VIRTIO_ISR_QUEUE, on);
}

static uint64_t base_of(const struct mmio *m)
{
    for (unsigned int i = 0; i < VIRTIO_MMIO_SLOTS; i++)
        if (gsis[i] == m->gsi)
            return virtio_mmio_base(i);
    return 0;
}

static int connect_kvm(struct mmio *m)
{
    struct vm *vm = m->v->env.vm;
    int r;

    m->irq_fd = fd_eventfd();
    if (m->irq_fd < 0)
        return m->irq_fd;
    m->ack_fd = fd_eventfd();
    if (m->ack_fd < 0)
        return m->ack_fd;
    r = vm_irqfd(vm, m->irq_fd, m->gsi, -1, true);
    if (r < 0)
        return r;
    while (m->kicks < m->v->queue_count) {
        r = notify_eventfd(m, m->kicks, base_of(m), true);
        if (r < 0)
            return r;
        m->kicks++;
    }
    r = ack_eventfd(m, base_of(m), true);
    m->acks = r == 0;
    return r;
}

/* Without the lock, no vCPU runs. */
static void mmio_detach(struct virtio_dev *v)
{
    struct mmio *m = v->transport_data;

    bus_remove(v->env.bus, v);
    while (m->kicks > 0)
        notify_eventfd(m, --m->kicks, base_of(m), false);
    if (m->acks)
        ack_eventfd(m, base_of(m), false);
    m->acks = false;
    if (v->env.vm && m->irq_fd >= 0)
        vm_irqfd(v->env.vm, m->irq_fd, m->gsi, -1, false);
}

static void mmio_destroy(struct virtio_dev *v)
{
    struct mmio *m = v->transport_data;

    fd_close(m->irq_fd);
    fd_close(m->ack_fd);
    if (m->own_page)
        free(m->page);
    free(m);
}

static const struct virtio_transport mmio_transport = {
    .interrupt = mmio_interrupt,
    .update = mmio_update,
    .detach = mmio_detach,
    .destroy = mmio_destroy,
};

static uint8_t *find_page(struct vm *vm, unsigned int slot)
{
    uint8_t *pages = vm ? vm_register_pages(vm) : NULL;

    return pages ? pages + (size_t)slot * VIRTIO_MMIO_SIZE : NULL;
}

int virtio_mmio_attach(struct virtio_dev *v, unsigned int slot)
{
    struct mmio *m = calloc(1, sizeof(*m));
    int r;

    if (!m)
        return -ENOMEM;
    m->v = v;
    m->gsi = virtio_mmio_gsi(slot);
    m->irq_fd = m->ack_fd = -1;
    m->page = find_page(v->env.vm, slot);
    m->own_page = !m->page;
    if (m->own_page)
        m->page = calloc(1, VIRTIO_MMIO_SIZE);
    if (!m->page) {
        free(m);
        return -ENOMEM;
    }
    v->transport_data = m;
    put_constants(m);
    mmio_update(v);
    r = bus_add(v->env.bus, BUS_MMIO, virtio_mmio_base(slot), VIRTIO_MMIO_SIZE, v->name, &mmio_bus_ops, v, &v->dev.lock);
    if (r == 0 && v->env.vm)
        r = connect_kvm(m);
    if (r < 0) {
        mmio_detach(v);
        mmio_destroy(v);
        v->transport_data = NULL;
        return r;
    }
    v->transport = &mmio_transport;
    return 0;
}
