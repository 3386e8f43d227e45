/*
 * The pages that commands to the dirtier dirty, worked out on the host by the guest's own generator: printed, or held
 * against a dirty bitmap of guest memory (bit i of byte i / 8 for the page with that gfn).
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pattern.h"

#define PAGES_MAX (UINT64_C(1) << 32)
#define SHOWN_MAX 10

struct set {
    uint64_t gfn, pages; /* the region */
    uint8_t *bits;
};

static void usage(FILE *f)
{
    fputs("usage: dirty-set --pages N [--gfn GFN] [--bitmap FILE [--extra]] \"COUNT SEED PATTERN\"...\n"
          "Without --bitmap: print the region's page numbers that these `dirty` commands dirty, in order.\n"
          "With it: exit 1 and tell the difference unless the bitmap has just these pages of the region\n"
          "(with --extra: at least these).\n",
          f);
}

static int parse_u64(const char *text, uint64_t *ret)
{
    char *end;

    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    *ret = strtoull(text, &end, 0);
    return errno || *end ? -EINVAL : 0;
}

static bool get_bit(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

/* Add the pages of one command. */
static int add_command(struct set *set, const char *text)
{
    char count_text[32], seed_text[32], pattern_text[32], more;
    struct pattern pattern;
    enum pattern_kind kind;
    uint64_t count, seed, stride = 0;

    if (sscanf(text, "%31s %31s %31s %c", count_text, seed_text, pattern_text, &more) != 3 ||
        parse_u64(count_text, &count) < 0 || parse_u64(seed_text, &seed) < 0 ||
        pattern_parse(pattern_text, &kind, &stride) < 0 || count > set->pages) {
        fprintf(stderr, "dirty-set: \"%s\" is not COUNT SEED PATTERN with at most %" PRIu64 " pages\n", text,
                set->pages);
        return -EINVAL;
    }
    pattern_init(&pattern, kind, stride, set->pages, seed);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t page = pattern_page(&pattern, count, i);

        set->bits[page / 8] |= (uint8_t)(1u << (page % 8));
    }
    return 0;
}

static uint8_t *read_file(const char *path, uint64_t size)
{
    uint8_t *data = malloc(size);
    FILE *f = fopen(path, "rb");

    if (!data || !f || fread(data, 1, size, f) != size) {
        fprintf(stderr, "dirty-set: %s: %s\n", path, f ? "does not cover the region" : strerror(errno));
        free(data);
        data = NULL;
    }
    if (f)
        fclose(f);
    return data;
}

/* Returns 0 when the bitmap agrees, 1 when it does not, 2 when it cannot be read. */
static int compare(const struct set *set, const char *path, bool extra_allowed)
{
    uint64_t missing = 0, extra = 0, both = 0;
    uint8_t *bitmap = read_file(path, (set->gfn + set->pages + 7) / 8);

    if (!bitmap)
        return 2;
    for (uint64_t page = 0; page < set->pages; page++) {
        bool want = get_bit(set->bits, page), have = get_bit(bitmap, set->gfn + page);
        bool wrong = want != have && !(have && extra_allowed);

        missing += want && !have;
        extra += have && !want;
        both += have && want;
        if (wrong && missing + extra <= SHOWN_MAX)
            printf("%s gfn=0x%" PRIx64 "\n", want ? "missing" : "extra", set->gfn + page);
    }
    printf("both=%" PRIu64 " missing=%" PRIu64 " extra=%" PRIu64 "\n", both, missing, extra);
    free(bitmap);
    return missing || (extra && !extra_allowed);
}

static void print_set(const struct set *set)
{
    for (uint64_t page = 0; page < set->pages; page++)
        if (get_bit(set->bits, page))
            printf("%" PRIu64 "\n", page);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"pages", required_argument, NULL, 'p'}, {"gfn", required_argument, NULL, 'g'},
        {"bitmap", required_argument, NULL, 'b'}, {"extra", no_argument, NULL, 'e'},
        {"help", no_argument, NULL, 'h'},        {NULL, 0, NULL, 0},
    };
    struct set set = {.pages = 0};
    const char *bitmap = NULL;
    bool extra = false, good = true;
    int c, r = 0;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'p':
            good = good && parse_u64(optarg, &set.pages) == 0;
            break;
        case 'g':
            good = good && parse_u64(optarg, &set.gfn) == 0;
            break;
        case 'b':
            bitmap = optarg;
            break;
        case 'e':
            extra = true;
            break;
        case 'h':
            usage(stdout);
            return 0;
        default:
            good = false;
        }
    }
    if (!good || set.pages < 1 || set.pages > PAGES_MAX || set.gfn > PAGES_MAX) {
        usage(stderr);
        return 2;
    }
    set.bits = calloc(1, set.pages / 8 + 1);
    if (!set.bits)
        return 2;
    for (; optind < argc && r == 0; optind++)
        r = add_command(&set, argv[optind]) < 0 ? 2 : 0;
    if (r == 0 && bitmap)
        r = compare(&set, bitmap, extra);
    else if (r == 0)
        print_set(&set);
    free(set.bits);
    return r;
}
