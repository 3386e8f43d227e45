/* The daemon's page of metrics, over a machine without KVM. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/fd.h"
#include "base/util.h"
#include "daemon/metrics.h"
#include "mmu/dirty.h"
#include "qmp-harness.h"
#include "vcpu/vm.h"

struct page {
    struct fixture f;
    struct metrics *metrics;
    char *text;
};

static int setup(void **state)
{
    static const struct fake_options options = {.memory = 4 * MiB, .cpus = 2};
    struct page *p = calloc(1, sizeof(*p));

    assert_non_null(p);
    fixture_init(&p->f, &options);
    assert_int_equal(metrics_new(p->f.events, qmp_server_context(p->f.server), &p->metrics), 0);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct page *p = *state;

    metrics_free(p->metrics);
    fixture_clear(&p->f);
    free(p->text);
    free(p);
    return 0;
}

static void write_page(struct page *p, bool plain)
{
    struct om_writer w;

    free(p->text);
    assert_true(metrics_write(p->metrics, plain, &w));
    byte_write_u8(&w.out, 0);
    p->text = (char *)w.out.data;
}

/* A whole line of the page. */
static bool has(const struct page *p, const char *line)
{
    size_t len = strlen(line);

    for (const char *at = p->text; (at = strstr(at, line)); at += len)
        if ((at == p->text || at[-1] == '\n') && at[len] == '\n')
            return true;
    return false;
}

static void expect(const struct page *p, const char *line)
{
    if (!has(p, line))
        fail_msg("no line \"%s\" in\n%s", line, p->text);
}

static void test_machine(void **state)
{
    struct page *p = *state;

    fake_machine_set_state(p->f.machine, RUN_STATE_PAUSED);
    write_page(p, false);
    expect(p, "# TYPE umbra_build info");
    expect(p, "umbra_build_info{version=\"" PACKAGE_VERSION "\"} 1");
    expect(p, "umbra_vm_state{state=\"paused\"} 1");
    expect(p, "umbra_vm_state{state=\"running\"} 0");
    expect(p, "umbra_vm_memory_bytes 4194304");
    expect(p, "umbra_balloon_memory_bytes 4194304");
    expect(p, "umbra_balloon_given_back_bytes_total 0");
    expect(p, "umbra_vm_vcpus 2");
    expect(p, "umbra_vcpu_exits_total{vcpu=\"1\",reason=\"io_out\"} 4");
    expect(p, "umbra_guest_stall_seconds_total{reason=\"paused\"} 1.500000000");
    expect(p, "# TYPE process_cpu_seconds counter");
    expect(p, "umbra_scrapes_total 0");
    assert_string_equal(p->text + strlen(p->text) - 6, "# EOF\n");
    write_page(p, true);
    expect(p, "# TYPE umbra_vcpu_exits_total counter");
    expect(p, "umbra_scrapes_total 1");
    assert_null(strstr(p->text, "# EOF"));
}

static void test_kvm(void **state)
{
    struct page *p = *state;

    write_page(p, false);
    expect(p, "umbra_kvm_pages_4k 100");
    expect(p, "umbra_kvm_max_mmu_rmap_size 101");
    /* Of both vCPUs. */
    expect(p, "umbra_kvm_exits_total 500");
    expect(p, "# UNIT umbra_kvm_halt_wait_seconds seconds");
    expect(p, "umbra_kvm_halt_wait_seconds_total 0.000000502");
    expect(p, "# TYPE umbra_kvm_halt_wait_duration_seconds histogram");
    expect(p, "umbra_kvm_halt_wait_duration_seconds_bucket{le=\"+Inf\"} 1524");
    expect(p, "# TYPE umbra_kvm_linear_distribution_bytes histogram");
    expect(p, "umbra_kvm_linear_distribution_bytes_bucket{le=\"16\"} 512");
}

static void test_dirty(void **state)
{
    struct page *p = *state;
    struct dirty_log *log = vm_dirty_log(machine_vm(p->f.machine));
    struct dirty_snapshot s;

    assert_int_equal(dirty_log_start(log, "t", DIRTY_START_CHANGES), 0);
    fake_machine_write(p->f.machine, 3, 1);
    /* A scrape harvests nothing. */
    write_page(p, false);
    expect(p, "umbra_dirty_pages_total 0");
    expect(p, "umbra_dirty_log_harvest_seconds_count 0");
    assert_int_equal(dirty_log_snapshot_lock(log, "t", false, &s), 0);
    dirty_log_unlock(log);
    write_page(p, false);
    expect(p, "umbra_dirty_pages_total 1");
    expect(p, "umbra_dirty_log_harvest_seconds_count 1");
    expect(p, "umbra_dirty_log_harvest_seconds_bucket{le=\"+Inf\"} 1");
}

/* The page that a client on the socket gets. */
static char *ask(struct page *p, const char *path, const char *request)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct peer *peer;
    char *line;

    strcpy(addr.sun_path, path);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    peer = peer_adopt(&p->f, fd);
    peer_send(peer, request);
    line = peer_line(peer);
    peer_free(peer);
    return line;
}

static void test_socket(void **state)
{
    struct page *p = *state;
    char dir[] = "/tmp/test-metrics.XXXXXX", path[64], *line;
    struct stat st;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/metrics.sock", dir);
    assert_int_equal(metrics_listen_unix(p->metrics, path), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    line = ask(p, path, "GET /metrics HTTP/1.1\r\n\r\n");
    assert_non_null(strstr(line, "200 OK"));
    free(line);
    line = ask(p, path, "GET / HTTP/1.1\r\n\r\n");
    assert_non_null(strstr(line, "404 Not Found"));
    free(line);
    metrics_free(p->metrics);
    p->metrics = NULL;
    assert_int_equal(rmdir(dir), 0);
}

static void test_tcp(void **state)
{
    struct page *p = *state;

    assert_true(metrics_listen_tcp(p->metrics, "203.0.113.1:1") < 0);
    assert_int_equal(metrics_listen_tcp(p->metrics, "127.0.0.1:0"), 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_machine, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kvm, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dirty, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tcp, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
