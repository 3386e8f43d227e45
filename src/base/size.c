#include "config.h"

#include "base/size.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static int parse_digits(const char *text, int base, char **ret_end, uint64_t *ret)
{
    unsigned long long v;

    /* strtoull would take signs and white space. */
    if (!isxdigit((unsigned char)*text))
        return -EINVAL;
    errno = 0;
    v = strtoull(text, ret_end, base);
    if (errno == ERANGE)
        return -ERANGE;
    if (errno || *ret_end == text)
        return -EINVAL;
    *ret = v;
    return 0;
}

int size_parse_u64(const char *text, uint64_t max, uint64_t *ret)
{
    int base = strncasecmp(text, "0x", 2) == 0 ? 16 : 10;
    uint64_t v;
    char *end;
    int r = parse_digits(text + (base == 16 ? 2 : 0), base, &end, &v);

    if (r < 0)
        return r;
    if (*end)
        return -EINVAL;
    if (v > max)
        return -ERANGE;
    *ret = v;
    return 0;
}

int size_parse(const char *text, uint64_t *ret_bytes)
{
    static const char units[] = "KMGT";
    uint64_t v;
    char *end;
    int r = parse_digits(text, 10, &end, &v);

    if (r < 0)
        return r;
    if (*end) {
        const char *unit = strchr(units, toupper((unsigned char)*end));

        if (unit) {
            unsigned int shift = 10 * (unsigned int)(unit - units + 1);

            if (v > UINT64_MAX >> shift)
                return -ERANGE;
            v <<= shift;
            end++;
            if (strcasecmp(end, "iB") == 0)
                end += 2;
        }
        if (strcasecmp(end, "B") == 0)
            end++;
        if (*end)
            return -EINVAL;
    }
    *ret_bytes = v;
    return 0;
}

const char *size_format(uint64_t bytes, char *buf, size_t len)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    unsigned int u = 0;

    while (v >= 1024 && u < 4) {
        v /= 1024;
        u++;
    }
    snprintf(buf, len, v == (double)(uint64_t)v ? "%.0f %s" : "%.1f %s", v, units[u]);
    return buf;
}
