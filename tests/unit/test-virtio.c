/* The core of virtio devices and the registers of virtio-mmio, with a device that gives every chain back at once. */
#include "config.h"

#include "virtio-bus.h"

#include <errno.h>

#include <sched.h>

#include "base/fd.h"
#include "base/log.h"

#define RING 0x10000
#define RING1 0x18000
#define DATA 0x20000
#define V1 (UINT64_C(1) << VIRTIO_F_VERSION_1)
#define EVENT (UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX)

struct toy {
    struct virtio_dev v;
    unsigned int runs, starts, stops, resets, dropped, retaken;
    bool hold; /* chains */
    uint64_t written;
};

static struct fixture f;
static struct mem *mem;
static struct toy *toy;
static struct device *dev;
static struct vdriver d;

static void toy_run(struct virtio_dev *v, struct virtq *q)
{
    struct toy *t = container_of(v, struct toy, v);
    struct iovec iov[4];
    struct virtq_chain c = {.iov = iov, .capacity = 4};

    t->runs++;
    while (virtq_pop(q, &c))
        if (!t->hold)
            virtq_push(q, c.head, c.writable_bytes);
    virtq_flush(q);
}

static void toy_start(struct virtio_dev *v)
{
    container_of(v, struct toy, v)->starts++;
}

static void toy_stop(struct virtio_dev *v)
{
    container_of(v, struct toy, v)->stops++;
}

static void toy_reset(struct virtio_dev *v)
{
    container_of(v, struct toy, v)->resets++;
}

static void toy_drop(struct virtio_dev *v, struct virtq *q)
{
    container_of(v, struct toy, v)->dropped += q->in_flight;
}

static void toy_restore_chain(struct virtio_dev *v, struct virtq *q, uint16_t head)
{
    struct iovec iov[4];
    struct virtq_chain c = {.iov = iov, .capacity = 4};

    container_of(v, struct toy, v)->retaken += virtq_retake(q, head, &c);
}

static void toy_config_write(struct virtio_dev *v, unsigned int offset, unsigned int size, uint64_t value)
{
    container_of(v, struct toy, v)->written = (uint64_t)offset << 32 | (uint64_t)size << 24 | value;
}

static void toy_destroy(struct virtio_dev *v)
{
    free(container_of(v, struct toy, v));
}

static const struct virtio_ops toy_ops = {
    .id = 42,
    .run = toy_run,
    .start = toy_start,
    .stop = toy_stop,
    .reset = toy_reset,
    .drop = toy_drop,
    .restore_chain = toy_restore_chain,
    .config_write = toy_config_write,
    .destroy = toy_destroy,
};

static const struct device_ops toy_device_ops = VIRTIO_DEVICE_OPS("toy", 1), newer_device_ops = VIRTIO_DEVICE_OPS("toy", 2);

static int setup(void **state)
{
    const struct mem_config config = {.size = 2 * MiB};

    fixture_init(&f);
    assert_int_equal(mem_new(&config, &mem), 0);
    f.env.mem = mem;
    toy = calloc(1, sizeof(*toy));
    assert_int_equal(virtio_init(&toy->v, &toy_device_ops, &toy_ops, 0, &f.env, "toy", 1 << 5, 2, 16), 0);
    toy->v.config_len = 6;
    memcpy(toy->v.config, "abcdef", 6);
    assert_int_equal(virtio_mmio_attach(&toy->v, 0), 0);
    dev = &toy->v.dev;
    device_resume(dev);
    d = vd_new(mem, RING, 8);
    vd_desc(&d, 0, DATA, 8, VRING_DESC_F_WRITE, 0);
    return 0;
}

static int teardown(void **state)
{
    device_destroy(dev);
    mem_free(mem);
    fixture_fini(&f);
    return 0;
}

static void up(uint64_t features)
{
    assert_true(vb_negotiate(&f, V1 | features));
    vb_queue(&f, 0, &d);
    vb_driver_ok(&f);
}

static unsigned int edges(void)
{
    return f.edges[virtio_mmio_gsi(0)];
}

static void test_identity(void **state)
{
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_VERSION), 2);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_DEVICE_ID), 42);
    assert_int_equal(vb_features(&f), V1 | EVENT | UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC | 1 << 5);
    vb_write(&f, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_DEVICE_FEATURES), 0);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_SHM_LEN_LOW), UINT32_MAX);
    for (unsigned int q = 0; q < 4; q++) {
        vb_write(&f, VIRTIO_MMIO_QUEUE_SEL, q);
        assert_int_equal(vb_read(&f, VIRTIO_MMIO_QUEUE_NUM_MAX), q < 2 ? 16 : 0);
        assert_int_equal(vb_read(&f, VIRTIO_MMIO_QUEUE_READY), 0);
    }
    vb_write(&f, VIRTIO_MMIO_QUEUE_SEL, UINT32_MAX);
    vb_write(&f, VIRTIO_MMIO_QUEUE_READY, 1);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_QUEUE_READY), 0);
    assert_false(vb_needs_reset(&f));
}

static void test_features(void **state)
{
    assert_false(vb_negotiate(&f, 1 << 5));      /* without VERSION_1 */
    assert_false(vb_negotiate(&f, V1 | 1 << 6)); /* never offered */
    assert_false(vb_negotiate(&f, UINT64_MAX));
    assert_true(vb_negotiate(&f, V1 | 1 << 5));
    assert_true(virtio_has(&toy->v, 5));
    /* Sealed by FEATURES_OK. */
    vb_write(&f, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    vb_write(&f, VIRTIO_MMIO_DRIVER_FEATURES, 0);
    assert_true(virtio_has(&toy->v, 5));
    vb_negotiate(&f, V1);
    assert_false(virtio_has(&toy->v, 5));
}

static void test_status(void **state)
{
    up(0);
    toy->resets = 0;
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_STATUS), VB_READY);
    /* Bits stay, NEEDS_RESET is not the driver's to set, and what has no meaning is not kept. */
    vb_write(&f, VIRTIO_MMIO_STATUS, 0xffffff00);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_STATUS), VB_READY);
    vb_write(&f, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_NEEDS_RESET | 0x20);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_STATUS), VB_READY);
    vb_write(&f, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FAILED);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_STATUS), VB_READY | VIRTIO_CONFIG_S_FAILED);
    vb_write(&f, VIRTIO_MMIO_STATUS, 0);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_STATUS), 0);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_QUEUE_READY), 0);
    assert_int_equal(toy->resets, 1);
}

static void test_requests(void **state)
{
    vd_offer(&d, 0);
    up(0);
    /* What was there before DRIVER_OK is served with it. */
    assert_int_equal(vd_used_idx(&d), 1);
    assert_int_equal(edges(), 1);
    assert_int_equal(f.level[virtio_mmio_gsi(0)], 0);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_ISR_QUEUE);
    vb_write(&f, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_ISR_QUEUE);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&d), 2);
    assert_int_equal(edges(), 2);
    /* Kicks of queues that are not ready, or not there. */
    toy->runs = 0;
    vb_kick(&f, 1);
    vb_kick(&f, 2);
    vb_kick(&f, UINT32_MAX);
    assert_int_equal(toy->runs, 0);
    assert_false(vb_needs_reset(&f));
}

static void test_no_driver_ok(void **state)
{
    assert_true(vb_negotiate(&f, V1));
    vb_queue(&f, 0, &d);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    assert_int_equal(toy->runs, 0);
    assert_int_equal(vd_used_idx(&d), 0);
}

static void test_misuse(void **state)
{
    struct vdriver bad = d;

    /* DRIVER_OK and a queue before FEATURES_OK; no interrupt before there is a driver. */
    vb_write(&f, VIRTIO_MMIO_STATUS, 0);
    vb_queue(&f, 0, &d);
    assert_true(vb_needs_reset(&f));
    assert_int_equal(edges(), 0);
    vb_write(&f, VIRTIO_MMIO_STATUS, 0);
    vb_driver_ok(&f);
    assert_false(vb_needs_reset(&f) && toy->v.live);
    /* A ring out of RAM. */
    assert_true(vb_negotiate(&f, V1));
    bad.desc = 4 * MiB;
    vb_queue(&f, 0, &bad);
    assert_true(vb_needs_reset(&f));
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_QUEUE_READY), 0);
    vb_driver_ok(&f);
    assert_int_equal(toy->runs, 0);
    /* A chain that makes no sense: an interrupt tells the driver. */
    up(0);
    assert_false(vb_needs_reset(&f));
    vd_offer(&d, 0);
    vd_offer(&d, 9);
    vb_kick(&f, 0);
    assert_true(vb_needs_reset(&f));
    assert_true(vb_read(&f, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_ISR_CONFIG);
    assert_int_equal(vd_used_idx(&d), 1);
    toy->runs = 0;
    vb_kick(&f, 0);
    assert_int_equal(toy->runs, 0);
    /* And it works again after a reset. */
    d = vd_new(mem, RING, 8);
    vd_desc(&d, 0, DATA, 8, VRING_DESC_F_WRITE, 0);
    up(EVENT);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&d), 1);
    assert_false(vb_needs_reset(&f));
}

static void test_ready_queue_is_sealed(void **state)
{
    up(0);
    vb_write(&f, VIRTIO_MMIO_QUEUE_SEL, 0);
    vb_write(&f, VIRTIO_MMIO_QUEUE_NUM, 4);
    vb_write(&f, VIRTIO_MMIO_QUEUE_DESC_LOW, 0xfffffff0);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&d), 1);
    toy->hold = true;
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    assert_int_equal(toy->v.queues[0].in_flight, 1);
    vb_write(&f, VIRTIO_MMIO_QUEUE_READY, 0);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_QUEUE_READY), 0);
    assert_int_equal(toy->dropped, 1);
    assert_true(toy->v.live);
    vb_write(&f, VIRTIO_MMIO_QUEUE_NUM, 70000);
    vb_write(&f, VIRTIO_MMIO_QUEUE_READY, 1);
    assert_true(vb_needs_reset(&f));
}

static void test_access_sizes(void **state)
{
    uint64_t v = 0;

    /* Registers are written 4 bytes at a time; config space by any size, but not over its end. */
    bus_write(f.bus, BUS_MMIO, VIRTIO_MMIO_BASE + VIRTIO_MMIO_STATUS, "\1", 1);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_STATUS), 0);
    bus_read(f.bus, BUS_MMIO, VIRTIO_MMIO_BASE + VIRTIO_MMIO_CONFIG + 1, &v, 2);
    assert_memory_equal(&v, "bc", 2);
    bus_write(f.bus, BUS_MMIO, VIRTIO_MMIO_BASE + VIRTIO_MMIO_CONFIG + 4, "\7\0", 2);
    assert_int_equal(toy->written, UINT64_C(4) << 32 | 2 << 24 | 7);
    toy->written = 0;
    bus_write(f.bus, BUS_MMIO, VIRTIO_MMIO_BASE + VIRTIO_MMIO_CONFIG + 4, "\7\0\0\0", 4);
    bus_write(f.bus, BUS_MMIO, VIRTIO_MMIO_BASE + VIRTIO_MMIO_SIZE - 1, "\7", 1);
    assert_int_equal(toy->written, 0);
    bus_read(f.bus, BUS_MMIO, VIRTIO_MMIO_BASE + VIRTIO_MMIO_SIZE - 8, &v, 8);
    assert_int_equal(v, 0);
}

static void test_config_change(void **state)
{
    uint32_t generation = vb_read(&f, VIRTIO_MMIO_CONFIG_GENERATION);

    virtio_config_set(&toy->v, 2, "XY", 2);
    assert_int_equal(edges(), 0);
    up(0);
    assert_int_not_equal(vb_read(&f, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    generation = vb_read(&f, VIRTIO_MMIO_CONFIG_GENERATION);
    virtio_config_set(&toy->v, 0, "ab", 2);
    assert_int_equal(edges(), 0);
    virtio_config_set(&toy->v, 0, "AB", 2);
    assert_int_equal(edges(), 1);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_ISR_CONFIG);
    assert_int_not_equal(vb_read(&f, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_CONFIG), 0x59584241);
}

static void test_quiesce(void **state)
{
    up(0);
    device_quiesce(dev);
    device_quiesce(dev);
    assert_int_equal(toy->stops, 1);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&d), 0);
    /* A reset while quiet does not wake it. */
    device_resume(dev);
    assert_int_equal(vd_used_idx(&d), 1);
    assert_int_equal(toy->starts, 2);
    device_quiesce(dev);
    device_reset(dev);
    assert_false(toy->v.live);
    device_resume(dev);
    assert_false(toy->v.live);
}

static void test_state(void **state)
{
    uint8_t *data, *p;
    size_t len;

    toy->hold = true;
    up(EVENT);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    device_quiesce(dev);
    len = save_device(dev, &data);
    device_reset(dev);
    assert_int_equal(toy->v.queues[0].in_flight, 0);
    assert_int_equal(restore_device(dev, data, len), 0);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_STATUS), VB_READY);
    assert_int_equal(toy->retaken, 1);
    assert_int_equal(toy->v.queues[0].in_flight, 1);
    assert_true(toy->v.queues[0].event_idx);
    /* The interrupt controller's state may come after the device's: the line is raised when all of it is there. */
    assert_int_equal(edges(), 0);
    device_resume(dev);
    assert_int_equal(edges(), 1);
    toy->hold = false;
    vd_desc(&d, 1, DATA, 8, VRING_DESC_F_WRITE, 0);
    vd_offer(&d, 1);
    vb_kick(&f, 0);
    device_quiesce(dev);
    assert_int_equal(vd_used_idx(&d), 1);

    /* What cannot be. */
    p = find_field(data, len, "status");
    *p = 0x30;
    assert_int_equal(restore_device(dev, data, len), -EBADMSG);
    *p = VB_READY;
    p = find_field(data, len, "offered");
    p[7] ^= 1;
    assert_int_equal(restore_device(dev, data, len), -EBADMSG);
    p[7] ^= 1;
    p = find_field(data, len, "isr");
    *p = 4;
    assert_int_equal(restore_device(dev, data, len), -EBADMSG);
    *p = 0;
    p = find_field(data, len, "q0-size");
    *p = 7;
    assert_int_equal(restore_device(dev, data, len), -EBADMSG);
    *p = 8;
    p = find_field(data, len, "driver_features");
    p[0] = 0xff;
    assert_int_equal(restore_device(dev, data, len), -EBADMSG);
    assert_int_equal(vd_used_idx(&d), 1);
    free(data);
}

/* Told before it is restored: what it is made of, nothing of what the driver did with it. */
static void test_compare(void **state)
{
    uint8_t *data;
    size_t len;

    up(EVENT);
    len = save_device(dev, &data);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    expect_differences(dev, data, len, "");
    find_field(data, len, "offered")[0] ^= 1;
    expect_differences(dev, data, len, "device toy 0: features 0x130000021, here 0x130000020\n");
    *find_field(data, len, "queues") = 3;
    expect_differences(dev, data, len,
                       "device toy 0: features 0x130000021, here 0x130000020\ndevice toy 0: 3 queues, here 2\n");
    free(data);
    /* Another device's section is none of its business; one that it cannot read is. */
    dev->instance = 1;
    len = save_device(dev, &data);
    dev->instance = 0;
    expect_differences(dev, data, len, "");
    free(data);
    dev->ops = &newer_device_ops;
    len = save_device(dev, &data);
    dev->ops = &toy_device_ops;
    expect_differences(dev, data, len, "toy 0: version 2 is newer than 1, the newest known here\n");
    free(data);
}

/* A ring that is out of RAM in a state is the driver's fault: the rest of the machine goes on. */
static void test_state_bad_ring(void **state)
{
    uint8_t *data, *p;
    size_t len;

    up(0);
    device_quiesce(dev);
    len = save_device(dev, &data);
    p = find_field(data, len, "q0-desc");
    p[6] = 0xff;
    assert_int_equal(restore_device(dev, data, len), 0);
    assert_true(vb_needs_reset(&f));
    device_resume(dev);
    assert_false(toy->v.live);
    free(data);
}

/* The same with a thread that does the work. */
static void on_ready(void *opaque, uint32_t events)
{
    __atomic_fetch_add((unsigned int *)opaque, 1, __ATOMIC_SEQ_CST);
}

static void test_io_thread(void **state)
{
    unsigned int count = 0;
    struct io_source s = {.fd = fd_eventfd(), .ready = on_ready, .opaque = &count};
    struct io_thread *t;

    assert_int_equal(io_thread_new(&t), 0);
    assert_int_equal(io_thread_add(t, &s, EPOLLIN | EPOLLET), 0);
    for (unsigned int i = 1; i <= 100; i++) {
        fd_event_signal(s.fd);
        while (__atomic_load_n(&count, __ATOMIC_SEQ_CST) < i)
            sched_yield();
    }
    assert_int_equal(io_thread_modify(&s, EPOLLIN | EPOLLET), 0);
    io_thread_remove(&s);
    io_thread_remove(&s);
    count = 0;
    fd_event_signal(s.fd);
    fd_close(s.fd);
    io_thread_free(t);
    assert_int_equal(count, 0);
    io_thread_free(NULL);
}

static void test_slots(void **state)
{
    for (unsigned int i = 0; i < VIRTIO_MMIO_SLOTS; i++) {
        assert_int_equal(virtio_mmio_base(i), VIRTIO_MMIO_BASE + i * VIRTIO_MMIO_SIZE);
        assert_true(virtio_mmio_gsi(i) < 24);
        assert_true(virtio_mmio_gsi(i) != SERIAL_IRQ && virtio_mmio_gsi(i) != RTC_IRQ && virtio_mmio_gsi(i) != ACPI_SCI_IRQ);
        for (unsigned int j = 0; j < i; j++)
            assert_int_not_equal(virtio_mmio_gsi(i), virtio_mmio_gsi(j));
    }
    /* One slot, one device. */
    assert_int_equal(bus_add(f.bus, BUS_MMIO, virtio_mmio_base(0), 16, "x", NULL, NULL, NULL), -EEXIST);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_identity),      TEST(test_features),     TEST(test_status), TEST(test_requests),
        TEST(test_no_driver_ok),  TEST(test_misuse),       TEST(test_ready_queue_is_sealed),
        TEST(test_access_sizes),  TEST(test_config_change), TEST(test_quiesce), TEST(test_state), TEST(test_compare),
        TEST(test_state_bad_ring), TEST(test_io_thread),   TEST(test_slots),
    };

    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
