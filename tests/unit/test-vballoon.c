/* virtio-balloon: memory goes back to the host and is zeros to all who look, and no frame number does harm. */
#include "config.h"

#include "virtio-small.h"

#include <errno.h>

#include "base/bytes.h"
#include "device/virtio/balloon.h"

#define LIST 0x30000
#define DATA 0x400000
#define WRITE VRING_DESC_F_WRITE
#define CONFIG(field) (VIRTIO_MMIO_CONFIG + (unsigned int)offsetof(struct virtio_balloon_config, field))
#define TELL (UINT64_C(1) << VIRTIO_BALLOON_F_MUST_TELL_HOST)
#define STATS_VQ (UINT64_C(1) << VIRTIO_BALLOON_F_STATS_VQ)
#define POISON (UINT64_C(1) << VIRTIO_BALLOON_F_PAGE_POISON)
#define REPORTING (UINT64_C(1) << VIRTIO_BALLOON_F_REPORTING)

static struct small s;
static unsigned int changes;

static void on_changed(void *opaque)
{
    changes++;
}

static void start_with(uint64_t memory, uint64_t features)
{
    const struct vballoon_config config = {.on = true, .reporting = true};

    small_init(&s, memory);
    s.f.host.balloon_changed = on_changed;
    changes = 0;
    assert_int_equal(vballoon_create(&s.f.env, &config, 0, &s.dev), 0);
    small_start(&s, 4, features);
}

static void start(void)
{
    start_with(16 * MiB, TELL | STATS_VQ | REPORTING);
}

static int teardown(void **state)
{
    small_fini(&s);
    return 0;
}

static struct vballoon_info info(void)
{
    struct vballoon_info i;

    vballoon_info(s.dev, &i);
    return i;
}

/* Give the device a list of frames; queue 0 inflates, 1 deflates. */
static void frames(unsigned int queue, const uint32_t *gfns, unsigned int count)
{
    for (unsigned int i = 0; i < count; i++) {
        uint8_t le[4];

        le32_put(le, gfns[i]);
        assert_int_equal(mem_write(s.mem, LIST + 4 * i, le, 4), 0);
    }
    small_offer(&s, queue, 0, LIST, 4 * count, 0);
}

static bool is_filled(uint64_t gpa, uint8_t with)
{
    uint8_t page[GUEST_PAGE_SIZE];

    assert_int_equal(mem_read(s.mem, gpa, page, sizeof(page)), 0);
    for (size_t i = 0; i < sizeof(page); i++)
        if (page[i] != with)
            return false;
    return true;
}

static void test_inflate(void **state)
{
    static const uint32_t gfns[] = {0x400, 0x401, 0x402, 0x40a, 0x409, 0x408, 0x410, 0x400};
    int64_t before;

    start();
    assert_int_equal(mem_set(s.mem, DATA, 0x5a, 1 * MiB), 0);
    assert_int_equal(mem_set(s.mem, LIST, 0, 4096), 0);
    before = mem_allocated(s.mem);
    small_forget_dirty(&s);
    frames(0, gfns, ARRAY_SIZE(gfns));
    assert_int_equal(vd_used_idx(&s.d[0]), 1);
    /* Before anybody looks: reading takes pages again. */
    assert_true(before - mem_allocated(s.mem) >= 7 * 4096);
    for (uint32_t gfn = 0x400; gfn < 0x440; gfn++) {
        bool given = gfn <= 0x402 || (gfn >= 0x408 && gfn <= 0x40a) || gfn == 0x410;

        assert_int_equal(is_filled(gfn_to_gpa(gfn), given ? 0 : 0x5a), true);
        assert_int_equal(small_is_dirty(&s, gfn_to_gpa(gfn)), given);
    }
    assert_int_equal(info().counters.inflated, 8);
    assert_int_equal(info().counters.given_back_bytes, 8 * 4096);
    frames(1, gfns, 3);
    assert_int_equal(info().counters.deflated, 3);
    assert_int_equal(mem_set(s.mem, DATA, 1, 4096), 0);
    assert_true(is_filled(DATA, 1));
}

static void test_hostile_frames(void **state)
{
    /* The last of 4 GiB of memory below the hole and the first above, what lies in it, and beyond. */
    static const uint32_t gfns[] = {0xbffff, 0xc0000, 0xfffff, 0x100000, 0x13ffff, 0x140000, 0xffffffff,
                                    0xbffff, 0xbfffe, 0xbffff, 0xfee00,  0x80000000};

    start_with(4 * GiB, TELL | STATS_VQ);
    assert_int_equal(mem_set(s.mem, gfn_to_gpa(0xbfffe), 7, 8192), 0);
    assert_int_equal(mem_set(s.mem, gfn_to_gpa(0x100000), 7, 8192), 0);
    frames(0, gfns, ARRAY_SIZE(gfns));
    assert_false(vb_needs_reset(&s.f));
    assert_int_equal(info().counters.ignored, 6);
    assert_int_equal(info().counters.inflated, 6);
    assert_true(is_filled(gfn_to_gpa(0xbfffe), 0) && is_filled(gfn_to_gpa(0xbffff), 0) && is_filled(gfn_to_gpa(0x100000), 0));
    assert_true(is_filled(gfn_to_gpa(0x100001), 7));
    frames(1, gfns, ARRAY_SIZE(gfns));
    assert_int_equal(info().counters.ignored, 12);
    assert_int_equal(info().counters.failures, 0);
}

/* The device's own rings and the list itself: the driver gets what it asks for, and the device does not mind. */
static void test_own_rings(void **state)
{
    uint32_t gfns[64];

    start();
    for (uint32_t i = 0; i < ARRAY_SIZE(gfns); i++)
        gfns[i] = i;
    frames(0, gfns, ARRAY_SIZE(gfns));
    small_start(&s, 4, TELL | STATS_VQ);
    frames(0, gfns + 60, 4);
    assert_int_equal(vd_used_idx(&s.d[0]), 1);
}

static void test_malformed(void **state)
{
    static const struct {
        unsigned int queue;
        uint32_t len;
        uint16_t flags;
    } cases[] = {
        {0, 6, 0}, {1, 3, 0}, {0, 64, WRITE}, {0, 4 * VBALLOON_PFNS_MAX + 4, 0}, {3, 4096, 0},
    };

    start();
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        small_start(&s, 4, TELL | STATS_VQ | REPORTING);
        small_offer(&s, cases[i].queue, 0, DATA, cases[i].len, cases[i].flags);
        assert_true(vb_needs_reset(&s.f));
        assert_int_equal(vd_used_idx(&s.d[cases[i].queue]), 0);
    }
    assert_int_equal(info().counters.misuses, ARRAY_SIZE(cases));
    small_start(&s, 4, TELL);
    small_offer(&s, 0, 0, DATA, 4 * VBALLOON_PFNS_MAX, 0);
    assert_false(vb_needs_reset(&s.f));
    assert_int_equal(info().counters.inflated, VBALLOON_PFNS_MAX);
}

static void write32(unsigned int reg, uint32_t v)
{
    vb_write(&s.f, reg, v);
}

static void test_sizes(void **state)
{
    unsigned int interrupts, generation;

    start();
    interrupts = s.f.edges[virtio_mmio_gsi(0)];
    generation = vb_read(&s.f, VIRTIO_MMIO_CONFIG_GENERATION);
    vballoon_set_memory(s.dev, 6 * MiB + 1);
    assert_int_equal(vb_read(&s.f, CONFIG(num_pages)), 2559);
    assert_int_equal(s.f.edges[virtio_mmio_gsi(0)], interrupts + 1);
    assert_int_not_equal(vb_read(&s.f, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_int_equal(info().target, 16 * MiB - 2559 * 4096);
    assert_int_equal(info().memory, 16 * MiB);
    write32(CONFIG(actual), 100);
    assert_int_equal(vb_read(&s.f, CONFIG(actual)), 100);
    write32(CONFIG(actual), 100);
    assert_int_equal(changes, 1);
    assert_int_equal(info().memory, 16 * MiB - 100 * 4096);
    write32(CONFIG(actual), UINT32_MAX);
    assert_int_equal(info().memory, 0);
    /* The rest is not the driver's. */
    write32(CONFIG(num_pages), 7);
    assert_int_equal(vb_read(&s.f, CONFIG(num_pages)), 2559);
    vballoon_set_memory(s.dev, UINT64_MAX);
    assert_int_equal(info().target, 16 * MiB);
    vballoon_set_memory(s.dev, 0);
    assert_int_equal(info().target, 0);
    /* A reset of the driver empties the balloon; what it is asked for stays. */
    write32(VIRTIO_MMIO_STATUS, 0);
    assert_int_equal(info().memory, 16 * MiB);
    assert_int_equal(info().target, 0);
    assert_int_equal(changes, 3);
}

static void put_stat(unsigned int i, uint16_t tag, uint64_t value)
{
    uint8_t stat[10];

    le16_put(stat, tag);
    le64_put(stat + 2, value);
    mem_write(s.mem, LIST + 10 * i, stat, sizeof(stat));
}

static void test_stats(void **state)
{
    start();
    put_stat(0, VIRTIO_BALLOON_S_MEMFREE, 123);
    put_stat(1, 999, 5);
    put_stat(2, VIRTIO_BALLOON_S_MEMTOT, 456);
    s.f.real_ns = 77 * (int64_t)NSEC_PER_SEC;
    /* The last one is cut off. */
    small_offer(&s, 2, 3, LIST, 35, 0);
    assert_int_equal(vd_used_idx(&s.d[2]), 0);
    assert_int_equal(info().stats_time, 77);
    assert_int_equal(info().stats_present, 1 << VIRTIO_BALLOON_S_MEMFREE | 1 << VIRTIO_BALLOON_S_MEMTOT);
    assert_int_equal(info().stats[VIRTIO_BALLOON_S_MEMTOT], 456);
    assert_string_equal(vballoon_stat_name(VIRTIO_BALLOON_S_MEMFREE), "stat-free-memory");
    /* Asked for: the buffer goes back, and comes again. */
    vballoon_set_interval(s.dev, 5);
    assert_int_equal(vd_used_idx(&s.d[2]), 1);
    assert_int_equal(small_last(&s, 2).id, 3);
    put_stat(0, VIRTIO_BALLOON_S_MEMFREE, 124);
    small_offer(&s, 2, 3, LIST, 30, 0);
    assert_int_equal(info().stats[VIRTIO_BALLOON_S_MEMFREE], 124);
    /* A second buffer pushes the first one out. */
    small_offer(&s, 2, 4, LIST, 10, 0);
    assert_int_equal(vd_used_idx(&s.d[2]), 2);
    assert_int_equal(info().stats_present, 1 << VIRTIO_BALLOON_S_MEMFREE);
    assert_int_equal(info().interval, 5);
}

static void test_state(void **state)
{
    uint8_t *data, *field;
    size_t len;

    start();
    vballoon_set_memory(s.dev, 8 * MiB);
    write32(CONFIG(actual), 55);
    put_stat(0, VIRTIO_BALLOON_S_MEMFREE, 123);
    small_offer(&s, 2, 3, LIST, 10, 0);
    device_quiesce(s.dev);
    len = save_device(s.dev, &data);
    device_reset(s.dev);
    assert_int_equal(info().memory, 16 * MiB);
    assert_int_equal(restore_device(s.dev, data, len), 0);
    assert_int_equal(info().memory, 16 * MiB - 55 * 4096);
    assert_int_equal(info().target, 8 * MiB);
    assert_int_equal(vb_read(&s.f, CONFIG(actual)), 55);
    assert_int_equal(info().stats[VIRTIO_BALLOON_S_MEMFREE], 123);
    device_resume(s.dev);
    vballoon_set_interval(s.dev, 1);
    assert_int_equal(small_last(&s, 2).id, 3);
    device_quiesce(s.dev);
    field = find_field(data, len, "actual");
    field[3] = 0x7f;
    assert_int_equal(restore_device(s.dev, data, len), -EBADMSG);
    assert_int_equal(info().memory, 16 * MiB - 55 * 4096);
    field[3] = 0;
    /* A head that was never taken is nothing to give back. */
    field = find_field(data, len, "q2-taken");
    memset(field, 0, 8);
    assert_int_equal(restore_device(s.dev, data, len), 0);
    device_resume(s.dev);
    vballoon_set_interval(s.dev, 2);
    free(data);
}

static void report(uint64_t gpa, uint32_t len)
{
    small_offer(&s, 3, 0, gpa, len, WRITE);
    assert_int_equal(small_last(&s, 3).len, 0);
}

static void test_reporting(void **state)
{
    start();
    assert_true(info().reporting);
    assert_int_equal(mem_set(s.mem, DATA, 3, 4 * MiB), 0);
    small_forget_dirty(&s);
    report(DATA + 100, 1 * MiB);
    /* Whole pages only. */
    assert_true(is_filled(DATA, 3) && is_filled(DATA + MiB, 3));
    assert_true(is_filled(DATA + 4096, 0) && is_filled(DATA + MiB - 4096, 0));
    assert_false(small_is_dirty(&s, DATA));
    assert_true(small_is_dirty(&s, DATA + 4096));
    assert_int_equal(info().counters.given_back_bytes, MiB - 4096);
    assert_int_equal(info().counters.reported_bytes, MiB);
}

/* A guest that fills free pages with a pattern finds it again; one that fills them with zeros finds zeros. */
static void test_poison(void **state)
{
    start_with(16 * MiB, TELL | STATS_VQ | REPORTING | POISON);
    assert_int_equal(mem_set(s.mem, DATA, 0xaa, 1 * MiB), 0);
    write32(CONFIG(poison_val), 0xaaaaaaaa);
    assert_int_equal(vb_read(&s.f, CONFIG(poison_val)), 0xaaaaaaaa);
    report(DATA, 64 * 1024);
    assert_true(is_filled(DATA, 0xaa));
    assert_int_equal(info().counters.given_back_bytes, 0);
    write32(CONFIG(poison_val), 0);
    report(DATA, 64 * 1024);
    assert_true(is_filled(DATA, 0));
}

/* Memory that shows a snapshot's file where it is given back: such a guest keeps its pages. */
static void test_private(void **state)
{
    const struct mem_config config = {.size = 16 * MiB, .private = true};
    const struct vballoon_config balloon = {.on = true, .reporting = true};
    uint32_t gfn = DATA >> 12;

    small_init(&s, 16 * MiB);
    page_set_free(&s.dirty);
    mem_free(s.mem);
    assert_int_equal(mem_new(&config, &s.mem), 0);
    assert_int_equal(page_set_init(&s.dirty, mem_pages(s.mem)), 0);
    s.f.env.mem = s.mem;
    assert_int_equal(vballoon_create(&s.f.env, &balloon, 0, &s.dev), 0);
    small_start(&s, 4, TELL | STATS_VQ | REPORTING | POISON);
    assert_int_equal(mem_set(s.mem, DATA, 1, 8192), 0);
    report(DATA, 8192);
    assert_true(is_filled(DATA, 1));
    frames(0, &gfn, 1);
    assert_true(is_filled(DATA, 0) && is_filled(DATA + 4096, 1));
    small_start(&s, 4, TELL | STATS_VQ | REPORTING);
    report(DATA, 8192);
    assert_true(is_filled(DATA + 4096, 0));
}

/* Huge pages go back whole. Skipped where the host has none. */
static void test_huge(void **state)
{
    const struct mem_config config = {.size = 8 * MiB, .hugepages = true};
    const struct vballoon_config balloon = {.on = true, .reporting = true};
    struct mem *huge;
    uint32_t gfn;

    small_init(&s, 16 * MiB);
    if (mem_new(&config, &huge) < 0)
        skip();
    mem_free(s.mem);
    s.mem = s.f.env.mem = huge;
    assert_int_equal(vballoon_create(&s.f.env, &balloon, 0, &s.dev), 0);
    small_start(&s, 4, TELL);
    assert_int_equal(mem_set(s.mem, 4 * MiB, 1, 2 * MiB), 0);
    for (gfn = 1024; gfn < 1535; gfn++)
        frames(0, &gfn, 1);
    assert_true(is_filled(4 * MiB, 1));
    frames(0, &gfn, 1);
    assert_true(is_filled(4 * MiB, 0));
    assert_int_equal(info().counters.given_back_bytes, 2 * MiB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_inflate, teardown),   cmocka_unit_test_teardown(test_hostile_frames, teardown),
        cmocka_unit_test_teardown(test_own_rings, teardown), cmocka_unit_test_teardown(test_malformed, teardown),
        cmocka_unit_test_teardown(test_sizes, teardown),     cmocka_unit_test_teardown(test_stats, teardown),
        cmocka_unit_test_teardown(test_state, teardown),     cmocka_unit_test_teardown(test_reporting, teardown),
        cmocka_unit_test_teardown(test_poison, teardown),    cmocka_unit_test_teardown(test_private, teardown),
        cmocka_unit_test_teardown(test_huge, teardown),
    };

    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
