/*
 * The side a guest arrives at: waits for one source, takes pages straight into guest memory, loads the state, runs the guest
 * when the source says so.
 *
 * Threads: one that accepts and serves channel 0, one for each further channel. They call upward through struct
 * mig_target_ops only; each callback may be carried out on another thread, for which the caller waits.
 */
#ifndef UMBRA_MIGRATE_TARGET_H
#define UMBRA_MIGRATE_TARGET_H

#include "migrate/report.h"
#include "migrate/tls.h"
#include "migrate/wire.h"
#include "mmu/mem.h"

struct mig_target_ops {
    /* Whether a guest with that state could go on here. *ret_why: NULL when it could, else text (the caller's to free) with
     * a line for each difference. -errno with *err when the state is bad. */
    int (*compare)(void *opaque, const uint8_t *state, size_t len, char **ret_why, struct mig_error *err);
    /* Guest memory is in this file from here on (taken over also on failure). -errno with *err. */
    int (*adopt)(void *opaque, int fd, struct mig_error *err);
    /* Load the state, captured at captured_ns of this host's clock_ns. -errno with *err. */
    int (*load)(void *opaque, const uint8_t *state, size_t len, uint64_t captured_ns, struct mig_error *err);
    /*
     * The guest is this side's: run it, or keep it paused. arriving: a part of its memory is still to come (post-copy), and this
     * call may take pages of it. -errno only when the daemon is ending.
     */
    int (*run)(void *opaque, bool run, bool arriving);
    /*
     * The status changed. postcopy: this must not wait for the main thread, which may wait for a page; the last status is completed,
     * when no page is missing.
     */
    void (*changed)(void *opaque, bool postcopy);
};

struct mig_target;

/*
 * Begin to wait at tcp:HOST:PORT, unix:PATH or fd:NUMBER (a connected socket), with
 * `tls` (taken over also on failure; NULL: without) for sources of the same authority only. When this returns a source can connect. What
 * becomes of it is told by `changed` and the report: completed, or failed, and then the machine must not run. -errno with
 * *err.
 */
int mig_target_start(struct mem *mem, const char *uri, struct mig_tls *tls, const struct mig_target_ops *ops, void *opaque,
                     struct mig_target **ret, struct mig_error *err);
/*
 * In post-copy: cut the connection, as if it were lost; and, when it is lost, wait for the source at another address too (that of the
 * beginning is waited at in any case). -EINVAL in any other status; -errno with *err.
 */
int mig_target_pause(struct mig_target *t);
int mig_target_recover(struct mig_target *t, const char *uri, struct mig_error *err);
void mig_target_report(struct mig_target *t, struct mig_report *ret);
/*
 * In post-copy, when the process is about to end with pages missing: end the connections and leave no socket behind, but let nobody
 * go on who waits for a page. Callbacks as below.
 */
void mig_target_abandon(struct mig_target *t);
/* Ends its threads; callbacks must fail at once from here on. NULL is fine. */
void mig_target_free(struct mig_target *t);

#endif
