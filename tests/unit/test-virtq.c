/* Split virtqueues: what a driver may do, and what it may not. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "device/virtio/queue.h"
#include "mmu/pageset.h"
#include "rand.h"
#include "virtq-driver.h"

#define SIZE 8
#define MEMORY (2 * MiB)
#define RING 0x10000
#define DATA 0x20000
#define TABLE 0x30000
#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE
#define INDIRECT VRING_DESC_F_INDIRECT

static struct mem *mem;
static struct virtq q;
static struct vdriver d;
static unsigned int notified, misused;
static char why[VIRTQ_WHY_MAX];
static struct iovec iov[16];
static struct virtq_chain chain;

static void on_notify(struct virtq *queue)
{
    notified++;
}

static void on_misuse(struct virtq *queue, const char *text)
{
    misused++;
    snprintf(why, sizeof(why), "%s", text);
}

static const struct virtq_owner owner = {.notify = on_notify, .misuse = on_misuse};

static int setup(void **state)
{
    const struct mem_config config = {.size = MEMORY};

    return mem_new(&config, &mem);
}

static int teardown(void **state)
{
    mem_free(mem);
    return 0;
}

static void fresh(bool event_idx, bool indirect)
{
    char text[VIRTQ_WHY_MAX] = "";

    notified = misused = 0;
    why[0] = '\0';
    d = vd_new(mem, RING, SIZE);
    virtq_init(&q, mem, &owner, NULL, 0, 64);
    q.event_idx = event_idx;
    q.indirect = indirect;
    q.s.size = SIZE;
    q.s.desc = d.desc;
    q.s.avail = d.avail;
    q.s.used = d.used;
    assert_int_equal(virtq_start(&q, text), 0);
    chain = (struct virtq_chain){.iov = iov, .capacity = ARRAY_SIZE(iov)};
}

static int fresh_plain(void **state)
{
    fresh(false, true);
    return 0;
}

static void *at(uint64_t gpa)
{
    return mem_ptr(mem, gpa, 1);
}

/* -- what is right ------------------------------------------------------------ */

static void test_chain(void **state)
{
    vd_desc(&d, 3, DATA, 16, NEXT, 5);
    vd_desc(&d, 5, DATA + 100, 20, NEXT | WRITE, 0);
    vd_desc(&d, 0, DATA + 4096, 4096, WRITE, 77);
    assert_false(virtq_pop(&q, &chain));
    vd_offer(&d, 3);
    assert_true(virtq_pop(&q, &chain));
    assert_int_equal(chain.head, 3);
    assert_int_equal(chain.readable, 1);
    assert_int_equal(chain.writable, 2);
    assert_int_equal(chain.readable_bytes, 16);
    assert_int_equal(chain.writable_bytes, 4116);
    assert_ptr_equal(iov[0].iov_base, at(DATA));
    assert_ptr_equal(iov[1].iov_base, at(DATA + 100));
    assert_int_equal(iov[2].iov_len, 4096);
    assert_false(virtq_pop(&q, &chain));
    virtq_push(&q, 3, 5);
    assert_int_equal(vd_used_idx(&d), 0);
    assert_int_equal(notified, 0);
    virtq_flush(&q);
    assert_int_equal(vd_used_idx(&d), 1);
    assert_int_equal(vd_used_elem(&d, 0).id, 3);
    assert_int_equal(vd_used_elem(&d, 0).len, 5);
    assert_int_equal(notified, 1);
    virtq_flush(&q);
    assert_int_equal(notified, 1);
    assert_int_equal(misused, 0);
}

static void test_indirect(void **state)
{
    /* A readable buffer directly, the rest in a table; that the table is said to be writable does not count. */
    vd_desc(&d, 1, DATA, 8, NEXT, 2);
    vd_desc(&d, 2, TABLE, 3 * 16, INDIRECT | WRITE, 0);
    vd_desc_at(&d, TABLE, 0, DATA + 8, 8, NEXT, 2);
    vd_desc_at(&d, TABLE, 2, DATA + 16, 8, NEXT | WRITE, 1);
    vd_desc_at(&d, TABLE, 1, DATA + 24, 8, WRITE, 0);
    vd_offer(&d, 1);
    assert_true(virtq_pop(&q, &chain));
    assert_int_equal(chain.readable, 2);
    assert_int_equal(chain.writable, 2);
    assert_ptr_equal(iov[3].iov_base, at(DATA + 24));
    assert_int_equal(misused, 0);
}

static void test_unpop_and_retake(void **state)
{
    vd_desc(&d, 0, DATA, 8, WRITE, 0);
    vd_offer(&d, 0);
    assert_true(virtq_has_chain(&q));
    assert_true(virtq_pop(&q, &chain));
    assert_int_equal(q.in_flight, 1);
    assert_false(virtq_has_chain(&q));
    virtq_unpop(&q, &chain);
    assert_int_equal(q.in_flight, 0);
    assert_true(virtq_pop(&q, &chain));
    virtq_push(&q, 0, 0);
    assert_true(virtq_retake(&q, 0, &chain));
    assert_int_equal(chain.writable, 1);
    assert_false(virtq_retake(&q, 0, &chain));
    assert_int_equal(misused, 1);
}

static void test_copies(void **state)
{
    char buf[32] = {0};

    memcpy(at(DATA), "0123456789", 10);
    vd_desc(&d, 0, DATA, 4, NEXT, 1);
    vd_desc(&d, 1, DATA + 4, 6, NEXT, 2);
    vd_desc(&d, 2, DATA + 100, 3, NEXT | WRITE, 3);
    vd_desc(&d, 3, DATA + 200, 3, WRITE, 0);
    vd_offer(&d, 0);
    assert_true(virtq_pop(&q, &chain));
    assert_int_equal(virtq_chain_read(&chain, 2, buf, 5), 5);
    assert_string_equal(buf, "23456");
    assert_int_equal(virtq_chain_read(&chain, 7, buf, 20), 3);
    assert_int_equal(virtq_chain_read(&chain, 10, buf, 1), 0);
    assert_int_equal(virtq_chain_write(&q, &chain, 1, "abcdefgh", 8), 5);
    assert_memory_equal((uint8_t *)at(DATA + 101), "ab", 2);
    assert_memory_equal(at(DATA + 200), "cde", 3);
    assert_int_equal(virtq_chain_write(&q, &chain, 6, "x", 1), 0);
}

static bool noted(const struct page_set *set, uint64_t gpa)
{
    return bitmap_test(set->map, gpa >> 12);
}

/* Used ring, buffers and the request for kicks: all that the device writes is in the notes. */
static void test_dirty(void **state)
{
    struct page_set set;

    fresh(true, true);
    assert_int_equal(page_set_init(&set, mem_pages(mem)), 0);
    vd_desc(&d, 0, DATA + 0xff0, 0x20, NEXT | WRITE, 1);
    vd_desc(&d, 1, DATA + 0x5000, 0x3000, WRITE, 0);
    vd_offer(&d, 0);
    assert_true(virtq_pop(&q, &chain));
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, true);
    virtq_chain_written(&q, &chain, 0x20 + 0x1001);
    mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set);
    assert_true(noted(&set, DATA));
    assert_true(noted(&set, DATA + 0x1000));
    assert_true(noted(&set, DATA + 0x5000));
    assert_true(noted(&set, DATA + 0x6000));
    assert_false(noted(&set, DATA + 0x7000));
    assert_false(noted(&set, d.used));
    virtq_push(&q, 0, 1);
    virtq_flush(&q);
    mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set);
    assert_true(noted(&set, d.used));
    page_set_wipe(&set);
    assert_false(virtq_pop(&q, &chain));
    mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set);
    assert_true(noted(&set, d.used + 4 + 8 * SIZE));
    page_set_free(&set);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, false);
}

/* -- interrupts and kicks ----------------------------------------------------- */

static void serve(unsigned int n)
{
    for (unsigned int i = 0; i < n; i++) {
        vd_offer(&d, 0);
        assert_true(virtq_pop(&q, &chain));
        virtq_push(&q, 0, 0);
        virtq_flush(&q);
    }
}

static void test_flags(void **state)
{
    vd_desc(&d, 0, DATA, 8, WRITE, 0);
    assert_false(virtq_pop(&q, &chain));
    assert_int_equal(vd_get16(&d, d.used), 0);
    vd_offer(&d, 0);
    assert_true(virtq_pop(&q, &chain));
    /* While there is work kicks are not wanted. */
    assert_int_equal(vd_get16(&d, d.used), VRING_USED_F_NO_NOTIFY);
    virtq_push(&q, 0, 0);
    vd_put16(&d, d.avail, VRING_AVAIL_F_NO_INTERRUPT);
    virtq_flush(&q);
    assert_int_equal(notified, 0);
    assert_false(virtq_pop(&q, &chain));
    assert_int_equal(vd_get16(&d, d.used), 0);
    vd_put16(&d, d.avail, 0);
    serve(3);
    assert_int_equal(notified, 3);
}

/* Stopped while kicks were not wanted, and started elsewhere: there the driver is asked for them again. */
static void test_flags_of_another(void **state)
{
    struct virtq_state s;
    char text[VIRTQ_WHY_MAX];

    vd_desc(&d, 0, DATA, 8, WRITE, 0);
    vd_offer(&d, 0);
    assert_true(virtq_pop(&q, &chain));
    virtq_push(&q, 0, 0);
    virtq_flush(&q);
    assert_int_equal(vd_get16(&d, d.used), VRING_USED_F_NO_NOTIFY);
    s = q.s;
    virtq_reset(&q);
    q.s = s;
    assert_int_equal(virtq_start(&q, text), 0);
    /* The start leaves guest memory alone. */
    assert_int_equal(vd_get16(&d, d.used), VRING_USED_F_NO_NOTIFY);
    assert_false(virtq_has_chain(&q));
    assert_int_equal(vd_get16(&d, d.used), 0);
    serve(1);
    assert_int_equal(vd_get16(&d, d.used), VRING_USED_F_NO_NOTIFY);
}

static void test_event_index(void **state)
{
    fresh(true, true);
    vd_desc(&d, 0, DATA, 8, WRITE, 0);
    /* The first is told of whatever the driver wants: it may be after a restore. */
    vd_set_used_event(&d, 100);
    serve(1);
    assert_int_equal(notified, 1);
    /* From 1 on, wanted when entry 3 was used: that is the third from here. */
    vd_set_used_event(&d, 3);
    serve(2);
    assert_int_equal(notified, 1);
    serve(1);
    assert_int_equal(notified, 2);
    serve(5);
    assert_int_equal(notified, 2);
    assert_false(virtq_pop(&q, &chain));
    assert_int_equal(vd_avail_event(&d), 9);
    /* Several at once that pass it: one interrupt. */
    vd_set_used_event(&d, 10);
    for (int i = 0; i < 4; i++) {
        vd_desc(&d, (unsigned int)i, DATA, 8, WRITE, 0);
        vd_offer(&d, (uint16_t)i);
        assert_true(virtq_pop(&q, &chain));
        virtq_push(&q, (uint16_t)i, 0);
    }
    virtq_flush(&q);
    assert_int_equal(notified, 3);
}

static void test_index_wraps(void **state)
{
    char text[VIRTQ_WHY_MAX];

    fresh(true, true);
    vd_desc(&d, 0, DATA, 8, WRITE, 0);
    q.s.next_avail = q.s.next_used = 65534;
    vd_set_avail_idx(&d, 65534);
    assert_int_equal(virtq_start(&q, text), 0);
    vd_set_used_event(&d, 0);
    serve(1);
    assert_int_equal(notified, 1);
    serve(1);
    assert_int_equal(notified, 1);
    serve(1);
    assert_int_equal(notified, 2);
    assert_int_equal(vd_used_idx(&d), 1);
    assert_int_equal(misused, 0);
}

/* -- what is wrong ------------------------------------------------------------ */

/* Popping is refused for this reason, once, and nothing comes out any more. */
static void assert_misuse(const char *text)
{
    assert_false(virtq_pop(&q, &chain));
    assert_int_equal(misused, 1);
    if (!strstr(why, text))
        fail_msg("\"%s\" does not say \"%s\"", why, text);
    assert_false(virtq_has_chain(&q));
    assert_false(virtq_pop(&q, &chain));
    assert_int_equal(misused, 1);
    assert_int_equal(notified, 0);
}

struct bad_chain {
    const char *name;
    const char *why;
    bool no_indirect;
    uint16_t head;
    struct vring_desc direct[4], table[4];
};

static const struct bad_chain bad_chains[] = {
    {"head beyond the table", "head 8 of 8", .head = SIZE},
    {"head far beyond", "head 65535", .head = 65535},
    {"next beyond the table", "descriptor 8 of 8", .direct = {{DATA, 8, NEXT, SIZE}}},
    {"to itself", "loop", .direct = {{DATA, 8, NEXT, 0}}},
    {"in a circle", "loop", .direct = {{DATA, 8, NEXT, 1}, {DATA, 8, NEXT, 2}, {DATA, 8, NEXT, 0}}},
    {"length 0", "length 0", .direct = {{DATA, 0, 0, 0}}},
    {"length 0, writable, second", "length 0", .direct = {{DATA, 1, NEXT, 1}, {DATA, 0, WRITE, 0}}},
    {"beyond RAM", "not RAM", .direct = {{MEMORY, 8, 0, 0}}},
    {"over the end of RAM", "not RAM", .direct = {{MEMORY - 4, 8, WRITE, 0}}},
    {"at the top of all addresses", "not RAM", .direct = {{UINT64_MAX - 3, 8, WRITE, 0}}},
    {"longer than RAM", "not RAM", .direct = {{0, UINT32_MAX, WRITE, 0}}},
    {"readable after writable", "readable buffer after", .direct = {{DATA, 8, NEXT | WRITE, 1}, {DATA, 8, 0, 0}}},
    {"indirect, not negotiated", "without the feature", true, .direct = {{TABLE, 16, INDIRECT, 0}},
     .table = {{DATA, 8, 0, 0}}},
    {"indirect with next", "with a next one", .direct = {{TABLE, 16, INDIRECT | NEXT, 1}}, .table = {{DATA, 8, 0, 0}}},
    {"indirect of length 0", "table of 0 bytes", .direct = {{TABLE, 0, INDIRECT, 0}}},
    {"indirect of half an entry", "table of 24 bytes", .direct = {{TABLE, 24, INDIRECT, 0}}},
    {"indirect too long", "table of", .direct = {{TABLE, (VIRTQ_CHAIN_MAX + 1) * 16, INDIRECT, 0}}},
    {"indirect of all addresses", "table of", .direct = {{TABLE, 0xfffffff0, INDIRECT, 0}}},
    {"indirect beyond RAM", "not RAM", .direct = {{MEMORY - 16, 32, INDIRECT, 0}}},
    {"indirect in indirect", "within an indirect", .direct = {{TABLE, 32, INDIRECT, 0}},
     .table = {{DATA, 8, NEXT, 1}, {TABLE, 16, INDIRECT, 0}}},
    {"loop in the table", "loop", .direct = {{TABLE, 32, INDIRECT, 0}}, .table = {{DATA, 8, NEXT, 1}, {DATA, 8, NEXT, 0}}},
    {"next beyond the indirect table", "descriptor 2 of 2", .direct = {{TABLE, 32, INDIRECT, 0}},
     .table = {{DATA, 8, NEXT, 2}}},
    {"readable after writable over the border", "readable buffer after",
     .direct = {{DATA, 8, NEXT | WRITE, 1}, {TABLE, 16, INDIRECT, 0}}, .table = {{DATA, 8, 0, 0}}},
    {"bad buffer in the table", "not RAM", .direct = {{TABLE, 16, INDIRECT, 0}}, .table = {{MEMORY, 1, WRITE, 0}}},
};

static void test_bad_chains(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(bad_chains); i++) {
        const struct bad_chain *bad = &bad_chains[i];

        fresh(false, !bad->no_indirect);
        for (unsigned int j = 0; j < 4; j++) {
            const struct vring_desc *e = &bad->direct[j], *t = &bad->table[j];

            vd_desc(&d, j, e->addr, e->len, e->flags, e->next);
            vd_desc_at(&d, TABLE, j, t->addr, t->len, t->flags, t->next);
        }
        vd_offer(&d, bad->head);
        print_message("%s\n", bad->name);
        assert_misuse(bad->why);
        assert_int_equal(q.in_flight, 0);
    }
}

static void test_more_buffers_than_the_device_takes(void **state)
{
    for (unsigned int i = 0; i < ARRAY_SIZE(iov) + 1; i++)
        vd_desc_at(&d, TABLE, i, DATA, 1, i < ARRAY_SIZE(iov) ? NEXT : 0, (uint16_t)(i + 1));
    vd_desc(&d, 0, TABLE, 16 * (ARRAY_SIZE(iov) + 1), INDIRECT, 0);
    vd_offer(&d, 0);
    assert_misuse("more than 16 buffers");
}

static void test_bytes_overflow(void **state)
{
    /* 4 GiB, out of many descriptors for the same memory. */
    static struct iovec many[VIRTQ_CHAIN_MAX];
    const struct mem_config config = {.size = 8 * MiB};
    struct mem *saved = mem, *big;

    assert_int_equal(mem_new(&config, &big), 0);
    mem = big;
    fresh(false, true);
    chain.iov = many;
    chain.capacity = VIRTQ_CHAIN_MAX;
    for (unsigned int i = 0; i < VIRTQ_CHAIN_MAX; i++)
        vd_desc_at(&d, TABLE, i, 0, 8 * MiB, (uint16_t)(i < VIRTQ_CHAIN_MAX - 1 ? NEXT : 0), (uint16_t)(i + 1));
    vd_desc(&d, 0, TABLE, 16 * VIRTQ_CHAIN_MAX, INDIRECT, 0);
    vd_offer(&d, 0);
    assert_misuse("4 GiB");
    mem = saved;
    mem_free(big);
}

static void test_index_jumps(void **state)
{
    vd_desc(&d, 0, DATA, 8, 0, 0);
    vd_set_avail_idx(&d, SIZE + 1);
    assert_misuse("9 ahead");
    fresh(false, true);
    vd_set_avail_idx(&d, UINT16_MAX);
    assert_misuse("ahead");
    fresh(true, true);
    vd_desc(&d, 0, DATA, 8, 0, 0);
    vd_offer(&d, 0);
    assert_true(virtq_pop(&q, &chain));
    vd_set_avail_idx(&d, 0);
    assert_misuse("65535 ahead");
}

static void test_head_twice(void **state)
{
    vd_desc(&d, 0, DATA, 8, 0, 0);
    vd_offer(&d, 0);
    vd_offer(&d, 0);
    assert_true(virtq_pop(&q, &chain));
    assert_misuse("not given back yet");
    assert_int_equal(q.in_flight, 1);
}

static void test_bad_setup(void **state)
{
    static const struct {
        uint16_t size;
        uint64_t desc, avail, used;
        const char *why;
    } setups[] = {
        {0, RING, RING + 4096, RING + 8192, "size 0"},
        {3, RING, RING + 4096, RING + 8192, "size 3"},
        {128, RING, RING + 4096, RING + 8192, "size 128"},
        {8, RING + 8, RING + 4096, RING + 8192, "descriptor table"},
        {8, MEMORY, RING + 4096, RING + 8192, "descriptor table"},
        {8, MEMORY - 64, RING + 4096, RING + 8192, "descriptor table"},
        {8, UINT64_MAX - 15, RING + 4096, RING + 8192, "descriptor table"},
        {8, RING, RING + 4097, RING + 8192, "available ring"},
        {8, RING, MEMORY - 20, RING + 8192, "available ring"},
        {8, RING, RING + 4096, RING + 8194, "used ring"},
        {8, RING, RING + 4096, MEMORY - 68, "used ring"},
        {8, RING, RING + 4096, UINT64_MAX & ~UINT64_C(3), "used ring"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(setups); i++) {
        char text[VIRTQ_WHY_MAX] = "";

        q.s.size = setups[i].size;
        q.s.desc = setups[i].desc;
        q.s.avail = setups[i].avail;
        q.s.used = setups[i].used;
        assert_int_equal(virtq_start(&q, text), -EINVAL);
        assert_false(q.s.ready);
        if (!strstr(text, setups[i].why))
            fail_msg("\"%s\" does not say \"%s\"", text, setups[i].why);
        assert_false(virtq_pop(&q, &chain));
    }
}

static void test_works_again(void **state)
{
    vd_set_avail_idx(&d, 1000);
    assert_misuse("ahead");
    virtq_reset(&q);
    assert_false(q.s.ready);
    fresh(false, true);
    vd_desc(&d, 0, DATA, 8, WRITE, 0);
    serve(20);
    assert_int_equal(notified, 20);
    assert_int_equal(misused, 0);
}

/* -- state -------------------------------------------------------------------- */

static size_t save(uint8_t **ret)
{
    struct state_writer w;
    size_t len;

    state_writer_init(&w);
    state_begin(&w, "queue", 0, 1);
    virtq_save(&q, &w);
    state_end(&w);
    assert_int_equal(state_finish(&w, ret, &len), 0);
    return len;
}

static int restore(struct virtq *to, const uint8_t *data, size_t len)
{
    const struct state_section *s;
    struct state_reader r;
    int err;

    assert_int_equal(state_reader_init(&r, data, len), 0);
    assert_int_equal(state_open(&r, "queue", 0, 1, &s), 0);
    err = virtq_restore(to, &r, s);
    if (err == 0)
        err = state_check_all_read(&r, s);
    state_reader_clear(&r);
    return err;
}

static void test_state(void **state)
{
    char text[VIRTQ_WHY_MAX];
    struct virtq other;
    uint8_t *data;
    size_t len;

    vd_desc(&d, 0, DATA, 8, WRITE, 0);
    vd_desc(&d, 5, DATA, 8, WRITE, 0);
    serve(3);
    vd_offer(&d, 5);
    assert_true(virtq_pop(&q, &chain));
    len = save(&data);
    virtq_init(&other, mem, &owner, NULL, 0, 64);
    assert_int_equal(restore(&other, data, len), 0);
    assert_memory_equal(&other.s, &q.s, sizeof(q.s));
    assert_true(bitmap_test(other.taken, 5));
    assert_int_equal(bitmap_count(other.taken, ARRAY_SIZE(other.taken)), 1);
    assert_int_equal(virtq_start(&other, text), 0);
    /* A queue that the device here has smaller. */
    virtq_init(&other, mem, &owner, NULL, 0, 4);
    assert_int_equal(restore(&other, data, len), -EBADMSG);
    free(data);
    bitmap_set(q.taken, 9);
    len = save(&data);
    virtq_init(&other, mem, &owner, NULL, 0, 64);
    assert_int_equal(restore(&other, data, len), -EBADMSG);
    free(data);
}

/* -- at random ---------------------------------------------------------------- */

/* Whatever stands in the rings: it ends, iovecs stay in RAM and in their array, and what was taken is given back. */
static void test_random_rings(void **state)
{
    uint8_t *ram = mem_ptr(mem, 0, MEMORY);
    struct rng r = rng_seeded(rng_test_seed("virtq"));

    for (unsigned int round = 0; round < 3000; round++) {
        fresh(rng_below(&r, 2), rng_below(&r, 4));
        for (unsigned int i = 0; i < SIZE; i++) {
            vd_desc(&d, i, rng_below(&r, 8) ? TABLE + 16 * rng_below(&r, 64) : rng_next(&r),
                    rng_below(&r, 8) ? 16 * (uint32_t)rng_below(&r, 20) : (uint32_t)rng_next(&r), (uint16_t)rng_below(&r, 8),
                    (uint16_t)rng_below(&r, SIZE + 1));
            vd_put16(&d, d.avail + 4 + 2 * i, (uint16_t)rng_below(&r, SIZE + (round % 16 == 0)));
        }
        for (unsigned int i = 0; i < 64; i++)
            vd_desc_at(&d, TABLE, i, rng_below(&r, MEMORY + 64), (uint32_t)rng_below(&r, 100), (uint16_t)rng_below(&r, 8) & 3,
                       (uint16_t)rng_below(&r, 20));
        vd_set_avail_idx(&d, (uint16_t)rng_below(&r, SIZE + 2));
        while (virtq_pop(&q, &chain)) {
            assert_true(chain.readable + chain.writable <= chain.capacity);
            for (unsigned int i = 0; i < (unsigned int)chain.readable + chain.writable; i++) {
                uint8_t *p = iov[i].iov_base;

                assert_true(p >= ram && p + iov[i].iov_len <= ram + MEMORY && iov[i].iov_len > 0);
            }
            virtq_push(&q, chain.head, chain.writable_bytes);
        }
        virtq_flush(&q);
        assert_int_equal(q.in_flight, 0);
        assert_true(misused <= 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_chain, fresh_plain),
        cmocka_unit_test_setup(test_indirect, fresh_plain),
        cmocka_unit_test_setup(test_unpop_and_retake, fresh_plain),
        cmocka_unit_test_setup(test_copies, fresh_plain),
        cmocka_unit_test(test_dirty),
        cmocka_unit_test_setup(test_flags, fresh_plain),
        cmocka_unit_test_setup(test_flags_of_another, fresh_plain),
        cmocka_unit_test(test_event_index),
        cmocka_unit_test(test_index_wraps),
        cmocka_unit_test(test_bad_chains),
        cmocka_unit_test_setup(test_more_buffers_than_the_device_takes, fresh_plain),
        cmocka_unit_test(test_bytes_overflow),
        cmocka_unit_test_setup(test_index_jumps, fresh_plain),
        cmocka_unit_test_setup(test_head_twice, fresh_plain),
        cmocka_unit_test_setup(test_bad_setup, fresh_plain),
        cmocka_unit_test_setup(test_works_again, fresh_plain),
        cmocka_unit_test_setup(test_state, fresh_plain),
        cmocka_unit_test(test_random_rings),
    };

    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, setup, teardown);
}
