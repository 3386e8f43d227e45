/*
 * The userfaultfd source under real KVM: vCPUs write to watched frames while other threads do to the VM what must not wait for
 * them. Skipped where there is no KVM or no userfaultfd.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "mmu/precise.h"
#include "rand.h"
#include "toy-vm.h"

#define HANG_SECONDS 120
#define VCPUS 2u
#define PAGES 64u
#define FIRST_PAGE 1000u

struct fixture {
    struct mem *mem;
    struct toy_vm *vm;
    struct precise *p;
    pthread_t consumer;
    pthread_mutex_t lock; /* a tracker's: around all calls of the source */
    bool stop; /* atomic */
};

static void open_fixture(struct fixture *f)
{
    static const struct toy_config config = {.vcpus = VCPUS};
    struct mem_config mem = {.size = 64 * MiB};
    const char *reason = "";
    int r, fd = precise_open();

    memset(f, 0, sizeof(*f));
    pthread_mutex_init(&f->lock, NULL);
    if (fd < 0) {
        print_message("# no userfaultfd: %s\n", strerror(-fd));
        skip();
    }
    assert_int_equal(mem_new(&mem, &f->mem), 0);
    r = toy_new(&config, f->mem, &f->vm, &reason);
    if (r == -ENODEV) {
        close(fd);
        mem_free(f->mem);
        print_message("# %s\n", reason);
        skip();
    }
    if (r < 0)
        fail_msg("%s: %s", reason, strerror(-r));
    assert_int_equal(precise_new(f->mem, fd, &f->p), 0);
}

/* vCPU threads end first, then the source, then the memory. */
static void close_fixture(struct fixture *f)
{
    toy_free(f->vm);
    precise_free(f->p);
    mem_free(f->mem);
    pthread_mutex_destroy(&f->lock);
}

static void watch_pages(struct fixture *f)
{
    gfn_t gfns[PAGES];

    for (unsigned int i = 0; i < PAGES; i++)
        gfns[i] = mem_pfn_to_gfn(f->mem, FIRST_PAGE + i);
    assert_int_equal(precise_watch_many(f->p, gfns, PAGES), 0);
}

static void start_vcpus(struct fixture *f, uint64_t rounds)
{
    pfn_t pages[PAGES];

    for (unsigned int v = 0; v < VCPUS; v++) {
        /* Each its own pages, so that what they count can be told apart; the frames are next to each other. */
        for (unsigned int i = 0; i < PAGES / VCPUS; i++)
            pages[i] = FIRST_PAGE + i * VCPUS + v;
        toy_set_list(f->vm, v, pages, PAGES / VCPUS);
        toy_go(f->vm, v, rounds);
    }
}

/* A tracker's ticks, as fast as they come: protect what was written at least 50 us ago. */
static void *consumer(void *arg)
{
    struct fixture *f = arg;
    gfn_t gfns[PAGES];

    while (!__atomic_load_n(&f->stop, __ATOMIC_ACQUIRE)) {
        pthread_mutex_lock(&f->lock);
        while (precise_events(f->p, gfns, PAGES) == PAGES)
            ;
        precise_reprotect(f->p, clock_ns() - 50 * NSEC_PER_USEC, gfns, PAGES);
        pthread_mutex_unlock(&f->lock);
        usleep(50);
    }
    return NULL;
}

static void start_consumer(struct fixture *f)
{
    assert_int_equal(pthread_create(&f->consumer, NULL, consumer, f), 0);
}

static void end_consumer(struct fixture *f)
{
    __atomic_store_n(&f->stop, true, __ATOMIC_RELEASE);
    pthread_join(f->consumer, NULL);
}

static uint64_t faults(struct fixture *f)
{
    struct precise_stats s;

    pthread_mutex_lock(&f->lock);
    precise_stats(f->p, &s);
    pthread_mutex_unlock(&f->lock);
    return s.faults;
}

/* What the guest wrote is there, every bit of it. */
static void check_contents(const struct fixture *f)
{
    for (unsigned int v = 0; v < VCPUS; v++) {
        uint64_t sum = 0;

        for (unsigned int i = 0; i < PAGES / VCPUS; i++) {
            uint64_t word = 0;

            assert_int_equal(mem_read(f->mem, gfn_to_gpa(mem_pfn_to_gfn(f->mem, FIRST_PAGE + i * VCPUS + v)), &word, sizeof(word)),
                             0);
            sum += word;
        }
        assert_int_equal(sum, toy_visits(f->vm, v));
    }
}

/* Each first write after protection is one event; nothing else is. */
static void test_guest_writes(void **state)
{
    struct fixture f;
    gfn_t gfns[PAGES];
    bool seen[PAGES] = {false};

    open_fixture(&f);
    /* Once before, so that KVM has mapped them writable. */
    start_vcpus(&f, 1);
    for (unsigned int v = 0; v < VCPUS; v++)
        assert_int_equal(toy_wait(f.vm, v), 0);
    watch_pages(&f);
    start_vcpus(&f, 3);
    for (unsigned int v = 0; v < VCPUS; v++)
        assert_int_equal(toy_wait(f.vm, v), 0);
    assert_int_equal(precise_events(f.p, gfns, PAGES), PAGES);
    for (unsigned int i = 0; i < PAGES; i++) {
        pfn_t page;

        assert_true(mem_gfn_to_pfn(f.mem, gfns[i], &page));
        assert_false(seen[page - FIRST_PAGE]);
        seen[page - FIRST_PAGE] = true;
    }
    assert_int_equal(precise_events(f.p, gfns, PAGES), 0);
    close_fixture(&f);
}

/*
 * KVM_SET_NR_MMU_PAGES and a change of the memory slots wait for a vCPU that has stopped at a protected frame. They end, because
 * the thread that resolves waits for nobody: this thread is in them all the time here, the consumer's protects again.
 */
static void test_kvm_calls_while_vcpus_wait(void **state)
{
    struct fixture f;
    uint64_t end = clock_ns() + NSEC_PER_SEC, calls = 0;

    open_fixture(&f);
    watch_pages(&f);
    start_vcpus(&f, 0);
    start_consumer(&f);
    for (; clock_ns() < end || faults(&f) < 200; calls++) {
        if (ioctl(toy_fd(f.vm), KVM_SET_NR_MMU_PAGES, 64ul + calls % 2 * 1000) < 0)
            fail_msg("KVM_SET_NR_MMU_PAGES: %s", strerror(errno));
        assert_int_equal(toy_dirty_ops.set_logging(f.vm, calls % 2 == 0), 0);
    }
    assert_int_equal(toy_dirty_ops.set_logging(f.vm, false), 0);
    for (unsigned int v = 0; v < VCPUS; v++)
        assert_int_equal(toy_stop(f.vm, v), 0);
    end_consumer(&f);
    check_contents(&f);
    print_message("# %" PRIu64 " calls, %" PRIu64 " faults\n", calls, faults(&f));
    close_fixture(&f);
}

/* A vCPU that waits for its fault must be let go before it can park. */
static void test_pause_while_vcpus_wait(void **state)
{
    struct fixture f;
    uint64_t end = clock_ns() + NSEC_PER_SEC / 2, pauses = 0;

    open_fixture(&f);
    watch_pages(&f);
    start_vcpus(&f, 0);
    start_consumer(&f);
    for (; clock_ns() < end || faults(&f) < 100; pauses++) {
        uint64_t before;

        toy_pause(f.vm);
        /* Nothing comes any more from a VM that stands. */
        before = toy_visits(f.vm, 0);
        usleep(100);
        assert_int_equal(toy_visits(f.vm, 0), before);
        toy_resume(f.vm);
    }
    for (unsigned int v = 0; v < VCPUS; v++)
        assert_int_equal(toy_stop(f.vm, v), 0);
    end_consumer(&f);
    check_contents(&f);
    print_message("# %" PRIu64 " pauses, %" PRIu64 " faults\n", pauses, faults(&f));
    close_fixture(&f);
}

/* The VM ends under way: vCPU threads are joined while their frames are being protected, only then the source goes. */
static void test_end(void **state)
{
    for (unsigned int i = 0; i < 5; i++) {
        struct fixture f;

        open_fixture(&f);
        watch_pages(&f);
        start_vcpus(&f, 0);
        start_consumer(&f);
        while (faults(&f) < PAGES)
            usleep(100);
        toy_free(f.vm);
        f.vm = NULL;
        end_consumer(&f);
        close_fixture(&f);
    }
}

/* Switching off: unprotected, still registered, and the guest goes on without a stop. */
static void test_switch_off(void **state)
{
    struct fixture f;
    uint64_t before, visits;

    open_fixture(&f);
    watch_pages(&f);
    start_vcpus(&f, 0);
    start_consumer(&f);
    while (faults(&f) < 4 * PAGES)
        usleep(100);
    end_consumer(&f);
    assert_int_equal(precise_unwatch_all(f.p), 0);
    before = faults(&f);
    visits = toy_visits(f.vm, 0);
    while (toy_visits(f.vm, 0) < visits + 10 * PAGES)
        usleep(100);
    /* One of each vCPU may have been on its way. */
    assert_true(faults(&f) <= before + VCPUS);
    for (unsigned int v = 0; v < VCPUS; v++)
        assert_int_equal(toy_stop(f.vm, v), 0);
    check_contents(&f);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_guest_writes),
        cmocka_unit_test(test_kvm_calls_while_vcpus_wait),
        cmocka_unit_test(test_pause_while_vcpus_wait),
        cmocka_unit_test(test_end),
        cmocka_unit_test(test_switch_off),
    };

    alarm(HANG_SECONDS);
    log_init("test-precise-kvm", NULL);
    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
