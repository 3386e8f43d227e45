#include "config.h"

#include "certificates.h"

#include <assert.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct authority {
    EVP_PKEY *key;
    X509 *certificate;
};

static void add_extension(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509_EXTENSION *e;
    X509V3_CTX ctx;

    X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
    e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    assert(e);
    X509_add_ext(x, e, -1);
    X509_EXTENSION_free(e);
}

/* issuer NULL: its own. */
static X509 *make(const char *name, EVP_PKEY *key, const struct authority *issuer, long seconds)
{
    static long serial = 1;
    X509 *x = X509_new();

    assert(x);
    X509_set_version(x, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x), serial++);
    X509_gmtime_adj(X509_getm_notBefore(x), -86400);
    X509_gmtime_adj(X509_getm_notAfter(x), seconds);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(issuer ? issuer->certificate : x));
    X509_set_pubkey(x, key);
    if (issuer) {
        char alternative[128];

        snprintf(alternative, sizeof(alternative), "DNS:%s", name);
        add_extension(x, issuer->certificate, NID_subject_alt_name, alternative);
    } else {
        add_extension(x, x, NID_basic_constraints, "critical,CA:TRUE");
    }
    assert(X509_sign(x, issuer ? issuer->key : key, EVP_sha256()) > 0);
    return x;
}

struct authority *authority_new(void)
{
    struct authority *a = calloc(1, sizeof(*a));

    assert(a);
    a->key = EVP_EC_gen("P-256");
    a->certificate = make("authority", a->key, NULL, 86400);
    return a;
}

void authority_free(struct authority *a)
{
    X509_free(a->certificate);
    EVP_PKEY_free(a->key);
    free(a);
}

static FILE *open_in(const char *dir, const char *name)
{
    char path[512];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "w");
    assert(f);
    return f;
}

static void write_certificate(const char *dir, const char *name, X509 *x)
{
    FILE *f = open_in(dir, name);

    PEM_write_X509(f, x);
    fclose(f);
}

void certificate_make(const char *dir, struct authority *signer, struct authority *trusted, const char *name, long seconds)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = make(name, key, signer, seconds);
    FILE *f;

    assert(mkdir(dir, 0700) == 0);
    write_certificate(dir, "ca.pem", trusted->certificate);
    write_certificate(dir, "cert.pem", x);
    f = open_in(dir, "key.pem");
    PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
    fclose(f);
    X509_free(x);
    EVP_PKEY_free(key);
}

void certificate_remove(const char *dir)
{
    static const char *const names[] = {"ca.pem", "cert.pem", "key.pem"};
    char path[512];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}
