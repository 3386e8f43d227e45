/* One vCPU, for those who look at it from outside of its thread. */
#ifndef UMBRA_VCPU_VCPU_H
#define UMBRA_VCPU_VCPU_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct vcpu;

unsigned int vcpu_index(const struct vcpu *vcpu);
int vcpu_fd(const struct vcpu *vcpu);
/* The kernel's id of its thread, 0 before vm_start. */
pid_t vcpu_tid(const struct vcpu *vcpu);

/* Exits to user space by reason since the start; reading takes no lock. */
struct vcpu_exits {
    uint64_t total;
    uint64_t io_in, io_out, mmio_read, mmio_write;
    uint64_t intr, shutdown, dirty_ring_full, system_event, other;
};
void vcpu_exits(const struct vcpu *vcpu, struct vcpu_exits *ret);

/* Paging registers as they were when they were last noted. */
struct vcpu_paging {
    uint64_t cr0, cr3, cr4, efer;
    bool kernel;  /* privilege level 0 */
    uint64_t seq; /* how often they were noted; 0: never */
};

#endif
