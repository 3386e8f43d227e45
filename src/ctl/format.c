#include "config.h"

#include "ctl/format.h"

#include <stdio.h>
#include <string.h>

#include "base/size.h"

const char *fmt_safe(const char *in, char *buf, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    size_t o = 0;

    for (; *in; in++) {
        unsigned char c = (unsigned char)*in;
        /* C1 controls (U+0080 to U+009F) come as 0xc2 and one more byte. */
        bool c1 = c == 0xc2 && (unsigned char)in[1] >= 0x80 && (unsigned char)in[1] < 0xa0;
        bool bad = c < 0x20 || c == 0x7f || c1;

        if (o + (bad ? 5 : 2) > len)
            break;
        if (!bad) {
            buf[o++] = (char)c;
            continue;
        }
        if (c1)
            c = (unsigned char)*++in;
        buf[o++] = '\\';
        buf[o++] = 'x';
        buf[o++] = hex[c >> 4];
        buf[o++] = hex[c & 15];
    }
    buf[o] = '\0';
    return buf;
}

const char *fmt_count(uint64_t v, bool group, char *buf, size_t len)
{
    char digits[24];
    int n = snprintf(digits, sizeof(digits), "%llu", (unsigned long long)v);
    size_t o = 0;

    for (int i = 0; i < n && o + 2 < len; i++) {
        if (group && i > 0 && (n - i) % 3 == 0)
            buf[o++] = ',';
        buf[o++] = digits[i];
    }
    buf[o] = '\0';
    return buf;
}

const char *fmt_duration(double seconds, char *buf, size_t len)
{
    uint64_t s = (uint64_t)seconds;

    if (seconds < 10)
        snprintf(buf, len, "%.1f s", seconds);
    else if (s < 60)
        snprintf(buf, len, "%llu s", (unsigned long long)s);
    else if (s < 3600)
        snprintf(buf, len, "%llu min %llu s", (unsigned long long)(s / 60), (unsigned long long)(s % 60));
    else if (s < 86400)
        snprintf(buf, len, "%llu h %llu min", (unsigned long long)(s / 3600), (unsigned long long)(s / 60 % 60));
    else
        snprintf(buf, len, "%llu d %llu h", (unsigned long long)(s / 86400), (unsigned long long)(s / 3600 % 24));
    return buf;
}

const char *fmt_rate(double bytes_per_second, char *buf, size_t len)
{
    static const char *const units[] = {"B/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s"};
    unsigned int u = 0;

    while (bytes_per_second >= 1023.95 && u < 4) {
        bytes_per_second /= 1024;
        u++;
    }
    snprintf(buf, len, u == 0 ? "%.0f %s" : "%.1f %s", bytes_per_second, units[u]);
    return buf;
}

const char *fmt_share(double share, char *buf, size_t len)
{
    double percent = share * 100;

    if (percent <= 0)
        snprintf(buf, len, "0 %%");
    else if (percent < 0.1)
        snprintf(buf, len, "<0.1 %%");
    else if (percent >= 99.95)
        snprintf(buf, len, "100 %%");
    else
        snprintf(buf, len, "%.1f %%", percent);
    return buf;
}
