#include "work.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

static const struct program *const programs[] = {
    &work_clockwatch, &work_dirty,     &work_diskload, &work_execloop, &work_forkstorm, &work_getpid,
    &work_mapstorm,   &work_netstream, &work_pingpong, &work_pipetar,  &work_procs,     &work_streamcheck,
};

enum { PROGRAM_COUNT = sizeof(programs) / sizeof(programs[0]), MAX_ARGS = 8 };

double work_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

void work_fail(const char *name, const char *what)
{
    printf("umbra-work: %s error=%s: %s\n", name, what, strerror(errno));
    exit(1);
}

uint64_t work_arg(const uint64_t *args, int count, int index, uint64_t fallback)
{
    return index < count ? args[index] : fallback;
}

unsigned char *work_map(const char *name, size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        work_fail(name, "mmap");
    /* What is counted are 4K pages. */
    madvise(memory, bytes, MADV_NOHUGEPAGE);
    return memory;
}

uint64_t work_reap(const char *name, uint64_t count)
{
    uint64_t failed = 0;
    int status;

    while (count-- > 0) {
        if (wait(&status) < 0)
            work_fail(name, "wait");
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            failed++;
    }
    return failed;
}

static const struct program *find_program(const char *name)
{
    for (int i = 0; i < PROGRAM_COUNT; i++) {
        if (strcmp(programs[i]->name, name) == 0)
            return programs[i];
    }
    return NULL;
}

static int usage(void)
{
    for (int i = 0; i < PROGRAM_COUNT; i++)
        fprintf(stderr, "usage: %s %s\n", programs[i]->name, programs[i]->args);
    return 2;
}

/* Take a number of up to a million million: no product of two sizes made of it leaves 64 bits unnoticed below. */
static int parse_number(const char *text, uint64_t *ret_value)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || *text == '-' || value > UINT64_C(1000000000000))
        return -EINVAL;
    *ret_value = value;
    return 0;
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    const struct program *program = find_program(slash ? slash + 1 : argv[0]);
    uint64_t args[MAX_ARGS];
    int count;

    /* `work NAME ARGS` does the same as the link NAME. */
    if (!program && argc > 1) {
        program = find_program(argv[1]);
        argc--;
        argv++;
    }
    if (!program)
        return usage();

    count = argc - 1;
    if (count < program->min_args || count > program->max_args)
        return usage();
    for (int i = 0; i < count; i++) {
        if (parse_number(argv[i + 1], &args[i]) < 0) {
            fprintf(stderr, "%s: %s is no number\n", program->name, argv[i + 1]);
            return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    return program->run(args, count);
}
