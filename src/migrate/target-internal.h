/* What target.c and target-postcopy.c share. */
#ifndef UMBRA_MIGRATE_TARGET_INTERNAL_H
#define UMBRA_MIGRATE_TARGET_INTERNAL_H

#include <pthread.h>

#include "migrate/compress.h"
#include "migrate/stream.h"
#include "migrate/target.h"
#include "mmu/absent.h"

/* How long a connection may take to say what it is, and a source to open all its channels. */
#define MIG_HELLO_TIMEOUT_MS 10000

struct mig_channel {
    struct mig_target *target;
    unsigned int index;
    struct mig_stream stream;
    bool connected, started;
    pthread_t thread;
    uint64_t pages; /* received; atomic */
    struct mig_unpacker *unpacker; /* made when it is first needed */
    uint8_t *bounce; /* contents of a batch in post-copy, MIG_BATCH_PAGES; the same */
    bool ended;     /* under target->lock: END came */
};

struct mig_target {
    struct mem *mem;
    uint8_t *ram;
    const struct mig_target_ops *ops;
    void *opaque;
    pthread_t thread;
    bool started;
    int wake_fd;
    struct mig_listener listener;
    char *uri;
    struct mig_tls *tls; /* or NULL */
    int given_fd; /* fd:NUMBER; -1 once it is channel 0's */

    pthread_mutex_t lock; /* protects what follows but the channels' streams */
    pthread_cond_t cond;  /* a channel ended, or all is over */
    bool broken;
    bool closing;   /* it is being freed */
    bool committed; /* the guest is this side's */
    bool asks;      /* post-copy: channel 0 is there to ask for pages */
    bool postcopy_used; /* the guest came before its last pages */
    bool whole;     /* then: all of them are here */
    int greeted_fd; /* of the connection that says what it is; -1: none */
    struct mig_listener next_listener; /* where to wait from now on; fd -1: where it does */
    struct mig_error error; /* the first */
    struct mig_report report;
    uint64_t started_ns, committed_ns;

    struct mig_channel channels[MIG_MAX_CHANNELS];
    unsigned int channel_count;
    uint64_t session;
    bool local, zstd, postcopy, adopted, accepted, ready;
    bool run; /* as the state said */
    /* Made before the state comes. Its thread asks under the lock below, which is never taken with `lock` held. */
    struct absent *absent;
    pthread_mutex_t ask_lock; /* channel 0 is not exchanged while somebody asks */
    pthread_t runner; /* lets the guest run, which may take pages */
    bool runner_started;
};

/* Channel 0. */
static inline struct mig_stream *mig_target_control(struct mig_target *t)
{
    return &t->channels[0].stream;
}

/* target.c */
void mig_target_set_status(struct mig_target *t, enum mig_status status);
/* End the connections; any thread. */
void mig_target_break(struct mig_target *t, const struct mig_error *err);
/* The next connection; -ECANCELED when somebody signalled wake_fd, -ETIMEDOUT (timeout_ms -1: waits for ever). */
int mig_target_accept(struct mig_target *t, int timeout_ms);
/* A connection becomes the channel that it says it is, else it is closed. first: of those of a session; known: of this session. */
bool mig_target_take(struct mig_target *t, int fd, bool first, bool known, struct mig_hello *ret);
/* Wait for all channels but the first, and start their threads. */
int mig_target_accept_channels(struct mig_target *t, struct mig_error *err);
/* END has come on all channels; false when something broke. */
bool mig_target_wait_for_ends(struct mig_target *t);
/* Its answer to a source. */
int mig_target_send_hello(struct mig_target *t, struct mig_error *err);
/* What follows a packed batch. */
int mig_target_receive_packed(struct mig_channel *c, uint32_t packed, const struct iovec *iov, unsigned int n, struct mig_error *err);
/* A batch, or what else may come on any channel. */
int mig_target_data_frame(struct mig_channel *c, const struct mig_frame *f, struct mig_error *err);

/* target-postcopy.c, the first thread: these pages come later. */
int mig_target_on_absent(struct mig_target *t, const struct mig_frame *f, struct mig_error *err);
/* Any channel: the contents of a batch, where some are absent. */
int mig_target_put(struct mig_channel *c, const struct mig_run *runs, uint32_t count, uint32_t packed, struct mig_error *err);
/* Run the guest, until all of its memory is here and the source knows. 0 or -errno, when this side ends before. */
int mig_target_postcopy(struct mig_target *t, struct mig_error *err);

#endif
