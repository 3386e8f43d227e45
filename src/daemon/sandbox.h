/*
 * The sandbox: each thread may make only the system calls that the table in sandbox-calls.c gives threads of its kind, ioctl
 * by request. What becomes of any other is the mode's business: enforce ends umbrad with SIGSYS, errno refuses the
 * call with EPERM, log lets it pass; each is logged with the call's name and the thread's, under errno and log once a call.
 *
 * Before that the process has given up root's identity and all capabilities (privileges.h), and no file can be opened any more
 * but those of umbrad's own directories (landlock.h).
 */
#ifndef UMBRA_DAEMON_SANDBOX_H
#define UMBRA_DAEMON_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/thread.h"
#include "daemon/configuration.h"

enum sandbox_arg {
    SANDBOX_ANY,
    SANDBOX_REQUEST, /* the second argument, in 32 bits, is value */
    SANDBOX_EQUAL,   /* argument `arg` is value */
    SANDBOX_NONE_OF, /* argument `arg` has none of the bits of value */
    SANDBOX_ALL_OF,  /* argument `arg` has all bits of value */
    SANDBOX_OWN_PID, /* argument `arg` is this process */
};

struct sandbox_call {
    const char *name;    /* of the system call */
    const char *detail;  /* what is asked of its arguments, as the manual says it; "" for nothing */
    const char *why;
    unsigned int threads; /* 1 << enum thread_kind */
    enum sandbox_arg kind;
    unsigned int arg;
    uint64_t value;
    int error; /* not 0: the call fails with this error in every mode and is no violation; the C library makes it and goes on without */
};

extern const struct sandbox_call sandbox_calls[];
extern const unsigned int sandbox_call_count;

/* Whether threads of that kind have the call; the main thread also has what threads need that it makes when it is locked in itself. */
bool sandbox_allows(const struct sandbox_call *call, enum thread_kind kind);

/* Choose the mode, and from now on lock each thread in at its thread_enter. 0 or -errno, logged. Main thread, before others. */
int sandbox_init(enum sandbox_mode mode);

/* Lock the calling thread in. A failure ends the process. */
void sandbox_enter(enum thread_kind kind);

/* How many different calls were refused or let pass so far; any thread. */
unsigned int sandbox_violations(void);

/* Write the table as the list in umbrad(8) has it. */
void sandbox_print_manual(FILE *f);

#endif
