/* What a migration wants to know of a guest that writes, and what it does to slow it down. Main thread. */
#ifndef UMBRA_DAEMON_MIGRATION_GUEST_H
#define UMBRA_DAEMON_MIGRATION_GUEST_H

#include <event2/event.h>
#include <stddef.h>

#include "daemon/machine.h"
#include "mmu/pageset.h"

/*
 * Those of the pages that are page tables of the guest, added to *into. Nothing where tables are not tracked, or only on
 * demand: reading all of them each round would cost more than it saves.
 */
void migration_tables(struct machine *m, const struct page_set *pages, struct page_set *into);

/*
 * The address spaces that wrote the most of these pages, as text; empty where that is not known. *ret_cr3 is the root of the
 * first that is no kernel's, GFN_INVALID when there is none.
 */
void migration_who(struct machine *m, const struct page_set *pages, char *text, size_t size, gpa_t *ret_cr3);

/*
 * A throttle takes the guest's time in slices: it runs for a fixed while, then all vCPUs are held for as long as the
 * percentage wants. While that is low only slices are taken at whose begin a vCPU is in the address space that writes the
 * most, so that others get off unharmed.
 */
struct migration_throttle {
    struct machine *machine;
    struct event *timer;
    unsigned int percent;
    gpa_t cr3; /* of the address space to be slowed down, GFN_INVALID: all */
    bool holding;
    uint64_t since_ns;
    uint64_t held_ns; /* since it was set last from 0 */
};

/* -ENOMEM. */
int migration_throttle_init(struct migration_throttle *t, struct event_base *events, struct machine *machine);
/* A zeroed one is fine. */
void migration_throttle_clear(struct migration_throttle *t);
/* 0 to 99; 0 lets the guest go. cr3 as above. */
void migration_throttle_set(struct migration_throttle *t, unsigned int percent, gpa_t cr3);

#endif
