#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/log.h"
#include "mmu/mem.h"
#include "rand.h"

/* The most that can be had: ThreadSanitizer leaves a program, with what is drawn at random of it, little address space. */
#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define LARGEST (100 * GiB)
#else
#define LARGEST MEM_SIZE_MAX
#endif

static struct mem *new_mem(uint64_t size)
{
    struct mem_config config = {.size = size};
    struct mem *mem = NULL;

    assert_int_equal(mem_new(&config, &mem), 0);
    assert_non_null(mem);
    return mem;
}

static struct page_set new_set(const struct mem *mem)
{
    struct page_set set;

    assert_int_equal(page_set_init(&set, mem_pages(mem)), 0);
    return set;
}

/* Run `f` and return what it logged; the caller frees it. */
static char *captured_log(void (*f)(void *), void *arg)
{
    int saved = dup(2), fd = memfd_create("log", MFD_CLOEXEC);
    char *text = NULL;
    off_t len;

    assert_true(saved >= 0 && fd >= 0);
    assert_true(dup2(fd, 2) == 2);
    f(arg);
    assert_true(dup2(saved, 2) == 2);
    close(saved);
    len = lseek(fd, 0, SEEK_END);
    text = calloc(1, (size_t)len + 1);
    assert_non_null(text);
    assert_int_equal(fd_pread_all(fd, text, (size_t)len, 0), 0);
    close(fd);
    return text;
}

/* -- creation ----------------------------------------------------------------- */

struct refused {
    struct mem_config config;
    const char *says;
    int r;
};

static void try_refused(void *arg)
{
    struct refused *c = arg;
    struct mem *mem = NULL;

    c->r = mem_new(&c->config, &mem);
    assert_null(mem);
}

static void test_refused_sizes(void **state)
{
    struct refused cases[] = {
        {.config = {.size = 0}, .says = "is not within"},
        {.config = {.size = 4096}, .says = "is not within"},
        {.config = {.size = MEM_SIZE_MIN - 1}, .says = "is not within"},
        {.config = {.size = MEM_SIZE_MAX + MEM_SIZE_ALIGN}, .says = "is not within"},
        {.config = {.size = UINT64_MAX}, .says = "is not within"},
        {.config = {.size = MEM_SIZE_MIN + 4096}, .says = "multiple of 1 MiB"},
        {.config = {.size = 3 * MiB, .hugepages = true}, .says = "multiple of 2 MiB"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char *text = captured_log(try_refused, &cases[i]);

        assert_int_equal(cases[i].r, -EINVAL);
        assert_non_null(strstr(text, cases[i].says));
        free(text);
    }
}

static void test_slots(void **state)
{
    static const struct {
        uint64_t size, low;
    } cases[] = {
        {MEM_SIZE_MIN, MEM_SIZE_MIN}, {512 * MiB, 512 * MiB},   {3 * GiB, 3 * GiB},
        {3 * GiB + MiB, 3 * GiB},     {64 * GiB, 3 * GiB},      {LARGEST, 3 * GiB},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct mem *mem = new_mem(cases[i].size);
        unsigned int count;
        const struct mem_slot *slots = mem_slots(mem, &count);

        assert_int_equal(mem_size(mem), cases[i].size);
        assert_int_equal(mem_pages(mem), cases[i].size / 4096);
        assert_int_equal(count, cases[i].size > cases[i].low ? 2 : 1);
        assert_int_equal(slots[0].id, 0);
        assert_int_equal(slots[0].base, 0);
        assert_int_equal(slots[0].offset, 0);
        assert_int_equal(slots[0].size, cases[i].low);
        assert_true(is_aligned((uintptr_t)slots[0].hva, 2 * MiB));
        if (count == 2) {
            assert_int_equal(slots[1].id, 1);
            assert_int_equal(slots[1].base, 4 * GiB);
            assert_int_equal(slots[1].offset, cases[i].low);
            assert_int_equal(slots[1].size, cases[i].size - cases[i].low);
            assert_ptr_equal(slots[1].hva, slots[0].hva + cases[i].low);
        }
        mem_free(mem);
    }
    mem_free(NULL);
}

/* The whole "VmFlags" line of the mapping that holds the address. */
static bool vm_flags_have(const void *address, const char *flag)
{
    FILE *f = fopen("/proc/self/smaps", "re");
    char line[512];
    bool here = false, found = false;

    assert_non_null(f);
    while (fgets(line, sizeof(line), f)) {
        uintptr_t start, end;

        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &start, &end) == 2)
            here = start <= (uintptr_t)address && (uintptr_t)address < end;
        else if (here && strncmp(line, "VmFlags:", 8) == 0)
            found = strstr(line, flag);
    }
    fclose(f);
    return found;
}

static void test_file(void **state)
{
    struct mem *mem = new_mem(8 * MiB);
    unsigned int count;
    uint8_t *ram = mem_slots(mem, &count)[0].hva, *alias = mem_ptr(mem, 0, 0), *both[] = {ram, alias};
    struct stat st;
    int pipes[2];
    char byte = 7;

    assert_int_equal(fstat(mem_fd(mem), &st), 0);
    assert_int_equal(st.st_size, 8 * MiB);
    assert_true(fcntl(mem_fd(mem), F_GETFD) & FD_CLOEXEC);
    /* Nobody can take pages away from under the mappings. */
    assert_int_equal(ftruncate(mem_fd(mem), 4096), -1);
    assert_int_equal(ftruncate(mem_fd(mem), (off_t)(16 * MiB)), -1);
    /* What is written through the file is guest memory, and the other way round; and there are two ways to it. */
    assert_ptr_equal(mem_slots(mem, &count)[0].alias, alias);
    assert_ptr_not_equal(ram, alias);
    assert_int_equal(pwrite(mem_fd(mem), &byte, 1, 12345), 1);
    assert_int_equal(ram[12345], 7);
    assert_int_equal(alias[12345], 7);
    alias[12345] = 8;
    assert_int_equal(ram[12345], 8);
    assert_int_equal(pipe(pipes), 0);
    for (size_t i = 0; i < ARRAY_SIZE(both); i++) {
        assert_true(vm_flags_have(both[i], " sh"));
        assert_true(vm_flags_have(both[i], " dd"));
        /* Both ends are guarded. */
        assert_int_equal(write(pipes[1], both[i] + 8 * MiB - 1, 1), 1);
        assert_int_equal(write(pipes[1], both[i] + 8 * MiB, 1), -1);
        assert_int_equal(errno, EFAULT);
        assert_int_equal(write(pipes[1], both[i] - 1, 1), -1);
        assert_int_equal(errno, EFAULT);
    }
    close(pipes[0]);
    close(pipes[1]);
    mem_free(mem);
}

static uint64_t allocated(const struct mem *mem)
{
    struct stat st;

    assert_int_equal(fstat(mem_fd(mem), &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void test_prealloc_and_discard(void **state)
{
    struct mem_config config = {.size = 130 * MiB, .prealloc = true};
    struct mem *mem;
    uint64_t word = 0x1122334455667788;

    /* More than one chunk, and the last one short. */
    assert_int_equal(mem_new(&config, &mem), 0);
    assert_int_equal(allocated(mem), 130 * MiB);
    assert_int_equal(mem_write(mem, 5 * MiB, &word, sizeof(word)), 0);
    assert_int_equal(mem_discard(mem), 0);
    assert_int_equal(mem_read(mem, 5 * MiB, &word, sizeof(word)), 0);
    assert_int_equal(word, 0);
    assert_int_equal(allocated(mem), 130 * MiB);
    mem_free(mem);

    mem = new_mem(16 * MiB);
    assert_int_equal(allocated(mem), 0);
    word = 1;
    assert_int_equal(mem_write(mem, 5 * MiB, &word, sizeof(word)), 0);
    assert_true(allocated(mem) > 0);
    assert_int_equal(mem_discard(mem), 0);
    assert_int_equal(allocated(mem), 0);
    assert_int_equal(mem_read(mem, 5 * MiB, &word, sizeof(word)), 0);
    assert_int_equal(word, 0);
    mem_free(mem);
}

static uint64_t free_huge_pages(void)
{
    char *text = NULL;
    uint64_t n = 0;

    if (fd_read_file("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", 64, &text, NULL) == 0)
        n = strtoull(text, NULL, 10);
    free(text);
    return n;
}

static void test_huge_page_shortage(void **state)
{
    /* More than the machine can have. */
    const uint64_t size = LARGEST / GiB * GiB;
    struct refused c = {.config = {.size = size, .hugepages = true}};
    char *text, needed[96];

    snprintf(needed, sizeof(needed), "%" PRIu64 " huge pages of 2 MiB needed, %" PRIu64 " free", size / MEM_HUGE_PAGE_SIZE,
             free_huge_pages());
    text = captured_log(try_refused, &c);
    if (c.r == -EINVAL && strstr(text, "cannot create")) {
        print_message("# this kernel has no huge pages\n");
        free(text);
        skip();
    }
    assert_int_equal(c.r, -ENOMEM);
    assert_non_null(strstr(text, needed));
    assert_non_null(strstr(text, "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"));
    free(text);
}

static void test_huge_pages(void **state)
{
    struct mem_config config = {.size = 4 * MiB, .hugepages = true, .prealloc = true};
    struct mem *mem;
    int v = 42;

    if (free_huge_pages() < 2) {
        print_message("# fewer than 2 huge pages are free\n");
        skip();
    }
    assert_int_equal(mem_new(&config, &mem), 0);
    assert_true(vm_flags_have(mem_ptr(mem, 0, 0), " ht"));
    assert_int_equal(mem_write(mem, 4 * MiB - sizeof(v), &v, sizeof(v)), 0);
    assert_int_equal(mem_discard(mem), 0);
    assert_int_equal(mem_read(mem, 4 * MiB - sizeof(v), &v, sizeof(v)), 0);
    assert_int_equal(v, 0);
    mem_free(mem);
}

/* -- access ------------------------------------------------------------------- */

static void test_bounds(void **state)
{
    static const struct {
        gpa_t gpa;
        uint64_t len;
        bool ram;
    } cases[] = {
        {0, 1, true},
        {0, 3 * GiB, true},
        {0, 3 * GiB + 1, false},
        {3 * GiB - 1, 1, true},
        {3 * GiB - 1, 2, false},
        {3 * GiB, 1, false},
        {4 * GiB - 1, 1, false},
        {4 * GiB - 1, 2, false},
        {4 * GiB, 1, true},
        {4 * GiB, 32 * MiB, true},
        {4 * GiB, 32 * MiB + 1, false},
        {4 * GiB + 32 * MiB - 8, 8, true},
        {4 * GiB + 32 * MiB - 8, 9, false},
        {4 * GiB + 32 * MiB, 1, false},
        {1, UINT64_MAX, false},
        {0, UINT64_MAX, false},
        {4 * GiB, UINT64_MAX - 4 * GiB + 2, false},
        {UINT64_MAX, 1, false},
        {UINT64_MAX, 2, false},
        {UINT64_MAX - 4095, 8192, false},
        {UINT64_C(1) << 63, 1, false},
        {3 * GiB - 16, GiB + 32, false},
    };
    struct mem *mem = new_mem(3 * GiB + 32 * MiB);
    uint8_t buf[16];

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        bool small = cases[i].len <= sizeof(buf);

        print_message("# %" PRIx64 " + %" PRIx64 "\n", cases[i].gpa, cases[i].len);
        assert_int_equal(mem_is_ram(mem, cases[i].gpa, cases[i].len), cases[i].ram);
        assert_int_equal(mem_ptr(mem, cases[i].gpa, cases[i].len) != NULL, cases[i].ram);
        if (cases[i].ram && !small)
            continue;
        /* A length that is refused is refused whatever it is; nothing is copied. */
        memset(buf, 0x5a, sizeof(buf));
        assert_int_equal(mem_read(mem, cases[i].gpa, buf, (size_t)cases[i].len), cases[i].ram ? 0 : -EFAULT);
        assert_int_equal(buf[0], cases[i].ram ? 0 : 0x5a);
        assert_int_equal(mem_write(mem, cases[i].gpa, buf, (size_t)cases[i].len), cases[i].ram ? 0 : -EFAULT);
        assert_int_equal(mem_set(mem, cases[i].gpa, 0, (size_t)cases[i].len), cases[i].ram ? 0 : -EFAULT);
    }
    /* Length 0. */
    assert_true(mem_is_ram(mem, UINT64_MAX, 0));
    assert_int_equal(mem_read(mem, UINT64_MAX, buf, 0), 0);
    assert_int_equal(mem_write(mem, 3 * GiB, buf, 0), 0);
    assert_int_equal(mem_set(mem, 3 * GiB, 1, 0), 0);
    assert_null(mem_ptr(mem, 3 * GiB, 0));
    assert_non_null(mem_ptr(mem, 3 * GiB - 1, 0));
    mem_free(mem);
}

static void test_partial_write_touches_nothing(void **state)
{
    struct mem *mem = new_mem(3 * GiB + 32 * MiB);
    uint8_t ones[16], last[8];

    memset(ones, 0xff, sizeof(ones));
    assert_int_equal(mem_write(mem, 3 * GiB - 8, ones, sizeof(ones)), -EFAULT);
    assert_int_equal(mem_set(mem, 3 * GiB - 8, 0xff, sizeof(ones)), -EFAULT);
    assert_int_equal(mem_read(mem, 3 * GiB - 8, last, sizeof(last)), 0);
    for (size_t i = 0; i < sizeof(last); i++)
        assert_int_equal(last[i], 0);
    /* What is the next byte of the RAM file is another place in the guest. */
    assert_int_equal(mem_read(mem, 4 * GiB, last, sizeof(last)), 0);
    for (size_t i = 0; i < sizeof(last); i++)
        assert_int_equal(last[i], 0);
    mem_free(mem);
}

static void test_read_back(void **state)
{
    struct mem *mem = new_mem(3 * GiB + 32 * MiB);
    static const gpa_t places[] = {0, 4093, 3 * GiB - 16, 4 * GiB, 4 * GiB + 32 * MiB - 16};
    uint8_t in[16], out[16];

    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        for (size_t k = 0; k < sizeof(in); k++)
            in[k] = (uint8_t)(i * 16 + k);
        assert_int_equal(mem_write(mem, places[i], in, sizeof(in)), 0);
        assert_int_equal(mem_read(mem, places[i], out, sizeof(out)), 0);
        assert_memory_equal(in, out, sizeof(in));
        assert_memory_equal(mem_ptr(mem, places[i], sizeof(in)), in, sizeof(in));
        assert_int_equal(mem_set(mem, places[i] + 1, 0xee, 3), 0);
        assert_int_equal(mem_read(mem, places[i], out, 5), 0);
        assert_int_equal(out[0], in[0]);
        assert_int_equal(out[1] + out[2] + out[3], 3 * 0xee);
        assert_int_equal(out[4], in[4]);
    }
    mem_free(mem);
}

static void test_converters(void **state)
{
    struct mem *mem = new_mem(3 * GiB + 32 * MiB);
    uint64_t low = 3 * GiB / 4096, pages = mem_pages(mem);
    static const gfn_t outside[] = {3 * GiB / 4096,      4 * GiB / 4096 - 1, (4 * GiB + 32 * MiB) / 4096, UINT64_MAX,
                                    UINT64_MAX / 4096, UINT64_C(1) << 52,  UINT64_C(1) << 63};
    static const pfn_t some[] = {0, 1, 786431, 786432, 786433};
    pfn_t pfn = 99;

    for (size_t i = 0; i < ARRAY_SIZE(some); i++) {
        gfn_t gfn = mem_pfn_to_gfn(mem, some[i]);

        assert_int_equal(gfn, some[i] < low ? some[i] : some[i] + GiB / 4096);
        assert_true(mem_gfn_to_pfn(mem, gfn, &pfn));
        assert_int_equal(pfn, some[i]);
    }
    assert_int_equal(mem_pfn_to_gfn(mem, pages - 1), (4 * GiB + 32 * MiB) / 4096 - 1);
    for (size_t i = 0; i < ARRAY_SIZE(outside); i++) {
        pfn = 99;
        assert_false(mem_gfn_to_pfn(mem, outside[i], &pfn));
        assert_int_equal(pfn, 99);
    }
    mem_free(mem);
}

/* -- notes of writes ---------------------------------------------------------- */

static void expect_notes(struct mem *mem, const pfn_t *pages, size_t count)
{
    struct page_set got = new_set(mem), want = new_set(mem);

    for (size_t i = 0; i < count; i++)
        page_set_add(&want, pages[i]);
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &got), want.pages);
    assert_int_equal(got.pages, want.pages);
    assert_memory_equal(got.map, want.map, bytes_to_pages(mem_size(mem)) / 8);
    assert_memory_equal(got.groups, want.groups, want.groups_words * sizeof(uint64_t));
    /* They are moved, not copied. */
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &got), 0);
    page_set_free(&got);
    page_set_free(&want);
}
#define EXPECT_NOTES(mem, ...)                                       \
    do {                                                             \
        static const pfn_t pages_[] = {__VA_ARGS__};                 \
        expect_notes(mem, pages_, ARRAY_SIZE(pages_));               \
    } while (0)

static void test_notes(void **state)
{
    struct mem *mem = new_mem(3 * GiB + 32 * MiB);
    uint8_t buf[8192] = {0};
    struct page_set set = new_set(mem);

    /* Off: nothing is noted. */
    assert_int_equal(mem_write(mem, 0, buf, 8), 0);
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set), 0);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, true);
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set), 0);

    assert_int_equal(mem_write(mem, 0, buf, 1), 0);
    EXPECT_NOTES(mem, 0);
    assert_int_equal(mem_write(mem, 4095, buf, 1), 0);
    EXPECT_NOTES(mem, 0);
    assert_int_equal(mem_write(mem, 4095, buf, 2), 0);
    EXPECT_NOTES(mem, 0, 1);
    assert_int_equal(mem_write(mem, 4096, buf, 8192), 0);
    EXPECT_NOTES(mem, 1, 2);
    /* Over the end of a word, and of a group of words. */
    assert_int_equal(mem_set(mem, 63 * 4096, 1, 4097), 0);
    EXPECT_NOTES(mem, 63, 64);
    assert_int_equal(mem_set(mem, 4095 * 4096, 1, 2 * 4096), 0);
    EXPECT_NOTES(mem, 4095, 4096);
    /* On both sides of the hole. */
    assert_int_equal(mem_write(mem, 3 * GiB - 1, buf, 1), 0);
    assert_int_equal(mem_write(mem, 4 * GiB, buf, 1), 0);
    mem_mark_dirty(mem, 4 * GiB + 32 * MiB - 1, 1);
    EXPECT_NOTES(mem, 786431, 786432, 786432 + 8191);
    /* What leaves no bytes leaves no note. */
    assert_int_equal(mem_write(mem, 3 * GiB - 8, buf, 16), -EFAULT);
    assert_int_equal(mem_write(mem, 0, buf, 0), 0);
    mem_mark_dirty(mem, 0, 0);
    mem_mark_dirty(mem, 3 * GiB, 0);
    assert_int_equal(mem_read(mem, 0, buf, 8), 0);
    EXPECT_NOTES(mem);
    /* New pages only are counted. */
    page_set_add(&set, 5);
    mem_mark_dirty(mem, 5 * 4096, 2 * 4096);
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set), 1);
    assert_int_equal(set.pages, 2);
    /* Switching off and on forgets. */
    mem_mark_dirty(mem, 0, 1);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, false);
    mem_mark_dirty(mem, 4096, 1);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, true);
    EXPECT_NOTES(mem);
    page_set_free(&set);
    mem_free(mem);
}

static void test_notes_of_ranges(void **state)
{
    struct mem *mem = new_mem(40 * MiB);
    struct page_set got = new_set(mem);

    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, true);
    mem_mark_dirty(mem, 100 * 4096, 9000 * 4096);
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &got), 9000);
    for (pfn_t p = 0; p < mem_pages(mem); p++)
        assert_int_equal(got.map[p / 64] >> (p % 64) & 1, p >= 100 && p < 9100);
    page_set_clear(&got);
    assert_int_equal(mem_discard(mem), 0);
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &got), mem_pages(mem));
    page_set_free(&got);
    mem_free(mem);
}

/* -- notes against a harvest that runs at the same time ------------------------ */

/*
 * Writers store counters in a few pages through a pointer and mark them, each in a word of its own, and say so after each.
 * Whoever harvests copies the pages that the harvest names. What a writer had said before a harvest must be in the copy
 * after it: that finds a lost note at once, even when another write to the page would make up for it later.
 */
#define RACE_WRITERS 2
#define RACE_WRITES 1000000
/* Stores to memory that is not in the cache keep the stores behind them in the CPU's buffer: there is where races are lost. */
#define RACE_COLD_WORDS (size_t)(1 << 19)

/* One word of the notes, another word of its group, another group. */
static const pfn_t race_pages[] = {0, 1, 100, 4096, 8191};
#define RACE_PAGES ARRAY_SIZE(race_pages)

struct race {
    struct mem *mem;
    struct page_set set;
    pthread_t threads[RACE_WRITERS];
    uint64_t seed;
    unsigned int started, ended;                  /* atomic */
    uint64_t said[RACE_WRITERS][RACE_PAGES];      /* atomic */
    uint64_t copy[RACE_WRITERS][RACE_PAGES];
    uint64_t before[RACE_WRITERS][RACE_PAGES];
};

static uint64_t *race_word(struct race *race, unsigned int writer, size_t page)
{
    uint64_t *words = mem_ptr(race->mem, pages_to_bytes(race_pages[page]), RACE_WRITERS * sizeof(uint64_t));

    return &words[writer];
}

static void *race_writer(void *arg)
{
    struct race *race = arg;
    unsigned int me = __atomic_fetch_add(&race->started, 1, __ATOMIC_RELAXED);
    struct rng rng = rng_seeded(race->seed + me);
    uint64_t *cold = calloc(RACE_COLD_WORDS, sizeof(*cold)), value[RACE_PAGES] = {0};

    for (int i = 0; cold && i < RACE_WRITES; i++) {
        size_t page = rng_chance(&rng, 60) ? 0 : rng_below(&rng, RACE_PAGES);

        for (int k = 0; k < 4; k++)
            cold[rng_below(&rng, RACE_COLD_WORDS)] = 1;
        __atomic_store_n(race_word(race, me, page), ++value[page], __ATOMIC_RELAXED);
        mem_mark_dirty(race->mem, pages_to_bytes(race_pages[page]), sizeof(uint64_t));
        __atomic_store_n(&race->said[me][page], value[page], __ATOMIC_RELEASE);
    }
    free(cold);
    __atomic_fetch_add(&race->ended, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void race_start(struct race *race, const char *what)
{
    memset(race, 0, sizeof(*race));
    race->seed = rng_test_seed(what);
    race->mem = new_mem(64 * MiB);
    race->set = new_set(race->mem);
    for (unsigned int i = 0; i < RACE_WRITERS; i++)
        assert_int_equal(pthread_create(&race->threads[i], NULL, race_writer, race), 0);
}

static bool race_over(struct race *race)
{
    return __atomic_load_n(&race->ended, __ATOMIC_ACQUIRE) == RACE_WRITERS;
}

static void race_copy(struct race *race, size_t page)
{
    for (unsigned int w = 0; w < RACE_WRITERS; w++)
        race->copy[w][page] = __atomic_load_n(race_word(race, w, page), __ATOMIC_RELAXED);
}

static void race_note_said(struct race *race)
{
    for (unsigned int w = 0; w < RACE_WRITERS; w++)
        for (size_t p = 0; p < RACE_PAGES; p++)
            race->before[w][p] = __atomic_load_n(&race->said[w][p], __ATOMIC_ACQUIRE);
}

static void race_harvest(struct race *race)
{
    mem_collect_writes(race->mem, MEM_LISTENER_DIRTY_LOG, &race->set);
    for (size_t p = 0; p < RACE_PAGES; p++) {
        if (race->set.map[race_pages[p] / 64] >> (race_pages[p] % 64) & 1)
            race_copy(race, p);
    }
    page_set_clear(&race->set);
}

/* The copy must be at least as new as what was said before. */
static void race_check(struct race *race)
{
    for (unsigned int w = 0; w < RACE_WRITERS; w++) {
        for (size_t p = 0; p < RACE_PAGES; p++) {
            if (race->copy[w][p] < race->before[w][p])
                fail_msg("page %" PRIu64 ": %" PRIu64 " was copied, %" PRIu64 " had been written and marked", race_pages[p],
                         race->copy[w][p], race->before[w][p]);
        }
    }
}

static void race_end(struct race *race)
{
    for (int i = 0; i < RACE_WRITERS; i++)
        pthread_join(race->threads[i], NULL);
    page_set_free(&race->set);
    mem_free(race->mem);
}

static void test_no_note_is_lost(void **state)
{
    static struct race race;
    uint64_t rounds = 0;

    race_start(&race, "notes");
    mem_track_writes(race.mem, MEM_LISTENER_DIRTY_LOG, true);
    for (size_t p = 0; p < RACE_PAGES; p++)
        race_copy(&race, p);
    for (bool over = false; !over; rounds++) {
        over = race_over(&race);
        race_note_said(&race);
        race_harvest(&race);
        race_check(&race);
    }
    print_message("# %" PRIu64 " harvests\n", rounds);
    race_end(&race);
}

/* Listeners do not take each other's notes, nor switch each other on or off. */
static void test_listeners(void **state)
{
    struct mem *mem = new_mem(8 * MiB);
    struct page_set set = new_set(mem);

    mem_track_writes(mem, MEM_LISTENER_PRECISE, true);
    mem_mark_dirty(mem, 0, 1);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, true);
    mem_mark_dirty(mem, 4096, 1);
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set), 1);
    assert_true(set.map[0] == 2);
    page_set_clear(&set);
    mem_track_writes(mem, MEM_LISTENER_DIRTY_LOG, false);
    mem_mark_dirty(mem, 8192, 1);
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_DIRTY_LOG, &set), 0);
    assert_int_equal(mem_collect_writes(mem, MEM_LISTENER_PRECISE, &set), 3);
    assert_true(set.map[0] == 7);
    page_set_free(&set);
    mem_free(mem);
}

/* Notes are switched on under the writers: what is not seen by a reader who starts then is noted. */
static void test_switching_on_loses_nothing(void **state)
{
    static struct race race;
    uint64_t rounds = 0;

    race_start(&race, "switching on");
    for (bool over = false; !over; rounds++) {
        over = race_over(&race);
        mem_track_writes(race.mem, MEM_LISTENER_DIRTY_LOG, false);
        mem_track_writes(race.mem, MEM_LISTENER_DIRTY_LOG, true);
        for (size_t p = 0; p < RACE_PAGES; p++)
            race_copy(&race, p);
        race_note_said(&race);
        race_harvest(&race);
        race_check(&race);
    }
    print_message("# %" PRIu64 " times on\n", rounds);
    race_end(&race);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused_sizes),
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_prealloc_and_discard),
        cmocka_unit_test(test_huge_page_shortage),
        cmocka_unit_test(test_huge_pages),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_partial_write_touches_nothing),
        cmocka_unit_test(test_read_back),
        cmocka_unit_test(test_converters),
        cmocka_unit_test(test_notes),
        cmocka_unit_test(test_notes_of_ranges),
        cmocka_unit_test(test_listeners),
        cmocka_unit_test(test_no_note_is_lost),
        cmocka_unit_test(test_switching_on_loses_nothing),
    };

    log_init("test-mem", NULL);
    return cmocka_run_group_tests_name("mem", tests, NULL, NULL);
}
