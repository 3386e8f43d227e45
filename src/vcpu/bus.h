/*
 * The PIO and MMIO bus: which device answers at which address.
 *
 * Regions are added and removed only while no vCPU runs (before the start, or paused), so the look-up on the exit path
 * takes no lock. A region's own mutex (may be NULL) is held around its callbacks. An access nobody answers reads all
 * ones and is dropped on writing, as on a PC; it is counted.
 */
#ifndef UMBRA_VCPU_BUS_H
#define UMBRA_VCPU_BUS_H

#include <pthread.h>
#include <stdint.h>

enum bus_space {
    BUS_PIO,
    BUS_MMIO,
    BUS_SPACES,
};

struct bus_ops {
    /* An access of 1, 2, 4 or 8 bytes at `offset` from the region's base. vCPU threads, under the region's lock. */
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned int size);
    void (*write)(void *opaque, uint64_t offset, unsigned int size, uint64_t value);
};

struct bus;

int bus_new(struct bus **ret);
void bus_free(struct bus *bus);

/* -EEXIST when it overlaps another region, -EINVAL (empty, wraps, beyond 64 KiB for PIO), -ENOMEM. `name` must live on. */
int bus_add(struct bus *bus, enum bus_space space, uint64_t base, uint64_t size, const char *name,
            const struct bus_ops *ops, void *opaque, pthread_mutex_t *lock);
/* Remove every region with this opaque. */
void bus_remove(struct bus *bus, const void *opaque);

/* One access; `data` holds `size` bytes (1-8; an MMIO access of an odd size, or one that crosses a region's end, is
 * split into bytes). */
void bus_read(struct bus *bus, enum bus_space space, uint64_t addr, void *data, unsigned int size);
void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, const void *data, unsigned int size);

/* Accesses that no region answered, since the start. */
uint64_t bus_unclaimed(const struct bus *bus);

#endif
