/* The commands of the control socket, over a machine without KVM; and the manual, which has to know all of them. */
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
#include <sys/stat.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/fd.h"
#include "base/util.h"
#include "daemon/dirty-rate.h"
#include "daemon/qmp-server-internal.h"
#include "daemon/range-text.h"
#include "qmp-harness.h"

#define GENERIC "GenericError"

struct env {
    struct fixture f;
    struct peer *p;
};

static int setup_with(void **state, const struct fake_options *options)
{
    struct env *e = calloc(1, sizeof(*e));

    assert_non_null(e);
    fixture_init(&e->f, options);
    e->p = peer_ready(&e->f, false);
    *state = e;
    return 0;
}

static int setup(void **state)
{
    static const struct fake_options options = {.memory = 16 * MiB, .cpus = 2, .backend = DIRTY_BITMAP};

    return setup_with(state, &options);
}

static int setup_ring(void **state)
{
    static const struct fake_options options = {.memory = 16 * MiB, .cpus = 2, .backend = DIRTY_RING};

    return setup_with(state, &options);
}

/* Two slots, with the hole between them. */
static int setup_large(void **state)
{
    static const struct fake_options options = {.memory = 4 * GiB, .cpus = 1, .backend = DIRTY_BITMAP};

    return setup_with(state, &options);
}

static int teardown(void **state)
{
    struct env *e = *state;

    peer_free(e->p);
    fixture_clear(&e->f);
    free(e);
    return 0;
}

/* Send COMMAND with arguments written with ' for ". */
static json_t *call(struct env *e, const char *command, const char *arguments)
{
    char request[1024];

    snprintf(request, sizeof(request), "{'execute':'%s','arguments':%s}", command, arguments);
    return peer_call(e->p, request);
}

static void expect(struct env *e, const char *command, const char *arguments, const char *answer)
{
    char request[1024];

    snprintf(request, sizeof(request), "{'execute':'%s','arguments':%s}", command, arguments);
    peer_expect(e->p, request, answer);
}

static void expect_error(struct env *e, const char *command, const char *arguments, const char *desc)
{
    char request[1024];

    snprintf(request, sizeof(request), "{'execute':'%s','arguments':%s}", command, arguments);
    peer_expect_error(e->p, request, GENERIC, desc);
}

static uint64_t number(const json_t *answer, const char *key)
{
    json_t *value;
    uint64_t v = 0;

    assert_int_equal(json_get_obj(answer, "return", &value), 0);
    assert_int_equal(json_get_u64(value, key, &v), 0);
    return v;
}

/* -- the table --------------------------------------------------------------- */

static void test_table(void **state)
{
    for (unsigned int i = 0; i < qmp_command_count; i++) {
        const struct qmp_command *c = &qmp_commands[i];

        assert_ptr_equal(qmp_find_command(c->name), c);
        assert_non_null(c->run);
        assert_true(c->help[0] != '\0' && c->help[strlen(c->help) - 1] == '.');
        if (i > 0)
            assert_true(strcmp(qmp_commands[i - 1].name, c->name) < 0);
    }
    assert_null(qmp_find_command("query-statu"));
    assert_null(qmp_find_command("query-statuss"));
    assert_null(qmp_find_command(""));
}

/* -- questions --------------------------------------------------------------- */

static void test_questions(void **state)
{
    struct env *e = *state;

    expect(e, "query-version", "{}",
           "{'return':{'qemu':{'major':7,'minor':2,'micro':0},'package':'" PACKAGE_NAME " " PACKAGE_VERSION "'}}");
    expect(e, "query-name", "{}", "{'return':{'name':'fake'}}");
    expect(e, "query-kvm", "{}", "{'return':{'enabled':true,'present':true}}");
    expect(e, "query-status", "{}", "{'return':{'status':'running','singlestep':false,'running':true}}");
    expect(e, "query-memory-size-summary", "{}", "{'return':{'base-memory':16777216,'plugged-memory':0}}");
    expect(e, "query-cpus-fast", "{}",
           "{'return':["
           "{'thread-id':1000,'props':{'core-id':0,'thread-id':0,'socket-id':0},'qom-path':'/machine/cpu[0]',"
           "'cpu-index':0,'target':'x86_64'},"
           "{'thread-id':1001,'props':{'core-id':1,'thread-id':0,'socket-id':0},'qom-path':'/machine/cpu[1]',"
           "'cpu-index':1,'target':'x86_64'}]}");
}

static void test_host(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = call(e, "query-host", "{}");
    json_t *host, *paging, *kvm, *verdicts;
    const char *s;

    assert_int_equal(json_get_obj(answer, "return", &host), 0);
    assert_int_equal(json_get_obj(host, "paging", &paging), 0);
    assert_int_equal(json_get_str(paging, "mode", &s), 0);
    assert_string_equal(s, "shadow");
    assert_int_equal(json_get_str(paging, "how", &s), 0);
    assert_string_equal(s, "told so");
    assert_int_equal(json_get_obj(host, "kvm", &kvm), 0);
    assert_int_equal(json_get_str(kvm, "module", &s), 0);
    assert_string_equal(s, "kvm_fake");
    assert_int_equal(json_get_array(host, "verdicts", &verdicts), 0);
    assert_int_equal(json_object_array_length(verdicts), 6);
    for (size_t i = 0; i < 6; i++) {
        json_t *v = json_object_array_get_idx(verdicts, i);
        bool good;

        assert_int_equal(json_get_str(v, "what", &s), 0);
        assert_int_equal(json_get_str(v, "text", &s), 0);
        assert_int_equal(json_get_bool(v, "good", &good), 0);
        assert_int_equal(good, i != 5); /* no userfaultfd */
    }
}

static void test_guest_memory(void **state)
{
    struct env *e = *state;
    uint8_t byte = 0;
    char path[32];
    int fd, again;

    fake_machine_write(e->f.machine, 3, 0xa5);
    expect(e, "get-guest-memory", "{}",
           "{'return':{'size':4294967296,'page-size':4096,'slots':["
           "{'slot':0,'gpa':0,'size':3221225472,'offset':0},"
           "{'slot':1,'gpa':4294967296,'size':1073741824,'offset':3221225472}]}}");
    fd = e->p->got_fd;
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, 3 * 4096), 1);
    assert_int_equal(byte, 0xa5);
    assert_int_equal(pwrite(fd, &byte, 1, 0), -1);
    assert_ptr_equal(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    /* Nobody but the owner may open it again through /proc, root apart. */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    again = open(path, O_RDWR | O_CLOEXEC);
    assert_true(again < 0 || geteuid() == 0);
    fd_close(again);
    {
        struct stat st;

        assert_int_equal(fstat(fd, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0400);
    }
}

/* -- run state --------------------------------------------------------------- */

static void expect_event(struct env *e, const char *want)
{
    _cleanup_json_ json_t *event = peer_read(e->p);
    const char *name = "";

    json_get_str(event, "event", &name);
    assert_string_equal(name, want);
}

static void test_run_state(void **state)
{
    struct env *e = *state;

    peer_send(e->p, "{'execute':'stop'}");
    expect_event(e, "STOP");
    peer_expect_next(e->p, "{'return':{}}");
    expect(e, "stop", "{}", "{'return':{}}");
    expect(e, "query-status", "{}", "{'return':{'status':'paused','singlestep':false,'running':false}}");
    peer_send(e->p, "{'execute':'cont'}");
    expect_event(e, "RESUME");
    peer_expect_next(e->p, "{'return':{}}");
    expect(e, "cont", "{}", "{'return':{}}");

    fake_machine_set_state(e->f.machine, RUN_STATE_INTERNAL_ERROR);
    expect(e, "query-status", "{}", "{'return':{'status':'internal-error','singlestep':false,'running':false}}");
    expect_error(e, "cont", "{}", "cannot continue: Resetting the Virtual Machine is required");
    peer_send(e->p, "{'execute':'system_reset'}");
    expect_event(e, "RESET");
    peer_expect_next(e->p, "{'return':{}}");
    fake_machine_fail_kvm(e->f.machine, -EIO);
    expect_error(e, "system_reset", "{}", "cannot reset: Input/output error");

    expect_error(e, "system_powerdown", "{}", "the guest has not enabled the power button");
    fake_machine_enable_power_button(e->f.machine);
    peer_send(e->p, "{'execute':'system_powerdown'}");
    expect_event(e, "POWERDOWN");
    peer_expect_next(e->p, "{'return':{}}");

    assert_int_equal(fake_machine_ended(e->f.machine), -1);
    peer_send(e->p, "{'execute':'quit'}");
    expect_event(e, "SHUTDOWN");
    peer_expect_next(e->p, "{'return':{}}");
    assert_int_equal(fake_machine_ended(e->f.machine), 0);
}

/* -- statistics -------------------------------------------------------------- */

static void test_stats(void **state)
{
    struct env *e = *state;

    expect(e, "query-stats", "{'target':'vm','providers':[{'provider':'kvm'}]}",
           "{'return':[{'provider':'kvm','stats':[{'name':'pages_4k','value':100},"
           "{'name':'max_mmu_rmap_size','value':101}]}]}");
    expect(e, "query-stats", "{'target':'vm','providers':[{'provider':'umbra','names':['dirty_pages','bus_unclaimed']}]}",
           "{'return':[{'provider':'umbra','stats':[{'name':'bus_unclaimed','value':0},"
           "{'name':'dirty_pages','value':0}]}]}");
    expect(e, "query-stats", "{'target':'vcpu','vcpus':['/machine/cpu[1]','nope'],'providers':[{'provider':'kvm'}]}",
           "{'return':[{'provider':'kvm','qom-path':'/machine/cpu[1]','stats':[{'name':'exits','value':300},"
           "{'name':'halt_wait_ns','value':301},{'name':'blocking','value':true},"
           "{'name':'halt_wait_hist','value':[303,304,305]},{'name':'linear_hist','value':[306,307]}]}]}");
    expect(e, "query-stats",
           "{'target':'vcpu','providers':[{'provider':'kvm','names':['exits']},{'provider':'umbra','names':['exits']}]}",
           "{'return':["
           "{'provider':'kvm','qom-path':'/machine/cpu[0]','stats':[{'name':'exits','value':200}]},"
           "{'provider':'kvm','qom-path':'/machine/cpu[1]','stats':[{'name':'exits','value':300}]},"
           "{'provider':'umbra','qom-path':'/machine/cpu[0]','stats':[{'name':'exits','value':10}]},"
           "{'provider':'umbra','qom-path':'/machine/cpu[1]','stats':[{'name':'exits','value':11}]}]}");
    expect(e, "query-stats", "{'target':'vcpu','vcpus':['nope']}", "{'return':[]}");
    expect(e, "query-stats", "{'target':'vcpu','vcpus':[]}", "{'return':[]}");
    expect(e, "query-stats", "{'target':'vm','providers':[]}", "{'return':[]}");
    expect(e, "query-stats", "{'target':'vm','providers':[{'provider':'kvm','names':['nope']}]}", "{'return':[]}");
    expect(e, "query-stats", "{'target':'vm','providers':[{'provider':'kvm','names':[]}]}", "{'return':[]}");
}

static void test_stats_errors(void **state)
{
    static const struct {
        const char *arguments, *desc;
    } cases[] = {
        {"{}", "Parameter 'target' is missing"},
        {"{'target':'x'}", "Parameter 'target' does not accept value 'x'"},
        {"{'target':'vm','vcpus':[]}", "Parameter 'vcpus' is unexpected"},
        {"{'target':'vcpu','vcpus':[1]}", "Invalid parameter type for 'vcpus[0]', expected: string"},
        {"{'target':'vcpu','vcpus':1}", "Invalid parameter type for 'vcpus', expected: array"},
        {"{'target':'vm','providers':[1]}", "Invalid parameter type for 'providers[0]', expected: object"},
        {"{'target':'vm','providers':[{}]}", "Parameter 'providers[0].provider' is missing"},
        {"{'target':'vm','providers':[{'provider':1}]}",
         "Invalid parameter type for 'providers[0].provider', expected: string"},
        {"{'target':'vm','providers':[{'provider':'x'}]}", "Parameter 'provider' does not accept value 'x'"},
        {"{'target':'vm','providers':[{'provider':'kvm'},{'provider':'kvm','x':1}]}",
         "Parameter 'providers[1].x' is unexpected"},
        {"{'target':'vm','providers':[{'provider':'kvm','names':1}]}",
         "Invalid parameter type for 'providers[0].names', expected: array"},
        {"{'target':'vm','providers':[{'provider':'kvm','names':['a',1]}]}",
         "Invalid parameter type for 'providers[0].names[1]', expected: string"},
        {"{'target':'vm','providers':[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}",
         "Parameter 'providers' has 17 entries, the limit is 16"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        expect_error(*state, "query-stats", cases[i].arguments, cases[i].desc);
    expect_error(*state, "query-stats-schemas", "{'provider':'x'}", "Parameter 'provider' does not accept value 'x'");
}

static void test_schemas(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;
    json_t *list;

    expect(e, "query-stats-schemas", "{'provider':'kvm'}",
           "{'return':[{'provider':'kvm','target':'vm','stats':["
           "{'name':'pages_4k','type':'instant','exponent':0},"
           "{'name':'max_mmu_rmap_size','type':'peak','exponent':0}]},"
           "{'provider':'kvm','target':'vcpu','stats':["
           "{'name':'exits','type':'cumulative','exponent':0},"
           "{'name':'halt_wait_ns','type':'cumulative','unit':'seconds','base':10,'exponent':-9},"
           "{'name':'blocking','type':'instant','unit':'boolean','exponent':0},"
           "{'name':'halt_wait_hist','type':'log2-histogram','unit':'seconds','base':10,'exponent':-9},"
           "{'name':'linear_hist','type':'linear-histogram','unit':'bytes','exponent':0,'bucket-size':16}]}]}");
    answer = call(e, "query-stats-schemas", "{}");
    assert_int_equal(json_get_array(answer, "return", &list), 0);
    assert_int_equal(json_object_array_length(list), 4);
}

/* Every statistic of ours is in its schema and has a value. */
static void test_own_stats(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *schemas = call(e, "query-stats-schemas", "{'provider':'umbra'}");
    json_t *list;

    assert_int_equal(json_get_array(schemas, "return", &list), 0);
    assert_int_equal(json_object_array_length(list), 2);
    for (size_t i = 0; i < 2; i++) {
        const char *arguments = i == 0 ? "{'target':'vm','providers':[{'provider':'umbra'}]}"
                                       : "{'target':'vcpu','vcpus':['/machine/cpu[0]'],'providers':[{'provider':'umbra'}]}";
        _cleanup_json_ json_t *values = call(e, "query-stats", arguments);
        json_t *got, *described, *stats;

        assert_int_equal(json_get_array(values, "return", &got), 0);
        assert_int_equal(json_get_array(json_object_array_get_idx(got, 0), "stats", &stats), 0);
        assert_int_equal(json_get_array(json_object_array_get_idx(list, i), "stats", &described), 0);
        assert_int_equal(json_object_array_length(stats), json_object_array_length(described));
        for (size_t k = 0; k < json_object_array_length(stats); k++) {
            const char *a, *b;
            uint64_t v;

            assert_int_equal(json_get_str(json_object_array_get_idx(stats, k), "name", &a), 0);
            assert_int_equal(json_get_str(json_object_array_get_idx(described, k), "name", &b), 0);
            assert_string_equal(a, b);
            assert_int_equal(json_get_u64(json_object_array_get_idx(stats, k), "value", &v), 0);
        }
    }
}

/* -- dirty log --------------------------------------------------------------- */

static void test_dirty_log(void **state)
{
    struct env *e = *state;
    struct machine *m = e->f.machine;
    _cleanup_json_ json_t *answer = NULL;

    expect(e, "dirty-log-start", "{'name':'a'}",
           "{'return':{'name':'a','epoch':0,'page-size':4096,'memory-pages':4096}}");
    for (gfn_t gfn = 10; gfn < 13; gfn++)
        fake_machine_write(m, gfn, 1);
    fake_machine_write(m, 4095, 1);

    /* A peek takes nothing away. */
    answer = call(e, "dirty-log-snapshot", "{'name':'a','peek':true}");
    assert_int_equal(number(answer, "epoch"), 0);
    assert_int_equal(number(answer, "pages"), 4);
    json_object_put(answer);
    answer = call(e, "dirty-log-snapshot", "{'name':'a','format':'ranges'}");
    assert_int_equal(number(answer, "epoch"), 1);
    assert_int_equal(number(answer, "pages"), 4);
    {
        json_t *value, *ranges;
        bool lost = true;

        assert_int_equal(json_get_obj(answer, "return", &value), 0);
        assert_int_equal(json_get_array(value, "ranges", &ranges), 0);
        assert_string_equal(json_object_to_json_string_ext(ranges, JSON_C_TO_STRING_PLAIN), "[[10,3],[4095,1]]");
        assert_int_equal(json_get_bool(value, "lost", &lost), 0);
        assert_false(lost);
        number(answer, "harvest-us");
    }
    /* What is not acknowledged comes back, together with what is new. */
    fake_machine_write(m, 77, 1);
    json_object_put(answer);
    answer = call(e, "dirty-log-snapshot", "{'name':'a','format':'count'}");
    assert_int_equal(number(answer, "epoch"), 2);
    assert_int_equal(number(answer, "pages"), 5);
    expect_error(e, "dirty-log-ack", "{'name':'a','epoch':1}", "epoch 1 is not the newest of dirty log consumer 'a'");
    expect(e, "dirty-log-ack", "{'name':'a','epoch':2}", "{'return':{}}");
    json_object_put(answer);
    answer = call(e, "dirty-log-snapshot", "{'name':'a','format':'ranges'}");
    assert_int_equal(number(answer, "pages"), 0);
    assert_non_null(strstr(json_object_to_json_string_ext(answer, JSON_C_TO_STRING_PLAIN), "\"ranges\":[]"));
    expect(e, "dirty-log-stop", "{'name':'a'}", "{'return':{}}");
}

static void test_dirty_log_errors(void **state)
{
    struct env *e = *state;
    char arguments[128];

    expect_error(e, "dirty-log-snapshot", "{'name':'no'}", "there is no dirty log consumer 'no'");
    expect_error(e, "dirty-log-ack", "{'name':'no','epoch':1}", "there is no dirty log consumer 'no'");
    expect_error(e, "dirty-log-stop", "{'name':'no'}", "there is no dirty log consumer 'no'");
    expect_error(e, "dirty-log-start", "{'name':''}", "dirty log consumer name '' is not 1 to 32 bytes long");
    expect_error(e, "dirty-log-start", "{'name':'123456789012345678901234567890123'}",
                 "dirty log consumer name '123456789012345678901234567890123' is not 1 to 32 bytes long");
    expect_error(e, "dirty-log-start", "{'name':'calc-dirty-rate'}",
                 "dirty log consumer 'calc-dirty-rate' belongs to calc-dirty-rate");
    expect_error(e, "dirty-log-start", "{'name':'a','mode':'x'}", "Parameter 'mode' does not accept value 'x'");
    expect_error(e, "dirty-log-snapshot", "{'name':'a','format':'x'}", "Parameter 'format' does not accept value 'x'");
    expect_error(e, "dirty-log-snapshot", "{'name':'a','attribute':true}", "Parameter 'attribute' is unexpected");
    for (int i = 0; i < DIRTY_MAX_CONSUMERS; i++) {
        snprintf(arguments, sizeof(arguments), "{'name':'c%d'}", i);
        json_object_put(call(e, "dirty-log-start", arguments));
    }
    expect_error(e, "dirty-log-start", "{'name':'one-more'}", "too many dirty log consumers, the limit is 16");
    expect_error(e, "dirty-log-start", "{'name':'c3'}", "there is a dirty log consumer 'c3' already");
    fake_machine_fail_kvm(e->f.machine, -EIO);
    expect_error(e, "dirty-log-snapshot", "{'name':'c3'}", "dirty log consumer 'c3': Input/output error");
    fake_machine_fail_kvm(e->f.machine, 0);
    json_object_put(call(e, "dirty-log-snapshot", "{'name':'c3'}"));
}

static void test_query_dirty_log(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;
    json_t *value, *consumers, *totals;
    uint64_t pages;

    expect(e, "dirty-log-start", "{'name':'all','mode':'all'}",
           "{'return':{'name':'all','epoch':0,'page-size':4096,'memory-pages':4096}}");
    json_object_put(call(e, "dirty-log-start", "{'name':'b'}"));
    fake_machine_write(e->f.machine, 1, 1);
    json_object_put(call(e, "dirty-log-snapshot", "{'name':'all'}"));
    answer = call(e, "query-dirty-log", "{}");
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
    assert_int_equal(number(answer, "memory-pages"), 4096);
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

    json_object_put(call(e, "dirty-log-start", "{'name':'a'}"));
    fake_machine_write(e->f.machine, 9, 1);
    fake_machine_write(e->f.machine, above, 1);
    answer = call(e, "dirty-log-snapshot", "{'name':'a','format':'bitmap'}");
    assert_int_equal(number(answer, "pages"), 2);
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

    json_object_put(call(e, "dirty-log-start", "{'name':'a'}"));
    for (gfn_t i = 0; i < 262144; i++)
        mem_mark_dirty(vm_mem(machine_vm(e->f.machine)), gfn_to_gpa(2 * i), 1);
    answer = call(e, "dirty-log-snapshot", "{'name':'a','format':'ranges'}");
    assert_int_equal(json_get_obj(answer, "return", &value), 0);
    assert_int_equal(json_get_array(value, "ranges", &ranges), 0);
    assert_int_equal(json_object_array_length(ranges), 262144);
    for (size_t i = 0; i < 262144; i++) {
        json_t *pair = json_object_array_get_idx(ranges, i);

        assert_int_equal(json_object_get_int64(json_object_array_get_idx(pair, 0)), 2 * i);
        assert_int_equal(json_object_get_int64(json_object_array_get_idx(pair, 1)), 1);
    }
    mem_mark_dirty(vm_mem(machine_vm(e->f.machine)), gfn_to_gpa(2 * 262144), 1);
    expect_error(e, "dirty-log-snapshot", "{'name':'a','format':'ranges'}",
                 "the dirty pages make more than 262144 ranges, use format bitmap; no page is lost");
    json_object_put(answer);
    answer = call(e, "dirty-log-snapshot", "{'name':'a'}");
    assert_int_equal(number(answer, "pages"), 262145);
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

    json_object_put(call(e, "dirty-log-start", "{'name':'a'}"));
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
        assert_int_equal(number(answer, "pages"), 0);
    }
}

/* -- dirty rate -------------------------------------------------------------- */

static json_t *wait_measured(struct env *e)
{
    /* It may end while an answer is on its way: never wait for its events alone. */
    static const struct timeval most = {.tv_usec = 50000};

    for (;;) {
        json_t *answer = call(e, "query-dirty-rate", "{}");

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
    assert_int_equal(number(answer, "sample-pages"), samples);
    assert_int_equal(number(answer, "calc-time"), 1);
    number(answer, "start-time");
    /* 16 MiB were written, and at least one second has passed: at most 16, and more than nothing within 15 seconds. */
    assert_in_range(number(answer, "dirty-rate"), 1, 16);
}

static void write_all(struct env *e, uint8_t byte)
{
    for (gfn_t gfn = 0; gfn < 4096; gfn++)
        fake_machine_write(e->f.machine, gfn, byte);
}

static void test_dirty_rate_bitmap(void **state)
{
    struct env *e = *state;

    expect(e, "query-dirty-rate", "{}",
           "{'return':{'status':'unstarted','sample-pages':0,'mode':'page-sampling','start-time':0,'calc-time':0}}");
    expect_error(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-ring'}",
                 "mode dirty-ring is not enabled, use other method instead.");
    expect_error(e, "calc-dirty-rate", "{'calc-time':1,'sample-pages':5}",
                 "Parameter 'sample-pages' is 5, out of range (128 to 16384)");
    expect(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-bitmap'}", "{'return':{}}");
    expect_error(e, "calc-dirty-rate", "{'calc-time':1}", "the dirty rate is already being measured.");
    expect_error(e, "dirty-log-stop", "{'name':'calc-dirty-rate'}",
                 "dirty log consumer 'calc-dirty-rate' belongs to calc-dirty-rate");
    write_all(e, 1);
    expect_rate(e, "dirty-bitmap", 0);
    /* Its consumer is gone, and with it the log. */
    assert_int_equal(dirty_log_consumers(vm_dirty_log(machine_vm(e->f.machine)), NULL, 0), 0);
}

static void test_dirty_rate_sampling(void **state)
{
    struct env *e = *state;

    expect(e, "calc-dirty-rate", "{'calc-time':1}", "{'return':{}}");
    fixture_run(&e->f);
    write_all(e, 2);
    expect_rate(e, "page-sampling", 512);
    /* Nothing changes, nothing is counted. */
    expect(e, "calc-dirty-rate", "{'calc-time':1,'sample-pages':16384,'mode':'page-sampling'}", "{'return':{}}");
    {
        _cleanup_json_ json_t *answer = wait_measured(e);

        assert_int_equal(number(answer, "dirty-rate"), 0);
        assert_int_equal(number(answer, "sample-pages"), 16384);
    }
}

static void test_dirty_rate_ring(void **state)
{
    struct env *e = *state;

    expect_error(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-bitmap'}",
                 "mode dirty-bitmap is not enabled, use other method instead.");
    expect_error(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-ring','sample-pages':512}",
                 "either sample-pages or dirty-ring can be specified.");
    expect(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-ring'}", "{'return':{}}");
    write_all(e, 3);
    expect_rate(e, "dirty-ring", 0);
    {
        _cleanup_json_ json_t *answer = call(e, "query-dirty-rate", "{}");
        json_t *value, *vcpus;
        uint64_t rate;

        assert_int_equal(json_get_obj(answer, "return", &value), 0);
        assert_int_equal(json_get_array(value, "vcpu-dirty-rate", &vcpus), 0);
        assert_int_equal(json_object_array_length(vcpus), 2);
        assert_int_equal(json_get_u64(json_object_array_get_idx(vcpus, 0), "dirty-rate", &rate), 0);
        assert_int_equal(rate, number(answer, "dirty-rate"));
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

    expect(e, "calc-dirty-rate", "{'calc-time':60,'mode':'dirty-bitmap'}", "{'return':{}}");
    expect(e, "query-kvm", "{}", "{'return':{'enabled':true,'present':true}}");
}

static void test_dirty_rate_fails(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;

    fake_machine_fail_kvm(e->f.machine, -EIO);
    expect_error(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-bitmap'}",
                 "the dirty rate cannot be measured: Input/output error");
    fake_machine_fail_kvm(e->f.machine, 0);
    expect(e, "calc-dirty-rate", "{'calc-time':1,'mode':'dirty-bitmap'}", "{'return':{}}");
    fake_machine_fail_kvm(e->f.machine, -EIO);
    answer = wait_measured(e);
    fake_machine_fail_kvm(e->f.machine, 0);
    assert_non_null(strstr(json_object_to_json_string_ext(answer, JSON_C_TO_STRING_PLAIN), "\"unstarted\""));
}

/* -- the manual -------------------------------------------------------------- */

/*
 * In man/umbra-control.7 a command is a line ".It Ic NAME" followed by its help text, and each argument, in the list below
 * it, ".It Fa NAME" with "Pq optional" if it is.
 */
static void check_command(const struct qmp_command *c, const char **lines)
{
    const struct qmp_arg *arg = c->args;
    char want[128];

    if (strcmp(lines[1], c->help) != 0)
        fail_msg("%s: the manual says \"%s\", the table \"%s\"", c->name, lines[1], c->help);
    for (lines += 2; *lines && strncmp(*lines, ".It Ic ", 7) != 0 && strncmp(*lines, ".Sh ", 4) != 0; lines++) {
        if (strncmp(*lines, ".It Fa ", 7) != 0)
            continue;
        if (!arg || !arg->name)
            fail_msg("%s: the manual has an argument more: %s", c->name, *lines);
        snprintf(want, sizeof(want), ".It Fa %s%s", arg->name, arg->optional ? " Pq optional" : "");
        if (strcmp(*lines, want) != 0)
            fail_msg("%s: the manual has \"%s\", the table \"%s\"", c->name, *lines, want);
        arg++;
    }
    if (arg && arg->name)
        fail_msg("%s: the manual lacks the argument %s", c->name, arg->name);
}

static char *read_source(const char *name)
{
    const char *src = getenv("UMBRA_SRCDIR");
    char path[4096], *text;

    snprintf(path, sizeof(path), "%s/%s", src ? src : ".", name);
    if (fd_read_file(path, 1 << 20, &text, NULL) < 0)
        fail_msg("%s cannot be read", path);
    return text;
}

static void test_manual_commands(void **state)
{
    const char *lines[4096];
    unsigned int commands = 0;
    _cleanup_free_ char *text = read_source("man/umbra-control.7");
    size_t n = 0;

    for (char *save = NULL, *line = strtok_r(text, "\n", &save); line && n < ARRAY_SIZE(lines) - 1;
         line = strtok_r(NULL, "\n", &save))
        lines[n++] = line;
    lines[n] = NULL;
    for (size_t i = 0; i < n; i++) {
        if (strncmp(lines[i], ".It Ic ", 7) != 0)
            continue;
        /* In the order of the table, so that none is missing. */
        assert_true(commands < qmp_command_count);
        assert_string_equal(lines[i] + 7, qmp_commands[commands].name);
        check_command(&qmp_commands[commands], &lines[i]);
        commands++;
    }
    assert_int_equal(commands, qmp_command_count);
}

/* The events of the manual are those that the machine emits, and the other way round. */
static void test_manual_events(void **state)
{
    _cleanup_free_ char *manual = read_source("man/umbra-control.7"), *machine = read_source("src/daemon/machine.c");
    char *section = strstr(manual, "\n.Sh EVENTS\n"), *end, want[128];
    unsigned int emitted = 0, documented = 0;

    assert_non_null(section);
    end = strstr(section + 1, "\n.Sh ");
    assert_non_null(end);
    *end = '\0';
    for (char *p = machine; (p = strstr(p, "emit(m, \"")); emitted++) {
        p += strlen("emit(m, \"");
        snprintf(want, sizeof(want), "\n.It Sy %.*s\n", (int)strcspn(p, "\""), p);
        if (!strstr(section, want))
            fail_msg("the manual lacks an event: %s", want);
    }
    for (char *p = section; (p = strstr(p, "\n.It Sy ")); documented++) {
        p += strlen("\n.It Sy ");
        snprintf(want, sizeof(want), "emit(m, \"%.*s\"", (int)strcspn(p, "\n"), p);
        if (!strstr(machine, want))
            fail_msg("the manual has an event that nothing emits: %s", want);
    }
    assert_true(emitted >= documented && documented > 0);
}

/* The numbers of its section on limits are the code's. */
static void test_manual_limits(void **state)
{
    _cleanup_free_ char *manual = read_source("man/umbra-control.7");
    static const struct {
        const char *format;
        unsigned int value;
    } limits[] = {
        {"\n%u clients on each of the two sockets", QMP_MAX_CLIENTS},
        {"\n%u bytes for a request", QMP_MAX_REQUEST},
        {" %u levels of nesting", QMP_MAX_DEPTH},
        {"\n%u bytes that wait", QMP_MAX_QUEUE},
        {"after %u seconds", QMP_STALL_SECONDS},
        {"\n%u consumers of the dirty log", DIRTY_MAX_CONSUMERS},
        {"names of 1 to %u bytes", DIRTY_NAME_MAX},
        {"For so many seconds, 1 to %u.", DIRTY_RATE_TIME_MAX},
        {" %u to 16384, by default 512;", DIRTY_RATE_SAMPLES_MIN},
        {"128 to %u, by default 512;", DIRTY_RATE_SAMPLES_MAX},
        {"128 to 16384, by default %u;", DIRTY_RATE_SAMPLES_DEFAULT},
    };

    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        char want[128];

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(want, sizeof(want), limits[i].format, limits[i].value);
#pragma GCC diagnostic pop
        if (!strstr(manual, want))
            fail_msg("the manual does not say \"%s\"", want);
    }
}

static void test_manual_lint(void **state)
{
    const char *src = getenv("UMBRA_SRCDIR");
    char command[4096];

    if (system("command -v mandoc >/dev/null") != 0) {
        print_message("# mandoc is not installed\n");
        skip();
    }
    snprintf(command, sizeof(command), "mandoc -T lint -W warning '%s/man/umbra-control.7' >&2", src ? src : ".");
    assert_int_equal(system(command), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TEST_RING(name) cmocka_unit_test_setup_teardown(name, setup_ring, teardown)
#define TEST_LARGE(name) cmocka_unit_test_setup_teardown(name, setup_large, teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        TEST(test_questions),
        TEST(test_host),
        TEST_LARGE(test_guest_memory),
        TEST(test_run_state),
        TEST(test_stats),
        TEST(test_stats_errors),
        TEST(test_schemas),
        TEST(test_own_stats),
        TEST(test_dirty_log),
        cmocka_unit_test_setup_teardown(test_dirty_log, setup_ring, teardown),
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
        cmocka_unit_test(test_manual_commands),
        cmocka_unit_test(test_manual_events),
        cmocka_unit_test(test_manual_limits),
        cmocka_unit_test(test_manual_lint),
    };

    return cmocka_run_group_tests_name("qmp-commands", tests, NULL, NULL);
}
