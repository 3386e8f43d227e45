#include "config.h"

#include "inspect/why.h"

#include <stdarg.h>

int inspect_because(struct inspect_why *why, int r, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why->text, sizeof(why->text), fmt, ap);
    va_end(ap);
    return r;
}
