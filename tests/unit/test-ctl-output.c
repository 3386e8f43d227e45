/* What vmctl prints: numbers, tables, statistics. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "ctl/format.h"
#include "ctl/stats.h"
#include "ctl/table.h"

static void test_numbers(void **state)
{
    char b[FMT_MAX];

    assert_string_equal(fmt_count(0, true, b, sizeof(b)), "0");
    assert_string_equal(fmt_count(999, true, b, sizeof(b)), "999");
    assert_string_equal(fmt_count(1000, true, b, sizeof(b)), "1,000");
    assert_string_equal(fmt_count(1000, false, b, sizeof(b)), "1000");
    assert_string_equal(fmt_count(UINT64_MAX, true, b, sizeof(b)), "18,446,744,073,709,551,615");
    assert_string_equal(fmt_duration(0.04, b, sizeof(b)), "0.0 s");
    assert_string_equal(fmt_duration(9.94, b, sizeof(b)), "9.9 s");
    assert_string_equal(fmt_duration(59.9, b, sizeof(b)), "59 s");
    assert_string_equal(fmt_duration(185, b, sizeof(b)), "3 min 5 s");
    assert_string_equal(fmt_duration(3600 * 23 + 61, b, sizeof(b)), "23 h 1 min");
    assert_string_equal(fmt_duration(86400 * 5 + 3 * 3600, b, sizeof(b)), "5 d 3 h");
    assert_string_equal(fmt_rate(0, b, sizeof(b)), "0 B/s");
    assert_string_equal(fmt_rate(1023.99, b, sizeof(b)), "1.0 KiB/s");
    assert_string_equal(fmt_rate(48.2 * 1024 * 1024, b, sizeof(b)), "48.2 MiB/s");
    assert_string_equal(fmt_share(0, b, sizeof(b)), "0 %");
    assert_string_equal(fmt_share(0.0001, b, sizeof(b)), "<0.1 %");
    assert_string_equal(fmt_share(0.094, b, sizeof(b)), "9.4 %");
    assert_string_equal(fmt_share(0.9999, b, sizeof(b)), "100 %");
    assert_string_equal(fmt_share(1, b, sizeof(b)), "100 %");
}

/* Nothing from elsewhere may move the cursor or ring the bell. */
static void test_safe(void **state)
{
    char b[64], tiny[6];

    assert_string_equal(fmt_safe("caf\xc3\xa9 \x1b[31m\a\x7f\n", b, sizeof(b)), "caf\xc3\xa9 \\x1b[31m\\x07\\x7f\\x0a");
    assert_string_equal(fmt_safe("\xc2\x9b" "31m", b, sizeof(b)), "\\x9b31m");
    assert_string_equal(fmt_safe("abc\x1b" "def", tiny, sizeof(tiny)), "abc");
    assert_string_equal(fmt_safe("", b, sizeof(b)), "");
}

static char *printed(const struct table *t)
{
    char *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);

    table_print(t, f);
    fclose(f);
    return text;
}

static void fill(struct table *t, const char *const *cells, size_t count)
{
    for (size_t i = 0; i < count; i++)
        table_cell(t, "%s", cells[i]);
}

static void test_table(void **state)
{
    static const char *const cells[] = {"NAME", "STATE", "VCPUS", "NOTE", "a",       "running", "2",  "",
                                        "long-name", "x",  "16",    "",   "\xc3\xa9", "",        "1,000", ""};
    _cleanup_table_ struct table *t = table_new(4, "llrl");
    _cleanup_free_ char *text = NULL;

    fill(t, cells, ARRAY_SIZE(cells));
    text = printed(t);
    /* NOTE is left out; no line ends in blanks; a UTF-8 sequence is as wide as one letter. */
    assert_string_equal(text, "NAME       STATE    VCPUS\n"
                              "a          running      2\n"
                              "long-name  x           16\n"
                              "\xc3\xa9                   1,000\n");
    assert_int_equal(table_width(t), strlen("NAME       STATE    VCPUS"));
}

static void test_table_edges(void **state)
{
    static const char *const cells[] = {"A", "B", "1", "2"};
    _cleanup_table_ struct table *t = table_new(2, "l");
    _cleanup_free_ char *header_only = NULL, *escaped = NULL, *none = printed(NULL);

    fill(t, cells, 2);
    header_only = printed(t);
    assert_string_equal(header_only, "");
    assert_int_equal(table_width(t), 0);
    /* A row that is not complete is not printed. */
    fill(t, cells + 2, 2);
    table_cell(t, "not shown");
    escaped = printed(t);
    assert_string_equal(escaped, "A  B\n1  2\n");
    assert_string_equal(none, "");
    assert_int_equal(table_width(NULL), 0);
    table_cell(NULL, "x");
}

/* -- statistics -- */

#define VM_ANSWER \
    "[{\"provider\": \"kvm\", \"stats\": [{\"name\": \"flush\", \"value\": 12}, {\"name\": \"exits\", \"value\": 1}]}," \
    " {\"provider\": \"umbra\", \"stats\": [{\"name\": \"exits\", \"value\": 5}]}]"
#define VCPU_ANSWER \
    "[{\"provider\": \"kvm\", \"qom-path\": \"/machine/cpu[0]\", \"stats\": [{\"name\": \"exits\", \"value\": 100}," \
    "  {\"name\": \"hist\", \"value\": [1, 2, 3]}, {\"name\": \"on\", \"value\": true}]}," \
    " {\"provider\": \"kvm\", \"qom-path\": \"/machine/cpu[1]\", \"stats\": [{\"name\": \"exits\", \"value\": 200}," \
    "  {\"name\": \"hist\", \"value\": [0, 0, 1, 4]}, {\"name\": \"on\", \"value\": false}]}," \
    " {\"provider\": \"umbra\", \"qom-path\": \"/machine/cpu[0]\", \"stats\": [{\"name\": \"io\", \"value\": 7}]}," \
    " {\"provider\": \"umbra\", \"qom-path\": \"/machine/cpu[1]\", \"stats\": [{\"name\": \"io\", \"value\": 8}]}]"
#define SCHEMAS \
    "[{\"provider\": \"kvm\", \"target\": \"vm\", \"stats\": [{\"name\": \"flush\", \"type\": \"cumulative\"}," \
    "  {\"name\": \"unknown\", \"type\": \"peak\"}]}, {\"provider\": \"kvm\", \"target\": \"vcpu\", \"stats\": [" \
    "  {\"name\": \"exits\", \"type\": \"cumulative\", \"unit\": \"seconds\", \"base\": 10, \"exponent\": -9}," \
    "  {\"name\": \"hist\", \"type\": \"linear-histogram\", \"bucket-size\": 10, \"unit\": \"bytes\", \"base\": 2," \
    "   \"exponent\": 10}, {\"name\": \"on\", \"type\": \"instant\", \"unit\": \"boolean\"}]}]"

static const struct stats_row *row(const struct stats_set *s, bool of_vm, const char *provider, const char *name)
{
    const struct stats_row *r = stats_find(s, of_vm, provider, name);

    assert_non_null(r);
    return r;
}

static void test_stats(void **state)
{
    _cleanup_json_ json_t *vm = json_tokener_parse(VM_ANSWER), *vcpus = json_tokener_parse(VCPU_ANSWER),
                          *schemas = json_tokener_parse(SCHEMAS);
    _cleanup_stats_ struct stats_set s = {0};
    const struct stats_row *r;
    uint64_t sum = 0;

    assert_int_equal(stats_read(&s, vm, vcpus, schemas), 0);
    assert_int_equal(s.vcpus, 2);
    assert_int_equal(s.count, 7);
    r = row(&s, true, "kvm", "flush");
    assert_int_equal(r->total, 12);
    assert_true(r->cumulative);
    assert_null(r->per_vcpu);
    /* One name in three places. */
    assert_int_equal(row(&s, true, "kvm", "exits")->total, 1);
    assert_int_equal(row(&s, true, "umbra", "exits")->total, 5);
    r = row(&s, false, "kvm", "exits");
    assert_int_equal(r->total, 300);
    assert_int_equal(r->per_vcpu[0], 100);
    assert_int_equal(r->per_vcpu[1], 200);
    assert_string_equal(r->unit, "ns");
    r = row(&s, false, "kvm", "hist");
    assert_true(r->histogram && r->linear && r->cumulative);
    assert_int_equal(r->total, 11);
    assert_int_equal(r->bucket_count, 4);
    assert_int_equal(r->buckets[2], 4);
    assert_int_equal(r->buckets[3], 4);
    assert_int_equal(r->per_vcpu[1], 5);
    assert_string_equal(r->unit, "KiB");
    assert_int_equal(row(&s, false, "kvm", "on")->total, 1);
    /* The second provider's elements belong to the same two vCPUs. */
    r = row(&s, false, "umbra", "io");
    assert_int_equal(r->per_vcpu[0], 7);
    assert_int_equal(r->per_vcpu[1], 8);
    assert_int_equal(stats_sum(vcpus, "exits", &sum), 0);
    assert_int_equal(sum, 300);
    assert_int_equal(stats_sum(vcpus, "io", &sum), -ENOENT);
}

/* Whatever a daemon answers, it is read or left out. */
static void test_odd_stats(void **state)
{
    static const char *const answers[] = {
        "null", "3", "[]", "{}", "[1, null, \"x\"]", "[{\"provider\": \"kvm\"}]", "[{\"provider\": 3, \"stats\": []}]",
        "[{\"provider\": \"kvm\", \"stats\": {}}]", "[{\"provider\": \"kvm\", \"stats\": [1, {}, {\"name\": 3}]}]",
        "[{\"provider\": \"kvm\", \"stats\": [{\"name\": \"a\", \"value\": \"text\"}, {\"name\": \"b\", \"value\": -3}]}]",
        "[{\"provider\": \"kvm\", \"stats\": [{\"name\": \"h\", \"value\": [-1, \"x\", null]}]}]",
        "[{\"provider\": \"kvm\", \"target\": \"vcpu\", \"stats\": [{\"name\": \"a\", \"type\": 3, \"exponent\": \"x\"}]}]",
    };

    char text[] = "zzz", *pattern = text;

    for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
        _cleanup_json_ json_t *o = json_tokener_parse(answers[i]);
        _cleanup_stats_ struct stats_set s = {0};

        print_message("# %s\n", answers[i]);
        assert_int_equal(stats_read(&s, o, o, o), 0);
        for (size_t k = 0; k < s.count; k++)
            assert_int_equal(s.rows[k].total, 0);
        stats_filter(o, &pattern, 1);
    }
}

static void test_filter(void **state)
{
    _cleanup_json_ json_t *vcpus = json_tokener_parse(VCPU_ANSWER);
    _cleanup_stats_ struct stats_set s = {0};
    char first[] = "e*s", second[] = "io", *patterns[] = {first, second};

    assert_true(stats_wanted("anything", NULL, 0));
    assert_true(stats_wanted("exits", patterns, 2));
    assert_false(stats_wanted("hist", patterns, 2));
    stats_filter(vcpus, patterns, 2);
    assert_int_equal(stats_read(&s, NULL, vcpus, NULL), 0);
    assert_int_equal(s.count, 2);
    assert_int_equal(row(&s, false, "kvm", "exits")->total, 300);
    assert_int_equal(row(&s, false, "umbra", "io")->total, 15);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers), cmocka_unit_test(test_safe),      cmocka_unit_test(test_table),
        cmocka_unit_test(test_table_edges), cmocka_unit_test(test_stats), cmocka_unit_test(test_odd_stats),
        cmocka_unit_test(test_filter),
    };

    return cmocka_run_group_tests_name("ctl-output", tests, NULL, NULL);
}
