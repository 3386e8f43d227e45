#include "work.h"

#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Do nothing but enter and leave the kernel: what a shadow MMU adds to that, if anything, is the way in and out. */

static int run(const uint64_t *args, int count)
{
    uint64_t times = work_arg(args, count, 0, 0);
    double start = work_now();

    for (uint64_t i = 0; i < times; i++)
        syscall(SYS_getppid);
    printf("umbra-work: getpid times=%llu seconds=%.6f\n", (unsigned long long)times, work_now() - start);
    return 0;
}

const struct program work_getpid = { "getpid", "TIMES", 1, 1, run };
