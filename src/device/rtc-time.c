#include "config.h"

#include "device/rtc-internal.h"

#include <time.h>

/* -- numbers -- */

static uint8_t encode(const uint8_t *cmos, int v)
{
    return (uint8_t)(cmos[REG_B] & B_BINARY ? v : (v / 10) << 4 | v % 10);
}

/* -1 for what is no number in this format. */
static int decode(const uint8_t *cmos, uint8_t v)
{
    if (cmos[REG_B] & B_BINARY)
        return v;
    return (v >> 4) > 9 || (v & 15) > 9 ? -1 : (v >> 4) * 10 + (v & 15);
}

static uint8_t encode_hour(const uint8_t *cmos, int hour)
{
    if (cmos[REG_B] & B_24H)
        return encode(cmos, hour);
    return (uint8_t)(encode(cmos, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0));
}

static int decode_hour(const uint8_t *cmos, uint8_t v)
{
    int hour;

    if (cmos[REG_B] & B_24H)
        return decode(cmos, v);
    hour = decode(cmos, v & (uint8_t)~HOUR_PM);
    if (hour < 1 || hour > 12)
        return -1;
    return hour % 12 + (v & HOUR_PM ? 12 : 0);
}

/* -- times -- */

bool rtc_is_time_reg(unsigned int reg)
{
    return reg == REG_SEC || reg == REG_MIN || reg == REG_HOUR || (reg >= REG_WDAY && reg <= REG_YEAR) ||
           reg == REG_CENTURY;
}

uint8_t rtc_time_reg(const uint8_t *cmos, int64_t s, unsigned int reg)
{
    time_t t = s;
    struct tm tm;
    int year;

    gmtime_r(&t, &tm);
    year = tm.tm_year + 1900;
    switch (reg) {
    case REG_SEC:
        return encode(cmos, tm.tm_sec);
    case REG_MIN:
        return encode(cmos, tm.tm_min);
    case REG_HOUR:
        return encode_hour(cmos, tm.tm_hour);
    case REG_WDAY:
        return encode(cmos, tm.tm_wday + 1);
    case REG_MDAY:
        return encode(cmos, tm.tm_mday);
    case REG_MONTH:
        return encode(cmos, tm.tm_mon + 1);
    case REG_YEAR:
        return encode(cmos, (year % 100 + 100) % 100);
    default:
        return encode(cmos, (year / 100 % 100 + 100) % 100);
    }
}

static int clamp(int v, int min, int max)
{
    return v < min ? min : v > max ? max : v;
}

static int month_days(int year, int month)
{
    static const uint8_t days[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

    return days[month] + (month == 1 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
}

int64_t rtc_time_of_regs(const uint8_t *cmos)
{
    int year = clamp(decode(cmos, cmos[REG_CENTURY]), 0, 99) * 100 + clamp(decode(cmos, cmos[REG_YEAR]), 0, 99);
    int month = clamp(decode(cmos, cmos[REG_MONTH]), 1, 12) - 1;
    struct tm tm = {
        .tm_year = year - 1900,
        .tm_mon = month,
        .tm_mday = clamp(decode(cmos, cmos[REG_MDAY]), 1, month_days(year, month)),
        .tm_hour = clamp(decode_hour(cmos, cmos[REG_HOUR]), 0, 23),
        .tm_min = clamp(decode(cmos, cmos[REG_MIN]), 0, 59),
        .tm_sec = clamp(decode(cmos, cmos[REG_SEC]), 0, 59),
    };

    return timegm(&tm);
}

void rtc_time_to_regs(int64_t s, uint8_t *cmos)
{
    for (unsigned int reg = 0; reg < CMOS_SIZE; reg++)
        if (rtc_is_time_reg(reg))
            cmos[reg] = rtc_time_reg(cmos, s, reg);
}

/* -- the alarm -- */

/* What a field of the alarm asks for: ANY, a value, or NEVER. */
enum { ANY = -1, NEVER = -2 };

static int alarm_field(uint8_t reg, int decoded, int max)
{
    if ((reg & ALARM_ANY) == ALARM_ANY)
        return ANY;
    return decoded < 0 || decoded > max ? NEVER : decoded;
}

int64_t rtc_next_alarm(const uint8_t *cmos, int64_t from)
{
    int hour = alarm_field(cmos[REG_HOUR_ALARM], decode_hour(cmos, cmos[REG_HOUR_ALARM]), 23);
    int min = alarm_field(cmos[REG_MIN_ALARM], decode(cmos, cmos[REG_MIN_ALARM]), 59);
    int sec = alarm_field(cmos[REG_SEC_ALARM], decode(cmos, cmos[REG_SEC_ALARM]), 59);
    int64_t t = from + 1;

    if (hour == NEVER || min == NEVER || sec == NEVER)
        return INT64_MAX;
    /* It steps over whole hours and minutes, so it is there after less than 300 steps. */
    for (;;) {
        int day_sec = (int)((t % 86400 + 86400) % 86400);

        if (hour != ANY && hour != day_sec / 3600)
            t += 3600 - day_sec % 3600;
        else if (min != ANY && min != day_sec / 60 % 60)
            t += 60 - day_sec % 60;
        else if (sec != ANY && sec != day_sec % 60)
            t++;
        else
            return t;
    }
}
