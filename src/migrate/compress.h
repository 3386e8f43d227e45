/*
 * The pages of a batch as one zstd frame. A packer and an unpacker are for one thread each: every channel has its own.
 */
#ifndef UMBRA_MIGRATE_COMPRESS_H
#define UMBRA_MIGRATE_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "migrate/wire.h"

#define MIG_ZSTD_LEVEL_MAX 20u
#define MIG_ZSTD_LEVEL_DEFAULT 1u

struct mig_packer;
struct mig_unpacker;

/* level: 1 to MIG_ZSTD_LEVEL_MAX. -ENOMEM. */
int mig_packer_new(unsigned int level, struct mig_packer **ret);
/* NULL is fine. */
void mig_packer_free(struct mig_packer *p);
/*
 * Pack at most MIG_BATCH_PAGES pages, which may be written meanwhile: what is packed is as they were at some moment, each
 * word for itself. False when that is not worth it; after such a batch some more are not even tried. *ret: until the next call.
 */
bool mig_pack(struct mig_packer *p, const struct iovec *pages, unsigned int count, const uint8_t **ret, size_t *ret_len);

int mig_unpacker_new(struct mig_unpacker **ret);
void mig_unpacker_free(struct mig_unpacker *u);
/* Where to receive a frame of at most MIG_PACKED_MAX bytes. */
uint8_t *mig_unpacker_buffer(struct mig_unpacker *u);
/*
 * Unpack the frame of `len` bytes in that buffer, which a peer made, into exactly these pages. -EBADMSG with *err unless it is
 * one whole frame that says that it holds as many bytes, and does; then the pages may hold anything.
 */
int mig_unpack(struct mig_unpacker *u, size_t len, const struct iovec *pages, unsigned int count, struct mig_error *err);

#endif
