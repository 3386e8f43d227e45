/* The dirty-log commands of the control socket, with their answers read and checked. */
#ifndef UMBRA_CTL_DIRTY_CLIENT_H
#define UMBRA_CTL_DIRTY_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "ctl/ctl.h"

struct dirty_snapshot {
    uint64_t epoch, pages, harvest_us;
    bool lost;
};

/* The arguments {name: consumer}; the caller's. */
json_t *dirty_arguments(const char *consumer);

/*
 * dirty-log-start; *ret_pages (may be NULL) is how many pages guest RAM has. CTL_DONE, or the exit status with the
 * message printed, as for all below. *ret_answer (may be NULL) is the caller's.
 */
int dirty_start(const struct ctl *ctl, struct client *c, const char *consumer, bool all, uint64_t *ret_pages,
                json_t **ret_answer);

enum dirty_flags {
    DIRTY_PEEK = 1 << 0,
    DIRTY_ATTRIBUTE = 1 << 1,
};

/* dirty-log-snapshot; *ret_fd (may be NULL) is the bitmap's descriptor, the caller's, or -1. */
int dirty_snapshot(const struct ctl *ctl, struct client *c, const char *consumer, const char *format, unsigned int flags,
                   struct dirty_snapshot *ret, json_t **ret_answer, int *ret_fd);

int dirty_ack(const struct ctl *ctl, struct client *c, const char *consumer, uint64_t epoch, json_t **ret_answer);

/* Read the first `words` words of a bitmap; the descriptor stays open. */
int dirty_read_bitmap(const struct ctl *ctl, int fd, uint64_t *bitmap, size_t words);

#endif
