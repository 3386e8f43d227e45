/* What vmctl tells the person: one line each, on stderr. */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ctl/ctl.h"
#include "ctl/format.h"
#include "ctl/term.h"

static void PRINTF_LIKE(2, 0) print_line(const char *prefix, const char *fmt, va_list ap)
{
    char raw[1024], safe[4 * sizeof(raw) + 1];

    vsnprintf(raw, sizeof(raw), fmt, ap);
    fflush(stdout);
    /* On the alternate screen nobody would read it. */
    term_restore();
    fprintf(stderr, "vmctl: %s%s\n", prefix, fmt_safe(raw, safe, sizeof(safe)));
}

void ctl_error(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    print_line("", fmt, ap);
    va_end(ap);
}

int ctl_usage(const struct ctl *ctl, const char *fmt, ...)
{
    char prefix[64] = "", raw[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(raw, sizeof(raw), fmt, ap);
    va_end(ap);
    if (ctl->command)
        snprintf(prefix, sizeof(prefix), "%s: ", ctl->command->name);
    ctl_error("%s%s (see vmctl help%s%s)", prefix, raw, ctl->command ? " " : "",
              ctl->command ? ctl->command->name : "");
    return CTL_USAGE;
}

int ctl_fail(const struct ctl *ctl, const struct failure *failure)
{
    switch (failure->kind) {
    case FAILURE_TIMEOUT:
        /* A number is what a person can act on. */
        ctl_error("%s does not answer: nothing came for %g s", ctl->vm, ctl->reply_timeout_ms / 1e3);
        return CTL_NO_VM;
    case FAILURE_BUSY:
    case FAILURE_GONE:
    case FAILURE_NO_VM:
        ctl_error("%s: %s", ctl->vm, failure->text);
        return CTL_NO_VM;
    default:
        ctl_error("%s: %s", ctl->vm, failure->text);
        return CTL_FAILED;
    }
}

int ctl_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return CTL_DONE;
    ctl_error("cannot write the output: %s", strerror(errno));
    return CTL_FAILED;
}

void ctl_print_json(const json_t *value)
{
    _cleanup_free_ char *text = NULL;

    if (term_stdout_is_tty()) {
        puts(json_object_to_json_string_ext((json_t *)(uintptr_t)value, JSON_C_TO_STRING_PRETTY |
                                                                            JSON_C_TO_STRING_SPACED |
                                                                            JSON_C_TO_STRING_NOSLASHESCAPE));
        return;
    }
    text = json_to_ascii(value, NULL);
    puts(text ? text : "null");
}
