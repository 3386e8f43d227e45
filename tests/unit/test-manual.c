/* umbrad(8) and umbra.json(5) against the table of options, both ways; and what mandoc says of the manuals. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "daemon/configuration.h"

static char *read_manual(const char *file)
{
    const char *src = getenv("UMBRA_SRCDIR");
    char path[4096], *text;

    snprintf(path, sizeof(path), "%s/man/%s", src ? src : ".", file);
    assert_int_equal(fd_read_file(path, 1 << 20, &text, NULL), 0);
    return text;
}

static unsigned int count(const char *text, const char *what)
{
    unsigned int n = 0;

    for (const char *p = text; (p = strstr(p, what)); p++)
        n++;
    return n;
}

/* Exactly the options of the table, each with its argument, and as many items as there are options. */
static void compare(const char *file, const char *section, const char *item, bool arguments, bool only_keys)
{
    _cleanup_free_ char *text = read_manual(file);
    char *list = strstr(text, section), *end;
    struct config_option o;
    unsigned int expected = 0;
    bool good = true;

    assert_non_null(list);
    end = strstr(list + 1, "\n.Sh ");
    assert_non_null(end);
    *end = '\0';
    for (unsigned int i = 0; config_option_at(i, &o); i++) {
        char line[160];

        if (only_keys && !o.in_file)
            continue;
        snprintf(line, sizeof(line), "\n%s%s%s%s\n", item, o.key, arguments && o.arg ? " Ar " : "", arguments && o.arg ? o.arg : "");
        if (!strstr(list, line))
            print_message("# %s lacks: %s\n", file, line + 1);
        good &= strstr(list, line) != NULL;
        expected++;
    }
    assert_true(good);
    assert_int_equal(count(list, item), expected);
}

static void test_options(void **state)
{
    compare("umbrad.8", "\n.Sh DESCRIPTION", ".It Fl -", true, false);
}

static void test_keys(void **state)
{
    compare("umbra.json.5", "\n.Sh DESCRIPTION", ".It Sy ", false, true);
}

/* The example is a configuration. */
static void test_example(void **state)
{
    _cleanup_free_ char *text = read_manual("umbra.json.5");
    char *from = strstr(text, ".Bd -literal\n"), *to = strstr(text, "\n.Ed"), error[CONFIG_ERROR_MAX] = "";
    struct config c;
    int r;

    assert_non_null(from);
    assert_non_null(to);
    from += strlen(".Bd -literal\n");
    config_init(&c);
    r = config_parse_json(&c, "example", from, (size_t)(to - from), error);
    print_message("# %s\n", error);
    assert_int_equal(r, 0);
    assert_int_equal(config_check(&c, error), 0);
    config_clear(&c);
}

/* Of every manual, but for those it refers to that this machine does not have. */
static void test_lint(void **state)
{
    const char *src = getenv("UMBRA_SRCDIR");
    char pattern[4200];
    glob_t manuals;

    if (system("command -v mandoc >/dev/null") != 0) {
        print_message("# mandoc is not installed\n");
        skip();
    }
    snprintf(pattern, sizeof(pattern), "%.4096s/man/*.[1-9]", src ? src : ".");
    assert_int_equal(glob(pattern, 0, NULL, &manuals), 0);
    assert_true(manuals.gl_pathc >= 8);
    for (size_t i = 0; i < manuals.gl_pathc; i++) {
        char command[4400];

        snprintf(command, sizeof(command), "! mandoc -T lint -W style '%s' 2>&1 | grep -v -e 'referenced manual not found' -e 'mandoc.db' >&2",
                 manuals.gl_pathv[i]);
        assert_int_equal(system(command), 0);
    }
    globfree(&manuals);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_example),
        cmocka_unit_test(test_lint),
    };

    return cmocka_run_group_tests_name("manual", tests, NULL, NULL);
}
