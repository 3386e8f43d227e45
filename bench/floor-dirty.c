/*
 * What harvesting dirty pages costs at the least: a raw KVM program that runs the `dirtier` guest in serve mode, has it
 * dirty a known number of pages and times the ioctls that find them and protect them again.
 *
 * With --script it runs given commands instead and stores dirty bitmaps, as the only consumer of the log: what another
 * program harvested after the same commands can be held against it.
 */
#include "config.h"

#include "floor.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNTS_MAX 16
#define RUNS_MAX 100
#define RING_ENTRIES 65536u
#define COMMAND_SIZE 256

struct bench {
    struct floor_vm vm;
    struct floor_config config;
    uint64_t gfn, pages; /* the guest's region */
    uint64_t *bitmap;
    const char *pattern;
    uint64_t harvest_ns, reset_ns, entries; /* of the ring, summed up */
    unsigned int runs;
    uint64_t counts[COUNTS_MAX];
    unsigned int n_counts;
};

/* -- the guest ------------------------------------------------------------------------ */

static int ring_collect(void *arg)
{
    struct bench *b = arg;
    uint64_t t0 = floor_ns(), t1;
    uint32_t n = floor_ring_harvest(&b->vm, b->bitmap);
    int r;

    t1 = floor_ns();
    r = floor_ring_reset(&b->vm);
    b->reset_ns += floor_ns() - t1;
    b->harvest_ns += t1 - t0;
    b->entries += n;
    return r < 0 ? r : 0;
}

/* The guest's next line. It must not end instead. */
static int read_line(struct bench *b, char *line)
{
    int r = floor_read_line(&b->vm, line, ring_collect, b);

    if (r > 0) {
        floor_err("the guest ended with code %u", b->vm.exit_code);
        return -EPIPE;
    }
    return r;
}

/* Send one command and read the line that answers it. Returns 0, 1 when the guest ended instead, or -errno. */
static int ask(struct bench *b, const char *command, char *answer)
{
    char text[COMMAND_SIZE + 1];
    int r;

    snprintf(text, sizeof(text), "%s\n", command);
    b->vm.input = text;
    r = floor_read_line(&b->vm, answer, ring_collect, b);
    b->vm.input = "";
    return r;
}

static int ask_dirty(struct bench *b, uint64_t count, uint64_t seed)
{
    char command[COMMAND_SIZE], answer[FLOOR_LINE_SIZE];
    uint64_t done;
    int r;

    snprintf(command, sizeof(command), "dirty %" PRIu64 " %" PRIu64 " %s", count, seed, b->pattern);
    r = ask(b, command, answer);
    if (r < 0)
        return r;
    if (r > 0)
        snprintf(answer, sizeof(answer), "exit %u", b->vm.exit_code);
    if (sscanf(answer, "done count=%" SCNu64, &done) != 1 || done != count) {
        floor_err("the guest answered: %s", answer);
        return -EPROTO;
    }
    return 0;
}

static int start(struct bench *b)
{
    char line[FLOOR_LINE_SIZE];
    int r = floor_create(&b->vm, &b->config);

    while (r == 0) {
        r = read_line(b, line);
        if (r < 0)
            break;
        if (strstr(line, ": error "))
            floor_err("%s", line);
        if (sscanf(line, "dirtier: ready region gfn=0x%" SCNx64 " pages=%" SCNu64, &b->gfn, &b->pages) == 2)
            break;
    }
    if (r == 0) {
        b->bitmap = calloc(1, floor_bitmap_size(&b->vm));
        if (!b->bitmap || b->gfn + b->pages > b->vm.ram_size / FLOOR_PAGE_SIZE)
            r = -ENOMEM;
    }
    if (r < 0)
        floor_destroy(&b->vm);
    return r;
}

static void stop(struct bench *b)
{
    free(b->bitmap);
    b->bitmap = NULL;
    floor_destroy(&b->vm);
}

static uint64_t region_dirty(const struct bench *b)
{
    uint64_t n = 0;

    for (uint64_t gfn = b->gfn; gfn < b->gfn + b->pages; gfn++)
        n += b->bitmap[gfn / 64] >> (gfn % 64) & 1;
    return n;
}

/* The pages found must be the pages dirtied, or the figures mean nothing. */
static int expect_dirty(const struct bench *b, uint64_t count)
{
    uint64_t found = region_dirty(b);

    if (found == count)
        return 0;
    floor_err("the guest dirtied %" PRIu64 " pages, the log has %" PRIu64, count, found);
    return -EPROTO;
}

/* -- figures ------------------------------------------------------------------------------ */

static void print_figure(const struct bench *b, const char *name, uint64_t dirty, double *us, unsigned int runs)
{
    double median = floor_median(us, runs);

    printf("{\"name\": \"%s\", \"dirty\": %" PRIu64 ", \"pattern\": \"%s\", \"unit\": \"us\", \"value\": %.2f, "
           "\"min\": %.2f, \"max\": %.2f, \"runs\": %u}\n",
           name, dirty, b->pattern, median, us[0], us[runs - 1], runs);
    fflush(stdout);
}

/* One harvest of a bitmap log; the time of the clear is left out of *ret_get_us only. */
static int harvest_bitmap(struct bench *b, int (*clear)(struct floor_vm *, uint64_t *), double *ret_us,
                          double *ret_get_us)
{
    uint64_t t0 = floor_ns(), t1;
    int r = floor_get(&b->vm, b->bitmap);

    t1 = floor_ns();
    if (r == 0)
        r = clear(&b->vm, b->bitmap);
    *ret_us = (double)(floor_ns() - t0) / 1000;
    *ret_get_us = (double)(t1 - t0) / 1000;
    return r;
}

static int bench_count(struct bench *b, uint64_t count, bool dense)
{
    double us[RUNS_MAX], get_us[RUNS_MAX];
    int r = 0;

    for (unsigned int i = 0; i < b->runs && r == 0; i++) {
        r = ask_dirty(b, count, i);
        if (r == 0)
            r = harvest_bitmap(b, dense ? floor_clear_dense : floor_clear_sparse, &us[i], &get_us[i]);
        if (r == 0)
            r = expect_dirty(b, count);
    }
    if (r < 0)
        return r;
    print_figure(b, dense ? "dirty-bitmap-dense" : "dirty-bitmap-sparse", count, us, b->runs);
    if (dense)
        print_figure(b, "dirty-bitmap-get", count, get_us, b->runs);
    return 0;
}

/* Log on, every page once dirtied and found, so that nothing is left to be mapped for the first time. */
static int warm_up(struct bench *b)
{
    double on, off, us[1], get_us;
    uint64_t t0;
    int r = ask_dirty(b, b->pages, 0);

    if (r < 0)
        return r;
    t0 = floor_ns();
    r = floor_log(&b->vm, true);
    on = (double)(floor_ns() - t0) / 1000;
    if (r == 0 && !b->vm.ring) {
        t0 = floor_ns();
        r = floor_log(&b->vm, false);
        off = (double)(floor_ns() - t0) / 1000;
        if (r == 0)
            r = floor_log(&b->vm, true);
        print_figure(b, "dirty-log-on", b->pages, &on, 1);
        print_figure(b, "dirty-log-off", b->pages, &off, 1);
        if (r == 0)
            r = harvest_bitmap(b, floor_clear_dense, &us[0], &get_us);
        if (r == 0)
            print_figure(b, "dirty-bitmap-first-clear", b->pages, us, 1);
    }
    if (r == 0)
        r = ask_dirty(b, b->pages, 0);
    if (r == 0)
        r = b->vm.ring ? ring_collect(b) : harvest_bitmap(b, floor_clear_dense, &us[0], &get_us);
    return r;
}

static int bench_bitmap(struct bench *b)
{
    int r = start(b);

    if (r < 0)
        return r;
    r = warm_up(b);
    for (unsigned int i = 0; i < b->n_counts && r == 0; i++) {
        r = bench_count(b, b->counts[i], true);
        if (r == 0)
            r = bench_count(b, b->counts[i], false);
    }
    stop(b);
    return r;
}

static int bench_ring_count(struct bench *b, uint64_t count)
{
    double harvest[RUNS_MAX], reset[RUNS_MAX], both[RUNS_MAX];
    int r = 0;

    for (unsigned int i = 0; i < b->runs && r == 0; i++) {
        memset(b->bitmap, 0, floor_bitmap_size(&b->vm));
        b->harvest_ns = b->reset_ns = b->entries = 0;
        r = ask_dirty(b, count, i);
        if (r == 0)
            r = ring_collect(b);
        if (r == 0)
            r = expect_dirty(b, count);
        harvest[i] = (double)b->harvest_ns / 1000;
        reset[i] = (double)b->reset_ns / 1000;
        both[i] = harvest[i] + reset[i];
    }
    if (r < 0)
        return r;
    print_figure(b, "dirty-ring", count, both, b->runs);
    print_figure(b, "dirty-ring-harvest", count, harvest, b->runs);
    print_figure(b, "dirty-ring-reset", count, reset, b->runs);
    return 0;
}

static int bench_ring(struct bench *b)
{
    int r;

    b->config.ring_entries = RING_ENTRIES;
    r = start(b);
    if (r < 0)
        return r;
    r = warm_up(b);
    for (unsigned int i = 0; i < b->n_counts && r == 0; i++)
        r = bench_ring_count(b, b->counts[i]);
    stop(b);
    return r;
}

/* -- script --------------------------------------------------------------------------------- */

/* Write the bitmap, bit i of byte i / 8 for the page with that gfn. */
static int store_bitmap(const struct bench *b, const char *path)
{
    FILE *f = fopen(path, "wb");
    size_t size = floor_bitmap_size(&b->vm);

    if (!f || fwrite(b->bitmap, 1, size, f) != size) {
        int e = errno;

        if (f)
            fclose(f);
        floor_err("%s: %s", path, strerror(e));
        return -e;
    }
    if (fclose(f) != 0) {
        int e = errno;

        floor_err("%s: %s", path, strerror(e));
        return -e;
    }
    return 0;
}

static int script_harvest(struct bench *b, const char *path)
{
    int r;

    if (!b->vm.logging) {
        floor_err("harvest %s before start", path);
        return -EINVAL;
    }
    if (b->vm.ring)
        r = ring_collect(b);
    else {
        r = floor_get(&b->vm, b->bitmap);
        if (r == 0)
            r = floor_clear_dense(&b->vm, b->bitmap);
    }
    if (r == 0)
        r = store_bitmap(b, path);
    if (r == 0)
        printf("harvest %s: %" PRIu64 " pages of the region\n", path, region_dirty(b));
    memset(b->bitmap, 0, floor_bitmap_size(&b->vm));
    return r;
}

/* Switch the log on, nothing dirty: what INITIALLY_SET reports is cleared unseen. */
static int script_start(struct bench *b)
{
    int r = floor_log(&b->vm, true);

    if (r == 0 && !b->vm.ring) {
        r = floor_get(&b->vm, b->bitmap);
        if (r == 0)
            r = floor_clear_dense(&b->vm, b->bitmap);
    }
    memset(b->bitmap, 0, floor_bitmap_size(&b->vm));
    return r;
}

/* Returns 0, 1 when the guest ended, or -errno. */
static int script_line(struct bench *b, char *line)
{
    char answer[FLOOR_LINE_SIZE];
    int r;

    line[strcspn(line, "\r\n")] = '\0';
    if (!*line || *line == '#')
        return 0;
    if (strncmp(line, "harvest ", 8) == 0)
        return script_harvest(b, line + 8);
    if (strcmp(line, "start") == 0)
        return script_start(b);
    if (strcmp(line, "stop") == 0)
        return floor_log(&b->vm, false);
    r = ask(b, line, answer);
    if (r == 0)
        puts(answer);
    else if (r > 0)
        printf("exit %u\n", b->vm.exit_code);
    return r;
}

static int run_script(struct bench *b, const char *path)
{
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    char line[COMMAND_SIZE];
    int r;

    if (!f) {
        r = -errno;
        floor_err("%s: %s", path, strerror(errno));
        return r;
    }
    r = start(b);
    if (r == 0)
        printf("ready region gfn=0x%" PRIx64 " pages=%" PRIu64 "\n", b->gfn, b->pages);
    while (r == 0 && fgets(line, sizeof(line), f)) {
        if (!strchr(line, '\n') && !feof(f)) {
            floor_err("%s: a line longer than %d bytes", path, COMMAND_SIZE - 2);
            r = -EINVAL;
            break;
        }
        r = script_line(b, line);
    }
    if (f != stdin)
        fclose(f);
    if (b->bitmap)
        stop(b);
    return r;
}

/* -- start ------------------------------------------------------------------------------------ */

static void usage(FILE *f)
{
    fprintf(f, "usage: %s [--memory SIZE] [--mode bitmap|ring] [--runs N] [--pattern P] [--dirty N]... dirtier.elf\n"
               "       %s --script FILE [--memory SIZE] [--mode bitmap|ring] [--cmdline TEXT] dirtier.elf\n"
               "Costs of a dirty-log harvest, one JSON object a line; without --mode of both.\n"
               "A script has dirtier commands and `start`, `stop`, `harvest FILE`, one a line.\n",
            floor_name, floor_name);
}

struct arguments {
    const char *script;
    bool bitmap, ring;
};

static int parse_mode(struct arguments *a, const char *mode)
{
    a->bitmap = strcmp(mode, "bitmap") == 0;
    a->ring = strcmp(mode, "ring") == 0;
    return a->bitmap || a->ring ? 0 : -1;
}

static int parse_option(struct bench *b, struct arguments *a, int c)
{
    switch (c) {
    case 'm':
        return floor_parse_size(optarg, &b->config.ram);
    case 'o':
        return parse_mode(a, optarg);
    case 'r':
        b->runs = (unsigned int)strtoul(optarg, NULL, 10);
        return b->runs >= 1 && b->runs <= RUNS_MAX ? 0 : -1;
    case 'd':
        if (b->n_counts == COUNTS_MAX)
            return -1;
        return floor_parse_size(optarg, &b->counts[b->n_counts++]);
    case 'p':
        b->pattern = optarg;
        return 0;
    case 's':
        a->script = optarg;
        return 0;
    case 'c':
        b->config.cmdline = optarg;
        return 0;
    default:
        return -1;
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"memory", required_argument, NULL, 'm'}, {"mode", required_argument, NULL, 'o'},
        {"runs", required_argument, NULL, 'r'},   {"dirty", required_argument, NULL, 'd'},
        {"script", required_argument, NULL, 's'}, {"cmdline", required_argument, NULL, 'c'},
        {"pattern", required_argument, NULL, 'p'}, {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    static const uint64_t default_counts[] = {0, 1000, 50000, 258000};
    struct arguments a = {.bitmap = true, .ring = true};
    struct bench b = {
        .config = {.ram = UINT64_C(1) << 30, .cmdline = "mode=serve wait=poll", .prealloc = true},
        .pattern = "random",
        .runs = 5,
    };
    int c, r = 0;

    floor_name = "floor-dirty";
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'h') {
            usage(stdout);
            return 0;
        }
        if (parse_option(&b, &a, c) < 0) {
            usage(stderr);
            return 2;
        }
    }
    if (optind + 1 != argc) {
        usage(stderr);
        return 2;
    }
    b.config.guest = argv[optind];
    if (!b.n_counts) {
        memcpy(b.counts, default_counts, sizeof(default_counts));
        b.n_counts = sizeof(default_counts) / sizeof(default_counts[0]);
    }
    if (a.script) {
        if (!a.bitmap)
            b.config.ring_entries = RING_ENTRIES;
        return run_script(&b, a.script) < 0 ? 1 : 0;
    }
    if (a.bitmap)
        r = bench_bitmap(&b);
    if (r == 0 && a.ring)
        r = bench_ring(&b);
    return r < 0 ? 1 : 0;
}
