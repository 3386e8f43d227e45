#include "config.h"

#include "migrate/compress.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define PLAIN_MAX pages_to_bytes(MIG_BATCH_PAGES)
/* Sent as it is unless it gets smaller by an eighth, and so many batches after it as well. */
#define GAIN 8
#define NOT_TRIED 15

struct mig_packer {
    ZSTD_CCtx *context;
    uint8_t *plain, *packed;
    unsigned int not_tried; /* batches still to be left as they are */
};

struct mig_unpacker {
    ZSTD_DCtx *context;
    uint8_t *plain, *packed;
};

static_assert(ZSTD_COMPRESSBOUND(MIG_BATCH_PAGES * 4096) <= MIG_PACKED_MAX, "a batch that does not get smaller");

int mig_packer_new(unsigned int level, struct mig_packer **ret)
{
    struct mig_packer *p = calloc(1, sizeof(*p));

    if (p) {
        p->context = ZSTD_createCCtx();
        p->plain = malloc(PLAIN_MAX);
        p->packed = malloc(MIG_PACKED_MAX);
    }
    if (!p || !p->context || !p->plain || !p->packed ||
        ZSTD_isError(ZSTD_CCtx_setParameter(p->context, ZSTD_c_compressionLevel, (int)level)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(p->context, ZSTD_c_checksumFlag, 1))) {
        mig_packer_free(p);
        return -ENOMEM;
    }
    *ret = p;
    return 0;
}

void mig_packer_free(struct mig_packer *p)
{
    if (!p)
        return;
    ZSTD_freeCCtx(p->context);
    free(p->plain);
    free(p->packed);
    free(p);
}

bool mig_pack(struct mig_packer *p, const struct iovec *pages, unsigned int count, const uint8_t **ret, size_t *ret_len)
{
    size_t plain = 0, packed;

    if (p->not_tried > 0) {
        p->not_tried--;
        return false;
    }
    /* The guest goes on writing, and zstd wants to read the same bytes twice. */
    for (unsigned int i = 0; i < count; i++) {
        assert(plain + pages[i].iov_len <= PLAIN_MAX);
        memcpy(p->plain + plain, pages[i].iov_base, pages[i].iov_len);
        plain += pages[i].iov_len;
    }
    packed = ZSTD_compress2(p->context, p->packed, MIG_PACKED_MAX, p->plain, plain);
    if (ZSTD_isError(packed) || packed > plain - plain / GAIN) {
        p->not_tried = NOT_TRIED;
        return false;
    }
    *ret = p->packed;
    *ret_len = packed;
    return true;
}

int mig_unpacker_new(struct mig_unpacker **ret)
{
    struct mig_unpacker *u = calloc(1, sizeof(*u));

    if (u) {
        u->context = ZSTD_createDCtx();
        u->plain = malloc(PLAIN_MAX);
        u->packed = malloc(MIG_PACKED_MAX);
    }
    if (!u || !u->context || !u->plain || !u->packed) {
        mig_unpacker_free(u);
        return -ENOMEM;
    }
    *ret = u;
    return 0;
}

void mig_unpacker_free(struct mig_unpacker *u)
{
    if (!u)
        return;
    ZSTD_freeDCtx(u->context);
    free(u->plain);
    free(u->packed);
    free(u);
}

uint8_t *mig_unpacker_buffer(struct mig_unpacker *u)
{
    return u->packed;
}

int mig_unpack(struct mig_unpacker *u, size_t len, const struct iovec *pages, unsigned int count, struct mig_error *err)
{
    size_t wanted = 0, at = 0, got;
    unsigned long long says;

    for (unsigned int i = 0; i < count; i++)
        wanted += pages[i].iov_len;
    assert(wanted <= PLAIN_MAX && len <= MIG_PACKED_MAX);
    says = ZSTD_getFrameContentSize(u->packed, len);
    if (says != wanted)
        return mig_error(err, -EBADMSG, "packed: the frame says %lld bytes, %zu are expected", (long long)says, wanted);
    got = ZSTD_findFrameCompressedSize(u->packed, len);
    if (got != len)
        return mig_error(err, -EBADMSG, "packed: %zu bytes are no one frame", len);
    /* One run, the usual case, needs no copy. */
    got = ZSTD_decompressDCtx(u->context, count == 1 ? pages->iov_base : u->plain, wanted, u->packed, len);
    if (ZSTD_isError(got))
        return mig_error(err, -EBADMSG, "packed: %s", ZSTD_getErrorName(got));
    if (got != wanted)
        return mig_error(err, -EBADMSG, "packed: %zu bytes came out, %zu are expected", got, wanted);
    for (unsigned int i = 0; i < count && count > 1; i++) {
        memcpy(pages[i].iov_base, u->plain + at, pages[i].iov_len);
        at += pages[i].iov_len;
    }
    return 0;
}
