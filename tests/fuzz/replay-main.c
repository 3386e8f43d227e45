/*
 * Runs a fuzz target over its corpus, as an ordinary test: tests/fuzz/replay-NAME reads every file of
 * $UMBRA_SRCDIR/tests/fuzz/corpus/NAME (or the files given as arguments). A crash or a sanitizer's report fails it.
 */
#include "config.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *path)
{
    _cleanup_free_ char *data = NULL;
    size_t len;

    if (fd_read_file(path, 64u << 20, &data, &len) < 0) {
        fprintf(stderr, "cannot read %s\n", path);
        return -1;
    }
    return LLVMFuzzerTestOneInput((const uint8_t *)data, len);
}

static int is_input(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

static int replay_dir(const char *dir)
{
    struct dirent **names;
    int count = scandir(dir, &names, is_input, alphasort), failed = 0;

    if (count <= 0) {
        printf("1..1\nnot ok 1 - no corpus in %s\n", dir);
        return 1;
    }
    printf("1..%d\n", count);
    for (int i = 0; i < count; i++) {
        char path[4096 + sizeof(names[i]->d_name)];

        snprintf(path, sizeof(path), "%s/%s", dir, names[i]->d_name);
        /* Before it runs, so that the input that kills the target is known. */
        printf("# %s\n", names[i]->d_name);
        fflush(stdout);
        if (replay(path) == 0) {
            printf("ok %d - %s\n", i + 1, names[i]->d_name);
        } else {
            printf("not ok %d - %s\n", i + 1, names[i]->d_name);
            failed = 1;
        }
        free(names[i]);
    }
    free(names);
    return failed;
}

int main(int argc, char **argv)
{
    const char *base = strrchr(argv[0], '/'), *src = getenv("UMBRA_SRCDIR"), *name;
    char dir[4096];

    for (int i = 1; i < argc; i++)
        if (replay(argv[i]) != 0)
            return 1;
    if (argc > 1)
        return 0;
    base = base ? base + 1 : argv[0];
    name = strstr(base, "replay-");
    snprintf(dir, sizeof(dir), "%s/tests/fuzz/corpus/%s", src ? src : ".", name ? name + strlen("replay-") : base);
    return replay_dir(dir);
}
