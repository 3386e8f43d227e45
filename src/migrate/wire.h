/*
 * The migration stream, version 1, byte by byte in man/umbra-migration.7. This file only encodes and decodes: whatever it
 * is given may come from a peer that lies, and nothing is used before it was checked.
 */
#ifndef UMBRA_MIGRATE_WIRE_H
#define UMBRA_MIGRATE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"
#include "mmu/types.h"

#define MIG_MAGIC "UMBRAMIG"
/* What is written, and the oldest that is read. */
#define MIG_VERSION 1u
#define MIG_VERSION_OLDEST 1u
#define MIG_MAX_CHANNELS 16u
#define MIG_HELLO_SIZE 28u
#define MIG_HEADER_SIZE 20u
#define MIG_SETUP_FIXED 24u
#define MIG_STATE_FIXED 12u
#define MIG_STATE_MAX (64u << 20)
#define MIG_TEXT_MAX (64u << 10)
#define MIG_RUN_SIZE 16u
#define MIG_BATCH_RUNS 256u
#define MIG_BATCH_PAGES 256u
#define MIG_PACKED_FIXED 8u
#define MIG_PACKED_MAX ((1u << 20) + (8u << 10)) /* what zstd makes of a batch at worst */
#define MIG_MAP_FIXED 8u
#define MIG_MAP_WORDS 8192u
#define MIG_ERROR_MAX 256

/* First on each connection, from the source; the target answers with its own on channel 0. */
struct mig_hello {
    uint32_t version;
    uint16_t channel;  /* 0: control, and pages too */
    uint16_t channels; /* of the session */
    uint64_t session;  /* drawn at random by the source */
};

enum mig_type {
    /* source to target */
    MIG_SETUP = 1, /* what is to come: struct mig_setup and a state to compare with */
    MIG_BATCH,     /* runs of pages, whose contents follow the frame */
    MIG_END,       /* of the pages of this channel: how many were sent */
    MIG_STATE,     /* struct mig_state */
    MIG_COMMIT,    /* the guest is the target's */
    MIG_CANCEL,    /* text: why */
    MIG_MEMORY,    /* the RAM file goes with it (SCM_RIGHTS): its size */
    MIG_PING,      /* u64 */
    MIG_PACKED,    /* a batch whose contents follow as one zstd frame */
    MIG_ABSENT,    /* a map: these pages come after the guest */
    MIG_RESUME,    /* of a session that was cut in post-copy: what is missing? */
    MIG_DONE,      /* WHOLE was heard */
    /* target to source */
    MIG_ACCEPT = 16, /* go on */
    MIG_REFUSE,      /* text: why not, a line for each difference */
    MIG_READY,       /* all is here and loaded: nanoseconds it took */
    MIG_RUNNING,     /* the guest runs: nanoseconds it took */
    MIG_FAILED,      /* text: why */
    MIG_PONG,        /* u64 of the ping */
    MIG_REQUEST,     /* u64: a page that somebody waits for */
    MIG_MISSING,     /* a map: of these pages there is nothing yet */
    MIG_WHOLE,       /* no page is missing any more */
    MIG_TYPE_END,
};

struct mig_header {
    enum mig_type type;
    uint32_t length; /* of the payload */
    uint32_t sequence; /* of the frame on this connection and in this direction, from 0 */
    uint32_t payload_crc;
};

#define MIG_SETUP_LOCAL (1u << 0) /* the RAM file is passed instead of its contents */
#define MIG_SETUP_ZSTD (1u << 1)  /* batches may be packed */
#define MIG_SETUP_POSTCOPY (1u << 2) /* the guest may come before its last pages; at least two channels */

struct mig_setup {
    uint64_t memory; /* bytes */
    uint32_t page_size;
    uint32_t flags;
    uint64_t reserved;
    const uint8_t *state; /* a complete machine state, borrowed */
    size_t state_len;
};

struct mig_state {
    uint64_t age_ns; /* since it was captured, the way here among it */
    uint32_t run;    /* 1: the guest was running, 0: it stays paused */
    const uint8_t *state;
    size_t state_len;
};

enum mig_run_kind {
    MIG_RUN_DATA,
    MIG_RUN_ZERO,
};

struct mig_run {
    pfn_t pfn;
    uint32_t pages;
    uint32_t kind;
};

/* Why something was refused: one line that names the field. */
struct mig_error {
    char text[MIG_ERROR_MAX];
};

/* Write it into err (unless that has one already) and return r. */
int mig_error(struct mig_error *err, int r, const char *fmt, ...) PRINTF_LIKE(3, 4);

void mig_hello_put(const struct mig_hello *h, uint8_t buf[MIG_HELLO_SIZE]);
/* -EBADMSG with *err. */
int mig_hello_get(const uint8_t buf[MIG_HELLO_SIZE], struct mig_hello *ret, struct mig_error *err);

const char *mig_type_name(enum mig_type type);
void mig_header_put(const struct mig_header *h, uint8_t buf[MIG_HEADER_SIZE]);
/* Also checks the length against what the type may have, and that the type is of the right side. -EBADMSG with *err. */
int mig_header_get(const uint8_t buf[MIG_HEADER_SIZE], bool from_source, uint32_t sequence, struct mig_header *ret,
                   struct mig_error *err);

void mig_setup_put(const struct mig_setup *s, uint8_t buf[MIG_SETUP_FIXED]);
int mig_setup_get(const uint8_t *payload, size_t len, struct mig_setup *ret, struct mig_error *err);
void mig_state_put(const struct mig_state *s, uint8_t buf[MIG_STATE_FIXED]);
int mig_state_get(const uint8_t *payload, size_t len, struct mig_state *ret, struct mig_error *err);

void mig_run_put(const struct mig_run *run, uint8_t buf[MIG_RUN_SIZE]);
/*
 * The runs of a batch for a guest of `limit` pages; at most MIG_BATCH_RUNS. *ret_data is the number of pages whose contents
 * follow, at most MIG_BATCH_PAGES. -EBADMSG with *err.
 */
int mig_runs_get(const uint8_t *payload, size_t len, uint64_t limit, struct mig_run runs[MIG_BATCH_RUNS],
                 uint32_t *ret_count, uint32_t *ret_data, struct mig_error *err);

/* A map's payload: the page of the first bit, a multiple of 64, and words of bits, at most MIG_MAP_WORDS. The length. */
size_t mig_map_put(pfn_t first, const uint64_t *bits, size_t words, uint8_t *buf);
/* For a guest of `limit` pages. -EBADMSG with *err. */
int mig_map_get(const uint8_t *payload, size_t len, uint64_t limit, pfn_t *ret_first, uint64_t bits[MIG_MAP_WORDS],
                size_t *ret_words, struct mig_error *err);

/* What is before the runs of a packed batch; *ret_packed is the length of what follows, 1 to MIG_PACKED_MAX. */
void mig_packed_put(uint32_t packed, uint8_t buf[MIG_PACKED_FIXED]);
int mig_packed_get(const uint8_t *payload, size_t len, uint32_t *ret_packed, struct mig_error *err);

#endif
