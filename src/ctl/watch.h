/*
 * Showing something again and again until the person has seen enough: on a terminal in place, on the alternate screen
 * (q or ^C ends); else one block or line after the other. Ends cleanly on SIGINT, SIGTERM and SIGHUP, when stdout is
 * closed and when the daemon goes.
 */
#ifndef UMBRA_CTL_WATCH_H
#define UMBRA_CTL_WATCH_H

#include <stdio.h>

#include "ctl/ctl.h"
#include "ctl/term.h"

struct watch {
    const struct ctl *ctl;
    struct client *client; /* watched for its end */
    int interval_ms;
    uint64_t count;        /* pictures; 0: no limit */
    bool in_place;         /* draw on the alternate screen; wants caps.tty */
    struct term_caps caps;
    unsigned int columns, rows; /* of the window, kept up to date */
    uint64_t samples;           /* taken so far */
    /* Get the next values; CTL_DONE, or the exit status with the message printed. */
    int (*sample)(void *opaque);
    /* Draw what was got last; in place also before the first sample. At most rows - 1 lines are shown in place. */
    void (*draw)(void *opaque, const struct watch *w, FILE *out);
    void *opaque;
};

/* Fill in ctl, client, caps, window and in_place (a terminal, table output); the caller sets the rest. */
void watch_init(struct watch *w, const struct ctl *ctl, struct client *client);

/* Sample and draw after every interval. CTL_DONE, or the exit status with the message printed. */
int watch_run(struct watch *w);

#endif
