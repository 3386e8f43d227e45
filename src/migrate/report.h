/* What a migration has to tell, while it runs and after its end, whatever the end was. */
#ifndef UMBRA_MIGRATE_REPORT_H
#define UMBRA_MIGRATE_REPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "migrate/forecast.h"

#define MIG_WHY_MAX 4096
#define MIG_WHO_MAX 512
/* Rounds that are kept: the newest. */
#define MIG_KEEP_ROUNDS 64

/* Names as QEMU's MigrationStatus has them. */
enum mig_status {
    MIG_STATUS_NONE,
    MIG_STATUS_SETUP,
    MIG_STATUS_CANCELLING,
    MIG_STATUS_CANCELLED,
    MIG_STATUS_ACTIVE,
    MIG_STATUS_PRE_SWITCHOVER,
    MIG_STATUS_DEVICE,
    MIG_STATUS_POSTCOPY_ACTIVE,  /* the guest runs at the target, pages are still to come */
    MIG_STATUS_POSTCOPY_PAUSED,  /* the same, and the connection is lost */
    MIG_STATUS_POSTCOPY_RECOVER, /* the two are just finding each other again */
    MIG_STATUS_COMPLETED,
    MIG_STATUS_FAILED,
};

/* In post-copy, whatever became of the connection. */
static inline bool mig_status_is_postcopy(enum mig_status status)
{
    return status >= MIG_STATUS_POSTCOPY_ACTIVE && status <= MIG_STATUS_POSTCOPY_RECOVER;
}

const char *mig_status_name(enum mig_status status);

/* Where the time went in which no side ran the guest; nanoseconds. */
struct mig_downtime {
    uint64_t pause, drain, final_harvest, final_pages, device_state, load, resume;
    uint64_t total;
};

struct mig_round {
    uint64_t pages;   /* to send when it began */
    uint64_t dirtied; /* while it ran */
    uint64_t held;    /* of all pages, those held back when it ended */
    uint64_t ns;
    uint64_t dirty_rate; /* pages a second */
    uint64_t throughput; /* bytes of memory a second, before they are packed */
};

/* What was foreseen when the first round had been measured, to be held against what came. */
struct mig_plan {
    bool valid;
    bool converges;
    uint64_t total_ns;    /* of all, from the start; when it converges */
    uint64_t downtime_ns; /* of it; or if it were switched over at that moment */
};

struct mig_report {
    enum mig_status status;
    char why[MIG_WHY_MAX]; /* the reason of an end that was no success; lines */
    bool local;
    unsigned int channels;
    uint64_t total_ns, setup_ns;
    uint64_t memory;           /* bytes of guest memory */
    uint64_t remaining;        /* bytes still to send, those held back among them */
    uint64_t transferred;      /* bytes on the wire */
    uint64_t normal, zero;     /* pages sent as data, and found zero */
    uint64_t requests;         /* pages that somebody waited for in post-copy */
    uint64_t postcopy_ns;      /* from the guest's going on to its last page */
    uint64_t postcopy_bytes;   /* of transferred */
    uint64_t recoveries;       /* of a connection lost in post-copy */
    uint64_t untouched;        /* pages that were never written and not even looked at */
    uint64_t held;             /* pages */
    uint64_t held_tables;      /* of the newest harvest, page tables among them */
    unsigned int throttle;     /* percent of the guest's time that is taken */
    uint64_t passes;           /* rounds, the one that runs among them */
    uint64_t dirty_rate;       /* pages a second, of the newest round */
    uint64_t throughput;       /* bytes a second */
    uint64_t packed_pages;     /* of normal, those that went out packed */
    uint64_t packed_bytes;     /* what they took */
    uint64_t harvest_ns;       /* spent on the dirty log, all rounds */
    uint64_t expected_downtime_ns;
    struct mig_forecast forecast;
    char who[MIG_WHO_MAX];     /* who writes the most, when it does not converge and that is known */
    struct mig_plan plan;
    struct mig_downtime downtime;
    struct mig_round rounds[MIG_KEEP_ROUNDS]; /* round i (from 0) at i % MIG_KEEP_ROUNDS */
};

#endif
