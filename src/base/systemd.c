#include "config.h"

#include "base/systemd.h"

#include <dlfcn.h>
#include <stdlib.h>

/* Types only: the calls go through dlsym. */
#include <systemd/sd-daemon.h>
#include <systemd/sd-journal.h>

#define LIBRARY "libsystemd.so.0"

static __typeof__(sd_journal_sendv) *journal_sendv;

static void *load(const char *symbol)
{
    /* Once loaded it stays: dlopen only counts. */
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_NODELETE);

    return library ? dlsym(library, symbol) : NULL;
}

void systemd_notify(const char *state)
{
    __typeof__(sd_notify) *notify;

    if (!getenv("NOTIFY_SOCKET"))
        return;
    notify = (__typeof__(sd_notify) *)load("sd_notify");
    if (notify)
        notify(0, state);
}

bool systemd_journal_open(void)
{
    journal_sendv = (__typeof__(sd_journal_sendv) *)load("sd_journal_sendv");
    return journal_sendv != NULL;
}

void systemd_journal(const struct iovec *fields, int count)
{
    journal_sendv(fields, count);
}
