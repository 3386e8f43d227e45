/* The real-time clock's registers, and times in them (rtc-time.c). */
#ifndef UMBRA_DEVICE_RTC_INTERNAL_H
#define UMBRA_DEVICE_RTC_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

enum {
    REG_SEC = 0x00,
    REG_SEC_ALARM = 0x01,
    REG_MIN = 0x02,
    REG_MIN_ALARM = 0x03,
    REG_HOUR = 0x04,
    REG_HOUR_ALARM = 0x05,
    REG_WDAY = 0x06,
    REG_MDAY = 0x07,
    REG_MONTH = 0x08,
    REG_YEAR = 0x09,
    REG_A = 0x0a,
    REG_B = 0x0b,
    REG_C = 0x0c,
    REG_D = 0x0d,
    REG_CENTURY = 0x32,
};

#define CMOS_SIZE 128
#define INDEX_MASK 0x7f /* bit 7 of the index port masks NMIs on a PC; there are none here */

#define A_UIP 0x80
#define A_RATE 0x0f
#define A_DIVIDER 0x70
#define A_DIVIDER_RESET 0x60 /* both bits: the divider is held in reset, and the clock stands */
#define A_DEFAULT 0x26       /* 32768 Hz, 1024 interrupts a second when enabled */
#define B_SET 0x80
#define B_PIE 0x40
#define B_AIE 0x20
#define B_UIE 0x10
#define B_BINARY 0x04
#define B_24H 0x02
#define B_RESET_MASK 0x87 /* what a reset leaves */
#define C_IRQF 0x80
#define C_FLAGS 0x70 /* PF, AF, UF: at the places of their enable bits in B */
#define C_PF 0x40
#define C_AF 0x20
#define C_UF 0x10
#define D_VALID 0x80
#define HOUR_PM 0x80
#define ALARM_ANY 0xc0

/*
 * `cmos` are all CMOS_SIZE bytes; of them register B says in which format the fields of a time are (BCD or binary, 12 or
 * 24 hours). Times are seconds of UTC since 1970. Any thread.
 */

/* Seconds to year, and the century. */
bool rtc_is_time_reg(unsigned int reg);
/* What time register `reg` shows at time s. */
uint8_t rtc_time_reg(const uint8_t *cmos, int64_t s, unsigned int reg);
/* Set every time register. */
void rtc_time_to_regs(int64_t s, uint8_t *cmos);
/* The time in the time registers; what is out of its range counts as the nearest value in it. Years 0 to 9999. */
int64_t rtc_time_of_regs(const uint8_t *cmos);
/* The first second after `from` that the alarm registers match, or INT64_MAX when none ever does. */
int64_t rtc_next_alarm(const uint8_t *cmos, int64_t from);

#endif
