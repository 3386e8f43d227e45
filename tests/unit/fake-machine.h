/*
 * A machine without KVM, for tests of what stands on struct machine: real guest memory and the real dirty log over a
 * pretended KVM, run states that change at once, statistics with fixed values. It takes the place of machine.c, vm.c,
 * vcpu.c and stats.c when it is linked before their libraries.
 */
#ifndef UMBRA_TESTS_UNIT_FAKE_MACHINE_H
#define UMBRA_TESTS_UNIT_FAKE_MACHINE_H

#include "daemon/machine.h"

#define FAKE_RING_ENTRIES 65536u

struct qmp_server;

struct fake_options {
    uint64_t memory; /* bytes */
    unsigned int cpus;
    enum dirty_backend backend;
};

struct machine *fake_machine_new(struct event_base *events, const struct fake_options *options);
void fake_machine_free(struct machine *m);

/* Where its events go; NULL for nowhere. */
void fake_machine_set_server(struct machine *m, struct qmp_server *server);
void fake_machine_set_state(struct machine *m, enum run_state state);
/* The guest enables the power button. */
void fake_machine_enable_power_button(struct machine *m);
/* The exit status after machine_quit, or -1. */
int fake_machine_ended(const struct machine *m);

/* The guest writes to a page: it is in KVM's dirty log if that is on (ring: of vCPU 0). */
void fake_machine_write(struct machine *m, gfn_t gfn, uint8_t byte);
/* vCPU 0 runs the kernel with this in CR3: long mode. It is found when the tracker looks next. */
void fake_machine_set_cr3(struct machine *m, uint64_t cr3);
/* Let KVM fail: what ioctls of the dirty log return, 0 for success. */
void fake_machine_fail_kvm(struct machine *m, int r);

/* What machine_memory_arrives says. */
extern bool fake_memory_arrives;

#endif
