/*
 * The two things umbra says to systemd, through libsystemd. The library is loaded when there is a systemd to talk to: it
 * and what it needs cost a start 0.5 ms and 1 MB, which a VM run by hand, by a test or by a container need not pay.
 */
#ifndef UMBRA_BASE_SYSTEMD_H
#define UMBRA_BASE_SYSTEMD_H

#include <stdbool.h>
#include <sys/uio.h>

/* sd_notify(3): tell the service manager; nothing where $NOTIFY_SOCKET is not set. Main thread. */
void systemd_notify(const char *state);

/* Load what systemd_journal needs; false where there is no libsystemd. Once, before threads. */
bool systemd_journal_open(void);
/* sd_journal_sendv(3); after systemd_journal_open returned true. Any thread. */
void systemd_journal(const struct iovec *fields, int count);

#endif
