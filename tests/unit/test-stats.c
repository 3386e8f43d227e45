#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"
#include "vcpu/stats.h"

/* -- a statistics file of our own, laid out as KVM does -- */

#define NAME_SIZE 24u
#define COUNT 5u
#define DESC_OFFSET 64u
#define DESC_STEP (16u + NAME_SIZE)
#define DATA_OFFSET (DESC_OFFSET + COUNT * DESC_STEP)
#define VALUES 9u

struct image {
    uint8_t bytes[DATA_OFFSET + VALUES * 8];
};

static void put_desc(struct image *im, uint32_t i, const char *name, uint32_t flags, int16_t exponent, uint16_t size,
                     uint32_t index, uint32_t bucket)
{
    struct kvm_stats_desc d = {
        .flags = flags, .exponent = exponent, .size = size, .offset = index * 8, .bucket_size = bucket};
    uint8_t *at = im->bytes + DESC_OFFSET + i * DESC_STEP;

    memcpy(at, &d, sizeof(d));
    memset(at + sizeof(d), 0, NAME_SIZE);
    memcpy(at + sizeof(d), name, strlen(name));
}

static struct image sample(void)
{
    struct kvm_stats_header head = {
        .name_size = NAME_SIZE, .num_desc = COUNT, .id_offset = 24, .desc_offset = DESC_OFFSET, .data_offset = DATA_OFFSET};
    struct image im = {{0}};

    memcpy(im.bytes, &head, sizeof(head));
    put_desc(&im, 0, "exits", KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE, 0, 1, 0, 0);
    put_desc(&im, 1, "halt_ns", KVM_STATS_TYPE_LOG_HIST | KVM_STATS_UNIT_SECONDS, -9, 4, 1, 0);
    put_desc(&im, 2, "of_the_future", 9 | KVM_STATS_UNIT_NONE, 0, 1, 5, 0);
    put_desc(&im, 3, "used_bytes", KVM_STATS_TYPE_PEAK | KVM_STATS_UNIT_BYTES | KVM_STATS_BASE_POW2, 10, 1, 6, 0);
    put_desc(&im, 4, "buckets", KVM_STATS_TYPE_LINEAR_HIST | KVM_STATS_UNIT_CYCLES, 0, 2, 7, 100);
    for (uint64_t i = 0; i < VALUES; i++)
        memcpy(im.bytes + DATA_OFFSET + i * 8, &(uint64_t){i + 100}, 8);
    return im;
}

static int file_of(const void *bytes, size_t len)
{
    int fd = memfd_create("stats", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(fd_write_all(fd, bytes, len), 0);
    return fd;
}

static int open_image(const struct image *im, struct kvm_stats_source **ret)
{
    return stats_open_fd(file_of(im->bytes, sizeof(im->bytes)), ret);
}

static void test_values(void **state)
{
    struct image im = sample();
    struct kvm_stats_source *s;
    const struct stats_desc *d;
    uint32_t count;

    assert_int_equal(open_image(&im, &s), 0);
    d = stats_descs(s, &count);
    /* The one of an unknown type is not there. */
    assert_int_equal(count, 4);
    assert_null(stats_find(s, "of_the_future"));
    assert_int_equal(stats_values(s, d)[0], 0);

    assert_int_equal(stats_read(s), 0);
    assert_string_equal(d[0].name, "exits");
    assert_int_equal(d[0].type, STATS_CUMULATIVE);
    assert_int_equal(d[0].base, 10);
    assert_int_equal(stats_values(s, &d[0])[0], 100);

    d = stats_find(s, "halt_ns");
    assert_int_equal(d->type, STATS_LOG_HIST);
    assert_int_equal(d->unit, STATS_SECONDS);
    assert_int_equal(d->exponent, -9);
    assert_int_equal(d->count, 4);
    for (unsigned int i = 0; i < 4; i++)
        assert_int_equal(stats_values(s, d)[i], 101 + i);

    d = stats_find(s, "used_bytes");
    assert_int_equal(d->type, STATS_PEAK);
    assert_int_equal(d->unit, STATS_BYTES);
    assert_int_equal(d->base, 2);
    assert_int_equal(d->exponent, 10);
    assert_int_equal(stats_values(s, d)[0], 106);

    d = stats_find(s, "buckets");
    assert_int_equal(d->type, STATS_LINEAR_HIST);
    assert_int_equal(d->unit, STATS_CYCLES);
    assert_int_equal(d->bucket_size, 100);
    assert_int_equal(stats_values(s, d)[1], 108);
    stats_close(s);
    stats_close(NULL);
}

/* The file grows shorter: the values stay, and come back with it. */
static void test_short_read(void **state)
{
    struct image im = sample();
    struct kvm_stats_source *s;
    const struct stats_desc *d;
    int fd = file_of(im.bytes, sizeof(im.bytes)), ours = dup(fd);

    assert_int_equal(stats_open_fd(fd, &s), 0);
    d = stats_find(s, "exits");
    assert_int_equal(stats_read(s), 0);
    memcpy(im.bytes + DATA_OFFSET, &(uint64_t){7}, 8);
    assert_int_equal(pwrite(ours, im.bytes, sizeof(im.bytes), 0), sizeof(im.bytes));
    assert_int_equal(ftruncate(ours, sizeof(im.bytes) - 1), 0);
    assert_int_equal(stats_read(s), -EIO);
    assert_int_equal(stats_values(s, d)[0], 100);
    assert_int_equal(ftruncate(ours, sizeof(im.bytes)), 0);
    assert_int_equal(stats_read(s), 0);
    assert_int_equal(stats_values(s, d)[0], 7);
    close(ours);
    stats_close(s);
}

struct patch {
    const char *what;
    uint32_t at;
    uint32_t value;
};

#define HEAD(member) offsetof(struct kvm_stats_header, member)
#define DESC(i, member) (DESC_OFFSET + (i)*DESC_STEP + offsetof(struct kvm_stats_desc, member))

static void test_malformed(void **state)
{
    static const struct patch patches[] = {
        {"no descriptors", HEAD(num_desc), 0},
        {"too many descriptors", HEAD(num_desc), 4097},
        {"descriptors beyond the file", HEAD(num_desc), 4096},
        {"all ones", HEAD(num_desc), UINT32_MAX},
        {"no names", HEAD(name_size), 0},
        {"names of one byte", HEAD(name_size), 1},
        {"long names", HEAD(name_size), 257},
        {"very long names", HEAD(name_size), UINT32_MAX},
        {"descriptors in the header", HEAD(desc_offset), 23},
        {"descriptors far away", HEAD(desc_offset), UINT32_MAX},
        {"values in the header", HEAD(data_offset), 0},
        {"an unaligned value", DESC(1, offset), 12},
        {"a value far away", DESC(1, offset), 0xfffffff8},
        {"an empty histogram", DESC(1, exponent), 0},
        {"a counter of many values", DESC(0, exponent), 2u << 16},
        {"an empty name", DESC(0, name), 0},
        {"a name with a blank", DESC(0, name), 0x61206161},
        {"a name with a control byte", DESC(0, name), 0x61611b61},
    };
    struct kvm_stats_source *s = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(patches); i++) {
        struct image im = sample();

        print_message("# %s\n", patches[i].what);
        memcpy(im.bytes + patches[i].at, &patches[i].value, 4);
        assert_int_equal(open_image(&im, &s), -EPROTO);
        assert_null(s);
    }
}

/* What a descriptor may say but the file does not hold is found by reading. */
static void test_values_beyond_the_file(void **state)
{
    static const struct patch patches[] = {
        {"values at the end of the file", HEAD(data_offset), sizeof(struct image)},
        {"values far away", HEAD(data_offset), 0xfffffff0},
        {"a huge histogram", DESC(4, exponent), 0xffffu << 16},
        {"the first value far away", DESC(0, offset), 0xffff8},
    };
    struct kvm_stats_source *s;

    for (size_t i = 0; i < ARRAY_SIZE(patches); i++) {
        struct image im = sample();

        print_message("# %s\n", patches[i].what);
        memcpy(im.bytes + patches[i].at, &patches[i].value, 4);
        assert_int_equal(open_image(&im, &s), 0);
        assert_int_equal(stats_read(s), -EIO);
        assert_int_equal(stats_values(s, stats_find(s, "exits"))[0], 0);
        stats_close(s);
    }
}

static void test_malformed_name_end(void **state)
{
    struct image im = sample();
    struct kvm_stats_source *s = NULL;

    memset(im.bytes + DESC(3, name), 'x', NAME_SIZE);
    assert_int_equal(open_image(&im, &s), -EPROTO);
    /* Of every length, down to none. */
    im = sample();
    for (size_t n = 0; n < DATA_OFFSET; n++)
        assert_int_equal(stats_open_fd(file_of(im.bytes, n), &s), -EPROTO);
    assert_null(s);
}

static void test_every_byte_hostile(void **state)
{
    uint32_t opened = 0;

    for (size_t i = 0; i < DATA_OFFSET; i++) {
        struct kvm_stats_source *s;
        struct image im = sample();
        const struct stats_desc *d;
        uint32_t count;
        uint64_t sum = 0;

        im.bytes[i] ^= 0xff;
        if (open_image(&im, &s) < 0)
            continue;
        opened++;
        (void)stats_read(s);
        d = stats_descs(s, &count);
        for (uint32_t k = 0; k < count; k++)
            for (uint32_t v = 0; v < d[k].count; v++)
                sum += stats_values(s, &d[k])[v];
        assert_true(sum < UINT64_MAX);
        stats_close(s);
    }
    assert_in_range(opened, 1, DATA_OFFSET - 1);
}

/* -- KVM's own -- */

static uint64_t total(const struct kvm_stats_source *s)
{
    uint32_t count;
    const struct stats_desc *d = stats_descs(s, &count);
    uint64_t sum = 0;

    for (uint32_t i = 0; i < count; i++)
        if (d[i].type == STATS_CUMULATIVE)
            sum += stats_values(s, &d[i])[0];
    return sum;
}

static void test_kvm(void **state)
{
    const char *path = getenv("UMBRA_KVM");
    int kvm = open(path ? path : "/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu;
    struct kvm_stats_source *of_vm, *of_vcpu, *none = NULL;
    uint32_t count;
    uint64_t before;

    if (kvm < 0 || ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_BINARY_STATS_FD) <= 0)
        skip();
    assert_int_equal(stats_open(kvm, &none), -ENOTTY);
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    assert_true(vm >= 0 && vcpu >= 0);
    assert_int_equal(stats_open(vm, &of_vm), 0);
    assert_int_equal(stats_open(vcpu, &of_vcpu), 0);
    assert_non_null(stats_descs(of_vm, &count));
    assert_true(count > 0);
    assert_int_equal(stats_read(of_vm), 0);

    assert_int_equal(stats_read(of_vcpu), 0);
    before = total(of_vcpu);
    /* There is no memory at the reset vector, so this exits at once, which KVM counts. */
    (void)ioctl(vcpu, KVM_RUN, 0);
    assert_int_equal(stats_read(of_vcpu), 0);
    assert_true(total(of_vcpu) > before);
    stats_close(of_vcpu);
    stats_close(of_vm);
    close(vcpu);
    close(vm);
    close(kvm);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_short_read),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_values_beyond_the_file),
        cmocka_unit_test(test_malformed_name_end),
        cmocka_unit_test(test_every_byte_hostile),
        cmocka_unit_test(test_kvm),
    };

    return cmocka_run_group_tests_name("stats", tests, NULL, NULL);
}
