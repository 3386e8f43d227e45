/*
 * Drives virtio-balloon from ring 3: puts pages of its region into the balloon, takes them out, reports them as free, and says
 * what they hold. Commands: `fill FIRST N`, `inflate FIRST N`, `deflate FIRST N`, `report FIRST N`, `sum FIRST N`, pages counted
 * from the region's begin; `actual 0 N` says how large the balloon is, `target 0 0` what it is asked for.
 */
#include "runtime.h"

#define MMIO_BASE 0xd0000000ul
#define MMIO_SLOTS 16u
#define BALLOON_ID 5u
#define QUEUE_SIZE 8u
#define WORDS_MAX 4
#define PFNS_PER_PAGE 1024u

enum {
    INFLATE,
    DEFLATE,
    STATS,
    REPORTING,
    QUEUES,
};

const char guest_name[] = "ballooner";
const char *const guest_options[] = {"base", "ws", NULL};

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

struct queue {
    struct desc *desc;
    volatile uint16_t *avail; /* flags, index, ring */
    volatile uint16_t *used;
};

static volatile uint32_t *regs;
static struct region region;
static struct queue queues[QUEUES];
static uint32_t *list;

static volatile uint32_t *reg(unsigned int offset)
{
    return &regs[offset / 4];
}

static void set_address(unsigned int offset, const volatile void *p)
{
    *reg(offset) = (uint32_t)(uintptr_t)p;
    *reg(offset + 4) = (uint32_t)((uintptr_t)p >> 32);
}

static void queue_start(unsigned int i)
{
    struct queue *q = &queues[i];

    q->desc = (struct desc *)pool_page();
    q->avail = (volatile uint16_t *)pool_page();
    q->used = (volatile uint16_t *)pool_page();
    *reg(0x30) = i;
    *reg(0x38) = QUEUE_SIZE;
    set_address(0x80, q->desc);
    set_address(0x90, q->avail);
    set_address(0xa0, q->used);
    *reg(0x44) = 1;
}

static void balloon_start(void)
{
    for (unsigned int slot = 0; slot < MMIO_SLOTS && !regs; slot++) {
        volatile uint32_t *r = (volatile uint32_t *)(MMIO_BASE + slot * PAGE_SIZE);

        if (r[0] == 0x74726976 && r[2] == BALLOON_ID)
            regs = r;
    }
    if (!regs)
        fail("there is no balloon");
    *reg(0x70) = 0;
    *reg(0x70) = 3;
    *reg(0x24) = 0;
    *reg(0x20) = 1 << 0 | 1 << 1 | 1 << 5; /* MUST_TELL_HOST, STATS_VQ, REPORTING */
    *reg(0x24) = 1;
    *reg(0x20) = 1; /* VERSION_1 */
    *reg(0x70) = 11;
    if (!(*reg(0x70) & 8))
        fail("the balloon refuses its features");
    for (unsigned int i = 0; i < QUEUES; i++)
        queue_start(i);
    *reg(0x70) = 15;
}

/* Have the device take a request, and wait until it has. */
static void request(unsigned int i, uint64_t addr, uint32_t len, uint16_t flags)
{
    struct queue *q = &queues[i];
    uint16_t idx = q->avail[1];

    q->desc[0] = (struct desc){.addr = addr, .len = len, .flags = flags};
    q->avail[2 + idx % QUEUE_SIZE] = 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    q->avail[1] = (uint16_t)(idx + 1);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    *reg(0x50) = i;
    while (q->used[1] != (uint16_t)(idx + 1))
        cpu_relax();
}

static void tell_frames(unsigned int queue, uint64_t first, uint64_t n)
{
    while (n > 0) {
        uint32_t count = n < PFNS_PER_PAGE ? (uint32_t)n : PFNS_PER_PAGE;

        for (uint32_t i = 0; i < count; i++)
            list[i] = (uint32_t)(region.base / PAGE_SIZE + first + i);
        request(queue, (uint64_t)list, 4 * count, 0);
        first += count;
        n -= count;
    }
}

static uint64_t *page_at(uint64_t i)
{
    return (uint64_t *)(region.base + i * PAGE_SIZE);
}

static void fill(uint64_t first, uint64_t n)
{
    for (uint64_t i = first; i < first + n; i++)
        for (unsigned int w = 0; w < PAGE_SIZE / 8; w++)
            page_at(i)[w] = i + 1;
}

/* How many of the pages are as they were filled, and how many are zeros. */
static void sum(uint64_t first, uint64_t n)
{
    uint64_t filled = 0, zero = 0;

    for (uint64_t i = first; i < first + n; i++) {
        uint64_t same = 0, none = 0;

        for (unsigned int w = 0; w < PAGE_SIZE / 8; w++) {
            same += page_at(i)[w] == i + 1;
            none += page_at(i)[w] == 0;
        }
        filled += same == PAGE_SIZE / 8;
        zero += none == PAGE_SIZE / 8;
    }
    print("ballooner: filled=%lu zero=%lu\n", filled, zero);
}

static void command(char **words, uint64_t first, uint64_t n)
{
    if (strcmp(words[0], "fill") == 0)
        fill(first, n);
    else if (strcmp(words[0], "inflate") == 0)
        tell_frames(INFLATE, first, n);
    else if (strcmp(words[0], "deflate") == 0)
        tell_frames(DEFLATE, first, n);
    else if (strcmp(words[0], "report") == 0)
        request(REPORTING, (uint64_t)page_at(first), (uint32_t)(n * PAGE_SIZE), 2);
    else if (strcmp(words[0], "sum") == 0)
        sum(first, n);
    else if (strcmp(words[0], "actual") == 0)
        *reg(0x104) = (uint32_t)n;
    else if (strcmp(words[0], "target") == 0)
        print("ballooner: target=%u actual=%u\n", *reg(0x100), *reg(0x104));
    else
        fail("no such command: %s", words[0]);
    print("ballooner: done\n");
}

void guest_main(void)
{
    char line[LINE_SIZE], *words[WORDS_MAX + 1];
    uint64_t first, count;

    memory_setup(64, &region);
    list = (uint32_t *)pool_page();
    balloon_start();
    print("ballooner: ready region gfn=0x%lx pages=%lu\n", region.base / PAGE_SIZE, region.pages);
    for (;;) {
        unsigned int n;

        line_wait(line);
        n = split_words(line, words, WORDS_MAX);
        if (n == 0 || common_command(words, n))
            continue;
        if (n != 3 || parse_u64(words[1], &first) < 0 || parse_u64(words[2], &count) < 0 || count > region.pages ||
            first > region.pages - count)
            fail("wants FIRST and N within %lu pages", region.pages);
        command(words, first, count);
    }
}
