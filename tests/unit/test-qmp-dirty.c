/* The dirty log and the dirty rate on the control socket, over a machine without KVM. */
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
#include <sys/mman.h>

#include "base/bitmap.h"
#include "base/util.h"
#include "daemon/range-text.h"
#include "qmp-harness.h"

static int setup(void **state)
{
    static const struct fake_options options = {.memory = 16 * MiB, .cpus = 2, .backend = DIRTY_BITMAP};

    return env_setup(state, &options);
}

static int setup_ring(void **state)
{
    static const struct fake_options options = {.memory = 16 * MiB, .cpus = 2, .backend = DIRTY_RING};

    return env_setup(state, &options);
}

/* Two slots, with the hole between them. */
static int setup_large(void **state)
{
    static const struct fake_options options = {.memory = 4 * GiB, .cpus = 1, .backend = DIRTY_BITMAP};

    return env_setup(state, &options);
}

/* -- dirty log --------------------------------------------------------------- */

static void test_dirty_log(void **state)
{
    struct env *e = *state;
    struct machine *m = e->f.machine;
    _cleanup_json_ json_t *answer = NULL;

    env_expect(e, "dirty-log-start", "{'name':'a'}",
           "{'return':{'name':'a','epoch':0,'page-size':4096,'memory-pages':4096}}");
    for (gfn_t gfn = 10; gfn < 13; gfn++)
        fake_machine_write(m, gfn, 1);
    fake_machine_write(m, 4095, 1);

    /* A peek takes nothing away. */
    answer = env_call(e, "dirty-log-snapshot", "{'name':'a','peek':true}");
    assert_int_equal(env_number(answer, "epoch"), 0);
    assert_int_equal(env_number(answer, "pages"), 4);
    json_object_put(answer);
    answer = env_call(e, "dirty-log-snapshot", "{'name':'a','format':'ranges'}");
    assert_int_equal(env_number(answer, "epoch"), 1);
    assert_int_equal(env_number(answer, "pages"), 4);
    {
        json_t *value, *ranges;
        bool lost = true;

        assert_int_equal(json_get_obj(answer, "return", &value), 0);
        assert_int_equal(json_get_array(value, "ranges", &ranges), 0);
        assert_string_equal(json_object_to_json_string_ext(ranges, JSON_C_TO_STRING_PLAIN), "[[10,3],[4095,1]]");
        assert_int_equal(json_get_bool(value, "lost", &lost), 0);
        assert_false(lost);
        env_number(answer, "harvest-us");
    }
    /* What is not acknowledged comes back, together with what is new. */
    fake_machine_write(m, 77, 1);
    json_object_put(answer);
    answer = env_call(e, "dirty-log-snapshot", "{'name':'a','format':'count'}");
    assert_int_equal(env_number(answer, "epoch"), 2);
    assert_int_equal(env_number(answer, "pages"), 5);
    env_expect_error(e, "dirty-log-ack", "{'name':'a','epoch':1}", "epoch 1 is not the newest of dirty log consumer 'a'");
    env_expect(e, "dirty-log-ack", "{'name':'a','epoch':2}", "{'return':{}}");
    json_object_put(answer);
    answer = env_call(e, "dirty-log-snapshot", "{'name':'a','format':'ranges'}");
    assert_int_equal(env_number(answer, "pages"), 0);
    assert_non_null(strstr(json_object_to_json_string_ext(answer, JSON_C_TO_STRING_PLAIN), "\"ranges\":[]"));
    env_expect(e, "dirty-log-stop", "{'name':'a'}", "{'return':{}}");
}

static void test_dirty_log_errors(void **state)
{
    struct env *e = *state;
    char arguments[128];

    env_expect_error(e, "dirty-log-snapshot", "{'name':'no'}", "there is no dirty log consumer 'no'");
    env_expect_error(e, "dirty-log-ack", "{'name':'no','epoch':1}", "there is no dirty log consumer 'no'");
    env_expect_error(e, "dirty-log-stop", "{'name':'no'}", "there is no dirty log consumer 'no'");
    env_expect_error(e, "dirty-log-start", "{'name':''}", "dirty log consumer name '' is not 1 to 32 bytes long");
    env_expect_error(e, "dirty-log-start", "{'name':'123456789012345678901234567890123'}",
                 "dirty log consumer name '123456789012345678901234567890123' is not 1 to 32 bytes long");
    env_expect_error(e, "dirty-log-start", "{'name':'calc-dirty-rate'}",
                 "dirty log consumer 'calc-dirty-rate' belongs to calc-dirty-rate");
    env_expect_error(e, "dirty-log-start", "{'name':'a','mode':'x'}", "Parameter 'mode' does not accept value 'x'");
    env_expect_error(e, "dirty-log-snapshot", "{'name':'a','format':'x'}", "Parameter 'format' does not accept value 'x'");
    env_expect_error(e, "dirty-log-snapshot", "{'name':'a','attributes':true}", "Parameter 'attributes' is unexpected");
    for (int i = 0; i < DIRTY_MAX_CONSUMERS; i++) {
        snprintf(arguments, sizeof(arguments), "{'name':'c%d'}", i);
        json_object_put(env_call(e, "dirty-log-start", arguments));
    }
    env_expect_error(e, "dirty-log-start", "{'name':'one-more'}", "too many dirty log consumers, the limit is 16");
    env_expect_error(e, "dirty-log-start", "{'name':'c3'}", "there is a dirty log consumer 'c3' already");
    fake_machine_fail_kvm(e->f.machine, -EIO);
    env_expect_error(e, "dirty-log-snapshot", "{'name':'c3'}", "dirty log consumer 'c3': Input/output error");
    fake_machine_fail_kvm(e->f.machine, 0);
    json_object_put(env_call(e, "dirty-log-snapshot", "{'name':'c3'}"));
}

static void test_query_dirty_log(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;
    json_t *value, *consumers, *totals;
    uint64_t pages;

    env_expect(e, "dirty-log-start", "{'name':'all','mode':'all'}",
           "{'return':{'name':'all','epoch':0,'page-size':4096,'memory-pages':4096}}");
    json_object_put(env_call(e, "dirty-log-start", "{'name':'b'}"));
    fake_machine_write(e->f.machine, 1, 1);
    json_object_put(env_call(e, "dirty-log-snapshot", "{'name':'all'}"));
    answer = env_call(e, "query-dirty-log", "{}");
    assert_int_equal(json_get_obj(answer, "return", &value), 0);
    assert_int_equal(json_get_array(value, "consumers", &consumers), 0);
    assert_string_equal(json_object_to_json_string_ext(consumers, JSON_C_TO_STRING_PLAIN),
                        "[{\"name\":\"all\",\"mode\":\"all\",\"epoch\":1,\"pending\":0,\"unacknowledged\":4096,"
                        "\"snapshots\":1,\"pages\":4096,\"lost\":false},"
                        "{\"name\":\"b\",\"mode\":\"changes\",\"epoch\":0,\"pending\":1,\"unacknowledged\":0,"
                        "\"snapshots\":0,\"pages\":0,\"lost\":false}]");
    assert_int_equal(json_get_obj(value, "totals", &totals), 0);
    assert_int_equal(json_get_u64(totals, "pages", &pages), 0);
    assert_int_equal(pages, 1);
    assert_int_equal(env_number(answer, "memory-pages"), 4096);
}

/* The bitmap is sealed, and its table leads from bits to frames on both sides of the hole. */
static void test_dirty_bitmap(void **state)
{
    struct env *e = *state;
    gfn_t above = gpa_to_gfn(4 * GiB) + 5;
    _cleanup_json_ json_t *answer = NULL;
    json_t *value, *info, *slots;
    const uint64_t *map;
    uint64_t size, bits;
    int fd;

    json_object_put(env_call(e, "dirty-log-start", "{'name':'a'}"));
    fake_machine_write(e->f.machine, 9, 1);
    fake_machine_write(e->f.machine, above, 1);
    answer = env_call(e, "dirty-log-snapshot", "{'name':'a','format':'bitmap'}");
    assert_int_equal(env_number(answer, "pages"), 2);
    assert_int_equal(json_get_obj(answer, "return", &value), 0);
    assert_int_equal(json_get_obj(value, "bitmap", &info), 0);
    assert_int_equal(json_get_u64(info, "size", &size), 0);
    assert_int_equal(json_get_u64(info, "bits", &bits), 0);
    assert_int_equal(size, 131072);
    assert_int_equal(bits, 1048576);
    assert_int_equal(json_get_array(info, "slots", &slots), 0);
    assert_string_equal(json_object_to_json_string_ext(slots, JSON_C_TO_STRING_PLAIN),
                        "[{\"slot\":0,\"gfn\":0,\"pages\":786432,\"first-bit\":0},"
                        "{\"slot\":1,\"gfn\":1048576,\"pages\":262144,\"first-bit\":786432}]");
    fd = e->p->got_fd;
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GET_SEALS), F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    assert_int_equal(bitmap_count(map, size / 8), 2);
    assert_true(bitmap_test(map, 9));
    assert_true(bitmap_test(map, 786432 + 5));
    munmap((void *)(uintptr_t)map, size);
}

/* As many ranges as an answer takes, all of them right; one more is refused, and then nothing is lost. */
static void test_many_ranges(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;
    json_t *value, *ranges;

    json_object_put(env_call(e, "dirty-log-start", "{'name':'a'}"));
    for (gfn_t i = 0; i < 262144; i++)
        mem_mark_dirty(vm_mem(machine_vm(e->f.machine)), gfn_to_gpa(2 * i), 1);
    answer = env_call(e, "dirty-log-snapshot", "{'name':'a','format':'ranges'}");
    assert_int_equal(json_get_obj(answer, "return", &value), 0);
    assert_int_equal(json_get_array(value, "ranges", &ranges), 0);
    assert_int_equal(json_object_array_length(ranges), 262144);
    for (size_t i = 0; i < 262144; i++) {
        json_t *pair = json_object_array_get_idx(ranges, i);

        assert_int_equal(json_object_get_int64(json_object_array_get_idx(pair, 0)), 2 * i);
        assert_int_equal(json_object_get_int64(json_object_array_get_idx(pair, 1)), 1);
    }
    mem_mark_dirty(vm_mem(machine_vm(e->f.machine)), gfn_to_gpa(2 * 262144), 1);
    env_expect_error(e, "dirty-log-snapshot", "{'name':'a','format':'ranges'}",
                 "the dirty pages make more than 262144 ranges, use format bitmap; no page is lost");
    json_object_put(answer);
    answer = env_call(e, "dirty-log-snapshot", "{'name':'a'}");
    assert_int_equal(env_number(answer, "pages"), 262145);
}

/* Ranges as text against the same by printf. */
static void test_range_text(void **state)
{
    struct range_text t = {0};
    unsigned int seed = 20261122;
    char want[64 * 50] = "";
    uint64_t first = 0;

    print_message("# seed %u\n", seed);
    for (int i = 0; i < 64; i++) {
        uint64_t count = (uint64_t)rand_r(&seed) >> (rand_r(&seed) % 31);
        char one[64];

        first += (uint64_t)rand_r(&seed) << (rand_r(&seed) % 30);
        if (i % 8 == 7)
            first = first / 1000 * 1000 + 999;
        if (i == 60)
            first = count = UINT64_MAX;
        if (i == 61)
            first = 7;
        snprintf(one, sizeof(one), "%s[%llu,%llu]", i ? "," : "", (unsigned long long)first, (unsigned long long)count);
        strcat(want, one);
        assert_int_equal(range_text_reserve(&t, 1), 0);
        range_text_add(&t, first, count);
    }
    assert_int_equal(t.len, strlen(want));
    assert_memory_equal(t.data, want, t.len);
    range_text_clear(&t);
}

/* An answer that is text carries an id as any other does. */
static void test_ranges_id(void **state)
{
    static const char *const ids[] = {"1", "null", "{'a':['\xc3\xa9']}"};
    struct env *e = *state;

    json_object_put(env_call(e, "dirty-log-start", "{'name':'a'}"));
    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        char request[256];
        _cleanup_json_ json_t *answer = NULL, *id = json_tokener_parse(ids[i]);
        json_t *got = json_object_new_int(-1), *first = got;

        snprintf(request, sizeof(request),
                 "{'execute':'dirty-log-snapshot','arguments':{'name':'a','format':'ranges','peek':true},'id':%s}", ids[i]);
        answer = peer_call(e->p, request);
        assert_true(json_object_object_get_ex(answer, "id", &got));
        assert_true(json_object_equal(got, id));
        json_object_put(first);
        assert_int_equal(env_number(answer, "pages"), 0);
    }
}

/* -- dirty rate -------------------------------------------------------------- */

static json_t *wait_measured(struct env *e)
{
    /* It may end while an answer is on its way: never wait for its events alone. */
    static const struct timeval most = {.tv_usec = 50000};

    for (;;) {
        json_t *answer = env_call(e, "query-dirty-rate", "{}");

        if (!strstr(json_object_to_json_string_ext(answer, JSON_C_TO_STRING_PLAIN), "\"measuring\""))
            return answer;
        json_object_put(answer);
        event_base_loopexit(e->f.events, &most);
        event_base_dispatch(e->f.events);
    }
}

static void expect_rate(struct env *e, const char *mode, unsigned int samples)
{
    _cleanup_json_ json_t *answer = wait_measured(e);
    const char *s;
    json_t *value;

    assert_int_equal(json_get_obj(answer, "return", &value), 0);
    assert_int_equal(json_get_str(value, "status", &s), 0);
    assert_string_equal(s, "measured");
    assert_int_equal(json_get_str(value, "mode", &s), 0);
    assert_string_equal(s, mode);
    assert_int_equal(env_number(answer, "sample-pages"), samples);
    assert_int_equal(env_number(answer, "calc-time"), 1);
    env_number(answer, "start-time");
    /* 16 MiB were written, and at least one second has passed: at most 16, and more than nothing within 15 seconds. */
    assert_in_range(env_number(answer, "dirty-rate"), 1, 16);
}

static void write_all(struct env *e, uint8_t byte)
{
    for (gfn_t gfn = 0; gfn < 4096; gfn++)
        fake_machine_write(e->f.machine, gfn, byte);
}

static void test_dirty_rate_bitmap(void **state)
{
    struct env *e = *state;

    env_expect(e, "query-dirty-rate", "{}",
           "{'return':{'status':'unstarted','sample-pages':0,'mode':'page-sampling','start-time':0,'calc-time':0}}");
    env_expect_error(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-ring'}",
                 "mode dirty-ring is not enabled, use other method instead.");
    env_expect_error(e, "calc-dirty-rate", "{'calc-time':1,'sample-pages':5}",
                 "Parameter 'sample-pages' is 5, out of range (128 to 16384)");
    env_expect(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-bitmap'}", "{'return':{}}");
    env_expect_error(e, "calc-dirty-rate", "{'calc-time':1}", "the dirty rate is already being measured.");
    env_expect_error(e, "dirty-log-stop", "{'name':'calc-dirty-rate'}",
                 "dirty log consumer 'calc-dirty-rate' belongs to calc-dirty-rate");
    write_all(e, 1);
    expect_rate(e, "dirty-bitmap", 0);
    /* Its consumer is gone, and with it the log. */
    assert_int_equal(dirty_log_consumers(vm_dirty_log(machine_vm(e->f.machine)), NULL, 0), 0);
}

static void test_dirty_rate_sampling(void **state)
{
    struct env *e = *state;

    env_expect(e, "calc-dirty-rate", "{'calc-time':1}", "{'return':{}}");
    fixture_run(&e->f);
    write_all(e, 2);
    expect_rate(e, "page-sampling", 512);
    /* Nothing changes, nothing is counted. */
    env_expect(e, "calc-dirty-rate", "{'calc-time':1,'sample-pages':16384,'mode':'page-sampling'}", "{'return':{}}");
    {
        _cleanup_json_ json_t *answer = wait_measured(e);

        assert_int_equal(env_number(answer, "dirty-rate"), 0);
        assert_int_equal(env_number(answer, "sample-pages"), 16384);
    }
}

static void test_dirty_rate_ring(void **state)
{
    struct env *e = *state;

    env_expect_error(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-bitmap'}",
                 "mode dirty-bitmap is not enabled, use other method instead.");
    env_expect_error(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-ring','sample-pages':512}",
                 "either sample-pages or dirty-ring can be specified.");
    env_expect(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-ring'}", "{'return':{}}");
    write_all(e, 3);
    expect_rate(e, "dirty-ring", 0);
    {
        _cleanup_json_ json_t *answer = env_call(e, "query-dirty-rate", "{}");
        json_t *value, *vcpus;
        uint64_t rate;

        assert_int_equal(json_get_obj(answer, "return", &value), 0);
        assert_int_equal(json_get_array(value, "vcpu-dirty-rate", &vcpus), 0);
        assert_int_equal(json_object_array_length(vcpus), 2);
        assert_int_equal(json_get_u64(json_object_array_get_idx(vcpus, 0), "dirty-rate", &rate), 0);
        assert_int_equal(rate, env_number(answer, "dirty-rate"));
        assert_int_equal(json_get_u64(json_object_array_get_idx(vcpus, 1), "dirty-rate", &rate), 0);
        assert_int_equal(rate, 0);
        assert_int_equal(json_get_u64(json_object_array_get_idx(vcpus, 1), "id", &rate), 0);
        assert_int_equal(rate, 1);
    }
}

/* The server ends in the middle of a measurement. */
static void test_dirty_rate_unfinished(void **state)
{
    struct env *e = *state;

    env_expect(e, "calc-dirty-rate", "{'calc-time':60,'mode':'dirty-bitmap'}", "{'return':{}}");
    env_expect(e, "query-kvm", "{}", "{'return':{'enabled':true,'present':true}}");
}

static void test_dirty_rate_fails(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;

    fake_machine_fail_kvm(e->f.machine, -EIO);
    env_expect_error(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-bitmap'}",
                 "the dirty rate cannot be measured: Input/output error");
    fake_machine_fail_kvm(e->f.machine, 0);
    env_expect(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-bitmap'}", "{'return':{}}");
    fake_machine_fail_kvm(e->f.machine, -EIO);
    answer = wait_measured(e);
    fake_machine_fail_kvm(e->f.machine, 0);
    assert_non_null(strstr(json_object_to_json_string_ext(answer, JSON_C_TO_STRING_PLAIN), "\"unstarted\""));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, env_teardown)
#define TEST_RING(name) cmocka_unit_test_setup_teardown(name, setup_ring, env_teardown)
#define TEST_LARGE(name) cmocka_unit_test_setup_teardown(name, setup_large, env_teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        TEST(test_dirty_log),
        TEST_RING(test_dirty_log),
        TEST(test_dirty_log_errors),
        TEST(test_query_dirty_log),
        TEST_LARGE(test_dirty_bitmap),
        TEST_LARGE(test_many_ranges),
        cmocka_unit_test(test_range_text),
        TEST(test_ranges_id),
        TEST(test_dirty_rate_bitmap),
        TEST(test_dirty_rate_sampling),
        TEST_RING(test_dirty_rate_ring),
        TEST(test_dirty_rate_unfinished),
        TEST(test_dirty_rate_fails),
    };

    return cmocka_run_group_tests_name("qmp-dirty", tests, NULL, NULL);
}
