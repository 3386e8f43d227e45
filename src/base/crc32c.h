/* CRC-32C (Castagnoli), as in iSCSI and RFC 3720: against damage, not against malice. Any thread. */
#ifndef UMBRA_BASE_CRC32C_H
#define UMBRA_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/*
 * The checksum of len bytes that follow those whose checksum is `crc`; 0 to begin with. The CPU's instruction does it where
 * there is one, at several GB a second.
 */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);

/*
 * The checksums of three pieces of len bytes, a multiple of 8. The CPU's instruction gives its result after three cycles and can
 * begin one each cycle: three pieces take no longer than one.
 */
void crc32c_three(const uint8_t *const data[3], size_t len, uint32_t ret[3]);

/* The same without the instruction, for tests. */
uint32_t crc32c_portable(uint32_t crc, const void *data, size_t len);

#endif
