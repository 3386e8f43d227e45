/*
 * Demand paging by the guest's own page tables: every address space starts empty, a page-fault handler (in ring 3,
 * entered through ring 0) maps pages, copies them after a fork and counts what it did. What every page must hold is
 * kept beside, and checked.
 *
 * SPACES of PAGES pages at WINDOW_BASE each. Frames come from the region, tables from the pool.
 */
#include "runtime.h"

#include "pattern.h"

#define PTE_COW 0x200ul /* ignored by the CPU: writable once it is copied */
#define PF_WRITE 0x2ul
#define SPACES_MAX 1024u
#define WORDS_MAX 8

const char guest_name[] = "faulter";
const char *const guest_options[] = {"mode", "spaces", "max-spaces", "pages", "rounds", "base", "ws", NULL};

struct space {
    uint64_t *root; /* NULL: not in use */
    uint64_t *expect; /* the word that each page must hold, 0 for one never written */
};

static struct region region;
static struct space *spaces, *current;
static uint64_t space_max, space_pages;
static uint64_t stamp; /* makes every written word another one */

static struct {
    uint64_t demand, copied, reused, spurious, unmapped, moved, forks, drops, bad;
} stats;

/* -- frames ------------------------------------------------------------------------ */

/* The first `count` pages of the region; the free ones are a stack, so that the last one freed is used next. */
static struct {
    uint64_t count, free;
    uint32_t *stack;
    uint16_t *refs;
} frames;

static void frames_init(uint64_t count)
{
    frames.count = count;
    frames.stack = (uint32_t *)pool_pages(align_up(count * sizeof(uint32_t), PAGE_SIZE) / PAGE_SIZE);
    frames.refs = (uint16_t *)pool_pages(align_up(count * sizeof(uint16_t), PAGE_SIZE) / PAGE_SIZE);
    for (uint64_t i = 0; i < count; i++)
        frames.stack[frames.free++] = (uint32_t)(count - 1 - i);
}

static uint64_t frame_of(uint64_t pte)
{
    return ((pte & PTE_ADDR) - region.base) / PAGE_SIZE;
}

static uint64_t frame_new(void)
{
    uint32_t frame;

    if (frames.free == 0)
        fail("all %lu frames are in use", frames.count);
    frame = frames.stack[--frames.free];
    frames.refs[frame] = 1;
    return region.base + frame * PAGE_SIZE;
}

static void frame_drop(uint64_t pte)
{
    uint64_t frame = frame_of(pte);

    if (--frames.refs[frame] == 0)
        frames.stack[frames.free++] = (uint32_t)frame;
}

/* -- address spaces ------------------------------------------------------------------ */

static inline uint64_t va_of(uint64_t page)
{
    return WINDOW_BASE + page * PAGE_SIZE;
}

/* The word of a page that is written; another one in each page, for different cache lines. */
static inline volatile uint64_t *word_of(uint64_t page)
{
    return (volatile uint64_t *)va_of(page) + page % 512;
}

static void space_load(struct space *s)
{
    if (current == s)
        return;
    current = s;
    root_load(s ? s->root : boot_pml4);
}

static void flush(void)
{
    root_load(current ? current->root : boot_pml4);
}

static void map_copy(uint64_t *pte)
{
    uint64_t old = *pte;

    if (frames.refs[frame_of(old)] == 1) {
        *pte = (old | PTE_W) & ~PTE_COW;
        stats.reused++;
        return;
    }
    *pte = frame_new() | PTE_P | PTE_W | PTE_U;
    memcpy((void *)(*pte & PTE_ADDR), (const void *)(old & PTE_ADDR), PAGE_SIZE);
    frame_drop(old);
    stats.copied++;
}

static void on_fault(uint64_t va, uint64_t error)
{
    uint64_t frame, *pte;

    if (!current || va < WINDOW_BASE || va - WINDOW_BASE >= space_pages * PAGE_SIZE)
        fail("page fault at 0x%lx, error 0x%lx", va, error);
    pte = pte_at(current->root, va, 1, true);
    if (!(*pte & PTE_P)) {
        frame = frame_new();
        memset((void *)frame, 0, PAGE_SIZE);
        *pte = frame | PTE_P | PTE_W | PTE_U;
        stats.demand++;
    } else if ((error & PF_WRITE) && (*pte & PTE_COW)) {
        map_copy(pte);
        invlpg(va);
    } else {
        /* Something remembered what the entry was before. */
        stats.spurious++;
    }
}

static struct space *space_new(void)
{
    for (uint64_t i = 0; i < space_max; i++)
        if (!spaces[i].root) {
            spaces[i].root = root_new();
            memset(spaces[i].expect, 0, space_pages * sizeof(uint64_t));
            return &spaces[i];
        }
    return NULL;
}

static void unmap_pages(struct space *s, uint64_t n)
{
    for (uint64_t page = 0; page < n; page++) {
        uint64_t *pte = pte_at(s->root, va_of(page), 1, false);

        if (!pte || !(*pte & PTE_P))
            continue;
        frame_drop(*pte);
        *pte = 0;
        s->expect[page] = 0;
        stats.unmapped++;
    }
}

static void space_drop(struct space *s)
{
    if (current == s)
        space_load(NULL);
    unmap_pages(s, space_pages);
    root_free(s->root);
    s->root = NULL;
    stats.drops++;
}

/* Share every page of a space with a new one, as fork does: neither may write it without a copy. */
static struct space *space_fork(struct space *from)
{
    struct space *to = space_new();

    if (!to)
        return NULL;
    for (uint64_t page = 0; page < space_pages; page++) {
        uint64_t *pte = pte_at(from->root, va_of(page), 1, false);

        if (!pte || !(*pte & PTE_P))
            continue;
        *pte = (*pte & ~PTE_W) | PTE_COW;
        *pte_at(to->root, va_of(page), 1, true) = *pte & ~(PTE_A | PTE_D);
        frames.refs[frame_of(*pte)]++;
    }
    memcpy(to->expect, from->expect, space_pages * sizeof(uint64_t));
    if (current == from)
        flush();
    stats.forks++;
    return to;
}

/* -- work ----------------------------------------------------------------------------- */

/* Write the first n pages of a space. */
static void touch(struct space *s, uint64_t n)
{
    space_load(s);
    for (uint64_t page = 0; page < n; page++) {
        uint64_t word = pattern_mix(++stamp) | 1;

        *word_of(page) = word;
        s->expect[page] = word;
    }
}

/* Exchange the entries of neighbouring pages, and what is expected of them. */
static void move_pages(struct space *s, uint64_t n)
{
    for (uint64_t page = 0; page + 1 < n; page += 2) {
        uint64_t *a = pte_at(s->root, va_of(page), 1, false);
        uint64_t *b = pte_at(s->root, va_of(page + 1), 1, false);
        uint64_t pte = *a;

        *a = *b;
        *b = pte;
        stats.moved += 2;
    }
    flush();
}

static void check_page(struct space *s, uint64_t page, uint64_t holder)
{
    uint64_t *pte = pte_at(s->root, va_of(page), 1, false);
    uint64_t got;

    if (!pte || !(*pte & PTE_P)) {
        got = 0;
    } else {
        got = ((volatile uint64_t *)va_of(page))[holder % 512];
    }
    if (got == s->expect[holder])
        return;
    stats.bad++;
    if (stats.bad <= 10)
        print("error root=0x%lx page=%lu holds 0x%lx, not 0x%lx\n", (uint64_t)s->root / PAGE_SIZE, page, got,
              s->expect[holder]);
}

static void check(struct space *s, uint64_t *ret_pages)
{
    space_load(s);
    for (uint64_t page = 0; page < space_pages; page++) {
        check_page(s, page, page);
        if (s->expect[page])
            ++*ret_pages;
    }
}

/* Map, move, look, unmap, again and again; what was unmapped last is mapped first, so every page gets another frame. */
static void storm(struct space *s, uint64_t n, uint64_t rounds)
{
    space_load(s);
    while (rounds-- > 0) {
        touch(s, n);
        move_pages(s, n);
        for (uint64_t page = 0; page + 1 < n; page += 2) {
            check_page(s, page, page + 1);
            check_page(s, page + 1, page);
        }
        unmap_pages(s, n);
        flush();
    }
}

static uint64_t space_count(void)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < space_max; i++)
        n += spaces[i].root != NULL;
    return n;
}

static void print_stats(const char *prefix)
{
    print("%s spaces=%lu tables=%lu frames=%lu demand=%lu copied=%lu reused=%lu unmapped=%lu moved=%lu forks=%lu "
          "drops=%lu spurious=%lu bad=%lu\n",
          prefix, space_count(), tables_in_use(), frames.count - frames.free, stats.demand, stats.copied, stats.reused,
          stats.unmapped, stats.moved, stats.forks, stats.drops, stats.spurious, stats.bad);
}

static void check_all(uint64_t *ret_pages)
{
    for (uint64_t i = 0; i < space_max; i++)
        if (spaces[i].root)
            check(&spaces[i], ret_pages);
}

/* -- by itself --------------------------------------------------------------------------- */

static struct space *space_need(void)
{
    struct space *s = space_new();

    if (!s)
        fail("all %lu address spaces are in use", space_max);
    return s;
}

static void round_touch(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        touch(space_need(), space_pages);
}

/* Children write the first half of what they share, the parent then all of it. */
static void round_cow(uint64_t count)
{
    struct space *parent = space_need();

    touch(parent, space_pages);
    for (uint64_t i = 1; i < count; i++)
        touch(space_fork(parent), space_pages / 2);
    touch(parent, space_pages);
}

static void run_round(const char *mode, uint64_t count)
{
    uint64_t pages = 0;
    bool all = strcmp(mode, "all") == 0;

    if (all || strcmp(mode, "touch") == 0)
        round_touch(count);
    check_all(&pages);
    for (uint64_t i = 0; all && i < space_max; i++)
        if (spaces[i].root)
            space_drop(&spaces[i]);
    if (all || strcmp(mode, "cow") == 0)
        round_cow(count);
    check_all(&pages);
    if (all || strcmp(mode, "storm") == 0)
        storm(space_need(), space_pages, 4);
    for (uint64_t i = 0; i < space_max; i++)
        if (spaces[i].root)
            space_drop(&spaces[i]);
}

static void run_rounds(const char *mode, uint64_t count, uint64_t rounds)
{
    for (uint64_t r = 0; rounds == 0 || r < rounds; r++) {
        uint64_t start = rdtsc();

        run_round(mode, count);
        print("%s: round=%lu us=%lu", guest_name, r + 1, clock_us(rdtsc() - start));
        print_stats("");
    }
    if (stats.bad)
        fail("%lu pages held something else", stats.bad);
    print("%s: done rounds=%lu bad=0\n", guest_name, rounds);
}

/* -- commands ---------------------------------------------------------------------------- */

static bool number(const char *text, const char *what, uint64_t max, uint64_t *ret)
{
    if (parse_u64(text, ret) == 0 && *ret <= max)
        return true;
    print("error %s %s is not a number up to %lu\n", what, text, max);
    return false;
}

static struct space *parse_space(const char *text)
{
    uint64_t id;

    if (!number(text, "space", space_max - 1, &id))
        return NULL;
    if (!spaces[id].root) {
        print("error space %lu is not in use\n", id);
        return NULL;
    }
    return &spaces[id];
}

static uint64_t space_id(const struct space *s)
{
    return (uint64_t)(s - spaces);
}

/* touch SPACE COUNT, touch all COUNT */
static void command_touch(char **words)
{
    struct space *s = NULL;
    uint64_t n;

    if (!number(words[2], "count", space_pages, &n))
        return;
    if (strcmp(words[1], "all") == 0) {
        for (uint64_t i = 0; i < space_max; i++)
            if (spaces[i].root)
                touch(&spaces[i], n);
    } else {
        s = parse_space(words[1]);
        if (!s)
            return;
        touch(s, n);
    }
    print_stats("done");
}

/* new; fork SPACE */
static void command_new(struct space *from)
{
    struct space *s = from ? space_fork(from) : space_new();

    if (s)
        print("done space=%lu root=0x%lx\n", space_id(s), (uint64_t)s->root / PAGE_SIZE);
    else
        print("error all %lu address spaces are in use\n", space_max);
}

static void command_spaces(void)
{
    for (uint64_t i = 0; i < space_max; i++) {
        uint64_t mapped = 0;

        if (!spaces[i].root)
            continue;
        for (uint64_t page = 0; page < space_pages; page++) {
            const uint64_t *pte = pte_at(spaces[i].root, va_of(page), 1, false);

            mapped += pte && (*pte & PTE_P);
        }
        print("space id=%lu root=0x%lx gva=0x%lx mapped=%lu\n", i, (uint64_t)spaces[i].root / PAGE_SIZE, WINDOW_BASE,
              mapped);
    }
    print("done spaces=%lu\n", space_count());
}

/* Commands about one space: its number is words[1]. */
static void command_space(char **words, unsigned int n)
{
    struct space *s = parse_space(words[1]);
    uint64_t pages, rounds;

    if (!s)
        return;
    if (n == 2 && strcmp(words[0], "fork") == 0) {
        command_new(s);
        return;
    }
    if (n == 2 && strcmp(words[0], "drop") == 0) {
        space_drop(s);
    } else if (n == 2) {
        space_load(s);
    } else {
        if (!number(words[2], "count", space_pages, &pages) || !number(words[3], "rounds", UINT32_MAX, &rounds))
            return;
        storm(s, pages, rounds);
    }
    print_stats("done");
}

static bool about_space(const char *word, unsigned int n)
{
    if (n == 2)
        return strcmp(word, "fork") == 0 || strcmp(word, "drop") == 0 || strcmp(word, "load") == 0;
    return n == 4 && strcmp(word, "storm") == 0;
}

static void command(char *line)
{
    char *words[WORDS_MAX];
    unsigned int n = split_words(line, words, WORDS_MAX);
    uint64_t pages = 0;

    if (n == 0 || (n <= WORDS_MAX && common_command(words, n)))
        return;
    if (strcmp(words[0], "touch") == 0 && n == 3) {
        command_touch(words);
    } else if (strcmp(words[0], "new") == 0 && n == 1) {
        command_new(NULL);
    } else if (about_space(words[0], n)) {
        command_space(words, n);
    } else if (strcmp(words[0], "spaces") == 0 && n == 1) {
        command_spaces();
    } else if (strcmp(words[0], "check") == 0 && n == 1) {
        check_all(&pages);
        print("check spaces=%lu pages=%lu bad=%lu\n", space_count(), pages, stats.bad);
    } else if (strcmp(words[0], "stats") == 0 && n == 1) {
        print_stats("stats");
    } else {
        print("error bad command %s\n", words[0]);
    }
}

/* -- start --------------------------------------------------------------------------------- */

static const char *option_mode(void)
{
    static const char *const modes[] = {"all", "touch", "cow", "storm", "serve"};
    const char *mode = opt_get("mode");

    if (!mode)
        return modes[0];
    for (unsigned int i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
        if (strcmp(mode, modes[i]) == 0)
            return mode;
    fail("mode=%s is none of all, touch, cow, storm, serve", mode);
}

/* Room for every space with all its pages mapped, and one space more for what a storm takes. */
static void setup(uint64_t count)
{
    uint64_t frame_count = (space_max + 1) * space_pages;
    uint64_t tables = (space_max + 1) * (4 + space_pages / 512 + 1);
    uint64_t words = align_up(space_pages * sizeof(uint64_t), PAGE_SIZE) / PAGE_SIZE;

    memory_setup(tables + space_max * (words + 1) + frame_count * 6 / PAGE_SIZE + 4, &region);
    if (frame_count > region.pages)
        fail("%lu address spaces of %lu pages need %lu frames, the region has %lu", space_max, space_pages, frame_count,
             region.pages);
    frames_init(frame_count);
    spaces = (struct space *)pool_pages(align_up(space_max * sizeof(*spaces), PAGE_SIZE) / PAGE_SIZE);
    for (uint64_t i = 0; i < space_max; i++)
        spaces[i].expect = pool_pages(words);
    page_fault_handler = on_fault;
    clock_init();
    print("%s: ready region gfn=0x%lx pages=%lu spaces=%lu\n", guest_name, region.base / PAGE_SIZE, frame_count, count);
}

void guest_main(void)
{
    char line[LINE_SIZE];
    const char *mode = option_mode();
    uint64_t count = opt_u64("spaces", 4), rounds = opt_u64("rounds", 1);

    space_max = opt_u64("max-spaces", count + 4);
    space_pages = opt_u64("pages", 256);
    if (space_max < 1 || space_max > SPACES_MAX || count > space_max)
        fail("spaces=%lu max-spaces=%lu is not 1 to %u", count, space_max, SPACES_MAX);
    if (space_pages < 2 || space_pages > 1u << 20)
        fail("pages=%lu is not between 2 and %u", space_pages, 1u << 20);
    setup(count);
    if (strcmp(mode, "serve") != 0) {
        run_rounds(mode, count, rounds);
        return;
    }
    for (uint64_t i = 0; i < count; i++)
        space_need();
    for (;;) {
        line_wait(line);
        command(line);
    }
}
