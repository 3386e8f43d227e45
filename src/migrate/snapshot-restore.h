/*
 * Guest memory from a snapshot. Before the VM is made; the chain may be closed afterwards.
 *
 * Lazily: memory (mem_config.private) is a private mapping of the snapshot's file, so a restore takes no time, clones share
 * the pages that none of them wrote, and pages come from disk as they are touched. The files must stay as they are while
 * a guest runs on them: umbrad writes them read-only for that reason. Of a chain, long runs of a diff are mapped over
 * its parents' pages, and short ones are copied: mappings are scarce.
 *
 * Eagerly: pages are copied into ordinary memory, and the snapshot is needed no more.
 */
#ifndef UMBRA_MIGRATE_SNAPSHOT_RESTORE_H
#define UMBRA_MIGRATE_SNAPSHOT_RESTORE_H

#include "migrate/snapshot-open.h"
#include "mmu/mem.h"

/* mem is as large as the snapshot's, all zeros, and private for a lazy restore. 0, -EINVAL (size), or -errno; the reason is in
 * error (SNAPSHOT_ERROR_MAX). */
int snapshot_restore_lazily(const struct snapshot_chain *chain, struct mem *mem, char *error);
int snapshot_restore_eagerly(const struct snapshot_chain *chain, struct mem *mem, char *error);

#endif
