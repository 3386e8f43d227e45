#include "config.h"

#include "ctl/progress.h"

#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

static char shown[256];

static bool wanted(void)
{
    const char *name = getenv("TERM");

    return isatty(STDERR_FILENO) && name && strcmp(name, "dumb") != 0;
}

void progress(const char *fmt, ...)
{
    char line[sizeof(shown)];
    va_list ap;

    if (!wanted())
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
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
