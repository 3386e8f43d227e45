/* Pages of VMs that may say anything: what is taken, how it comes out again, what is refused. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "exporter/facts.h"
#include "exporter/page.h"

#define GAUGE "# TYPE umbra_x gauge\n"

static int add(struct page_merge *m, const char *vm, const char *text, char *error)
{
    return page_merge_add(m, vm, text, strlen(text), error);
}

static char *merged(const struct page_merge *m, bool plain)
{
    struct om_writer w;

    om_start(&w, plain);
    page_merge_write(m, &w);
    assert_true(om_finish(&w));
    byte_write_u8(&w.out, 0);
    return (char *)w.out.data;
}

static void test_merge(void **state)
{
    static const char a[] = "# HELP umbra_exits Exits.\n# TYPE umbra_exits counter\n"
                            "umbra_exits_total{vcpu=\"0\",reason=\"a\\\"b\\\\\"} 18446744073709551615\n"
                            "# TYPE umbra_t_seconds histogram\n# UNIT umbra_t_seconds seconds\n"
                            "umbra_t_seconds_bucket{le=\"+Inf\"} 1\numbra_t_seconds_sum 1.5e-3\numbra_t_seconds_count 1\n# EOF\n";
    static const char b[] = "# TYPE process_threads gauge\nprocess_threads NaN\n"
                            "# TYPE umbra_exits counter\numbra_exits_total 3\n"
                            "# TYPE umbra_build info\numbra_build_info{version=\"1\"} 1\n# EOF\n";
    char error[PAGE_ERROR_MAX], *text;
    struct page_merge *m;

    assert_int_equal(page_merge_new(&m), 0);
    assert_int_equal(add(m, "one", a, error), 0);
    assert_int_equal(add(m, "two", b, error), 0);
    text = merged(m, false);
    assert_string_equal(text, "# HELP process_threads process_threads\n# TYPE process_threads gauge\n"
                              "process_threads{vm=\"two\"} NaN\n"
                              "# HELP umbra_build umbra_build\n# TYPE umbra_build info\n"
                              "umbra_build_info{vm=\"two\",version=\"1\"} 1\n"
                              "# HELP umbra_exits Exits.\n# TYPE umbra_exits counter\n"
                              "umbra_exits_total{vm=\"one\",vcpu=\"0\",reason=\"a\\\"b\\\\\"} 18446744073709551615\n"
                              "umbra_exits_total{vm=\"two\"} 3\n"
                              "# HELP umbra_t_seconds umbra_t_seconds\n# TYPE umbra_t_seconds histogram\n"
                              "# UNIT umbra_t_seconds seconds\numbra_t_seconds_bucket{vm=\"one\",le=\"+Inf\"} 1\n"
                              "umbra_t_seconds_sum{vm=\"one\"} 1.5e-3\numbra_t_seconds_count{vm=\"one\"} 1\n# EOF\n");
    free(text);
    text = merged(m, true);
    assert_non_null(strstr(text, "# TYPE umbra_exits_total counter\n"));
    assert_non_null(strstr(text, "# TYPE umbra_build_info gauge\n"));
    free(text);
    /* A VM that has another idea of a metric keeps it to itself. */
    assert_int_equal(add(m, "three", "# TYPE umbra_exits gauge\numbra_exits 5\n# EOF\n", error), 0);
    assert_int_equal(page_merge_left_out(m), 1);
    text = merged(m, false);
    assert_null(strstr(text, "three"));
    free(text);
    page_merge_free(m);
}

static void test_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "# EOF",
        "\n# EOF\n",
        GAUGE "umbra_x 1\n",
        GAUGE "umbra_x 1\n# EOF\n# EOF\n",
        GAUGE "umbra_x 1\n# EOF\nmore\n",
        "umbra_x 1\n# EOF\n",
        "# HELP umbra_x x\numbra_x 1\n# EOF\n",
        "# TYPE umbra_x summary\n# EOF\n",
        "# TYPE umbra_x gauge \n# EOF\n",
        "# TYPE umbra_x gauge\n# TYPE umbra_x counter\n# EOF\n",
        "# TYPE other_x gauge\n# EOF\n",
        "# TYPE umbra_vm_up gauge\n# EOF\n",
        "# TYPE umbra_vm_up_and_away gauge\n# EOF\n",
        "# TYPE umbra_exporter_build info\n# EOF\n",
        GAUGE "# TYPE umbra_y gauge\n" GAUGE "# EOF\n",
        "# TYPE 9 gauge\n# EOF\n",
        "# a comment\n# EOF\n",
        "# HELP umbra_x a\\nb\n# EOF\n",
        "# HELP umbra_x \"\n# EOF\n",
        "# HELP umbra_x \xff\n# EOF\n",
        "# HELP umbra_x \x1b[2J\n# EOF\n",
        "# TYPE umbra_x gauge\n# UNIT umbra_x seconds\n# EOF\n",
        "# UNIT umbra_seconds seconds more\n# EOF\n",
        "# UNIT seconds seconds\n# EOF\n",
        GAUGE "umbra_x_total 1\n# EOF\n",
        "# TYPE umbra_x counter\numbra_x 1\n# EOF\n",
        "# TYPE umbra_x histogram\numbra_x_total 1\n# EOF\n",
        GAUGE "umbra_y 1\n# EOF\n",
        GAUGE "umbra_x 1\numbra_x 2\n# EOF\n",
        GAUGE "umbra_x{a=\"1\"} 1\numbra_x{a=\"1\"} 1\n# EOF\n",
        GAUGE "umbra_x{vm=\"other\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"1\",a=\"2\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"1\" 1\n# EOF\n",
        GAUGE "umbra_x{a=1} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"1\",} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"\\x\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"\\n\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"\xc0\x80\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"\xed\xa0\x80\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"\xf4\x90\x80\x80\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"\xe2\x82\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"\x07\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"\xc2\x9b\"} 1\n# EOF\n",
        GAUGE "umbra_x{a=\"1\",b=\"\",c=\"\",d=\"\",e=\"\",f=\"\",g=\"\",h=\"\",i=\"\"} 1\n# EOF\n",
        GAUGE "umbra_x\n# EOF\n",
        GAUGE "umbra_x \n# EOF\n",
        GAUGE "umbra_x  1\n# EOF\n",
        GAUGE "umbra_x 1 \n# EOF\n",
        GAUGE "umbra_x 1 1700000000\n# EOF\n",
        GAUGE "umbra_x 1 # {a=\"b\"} 1\n# EOF\n",
        GAUGE "umbra_x one\n# EOF\n",
        GAUGE "umbra_x 0x10\n# EOF\n",
        GAUGE "umbra_x 1e\n# EOF\n",
        GAUGE "umbra_x .\n# EOF\n",
        GAUGE "umbra_x -\n# EOF\n",
        GAUGE "umbra_x nan\n# EOF\n",
        GAUGE "umbra_x 1,5\n# EOF\n",
        GAUGE "umbra_x 123456789012345678901234567890123\n# EOF\n",
    };
    struct page_merge *m;
    char *text;

    assert_int_equal(page_merge_new(&m), 0);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char error[PAGE_ERROR_MAX] = "";

        if (add(m, "v", bad[i], error) != -EPROTO || strncmp(error, "line ", 5) != 0)
            fail_msg("taken, or without a reason (%s): %s", error, bad[i]);
    }
    /* And nothing of any of them is there. */
    text = merged(m, false);
    assert_string_equal(text, "# EOF\n");
    free(text);
    page_merge_free(m);
}

/* One more than a limit of everything that has one. */
static void expect_too_much(const char *before, const char *behind, unsigned int times, const char *start, const char *why)
{
    char error[PAGE_ERROR_MAX], *page, *p;

    page = malloc(strlen(start) + (strlen(before) + strlen(behind) + 16) * times + 8);
    assert_non_null(page);
    p = stpcpy(page, start);
    for (unsigned int i = 0; i < times; i++)
        p += sprintf(p, "%s%u%s", before, i, behind);
    strcpy(p, "# EOF\n");
    assert_int_equal(page_read(page, strlen(page), NULL, NULL, error), -EPROTO);
    if (!strstr(error, why))
        fail_msg("%s", error);
    free(page);
}

static void test_limits(void **state)
{
    char line[PAGE_MAX_LINE + 64];

    expect_too_much("umbra_x{a=\"", "\"} 1\n", PAGE_MAX_SAMPLES + 1, GAUGE, "samples");
    expect_too_much("# TYPE umbra_x", " gauge\n", PAGE_MAX_FAMILIES + 1, "", "families");
    memset(line, 'x', sizeof(line));
    line[PAGE_MAX_LINE] = '\0';
    expect_too_much(line, "\n", 1, "", "longer than");
    expect_too_much("# HELP umbra_x x", "\n", PAGE_MAX_SIZE / 16, "", "the page has");
}

static void test_facts(void **state)
{
    static const char page[] = "# TYPE umbra_vcpu_exits counter\numbra_vcpu_exits_total{vcpu=\"0\",reason=\"io_in\"} 1\n"
                               "umbra_vcpu_exits_total{vcpu=\"1\",reason=\"io_in\"} 2\n"
                               "# TYPE umbra_vm_vcpus gauge\numbra_vm_vcpus 2\n"
                               "# TYPE umbra_dirty_pages counter\numbra_dirty_pages_total +Inf\n# EOF\n";
    const struct collect_page good = {.vm = "v", .text = page, .len = sizeof(page) - 1};
    const struct collect_page bad = {.vm = "v", .text = "x", .len = 1}, none = {.vm = "v", .error = "nobody listens"};
    json_t *o = facts_of(&good);

    assert_string_equal(json_object_to_json_string_ext(o, 0), "{\"exits\":{\"io_in\":3.0},\"vcpus\":2.0,\"name\":\"v\",\"up\":true}");
    json_object_put(o);
    o = facts_of(&bad);
    assert_string_equal(json_object_to_json_string_ext(o, 0), "{\"name\":\"v\",\"up\":false,\"error\":\"its metrics make no sense\"}");
    json_object_put(o);
    o = facts_of(&none);
    assert_string_equal(json_object_to_json_string_ext(o, 0), "{\"name\":\"v\",\"up\":false,\"error\":\"nobody listens\"}");
    json_object_put(o);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_facts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
