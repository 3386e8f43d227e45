/*
 * What umbra and systemd say to each other: readiness and state (sd_notify(3)), journal entries (the journal's native protocol), inherited sockets
 * (sd_listen_fds(3)) and the watchdog's interval (sd_watchdog_enabled(3)). Both protocols are datagrams of
 * KEY=value lines that systemd documents as stable, and are spoken here without libsystemd: nothing is loaded, nothing ever
 * waits for a journal that hangs, and the sockets are there before a sandbox is.
 */
#ifndef UMBRA_BASE_SYSTEMD_H
#define UMBRA_BASE_SYSTEMD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/util.h"

/*
 * Read the environment that a service manager gives (NOTIFY_SOCKET, LISTEN_*, WATCHDOG_*) and take what is meant for this
 * process out of it. Once, in the main thread, before the other functions and before anything else is opened.
 */
void systemd_init(void);

/* Tell the service manager, "READY=1" or several lines; nothing where there is none. Never waits. Any thread. */
void systemd_notify(const char *fmt, ...) PRINTF_LIKE(1, 2);
bool systemd_present(void);

/* Interval in microseconds within which WATCHDOG=1 is expected; 0: it is not. */
uint64_t systemd_watchdog_us(void);

/*
 * The listening Unix socket that systemd made at `path`, or -1. It is the caller's from then on, close-on-exec; the file is systemd's.
 */
int systemd_listener(const char *path);

/* Open what systemd_journal needs; false when that fails. Once, before threads. */
bool systemd_journal_open(void);
/*
 * Send one entry, each of `fields` a KEY=value without newline. False when the journal does not take it at once: then it
 * is lost. After systemd_journal_open returned true. Any thread.
 */
bool systemd_journal(const struct iovec *fields, int count);

#endif
