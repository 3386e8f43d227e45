/* What the coordinator (source.c, switchover.c) and the senders (sender.c) share. */
#ifndef UMBRA_MIGRATE_SOURCE_INTERNAL_H
#define UMBRA_MIGRATE_SOURCE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "migrate/compress.h"
#include "migrate/source.h"
#include "migrate/stream.h"

/* A channel sends the pages of every n-th piece of this many, so two versions of a page never overtake each other. */
#define MIG_PIECE_PAGES UINT64_C(1024)

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
    uint64_t generation;  /* of the work */
    int64_t wanted_left;  /* the coordinator waits for `left` to come down to this */
    bool finishing;       /* what is there now is all: send END */
    bool unlimited;       /* the switchover: bandwidth is no matter */
    bool broken;          /* cancelled or failed; streams are shut down */
    bool cancelled;
    bool committed; /* too late to cancel */
    bool go_on;     /* pre-switchover is over */
    bool over;
    uint64_t pace_ns; /* when the next bytes may go */
    struct mig_parameters parameters;
    struct mig_report report;
    struct mig_error error; /* the first */
    uint64_t started_ns;

    struct mig_sender senders[MIG_MAX_CHANNELS];
    unsigned int channels;

    /* The coordinator's. */
    struct page_set fresh;   /* of the newest harvest */
    struct page_set held;    /* pages held back */
    struct page_set before;  /* the harvest before the newest */
    struct page_set to_send; /* of the newest, what is not held back */
    struct page_set tables;  /* of the newest, page tables */
    uint64_t who_ns;         /* when it was asked last who writes */
    bool logging;
    uint64_t round_ns, round_sent, round_pages; /* when and with what it began */
    unsigned int round_channels, throttled;
    uint64_t rtt_ns;
};

/* sender.c */
int mig_senders_start(struct mig_source *s);
/* Let them finish and join them; they end at once when the source is broken. */
void mig_senders_join(struct mig_source *s);
/* Add pages to the work. Coordinator. */
void mig_work_add(struct mig_source *s, const uint64_t *bits);
/* Wait until at most `pages` are left; false when the migration is broken. */
bool mig_work_wait(struct mig_source *s, int64_t pages);
/* All pages out on all channels, END after them; false as above. */
bool mig_senders_finish(struct mig_source *s);

/* Note an error (the first counts) and wake everybody; any thread. */
void mig_break(struct mig_source *s, const struct mig_error *err);
uint64_t mig_bytes_sent(const struct mig_source *s);
/* What they would have been, had nothing been packed. */
uint64_t mig_bytes_moved(struct mig_source *s);

/* switchover.c: stop, send the rest, commit. 0 when the target runs the guest. Coordinator. */
int mig_switchover(struct mig_source *s, struct mig_error *err);
/* source.c */
void mig_set_status(struct mig_source *s, enum mig_status status);
int mig_expect(struct mig_source *s, unsigned int channel, enum mig_type type, struct mig_frame *ret, struct mig_error *err);
/* Move what was written since the last time into s->fresh, which was emptied. */
int mig_harvest(struct mig_source *s, struct mig_error *err);

#endif
