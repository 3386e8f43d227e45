/*
 * The side a guest leaves: pre-copy over the dirty log's consumer "migration", and the switchover of which exactly one side
 * comes out running.
 *
 * Threads: a coordinator and one sender for each channel, made by mig_source_start. They call upward through struct
 * mig_source_ops only; each callback may be carried out on another thread, for which the caller waits. All functions here
 * are for one thread (the daemon's main).
 */
#ifndef UMBRA_MIGRATE_SOURCE_H
#define UMBRA_MIGRATE_SOURCE_H

#include "migrate/report.h"
#include "migrate/tls.h"
#include "migrate/wire.h"
#include "mmu/dirty.h"
#include "mmu/mem.h"

/* A guest that writes faster than the channel takes it: what to do. */
enum mig_strategy {
    MIG_STRATEGY_CANCEL,
    MIG_STRATEGY_STOP,     /* switch over all the same, whatever the downtime */
    MIG_STRATEGY_THROTTLE, /* take time slices from the guest, ever more up to max_throttle */
    MIG_STRATEGY_POSTCOPY, /* let the guest go before its last pages */
};

struct mig_parameters {
    uint64_t max_bandwidth;     /* bytes a second of pre-copy, 0: no limit */
    uint64_t postcopy_bandwidth; /* the same of post-copy, but for pages that the target waits for */
    uint64_t downtime_limit_ns;
    enum mig_strategy strategy;
    unsigned int max_throttle; /* percent, 1 to 99; 0: MIG_THROTTLE_DEFAULT */
    unsigned int channels; /* 1 to MIG_MAX_CHANNELS; read at the start only; with post-copy at least 2 are used */
    bool postcopy;         /* the target is asked whether it can; read at the start only. With its strategy always */
    bool pause_before_switchover;
    unsigned int zstd_level; /* 1 to MIG_ZSTD_LEVEL_MAX, 0: batches are not packed; read at the start only */
};

/* Its consumer of the dirty log. */
#define MIG_CONSUMER "migration"

#define MIG_THROTTLE_DEFAULT 90u
#define MIG_DOWNTIME_LIMIT_DEFAULT_NS UINT64_C(300000000)

struct mig_source_ops {
    /*
     * A complete machine state, of a guest that runs: it is stopped for as short as it takes. *ret is the caller's to free.
     * 0 or -errno.
     */
    int (*facts)(void *opaque, uint8_t **ret, size_t *ret_len);
    /* Do, of what `stop` would take time for, as much as can be done while the guest runs. May take long. NULL: nothing. */
    void (*write_out)(void *opaque);
    /*
     * Stop the guest for the switchover, *ret_run telling whether it ran; fill in pause and drain. -errno with *err when it
     * has ended meanwhile.
     */
    int (*stop)(void *opaque, bool *ret_run, struct mig_downtime *times, struct mig_error *err);
    /* The state of the stopped guest, captured at *ret_captured_ns or a little later (clock_ns). */
    int (*save)(void *opaque, uint8_t **ret, size_t *ret_len, uint64_t *ret_captured_ns);
    /* The switchover failed: go on as before. */
    void (*resume)(void *opaque);
    /*
     * The target may have the guest from here on: it must not run here by itself any more. needed: its memory, until all is over.
     * -errno: it was not done, and the target is not told to take it.
     */
    int (*give_away)(void *opaque, bool needed);
    /* Take `percent` of the guest's time (0: none), best that of whom `who` named last; MIG_STRATEGY_THROTTLE. NULL: cannot
     * be done. */
    void (*throttle)(void *opaque, unsigned int percent);
    /* Add to `into`, an empty set, those of the pages that are better sent last: page tables change with every mapping. NULL:
     * not known. */
    void (*tables)(void *opaque, const struct page_set *pages, struct page_set *into);
    /* Who wrote the pages of the set, as text, empty when that is not known. Now and then while it does not converge. NULL:
     * not known. */
    void (*who)(void *opaque, const struct page_set *pages, char *text, size_t size);
    /* The status changed, a round ended. */
    void (*changed)(void *opaque, bool round);
};

struct mig_source_config {
    struct mem *mem;
    struct dirty_log *dirty;
    const struct mig_source_ops *ops;
    void *opaque;
    struct mig_parameters parameters;
    const char *uri; /* tcp: or unix:; NULL: fd */
    int fd;          /* connected, taken over also on failure; -1 with a URI. One channel */
    bool local;      /* pass the RAM file; Unix sockets only, without TLS */
    struct mig_tls *tls; /* encrypt with these credentials, taken over also on failure; NULL: do not */
    const char *tls_host; /* whose certificate the target must have, NULL: any of the authority */
};

struct mig_source;

/* Begin; what becomes of it is told by `changed` and the report. 0 or -errno (no threads, no memory). */
int mig_source_start(const struct mig_source_config *config, struct mig_source **ret);
/* Ask for the end. Too late once the target was told to go on; it ends by itself then, or stays for ever in postcopy-paused. */
void mig_source_cancel(struct mig_source *s);
/* In pre-switchover: go on. -EINVAL in any other status. */
int mig_source_continue(struct mig_source *s);
/* Leave pre-copy for post-copy now. -EINVAL unless it is in pre-copy and post-copy was agreed on. */
int mig_source_postcopy(struct mig_source *s);
/*
 * In post-copy: cut the connection, as if it were lost; and, when it is lost, connect again, to tcp:HOST:PORT or unix:PATH. tls_host as in the
 * configuration. -EINVAL in any other status, -ENOMEM.
 */
int mig_source_pause(struct mig_source *s);
int mig_source_recover(struct mig_source *s, const char *uri, const char *tls_host);
void mig_source_set_parameters(struct mig_source *s, const struct mig_parameters *p);
void mig_source_report(struct mig_source *s, struct mig_report *ret);
/*
 * Cancels unless it is over. Callbacks must fail at once from here on, unless `changed` has told of the end already: there
 * are none after that. NULL is fine.
 */
void mig_source_free(struct mig_source *s);

#endif
