/* man/umbra-control.7 against the command table, the events and the limits of the code; man/umbra-mmu.7 against mmu-set. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/util.h"
#include "daemon/dirty-rate.h"
#include "daemon/qmp-server-internal.h"

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

/* The events of the manual are those that the code emits, and the other way round. */
static void test_manual_events(void **state)
{
    /* Where events come from, and what stands before an event's name there. */
    static const struct {
        const char *file, *call;
    } sources[] = {
        {"src/daemon/machine.c", "emit(m, \""},
        {"src/daemon/machine-balloon.c", "emit(m, \""},
        {"src/daemon/migration-report.c", "observer.opaque, \""},
        {"src/daemon/migration-source.c", "observer.opaque, \""},
        {"src/daemon/qmp-snapshot.c", "qmp_server_event(q->server, \""},
    };
    _cleanup_free_ char *manual = read_source("man/umbra-control.7");
    char *section = strstr(manual, "\n.Sh EVENTS\n"), *end, want[128], emitted[4096] = "\n";
    size_t len = 1;

    assert_non_null(section);
    end = strstr(section + 1, "\n.Sh ");
    assert_non_null(end);
    *end = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(sources); i++) {
        _cleanup_free_ char *code = read_source(sources[i].file);

        assert_non_null(strstr(code, sources[i].call));
        for (char *p = code; (p = strstr(p, sources[i].call));) {
            p += strlen(sources[i].call);
            snprintf(want, sizeof(want), "\n.It Sy %.*s\n", (int)strcspn(p, "\""), p);
            if (!strstr(section, want))
                fail_msg("the manual lacks an event: %s", want);
            len += (size_t)snprintf(emitted + len, sizeof(emitted) - len, "%.*s\n", (int)strcspn(p, "\""), p);
            assert_true(len < sizeof(emitted));
        }
    }
    for (char *p = section; (p = strstr(p, "\n.It Sy "));) {
        p += strlen("\n.It Sy ");
        snprintf(want, sizeof(want), "\n%.*s\n", (int)strcspn(p, "\n"), p);
        if (!strstr(emitted, want))
            fail_msg("the manual has an event that nothing emits: %s", want);
    }
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

/* Of man/umbra-mmu.7: the parameters of mmu-set, in the order of the table. */
static void test_manual_parameters(void **state)
{
    _cleanup_free_ char *manual = read_source("man/umbra-mmu.7");
    char *section = strstr(manual, "\n.Sh PARAMETERS\n"), *end, want[128];
    const struct qmp_arg *arg = NULL;

    assert_non_null(section);
    end = strstr(section + 1, "\n.Sh ");
    assert_non_null(end);
    *end = '\0';
    for (size_t i = 0; i < qmp_command_count; i++)
        if (strcmp(qmp_commands[i].name, "mmu-set") == 0)
            arg = qmp_commands[i].args;
    assert_non_null(arg);
    for (char *p = section; (p = strstr(p, "\n.It Cm ")); arg++) {
        p += strlen("\n.It Cm ");
        snprintf(want, sizeof(want), "%.*s", (int)strcspn(p, "\n"), p);
        assert_non_null(arg->name);
        assert_string_equal(want, arg->name);
    }
    assert_null(arg->name);
}

static void test_manual_lint(void **state)
{
    const char *src = getenv("UMBRA_SRCDIR"), *pages[] = {"umbra-control.7", "umbra-mmu.7"};

    if (system("command -v mandoc >/dev/null") != 0) {
        print_message("# mandoc is not installed\n");
        skip();
    }
    for (size_t i = 0; i < ARRAY_SIZE(pages); i++) {
        char command[4096];

        snprintf(command, sizeof(command), "mandoc -T lint -W warning '%s/man/%s' >&2", src ? src : ".", pages[i]);
        assert_int_equal(system(command), 0);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_manual_commands),
        cmocka_unit_test(test_manual_events),
        cmocka_unit_test(test_manual_limits),
        cmocka_unit_test(test_manual_parameters),
        cmocka_unit_test(test_manual_lint),
    };

    return cmocka_run_group_tests_name("qmp-manual", tests, NULL, NULL);
}
