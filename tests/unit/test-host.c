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
#include "vcpu/host-internal.h"

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

static void remove_dir(const char *base, const char *name)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s", base, name);
    assert_int_equal(rmdir(path), 0);
}

static void rename_dir(const char *base, const char *from, const char *to)
{
    char old[256], new[256];

    snprintf(old, sizeof(old), "%s/%s", base, from);
    snprintf(new, sizeof(new), "%s/%s", base, to);
    assert_int_equal(rename(old, new), 0);
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
    struct host_probe *probe;

    assert_int_equal(host_probe("/nonexistent", &info), -ENOENT);
    assert_int_equal(host_probe_start("/nonexistent", NULL, &probe), 0);
    assert_int_equal(host_probe_wait(probe, &info), -ENOENT);
    host_probe_free(probe);
    host_probe_free(NULL);
    assert_int_equal(info.max_vcpus, 7);
    assert_int_equal(host_measure_ring0(-1, &info), -EBADF);
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
    struct host_info whole, fast;
    struct host_probe *probe;
    int kvm;

    if (access(kvm_path(), R_OK | W_OK) < 0)
        skip();
    assert_int_equal(host_probe(kvm_path(), &whole), 0);
    assert_plausible(&whole);
    assert_true(whole.ring0_mips > 0);
    /* Unless its guest kernel is made for it, kvm_pvm emulates it. The others run it. */
    if (whole.module[0])
        assert_int_equal(whole.ring0_emulated, strcmp(whole.module, "kvm_pvm") == 0);

    assert_int_equal(host_probe_start(kvm_path(), NULL, &probe), 0);
    assert_int_equal(host_probe_wait(probe, &fast), 0);
    host_probe_free(probe);
    assert_plausible(&fast);
    assert_int_equal(fast.proven, whole.proven);
    assert_int_equal(fast.ring0_emulated, whole.ring0_emulated);
    assert_string_equal(fast.how, whole.how);
    assert_true(fast.ring0_mips == 0);

    kvm = open(kvm_path(), O_RDWR | O_CLOEXEC);
    assert_true(kvm >= 0);
    assert_int_equal(host_measure_ring0(kvm, &fast), 0);
    assert_true(fast.ring0_mips > 0);
    close(kvm);

    assert_int_equal(host_probe_start(kvm_path(), NULL, &probe), 0);
    host_probe_free(probe);
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
    struct host_probe *probe;
    struct host_info info;

    if (access(kvm_path(), R_OK | W_OK) < 0)
        skip();
    for (int i = 0; i < 5; i++) {
        assert_int_equal(host_probe(kvm_path(), &info), 0);
        assert_int_equal(host_probe_start(kvm_path(), NULL, &probe), 0);
        host_probe_free(probe);
    }
    assert_int_equal(open_files(), before);
}

/* -- remembered proofs -- */

static struct host_proof_key make_key(const char *text)
{
    struct host_proof_key key;

    snprintf(key.text, sizeof(key.text), "%s\n", text);
    return key;
}

static void write_proof(const char *dir, const char *text)
{
    char path[256];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", dir, HOST_PROOF_FILE);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(fd_write_all(fd, text, strlen(text)), 0);
    close(fd);
}

static bool believed(const char *dir, const struct host_proof_key *key)
{
    struct host_info info = {0};
    bool r = host_proof_load(dir, key, &info);

    if (!r)
        assert_int_equal(info.proven, HOST_PAGING_UNKNOWN);
    return r;
}

static void proof_path(const char *dir, char path[256])
{
    snprintf(path, 256, "%s/%s", dir, HOST_PROOF_FILE);
}

static void remove_proof_dir(const char *dir)
{
    char path[256];

    proof_path(dir, path);
    unlink(path);
    assert_int_equal(rmdir(dir), 0);
}

static void test_proof_round_trip(void **state)
{
    const struct host_info infos[] = {
        {.proven = HOST_PAGING_SHADOW, .ring0_emulated = true, .ring0_mips = 1.25},
        {.proven = HOST_PAGING_TDP, .ring0_mips = 3000},
    };
    const struct host_info unknown = {.ring0_mips = 5};
    struct host_proof_key key = make_key("a"), other = make_key("b");
    char dir[] = "/tmp/umbra-test-XXXXXX", path[256];
    struct stat st;

    assert_non_null(mkdtemp(dir));
    proof_path(dir, path);
    host_proof_store(dir, &key, &unknown);
    assert_int_equal(access(path, F_OK), -1);
    for (size_t i = 0; i < ARRAY_SIZE(infos); i++) {
        struct host_info got = {.max_vcpus = 3};

        host_proof_store(dir, &key, &infos[i]);
        assert_true(host_proof_load(dir, &key, &got));
        assert_int_equal(got.proven, infos[i].proven);
        assert_int_equal(got.ring0_emulated, infos[i].ring0_emulated);
        assert_true(got.ring0_mips == infos[i].ring0_mips);
        assert_int_equal(got.max_vcpus, 3);
        assert_false(believed(dir, &other));
    }
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0644);
    remove_proof_dir(dir);
    host_proof_store("/nonexistent", &key, &infos[0]);
    assert_false(believed("/nonexistent", &key));
}

static void test_proof_malformed(void **state)
{
    static const char *const texts[] = {
        "", "a", "a\n", "a\nresult", "a\nresult shadow", "a\nresult shadow native\n", "a\nresult shadow native 5",
        "a\nresult shadow native x\n", "a\nresult unknown native 5\n", "a\nresult shadowshadowshadow native 5\n",
        "b\nresult shadow native 5\n", "result shadow native 5\n", "a\nresult shadow native 5\n\n", "a\n\nresultshadow native 5\n",
    };
    struct host_proof_key key = make_key("a");
    char dir[] = "/tmp/umbra-test-XXXXXX", long_text[2000];

    assert_non_null(mkdtemp(dir));
    write_proof(dir, "a\nresult shadow native 5\n");
    assert_true(believed(dir, &key));
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        write_proof(dir, texts[i]);
        assert_false(believed(dir, &key));
    }
    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    memcpy(long_text, "a\nresult shadow native 5\n", 25);
    write_proof(dir, long_text);
    assert_false(believed(dir, &key));
    remove_proof_dir(dir);
}

/* A right file that somebody else could have written, or that is no file. */
static void test_proof_untrusted(void **state)
{
    struct host_proof_key key = make_key("a");
    char dir[] = "/tmp/umbra-test-XXXXXX", path[256];
    const struct host_info info = {.proven = HOST_PAGING_TDP};

    assert_non_null(mkdtemp(dir));
    proof_path(dir, path);
    write_proof(dir, "a\nresult shadow native 5\n");
    for (unsigned int mode = 0; mode <= 0777; mode++) {
        /* Root reads what nobody may read. */
        if (!(mode & 0400))
            continue;
        assert_int_equal(chmod(path, mode), 0);
        assert_int_equal(believed(dir, &key), !(mode & 022));
    }
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(chmod(dir, 0770), 0);
    assert_false(believed(dir, &key));
    assert_int_equal(chmod(dir, 01777), 0);
    assert_false(believed(dir, &key));
    host_proof_store(dir, &key, &info);
    assert_int_equal(chmod(dir, 0755), 0);
    assert_true(believed(dir, &key));
    if (geteuid() == 0) {
        assert_int_equal(chown(path, 65534, (gid_t)-1), 0);
        assert_false(believed(dir, &key));
        assert_int_equal(chown(path, 0, (gid_t)-1), 0);
        assert_int_equal(chown(dir, 65534, (gid_t)-1), 0);
        assert_false(believed(dir, &key));
        assert_int_equal(chown(dir, 0, (gid_t)-1), 0);
    }
    assert_true(believed(dir, &key));

    /* Not through a link, nor from a pipe that would block; storing puts a file in its place. */
    for (int i = 0; i < 2; i++) {
        char elsewhere[] = "/tmp/umbra-test-XXXXXX";
        int fd = mkstemp(elsewhere);

        assert_true(fd >= 0);
        assert_int_equal(fd_write_all(fd, "a\nresult shadow native 5\n", 25), 0);
        close(fd);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(i == 0 ? symlink(elsewhere, path) : mkfifo(path, 0644), 0);
        assert_false(believed(dir, &key));
        host_proof_store(dir, &key, &info);
        assert_true(believed(dir, &key));
        assert_int_equal(unlink(elsewhere), 0);
    }
    remove_proof_dir(dir);
}

static void test_proof_key(void **state)
{
    struct host_info info = {.module = "kvm_amd", .by_module = HOST_PAGING_TDP, .how = "kvm_amd npt=Y"}, none = {0};
    struct host_proof_key key, again, changed;
    char dir[] = "/tmp/umbra-test-XXXXXX";

    assert_non_null(mkdtemp(dir));
    make_dir(dir, "kvm_amd");
    assert_true(host_proof_key("/dev/null", dir, &info, &key));
    assert_true(host_proof_key("/dev/null", dir, &info, &again));
    assert_string_equal(key.text, again.text);
    assert_non_null(strstr(key.text, "\nkvm 1:3\nmodule kvm_amd "));
    /* Another device, another parameter, the module loaded again. */
    assert_true(host_proof_key("/dev/zero", dir, &info, &changed));
    assert_string_not_equal(key.text, changed.text);
    strcpy(info.how, "kvm_amd npt=N");
    assert_true(host_proof_key("/dev/null", dir, &info, &changed));
    assert_string_not_equal(key.text, changed.text);
    strcpy(info.how, "kvm_amd npt=Y");
    make_dir(dir, "new");
    remove_dir(dir, "kvm_amd");
    rename_dir(dir, "new", "kvm_amd");
    assert_true(host_proof_key("/dev/null", dir, &info, &changed));
    assert_string_not_equal(key.text, changed.text);

    assert_false(host_proof_key("/etc/passwd", dir, &info, &key));
    assert_false(host_proof_key("/nonexistent", dir, &info, &key));
    assert_false(host_proof_key("/dev/null", "/nonexistent", &info, &key));
    assert_false(host_proof_key("/dev/null", dir, &none, &key));
    remove_dir(dir, "kvm_amd");
    assert_int_equal(rmdir(dir), 0);
}

/* The second start takes the proof of the first; one that was proved of something else is made again. */
static void test_remembered(void **state)
{
    char dir[] = "/tmp/umbra-test-XXXXXX", path[256];
    struct host_info infos[3];
    struct host_probe *probe;

    if (access(kvm_path(), R_OK | W_OK) < 0)
        skip();
    assert_non_null(mkdtemp(dir));
    proof_path(dir, path);
    for (int i = 0; i < 3; i++) {
        if (i == 2)
            write_proof(dir, "umbra host proof 1\nboot some other\nresult tdp native 1\n");
        assert_int_equal(host_probe_start(kvm_path(), dir, &probe), 0);
        assert_int_equal(host_probe_wait(probe, &infos[i]), 0);
        host_probe_free(probe);
    }
    assert_plausible(&infos[0]);
    if (infos[0].proven != HOST_PAGING_UNKNOWN && infos[0].by_module != HOST_PAGING_UNKNOWN) {
        assert_null(strstr(infos[0].how, "remembered"));
        assert_non_null(strstr(infos[1].how, infos[0].how));
        assert_non_null(strstr(infos[1].how, "INVLPGs exited, remembered"));
        assert_int_equal(infos[1].proven, infos[0].proven);
        assert_int_equal(infos[1].ring0_emulated, infos[0].ring0_emulated);
        assert_int_equal(infos[1].max_vcpus, infos[0].max_vcpus);
        assert_int_equal(infos[1].userfaultfd, infos[0].userfaultfd);
        assert_true(infos[1].ring0_mips > 0);
        assert_string_equal(infos[2].how, infos[0].how);
    }
    remove_proof_dir(dir);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_module),
        cmocka_unit_test(test_no_module),
        cmocka_unit_test(test_no_kvm),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_nothing_stays_open),
        cmocka_unit_test(test_proof_round_trip),
        cmocka_unit_test(test_proof_malformed),
        cmocka_unit_test(test_proof_untrusted),
        cmocka_unit_test(test_proof_key),
        cmocka_unit_test(test_remembered),
    };

    return cmocka_run_group_tests_name("host", tests, NULL, NULL);
}
