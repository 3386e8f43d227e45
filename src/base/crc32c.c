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

__attribute__((target("sse4.2"))) static void three_sse42(const uint8_t *const data[3], size_t len, uint32_t ret[3])
{
    uint64_t a = UINT32_MAX, b = UINT32_MAX, c = UINT32_MAX;

    for (size_t i = 0; i < len; i += 8) {
        a = _mm_crc32_u64(a, le64_get(data[0] + i));
        b = _mm_crc32_u64(b, le64_get(data[1] + i));
        c = _mm_crc32_u64(c, le64_get(data[2] + i));
    }
    ret[0] = ~(uint32_t)a;
    ret[1] = ~(uint32_t)b;
    ret[2] = ~(uint32_t)c;
}

void crc32c_three(const uint8_t *const data[3], size_t len, uint32_t ret[3])
{
    if (__builtin_cpu_supports("sse4.2")) {
        three_sse42(data, len, ret);
        return;
    }
    for (int i = 0; i < 3; i++)
        ret[i] = crc32c_portable(0, data[i], len);
}
