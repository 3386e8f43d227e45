/* What is said to systemd and heard from it, with sockets of the test's own in systemd's place; and signs of life of threads. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/systemd.h"
#include "base/thread.h"
#include "base/unix.h"

static char dir[] = "/tmp/umbra-service-XXXXXX";

static int make_dir(void **state)
{
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    return rmdir(dir);
}

/* Each case in a process of its own: what the environment says is read once. */
static void in_child(void (*body)(void))
{
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        body();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void require(bool what, int line)
{
    if (!what) {
        fprintf(stderr, "# line %d\n", line);
        _exit(1);
    }
}
#define REQUIRE(what) require(what, __LINE__)

static int bind_to(const char *path, int type)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type, 0);
    size_t len = offsetof(struct sockaddr_un, sun_path) + strlen(path);

    strcpy(a.sun_path, path);
    if (path[0] == '@')
        a.sun_path[0] = '\0';
    REQUIRE(bind(fd, (struct sockaddr *)&a, path[0] == '@' ? (socklen_t)len : sizeof(a)) == 0);
    return fd;
}

static void notify_through(const char *path)
{
    char text[128] = "";
    int fd = bind_to(path, SOCK_DGRAM);

    setenv("NOTIFY_SOCKET", path, 1);
    setenv("WATCHDOG_USEC", "30000000", 1);
    snprintf(text, sizeof(text), "%d", (int)getpid());
    setenv("WATCHDOG_PID", text, 1);
    systemd_init();
    REQUIRE(systemd_present());
    REQUIRE(systemd_watchdog_us() == 30000000);
    REQUIRE(!getenv("NOTIFY_SOCKET") && !getenv("WATCHDOG_USEC"));
    systemd_notify("STATUS=%s: %d", "running", 7);
    REQUIRE(recv(fd, text, sizeof(text), MSG_DONTWAIT) == 17);
    REQUIRE(memcmp(text, "STATUS=running: 7", 17) == 0);
    /* A manager that does not read is not waited for. */
    for (int i = 0; i < 5000; i++)
        systemd_notify("WATCHDOG=1");
    close(fd);
    if (path[0] == '/')
        unlink(path);
}

static void notify_path(void)
{
    char path[64];

    snprintf(path, sizeof(path), "%s/notify", dir);
    notify_through(path);
}

static void notify_abstract(void)
{
    char name[64];

    snprintf(name, sizeof(name), "@umbra-test-%d", (int)getpid());
    notify_through(name);
}

static void notify_nobody(void)
{
    unsetenv("NOTIFY_SOCKET");
    setenv("WATCHDOG_USEC", "1000000", 1);
    systemd_init();
    REQUIRE(!systemd_present());
    REQUIRE(systemd_watchdog_us() == 0);
    systemd_notify("READY=1");
}

static void watchdog_of_another(void)
{
    setenv("NOTIFY_SOCKET", "/nonexistent/notify", 1);
    setenv("WATCHDOG_USEC", "1000000", 1);
    setenv("WATCHDOG_PID", "1", 1);
    systemd_init();
    REQUIRE(systemd_watchdog_us() == 0);
    systemd_notify("READY=1");
}

static void bad_environment(void)
{
    setenv("NOTIFY_SOCKET", "relative/path", 1);
    setenv("WATCHDOG_USEC", "12x", 1);
    setenv("LISTEN_PID", "", 1);
    setenv("LISTEN_FDS", "-4", 1);
    systemd_init();
    REQUIRE(!systemd_present() && systemd_watchdog_us() == 0 && systemd_listener("/x") < 0);
}

static void test_notify(void **state)
{
    in_child(notify_path);
    in_child(notify_abstract);
    in_child(notify_nobody);
    in_child(watchdog_of_another);
    in_child(bad_environment);
}

/* A socket that systemd listens on is taken over by whoever would make it; its file stays. */
static void listeners(void)
{
    struct unix_listener l, other;
    char path[64], text[16];
    int fd;

    snprintf(path, sizeof(path), "%s/control", dir);
    fd = bind_to(path, SOCK_STREAM);
    REQUIRE(listen(fd, 1) == 0);
    if (fd != 3) {
        REQUIRE(dup2(fd, 3) == 3);
        close(fd);
    }
    snprintf(text, sizeof(text), "%d", (int)getpid());
    setenv("LISTEN_PID", text, 1);
    setenv("LISTEN_FDS", "1", 1);
    systemd_init();
    REQUIRE(systemd_listener("/another/path") < 0);
    REQUIRE(unix_listen(path, 0660, NULL, &l) == 0);
    REQUIRE(l.fd == 3);
    /* Only once. */
    REQUIRE(unix_listen(path, 0660, NULL, &other) == -EADDRINUSE);
    unix_listener_close(&l);
    REQUIRE(l.fd == -1);
    REQUIRE(access(path, F_OK) == 0);
    unlink(path);
}

static void test_listeners(void **state)
{
    in_child(listeners);
}

/* -- threads -- */

static sem_t begun, go_on;

static void *working_thread(void *arg)
{
    thread_enter(THREAD_IO, "worker-with-a-long-name");
    thread_busy();
    sem_post(&begun);
    sem_wait(&go_on);
    thread_alive();
    sem_post(&begun);
    sem_wait(&go_on);
    thread_idle();
    sem_post(&begun);
    sem_wait(&go_on);
    thread_leave();
    return NULL;
}

static void test_threads(void **state)
{
    char name[THREAD_NAME_MAX];
    pthread_t t;

    sem_init(&begun, 0, 0);
    sem_init(&go_on, 0, 0);
    assert_null(thread_stuck(name));
    assert_int_equal(pthread_create(&t, NULL, working_thread, NULL), 0);
    sem_wait(&begun);
    /* The first look sees it, two more see that it is still where it was. */
    assert_null(thread_stuck(name));
    assert_null(thread_stuck(name));
    assert_string_equal(thread_stuck(name), "worker-with-a-l");
    sem_post(&go_on);
    sem_wait(&begun);
    /* The work goes on. */
    assert_null(thread_stuck(name));
    assert_null(thread_stuck(name));
    assert_non_null(thread_stuck(name));
    sem_post(&go_on);
    sem_wait(&begun);
    for (int i = 0; i < 4; i++)
        assert_null(thread_stuck(name));
    sem_post(&go_on);
    pthread_join(t, NULL);
    assert_null(thread_stuck(name));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_notify),
        cmocka_unit_test(test_listeners),
        cmocka_unit_test(test_threads),
    };

    return cmocka_run_group_tests_name("service", tests, make_dir, remove_dir);
}
