/*
 * Absent pages with the real userfaultfd, without KVM: threads of the test touch memory where vCPUs and devices would, in both
 * mappings. Skipped where userfaultfd is not to be had.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/log.h"
#include "base/util.h"
#include "mmu/absent.h"
#include "rand.h"

/* Whatever blocks for ever in here is what the tests are about. */
#define HANG_SECONDS 120
#define MEMORY (16 * MiB)
#define PAGES (MEMORY / GUEST_PAGE_SIZE)
#define WORDS (PAGES / 64)

struct fixture {
    struct mem *mem;
    struct absent *a;
    uint64_t *wanted;          /* atomic words */
    uint64_t wants;            /* atomic: calls */
    bool serve;                /* put a page as soon as it is wanted */
};

/* What a page has in the end: its number and something of it in every word; some are zeros. */
static uint64_t word_of(pfn_t page, unsigned int i)
{
    return page % 5 == 0 ? 0 : (page << 20 | i) * UINT64_C(0x9e3779b97f4a7c15) + 1;
}

static void fill(uint8_t *to, pfn_t page)
{
    for (unsigned int i = 0; i < GUEST_PAGE_SIZE / 8; i++)
        ((uint64_t *)(void *)to)[i] = word_of(page, i);
}

static int put(struct absent *a, pfn_t first, uint64_t count)
{
    uint8_t *data = malloc(pages_to_bytes(count));
    int r;

    assert_non_null(data);
    for (uint64_t i = 0; i < count; i++)
        fill(data + pages_to_bytes(i), first + i);
    r = absent_put(a, first, count, count == 1 && first % 5 == 0 ? NULL : data);
    free(data);
    return r;
}

static void on_want(void *opaque, pfn_t page)
{
    struct fixture *f = opaque;

    __atomic_fetch_or(&f->wanted[page / 64], UINT64_C(1) << (page % 64), __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&f->wants, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&f->serve, __ATOMIC_SEQ_CST))
        (void)put(f->a, page, 1);
}

static void new_memory(struct fixture *f, struct mem_config config)
{
    const char *why = NULL;
    int r;

    *f = (struct fixture){.wanted = calloc(WORDS, sizeof(uint64_t))};
    assert_non_null(f->wanted);
    assert_int_equal(mem_new(&config, &f->mem), 0);
    r = absent_possible(f->mem, &why);
    if (r == -EPERM || r == -ENOSYS || r == -EACCES || (r == -EOPNOTSUPP && !config.private)) {
        print_message("# no userfaultfd: %s\n", why);
        mem_free(f->mem);
        free(f->wanted);
        skip();
    }
}

static void open_fixture(struct fixture *f)
{
    new_memory(f, (struct mem_config){.size = MEMORY});
    assert_int_equal(absent_new(f->mem, on_want, f, &f->a), 0);
}

static void close_fixture(struct fixture *f)
{
    absent_free(f->a);
    mem_free(f->mem);
    free(f->wanted);
}

static const uint8_t *page_at(const struct fixture *f, pfn_t page, bool beside)
{
    unsigned int n;
    const struct mem_slot *slots = mem_slots(f->mem, &n);

    return (beside ? slots[0].alias : slots[0].hva) + pages_to_bytes(page);
}

static void check_page(const struct fixture *f, pfn_t page, bool beside)
{
    const volatile uint64_t *p = (const volatile uint64_t *)(const void *)page_at(f, page, beside);

    for (unsigned int i = 0; i < GUEST_PAGE_SIZE / 8; i += 64)
        if (p[i] != word_of(page, i))
            abort();
}

static void mark_all(struct fixture *f)
{
    uint64_t bits[WORDS];

    memset(bits, 0xff, sizeof(bits));
    assert_int_equal(absent_mark(f->a, 0, bits, WORDS), 0);
    assert_int_equal(absent_left(f->a), PAGES);
}

/* -- single pages ------------------------------------------------------------- */

struct toucher {
    pthread_t thread;
    struct fixture *f;
    pfn_t page;
    bool beside, done;
};

static void *touch(void *arg)
{
    struct toucher *t = arg;

    check_page(t->f, t->page, t->beside);
    __atomic_store_n(&t->done, true, __ATOMIC_SEQ_CST);
    return NULL;
}

static void begin(struct toucher *t, struct fixture *f, pfn_t page, bool beside)
{
    *t = (struct toucher){.f = f, .page = page, .beside = beside};
    assert_int_equal(pthread_create(&t->thread, NULL, touch, t), 0);
}

static void wait_for_wants(struct fixture *f, uint64_t n)
{
    while (__atomic_load_n(&f->wants, __ATOMIC_SEQ_CST) < n)
        sched_yield();
}

static void test_waits_in_both_mappings(void **state)
{
    struct toucher t[4];
    struct fixture f;

    open_fixture(&f);
    mark_all(&f);
    for (int i = 0; i < 2; i++) {
        begin(&t[2 * i], &f, 7, i);
        begin(&t[2 * i + 1], &f, 10, i); /* one of zeros */
    }
    wait_for_wants(&f, 2);
    assert_true(bitmap_test(f.wanted, 7) && bitmap_test(f.wanted, 10));
    assert_false(__atomic_load_n(&t[0].done, __ATOMIC_SEQ_CST));
    assert_int_equal(put(f.a, 7, 1), 0);
    assert_int_equal(put(f.a, 10, 1), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i].thread, NULL);
    assert_int_equal(absent_left(f.a), PAGES - 2);
    /* Asked for once, however many wait. */
    assert_int_equal(f.wants, 2);
    close_fixture(&f);
}

static void test_other_pages_are_zeros(void **state)
{
    uint64_t bits[1] = {UINT64_C(1) << 3};
    struct fixture f;

    open_fixture(&f);
    assert_int_equal(absent_mark(f.a, 64, bits, 1), 0);
    for (pfn_t page = 0; page < 256; page++)
        if (page != 67)
            assert_int_equal(*page_at(&f, page, page % 2), 0);
    assert_int_equal(f.wants, 0);
    assert_int_equal(absent_left(f.a), 1);
    assert_int_equal(absent_word(f.a, 1), 8);
    close_fixture(&f);
}

/* What was there before, an older copy of it, is not seen again. */
static void test_old_contents_go(void **state)
{
    struct toucher t;
    struct fixture f;

    new_memory(&f, (struct mem_config){.size = MEMORY, .prealloc = true});
    for (gpa_t gpa = 0; gpa < MEMORY; gpa += GUEST_PAGE_SIZE)
        assert_int_equal(mem_set(f.mem, gpa, 0x55, GUEST_PAGE_SIZE), 0);
    assert_int_equal(absent_new(f.mem, on_want, &f, &f.a), 0);
    mark_all(&f);
    begin(&t, &f, 12, false);
    wait_for_wants(&f, 1);
    assert_int_equal(put(f.a, 0, PAGES), 0);
    pthread_join(t.thread, NULL);
    assert_int_equal(absent_left(f.a), 0);
    for (pfn_t page = 0; page < PAGES; page++)
        check_page(&f, page, page % 2);
    close_fixture(&f);
}

/* A second copy, of before the guest wrote, changes nothing; nor one of a page that was never absent. */
static void test_second_copy(void **state)
{
    uint64_t bits[1] = {6};
    struct fixture f;

    open_fixture(&f);
    assert_int_equal(absent_mark(f.a, 0, bits, 1), 0);
    assert_int_equal(put(f.a, 0, 4), 0);
    assert_int_equal(absent_left(f.a), 0);
    assert_int_equal(*page_at(&f, 3, false), 0);
    assert_int_equal(mem_set(f.mem, GUEST_PAGE_SIZE, 0x77, GUEST_PAGE_SIZE), 0);
    assert_int_equal(put(f.a, 0, 4), 0);
    assert_int_equal(*page_at(&f, 1, false), 0x77);
    close_fixture(&f);
}

static void test_asks_again(void **state)
{
    struct toucher t;
    struct fixture f;

    open_fixture(&f);
    mark_all(&f);
    begin(&t, &f, 1, true);
    wait_for_wants(&f, 1);
    absent_ask_again(f.a);
    wait_for_wants(&f, 2);
    assert_int_equal(put(f.a, 1, 1), 0);
    pthread_join(t.thread, NULL);
    close_fixture(&f);
}

/* A guest that never ran is given up: whoever waits goes on, with zeros. */
static void test_free_lets_go(void **state)
{
    struct toucher t[2];
    struct fixture f;

    open_fixture(&f);
    mark_all(&f);
    begin(&t[0], &f, 5, false);
    begin(&t[1], &f, 10, true);
    wait_for_wants(&f, 2);
    absent_free(f.a);
    f.a = NULL;
    for (int i = 0; i < 2; i++)
        pthread_join(t[i].thread, NULL);
    close_fixture(&f);
}

static void test_nothing_is_given_back(void **state)
{
    struct fixture f;
    void *p;

    open_fixture(&f);
    p = mem_ptr(f.mem, 0, MEMORY);
    assert_int_equal(mem_set(f.mem, 0, 1, GUEST_PAGE_SIZE), 0);
    assert_int_equal(mem_give_back(f.mem, p, GUEST_PAGE_SIZE), 0);
    assert_int_equal(*page_at(&f, 0, false), 1);
    absent_free(f.a);
    f.a = NULL;
    assert_int_equal(mem_give_back(f.mem, p, GUEST_PAGE_SIZE), GUEST_PAGE_SIZE);
    assert_int_equal(*page_at(&f, 0, false), 0);
    close_fixture(&f);
}

static void test_bad_marks(void **state)
{
    uint64_t bits[2] = {1, 0};
    struct fixture f;

    open_fixture(&f);
    assert_int_equal(absent_mark(f.a, 1, bits, 1), -EINVAL);
    assert_int_equal(absent_mark(f.a, PAGES, bits, 1), -EINVAL);
    assert_int_equal(absent_mark(f.a, PAGES - 64, bits, 2), -EINVAL);
    assert_int_equal(absent_mark(f.a, UINT64_MAX - 63, bits, 1), -EINVAL);
    assert_int_equal(absent_left(f.a), 0);
    close_fixture(&f);
}

static void test_not_possible(void **state)
{
    const char *why = NULL;
    struct fixture f;

    new_memory(&f, (struct mem_config){.size = MEMORY, .private = true});
    assert_int_equal(absent_possible(f.mem, &why), -EOPNOTSUPP);
    assert_non_null(why);
    close_fixture(&f);
}

static void test_registered_twice(void **state)
{
    const char *why = NULL;
    struct fixture f;

    open_fixture(&f);
    assert_int_equal(absent_possible(f.mem, &why), -EBUSY);
    assert_non_null(why);
    close_fixture(&f);
}

/* -- all of it, from all sides ------------------------------------------------ */

struct worker {
    pthread_t thread;
    struct fixture *f;
    unsigned int seed;
};

static void *touch_all(void *arg)
{
    struct worker *w = arg;
    struct rng rng = {.state = w->seed};

    for (unsigned int i = 0; i < 2 * PAGES; i++)
        check_page(w->f, rng_below(&rng, PAGES), rng_below(&rng, 2));
    return NULL;
}

/* Runs of pages, the same ones by several threads. */
static void *put_all(void *arg)
{
    struct worker *w = arg;
    struct rng rng = {.state = w->seed};

    for (unsigned int i = 0; i < PAGES / 4; i++) {
        pfn_t first = rng_below(&rng, PAGES);

        if (put(w->f->a, first, MIN(1 + rng_below(&rng, 32), PAGES - first)) < 0)
            abort();
        sched_yield();
    }
    return NULL;
}

static void test_many_at_once(void **state)
{
    struct worker workers[6];
    struct fixture f;

    open_fixture(&f);
    mark_all(&f);
    f.serve = true;
    for (unsigned int i = 0; i < ARRAY_SIZE(workers); i++) {
        workers[i] = (struct worker){.f = &f, .seed = i + 1};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, i % 2 ? put_all : touch_all, &workers[i]), 0);
    }
    for (unsigned int i = 0; i < ARRAY_SIZE(workers); i++)
        pthread_join(workers[i].thread, NULL);
    assert_int_equal(put(f.a, 0, PAGES), 0);
    assert_int_equal(absent_left(f.a), 0);
    for (pfn_t page = 0; page < PAGES; page++)
        check_page(&f, page, false);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_waits_in_both_mappings),
        cmocka_unit_test(test_other_pages_are_zeros),
        cmocka_unit_test(test_old_contents_go),
        cmocka_unit_test(test_second_copy),
        cmocka_unit_test(test_asks_again),
        cmocka_unit_test(test_free_lets_go),
        cmocka_unit_test(test_nothing_is_given_back),
        cmocka_unit_test(test_bad_marks),
        cmocka_unit_test(test_not_possible),
        cmocka_unit_test(test_registered_twice),
        cmocka_unit_test(test_many_at_once),
    };

    alarm(HANG_SECONDS);
    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
