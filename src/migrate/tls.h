/*
 * Mutual TLS (1.3) under a migration's connections: both ends prove by a certificate that they belong to the same
 * authority, and everything is encrypted. OpenSSL.
 */
#ifndef UMBRA_MIGRATE_TLS_H
#define UMBRA_MIGRATE_TLS_H

#include <stddef.h>
#include <sys/types.h>

#include "migrate/wire.h"

/* Credentials for both directions; any thread may use them. */
struct mig_tls;

/*
 * Load ca.pem (who is trusted), cert.pem (who this host is, intermediate certificates after it) and key.pem of a directory.
 * -errno with *err, which names the file.
 */
int mig_tls_load(const char *dir, struct mig_tls **ret, struct mig_error *err);
/* Connections that use them go on. NULL is fine. */
void mig_tls_free(struct mig_tls *tls);

/* One connection. One thread reads, one at a time writes. */
struct mig_tls_session;

/*
 * Shake hands over a connected, nonblocking socket, which stays the caller's: each step may take timeout_ms (0: for ever). A client
 * (`client`) checks that the certificate is that of `host`, a name or address, unless it is NULL; the server takes any of its
 * authority. When this returns 0 each has accepted the other. -ETIMEDOUT, -EPERM or -errno with *err.
 */
int mig_tls_begin(const struct mig_tls *tls, int fd, bool client, const char *host, unsigned int timeout_ms,
                  struct mig_tls_session **ret, struct mig_error *err);
/* NULL is fine. */
void mig_tls_end(struct mig_tls_session *s);

/* Some bytes, at least one. 0 from mig_tls_read: the end. -ETIMEDOUT, or -errno with *err where there is more to say. */
ssize_t mig_tls_read(struct mig_tls_session *s, void *buf, size_t len, unsigned int timeout_ms, struct mig_error *err);
ssize_t mig_tls_write(struct mig_tls_session *s, const void *buf, size_t len, unsigned int timeout_ms, struct mig_error *err);

#endif
