/* Guest addresses and frames, with the meaning the KVM documentation gives them. */
#ifndef UMBRA_MMU_TYPES_H
#define UMBRA_MMU_TYPES_H

#include <stdint.h>

typedef uint64_t gpa_t; /* guest physical address */
typedef uint64_t gva_t; /* guest virtual address */
typedef uint64_t gfn_t; /* guest frame number: gpa >> 12 */
typedef uint64_t pfn_t; /* index of a page in guest RAM, in the order of the RAM file ("RAM page") */

#define GUEST_PAGE_SHIFT 12
#define GUEST_PAGE_SIZE (UINT64_C(1) << GUEST_PAGE_SHIFT)
#define GFN_INVALID UINT64_MAX

static inline gfn_t gpa_to_gfn(gpa_t gpa)
{
    return gpa >> GUEST_PAGE_SHIFT;
}

static inline gpa_t gfn_to_gpa(gfn_t gfn)
{
    return gfn << GUEST_PAGE_SHIFT;
}

static inline uint64_t pages_to_bytes(uint64_t pages)
{
    return pages << GUEST_PAGE_SHIFT;
}

static inline uint64_t bytes_to_pages(uint64_t bytes)
{
    return bytes >> GUEST_PAGE_SHIFT;
}

#endif
