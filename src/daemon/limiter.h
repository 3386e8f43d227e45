/*
 * KVM's limit of shadow pages, as configured or asked for over the control socket: left alone, kept where it was set, or set after
 * the policy of mmu/page-limit.h from what the tracker tells.
 *
 * Threads: limiter_pressure is for the tracker's thread, which holds no lock then; the rest for the main thread. Never
 * for the userfaultfd thread: KVM_SET_NR_MMU_PAGES may wait for a vCPU that only this thread lets go on.
 */
#ifndef UMBRA_DAEMON_LIMITER_H
#define UMBRA_DAEMON_LIMITER_H

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "mmu/page-limit.h"
#include "vcpu/vm.h"

enum limiter_mode {
    LIMITER_OFF,   /* KVM's own limit */
    LIMITER_AUTO,
    LIMITER_FIXED, /* a number, which stays */
};

struct limiter_settings {
    enum limiter_mode mode;
    uint64_t pages; /* LIMITER_FIXED: PAGE_LIMIT_MIN to LIMITER_PAGES_MAX */
};

/* 8 TiB of shadow pages. */
#define LIMITER_PAGES_MAX (UINT64_C(1) << 30)

struct limiter_change {
    uint64_t from, to; /* shadow pages */
    enum page_limit_reason reason;
    uint64_t tables, recycled;
};

struct limiter_config {
    struct vm *vm;
    struct event_base *events;
    struct limiter_settings settings;
    unsigned int share; /* auto: percent of the host's memory that shadow pages may take */
    /* The policy has changed the limit. Main thread, soon after. May be NULL. */
    void (*on_change)(void *opaque, const struct limiter_change *change);
    void *opaque;
};

struct limiter;

/* Sets the limit where a number is given. No guest runs. 0, -ENOMEM or -errno of KVM, logged. `vm` must outlive it. */
int limiter_new(const struct limiter_config *config, struct limiter **ret);
/* The tracker has stopped. NULL is fine. */
void limiter_free(struct limiter *l);

/* -EINVAL: a number out of range; or -errno of KVM; then all is as before. */
int limiter_set(struct limiter *l, const struct limiter_settings *settings);

/* What the guest's page tables need now. Reads KVM's counter, and may set the limit. */
void limiter_pressure(struct limiter *l, uint64_t tables, uint64_t now_ns);

struct limiter_info {
    struct limiter_settings settings;
    uint64_t limit;    /* in force */
    uint64_t kvm;      /* what KVM gave by itself */
    uint64_t max;      /* what auto may give at most */
    bool capped;       /* auto would give more than that */
    uint64_t changes;  /* made by auto */
    uint64_t recycled; /* as of the last look */
};
void limiter_info(struct limiter *l, struct limiter_info *ret);

#endif
