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
#include <unistd.h>

#include "base/fd.h"
#include "base/size.h"
#include "base/util.h"
#include "daemon/configuration.h"
#include "migrate/snapshot-meta.h"

#define ARGS_MAX 16

/* Parse a command line given as words; the caller clears *c. */
static int parse(struct config *c, char *error, ...)
{
    static char program[] = "umbrad";
    char *argv[ARGS_MAX + 1] = {program};
    int argc = 1;
    va_list ap;

    error[0] = '\0';
    config_init(c);
    va_start(ap, error);
    while (argc < ARGS_MAX && (argv[argc] = va_arg(ap, char *)))
        argc++;
    va_end(ap);
    argv[argc] = NULL;
    return config_parse_args(c, argc, argv, error);
}

static void test_defaults(void **state)
{
    char error[CONFIG_ERROR_MAX];
    struct config c;

    assert_int_equal(parse(&c, error, "--kernel", "/k", "--runtime-dir", "/r", NULL), 0);
    assert_string_equal(c.name, "umbra");
    assert_string_equal(c.kernel, "/k");
    assert_string_equal(c.runtime_dir, "/r");
    assert_int_equal(c.memory, CONFIG_DEFAULT_MEMORY);
    assert_int_equal(c.cpus, 1);
    assert_int_equal(c.console, CHARDEV_SOCKET);
    assert_int_equal(c.paging, CONFIG_PAGING_SHADOW);
    assert_int_equal(config_check(&c, error), 0);
    config_clear(&c);
}

static void test_every_option(void **state)
{
    char error[CONFIG_ERROR_MAX];
    struct config c;

    assert_int_equal(parse(&c, error, "--name=vm1", "--kernel=/k", "--initrd=/i", "--cmdline=a b", "--memory=2G", "--cpus=32",
                           "--console=file:/c", "--paging=any", "--dirty-log=ring", "--hugepages", "--prealloc", "--paused",
                           "--test-device", "--runtime-dir=/r", NULL),
                     0);
    assert_string_equal(c.name, "vm1");
    assert_string_equal(c.initrd, "/i");
    assert_string_equal(c.cmdline, "a b");
    assert_int_equal(c.memory, 2 * GiB);
    assert_int_equal(c.cpus, 32);
    assert_int_equal(c.console, CHARDEV_FILE);
    assert_string_equal(c.console_path, "/c");
    assert_int_equal(c.paging, CONFIG_PAGING_ANY);
    assert_int_equal(c.dirty_log, DIRTY_RING);
    assert_true(c.hugepages && c.prealloc && c.paused && c.test_device);
    assert_int_equal(config_check(&c, error), 0);
    config_clear(&c);
}

static void test_mmu_options(void **state)
{
    static const char text[] = "{\"kernel\": \"/k\", \"mmu\": {\"tracking\": \"precise\", \"sync-interval-us\": 20000, "
                               "\"cpu-budget\": 3, \"max-memory\": \"64M\", \"page-limit\": 5000, \"floods\": false}}";
    static const char *const bad[] = {
        "{\"mmu\": {\"speed\": 1}}",
        "{\"mmu\": {\"tracking\": {}}}",
        "{\"mmu\": {\"tracking\": \"always\"}}",
        "{\"mmu\": {\"floods\": 1}}",
        "{\"mmu\": []}",
    };
    char error[CONFIG_ERROR_MAX];
    struct config c;

    config_init(&c);
    assert_int_equal(c.mmu.mode, TRACKER_LIVE);
    assert_int_equal(c.mmu.cpu_budget, 1);
    assert_int_equal(c.page_limit, CONFIG_PAGE_LIMIT_AUTO);
    assert_int_equal(config_parse_json(&c, "f", text, strlen(text), error), 0);
    assert_int_equal(c.mmu.mode, TRACKER_PRECISE);
    assert_int_equal(c.mmu.interval_us, 20000);
    assert_int_equal(c.mmu.cpu_budget, 3);
    assert_int_equal(c.mmu.max_memory, 64 * MiB);
    assert_false(c.mmu.floods);
    assert_int_equal(c.page_limit, CONFIG_PAGE_LIMIT_MANUAL);
    assert_int_equal(c.page_limit_pages, 5000);
    config_clear(&c);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        config_init(&c);
        assert_int_equal(config_parse_json(&c, "f", bad[i], strlen(bad[i]), error), -EINVAL);
        assert_non_null(strstr(error, "mmu"));
        config_clear(&c);
    }
    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--mmu=on-demand", "--mmu-floods=off", "--mmu-page-limit=off", NULL), 0);
    assert_int_equal(c.mmu.mode, TRACKER_ON_DEMAND);
    assert_false(c.mmu.floods);
    assert_int_equal(c.page_limit, CONFIG_PAGE_LIMIT_OFF);
    config_clear(&c);
}

static void test_refused_options(void **state)
{
    static const struct {
        const char *arg, *in_error;
    } cases[] = {
        {"--memory=0", "--memory: 0 bytes"},
        {"--memory=1000", "1000 bytes"},
        {"--memory=1048577", "multiple"},
        {"--memory=600G", "512M"},
        {"--memory=1E", "is no size"},
        {"--memory=-1", "is no size"},
        {"--cpus=0", "1 to 32"},
        {"--cpus=33", "1 to 32"},
        {"--cpus=4x", "1 to 32"},
        {"--name=../x", "is no VM name"},
        {"--name=", "is no VM name"},
        {"--console=tty", "none, stdio, socket, pty, file:PATH"},
        {"--console=file:", "path is empty"},
        {"--console=file:PATH", NULL},
        {"--paging=ept", "shadow, any"},
        {"--dirty-log=both", "bitmap, ring"},
        {"--mmu=on", "off, on-demand, live, precise"},
        {"--mmu-sync-interval-us=999", "1000 to 10000000"},
        {"--mmu-sync-interval-us=10000001", "1000 to 10000000"},
        {"--mmu-sync-interval-us=0", NULL},
        {"--mmu-cpu-budget=0", "1 to 100"},
        {"--mmu-cpu-budget=101", "1 to 100"},
        {"--mmu-max-memory=1M", NULL},
        {"--mmu-max-memory=1023K", "is less than 1 MiB"},
        {"--mmu-max-memory=x", "is no size"},
        {"--mmu-page-limit=63", "neither auto nor off nor a number of pages from 64"},
        {"--mmu-page-limit=automatic", "neither auto nor off"},
        {"--mmu-page-limit=off", NULL},
        {"--mmu-floods=true", "on, off"},
        {"--kernel=", "path is empty"},
        {"--disk=", "path is empty"},
        {"--disk=,ro", "path is empty"},
        {"--net=", "none of tap, passt, user, fd="},
        {"--net=tap,queues=0", "1 to 16"},
        {"--net=tap,queues=17", "1 to 16"},
        {"--net=tap,ifname=", "no name of an interface"},
        {"--net=tap,ifname=0123456789abcdef", "1 to 15 bytes"},
        {"--net=tap,ifname=a/b", "no name of an interface"},
        {"--net=tap,socket=/x", "socket does not go with tap"},
        {"--net=tap,", "\"\" is none of"},
        {"--net=tap,mac=52:54:00:12:34", "52:54:00:12:34:56"},
        {"--net=tap,mac=52:54:00:12:34:5g", "is not written like"},
        {"--net=tap,mac=52:54:00:12:34:567", "is not written like"},
        {"--net=tap,mac=53:54:00:12:34:56", "a group's address"},
        {"--net=user,mtu=67", "68 to 65535"},
        {"--net=user,tcp=", "no list of ports"},
        {"--net=user,tcp=1 2", "no list of ports"},
        {"--net=passt", "wants socket="},
        {"--net=passt,socket=", "path is empty"},
        {"--net=fd=", "descriptor from 3 on"},
        {"--net=fd=2", "descriptor from 3 on"},
        {"--net=fd=5:5", "stands there twice"},
        {"--net=fd=3:4:5:6:7:8:9:10:11:12:13:14:15:16:17:18:19", "more than 16 descriptors"},
        {"--net=fd=5,queues=2", "queues does not go with fd"},
        {"--disk=/d,rw", "--disk: \"rw\" is none of ro, direct"},
        {"--disk=/d,", "\"\" is none of"},
        {"--disk=/d,queues=0", "1 to 16"},
        {"--disk=/d,queues=17", "1 to 16"},
        {"--disk=/d,aio=native", "auto, io_uring, threads"},
        {"--disk=/d,serial=", "1 and 20"},
        {"--disk=/d,serial=123456789012345678901", "1 and 20"},
        {"--disk=/d,serial=a b", "printable"},
        {"--rng=maybe", "off, on"},
        {"--rng=off,rate=64K", "takes no more words"},
        {"--rng=on,rate=63", "from 64 bytes to 1T"},
        {"--rng=on,rate=fast", "is not a size"},
        {"--rng=on,speed=1", "is not rate=BYTES"},
        {"--balloon=on,", "\"\" is none of free-page-reporting, deflate-on-oom"},
        {"--balloon=", "off, on"},
        {"--virtio-console=tty", "none, stdio, socket, pty, file:PATH"},
        {"--virtio-console=file:", "path is empty"},
        {"--no-such", "--no-such: no such option"},
        {"--paused=1", "no such option, or a value"},
        {"--kernel", "--kernel wants a value"},
        {"stray", "\"stray\" is not an option"},
        {"--config=/nonexistent/x.json", "/nonexistent/x.json: No such file"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char error[CONFIG_ERROR_MAX];
        struct config c;
        int r = parse(&c, error, "--runtime-dir=/r", cases[i].arg, NULL);

        print_message("# %s: %s\n", cases[i].arg, error);
        if (cases[i].in_error) {
            assert_true(r < 0);
            /* The memory limit is printed as a size; its text is checked by its unit only. */
            if (strcmp(cases[i].arg, "--memory=600G") == 0)
                assert_non_null(strstr(error, "511 GiB"));
            else
                assert_non_null(strstr(error, cases[i].in_error));
            assert_null(strchr(error, '\n'));
        } else {
            assert_int_equal(r, 0);
        }
        config_clear(&c);
    }
}

static void test_no_kernel(void **state)
{
    char error[CONFIG_ERROR_MAX];
    struct config c;

    assert_int_equal(parse(&c, error, "--runtime-dir=/r", NULL), 0);
    assert_int_equal(config_check(&c, error), -EINVAL);
    assert_non_null(strstr(error, "--kernel"));
    config_clear(&c);
}

/* What --print-config prints is a file that says the same. */
static void test_print(void **state)
{
    char error[CONFIG_ERROR_MAX];
    struct config c, again;
    const char *text;

    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--name", "007", "--kernel", "/a b", "--cpus", "4", "--memory=2G",
                           "--paused", "--sandbox=errno", "--print-config", NULL),
                     0);
    assert_int_equal(c.action, CONFIG_PRINT_CONFIG);
    text = json_object_to_json_string(c.given);
    config_init(&again);
    assert_int_equal(config_parse_json(&again, "again.json", text, strlen(text), error), 0);
    assert_string_equal(again.name, "007");
    assert_string_equal(again.kernel, "/a b");
    assert_int_equal(again.cpus, 4);
    assert_int_equal(again.memory, 2 * GiB);
    assert_true(again.paused);
    assert_int_equal(again.sandbox, SANDBOX_ERRNO);
    config_clear(&again);
    config_clear(&c);
}

static int parse_text(struct config *c, const char *text, char *error)
{
    config_init(c);
    return config_parse_json(c, "vm.json", text, strlen(text), error);
}

static void test_json(void **state)
{
    char error[CONFIG_ERROR_MAX];
    struct config c;

    assert_int_equal(parse_text(&c,
                                "{ /* a comment */\n \"kernel\": \"/k\", \"memory\": \"1G\", // another\n \"cpus\": 4,\n"
                                " \"paused\": true, \"prealloc\": false, \"console\": \"pty\" } // end\n/* of it */\n",
                                error),
                     0);
    assert_string_equal(c.kernel, "/k");
    assert_int_equal(c.memory, GiB);
    assert_int_equal(c.cpus, 4);
    assert_true(c.paused);
    assert_false(c.prealloc);
    assert_int_equal(c.console, CHARDEV_PTY);
    config_clear(&c);
}

static void test_nets(void **state)
{
    char error[CONFIG_ERROR_MAX] = "";
    struct config c;

    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--net", "tap,ifname=un0,queues=4,mac=52:54:00:aB:cD:eF,mtu=9000", "--net",
                           "fd=7:9", "--net", "user,tcp=2222:22,,8080", "--net", "passt,socket=/a,,b", NULL),
                     0);
    assert_int_equal(c.net_count, 4);
    assert_int_equal(c.nets[0].kind, NET_TAP);
    assert_string_equal(c.nets[0].ifname, "un0");
    assert_int_equal(c.nets[0].queues, 4);
    assert_int_equal(c.nets[0].mtu, 9000);
    assert_true(c.nets[0].set_mac);
    assert_memory_equal(c.nets[0].mac, "\x52\x54\x00\xab\xcd\xef", NET_MAC_LEN);
    assert_int_equal(c.nets[1].kind, NET_FD);
    assert_int_equal(c.nets[1].queues, 2);
    assert_int_equal(c.nets[1].fds[0], 7);
    assert_int_equal(c.nets[1].fds[1], 9);
    assert_false(c.nets[1].set_mac);
    assert_int_equal(c.nets[2].kind, NET_USER);
    assert_string_equal(c.nets[2].tcp, "2222:22,8080");
    assert_int_equal(c.nets[3].kind, NET_PASST);
    assert_string_equal(c.nets[3].socket, "/a,b");
    config_clear(&c);
    assert_int_equal(parse_text(&c, "{\"net\": [\"tap\", \"tap\", \"tap\", \"tap\", \"tap\"]}", error), -EINVAL);
    assert_non_null(strstr(error, "more than 4 network devices"));
    config_clear(&c);
}

/* What a snapshot brings is taken as it is, or replaced as a whole. */
static void test_inherited_nets(void **state)
{
    static const char three[] = "{\"net\": [\"user\", \"user\", \"user\"]}";
    char error[CONFIG_ERROR_MAX] = "";
    _cleanup_json_ json_t *described = NULL;
    const char *text;
    struct config c, d;

    assert_int_equal(parse_text(&c, "{\"net\": [\"tap,ifname=a,queues=2\", \"fd=5\", \"passt,socket=/x,,y,mac=02:00:00:00:00:01\"]}", error), 0);
    described = config_describe(&c);
    text = json_object_to_json_string(described);
    config_clear(&c);
    assert_int_equal(parse_text(&d, text, error), 0);
    assert_int_equal(d.net_count, 2);
    assert_string_equal(d.nets[0].ifname, "a");
    assert_int_equal(d.nets[0].queues, 2);
    assert_string_equal(d.nets[1].socket, "/x,y");
    assert_true(d.nets[1].set_mac && d.nets[1].mac[5] == 1);
    d.net_inherited = d.net_count;
    assert_int_equal(config_parse_json(&d, "f", three, strlen(three), error), 0);
    assert_int_equal(d.net_count, 3);
    assert_int_equal(d.nets[0].kind, NET_USER);
    assert_null(d.nets[0].ifname);
    config_clear(&d);
}

/* A snapshot of nothing, whose metadata has this configuration; it is read, and what is wrong is in `error`. */
static int read_snapshot(const char *config, char *error)
{
    struct snapshot_meta meta = {.created = 1, .producer = "test", .paging = "tdp", .memory = MiB, .byte_pages = 256};
    char dir[] = "/tmp/test-config.XXXXXX", path[64];
    _cleanup_free_ char *text = NULL;
    struct config c;
    size_t len;
    int r, fd;

    assert_int_equal(snapshot_meta_new_id(&meta), 0);
    meta.config = json_tokener_parse(config);
    assert_non_null(meta.config);
    text = snapshot_meta_format(&meta, &len);
    assert_non_null(text);
    snapshot_meta_clear(&meta);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/meta.json", dir);
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(fd_write_all(fd, text, len), 0);
    close(fd);
    error[0] = '\0';
    r = parse(&c, error, "--runtime-dir=/r", "--restore", dir, NULL);
    config_clear(&c);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(dir), 0);
    return r;
}

static void test_snapshot_configuration(void **state)
{
    static const struct {
        const char *config, *says;
    } bad[] = {
        {"{'name':'x'}", "\"name\" is nothing that a snapshot may set"},
        {"{'virtio-console':null}", "virtio-console: wants a string"},
        {"{'virtio-console':5}", "virtio-console: wants a string"},
        {"{'virtio-console':{}}", "virtio-console: wants a string"},
        {"{'virtio-console':['file:/x']}", "virtio-console: wants a string"},
        {"{'virtio-console':'file:/x'}", "does not say where output goes"},
        {"{'kernel':null}", "kernel: wants"},
        {"{'cpus':null}", "cpus: wants"},
        {"{'disk':null}", "disk: wants"},
        {"{'disk':['/a',null]}", "disk: wants"},
        {"{'test-device':null}", "test-device: wants"},
    };
    char error[CONFIG_ERROR_MAX];

    assert_int_equal(read_snapshot("{'kernel':'/k','virtio-console':'socket'}", error), 0);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        if (read_snapshot(bad[i].config, error) != -EBADMSG || !strstr(error, bad[i].says))
            fail_msg("%s: '%s' where '%s' is wanted", bad[i].config, error, bad[i].says);
}

/* So are disks that a snapshot brings: a clone has copies of them, and not both. */
static void test_inherited_disks(void **state)
{
    char error[CONFIG_ERROR_MAX] = "";
    struct config c;

    assert_int_equal(parse_text(&c, "{\"disk\": [\"/a,serial=s,ro\", \"/b\"]}", error), 0);
    c.disk_inherited = c.disk_count;
    assert_int_equal(config_parse_json(&c, "f", "{\"memory\": \"1M\"}", 16, error), 0);
    assert_int_equal(c.disk_count, 2);
    assert_int_equal(config_parse_json(&c, "f", "{\"disk\": [\"/x\", \"/y\", \"/z\"]}", 29, error), 0);
    assert_int_equal(c.disk_count, 3);
    assert_string_equal(c.disks[0].path, "/x");
    assert_null(c.disks[0].serial);
    assert_false(c.disks[0].read_only);
    assert_string_equal(c.disks[2].path, "/z");
    config_clear(&c);
}

static void test_small_devices(void **state)
{
    char error[CONFIG_ERROR_MAX];
    struct config c, again;
    json_t *described;
    const char *text;

    assert_int_equal(parse(&c, error, "--runtime-dir=/r", NULL), 0);
    assert_true(c.rng.on && c.rng.rate == 0);
    assert_false(c.balloon.on || c.virtio_console);
    config_clear(&c);
    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--kernel=/k", "--rng=on,rate=64K", "--balloon",
                           "on,free-page-reporting,deflate-on-oom", "--virtio-console=file:/x", NULL),
                     0);
    assert_true(c.rng.on && c.rng.rate == 64 * KiB);
    assert_true(c.balloon.on && c.balloon.reporting && c.balloon.deflate_on_oom);
    assert_true(c.virtio_console && c.virtio_console_kind == CHARDEV_FILE);
    assert_string_equal(c.virtio_console_path, "/x");
    config_clear(&c);
    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--kernel=/k", "--rng=on,rate=100000", "--balloon",
                           "on,deflate-on-oom", "--virtio-console=file:/x", NULL),
                     0);
    described = config_describe(&c);
    text = json_object_to_json_string(described);
    assert_int_equal(parse_text(&again, text, error), 0);
    assert_true(again.rng.on && again.rng.rate == 100000);
    assert_true(again.balloon.on && again.balloon.deflate_on_oom && !again.balloon.reporting);
    /* That there is one, not where it goes. */
    assert_true(again.virtio_console && again.virtio_console_kind == CHARDEV_SOCKET && !again.virtio_console_path);
    json_object_put(described);
    config_clear(&again);
    config_clear(&c);
    /* The last one counts, all of it. */
    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--rng=on,rate=64K", "--rng=on", "--balloon=on,deflate-on-oom",
                           "--balloon=on", "--virtio-console=pty", "--virtio-console=off", NULL),
                     0);
    assert_true(c.rng.on && c.rng.rate == 0);
    assert_true(c.balloon.on && !c.balloon.deflate_on_oom);
    assert_false(c.virtio_console);
    config_clear(&c);
    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--kernel=/k", "--console=stdio", "--virtio-console=stdio", NULL), 0);
    assert_int_equal(config_check(&c, error), -EINVAL);
    assert_non_null(strstr(error, "cannot both be stdio"));
    config_clear(&c);
}

static void test_disks(void **state)
{
    char error[CONFIG_ERROR_MAX];
    struct config c;

    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--disk", "/a", "--disk",
                           "/b,,c,ro,direct,serial=X-1,queues=4,aio=threads", NULL),
                     0);
    assert_int_equal(c.disk_count, 2);
    assert_string_equal(c.disks[0].path, "/a");
    assert_false(c.disks[0].read_only || c.disks[0].direct);
    assert_int_equal(c.disks[0].aio, DISK_AIO_AUTO);
    assert_string_equal(c.disks[1].path, "/b,c");
    assert_true(c.disks[1].read_only && c.disks[1].direct);
    assert_string_equal(c.disks[1].serial, "X-1");
    assert_int_equal(c.disks[1].queues, 4);
    assert_int_equal(c.disks[1].aio, DISK_AIO_THREADS);
    config_clear(&c);
    assert_int_equal(parse_text(&c, "{\"disk\": [\"/a\", \"/b,ro\"]}", error), 0);
    assert_int_equal(c.disk_count, 2);
    assert_true(c.disks[1].read_only);
    config_clear(&c);
    assert_int_equal(parse_text(&c, "{\"disk\": \"/a\"}", error), 0);
    assert_int_equal(c.disk_count, 1);
    config_clear(&c);
    assert_int_equal(parse_text(&c,
                                "{\"disk\": [\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\","
                                "\"12\",\"13\"]}",
                                error),
                     -EINVAL);
    assert_non_null(strstr(error, "more than 12 disks"));
    config_clear(&c);
}

static void test_refused_json(void **state)
{
    static const struct {
        const char *text, *in_error;
    } cases[] = {
        {"", "vm.json:1: the text ends"},
        {"[]", "wants an object"},
        {"{\n\"cpus\": 1", "vm.json:2: the text ends"},
        {"{\n\n\"cpus\" 1}", "vm.json:3: "},
        {"{} {}", "more after the end"},
        {"{\n\"cpus\": 99}", "vm.json:2: cpus: \"99\" is not a number from 1 to 32"},
        {"{\"cpus\": [1]}", "vm.json:1: cpus: wants a string or a number"},
        {"{\"cpus\": 1.5}", "vm.json:1: cpus: wants a string or a number"},
        {"{\"paused\": 1}", "vm.json:1: paused: wants true or false"},
        {"{\n\n\"nope\": 1}", "vm.json:3: nope: is no key"},
        {"{\"runtime-dir\": \"/x\"}", "runtime-dir: is no key"},
        {"{\"kernel\": \"a\\u0000b\"}", "NUL"},
        {"{\"disk\": [\"/a\", 1.5]}", "wants a string or a number"},
        {"{\"disk\": [\"/a,oops\"]}", "disk: \"oops\" is none of"},
        {"{\"cpus\": 1,\n \"cpus\": 2}", "vm.json:2: cpus: stands there twice"},
        {"{\"cmdline\": \"cpus\",\n/* \"cpus\": */\n \"cpus\": 0}", "vm.json:3: cpus: "},
        {"{\"cmdline\": \"\\\"cpus\\\":\", // \"cpus\": 1\n 'cpus' : 0}", "vm.json:2: cpus: "},
        {"{\"sandbox\": \"on\"}", "enforce, errno, log, off"},
        {"{\"user\": \"a:b\"}", "is no user name"},
        {"{\"cpus\": null}", "wants a string or a number"},
        {"{\"kernel\": {\"a\": {\"b\": {\"c\": {\"d\": {\"e\": {\"f\": {\"g\": {\"h\": 1}}}}}}}}}", "nesting"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char error[CONFIG_ERROR_MAX] = "";
        struct config c;

        assert_int_equal(parse_text(&c, cases[i].text, error), -EINVAL);
        print_message("# %s\n", error);
        assert_non_null(strstr(error, cases[i].in_error));
        config_clear(&c);
    }
}

static void test_command_line_wins(void **state)
{
    char path[] = "/tmp/umbra-config-XXXXXX", error[CONFIG_ERROR_MAX];
    static const char text[] = "{\"kernel\": \"/from-file\", \"cpus\": 3, \"name\": \"filed\"}";
    int fd = mkstemp(path);
    struct config c;

    assert_true(fd >= 0);
    assert_int_equal(fd_write_all(fd, text, strlen(text)), 0);
    close(fd);
    /* The option stands before --config, and wins all the same. */
    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--cpus", "2", "--config", path, NULL), 0);
    assert_string_equal(c.kernel, "/from-file");
    assert_string_equal(c.name, "filed");
    assert_int_equal(c.cpus, 2);
    config_clear(&c);
    assert_int_equal(truncate(path, 20), 0);
    assert_int_equal(parse(&c, error, "--runtime-dir=/r", "--config", path, NULL), -EBADMSG);
    config_clear(&c);
    unlink(path);
}

/* What makes a guest fast: pages, polling, CPU features. */
static void test_tuning(void **state)
{
    static const struct {
        const char *option, *value, *complaint;
    } bad[] = {
        {"--thp", "maybe", "off, on"},
        {"--halt-poll", "-1", "0 to 1000000"},
        {"--halt-poll", "1000001", "0 to 1000000"},
        {"--halt-poll", "long", "0 to 1000000"},
        {"--cpu-off", "pcid,warp", "warp"},
        {"--cpu-off", "pcid,,pge", "is none of"},
        {"--cpu-off", "a-name-that-is-longer-than-any-that-there-is", "is none of"},
        {"--mmu-page-limit-share", "0", "1 to 50"},
        {"--mmu-page-limit-share", "51", "1 to 50"},
    };
    char error[CONFIG_ERROR_MAX];
    struct config c;

    assert_int_equal(parse(&c, error, NULL), 0);
    assert_true(c.thp);
    assert_false(c.set_halt_poll || c.cpu_off);
    config_clear(&c);
    assert_int_equal(parse(&c, error, "--thp=off", "--halt-poll=0", "--cpu-off=pcid,async-pf", "--mmu-page-limit-share=50", NULL), 0);
    assert_true(!c.thp && c.set_halt_poll);
    assert_int_equal(c.halt_poll_ns, 0);
    assert_int_equal(c.cpu_off, cpuid_feature("pcid") | CPUID_ASYNC_PF);
    assert_int_equal(c.page_limit_share, 50);
    config_clear(&c);
    /* The last word counts, and "host" takes a number back. */
    assert_int_equal(parse(&c, error, "--halt-poll=5", "--halt-poll=host", "--cpu-off=pge", "--cpu-off=", NULL), 0);
    assert_false(c.set_halt_poll || c.cpu_off);
    config_clear(&c);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(parse(&c, error, bad[i].option, bad[i].value, NULL), -EINVAL);
        assert_non_null(strstr(error, bad[i].option));
        assert_non_null(strstr(error, bad[i].complaint));
        config_clear(&c);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),      cmocka_unit_test(test_every_option), cmocka_unit_test(test_mmu_options), cmocka_unit_test(test_refused_options),
        cmocka_unit_test(test_no_kernel),     cmocka_unit_test(test_json),         cmocka_unit_test(test_refused_json),
        cmocka_unit_test(test_tuning),        cmocka_unit_test(test_nets),         cmocka_unit_test(test_inherited_nets),
        cmocka_unit_test(test_snapshot_configuration), cmocka_unit_test(test_inherited_disks), cmocka_unit_test(test_disks),         cmocka_unit_test(test_small_devices),
        cmocka_unit_test(test_command_line_wins), cmocka_unit_test(test_print),
    };

    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
