/* Listening sockets: what is replaced, what is refused, who may connect, what is left behind. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/unix.h"

static char dir[] = "/tmp/test-unix-XXXXXX", path[64];

static int make_dir(void **state)
{
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof(path), "%s/s", dir);
    return 0;
}

static int remove_dir(void **state)
{
    unlink(path);
    return rmdir(dir);
}

static bool exists(void)
{
    struct stat st;

    return lstat(path, &st) == 0;
}

static int dial(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(addr.sun_path, path);
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
        return fd;
    close(fd);
    return -errno;
}

static void test_listen(void **state)
{
    struct unix_listener l;
    mode_t mask = umask(0777);
    struct stat st;
    int fd;

    assert_int_equal(unix_listen(path, 0660, "no-such-group", &l), 0);
    umask(0);
    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0660);
    assert_int_equal(fcntl(l.fd, F_GETFD), FD_CLOEXEC);
    assert_true(fcntl(l.fd, F_GETFL) & O_NONBLOCK);
    fd = dial();
    assert_true(fd >= 0);
    close(fd);
    unix_listener_close(&l);
    assert_false(exists());
    assert_int_equal(l.fd, -1);
    unix_listener_close(&l);

    /* An open umask does not make it wider */
    assert_int_equal(unix_listen(path, 0600, "root", &l), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    if (geteuid() == 0)
        assert_int_equal(st.st_gid, 0);
    unix_listener_close(&l);
    umask(mask);
}

static void test_in_use(void **state)
{
    struct unix_listener l, second = {.fd = -1};

    assert_int_equal(unix_listen(path, 0660, NULL, &l), 0);
    assert_int_equal(unix_listen(path, 0660, NULL, &second), -EADDRINUSE);
    assert_int_equal(second.fd, -1);
    /* Also while its queue is full */
    int fds[64], n = 0;
    for (; n < 64; n++) {
        struct sockaddr_un addr = {.sun_family = AF_UNIX};

        fds[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        strcpy(addr.sun_path, path);
        if (connect(fds[n], (struct sockaddr *)&addr, sizeof(addr)) < 0)
            break;
    }
    assert_true(n < 64);
    assert_int_equal(unix_listen(path, 0660, NULL, &second), -EADDRINUSE);
    for (int i = 0; i <= n; i++)
        close(fds[i]);
    assert_true(exists());
    unix_listener_close(&l);
}

static void test_stale(void **state)
{
    struct unix_listener l, dead;
    int fd;

    assert_int_equal(unix_listen(path, 0660, NULL, &dead), 0);
    /* As a killed process leaves it */
    close(dead.fd);
    assert_true(exists());
    assert_int_equal(unix_listen(path, 0660, NULL, &l), 0);
    fd = dial();
    assert_true(fd >= 0);
    close(fd);
    unix_listener_close(&l);
    assert_false(exists());
}

/* Who lost its path to another does not take that one's away. */
static void test_replaced(void **state)
{
    struct unix_listener l, robbed;

    assert_int_equal(unix_listen(path, 0660, NULL, &robbed), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(unix_listen(path, 0660, NULL, &l), 0);
    unix_listener_close(&robbed);
    assert_true(exists());
    unix_listener_close(&l);
    assert_false(exists());
}

static void test_refused(void **state)
{
    struct unix_listener l = {.fd = -1};
    char longest[256];
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, "x", 1), 1);
    close(fd);
    assert_int_equal(unix_listen(path, 0660, NULL, &l), -EEXIST);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/nonexistent", path), 0);
    assert_int_equal(unix_listen(path, 0660, NULL, &l), -EEXIST);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(unix_listen("/nonexistent/s", 0660, NULL, &l), -ENOENT);
    assert_int_equal(unix_listen("", 0660, NULL, &l), -EINVAL);

    /* 107 bytes are the limit */
    assert_int_equal(UNIX_PATH_MAX_LEN, 107);
    memset(longest, '/', sizeof(longest));
    memcpy(longest, dir, strlen(dir));
    strcpy(longest + 106, "s");
    assert_int_equal(unix_listen(longest, 0660, NULL, &l), 0);
    unix_listener_close(&l);
    strcpy(longest + 106, "/s");
    assert_int_equal(unix_listen(longest, 0660, NULL, &l), -ENAMETOOLONG);
    assert_int_equal(l.fd, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listen),
        cmocka_unit_test(test_in_use),
        cmocka_unit_test(test_stale),
        cmocka_unit_test(test_replaced),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
