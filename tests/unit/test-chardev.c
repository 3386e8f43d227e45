/* The console backends: who sees what, who may type, what is lost and counted, and that nobody can hold the guest up. */
#include "config.h"

#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"
#include "device/chardev-internal.h"

#define RING 1024

static char dir[] = "/tmp/test-chardev-XXXXXX";

struct console_test {
    struct event_base *events;
    struct chardev *c;
    char path[128];
    /* The guest's end */
    char typed[16384];
    size_t typed_len, room; /* how much more the guest takes */
    unsigned int writable, breaks, quits;
};

static size_t on_input(void *opaque, const uint8_t *data, size_t len)
{
    struct console_test *t = opaque;
    size_t n = MIN(len, t->room);

    n = MIN(n, sizeof(t->typed) - 1 - t->typed_len);
    memcpy(t->typed + t->typed_len, data, n);
    t->typed_len += n;
    t->typed[t->typed_len] = '\0';
    t->room -= n;
    return n;
}

static void on_writable(void *opaque)
{
    ((struct console_test *)opaque)->writable++;
}

static void on_break(void *opaque)
{
    ((struct console_test *)opaque)->breaks++;
}

static void on_quit(void *opaque)
{
    ((struct console_test *)opaque)->quits++;
}

static int open_console(struct console_test *t, enum chardev_kind kind, const char *path)
{
    struct chardev_config config = {.kind = kind, .path = path, .buffer_size = kind == CHARDEV_NULL ? 0 : RING};
    struct chardev_handler handler = {
        .on_input = on_input, .on_writable = on_writable, .on_break = on_break, .opaque = t};
    int err = chardev_new(&config, t->events, &t->c);

    if (err < 0)
        return err;
    t->room = SIZE_MAX;
    chardev_set_handler(t->c, &handler);
    chardev_set_on_quit(t->c, on_quit, t);
    return 0;
}

static int make_dir(void **state)
{
    signal(SIGPIPE, SIG_IGN);
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    return rmdir(dir);
}

static int setup(void **state)
{
    struct console_test *t = calloc(1, sizeof(*t));

    t->events = event_base_new();
    snprintf(t->path, sizeof(t->path), "%s/console", dir);
    *state = t;
    return 0;
}

static int teardown(void **state)
{
    struct console_test *t = *state;

    chardev_free(t->c);
    event_base_free(t->events);
    unlink(t->path);
    free(t);
    return 0;
}

static void run_loop(struct console_test *t)
{
    for (int i = 0; i < 4; i++)
        event_base_loop(t->events, EVLOOP_NONBLOCK);
}

static size_t print(struct console_test *t, const char *text)
{
    return chardev_write(t->c, (const uint8_t *)text, strlen(text));
}

/* Print `len` bytes of a pattern that starts at byte `from` of it. */
static char nth(uint64_t i)
{
    return (char)('0' + i % 64);
}

static size_t print_pattern(struct console_test *t, uint64_t from, size_t len)
{
    char *buf = malloc(len);
    size_t n;

    for (size_t i = 0; i < len; i++)
        buf[i] = nth(from + i);
    n = chardev_write(t->c, (uint8_t *)buf, len);
    free(buf);
    return n;
}

/* Print all of it. Only the main loop's turns are waited for, and few of them: no client can hold it up. */
static void print_all(struct console_test *t, uint64_t from, size_t len)
{
    size_t n = print_pattern(t, from, len);

    for (unsigned int turns = 0; n < len && turns < 4; turns++) {
        run_loop(t);
        n += print_pattern(t, from + n, len - n);
    }
    assert_int_equal(n, len);
}

/* Wait until fd has given `len` bytes (or ends), while the main loop runs. Returns what there was. */
static size_t await(struct console_test *t, int fd, char *buf, size_t len)
{
    size_t got = 0;

    for (unsigned int rounds = 0; got < len && rounds < 1000; rounds++) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ssize_t n;

        event_base_loop(t->events, EVLOOP_NONBLOCK);
        if (poll(&p, 1, 10) <= 0)
            continue;
        n = read(fd, buf + got, len - got);
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    buf[got] = '\0';
    return got;
}

static void expect(struct console_test *t, int fd, const char *text)
{
    char buf[8192];

    await(t, fd, buf, strlen(text));
    assert_string_equal(buf, text);
}

/* What ends with a text, when it is not known how it begins. */
static void expect_until(struct console_test *t, int fd, const char *text, char *buf, size_t size)
{
    size_t len = 0;

    do {
        size_t n = await(t, fd, buf + len, 1);

        if (!n)
            fail_msg("\"%s\" does not come, only \"%s\"", text, buf);
        len += n;
    } while (!strstr(buf, text) && len < size - 1);
    assert_non_null(strstr(buf, text));
}

/* Wait for the peer to be closed. */
static void expect_end(struct console_test *t, int fd)
{
    char c[2];

    assert_int_equal(await(t, fd, c, 1), 0);
    run_loop(t);
    assert_true(recv(fd, c, 1, MSG_DONTWAIT) == 0);
}

static void set_flag(evutil_socket_t fd, short what, void *opaque)
{
    *(int *)opaque = 1;
}

/* Run the main loop until `text` has been typed. */
static void expect_typed(struct console_test *t, const char *text)
{
    const struct timeval limit = {.tv_sec = 20};
    int over = 0;
    struct event *guard = evtimer_new(t->events, set_flag, &over);

    evtimer_add(guard, &limit);
    while (!over && t->typed_len < strlen(text))
        event_base_loop(t->events, EVLOOP_ONCE);
    event_free(guard);
    assert_string_equal(t->typed, text);
    t->typed[t->typed_len = 0] = '\0';
}

/* How often the main loop is woken up in a time, by anything but the end of it. */
static unsigned int wakeups(struct console_test *t, unsigned int ms)
{
    const struct timeval limit = {.tv_usec = ms * 1000};
    unsigned int count = 0;
    int over = 0;
    struct event *end = evtimer_new(t->events, set_flag, &over);

    evtimer_add(end, &limit);
    while (!over) {
        event_base_loop(t->events, EVLOOP_ONCE);
        count += !over;
    }
    event_free(end);
    return count;
}

/* Once what is under way is done nothing wakes the main loop: a timer that goes on, or a busy loop, never lets it be. */
static void assert_idle(struct console_test *t)
{
    for (int i = 0; i < 50; i++)
        if (wakeups(t, 60) == 0)
            return;
    fail_msg("the main loop does not come to rest");
}

static int dial(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(addr.sun_path, path);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return fd;
}

static int connect_client(struct console_test *t)
{
    int fd = dial(t->path);

    run_loop(t);
    return fd;
}

static void send_text(int fd, const char *text)
{
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
}

/* -- null -- */

static void test_null(void **state)
{
    struct console_test *t = *state;
    struct chardev_config config = {.kind = CHARDEV_NULL};

    assert_int_equal(open_console(t, CHARDEV_NULL, NULL), 0);
    assert_int_equal(print(t, "nothing"), 7);
    assert_null(chardev_path(t->c));
    assert_int_equal(chardev_dropped(t->c), 0);
    assert_int_equal(chardev_inject_input(t->c, (const uint8_t *)"hi", 2), 2);
    expect_typed(t, "hi");
    chardev_drain(t->c, 1000);
    assert_idle(t);
    chardev_free(t->c);
    /* Also without a main loop */
    assert_int_equal(chardev_new(&config, NULL, &t->c), 0);
    chardev_accept_input(t->c);
    assert_int_equal(print(t, "nothing"), 7);
    chardev_drain(t->c, 0);
}

/* -- file -- */

static void test_file(void **state)
{
    struct console_test *t = *state;
    char *text;
    struct stat st;
    size_t len;

    assert_int_equal(open_console(t, CHARDEV_FILE, t->path), 0);
    assert_string_equal(chardev_path(t->c), t->path);
    assert_int_equal(print(t, "first\n"), 6);
    run_loop(t);
    assert_int_equal(stat(t->path, &st), 0);
    assert_int_equal(st.st_size, 6);
    assert_int_equal(st.st_mode & 0777 & ~0640, 0);
    /* More comes in the same burst, and all of it at the end */
    for (int i = 0; i < 5; i++)
        assert_int_equal(print(t, "again\n"), 6);
    chardev_drain(t->c, 0);
    assert_idle(t);
    assert_int_equal(print(t, "last\n"), 5);
    assert_idle(t);
    chardev_free(t->c);
    /* The next run appends */
    assert_int_equal(open_console(t, CHARDEV_FILE, t->path), 0);
    assert_int_equal(print(t, "second run\n"), 11);
    chardev_drain(t->c, 0);
    assert_int_equal(fd_read_file(t->path, 1000, &text, &len), 0);
    assert_string_equal(text, "first\nagain\nagain\nagain\nagain\nagain\nlast\nsecond run\n");
    assert_int_equal(chardev_dropped(t->c), 0);
    free(text);
}

/* Between two turns of the main loop only a ring's worth is taken; the guest is told when there is room. */
static void test_file_back_pressure(void **state)
{
    struct console_test *t = *state;
    size_t total = 0, len;
    char *text;

    assert_int_equal(open_console(t, CHARDEV_FILE, t->path), 0);
    while (total < 100000) {
        unsigned int before = t->writable;
        size_t n = print_pattern(t, total, 3000);

        assert_int_equal(n, RING);
        assert_int_equal(print(t, "x"), 0);
        total += n;
        run_loop(t);
        assert_int_equal(t->writable, before + 1);
    }
    run_loop(t);
    assert_int_equal(fd_read_file(t->path, 1 << 20, &text, &len), 0);
    assert_int_equal(len, total);
    for (size_t i = 0; i < len; i++)
        if (text[i] != nth(i))
            fail_msg("byte %zu differs", i);
    free(text);
}

static void test_file_full_disk(void **state)
{
    struct console_test *t = *state;

    assert_int_equal(open_console(t, CHARDEV_FILE, "/dev/full"), 0);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(print_pattern(t, 0, 1000), 1000);
        chardev_drain(t->c, 0);
    }
    assert_int_equal(chardev_dropped(t->c), 10000);
    assert_idle(t);
}

static void test_file_errors(void **state)
{
    struct console_test *t = *state;
    int fd;

    assert_int_equal(open_console(t, CHARDEV_FILE, "/nonexistent/x"), -ENOENT);
    assert_int_equal(open_console(t, CHARDEV_FILE, dir), -EISDIR);
    assert_int_equal(mkfifo(t->path, 0600), 0);
    assert_int_equal(open_console(t, CHARDEV_FILE, t->path), -ENXIO);
    fd = open(t->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    assert_int_equal(open_console(t, CHARDEV_FILE, t->path), 0);
    assert_int_equal(print(t, "fifo"), 4);
    expect(t, fd, "fifo");
    /* Its reader goes away: the guest does not care */
    close(fd);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(print_pattern(t, 0, 1000), 1000);
        chardev_drain(t->c, 0);
    }
    assert_int_equal(chardev_dropped(t->c), 10000);
}

/* -- socket -- */

static void test_socket(void **state)
{
    struct console_test *t = *state;
    struct stat st;
    int fd;

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    assert_string_equal(chardev_path(t->c), t->path);
    assert_int_equal(stat(t->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    /* Printed before anybody is there, without waking anybody */
    assert_int_equal(print(t, "early "), 6);
    assert_idle(t);
    fd = connect_client(t);
    expect(t, fd, "early ");
    assert_int_equal(print(t, "now"), 3);
    expect(t, fd, "now");
    send_text(fd, "typed");
    expect_typed(t, "typed");
    assert_idle(t);
    close(fd);
    run_loop(t);
    /* The next one gets what was, too */
    assert_int_equal(print(t, " later"), 6);
    fd = connect_client(t);
    expect(t, fd, "early now later");
    send_text(fd, "again");
    expect_typed(t, "again");
    assert_int_equal(chardev_dropped(t->c), 0);
    close(fd);
    chardev_free(t->c);
    t->c = NULL;
    assert_int_equal(stat(t->path, &st), -1);
}

static void test_socket_scrollback(void **state)
{
    struct console_test *t = *state;
    char buf[RING + 1];
    int fd;

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    for (unsigned int i = 0; i < 10; i++)
        assert_int_equal(print_pattern(t, i * 777, 777), 777);
    assert_int_equal(chardev_dropped(t->c), 7770 - RING);
    fd = connect_client(t);
    assert_int_equal(await(t, fd, buf, RING), RING);
    for (unsigned int i = 0; i < RING; i++)
        assert_int_equal(buf[i], nth(7770 - RING + i));
    assert_int_equal(chardev_dropped(t->c), 7770 - RING);
    /* One write larger than the ring */
    close(fd);
    run_loop(t);
    assert_int_equal(print_pattern(t, 0, 5 * RING), 5 * RING);
    assert_int_equal(chardev_dropped(t->c), 7770 - RING + 4 * RING);
    fd = connect_client(t);
    assert_int_equal(await(t, fd, buf, RING), RING);
    for (unsigned int i = 0; i < RING; i++)
        assert_int_equal(buf[i], nth(4 * RING + i));
    /* Seen once, it may go */
    assert_int_equal(print_pattern(t, 0, 5), 5);
    await(t, fd, buf, 5);
    close(fd);
    run_loop(t);
    assert_int_equal(print_pattern(t, 0, RING), RING);
    assert_int_equal(chardev_dropped(t->c), 7770 - RING + 4 * RING);
    assert_int_equal(print_pattern(t, 0, 1), 1);
    assert_int_equal(chardev_dropped(t->c), 7770 - RING + 4 * RING + 1);
}

static void test_socket_slow_client(void **state)
{
    struct console_test *t = *state;
    uint64_t printed = 0, received = 0, at = 0, lost = 0, all_lost = 0;
    char *buf = malloc(4 << 20), *mark;
    int fd, fast;
    size_t len = 0;

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    fd = connect_client(t);
    /* Megabytes at a client that does not read: the guest never waits */
    for (; printed < 3999999; printed += 999)
        print_all(t, printed, 999);
    assert_true(chardev_dropped(t->c) > 0);
    all_lost = chardev_dropped(t->c);
    /* Nothing wakes up for it either, and another client is served meanwhile */
    assert_idle(t);
    fast = connect_client(t);
    assert_int_equal(await(t, fast, buf, RING), RING);

    /* It gets the beginning, the news of how much is missing, and the end */
    for (unsigned int rounds = 0; rounds < 10000; rounds++) {
        ssize_t n = recv(fd, buf + len, (4 << 20) - 1 - len, MSG_DONTWAIT);

        run_loop(t);
        if (n > 0)
            len += (size_t)n;
        else if (rounds > 100)
            break;
    }
    buf[len] = '\0';
    mark = strstr(buf, "\r\n[umbra: ");
    assert_non_null(mark);
    assert_int_equal(sscanf(mark, "\r\n[umbra: %lu bytes of output lost]", &lost), 1);
    for (size_t i = 0; i < len; i++) {
        if (buf + i == mark) {
            i += (size_t)(strstr(mark, "]\r\n") + 3 - mark);
            at += lost;
        }
        if (buf[i] != nth(at++))
            fail_msg("byte %zu differs", i);
        received++;
    }
    assert_int_equal(received + lost, printed);
    assert_int_equal(lost, all_lost);
    assert_int_equal(chardev_dropped(t->c), all_lost);
    /* And is up to date again */
    assert_int_equal(print(t, "tail"), 4);
    expect(t, fd, "tail");
    close(fd);
    close(fast);
    free(buf);
}

static void test_socket_lag_counts(void **state)
{
    struct console_test *t = *state;
    uint64_t printed = 0, dropped;
    int fd;

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    fd = connect_client(t);
    while (!chardev_dropped(t->c)) {
        print_all(t, printed, 512);
        printed += 512;
        assert_true(printed < 64 << 20);
    }
    /* A client that leaves takes its losses with it into the count, once */
    dropped = chardev_dropped(t->c);
    close(fd);
    print_pattern(t, printed, 1);
    run_loop(t);
    assert_in_range(chardev_dropped(t->c), dropped, dropped + RING);
    dropped = chardev_dropped(t->c);
    run_loop(t);
    assert_int_equal(chardev_dropped(t->c), dropped);
}

static void test_socket_keyboard(void **state)
{
    struct console_test *t = *state;
    char buf[1024], holder[128];
    int a, b, c;

    snprintf(holder, sizeof(holder), "[umbra: pid %d (uid %u) has the keyboard; ", (int)getpid(), getuid());
    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    print(t, "old");
    a = connect_client(t);
    b = connect_client(t);
    /* The second one sees what was, then why it cannot type */
    expect(t, a, "old");
    expect_until(t, b, "when it is free]\r\n", buf, sizeof(buf));
    assert_memory_equal(buf, "old\r\n", 5);
    assert_non_null(strstr(buf, holder));
    c = connect_client(t);
    expect_until(t, c, "when it is free]\r\n", buf, sizeof(buf));
    /* All see the output, one types */
    print(t, "new");
    expect(t, a, "new");
    expect(t, b, "new");
    expect(t, c, "new");
    send_text(b, "from b");
    send_text(c, "from c");
    run_loop(t);
    send_text(a, "from a");
    expect_typed(t, "from a");
    /* The next in line gets it, and is told */
    close(a);
    expect(t, b, "\r\n[umbra: you have the keyboard now]\r\n");
    send_text(c, "not yet");
    run_loop(t);
    send_text(b, "b now");
    expect_typed(t, "b now");
    /* One that ends only its own side gives the keyboard away and still sees the output */
    shutdown(b, SHUT_WR);
    expect(t, c, "\r\n[umbra: you have the keyboard now]\r\n");
    print(t, "more");
    expect(t, b, "more");
    expect(t, c, "more");
    send_text(c, "c now");
    expect_typed(t, "c now");
    assert_idle(t);
    close(b);
    close(c);
    run_loop(t);
    a = connect_client(t);
    expect(t, a, "oldnewmore");
    send_text(a, "alone");
    expect_typed(t, "alone");
    close(a);
}

/* The guest takes no input: what is typed waits in the client's socket, and costs nothing. */
static void test_socket_input_waits(void **state)
{
    struct console_test *t = *state;
    char *text = malloc(10001);
    int fd;

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    fd = connect_client(t);
    t->room = 0;
    for (int i = 0; i < 10000; i++)
        text[i] = nth((uint64_t)i);
    text[10000] = '\0';
    send_text(fd, text);
    run_loop(t);
    assert_int_equal(t->typed_len, 0);
    assert_idle(t);
    /* Even when the client is gone by then: it had typed it */
    close(fd);
    assert_idle(t);
    for (int i = 0; i < 5000 && t->typed_len < 10000; i++) {
        t->room = 16;
        chardev_accept_input(t->c);
        run_loop(t);
    }
    assert_string_equal(t->typed, text);
    free(text);
}

/* A client that left while the guest takes no input must not keep the keyboard from the next one. */
static void test_socket_ghost(void **state)
{
    struct console_test *t = *state;
    char text[CHARDEV_INPUT_SIZE + 1001], buf[256];
    int fd;

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    t->room = 0;
    fd = connect_client(t);
    memset(text, 'g', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    send_text(fd, text);
    run_loop(t);
    close(fd);
    /* No word of a keyboard that somebody else has */
    fd = connect_client(t);
    print(t, "hello");
    expect(t, fd, "hello");
    send_text(fd, "!");
    t->room = SIZE_MAX;
    chardev_accept_input(t->c);
    for (int i = 0; i < 1000 && t->typed_len < sizeof(text); i++)
        run_loop(t);
    assert_int_equal(t->typed_len, sizeof(text));
    assert_non_null(strchr(t->typed, '!'));
    close(fd);

    /* Ghosts by the dozen leave room for the living */
    t->room = 0;
    for (int i = 0; i < 3 * CHARDEV_MAX_CLIENTS; i++) {
        fd = connect_client(t);
        send_text(fd, text);
        run_loop(t);
        close(fd);
    }
    fd = connect_client(t);
    print(t, "still there");
    expect_until(t, fd, "still there", buf, sizeof(buf));
    close(fd);
}

static void test_socket_limit(void **state)
{
    struct console_test *t = *state;
    int fds[CHARDEV_MAX_CLIENTS], extra;
    char buf[256];

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    for (int i = 0; i < CHARDEV_MAX_CLIENTS; i++)
        fds[i] = connect_client(t);
    extra = connect_client(t);
    expect(t, extra, "[umbra: this console has 16 clients already, which is the limit]\r\n");
    expect_end(t, extra);
    close(extra);
    /* One that has gone, even unnoticed, makes room */
    shutdown(fds[5], SHUT_WR);
    run_loop(t);
    close(fds[5]);
    fds[5] = connect_client(t);
    print(t, "all");
    for (int i = 0; i < CHARDEV_MAX_CLIENTS; i++) {
        expect_until(t, fds[i], "all", buf, sizeof(buf));
        close(fds[i]);
    }
    run_loop(t);
    assert_idle(t);
}

static void test_socket_out_of_descriptors(void **state)
{
    struct console_test *t = *state;
    struct rlimit limit, low;
    int fd, next;

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    fd = dial(t->path);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    next = dup(0);
    close(next);
    low = limit;
    low.rlim_cur = (rlim_t)next;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    /* It does not spin on the waiting client */
    assert_idle(t);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    print(t, "hello");
    expect(t, fd, "hello");
    close(fd);
}

static void test_socket_errors(void **state)
{
    struct console_test *t = *state;
    struct chardev_config config = {.kind = CHARDEV_SOCKET, .path = t->path};
    struct chardev *second = NULL;
    char longest[256];

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    assert_int_equal(chardev_new(&config, t->events, &second), -EADDRINUSE);
    assert_null(second);
    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    config.path = longest;
    assert_int_equal(chardev_new(&config, t->events, &second), -ENAMETOOLONG);
    config.path = "/dev/null";
    assert_int_equal(chardev_new(&config, t->events, &second), -EEXIST);
    /* A client that connects and is gone again before it is looked at */
    for (int i = 0; i < 10; i++)
        close(dial(t->path));
    run_loop(t);
    print(t, "x");
    run_loop(t);
    assert_idle(t);
}

static void test_drain(void **state)
{
    struct console_test *t = *state;
    char buf[256];
    int fd;

    assert_int_equal(open_console(t, CHARDEV_SOCKET, t->path), 0);
    fd = connect_client(t);
    /* What was printed last goes out without the main loop */
    print(t, "Power down");
    chardev_drain(t->c, 1000);
    assert_int_equal(recv(fd, buf, sizeof(buf), MSG_DONTWAIT), 10);
    /* One that does not read is not waited for without end */
    for (int i = 0; i < 1000; i++)
        print_all(t, 0, 999);
    chardev_drain(t->c, 20);
    assert_true(chardev_dropped(t->c) > 0);
    close(fd);
    chardev_drain(t->c, 1000);
}

/* -- pty -- */

static int open_pty(struct console_test *t)
{
    int fd = open(chardev_path(t->c), O_RDWR | O_NOCTTY | O_CLOEXEC);

    assert_true(fd >= 0);
    run_loop(t);
    return fd;
}

static void test_pty(void **state)
{
    struct console_test *t = *state;
    uint64_t printed = 0;
    char buf[RING + 1];
    struct stat st;
    int fd;

    assert_int_equal(open_console(t, CHARDEV_PTY, t->path), 0);
    assert_memory_equal(chardev_path(t->c), "/dev/pts/", 9);
    assert_int_equal(lstat(t->path, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    print(t, "early\n");
    assert_idle(t);
    assert_int_equal(t->typed_len, 0);
    fd = open_pty(t);
    /* As it is: no echo, no CR made of it */
    expect(t, fd, "early\n");
    send_text(fd, "line\r\n\x03\x04\x11\x13");
    expect_typed(t, "line\r\n\x03\x04\x11\x13");
    assert_idle(t);
    close(fd);
    run_loop(t);
    assert_idle(t);
    /* Nobody has it open: the guest prints on */
    for (int i = 0; i < 100; i++) {
        assert_int_equal(print_pattern(t, printed, 1000), 1000);
        printed += 1000;
    }
    assert_idle(t);
    fd = open_pty(t);
    assert_int_equal(await(t, fd, buf, RING), RING);
    for (unsigned int i = 0; i < RING; i++)
        assert_int_equal(buf[i], nth(printed - RING + i));
    send_text(fd, "back");
    expect_typed(t, "back");
    /* Open, but not read: the guest prints on all the same */
    for (int i = 0; i < 100; i++)
        print_all(t, 0, 1000);
    assert_true(chardev_dropped(t->c) > 0);
    assert_idle(t);
    close(fd);
    run_loop(t);
    chardev_free(t->c);
    t->c = NULL;
    assert_int_equal(lstat(t->path, &st), -1);
}

static void test_pty_link(void **state)
{
    struct console_test *t = *state;
    struct stat st;
    int fd;

    /* An old link is replaced, nothing else is */
    assert_int_equal(symlink("/dev/pts/99999", t->path), 0);
    assert_int_equal(open_console(t, CHARDEV_PTY, t->path), 0);
    fd = open(t->path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    assert_true(fd >= 0);
    close(fd);
    /* A link that somebody has changed since is not ours to remove */
    assert_int_equal(unlink(t->path), 0);
    assert_int_equal(symlink("/dev/null", t->path), 0);
    chardev_free(t->c);
    t->c = NULL;
    assert_int_equal(lstat(t->path, &st), 0);
    unlink(t->path);
    fd = open(t->path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(fd);
    assert_int_equal(open_console(t, CHARDEV_PTY, t->path), -EEXIST);
    assert_int_equal(open_console(t, CHARDEV_PTY, "/nonexistent/x"), -ENOENT);
    assert_int_equal(open_console(t, CHARDEV_PTY, NULL), 0);
    assert_int_equal(lstat(t->path, &st), 0);
}

/* -- stdio -- */

static int saved_stdio[2] = {-1, -1};

static void replace_stdio(int in_fd, int out_fd)
{
    fflush(stdout);
    for (int i = 0; i < 2; i++)
        if (saved_stdio[i] < 0)
            saved_stdio[i] = fcntl(i, F_DUPFD_CLOEXEC, 10);
    dup2(in_fd, 0);
    dup2(out_fd, 1);
}

static int teardown_stdio(void **state)
{
    struct console_test *t = *state;

    chardev_free(t->c);
    t->c = NULL;
    for (int i = 0; i < 2; i++)
        if (saved_stdio[i] >= 0) {
            dup2(saved_stdio[i], i);
            close(saved_stdio[i]);
            saved_stdio[i] = -1;
        }
    return teardown(state);
}

static void test_stdio_pipes(void **state)
{
    struct console_test *t = *state;
    struct chardev_config config = {.kind = CHARDEV_STDIO};
    struct chardev *second = NULL;
    int in[2], out[2];

    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    replace_stdio(in[0], out[1]);
    assert_int_equal(open_console(t, CHARDEV_STDIO, NULL), 0);
    assert_null(chardev_path(t->c));
    assert_int_equal(chardev_new(&config, t->events, &second), -EBUSY);
    /* Other users of the pipes do not find them nonblocking */
    assert_false(fcntl(0, F_GETFL) & O_NONBLOCK);
    assert_false(fcntl(1, F_GETFL) & O_NONBLOCK);
    print(t, "out");
    expect(t, out[0], "out");
    /* No escapes: it is not a terminal */
    send_text(in[1], "in\x01x");
    expect_typed(t, "in\x01x");
    assert_int_equal(t->quits, 0);
    /* The end of the input is not the end of the console */
    close(in[1]);
    run_loop(t);
    assert_idle(t);
    print(t, "more");
    expect(t, out[0], "more");
    /* Not read: the guest has to wait, then goes on */
    for (int i = 0; i < 1000 && print_pattern(t, 0, 1000) > 0; i++)
        chardev_drain(t->c, 0);
    assert_int_equal(print(t, "x"), 0);
    assert_idle(t);
    char *buf = malloc(1 << 20);
    t->writable = 0;
    for (int i = 0; i < 1000 && !t->writable; i++)
        await(t, out[0], buf, 1000);
    assert_int_equal(t->writable, 1);
    assert_int_equal(chardev_dropped(t->c), 0);
    /* Its reader is gone: the guest has not to wait any more */
    close(out[0]);
    close(out[1]);
    close(1);
    open("/dev/null", O_WRONLY);
    for (int i = 0; i < 100; i++)
        print_all(t, 0, 1000);
    assert_int_equal(print_pattern(t, 0, 5000), 5000);
    assert_true(chardev_dropped(t->c) > 0);
    assert_idle(t);
    close(in[0]);
    free(buf);
}

static void test_stdio_files(void **state)
{
    struct console_test *t = *state;
    char text[6001], *written;
    int in, out, sp[2];
    char name[160];
    size_t len;

    snprintf(name, sizeof(name), "%s/input", dir);
    in = open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    unlink(name);
    out = open(t->path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    for (int i = 0; i < 6000; i++)
        text[i] = nth((uint64_t)i);
    text[6000] = '\0';
    send_text(in, text);
    lseek(in, 0, SEEK_SET);
    replace_stdio(in, out);
    assert_int_equal(open_console(t, CHARDEV_STDIO, NULL), 0);
    t->room = 100;
    run_loop(t);
    assert_int_equal(t->typed_len, 100);
    t->room = SIZE_MAX;
    chardev_accept_input(t->c);
    run_loop(t);
    assert_string_equal(t->typed, text);
    print(t, "output\n");
    assert_idle(t);
    assert_int_equal(fd_read_file(t->path, 1000, &written, &len), 0);
    assert_string_equal(written, "output\n");
    free(written);
    close(in);
    close(out);
    chardev_free(t->c);

    /* A socket both ways, as under inetd */
    t->typed_len = 0;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sp), 0);
    replace_stdio(sp[0], sp[0]);
    assert_int_equal(open_console(t, CHARDEV_STDIO, NULL), 0);
    assert_false(fcntl(0, F_GETFL) & O_NONBLOCK);
    print(t, "to socket");
    expect(t, sp[1], "to socket");
    send_text(sp[1], "from socket");
    expect_typed(t, "from socket");
    close(sp[0]);
    close(sp[1]);
    run_loop(t);
    assert_idle(t);
}

static int make_terminal(char *name, size_t size)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);

    assert_true(master >= 0);
    assert_int_equal(grantpt(master), 0);
    assert_int_equal(unlockpt(master), 0);
    assert_int_equal(ptsname_r(master, name, size), 0);
    return master;
}

static void test_stdio_terminal(void **state)
{
    struct console_test *t = *state;
    struct termios before, during, after;
    char name[64], buf[512];
    int master = make_terminal(name, sizeof(name)), tty = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);

    assert_true(tty >= 0);
    assert_int_equal(tcgetattr(tty, &before), 0);
    assert_true(before.c_lflag & ICANON);
    replace_stdio(tty, tty);
    assert_int_equal(open_console(t, CHARDEV_STDIO, NULL), 0);
    assert_int_equal(tcgetattr(tty, &during), 0);
    assert_false(during.c_lflag & (ICANON | ECHO | ISIG));
    /* Log lines of ours still return the carriage */
    assert_true((during.c_oflag & (OPOST | ONLCR)) == (OPOST | ONLCR));
    assert_false(fcntl(tty, F_GETFL) & O_NONBLOCK);

    print(t, "login: ");
    expect(t, master, "login: ");
    send_text(master, "root\r\x03\x1a\x01\x01.");
    expect_typed(t, "root\r\x03\x1a\x01.");
    /* The escape and its letter may come apart; others are swallowed */
    send_text(master, "a\x01");
    expect_typed(t, "a");
    send_text(master, "bc\x01qd");
    expect_typed(t, "cd");
    assert_int_equal(t->breaks, 1);
    send_text(master, "\x01h");
    expect_until(t, master, "Ctrl-A x ends it", buf, sizeof(buf));
    expect_until(t, master, "]\r", buf, sizeof(buf));
    assert_int_equal(t->quits, 0);
    send_text(master, "\x01xafter");
    expect_typed(t, "after");
    assert_int_equal(t->quits, 1);
    assert_idle(t);

    /* Whoever stopped us may have left the terminal as it likes it */
    assert_int_equal(tcsetattr(tty, TCSANOW, &before), 0);
    raise(SIGCONT);
    run_loop(t);
    assert_int_equal(tcgetattr(tty, &during), 0);
    assert_false(during.c_lflag & ICANON);

    chardev_free(t->c);
    t->c = NULL;
    assert_int_equal(tcgetattr(tty, &after), 0);
    assert_int_equal(after.c_lflag, before.c_lflag);
    assert_int_equal(after.c_iflag, before.c_iflag);
    assert_int_equal(after.c_oflag, before.c_oflag);
    close(tty);
    close(master);
}

static void test_stdio_hangup(void **state)
{
    struct console_test *t = *state;
    char name[64];
    int master = make_terminal(name, sizeof(name)), tty = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);

    replace_stdio(tty, tty);
    assert_int_equal(open_console(t, CHARDEV_STDIO, NULL), 0);
    close(master);
    for (int i = 0; i < 10; i++) {
        assert_true(print_pattern(t, 0, 500) > 0);
        run_loop(t);
    }
    assert_idle(t);
    close(tty);
}

/* In a shell's background: the console's owner. It reports 'r', and later what was typed. */
static _Noreturn void background_child(const char *tty_name, int report)
{
    struct console_test t = {.events = event_base_new()};
    struct termios attr;
    char c;

    if (open_console(&t, CHARDEV_STDIO, NULL) < 0)
        _exit(10);
    run_loop(&t);
    if (tcgetattr(0, &attr) < 0 || !(attr.c_lflag & ICANON))
        _exit(11);
    if (write(report, "r", 1) != 1)
        _exit(12);
    while (!t.typed_len)
        event_base_loop(t.events, EVLOOP_ONCE);
    c = t.typed[0];
    if (tcgetattr(0, &attr) < 0 || attr.c_lflag & ICANON)
        _exit(13);
    if (write(report, &c, 1) != 1)
        _exit(14);
    chardev_free(t.c);
    _exit(tcgetattr(0, &attr) == 0 && attr.c_lflag & ICANON ? 0 : 15);
}

/* The shell: has the terminal, starts the child in the background, and gives it the foreground when told so. */
static _Noreturn void shell_child(const char *tty_name, int command, int report)
{
    int status, tty;
    pid_t pid;
    char c;

    setsid();
    alarm(60);
    tty = open(tty_name, O_RDWR);
    if (tty < 0 || ioctl(tty, TIOCSCTTY, 0) < 0)
        _exit(20);
    dup2(tty, 0);
    dup2(tty, 1);
    signal(SIGTTOU, SIG_IGN);
    pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        signal(SIGTTOU, SIG_DFL);
        alarm(60);
        background_child(tty_name, report);
    }
    setpgid(pid, pid);
    if (read(command, &c, 1) != 1 || tcsetpgrp(0, pid) < 0 || kill(pid, SIGCONT) < 0)
        _exit(21);
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        _exit(22);
    _exit(WEXITSTATUS(status));
}

static void test_stdio_background(void **state)
{
    char name[64], c = 0;
    int master = make_terminal(name, sizeof(name)), command[2], report[2], status;
    struct pollfd p;
    pid_t pid;

    assert_int_equal(pipe(command), 0);
    assert_int_equal(pipe(report), 0);
    /* Typed for the shell, not for the VM; reading it would stop the VM */
    send_text(master, "x\n");
    pid = fork();
    if (pid == 0)
        shell_child(name, command[0], report[1]);
    close(report[1]);
    p = (struct pollfd){.fd = report[0], .events = POLLIN};
    assert_int_equal(poll(&p, 1, 30000), 1);
    assert_int_equal(read(report[0], &c, 1), 1);
    assert_int_equal(c, 'r');
    /* "fg" */
    send_text(command[1], "f");
    assert_int_equal(poll(&p, 1, 30000), 1);
    assert_int_equal(read(report[0], &c, 1), 1);
    assert_int_equal(c, 'x');
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(report[0]);
    close(command[0]);
    close(command[1]);
    close(master);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_null, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_back_pressure, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_full_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_scrollback, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_slow_client, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_lag_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_keyboard, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_input_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_ghost, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_out_of_descriptors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drain, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pty, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pty_link, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stdio_pipes, setup, teardown_stdio),
        cmocka_unit_test_setup_teardown(test_stdio_files, setup, teardown_stdio),
        cmocka_unit_test_setup_teardown(test_stdio_terminal, setup, teardown_stdio),
        cmocka_unit_test_setup_teardown(test_stdio_hangup, setup, teardown_stdio),
        cmocka_unit_test_setup_teardown(test_stdio_background, setup, teardown_stdio),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
