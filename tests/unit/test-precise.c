/*
 * The userfaultfd source with the real userfaultfd, without KVM: threads of the test write where a guest's vCPUs would, in the
 * mapping that is registered. Skipped where userfaultfd is not to be had.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "mmu/precise.h"
#include "rand.h"

/* Whatever blocks for ever in here is what the tests are about. */
#define HANG_SECONDS 120

struct fixture {
    struct mem *mem;
    struct precise *p;
};

static struct mem *new_mem(uint64_t size)
{
    struct mem_config config = {.size = size};
    struct mem *mem;

    assert_int_equal(mem_new(&config, &mem), 0);
    return mem;
}

static void open_fixture(struct fixture *f, uint64_t size)
{
    int fd = precise_open();

    if (fd == -EPERM || fd == -ENOSYS || fd == -EOPNOTSUPP || fd == -EACCES) {
        print_message("# no userfaultfd: %s\n", strerror(-fd));
        skip();
    }
    assert_true(fd >= 0);
    f->mem = new_mem(size);
    assert_int_equal(precise_new(f->mem, fd, &f->p), 0);
}

static void close_fixture(struct fixture *f)
{
    precise_free(f->p);
    mem_free(f->mem);
}

static uint8_t *guest_page(const struct mem *mem, gfn_t gfn)
{
    unsigned int count;
    const struct mem_slot *slots = mem_slots(mem, &count);

    for (unsigned int i = 0; i < count; i++)
        if (gfn_to_gpa(gfn) - slots[i].base < slots[i].size)
            return slots[i].hva + (gfn_to_gpa(gfn) - slots[i].base);
    fail();
    return NULL;
}

/* As the guest does. */
static void guest_write(const struct mem *mem, gfn_t gfn)
{
    (*(volatile uint8_t *)guest_page(mem, gfn))++;
}

static uint64_t faults(const struct fixture *f)
{
    struct precise_stats s;

    precise_stats(f->p, &s);
    return s.faults;
}

static gfn_t only_event(struct fixture *f)
{
    gfn_t gfns[4];

    assert_int_equal(precise_events(f->p, gfns, ARRAY_SIZE(gfns)), 1);
    return gfns[0];
}

static void no_event(struct fixture *f)
{
    gfn_t gfn;

    assert_int_equal(precise_events(f->p, &gfn, 1), 0);
}

static gfn_t only_reprotected(struct fixture *f, uint64_t before_ns)
{
    gfn_t gfns[4];

    assert_int_equal(precise_reprotect(f->p, before_ns, gfns, ARRAY_SIZE(gfns)), 1);
    return gfns[0];
}

static void test_write(void **state)
{
    struct fixture f;
    uint64_t before;
    gfn_t gfn;

    open_fixture(&f, 8 * MiB);
    guest_write(f.mem, 7);
    assert_int_equal(precise_watch(f.p, 7, true), 0);
    assert_true(precise_watched(f.p, 7));
    assert_false(precise_watched(f.p, 8));
    no_event(&f);
    before = clock_ns();
    guest_write(f.mem, 7);
    assert_int_equal(guest_page(f.mem, 7)[0], 2);
    assert_int_equal(precise_unsync(f.p), 1);
    assert_int_equal(only_event(&f), 7);
    no_event(&f);
    /* Until it is protected again the guest writes natively. */
    guest_write(f.mem, 7);
    guest_write(f.mem, 8);
    assert_int_equal(faults(&f), 1);
    no_event(&f);
    /* Not before it is old enough. */
    assert_int_equal(precise_reprotect(f.p, before, &gfn, 1), 0);
    assert_int_equal(precise_unsync(f.p), 1);
    guest_write(f.mem, 7);
    assert_int_equal(faults(&f), 1);
    assert_int_equal(only_reprotected(&f, clock_ns()), 7);
    assert_int_equal(precise_unsync(f.p), 0);
    assert_int_equal(precise_reprotect(f.p, UINT64_MAX, &gfn, 1), 0);
    guest_write(f.mem, 7);
    assert_int_equal(faults(&f), 2);
    assert_int_equal(only_event(&f), 7);
    close_fixture(&f);
}

/* Events that are not reprotected yet keep their age, in order. */
static void test_age(void **state)
{
    struct fixture f;
    uint64_t between;
    gfn_t gfns[4];

    open_fixture(&f, 8 * MiB);
    for (gfn_t gfn = 1; gfn <= 3; gfn++)
        assert_int_equal(precise_watch(f.p, gfn, true), 0);
    guest_write(f.mem, 2);
    guest_write(f.mem, 1);
    between = clock_ns();
    guest_write(f.mem, 3);
    assert_int_equal(precise_events(f.p, gfns, 2), 2);
    assert_int_equal(gfns[0], 2);
    assert_int_equal(gfns[1], 1);
    assert_int_equal(only_event(&f), 3);
    assert_int_equal(precise_reprotect(f.p, between, gfns, 1), 1);
    assert_int_equal(gfns[0], 2);
    assert_int_equal(only_reprotected(&f, between), 1);
    assert_int_equal(precise_unsync(f.p), 1);
    assert_int_equal(only_reprotected(&f, UINT64_MAX), 3);
    close_fixture(&f);
}

static void test_watch(void **state)
{
    struct fixture f;
    struct precise_stats s;
    gfn_t gfn;

    open_fixture(&f, 8 * MiB);
    assert_int_equal(precise_watch(f.p, 2048, true), -EFAULT);
    assert_int_equal(precise_watch(f.p, GFN_INVALID, true), -EFAULT);
    assert_false(precise_watched(f.p, 2048));
    assert_int_equal(precise_watch(f.p, 5, true), 0);
    assert_int_equal(precise_watch(f.p, 5, true), 0);
    precise_stats(f.p, &s);
    assert_int_equal(s.watched, 1);
    assert_int_equal(s.protects, 1);
    assert_int_equal(precise_watch(f.p, 5, false), 0);
    assert_int_equal(precise_watch(f.p, 5, false), 0);
    guest_write(f.mem, 5);
    assert_int_equal(faults(&f), 0);
    /* Written, and let go before the consumer looks; and before it reads. */
    assert_int_equal(precise_watch(f.p, 5, true), 0);
    guest_write(f.mem, 5);
    assert_int_equal(precise_watch(f.p, 5, false), 0);
    no_event(&f);
    assert_int_equal(precise_unsync(f.p), 0);
    assert_int_equal(precise_watch(f.p, 5, true), 0);
    guest_write(f.mem, 5);
    assert_int_equal(only_event(&f), 5);
    assert_int_equal(precise_watch(f.p, 5, false), 0);
    assert_int_equal(precise_reprotect(f.p, UINT64_MAX, &gfn, 1), 0);
    guest_write(f.mem, 5);
    assert_int_equal(faults(&f), 2);
    /* Watched again while its event waits: a write is an event, it is read once. */
    assert_int_equal(precise_watch(f.p, 5, true), 0);
    guest_write(f.mem, 5);
    assert_int_equal(only_event(&f), 5);
    assert_int_equal(precise_watch(f.p, 5, false), 0);
    assert_int_equal(precise_watch(f.p, 5, true), 0);
    guest_write(f.mem, 5);
    assert_int_equal(faults(&f), 4);
    assert_int_equal(only_event(&f), 5);
    assert_int_equal(only_reprotected(&f, UINT64_MAX), 5);
    assert_int_equal(precise_unsync(f.p), 0);
    close_fixture(&f);
}

/* Neighbours are protected together, also where slots begin and end. */
/* Frames that count as written from the start: protected together, when they are due. */
static void test_watch_soon(void **state)
{
    struct fixture f;
    struct precise_stats s;
    gfn_t gfns[8];
    size_t at = 0;

    open_fixture(&f, 8 * MiB);
    for (gfn_t gfn = 40; gfn < 45; gfn++)
        assert_int_equal(precise_watch_soon(f.p, gfn), 0);
    assert_int_equal(precise_watch_soon(f.p, 40), 0);
    assert_int_equal(precise_watch_soon(f.p, bytes_to_pages(8 * MiB)), -EFAULT);
    assert_true(precise_watched(f.p, 40));
    assert_int_equal(precise_unsync(f.p), 5);
    guest_write(f.mem, 40);
    assert_int_equal(faults(&f), 0);
    no_event(&f);
    assert_int_equal(precise_unprotected(f.p, &at, gfns, 3), 3);
    assert_int_equal(precise_unprotected(f.p, &at, gfns + 3, 3), 2);
    for (unsigned int i = 0; i < 5; i++)
        assert_int_equal(gfns[i], 40 + i);
    /* Not before its time; and one that is gone by then is not protected. */
    assert_int_equal(precise_reprotect(f.p, 1, gfns, 8), 0);
    assert_int_equal(precise_watch(f.p, 42, false), 0);
    assert_int_equal(precise_reprotect(f.p, UINT64_MAX, gfns, 8), 4);
    precise_stats(f.p, &s);
    assert_int_equal(s.protects, 4);
    assert_int_equal(s.protect_calls, 2);
    assert_int_equal(s.unsync, 0);
    guest_write(f.mem, 42);
    assert_int_equal(faults(&f), 0);
    guest_write(f.mem, 40);
    assert_int_equal(faults(&f), 1);
    assert_int_equal(only_event(&f), 40);
    /* A frame that goes and comes back while it waits is one. */
    assert_int_equal(precise_watch(f.p, 40, false), 0);
    assert_int_equal(precise_watch_soon(f.p, 40), 0);
    assert_int_equal(precise_watched(f.p, 40), true);
    assert_int_equal(only_reprotected(&f, UINT64_MAX), 40);
    guest_write(f.mem, 40);
    assert_int_equal(faults(&f), 2);
    close_fixture(&f);
}

static void test_runs(void **state)
{
    struct fixture f;
    struct precise_stats s;
    gfn_t low_end = gpa_to_gfn(MEM_HOLE_START), high = gpa_to_gfn(MEM_HOLE_END), gfns[300], got[300];

    open_fixture(&f, 3 * GiB + 32 * MiB);
    for (gfn_t i = 0; i < 200; i++)
        gfns[i] = low_end - 1 - i;
    for (gfn_t i = 200; i < 300; i++)
        gfns[i] = high + (i - 200);
    assert_int_equal(precise_watch_many(f.p, gfns, 300), 0);
    precise_stats(f.p, &s);
    assert_int_equal(s.watched, 300);
    assert_int_equal(s.protects, 300);
    assert_true(s.protect_calls < 20);
    for (unsigned int i = 0; i < 300; i++)
        guest_write(f.mem, gfns[i]);
    guest_write(f.mem, low_end - 201);
    guest_write(f.mem, high + 100);
    assert_int_equal(faults(&f), 300);
    assert_int_equal(precise_events(f.p, got, 300), 300);
    assert_memory_equal(got, gfns, sizeof(gfns));
    assert_int_equal(precise_reprotect(f.p, UINT64_MAX, got, 300), 300);
    precise_stats(f.p, &s);
    assert_true(s.protect_calls < 25);
    /* One that is no RAM does not keep the others from it. */
    assert_int_equal(precise_unwatch_all(f.p), 0);
    gfns[1] = low_end;
    assert_int_equal(precise_watch_many(f.p, gfns, 300), -EFAULT);
    precise_stats(f.p, &s);
    assert_int_equal(s.watched, 299);
    assert_int_equal(precise_unwatch_all(f.p), 0);
    for (unsigned int i = 2; i < 300; i++)
        guest_write(f.mem, gfns[i]);
    assert_int_equal(faults(&f), 300);
    precise_stats(f.p, &s);
    assert_int_equal(s.watched, 0);
    close_fixture(&f);
}

/* The VMM's own writes never stop, and are told. */
static void test_vmm_writes(void **state)
{
    struct fixture f;
    struct precise_stats s;
    uint64_t value = 42, read = 0;
    gfn_t gfns[4];

    open_fixture(&f, 8 * MiB);
    assert_int_equal(precise_watch(f.p, 9, true), 0);
    assert_int_equal(mem_write(f.mem, gfn_to_gpa(9) + 8, &value, sizeof(value)), 0);
    assert_int_equal(mem_write(f.mem, gfn_to_gpa(10), &value, sizeof(value)), 0);
    memset(mem_ptr(f.mem, gfn_to_gpa(9), 4), 1, 4);
    mem_mark_dirty(f.mem, gfn_to_gpa(9), 4);
    assert_int_equal(mem_read(f.mem, gfn_to_gpa(9) + 8, &read, sizeof(read)), 0);
    assert_int_equal(read, 42);
    assert_int_equal(only_event(&f), 9);
    no_event(&f);
    assert_int_equal(faults(&f), 0);
    assert_int_equal(precise_unsync(f.p), 1);
    assert_int_equal(only_reprotected(&f, UINT64_MAX), 9);
    /* For the guest it stayed protected. */
    guest_write(f.mem, 9);
    assert_int_equal(faults(&f), 1);
    /* Both at once are two writes, and one frame to read. */
    assert_int_equal(mem_set(f.mem, gfn_to_gpa(9), 3, 1), 0);
    assert_int_equal(precise_events(f.p, gfns, 4), 2);
    assert_int_equal(gfns[0], 9);
    assert_int_equal(gfns[1], 9);
    assert_int_equal(only_reprotected(&f, UINT64_MAX), 9);
    precise_stats(f.p, &s);
    assert_int_equal(s.vmm_writes, 2);
    close_fixture(&f);
}

/* A hole takes the protection with it: what stood there is told, and protected again. */
static void test_discard(void **state)
{
    struct fixture f;
    gfn_t gfns[4];

    open_fixture(&f, 8 * MiB);
    for (gfn_t gfn = 100; gfn < 103; gfn++) {
        guest_write(f.mem, gfn);
        assert_int_equal(precise_watch(f.p, gfn, true), 0);
    }
    assert_int_equal(mem_discard(f.mem), 0);
    assert_int_equal(precise_events(f.p, gfns, 2), 2);
    assert_int_equal(precise_events(f.p, gfns, 2), 1);
    no_event(&f);
    assert_int_equal(precise_reprotect(f.p, UINT64_MAX, gfns, 4), 3);
    for (gfn_t gfn = 100; gfn < 103; gfn++)
        guest_write(f.mem, gfn);
    assert_int_equal(faults(&f), 3);
    close_fixture(&f);
}

/* More frames written than the queue holds. */
static void test_overflow(void **state)
{
    enum { FRAMES = 12000 };
    static gfn_t gfns[FRAMES], got[1000];
    static bool seen[FRAMES];
    struct fixture f;
    struct precise_stats s;
    size_t n, total = 0;

    open_fixture(&f, 64 * MiB);
    for (gfn_t i = 0; i < FRAMES; i++)
        gfns[i] = i + 64;
    assert_int_equal(precise_watch_many(f.p, gfns, FRAMES), 0);
    for (gfn_t i = 0; i < FRAMES; i++)
        guest_write(f.mem, gfns[i]);
    precise_stats(f.p, &s);
    assert_true(s.overflows > 0);
    while ((n = precise_events(f.p, got, ARRAY_SIZE(got))) > 0)
        for (size_t i = 0; i < n; i++) {
            assert_false(seen[got[i] - 64]);
            seen[got[i] - 64] = true;
            total++;
        }
    assert_int_equal(total, FRAMES);
    assert_int_equal(precise_unsync(f.p), FRAMES);
    for (total = 0; (n = precise_reprotect(f.p, UINT64_MAX, got, ARRAY_SIZE(got))) > 0;)
        total += n;
    assert_int_equal(total, FRAMES);
    assert_int_equal(precise_unsync(f.p), 0);
    for (gfn_t i = 0; i < FRAMES; i++)
        guest_write(f.mem, gfns[i]);
    assert_int_equal(faults(&f), 2 * FRAMES);
    close_fixture(&f);
}

/* -- what is refused ---------------------------------------------------------- */

static void test_registered_elsewhere(void **state)
{
    struct fixture f;
    struct precise *other = NULL;

    open_fixture(&f, 8 * MiB);
    log_set_level(LOG_LEVEL_ERR - 1);
    assert_int_equal(precise_new(f.mem, -1, &other), -EBUSY);
    log_set_level(LOG_LEVEL_ERR);
    assert_null(other);
    /* The first is none the worse for it. */
    assert_int_equal(precise_watch(f.p, 1, true), 0);
    guest_write(f.mem, 1);
    assert_int_equal(only_event(&f), 1);
    close_fixture(&f);
}

/* As an ordinary user: what precise_open says is written to `out`, its result is the exit status. */
static void open_unprivileged(int out)
{
    dup2(out, STDERR_FILENO);
    if (setgid(65534) < 0 || setuid(65534) < 0)
        _exit(0);
    _exit(-precise_open() & 0x7f);
}

static void test_unprivileged(void **state)
{
    char text[1024] = "";
    int pipes[2], status, sysctl = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);
    char allowed = '0';
    pid_t pid;

    if (sysctl >= 0)
        assert_int_equal(read(sysctl, &allowed, 1), 1);
    fd_close(sysctl);
    if (geteuid() != 0 || allowed != '0') {
        print_message("# not root, or everybody may have a userfaultfd\n");
        skip();
    }
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        open_unprivileged(pipes[1]);
    close(pipes[1]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(read(pipes[0], text, sizeof(text) - 1) >= 0);
    close(pipes[0]);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 0) {
        print_message("# an ordinary user may open /dev/userfaultfd\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), EPERM);
    assert_non_null(strstr(text, "vm.unprivileged_userfaultfd"));
}

static void test_huge_pages(void **state)
{
    struct mem_config config = {.size = 2 * MiB, .hugepages = true};
    struct precise *p = NULL;
    struct mem *mem;

    log_set_level(LOG_LEVEL_ERR - 1);
    if (mem_new(&config, &mem) < 0) {
        log_set_level(LOG_LEVEL_ERR);
        print_message("# no huge page is free\n");
        skip();
    }
    assert_int_equal(precise_new(mem, -1, &p), -EOPNOTSUPP);
    log_set_level(LOG_LEVEL_ERR);
    assert_null(p);
    mem_free(mem);
}

/* The kernel refuses what cannot fail: everything goes on unprotected, and the source says so. */
/* Memory of a lazily restored snapshot: refused before anything is registered. */
static void test_private(void **state)
{
    struct mem_config config = {.size = 8 * MiB, .private = true};
    struct precise *p = NULL;
    struct mem *mem;

    assert_int_equal(mem_new(&config, &mem), 0);
    log_set_level(LOG_LEVEL_ERR - 1);
    assert_int_equal(precise_new(mem, -1, &p), -EOPNOTSUPP);
    log_set_level(LOG_LEVEL_ERR);
    assert_null(p);
    mem_free(mem);
}

static void test_failure(void **state)
{
    struct fixture f;
    gfn_t gfns[4];

    open_fixture(&f, 8 * MiB);
    assert_int_equal(precise_watch(f.p, 3, true), 0);
    assert_int_equal(precise_error(f.p), 0);
    assert_int_equal(munmap(guest_page(f.mem, 20), GUEST_PAGE_SIZE), 0);
    assert_int_equal(precise_watch(f.p, 20, true), -ENOENT);
    log_set_level(LOG_LEVEL_ERR - 1);
    assert_int_equal(precise_error(f.p), -ENOENT);
    log_set_level(LOG_LEVEL_ERR);
    guest_write(f.mem, 3);
    assert_int_equal(faults(&f), 0);
    assert_int_equal(precise_watch(f.p, 4, true), -EIO);
    guest_write(f.mem, 4);
    assert_int_equal(precise_events(f.p, gfns, 4), 0);
    assert_int_equal(precise_reprotect(f.p, UINT64_MAX, gfns, 4), 0);
    close_fixture(&f);
}

/* -- many threads ------------------------------------------------------------- */

/*
 * Writers add to words of a few pages, each to its own, and say so afterwards. The consumer keeps a copy of the pages with nothing but what the
 * source tells. Wherever the copy is older than what was said before the consumer asked for events, the page must be one that
 * it was told of and has not been given to read.
 */
#define WRITERS 3u
#define PAGES 40u
/* Where they come slowly fewer do. */
#define FAULTS 5000u
#define FAULTS_MIN 50u
#define STRESS_NS (10 * NSEC_PER_SEC)
#define FIRST_GFN 500u

struct stress {
    struct fixture f;
    uint64_t seed;
    unsigned int started; /* atomic */
    bool stop;            /* atomic */
    uint64_t said[WRITERS][PAGES]; /* atomic */
    uint64_t copy[WRITERS][PAGES], before[WRITERS][PAGES];
    bool unsync[PAGES];
    uint64_t read;
};

static uint64_t *stress_word(const struct stress *s, unsigned int writer, size_t page)
{
    return (uint64_t *)(void *)guest_page(s->f.mem, FIRST_GFN + page) + writer;
}

static void *stress_writer(void *arg)
{
    struct stress *s = arg;
    unsigned int me = __atomic_fetch_add(&s->started, 1, __ATOMIC_RELAXED);
    struct rng rng = rng_seeded(s->seed + me);
    uint64_t value[PAGES] = {0};

    while (!__atomic_load_n(&s->stop, __ATOMIC_ACQUIRE)) {
        /* Often all of them want the same page, so that several wait for it at once. */
        size_t page = rng_chance(&rng, 30) ? 0 : rng_below(&rng, PAGES);

        value[page]++;
        /* The last writer is the VMM itself. */
        if (me == WRITERS - 1)
            (void)mem_write(s->f.mem, gfn_to_gpa(FIRST_GFN + page) + me * sizeof(uint64_t), &value[page], sizeof(uint64_t));
        else
            __atomic_store_n(stress_word(s, me, page), value[page], __ATOMIC_RELAXED);
        __atomic_store_n(&s->said[me][page], value[page], __ATOMIC_RELEASE);
    }
    return NULL;
}

static void stress_check(const struct stress *s)
{
    for (size_t page = 0; page < PAGES; page++)
        for (unsigned int w = 0; w < WRITERS && !s->unsync[page]; w++)
            if (s->copy[w][page] < s->before[w][page])
                fail_msg("page %zu: %" PRIu64 " was read, %" PRIu64 " had been written, and no event came", page, s->copy[w][page],
                         s->before[w][page]);
}

static void stress_read(struct stress *s, const gfn_t *gfns, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t page = gfns[i] - FIRST_GFN;

        s->unsync[page] = false;
        for (unsigned int w = 0; w < WRITERS; w++)
            s->copy[w][page] = __atomic_load_n(stress_word(s, w, page), __ATOMIC_RELAXED);
        s->read++;
    }
}

static void stress_tick(struct stress *s, uint64_t before_ns)
{
    gfn_t gfns[7];
    size_t n;

    for (unsigned int w = 0; w < WRITERS; w++)
        for (size_t page = 0; page < PAGES; page++)
            s->before[w][page] = __atomic_load_n(&s->said[w][page], __ATOMIC_ACQUIRE);
    do {
        n = precise_events(s->f.p, gfns, ARRAY_SIZE(gfns));
        for (size_t i = 0; i < n; i++)
            s->unsync[gfns[i] - FIRST_GFN] = true;
    } while (n == ARRAY_SIZE(gfns));
    stress_check(s);
    do {
        n = precise_reprotect(s->f.p, before_ns, gfns, ARRAY_SIZE(gfns));
        stress_read(s, gfns, n);
    } while (n == ARRAY_SIZE(gfns));
}

static void test_no_write_is_lost(void **state)
{
    static struct stress s;
    pthread_t threads[WRITERS];
    struct precise_stats stats;
    struct rng rng;
    uint64_t end;
    gfn_t gfns[PAGES];

    open_fixture(&s.f, 8 * MiB);
    s.seed = rng_test_seed("precise");
    rng = rng_seeded(s.seed + 99);
    for (unsigned int i = 0; i < PAGES; i++)
        gfns[i] = FIRST_GFN + i;
    assert_int_equal(precise_watch_many(s.f.p, gfns, PAGES), 0);
    for (unsigned int i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, stress_writer, &s), 0);
    end = clock_ns() + STRESS_NS;
    while (faults(&s.f) < FAULTS_MIN || (faults(&s.f) < FAULTS && clock_ns() < end)) {
        /* Mostly a tick's age; at times none, which is slow for the writers but loses nothing either. */
        stress_tick(&s, rng_chance(&rng, 20) ? UINT64_MAX : clock_ns() - 50 * NSEC_PER_USEC);
        if (rng_chance(&rng, 5)) {
            /* Let go and taken up again: protected, then read. */
            gfn_t gfn = FIRST_GFN + rng_below(&rng, PAGES);

            assert_int_equal(precise_watch(s.f.p, gfn, false), 0);
            assert_int_equal(precise_watch(s.f.p, gfn, true), 0);
            s.unsync[gfn - FIRST_GFN] = true;
            stress_read(&s, &gfn, 1);
        }
        sched_yield();
    }
    __atomic_store_n(&s.stop, true, __ATOMIC_RELEASE);
    for (unsigned int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    stress_tick(&s, UINT64_MAX);
    for (size_t page = 0; page < PAGES; page++) {
        assert_false(s.unsync[page]);
        for (unsigned int w = 0; w < WRITERS; w++)
            assert_int_equal(s.copy[w][page], s.said[w][page]);
    }
    precise_stats(s.f.p, &stats);
    print_message("# %" PRIu64 " faults, %" PRIu64 " of several writers at once, %" PRIu64 " pages read\n", stats.faults,
                  stats.repeats, s.read);
    close_fixture(&s.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write),
        cmocka_unit_test(test_age),
        cmocka_unit_test(test_watch),
        cmocka_unit_test(test_watch_soon),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_vmm_writes),
        cmocka_unit_test(test_discard),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_registered_elsewhere),
        cmocka_unit_test(test_unprivileged),
        cmocka_unit_test(test_huge_pages),
        cmocka_unit_test(test_private),
        cmocka_unit_test(test_failure),
        cmocka_unit_test(test_no_write_is_lost),
    };

    alarm(HANG_SECONDS);
    log_init("test-precise", NULL);
    log_set_level(LOG_LEVEL_ERR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
