/* Work for the Linux guest that the tests boot: each program does one kind of work that a shadow MMU feels and reports it
 * in one line, `umbra-work: NAME key=value...`. All of them are one static binary, called by name. */
#ifndef UMBRA_TESTS_GUESTS_LINUX_WORK_H
#define UMBRA_TESTS_GUESTS_LINUX_WORK_H

#include <stddef.h>
#include <stdint.h>

enum { PAGE_BYTES = 4096 };

struct program {
    const char *name;
    const char *args; /* as the usage line prints them; optional ones stand in brackets */
    int min_args, max_args;
    /* Do the work and print the report. ARGS holds the defaults' overrides, all checked to be numbers, COUNT of them.
     * Returns the process's exit status. */
    int (*run)(const uint64_t *args, int count);
};

extern const struct program work_clockwatch, work_dirty, work_diskload, work_execloop, work_forkstorm, work_getpid, work_mapstorm,
    work_netstream, work_pingpong, work_pipetar, work_procs, work_streamcheck;

/* Seconds since some fixed point, for differences. */
double work_now(void);

/* Print `umbra-work: NAME error=WHAT: REASON` with the reason taken from errno, and end the process with status 1. */
void work_fail(const char *name, const char *what) __attribute__((noreturn));

/* Return the argument at INDEX, or FALLBACK where it was not given. */
uint64_t work_arg(const uint64_t *args, int count, int index, uint64_t fallback);

/* Map BYTES of zeroed private memory; ends the process where there is not that much. */
unsigned char *work_map(const char *name, size_t bytes);

/* Wait for COUNT children. Returns how many of them did not end with status 0. */
uint64_t work_reap(const char *name, uint64_t count);

#endif
