#include "config.h"

#include "migrate/pages.h"

#include <sys/platform/x86.h>

#include "base/bitmap.h"

typedef uint64_t vec __attribute__((vector_size(32)));
#define PAGE_VECS (GUEST_PAGE_SIZE / sizeof(vec))
#define STEP 8

static inline __attribute__((always_inline)) bool is_zero(const vec *p)
{
    for (unsigned int i = 0; i < PAGE_VECS; i += STEP, p += STEP) {
        vec any = p[0] | p[1] | p[2] | p[3] | p[4] | p[5] | p[6] | p[7];

        if (any[0] | any[1] | any[2] | any[3])
            return false;
    }
    return true;
}

__attribute__((target("avx2"))) static bool is_zero_avx2(const vec *p)
{
    return is_zero(p);
}

bool mig_page_is_zero(const void *page)
{
    /* Most pages that are not zero show it at once. */
    if (*(const uint64_t *)page)
        return false;
    return CPU_FEATURE_ACTIVE(AVX2) ? is_zero_avx2(page) : is_zero(page);
}

static uint64_t clear_range(uint64_t *bits, uint64_t first, uint64_t end)
{
    uint64_t cleared = 0;

    for (uint64_t page = first; page < end;) {
        uint64_t n = MIN(64 - page % 64, end - page);
        uint64_t mask = (n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1) << page % 64;

        cleared += (uint64_t)__builtin_popcountll(bits[page / 64] & mask);
        bits[page / 64] &= ~mask;
        page += n;
    }
    return cleared;
}

uint64_t mig_skip_untouched(const struct mem *mem, uint64_t *bits)
{
    uint64_t at = 0, start, end, cleared = 0;

    while (mem_next_data(mem, at, &start, &end)) {
        cleared += clear_range(bits, bytes_to_pages(at), bytes_to_pages(start));
        at = end;
    }
    return cleared + clear_range(bits, bytes_to_pages(at), mem_pages(mem));
}
