#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"
#include "mmu/mem.h"
#include "vcpu/host.h"
#include "vcpu/vm.h"

/* -- /sys/module -- */

struct sysfs {
    const char *what;
    const char *dirs[3]; /* modules; made with their "parameters" */
    const char *parameter, *value;
    const char *module;
    enum host_paging paging;
    const char *how;
};

static const struct sysfs cases[] = {
    {"pvm", {"kvm", "kvm_pvm"}, NULL, NULL, "kvm_pvm", HOST_PAGING_SHADOW, "kvm_pvm has shadow paging only"},
    {"amd off", {"kvm_amd"}, "kvm_amd/parameters/npt", "N\n", "kvm_amd", HOST_PAGING_SHADOW, "kvm_amd npt=N"},
    {"amd off, a number", {"kvm_amd"}, "kvm_amd/parameters/npt", "0\n", "kvm_amd", HOST_PAGING_SHADOW, "kvm_amd npt=0"},
    {"amd on", {"kvm_amd"}, "kvm_amd/parameters/npt", "Y\n", "kvm_amd", HOST_PAGING_TDP, "kvm_amd npt=Y"},
    {"amd on, a number", {"kvm_amd"}, "kvm_amd/parameters/npt", "1\n", "kvm_amd", HOST_PAGING_TDP, "kvm_amd npt=1"},
    {"intel off", {"kvm_intel"}, "kvm_intel/parameters/ept", "N\n", "kvm_intel", HOST_PAGING_SHADOW, "kvm_intel ept=N"},
    {"intel on", {"kvm_intel"}, "kvm_intel/parameters/ept", "Y\n", "kvm_intel", HOST_PAGING_TDP, "kvm_intel ept=Y"},
    {"pvm comes first", {"kvm_intel", "kvm_pvm"}, "kvm_intel/parameters/ept", "Y\n", "kvm_pvm", HOST_PAGING_SHADOW,
     "kvm_pvm has shadow paging only"},
    {"no parameter", {"kvm_amd"}, NULL, NULL, "kvm_amd", HOST_PAGING_UNKNOWN, "kvm_amd npt cannot be read"},
    {"an empty parameter", {"kvm_amd"}, "kvm_amd/parameters/npt", "", "kvm_amd", HOST_PAGING_UNKNOWN,
     "kvm_amd npt cannot be read"},
    {"nonsense", {"kvm_amd"}, "kvm_amd/parameters/npt", "auto\n", "kvm_amd", HOST_PAGING_UNKNOWN,
     "kvm_amd npt cannot be read"},
    {"too long", {"kvm_amd"}, "kvm_amd/parameters/npt", "YYYYYYYYYYYYYYYYYYYYY", "kvm_amd", HOST_PAGING_UNKNOWN,
     "kvm_amd npt cannot be read"},
};

static void make_dir(const char *base, const char *name)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s", base, name);
    assert_int_equal(mkdir(path, 0755), 0);
}

static void make_sysfs(const char *dir, const struct sysfs *s)
{
    char path[256], parameters[64];

    for (size_t i = 0; i < ARRAY_SIZE(s->dirs) && s->dirs[i]; i++) {
        make_dir(dir, s->dirs[i]);
        snprintf(parameters, sizeof(parameters), "%s/parameters", s->dirs[i]);
        make_dir(dir, parameters);
    }
    if (s->parameter) {
        int fd;

        snprintf(path, sizeof(path), "%s/%s", dir, s->parameter);
        fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        assert_true(fd >= 0);
        assert_int_equal(fd_write_all(fd, s->value, strlen(s->value)), 0);
        close(fd);
    }
}

static void remove_sysfs(const char *dir, const struct sysfs *s)
{
    char path[256];

    if (s->parameter) {
        snprintf(path, sizeof(path), "%s/%s", dir, s->parameter);
        assert_int_equal(unlink(path), 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(s->dirs) && s->dirs[i]; i++) {
        snprintf(path, sizeof(path), "%s/%s/parameters", dir, s->dirs[i]);
        assert_int_equal(rmdir(path), 0);
        snprintf(path, sizeof(path), "%s/%s", dir, s->dirs[i]);
        assert_int_equal(rmdir(path), 0);
    }
    assert_int_equal(rmdir(dir), 0);
}

static void test_module(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char dir[] = "/tmp/umbra-test-XXXXXX";
        struct host_info info = {0};

        print_message("# %s\n", cases[i].what);
        assert_non_null(mkdtemp(dir));
        make_sysfs(dir, &cases[i]);
        host_read_module(dir, &info);
        remove_sysfs(dir, &cases[i]);
        assert_string_equal(info.module, cases[i].module);
        assert_int_equal(info.by_module, cases[i].paging);
        assert_string_equal(info.how, cases[i].how);
    }
}

static void test_no_module(void **state)
{
    struct host_info info = {0};

    host_read_module("/nonexistent", &info);
    assert_string_equal(info.module, "");
    assert_int_equal(info.by_module, HOST_PAGING_UNKNOWN);
    assert_string_equal(info.how, "no known KVM module in /nonexistent");
}

/* -- this machine's KVM -- */

static const char *kvm_path(void)
{
    const char *path = getenv("UMBRA_KVM");

    return path ? path : "/dev/kvm";
}

static void test_no_kvm(void **state)
{
    struct host_info info = {.max_vcpus = 7};

    assert_int_equal(host_probe("/nonexistent", &info), -ENOENT);
    assert_int_equal(info.max_vcpus, 7);
    /* What can be opened but is no KVM leaves everything unknown, and tells why. */
    assert_int_equal(host_probe("/dev/null", &info), 0);
    assert_int_equal(info.proven, HOST_PAGING_UNKNOWN);
    assert_false(info.ring0_emulated);
    assert_true(info.ring0_mips == 0);
    assert_non_null(strstr(info.how, "not proved: Inappropriate ioctl for device"));
}

static void assert_plausible(const struct host_info *info)
{
    print_message("# %s, guest kernel code %s, %.1f MIPS\n", info->how, info->ring0_emulated ? "emulated" : "native",
                  info->ring0_mips);
    assert_int_equal(info->api_version, 12);
    assert_true(info->max_vcpus > 0);
    if (!info->stats_fd)
        return;
    assert_int_not_equal(info->proven, HOST_PAGING_UNKNOWN);
    if (info->by_module != HOST_PAGING_UNKNOWN)
        assert_int_equal(info->proven, info->by_module);
}

static void test_probe(void **state)
{
    struct host_info whole, rest = {.proven = HOST_PAGING_TDP, .how = "told"};
    int kvm;

    if (access(kvm_path(), R_OK | W_OK) < 0)
        skip();
    assert_int_equal(host_probe(kvm_path(), &whole), 0);
    assert_plausible(&whole);
    assert_true(whole.ring0_mips > 0);
    /* Unless its guest kernel is made for it, kvm_pvm emulates it. The others run it. */
    if (whole.module[0])
        assert_int_equal(whole.ring0_emulated, strcmp(whole.module, "kvm_pvm") == 0);

    kvm = open(kvm_path(), O_RDWR | O_CLOEXEC);
    assert_true(kvm >= 0);
    host_examine(kvm, &rest);
    close(kvm);
    assert_int_equal(rest.proven, HOST_PAGING_TDP);
    assert_string_equal(rest.how, "told");
    assert_int_equal(rest.ring0_emulated, whole.ring0_emulated);
    assert_int_equal(rest.max_vcpus, whole.max_vcpus);
    assert_int_equal(rest.userfaultfd, whole.userfaultfd);
    assert_true(rest.ring0_mips > 0);
}

/* -- the guest's own VM -- */

struct prove {
    struct vm *vm;
    struct host_info info;
};

static void prove(void *opaque)
{
    struct prove *p = opaque;

    host_prove_paging(p->vm, &p->info);
}

static void on_exit_unwanted(void *opaque, unsigned int vcpu, enum vm_exit_kind kind, const char *reason)
{
    fail_msg("vcpu%u left the guest: %s", vcpu, reason);
}

/* All of guest memory is zero. */
static bool memory_untouched(const struct mem *mem)
{
    static uint8_t buf[64 * KiB];

    for (gpa_t gpa = 0; gpa < mem_size(mem); gpa += sizeof(buf)) {
        assert_int_equal(mem_read(mem, gpa, buf, sizeof(buf)), 0);
        for (size_t i = 0; i < sizeof(buf); i++)
            if (buf[i])
                return false;
    }
    return true;
}

static void prove_with(enum dirty_backend backend, const struct host_info *want)
{
    struct mem_config memory = {.size = 2 * MiB};
    struct prove p = {0};
    struct vm_config config = {
        .kvm_path = kvm_path(),
        .cpus = 2,
        .dirty_backend = backend,
        .callbacks = {.on_exit = on_exit_unwanted, .on_start = prove, .opaque = &p},
    };
    struct mem *mem;

    assert_int_equal(mem_new(&memory, &mem), 0);
    assert_int_equal(vm_new(&config, mem, &p.vm), 0);
    assert_int_equal(vm_start(p.vm), 0);
    /* The proof has ended when the vCPUs are parked. */
    vm_pause(p.vm);
    assert_int_equal(p.info.proven, want->proven);
    assert_int_equal(p.info.by_module, want->by_module);
    assert_string_equal(p.info.how, want->how);
    assert_true(memory_untouched(mem));
    vm_free(p.vm);
    mem_free(mem);
}

static void test_prove_paging(void **state)
{
    struct host_info whole;

    if (access(kvm_path(), R_OK | W_OK) < 0)
        skip();
    assert_int_equal(host_probe(kvm_path(), &whole), 0);
    prove_with(DIRTY_BITMAP, &whole);
    prove_with(DIRTY_RING, &whole);
}

static unsigned int open_files(void)
{
    unsigned int n = 0;

    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void test_nothing_stays_open(void **state)
{
    unsigned int before = open_files();
    struct host_info info;

    if (access(kvm_path(), R_OK | W_OK) < 0)
        skip();
    for (int i = 0; i < 5; i++)
        assert_int_equal(host_probe(kvm_path(), &info), 0);
    assert_int_equal(open_files(), before);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_module), cmocka_unit_test(test_no_module),     cmocka_unit_test(test_no_kvm),
        cmocka_unit_test(test_probe),  cmocka_unit_test(test_prove_paging), cmocka_unit_test(test_nothing_stays_open),
    };

    return cmocka_run_group_tests_name("host", tests, NULL, NULL);
}
