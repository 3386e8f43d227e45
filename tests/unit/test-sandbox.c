/*
 * The sandbox, each case in a process of its own: what a thread of each kind may do, and what becomes of the rest in each mode.
 * With --manual: print the list for umbrad(8).
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <netdb.h>
#include <nss.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "daemon/landlock.h"
#include "daemon/privileges.h"
#include "daemon/sandbox.h"

#if defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define SANITIZED 0
#endif

/* What a child did: how it ended, and what it logged. */
static int child_status;
static char child_log[4096];

static void *no_thread(void *arg)
{
    return arg;
}

/* Run `body` in a process that is locked in as `kind`; the exit status is what body returns. */
static void in_sandbox(enum sandbox_mode mode, enum thread_kind kind, int (*body)(void))
{
    int pipe_fds[2];
    pthread_t first;
    pid_t pid;
    ssize_t n;
    size_t len = 0;

    assert_int_equal(pipe(pipe_fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(pipe_fds[1], STDERR_FILENO);
        close(pipe_fds[0]);
        log_init("test", NULL);
        /* With its first thread the C library sets up what it needs for threads; umbrad has made some before, too. */
        if (pthread_create(&first, NULL, no_thread, NULL) != 0 || pthread_join(first, NULL) != 0)
            _exit(99);
        if (privileges_drop(NULL, NULL) < 0 || sandbox_init(mode) < 0)
            _exit(99);
        if (kind == THREAD_MAIN)
            sandbox_enter(kind);
        else
            thread_enter(kind, "tested");
        _exit(body());
    }
    close(pipe_fds[1]);
    while ((n = read(pipe_fds[0], child_log + len, sizeof(child_log) - 1 - len)) > 0)
        len += (size_t)n;
    child_log[len] = '\0';
    close(pipe_fds[0]);
    assert_int_equal(waitpid(pid, &child_status, 0), pid);
}

static void assert_exited(int status)
{
    if (!WIFEXITED(child_status) || WEXITSTATUS(child_status) != status)
        print_message("# status %#x, log: %s\n", child_status, child_log);
    assert_true(WIFEXITED(child_status));
    assert_int_equal(WEXITSTATUS(child_status), status);
}

static int do_getppid(void)
{
    return syscall(SYS_getppid) < 0 ? errno : 0;
}

static int do_getppid_twice(void)
{
    int first = do_getppid();

    return first == do_getppid() ? first : 98;
}

static void test_enforce(void **state)
{
    in_sandbox(SANDBOX_ENFORCE, THREAD_VCPU, do_getppid);
    assert_true(WIFSIGNALED(child_status));
    assert_int_equal(WTERMSIG(child_status), SIGSYS);
    assert_non_null(strstr(child_log, "system call getppid (110) by thread tested (vcpu) is not on its list, and ends umbrad\n"));
}

static void test_errno(void **state)
{
    in_sandbox(SANDBOX_ERRNO, THREAD_IO, do_getppid_twice);
    assert_exited(EPERM);
    assert_non_null(strstr(child_log, "system call getppid (110) by thread tested (io) is not on its list, and is refused\n"));
    assert_null(strstr(strstr(child_log, "getppid") + 1, "getppid"));
}

static void test_log(void **state)
{
    in_sandbox(SANDBOX_LOG, THREAD_MAIN, do_getppid_twice);
    assert_exited(0);
    assert_non_null(strstr(child_log, "system call getppid (110) by thread main (main) is not on its list, and passes\n"));
    assert_null(strstr(strstr(child_log, "getppid") + 1, "getppid"));
}

static void test_off(void **state)
{
    in_sandbox(SANDBOX_OFF, THREAD_VCPU, do_getppid_twice);
    assert_exited(0);
    assert_string_equal(child_log, "");
}

static int compare_ints(const void *a, const void *b)
{
    return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b);
}

/* From a kilobyte on the C library takes memory for it. */
static int sort_much(void)
{
    static int numbers[1 << 16];

    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        numbers[i] = (int)(i * 2654435761u % 65536);
    qsort(numbers, ARRAY_SIZE(numbers), sizeof(numbers[0]), compare_ints);
    return numbers[0] != 0;
}

static void test_sorting(void **state)
{
    static const enum thread_kind kinds[] = {THREAD_MAIN, THREAD_MMU, THREAD_MIGRATE};

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        in_sandbox(SANDBOX_ENFORCE, kinds[i], sort_much);
        assert_exited(0);
    }
}

/* A relative path, and two of which the C library asks whether a directory is there. */
static int find_paths(void)
{
    static const char *const paths[] = {".", "/usr/", "/usr/../usr"};

    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        char *real = realpath(paths[i], NULL);

        if (!real || *real != '/')
            return (int)i + 1;
        free(real);
    }
    return 0;
}

static void test_paths(void **state)
{
    in_sandbox(SANDBOX_ENFORCE, THREAD_MAIN, find_paths);
    assert_exited(0);
    in_sandbox(SANDBOX_ENFORCE, THREAD_MIGRATE, find_paths);
    assert_exited(0);
}

/* Six arguments and a result go through the gate as they are. */
static int map_executable(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return errno;
    return *(volatile char *)p == 0 ? 0 : 97;
}

static int map_writable(void)
{
    char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return errno;
    *p = 1;
    return 0;
}

static void test_executable_memory(void **state)
{
    in_sandbox(SANDBOX_ERRNO, THREAD_VCPU, map_executable);
    assert_exited(EPERM);
    in_sandbox(SANDBOX_LOG, THREAD_VCPU, map_executable);
    assert_exited(0);
    assert_non_null(strstr(child_log, "system call mmap"));
    /* Where the C library may ask for it, it is told no. */
    in_sandbox(SANDBOX_ENFORCE, THREAD_MAIN, map_executable);
    assert_exited(EACCES);
    assert_string_equal(child_log, "");
    in_sandbox(SANDBOX_ENFORCE, THREAD_MAIN, map_writable);
    assert_exited(0);
}

/* The descriptor is none: what counts is whether the kernel gets to say so. */
static int run_vcpu(void)
{
    return ioctl(-1, KVM_RUN, 0) < 0 ? errno : 0;
}

static int create_vm(void)
{
    return ioctl(-1, KVM_CREATE_VM, 0) < 0 ? errno : 0;
}

static void test_requests(void **state)
{
    char name[64];

    in_sandbox(SANDBOX_ENFORCE, THREAD_VCPU, run_vcpu);
    assert_exited(EBADF);
    in_sandbox(SANDBOX_ERRNO, THREAD_VCPU, create_vm);
    assert_exited(EPERM);
    snprintf(name, sizeof(name), "system call ioctl with request %#x by thread tested (vcpu)", (unsigned int)KVM_CREATE_VM);
    assert_non_null(strstr(child_log, name));
    in_sandbox(SANDBOX_ENFORCE, THREAD_MAIN, create_vm);
    assert_exited(EBADF);
    in_sandbox(SANDBOX_ERRNO, THREAD_MIGRATE, run_vcpu);
    assert_exited(EPERM);
}

static int open_file(void)
{
    int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC);

    return fd < 0 ? errno : 0;
}

static int run_program(void)
{
    char sh[] = "/bin/sh", *argv[] = {sh, NULL};

    return execv(sh, argv) < 0 ? errno : 0;
}

static int kill_parent(void)
{
    return syscall(SYS_tgkill, getppid(), getppid(), 0) < 0 ? errno : 0;
}

static int open_netlink(void)
{
    return (int)syscall(SYS_socket, 16, 3, 0) < 0 ? errno : 0;
}

/* Names of peers are looked up when the sandbox is closed, with whatever services the host names; some are shared objects. */
static int look_up_service(const char *name, const char *service)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    int r = getaddrinfo(name, service, &hints, &list);

    if (r != 0)
        return 1;
    freeaddrinfo(list);
    return 0;
}

static int look_up(const char *name)
{
    return look_up_service(name, "7");
}

static int look_names_up(void)
{
    /* The first two are part of the C library, and have no hosts; the third is no service at all. */
    if (__nss_configure_lookup("hosts", "hesiod compat no-such-service files") != 0)
        return 90;
    /* Several addresses: the C library puts them in order. */
    return look_up(NULL) + 2 * look_up("localhost") + 4 * look_up("127.0.0.1");
}

static void test_names(void **state)
{
    static const enum sandbox_mode modes[] = {SANDBOX_ENFORCE, SANDBOX_ERRNO, SANDBOX_LOG};

    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        in_sandbox(modes[i], THREAD_MAIN, look_names_up);
        assert_exited(0);
        assert_string_equal(child_log, "");
        in_sandbox(modes[i], THREAD_MIGRATE, look_names_up);
        assert_exited(0);
        assert_string_equal(child_log, "");
    }
}

/* What somebody may write in the place of a peer; whether it is found does not matter, only that looking for it ends nothing. */
static int look_odd_names_up(void)
{
    static const char *const odd[] = {
        "fe80::1%lo", "fe80::1%1", "fe80::1%none", "fe80::1%", "fe80::1", "ff02::1%lo", "::1%lo", "::ffff:1.2.3.4",
        "0x7f.1", "1.2.3.4.5", "m\303\274nchen.invalid", "localhost.", "ip6-localhost", "%lo", "x%lo",
        " ", ".", "..", "a..b", "-", "a b", "*", "[",
    };
    char name[256];

    if (__nss_configure_lookup("hosts", "files") != 0)
        return 90;
    memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    look_up(name);
    for (size_t i = 0; i < ARRAY_SIZE(odd); i++)
        look_up(odd[i]);
    look_up_service("localhost", "http");
    look_up_service("localhost", "no-such-service");
    look_up_service(NULL, "-1");
    look_up_service(NULL, "");
    return 0;
}

static void test_odd_names(void **state)
{
    in_sandbox(SANDBOX_ENFORCE, THREAD_MAIN, look_odd_names_up);
    assert_exited(0);
    in_sandbox(SANDBOX_ENFORCE, THREAD_MIGRATE, look_odd_names_up);
    assert_exited(0);
}

/* What somebody who has taken a thread over would want first. */
static void test_ways_out(void **state)
{
    static const enum thread_kind kinds[] = {THREAD_VCPU, THREAD_IO, THREAD_MMU, THREAD_UFFD};

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        in_sandbox(SANDBOX_ERRNO, kinds[i], open_file);
        assert_exited(EPERM);
    }
    for (int kind = 0; kind < THREAD_KINDS; kind++) {
        in_sandbox(SANDBOX_ERRNO, (enum thread_kind)kind, run_program);
        assert_exited(EPERM);
        in_sandbox(SANDBOX_ERRNO, (enum thread_kind)kind, kill_parent);
        assert_exited(EPERM);
        in_sandbox(SANDBOX_ERRNO, (enum thread_kind)kind, open_netlink);
        assert_exited(kind == THREAD_MAIN || kind == THREAD_MIGRATE ? EAFNOSUPPORT : EPERM);
    }
}

/* A call by another system call table is not even looked at. */
static int call_32_bit(void)
{
    long r;

    __asm__ volatile("int $0x80" : "=a"(r) : "a"(20L /* getpid */) : "memory");
    return r > 0 ? 0 : 1;
}

static void test_other_tables(void **state)
{
    in_sandbox(SANDBOX_ERRNO, THREAD_VCPU, call_32_bit);
    assert_true(WIFSIGNALED(child_status));
}

/* -- threads -- */

static void *late_thread(void *arg)
{
    enum thread_kind *kind = arg;

    thread_enter(*kind, "late");
    thread_leave();
    return NULL;
}

/* The main thread makes threads when it is locked in, and they lock themselves in further. */
static int make_threads(void)
{
    static enum thread_kind kinds[] = {THREAD_MMU, THREAD_UFFD, THREAD_MIGRATE};

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        pthread_t t;

        if (pthread_create(&t, NULL, late_thread, &kinds[i]) != 0 || pthread_join(t, NULL) != 0)
            return 1;
    }
    return 0;
}

static int make_process(void)
{
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    return pid < 0 ? errno : 0;
}

static void test_threads(void **state)
{
    in_sandbox(SANDBOX_ENFORCE, THREAD_MAIN, make_threads);
    assert_exited(0);
    in_sandbox(SANDBOX_LOG, THREAD_MAIN, make_threads);
    assert_exited(0);
    assert_string_equal(child_log, "");
    in_sandbox(SANDBOX_ERRNO, THREAD_MAIN, make_process);
    assert_exited(EPERM);
}

static int blocked_signals(void)
{
    return do_getppid() == EPERM ? 0 : 1;
}

/* Whoever makes a thread with all signals blocked: it hears of its violations all the same. */
static int in_blocked_thread(void)
{
    sigset_t now;

    pthread_sigmask(SIG_SETMASK, NULL, &now);
    return sigismember(&now, SIGSYS) || sigismember(&now, SIGSEGV) ? 1 : blocked_signals();
}

static void test_blocked_signals(void **state)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    in_sandbox(SANDBOX_ERRNO, THREAD_IO, in_blocked_thread);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    assert_exited(0);
}

/* -- privileges and files -- */

static int have_capabilities(void)
{
    _cleanup_free_ char *text = NULL;
    static const char *const none[] = {"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000",
                                       "NoNewPrivs:\t1"};

    if (fd_read_file("/proc/self/status", 1 << 16, &text, NULL) < 0)
        return 90;
    for (size_t i = 0; i < ARRAY_SIZE(none); i++)
        if (!strstr(text, none[i]))
            return (int)i + 1;
    return 0;
}

static void test_privileges(void **state)
{
    struct identity to;

    in_sandbox(SANDBOX_OFF, THREAD_MAIN, have_capabilities);
    assert_exited(0);
    assert_int_equal(privileges_find("no-such-user-here", &to), -ENOENT);
    if (geteuid() == 0) {
        assert_int_equal(privileges_find("nobody", &to), 1);
        assert_int_equal(to.uid, 65534);
    } else {
        assert_int_equal(privileges_find("root", &to), -EPERM);
    }
}

static char allowed_dir[64];

static int only_allowed_files(void)
{
    struct landlock *l;
    char path[128];
    int fd;

    if (landlock_new(&l) < 0 || landlock_allow(l, allowed_dir, LANDLOCK_WRITE) < 0 || landlock_allow(l, "/etc/hostname", LANDLOCK_READ) < 0 ||
        landlock_allow(l, "/nonexistent/file", LANDLOCK_WRITE) < 0 || landlock_enter(l) < 0)
        return 1;
    landlock_free(l);
    snprintf(path, sizeof(path), "%s/file", allowed_dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || unlink(path) < 0)
        return 2;
    if (open("/etc/hostname", O_WRONLY | O_CLOEXEC) >= 0)
        return 3;
    if (open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0 || errno != EACCES)
        return 4;
    return 0;
}

static void test_files(void **state)
{
    struct landlock *l;

    assert_int_equal(landlock_new(&l), 0);
    if (!l) {
        print_message("# this kernel has no landlock\n");
        skip();
    }
    landlock_free(l);
    strcpy(allowed_dir, "/tmp/umbra-landlock-XXXXXX");
    assert_non_null(mkdtemp(allowed_dir));
    in_sandbox(SANDBOX_OFF, THREAD_MAIN, only_allowed_files);
    rmdir(allowed_dir);
    assert_exited(0);
}

/* -- the table -- */

/* Each row stands there once, has a reason, and names a call that some thread has. */
static void test_table(void **state)
{
    for (unsigned int i = 0; i < sandbox_call_count; i++) {
        const struct sandbox_call *c = &sandbox_calls[i];

        assert_true(c->name[0] && c->why[0] && c->threads);
        assert_true((c->kind == SANDBOX_ANY) == (c->detail[0] == '\0'));
        for (unsigned int j = 0; j < i; j++)
            assert_false(strcmp(c->name, sandbox_calls[j].name) == 0 && strcmp(c->detail, sandbox_calls[j].detail) == 0);
    }
}

/*
 * A vCPU that stands at a protected page table may hold what KVM's own calls wait for, and waits itself for the thread that takes
 * the protection off: that one can make none of them.
 */
static void test_no_kvm_for_userfaults(void **state)
{
    unsigned int kvm = 0;

    for (unsigned int i = 0; i < sandbox_call_count; i++) {
        const struct sandbox_call *c = &sandbox_calls[i];

        if (strncmp(c->detail, "KVM_", 4) != 0)
            continue;
        kvm++;
        if (sandbox_allows(c, THREAD_UFFD))
            fail_msg("%s is allowed", c->detail);
    }
    assert_true(kvm > 20);
}

/* umbrad(8) has the list that the table makes. */
static void test_manual(void **state)
{
    const char *src = getenv("UMBRA_SRCDIR");
    _cleanup_free_ char *manual = NULL, *list = NULL;
    char path[4096];
    size_t len;
    FILE *f = open_memstream(&list, &len);

    snprintf(path, sizeof(path), "%s/man/umbrad.8", src ? src : ".");
    assert_int_equal(fd_read_file(path, 1 << 20, &manual, NULL), 0);
    sandbox_print_manual(f);
    fclose(f);
    if (!strstr(manual, list))
        print_message("# the list in umbrad(8) is not that of the table: test-sandbox --manual prints it\n");
    assert_non_null(strstr(manual, list));
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_enforce),        cmocka_unit_test(test_errno),
        cmocka_unit_test(test_log),            cmocka_unit_test(test_off),
        cmocka_unit_test(test_sorting),          cmocka_unit_test(test_paths),
        cmocka_unit_test(test_executable_memory), cmocka_unit_test(test_requests),
        cmocka_unit_test(test_ways_out),       cmocka_unit_test(test_other_tables),
        cmocka_unit_test(test_names),          cmocka_unit_test(test_odd_names),
        cmocka_unit_test(test_threads),        cmocka_unit_test(test_blocked_signals),
        cmocka_unit_test(test_privileges),     cmocka_unit_test(test_files),
        cmocka_unit_test(test_table),          cmocka_unit_test(test_no_kvm_for_userfaults),
        cmocka_unit_test(test_manual),
    };

    if (argc > 1 && strcmp(argv[1], "--manual") == 0) {
        sandbox_print_manual(stdout);
        return 0;
    }
#if defined(__SANITIZE_ADDRESS__) || SANITIZED
    print_message("1..0 # SKIP a sanitizer makes system calls of its own\n");
    return 0;
#endif
    return cmocka_run_group_tests_name("sandbox", tests, NULL, NULL);
}
