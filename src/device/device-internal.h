/* What the devices share: time, one-shot timers, and registers one byte wide. */
#ifndef UMBRA_DEVICE_DEVICE_INTERNAL_H
#define UMBRA_DEVICE_DEVICE_INTERNAL_H

#include <event2/event.h>
#include <stdint.h>
#include <time.h>

#include "device/device.h"

uint64_t device_monotonic_ns(const struct device_env *env);
int64_t device_realtime_ns(const struct device_env *env);

/*
 * A one-shot timer. It is a timerfd, so that a vCPU thread can set it (under the device's lock) without the main loop's
 * help, while its callback runs on the main thread. Unset it costs nothing.
 */
struct device_timer {
    int fd; /* -1: no main loop, or a clock that is not the host's; it never fires then */
    clockid_t clock;
    struct event *event;
};

/* clock: CLOCK_MONOTONIC or CLOCK_REALTIME; on the latter the callback also runs when the host's clock is set. -errno. */
int device_timer_init(struct device_timer *t, const struct device_env *env, clockid_t clock, event_callback_fn callback,
                      void *opaque);
/* Run the callback once when the clock reaches deadline_ns (at once when it has); a negative deadline unsets the timer. */
void device_timer_set(struct device_timer *t, int64_t deadline_ns);
/* To be called first in the callback. */
void device_timer_clear(struct device_timer *t);
/* A timer that is all zeros, or whose init failed, is fine. */
void device_timer_fini(struct device_timer *t);

/* An access of any size to byte-wide registers, as the ISA bus breaks it up: one register after the other, upwards. */
static inline uint64_t device_read_bytes(void *opaque, uint64_t offset, unsigned int size,
                                         uint8_t (*read)(void *opaque, unsigned int reg))
{
    uint64_t value = 0;

    for (unsigned int i = 0; i < size; i++)
        value |= (uint64_t)read(opaque, (unsigned int)offset + i) << (8 * i);
    return value;
}

static inline void device_write_bytes(void *opaque, uint64_t offset, unsigned int size, uint64_t value,
                                      void (*write)(void *opaque, unsigned int reg, uint8_t value))
{
    for (unsigned int i = 0; i < size; i++)
        write(opaque, (unsigned int)offset + i, (uint8_t)(value >> (8 * i)));
}

#endif
