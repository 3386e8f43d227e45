/*
 * Many virtual mappings of few frames, so that a reverse mapping can be held against what the guest's tables say. The
 * set follows from the options (README.md has the rule) and can be printed, read from the tables themselves.
 *
 * Root r maps, at WINDOW_BASE + (a * FRAMES + f) * 4K, for alias a and slot f, frame (f + r + shift) mod FRAMES; and
 * at HUGE_BASE + h * 2M, for huge alias h, the 2M block (h + r + shift) mod BLOCKS. The frames are the first pages of
 * block 0, so some of them are mapped both ways.
 */
#include "runtime.h"

#include "pattern.h"

#define HUGE_BASE (WINDOW_BASE + 0x40000000ul)
#define ROOTS_MAX 64u
#define WINDOW_PAGES 262144u /* 4K mappings end where the 2M ones begin */
#define HUGE_MAX 512u
#define WORDS_MAX 8

const char guest_name[] = "aliaser";
const char *const guest_options[] = {"mode",   "roots", "frames", "aliases", "huge",
                                     "blocks", "shift", "base",   "ws",      NULL};

static struct region region;
static uint64_t *roots[ROOTS_MAX];
static uint64_t root_count, frame_count, alias_count, huge_count, block_count, shift;
static bool nx;

/* -- the set ------------------------------------------------------------------------- */

static uint64_t small_va(uint64_t alias, uint64_t slot)
{
    return WINDOW_BASE + (alias * frame_count + slot) * PAGE_SIZE;
}

static uint64_t small_frame(uint64_t root, uint64_t slot)
{
    return (slot + root + shift) % frame_count;
}

/* Every second alias is read-only, every fourth the supervisor's, and of four in a row two may not be executed. */
static uint64_t small_flags(uint64_t alias)
{
    return PTE_P | (alias % 2 == 0 ? PTE_W : 0) | (alias % 4 == 3 ? 0 : PTE_U) | (alias / 2 % 2 && nx ? PTE_NX : 0);
}

static uint64_t huge_flags(uint64_t alias)
{
    return PTE_P | PTE_PS | PTE_U | (alias % 2 == 0 ? PTE_W : 0) | (alias % 2 && nx ? PTE_NX : 0);
}

/* Write every entry as the rule has it. What the CPU noted in the old one (accessed, dirty) goes. */
static void map_root(uint64_t r)
{
    for (uint64_t a = 0; a < alias_count; a++)
        for (uint64_t f = 0; f < frame_count; f++)
            *pte_at(roots[r], small_va(a, f), 1, true) = (region.base + small_frame(r, f) * PAGE_SIZE) | small_flags(a);
    for (uint64_t h = 0; h < huge_count; h++)
        *pte_at(roots[r], HUGE_BASE + h * HUGE_SIZE, 2, true) =
            (region.base + (h + r + shift) % block_count * HUGE_SIZE) | huge_flags(h);
}

static void map_all(void)
{
    for (uint64_t r = 0; r < root_count; r++)
        map_root(r);
}

/* -- touching -------------------------------------------------------------------------- */

/* Use every mapping of a root that ring 3 may use; count what does not hold what the frame holds. */
static uint64_t touch_root(uint64_t r)
{
    uint64_t bad = 0;

    root_load(roots[r]);
    for (uint64_t a = 0; a < alias_count; a++) {
        if (!(small_flags(a) & PTE_U))
            continue;
        for (uint64_t f = 0; f < frame_count; f++) {
            volatile uint64_t *alias = (volatile uint64_t *)small_va(a, f);
            volatile uint64_t *frame = (volatile uint64_t *)(region.base + small_frame(r, f) * PAGE_SIZE);
            uint64_t word = pattern_mix(a << 32 | f);

            if (small_flags(a) & PTE_W)
                *alias = word;
            bad += *alias != *frame;
        }
    }
    for (uint64_t h = 0; h < huge_count; h++) {
        volatile uint64_t *alias = (volatile uint64_t *)(HUGE_BASE + h * HUGE_SIZE + PAGE_SIZE);
        volatile uint64_t *frame =
            (volatile uint64_t *)(region.base + (h + r + shift) % block_count * HUGE_SIZE + PAGE_SIZE);

        if (huge_flags(h) & PTE_W)
            *alias = pattern_mix(h);
        bad += *alias != *frame;
    }
    root_load(boot_pml4);
    return bad;
}

static uint64_t touch_all(void)
{
    uint64_t bad = 0;

    for (uint64_t r = 0; r < root_count; r++)
        bad += touch_root(r);
    return bad;
}

/* -- printing ---------------------------------------------------------------------------- */

struct walk {
    uint64_t first, last; /* guest physical addresses that count, inclusive */
    uint64_t found;
};

static void print_map(struct walk *w, const uint64_t *root, uint64_t va, uint64_t pte, unsigned int level)
{
    uint64_t pa = pte & PTE_ADDR, size = level == 2 ? HUGE_SIZE : PAGE_SIZE;

    if (pa + size - 1 < w->first || pa > w->last)
        return;
    /* Of a 2M mapping, the place where the asked frame is in it. */
    if (w->first == w->last && level == 2) {
        va += w->first - pa;
        pa = w->first;
    }
    print("map root=0x%lx gva=0x%lx gfn=0x%lx level=%s flags=%c%c%c\n", (uint64_t)root / PAGE_SIZE, va, pa / PAGE_SIZE,
          level == 2 ? "2M" : "4K", pte & PTE_W ? 'w' : '-', pte & PTE_U ? 'u' : '-', pte & PTE_NX ? '-' : 'x');
    w->found++;
}

/* Print the mappings below a table, in order of address. */
static void walk_table(struct walk *w, const uint64_t *root, const uint64_t *table, unsigned int level, uint64_t va)
{
    for (uint64_t i = 0; i < 512; i++) {
        uint64_t entry = table[i], at = va | i << (12 + 9 * (level - 1));

        if (!(entry & PTE_P))
            continue;
        if (level == 1 || (entry & PTE_PS))
            print_map(w, root, at, entry, level);
        else
            walk_table(w, root, table_of(entry), level - 1, at);
    }
}

/* The window of every root: the documented set. */
static void command_maps(char **words, unsigned int n)
{
    struct walk w = {.first = 0, .last = UINT64_MAX};
    uint64_t only = UINT64_MAX;

    if (n == 2 && (parse_u64(words[1], &only) < 0 || only >= root_count)) {
        print("error root %s is not a number below %lu\n", words[1], root_count);
        return;
    }
    for (uint64_t r = 0; r < root_count; r++)
        if ((only == UINT64_MAX || only == r) && (roots[r][1] & PTE_P))
            walk_table(&w, roots[r], table_of(roots[r][1]), 3, WINDOW_BASE);
    print("done maps=%lu\n", w.found);
}

/* All mappings of one frame, the one-to-one map of each root and of the boot root included. */
static void command_rmap(const char *text)
{
    uint64_t gfn;
    struct walk w = {.found = 0};

    if (parse_u64(text, &gfn) < 0 || !memory_is_ram(gfn * PAGE_SIZE, PAGE_SIZE) || gfn >> 40) {
        print("error gfn %s is not a page of RAM\n", text);
        return;
    }
    w.first = gfn * PAGE_SIZE;
    w.last = w.first;
    walk_table(&w, boot_pml4, boot_pml4, 4, 0);
    for (uint64_t r = 0; r < root_count; r++)
        walk_table(&w, roots[r], roots[r], 4, 0);
    print("done maps=%lu\n", w.found);
}

/* -- commands ------------------------------------------------------------------------------ */

static void command_roots(void)
{
    print("root id=boot gfn=0x%lx\n", (uint64_t)boot_pml4 / PAGE_SIZE);
    for (uint64_t r = 0; r < root_count; r++)
        print("root id=%lu gfn=0x%lx\n", r, (uint64_t)roots[r] / PAGE_SIZE);
    print("done roots=%lu\n", root_count + 1);
}

/* remap SHIFT: the same set with every frame moved on. */
static void command_remap(const char *text)
{
    uint64_t v;

    if (parse_u64(text, &v) < 0 || v > UINT32_MAX) {
        print("error shift %s is not a number up to %u\n", text, UINT32_MAX);
        return;
    }
    shift = v;
    map_all();
    print("done bad=%lu\n", touch_all());
}

/* load ROOT, load boot: leave that root in CR3. */
static void command_load(const char *text)
{
    uint64_t r = 0;
    bool boot = strcmp(text, "boot") == 0;

    if (!boot && (parse_u64(text, &r) < 0 || r >= root_count)) {
        print("error root %s is neither boot nor a number below %lu\n", text, root_count);
        return;
    }
    root_load(boot ? boot_pml4 : roots[r]);
    print("done root=0x%lx\n", (uint64_t)(boot ? boot_pml4 : roots[r]) / PAGE_SIZE);
}

static void command(char *line)
{
    char *words[WORDS_MAX];
    unsigned int n = split_words(line, words, WORDS_MAX);

    if (n == 0 || (n <= WORDS_MAX && common_command(words, n)))
        return;
    if (strcmp(words[0], "maps") == 0 && n <= 2)
        command_maps(words, n);
    else if (strcmp(words[0], "rmap") == 0 && n == 2)
        command_rmap(words[1]);
    else if (strcmp(words[0], "roots") == 0 && n == 1)
        command_roots();
    else if (strcmp(words[0], "touch") == 0 && n == 1)
        print("done bad=%lu\n", touch_all());
    else if (strcmp(words[0], "remap") == 0 && n == 2)
        command_remap(words[1]);
    else if (strcmp(words[0], "load") == 0 && n == 2)
        command_load(words[1]);
    else if (strcmp(words[0], "region") == 0 && n == 1)
        print("region gfn=0x%lx pages=%lu\n", region.base / PAGE_SIZE, block_count * 512);
    else
        print("error bad command %s\n", words[0]);
}

/* -- start ----------------------------------------------------------------------------------- */

static uint64_t option(const char *key, uint64_t def, uint64_t min, uint64_t max)
{
    uint64_t v = opt_u64(key, def);

    if (v < min || v > max)
        fail("%s=%lu is not between %lu and %lu", key, v, min, max);
    return v;
}

static void setup(void)
{
    root_count = option("roots", 3, 1, ROOTS_MAX);
    frame_count = option("frames", 4, 1, 512);
    alias_count = option("aliases", 16, 1, WINDOW_PAGES / frame_count);
    block_count = option("blocks", 2, 1, HUGE_MAX);
    huge_count = option("huge", 4, 0, HUGE_MAX);
    shift = option("shift", 0, 0, UINT32_MAX);
    memory_setup(root_count * (5 + alias_count * frame_count / 512 + 1) + 1, &region);
    if (region.base % HUGE_SIZE || region.pages < block_count * 512)
        fail("region 0x%lx of %lu pages does not hold %lu blocks of 2M", region.base, region.pages, block_count);
    nx = have_nx();
    for (uint64_t r = 0; r < root_count; r++)
        roots[r] = root_new();
    map_all();
}

void guest_main(void)
{
    char line[LINE_SIZE];
    const char *mode = opt_get("mode");
    uint64_t bad;

    if (mode && strcmp(mode, "once") != 0 && strcmp(mode, "serve") != 0)
        fail("mode=%s is neither once nor serve", mode);
    setup();
    bad = touch_all();
    print("%s: ready region gfn=0x%lx pages=%lu roots=%lu maps=%lu bad=%lu\n", guest_name, region.base / PAGE_SIZE,
          block_count * 512, root_count, root_count * (alias_count * frame_count + huge_count), bad);
    if (bad)
        fail("%lu mappings do not show their frame", bad);
    if (!mode || strcmp(mode, "once") == 0)
        return;
    for (;;) {
        line_wait(line);
        command(line);
    }
}
