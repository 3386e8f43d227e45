/* Values as a person reads them. Each function writes into buf and returns it. */
#ifndef UMBRA_CTL_FORMAT_H
#define UMBRA_CTL_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FMT_MAX 40

/* Control bytes as \xNN, so that no text from elsewhere moves the cursor; cut short where it does not fit. */
const char *fmt_safe(const char *in, char *buf, size_t len);

/* 1234567, or 1,234,567 with `group`. */
const char *fmt_count(uint64_t v, bool group, char *buf, size_t len);

/* "0.4 s", "12 s", "3 min 5 s", "2 h 14 min", "5 d 3 h". */
const char *fmt_duration(double seconds, char *buf, size_t len);

/* A rate in bytes a second: "12.3 MiB/s". */
const char *fmt_rate(double bytes_per_second, char *buf, size_t len);

/* A share of one in percent: "0 %", "<0.1 %", "4.2 %", "100 %". */
const char *fmt_share(double share, char *buf, size_t len);

#endif
