#include "work.h"

#include <stdio.h>
#include <unistd.h>

/* Send a byte to another process and wait for it to come back: on one CPU two switches of the address space each time. */

static int run(const uint64_t *args, int count)
{
    uint64_t times = work_arg(args, count, 0, 0), failed = 0;
    int there[2], back[2];
    char byte = 0;
    double start;
    pid_t pid;

    if (pipe(there) < 0 || pipe(back) < 0)
        work_fail("pingpong", "pipe");
    pid = fork();
    if (pid < 0)
        work_fail("pingpong", "fork");
    if (pid == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1)
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    close(there[0]);
    start = work_now();
    for (uint64_t i = 0; i < times; i++)
        failed += write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1;
    printf("umbra-work: pingpong times=%llu seconds=%.6f", (unsigned long long)times, work_now() - start);
    close(there[1]);
    failed += work_reap("pingpong", 1);
    printf(" failed=%llu\n", (unsigned long long)failed);
    return failed != 0;
}

const struct program work_pingpong = { "pingpong", "TIMES", 1, 1, run };
