/*
 * Real-time clock and CMOS memory, as the data sheet of the MC146818 describes them.
 *
 * The time is never stored: it is the host's UTC plus an offset, which the guest changes by setting the clock. Flags of
 * register C are worked out when somebody looks (rtc_update), for the time since the last look; a timer is set only
 * while an interrupt is enabled whose flag is not up yet. So a clock that nobody watches costs nothing.
 *
 * A guest reads a time in several exits, between which any time may pass. The chip's answer is the "update in progress"
 * bit, 244 us ahead of the change; a vCPU that is not running for a while misses it. So reading register A with the bit
 * clear, or the seconds, latches the time, and reads of the other fields within the next second come from the latch.
 */
#include "config.h"

#include "device/devices.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "device/device-internal.h"
#include "device/rtc-internal.h"

#define TICK_HZ 32768u
#define UIP_NS (244 * NSEC_PER_USEC)
#define HALF_SECOND_NS ((uint32_t)(NSEC_PER_SEC / 2))
/* Beyond any time the registers can hold, from any time the host can be at. */
#define OFFSET_MAX INT64_C(400000000000)

/* A time of the guest's clock, or a span. */
struct rtc_time {
    int64_t s;
    uint32_t ns;
};

/* What is saved. While the clock stands (stopped), the time registers in cmos hold the time. */
struct rtc_regs {
    uint8_t index;
    uint8_t cmos[CMOS_SIZE];
    int64_t offset_s; /* guest's time - host's UTC */
    uint32_t offset_ns;
    int64_t seen_s; /* flags of C are right up to here */
    uint32_t seen_ns;
    bool divider_was_reset; /* since the clock stands: it starts with half a second gone */
};

static const struct state_field regs_fields[] = {
    STATE_FIELD(struct rtc_regs, index),     STATE_BYTES(struct rtc_regs, cmos),
    STATE_FIELD(struct rtc_regs, offset_s),  STATE_FIELD(struct rtc_regs, offset_ns),
    STATE_FIELD(struct rtc_regs, seen_s),    STATE_FIELD(struct rtc_regs, seen_ns),
    STATE_FIELD(struct rtc_regs, divider_was_reset),
};

struct rtc {
    struct device dev;
    struct device_env env;
    struct rtc_regs regs;
    struct rtc_time latch;
    bool latched;      /* the latch may be read */
    bool latched_by_a; /* and its seconds have not been */
    bool line;
    struct device_timer timer;
};

/* -- time -- */

static struct rtc_time host_now(const struct rtc *rtc)
{
    int64_t ns = device_realtime_ns(&rtc->env);
    int64_t s = ns / (int64_t)NSEC_PER_SEC, rest = ns % (int64_t)NSEC_PER_SEC;

    if (rest < 0) {
        rest += (int64_t)NSEC_PER_SEC;
        s--;
    }
    return (struct rtc_time){.s = s, .ns = (uint32_t)rest};
}

static struct rtc_time time_add(struct rtc_time a, struct rtc_time b)
{
    uint64_t ns = (uint64_t)a.ns + b.ns;

    return (struct rtc_time){.s = a.s + b.s + (int64_t)(ns / NSEC_PER_SEC), .ns = (uint32_t)(ns % NSEC_PER_SEC)};
}

static struct rtc_time time_sub(struct rtc_time a, struct rtc_time b)
{
    bool borrow = a.ns < b.ns;

    return (struct rtc_time){.s = a.s - b.s - borrow,
                             .ns = a.ns + (borrow ? (uint32_t)NSEC_PER_SEC : 0) - b.ns};
}

static bool time_before(struct rtc_time a, struct rtc_time b)
{
    return a.s != b.s ? a.s < b.s : a.ns < b.ns;
}

static struct rtc_time offset(const struct rtc *rtc)
{
    return (struct rtc_time){.s = rtc->regs.offset_s, .ns = rtc->regs.offset_ns};
}

static struct rtc_time guest_now(const struct rtc *rtc)
{
    return time_add(host_now(rtc), offset(rtc));
}

/* From now on it is `t` for the guest. */
static void set_guest_time(struct rtc *rtc, struct rtc_time t)
{
    struct rtc_time o = time_sub(t, host_now(rtc));

    rtc->regs.offset_s = o.s;
    rtc->regs.offset_ns = o.ns;
    rtc->regs.seen_s = t.s;
    rtc->regs.seen_ns = t.ns;
    rtc->latched = false;
}

static bool divider_reset(uint8_t a)
{
    return (a & A_DIVIDER_RESET) == A_DIVIDER_RESET;
}

static bool stopped(const struct rtc *rtc)
{
    return (rtc->regs.cmos[REG_B] & B_SET) || divider_reset(rtc->regs.cmos[REG_A]);
}

/* -- alarm, flags and interrupt -- */

/* Length of a period in ticks of TICK_HZ, 0 for none. A second is a whole number of periods. */
static unsigned int period_ticks(const struct rtc *rtc)
{
    unsigned int rate = rtc->regs.cmos[REG_A] & A_RATE;

    if (rate == 0)
        return 0;
    /* With the usual time base the two fastest rates are those of 8 and 9. */
    return 1u << (rate <= 2 ? rate + 6 : rate - 1);
}

/* How many periods of its second have gone. */
static unsigned int periods(struct rtc_time t, unsigned int period)
{
    return (unsigned int)((uint64_t)t.ns * TICK_HZ / NSEC_PER_SEC / period);
}

static struct rtc_time next_period(struct rtc_time t, unsigned int period)
{
    uint64_t ticks = (uint64_t)(periods(t, period) + 1) * period;

    if (ticks >= TICK_HZ)
        return (struct rtc_time){.s = t.s + 1};
    return (struct rtc_time){.s = t.s, .ns = (uint32_t)DIV_ROUND_UP(ticks * NSEC_PER_SEC, TICK_HZ)};
}

/* Set the flags of all that has happened since the last look. */
static void update_flags(struct rtc *rtc, struct rtc_time now)
{
    struct rtc_time seen = {.s = rtc->regs.seen_s, .ns = rtc->regs.seen_ns};
    unsigned int period = period_ticks(rtc);
    uint8_t *c = &rtc->regs.cmos[REG_C];

    rtc->regs.seen_s = now.s;
    rtc->regs.seen_ns = now.ns;
    /* The host's clock went back. */
    if (time_before(now, seen))
        return;
    if (now.s > seen.s) {
        *c |= C_UF;
        if (rtc_next_alarm(rtc->regs.cmos, seen.s) <= now.s)
            *c |= C_AF;
    }
    if (period && (now.s != seen.s || periods(now, period) != periods(seen, period)))
        *c |= C_PF;
}

static void set_line(struct rtc *rtc)
{
    rtc->line = rtc->regs.cmos[REG_C] & rtc->regs.cmos[REG_B] & C_FLAGS;
    irq_set(rtc->env.irq, RTC_IRQ, rtc->line);
}

/* Host time of the next event that raises the interrupt line, or -1. */
static int64_t next_event_ns(const struct rtc *rtc)
{
    const uint8_t *cmos = rtc->regs.cmos;
    uint8_t wanted = cmos[REG_B] & C_FLAGS & (uint8_t)~cmos[REG_C];
    struct rtc_time seen = {.s = rtc->regs.seen_s, .ns = rtc->regs.seen_ns}, next = {.s = INT64_MAX}, host;
    unsigned int period = period_ticks(rtc);

    if (wanted & C_AF)
        next.s = rtc_next_alarm(rtc->regs.cmos, seen.s);
    if (wanted & C_UF)
        next.s = seen.s + 1;
    if ((wanted & C_PF) && period) {
        struct rtc_time tick = next_period(seen, period);

        if (time_before(tick, next))
            next = tick;
    }
    if (next.s == INT64_MAX)
        return -1;
    host = time_sub(next, offset(rtc));
    /* What lies beyond the reach of a 64-bit count of nanoseconds (years 1970 to 2262) does not come. */
    if (host.s < 0 || host.s >= INT64_MAX / (int64_t)NSEC_PER_SEC)
        return -1;
    return host.s * (int64_t)NSEC_PER_SEC + host.ns;
}

/* Bring flags, interrupt line and timer up to date. */
static void rtc_update(struct rtc *rtc)
{
    bool level;

    if (!stopped(rtc))
        update_flags(rtc, guest_now(rtc));
    level = rtc->regs.cmos[REG_C] & rtc->regs.cmos[REG_B] & C_FLAGS;
    if (level != rtc->line)
        set_line(rtc);
    /* A timer that is not wanted any more is left alone: it fires once and is not set again. */
    if ((rtc->regs.cmos[REG_B] & C_FLAGS) && !stopped(rtc))
        device_timer_set(&rtc->timer, next_event_ns(rtc));
}

static void on_timer(evutil_socket_t fd, short what, void *opaque)
{
    struct rtc *rtc = opaque;

    pthread_mutex_lock(&rtc->dev.lock);
    device_timer_clear(&rtc->timer);
    rtc_update(rtc);
    pthread_mutex_unlock(&rtc->dev.lock);
}

/* -- registers -- */

static uint8_t read_time(struct rtc *rtc, unsigned int reg)
{
    struct rtc_time now = guest_now(rtc), age = time_sub(now, rtc->latch);

    if (!rtc->latched || age.s != 0 || (reg == REG_SEC && !rtc->latched_by_a)) {
        rtc->latch = now;
        rtc->latched = reg == REG_SEC;
    }
    if (reg == REG_SEC)
        rtc->latched_by_a = false;
    return rtc_time_reg(rtc->regs.cmos, rtc->latch.s, reg);
}

static uint8_t read_a(struct rtc *rtc)
{
    struct rtc_time now;

    if (stopped(rtc))
        return rtc->regs.cmos[REG_A];
    now = guest_now(rtc);
    if (now.ns >= NSEC_PER_SEC - UIP_NS)
        return rtc->regs.cmos[REG_A] | A_UIP;
    rtc->latch = now;
    rtc->latched = rtc->latched_by_a = true;
    return rtc->regs.cmos[REG_A];
}

static uint8_t read_c(struct rtc *rtc)
{
    uint8_t v;

    rtc_update(rtc);
    v = rtc->regs.cmos[REG_C] | (rtc->line ? C_IRQF : 0);
    rtc->regs.cmos[REG_C] = 0;
    rtc_update(rtc);
    return v;
}

static uint8_t read_data(struct rtc *rtc)
{
    unsigned int reg = rtc->regs.index;

    if (reg == REG_A)
        return read_a(rtc);
    if (reg == REG_C)
        return read_c(rtc);
    if (rtc_is_time_reg(reg) && !stopped(rtc))
        return read_time(rtc, reg);
    return rtc->regs.cmos[reg];
}

/* Registers A and B: both may stop the clock and let it go again. */
static void write_control(struct rtc *rtc, unsigned int reg, uint8_t value)
{
    bool was_stopped = stopped(rtc);
    uint8_t *cmos = rtc->regs.cmos;

    rtc_update(rtc);
    if (!was_stopped) {
        /* The time stands in the format that was asked for so far. */
        rtc_time_to_regs(guest_now(rtc).s, cmos);
        rtc->regs.divider_was_reset = false;
    }
    cmos[reg] = value;
    if (reg == REG_B && (value & B_SET))
        cmos[REG_B] &= (uint8_t)~B_UIE;
    rtc->regs.divider_was_reset |= divider_reset(cmos[REG_A]);
    if (was_stopped && !stopped(rtc)) {
        /* The divider runs on while only SET holds the time; out of reset it takes half a second to the first update. */
        uint32_t ns = rtc->regs.divider_was_reset ? HALF_SECOND_NS : guest_now(rtc).ns;

        set_guest_time(rtc, (struct rtc_time){.s = rtc_time_of_regs(cmos), .ns = ns});
    }
    rtc->latched = false;
    rtc_update(rtc);
}

/* One field of a running clock. */
static void write_time(struct rtc *rtc, unsigned int reg, uint8_t value)
{
    struct rtc_time now = guest_now(rtc);
    uint8_t fields[CMOS_SIZE];

    rtc_update(rtc);
    memcpy(fields, rtc->regs.cmos, sizeof(fields));
    rtc_time_to_regs(now.s, fields);
    fields[reg] = value;
    set_guest_time(rtc, (struct rtc_time){.s = rtc_time_of_regs(fields), .ns = now.ns});
    rtc_update(rtc);
}

static void write_data(struct rtc *rtc, uint8_t value)
{
    unsigned int reg = rtc->regs.index;

    switch (reg) {
    case REG_A:
        write_control(rtc, reg, value & (uint8_t)~A_UIP);
        break;
    case REG_B:
        write_control(rtc, reg, value);
        break;
    case REG_C:
    case REG_D:
        break;
    case REG_SEC_ALARM:
    case REG_MIN_ALARM:
    case REG_HOUR_ALARM:
        rtc_update(rtc);
        rtc->regs.cmos[reg] = value;
        rtc_update(rtc);
        break;
    default:
        if (rtc_is_time_reg(reg) && !stopped(rtc))
            write_time(rtc, reg, value);
        else
            rtc->regs.cmos[reg] = value;
        break;
    }
}

static uint8_t rtc_read_byte(void *opaque, unsigned int port)
{
    /* The index cannot be read back on a PC. */
    return port == 0 ? 0xff : read_data(opaque);
}

static void rtc_write_byte(void *opaque, unsigned int port, uint8_t value)
{
    struct rtc *rtc = opaque;

    if (port == 0)
        rtc->regs.index = value & INDEX_MASK;
    else
        write_data(rtc, value);
}

static uint64_t rtc_read(void *opaque, uint64_t port, unsigned int size)
{
    return device_read_bytes(opaque, port, size, rtc_read_byte);
}

static void rtc_write(void *opaque, uint64_t port, unsigned int size, uint64_t value)
{
    device_write_bytes(opaque, port, size, value, rtc_write_byte);
}

static const struct bus_ops rtc_bus_ops = {.read = rtc_read, .write = rtc_write};

/* -- the device -- */

/* A system reset leaves time and memory: they live on a battery. */
static void rtc_reset(struct device *dev)
{
    struct rtc *rtc = container_of(dev, struct rtc, dev);

    rtc->regs.index = 0;
    write_control(rtc, REG_B, rtc->regs.cmos[REG_B] & B_RESET_MASK);
    rtc->regs.cmos[REG_C] = 0;
    set_line(rtc);
}

static void rtc_save(struct device *dev, struct state_writer *w)
{
    struct rtc *rtc = container_of(dev, struct rtc, dev);

    rtc_update(rtc);
    state_put_fields(w, "", regs_fields, ARRAY_SIZE(regs_fields), &rtc->regs);
}

static int check_regs(struct state_reader *r, const struct state_section *s, const struct rtc_regs *regs)
{
    if (regs->index > INDEX_MASK)
        return state_bad(r, s, "field index: %u exceeds %u", regs->index, INDEX_MASK);
    if (regs->cmos[REG_A] & A_UIP)
        return state_bad(r, s, "field cmos: register A is 0x%x, with update in progress", regs->cmos[REG_A]);
    if (regs->cmos[REG_C] & ~C_FLAGS)
        return state_bad(r, s, "field cmos: register C is 0x%x, with bits beyond 0x%x", regs->cmos[REG_C], C_FLAGS);
    if (regs->cmos[REG_D] != D_VALID)
        return state_bad(r, s, "field cmos: register D is 0x%x, not 0x%x", regs->cmos[REG_D], D_VALID);
    if (regs->offset_s < -OFFSET_MAX || regs->offset_s > OFFSET_MAX || regs->offset_ns >= NSEC_PER_SEC)
        return state_bad(r, s, "field offset_s: %lld s %u ns is out of range", (long long)regs->offset_s,
                         regs->offset_ns);
    if (regs->seen_s < -OFFSET_MAX || regs->seen_s > OFFSET_MAX || regs->seen_ns >= NSEC_PER_SEC)
        return state_bad(r, s, "field seen_s: %lld s %u ns is out of range", (long long)regs->seen_s, regs->seen_ns);
    return 0;
}

static int rtc_restore(struct device *dev, struct state_reader *r, const struct state_section *s)
{
    struct rtc *rtc = container_of(dev, struct rtc, dev);
    struct rtc_regs regs;
    int err = state_get_fields(r, s, "", regs_fields, ARRAY_SIZE(regs_fields), &regs);

    if (err == 0)
        err = state_check_all_read(r, s);
    if (err == 0)
        err = check_regs(r, s, &regs);
    if (err < 0)
        return err;
    rtc->regs = regs;
    rtc->latched = false;
    set_line(rtc);
    rtc_update(rtc);
    return 0;
}

static void rtc_destroy(struct device *dev)
{
    struct rtc *rtc = container_of(dev, struct rtc, dev);

    bus_remove(rtc->env.bus, rtc);
    device_timer_fini(&rtc->timer);
    free(rtc);
}

static const struct device_ops rtc_ops = {
    .name = "rtc",
    .state_version = 1,
    .reset = rtc_reset,
    .save = rtc_save,
    .restore = rtc_restore,
    .destroy = rtc_destroy,
};

int rtc_create(const struct device_env *env, struct device **ret)
{
    struct rtc *rtc = calloc(1, sizeof(*rtc));
    int err;

    if (!rtc)
        return -ENOMEM;
    rtc->env = *env;
    rtc->regs.cmos[REG_A] = A_DEFAULT;
    rtc->regs.cmos[REG_B] = B_24H;
    rtc->regs.cmos[REG_D] = D_VALID;
    set_guest_time(rtc, host_now(rtc));
    device_init(&rtc->dev, &rtc_ops, 0);
    err = device_timer_init(&rtc->timer, env, CLOCK_REALTIME, on_timer, rtc);
    if (err == 0)
        err = bus_add(env->bus, BUS_PIO, RTC_PORT, RTC_PORTS, "rtc", &rtc_bus_ops, rtc, &rtc->dev.lock);
    if (err < 0) {
        device_destroy(&rtc->dev);
        return err;
    }
    *ret = &rtc->dev;
    return 0;
}
