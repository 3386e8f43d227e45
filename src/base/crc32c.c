#include "config.h"

#include "base/crc32c.h"

#include <nmmintrin.h>
#include <stdbool.h>

#include "base/bytes.h"

#define POLYNOMIAL UINT32_C(0x82f63b78) /* reflected */

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t len)
{
    const uint8_t *p = data;

    crc = ~crc;
    for (; len > 0; len--) {
        crc ^= *p++;
        for (int i = 0; i < 8; i++)
            crc = (crc >> 1) ^ (POLYNOMIAL & -(crc & 1));
    }
    return ~crc;
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const void *data, size_t len)
{
    const uint8_t *p = data;
    uint64_t c = (uint32_t)~crc;

    for (; len >= 8; len -= 8, p += 8)
        c = _mm_crc32_u64(c, le64_get(p));
    for (; len > 0; len--)
        c = _mm_crc32_u8((uint32_t)c, *p++);
    return ~(uint32_t)c;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
    return __builtin_cpu_supports("sse4.2") ? crc32c_sse42(crc, data, len) : crc32c_portable(crc, data, len);
}
