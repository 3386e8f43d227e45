#include "work.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Write FILES files of KIB KiB, pack them with tar into a pipe, unpack them from it into a second directory, and compare:
 * page cache, pipes and programs, with contents that would show a page lost. */

static unsigned char content(uint64_t file, uint64_t offset)
{
    uint64_t x = (file << 32 | offset) * UINT64_C(0x9e3779b97f4a7c15);

    return (unsigned char)(x >> 56);
}

static FILE *open_file(const char *dir, uint64_t file, const char *mode)
{
    char path[64];

    snprintf(path, sizeof(path), "%s/%llu", dir, (unsigned long long)file);
    return fopen(path, mode);
}

static void write_files(const char *dir, uint64_t files, uint64_t bytes)
{
    for (uint64_t file = 0; file < files; file++) {
        FILE *out = open_file(dir, file, "w");

        if (!out)
            work_fail("pipetar", "open");
        for (uint64_t offset = 0; offset < bytes; offset++)
            putc_unlocked(content(file, offset), out);
        if (fclose(out) != 0)
            work_fail("pipetar", "write");
    }
}

/* Return how many files are missing, cut short or changed. */
static uint64_t compare_files(const char *dir, uint64_t files, uint64_t bytes)
{
    uint64_t failed = 0;

    for (uint64_t file = 0; file < files; file++) {
        FILE *in = open_file(dir, file, "r");
        uint64_t offset = 0;

        while (in && offset < bytes && getc_unlocked(in) == content(file, offset))
            offset++;
        if (!in || offset < bytes || getc_unlocked(in) != EOF)
            failed++;
        if (in)
            fclose(in);
    }
    return failed;
}

static void start_tar(const char *how, const char *dir, int from, int to, int other)
{
    pid_t pid = fork();

    if (pid < 0)
        work_fail("pipetar", "fork");
    if (pid > 0)
        return;
    dup2(from, to);
    close(from);
    close(other);
    execl("/bin/tar", "tar", how, "-", "-C", dir, ".", (char *)NULL);
    _exit(127);
}

static int run(const uint64_t *args, int count)
{
    char base[] = "/tmp/pipetar.XXXXXX";
    uint64_t files = args[0];
    uint64_t bytes = work_arg(args, count, 1, 64) * 1024;
    uint64_t failed;
    int ends[2];
    double start = work_now();

    if (!mkdtemp(base) || chdir(base) < 0 || mkdir("a", 0700) < 0 || mkdir("b", 0700) < 0 || pipe(ends) < 0)
        work_fail("pipetar", "setup");
    write_files("a", files, bytes);
    start_tar("-cf", "a", ends[1], STDOUT_FILENO, ends[0]);
    start_tar("-xf", "b", ends[0], STDIN_FILENO, ends[1]);
    close(ends[0]);
    close(ends[1]);
    failed = work_reap("pipetar", 2);
    failed += compare_files("b", files, bytes);
    printf("umbra-work: pipetar files=%llu bytes=%llu failed=%llu seconds=%.6f\n", (unsigned long long)files,
           (unsigned long long)(files * bytes), (unsigned long long)failed, work_now() - start);
    if (chdir("/") == 0)
        execl("/bin/rm", "rm", "-rf", base, (char *)NULL);
    return 1;
}

const struct program work_pipetar = { "pipetar", "FILES [KIB-EACH]", 1, 2, run };
