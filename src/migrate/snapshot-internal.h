/* What the files that read and write snapshots share. */
#ifndef UMBRA_MIGRATE_SNAPSHOT_INTERNAL_H
#define UMBRA_MIGRATE_SNAPSHOT_INTERNAL_H

#include <stdint.h>

#include "migrate/snapshot-out.h"

#define SNAPSHOT_META "meta.json"
#define SNAPSHOT_STATE "state.bin"
#define SNAPSHOT_PAGES "pages"
#define SNAPSHOT_MEMORY "memory"

/* What stands behind guest RAM in the file "memory". */
void snapshot_trailer_make(uint8_t trailer[SNAPSHOT_TRAILER_SIZE], const char *id, uint64_t memory);

#endif
