/* The commands about guest page tables, over a machine without KVM whose guest's tables are what the test writes. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/util.h"
#include "mmu/mem.h"
#include "qmp-harness.h"

#define ROOT 16u /* frames: 16 the root, 17 to 19 its tables, 32 and on what they map */

static int setup(void **state)
{
    static const struct fake_options options = {.memory = 16 * MiB, .cpus = 2, .backend = DIRTY_BITMAP};

    return env_setup(state, &options);
}

static void entry(struct env *e, unsigned int table, unsigned int index, uint64_t value)
{
    assert_int_equal(mem_write(vm_mem(machine_vm(e->f.machine)), gfn_to_gpa(table) + index * 8, &value, 8), 0);
}

/* User: 8 pages at 0x400000, the second also at 0x401000 + 8 pages, read-only. Kernel: 2 MiB from 0 at the top. */
static void make_guest(struct env *e)
{
    entry(e, ROOT, 0, gfn_to_gpa(17) | 0x67);
    entry(e, ROOT, 511, gfn_to_gpa(20) | 0x63);
    entry(e, 17, 0, gfn_to_gpa(18) | 0x67);
    entry(e, 18, 2, gfn_to_gpa(19) | 0x67);
    for (unsigned int i = 0; i < 8; i++)
        entry(e, 19, i, gfn_to_gpa(32 + i) | 0x67);
    entry(e, 19, 9, gfn_to_gpa(33) | 0x25 | UINT64_C(1) << 63);
    entry(e, 20, 511, gfn_to_gpa(21) | 0x63);
    entry(e, 21, 0, 0x1e3);
    fake_machine_set_cr3(e->f.machine, gfn_to_gpa(ROOT));
    json_object_put(env_call(e, "stop", "{}"));
    /* What comes first is the event. */
    json_object_put(peer_read(e->p));
}

static json_t *value(const json_t *answer)
{
    json_t *v = NULL;

    if (!json_object_object_get_ex(answer, "return", &v))
        fail_msg("an error: %s", json_object_to_json_string((json_t *)(uintptr_t)answer));
    return v;
}

/* A number of some object below. */
static uint64_t number(const json_t *object, const char *key)
{
    uint64_t v = 0;

    assert_int_equal(json_get_u64(object, key, &v), 0);
    return v;
}

static void expect_part(struct env *e, const char *command, const char *arguments, const char *member, const char *want)
{
    _cleanup_json_ json_t *answer = env_call(e, command, arguments), *expected = NULL;
    char text[512];
    json_t *got = NULL;

    snprintf(text, sizeof(text), "%s", want);
    for (char *p = text; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    expected = json_tokener_parse(text);
    json_object_object_get_ex(value(answer), member, &got);
    if (!json_object_equal(got, expected))
        fail_msg("%s, %s: got %s, want %s", command, member, json_object_to_json_string(got), text);
}

static void test_query_mmu(void **state)
{
    struct env *e = *state;

    make_guest(e);
    expect_part(e, "query-mmu", "{}", "tracking", "'live'");
    expect_part(e, "query-mmu", "{}", "source", "'re-read'");
    expect_part(e, "query-mmu", "{}", "interval-us", "0");
    expect_part(e, "query-mmu", "{}", "tables",
                "{'total':6,'levels':[1,2,2,1,0],'bytes':24576,'flooded':0,'incomplete':0}");
    expect_part(e, "query-mmu", "{}", "entries", "15");
    expect_part(e, "query-mmu", "{}", "spaces", "{'total':1,'kernel':0,'user':1,'kpti':0}");
    expect_part(e, "query-mmu", "{}", "rmap", "{'histogram':[7,1],'stride':1}");
    expect_part(e, "query-mmu", "{}", "large-pages", "{'2m':1,'4m':0,'1g':0}");
    expect_part(e, "query-mmu", "{}", "guest", "{'paging-levels':4,'kpti':false}");
    expect_part(e, "query-mmu", "{}", "page-limit", "{'mode':'auto','limit':0,'default':81,'changes':0}");
}

static char *figures_of_manual(void)
{
    const char *src = getenv("UMBRA_SRCDIR");
    char path[4096], *text, *section, *end;

    snprintf(path, sizeof(path), "%s/man/umbra-mmu.7", src ? src : ".");
    assert_int_equal(fd_read_file(path, 1 << 20, &text, NULL), 0);
    section = strstr(text, "\n.Sh FIGURES\n");
    assert_non_null(section);
    end = strstr(section + 1, "\n.Sh ");
    assert_non_null(end);
    *end = '\0';
    section = strdup(section);
    free(text);
    assert_non_null(section);
    return section;
}

/* Each member of an answer, as "a" or "a.b", stands in the manual; their number is returned. */
static unsigned int members_in_manual(const json_t *object, const char *prefix, const char *manual)
{
    unsigned int count = 0;

    json_object_object_foreach((json_t *)(uintptr_t)object, key, v)
    {
        char name[128], want[160];

        snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "." : "", key);
        if (json_object_is_type(v, json_type_object)) {
            count += members_in_manual(v, name, manual);
            continue;
        }
        snprintf(want, sizeof(want), "\n.It Ql %s\n", name);
        if (!strstr(manual, want))
            fail_msg("man/umbra-mmu.7 lacks %s", name);
        count++;
    }
    return count;
}

static void test_manual(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_free_ char *manual = figures_of_manual();
    unsigned int count, in_manual = 0;
    const json_t *limit;

    make_guest(e);
    answer = env_call(e, "query-mmu", "{}");
    count = members_in_manual(value(answer), "", manual);
    /* A fake KVM tells nothing of it. */
    assert_int_equal(json_get_obj(value(answer), "page-limit", (json_t **)(uintptr_t)&limit), 0);
    assert_false(json_object_object_get_ex(limit, "recycled", NULL));
    for (const char *p = manual; (p = strstr(p, "\n.It Ql ")); p++)
        in_manual++;
    assert_int_equal(in_manual, count + 1);
}

static void test_spaces(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;
    json_t *list, *space;

    make_guest(e);
    answer = env_call(e, "query-mmu-spaces", "{'sort':'seen','limit':1}");
    assert_int_equal(number(value(answer), "total"), 1);
    assert_int_equal(json_get_array(value(answer), "spaces", &list), 0);
    assert_int_equal(json_object_array_length(list), 1);
    space = json_object_array_get_idx(list, 0);
    assert_int_equal(number(space, "root"), gfn_to_gpa(ROOT));
    assert_int_equal(number(space, "levels"), 4);
    assert_int_equal(number(space, "pages"), 9);
    assert_int_equal(number(space, "tables"), 4);
    assert_int_equal(number(space, "dirty"), 0);
    env_expect_error(e, "query-mmu-spaces", "{'sort':'name'}", "Parameter 'sort' does not accept value 'name'");
}

static void test_rmap(void **state)
{
    struct env *e = *state;

    make_guest(e);
    expect_part(e, "query-rmap", "{'gfn':32}", "mappings",
                "[{'root':65536,'kind':'user','generation':1,'gva':4194304,'level':1,'page-size':4096,'write':true,"
                "'user':true,'execute':true,'accessed':true,'dirty':true},"
                "{'root':65536,'kind':'user','generation':1,'gva':18446744072635940864,'level':2,'page-size':2097152,"
                "'write':true,'user':false,'execute':true,'accessed':true,'dirty':true}]");
    expect_part(e, "query-rmap", "{'gpa':135171,'limit':1}", "gfn", "33");
    expect_part(e, "query-rmap", "{'gpa':135171,'limit':1}", "more", "true");
    expect_part(e, "query-rmap", "{'gfn':4095}", "mappings", "[]");
    expect_part(e, "query-rmap", "{'gfn':19}", "table", "true");
    expect_part(e, "query-rmap", "{'gfn':32}", "table", "false");
    env_expect_error(e, "query-rmap", "{}", "give one of 'gfn' and 'gpa'");
    env_expect_error(e, "query-rmap", "{'gfn':1,'gpa':4096}", "give one of 'gfn' and 'gpa'");
    env_expect_error(e, "query-rmap", "{'gfn':4096}", "frame 4096 is not guest memory");
    env_expect_error(e, "query-rmap", "{'gfn':9223372036854775807}", "frame 9223372036854775807 is not guest memory");
    env_expect_error(e, "query-rmap", "{'gpa':16777216}", "frame 4096 is not guest memory");
}

static void test_verify(void **state)
{
    struct env *e = *state;

    env_expect_error(e, "query-mmu-floods", "{'limit':65}", "Parameter 'limit' is 65, out of range (1 to 64)");
    make_guest(e);
    env_expect(e, "mmu-verify", "{}",
               "{'return':{'missing':0,'extra':0,'mismatched':0,'broken-links':0,'roots':1,'tables':6,'incomplete':0,"
               "'source':'re-read'}}");
    env_expect(e, "query-mmu-floods", "{}", "{'return':{'total':0,'floods':[]}}");
    json_object_put(env_call(e, "cont", "{}"));
    json_object_put(peer_read(e->p));
    env_expect_error(e, "mmu-verify", "{}", "the guest runs: stop it first");
}

static void test_set(void **state)
{
    struct env *e = *state;

    make_guest(e);
    env_expect(e, "mmu-set", "{'sync-interval-us':5000,'cpu-budget':7,'floods':false,'page-limit':1000}",
               "{'return':{'tracking':'live','sync-interval-us':5000,'cpu-budget':7,'max-memory':268435456,'floods':false,"
               "'page-limit':{'mode':'manual','limit':1000,'default':81,'changes':0}}}");
    expect_part(e, "mmu-set", "{'page-limit':'auto'}", "page-limit", "{'mode':'auto','limit':0,'default':81,'changes':0}");
    expect_part(e, "mmu-set", "{'tracking':'on-demand','sync-interval-us':0}", "tracking", "'on-demand'");
    expect_part(e, "query-mmu", "{}", "source", "'walk'");
    env_expect_error(e, "mmu-set", "{'sync-interval-us':999}",
                     "Parameter 'sync-interval-us' is neither 0 nor from 1000 to 10000000");
    env_expect_error(e, "mmu-set", "{'page-limit':63}", "Parameter 'page-limit' is neither auto nor off nor a number from 64");
    env_expect_error(e, "mmu-set", "{'page-limit':'many'}",
                     "Parameter 'page-limit' is neither auto nor off nor a number from 64");
    env_expect_error(e, "mmu-set", "{'page-limit':[]}", "Parameter 'page-limit' is neither auto nor off nor a number from 64");
    env_expect_error(e, "mmu-set", "{'tracking':'on'}", "Parameter 'tracking' does not accept value 'on'");
    fake_machine_fail_kvm(e->f.machine, -EINVAL);
    env_expect_error(e, "mmu-set", "{'page-limit':5000}", "KVM does not take a limit of 5000 shadow pages: Invalid argument");
    fake_machine_fail_kvm(e->f.machine, 0);
    expect_part(e, "mmu-set", "{}", "sync-interval-us", "0");
    json_object_put(env_call(e, "mmu-set", "{'tracking':'off'}"));
    expect_part(e, "query-mmu", "{}", "source", "'none'");
    env_expect_error(e, "mmu-verify", "{}", "guest page tables are not tracked: mmu-set tracking first");
    env_expect_error(e, "query-rmap", "{'gfn':1}", "guest page tables are not tracked: mmu-set tracking first");
}

static void test_attribute(void **state)
{
    struct env *e = *state;
    _cleanup_json_ json_t *answer = NULL;
    json_t *attribution;

    make_guest(e);
    json_object_put(env_call(e, "dirty-log-start", "{'name':'a'}"));
    for (gfn_t gfn = 33; gfn < 36; gfn++)
        fake_machine_write(e->f.machine, gfn, 1);
    fake_machine_write(e->f.machine, 39, 1);
    fake_machine_write(e->f.machine, 200, 1);
    fake_machine_write(e->f.machine, 3000, 1);
    answer = env_call(e, "dirty-log-snapshot", "{'name':'a','attribute':true}");
    assert_int_equal(number(value(answer), "pages"), 6);
    assert_int_equal(json_get_obj(value(answer), "attribution", &attribution), 0);
    assert_int_equal(number(attribution, "user"), 4);
    assert_int_equal(number(attribution, "kernel"), 1);
    assert_int_equal(number(attribution, "unmapped"), 1);
    assert_int_equal(number(attribution, "shared"), 0);
    assert_int_equal(number(attribution, "space-count"), 2);
    json_object_put(answer);
    json_object_put(env_call(e, "dirty-log-ack", "{'name':'a','epoch':1}"));
    for (gfn_t gfn = 33; gfn < 36; gfn++)
        fake_machine_write(e->f.machine, gfn, 2);
    fake_machine_write(e->f.machine, 39, 2);
    answer = env_call(e, "dirty-log-snapshot", "{'name':'a','attribute':true}");
    assert_int_equal(json_get_obj(value(answer), "attribution", &attribution), 0);
    json_object_object_del(attribution, "age-us");
    json_object_object_del(attribution, "attribute-us");
    assert_string_equal(json_object_to_json_string_ext(attribution, JSON_C_TO_STRING_PLAIN),
                        "{\"user\":4,\"kernel\":0,\"unmapped\":0,\"shared\":0,\"incomplete\":false,\"space-count\":1,"
                        "\"spaces\":[{\"root\":65536,\"kind\":\"user\",\"generation\":1,\"pages\":4,\"range-count\":2,"
                        "\"ranges\":[{\"gva\":4198400,\"pages\":3},{\"gva\":4222976,\"pages\":1}]}]}");
    {
        _cleanup_json_ json_t *spaces = env_call(e, "query-mmu-spaces", "{'sort':'dirty'}");
        json_t *list;

        assert_int_equal(json_get_array(value(spaces), "spaces", &list), 0);
        assert_int_equal(number(json_object_array_get_idx(list, 0), "dirty"), 4);
    }
    env_expect_error(e, "dirty-log-snapshot", "{'name':'a','attribute':true,'format':'ranges'}",
                     "attribute does not go with format ranges");
    env_expect_error(e, "dirty-log-snapshot", "{'name':'b','attribute':true}", "there is no dirty log consumer 'b'");
    json_object_put(env_call(e, "mmu-set", "{'tracking':'off'}"));
    env_expect_error(e, "dirty-log-snapshot", "{'name':'a','attribute':true}",
                     "guest page tables are not tracked: mmu-set tracking first");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, env_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_query_mmu), TEST(test_manual), TEST(test_spaces), TEST(test_rmap), TEST(test_verify), TEST(test_set), TEST(test_attribute),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
