/*
 * What query-stats and query-stats-schemas say, as rows: one for each statistic, with a value for the VM or for each
 * vCPU. Names, units and types are the daemon's, none is known here.
 */
#ifndef UMBRA_CTL_STATS_H
#define UMBRA_CTL_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"

#define STATS_MAX_VCPUS 256

struct stats_row {
    char *name, *provider;
    const char *unit; /* "ns", "bytes", ...; "" when it is a plain number */
    bool of_vm;       /* one value, in total */
    bool cumulative;  /* only grows: a rate makes sense */
    bool histogram;   /* `total` counts the samples, `buckets` holds them */
    bool linear;
    uint64_t bucket_size;
    uint64_t total;
    uint64_t *per_vcpu; /* stats_set.vcpus of them, NULL with of_vm */
    uint64_t *buckets;  /* summed over vCPUs */
    size_t bucket_count;
};

struct stats_set {
    struct stats_row *rows;
    size_t count;
    unsigned int vcpus;
};

/*
 * Make rows of the answers to query-stats for the targets vm and vcpu and of query-stats-schemas; any of them may be NULL
 * or of an unexpected shape, which leaves out what does not make sense. -ENOMEM.
 */
int stats_read(struct stats_set *ret, const json_t *vm, const json_t *vcpus, const json_t *schemas);
void stats_clear(struct stats_set *s);
#define _cleanup_stats_ __attribute__((cleanup(stats_clear)))

/* The row of that name, provider and target, or NULL. */
const struct stats_row *stats_find(const struct stats_set *s, bool of_vm, const char *provider, const char *name);

/* True when the name matches one of the patterns (as file names in a shell) or there are none. */
bool stats_wanted(const char *name, char *const *patterns, int count);

/* Drop from an answer to query-stats what no pattern matches. */
void stats_filter(json_t *answer, char *const *patterns, int count);

/* The sum of one provider-"kvm" statistic over all vCPUs; -ENOENT. */
int stats_sum(const json_t *vcpus, const char *name, uint64_t *ret);

#endif
