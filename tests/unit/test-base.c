#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/json.h"
#include "base/list.h"
#include "base/log.h"
#include "base/paths.h"
#include "base/size.h"

static void test_size_parse(void **state)
{
    static const struct {
        const char *text;
        int r;
        uint64_t bytes;
    } cases[] = {
        {"0", 0, 0},
        {"512", 0, 512},
        {"4K", 0, 4096},
        {"512M", 0, 512 * MiB},
        {"512MiB", 0, 512 * MiB},
        {"2g", 0, 2 * GiB},
        {"1T", 0, 1024 * GiB},
        {"7B", 0, 7},
        {"18446744073709551615", 0, UINT64_MAX},
        {"18446744073709551616", -ERANGE, 0},
        {"99999999T", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"M", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {" 1", -EINVAL, 0},
        {"1 ", -EINVAL, 0},
        {"1X", -EINVAL, 0},
        {"1KK", -EINVAL, 0},
        {"a", -EINVAL, 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t v = 0;

        print_message("# %s\n", cases[i].text);
        assert_int_equal(size_parse(cases[i].text, &v), cases[i].r);
        assert_int_equal(v, cases[i].bytes);
    }
}

static void test_number_parse(void **state)
{
    uint64_t v = 7;

    assert_int_equal(size_parse_u64("32", 32, &v), 0);
    assert_int_equal(v, 32);
    assert_int_equal(size_parse_u64("0x1F", 32, &v), 0);
    assert_int_equal(v, 31);
    assert_int_equal(size_parse_u64("33", 32, &v), -ERANGE);
    assert_int_equal(size_parse_u64("0x", 32, &v), -EINVAL);
    assert_int_equal(size_parse_u64("+3", 32, &v), -EINVAL);
    assert_int_equal(size_parse_u64("3x", 32, &v), -EINVAL);
    assert_int_equal(v, 31);
}

static void test_size_format(void **state)
{
    char buf[32];

    assert_string_equal(size_format(512, buf, sizeof(buf)), "512 B");
    assert_string_equal(size_format(1536, buf, sizeof(buf)), "1.5 KiB");
    assert_string_equal(size_format(4 * GiB, buf, sizeof(buf)), "4 GiB");
}

/* Random operations against one byte a bit. */
static void test_bitmap_model(void **state)
{
    enum { BITS = 1000 };
    uint64_t map[(BITS + 63) / 64] = {0};
    uint8_t model[BITS] = {0};
    unsigned int seed = 20261120;

    print_message("# seed %u\n", seed);
    for (int round = 0; round < 2000; round++) {
        uint64_t at = (uint64_t)rand_r(&seed) % BITS, n = (uint64_t)rand_r(&seed) % (BITS - at), set, clear, count = 0;

        switch (rand_r(&seed) % 4) {
        case 0:
            bitmap_set_range(map, at, n % 150);
            memset(model + at, 1, n % 150);
            break;
        case 1:
            bitmap_set_atomic(map, at);
            model[at] = 1;
            break;
        case 2:
            memset(map, 0, sizeof(map));
            memset(model, 0, sizeof(model));
            break;
        default:
            bitmap_set(map, at);
            model[at] = 1;
        }
        for (set = at; set < BITS && !model[set]; set++)
            ;
        for (clear = at; clear < BITS && model[clear]; clear++)
            ;
        for (int i = 0; i < BITS; i++)
            count += model[i];
        assert_int_equal(bitmap_next_set(map, BITS, at), set);
        assert_int_equal(bitmap_next_clear(map, BITS, at), clear);
        assert_int_equal(bitmap_count(map, ARRAY_SIZE(map)), count);
        assert_int_equal(bitmap_test(map, at), model[at]);
    }
}

static void test_byte_reader_stops(void **state)
{
    static const uint8_t data[] = {1, 2, 0, 3, 0, 0, 0, 4};
    struct byte_reader r = byte_reader_new(data, sizeof(data));

    assert_int_equal(byte_read_u8(&r), 1);
    assert_int_equal(byte_read_u16(&r), 2);
    assert_int_equal(byte_read_u32(&r), 3);
    assert_false(r.failed);
    assert_int_equal(byte_read_u16(&r), 0);
    assert_true(r.failed);
    assert_int_equal(byte_read_u8(&r), 0);
    assert_null(byte_read(&r, SIZE_MAX));
}

static void test_json_ascii(void **state)
{
    _cleanup_json_ json_t *o = json_object_new_object();
    _cleanup_free_ char *text = NULL;
    uint64_t v = 1;

    json_add_str(o, "k", "a\"\xc3\xa9\xf0\x9f\x98\x80\xff/");
    json_add_i64(o, "neg", -1);
    json_add_u64(o, "big", UINT64_MAX);
    text = json_to_ascii(o, NULL);
    assert_string_equal(
        text, "{\"k\":\"a\\\"\\u00e9\\ud83d\\ude00\\ufffd/\",\"neg\":-1,\"big\":18446744073709551615}");
    assert_int_equal(json_get_u64(o, "neg", &v), -ERANGE);
    assert_int_equal(json_get_u64(o, "k", &v), -EINVAL);
    assert_int_equal(json_get_u64(o, "no", &v), -ENOENT);
    assert_int_equal(v, 1);
    assert_int_equal(json_get_u64(o, "big", &v), 0);
    assert_true(v == UINT64_MAX);
}

static void test_vm_names(void **state)
{
    char dir[16];

    assert_true(vm_name_valid("demo"));
    assert_true(vm_name_valid("a.b-c_9"));
    assert_false(vm_name_valid(""));
    assert_false(vm_name_valid("."));
    assert_false(vm_name_valid("../x"));
    assert_false(vm_name_valid("-x"));
    assert_false(vm_name_valid("a/b"));
    assert_false(vm_name_valid("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));
    assert_int_equal(paths_vm_file("/run/umbra", "x", "control.sock", dir, sizeof(dir)), -ENAMETOOLONG);
}

static void test_list(void **state)
{
    struct item {
        int v;
        struct list_node node;
    } items[3] = {{.v = 1}, {.v = 2}, {.v = 3}}, *i;
    struct list_node head;
    int sum = 0;

    list_init(&head);
    assert_true(list_empty(&head));
    for (int k = 0; k < 3; k++)
        list_append(&head, &items[k].node);
    list_for_each(i, &head, node) {
        sum = sum * 10 + i->v;
        if (i->v == 2)
            list_remove(&i->node);
    }
    assert_int_equal(sum, 123);
    sum = 0;
    list_for_each(i, &head, node)
        sum = sum * 10 + i->v;
    assert_int_equal(sum, 13);
}

static void test_log_limit(void **state)
{
    struct log_limit limit = {0};
    uint32_t suppressed;
    int passed = 0;

    for (int i = 0; i < 1000; i++)
        passed += log_limit_pass(&limit, &suppressed);
    assert_int_equal(passed, 10);
    assert_int_equal(limit.suppressed, 990);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_size_parse),   cmocka_unit_test(test_number_parse), cmocka_unit_test(test_size_format),
        cmocka_unit_test(test_bitmap_model), cmocka_unit_test(test_byte_reader_stops), cmocka_unit_test(test_json_ascii),
        cmocka_unit_test(test_vm_names),     cmocka_unit_test(test_list),         cmocka_unit_test(test_log_limit),
    };

    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
