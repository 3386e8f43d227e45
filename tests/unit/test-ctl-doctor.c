/* vmctl doctor's rules: for each what it finds, and what it leaves alone. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "ctl/doctor.h"

/* One VM up for 100 s, and what is to be found: "severity subject" of each, and a word of the evidence or advice of the first. */
struct row {
    const char *status, *host, *mmu, *floods, *dirty_log, *dirty_rate, *block, *stats;
    const char *want, *word;
};

#define LIMIT(mode, recycled) \
    "{'page-limit':{'mode':'" mode "','limit':0,'default':1280,'recycled':" recycled "},'tables':{'total':4000}}"

static const struct row rows[] = {
    {.want = ""},
    {.status = "{'status':'running'}", .host = "{'paging':{'mode':'shadow'},'guest-kernel':{'emulated':false}}", .want = ""},
    {.status = "{'status':'internal-error'}", .want = "critical state;", .word = "vmctl reset vm"},
    {.status = "{'status':'guest-panicked'}", .want = "critical state;", .word = "guest-panicked"},
    {.status = "{'status':'io-error'}", .want = "critical state;", .word = "resume vm"},
    {.status = "{'status':'paused'}", .want = "notice state;", .word = "paused"},
    {.status = "{'status':7}", .want = ""},
    {.status = "[]", .host = "1", .mmu = "null", .floods = "'x'", .dirty_log = "[1]", .dirty_rate = "[]", .block = "{}", .want = ""},
    {.host = "{'paging':{'mode':'tdp'}}", .want = "notice paging;", .word = "tdp"},
    {.host = "{'guest-kernel':{'emulated':true}}", .want = "warning guest kernel;"},
    {.mmu = "{'guest':{'kpti':false}}", .want = ""},
    {.mmu = "{'guest':{'kpti':true}}", .want = "notice KPTI;", .word = "pti=off"},
    {.mmu = LIMIT("off", "9999"), .want = ""},
    {.mmu = LIMIT("off", "123456"), .want = "warning page limit;", .word = "page-limit=auto"},
    {.mmu = LIMIT("auto", "123456"), .want = "warning page limit;", .word = "page-limit=8000"},
    {.mmu = LIMIT("manual", "123456"), .want = "warning page limit;", .word = "123,456 shadow pages (1235 a second)"},
    {.mmu = "{'flood-count':900}", .want = ""},
    {.mmu = "{'flood-count':1500}", .want = "notice floods;", .word = "15.0 a second"},
    {.mmu = "{'flood-count':1500}",
     .floods = "{'floods':[{'gfn':1,'level':1,'count':3},{'gfn':4660,'level':2,'count':9},5]}",
     .want = "notice floods;",
     .word = "level 2 table at frame 0x1234"},
    {.mmu = "{'tables':{'incomplete':3},'roots':{'evicted':2},'max-memory':1048576}", .want = "notice bookkeeping;", .word = "1 MiB"},
    {.dirty_log = "{'memory-pages':1000,'consumers':[{'name':'a','pending':200,'unacknowledged':300,'lost':false}]}", .want = ""},
    {.dirty_log = "{'memory-pages':1000,'consumers':[{'name':'a','pending':200,'unacknowledged':301,'lost':false}]}",
     .want = "notice dirty log;",
     .word = "dirty stop vm a"},
    {.dirty_log = "{'memory-pages':1000,'consumers':[{'name':'migration','pending':900},{'name':'snapshot-copy','pending':900}]}",
     .want = ""},
    {.dirty_log = "{'memory-pages':1000,'consumers':[{'name':'snapshot','pending':900}]}",
     .want = "notice dirty log;",
     .word = "hardly smaller than a full snapshot"},
    {.dirty_log = "{'consumers':[{'name':'migration','lost':true}]}", .want = "critical dirty log;", .word = "fails by itself"},
    {.dirty_log = "{'consumers':[{'name':'snapshot','lost':true}]}", .want = "critical dirty log;", .word = "a full one"},
    {.dirty_log = "{'consumers':[{'name':'a','lost':true},{'name':'b','lost':true}]}",
     .want = "critical dirty log;critical dirty log;",
     .word = "consumer a"},
    {.dirty_rate = "{'status':'unstarted'}", .want = "info migration;", .word = "dirty rate vm"},
    {.dirty_rate = "{'status':'measured','dirty-rate':700}", .want = "info migration;", .word = "would come to an end"},
    {.dirty_rate = "{'status':'measured','dirty-rate':900}", .want = "warning migration;", .word = "would not come to an end"},
    {.block = "[{'device':'vblk0','io-status':'ok','needs-reset':false}]", .want = ""},
    {.block = "[{'device':'vblk0','io-status':'ok','needs-reset':true}]", .want = "warning devices;", .word = "vblk0"},
    {.block = "[{'device':'vblk0','io-status':'nospace','held-back':3}]", .want = "critical devices;", .word = "3 requests"},
    {.stats = "{'name':'dirty_failures','value':2}", .want = "warning dirty log;"},
    {.stats = "{'name':'dirty_harvests','value':2},{'name':'dirty_harvest_ns','value':50000000}", .want = "notice stalls;", .word = "25.0 ms"},
    {.stats = "{'name':'dirty_ring_full','value':101}", .want = "warning stalls;", .word = "--dirty-log bitmap"},
    {.stats = "{'name':'bus_unclaimed','value':9000}", .want = ""},
    {.stats = "{'name':'bus_unclaimed','value':90000}", .want = "notice exits;", .word = "900 times"},
    {.stats = "{'name':'sandbox_refusals','value':1}", .want = "critical sandbox;"},
    /* The gravest first. */
    {.status = "{'status':'paused'}",
     .mmu = LIMIT("off", "123456"),
     .dirty_rate = "{'status':'unstarted'}",
     .block = "[{'io-status':'failed'}]",
     .want = "critical devices;warning page limit;notice state;info migration;"},
};

static json_t *parse(const char *text)
{
    char *copy;
    json_t *o;

    if (!text)
        return NULL;
    copy = strdup(text);
    assert_non_null(copy);
    for (char *p = copy; *p; p++)
        if (*p == '\'')
            *p = '"';
    o = json_tokener_parse(copy);
    free(copy);
    return o;
}

static void summarise(const struct findings *f, char *buf, size_t len)
{
    size_t o = 0;

    *buf = '\0';
    for (size_t i = 0; i < f->count; i++)
        o += (size_t)snprintf(buf + o, len - o, "%s %s;", severity_name(f->list[i].severity), f->list[i].subject);
}

static void check_row(const struct row *row)
{
    struct doctor_vm vm = {
        .name = "vm", .uptime = 100, .bandwidth = 1000 * MiB,
        .status = parse(row->status), .host = parse(row->host), .mmu = parse(row->mmu), .floods = parse(row->floods),
        .dirty_log = parse(row->dirty_log), .dirty_rate = parse(row->dirty_rate), .block = parse(row->block),
    };
    const json_t *const all[] = {vm.status, vm.host, vm.mmu, vm.floods, vm.dirty_log, vm.dirty_rate, vm.block};
    struct findings f = {.count = 0};
    char stats[512], got[512];
    json_t *of_vm;

    snprintf(stats, sizeof(stats), "[{'provider':'umbra','stats':[%s]}]", row->stats ? row->stats : "");
    of_vm = parse(stats);
    assert_int_equal(stats_read(&vm.stats, of_vm, NULL, NULL), 0);
    doctor_examine_vm(&vm, &f);
    doctor_sort(&f);
    summarise(&f, got, sizeof(got));
    if (strcmp(got, row->want) != 0)
        fail_msg("row %zu: found \"%s\", want \"%s\"", (size_t)(row - rows), got, row->want);
    if (row->word && !strstr(f.list[0].evidence, row->word) && !strstr(f.list[0].advice, row->word))
        fail_msg("row %zu: no \"%s\" in \"%s\" or \"%s\"", (size_t)(row - rows), row->word, f.list[0].evidence, f.list[0].advice);
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        json_object_put((json_t *)(uintptr_t)all[i]);
    json_object_put(of_vm);
    stats_clear(&vm.stats);
}

static void test_vm(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        check_row(&rows[i]);
}

static void test_many(void **state)
{
    struct findings f = {.count = 0};

    for (unsigned int i = 0; i < DOCTOR_MAX_FINDINGS + 5; i++)
        doctor_advise(doctor_found(&f, SEVERITY_INFO, "x", "%u", i), "%u", i);
    assert_int_equal(f.count, DOCTOR_MAX_FINDINGS);
}

static void put(const char *dir, const char *path, const char *text)
{
    char full[256];
    FILE *file;

    snprintf(full, sizeof(full), "%s%s", dir, path);
    for (char *p = full + strlen(dir) + 1; (p = strchr(p, '/')); p++) {
        *p = '\0';
        mkdir(full, 0755);
        *p = '/';
    }
    file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void expect_host(const char *root, const char *want)
{
    struct findings f = {.count = 0};
    char got[512], runtime[256];

    snprintf(runtime, sizeof(runtime), "%s/run", root);
    doctor_examine_host(root, runtime, &f);
    /* What depends on who runs the test. */
    for (size_t i = 0; i < f.count; i++)
        if (strcmp(f.list[i].subject, "access") == 0 || strcmp(f.list[i].subject, "userfaultfd") == 0)
            memmove(&f.list[i], &f.list[i + 1], (--f.count - i) * sizeof(f.list[0]));
    summarise(&f, got, sizeof(got));
    assert_string_equal(got, want);
}

static void test_host(void **state)
{
    char root[] = "/tmp/test-ctl-doctor.XXXXXX", command[64];

    assert_non_null(mkdtemp(root));
    expect_host(root, "critical KVM;");
    put(root, "/dev/kvm", "");
    put(root, "/dev/userfaultfd", "");
    put(root, "/proc/meminfo", "MemTotal:       1000000 kB\nMemFree: 1 kB\nMemAvailable:    60000 kB\n");
    put(root, "/sys/module/kvm_amd/parameters/npt", "N\n");
    expect_host(root, "");
    put(root, "/sys/module/kvm_amd/parameters/npt", "Y\n");
    put(root, "/sys/module/kvm_intel/parameters/ept", "1\n");
    put(root, "/proc/meminfo", "MemTotal:       1000000 kB\nMemFree: 1 kB\nMemAvailable:    40000 kB\n");
    expect_host(root, "warning paging;warning paging;warning memory;");
    put(root, "/sys/module/kvm_amd/parameters/npt", "N\n");
    put(root, "/sys/module/kvm_intel/parameters/ept", "0\n");
    put(root, "/proc/meminfo", "");
    /* Killed ones; one that is only being made; one that ended and left what is somebody else's. */
    put(root, "/run/killed/pid", "1\n");
    put(root, "/run/other/file", "");
    expect_host(root, "warning VMs;");
    snprintf(command, sizeof(command), "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vm),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_host),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
