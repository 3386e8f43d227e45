/* Pages as migration looks at them: is one all zeros, which of RAM was never touched. */
#ifndef UMBRA_MIGRATE_PAGES_H
#define UMBRA_MIGRATE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "mmu/mem.h"

/* One page, aligned. It may change meanwhile: then the answer is that of one moment or another. */
bool mig_page_is_zero(const void *page);

/*
 * Clear the bits of pages that the RAM file has no memory for: they were never written, and looking at them would give them
 * memory. The number of bits cleared.
 */
uint64_t mig_skip_untouched(const struct mem *mem, uint64_t *bits);

#endif
