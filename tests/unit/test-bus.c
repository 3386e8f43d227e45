#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "vcpu/bus.h"

/* A device that remembers its last access and reads as offset + 0x10 in every byte. */
struct probe {
    uint64_t offset, value;
    unsigned int size, accesses;
    pthread_mutex_t lock;
    bool locked_inside;
};

static uint64_t probe_read(void *opaque, uint64_t offset, unsigned int size)
{
    struct probe *p = opaque;

    p->offset = offset;
    p->size = size;
    p->accesses++;
    p->locked_inside = pthread_mutex_trylock(&p->lock) == EBUSY;
    if (!p->locked_inside)
        pthread_mutex_unlock(&p->lock);
    return (offset + 0x10) * UINT64_C(0x0101010101010101);
}

static void probe_write(void *opaque, uint64_t offset, unsigned int size, uint64_t value)
{
    struct probe *p = opaque;

    p->offset = offset;
    p->size = size;
    p->value = value;
    p->accesses++;
}

static const struct bus_ops probe_ops = {probe_read, probe_write};
static const struct bus_ops deaf_ops = {0};

static void test_regions(void **state)
{
    struct probe p = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct bus *bus;

    assert_int_equal(bus_new(&bus), 0);
    assert_int_equal(bus_add(bus, BUS_PIO, 0x3f8, 8, "a", &probe_ops, &p, NULL), 0);
    /* Overlaps of every kind. */
    assert_int_equal(bus_add(bus, BUS_PIO, 0x3f8, 8, "b", &probe_ops, &p, NULL), -EEXIST);
    assert_int_equal(bus_add(bus, BUS_PIO, 0x3ff, 1, "b", &probe_ops, &p, NULL), -EEXIST);
    assert_int_equal(bus_add(bus, BUS_PIO, 0x3f0, 9, "b", &probe_ops, &p, NULL), -EEXIST);
    assert_int_equal(bus_add(bus, BUS_PIO, 0x3f0, 0x20, "b", &probe_ops, &p, NULL), -EEXIST);
    /* Neighbours, and the same numbers in the other space. */
    assert_int_equal(bus_add(bus, BUS_PIO, 0x3f0, 8, "b", &probe_ops, &p, NULL), 0);
    assert_int_equal(bus_add(bus, BUS_PIO, 0x400, 1, "c", &probe_ops, &p, NULL), 0);
    assert_int_equal(bus_add(bus, BUS_MMIO, 0x3f8, 8, "m", &probe_ops, &p, NULL), 0);
    /* What is no range. */
    assert_int_equal(bus_add(bus, BUS_PIO, 0x500, 0, "z", &probe_ops, &p, NULL), -EINVAL);
    assert_int_equal(bus_add(bus, BUS_PIO, 0xffff, 2, "z", &probe_ops, &p, NULL), -EINVAL);
    assert_int_equal(bus_add(bus, BUS_MMIO, UINT64_MAX, 2, "z", &probe_ops, &p, NULL), -EINVAL);
    assert_int_equal(bus_add(bus, BUS_MMIO, UINT64_MAX, 1, "top", &probe_ops, &p, NULL), 0);
    bus_remove(bus, &p);
    assert_int_equal(bus_add(bus, BUS_PIO, 0x3f0, 0x20, "b", &probe_ops, &p, NULL), 0);
    bus_free(bus);
}

static void test_access(void **state)
{
    struct probe p = {.lock = PTHREAD_MUTEX_INITIALIZER};
    uint8_t data[8];
    uint32_t v = 0x11223344;
    struct bus *bus;

    assert_int_equal(bus_new(&bus), 0);
    assert_int_equal(bus_add(bus, BUS_MMIO, 0x1000, 0x10, "p", &probe_ops, &p, &p.lock), 0);
    bus_read(bus, BUS_MMIO, 0x1004, data, 4);
    assert_memory_equal(data, "\x14\x14\x14\x14", 4);
    assert_int_equal(p.offset, 4);
    assert_int_equal(p.size, 4);
    assert_true(p.locked_inside);
    assert_int_equal(pthread_mutex_trylock(&p.lock), 0);
    pthread_mutex_unlock(&p.lock);
    bus_write(bus, BUS_MMIO, 0x100c, &v, 4);
    assert_int_equal(p.value, 0x11223344);
    assert_int_equal(p.offset, 12);
    /* Across the end, and of an odd size: byte by byte, the rest unclaimed. */
    p.accesses = 0;
    bus_read(bus, BUS_MMIO, 0x100e, data, 4);
    assert_memory_equal(data, "\x1e\x1f\xff\xff", 4);
    assert_int_equal(p.accesses, 2);
    assert_int_equal(bus_unclaimed(bus), 2);
    bus_read(bus, BUS_MMIO, 0x1000, data, 3);
    assert_memory_equal(data, "\x10\x11\x12", 3);
    bus_write(bus, BUS_MMIO, 0x0fff, &v, 2);
    assert_int_equal(p.offset, 0);
    assert_int_equal(p.value, 0x33);
    /* Nobody there. */
    memset(data, 0, sizeof(data));
    bus_read(bus, BUS_PIO, 0x1004, data, 2);
    assert_memory_equal(data, "\xff\xff", 2);
    bus_write(bus, BUS_PIO, 0xffff, &v, 4);
    bus_free(bus);
}

static void test_missing_callbacks(void **state)
{
    uint32_t v = 0;
    struct bus *bus;

    assert_int_equal(bus_new(&bus), 0);
    assert_int_equal(bus_add(bus, BUS_PIO, 0x10, 4, "deaf", &deaf_ops, NULL, NULL), 0);
    bus_write(bus, BUS_PIO, 0x10, &v, 4);
    bus_read(bus, BUS_PIO, 0x10, &v, 4);
    assert_int_equal(v, 0xffffffff);
    bus_free(bus);
}

/* Many regions added in random order are all found, and the gaps between them are not. */
static void test_many(void **state)
{
    enum { N = 200 };
    static struct probe probes[N];
    unsigned int seed = 7, order[N];
    struct bus *bus;
    uint8_t byte;

    print_message("# seed %u\n", seed);
    assert_int_equal(bus_new(&bus), 0);
    for (unsigned int i = 0; i < N; i++)
        order[i] = i;
    for (unsigned int i = N - 1; i > 0; i--) {
        unsigned int j = (unsigned int)rand_r(&seed) % (i + 1), t = order[i];

        order[i] = order[j];
        order[j] = t;
    }
    for (unsigned int i = 0; i < N; i++)
        assert_int_equal(bus_add(bus, BUS_MMIO, order[i] * 0x100, 0x80, "n", &probe_ops, &probes[order[i]], NULL), 0);
    for (unsigned int i = 0; i < N; i++) {
        bus_read(bus, BUS_MMIO, i * 0x100 + 0x7f, &byte, 1);
        assert_int_equal(probes[i].accesses, 1);
        assert_int_equal(probes[i].offset, 0x7f);
        bus_read(bus, BUS_MMIO, i * 0x100 + 0x80, &byte, 1);
        assert_int_equal(byte, 0xff);
    }
    assert_int_equal(bus_unclaimed(bus), N);
    bus_free(bus);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_regions),
        cmocka_unit_test(test_access),
        cmocka_unit_test(test_missing_callbacks),
        cmocka_unit_test(test_many),
    };

    return cmocka_run_group_tests_name("bus", tests, NULL, NULL);
}
