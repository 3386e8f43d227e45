/* vmctl(1) against the table of commands, both ways: the same commands, options and arguments. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/fd.h"
#include "ctl/ctl.h"

#define ITEM_MAX 256

/* What the manual has: a command, or an option under one ("" for vmctl's own). */
struct item {
    char command[64];
    char text[ITEM_MAX]; /* "-w, --watch SECONDS" or "[VM] [NAME]..." */
    bool option;
};

static struct item items[256];
static size_t item_count;

/* Put the words of an .It line together as a reader sees them: Fl, Ar, Op and the like are macros. */
static void plain_text(char *line, char *out)
{
    char *next, *word;
    bool glue = true, option = false;
    int op = 0;

    *out = '\0';
    for (word = strtok_r(line, " ", &next); word; word = strtok_r(NULL, " ", &next)) {
        if (strcmp(word, "Fl") == 0) {
            option = true;
        } else if (strcmp(word, "Ns") == 0) {
            glue = true;
        } else if (strcmp(word, "Ar") == 0 || strcmp(word, "Ic") == 0 || strcmp(word, "Cm") == 0) {
            continue;
        } else if (strcmp(word, "Oo") == 0 || strcmp(word, "Op") == 0) {
            strcat(out, glue ? "[" : " [");
            glue = true;
            op += strcmp(word, "Op") == 0;
        } else if (strcmp(word, "Oc") == 0) {
            strcat(out, "]");
            glue = false;
        } else {
            bool dots = strcmp(word, "...") == 0, comma = strcmp(word, ",") == 0;

            /* "Op Ar NAME ..." means [NAME]... here. */
            if (dots && op > 0) {
                strcat(out, "]");
                op--;
            }
            strcat(out, glue || dots || comma ? "" : " ");
            strcat(out, option ? "-" : "");
            strcat(out, word);
            option = glue = false;
        }
    }
    while (op-- > 0)
        strcat(out, "]");
}

static void add_command(char *line)
{
    struct item *it = &items[item_count++];
    char text[ITEM_MAX], *arguments;

    plain_text(line, text);
    arguments = text + strcspn(text, "[ABCDEFGHIJKLMNOPQRSTUVWXYZ"); /* commands are lower-case */
    snprintf(it->command, sizeof(it->command), "%.*s", (int)(arguments - text), text);
    if (*it->command && it->command[strlen(it->command) - 1] == ' ')
        it->command[strlen(it->command) - 1] = '\0';
    snprintf(it->text, sizeof(it->text), "%s", arguments);
}

static void add_option(char *line, const char *command)
{
    struct item *it = &items[item_count++];

    snprintf(it->command, sizeof(it->command), "%s", command);
    it->option = true;
    plain_text(line, it->text);
}

static int load(void **state)
{
    const char *src = getenv("UMBRA_SRCDIR");
    char path[4096], *text, *next, section[32] = "", command[64] = "";

    snprintf(path, sizeof(path), "%s/man/vmctl.1", src ? src : ".");
    if (fd_read_file(path, 1 << 20, &text, NULL) < 0)
        return -1;
    for (char *line = strtok_r(text, "\n", &next); line; line = strtok_r(NULL, "\n", &next)) {
        if (strncmp(line, ".Sh ", 4) == 0)
            snprintf(section, sizeof(section), "%.31s", line + 4);
        if (strncmp(line, ".It ", 4) != 0)
            continue;
        if (strncmp(line, ".It Ic ", 7) == 0) {
            add_command(line + 4);
            snprintf(command, sizeof(command), "%s", items[item_count - 1].command);
        } else if (strncmp(line, ".It Fl ", 7) == 0) {
            add_option(line + 4, strcmp(section, "DESCRIPTION") == 0 ? "" : command);
        }
    }
    free(text);
    return 0;
}

static bool in_manual(const char *command, bool option, const char *text)
{
    for (size_t i = 0; i < item_count; i++)
        if (items[i].option == option && strcmp(items[i].command, command) == 0 && strcmp(items[i].text, text) == 0)
            return true;
    print_message("# the manual lacks %s '%s' of '%s'\n", option ? "option" : "command with arguments", text, command);
    return false;
}

static void option_text(const struct ctl_option *o, char *buf, size_t len)
{
    char letter[8] = "";

    if (o->letter)
        snprintf(letter, sizeof(letter), "-%c, ", o->letter);
    snprintf(buf, len, "%s--%s%s%s", letter, o->name, o->value ? " " : "", o->value ? o->value : "");
}

static void command_text(const struct ctl_command *c, char *buf, size_t len)
{
    snprintf(buf, len, "%s%s%s", c->options ? "[OPTION]..." : "", c->options && *c->arguments ? " " : "", c->arguments);
}

static size_t check_options(const char *command, const struct ctl_option *list, bool *good)
{
    size_t n = 0;

    for (; list && list[n].name; n++) {
        char text[ITEM_MAX];

        option_text(&list[n], text, sizeof(text));
        *good &= in_manual(command, true, text);
    }
    return n;
}

/* All that the table has is in the manual, and the manual has no more. */
static void test_manual(void **state)
{
    size_t entries = ctl_command_count;
    bool good = true;

    entries += check_options("", ctl_global_options, &good);
    for (unsigned int i = 0; i < ctl_command_count; i++) {
        char text[ITEM_MAX];

        command_text(&ctl_commands[i], text, sizeof(text));
        good &= in_manual(ctl_commands[i].name, false, text);
        entries += check_options(ctl_commands[i].name, ctl_commands[i].options, &good);
    }
    assert_true(good);
    for (size_t i = 0; i < item_count && entries != item_count; i++)
        if (!items[i].option && !ctl_find_command(items[i].command))
            print_message("# only the manual has '%s'\n", items[i].command);
    assert_int_equal(item_count, entries);
}

/* Nothing that mandoc complains about, but for manuals that this machine does not have. */
static void test_lint(void **state)
{
    const char *src = getenv("UMBRA_SRCDIR");
    char command[4400];

    if (system("command -v mandoc >/dev/null") != 0) {
        print_message("# mandoc is not installed\n");
        skip();
    }
    snprintf(command, sizeof(command),
             "! mandoc -T lint -W style '%s/man/vmctl.1' | grep -v 'referenced manual not found' >&2", src ? src : ".");
    assert_int_equal(system(command), 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(test_manual), cmocka_unit_test(test_lint)};

    return cmocka_run_group_tests_name("ctl-manual", tests, load, NULL);
}
