/* What a person types: command lines, times, escape keys, requests. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "ctl/console-keys.h"
#include "ctl/ctl.h"
#include "ctl/qmp-words.h"

#define MAX_ARGS 16

/* Parse a line of words; argv stays valid until the next call. */
static int parse(struct ctl *ctl, const char *line, bool *ret_done)
{
    static char text[256], *argv[MAX_ARGS + 1];
    int argc = 0;
    char *next;

    snprintf(text, sizeof(text), "vmctl %s", line);
    for (char *w = strtok_r(text, " ", &next); w && argc < MAX_ARGS; w = strtok_r(NULL, " ", &next))
        argv[argc++] = w;
    argv[argc] = NULL;
    return ctl_parse(ctl, argc, argv, ret_done);
}

static void test_commands(void **state)
{
    static const struct {
        const char *line, *command, *args;
    } cases[] = {
        {"list", "list", ""},
        {"status demo", "status", "demo"},
        {"dirty watch demo", "dirty watch", "demo"},
        {"dirty snapshot --format ranges demo x", "dirty snapshot", "demo x"},
        {"--runtime-dir /r status demo", "status", "demo"},
        {"status demo --runtime-dir=/r -ojson", "status", "demo"},
        {"stats -aw 0.5 demo a b", "stats", "demo a b"},
        {"stats demo -w2 -c 3 -- -x", "stats", "demo -x"},
        {"qmp demo device=- -", "qmp", "demo device=- -"},
        {"help dirty watch", "help", "dirty watch"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char joined[128] = "";
        struct ctl ctl;
        bool done;

        print_message("# %s\n", cases[i].line);
        assert_int_equal(parse(&ctl, cases[i].line, &done), CTL_DONE);
        assert_false(done);
        assert_string_equal(ctl.command->name, cases[i].command);
        for (int k = 0; k < ctl.arg_count; k++) {
            strcat(joined, k ? " " : "");
            strcat(joined, ctl.args[k]);
        }
        assert_string_equal(joined, cases[i].args);
    }
}

static void test_options(void **state)
{
    struct ctl ctl;
    bool done;
    int ms = 7;
    uint64_t n = 7;

    assert_int_equal(parse(&ctl, "-o json --reply-timeout 0.25 --runtime-dir /r stats -aw 0.5 demo", &done), CTL_DONE);
    assert_int_equal(ctl.output, CTL_JSON);
    assert_int_equal(ctl.reply_timeout_ms, 250);
    assert_string_equal(ctl.runtime_dir, "/r");
    assert_string_equal(ctl_opt(&ctl, "all"), "");
    assert_string_equal(ctl_opt(&ctl, "watch"), "0.5");
    assert_null(ctl_opt(&ctl, "count"));
    assert_int_equal(ctl_opt_seconds(&ctl, "watch", 50, 10000, &ms), CTL_DONE);
    assert_int_equal(ms, 500);
    assert_int_equal(ctl_opt_number(&ctl, "count", 1, 10, &n), CTL_DONE);
    assert_int_equal(n, 7);
    assert_int_equal(ctl_opt_seconds(&ctl, "watch", 600, 10000, &ms), CTL_USAGE);

    /* An option of the command wins over vmctl's own of the same letter. */
    assert_int_equal(parse(&ctl, "shutdown demo --now -t 5", &done), CTL_DONE);
    assert_string_equal(ctl_opt(&ctl, "timeout"), "5");
    assert_string_equal(ctl_opt(&ctl, "now"), "");
}

static void test_bad_lines(void **state)
{
    static const char *const lines[] = {
        "",
        "frobnicate",
        "dirty",
        "dirty frobnicate",
        "dirty --once watch",
        "status --frobnicate",
        "status -x",
        "status --output",
        "status -o",
        "status -o yaml",
        "status --help=1",
        "stats --all=1",
        "stats -w",
        "--reply-timeout 0 list",
        "--reply-timeout -1 list",
        "--reply-timeout 1e3 list",
        "--reply-timeout nan list",
        "--runtime-dir= list",
        /* An option that another command has. */
        "status --watch 1",
    };

    for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
        struct ctl ctl;
        bool done;

        print_message("# %s\n", lines[i]);
        assert_int_equal(parse(&ctl, lines[i], &done), CTL_USAGE);
    }
}

static void test_seconds(void **state)
{
    static const struct {
        const char *text;
        int r, ms;
    } cases[] = {
        {"1", 0, 1000},   {"0.5", 0, 500},     {".5", 0, 500},        {"0.0004", -ERANGE, 0}, {"10", 0, 10000},
        {"", -EINVAL, 0}, {".", -EINVAL, 0},   {"1.2.3", -EINVAL, 0}, {"-1", -EINVAL, 0},     {" 1", -EINVAL, 0},
        {"1s", -EINVAL, 0}, {"0x10", -EINVAL, 0}, {"inf", -EINVAL, 0},   {"10.001", -ERANGE, 0}, {"99999999999999999999", -ERANGE, 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        int ms = 0;

        print_message("# '%s'\n", cases[i].text);
        assert_int_equal(ctl_parse_seconds(cases[i].text, 1, 10000, &ms), cases[i].r);
        assert_int_equal(ms, cases[i].ms);
    }
}

/* Rows that the parser cannot tell apart, or that do not fit its arrays, are mistakes in the table. */
static void test_table(void **state)
{
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        const struct ctl_command *c = &ctl_commands[i];
        int n = 0;

        assert_ptr_equal(ctl_find_command(c->name), c);
        assert_non_null(c->run);
        assert_true(c->help[0] != '\0' && c->help[strlen(c->help) - 1] != '.');
        for (; c->options && c->options[n].name; n++) {
            for (int k = 0; k < n; k++) {
                assert_string_not_equal(c->options[k].name, c->options[n].name);
                assert_true(!c->options[n].letter || c->options[k].letter != c->options[n].letter);
            }
        }
        assert_true(n <= CTL_MAX_OPTIONS);
    }
    assert_null(ctl_find_command("dirty"));
    assert_null(ctl_find_command("stat"));
}

/* -- the console's keys -- */

static void test_escape_names(void **state)
{
    static const struct {
        const char *text;
        int r, escape;
        const char *name;
    } cases[] = {
        {"^]", 0, 0x1d, "^]"}, {"^a", 0, 1, "^A"}, {"^A", 0, 1, "^A"},  {"^?", 0, 0x7f, "^?"},
        {"~", 0, '~', "~"},    {"^", 0, '^', "^"}, {"none", 0, -1, "none"}, {"", -EINVAL, 0, NULL},
        {"ab", -EINVAL, 0, NULL}, {"^1", -EINVAL, 0, NULL}, {"^ab", -EINVAL, 0, NULL}, {"\xc3", -EINVAL, 0, NULL},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        int escape = 0;
        char name[8];

        print_message("# '%s'\n", cases[i].text);
        assert_int_equal(console_parse_escape(cases[i].text, &escape), cases[i].r);
        assert_int_equal(escape, cases[i].escape);
        if (cases[i].name)
            assert_string_equal(console_escape_name(escape, name), cases[i].name);
    }
}

/* Type `in` in pieces of `piece` bytes until it asks for something; what the guest gets is in `out`. */
static enum console_action type_all(const char *in, size_t piece, char *out, size_t *ret_left)
{
    struct console_keys keys = {.escape = CONSOLE_DEFAULT_ESCAPE};
    size_t len = strlen(in), at = 0, o = 0;
    enum console_action action = CONSOLE_GO_ON;

    while (at < len && action == CONSOLE_GO_ON) {
        uint8_t buf[64];
        size_t got, used;

        action = console_type(&keys, (const uint8_t *)in + at, MIN(piece, len - at), buf, &got, &used);
        memcpy(out + o, buf, got);
        o += got;
        at += used;
    }
    out[o] = '\0';
    *ret_left = len - at;
    return action;
}

static void test_escape_keys(void **state)
{
    static const struct {
        const char *in, *out;
        enum console_action action;
        size_t left;
    } cases[] = {
        {"ls\r", "ls\r", CONSOLE_GO_ON, 0},
        {"ab\x1d.cd", "ab", CONSOLE_QUIT, 2},
        {"ab\x1dq", "ab", CONSOLE_QUIT, 0},
        {"a\x1d?b", "a", CONSOLE_HELP, 1},
        {"a\x1d\x1d" "b", "a\x1d" "b", CONSOLE_GO_ON, 0},
        {"a\x1dxb", "a\x1dxb", CONSOLE_GO_ON, 0},
        {"a\x1d", "a", CONSOLE_GO_ON, 0},
        {"\x1d\x1d\x1d.", "\x1d", CONSOLE_QUIT, 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        for (size_t piece = 1; piece < 9; piece++) {
            char out[64];
            size_t left;

            assert_int_equal(type_all(cases[i].in, piece, out, &left), cases[i].action);
            assert_string_equal(out, cases[i].out);
            assert_int_equal(left, cases[i].left);
        }
    }
}

static void test_no_escape(void **state)
{
    struct console_keys keys = {.escape = CONSOLE_NO_ESCAPE};
    const uint8_t in[] = {0xff, 0x1d, '.', 0};
    uint8_t out[8];
    size_t got, used;

    assert_int_equal(console_type(&keys, in, sizeof(in), out, &got, &used), CONSOLE_GO_ON);
    assert_int_equal(got, sizeof(in));
    assert_memory_equal(out, in, sizeof(in));
}

/* -- requests -- */

static void test_requests(void **state)
{
    static const struct {
        const char *line, *json, *error;
    } cases[] = {
        {"query-status", "{\"execute\":\"query-status\"}", NULL},
        {"  stop \r", "{\"execute\":\"stop\"}", NULL},
        {"x name=demo n=3 f=2.5 t=true z=null s=\"3\" l=[1,2] o={\"a\":1} e= q=a=b m=-5",
         "{\"execute\":\"x\",\"arguments\":{\"name\":\"demo\",\"n\":3,\"f\":2.5,\"t\":true,\"z\":null,\"s\":\"3\","
         "\"l\":[1,2],\"o\":{\"a\":1},\"e\":\"\",\"q\":\"a=b\",\"m\":-5}}",
         NULL},
        /* Almost JSON is text. */
        {"x a=12x b=NaN c={bad d=Infinity f=1.5.3", "{\"execute\":\"x\",\"arguments\":{\"a\":\"12x\",\"b\":\"NaN\",\"c\":\"{bad\","
                                               "\"d\":\"Infinity\",\"f\":\"1.5.3\"}}", NULL},
        {"{\"execute\": \"stop\", \"id\": [1, \"x\"]}  ", "{\"execute\":\"stop\",\"id\":[1,\"x\"]}", NULL},
        {"{\"execute\": \"stop\"", NULL, "the request is not a JSON object: it does not end where its text ends"},
        {"{\"execute\": \"stop\"} {}", NULL, "the request is not a JSON object: it does not end where its text ends"},
        {"{execute}", NULL, "the request is not a JSON object: object property name separator ':' expected"},
        {"x name", NULL, "argument 'name' is not KEY=VALUE"},
        {"x =3", NULL, "argument '=3' is not KEY=VALUE"},
        {"x a=1 a=2", NULL, "argument 'a' is given twice"},
        {" ", NULL, "nothing to send"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_json_ json_t *request = NULL;
        _cleanup_free_ char *text = NULL;
        char line[256], error[256] = "";

        print_message("# %s\n", cases[i].line);
        snprintf(line, sizeof(line), "%s", cases[i].line);
        assert_int_equal(qmp_line_request(line, &request, error, sizeof(error)), cases[i].json ? 0 : -EINVAL);
        if (!cases[i].json) {
            assert_null(request);
            if (strncmp(error, "the request is not a JSON object:", 33) != 0)
                assert_string_equal(error, cases[i].error);
            continue;
        }
        text = json_to_ascii(request, NULL);
        assert_string_equal(text, cases[i].json);
    }
}

static void test_request_words(void **state)
{
    char one[] = "{\"execute\": \"x\"}", two[] = "more", *words[] = {one, two}, error[256];
    json_t *request = NULL;

    assert_int_equal(qmp_words_request(words, 2, &request, error, sizeof(error)), -EINVAL);
    assert_string_equal(error, "unexpected argument 'more' after a JSON request");
    assert_null(request);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commands),     cmocka_unit_test(test_options),     cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_seconds),      cmocka_unit_test(test_table),       cmocka_unit_test(test_escape_names),
        cmocka_unit_test(test_escape_keys),  cmocka_unit_test(test_no_escape),   cmocka_unit_test(test_requests),
        cmocka_unit_test(test_request_words),
    };

    return cmocka_run_group_tests_name("ctl-args", tests, NULL, NULL);
}
