/*
 * Dirties pages of one region: by itself at a rate (`mode=auto`), or on command over the serial port (`mode=serve`),
 * so that the set of dirty pages is known outside. Everything that the guest needs for itself lies outside of the
 * region.
 */
#include "runtime.h"

#include "pattern.h"

#define PACE_NS 2000000ul         /* the writes of this long are made at once */
#define BATCH_MAX 4096ul          /* writes between two looks at the clock */
#define POLL_NS 10000000ul        /* how often the serial port is polled while there is work (wait=poll) */
#define RATE_OFF UINT64_MAX
#define WORDS_MAX 8

const char guest_name[] = "dirtier";
const char *const guest_options[] = {"mode", "rate", "ws", "base", "pattern", "seed", "page", "cpus", "report", NULL};

static struct region region;

/* The background writer. */
static struct {
    struct pattern pattern;
    uint64_t rate;    /* pages a second, 0: as fast as possible, RATE_OFF: none */
    uint64_t next;    /* number of the next write of the stream */
    uint64_t written; /* page writes since the start, commanded ones included */
    uint64_t start_tsc, start_next; /* since the rate was set */
    bool report;
} bg;

/* One commanded piece of work, shared by all CPUs. */
struct job {
    const struct pattern *pattern;
    uint64_t count, value;
    uint64_t sum[MAX_CPUS];
};

static inline uint64_t *page_at(uint64_t page)
{
    return (uint64_t *)(region.base + page * PAGE_SIZE);
}

static inline uint64_t dirty_page(uint64_t seed, uint64_t page)
{
    uint64_t word = pattern_word(seed, page);

    *(volatile uint64_t *)(page_at(page) + pattern_word_index(word)) = word;
    return word;
}

/* -- commanded work ------------------------------------------------------------- */

static uint64_t share_start(uint64_t count, unsigned int cpu)
{
    return count * cpu / smp_cpus();
}

static void dirty_share(void *arg, unsigned int cpu)
{
    struct job *job = arg;
    uint64_t end = share_start(job->count, cpu + 1), sum = 0;

    for (uint64_t i = share_start(job->count, cpu); i < end; i++)
        sum += dirty_page(job->pattern->seed, pattern_page(job->pattern, job->count, i));
    job->sum[cpu] = sum;
}

static void read_share(void *arg, unsigned int cpu)
{
    struct job *job = arg;
    uint64_t end = share_start(job->count, cpu + 1), sum = 0;

    for (uint64_t i = share_start(job->count, cpu); i < end; i++)
        sum += *(volatile uint64_t *)page_at(pattern_page(job->pattern, job->count, i));
    job->sum[cpu] = sum;
}

static void fill_share(void *arg, unsigned int cpu)
{
    struct job *job = arg;
    uint64_t end = share_start(job->count, cpu + 1), sum = 0;

    for (uint64_t page = share_start(job->count, cpu); page < end; page++) {
        volatile uint64_t *words = page_at(page);

        for (uint64_t i = 0; i < PATTERN_PAGE_WORDS; i++) {
            uint64_t word = job->pattern ? pattern_fill_word(job->pattern->seed, page * PATTERN_PAGE_WORDS + i)
                                         : job->value;

            words[i] = word;
            sum += word;
        }
    }
    job->sum[cpu] = sum;
}

static void check_share(void *arg, unsigned int cpu)
{
    struct job *job = arg;
    uint64_t end = share_start(job->count, cpu + 1), sum = 0;

    for (uint64_t page = share_start(job->count, cpu); page < end; page++)
        sum += pattern_region_part(page, pattern_page_sum(page_at(page)));
    job->sum[cpu] = sum;
}

static uint64_t run_job(struct job *job, void (*share)(void *arg, unsigned int cpu))
{
    uint64_t sum = 0;

    smp_run(share, job);
    for (unsigned int cpu = 0; cpu < smp_cpus(); cpu++)
        sum += job->sum[cpu];
    return sum;
}

/* -- background ------------------------------------------------------------------- */

static void bg_restart(void)
{
    bg.start_tsc = rdtsc();
    bg.start_next = bg.next;
}

/* How many writes are due now. */
static uint64_t bg_due(void)
{
    uint64_t us, due;

    if (bg.rate == RATE_OFF)
        return 0;
    if (bg.rate == 0)
        return BATCH_MAX;
    us = clock_us(rdtsc() - bg.start_tsc);
    due = us / 1000000 * bg.rate + us % 1000000 * bg.rate / 1000000 - (bg.next - bg.start_next);
    return due > BATCH_MAX ? BATCH_MAX : due;
}

static void bg_write(uint64_t n)
{
    for (uint64_t end = bg.next + n; bg.next < end; bg.next++)
        dirty_page(bg.pattern.seed, pattern_stream(&bg.pattern, bg.next));
    bg.written += n;
}

/* Once a second: what was written, how fast, and the longest time between two batches (which shows stalls). */
static void bg_report(uint64_t now, uint64_t batch_start)
{
    static uint64_t second_tsc, second_written, last_tsc, gap, seconds;

    if (!second_tsc) {
        second_tsc = now;
        second_written = bg.written;
    } else if (batch_start - last_tsc > gap) {
        gap = batch_start - last_tsc;
    }
    last_tsc = now;
    if (!bg.report || now - second_tsc < 1000 * clock_khz())
        return;
    print("%s: t=%lu writes=%lu rate=%lu gap-us=%lu\n", guest_name, ++seconds, bg.written,
          (bg.written - second_written) * 1000000 / clock_us(now - second_tsc), clock_us(gap));
    gap = 0;
    second_written = bg.written;
    second_tsc = now;
    last_tsc = rdtsc();
}

/* -- commands --------------------------------------------------------------------- */

static bool number(const char *text, const char *what, uint64_t max, uint64_t *ret)
{
    if (parse_u64(text, ret) == 0 && *ret <= max)
        return true;
    print("error %s %s is not a number up to %lu\n", what, text, max);
    return false;
}

static bool parse_pattern(const char *text, uint64_t seed, struct pattern *ret)
{
    enum pattern_kind kind = bg.pattern.kind;
    uint64_t stride = bg.pattern.stride;

    if (text && pattern_parse(text, &kind, &stride) < 0) {
        print("error pattern %s is none of seq, random, stride[:N], hot\n", text);
        return false;
    }
    pattern_init(ret, kind, stride, region.pages, seed);
    return true;
}

/* dirty COUNT SEED [PATTERN], read COUNT [SEED [PATTERN]] */
static void command_pages(char **words, unsigned int n, bool write)
{
    struct pattern pattern;
    struct job job = {.pattern = &pattern};
    uint64_t seed = 0, sum;

    if (!number(words[1], "count", region.pages, &job.count) ||
        (n > 2 && !number(words[2], "seed", UINT64_MAX, &seed)) ||
        !parse_pattern(n > 3 ? words[3] : NULL, seed, &pattern))
        return;
    sum = run_job(&job, write ? dirty_share : read_share);
    if (write)
        bg.written += job.count;
    print("done count=%lu sum=0x%lx\n", job.count, sum);
}

/* fill VALUE, fill zero, fill random [SEED] */
static void command_fill(char **words, unsigned int n)
{
    struct pattern pattern = {.seed = 0};
    struct job job = {.count = region.pages};
    bool random = strcmp(words[1], "random") == 0;
    uint64_t sum;

    if (n > 2 && (!random || !number(words[2], "seed", UINT64_MAX, &pattern.seed))) {
        if (!random)
            print("error fill %s takes no seed\n", words[1]);
        return;
    }
    if (random)
        job.pattern = &pattern;
    else if (strcmp(words[1], "zero") != 0 && !number(words[1], "value", UINT64_MAX, &job.value))
        return;
    sum = run_job(&job, fill_share);
    bg.written += job.count;
    print("done count=%lu sum=0x%lx\n", job.count, sum);
}

static bool parse_rate(const char *text, uint64_t *ret)
{
    if (strcmp(text, "off") == 0) {
        *ret = RATE_OFF;
        return true;
    }
    /* More would overflow the sums of bg_due. */
    return parse_u64(text, ret) == 0 && *ret <= 1000000000000ul;
}

static bool set_one(const char *key, const char *value)
{
    struct pattern pattern;
    uint64_t v;

    if (strcmp(key, "rate") == 0) {
        if (!parse_rate(value, &bg.rate)) {
            print("error rate %s is neither off nor a number up to 1000000000000\n", value);
            return false;
        }
    } else if (strcmp(key, "pattern") == 0) {
        if (!parse_pattern(value, bg.pattern.seed, &pattern))
            return false;
        bg.pattern = pattern;
    } else if (strcmp(key, "seed") == 0) {
        if (!number(value, "seed", UINT64_MAX, &v))
            return false;
        pattern_init(&bg.pattern, bg.pattern.kind, bg.pattern.stride, region.pages, v);
    } else if (strcmp(key, "report") == 0) {
        if (!number(value, "report", 1, &v))
            return false;
        bg.report = v;
    } else {
        print("error no setting %s\n", key);
        return false;
    }
    return true;
}

/* set KEY=VALUE... */
static void command_set(char **words, unsigned int n)
{
    bool good = true;

    for (unsigned int i = 1; i < n && good; i++) {
        char *value = words[i];

        while (*value && *value != '=')
            value++;
        if (*value)
            *value++ = '\0';
        good = set_one(words[i], value);
    }
    bg_restart();
    if (good)
        print("ok\n");
}

static void command_check(void)
{
    struct job job = {.count = region.pages};

    print("check pages=%lu sum=0x%lx\n", region.pages, run_job(&job, check_share));
}

static void command(char *line)
{
    char *words[WORDS_MAX];
    unsigned int n = split_words(line, words, WORDS_MAX);

    if (n == 0)
        return;
    if (n <= WORDS_MAX && common_command(words, n))
        return;
    if (strcmp(words[0], "dirty") == 0 && (n == 3 || n == 4))
        command_pages(words, n, true);
    else if (strcmp(words[0], "read") == 0 && n >= 2 && n <= 4)
        command_pages(words, n, false);
    else if (strcmp(words[0], "fill") == 0 && (n == 2 || n == 3))
        command_fill(words, n);
    else if (strcmp(words[0], "set") == 0 && n >= 2 && n <= WORDS_MAX)
        command_set(words, n);
    else if (strcmp(words[0], "check") == 0 && n == 1)
        command_check();
    else if (strcmp(words[0], "count") == 0 && n == 1)
        print("count writes=%lu next=%lu\n", bg.written, bg.next);
    else if (strcmp(words[0], "region") == 0 && n == 1)
        print("region gfn=0x%lx pages=%lu\n", region.base / PAGE_SIZE, region.pages);
    else
        print("error bad command %s\n", words[0]);
}

/* -- start -------------------------------------------------------------------------- */

/*
 * With page=4k the region is mapped by 4K entries in place of the 2M ones, so that accessed and dirty bits are as
 * fine.
 */
static void map_small(void)
{
    uint64_t end = region.base + region.pages * PAGE_SIZE;

    for (uint64_t va = region.base & ~(HUGE_SIZE - 1); va < end; va += HUGE_SIZE) {
        uint64_t *huge = pte_at(boot_pml4, va, 2, false);
        uint64_t *table = table_new();

        for (uint64_t i = 0; i < 512; i++)
            table[i] = (va + i * PAGE_SIZE) | PTE_P | PTE_W | PTE_U;
        *huge = (uint64_t)table | PTE_P | PTE_W | PTE_U;
    }
    root_load(boot_pml4);
}

/* Tables for page=4k: one for each 2M of all RAM is the upper bound that is known before the region is. */
static uint64_t small_tables(bool small)
{
    uint64_t size = opt_size("ws", 0);

    if (!small)
        return 0;
    return (size ? size : memory_largest()) / HUGE_SIZE + 2;
}

static bool option_small(void)
{
    const char *page = opt_get("page");

    if (page && strcmp(page, "4k") != 0 && strcmp(page, "2m") != 0)
        fail("page=%s is neither 4k nor 2m", page);
    return page && strcmp(page, "4k") == 0;
}

static bool option_serve(void)
{
    const char *mode = opt_get("mode");

    if (mode && strcmp(mode, "auto") != 0 && strcmp(mode, "serve") != 0)
        fail("mode=%s is neither auto nor serve", mode);
    return mode && strcmp(mode, "serve") == 0;
}

static void bg_init(bool serve)
{
    const char *pattern = opt_get("pattern"), *rate = opt_get("rate");
    enum pattern_kind kind = PATTERN_SEQ;
    uint64_t stride = PATTERN_DEFAULT_STRIDE;

    if (pattern && pattern_parse(pattern, &kind, &stride) < 0)
        fail("pattern=%s is none of seq, random, stride[:N], hot", pattern);
    bg.rate = serve ? RATE_OFF : 0;
    if (rate && !parse_rate(rate, &bg.rate))
        fail("rate=%s is neither off nor a number up to 1000000000000", rate);
    pattern_init(&bg.pattern, kind, stride, region.pages, opt_u64("seed", 0));
    bg.report = opt_u64("report", !serve) != 0;
}

/* The line that came in, if any. Polling costs an exit for each look, so it is done now and then only. */
static bool next_line(char *line, uint64_t now)
{
    static uint64_t polled;

    if (bg.rate == RATE_OFF) {
        line_wait(line);
        return true;
    }
    if (!kernel_irq_on && now - polled < POLL_NS * clock_khz() / 1000000)
        return false;
    polled = now;
    return line_poll(line);
}

void guest_main(void)
{
    char line[LINE_SIZE];
    bool serve = option_serve(), small = option_small();
    uint64_t cpus = opt_u64("cpus", 1);

    if (cpus < 1 || cpus > MAX_CPUS)
        fail("cpus=%lu is not between 1 and %u", cpus, MAX_CPUS);
    memory_setup(small_tables(small) + 1, &region);
    if (small)
        map_small();
    bg_init(serve);
    clock_init();
    smp_start((unsigned int)cpus);
    print("%s: ready region gfn=0x%lx pages=%lu\n", guest_name, region.base / PAGE_SIZE, region.pages);
    bg_restart();
    for (;;) {
        uint64_t start = rdtsc(), due = bg_due();

        bg_write(due);
        if (bg.rate != RATE_OFF)
            bg_report(rdtsc(), start);
        if (next_line(line, start))
            command(line);
        else if (due < BATCH_MAX)
            idle_ns(PACE_NS);
    }
}
