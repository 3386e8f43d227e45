/*
 * What the MMU bookkeeping costs, without KVM: synthetic guests, whose processes look like small Linux ones (some shared text,
 * some private pages, spread over five leaf tables). Figures, one a name on the command line, all without one:
 *
 *   rmap           link and unlink at chain lengths 1 to 1000 (mmu-rmap.c)
 *   sync           a table of 512 entries taken over in place, against dropping and walking it again
 *   flood          a tick while 64 tables of a forking process change all the time and 400 others do not, protection on against off
 *   write-protect  by reverse map against walking, and where they cross
 *   attribution    100k dirty pages of 300 processes by address space
 *   memory         bytes of the mirror to bytes of guest tables: 300 processes, and two worst cases
 *   scale          64 GiB guest, up to 5000 address spaces: memory and cost of a tick
 */
#include "config.h"

#include "mmu.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "fake-guest.h"
#include "mmu/attribute.h"
#include "mmu/mirror-internal.h"
#include "mmu/mirror.h"
#include "mmu/protect.h"

#define KERNEL_GVA UINT64_C(0xffff888000000000)
#define LIBC_GVA UINT64_C(0x7f1234400000)
#define STACK_GVA UINT64_C(0x7ffc00000000)
/* Frames that processes share: their text. */
#define SHARED_GFN 0x4000u
#define SHARED_PAGES 160u
#define PRIVATE_PAGES 100u
#define PRIVATE_GFN 0x5000u

static const struct mmu_paging long_mode = {.levels = 4, .nx = true};

struct world {
    struct fake_guest guest;
    struct mirror *m;
    gpa_t kernel;
    uint64_t kernel_half[256];
    gfn_t next_private;
    unsigned int spaces;
};

void print_pair(const char *name, struct sample *ours, const char *floor, struct sample *baseline)
{
    double o = sample_us(ours, 0.5), f = sample_us(baseline, 0.5);

    printf("{\"name\": \"%s\", \"unit\": \"us\", \"ours\": %.2f, \"floor\": %.2f, \"against\": \"%s\", \"ratio-to-floor\": %.3f, "
           "\"min\": %.2f, \"max\": %.2f, \"floor-min\": %.2f, \"floor-max\": %.2f, \"runs\": %zu}\n",
           name, o, f, floor, o / f, sample_us(ours, 0), sample_us(ours, 1), sample_us(baseline, 0), sample_us(baseline, 1),
           ours->count);
    fflush(stdout);
}

static void print_one(const char *name, struct sample *s)
{
    printf("{\"name\": \"%s\", \"unit\": \"us\", \"ours\": %.2f, \"min\": %.2f, \"max\": %.2f, \"runs\": %zu}\n", name,
           sample_us(s, 0.5), sample_us(s, 0), sample_us(s, 1), s->count);
    fflush(stdout);
}

static void print_value(const char *name, const char *what, const char *unit, double value)
{
    printf("{\"name\": \"%s-%s\", \"unit\": \"%s\", \"ours\": %.3f}\n", name, what, unit, value);
}

/* -- a guest ------------------------------------------------------------------------------------------------------------- */

static void map_run(struct world *w, gpa_t root, gva_t gva, gfn_t gfn, unsigned int pages, uint64_t flags)
{
    for (unsigned int i = 0; i < pages; i++)
        fake_guest_map(&w->guest, root, gva + i * GUEST_PAGE_SIZE, gfn + i, 1, flags);
}

static gfn_t private_run(struct world *w, unsigned int pages)
{
    gfn_t gfn = w->next_private;

    w->next_private += pages;
    return gfn;
}

/* Text and libc are shared; heap, data and stack are not. */
static gpa_t process(struct world *w)
{
    gpa_t root = gfn_to_gpa(fake_guest_frame(&w->guest));

    if (mem_write(w->guest.mem, root + sizeof(w->kernel_half), w->kernel_half, sizeof(w->kernel_half)) < 0)
        abort();
    map_run(w, root, 0x400000, SHARED_GFN, 40, FG_USER & ~FG_W);
    map_run(w, root, 0x600000, private_run(w, 10), 10, FG_USER);
    map_run(w, root, 0x1a00000, private_run(w, 60), 60, FG_USER);
    map_run(w, root, LIBC_GVA, SHARED_GFN + 40, 120, FG_USER & ~FG_W);
    map_run(w, root, LIBC_GVA + 200 * GUEST_PAGE_SIZE, private_run(w, 20), 20, FG_USER);
    map_run(w, root, STACK_GVA, private_run(w, 10), 10, FG_USER);
    w->spaces++;
    return root;
}

static int world_init(struct world *w, uint64_t ram, uint64_t max_memory)
{
    struct mirror_config config = {.cpu = {.maxphyaddr = 46, .gbpages = true}, .max_memory = max_memory};
    int r;

    *w = (struct world){.next_private = ram / GUEST_PAGE_SIZE / 2};
    fake_guest_init(&w->guest, ram, long_mode);
    if (ram > GiB * 3)
        w->next_private = gpa_to_gfn(MEM_HOLE_END);
    config.mem = w->guest.mem;
    r = mirror_new(&config, &w->m);
    if (r < 0)
        return r;
    w->kernel = gfn_to_gpa(fake_guest_frame(&w->guest));
    for (uint64_t at = 0; at < MIN(ram, GiB); at += 2 * MiB)
        fake_guest_map(&w->guest, w->kernel, KERNEL_GVA + at, gpa_to_gfn(at), 2, FG_P | FG_W | FG_A | FG_D | FG_NX);
    r = mem_read(w->guest.mem, w->kernel + sizeof(w->kernel_half), w->kernel_half, sizeof(w->kernel_half));
    if (r == 0)
        r = mirror_root_add(w->m, w->kernel, &long_mode, MMU_ROOT_KERNEL, 1);
    return r;
}

static void world_clear(struct world *w)
{
    mirror_free(w->m);
    fake_guest_clear(&w->guest);
}

static int add_processes(struct world *w, unsigned int count)
{
    int r = 0;

    /* Tables come from below; above 3 GiB of RAM that is room enough for thousands. */
    while (count-- && r == 0)
        r = mirror_root_add(w->m, process(w), &long_mode, MMU_ROOT_USER, 1);
    return r ? r : mirror_sync(w->m, true);
}

/* -- sync ---------------------------------------------------------------------------------------------------------------- */

/* Give `changed` entries of the table other frames. */
static void change(struct world *w, gfn_t table, unsigned int changed, unsigned int round)
{
    for (unsigned int i = 0; i < changed; i++) {
        unsigned int entry = i * 512 / changed;

        fake_guest_set(&w->guest, table, entry, gfn_to_gpa(PRIVATE_GFN + entry + 512 * (round & 1)) | FG_USER);
    }
}

static int drop_and_rewalk(struct mirror *m, gfn_t table)
{
    uint32_t page = shadow_next_of(m, table, 0);

    shadow_zap_entries(m, page_at(m, page));
    return mirror_sync_gfns(m, &table, 1);
}

static int run_sync(unsigned int runs)
{
    static const unsigned int changes[] = {1, 8, 64, 512};
    static struct sample ours, drop;
    struct world w;
    gfn_t table;
    int r = world_init(&w, 256 * MiB, 0);

    mirror_set_floods(w.m, false);
    map_run(&w, w.kernel, 2 * MiB, PRIVATE_GFN, 512, FG_USER);
    fake_guest_entry(&w.guest, w.kernel, 2 * MiB, 1, &table);
    if (r == 0)
        r = mirror_sync(w.m, true);
    for (size_t c = 0; c < ARRAY_SIZE(changes) && r == 0; c++) {
        char name[64];

        ours.count = drop.count = 0;
        for (unsigned int i = 0; i <= runs && r == 0; i++) {
            uint64_t t;

            if (i == 1)
                ours.count = drop.count = 0;
            change(&w, table, changes[c], 2 * i);
            t = clock_ns();
            r = mirror_sync_gfns(w.m, &table, 1);
            sample_add(&ours, clock_ns() - t);
            change(&w, table, changes[c], 2 * i + 1);
            t = clock_ns();
            if (r == 0)
                r = drop_and_rewalk(w.m, table);
            sample_add(&drop, clock_ns() - t);
        }
        snprintf(name, sizeof(name), "mmu-sync-%u", changes[c]);
        print_pair(name, &ours, "drop and rewalk", &drop);
    }
    world_clear(&w);
    return r;
}

/* -- flood --------------------------------------------------------------------------------------------------------------- */

#define FLOOD_TABLES 64u

/* A process that forks all the time: most entries of its leaf tables are written in every tick. */
static int flood_ticks(bool on, unsigned int ticks, struct sample *s)
{
    static gfn_t tables[FLOOD_TABLES];
    struct world w;
    int r = world_init(&w, 1 * GiB, 0);
    gpa_t root = process(&w);

    mirror_set_floods(w.m, on);
    if (r == 0)
        r = mirror_root_add(w.m, root, &long_mode, MMU_ROOT_USER, 1);
    for (unsigned int i = 0; i < FLOOD_TABLES; i++) {
        map_run(&w, root, GiB + i * 2 * MiB, PRIVATE_GFN + i * 512, 512, FG_USER);
        fake_guest_entry(&w.guest, root, GiB + i * 2 * MiB, 1, &tables[i]);
    }
    if (r == 0)
        r = add_processes(&w, 33);
    for (unsigned int tick = 0; tick < ticks + 4 && r == 0; tick++) {
        uint64_t t;

        for (unsigned int i = 0; i < FLOOD_TABLES; i++)
            for (unsigned int e = 0; e < 512; e++)
                fake_guest_set(&w.guest, tables[i], e,
                               gfn_to_gpa(PRIVATE_GFN + i * 512 + (e + tick % 2 * 256) % 512) | FG_USER);
        t = clock_ns();
        r = mirror_sync(w.m, false);
        if (tick >= 4)
            sample_add(s, clock_ns() - t);
    }
    world_clear(&w);
    return r;
}

static int run_flood(unsigned int runs)
{
    static struct sample on, off;
    int r = flood_ticks(true, 3 * runs, &on);

    if (r == 0)
        r = flood_ticks(false, 3 * runs, &off);
    print_pair("mmu-flood-tick", &on, "protection off", &off);
    return r;
}

/* -- write protection ---------------------------------------------------------------------------------------------------- */

static void dirty_some(struct world *w, struct page_set *dirty, unsigned int count)
{
    uint64_t state = 88172645463325252;
    pfn_t first = mem_pages(w->guest.mem) / 2, pages = w->next_private - first;

    page_set_clear(dirty);
    while (dirty->pages < count) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        page_set_add(dirty, first + (state >> 20) % pages);
    }
}

static int run_protect(unsigned int runs)
{
    static const unsigned int counts[] = {10, 100, 1000, 3000, 10000, 25000};
    static struct sample rmap, walk;
    struct world w;
    struct page_set dirty;
    struct mmu_protect result;
    double crossover = 0;
    int r = world_init(&w, 256 * MiB, 0);

    if (r == 0)
        r = add_processes(&w, 300);
    if (r == 0)
        r = page_set_init(&dirty, mem_pages(w.guest.mem));
    for (size_t c = 0; c < ARRAY_SIZE(counts) && r == 0; c++) {
        char name[64];

        rmap.count = walk.count = 0;
        dirty_some(&w, &dirty, counts[c]);
        for (unsigned int i = 0; i < runs; i++) {
            uint64_t t = clock_ns();

            mirror_write_protect(w.m, &dirty, MMU_PROTECT_RMAP, &result);
            sample_add(&rmap, clock_ns() - t);
            t = clock_ns();
            mirror_write_protect(w.m, &dirty, MMU_PROTECT_WALK, &result);
            sample_add(&walk, clock_ns() - t);
        }
        /* What it costs by map grows with the dirty pages, by walking it does not. */
        crossover = counts[c] * sample_us(&walk, 0.5) / sample_us(&rmap, 0.5);
        snprintf(name, sizeof(name), "mmu-write-protect-rmap-%u", counts[c]);
        print_pair(name, &rmap, "walk", &walk);
    }
    printf("{\"name\": \"mmu-write-protect-crossover\", \"unit\": \"pages\", \"ours\": %.2f}\n",
           crossover / w.m->pages.used);
    page_set_free(&dirty);
    world_clear(&w);
    return r;
}

/* -- attribution --------------------------------------------------------------------------------------------------------- */

static int run_attribution(unsigned int runs)
{
    static struct sample s;
    struct world w;
    struct page_set dirty;
    struct mmu_attribution a = {.dirty = 0};
    int r = world_init(&w, 1 * GiB, 0);

    s.count = 0;
    if (r == 0)
        r = add_processes(&w, 300);
    if (r == 0)
        r = page_set_init(&dirty, mem_pages(w.guest.mem));
    if (r == 0) {
        /* 30k user pages, the rest the kernel's: page cache, slab. */
        for (pfn_t pfn = mem_pages(w.guest.mem) / 2; dirty.pages < 100000; pfn++)
            page_set_add(&dirty, pfn);
        for (unsigned int i = 0; i < runs && r == 0; i++) {
            uint64_t t = clock_ns();

            r = mirror_attribute(w.m, &dirty, &a);
            sample_add(&s, clock_ns() - t);
            if (r == 0 && i + 1 < runs)
                mmu_attribution_free(&a);
        }
        print_one("mmu-attribution-100k", &s);
        print_value("mmu-attribution", "user", "pages", (double)a.user);
        print_value("mmu-attribution", "kernel", "pages", (double)a.kernel);
        print_value("mmu-attribution", "unmapped", "pages", (double)a.unmapped);
        print_value("mmu-attribution", "spaces", "spaces", (double)a.space_count);
        mmu_attribution_free(&a);
        page_set_free(&dirty);
    }
    world_clear(&w);
    return r;
}

/* -- memory and scale ---------------------------------------------------------------------------------------------------- */

static void print_memory(const char *name, const struct world *w, uint64_t tick_ns)
{
    struct mirror_stats s;
    double used;

    mirror_stats(w->m, &s);
    /* What elements take; pools grow in steps of 64 KiB, and heads with mapped RAM. */
    used = (double)w->m->pages.used * w->m->pages.size + (double)w->m->granules.used * w->m->granules.size +
           (double)w->m->blocks.used * w->m->blocks.size;
    print_value(name, "tick", "us", (double)tick_ns / 1e3);
    print_value(name, "tick-a-table", "ns", (double)tick_ns / w->m->pages.used);
    print_value(name, "tables", "tables", w->m->pages.used);
    print_value(name, "memory", "KiB", (double)(s.memory + s.frame_memory) / 1024);
    print_value(name, "memory-a-table", "bytes", used / w->m->pages.used);
    print_value(name, "memory-to-guest", "ratio", (double)(s.memory + s.frame_memory) / (double)s.table_memory);
    fflush(stdout);
}

static uint64_t best_tick(struct world *w, unsigned int runs)
{
    uint64_t best = UINT64_MAX;

    for (unsigned int i = 0; i < runs; i++) {
        uint64_t t = clock_ns();

        (void)mirror_sync(w->m, false);
        best = MIN(best, clock_ns() - t);
    }
    return best;
}

/* Leaf tables that are all full, each frame mapped once or by all of them. */
static int run_dense(const char *name, bool shared, unsigned int runs)
{
    struct world w;
    int r = world_init(&w, 2 * GiB, 0);

    for (unsigned int i = 0; i < 400 && r == 0; i++)
        map_run(&w, w.kernel, GiB + i * 2 * MiB, shared ? 0x20000 : 0x20000 + i * 512, 512, FG_USER);
    if (r == 0)
        r = mirror_sync(w.m, true);
    if (r == 0)
        print_memory(name, &w, best_tick(&w, runs));
    world_clear(&w);
    return r;
}

static int run_memory(unsigned int runs)
{
    struct world w;
    int r = world_init(&w, 256 * MiB, 0);

    if (r == 0)
        r = add_processes(&w, 300);
    if (r == 0)
        print_memory("mmu-memory-300", &w, best_tick(&w, runs));
    world_clear(&w);
    if (r == 0)
        r = run_dense("mmu-memory-dense-private", false, runs);
    if (r == 0)
        r = run_dense("mmu-memory-dense-shared", true, runs);
    return r;
}

static int run_scale(unsigned int runs)
{
    struct world w;
    int r = world_init(&w, 64 * GiB, 0);

    for (unsigned int spaces = 625; spaces <= 5000 && r == 0; spaces *= 2) {
        r = add_processes(&w, spaces - w.spaces);
        if (r == 0) {
            char name[64];

            snprintf(name, sizeof(name), "mmu-scale-%u", spaces);
            print_memory(name, &w, best_tick(&w, runs));
        }
    }
    world_clear(&w);
    return r;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(unsigned int runs);
    } figures[] = {
        {"rmap", bench_rmap},         {"sync", run_sync},     {"flood", run_flood}, {"write-protect", run_protect},
        {"attribution", run_attribution}, {"memory", run_memory}, {"scale", run_scale},
    };
    static const struct option options[] = {{"runs", required_argument, NULL, 'r'}, {0}};
    unsigned int runs = 21, done = 0;
    int c, r = 0;

    log_init("bench-mmu", NULL);
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'r' && atoi(optarg) > 0 && atoi(optarg) < SAMPLE_MAX / 3) {
            runs = (unsigned int)atoi(optarg);
        } else {
            fprintf(stderr, "usage: mmu [--runs N (1 to %d)] [FIGURE...]\n", SAMPLE_MAX / 3 - 1);
            return 2;
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(figures) && r == 0; i++) {
        bool wanted = optind == argc;

        for (int a = optind; a < argc; a++)
            wanted |= strcmp(argv[a], figures[i].name) == 0;
        if (!wanted)
            continue;
        done++;
        r = figures[i].run(runs);
        if (r < 0)
            log_err_errno(r, "bench: %s", figures[i].name);
    }
    if (!done) {
        fprintf(stderr, "mmu: no such figure\n");
        return 2;
    }
    return r < 0;
}
