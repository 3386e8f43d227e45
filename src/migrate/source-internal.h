/* What the coordinator (source.c, source-rounds.c, switchover.c, source-postcopy.c) and the senders (sender.c, source-postcopy.c) share. */
#ifndef UMBRA_MIGRATE_SOURCE_INTERNAL_H
#define UMBRA_MIGRATE_SOURCE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "migrate/compress.h"
#include "migrate/source.h"
#include "migrate/stream.h"

/* A channel sends the pages of every n-th piece of this many, so two versions of a page never overtake each other. */
#define MIG_PIECE_PAGES UINT64_C(1024)

/* Pages that the target waits for; more than that come in their turn. */
#define MIG_REQUESTS 1024u

struct mig_batch {
    struct mig_run runs[MIG_BATCH_RUNS];
    unsigned int run_count;
    uint32_t data_pages;
};

struct mig_sender {
    struct mig_source *source;
    unsigned int index;
    struct mig_stream stream;
    bool connected, started;
    pthread_t thread;
    struct mig_packer *packer; /* NULL: nothing is packed */
    uint64_t sent_pages; /* told at the end of the channel */
    bool ended;          /* under source->lock: all sent, END too */
};

/* How long one side waits to tell, or to hear, why there is an end. */
#define MIG_REASON_TIMEOUT_MS 1000

struct mig_source {
    struct mig_source_config config;
    char *uri, *tls_host;
    pthread_t thread;
    bool started; /* the coordinator's thread is to be joined */

    /*
     * Pages to send. Bits are set by the coordinator and taken by the senders, each in its own pieces; `left` follows.
     * `present`: pages of which the target has contents, that is all but those never sent, which are zeros there. Each word
     * of it is its sender's.
     */
    uint64_t *work; /* atomic words */
    size_t words;
    atomic_int_fast64_t left;
    uint64_t *present;
    atomic_uint_fast64_t normal, zero;
    /* Packed pages, and by how many bytes they got smaller: one counter, so that what was moved never seems to shrink. */
    atomic_uint_fast64_t packed_pages, saved;

    pthread_mutex_t lock; /* protects what follows, up to the senders */
    pthread_cond_t wake;  /* senders wait: work, parameters or end */
    pthread_cond_t done;  /* the coordinator waits: work has become little, or something failed */
    int wake_fd;          /* can be read when broken: who connects waits for it */
    unsigned int idle;    /* senders that wait for work */
    uint64_t generation;  /* of the work */
    int64_t wanted_left;  /* the coordinator waits for `left` to come down to this */
    bool finishing;       /* what is there now is all: send END */
    bool unlimited;       /* the switchover: bandwidth is no matter */
    bool broken;          /* cancelled or failed; streams are shut down */
    bool cancelled;
    bool committed; /* too late to cancel */
    bool runs_there; /* the target was heard to run the guest */
    bool go_on;     /* pre-switchover is over */
    bool postcopy_now; /* somebody wants post-copy */
    bool closing;   /* it is being freed */
    bool served;    /* post-copy: there is nothing more to send */
    char *recover_uri, *recover_host; /* where to connect again; taken by the coordinator */
    pfn_t requests[MIG_REQUESTS]; /* a ring, from request_head on */
    unsigned int request_head, request_count;
    bool over;
    uint64_t pace_ns; /* when the next bytes may go */
    struct mig_parameters parameters;
    struct mig_report report;
    struct mig_error error; /* the first */
    uint64_t started_ns;

    struct mig_sender senders[MIG_MAX_CHANNELS];
    unsigned int channels;
    /* Set while no sender's thread is there: how many of them share the work, and whether it is that of post-copy. */
    unsigned int sharing;
    bool postcopy;
    uint64_t sent_before; /* bytes, over connections that were lost; atomic */

    /* The coordinator's. */
    struct page_set fresh;   /* of the newest harvest */
    struct page_set held;    /* pages held back */
    struct page_set before;  /* the harvest before the newest */
    struct page_set to_send; /* of the newest, what is not held back */
    struct page_set tables;  /* of the newest, page tables */
    uint64_t who_ns;         /* when it was asked last who writes */
    bool logging;
    uint64_t round_ns, round_sent, round_pages; /* when and with what it began */
    uint64_t idle_ns;        /* of it, in which nothing was to be sent */
    unsigned int round_channels, throttled;
    uint64_t rtt_ns;
    uint64_t session;
    bool put_off;            /* the rest is left for post-copy */
    bool whole;              /* the target has all */
    uint64_t postcopy_start_ns, postcopy_start_bytes;
    struct page_set absent;  /* what the target is told to be absent, not yet told */
};

/* sender.c */
int mig_senders_start(struct mig_source *s);
/* Take up pages of one word, which were taken from the work, and send full batches. */
int mig_batch_add_word(struct mig_sender *c, size_t word, uint64_t bits, struct mig_batch *b, struct mig_error *err);
int mig_batch_send(struct mig_sender *c, struct mig_batch *b, struct mig_error *err);
/* Once over the channel's share. *ret_taken: pages that were taken. */
int mig_sweep(struct mig_sender *c, uint64_t *ret_taken, struct mig_error *err);
/* So many pages of the work were sent. */
void mig_work_done(struct mig_source *s, int64_t pages);
/* The target's word for its end, where there is one, becomes the error. */
void mig_hear_reason(struct mig_sender *c, struct mig_error *err);
/* Let them finish and join them; they end at once when the source is broken. */
void mig_senders_join(struct mig_source *s);
/* Add pages to the work. Coordinator. */
void mig_work_add(struct mig_source *s, const uint64_t *bits);
/* Wait until at most `pages` are left; false when the migration is broken. */
bool mig_work_wait(struct mig_source *s, int64_t pages);
/*
 * Wait until all of it was sent and no sender uses its channel, as they do not until there is more; false as above. Also until
 * somebody wants post-copy, and then neither is sure.
 */
bool mig_work_sent(struct mig_source *s);
/* All pages out on all channels, END after them; false as above. */
bool mig_senders_finish(struct mig_source *s);

/* Note an error (the first counts) and wake everybody; any thread. */
void mig_break(struct mig_source *s, const struct mig_error *err);
/* Wait until then (clock_ns); false at once when the migration is broken. Coordinator. */
bool mig_rest(struct mig_source *s, uint64_t until_ns);
uint64_t mig_bytes_sent(const struct mig_source *s);
/* What they would have been, had nothing been packed. */
uint64_t mig_bytes_moved(struct mig_source *s);

/*
 * source-postcopy.c, coordinator: put what is not sent yet off, the guest still running, and once more when it has run on for a
 * while; tell what the last harvest found; answer requests until a frame of that type comes; and, once the target has the guest,
 * until it has all of it. `r`, *err: how the switchover went. The last gives 0, or -errno when this side ends before.
 */
int mig_postcopy_begin(struct mig_source *s, struct mig_error *err);
int mig_postcopy_catch_up(struct mig_source *s, struct mig_error *err);
int mig_postcopy_last_pages(struct mig_source *s, struct mig_error *err);
int mig_postcopy_expect(struct mig_source *s, enum mig_type type, struct mig_frame *ret, struct mig_error *err);
int mig_postcopy_run(struct mig_source *s, int r, struct mig_error *err);

/* switchover.c: stop, send the rest, commit. 0 when the target runs the guest. Coordinator. */
int mig_switchover(struct mig_source *s, struct mig_error *err);
/* source.c */
void mig_set_status(struct mig_source *s, enum mig_status status);
int mig_connect_channel(struct mig_source *s, unsigned int index, struct mig_error *err);
/* The target's hello. */
int mig_expect_hello(struct mig_source *s, struct mig_error *err);
/* A refusal or failure of the target becomes the error, any other frame but the wanted one too. */
int mig_unexpected(struct mig_source *s, const struct mig_frame *f, enum mig_type wanted, struct mig_error *err);
/* Wait until the target has taken all that was sent on a channel on which nobody sends or receives now. */
int mig_flush_channel(struct mig_source *s, unsigned int channel, struct mig_error *err);
int mig_expect(struct mig_source *s, unsigned int channel, enum mig_type type, struct mig_frame *ret, struct mig_error *err);

/* source-rounds.c, coordinator: log what is written, all pages but those that were never touched are work. */
int mig_rounds_begin(struct mig_source *s, struct mig_error *err);
/*
 * Pre-copy until the rest fits into the downtime limit, or is left for post-copy; once more when it was not used then.
 */
int mig_rounds(struct mig_source *s, struct mig_error *err);
/* Move what was written since the last time into s->fresh, which was emptied. */
int mig_harvest(struct mig_source *s, struct mig_error *err);
void mig_set_throttle(struct mig_source *s, unsigned int percent);

#endif
