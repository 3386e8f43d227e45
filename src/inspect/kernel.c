/*
 * Finding the guest's kernel. Its image is mapped somewhere in 1 GiB at the end of the address space. In what is mapped read-only
 * there, the BTF blob is searched; in what is writable, the first task.
 *
 * Read-only matters: pages that the kernel gave back after booting stay mapped here, writable, and may belong to any process
 * by now. A process could make one look like BTF. It cannot make it read-only.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "inspect/btf-check.h"
#include "inspect/inspect-internal.h"

/* 512 tables of 4 KiB pages in 1 GiB, one above them, and the way there. */
#define MAX_TABLES 1024u
#define MAX_EXTENTS 65536u
#define MAX_CANDIDATES 64u
#define SCAN_CHUNK (256u << 10)
/* Samples of the blob that say whether it is still the same. */
#define SAMPLES 64u
#define SAMPLE_SIZE 64u

/* A run of the kernel's image that is contiguous in both address spaces. */
struct extent {
    gva_t gva;
    gpa_t gpa;
    uint64_t size;
    bool write;
};

struct image {
    struct extent *extents;
    size_t count, cap;
    uint64_t bytes;
    bool failed; /* out of memory */
};

struct candidates {
    gva_t at[MAX_CANDIDATES];
    size_t count;
    bool more;
};

/* -- the image ---------------------------------------------------------------- */

static bool extends(const struct extent *e, const struct mmu_leaf *leaf)
{
    return e->gva + e->size == leaf->gva && e->gpa + e->size == leaf->gpa && e->write == leaf->write;
}

static bool add_leaf(void *ctx, const struct mmu_leaf *leaf)
{
    struct image *img = ctx;

    if (leaf->user || leaf->size > KERNEL_IMAGE_LAST - KERNEL_IMAGE_FIRST + 1)
        return true;
    img->bytes += leaf->size;
    if (img->bytes > KERNEL_IMAGE_BYTES_MAX)
        return false;
    if (img->count > 0 && extends(&img->extents[img->count - 1], leaf)) {
        img->extents[img->count - 1].size += leaf->size;
        return true;
    }
    if (img->count == img->cap) {
        size_t cap = img->cap ? img->cap * 2 : 64;
        struct extent *bigger = cap > MAX_EXTENTS ? NULL : reallocarray(img->extents, cap, sizeof(*bigger));

        if (!bigger) {
            img->failed = true;
            return false;
        }
        img->extents = bigger;
        img->cap = cap;
    }
    img->extents[img->count++] = (struct extent){.gva = leaf->gva, .gpa = leaf->gpa, .size = leaf->size, .write = leaf->write};
    return true;
}

static int read_image(struct inspect_memory *m, struct image *img, struct inspect_why *why)
{
    int r = mmu_walk_range(&m->view, &m->cpu, &m->paging, m->root, KERNEL_IMAGE_FIRST, KERNEL_IMAGE_LAST, MAX_TABLES,
                           add_leaf, img);

    if (r < 0)
        return inspect_because(why, r, "kernel: the page tables at 0x%llx map it in no way a kernel does",
                               (unsigned long long)m->root);
    if (img->failed)
        return inspect_because(why, -ENOMEM, "kernel: its image has too many parts");
    if (img->bytes > KERNEL_IMAGE_BYTES_MAX)
        return inspect_because(why, -E2BIG, "kernel: more than %llu MiB are mapped as its image",
                               (unsigned long long)(KERNEL_IMAGE_BYTES_MAX >> 20));
    if (img->count == 0)
        return inspect_because(why, -ENOENT, "kernel: the page tables at 0x%llx map no Linux kernel",
                               (unsigned long long)m->root);
    return 0;
}

/* -- searching ---------------------------------------------------------------- */

static void search_bytes(const uint8_t *buf, size_t len, const void *what, size_t what_len, gva_t at, struct candidates *ret)
{
    const uint8_t *from = buf, *found;

    while ((found = memmem(from, len - (size_t)(from - buf), what, what_len)) != NULL) {
        if (ret->count == MAX_CANDIDATES) {
            ret->more = true;
            return;
        }
        ret->at[ret->count++] = at + (gva_t)(found - buf);
        from = found + 1;
    }
}

/* Search all extents that can (cannot) be written. The first MAX_CANDIDATES are noted. */
static int search_image(const struct inspect_memory *m, const struct image *img, bool write, const void *what,
                        size_t what_len, struct candidates *ret)
{
    uint8_t *buf = malloc(SCAN_CHUNK + what_len);

    if (!buf)
        return -ENOMEM;
    *ret = (struct candidates){.count = 0};
    for (size_t i = 0; i < img->count; i++) {
        const struct extent *e = &img->extents[i];

        if (e->write != write)
            continue;
        /* Chunks overlap, so that nothing hides between two. */
        for (uint64_t at = 0; at < e->size && !ret->more; at += SCAN_CHUNK) {
            size_t len = (size_t)MIN(e->size - at, SCAN_CHUNK + what_len - 1);

            if (inspect_read(m, e->gpa + at, buf, len) == 0)
                search_bytes(buf, len, what, what_len, e->gva + at, ret);
        }
    }
    free(buf);
    return 0;
}

/* The extent with all of [gva, gva + len), or NULL. */
static const struct extent *find_extent(const struct image *img, gva_t gva, uint64_t len)
{
    for (size_t i = 0; i < img->count; i++) {
        const struct extent *e = &img->extents[i];

        if (gva - e->gva < e->size)
            return len <= e->size - (gva - e->gva) ? e : NULL;
    }
    return NULL;
}

/* -- BTF ---------------------------------------------------------------------- */

/* FNV-1a over samples that are spread over the blob, the header among them. */
static int digest_blob(struct inspect_memory *m, gva_t blob, uint32_t len, uint64_t *ret)
{
    uint64_t digest = UINT64_C(0xcbf29ce484222325);
    uint8_t sample[SAMPLE_SIZE];

    for (uint64_t i = 0; i < SAMPLES; i++) {
        uint64_t at = (uint64_t)(len - SAMPLE_SIZE) * i / (SAMPLES - 1);

        if (inspect_read_virtual(m, blob + at, sample, sizeof(sample)) < 0)
            return -EFAULT;
        for (size_t b = 0; b < sizeof(sample); b++)
            digest = (digest ^ sample[b]) * UINT64_C(0x100000001b3);
    }
    *ret = digest;
    return 0;
}

/* One place where a blob may begin. 0 with k's layout and btf set; -ENOENT: none; or what inspect_layout_read says. */
static int read_blob(struct inspect_memory *m, const struct image *img, gva_t at, struct inspect_kernel *k,
                     struct inspect_why *why)
{
    const struct extent *e = find_extent(img, at, BTF_HEADER_SIZE);
    uint8_t header[BTF_HEADER_SIZE];
    _cleanup_free_ uint8_t *blob = NULL;
    size_t len;
    int r;

    if (!e || inspect_read(m, e->gpa + (at - e->gva), header, sizeof(header)) < 0)
        return -ENOENT;
    len = btf_blob_size(header);
    if (len < SAMPLE_SIZE)
        return -ENOENT;
    if (len > e->size - (at - e->gva))
        return inspect_because(why, -ENOENT, "BTF: the blob at 0x%llx goes beyond the kernel's read-only memory",
                               (unsigned long long)at);
    blob = malloc(len);
    if (!blob)
        return inspect_because(why, -ENOMEM, "out of memory");
    if (inspect_read(m, e->gpa + (at - e->gva), blob, len) < 0)
        return -ENOENT;
    r = inspect_layout_read(blob, len, &k->layout, why);
    if (r < 0)
        return r;
    k->btf = at;
    k->btf_len = (uint32_t)len;
    return digest_blob(m, at, k->btf_len, &k->digest) < 0 ? -ENOENT : 0;
}

static bool same_layout(const struct inspect_layout *a, const struct inspect_layout *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

static int find_btf(struct inspect_memory *m, const struct image *img, struct inspect_kernel *k, struct inspect_why *why)
{
    struct candidates c;
    struct inspect_kernel found = {.btf = 0};
    int r = search_image(m, img, false, btf_magic, sizeof(btf_magic), &c);

    if (r < 0)
        return inspect_because(why, r, "out of memory");
    for (size_t i = 0; i < c.count; i++) {
        struct inspect_kernel one = {.btf = 0};

        r = read_blob(m, img, c.at[i], &one, why);
        if (r == -ENOMEM || r == -EOPNOTSUPP)
            return r;
        if (r < 0)
            continue;
        if (found.btf && !same_layout(&found.layout, &one.layout))
            return inspect_because(why, -ENOTUNIQ, "BTF: two blobs differ, at 0x%llx and 0x%llx",
                                   (unsigned long long)found.btf, (unsigned long long)one.btf);
        if (!found.btf)
            found = one;
    }
    if (!found.btf) {
        if (!why->text[0])
            inspect_because(why, 0, "BTF: none in the kernel's read-only memory");
        return -ENOENT;
    }
    *k = found;
    return 0;
}

/* -- the first task ----------------------------------------------------------- */

static int find_init_task(struct inspect_memory *m, const struct image *img, struct inspect_kernel *k,
                          struct inspect_why *why)
{
    /* With its terminator; SMP kernels add the number of the CPU. */
    static const char *const names[] = {"swapper/0", "swapper"};
    bool broken = false;

    k->init_task = 0;
    for (size_t n = 0; n < ARRAY_SIZE(names); n++) {
        struct candidates c;

        if (search_image(m, img, true, names[n], strlen(names[n]) + 1, &c) < 0)
            return inspect_because(why, -ENOMEM, "out of memory");
        if (c.more)
            return inspect_because(why, -ENOTUNIQ, "tasks: '%s' stands in more than %u places of the kernel", names[n],
                                   MAX_CANDIDATES);
        for (size_t i = 0; i < c.count; i++) {
            gva_t at = c.at[i] - k->layout.comm;
            enum init_task_verdict verdict = find_extent(img, at, 1) ? inspect_check_init_task(m, &k->layout, at) : INIT_TASK_NO;

            broken |= verdict == INIT_TASK_BROKEN;
            if (verdict != INIT_TASK_YES)
                continue;
            if (k->init_task)
                return inspect_because(why, -ENOTUNIQ, "tasks: two that could be the first, at 0x%llx and 0x%llx",
                                       (unsigned long long)k->init_task, (unsigned long long)at);
            k->init_task = at;
        }
    }
    /* One that is broken may be the true one, and one that is whole a trap. */
    if (broken)
        return inspect_because(why, -EBADMSG, "tasks: the list of a first task is not linked both ways");
    if (!k->init_task)
        return inspect_because(why, -ENOENT, "tasks: there is no first task (swapper)");
    return 0;
}

int inspect_find_kernel(struct inspect_memory *m, struct inspect_kernel *ret, struct inspect_why *why)
{
    struct image img = {.count = 0};
    struct inspect_kernel k = {.btf = 0};
    int r = read_image(m, &img, why);

    if (r == 0)
        r = find_btf(m, &img, &k, why);
    if (r == 0)
        r = find_init_task(m, &img, &k, why);
    free(img.extents);
    if (r == 0)
        *ret = k;
    return r;
}

bool inspect_same_kernel(struct inspect_memory *m, const struct inspect_kernel *k)
{
    uint64_t digest;

    return digest_blob(m, k->btf, k->btf_len, &digest) == 0 && digest == k->digest &&
           inspect_check_init_task(m, &k->layout, k->init_task) == INIT_TASK_YES;
}
