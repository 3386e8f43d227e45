/* A line that tells how something goes, on a terminal only. */
#ifndef UMBRA_CTL_PROGRESS_H
#define UMBRA_CTL_PROGRESS_H

#include "base/util.h"

/* Show the line in the place of the one before, cut to the terminal's width; nothing unless stderr is a terminal. */
void progress(const char *fmt, ...) PRINTF_LIKE(1, 2);
/* Take the line away. */
void progress_clear(void);

#endif
