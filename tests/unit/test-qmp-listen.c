/* The control server on sockets in the file system. */
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"
#include "daemon/qmp-server-internal.h"
#include "qmp-harness.h"

struct dir {
    char path[64];
    char socket[128];
};

static int setup(void **state)
{
    struct dir *d = calloc(1, sizeof(*d));

    assert_non_null(d);
    strcpy(d->path, "/tmp/umbra-test-XXXXXX");
    assert_non_null(mkdtemp(d->path));
    snprintf(d->socket, sizeof(d->socket), "%s/control.sock", d->path);
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    struct dir *d = *state;

    /* Every test cleans up behind itself: the directory must be empty. */
    assert_int_equal(rmdir(d->path), 0);
    free(d);
    return 0;
}

static int connect_to(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    strcpy(addr.sun_path, path);
    if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0)
        return fd;
    close(fd);
    return -errno;
}

static void check_socket(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 07777, 0660);
}

/* The server on real sockets: both kinds, and both gone at the end. */
static void test_server(void **state)
{
    static const struct fake_options options = {.memory = 1 * MiB, .cpus = 1};
    const struct dir *d = *state;
    struct fixture f;
    struct peer *p, *ro;
    char ro_path[128], other[128];

    snprintf(ro_path, sizeof(ro_path), "%s/control-ro.sock", d->path);
    snprintf(other, sizeof(other), "%s/other.sock", d->path);
    fixture_init(&f, &options);
    assert_int_equal(qmp_server_listen(f.server, d->socket, false), 0);
    assert_int_equal(qmp_server_listen(f.server, d->socket, true), -EADDRINUSE);
    assert_int_equal(qmp_server_listen(f.server, ro_path, true), 0);
    assert_int_equal(qmp_server_listen(f.server, other, true), -ENOSPC);
    check_socket(d->socket);
    check_socket(ro_path);
    p = peer_adopt(&f, connect_to(d->socket));
    ro = peer_adopt(&f, connect_to(ro_path));
    json_object_put(peer_read(p));
    json_object_put(peer_read(ro));
    peer_expect(p, "{'execute':'qmp_capabilities'}", "{'return':{}}");
    peer_expect(ro, "{'execute':'qmp_capabilities'}", "{'return':{}}");
    peer_expect_error(ro, "{'execute':'quit'}", "GenericError", "The command quit is not available on the read-only socket");
    fake_machine_set_state(f.machine, RUN_STATE_PAUSED);
    peer_expect(p, "{'execute':'stop'}", "{'return':{}}");
    peer_free(p);
    peer_free(ro);
    fixture_clear(&f);
}

/* Without descriptors connections wait in the kernel's queue, and are taken when there are some again. */
static void test_no_descriptors(void **state)
{
    static const struct fake_options options = {.memory = 1 * MiB, .cpus = 1};
    const struct dir *d = *state;
    struct rlimit before, none;
    struct fixture f;
    struct peer *p;
    int fd;

    fixture_init(&f, &options);
    assert_int_equal(qmp_server_listen(f.server, d->socket, false), 0);
    fd = connect_to(d->socket);
    assert_true(fd >= 0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = (struct rlimit){.rlim_cur = 3, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    fixture_run(&f);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(f.server->count[0], 0);
    p = peer_adopt(&f, fd);
    json_object_put(peer_read(p));
    peer_free(p);
    fixture_clear(&f);
}

/* What cannot be listened on is refused and left alone. */
static void test_refused(void **state)
{
    static const struct fake_options options = {.memory = 1 * MiB, .cpus = 1};
    const struct dir *d = *state;
    struct fixture f, second;
    char path[200] = "/tmp/";
    int fd;

    fixture_init(&f, &options);
    memset(path + 5, 'x', 103);
    assert_int_equal(qmp_server_listen(f.server, path, false), -ENAMETOOLONG);
    snprintf(path, sizeof(path), "%s/none/control.sock", d->path);
    assert_int_equal(qmp_server_listen(f.server, path, false), -ENOENT);
    fd = open(d->socket, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(qmp_server_listen(f.server, d->socket, false), -EEXIST);
    assert_int_equal(unlink(d->socket), 0);
    assert_int_equal(qmp_server_listen(f.server, d->socket, false), 0);
    fixture_init(&second, &options);
    assert_int_equal(qmp_server_listen(second.server, d->socket, false), -EADDRINUSE);
    fixture_clear(&second);
    check_socket(d->socket);
    fixture_clear(&f);
    assert_int_equal(access(d->socket, F_OK), -1);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_server, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_descriptors, setup, teardown),
    };

    return cmocka_run_group_tests_name("qmp-listen", tests, NULL, NULL);
}
