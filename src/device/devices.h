/*
 * The devices there are. Each create function puts the device on the bus (or leaves nothing behind), 0 or -errno.
 *
 * Addresses and lines a guest sees (the ACPI tables in src/boot say the same; both take them from here):
 */
#ifndef UMBRA_DEVICE_DEVICES_H
#define UMBRA_DEVICE_DEVICES_H

#include "device/chardev.h"
#include "device/device.h"

#define SERIAL_PORT 0x3f8
#define SERIAL_PORTS 8
#define SERIAL_IRQ 4
#define I8042_PORT_DATA 0x60
#define I8042_PORT_CMD 0x64
#define RTC_PORT 0x70
#define RTC_PORTS 2
#define RTC_IRQ 8
/* ACPI power: fixed hardware in one block of ports. */
#define ACPI_PM_BASE 0x600
#define ACPI_PM_PORTS 16
#define ACPI_PM1_EVT (ACPI_PM_BASE + 0) /* 4 bytes: status, enable */
#define ACPI_PM1_CNT (ACPI_PM_BASE + 4) /* 2 bytes */
#define ACPI_PM_TMR (ACPI_PM_BASE + 8)  /* 4 bytes, 3.579545 MHz */
#define ACPI_RESET_PORT (ACPI_PM_BASE + 0xc) /* 1 byte: FADT reset register */
#define ACPI_RESET_VALUE 0x01
#define ACPI_SCI_IRQ 9
#define ACPI_S5_SLP_TYP 5
#define TESTDEV_PORT 0xf4
#define TESTDEV_PORTS 4

/*
 * 16550A UART whose line is `chardev` (which must outlive it; its handler is the serial's from here on). No baud rate is
 * kept: a byte is out at once, and the transmitter is busy only while the chardev takes no more.
 */
int serial_create(const struct device_env *env, struct chardev *chardev, struct device **ret);

/* Keyboard controller: only what a guest needs to see that there is none, and the reset line (0xfe to port 0x64). */
int i8042_create(const struct device_env *env, struct device **ret);

/*
 * MC146818: time of day from the host's clock (UTC) and what the guest set on top of it, 128 bytes of CMOS memory.
 * Interrupts (alarm, update, periodic) come from a timer that is set only while the guest has them enabled.
 */
int rtc_create(const struct device_env *env, struct device **ret);

/*
 * ACPI fixed power block: power button, S5, reset register, PM timer (32 bits). The timer runs on while the VM is
 * paused, as its TSC does; a restored one goes on from the value it was saved with.
 */
int acpi_pm_create(const struct device_env *env, struct device **ret);
/* Press the power button; -ENODEV while the guest has not enabled ACPI power button events. Any thread. */
int acpi_pm_power_button(struct device *dev);

/* isa-debug-exit: a write of `code` ends with exit status (code << 1) | 1, of which the low 8 bits count. */
int testdev_create(const struct device_env *env, struct device **ret);

#endif
