/* Why there are no names: one line for a person, kept by whoever asked. */
#ifndef UMBRA_INSPECT_WHY_H
#define UMBRA_INSPECT_WHY_H

#include "base/util.h"

struct inspect_why {
    char text[200]; /* no full stop; "" when there is nothing to say */
};

/* Keep the reason and return r, so that a failure is one statement. Lower layers write first, callers do not overwrite. */
int inspect_because(struct inspect_why *why, int r, const char *fmt, ...) PRINTF_LIKE(3, 4);

#endif
