/* Pages of metrics in both formats. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/openmetrics.h"
#include "base/util.h"

static void write_page(struct om_writer *w, bool plain)
{
    static const struct om_family build = {"t_build", OM_INFO, NULL, "Version."};
    static const struct om_family exits = {"t_exits", OM_COUNTER, NULL, "Exits."};
    static const struct om_family stall = {"t_stall_seconds", OM_COUNTER, "seconds", "Stalls."};
    static const struct om_family size = {"t_size_bytes", OM_GAUGE, "bytes", "Size."};
    static const struct om_family took = {"t_took_seconds", OM_HISTOGRAM, "seconds", "Time."};
    static const double bounds[] = {0.001, 1e-5 * 1e3}, sum = 1.5;
    static const uint64_t buckets[] = {1, 0, 2};
    static const struct om_label labels[] = {{"vcpu", "0"}, {"reason", "a\"b\\c\nd"}};

    om_start(w, plain);
    om_begin(w, &build);
    om_u64(w, &(struct om_label){"version", "1.2"}, 1, 1);
    om_begin(w, &exits);
    om_u64(w, labels, 2, UINT64_MAX);
    om_single_ns(w, &stall, UINT64_C(12000000034));
    om_begin(w, &size);
    om_double(w, NULL, 0, 0.1);
    om_double(w, NULL, 0, NAN);
    om_double(w, NULL, 0, -INFINITY);
    om_begin(w, &took);
    om_histogram(w, bounds, buckets, 3, &sum);
    om_histogram(w, bounds, buckets, 1, NULL);
}

static void expect(bool plain, const char *want)
{
    struct om_writer w;

    write_page(&w, plain);
    assert_true(om_finish(&w));
    byte_write_u8(&w.out, 0);
    assert_string_equal((char *)w.out.data, want);
    byte_writer_clear(&w.out);
}

static void test_openmetrics(void **state)
{
    expect(false, "# HELP t_build Version.\n# TYPE t_build info\nt_build_info{version=\"1.2\"} 1\n"
                  "# HELP t_exits Exits.\n# TYPE t_exits counter\n"
                  "t_exits_total{vcpu=\"0\",reason=\"a\\\"b\\\\c\\nd\"} 18446744073709551615\n"
                  "# HELP t_stall_seconds Stalls.\n# TYPE t_stall_seconds counter\n# UNIT t_stall_seconds seconds\n"
                  "t_stall_seconds_total 12.000000034\n"
                  "# HELP t_size_bytes Size.\n# TYPE t_size_bytes gauge\n# UNIT t_size_bytes bytes\n"
                  "t_size_bytes 0.1\nt_size_bytes NaN\nt_size_bytes -Inf\n"
                  "# HELP t_took_seconds Time.\n# TYPE t_took_seconds histogram\n# UNIT t_took_seconds seconds\n"
                  "t_took_seconds_bucket{le=\"0.001\"} 1\nt_took_seconds_bucket{le=\"0.01\"} 1\n"
                  "t_took_seconds_bucket{le=\"+Inf\"} 3\nt_took_seconds_sum 1.5\nt_took_seconds_count 3\n"
                  "t_took_seconds_bucket{le=\"+Inf\"} 1\n# EOF\n");
}

static void test_plain(void **state)
{
    expect(true, "# HELP t_build_info Version.\n# TYPE t_build_info gauge\nt_build_info{version=\"1.2\"} 1\n"
                 "# HELP t_exits_total Exits.\n# TYPE t_exits_total counter\n"
                 "t_exits_total{vcpu=\"0\",reason=\"a\\\"b\\\\c\\nd\"} 18446744073709551615\n"
                 "# HELP t_stall_seconds_total Stalls.\n# TYPE t_stall_seconds_total counter\n"
                 "t_stall_seconds_total 12.000000034\n"
                 "# HELP t_size_bytes Size.\n# TYPE t_size_bytes gauge\n"
                 "t_size_bytes 0.1\nt_size_bytes NaN\nt_size_bytes -Inf\n"
                 "# HELP t_took_seconds Time.\n# TYPE t_took_seconds histogram\n"
                 "t_took_seconds_bucket{le=\"0.001\"} 1\nt_took_seconds_bucket{le=\"0.01\"} 1\n"
                 "t_took_seconds_bucket{le=\"+Inf\"} 3\nt_took_seconds_sum 1.5\nt_took_seconds_count 3\n"
                 "t_took_seconds_bucket{le=\"+Inf\"} 1\n");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openmetrics),
        cmocka_unit_test(test_plain),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
