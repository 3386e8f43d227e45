/* The commands of the control socket, over a machine without KVM: all but the dirty log. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"
#include "qmp-harness.h"

static int setup(void **state)
{
    static const struct fake_options options = {.memory = 16 * MiB, .cpus = 2, .backend = DIRTY_BITMAP};

    return env_setup(state, &options);
}

/* Two slots, with the hole between them. */
static int setup_large(void **state)
{
    static const struct fake_options options = {.memory = 4 * GiB, .cpus = 1, .backend = DIRTY_BITMAP};

    return env_setup(state, &options);
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

    env_expect(e, "query-version", "{}",
           "{'return':{'qemu':{'major':7,'minor':2,'micro':0},'package':'" PACKAGE_NAME " " PACKAGE_VERSION "'}}");
    env_expect(e, "query-block", "{}",
               "{'return':[{'device':'disk0','qdev':'/machine/disk0','type':'unknown','removable':false,'locked':false,"
               "'io-status':'nospace','inserted':{'file':'/images/a','node-name':'disk0','ro':true,'drv':'raw',"
               "'backing_file_depth':0,'encrypted':false,'detect_zeroes':'off','write_threshold':0,'bps':0,'bps_rd':0,"
               "'bps_wr':0,'iops':0,'iops_rd':0,'iops_wr':0,'image':{'filename':'/images/a','format':'raw',"
               "'virtual-size':1048576,'actual-size':4096,'dirty-flag':false},'cache':{'writeback':true,'direct':true,"
               "'no-flush':false}},'serial':'S-1','aio':'threads','queues':2,'held-back':3,'needs-reset':false}]}");
    env_expect(e, "query-net", "{}",
               "{'return':[{'name':'net0','mac':'52:54:00:01:02:ab','backend':'tap','host':'tap7','queues':4,'queues-used':2,"
               "'mtu':1400,'link':true,'link-wanted':true,'needs-reset':false,'features':3,'counters':{'rx-packets':5,"
               "'rx-bytes':0,'rx-dropped':0,'tx-packets':0,'tx-bytes':0,'tx-dropped':0,'kicks':0,'interrupts':0,"
               "'misuses':0}}]}");
    env_expect(e, "query-name", "{}", "{'return':{'name':'fake'}}");
    env_expect(e, "query-kvm", "{}", "{'return':{'enabled':true,'present':true}}");
    env_expect(e, "query-status", "{}", "{'return':{'status':'running','singlestep':false,'running':true}}");
    env_expect(e, "query-memory-size-summary", "{}", "{'return':{'base-memory':16777216,'plugged-memory':0}}");
    env_expect(e, "query-cpus-fast", "{}",
           "{'return':["
           "{'thread-id':1000,'props':{'core-id':0,'thread-id':0,'socket-id':0},'qom-path':'/machine/cpu[0]',"
           "'cpu-index':0,'target':'x86_64'},"
           "{'thread-id':1001,'props':{'core-id':1,'thread-id':0,'socket-id':0},'qom-path':'/machine/cpu[1]',"
           "'cpu-index':1,'target':'x86_64'}]}");
}

static void test_balloon(void **state)
{
    struct env *e = *state;

    env_expect(e, "balloon", "{'value':4194304}", "{'return':{}}");
    env_expect(e, "balloon-set", "{'guest-stats-polling-interval':7}", "{'return':{}}");
    env_expect(e, "query-balloon", "{}",
               "{'return':{'actual':16777216,'target':4194304,'driver':false,'free-page-reporting':false,"
               "'needs-reset':false,'given-back':0,'guest-stats-polling-interval':7}}");
    env_expect(e, "balloon", "{'value':9223372036854775807}", "{'return':{}}");
    env_expect_error(e, "balloon", "{'value':0}", "Parameter 'value' is 0, out of range (1 to 9223372036854775807)");
    env_expect_error(e, "balloon", "{}", "Parameter 'value' is missing");
    env_expect_error(e, "balloon-set", "{'guest-stats-polling-interval':3601}",
                     "Parameter 'guest-stats-polling-interval' is 3601, out of range (0 to 3600)");
}

/* What could wait for a page has to wait by itself; all else answers as ever. */
static void test_memory_arrives(void **state)
{
    struct env *e = *state;
    char text[160];

    fake_memory_arrives = true;
    for (unsigned int i = 0; i < qmp_command_count; i++) {
        if (!(qmp_commands[i].flags & QMP_WHOLE))
            continue;
        snprintf(text, sizeof(text), "The command %s has to wait: a part of the guest's memory is still to come", qmp_commands[i].name);
        env_expect_error(e, qmp_commands[i].name, "{}", text);
    }
    env_expect(e, "query-status", "{}", "{'return':{'status':'running','singlestep':false,'running':true}}");
    env_expect(e, "query-name", "{}", "{'return':{'name':'fake'}}");
    env_expect_error(e, "query-mmu", "{}",
                     "The command query-mmu has to wait: a part of the guest's memory is still to come");
    /* A device that waits for a page holds its lock, which its counters are read under. */
    env_expect(e, "query-stats",
               "{'target':'vm','providers':[{'provider':'umbra','names':["
               "'balloon_memory','rng_bytes','virtio_console_waits','disk_reads','net_misuses','bus_unclaimed','mmu_ticks']}]}",
               "{'return':[{'provider':'umbra','stats':[{'name':'bus_unclaimed','value':0},{'name':'mmu_ticks','value':0}]}]}");
    env_expect(e, "query-stats",
               "{'target':'vcpu','vcpus':['/machine/cpu[0]'],'providers':[{'provider':'umbra','names':['exits']}]}",
               "{'return':[{'provider':'umbra','qom-path':'/machine/cpu[0]','stats':[{'name':'exits','value':10}]}]}");
    env_expect(e, "query-stats", "{'target':'vm','providers':[{'provider':'kvm','names':['pages_4k']}]}",
               "{'return':[{'provider':'kvm','stats':[{'name':'pages_4k','value':100}]}]}");
    fake_memory_arrives = false;
    env_expect(e, "balloon", "{'value':4194304}", "{'return':{}}");
}

static void test_host(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = env_call(e, "query-host", "{}");
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
    env_expect(e, "get-guest-memory", "{}",
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
    env_expect(e, "balloon", "{'value':4194304}", "{'return':{}}");
    env_expect(e, "query-status", "{}", "{'return':{'status':'paused','singlestep':false,'running':false}}");
    peer_send(e->p, "{'execute':'cont'}");
    expect_event(e, "RESUME");
    peer_expect_next(e->p, "{'return':{}}");
    env_expect(e, "cont", "{}", "{'return':{}}");

    fake_machine_set_state(e->f.machine, RUN_STATE_INTERNAL_ERROR);
    env_expect(e, "query-status", "{}", "{'return':{'status':'internal-error','singlestep':false,'running':false}}");
    env_expect_error(e, "cont", "{}", "cannot continue: Resetting the Virtual Machine is required");
    peer_send(e->p, "{'execute':'system_reset'}");
    expect_event(e, "RESET");
    peer_expect_next(e->p, "{'return':{}}");
    fake_machine_fail_kvm(e->f.machine, -EIO);
    env_expect_error(e, "system_reset", "{}", "cannot reset: Input/output error");
    fake_machine_fail_kvm(e->f.machine, -EBUSY);
    env_expect_error(e, "system_reset", "{}",
                     "cannot reset: the guest is on its way here or elsewhere, or has left a part of its memory behind");
    fake_machine_fail_kvm(e->f.machine, -ENOENT);
    env_expect_error(e, "system_reset", "{}",
                     "cannot reset: the kernel or another file that it is started with is not there any more");
    fake_machine_set_state(e->f.machine, RUN_STATE_FINISH_MIGRATE);
    env_expect_error(e, "stop", "{}", "cannot stop: the guest is about to leave");

    env_expect_error(e, "system_powerdown", "{}", "the guest has not enabled the power button");
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

    env_expect(e, "query-stats", "{'target':'vm','providers':[{'provider':'kvm'}]}",
           "{'return':[{'provider':'kvm','stats':[{'name':'pages_4k','value':100},"
           "{'name':'max_mmu_rmap_size','value':101}]}]}");
    env_expect(e, "query-stats", "{'target':'vm','providers':[{'provider':'umbra','names':['dirty_pages','bus_unclaimed']}]}",
           "{'return':[{'provider':'umbra','stats':[{'name':'bus_unclaimed','value':0},"
           "{'name':'dirty_pages','value':0}]}]}");
    env_expect(e, "query-stats", "{'target':'vcpu','vcpus':['/machine/cpu[1]','nope'],'providers':[{'provider':'kvm'}]}",
           "{'return':[{'provider':'kvm','qom-path':'/machine/cpu[1]','stats':[{'name':'exits','value':300},"
           "{'name':'halt_wait_ns','value':301},{'name':'blocking','value':true},"
           "{'name':'halt_wait_hist','value':[303,304,305]},{'name':'linear_hist','value':[306,307]}]}]}");
    env_expect(e, "query-stats",
           "{'target':'vcpu','providers':[{'provider':'kvm','names':['exits']},{'provider':'umbra','names':['exits']}]}",
           "{'return':["
           "{'provider':'kvm','qom-path':'/machine/cpu[0]','stats':[{'name':'exits','value':200}]},"
           "{'provider':'kvm','qom-path':'/machine/cpu[1]','stats':[{'name':'exits','value':300}]},"
           "{'provider':'umbra','qom-path':'/machine/cpu[0]','stats':[{'name':'exits','value':10}]},"
           "{'provider':'umbra','qom-path':'/machine/cpu[1]','stats':[{'name':'exits','value':11}]}]}");
    env_expect(e, "query-stats", "{'target':'vcpu','vcpus':['nope']}", "{'return':[]}");
    env_expect(e, "query-stats", "{'target':'vcpu','vcpus':[]}", "{'return':[]}");
    env_expect(e, "query-stats", "{'target':'vm','providers':[]}", "{'return':[]}");
    env_expect(e, "query-stats", "{'target':'vm','providers':[{'provider':'kvm','names':['nope']}]}", "{'return':[]}");
    env_expect(e, "query-stats", "{'target':'vm','providers':[{'provider':'kvm','names':[]}]}", "{'return':[]}");
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
        env_expect_error(*state, "query-stats", cases[i].arguments, cases[i].desc);
    env_expect_error(*state, "query-stats-schemas", "{'provider':'x'}", "Parameter 'provider' does not accept value 'x'");
}

static void test_schemas(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;
    json_t *list;

    env_expect(e, "query-stats-schemas", "{'provider':'kvm'}",
           "{'return':[{'provider':'kvm','target':'vm','stats':["
           "{'name':'pages_4k','type':'instant','exponent':0},"
           "{'name':'max_mmu_rmap_size','type':'peak','exponent':0}]},"
           "{'provider':'kvm','target':'vcpu','stats':["
           "{'name':'exits','type':'cumulative','exponent':0},"
           "{'name':'halt_wait_ns','type':'cumulative','unit':'seconds','base':10,'exponent':-9},"
           "{'name':'blocking','type':'instant','unit':'boolean','exponent':0},"
           "{'name':'halt_wait_hist','type':'log2-histogram','unit':'seconds','base':10,'exponent':-9},"
           "{'name':'linear_hist','type':'linear-histogram','unit':'bytes','exponent':0,'bucket-size':16}]}]}");
    answer = env_call(e, "query-stats-schemas", "{}");
    assert_int_equal(json_get_array(answer, "return", &list), 0);
    assert_int_equal(json_object_array_length(list), 4);
}

/* Every statistic of ours is in its schema and has a value. */
static void test_own_stats(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *schemas = env_call(e, "query-stats-schemas", "{'provider':'umbra'}");
    json_t *list;

    assert_int_equal(json_get_array(schemas, "return", &list), 0);
    assert_int_equal(json_object_array_length(list), 2);
    for (size_t i = 0; i < 2; i++) {
        const char *arguments = i == 0 ? "{'target':'vm','providers':[{'provider':'umbra'}]}"
                                       : "{'target':'vcpu','vcpus':['/machine/cpu[0]'],'providers':[{'provider':'umbra'}]}";
        _cleanup_json_ json_t *values = env_call(e, "query-stats", arguments);
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

/* -- snapshots ------------------------------------------------------------------ */

/* The next event of a snapshot, taken out of what may be answers. */
static json_t *next_snapshot_event(struct env *e, json_t *line)
{
    const char *event;
    json_t *data;

    for (;; line = peer_read(e->p)) {
        if (json_get_str(line, "event", &event) == 0 && strcmp(event, "SNAPSHOT") == 0) {
            assert_int_equal(json_get_obj(line, "data", &data), 0);
            data = json_object_get(data);
            json_object_put(line);
            return data;
        }
        json_object_put(line);
    }
}

static void assert_snapshot(json_t *data, const char *status, const char *error)
{
    const char *got = "none", *got_error = "";

    json_get_str(data, "status", &got);
    json_get_str(data, "error", &got_error);
    assert_string_equal(got, status);
    assert_string_equal(got_error, error);
    json_object_put(data);
}

/* Begin a snapshot, and let the guest be in this state before the thread, which waits for the dirty log, has come anywhere. */
static json_t *start_and_become(struct env *e, const char *arguments, enum run_state become)
{
    struct dirty_log *log = vm_dirty_log(machine_vm(e->f.machine));
    struct dirty_snapshot held;
    json_t *line;

    assert_int_equal(dirty_log_start(log, "test", DIRTY_START_CHANGES), 0);
    assert_int_equal(dirty_log_snapshot_lock(log, "test", true, &held), 0);
    line = env_call(e, "snapshot", arguments);
    fake_machine_set_state(e->f.machine, become);
    dirty_log_unlock(log);
    assert_int_equal(dirty_log_stop(log, "test"), 0);
    return line;
}

/* A guest that leaves or crashes in the middle of a snapshot takes it along. */
static void test_snapshot_of_what_is_gone(void **state)
{
    static const struct {
        enum run_state state;
        const char *name;
    } gone[] = {{RUN_STATE_POSTMIGRATE, "postmigrate"}, {RUN_STATE_FINISH_MIGRATE, "finish-migrate"},
                {RUN_STATE_INTERNAL_ERROR, "internal-error"}, {RUN_STATE_SHUTDOWN, "shutdown"}};
    struct env *e = *state;
    char dir[] = "/tmp/test-qmp-commands.XXXXXX", arguments[128], want[128];

    assert_non_null(mkdtemp(dir));
    snprintf(arguments, sizeof(arguments), "{'dir':'%s/s'}", dir);
    for (size_t i = 0; i < ARRAY_SIZE(gone); i++) {
        fake_machine_set_state(e->f.machine, RUN_STATE_RUNNING);
        assert_snapshot(next_snapshot_event(e, start_and_become(e, arguments, gone[i].state)), "active", "");
        snprintf(want, sizeof(want), "the guest is %s, there is nothing to go on with later", gone[i].name);
        assert_snapshot(next_snapshot_event(e, peer_read(e->p)), "failed", want);
        env_expect_error(e, "snapshot", arguments, want);
    }
    assert_int_equal(rmdir(dir), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, env_teardown)
#define TEST_LARGE(name) cmocka_unit_test_setup_teardown(name, setup_large, env_teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table), TEST(test_questions), TEST(test_host),    TEST_LARGE(test_guest_memory),
        TEST(test_run_state),         TEST(test_stats),     TEST(test_stats_errors), TEST(test_schemas),
        TEST(test_own_stats),         TEST(test_balloon),   TEST(test_memory_arrives),
        TEST(test_snapshot_of_what_is_gone),
    };

    return cmocka_run_group_tests_name("qmp-commands", tests, NULL, NULL);
}
