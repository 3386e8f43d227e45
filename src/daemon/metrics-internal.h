/* Between metrics.c and the files that write its parts. */
#ifndef UMBRA_DAEMON_METRICS_INTERNAL_H
#define UMBRA_DAEMON_METRICS_INTERNAL_H

#include "daemon/metrics.h"

struct process_files;

/* What the writers work with. */
struct metrics_source {
    const struct qmp_context *context;
    struct process_files *process;
    uint64_t scrapes, scrape_ns; /* pages written so far, and the CPU time that took */
};

/* KVM's statistics: of the VM as they are, of the vCPUs summed up. */
void metrics_write_kvm(struct om_writer *w, const struct metrics_source *s);

/* The bookkeeping of guest page tables. */
void metrics_write_mmu(struct om_writer *w, const struct metrics_source *s);

/* What the kernel says of this process. The files are opened at the start: the sandbox opens none later. */
struct process_files *process_files_open(void);
void process_files_close(struct process_files *p);
void metrics_write_process(struct om_writer *w, const struct metrics_source *s);

#endif
