/* virtio-net against a network in the test's hands, driven over the bus; and frames over a stream socket. */
#include "config.h"

#include "virtio-bus.h"

#include <endian.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/fd.h"
#include "base/log.h"
#include "device/virtio/net.h"
#include "fake-net.h"
#include "mmu/pageset.h"

#define F(bit) (UINT64_C(1) << (bit))
#define V1 F(VIRTIO_F_VERSION_1)
#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE
#define RINGS 0x10000
#define RING_BYTES 0x4000
#define DATA 0x100000
#define RING_SIZE 64
#define PAIRS 3
/* The control queue with VIRTIO_NET_F_MQ, and without. */
#define CTRL_MQ (2 * PAIRS)
#define CTRL_ONE 2

static struct fixture f;
static struct mem *mem;
static struct device *dev;
static struct fake_net net;
static struct vdriver q[2 * PAIRS + 1];
static const uint8_t mac[NET_MAC_LEN] = {0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc};

static void create(unsigned int pairs, bool offloads, unsigned int mtu)
{
    struct vnet_config config = {.backend = &net.b, .mtu = mtu};

    fake_net_init(&net, pairs, offloads);
    memcpy(config.mac, mac, sizeof(mac));
    assert_int_equal(vnet_create(&f.env, &config, 0, 0, &dev), 0);
    device_resume(dev);
}

static int setup(void **state)
{
    const struct mem_config config = {.size = 4 * MiB};

    fixture_init(&f);
    assert_int_equal(mem_new(&config, &mem), 0);
    f.env.mem = mem;
    create(PAIRS, true, 0);
    return 0;
}

static int teardown(void **state)
{
    device_destroy(dev);
    mem_free(mem);
    fixture_fini(&f);
    return 0;
}

static void again(unsigned int pairs, bool offloads, unsigned int mtu)
{
    device_destroy(dev);
    create(pairs, offloads, mtu);
}

static void make_queues(unsigned int count)
{
    for (unsigned int i = 0; i < count; i++) {
        q[i] = vd_new(mem, RINGS + i * RING_BYTES, RING_SIZE);
        vb_queue(&f, i, &q[i]);
    }
}

static void up(uint64_t features)
{
    assert_true(vb_negotiate(&f, V1 | features));
    make_queues(features & F(VIRTIO_NET_F_MQ) ? 2 * PAIRS + 1 : 3);
    vb_driver_ok(&f);
}

static struct vnet_info info(void)
{
    struct vnet_info i;

    vnet_info(dev, &i);
    return i;
}

/* -- the driver --------------------------------------------------------------- */

/* Put up a receive buffer of one descriptor. */
static void add_buffer(unsigned int queue, uint16_t i, uint64_t gpa, uint32_t len)
{
    vd_desc(&q[queue], i, gpa, len, WRITE, 0);
    vd_offer(&q[queue], i);
}

/* Send `len` bytes at gpa, the header among them. */
static void send_frame(unsigned int queue, uint16_t i, uint64_t gpa, uint32_t len)
{
    vd_desc(&q[queue], i, gpa, len, 0, 0);
    vd_offer(&q[queue], i);
    vb_kick(&f, queue);
}

/* A control command; its acknowledgement. */
static uint8_t command(unsigned int queue, uint8_t class, uint8_t cmd, const void *data, uint16_t len)
{
    struct vdriver *d = &q[queue];
    uint8_t head[2] = {class, cmd}, ack = 0xee;

    mem_write(mem, DATA + 0x80000, head, sizeof(head));
    mem_write(mem, DATA + 0x80010, data, len);
    mem_write(mem, DATA + 0x80100, &ack, 1);
    vd_desc(d, 0, DATA + 0x80000, sizeof(head), NEXT, len ? 1 : 2);
    vd_desc(d, 1, DATA + 0x80010, MAX(len, (uint16_t)1), NEXT, 2);
    vd_desc(d, 2, DATA + 0x80100, 1, WRITE, 0);
    vd_offer(d, 0);
    vb_kick(&f, queue);
    mem_read(mem, DATA + 0x80100, &ack, 1);
    return ack;
}

static uint8_t use_pairs(unsigned int queue, uint16_t count)
{
    uint8_t data[2];

    le16_put(data, count);
    return command(queue, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, data, sizeof(data));
}

static uint16_t status(void)
{
    return (uint16_t)(vb_read(&f, VIRTIO_MMIO_CONFIG + 4) >> 16);
}

static uint16_t num_buffers(uint64_t gpa)
{
    return vd_get16(&q[0], gpa + 10);
}

/* Compare guest memory with the frame fake_net_arrive made. */
static void expect_bytes(uint64_t gpa, uint32_t from, uint32_t len, uint8_t seed)
{
    static uint8_t got[NET_FRAME_MAX];

    assert_int_equal(mem_read(mem, gpa, got, len), 0);
    for (uint32_t i = 0; i < len; i++)
        if (from + i >= NET_HEADER)
            assert_int_equal(got[i], (uint8_t)(seed + (from + i) * 7 + (from + i) / 251));
}

/* -- what it offers ----------------------------------------------------------- */

static void test_features(void **state)
{
    const uint64_t offloads = F(VIRTIO_NET_F_CSUM) | F(VIRTIO_NET_F_GUEST_CSUM) | F(VIRTIO_NET_F_HOST_TSO4) |
                              F(VIRTIO_NET_F_HOST_TSO6) | F(VIRTIO_NET_F_HOST_ECN) | F(VIRTIO_NET_F_GUEST_TSO4) |
                              F(VIRTIO_NET_F_GUEST_TSO6) | F(VIRTIO_NET_F_GUEST_ECN);
    const uint64_t base = F(VIRTIO_NET_F_MAC) | F(VIRTIO_NET_F_STATUS) | F(VIRTIO_NET_F_MRG_RXBUF) |
                          F(VIRTIO_NET_F_CTRL_VQ) | F(VIRTIO_NET_F_GUEST_ANNOUNCE);
    const uint64_t ring = V1 | F(VIRTIO_RING_F_EVENT_IDX) | F(VIRTIO_RING_F_INDIRECT_DESC);
    uint8_t config[12];

    assert_int_equal(vb_read(&f, VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_NET);
    assert_int_equal(vb_features(&f), ring | base | offloads | F(VIRTIO_NET_F_MQ));
    bus_read(f.bus, BUS_MMIO, VIRTIO_MMIO_BASE + VIRTIO_MMIO_CONFIG, config, 8);
    assert_memory_equal(config, mac, sizeof(mac));
    assert_int_equal(le16_get(config + 6), VIRTIO_NET_S_LINK_UP);
    assert_int_equal((uint16_t)vb_read(&f, VIRTIO_MMIO_CONFIG + 8), PAIRS);
    again(1, false, 1400);
    assert_int_equal(vb_features(&f), ring | base | F(VIRTIO_NET_F_MTU));
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_CONFIG + 8) >> 16, 1400);
    assert_int_equal(info().mtu, 1400);
}

static void test_offloads_go_to_the_backend(void **state)
{
    const uint64_t take = F(VIRTIO_NET_F_CSUM) | F(VIRTIO_NET_F_GUEST_CSUM) | F(VIRTIO_NET_F_GUEST_TSO4);

    up(take);
    assert_int_equal(net.offloads, V1 | take);
    assert_int_equal(net.pairs, 1);
    up(0);
    assert_int_equal(net.offloads, V1);
}

/* -- coming in ---------------------------------------------------------------- */

static void test_receive(void **state)
{
    up(0);
    add_buffer(0, 0, DATA, 2048);
    add_buffer(0, 1, DATA + 0x1000, 2048);
    fake_net_arrive(&net, 1000, 1);
    fake_net_arrive(&net, 60, 2);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&q[0]), 2);
    assert_int_equal(vd_used_elem(&q[0], 0).id, 0);
    assert_int_equal(vd_used_elem(&q[0], 0).len, 1000);
    assert_int_equal(vd_used_elem(&q[0], 1).len, 60);
    expect_bytes(DATA, 0, 1000, 1);
    expect_bytes(DATA + 0x1000, 0, 60, 2);
    assert_int_equal(num_buffers(DATA), 1);
    /* The header is passed on as it comes: offloads are in it. */
    assert_int_equal(vd_get16(&q[0], DATA) & 0xff, 1);
    assert_int_equal(info().counters.rx_packets, 2);
    assert_int_equal(info().counters.rx_bytes, 1060 - 2 * NET_HEADER);
    assert_int_equal(info().counters.rx_dropped, 0);
}

static void test_receive_without_buffers_waits(void **state)
{
    up(0);
    fake_net_arrive(&net, 100, 1);
    vb_kick(&f, 0);
    assert_int_equal(net.in_count, 1);
    add_buffer(0, 0, DATA, 2048);
    vb_kick(&f, 0);
    assert_int_equal(net.in_count, 0);
    assert_int_equal(vd_used_idx(&q[0]), 1);
}

/* Without mergeable buffers a frame has one chain, which may be of several buffers; a longer frame is dropped. */
static void test_receive_chain_of_buffers(void **state)
{
    up(0);
    vd_desc(&q[0], 0, DATA, 5, WRITE | NEXT, 1);
    vd_desc(&q[0], 1, DATA + 0x1000, 6, WRITE | NEXT, 2);
    vd_desc(&q[0], 2, DATA + 0x2000, 500, WRITE, 0);
    vd_offer(&q[0], 0);
    fake_net_arrive(&net, 600, 9);
    fake_net_arrive(&net, 300, 3);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&q[0]), 1);
    assert_int_equal(vd_used_elem(&q[0], 0).len, 300);
    expect_bytes(DATA + 0x2000, 11, 289, 3);
    assert_int_equal(vd_get16(&q[0], DATA + 0x1005) & 0xff, 1); /* num_buffers crosses them */
    assert_int_equal(info().counters.rx_dropped, 1);
    assert_int_equal(info().counters.rx_packets, 1);
}

static void test_merge(void **state)
{
    up(F(VIRTIO_NET_F_MRG_RXBUF));
    for (uint16_t i = 0; i < 8; i++)
        add_buffer(0, i, DATA + i * 0x1000u, 1000);
    fake_net_arrive(&net, 3500, 1);
    fake_net_arrive(&net, 1000, 2);
    fake_net_arrive(&net, 1001, 3);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&q[0]), 7);
    assert_int_equal(num_buffers(DATA), 4);
    assert_int_equal(vd_used_elem(&q[0], 2).len, 1000);
    assert_int_equal(vd_used_elem(&q[0], 3).len, 500);
    for (uint16_t i = 0; i < 4; i++)
        expect_bytes(DATA + i * 0x1000u, i * 1000u, i < 3 ? 1000 : 500, 1);
    assert_int_equal(num_buffers(DATA + 0x4000), 1);
    assert_int_equal(num_buffers(DATA + 0x5000), 2);
    expect_bytes(DATA + 0x6000, 1000, 1, 3);
    assert_int_equal(vd_used_elem(&q[0], 6).len, 1);
}

/* A frame longer than all there is waits for more buffers, and nothing of it is lost. */
static void test_merge_waits_for_buffers(void **state)
{
    up(F(VIRTIO_NET_F_MRG_RXBUF) | F(VIRTIO_NET_F_GUEST_CSUM) | F(VIRTIO_NET_F_GUEST_TSO4));
    add_buffer(0, 0, DATA, 1000);
    fake_net_arrive(&net, 60000, 5);
    fake_net_arrive(&net, 100, 6);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&q[0]), 0);
    for (uint16_t i = 1; i < 63; i++) {
        add_buffer(0, i, DATA + i * 0x1000u, 1000);
        vb_kick(&f, 0);
        assert_int_equal(vd_used_idx(&q[0]), i < 59 ? 0 : i < 60 ? 60 : 61);
    }
    assert_int_equal(num_buffers(DATA), 60);
    for (uint16_t i = 0; i < 60; i++)
        expect_bytes(DATA + i * 0x1000u, i * 1000u, 1000, 5);
    expect_bytes(DATA + 60 * 0x1000u, 0, 100, 6);
    assert_int_equal(info().counters.rx_packets, 2);
}

/* So small buffers that the longest frame takes more of them than there are ready: dropped, and the next one comes in. */
static void test_merge_of_crumbs(void **state)
{
    up(F(VIRTIO_NET_F_MRG_RXBUF));
    for (uint16_t i = 0; i < RING_SIZE; i++)
        add_buffer(0, i, DATA + i * 16u, 12);
    fake_net_arrive(&net, 60000, 1);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&q[0]), 0);
    /* No more buffers will come: a pause ends it. */
    device_quiesce(dev);
    device_resume(dev);
    fake_net_arrive(&net, 20, 2);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&q[0]), 2);
    assert_int_equal(info().counters.rx_dropped, 1);
}

/* A turn ends after some frames, the rest comes with the next. */
static void test_receive_many(void **state)
{
    up(F(VIRTIO_NET_F_MRG_RXBUF));
    for (unsigned int round = 0; round < 50; round++) {
        for (uint16_t i = 0; i < 50; i++) {
            add_buffer(0, i, DATA + i * 0x800u, 1536);
            fake_net_arrive(&net, 60 + i, (uint8_t)i);
        }
        vb_kick(&f, 0);
        assert_int_equal(vd_used_idx(&q[0]), (round + 1) * 50);
        for (uint16_t i = 0; i < 50; i++)
            expect_bytes(DATA + i * 0x800u, 0, 60 + i, (uint8_t)i);
    }
}

static void expect_dirty(uint64_t gpa)
{
    struct page_set set;

    assert_int_equal(page_set_init(&set, mem_pages(mem)), 0);
    mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set);
    assert_true(bitmap_test(set.map, gpa / 4096));
    page_set_free(&set);
}

static void test_receive_marks_dirty(void **state)
{
    up(F(VIRTIO_NET_F_MRG_RXBUF));
    add_buffer(0, 0, DATA, 1000);
    add_buffer(0, 1, DATA + 0x3000, 1000);
    fake_net_arrive(&net, 1500, 1);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, true);
    vb_kick(&f, 0);
    expect_dirty(DATA);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, true);
    fake_net_arrive(&net, 2500, 1);
    add_buffer(0, 2, DATA + 0x5000, 1000);
    vb_kick(&f, 0);
    /* Read, though the frame is not all there. */
    expect_dirty(DATA + 0x5000);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, false);
}

/* -- going out ---------------------------------------------------------------- */

static void test_transmit(void **state)
{
    uint8_t bytes[1500];

    up(0);
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 3);
    mem_write(mem, DATA, bytes, sizeof(bytes));
    send_frame(1, 0, DATA, sizeof(bytes));
    assert_int_equal(net.out_count, 1);
    assert_int_equal(net.out.len, sizeof(bytes));
    assert_memory_equal(net.out.bytes, bytes, sizeof(bytes));
    assert_int_equal(vd_used_idx(&q[1]), 1);
    assert_int_equal(vd_used_elem(&q[1], 0).len, 0);
    assert_int_equal(info().counters.tx_bytes, sizeof(bytes) - NET_HEADER);
    /* From several buffers, cut anywhere. */
    vd_desc(&q[1], 3, DATA, 7, NEXT, 4);
    vd_desc(&q[1], 4, DATA + 7, 100, NEXT, 5);
    vd_desc(&q[1], 5, DATA + 107, 1393, 0, 0);
    vd_offer(&q[1], 3);
    vb_kick(&f, 1);
    assert_int_equal(net.out.len, sizeof(bytes));
    assert_memory_equal(net.out.bytes, bytes, sizeof(bytes));
}

static void test_transmit_many(void **state)
{
    up(0);
    for (unsigned int round = 0; round < 20; round++) {
        for (uint16_t i = 0; i < RING_SIZE; i++) {
            vd_desc(&q[1], i, DATA, 100 + i, 0, 0);
            vd_offer(&q[1], i);
        }
        vb_kick(&f, 1);
        assert_int_equal(vd_used_idx(&q[1]), (round + 1) * RING_SIZE);
    }
    assert_int_equal(net.out_count, 20 * RING_SIZE);
}

static void test_transmit_refused(void **state)
{
    up(0);
    net.refuse = -EINVAL;
    send_frame(1, 0, DATA, 100);
    assert_int_equal(vd_used_idx(&q[1]), 1);
    assert_int_equal(info().counters.tx_dropped, 1);
    /* Longer than any frame: not even tried. */
    net.refuse = 0;
    send_frame(1, 0, DATA, NET_FRAME_MAX + 1);
    assert_int_equal(net.out_count, 0);
    assert_int_equal(info().counters.tx_dropped, 2);
    assert_false(vb_needs_reset(&f));
}

/* What the backend does not take stays in the ring, and goes out after a pause at the latest. */
static void test_transmit_blocked(void **state)
{
    up(0);
    net.out_room = 2;
    for (uint16_t i = 0; i < 5; i++) {
        vd_desc(&q[1], i, DATA, 100 + i, 0, 0);
        vd_offer(&q[1], i);
    }
    vb_kick(&f, 1);
    assert_int_equal(vd_used_idx(&q[1]), 2);
    net.out_room = 10;
    vb_kick(&f, 1);
    assert_int_equal(vd_used_idx(&q[1]), 2);
    device_quiesce(dev);
    device_resume(dev);
    assert_int_equal(vd_used_idx(&q[1]), 5);
    assert_int_equal(net.out.len, 104);
    assert_int_equal(info().counters.tx_packets, 5);
}

/* -- a driver that lies ------------------------------------------------------- */

static void broken(void)
{
    assert_true(vb_needs_reset(&f));
    assert_true(info().needs_reset);
    /* Nothing comes out of it, and a reset mends it. */
    fake_net_arrive(&net, 100, 1);
    for (unsigned int i = 0; i < 3; i++)
        vb_kick(&f, i);
    assert_int_equal(net.in_count, 1);
    net.in_count = 0;
    up(0);
    assert_false(vb_needs_reset(&f));
    add_buffer(0, 0, DATA, 2048);
    fake_net_arrive(&net, 100, 1);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&q[0]), 1);
}

static void test_hostile_receive(void **state)
{
    up(0);
    vd_desc(&q[0], 0, DATA, 2048, 0, 0); /* readable */
    vd_offer(&q[0], 0);
    fake_net_arrive(&net, 100, 1);
    vb_kick(&f, 0);
    net.in_count = 0;
    broken();
    up(F(VIRTIO_NET_F_MRG_RXBUF));
    add_buffer(0, 0, DATA, 11); /* no room for a header */
    fake_net_arrive(&net, 100, 1);
    vb_kick(&f, 0);
    net.in_count = 0;
    broken();
    up(0);
    add_buffer(0, 0, 16 * MiB, 2048); /* no RAM */
    fake_net_arrive(&net, 100, 1);
    vb_kick(&f, 0);
    net.in_count = 0;
    broken();
    up(0);
    vd_desc(&q[0], 0, DATA, 100, WRITE | NEXT, 0); /* a loop */
    vd_offer(&q[0], 0);
    vb_kick(&f, 0);
    broken();
    /* The second of two buffers, while the first stands ready. */
    up(F(VIRTIO_NET_F_MRG_RXBUF));
    add_buffer(0, 0, DATA, 100);
    add_buffer(0, 0, DATA, 100);
    vb_kick(&f, 0);
    broken();
}

static void test_hostile_transmit(void **state)
{
    up(0);
    send_frame(1, 0, DATA, NET_HEADER - 1);
    broken();
    up(0);
    vd_desc(&q[1], 0, DATA, 100, NEXT, 1);
    vd_desc(&q[1], 1, DATA + 0x1000, 100, WRITE, 0);
    vd_offer(&q[1], 0);
    vb_kick(&f, 1);
    broken();
    up(0);
    send_frame(1, 0, UINT64_MAX - 50, 100);
    broken();
    up(0);
    vd_set_avail_idx(&q[1], RING_SIZE + 1);
    vb_kick(&f, 1);
    broken();
    assert_int_equal(net.out_count, 0);
}

static void test_hostile_control(void **state)
{
    up(F(VIRTIO_NET_F_CTRL_VQ));
    vd_desc(&q[2], 0, DATA, 1, NEXT, 1);
    vd_desc(&q[2], 1, DATA + 0x1000, 1, WRITE, 0);
    vd_offer(&q[2], 0);
    vb_kick(&f, CTRL_ONE);
    broken();
    up(F(VIRTIO_NET_F_CTRL_VQ));
    vd_desc(&q[2], 0, DATA, 4, 0, 0);
    vd_offer(&q[2], 0);
    vb_kick(&f, CTRL_ONE);
    broken();
    /* Commands that are none: refused, and nothing else. */
    up(F(VIRTIO_NET_F_CTRL_VQ));
    assert_int_equal(command(CTRL_ONE, 99, 0, "", 0), VIRTIO_NET_ERR);
    assert_int_equal(command(CTRL_ONE, VIRTIO_NET_CTRL_MQ, 7, "ab", 2), VIRTIO_NET_ERR);
    assert_int_equal(command(CTRL_ONE, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, "", 0), VIRTIO_NET_ERR);
    assert_int_equal(use_pairs(CTRL_ONE, 1), VIRTIO_NET_ERR);
    assert_false(vb_needs_reset(&f));
}

/* A queue that no driver knows of, and a control queue that was not negotiated. */
static void test_unknown_queues(void **state)
{
    up(0);
    vd_desc(&q[2], 0, DATA, 2, NEXT, 1);
    vd_desc(&q[2], 1, DATA + 0x1000, 1, WRITE, 0);
    vd_offer(&q[2], 0);
    vb_kick(&f, 2);
    vb_kick(&f, 2 * PAIRS + 1);
    vb_kick(&f, 12345);
    assert_int_equal(vd_used_idx(&q[2]), 0);
    assert_false(vb_needs_reset(&f));
}

/* -- several queues ----------------------------------------------------------- */

static void test_multi_queue(void **state)
{
    up(F(VIRTIO_NET_F_MQ) | F(VIRTIO_NET_F_CTRL_VQ));
    assert_int_equal(net.pairs, 1);
    add_buffer(4, 0, DATA, 2048);
    net.in_pair = 2;
    fake_net_arrive(&net, 100, 1);
    vb_kick(&f, 4);
    assert_int_equal(vd_used_idx(&q[4]), 0);
    assert_int_equal(use_pairs(CTRL_MQ, PAIRS + 1), VIRTIO_NET_ERR);
    assert_int_equal(use_pairs(CTRL_MQ, 0), VIRTIO_NET_ERR);
    assert_int_equal(net.pairs, 1);
    /* What waited comes in at once. */
    assert_int_equal(use_pairs(CTRL_MQ, PAIRS), VIRTIO_NET_OK);
    assert_int_equal(net.pairs, PAIRS);
    assert_int_equal(info().queues_used, PAIRS);
    assert_int_equal(vd_used_idx(&q[4]), 1);
    send_frame(3, 0, DATA, 100);
    assert_int_equal(net.out_pair, 1);
    send_frame(5, 0, DATA, 100);
    assert_int_equal(net.out_pair, 2);
    assert_int_equal(use_pairs(CTRL_MQ, 2), VIRTIO_NET_OK);
    fake_net_arrive(&net, 100, 1);
    add_buffer(4, 1, DATA, 2048);
    vb_kick(&f, 4);
    assert_int_equal(vd_used_idx(&q[4]), 1);
    /* A reset goes back to one. */
    net.in_count = 0;
    up(0);
    assert_int_equal(net.pairs, 1);
    assert_int_equal(info().queues_used, 1);
}

/* -- link --------------------------------------------------------------------- */

static void test_link(void **state)
{
    unsigned int edges;

    up(F(VIRTIO_NET_F_STATUS));
    add_buffer(0, 0, DATA, 2048);
    edges = f.edges[virtio_mmio_gsi(0)];
    vnet_set_link(dev, false);
    assert_int_equal(status(), 0);
    assert_int_equal(f.edges[virtio_mmio_gsi(0)], edges + 1);
    assert_int_equal(net.carrier, 0);
    vnet_set_link(dev, false);
    assert_int_equal(f.edges[virtio_mmio_gsi(0)], edges + 1);
    fake_net_arrive(&net, 100, 1);
    vb_kick(&f, 0);
    send_frame(1, 0, DATA, 100);
    assert_int_equal(net.in_count, 0);
    assert_int_equal(net.out_count, 0);
    assert_int_equal(vd_used_idx(&q[0]), 0);
    assert_int_equal(vd_used_idx(&q[1]), 1);
    assert_int_equal(info().counters.rx_dropped, 1);
    assert_int_equal(info().counters.tx_dropped, 1);
    /* The cable is not the driver's to plug in. */
    up(F(VIRTIO_NET_F_STATUS));
    assert_int_equal(status(), 0);
    vnet_set_link(dev, true);
    assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
    assert_int_equal(net.carrier, 1);
    add_buffer(0, 0, DATA, 2048);
    fake_net_arrive(&net, 100, 1);
    vb_kick(&f, 0);
    assert_int_equal(vd_used_idx(&q[0]), 1);
}

static void test_backend_ends(void **state)
{
    up(F(VIRTIO_NET_F_STATUS));
    net.out_room = 0;
    for (uint16_t i = 0; i < 4; i++) {
        vd_desc(&q[1], i, DATA, 100, 0, 0);
        vd_offer(&q[1], i);
    }
    vb_kick(&f, 1);
    net.dead = true;
    add_buffer(0, 0, DATA, 2048);
    vb_kick(&f, 0);
    /* The link is down, the driver gets back what it wanted to send, and nothing turns the link on. */
    assert_int_equal(status(), 0);
    assert_int_equal(vd_used_idx(&q[1]), 4);
    send_frame(1, 5, DATA, 100);
    assert_int_equal(vd_used_idx(&q[1]), 5);
    vnet_set_link(dev, false);
    vnet_set_link(dev, true);
    assert_int_equal(status(), 0);
    assert_false(info().link);
    assert_true(info().link_wanted);
    assert_false(vb_needs_reset(&f));
    up(0);
    vb_kick(&f, 0);
    send_frame(1, 0, DATA, 100);
    assert_int_equal(vd_used_idx(&q[1]), 1);
}

/* -- state -------------------------------------------------------------------- */

static size_t save(uint8_t **ret)
{
    device_quiesce(dev);
    return save_device(dev, ret);
}

static void test_save_restore(void **state)
{
    const uint64_t features = F(VIRTIO_NET_F_MQ) | F(VIRTIO_NET_F_CTRL_VQ) | F(VIRTIO_NET_F_MRG_RXBUF) | F(VIRTIO_NET_F_STATUS) |
                              F(VIRTIO_NET_F_GUEST_ANNOUNCE) | F(VIRTIO_NET_F_GUEST_CSUM);
    struct vnet_config other = {.backend = &net.b};
    _cleanup_free_ uint8_t *data = NULL;
    unsigned int set;
    size_t len;

    up(features);
    assert_int_equal(use_pairs(CTRL_MQ, 2), VIRTIO_NET_OK);
    for (uint16_t i = 0; i < 20; i++)
        add_buffer(2, i, DATA + i * 0x1000u, 1000);
    /* A frame that waits for buffers, and others taken ahead, at the moment of saving. */
    net.in_pair = 1;
    fake_net_arrive(&net, 1500, 3);
    vb_kick(&f, 2);
    assert_int_equal(vd_used_idx(&q[2]), 2);
    fake_net_arrive(&net, 30000, 4);
    vb_kick(&f, 2);
    vnet_set_link(dev, false);
    len = save(&data);
    /* Somewhere else: another address until the state comes. */
    device_destroy(dev);
    memset(other.mac, 2, sizeof(other.mac));
    net.offloads = net.pairs = 0;
    assert_int_equal(vnet_create(&f.env, &other, 0, 0, &dev), 0);
    assert_int_equal(restore_device(dev, data, len), 0);
    set = net.offloads_set;
    device_resume(dev);
    assert_int_equal(net.offloads_set, set + 1);
    assert_int_equal(net.offloads, V1 | features);
    assert_int_equal(net.pairs, 2);
    assert_memory_equal(info().mac, mac, sizeof(mac));
    assert_false(info().link_wanted);
    assert_int_equal(info().queues_used, 2);
    /* The chains that were taken ahead are there again, in their order. */
    vnet_set_link(dev, true);
    fake_net_arrive(&net, 1500, 5);
    vb_kick(&f, 2);
    assert_int_equal(vd_used_idx(&q[2]), 4);
    assert_int_equal(vd_used_elem(&q[2], 2).id, 2);
    expect_bytes(DATA + 2 * 0x1000u, 0, 1000, 5);
    expect_bytes(DATA + 3 * 0x1000u, 1000, 500, 5);
}

static void test_announce(void **state)
{
    const uint64_t features = F(VIRTIO_NET_F_CTRL_VQ) | F(VIRTIO_NET_F_STATUS) | F(VIRTIO_NET_F_GUEST_ANNOUNCE);
    _cleanup_free_ uint8_t *data = NULL, *silent = NULL;
    size_t len;

    up(features);
    assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
    len = save(&data);
    assert_int_equal(restore_device(dev, data, len), 0);
    device_resume(dev);
    assert_int_equal(status(), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
    assert_int_equal(command(CTRL_ONE, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, "", 0), VIRTIO_NET_OK);
    assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
    assert_int_equal(net.out_count, 0);
    /* Only once, not at every pause. */
    device_quiesce(dev);
    device_resume(dev);
    assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
    /* A driver that cannot: it is announced with a frame, from its address to everybody. */
    up(0);
    len = save(&silent);
    assert_int_equal(restore_device(dev, silent, len), 0);
    device_resume(dev);
    assert_int_equal(status(), VIRTIO_NET_S_LINK_UP);
    assert_int_equal(net.out_count, 1);
    assert_int_equal(net.out.len, NET_HEADER + 60);
    assert_memory_equal(net.out.bytes + NET_HEADER, "\xff\xff\xff\xff\xff\xff", 6);
    assert_memory_equal(net.out.bytes + NET_HEADER + 6, mac, 6);
    assert_memory_equal(net.out.bytes + NET_HEADER + 12, "\x80\x35", 2);
}

static void expect_refused(const uint8_t *data, size_t len, const char *field, uint8_t value)
{
    _cleanup_free_ uint8_t *bad = malloc(len);

    memcpy(bad, data, len);
    *find_field(bad, len, field) = value;
    assert_true(restore_device(dev, bad, len) < 0);
}

static void test_bad_state(void **state)
{
    _cleanup_free_ uint8_t *data = NULL;
    size_t len;

    up(F(VIRTIO_NET_F_MQ) | F(VIRTIO_NET_F_CTRL_VQ));
    assert_int_equal(use_pairs(CTRL_MQ, 2), VIRTIO_NET_OK);
    len = save(&data);
    expect_refused(data, len, "used-pairs", 0);
    expect_refused(data, len, "used-pairs", PAIRS + 1);
    expect_refused(data, len, "link", 2);
    expect_refused(data, len, "mtu", 9);
    *find_field(data, len, "mtu") = 9;
    expect_differences(dev, data, len, "device virtio-net 0: mtu 9, here 0\n");
    *find_field(data, len, "mtu") = 0;
    expect_differences(dev, data, len, "");
    assert_true(restore_device(dev, data, len - 1) < 0);
    /* It is as it was. */
    device_resume(dev);
    assert_int_equal(info().queues_used, 2);
    /* And nothing of what was refused comes with a later reset. */
    up(0);
    assert_int_equal(info().queues_used, 1);
}

static void test_default_mac(void **state)
{
    uint8_t a[NET_MAC_LEN], b[NET_MAC_LEN];

    net_default_mac("web", 0, a);
    assert_memory_equal(a, "\x52\x54\x00", 3);
    net_default_mac("web", 0, b);
    assert_memory_equal(a, b, sizeof(a));
    net_default_mac("web", 1, b);
    assert_memory_not_equal(a, b, sizeof(a));
    net_default_mac("wec", 0, b);
    assert_memory_not_equal(a, b, sizeof(a));
}

/* -- a stream socket ---------------------------------------------------------- */

static struct net_backend *stream;
static int peer;

static int stream_setup(void **state)
{
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    assert_int_equal(net_stream_new(ends[0], "x", &stream), 0);
    peer = ends[1];
    return 0;
}

static int stream_teardown(void **state)
{
    net_backend_close(stream);
    close(peer);
    return 0;
}

/* Length and frame, of which `bytes` in all are written. */
static void peer_writes(uint32_t len, size_t from, size_t bytes)
{
    static uint8_t buf[NET_FRAME_MAX + 4];
    uint32_t be = htobe32(len);

    memcpy(buf, &be, sizeof(be));
    for (uint32_t i = 0; i < len && i < NET_FRAME_MAX; i++)
        buf[4 + i] = (uint8_t)(i * 5);
    assert_int_equal(write(peer, buf + from, bytes), bytes);
}

static ssize_t receive(uint8_t *buf, size_t len)
{
    const struct iovec iov[2] = {{.iov_base = buf, .iov_len = MIN(len, (size_t)13)},
                                 {.iov_base = buf + MIN(len, (size_t)13), .iov_len = len - MIN(len, (size_t)13)}};

    memset(buf, 0xee, len);
    return stream->ops->receive(stream, 0, iov, 2);
}

static void test_stream_receive(void **state)
{
    uint8_t buf[4096];

    assert_int_equal(receive(buf, sizeof(buf)), -EAGAIN);
    peer_writes(100, 0, 104);
    assert_int_equal(receive(buf, sizeof(buf)), 100 + NET_HEADER);
    for (int i = 0; i < 12; i++)
        assert_int_equal(buf[i], 0);
    assert_int_equal(buf[12 + 99], (uint8_t)(99 * 5));
    /* In pieces, cut within the length and within the frame; two at once. */
    peer_writes(200, 0, 3);
    assert_int_equal(receive(buf, sizeof(buf)), -EAGAIN);
    peer_writes(200, 3, 50);
    assert_int_equal(receive(buf, sizeof(buf)), -EAGAIN);
    assert_false(stream->ops->pending(stream));
    peer_writes(200, 53, 151);
    peer_writes(300, 0, 304);
    assert_int_equal(receive(buf, sizeof(buf)), 200 + NET_HEADER);
    assert_true(stream->ops->pending(stream));
    assert_int_equal(receive(buf, sizeof(buf)), 300 + NET_HEADER);
    assert_int_equal(buf[12 + 299], (uint8_t)(299 * 5));
    /* Less room than frame: the rest of it is lost, the next one is whole. */
    peer_writes(300, 0, 304);
    peer_writes(20, 0, 24);
    assert_int_equal(receive(buf, 50), 50);
    assert_int_equal(receive(buf, sizeof(buf)), 20 + NET_HEADER);
    close(peer);
    assert_int_equal(receive(buf, sizeof(buf)), -EPIPE);
    peer = dup(0);
}

static void test_stream_lies(void **state)
{
    static const uint32_t lengths[] = {0, 13, NET_FRAME_MAX - NET_HEADER + 1, UINT32_MAX};
    uint8_t buf[128];

    log_set_level(LOG_LEVEL_ERR);
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        peer_writes(lengths[i], 0, 4);
        assert_int_equal(receive(buf, sizeof(buf)), -EPIPE);
        stream_teardown(state);
        stream_setup(state);
    }
    peer_writes(NET_FRAME_MAX - NET_HEADER, 0, 4);
    assert_int_equal(receive(buf, sizeof(buf)), -EAGAIN);
}

static int send_on_stream(uint8_t *buf, size_t len)
{
    const struct iovec iov[2] = {{.iov_base = buf, .iov_len = 5}, {.iov_base = buf + 5, .iov_len = len - 5}};

    return stream->ops->send(stream, 0, iov, 2);
}

static void read_all(uint8_t *buf, size_t len)
{
    struct pollfd p = {.fd = peer, .events = POLLIN};

    for (size_t done = 0; done < len;) {
        ssize_t n;

        assert_int_equal(stream->ops->flush(stream) == -EPIPE, 0);
        assert_int_equal(poll(&p, 1, 10000), 1);
        n = read(peer, buf + done, len - done);
        assert_true(n > 0);
        done += (size_t)n;
    }
}

static void test_stream_send(void **state)
{
    enum { LEN = 60000 };
    static uint8_t buf[NET_FRAME_MAX + 1], got[LEN + 4];
    unsigned int sent = 0;
    int r = 0;

    for (size_t i = 0; i < sizeof(buf); i++)
        buf[i] = (uint8_t)(i * 11);
    assert_int_equal(send_on_stream(buf, 100), 0);
    read_all(got, 92);
    assert_memory_equal(got, "\0\0\0\x58", 4);
    assert_memory_equal(got + 4, buf + NET_HEADER, 88);
    /* No frame. */
    assert_int_equal(send_on_stream(buf, NET_HEADER + 13), -EINVAL);
    assert_int_equal(send_on_stream(buf, sizeof(buf)), -EINVAL);
    /* Until the socket is full, in the midst of one: every frame that was taken comes out whole. */
    while (r == 0 && sent < 1000)
        if ((r = send_on_stream(buf, LEN + NET_HEADER)) == 0)
            sent++;
    assert_int_equal(r, -EAGAIN);
    assert_int_equal(stream->ops->flush(stream), -EAGAIN);
    for (unsigned int i = 0; i < sent; i++) {
        read_all(got, sizeof(got));
        assert_memory_equal(got, "\0\0\xea\x60", 4);
        assert_memory_equal(got + 4, buf + NET_HEADER, LEN);
    }
    assert_int_equal(stream->ops->flush(stream), 0);
    assert_int_equal(read(peer, got, 1), -1);
    close(peer);
    assert_int_equal(send_on_stream(buf, 100), -EPIPE);
    peer = dup(0);
}

/* -- a tap -------------------------------------------------------------------- */

static short events_of(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    assert_true(poll(&p, 1, 0) >= 0);
    return p.revents;
}

static void test_tap(void **state)
{
    struct net_config config = {.kind = NET_TAP, .queues = 2};
    uint8_t frame[NET_HEADER + 60] = {0}, got[2048];
    const struct iovec out = {.iov_base = frame, .iov_len = sizeof(frame)};
    const struct iovec in = {.iov_base = got, .iov_len = sizeof(got)};
    struct net_backend *b, *other;

    /* Not everybody may make one. */
    if (net_backend_open(&config, &b) < 0)
        skip();
    assert_int_equal(b->pairs, 2);
    assert_true(*b->name);
    assert_int_equal(b->ops->set_offloads(b, V1), 0);
    assert_int_equal(b->ops->set_offloads(b, F(VIRTIO_NET_F_GUEST_CSUM) | F(VIRTIO_NET_F_GUEST_TSO4) |
                                                 F(VIRTIO_NET_F_GUEST_TSO6) | F(VIRTIO_NET_F_GUEST_ECN)), 0);
    /* What a driver should not take is not passed on, where the kernel would refuse it. */
    assert_int_equal(b->ops->set_offloads(b, F(VIRTIO_NET_F_GUEST_TSO4)), 0);
    assert_int_equal(b->ops->set_offloads(b, F(VIRTIO_NET_F_GUEST_CSUM) | F(VIRTIO_NET_F_GUEST_ECN)), 0);
    memset(frame + NET_HEADER, 0xff, 6);
    frame[NET_HEADER + 6] = 2;
    assert_int_equal(b->ops->send(b, 1, &out, 1), 0);
    /* A header that makes no sense is refused, and nothing else happens. */
    frame[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    frame[6] = 0xff;
    frame[7] = 0xff;
    assert_true(b->ops->send(b, 0, &out, 1) < 0);
    frame[0] = 0;
    /* A queue that is not used has nothing to say. */
    assert_int_equal(b->ops->set_pairs(b, 1), 0);
    assert_int_equal(events_of(b->fds[1]) & (POLLERR | POLLHUP), 0);
    assert_int_equal(b->ops->set_pairs(b, 2), 0);
    b->ops->set_carrier(b, false);
    b->ops->set_carrier(b, true);
    while (b->ops->receive(b, 0, &in, 1) > 0)
        continue;
    assert_int_equal(b->ops->receive(b, 0, &in, 1), -EAGAIN);
    /* Passed on as descriptors. */
    config = (struct net_config){.kind = NET_FD, .queues = 2, .fds = {dup(b->fds[0]), dup(b->fds[1])}};
    assert_int_equal(net_backend_open(&config, &other), 0);
    assert_string_equal(other->name, b->name);
    net_backend_close(other);
    config = (struct net_config){.kind = NET_FD, .queues = 1, .fds = {peer}};
    assert_int_equal(net_backend_open(&config, &other), -EINVAL);
    net_backend_close(b);
}

/* -- with the I/O thread ------------------------------------------------------ */

static bool wait_until(bool (*what)(void))
{
    for (int i = 0; i < 10000; i++) {
        if (what())
            return true;
        poll(NULL, 0, 1);
    }
    return false;
}

static bool received_one(void)
{
    return info().counters.rx_packets == 1;
}

static bool received_two(void)
{
    return info().counters.rx_packets == 2;
}

static bool link_is_down(void)
{
    return !info().link;
}

static bool got_frame(void)
{
    struct pollfd p = {.fd = peer, .events = POLLIN};

    return poll(&p, 1, 0) == 1;
}

static void test_io_thread(void **state)
{
    struct vnet_config config = {0};
    struct io_thread *io;
    uint8_t buf[256];

    device_destroy(dev);
    stream_setup(state);
    config.backend = stream;
    assert_int_equal(io_thread_new(&io), 0);
    f.env.io = io;
    assert_int_equal(vnet_create(&f.env, &config, 0, 0, &dev), 0);
    device_resume(dev);
    up(F(VIRTIO_NET_F_MRG_RXBUF) | F(VIRTIO_NET_F_STATUS));
    /* The frame comes first, then the buffer, then a frame that finds one. */
    peer_writes(100, 0, 104);
    add_buffer(0, 0, DATA, 2000);
    vb_kick(&f, 0);
    assert_true(wait_until(received_one));
    add_buffer(0, 1, DATA, 2000);
    peer_writes(100, 0, 104);
    vb_kick(&f, 0);
    assert_true(wait_until(received_two));
    send_frame(1, 0, DATA, 100);
    assert_true(wait_until(got_frame));
    assert_int_equal(read(peer, buf, sizeof(buf)), 92);
    /* A paused device takes nothing; the next one waits for it. */
    device_quiesce(dev);
    peer_writes(100, 0, 104);
    add_buffer(0, 2, DATA, 2000);
    device_resume(dev);
    close(peer);
    peer = dup(0);
    assert_true(wait_until(link_is_down));
    device_destroy(dev);
    io_thread_free(io);
    f.env.io = NULL;
    stream_teardown(state);
    create(1, true, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(test_features),
        TEST(test_offloads_go_to_the_backend),
        TEST(test_receive),
        TEST(test_receive_without_buffers_waits),
        TEST(test_receive_chain_of_buffers),
        TEST(test_merge),
        TEST(test_merge_waits_for_buffers),
        TEST(test_merge_of_crumbs),
        TEST(test_receive_many),
        TEST(test_receive_marks_dirty),
        TEST(test_transmit),
        TEST(test_transmit_many),
        TEST(test_transmit_refused),
        TEST(test_transmit_blocked),
        TEST(test_hostile_receive),
        TEST(test_hostile_transmit),
        TEST(test_hostile_control),
        TEST(test_unknown_queues),
        TEST(test_multi_queue),
        TEST(test_link),
        TEST(test_backend_ends),
        TEST(test_save_restore),
        TEST(test_announce),
        TEST(test_bad_state),
        TEST(test_io_thread),
        cmocka_unit_test(test_default_mac),
        cmocka_unit_test_setup_teardown(test_tap, stream_setup, stream_teardown),
        cmocka_unit_test_setup_teardown(test_stream_receive, stream_setup, stream_teardown),
        cmocka_unit_test_setup_teardown(test_stream_lies, stream_setup, stream_teardown),
        cmocka_unit_test_setup_teardown(test_stream_send, stream_setup, stream_teardown),
    };

    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
