/* The limits that --check-host prints, on trees that stand for hosts. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/util.h"
#include "daemon/host-limits.h"

static char root[] = "/tmp/umbra-limits-XXXXXX";

static int make_root(void **state)
{
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    char command[64];

    snprintf(command, sizeof(command), "rm -rf %s", root);
    return system(command);
}

/* A file with its directories. */
static void put(const char *path, const char *text)
{
    char full[256];
    FILE *f;

    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = '\0';
        mkdir(full, 0755);
        *p = '/';
    }
    f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_nothing_there(void **state)
{
    struct host_limits l;

    host_limits_read("/nonexistent", &l);
    assert_true(l.huge_total == 0 && l.huge_free == 0);
    assert_true(l.memory == HOST_NO_LIMIT && l.tasks == HOST_NO_LIMIT);
}

static void test_groups(void **state)
{
    struct host_limits l;

    put("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "64\n");
    put("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "12\n");
    put("/proc/self/cgroup", "4:memory:/old\n0::/machine.slice/umbra@x.service\n");
    put("/sys/fs/cgroup/machine.slice/umbra@x.service/memory.max", "max\n");
    put("/sys/fs/cgroup/machine.slice/umbra@x.service/pids.max", "100\n");
    put("/sys/fs/cgroup/machine.slice/memory.max", "1073741824\n");
    put("/sys/fs/cgroup/machine.slice/pids.max", "2000\n");
    /* None of the group's ancestors. */
    put("/sys/fs/cgroup/memory.max", "5\n");
    host_limits_read(root, &l);
    assert_int_equal(l.huge_total, 64);
    assert_int_equal(l.huge_free, 12);
    assert_int_equal(l.memory, GiB);
    assert_int_equal(l.tasks, 100);

    put("/sys/fs/cgroup/machine.slice/memory.max", "nonsense\n");
    put("/sys/fs/cgroup/machine.slice/umbra@x.service/pids.max", "");
    host_limits_read(root, &l);
    assert_true(l.memory == HOST_NO_LIMIT);
    assert_int_equal(l.tasks, 2000);

    put("/proc/self/cgroup", "0::/\n");
    host_limits_read(root, &l);
    assert_true(l.memory == HOST_NO_LIMIT && l.tasks == HOST_NO_LIMIT);
    put("/proc/self/cgroup", "4:memory:/old\n");
    host_limits_read(root, &l);
    assert_true(l.tasks == HOST_NO_LIMIT);
}

static void test_process(void **state)
{
    struct rlimit limit;
    struct host_limits l;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    host_limits_read("", &l);
    assert_true(l.files == (limit.rlim_cur == RLIM_INFINITY ? HOST_NO_LIMIT : limit.rlim_cur));
}

static void test_print(void **state)
{
    const struct host_limits l = {.huge_total = 64, .huge_free = 12, .memory = 512 * MiB, .tasks = HOST_NO_LIMIT,
                                  .files = 1024, .threads = 7, .locked = HOST_NO_LIMIT};
    _cleanup_free_ char *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);

    host_limits_print(&l, f);
    fclose(f);
    assert_string_equal(text, "huge pages of 2 MiB: 12 of 64 free\n"
                              "memory limit of the control group: 512 MiB\n"
                              "thread limit of the control group: no limit\n"
                              "open files at most: 1024\n"
                              "threads of the user at most: 7\n"
                              "locked memory at most: no limit\n");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_there),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_process),
        cmocka_unit_test(test_print),
    };

    return cmocka_run_group_tests_name("host-limits", tests, make_root, remove_root);
}
