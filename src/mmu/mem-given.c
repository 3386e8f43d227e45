/* Guest memory that goes back to the host, and how the rest is read without having it made again. */
#include "config.h"

#include "mmu/mem-internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/util.h"

/* -- going -- */

/* The bits of word w that stand for pages [first, end). */
static uint64_t mask_of(uint64_t w, uint64_t first, uint64_t end)
{
    uint64_t mask = ~UINT64_C(0);

    if (w == first / 64)
        mask &= ~UINT64_C(0) << (first % 64);
    if (w == end / 64)
        mask &= (UINT64_C(1) << (end % 64)) - 1;
    return mask;
}

void mem_note_given(struct mem *mem, uint64_t offset, uint64_t len)
{
    uint64_t first = bytes_to_pages(offset), end = first + bytes_to_pages(len);

    for (uint64_t w = first / 64; w < DIV_ROUND_UP(end, 64); w++)
        __atomic_fetch_or(&mem->given[w], mask_of(w, first, end), __ATOMIC_RELEASE);
}

int64_t mem_give_back(struct mem *mem, const void *ptr, uint64_t len)
{
    uint64_t page = mem->hugepages ? MEM_HUGE_PAGE_SIZE : GUEST_PAGE_SIZE;
    uint64_t offset = (uint64_t)((const uint8_t *)ptr - mem->alias), start, end;
    int r = 0;

    assert(offset <= mem->size && len <= mem->size - offset);
    start = align_up(offset, page);
    end = align_down(offset + len, page);
    if (start >= end || __atomic_load_n(&mem->held, __ATOMIC_ACQUIRE))
        return 0;
    if (__atomic_load_n(&mem->private, __ATOMIC_ACQUIRE)) {
        if (madvise(mem->ram + start, end - start, MADV_DONTNEED) < 0)
            r = -errno;
    } else {
        mem_note_given(mem, start, end - start);
        if (fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start, (off_t)(end - start)) < 0)
            r = -errno;
    }
    /* Afterwards, so that whoever copies what is noted copies zeros; also on failure: a part may be gone. */
    mem_note_range(mem, start, end - start);
    return r < 0 ? r : (int64_t)(end - start);
}

void mem_hold_pages(struct mem *mem, bool on)
{
    int advice = on || !mem->transparent ? MADV_NOHUGEPAGE : MADV_HUGEPAGE;

    __atomic_store_n(&mem->held, on, __ATOMIC_RELEASE);
    /* A kernel without huge pages refuses. */
    (void)madvise(mem->ram, mem->size, advice);
    (void)madvise(mem->alias, mem->size, advice);
}

bool mem_given_is_zero(const struct mem *mem)
{
    return !__atomic_load_n(&mem->private, __ATOMIC_ACQUIRE);
}

int64_t mem_allocated(const struct mem *mem)
{
    struct stat st;

    if (__atomic_load_n(&mem->private, __ATOMIC_ACQUIRE))
        return -ENOTSUP;
    return fstat(mem->fd, &st) < 0 ? -errno : (int64_t)st.st_blocks * 512;
}

/* -- reading -- */

/* Private memory has no file, and nothing of the host's is made for it by reading its mapping. */
int mem_copy_pages(const struct mem *mem, pfn_t first, uint64_t count, uint8_t *to)
{
    assert(first <= mem_pages(mem) && count <= mem_pages(mem) - first);
    if (!__atomic_load_n(&mem->private, __ATOMIC_ACQUIRE))
        return fd_pread_all(mem->fd, to, pages_to_bytes(count), pages_to_bytes(first));
    memcpy(to, mem->ram + pages_to_bytes(first), pages_to_bytes(count));
    return 0;
}

static bool is_zero(const uint8_t page[GUEST_PAGE_SIZE])
{
    return page[0] == 0 && memcmp(page, page + 1, GUEST_PAGE_SIZE - 1) == 0;
}

int mem_view_page(struct mem *mem, pfn_t page, uint8_t buf[GUEST_PAGE_SIZE], const uint8_t **ret)
{
    uint64_t bit = UINT64_C(1) << (page % 64);
    int r;

    if (!(__atomic_load_n(&mem->given[page / 64], __ATOMIC_ACQUIRE) & bit) || __atomic_load_n(&mem->private, __ATOMIC_ACQUIRE)) {
        *ret = mem->ram + pages_to_bytes(page);
        return 0;
    }
    r = mem_copy_pages(mem, page, 1, buf);
    if (r < 0)
        return r;
    if (!mem->hugepages && !is_zero(buf))
        __atomic_fetch_and(&mem->given[page / 64], ~bit, __ATOMIC_RELAXED);
    *ret = buf;
    return 0;
}

bool mem_some_given_back(const struct mem *mem, pfn_t first, uint64_t count)
{
    if (__atomic_load_n(&mem->private, __ATOMIC_ACQUIRE))
        return false;
    for (uint64_t w = first / 64; w < DIV_ROUND_UP(first + count, 64); w++)
        if (__atomic_load_n(&mem->given[w], __ATOMIC_ACQUIRE) & mask_of(w, first, first + count))
            return true;
    return false;
}
