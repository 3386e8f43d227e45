/* What this host lets a process have, for --check-host: huge pages, and the limits of its control group and of its user. */
#ifndef UMBRA_DAEMON_HOST_LIMITS_H
#define UMBRA_DAEMON_HOST_LIMITS_H

#include <stdint.h>
#include <stdio.h>

#define HOST_NO_LIMIT UINT64_MAX

struct host_limits {
    uint64_t huge_total, huge_free; /* pages of 2 MiB */
    uint64_t memory;                /* bytes that the control group may use: the least of its own limit and those above it */
    uint64_t tasks;                 /* the same of threads */
    uint64_t files, threads, locked; /* of the process and its user: descriptors, threads, bytes */
};

/*
 * Read them for the calling process; what cannot be read is taken for no limit, or no pages. Control groups of version 2 only.
 * `root` stands before every path: "" but for tests. Any thread.
 */
void host_limits_read(const char *root, struct host_limits *ret);

/* A line for each. */
void host_limits_print(const struct host_limits *limits, FILE *f);

#endif
