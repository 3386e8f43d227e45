#include "config.h"

#include "migrate/tls.h"

#include <errno.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"

/* With TLS 1.3 a client is done before the server has looked at its certificate: this byte of the server says that it has. */
#define ACCEPTED 1

struct mig_tls {
    SSL_CTX *client, *server;
};

struct mig_tls_session {
    SSL *ssl;
    int fd;
    /* A session is for one thread at a time, but a connection has one that reads and one that writes: neither waits for
     * the socket while it holds this. */
    pthread_mutex_t lock;
};

/* -- credentials -- */

static const char *reason(void)
{
    /* The first is what went wrong, those after it say for whom. */
    unsigned long e = ERR_peek_error();
    const char *text = NULL;

    if (e)
        text = ERR_SYSTEM_ERROR(e) ? strerrordesc_np(ERR_GET_REASON(e)) : ERR_reason_error_string(e);
    return text ? text : "no reason is known";
}

static int load_file(SSL_CTX *ctx, const char *dir, const char *name, struct mig_error *err)
{
    char path[PATH_MAX];
    int ok;

    if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path))
        return mig_error(err, -ENAMETOOLONG, "TLS: the path of %s is too long", name);
    ERR_clear_error();
    if (name[0] == 'k')
        ok = SSL_CTX_use_PrivateKey_file(ctx, path, SSL_FILETYPE_PEM);
    else if (name[1] == 'a')
        ok = SSL_CTX_load_verify_file(ctx, path);
    else
        ok = SSL_CTX_use_certificate_chain_file(ctx, path);
    return ok == 1 ? 0 : mig_error(err, -EINVAL, "TLS: %.160s: %s", path, reason());
}

static int make_context(const SSL_METHOD *method, const char *dir, SSL_CTX **ret, struct mig_error *err)
{
    static const char *const files[] = {"ca.pem", "cert.pem", "key.pem"};
    SSL_CTX *ctx = SSL_CTX_new(method);
    int r = 0;

    if (!ctx)
        return mig_error(err, -ENOMEM, "TLS: no memory");
    *ret = ctx;
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    /* The protocol above knows by itself whether all has come. */
    SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    for (size_t i = 0; i < ARRAY_SIZE(files) && r == 0; i++)
        r = load_file(ctx, dir, files[i], err);
    if (r == 0 && SSL_CTX_check_private_key(ctx) != 1)
        r = mig_error(err, -EINVAL, "TLS: %.160s/key.pem is not the key of cert.pem", dir);
    return r;
}

int mig_tls_load(const char *dir, struct mig_tls **ret, struct mig_error *err)
{
    struct mig_tls *tls = calloc(1, sizeof(*tls));
    int r;

    if (!tls)
        return mig_error(err, -ENOMEM, "TLS: no memory");
    /* What this host's openssl.cnf says is for others. */
    OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_LOAD_SSL_STRINGS, NULL);
    r = make_context(TLS_client_method(), dir, &tls->client, err);
    if (r == 0)
        r = make_context(TLS_server_method(), dir, &tls->server, err);
    if (r < 0) {
        mig_tls_free(tls);
        return r;
    }
    *ret = tls;
    return 0;
}

void mig_tls_free(struct mig_tls *tls)
{
    if (!tls)
        return;
    SSL_CTX_free(tls->client);
    SSL_CTX_free(tls->server);
    free(tls);
}

/* -- one step -- */

enum step { STEP_HANDSHAKE, STEP_READ, STEP_WRITE };

/* Why a step failed for good. */
static int step_error(struct mig_tls_session *s, int ssl_error, int error, struct mig_error *err)
{
    long verdict = SSL_get_verify_result(s->ssl);

    if (ssl_error == SSL_ERROR_SYSCALL && error)
        return -error;
    if (verdict != X509_V_OK)
        return mig_error(err, -EPERM, "TLS: the other side's certificate: %s", X509_verify_cert_error_string(verdict));
    return mig_error(err, -EPERM, "TLS: %s", reason());
}

/* Try once; > 0: done, 0: the end, -EAGAIN with *ret_events to wait for, else -errno. */
static ssize_t try_step(struct mig_tls_session *s, enum step step, void *buf, size_t len, short *ret_events,
                        struct mig_error *err)
{
    ssize_t result = 1;
    int r, e, error;
    size_t n = 0;

    pthread_mutex_lock(&s->lock);
    ERR_clear_error();
    errno = 0;
    if (step == STEP_HANDSHAKE)
        r = SSL_do_handshake(s->ssl);
    else if (step == STEP_READ)
        r = SSL_read_ex(s->ssl, buf, len, &n);
    else
        r = SSL_write_ex(s->ssl, buf, len, &n);
    error = errno;
    e = r == 1 ? SSL_ERROR_NONE : SSL_get_error(s->ssl, r);
    if (e == SSL_ERROR_NONE) {
        result = step == STEP_HANDSHAKE ? 1 : (ssize_t)n;
    } else if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE) {
        *ret_events = e == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
        result = -EAGAIN;
    } else if (e == SSL_ERROR_ZERO_RETURN || (e == SSL_ERROR_SYSCALL && error == 0)) {
        result = step == STEP_READ ? 0 : -ECONNRESET;
    } else {
        result = step_error(s, e, error, err);
    }
    pthread_mutex_unlock(&s->lock);
    return result;
}

static ssize_t do_step(struct mig_tls_session *s, enum step step, void *buf, size_t len, unsigned int timeout_ms,
                       struct mig_error *err)
{
    /* Of the whole step: a peer that sends a byte now and then is not waited for any longer. */
    uint64_t end = clock_ns() + timeout_ms * NSEC_PER_MSEC;

    for (;;) {
        struct pollfd p = {.fd = s->fd};
        ssize_t r = try_step(s, step, buf, len, &p.events, err);
        uint64_t now = clock_ns();

        if (r != -EAGAIN)
            return r;
        if (timeout_ms && now >= end)
            return -ETIMEDOUT;
        if (poll(&p, 1, timeout_ms ? (int)MIN((end - now) / NSEC_PER_MSEC + 1, (uint64_t)INT_MAX) : -1) < 0 && errno != EINTR)
            return -errno;
    }
}

ssize_t mig_tls_read(struct mig_tls_session *s, void *buf, size_t len, unsigned int timeout_ms, struct mig_error *err)
{
    return do_step(s, STEP_READ, buf, len, timeout_ms, err);
}

ssize_t mig_tls_write(struct mig_tls_session *s, const void *buf, size_t len, unsigned int timeout_ms, struct mig_error *err)
{
    return do_step(s, STEP_WRITE, (void *)(uintptr_t)buf, len, timeout_ms, err);
}

/* -- begin and end -- */

static bool expect_host(SSL *ssl, const char *host)
{
    return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host) == 1 || SSL_set1_host(ssl, host) == 1;
}

static int shake_hands(struct mig_tls_session *s, bool client, unsigned int timeout_ms, struct mig_error *err)
{
    uint8_t byte = ACCEPTED;
    ssize_t n = do_step(s, STEP_HANDSHAKE, NULL, 0, timeout_ms, err);

    if (n > 0)
        n = do_step(s, client ? STEP_READ : STEP_WRITE, &byte, 1, timeout_ms, err);
    if (n == 0)
        n = -ECONNRESET;
    if (n < 0)
        return mig_error(err, (int)n, "TLS: handshake: %s", strerrordesc_np((int)-n));
    return byte == ACCEPTED ? 0 : mig_error(err, -EBADMSG, "TLS: %u instead of the server's word", byte);
}

int mig_tls_begin(const struct mig_tls *tls, int fd, bool client, const char *host, unsigned int timeout_ms,
                  struct mig_tls_session **ret, struct mig_error *err)
{
    struct mig_tls_session *s = calloc(1, sizeof(*s));
    int r;

    if (!s)
        return mig_error(err, -ENOMEM, "TLS: no memory");
    pthread_mutex_init(&s->lock, NULL);
    s->fd = fd;
    s->ssl = SSL_new(client ? tls->client : tls->server);
    if (!s->ssl || SSL_set_fd(s->ssl, fd) != 1 || (client && host && !expect_host(s->ssl, host))) {
        mig_tls_end(s);
        return mig_error(err, -ENOMEM, "TLS: no memory");
    }
    if (client)
        SSL_set_connect_state(s->ssl);
    else
        SSL_set_accept_state(s->ssl);
    r = shake_hands(s, client, timeout_ms, err);
    if (r < 0) {
        mig_tls_end(s);
        return r;
    }
    *ret = s;
    return 0;
}

void mig_tls_end(struct mig_tls_session *s)
{
    if (!s)
        return;
    SSL_free(s->ssl);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
