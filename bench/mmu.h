/* Between mmu.c and mmu-rmap.c. */
#ifndef UMBRA_BENCH_MMU_H
#define UMBRA_BENCH_MMU_H

#include "sample.h"

/* One line of JSON: ours against a baseline, in microseconds; `floor` is the baseline's name. */
void print_pair(const char *name, struct sample *ours, const char *floor, struct sample *baseline);

int bench_rmap(unsigned int runs);

#endif
