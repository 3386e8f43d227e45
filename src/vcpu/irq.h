/* How a device raises its interrupt line. The VM provides one; tests and fuzzers provide their own. */
#ifndef UMBRA_VCPU_IRQ_H
#define UMBRA_VCPU_IRQ_H

struct irq_sink {
    /* Set the level of a global interrupt line (ISA numbers for legacy devices). Any thread; may be called under a
     * device's lock and takes none of its own. */
    void (*set)(void *opaque, unsigned int gsi, int level);
    void *opaque;
};

static inline void irq_set(const struct irq_sink *irq, unsigned int gsi, int level)
{
    irq->set(irq->opaque, gsi, level);
}

#endif
