/* Directories with ca.pem, cert.pem and key.pem, as --tls-creds wants them. */
#ifndef UMBRA_TESTS_UNIT_CERTIFICATES_H
#define UMBRA_TESTS_UNIT_CERTIFICATES_H

struct authority;

struct authority *authority_new(void);
void authority_free(struct authority *a);

/*
 * Make `dir` with a certificate for the DNS name `name`, good from now for so many seconds (negative: it has expired), of the
 * authority `signer`, with `trusted` as the one it trusts.
 */
void certificate_make(const char *dir, struct authority *signer, struct authority *trusted, const char *name, long seconds);
void certificate_remove(const char *dir);

#endif
