/* virtio-blk against temporary files, by either backend, driven over the bus: by an I/O thread, as in the daemon. */
#include "config.h"

#include "virtio-bus.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/virtio_blk.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/fd.h"
#include "base/log.h"
#include "device/virtio/blk.h"
#include "mmu/pageset.h"

#define RING 0x10000
#define HEADER 0x20000
#define STATUS 0x20100
#define DATA 0x40000
#define DISK_SIZE (1 * MiB)
#define V1 (UINT64_C(1) << VIRTIO_F_VERSION_1)
#define INDIRECT (UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC)
#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE

static struct fixture f;
static struct mem *mem;
static struct io_thread *io;
static struct device *dev;
static struct vdriver d;
static char path[64];
static enum disk_aio aio;
static struct device_io_error last_error;
static unsigned int errors; /* atomic */

static void on_io_error(void *opaque, const struct device_io_error *error)
{
    last_error = *error;
    __atomic_fetch_add(&errors, 1, __ATOMIC_SEQ_CST);
}

static uint8_t pattern(uint64_t offset)
{
    return (uint8_t)(offset / 512 * 7 + offset % 251);
}

static void make_file(uint64_t size)
{
    uint8_t buf[4096];
    int fd;

    snprintf(path, sizeof(path), "%s/umbra-vblk-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    for (uint64_t at = 0; at < size; at += sizeof(buf)) {
        for (size_t i = 0; i < sizeof(buf); i++)
            buf[i] = pattern(at + i);
        assert_int_equal(fd_write_all(fd, buf, MIN(sizeof(buf), (size_t)(size - at))), 0);
    }
    close(fd);
}

static int create(const struct vblk_config *config)
{
    return vblk_create(&f.env, config, 0, 0, &dev);
}

static void start(bool read_only, bool direct, unsigned int queues)
{
    const struct vblk_config config = {
        .path = path, .read_only = read_only, .direct = direct, .aio = aio, .queues = queues, .serial = NULL};

    assert_int_equal(create(&config), 0);
    device_resume(dev);
    d = vd_new(mem, RING, 64);
    assert_true(vb_negotiate(&f, V1 | INDIRECT | (vb_features(&f) & UINT32_MAX)));
    vb_queue(&f, 0, &d);
    vb_driver_ok(&f);
}

static void prepare(void)
{
    const struct mem_config config = {.size = 4 * MiB};

    fixture_init(&f);
    assert_int_equal(mem_new(&config, &mem), 0);
    assert_int_equal(io_thread_new(&io), 0);
    f.env.mem = mem;
    f.env.io = io;
    f.host.io_error = on_io_error;
    errors = 0;
    make_file(DISK_SIZE);
}

static bool have_uring(void)
{
    const struct disk_config config = {.path = path, .aio = DISK_AIO_URING};
    struct disk *disk;

    if (disk_open(&config, &disk) < 0)
        return false;
    disk_close(disk);
    return true;
}

static int teardown(void **state)
{
    device_destroy(dev);
    dev = NULL;
    io_thread_free(io);
    mem_free(mem);
    fixture_fini(&f);
    unlink(path);
    return 0;
}

/* A backend that is not here is no failure of the device's. */
static bool setup(enum disk_aio kind)
{
    aio = kind;
    prepare();
    return kind != DISK_AIO_URING || have_uring();
}

static void put_header(uint32_t type, uint64_t sector)
{
    struct virtio_blk_outhdr h = {.type = type, .sector = sector};

    assert_int_equal(mem_write(mem, HEADER, &h, sizeof(h)), 0);
    assert_int_equal(mem_set(mem, STATUS, 0xee, 1), 0);
}

static uint8_t status_byte(void)
{
    uint8_t s;

    mem_read(mem, STATUS, &s, 1);
    return s;
}

/* Wait until the device has used so many; TSan and slow machines get their time. */
static void wait_used(uint16_t idx)
{
    const uint16_t *p = mem_ptr(mem, d.used + 2, 2);

    for (unsigned int i = 0; __atomic_load_n(p, __ATOMIC_ACQUIRE) != idx; i++) {
        assert_true(i < 100000);
        usleep(100);
    }
}

/* One request with a data buffer (none when len is 0); its status. */
static uint8_t request(uint32_t type, uint64_t sector, uint64_t data, uint32_t len, bool from_device)
{
    uint16_t before = vd_used_idx(&d);

    put_header(type, sector);
    vd_desc(&d, 0, HEADER, 16, NEXT, len ? 1 : 2);
    vd_desc(&d, 1, data, len, (uint16_t)(NEXT | (from_device ? WRITE : 0)), 2);
    vd_desc(&d, 2, STATUS, 1, WRITE, 0);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    wait_used((uint16_t)(before + 1));
    return status_byte();
}

static uint32_t used_len(void)
{
    return vd_used_elem(&d, (uint16_t)(vd_used_idx(&d) - 1)).len;
}

static void assert_pattern(uint64_t gpa, uint64_t offset, size_t len)
{
    const uint8_t *p = mem_ptr(mem, gpa, len);

    for (size_t i = 0; i < len; i++)
        if (p[i] != pattern(offset + i))
            fail_msg("byte %zu is 0x%02x, not 0x%02x", i, p[i], pattern(offset + i));
}

static void read_file(uint64_t offset, void *buf, size_t len)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

    assert_int_equal(fd_pread_all(fd, buf, len, offset), 0);
}

/* -- requests ----------------------------------------------------------------- */

static void transfers(bool direct)
{
    static uint8_t buf[8192];
    struct vblk_info info;

    start(false, direct, 1);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 8, DATA, 8192, true), VIRTIO_BLK_S_OK);
    assert_int_equal(used_len(), 8193);
    assert_pattern(DATA, 4096, 8192);
    /* To an address that direct I/O does not take, and a length. */
    assert_int_equal(request(VIRTIO_BLK_T_IN, 3, DATA + 0x3003, 512, true), VIRTIO_BLK_S_OK);
    assert_pattern(DATA + 0x3003, 1536, 512);
    mem_set(mem, DATA, 0x42, 8192);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 16, DATA, 8192, false), VIRTIO_BLK_S_OK);
    assert_int_equal(used_len(), 1);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 41, DATA + 1, 1024, false), VIRTIO_BLK_S_OK);
    assert_int_equal(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false), VIRTIO_BLK_S_OK);
    read_file(8192, buf, 8192);
    assert_memory_equal(buf, mem_ptr(mem, DATA, 8192), 8192);
    read_file(41 * 512, buf, 1024);
    assert_memory_equal(buf, mem_ptr(mem, DATA + 1, 1024), 1024);
    vblk_info(dev, &info);
    assert_int_equal(info.counters.reads, 2);
    assert_int_equal(info.counters.read_bytes, 8192 + 512);
    assert_int_equal(info.counters.writes, 2);
    assert_int_equal(info.counters.flushes, 1);
    assert_int_equal(info.counters.errors, 0);
}

static void identity(void)
{
    char id[21] = {0};

    start(false, false, 3);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_BLOCK);
    assert_int_equal(vb_read(&f, VIRTIO_MMIO_CONFIG), DISK_SIZE / 512);
    assert_true(vb_features(&f) & 1 << VIRTIO_BLK_F_MQ);
    assert_int_equal(request(VIRTIO_BLK_T_GET_ID, 0, DATA, 20, true), VIRTIO_BLK_S_OK);
    mem_read(mem, DATA, id, 20);
    assert_string_equal(id, "disk0");
    assert_int_equal(used_len(), 21);
    /* A shorter buffer gets what fits. */
    assert_int_equal(request(VIRTIO_BLK_T_GET_ID, 0, DATA, 3, true), VIRTIO_BLK_S_OK);
    assert_int_equal(used_len(), 4);
}

static void refused(void)
{
    static const struct {
        uint32_t type;
        uint64_t sector;
        uint32_t len;
        uint8_t status;
    } bad[] = {
        {VIRTIO_BLK_T_IN, DISK_SIZE / 512, 512, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_IN, DISK_SIZE / 512 - 1, 1024, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_IN, UINT64_MAX, 512, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_IN, UINT64_MAX / 512, 512, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_IN, 0, 511, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_IN, 0, 513, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_OUT, DISK_SIZE / 512, 512, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_OUT, UINT64_MAX - 1, 1024, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_OUT, 0, 100, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_SCSI_CMD, 0, 512, VIRTIO_BLK_S_UNSUPP},
        {99, 0, 512, VIRTIO_BLK_S_UNSUPP},
        {UINT32_MAX, 0, 512, VIRTIO_BLK_S_UNSUPP},
        {VIRTIO_BLK_T_DISCARD, 0, 15, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_DISCARD, 0, 32, VIRTIO_BLK_S_IOERR},
    };

    start(false, false, 1);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(request(bad[i].type, bad[i].sector, DATA, bad[i].len, bad[i].type == VIRTIO_BLK_T_IN),
                         bad[i].status);
    assert_false(vb_needs_reset(&f));
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 512, true), VIRTIO_BLK_S_OK);
}

static uint8_t range(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    struct virtio_blk_discard_write_zeroes r = {.sector = sector, .num_sectors = sectors, .flags = flags};

    mem_write(mem, DATA, &r, sizeof(r));
    return request(type, 0, DATA, sizeof(r), false);
}

static void assert_zeros(uint64_t offset, size_t len)
{
    static uint8_t buf[DISK_SIZE];

    read_file(offset, buf, len);
    for (size_t i = 0; i < len; i++)
        assert_int_equal(buf[i], 0);
}

static void ranges(void)
{
    uint8_t byte;

    start(false, false, 1);
    assert_int_equal(range(VIRTIO_BLK_T_WRITE_ZEROES, 8, 16, 0), VIRTIO_BLK_S_OK);
    assert_zeros(4096, 8192);
    assert_int_equal(range(VIRTIO_BLK_T_WRITE_ZEROES, 101, 1001, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP), VIRTIO_BLK_S_OK);
    assert_zeros(101 * 512, 1001 * 512);
    read_file(101 * 512 - 1, &byte, 1);
    assert_int_equal(byte, pattern(101 * 512 - 1));
    read_file(1102 * 512, &byte, 1);
    assert_int_equal(byte, pattern(1102 * 512));
    assert_int_equal(range(VIRTIO_BLK_T_DISCARD, 1600, 64, 0), VIRTIO_BLK_S_OK);
    assert_int_equal(range(VIRTIO_BLK_T_DISCARD, 0, 0, 0), VIRTIO_BLK_S_OK);
    assert_int_equal(range(VIRTIO_BLK_T_DISCARD, 2047, 2, 0), VIRTIO_BLK_S_IOERR);
    assert_int_equal(range(VIRTIO_BLK_T_DISCARD, UINT64_MAX, 1, 0), VIRTIO_BLK_S_IOERR);
    assert_int_equal(range(VIRTIO_BLK_T_DISCARD, 0, 8, 1), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 2), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(range(VIRTIO_BLK_T_WRITE_ZEROES, 0, UINT32_MAX, 0), VIRTIO_BLK_S_IOERR);
}

static void read_only(void)
{
    uint64_t features;

    start(true, false, 1);
    features = vb_features(&f);
    assert_true(features & 1 << VIRTIO_BLK_F_RO);
    assert_false(features & 1 << VIRTIO_BLK_F_DISCARD);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA, 512, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(range(VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 512, true), VIRTIO_BLK_S_OK);
    assert_pattern(DATA, 0, 512);
}

/* Header, data and status may be cut anywhere. */
static void layouts(void)
{
    uint16_t used = 0;

    start(false, false, 1);
    put_header(VIRTIO_BLK_T_IN, 2);
    vd_desc(&d, 0, HEADER, 5, NEXT, 1);
    vd_desc(&d, 1, HEADER + 5, 11, NEXT, 2);
    vd_desc(&d, 2, DATA, 100, NEXT | WRITE, 3);
    /* The status is the byte behind the last of the data. */
    vd_desc(&d, 3, DATA + 100, 413, WRITE, 0);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    wait_used(++used);
    assert_pattern(DATA, 1024, 512);
    assert_int_equal(*(uint8_t *)mem_ptr(mem, DATA + 512, 1), VIRTIO_BLK_S_OK);
    /* Header and data in one buffer. */
    put_header(VIRTIO_BLK_T_OUT, 4);
    mem_set(mem, HEADER + 16, 0x77, 512);
    mem_set(mem, STATUS + 0x1000, 0xee, 1);
    vd_desc(&d, 0, HEADER, 528, NEXT, 1);
    vd_desc(&d, 1, STATUS + 0x1000, 1, WRITE, 0);
    vd_offer(&d, 0);
    vb_kick(&f, 0);
    wait_used(++used);
    assert_int_equal(*(uint8_t *)mem_ptr(mem, STATUS + 0x1000, 1), VIRTIO_BLK_S_OK);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 4, DATA, 512, true), VIRTIO_BLK_S_OK);
    assert_int_equal(*(uint8_t *)mem_ptr(mem, DATA + 511, 1), 0x77);
    /* Nothing to transfer. */
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, 0, 0, true), VIRTIO_BLK_S_OK);
}

static void wait_needs_reset(void)
{
    for (unsigned int i = 0; !vb_needs_reset(&f); i++) {
        assert_true(i < 100000);
        usleep(100);
    }
}

static void malformed(void)
{
    static const struct {
        uint32_t header, status;
    } bad[] = {{15, 1}, {16, 0}, {0, 1}};

    start(false, false, 1);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        d = vd_new(mem, RING, 64);
        assert_true(vb_negotiate(&f, V1));
        vb_queue(&f, 0, &d);
        vb_driver_ok(&f);
        put_header(VIRTIO_BLK_T_FLUSH, 0);
        vd_desc(&d, 0, HEADER, bad[i].header, bad[i].status ? NEXT : 0, 1);
        vd_desc(&d, 1, STATUS, 1, WRITE, 0);
        vd_offer(&d, bad[i].header ? 0 : 1);
        vb_kick(&f, 0);
        wait_needs_reset();
    }
    d = vd_new(mem, RING, 64);
    assert_true(vb_negotiate(&f, V1));
    vb_queue(&f, 0, &d);
    vb_driver_ok(&f);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 512, true), VIRTIO_BLK_S_OK);
}

/* All entries at once, again and again, each a chain in a table of its own; and a pause in the midst of them. */
static void many(void)
{
    unsigned int n = 64, rounds = 20;

    start(false, false, 1);
    for (unsigned int i = 0; i < n; i++) {
        uint64_t header = 0x100000 + i * 64, data = 0x200000 + i * 4096, table = 0x180000 + i * 64;
        struct virtio_blk_outhdr h = {.type = VIRTIO_BLK_T_IN, .sector = i * 8};

        mem_write(mem, header, &h, sizeof(h));
        vd_desc_at(&d, table, 0, header, 16, NEXT, 1);
        vd_desc_at(&d, table, 1, data, 4096, NEXT | WRITE, 2);
        vd_desc_at(&d, table, 2, header + 32, 1, WRITE, 0);
        vd_desc(&d, i, table, 48, VRING_DESC_F_INDIRECT, 0);
    }
    for (unsigned int round = 0; round < rounds; round++) {
        mem_set(mem, 0x200000, 0, n * 4096);
        for (unsigned int i = 0; i < n; i++)
            vd_offer(&d, (uint16_t)((i * 7 + round) % n));
        vb_kick(&f, 0);
        device_quiesce(dev);
        if (round % 2)
            device_reset(dev);
        device_resume(dev);
        if (round % 2) {
            d = (struct vdriver){.mem = mem, .desc = d.desc, .avail = d.avail, .used = d.used, .size = d.size};
            vd_put16(&d, d.used + 2, 0);
            vd_set_avail_idx(&d, 0);
            assert_true(vb_negotiate(&f, V1 | INDIRECT));
            vb_queue(&f, 0, &d);
            vb_driver_ok(&f);
            continue;
        }
        wait_used(d.avail_idx);
        for (unsigned int i = 0; i < n; i++)
            assert_pattern(0x200000 + i * 4096, (uint64_t)i * 4096, 4096);
    }
}

/* -- errors of the host ------------------------------------------------------- */

static void shrunk_image(void)
{
    struct vblk_info info;

    start(false, false, 1);
    assert_int_equal(truncate(path, 4096), 0);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 4096, true), VIRTIO_BLK_S_OK);
    /* Half of it is there. */
    assert_int_equal(request(VIRTIO_BLK_T_IN, 4, DATA, 4096, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 100, DATA, 4096, true), VIRTIO_BLK_S_IOERR);
    vblk_info(dev, &info);
    assert_int_equal(info.counters.errors, 2);
    assert_int_equal(info.status, VBLK_FAILED);
    assert_int_equal(__atomic_load_n(&errors, __ATOMIC_SEQ_CST), 2);
    assert_string_equal(last_error.operation, "read");
    assert_false(last_error.stop);
}

static void partial_transfers(void)
{
    struct iovec iov[2] = {{mem_ptr(mem, DATA, 4096), 4096}, {mem_ptr(mem, DATA + 8192, 4096), 4096}};
    const struct disk_config config = {.path = path, .aio = aio};
    struct disk_request req = {.op = DISK_READ, .offset = 0, .len = 8192, .iov = iov, .iovcnt = 2};
    struct disk *disk;

    /* The image ends within the request: what is there is read, and then the end is an error. */
    assert_int_equal(disk_open(&config, &disk), 0);
    assert_int_equal(truncate(path, 5000), 0);
    disk_submit(disk, &req);
    disk_kick(disk);
    while (!disk_reap(disk))
        disk_wait(disk);
    assert_int_equal(req.result, -EIO);
    assert_pattern(DATA + 8192, 4096, 5000 - 4096);
    assert_int_equal(iov[1].iov_len, 4096);
    disk_close(disk);
}

/* Of another size, and read-only. */
static void compare_with_another_disk(const uint8_t *data, size_t len)
{
    struct state_reader r;
    char text[1024] = "";

    assert_int_equal(state_reader_init(&r, data, len), 0);
    device_compare(dev, &r, add_difference, text);
    state_reader_clear(&r);
    assert_non_null(strstr(text, "device virtio-blk 0: features 0x"));
    assert_non_null(strstr(text, "device virtio-blk 0: a disk of 1"));
    assert_non_null(strstr(text, "device virtio-blk 0: a disk that is read-only, here it is written\n"));
}

static void state_of_another_disk(void)
{
    uint8_t *data, *p;
    size_t len;

    start(false, false, 1);
    device_quiesce(dev);
    len = save_device(dev, &data);
    expect_differences(dev, data, len, "");
    find_field(data, len, "offered")[0] ^= 1 << VIRTIO_BLK_F_RO;
    p = find_field(data, len, "size");
    p[3] ^= 1;
    compare_with_another_disk(data, len);
    find_field(data, len, "offered")[0] ^= 1 << VIRTIO_BLK_F_RO;
    assert_int_equal(restore_device(dev, data, len), -EBADMSG);
    p[3] ^= 1;
    assert_int_equal(restore_device(dev, data, len), 0);
    device_resume(dev);
    free(data);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA, 4096, false), VIRTIO_BLK_S_OK);
}

/* A state with a request that was held back: it is carried out when the device goes on, not before. */
static void held_back_in_state(void)
{
    uint8_t *data, *taken, byte;
    struct vblk_info info;
    uint16_t used;
    size_t len;

    start(false, false, 1);
    mem_set(mem, DATA, 0x99, 512);
    put_header(VIRTIO_BLK_T_OUT, 6);
    vd_desc(&d, 7, HEADER, 16, NEXT, 8);
    vd_desc(&d, 8, DATA, 512, NEXT, 9);
    vd_desc(&d, 9, STATUS, 1, WRITE, 0);
    device_quiesce(dev);
    len = save_device(dev, &data);
    taken = find_field(data, len, "q0-taken");
    taken[0] |= 1 << 7;
    assert_int_equal(restore_device(dev, data, len), 0);
    vblk_info(dev, &info);
    assert_int_equal(info.held_back, 1);
    read_file(6 * 512, &byte, 1);
    assert_int_equal(byte, pattern(6 * 512));
    used = vd_used_idx(&d);
    device_resume(dev);
    wait_used((uint16_t)(used + 1));
    assert_int_equal(status_byte(), VIRTIO_BLK_S_OK);
    assert_int_equal(vd_used_elem(&d, used).id, 7);
    read_file(6 * 512, &byte, 1);
    assert_int_equal(byte, 0x99);
    /* Dropped by a reset. */
    device_quiesce(dev);
    assert_int_equal(restore_device(dev, data, len), 0);
    device_reset(dev);
    vblk_info(dev, &info);
    assert_int_equal(info.held_back, 0);
    device_resume(dev);
    free(data);
}

static void dirty_pages(void)
{
    struct page_set set;

    start(false, true, 1);
    assert_int_equal(page_set_init(&set, mem_pages(mem)), 0);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, true);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 0x8000, true), VIRTIO_BLK_S_OK);
    mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set);
    for (uint64_t gpa = DATA; gpa < DATA + 0x8000; gpa += 4096)
        assert_true(bitmap_test(set.map, gpa >> 12));
    assert_true(bitmap_test(set.map, STATUS >> 12));
    assert_true(bitmap_test(set.map, d.used >> 12));
    assert_false(bitmap_test(set.map, (DATA + 0x8000) >> 12));
    page_set_free(&set);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, false);
}

/* -- images ------------------------------------------------------------------- */

static int try_open(bool ro)
{
    const struct disk_config config = {.path = path, .read_only = ro, .aio = DISK_AIO_THREADS};
    struct disk *disk;
    int r = disk_open(&config, &disk);

    if (r == 0)
        disk_close(disk);
    return r;
}

static void test_images(void **state)
{
    const struct disk_config reader = {.path = path, .read_only = true, .aio = DISK_AIO_THREADS};
    struct disk *disk;

    setup(DISK_AIO_THREADS);
    start(false, false, 1);
    assert_int_equal(try_open(false), -EBUSY);
    assert_int_equal(try_open(true), -EBUSY);
    device_destroy(dev);
    dev = NULL;
    assert_int_equal(disk_open(&reader, &disk), 0);
    assert_int_equal(try_open(true), 0);
    assert_int_equal(try_open(false), -EBUSY);
    disk_close(disk);
    assert_int_equal(truncate(path, 1000), 0);
    assert_int_equal(try_open(false), -EINVAL);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(try_open(false), -EINVAL);
    assert_int_equal(chmod(path, 0), 0);
    if (geteuid() != 0)
        assert_int_equal(try_open(false), -EACCES);
    unlink(path);
    assert_int_equal(try_open(true), -ENOENT);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(try_open(true), -EINVAL);
    rmdir(path);
    make_file(4096);
}

static void test_claims(void **state)
{
    struct disk_config config = {.path = path, .aio = DISK_AIO_THREADS};
    struct disk *source, *target;

    setup(DISK_AIO_THREADS);
    assert_int_equal(disk_open(&config, &source), 0);
    config.unclaimed = true;
    assert_int_equal(disk_open(&config, &target), 0);
    assert_int_equal(disk_claim(source, false), 0);
    assert_int_equal(disk_claim(target, false), -EBUSY);
    disk_yield(target);
    assert_int_equal(try_open(true), -EBUSY);
    assert_int_equal(disk_sync(source), 0);
    disk_yield(source);
    assert_int_equal(disk_sync(source), 0);
    assert_int_equal(disk_claim(target, false), 0);
    assert_int_equal(disk_claim(target, false), 0);
    assert_int_equal(disk_claim(source, false), -EBUSY);
    assert_int_equal(try_open(false), -EBUSY);
    disk_yield(target);
    /* One whose size has changed is nobody's. */
    assert_int_equal(truncate(path, DISK_SIZE / 2), 0);
    assert_int_equal(disk_claim(source, false), -ESTALE);
    assert_int_equal(try_open(false), 0);
    assert_int_equal(truncate(path, DISK_SIZE), 0);
    assert_int_equal(disk_claim(source, false), 0);
    assert_int_equal(disk_claim(target, false), -EBUSY);
    disk_close(source);
    assert_int_equal(disk_claim(target, false), 0);
    disk_close(target);
    assert_int_equal(try_open(false), 0);
}

/* What is written out ahead of a move is a descriptor of its own, and only where there is something to write out. */
static void test_written_out_ahead(void **state)
{
    struct disk_config config = {.path = path, .aio = DISK_AIO_THREADS};
    struct statfs fs;
    struct disk *disk;
    int fd;

    setup(DISK_AIO_THREADS);
    assert_int_equal(statfs(path, &fs), 0);
    assert_int_equal(disk_open(&config, &disk), 0);
    fd = disk_sync_fd(disk);
    if (fs.f_type == EXT4_SUPER_MAGIC || fs.f_type == TMPFS_MAGIC)
        assert_int_equal(fd, -1);
    if (fd >= 0)
        assert_int_equal(fdatasync(fd), 0);
    fd_close(fd);
    /* It is its owner's alone. */
    disk_yield(disk);
    assert_int_equal(disk_sync_fd(disk), -1);
    disk_close(disk);
    config.read_only = true;
    assert_int_equal(disk_open(&config, &disk), 0);
    assert_int_equal(disk_sync_fd(disk), -1);
    disk_close(disk);
}

/* Readers share from the start, and none of them stands in the way of the guest's move. */
static void test_claims_of_readers(void **state)
{
    const struct disk_config config = {.path = path, .read_only = true, .unclaimed = true, .aio = DISK_AIO_THREADS};
    struct disk *source, *target;

    setup(DISK_AIO_THREADS);
    assert_int_equal(disk_open(&config, &source), 0);
    assert_int_equal(disk_open(&config, &target), 0);
    disk_yield(source);
    assert_int_equal(disk_claim(target, false), 0);
    disk_yield(target);
    disk_close(source);
    assert_int_equal(try_open(false), -EBUSY);
    disk_close(target);
    assert_int_equal(try_open(false), 0);
}

/* A device that arrives while another one writes, and writes when that has let go. */
static void test_claimed_device(void **state)
{
    const struct vblk_config config = {.path = path, .aio = DISK_AIO_THREADS, .unclaimed = true};
    struct device *other;
    uint8_t byte;

    setup(DISK_AIO_THREADS);
    start(false, false, 1);
    assert_int_equal(vblk_create(&f.env, &config, 1, 1, &other), 0);
    assert_int_equal(vblk_claim(other, false), -EBUSY);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA, 4096, false), VIRTIO_BLK_S_OK);
    device_quiesce(dev);
    assert_int_equal(vblk_sync(dev), 0);
    vblk_yield(dev);
    assert_int_equal(vblk_claim(other, false), 0);
    assert_int_equal(vblk_claim(dev, false), -EBUSY);
    device_destroy(other);
    assert_int_equal(vblk_claim(dev, false), 0);
    device_resume(dev);
    mem_set(mem, DATA, 0x55, 4096);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 8, DATA, 4096, false), VIRTIO_BLK_S_OK);
    read_file(8 * 512, &byte, 1);
    assert_int_equal(byte, 0x55);
}

/* -- both backends ------------------------------------------------------------ */

static void transfers_cached(void)
{
    transfers(false);
}

static void transfers_direct(void)
{
    transfers(true);
}

#define BOTH(name)                         \
    static void test_uring_##name(void **state) \
    {                                      \
        if (!setup(DISK_AIO_URING))        \
            skip();                        \
        name();                            \
    }                                      \
    static void test_pool_##name(void **state) \
    {                                      \
        setup(DISK_AIO_THREADS);           \
        name();                            \
    }

BOTH(transfers_cached)
BOTH(transfers_direct)
BOTH(identity)
BOTH(refused)
BOTH(ranges)
BOTH(read_only)
BOTH(layouts)
BOTH(malformed)
BOTH(many)
BOTH(shrunk_image)
BOTH(partial_transfers)
BOTH(state_of_another_disk)
BOTH(held_back_in_state)
BOTH(dirty_pages)

#define TESTS_OF(name)                                    \
    cmocka_unit_test_teardown(test_uring_##name, teardown), \
        cmocka_unit_test_teardown(test_pool_##name, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TESTS_OF(transfers_cached),   TESTS_OF(transfers_direct),  TESTS_OF(identity),
        TESTS_OF(refused),            TESTS_OF(ranges),            TESTS_OF(read_only),
        TESTS_OF(layouts),            TESTS_OF(malformed),         TESTS_OF(many),
        TESTS_OF(shrunk_image),       TESTS_OF(partial_transfers), TESTS_OF(state_of_another_disk),
        TESTS_OF(held_back_in_state), TESTS_OF(dirty_pages),       cmocka_unit_test_teardown(test_images, teardown),
        cmocka_unit_test_teardown(test_claims, teardown),
        cmocka_unit_test_teardown(test_written_out_ahead, teardown),
        cmocka_unit_test_teardown(test_claims_of_readers, teardown),
        cmocka_unit_test_teardown(test_claimed_device, teardown),
    };

    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
