/*
 * What holds between the thread and the consumer: a frame that the guest may write although it is watched has its `open` bit
 * set, and is on its way to the consumer: in the ring, in the consumer's list, or, where the ring was full, in nothing but the
 * bit, which a scan finds.
 *
 *   thread     say which frame it is at (`resolving`); open it: set the bit, and queue an event unless it was set; unprotect,
 *              which wakes the vCPU; say that it is at none
 *   consumer   clear the bit; wait while the thread is at this frame; protect; read
 *
 * The event is there before the guest can write, so nobody takes a table for clean that is being written. The wait is for
 * the thread that found the bit still set, and so queued nothing, and has not unprotected yet (on behalf of a second vCPU): it
 * must not do so after the consumer has protected. Either it sees the bit cleared or the consumer sees it at the frame: both
 * write first and look then, sequentially consistent.
 */
#include "config.h"

#include "mmu/precise.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/util.h"
#include "mmu/pageset.h"
#include "mmu/userfault.h"

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif

#define STACK_SIZE (64 * KiB)
/* Tables written between two ticks; more are found by a scan. A power of two. */
#define RING_ENTRIES 8192u
/* Messages the thread reads at a time, and frames the consumer sorts at a time. */
#define BATCH 64u

struct event {
    uint64_t ns;
    uint32_t pfn;
};

static_assert(MEM_SIZE_MAX / GUEST_PAGE_SIZE < UINT32_MAX, "a RAM page number fits an event");

struct precise {
    struct mem *mem;
    const struct mem_slot *slots;
    unsigned int slot_count;
    int fd, quit;
    pthread_t thread;
    bool started;

    /* Between the thread and the consumer, all atomic. */
    uint64_t *open; /* bitmap of RAM pages */
    uint32_t head;  /* the thread's: events put into the ring */
    uint32_t tail;  /* the consumer's: taken out */
    bool overflowed;
    uint32_t resolving; /* the thread's: RAM page it is at, plus 1; 0: none */
    int error;
    uint64_t faults, repeats, overflows, service_ns;

    /* The consumer's. */
    uint64_t *watched;  /* bitmap of RAM pages */
    uint64_t *listed;   /* the same: which are in the list */
    struct event *list; /* given by precise_events, not by precise_reprotect yet; oldest first, [list_first, list_end) */
    size_t list_first, list_end, list_size;
    struct page_set vmm; /* written by the VMM; to be given by precise_events */
    bool vmm_collected;  /* in this round of precise_events */
    bool scan;           /* the ring was full: there are frames open that are in neither ring nor list */
    bool error_logged;
    uint64_t watched_count, vmm_writes, protects, protect_calls;

    struct event ring[RING_ENTRIES];
};

/* -- the kernel's side -------------------------------------------------------- */

int precise_open(void)
{
    int fd = userfault_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);

    if (fd == -EPERM)
        log_err_errno(fd, "precise: no userfaultfd: it takes access to " USERFAULT_DEVICE
                          ", vm.unprivileged_userfaultfd=1 or CAP_SYS_PTRACE");
    else if (fd == -EOPNOTSUPP)
        log_err_errno(fd, "precise: userfaultfd cannot write-protect shared memory (Linux 5.19 can)");
    else if (fd < 0)
        log_err_errno(fd, "precise: no userfaultfd");
    return fd;
}

static int register_memory(struct precise *p)
{
    for (unsigned int i = 0; i < p->slot_count; i++) {
        struct uffdio_register arg = {.range = {.start = (uintptr_t)p->slots[i].hva, .len = p->slots[i].size},
                                      .mode = UFFDIO_REGISTER_MODE_WP};

        if (ioctl(p->fd, UFFDIO_REGISTER, &arg) < 0) {
            int r = -errno;

            log_err_errno(r, "precise: guest memory cannot be registered with userfaultfd");
            return r;
        }
        if (!(arg.ioctls & UINT64_C(1) << _UFFDIO_WRITEPROTECT)) {
            log_err("precise: userfaultfd cannot write-protect guest memory");
            return -EOPNOTSUPP;
        }
    }
    return 0;
}

/*
 * Write-protect a run, or let it be written again and wake whoever waits for it. Any thread.
 *
 * Never UFFDIO_UNREGISTER while the guest runs: it makes KVM drop every shadow entry of the range, protected or not.
 */
static int write_protect(const struct precise *p, const uint8_t *hva, uint64_t len, bool on)
{
    struct uffdio_writeprotect arg = {.range = {.start = (uintptr_t)hva, .len = len},
                                      .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};

    while (ioctl(p->fd, UFFDIO_WRITEPROTECT, &arg) < 0)
        /* EAGAIN: the address space is just changing. */
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
    return 0;
}

/*
 * Whatever is protected cannot be unprotected any more, so waiting vCPUs would wait for ever: close the userfaultfd, and the
 * kernel lets everything go on. In its place comes something that refuses our ioctls, because the other thread may be about to
 * make one with this number. The thread's poll holds the file too, and it has to come out of it for the file to close.
 */
static void fail_open(struct precise *p, int error)
{
    int none = 0;

    if (!__atomic_compare_exchange_n(&p->error, &none, error, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return;
    dup3(p->quit, p->fd, O_CLOEXEC);
    fd_event_signal(p->quit);
}

/* -- the thread --------------------------------------------------------------- */

static bool address_to_pfn(const struct precise *p, uint64_t address, pfn_t *ret)
{
    for (unsigned int i = 0; i < p->slot_count; i++) {
        uint64_t offset = address - (uintptr_t)p->slots[i].hva;

        if (offset < p->slots[i].size) {
            *ret = bytes_to_pages(p->slots[i].offset + offset);
            return true;
        }
    }
    return false;
}

static bool open_bit_set(struct precise *p, pfn_t pfn)
{
    uint64_t bit = UINT64_C(1) << (pfn % 64);

    return __atomic_fetch_or(&p->open[pfn / 64], bit, __ATOMIC_SEQ_CST) & bit;
}

/* The consumer's: what the guest writes from here on is a new event, once the frame is protected. */
static void open_bit_clear(struct precise *p, pfn_t pfn)
{
    __atomic_fetch_and(&p->open[pfn / 64], ~(UINT64_C(1) << (pfn % 64)), __ATOMIC_SEQ_CST);
    /* For one ioctl at most: the thread itself waits for nobody. */
    while (__atomic_load_n(&p->resolving, __ATOMIC_SEQ_CST) == (uint32_t)pfn + 1)
        sched_yield();
}

/* True when the frame was not open before. */
static bool queue_event(struct precise *p, pfn_t pfn, uint64_t now)
{
    uint32_t head = p->head;

    if (open_bit_set(p, pfn))
        return false;
    if (head - __atomic_load_n(&p->tail, __ATOMIC_ACQUIRE) == RING_ENTRIES) {
        __atomic_store_n(&p->overflowed, true, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(&p->overflows, 1, __ATOMIC_RELAXED);
        return true;
    }
    p->ring[head % RING_ENTRIES] = (struct event){.ns = now, .pfn = (uint32_t)pfn};
    __atomic_store_n(&p->head, head + 1, __ATOMIC_RELEASE);
    return true;
}

/*
 * Nothing in here may wait for anybody: a vCPU that stopped at an emulated write holds KVM's lock for readers of the memory
 * slots, and KVM_SET_USER_MEMORY_REGION, KVM_SET_NR_MMU_PAGES and KVM_GET_DIRTY_LOG of other threads wait for it, with
 * whatever locks of ours they hold.
 */
static int resolve(struct precise *p, uint64_t address, uint64_t read_ns)
{
    pfn_t pfn;
    int r;

    address &= ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    if (!address_to_pfn(p, address, &pfn))
        return -EPROTO;
    __atomic_fetch_add(&p->faults, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&p->resolving, (uint32_t)pfn + 1, __ATOMIC_SEQ_CST);
    if (!queue_event(p, pfn, read_ns))
        __atomic_fetch_add(&p->repeats, 1, __ATOMIC_RELAXED);
    r = write_protect(p, (const uint8_t *)(uintptr_t)address, GUEST_PAGE_SIZE, false);
    __atomic_store_n(&p->resolving, 0, __ATOMIC_SEQ_CST);
    if (r < 0)
        return r;
    __atomic_fetch_add(&p->service_ns, clock_ns() - read_ns, __ATOMIC_RELAXED);
    return 0;
}

/* One batch of faults; 0 or -errno. */
static int serve(struct precise *p)
{
    struct uffd_msg messages[BATCH];
    ssize_t n = read(p->fd, messages, sizeof(messages));
    uint64_t now = clock_ns();

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    for (size_t i = 0; i < (size_t)n / sizeof(messages[0]); i++) {
        int r = 0;

        if (messages[i].event == UFFD_EVENT_PAGEFAULT)
            r = resolve(p, messages[i].arg.pagefault.address, now);
        if (r < 0)
            return r;
    }
    return 0;
}

static void serve_all(struct precise *p)
{
    struct pollfd fds[] = {{.fd = p->fd, .events = POLLIN}, {.fd = p->quit, .events = POLLIN}};

    for (;;) {
        int r;

        thread_idle();
        r = poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno != EINTR ? -errno : 0;
        thread_busy();
        if (fds[1].revents || __atomic_load_n(&p->error, __ATOMIC_RELAXED))
            return;
        if (r == 0 && fds[0].revents)
            r = serve(p);
        if (r < 0) {
            fail_open(p, r);
            return;
        }
    }
}

static void *precise_thread(void *arg)
{
    thread_enter(THREAD_UFFD, "precise");
    serve_all(arg);
    thread_leave();
    return NULL;
}

static int start_thread(struct precise *p)
{
    int r = thread_start(&p->thread, STACK_SIZE, precise_thread, p);

    p->started = r == 0;
    return r;
}

/* -- life --------------------------------------------------------------------- */

static size_t bitmap_bytes(const struct precise *p)
{
    return bitmap_words(mem_pages(p->mem)) * sizeof(uint64_t);
}

/* Takes memory only where bits are set. */
static int make_bitmap(const struct precise *p, uint64_t **ret)
{
    void *map = mmap(NULL, bitmap_bytes(p), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (map == MAP_FAILED)
        return -ENOMEM;
    *ret = map;
    return 0;
}

static void free_bitmap(const struct precise *p, uint64_t *map)
{
    if (map)
        munmap(map, bitmap_bytes(p));
}

static int build(struct precise *p)
{
    int r;

    if (mem_hugepages(p->mem)) {
        log_err("precise: guest memory consists of pages of 2 MiB, tables cannot be protected one by one");
        return -EOPNOTSUPP;
    }
    /* Also once it was reset, and is a file again: umbrad's own writes would wait there as well. */
    if (p->slots[0].alias == p->slots[0].hva) {
        log_err("precise: guest memory was restored lazily: it has one mapping, which userfaultfd cannot protect (--eager copies it)");
        return -EOPNOTSUPP;
    }
    if (p->fd < 0)
        p->fd = precise_open();
    if (p->fd < 0)
        return p->fd;
    p->quit = fd_eventfd();
    if (p->quit < 0)
        return p->quit;
    r = make_bitmap(p, &p->open);
    if (r == 0)
        r = make_bitmap(p, &p->watched);
    if (r == 0)
        r = make_bitmap(p, &p->listed);
    if (r == 0)
        r = page_set_init(&p->vmm, mem_pages(p->mem));
    if (r == 0)
        r = register_memory(p);
    if (r == 0)
        r = start_thread(p);
    return r;
}

int precise_new(struct mem *mem, int fd, struct precise **ret)
{
    struct precise *p = calloc(1, sizeof(*p));
    int r;

    if (!p) {
        fd_close(fd);
        return -ENOMEM;
    }
    p->mem = mem;
    p->slots = mem_slots(mem, &p->slot_count);
    p->fd = fd;
    p->quit = -1;
    r = build(p);
    if (r < 0) {
        precise_free(p);
        return r;
    }
    mem_track_writes(mem, MEM_LISTENER_PRECISE, true);
    *ret = p;
    return 0;
}

void precise_free(struct precise *p)
{
    if (!p)
        return;
    if (p->started) {
        mem_track_writes(p->mem, MEM_LISTENER_PRECISE, false);
        fd_event_signal(p->quit);
        pthread_join(p->thread, NULL);
    }
    /* Closing unregisters, which unprotects all and wakes whoever waits. */
    fd_close(p->fd);
    fd_close(p->quit);
    page_set_free(&p->vmm);
    free_bitmap(p, p->open);
    free_bitmap(p, p->watched);
    free_bitmap(p, p->listed);
    free(p->list);
    free(p);
}

/* -- protecting --------------------------------------------------------------- */

static uint8_t *gfn_to_hva(const struct precise *p, gfn_t gfn)
{
    for (unsigned int i = 0; i < p->slot_count; i++) {
        uint64_t offset = gfn_to_gpa(gfn) - p->slots[i].base;

        if (offset < p->slots[i].size)
            return p->slots[i].hva + offset;
    }
    return NULL;
}

static int compare_gfns(const void *a, const void *b)
{
    gfn_t x = *(const gfn_t *)a, y = *(const gfn_t *)b;

    return (x > y) - (x < y);
}

/* Protect (on) or unprotect frames of RAM, each once; they are sorted. There are no two slots without a gap between them. */
static int protect_runs(struct precise *p, gfn_t *gfns, size_t count, bool on)
{
    int r = 0;

    qsort(gfns, count, sizeof(*gfns), compare_gfns);
    for (size_t i = 0, n; i < count && r == 0; i += n) {
        for (n = 1; i + n < count && gfns[i + n] == gfns[i] + n;)
            n++;
        r = write_protect(p, gfn_to_hva(p, gfns[i]), n * GUEST_PAGE_SIZE, on);
        if (on) {
            p->protects += n;
            p->protect_calls++;
        }
    }
    if (r < 0)
        fail_open(p, r);
    return r;
}

/* Take frames of one batch into or out of the watched ones: those that change are left in gfns, *count of them. */
static int mark_watched(struct precise *p, gfn_t *gfns, size_t *count, bool on)
{
    size_t changed = 0;
    int r = 0;

    for (size_t i = 0; i < *count; i++) {
        pfn_t pfn;

        if (!mem_gfn_to_pfn(p->mem, gfns[i], &pfn)) {
            r = -EFAULT;
            continue;
        }
        if (bitmap_test(p->watched, pfn) == on)
            continue;
        p->watched[pfn / 64] ^= UINT64_C(1) << (pfn % 64);
        /* What was open under an earlier watch is not any more: the next write is a new event. */
        open_bit_clear(p, pfn);
        gfns[changed++] = gfns[i];
    }
    *count = changed;
    p->watched_count += on ? changed : -changed;
    return r;
}

static int watch_batch(struct precise *p, gfn_t *gfns, size_t count, bool on)
{
    int r = mark_watched(p, gfns, &count, on), s;

    if (precise_error(p) < 0)
        return -EIO;
    s = protect_runs(p, gfns, count, on);
    return s < 0 ? s : r;
}

/* Make room for one more event in the list. */
static bool list_room(struct precise *p)
{
    struct event *bigger;
    size_t size;

    if (p->list_first == p->list_end)
        p->list_first = p->list_end = 0;
    if (p->list_end < p->list_size)
        return true;
    if (p->list_first > p->list_size / 2) {
        memmove(p->list, p->list + p->list_first, (p->list_end - p->list_first) * sizeof(*p->list));
        p->list_end -= p->list_first;
        p->list_first = 0;
        return true;
    }
    size = p->list_size ? 2 * p->list_size : 256;
    bigger = realloc(p->list, size * sizeof(*bigger));
    if (!bigger)
        return false;
    p->list = bigger;
    p->list_size = size;
    return true;
}

int precise_watch(struct precise *p, gfn_t gfn, bool on)
{
    return watch_batch(p, &gfn, 1, on);
}

int precise_watch_soon(struct precise *p, gfn_t gfn)
{
    pfn_t pfn;

    if (!mem_gfn_to_pfn(p->mem, gfn, &pfn))
        return -EFAULT;
    if (precise_error(p) < 0)
        return -EIO;
    if (bitmap_test(p->watched, pfn))
        return 0;
    if (!bitmap_test(p->listed, pfn)) {
        if (!list_room(p))
            return precise_watch(p, gfn, true);
        bitmap_set(p->listed, pfn);
        p->list[p->list_end++] = (struct event){.ns = clock_ns(), .pfn = (uint32_t)pfn};
    }
    bitmap_set(p->watched, pfn);
    p->watched_count++;
    /* It is on its way to the consumer: the thread has nothing to queue. */
    (void)open_bit_set(p, pfn);
    return 0;
}

int precise_watch_many(struct precise *p, const gfn_t *gfns, size_t count)
{
    int r = 0;

    for (size_t i = 0; i < count; i += BATCH) {
        gfn_t batch[BATCH];
        size_t n = MIN(count - i, (size_t)BATCH);
        int s;

        memcpy(batch, gfns + i, n * sizeof(batch[0]));
        s = watch_batch(p, batch, n, true);
        r = r ? r : s;
    }
    return r;
}

int precise_unwatch_all(struct precise *p)
{
    uint64_t pages = mem_pages(p->mem);
    int r = 0;

    for (pfn_t pfn = bitmap_next_set(p->watched, pages, 0); pfn < pages;) {
        gfn_t batch[BATCH];
        size_t n = 0;
        int s;

        for (; pfn < pages && n < BATCH; pfn = bitmap_next_set(p->watched, pages, pfn + 1))
            batch[n++] = mem_pfn_to_gfn(p->mem, pfn);
        s = watch_batch(p, batch, n, false);
        r = r ? r : s;
    }
    return r;
}

bool precise_watched(const struct precise *p, gfn_t gfn)
{
    pfn_t pfn;

    return mem_gfn_to_pfn(p->mem, gfn, &pfn) && bitmap_test(p->watched, pfn);
}

/* -- events ------------------------------------------------------------------- */

/*
 * A frame was written: into the list, unless it is there already, and to the caller. One that is not watched any more is
 * forgotten. There is room in the list.
 */
static size_t take(struct precise *p, pfn_t pfn, uint64_t ns, gfn_t *ret)
{
    if (!bitmap_test(p->watched, pfn)) {
        open_bit_clear(p, pfn);
        return 0;
    }
    if (!bitmap_test(p->listed, pfn)) {
        bitmap_set(p->listed, pfn);
        p->list[p->list_end++] = (struct event){.ns = ns, .pfn = (uint32_t)pfn};
    }
    *ret = mem_pfn_to_gfn(p->mem, pfn);
    return 1;
}

static size_t take_from_ring(struct precise *p, gfn_t *gfns, size_t max)
{
    uint32_t head = __atomic_load_n(&p->head, __ATOMIC_ACQUIRE), tail = p->tail;
    size_t n = 0;

    while (tail != head && n < max && list_room(p)) {
        struct event e = p->ring[tail % RING_ENTRIES];

        __atomic_store_n(&p->tail, ++tail, __ATOMIC_RELEASE);
        n += take(p, e.pfn, e.ns, &gfns[n]);
    }
    return n;
}

/* The ring was full: find the frames that are open and not in the list. It costs a look at every word of the bitmap. */
static size_t take_from_scan(struct precise *p, gfn_t *gfns, size_t max)
{
    size_t words = bitmap_words(mem_pages(p->mem)), n = 0;
    uint64_t now = clock_ns();

    for (size_t w = 0; w < words; w++) {
        uint64_t left = __atomic_load_n(&p->open[w], __ATOMIC_SEQ_CST) & ~p->listed[w];

        for (; left; left &= left - 1) {
            if (n == max || !list_room(p))
                return n;
            n += take(p, w * 64 + (unsigned int)__builtin_ctzll(left), now, &gfns[n]);
        }
    }
    p->scan = false;
    return n;
}

/*
 * What the VMM wrote is protected and read again like what the guest wrote: a hole that was punched into the file took the
 * protection with it.
 */
static size_t take_from_vmm(struct precise *p, gfn_t *gfns, size_t max)
{
    uint64_t now = clock_ns();
    size_t n = 0;

    /* Once a round, or a device that writes all the time would keep the consumer here for ever. */
    if (!p->vmm_collected)
        mem_collect_writes(p->mem, MEM_LISTENER_PRECISE, &p->vmm);
    p->vmm_collected = true;
    for (size_t group = page_set_next_group(&p->vmm, 0); group < p->vmm.group_count;
         group = page_set_next_group(&p->vmm, group + 1)) {
        for (size_t w = group * PAGE_SET_GROUP_WORDS; w < (group + 1) * PAGE_SET_GROUP_WORDS; w++)
            for (uint64_t *left = &p->vmm.map[w]; *left; *left &= *left - 1) {
                pfn_t pfn = w * 64 + (unsigned int)__builtin_ctzll(*left);

                if (n == max || !list_room(p))
                    return n;
                if (!bitmap_test(p->watched, pfn))
                    continue;
                n += take(p, pfn, now, &gfns[n]);
                p->vmm_writes++;
            }
    }
    page_set_clear(&p->vmm);
    return n;
}

size_t precise_events(struct precise *p, gfn_t *gfns, size_t max)
{
    size_t n;

    /* Before the ring is emptied: who finds it full after that says so again. */
    if (__atomic_exchange_n(&p->overflowed, false, __ATOMIC_SEQ_CST))
        p->scan = true;
    n = take_from_ring(p, gfns, max);
    if (p->scan && n < max)
        n += take_from_scan(p, gfns + n, max - n);
    if (n < max)
        n += take_from_vmm(p, gfns + n, max - n);
    if (n < max)
        p->vmm_collected = false;
    return n;
}

/* The frames of the list that are old enough and still watched, at most max; they may have new events from here on. */
static size_t take_due(struct precise *p, uint64_t before_ns, gfn_t *gfns, size_t max)
{
    size_t n = 0;

    for (; p->list_first < p->list_end && p->list[p->list_first].ns < before_ns && n < max; p->list_first++) {
        pfn_t pfn = p->list[p->list_first].pfn;

        p->listed[pfn / 64] &= ~(UINT64_C(1) << (pfn % 64));
        open_bit_clear(p, pfn);
        if (bitmap_test(p->watched, pfn))
            gfns[n++] = mem_pfn_to_gfn(p->mem, pfn);
    }
    return n;
}

size_t precise_reprotect(struct precise *p, uint64_t before_ns, gfn_t *gfns, size_t max)
{
    size_t n = take_due(p, before_ns, gfns, max);

    /* They are given all the same when that fails: precise_error tells, and reading them does no harm. */
    if (precise_error(p) == 0)
        (void)protect_runs(p, gfns, n, true);
    return n;
}

size_t precise_unprotected(const struct precise *p, size_t *at, gfn_t *gfns, size_t max)
{
    size_t n = 0;

    for (; n < max && p->list_first + *at < p->list_end; ++*at)
        gfns[n++] = mem_pfn_to_gfn(p->mem, p->list[p->list_first + *at].pfn);
    return n;
}

size_t precise_unsync(const struct precise *p)
{
    return p->list_end - p->list_first + (__atomic_load_n(&p->head, __ATOMIC_ACQUIRE) - p->tail);
}

int precise_error(struct precise *p)
{
    int error = __atomic_load_n(&p->error, __ATOMIC_SEQ_CST);

    if (error && !p->error_logged) {
        log_err_errno(error, "precise: userfaultfd failed, page tables are not protected any more");
        p->error_logged = true;
    }
    return error;
}

void precise_stats(const struct precise *p, struct precise_stats *ret)
{
    *ret = (struct precise_stats){
        .watched = p->watched_count,
        .unsync = precise_unsync(p),
        .faults = __atomic_load_n(&p->faults, __ATOMIC_RELAXED),
        .repeats = __atomic_load_n(&p->repeats, __ATOMIC_RELAXED),
        .overflows = __atomic_load_n(&p->overflows, __ATOMIC_RELAXED),
        .vmm_writes = p->vmm_writes,
        .protects = p->protects,
        .protect_calls = p->protect_calls,
        .service_ns = __atomic_load_n(&p->service_ns, __ATOMIC_RELAXED),
    };
}
