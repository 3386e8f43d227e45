/* Numbers and sizes as a person writes them. */
#ifndef UMBRA_BASE_SIZE_H
#define UMBRA_BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

/* Parse "512", "64K", "512M", "2G", "1T" (powers of 1024, suffix in either case, optional "iB" or "B") into bytes;
 * -EINVAL when it is not one, -ERANGE when it does not fit into 64 bits. */
int size_parse(const char *text, uint64_t *ret_bytes);

/* Parse a plain unsigned number, decimal or 0x hexadecimal, nothing around it; -EINVAL or -ERANGE (beyond max). */
int size_parse_u64(const char *text, uint64_t max, uint64_t *ret);

/* Write bytes as "1.5 GiB" into buf and return buf. */
const char *size_format(uint64_t bytes, char *buf, size_t len);

#endif
