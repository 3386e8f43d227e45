/*
 * page-diff BEFORE AFTER: the numbers of the pages in which two copies of a guest's memory differ, one a line. What a dirty
 * log must at least report.
 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PAGE 4096

int main(int argc, char **argv)
{
    unsigned char a[PAGE], b[PAGE];
    FILE *before, *after;
    uint64_t page = 0;

    if (argc != 3) {
        fprintf(stderr, "usage: page-diff BEFORE AFTER\n");
        return 2;
    }
    before = fopen(argv[1], "rb");
    after = fopen(argv[2], "rb");
    if (!before || !after) {
        perror("page-diff");
        return 1;
    }
    for (; fread(a, PAGE, 1, before) == 1 && fread(b, PAGE, 1, after) == 1; page++)
        if (memcmp(a, b, PAGE) != 0)
            printf("%" PRIu64 "\n", page);
    return ferror(before) || ferror(after) || !feof(before);
}
