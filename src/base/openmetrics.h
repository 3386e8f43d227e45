/*
 * Writing a page of metrics: OpenMetrics 1.0, or Prometheus' older text format 0.0.4 for those who do not ask for the new
 * one. Both come from the same calls. Not thread safe.
 *
 * A family is begun, then its samples follow; no family is begun twice. Names, units and label names are the caller's and
 * must be valid; label values may hold any UTF-8 text.
 */
#ifndef UMBRA_BASE_OPENMETRICS_H
#define UMBRA_BASE_OPENMETRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

#define OM_NAME_MAX 128
#define OM_CONTENT_TYPE "application/openmetrics-text; version=1.0.0; charset=utf-8"
#define OM_CONTENT_TYPE_PLAIN "text/plain; version=0.0.4; charset=utf-8"

enum om_type {
    OM_COUNTER,
    OM_GAUGE,
    OM_HISTOGRAM,
    OM_INFO,
};

struct om_family {
    const char *name; /* without _total, _info and the like; ends in _UNIT where there is a unit */
    enum om_type type;
    const char *unit; /* "seconds", "bytes", or NULL */
    const char *help;
};

struct om_label {
    const char *name, *value;
};

struct om_writer {
    struct byte_writer out; /* the page; the owner clears it */
    bool plain;             /* format 0.0.4 */
    struct om_family family; /* of the samples being written */
};

/* Empty for a page of that format. */
void om_start(struct om_writer *w, bool plain);

void om_begin(struct om_writer *w, const struct om_family *family);

/* A sample of a counter, gauge or info (whose value is 1) with `count` labels. */
void om_u64(struct om_writer *w, const struct om_label *labels, size_t count, uint64_t value);
void om_double(struct om_writer *w, const struct om_label *labels, size_t count, double value);
/* The value is ns / 10^9, all digits of it. */
void om_ns(struct om_writer *w, const struct om_label *labels, size_t count, uint64_t ns);

/* A sample whose suffix ("_total", "_bucket", ...) and value are given as text. */
void om_text(struct om_writer *w, const char *suffix, const struct om_label *labels, size_t count, const char *value);

/* A family with one sample and no labels. */
void om_single_u64(struct om_writer *w, const struct om_family *family, uint64_t value);
void om_single_ns(struct om_writer *w, const struct om_family *family, uint64_t ns);

/*
 * The histogram's one point. buckets[i] counts what is above bound i - 1 and not above bound i, the last one what is above
 * all bounds: `count` buckets, count - 1 bounds. `sum` may be NULL where nobody knows it.
 */
void om_histogram(struct om_writer *w, const double *bounds, const uint64_t *buckets, size_t count, const double *sum);

/* End the page. False when memory ran out on the way. */
bool om_finish(struct om_writer *w);

#endif
