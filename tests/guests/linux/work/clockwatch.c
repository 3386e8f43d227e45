/*
 * clockwatch LIMIT-MS: read the monotonic and the real time clock, on one CPU after the other, until SIGTERM. A clock that goes
 * back, or on by more than LIMIT-MS from one look to the next, is told at once and counted.
 */
#define _GNU_SOURCE
#include "work.h"

#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static const char name[] = "clockwatch";

enum { READS = 20, PAUSE_US = 20000 };

static volatile sig_atomic_t asked_to_end;

struct clock {
    const char *name;
    clockid_t id;
    int64_t last, largest; /* nanoseconds */
    uint64_t back, jumps;
};

static void on_term(int signal)
{
    (void)signal;
    asked_to_end = 1;
}

static int64_t read_clock(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void look(struct clock *c, int64_t limit)
{
    int64_t now = read_clock(c->id), step = now - c->last;

    if (step < 0 || step > limit)
        printf("umbra-clock: %s from %" PRId64 " by %" PRId64 "\n", c->name, c->last, step);
    c->back += step < 0;
    c->jumps += step > limit;
    if (step > c->largest)
        c->largest = step;
    c->last = now;
}

static int run(const uint64_t *args, int count)
{
    struct clock clocks[] = {{.name = "monotonic", .id = CLOCK_MONOTONIC}, {.name = "realtime", .id = CLOCK_REALTIME}};
    struct sigaction action = {.sa_handler = on_term};
    int64_t limit = (int64_t)args[0] * 1000000;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t looks = 0;

    (void)count;
    sigaction(SIGTERM, &action, NULL);
    for (int k = 0; k < 2; k++)
        clocks[k].last = read_clock(clocks[k].id);
    printf("umbra-ready: %s\n", name);
    for (; !asked_to_end; usleep(PAUSE_US)) {
        cpu_set_t one;

        CPU_ZERO(&one);
        CPU_SET(looks / READS % (uint64_t)cpus, &one);
        sched_setaffinity(0, sizeof(one), &one);
        for (int i = 0; i < READS; i++, looks++)
            for (int k = 0; k < 2; k++)
                look(&clocks[k], limit);
    }
    printf("umbra-work: %s looks=%" PRIu64 " back=%" PRIu64 " jumps=%" PRIu64 " largest-ms=%" PRId64 "\n", name, looks,
           clocks[0].back + clocks[1].back, clocks[0].jumps + clocks[1].jumps,
           (clocks[0].largest > clocks[1].largest ? clocks[0].largest : clocks[1].largest) / 1000000);
    return clocks[0].back + clocks[1].back + clocks[0].jumps + clocks[1].jumps > 0;
}

const struct program work_clockwatch = {name, "LIMIT-MS", 1, 1, run};
