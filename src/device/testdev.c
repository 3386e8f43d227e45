#include "config.h"

#include "device/devices.h"

#include <errno.h>
#include <stdlib.h>

struct testdev {
    struct device dev;
    struct device_env env;
};

static void testdev_write(void *opaque, uint64_t offset, unsigned int size, uint64_t value)
{
    struct testdev *t = opaque;

    t->env.host->request_exit(t->env.host->opaque, (int)(((value << 1) | 1) & 0xff));
}

static const struct bus_ops testdev_bus_ops = {.write = testdev_write};

static void testdev_reset(struct device *dev)
{
}

static void testdev_destroy(struct device *dev)
{
    struct testdev *t = container_of(dev, struct testdev, dev);

    bus_remove(t->env.bus, t);
    free(t);
}

static const struct device_ops testdev_ops = {
    .name = "testdev",
    .state_version = 1,
    .reset = testdev_reset,
    .destroy = testdev_destroy,
};

int testdev_create(const struct device_env *env, struct device **ret)
{
    struct testdev *t = calloc(1, sizeof(*t));
    int err;

    if (!t)
        return -ENOMEM;
    t->env = *env;
    device_init(&t->dev, &testdev_ops, 0);
    err = bus_add(env->bus, BUS_PIO, TESTDEV_PORT, TESTDEV_PORTS, "testdev", &testdev_bus_ops, t, &t->dev.lock);
    if (err < 0) {
        device_destroy(&t->dev);
        return err;
    }
    *ret = &t->dev;
    return 0;
}
