/*
 * How many shadow pages KVM may keep for the guest: the policy alone, no KVM in it.
 *
 * By default KVM lets a VM have 20 shadow pages for each 1000 of its pages, however many page tables its guest has. At the limit
 * it throws the oldest away, which the guest needs again at once: not a slope, a cliff. `mmu_recycled` counts what was
 * thrown away for the limit's sake.
 *
 *   up     at once, when pages were recycled since the last look, or the guest's tables take three quarters of the limit: to
 *          twice the tables, and at least twice the limit where pages were recycled (KVM has shadow pages the guest has no
 *          table for: those of its large pages), at most `max`
 *   down   by half at a time, when the limit has been more than four times what is wanted for a minute; not below what
 *          KVM began with
 *
 * Up takes twice what is there, down begins at four times: what grows and shrinks by less than half never moves the limit.
 * Any thread, one at a time.
 */
#ifndef UMBRA_MMU_PAGE_LIMIT_H
#define UMBRA_MMU_PAGE_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

/* KVM refuses less. */
#define PAGE_LIMIT_MIN UINT64_C(64)
/* What a shadow page costs the host: a table, the guest frames behind its entries, and KVM's own descriptor. */
#define PAGE_LIMIT_PAGE_BYTES UINT64_C(8704)
#define PAGE_LIMIT_SHARE_DEFAULT 5u /* percent of the host's memory */

enum page_limit_reason {
    PAGE_LIMIT_KEEP,     /* as it is */
    PAGE_LIMIT_RECYCLED, /* KVM threw shadow pages away */
    PAGE_LIMIT_TABLES,   /* the guest's page tables come near it */
    PAGE_LIMIT_UNUSED,   /* far too much, for a long time */
};
const char *page_limit_reason_name(enum page_limit_reason reason);

struct page_limit {
    uint64_t limit;         /* shadow pages KVM may keep now */
    uint64_t floor, max;    /* the policy stays within these */
    uint64_t recycled;      /* as of the last look */
    uint64_t ample_since_ns; /* the limit is more than is wanted since then; 0: it is not */
    bool capped;            /* more was wanted than max */
};

struct page_limit_sample {
    uint64_t tables;   /* the guest's page tables, as the mirror counts them */
    uint64_t recycled; /* KVM's counter */
    uint64_t now_ns;
};

/* What KVM gives a VM with so much memory, in pages. */
uint64_t page_limit_default(uint64_t ram_pages);
/* What a share of the host's memory is good for. */
uint64_t page_limit_affordable(uint64_t host_bytes, unsigned int percent);

/* `limit` is the one in force, and the least the policy will give. A max below it is taken for it. */
void page_limit_init(struct page_limit *p, uint64_t limit, uint64_t max, uint64_t recycled);
/* The limit to set: p->limit is it already when this returns anything but PAGE_LIMIT_KEEP. */
enum page_limit_reason page_limit_step(struct page_limit *p, const struct page_limit_sample *s);

#endif
