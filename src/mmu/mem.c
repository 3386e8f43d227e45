/*
 * Guest memory.
 *
 * The two mappings (mem.h) stand between inaccessible guard areas, so that a stray access past the end of RAM faults instead
 * of hitting another mapping, and start on a 2 MiB boundary. Preallocation fills the page tables of the guest's only; the
 * VMM writes to few pages.
 *
 * Notes of VMM writes. For each listener one bit a page, and above it a summary with one bit for each group of 64 words, so that a harvest
 * finds nothing in a few loads, and a few notes without reading the whole bitmap. No note may be lost against a harvest that
 * runs at the same time:
 *
 *   writer      store bytes; set bit (RMW); test the summary bit, set it unless it is set
 *   harvester   take the summary word (exchange with 0); take the words it names (exchange with 0)
 *
 * All of these are sequentially consistent. A writer that finds its summary bit set did so before the harvester took the
 * summary word, so its bit was set before the harvester looked at it; one that finds it clear sets it for the next
 * harvest. The bit itself is always set by a read-modify-write, even when it is set already: only that orders the bytes
 * before a harvest that is just taking the bit.
 *
 * Switching the notes on is the other race: a writer may have found the notes off while its bytes still sit in the
 * store buffer of its CPU, unseen by whoever switched them on. A fence in every write would settle it, but writes
 * happen all the time and switching hardly ever: membarrier(2) puts the fence on the side that switches.
 */
#include "config.h"

#include "mmu/mem-internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#include "base/bitmap.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/size.h"
#include "base/util.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

#define GUARD_SIZE MEM_HUGE_PAGE_SIZE
#define PREALLOC_MAX_THREADS 16u
/* What one thread takes at a time; also the least worth a thread. */
#define PREALLOC_CHUNK (64 * MiB)
/* Words of the notes under one bit of their summary. */
#define NOTE_GROUP PAGE_SET_GROUP_WORDS
#define HUGE_PAGES_SYSFS "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static_assert(MEM_SIZE_ALIGN / GUEST_PAGE_SIZE % BITMAP_WORD_BITS == 0, "a slot is whole words of a bitmap");
static_assert(MEM_HOLE_START % MEM_SIZE_ALIGN == 0, "so is the slot below the hole");

/* -- creation ----------------------------------------------------------------- */

static int membarrier(int cmd)
{
    return (int)syscall(SYS_membarrier, cmd, 0, 0);
}

static int register_membarrier(void)
{
    return membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
}

void mem_init_process(void)
{
    (void)register_membarrier();
}

static uint64_t huge_pages_value(const char *name)
{
    _cleanup_free_ char *text = NULL;
    char path[128];

    snprintf(path, sizeof(path), HUGE_PAGES_SYSFS "%s", name);
    if (fd_read_file(path, 64, &text, NULL) < 0)
        return 0;
    return strtoull(text, NULL, 10);
}

static void log_huge_page_shortage(uint64_t size, int err)
{
    uint64_t free_pages = huge_pages_value("free_hugepages");
    uint64_t reserved = huge_pages_value("resv_hugepages");
    uint64_t want = size / MEM_HUGE_PAGE_SIZE;
    uint64_t available = free_pages > reserved ? free_pages - reserved : 0;

    log_err_errno(err,
                  "guest memory: %llu huge pages of 2 MiB needed, %llu free; reserve them with: "
                  "echo %llu > " HUGE_PAGES_SYSFS "nr_hugepages",
                  (unsigned long long)want, (unsigned long long)available,
                  (unsigned long long)(huge_pages_value("nr_hugepages") + want - MIN(available, want)));
}

static int check_config(const struct mem_config *config)
{
    uint64_t align = config->hugepages ? MEM_HUGE_PAGE_SIZE : MEM_SIZE_ALIGN;
    char size[32], lo[32], hi[32];

    assert(!config->private || (!config->hugepages && !config->prealloc));
    if (config->size < MEM_SIZE_MIN || config->size > MEM_SIZE_MAX) {
        log_err("guest memory: size %s is not within %s and %s", size_format(config->size, size, sizeof(size)),
                size_format(MEM_SIZE_MIN, lo, sizeof(lo)), size_format(MEM_SIZE_MAX, hi, sizeof(hi)));
        return -EINVAL;
    }
    if (!is_aligned(config->size, align)) {
        log_err("guest memory: size %llu is not a multiple of %llu MiB", (unsigned long long)config->size,
                (unsigned long long)(align / MiB));
        return -EINVAL;
    }
    return 0;
}

static int open_ram_file(struct mem *mem)
{
    unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (mem->hugepages ? MFD_HUGETLB | MFD_HUGE_2MB : 0);
    int r;

    mem->fd = memfd_create("umbra-ram", flags);
    if (mem->fd < 0) {
        r = -errno;
        log_err_errno(r, "guest memory: cannot create %s", mem->hugepages ? "a memfd of huge pages" : "a memfd");
        return r;
    }
    if (ftruncate(mem->fd, (off_t)mem->size) < 0) {
        r = -errno;
        log_err_errno(r, "guest memory: cannot size the RAM file to %llu bytes", (unsigned long long)mem->size);
        return r;
    }
    /* Whoever is given the file cannot make accesses here fault. It is protection only, so an old kernel may refuse. */
    if (fcntl(mem->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        log_debug("guest memory: the RAM file is not sealed: %s", strerror(errno));
    return 0;
}

/* A core dump is about the VMM; the guest's memory would swamp it, and is not ours to write to disk. */
static void keep_out_of_dumps(uint8_t *at, uint64_t size)
{
    if (madvise(at, size, MADV_DONTDUMP) < 0)
        log_warn_errno(errno, "guest memory: cannot be kept out of core dumps");
}

/* Map the RAM file over [at, at + size) of the area. */
static int map_ram_file(struct mem *mem, uint8_t *at)
{
    /* Huge pages are reserved by mmap, so that a shortage shows here and not as SIGBUS in the running guest. */
    int flags = MAP_SHARED | MAP_FIXED | (mem->hugepages ? 0 : MAP_NORESERVE);

    if (mmap(at, mem->size, PROT_READ | PROT_WRITE, flags, mem->fd, 0) == MAP_FAILED) {
        int r = -errno;

        if (mem->hugepages)
            log_huge_page_shortage(mem->size, r);
        else
            log_err_errno(r, "guest memory: cannot map %llu bytes", (unsigned long long)mem->size);
        return r;
    }
    keep_out_of_dumps(at, mem->size);
    /* Both mappings: whichever touches a page first has it made. A kernel without them refuses, and pages are small. */
    if (mem->transparent && !mem->hugepages && madvise(at, mem->size, MADV_HUGEPAGE) < 0)
        log_debug("guest memory: no transparent huge pages: %s", strerror(errno));
    return 0;
}

int mem_map_file(struct mem *mem, uint64_t offset, uint64_t len, int fd)
{
    int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);

    assert(mem->private && offset <= mem->size && len <= mem->size - offset);
    if (mmap(mem->ram + offset, len, PROT_READ | PROT_WRITE, flags, fd, fd < 0 ? 0 : (off_t)offset) == MAP_FAILED)
        return -errno;
    keep_out_of_dumps(mem->ram + offset, len);
    return 0;
}

static int map_ram(struct mem *mem)
{
    uint64_t span = align_up(mem->size, GUARD_SIZE);
    int r;

    mem->area_size = 2 * span + 4 * GUARD_SIZE;
    mem->area = mmap(NULL, mem->area_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mem->area == MAP_FAILED) {
        mem->area = NULL;
        r = -errno;
        log_err_errno(r, "guest memory: no address space for %llu bytes", (unsigned long long)mem->area_size);
        return r;
    }
    mem->ram = (uint8_t *)align_up((uintptr_t)mem->area + GUARD_SIZE, GUARD_SIZE);
    mem->alias = mem->ram + span + GUARD_SIZE;
    if (mem->private) {
        mem->alias = mem->ram;
        r = mem_map_file(mem, 0, mem->size, -1);
        if (r < 0)
            log_err_errno(r, "guest memory: cannot map %llu bytes", (unsigned long long)mem->size);
        return r;
    }
    r = map_ram_file(mem, mem->ram);
    return r < 0 ? r : map_ram_file(mem, mem->alias);
}

static int map_notes(struct mem *mem)
{
    uint64_t *p;
    size_t words;

    mem->note_words = bitmap_words(bytes_to_pages(mem->size));
    mem->summary_words = bitmap_words(DIV_ROUND_UP(mem->note_words, NOTE_GROUP));
    words = mem->note_words + mem->summary_words;
    mem->notes_size = MEM_LISTENERS * words * sizeof(uint64_t);
    /* Takes no memory until something is noted. */
    p = mmap(NULL, mem->notes_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -errno;
    for (unsigned int i = 0; i < MEM_LISTENERS; i++) {
        mem->notes[i].map = p + i * words;
        mem->notes[i].summary = mem->notes[i].map + mem->note_words;
    }
    mem->writers_fence = register_membarrier() < 0;
    return 0;
}

static void add_slot(struct mem *mem, gpa_t base, uint64_t offset, uint64_t size)
{
    mem->slots[mem->slot_count] = (struct mem_slot){.id = mem->slot_count,
                                                    .base = base,
                                                    .size = size,
                                                    .offset = offset,
                                                    .hva = mem->ram + offset,
                                                    .alias = mem->alias + offset};
    mem->slot_count++;
}

static void make_slots(struct mem *mem)
{
    uint64_t low = MIN(mem->size, MEM_HOLE_START);

    add_slot(mem, 0, 0, low);
    if (mem->size > low)
        add_slot(mem, MEM_HOLE_END, low, mem->size - low);
}

/* -- preallocation ------------------------------------------------------------ */

struct prealloc {
    struct mem *mem;
    uint64_t next; /* atomic: the first byte that no thread has taken */
    int error;     /* atomic: the first -errno */
};

static int populate(struct mem *mem, uint64_t offset, uint64_t len)
{
    while (madvise(mem->ram + offset, len, MADV_POPULATE_WRITE) < 0) {
        if (errno == EINTR || errno == EAGAIN)
            continue;
        if (errno != EINVAL)
            return -errno;
        /* Linux before 5.14. */
        while (fallocate(mem->fd, 0, (off_t)offset, (off_t)len) < 0) {
            if (errno != EINTR)
                return -errno;
        }
        return 0;
    }
    return 0;
}

static void *prealloc_thread(void *arg)
{
    struct prealloc *p = arg;
    uint64_t size = p->mem->size;

    while (!__atomic_load_n(&p->error, __ATOMIC_RELAXED)) {
        uint64_t offset = __atomic_fetch_add(&p->next, PREALLOC_CHUNK, __ATOMIC_RELAXED);
        int r, none = 0;

        if (offset >= size)
            break;
        r = populate(p->mem, offset, MIN(PREALLOC_CHUNK, size - offset));
        if (r < 0)
            __atomic_compare_exchange_n(&p->error, &none, r, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    return NULL;
}

static int preallocate(struct mem *mem)
{
    struct prealloc p = {.mem = mem};
    pthread_t threads[PREALLOC_MAX_THREADS - 1];
    uint64_t chunks = DIV_ROUND_UP(mem->size, PREALLOC_CHUNK);
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    size_t started = 0, want = MIN(chunks, PREALLOC_MAX_THREADS);

    if (cpus > 0)
        want = MIN(want, (size_t)cpus);
    /* This thread is one of them; fewer than wanted are only slower. */
    while (started + 1 < want) {
        if (pthread_create(&threads[started], NULL, prealloc_thread, &p) != 0)
            break;
        started++;
    }
    prealloc_thread(&p);
    while (started > 0)
        pthread_join(threads[--started], NULL);
    if (p.error) {
        if (mem->hugepages)
            log_huge_page_shortage(mem->size, p.error);
        else
            log_err_errno(p.error, "guest memory: cannot allocate %llu bytes", (unsigned long long)mem->size);
    }
    return p.error;
}

int mem_new(const struct mem_config *config, struct mem **ret)
{
    struct mem *mem;
    int r = check_config(config);

    if (r < 0)
        return r;
    mem = calloc(1, sizeof(*mem));
    if (!mem)
        return -ENOMEM;
    mem->size = config->size;
    mem->hugepages = config->hugepages;
    mem->prealloc = config->prealloc;
    mem->private = config->private;
    mem->transparent = config->transparent;
    mem->fd = -1;
    r = open_ram_file(mem);
    if (r < 0)
        goto fail;
    r = map_ram(mem);
    if (r < 0)
        goto fail;
    r = map_notes(mem);
    if (r < 0) {
        log_err_errno(r, "guest memory: no address space for the bitmap of writes");
        goto fail;
    }
    mem->given = calloc(bitmap_words(mem_pages(mem)), sizeof(*mem->given));
    if (!mem->given) {
        r = -ENOMEM;
        goto fail;
    }
    make_slots(mem);
    if (mem->prealloc) {
        r = preallocate(mem);
        if (r < 0)
            goto fail;
    }
    *ret = mem;
    return 0;
fail:
    mem_free(mem);
    return r;
}

void mem_free(struct mem *mem)
{
    if (!mem)
        return;
    if (mem->notes[0].map)
        munmap(mem->notes[0].map, mem->notes_size);
    if (mem->area)
        munmap(mem->area, mem->area_size);
    fd_close(mem->fd);
    free(mem->given);
    free(mem);
}

/* -- access ------------------------------------------------------------------- */

uint64_t mem_size(const struct mem *mem)
{
    return mem->size;
}

uint64_t mem_pages(const struct mem *mem)
{
    return bytes_to_pages(mem->size);
}

const struct mem_slot *mem_slots(const struct mem *mem, unsigned int *ret_count)
{
    *ret_count = mem->slot_count;
    return mem->slots;
}

bool mem_hugepages(const struct mem *mem)
{
    return mem->hugepages;
}

int mem_fd(const struct mem *mem)
{
    return mem->private ? -1 : mem->fd;
}

/* Nobody can make it shorter, and it has the pages we want. */
static bool file_fits(const struct mem *mem, int fd)
{
    int seals = fcntl(fd, F_GET_SEALS), flags = fcntl(fd, F_GETFL);
    struct statfs fs;
    struct stat st;

    return seals >= 0 && (seals & F_SEAL_SHRINK) && flags >= 0 && (flags & O_ACCMODE) == O_RDWR && fstat(fd, &st) == 0 &&
           (uint64_t)st.st_size == mem->size && fstatfs(fd, &fs) == 0 &&
           ((uint64_t)fs.f_type == HUGETLBFS_MAGIC) == mem->hugepages;
}

int mem_adopt(struct mem *mem, int fd)
{
    int r;

    if (mem->private || !file_fits(mem, fd)) {
        fd_close(fd);
        return -EINVAL;
    }
    fd_close(mem->fd);
    mem->fd = fd;
    r = map_ram_file(mem, mem->ram);
    return r < 0 || mem->alias == mem->ram ? r : map_ram_file(mem, mem->alias);
}

const uint8_t *mem_ram(const struct mem *mem)
{
    return mem->ram;
}

bool mem_next_data(const struct mem *mem, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end)
{
    off_t start = (off_t)offset, end = -1;

    if (offset >= mem->size)
        return false;
    /* What private memory has of its own only its page tables know, and what its files have, only they. */
    if (!__atomic_load_n(&mem->private, __ATOMIC_ACQUIRE)) {
        start = lseek(mem->fd, (off_t)offset, SEEK_DATA);
        if (start < 0 && errno == ENXIO)
            return false;
        if (start < 0)
            start = (off_t)offset;
        end = lseek(mem->fd, start, SEEK_HOLE);
    }
    *ret_start = MAX(offset, align_down((uint64_t)start, GUEST_PAGE_SIZE));
    *ret_end = end < 0 ? mem->size : MIN(align_up((uint64_t)end, GUEST_PAGE_SIZE), mem->size);
    return true;
}

void mem_resident(const struct mem *mem, pfn_t first, size_t count, uint8_t *ret)
{
    assert(first + count <= mem_pages(mem));
    if (!__atomic_load_n(&mem->private, __ATOMIC_ACQUIRE) ||
        mincore(mem->ram + pages_to_bytes(first), pages_to_bytes(count), ret) < 0)
        memset(ret, 1, count);
    for (size_t i = 0; i < count; i++)
        ret[i] &= 1;
}

/* The slot with all of [gpa, gpa + len), gpa itself among it, or NULL. Nothing here can wrap. */
static inline const struct mem_slot *find_slot(const struct mem *mem, gpa_t gpa, uint64_t len)
{
    for (unsigned int i = 0; i < mem->slot_count; i++) {
        const struct mem_slot *slot = &mem->slots[i];
        uint64_t offset = gpa - slot->base;

        if (offset < slot->size)
            return len <= slot->size - offset ? slot : NULL;
    }
    return NULL;
}

/* Note RAM pages [first, last]. */
static void note_pages(struct notes *notes, pfn_t first, pfn_t last)
{
    for (size_t w = (size_t)(first / 64); w <= last / 64; w++) {
        size_t group = w / NOTE_GROUP;
        uint64_t bits = UINT64_MAX, *sum = &notes->summary[group / 64], sum_bit = UINT64_C(1) << (group % 64);

        if (w == first / 64)
            bits &= UINT64_MAX << (first % 64);
        if (w == last / 64)
            bits &= UINT64_MAX >> (63 - last % 64);
        __atomic_fetch_or(&notes->map[w], bits, __ATOMIC_SEQ_CST);
        if (!(__atomic_load_n(sum, __ATOMIC_SEQ_CST) & sum_bit))
            __atomic_fetch_or(sum, sum_bit, __ATOMIC_SEQ_CST);
    }
}

static void note_for_listeners(struct mem *mem, unsigned int listeners, uint64_t offset, uint64_t len)
{
    for (unsigned int i = 0; i < MEM_LISTENERS && len > 0; i++)
        if (listeners & 1u << i)
            note_pages(&mem->notes[i], bytes_to_pages(offset), bytes_to_pages(offset + len - 1));
}

/* Called after the bytes were stored; `offset` is that in the RAM file. */
static inline void note_range(struct mem *mem, uint64_t offset, uint64_t len)
{
    unsigned int listeners;

    /* The test must not move before the stores: the compiler is kept from it here, the CPU by mem_track_writes. */
    if (unlikely(mem->writers_fence))
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    else
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
    listeners = __atomic_load_n(&mem->tracking, __ATOMIC_RELAXED);
    if (unlikely(listeners))
        note_for_listeners(mem, listeners, offset, len);
}

void mem_note_range(struct mem *mem, uint64_t offset, uint64_t len)
{
    note_range(mem, offset, len);
}

static inline void note_write(struct mem *mem, const struct mem_slot *slot, gpa_t gpa, uint64_t len)
{
    note_range(mem, gpa - slot->base + slot->offset, len);
}

int mem_read(const struct mem *mem, gpa_t gpa, void *buf, size_t len)
{
    const struct mem_slot *slot = find_slot(mem, gpa, len);

    if (unlikely(!slot))
        return len ? -EFAULT : 0;
    memcpy(buf, slot->hva + (gpa - slot->base), len);
    return 0;
}

int mem_write(struct mem *mem, gpa_t gpa, const void *buf, size_t len)
{
    const struct mem_slot *slot = find_slot(mem, gpa, len);

    if (unlikely(!slot))
        return len ? -EFAULT : 0;
    memcpy(slot->alias + (gpa - slot->base), buf, len);
    note_write(mem, slot, gpa, len);
    return 0;
}

int mem_set(struct mem *mem, gpa_t gpa, int byte, size_t len)
{
    const struct mem_slot *slot = find_slot(mem, gpa, len);

    if (unlikely(!slot))
        return len ? -EFAULT : 0;
    memset(slot->alias + (gpa - slot->base), byte, len);
    note_write(mem, slot, gpa, len);
    return 0;
}

bool mem_is_ram(const struct mem *mem, gpa_t gpa, uint64_t len)
{
    return len == 0 || find_slot(mem, gpa, len);
}

void *mem_ptr(const struct mem *mem, gpa_t gpa, uint64_t len)
{
    const struct mem_slot *slot = find_slot(mem, gpa, len);

    return slot ? slot->alias + (gpa - slot->base) : NULL;
}

void mem_mark_dirty(struct mem *mem, gpa_t gpa, uint64_t len)
{
    const struct mem_slot *slot = find_slot(mem, gpa, len);

    assert(slot || len == 0);
    if (slot)
        note_write(mem, slot, gpa, len);
}

void mem_mark_dirty_ptr(struct mem *mem, const void *ptr, size_t len)
{
    uint64_t offset = (uint64_t)((const uint8_t *)ptr - mem->alias);

    assert(offset <= mem->size && len <= mem->size - offset);
    note_range(mem, offset, len);
}

/* Put the RAM file, which nothing was ever written to, in the place of files' pages and their copies. */
static int end_private(struct mem *mem)
{
    int r = map_ram_file(mem, mem->ram);

    if (r == 0)
        __atomic_store_n(&mem->private, false, __ATOMIC_RELEASE);
    return r;
}

int mem_discard(struct mem *mem)
{
    int r = 0;

    /* Noted even on failure: a part may be gone. */
    mem_note_given(mem, 0, mem->size);
    if (mem->private)
        r = end_private(mem);
    else if (fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)mem->size) < 0)
        r = -errno;
    for (unsigned int i = 0; i < mem->slot_count; i++)
        note_write(mem, &mem->slots[i], mem->slots[i].base, mem->slots[i].size);
    if (r == 0 && mem->prealloc)
        r = preallocate(mem);
    return r;
}

bool mem_gfn_to_pfn(const struct mem *mem, gfn_t gfn, pfn_t *ret)
{
    for (unsigned int i = 0; i < mem->slot_count; i++) {
        const struct mem_slot *slot = &mem->slots[i];
        uint64_t index = gfn - gpa_to_gfn(slot->base);

        if (index < bytes_to_pages(slot->size)) {
            *ret = bytes_to_pages(slot->offset) + index;
            return true;
        }
    }
    return false;
}

gfn_t mem_pfn_to_gfn(const struct mem *mem, pfn_t pfn)
{
    uint64_t low = bytes_to_pages(mem->slots[0].size);

    assert(pfn < mem_pages(mem));
    return pfn < low ? pfn : gpa_to_gfn(MEM_HOLE_END) + (pfn - low);
}

/* -- notes of VMM writes ------------------------------------------------------ */

static void forget(const struct mem *mem, struct notes *notes)
{
    for (size_t s = 0; s < mem->summary_words; s++) {
        uint64_t groups = __atomic_exchange_n(&notes->summary[s], 0, __ATOMIC_SEQ_CST);

        for (; groups; groups &= groups - 1) {
            size_t w = (s * 64 + (size_t)__builtin_ctzll(groups)) * NOTE_GROUP;
            size_t end = MIN(w + NOTE_GROUP, mem->note_words);

            for (; w < end; w++)
                __atomic_store_n(&notes->map[w], 0, __ATOMIC_RELAXED);
        }
    }
}

void mem_track_writes(struct mem *mem, enum mem_listener who, bool on)
{
    uint8_t bit = (uint8_t)(1u << who);

    /* What is left from before. A writer that still saw the notes on may add some after this: a page too many. */
    forget(mem, &mem->notes[who]);
    if (!on) {
        __atomic_fetch_and(&mem->tracking, (uint8_t)~bit, __ATOMIC_SEQ_CST);
        return;
    }
    __atomic_fetch_or(&mem->tracking, bit, __ATOMIC_SEQ_CST);
    if (!mem->writers_fence)
        membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

/* Move the notes of one group. */
static uint64_t collect_group(const struct mem *mem, struct notes *notes, size_t group, struct page_set *into)
{
    size_t w = group * NOTE_GROUP, end = MIN(w + NOTE_GROUP, mem->note_words);
    uint64_t added = 0;

    for (; w < end; w++) {
        if (__atomic_load_n(&notes->map[w], __ATOMIC_SEQ_CST))
            added += page_set_add_word(into, w, __atomic_exchange_n(&notes->map[w], 0, __ATOMIC_SEQ_CST));
    }
    return added;
}

uint64_t mem_collect_writes(struct mem *mem, enum mem_listener who, struct page_set *into)
{
    struct notes *notes = &mem->notes[who];
    uint64_t added = 0;

    for (size_t s = 0; s < mem->summary_words; s++) {
        uint64_t groups;

        if (!__atomic_load_n(&notes->summary[s], __ATOMIC_SEQ_CST))
            continue;
        groups = __atomic_exchange_n(&notes->summary[s], 0, __ATOMIC_SEQ_CST);
        for (; groups; groups &= groups - 1)
            added += collect_group(mem, notes, s * 64 + (size_t)__builtin_ctzll(groups), into);
    }
    return added;
}
