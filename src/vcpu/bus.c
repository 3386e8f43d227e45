#include "config.h"

#include "vcpu/bus.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

struct region {
    uint64_t base;
    uint64_t last; /* inclusive, so that a region may end at the top */
    const char *name;
    const struct bus_ops *ops;
    void *opaque;
    pthread_mutex_t *lock;
};

struct space {
    struct region *regions; /* sorted by base */
    unsigned int count;
};

struct bus {
    struct space spaces[BUS_SPACES];
    uint64_t unclaimed; /* atomic */
};

int bus_new(struct bus **ret)
{
    struct bus *bus = calloc(1, sizeof(*bus));

    if (!bus)
        return -ENOMEM;
    *ret = bus;
    return 0;
}

void bus_free(struct bus *bus)
{
    if (!bus)
        return;
    for (unsigned int i = 0; i < BUS_SPACES; i++)
        free(bus->spaces[i].regions);
    free(bus);
}

int bus_add(struct bus *bus, enum bus_space space, uint64_t base, uint64_t size, const char *name,
            const struct bus_ops *ops, void *opaque, pthread_mutex_t *lock)
{
    struct space *s = &bus->spaces[space];
    uint64_t last = base + size - 1;
    struct region *bigger;
    unsigned int at = 0;

    if (size == 0 || last < base || (space == BUS_PIO && last > 0xffff))
        return -EINVAL;
    while (at < s->count && s->regions[at].base < base)
        at++;
    if ((at > 0 && s->regions[at - 1].last >= base) || (at < s->count && s->regions[at].base <= last))
        return -EEXIST;
    bigger = reallocarray(s->regions, s->count + 1, sizeof(*bigger));
    if (!bigger)
        return -ENOMEM;
    s->regions = bigger;
    memmove(&bigger[at + 1], &bigger[at], (s->count - at) * sizeof(*bigger));
    bigger[at] = (struct region){
        .base = base, .last = last, .name = name, .ops = ops, .opaque = opaque, .lock = lock};
    s->count++;
    return 0;
}

void bus_remove(struct bus *bus, const void *opaque)
{
    for (unsigned int i = 0; i < BUS_SPACES; i++) {
        struct space *s = &bus->spaces[i];
        unsigned int kept = 0;

        for (unsigned int j = 0; j < s->count; j++)
            if (s->regions[j].opaque != opaque)
                s->regions[kept++] = s->regions[j];
        s->count = kept;
    }
}

/* The region that holds addr, or NULL. */
static const struct region *find(const struct space *s, uint64_t addr)
{
    unsigned int lo = 0, hi = s->count;

    while (lo < hi) {
        unsigned int mid = lo + (hi - lo) / 2;

        if (s->regions[mid].last < addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < s->count && s->regions[lo].base <= addr ? &s->regions[lo] : NULL;
}

static bool natural(unsigned int size)
{
    return size == 1 || size == 2 || size == 4 || size == 8;
}

static uint64_t region_read(const struct region *r, uint64_t addr, unsigned int size)
{
    uint64_t value;

    if (!r->ops->read)
        return UINT64_MAX;
    if (r->lock)
        pthread_mutex_lock(r->lock);
    value = r->ops->read(r->opaque, addr - r->base, size);
    if (r->lock)
        pthread_mutex_unlock(r->lock);
    return value;
}

static void region_write(const struct region *r, uint64_t addr, unsigned int size, uint64_t value)
{
    if (!r->ops->write)
        return;
    if (r->lock)
        pthread_mutex_lock(r->lock);
    r->ops->write(r->opaque, addr - r->base, size, value);
    if (r->lock)
        pthread_mutex_unlock(r->lock);
}

void bus_read(struct bus *bus, enum bus_space space, uint64_t addr, void *data, unsigned int size)
{
    const struct region *r = find(&bus->spaces[space], addr);
    uint64_t value = UINT64_MAX;

    if (r && natural(size) && size - 1 <= r->last - addr) {
        value = region_read(r, addr, size);
        memcpy(data, &value, size);
    } else if (size > 1) {
        for (unsigned int i = 0; i < size; i++)
            bus_read(bus, space, addr + i, (uint8_t *)data + i, 1);
    } else {
        __atomic_fetch_add(&bus->unclaimed, 1, __ATOMIC_RELAXED);
        memset(data, 0xff, size);
    }
}

void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, const void *data, unsigned int size)
{
    const struct region *r = find(&bus->spaces[space], addr);
    uint64_t value = 0;

    if (r && natural(size) && size - 1 <= r->last - addr) {
        memcpy(&value, data, size);
        region_write(r, addr, size, value);
    } else if (size > 1) {
        for (unsigned int i = 0; i < size; i++)
            bus_write(bus, space, addr + i, (const uint8_t *)data + i, 1);
    } else {
        __atomic_fetch_add(&bus->unclaimed, 1, __ATOMIC_RELAXED);
    }
}

uint64_t bus_unclaimed(const struct bus *bus)
{
    return __atomic_load_n(&bus->unclaimed, __ATOMIC_RELAXED);
}
