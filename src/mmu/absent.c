/*
 * What holds between those who put a page and the thread that reads faults. Three bitmaps, all atomic and sequentially consistent:
 *
 *   claimed   taken by the one that puts it; of two copies of a page one is put, also when the guest has given the page back meanwhile
 *   absent    cleared when the page is in the RAM file
 *   beside    somebody waits for it in the VMM's mapping: UFFDIO_COPY wakes in the guest's only
 *
 *   thread    set `beside` (a fault there); look at `absent`: if it is clear, wake
 *   putter    copy; clear `absent`; look at `beside`: if it is set, wake
 *
 * Each writes first and looks then, so at least one of them wakes.
 */
#include "config.h"

#include "mmu/absent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/util.h"
#include "mmu/userfault.h"

#define STACK_SIZE (64 * KiB)
#define BATCH 64u

struct absent {
    struct mem *mem;
    const struct mem_slot *slots;
    absent_want *want;
    void *opaque;
    int fd, wake;
    pthread_t thread;
    bool started;
    bool registered, quit, again; /* atomic */

    uint64_t *absent, *claimed, *beside; /* atomic words */
    uint64_t *wanted; /* the thread's */
    size_t words;
    uint64_t left;    /* atomic */
    uint64_t wants, faults; /* atomic */
};

static uint64_t bit_of(pfn_t page)
{
    return UINT64_C(1) << (page % 64);
}

static bool test(const uint64_t *map, pfn_t page)
{
    return __atomic_load_n(&map[page / 64], __ATOMIC_SEQ_CST) & bit_of(page);
}

static bool set(uint64_t *map, pfn_t page)
{
    return __atomic_fetch_or(&map[page / 64], bit_of(page), __ATOMIC_SEQ_CST) & bit_of(page);
}

static void clear(uint64_t *map, pfn_t page)
{
    __atomic_fetch_and(&map[page / 64], ~bit_of(page), __ATOMIC_SEQ_CST);
}

/* -- the kernel's side -------------------------------------------------------- */

static uint8_t *guest_address(const struct absent *a, pfn_t page)
{
    /* The slots lie behind each other, as in the file. */
    return a->slots[0].hva + pages_to_bytes(page);
}

static uint8_t *vmm_address(const struct absent *a, pfn_t page)
{
    return a->slots[0].alias + pages_to_bytes(page);
}

static int open_userfault(const char **ret_why)
{
    int fd = userfault_open(UFFD_FEATURE_MISSING_SHMEM);

    if (fd == -EPERM || fd == -EACCES)
        *ret_why = "no userfaultfd: it takes access to " USERFAULT_DEVICE ", vm.unprivileged_userfaultfd=1 or CAP_SYS_PTRACE";
    else if (fd < 0)
        *ret_why = "no userfaultfd for shared memory in this kernel";
    return fd;
}

static int register_range(int fd, const uint8_t *at, uint64_t len)
{
    struct uffdio_register arg = {.range = {.start = (uintptr_t)at, .len = len}, .mode = UFFDIO_REGISTER_MODE_MISSING};

    return ioctl(fd, UFFDIO_REGISTER, &arg) < 0 ? -errno : 0;
}

static void unregister_range(int fd, const uint8_t *at, uint64_t len)
{
    struct uffdio_range arg = {.start = (uintptr_t)at, .len = len};

    if (ioctl(fd, UFFDIO_UNREGISTER, &arg) < 0)
        log_err_errno(errno, "guest memory: cannot be unregistered from userfaultfd");
}

static int register_memory(int fd, const struct mem *mem)
{
    unsigned int n;
    const struct mem_slot *first = mem_slots(mem, &n);
    int r = register_range(fd, first->hva, mem_size(mem));

    if (r < 0)
        return r;
    r = register_range(fd, first->alias, mem_size(mem));
    if (r < 0)
        unregister_range(fd, first->hva, mem_size(mem));
    return r;
}

static void unregister_memory(int fd, const struct mem *mem)
{
    unsigned int n;
    const struct mem_slot *first = mem_slots(mem, &n);

    unregister_range(fd, first->hva, mem_size(mem));
    unregister_range(fd, first->alias, mem_size(mem));
}

int absent_possible(const struct mem *mem, const char **ret_why)
{
    int fd, r;

    if (mem_hugepages(mem)) {
        *ret_why = "guest memory consists of pages of 2 MiB, which would have to come whole";
        return -EOPNOTSUPP;
    }
    if (mem_fd(mem) < 0) {
        *ret_why = "guest memory was restored lazily";
        return -EOPNOTSUPP;
    }
    fd = open_userfault(ret_why);
    if (fd < 0)
        return fd;
    r = register_memory(fd, mem);
    if (r == 0)
        unregister_memory(fd, mem);
    else
        *ret_why = r == -EBUSY ? "guest memory is registered with userfaultfd already (--mmu precise)"
                               : "guest memory cannot be registered with userfaultfd";
    close(fd);
    return r;
}

/* Let who waits at the address look again. */
static int wake_at(const struct absent *a, const uint8_t *at)
{
    struct uffdio_range range = {.start = (uintptr_t)at, .len = GUEST_PAGE_SIZE};

    return ioctl(a->fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

/* A page of zeros at the address, unless there is one already. */
static int zero_at(const struct absent *a, const uint8_t *at, uint64_t len)
{
    while (len > 0) {
        struct uffdio_zeropage zero = {.range = {.start = (uintptr_t)at, .len = len}};

        if (ioctl(a->fd, UFFDIO_ZEROPAGE, &zero) == 0)
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        /* The address space is just changing; a part may be done. */
        at += MAX(zero.zeropage, INT64_C(0));
        len -= (uint64_t)MAX(zero.zeropage, INT64_C(0));
    }
    return 0;
}

static int copy_to(const struct absent *a, const uint8_t *at, const uint8_t *data, uint64_t len)
{
    while (len > 0) {
        struct uffdio_copy copy = {.dst = (uintptr_t)at, .src = (uintptr_t)data, .len = len};
        uint64_t done;

        if (ioctl(a->fd, UFFDIO_COPY, &copy) == 0)
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        done = (uint64_t)MAX(copy.copy, INT64_C(0));
        at += done;
        data += done;
        len -= done;
    }
    return 0;
}

/* -- the thread --------------------------------------------------------------- */

static void resolve(struct absent *a, uint64_t address)
{
    const uint8_t *at = (const uint8_t *)(uintptr_t)(address & ~(uint64_t)(GUEST_PAGE_SIZE - 1));
    bool in_guest = at >= guest_address(a, 0) && at < guest_address(a, 0) + mem_size(a->mem);
    pfn_t page = bytes_to_pages((uint64_t)(at - (in_guest ? guest_address(a, 0) : vmm_address(a, 0))));
    int r = 0;

    __atomic_fetch_add(&a->faults, 1, __ATOMIC_RELAXED);
    if (page >= mem_pages(a->mem))
        return;
    if (!in_guest)
        set(a->beside, page);
    if (!test(a->absent, page)) {
        r = zero_at(a, at, GUEST_PAGE_SIZE);
        if (r == -EEXIST)
            r = wake_at(a, at);
        if (r < 0)
            log_err_errno(r, "guest memory: a page cannot be given");
        return;
    }
    if (bitmap_test(a->wanted, page))
        return;
    bitmap_set(a->wanted, page);
    __atomic_fetch_add(&a->wants, 1, __ATOMIC_RELAXED);
    a->want(a->opaque, page);
}

static void serve(struct absent *a)
{
    struct uffd_msg messages[BATCH];
    ssize_t n = read(a->fd, messages, sizeof(messages));

    for (ssize_t i = 0; i < n / (ssize_t)sizeof(messages[0]); i++)
        if (messages[i].event == UFFD_EVENT_PAGEFAULT)
            resolve(a, messages[i].arg.pagefault.address);
}

static void ask_again(struct absent *a)
{
    for (size_t w = bitmap_next_word(a->wanted, a->words, 0); w < a->words; w = bitmap_next_word(a->wanted, a->words, w + 1)) {
        uint64_t bits = a->wanted[w] & __atomic_load_n(&a->absent[w], __ATOMIC_SEQ_CST);

        for (; bits; bits &= bits - 1)
            a->want(a->opaque, w * 64 + (unsigned int)__builtin_ctzll(bits));
    }
}

static void *absent_thread(void *arg)
{
    struct absent *a = arg;
    struct pollfd fds[] = {{.fd = a->fd, .events = POLLIN}, {.fd = a->wake, .events = POLLIN}};

    /* It asks the peer of a migration, and a thread of one has made it. */
    thread_enter(THREAD_MIGRATE, "absent");
    while (!__atomic_load_n(&a->quit, __ATOMIC_ACQUIRE)) {
        thread_idle();
        (void)poll(fds, ARRAY_SIZE(fds), -1);
        thread_busy();
        if (fds[1].revents) {
            fd_event_clear(a->wake);
            if (__atomic_exchange_n(&a->again, false, __ATOMIC_ACQ_REL))
                ask_again(a);
        }
        if (fds[0].revents & POLLIN)
            serve(a);
    }
    thread_leave();
    return NULL;
}

/* -- pages come --------------------------------------------------------------- */

static bool is_hole(const struct absent *a, pfn_t first, uint64_t count)
{
    off_t at = lseek(mem_fd(a->mem), (off_t)pages_to_bytes(first), SEEK_DATA);

    return at < 0 ? errno == ENXIO : (uint64_t)at >= pages_to_bytes(first + count);
}

static int take_out(struct absent *a, pfn_t first, uint64_t count)
{
    if (is_hole(a, first, count))
        return 0;
    if (fallocate(mem_fd(a->mem), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)pages_to_bytes(first),
                  (off_t)pages_to_bytes(count)) < 0)
        return -errno;
    /* Of a huge page that it cannot split the kernel clears the part, and keeps it. */
    return is_hole(a, first, count) ? 0 : -EIO;
}

int absent_mark(struct absent *a, pfn_t first, const uint64_t *bits, size_t words)
{
    uint64_t pages = mem_pages(a->mem), n = words * 64;

    if (first % 64 || first >= pages || words > a->words - first / 64)
        return -EINVAL;
    for (uint64_t i = bitmap_next_set(bits, n, 0); i < n;) {
        uint64_t end = bitmap_next_clear(bits, n, i);
        int r = first + end > pages ? -EINVAL : take_out(a, first + i, end - i);

        if (r < 0)
            return r;
        i = bitmap_next_set(bits, n, end);
    }
    for (size_t w = 0; w < words; w++) {
        uint64_t old = __atomic_fetch_or(&a->absent[first / 64 + w], bits[w], __ATOMIC_SEQ_CST);

        __atomic_fetch_add(&a->left, (uint64_t)__builtin_popcountll(bits[w] & ~old), __ATOMIC_SEQ_CST);
    }
    return 0;
}

/* Pages that are there: let those that wait in the VMM's mapping go on too. */
static void arrived(struct absent *a, pfn_t first, uint64_t count)
{
    for (pfn_t page = first; page < first + count; page++) {
        clear(a->absent, page);
        if (test(a->beside, page))
            (void)wake_at(a, vmm_address(a, page));
    }
    __atomic_fetch_sub(&a->left, count, __ATOMIC_SEQ_CST);
}

static int put_claimed(struct absent *a, pfn_t first, uint64_t count, const uint8_t *data)
{
    const uint8_t *at = guest_address(a, first);
    int r = data ? copy_to(a, at, data, pages_to_bytes(count)) : zero_at(a, at, pages_to_bytes(count));

    if (r == 0)
        arrived(a, first, count);
    return r;
}

/* One by one, after a run of them failed: those that are there already are, and the others stay absent. */
static int put_singly(struct absent *a, pfn_t first, uint64_t count, const uint8_t *data)
{
    int error = 0;

    for (uint64_t i = 0; i < count; i++) {
        int r = put_claimed(a, first + i, 1, data ? data + pages_to_bytes(i) : NULL);

        /* The run got as far as this. Nobody else puts a claimed page. */
        if (r == -EEXIST)
            arrived(a, first + i, 1);
        else if (r < 0)
            clear(a->claimed, first + i);
        if (r < 0 && r != -EEXIST)
            error = r;
    }
    return error;
}

int absent_put(struct absent *a, pfn_t first, uint64_t count, const uint8_t *data)
{
    pfn_t end = first + count;

    for (pfn_t page = first; page < end;) {
        pfn_t from = page;
        int r;

        while (page < end && test(a->absent, page) && !set(a->claimed, page))
            page++;
        if (page == from) {
            page++;
            continue;
        }
        r = put_claimed(a, from, page - from, data ? data + pages_to_bytes(from - first) : NULL);
        if (r < 0)
            r = put_singly(a, from, page - from, data ? data + pages_to_bytes(from - first) : NULL);
        if (r < 0)
            return r;
    }
    return 0;
}

uint64_t absent_left(const struct absent *a)
{
    return __atomic_load_n(&a->left, __ATOMIC_SEQ_CST);
}

uint64_t absent_word(const struct absent *a, size_t word)
{
    return __atomic_load_n(&a->absent[word], __ATOMIC_SEQ_CST);
}

void absent_ask_again(struct absent *a)
{
    __atomic_store_n(&a->again, true, __ATOMIC_RELEASE);
    fd_event_signal(a->wake);
}

void absent_stats(const struct absent *a, struct absent_stats *ret)
{
    ret->wanted = __atomic_load_n(&a->wants, __ATOMIC_RELAXED);
    ret->faults = __atomic_load_n(&a->faults, __ATOMIC_RELAXED);
}

/* -- life --------------------------------------------------------------------- */

static int build(struct absent *a)
{
    const char *why;
    int r;

    a->words = bitmap_words(mem_pages(a->mem));
    a->absent = calloc(4 * a->words, sizeof(*a->absent));
    if (!a->absent)
        return -ENOMEM;
    a->claimed = a->absent + a->words;
    a->beside = a->claimed + a->words;
    a->wanted = a->beside + a->words;
    a->fd = open_userfault(&why);
    if (a->fd < 0)
        return a->fd;
    a->wake = fd_eventfd();
    if (a->wake < 0)
        return a->wake;
    /* Huge pages that the kernel puts together have zeros where pages are missing. */
    mem_hold_pages(a->mem, true);
    r = register_memory(a->fd, a->mem);
    __atomic_store_n(&a->registered, r == 0, __ATOMIC_RELEASE);
    if (r == 0)
        r = thread_start(&a->thread, STACK_SIZE, absent_thread, a);
    a->started = r == 0;
    return r;
}

int absent_new(struct mem *mem, absent_want *want, void *opaque, struct absent **ret)
{
    struct absent *a = calloc(1, sizeof(*a));
    unsigned int n;
    int r;

    if (!a)
        return -ENOMEM;
    *a = (struct absent){.mem = mem, .want = want, .opaque = opaque, .fd = -1, .wake = -1};
    a->slots = mem_slots(mem, &n);
    r = build(a);
    if (r < 0) {
        absent_free(a);
        return r;
    }
    *ret = a;
    return 0;
}

void absent_let_go(struct absent *a)
{
    /* Nothing was write-protected, so the kernel changes no page table here: KVM keeps what it has shadowed. */
    if (__atomic_exchange_n(&a->registered, false, __ATOMIC_ACQ_REL))
        unregister_memory(a->fd, a->mem);
}

void absent_free(struct absent *a)
{
    if (!a)
        return;
    absent_let_go(a);
    if (a->started) {
        __atomic_store_n(&a->quit, true, __ATOMIC_RELEASE);
        fd_event_signal(a->wake);
        pthread_join(a->thread, NULL);
    }
    if (a->wake >= 0)
        mem_hold_pages(a->mem, false);
    fd_close(a->fd);
    fd_close(a->wake);
    free(a->absent);
    free(a);
}
