/*
 * What is left of a keyboard controller. It has no state.
 *
 * The status register is chosen for how a Linux guest looks at it. Its i8042 driver takes a controller whose output
 * buffer stays full for absent, after 16 reads; so bit 0 is always set. Its `reboot=k` waits for an empty input buffer,
 * up to 65536 reads (a second or more of exits), before it pulses the reset line; so bit 1 is never set. All other bits
 * read as those of a port that nobody answers.
 */
#include "config.h"

#include "device/devices.h"

#include <errno.h>
#include <stdlib.h>

#define STATUS_INPUT_FULL 0x02
#define CMD_PULSE 0xf0 /* to 0xff: pulse the output lines whose bit is 0; line 0 is the processor's reset */
#define CMD_PULSE_NOT_RESET 0x01

struct i8042 {
    struct device dev;
    struct device_env env;
};

static uint64_t i8042_read_status(void *opaque, uint64_t offset, unsigned int size)
{
    return 0xff & ~STATUS_INPUT_FULL;
}

static void i8042_write_command(void *opaque, uint64_t offset, unsigned int size, uint64_t value)
{
    struct i8042 *k = opaque;

    if ((value & CMD_PULSE) == CMD_PULSE && !(value & CMD_PULSE_NOT_RESET))
        k->env.host->request_reset(k->env.host->opaque);
}

static const struct bus_ops command_ops = {.read = i8042_read_status, .write = i8042_write_command};
/* Reads as all ones, drops what is written. */
static const struct bus_ops data_ops = {0};

static void i8042_reset(struct device *dev)
{
}

static void i8042_destroy(struct device *dev)
{
    struct i8042 *k = container_of(dev, struct i8042, dev);

    bus_remove(k->env.bus, k);
    free(k);
}

static const struct device_ops i8042_ops = {
    .name = "i8042",
    .state_version = 1,
    .reset = i8042_reset,
    .destroy = i8042_destroy,
};

int i8042_create(const struct device_env *env, struct device **ret)
{
    struct i8042 *k = calloc(1, sizeof(*k));
    int err;

    if (!k)
        return -ENOMEM;
    k->env = *env;
    device_init(&k->dev, &i8042_ops, 0);
    err = bus_add(env->bus, BUS_PIO, I8042_PORT_DATA, 1, "i8042-data", &data_ops, k, NULL);
    if (err == 0)
        err = bus_add(env->bus, BUS_PIO, I8042_PORT_CMD, 1, "i8042", &command_ops, k, &k->dev.lock);
    if (err < 0) {
        device_destroy(&k->dev);
        return err;
    }
    *ret = &k->dev;
    return 0;
}
