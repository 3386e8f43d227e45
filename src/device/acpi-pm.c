/*
 * ACPI fixed hardware, as the ACPI specification's chapter "ACPI Hardware" describes it: PM1 events and control, the
 * power management timer, and a reset register behind them.
 *
 * There is no SMI command port, so the machine is always in ACPI mode and SCI_EN always reads 1. S5 is the only sleep
 * state.
 */
#include "config.h"

#include "device/devices.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "device/device-internal.h"

#define PM_TIMER_HZ 3579545u
#define PM_TIMER_BITS 32

/* PM1 status and enable */
#define PM1_TMR (1u << 0)
#define PM1_GBL (1u << 5)
#define PM1_PWRBTN (1u << 8)
#define PM1_SLPBTN (1u << 9)
#define PM1_RTC (1u << 10)
#define PM1_STS_MASK (PM1_TMR | PM1_PWRBTN)
#define PM1_EN_MASK (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC)

/* PM1 control */
#define PM1_SCI_EN (1u << 0)
#define PM1_BM_RLD (1u << 1)
#define PM1_SLP_TYP_SHIFT 10
#define PM1_SLP_TYP_MASK (7u << PM1_SLP_TYP_SHIFT)
#define PM1_SLP_EN (1u << 13)
#define PM1_CNT_MASK (PM1_BM_RLD | PM1_SLP_TYP_MASK)

/* Registers by their offset in the block. */
#define REG_STS (ACPI_PM1_EVT - ACPI_PM_BASE)
#define REG_EN (REG_STS + 2)
#define REG_CNT (ACPI_PM1_CNT - ACPI_PM_BASE)
#define REG_TMR (ACPI_PM_TMR - ACPI_PM_BASE)
#define REG_RESET (ACPI_RESET_PORT - ACPI_PM_BASE)

static_assert(REG_RESET < ACPI_PM_PORTS, "the reset register lies in the block");

struct acpi_pm_regs {
    uint16_t status, enable, control;
    uint64_t ticks; /* of the timer when this was saved */
};

static const struct state_field regs_fields[] = {
    STATE_FIELD(struct acpi_pm_regs, status),
    STATE_FIELD(struct acpi_pm_regs, enable),
    STATE_FIELD(struct acpi_pm_regs, control),
    STATE_FIELD(struct acpi_pm_regs, ticks),
};

struct acpi_pm {
    struct device dev;
    struct device_env env;
    struct acpi_pm_regs regs;
    uint64_t base_ns, base_ticks; /* the timer showed base_ticks at base_ns */
    uint64_t seen_ticks;          /* TMR status is right up to here */
    bool line;
    struct device_timer timer; /* the next carry of the PM timer, while the guest wants to know */
};

/* -- the timer -- */

static uint64_t pm_ticks(const struct acpi_pm *pm)
{
    uint64_t ns = device_monotonic_ns(&pm->env) - pm->base_ns;

    return pm->base_ticks + (uint64_t)((unsigned __int128)ns * PM_TIMER_HZ / NSEC_PER_SEC);
}

/* The timer's top bit changes this often, and sets TMR status when it does. */
static uint64_t pm_carry(uint64_t ticks)
{
    return ticks >> (PM_TIMER_BITS - 1);
}

/* Host time of the next change of the top bit after now. */
static int64_t pm_next_carry_ns(const struct acpi_pm *pm)
{
    uint64_t ticks = (pm_carry(pm->seen_ticks) + 1) << (PM_TIMER_BITS - 1);
    unsigned __int128 ns = (unsigned __int128)(ticks - pm->base_ticks) * NSEC_PER_SEC;

    return (int64_t)(pm->base_ns + (uint64_t)((ns + PM_TIMER_HZ - 1) / PM_TIMER_HZ));
}

/* -- events -- */

static void pm_set_line(struct acpi_pm *pm)
{
    pm->line = pm->regs.status & pm->regs.enable;
    irq_set(pm->env.irq, ACPI_SCI_IRQ, pm->line);
}

/* Bring TMR status up to date, then the SCI line and the timer into line with the registers. */
static void pm_update(struct acpi_pm *pm)
{
    uint64_t ticks = pm_ticks(pm);

    if (pm_carry(ticks) != pm_carry(pm->seen_ticks))
        pm->regs.status |= PM1_TMR;
    pm->seen_ticks = ticks;
    if (!!(pm->regs.status & pm->regs.enable) != pm->line)
        pm_set_line(pm);
    if (pm->regs.enable & PM1_TMR)
        device_timer_set(&pm->timer, pm->regs.status & PM1_TMR ? -1 : pm_next_carry_ns(pm));
}

static void on_timer(evutil_socket_t fd, short what, void *opaque)
{
    struct acpi_pm *pm = opaque;

    pthread_mutex_lock(&pm->dev.lock);
    device_timer_clear(&pm->timer);
    pm_update(pm);
    pthread_mutex_unlock(&pm->dev.lock);
}

int acpi_pm_power_button(struct device *dev)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);
    int err = -ENODEV;

    pthread_mutex_lock(&dev->lock);
    if (pm->regs.enable & PM1_PWRBTN) {
        pm->regs.status |= PM1_PWRBTN;
        pm_update(pm);
        err = 0;
    }
    pthread_mutex_unlock(&dev->lock);
    return err;
}

/* -- registers -- */

static uint64_t pm_read(void *opaque, uint64_t offset, unsigned int size)
{
    struct acpi_pm *pm = opaque;
    uint8_t regs[ACPI_PM_PORTS] = {0};
    uint64_t value = 0;

    /* The timer is what is read most; only a read of the status needs the rest. */
    if (offset < REG_EN)
        pm_update(pm);
    le16_put(regs + REG_STS, pm->regs.status);
    le16_put(regs + REG_EN, pm->regs.enable);
    le16_put(regs + REG_CNT, (uint16_t)(pm->regs.control | PM1_SCI_EN));
    le32_put(regs + REG_TMR, (uint32_t)pm_ticks(pm));
    memcpy(&value, regs + offset, size);
    return value;
}

static void pm_write_control_high(struct acpi_pm *pm, uint8_t value)
{
    unsigned int v = (unsigned int)value << 8;

    pm->regs.control = (uint16_t)((pm->regs.control & ~PM1_SLP_TYP_MASK) | (v & PM1_SLP_TYP_MASK));
    if ((v & PM1_SLP_EN) && (v & PM1_SLP_TYP_MASK) >> PM1_SLP_TYP_SHIFT == ACPI_S5_SLP_TYP)
        pm->env.host->request_poweroff(pm->env.host->opaque);
}

static void pm_write_byte(void *opaque, unsigned int reg, uint8_t value)
{
    struct acpi_pm *pm = opaque;
    unsigned int shift = 8 * (reg & 1);

    switch (reg) {
    case REG_STS:
    case REG_STS + 1:
        pm->regs.status &= (uint16_t)~(value << shift);
        break;
    case REG_EN:
    case REG_EN + 1:
        pm->regs.enable &= (uint16_t)~(0xff << shift);
        pm->regs.enable |= (uint16_t)((value << shift) & PM1_EN_MASK);
        break;
    case REG_CNT:
        pm->regs.control = (uint16_t)((pm->regs.control & ~PM1_BM_RLD) | (value & PM1_BM_RLD));
        break;
    case REG_CNT + 1:
        pm_write_control_high(pm, value);
        break;
    case REG_RESET:
        if (value == ACPI_RESET_VALUE)
            pm->env.host->request_reset(pm->env.host->opaque);
        break;
    default:
        break;
    }
}

static void pm_write(void *opaque, uint64_t offset, unsigned int size, uint64_t value)
{
    struct acpi_pm *pm = opaque;

    /* A carry before this write counts as one, even when the write clears the status or takes the interest away. */
    pm_update(pm);
    device_write_bytes(pm, offset, size, value, pm_write_byte);
    if (!(pm->regs.enable & PM1_TMR))
        device_timer_set(&pm->timer, -1);
    pm_update(pm);
}

static const struct bus_ops pm_bus_ops = {.read = pm_read, .write = pm_write};

/* -- the device -- */

static void pm_reset(struct device *dev)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

    pm->regs = (struct acpi_pm_regs){0};
    pm->seen_ticks = pm_ticks(pm);
    device_timer_set(&pm->timer, -1);
    pm_set_line(pm);
}

static void pm_save(struct device *dev, struct state_writer *w)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

    pm_update(pm);
    pm->regs.ticks = pm->seen_ticks;
    state_put_fields(w, "", regs_fields, ARRAY_SIZE(regs_fields), &pm->regs);
}

static int pm_restore(struct device *dev, struct state_reader *r, const struct state_section *s)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);
    struct acpi_pm_regs regs;
    int err = state_get_fields(r, s, "", regs_fields, ARRAY_SIZE(regs_fields), &regs);

    if (err == 0)
        err = state_check_all_read(r, s);
    if (err < 0)
        return err;
    if (regs.status & ~PM1_STS_MASK)
        return state_bad(r, s, "field status: 0x%x has bits beyond 0x%x", regs.status, PM1_STS_MASK);
    if (regs.enable & ~PM1_EN_MASK)
        return state_bad(r, s, "field enable: 0x%x has bits beyond 0x%x", regs.enable, PM1_EN_MASK);
    if (regs.control & ~PM1_CNT_MASK)
        return state_bad(r, s, "field control: 0x%x has bits beyond 0x%x", regs.control, PM1_CNT_MASK);
    /* So far that no carry to come can wrap the count. */
    if (regs.ticks > UINT64_MAX / 2)
        return state_bad(r, s, "field ticks: %llu exceeds %llu", (unsigned long long)regs.ticks,
                         (unsigned long long)(UINT64_MAX / 2));
    pm->regs = regs;
    pm->base_ns = device_monotonic_ns(&pm->env);
    pm->base_ticks = pm->seen_ticks = regs.ticks;
    device_timer_set(&pm->timer, -1);
    pm_set_line(pm);
    pm_update(pm);
    return 0;
}

/* A carry that would have come meanwhile counts. */
static void pm_advance(struct device *dev, uint64_t ns)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

    pm->base_ns -= ns;
    pm_update(pm);
}

static void pm_destroy(struct device *dev)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

    bus_remove(pm->env.bus, pm);
    device_timer_fini(&pm->timer);
    free(pm);
}

static const struct device_ops pm_ops = {
    .name = "acpi-pm",
    .state_version = 1,
    .reset = pm_reset,
    .save = pm_save,
    .restore = pm_restore,
    .advance = pm_advance,
    .destroy = pm_destroy,
};

int acpi_pm_create(const struct device_env *env, struct device **ret)
{
    struct acpi_pm *pm = calloc(1, sizeof(*pm));
    int err;

    if (!pm)
        return -ENOMEM;
    pm->env = *env;
    pm->base_ns = device_monotonic_ns(env);
    device_init(&pm->dev, &pm_ops, 0);
    err = device_timer_init(&pm->timer, env, CLOCK_MONOTONIC, on_timer, pm);
    if (err == 0)
        err = bus_add(env->bus, BUS_PIO, ACPI_PM_BASE, ACPI_PM_PORTS, "acpi-pm", &pm_bus_ops, pm, &pm->dev.lock);
    if (err < 0) {
        device_destroy(&pm->dev);
        return err;
    }
    *ret = &pm->dev;
    return 0;
}
