#include "work.h"

#include <stdio.h>
#include <unistd.h>

/* Start a program over and over, as a shell does: fork, a new address space, and its end. */
static int run(const uint64_t *args, int count)
{
    uint64_t times = args[0];
    uint64_t failed = 0;
    double start = work_now();

    (void)count;
    for (uint64_t i = 0; i < times; i++) {
        pid_t pid = fork();

        if (pid < 0)
            work_fail("execloop", "fork");
        if (pid == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(127);
        }
        failed += work_reap("execloop", 1);
    }
    printf("umbra-work: execloop times=%llu failed=%llu seconds=%.6f\n", (unsigned long long)times,
           (unsigned long long)failed, work_now() - start);
    return failed != 0;
}

const struct program work_execloop = { "execloop", "TIMES", 1, 1, run };
