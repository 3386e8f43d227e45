#include "config.h"

#include "ctl/progress.h"

#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "ctl/format.h"
#include "ctl/term.h"

static char shown[512];

static bool wanted(void)
{
    const char *name = getenv("TERM");

    return isatty(STDERR_FILENO) && name && strcmp(name, "dumb") != 0;
}

/*
 * A line that wraps cannot be taken back, and the next one would scroll; in the last column some terminals wrap already. What is no
 * ASCII may be two columns wide.
 */
static void cut(char *text, unsigned int columns)
{
    unsigned int column = 0;

    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if ((c & 0xc0) == 0x80)
            continue;
        column += c < 0x80 ? 1 : 2;
        if (column >= columns)
            break;
    }
    *text = '\0';
}

void progress(const char *fmt, ...)
{
    char raw[sizeof(shown)], line[sizeof(shown)];
    va_list ap;

    if (!wanted())
        return;
    va_start(ap, fmt);
    vsnprintf(raw, sizeof(raw), fmt, ap);
    va_end(ap);
    /* Names of processes are the guest's. */
    fmt_safe(raw, line, sizeof(line));
    cut(line, term_stderr_columns());
    if (strcmp(line, shown) == 0)
        return;
    strcpy(shown, line);
    fprintf(stderr, "\r%s\033[K", line);
}

void progress_clear(void)
{
    if (shown[0])
        fprintf(stderr, "\r\033[K");
    shown[0] = '\0';
}
