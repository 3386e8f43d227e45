#include "config.h"

#include "vcpu/stats.h"

#include <assert.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/util.h"

/* Far above what KVM has (about 70 statistics of 48-byte names); they bound what a bad header makes us allocate. */
#define MAX_DESCS 4096u
#define MAX_NAME 256u
#define MAX_DATA (1u << 20)

struct kvm_stats_source {
    int fd;
    uint32_t data_offset;
    uint32_t data_len;
    uint64_t *data;
    uint64_t *spare; /* what stats_read reads into, so that a failure leaves data alone */
    char *names;     /* name_size bytes each */
    struct stats_desc *descs;
    uint32_t count;
};

static_assert(sizeof(struct kvm_stats_header) == 24, "the layout of KVM's header");
static_assert(sizeof(struct kvm_stats_desc) == 16, "the layout of KVM's descriptor, its name left out");
static_assert(STATS_LOG_HIST == KVM_STATS_TYPE_LOG_HIST >> KVM_STATS_TYPE_SHIFT, "types are numbered as KVM does");
static_assert(STATS_BOOLEAN == KVM_STATS_UNIT_BOOLEAN >> KVM_STATS_UNIT_SHIFT, "units are numbered as KVM does");

static bool name_valid(const char *name, size_t size)
{
    size_t len = strnlen(name, size);

    if (len == 0 || len == size)
        return false;
    for (size_t i = 0; i < len; i++)
        if (name[i] <= ' ' || name[i] > '~')
            return false;
    return true;
}

/* Take one descriptor; *ret_known tells whether its type and unit are known here. */
static int take_desc(struct kvm_stats_source *s, const struct kvm_stats_desc *raw, const char *name, size_t name_size,
                     bool *ret_known)
{
    uint32_t type = (raw->flags & KVM_STATS_TYPE_MASK) >> KVM_STATS_TYPE_SHIFT;
    uint32_t unit = (raw->flags & KVM_STATS_UNIT_MASK) >> KVM_STATS_UNIT_SHIFT;
    uint32_t base = (raw->flags & KVM_STATS_BASE_MASK) >> KVM_STATS_BASE_SHIFT;
    uint64_t end = (uint64_t)raw->offset + (uint64_t)raw->size * sizeof(uint64_t);

    if (!name_valid(name, name_size) || raw->size == 0 || raw->offset % sizeof(uint64_t) || end > MAX_DATA)
        return -EPROTO;
    *ret_known = type <= STATS_LOG_HIST && unit <= STATS_BOOLEAN && base <= KVM_STATS_BASE_POW2 >> KVM_STATS_BASE_SHIFT;
    if (!*ret_known)
        return 0;
    if (type < STATS_LINEAR_HIST && raw->size != 1)
        return -EPROTO;
    s->descs[s->count++] = (struct stats_desc){
        .name = name,
        .type = (enum stats_type)type,
        .unit = (enum stats_unit)unit,
        .exponent = raw->exponent,
        .base = base == 0 ? 10 : 2,
        .count = raw->size,
        .bucket_size = raw->bucket_size,
        .offset = raw->offset,
    };
    s->data_len = MAX(s->data_len, (uint32_t)end);
    return 0;
}

static int take_descs(struct kvm_stats_source *s, const struct kvm_stats_header *head, const char *raw)
{
    size_t step = sizeof(struct kvm_stats_desc) + head->name_size;
    bool known;
    int r;

    for (uint32_t i = 0; i < head->num_desc; i++) {
        char *name = s->names + (size_t)i * head->name_size;
        struct kvm_stats_desc d;

        /* Nothing says that name_size keeps descriptors aligned. */
        memcpy(&d, raw + i * step, sizeof(d));
        memcpy(name, raw + i * step + sizeof(d), head->name_size);
        r = take_desc(s, &d, name, head->name_size, &known);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_layout(struct kvm_stats_source *s)
{
    struct kvm_stats_header head;
    _cleanup_free_ char *raw = NULL;
    size_t len;
    int r = fd_pread_all(s->fd, &head, sizeof(head), 0);

    if (r < 0)
        return r == -EIO ? -EPROTO : r;
    if (head.num_desc == 0 || head.num_desc > MAX_DESCS || head.name_size < 2 || head.name_size > MAX_NAME ||
        head.desc_offset < sizeof(head) || head.data_offset < sizeof(head))
        return -EPROTO;
    len = head.num_desc * (sizeof(struct kvm_stats_desc) + head.name_size);
    raw = malloc(len);
    s->names = malloc((size_t)head.num_desc * head.name_size);
    s->descs = calloc(head.num_desc, sizeof(*s->descs));
    if (!raw || !s->names || !s->descs)
        return -ENOMEM;
    r = fd_pread_all(s->fd, raw, len, head.desc_offset);
    if (r < 0)
        return r == -EIO ? -EPROTO : r;
    s->data_offset = head.data_offset;
    r = take_descs(s, &head, raw);
    if (r < 0)
        return r;
    s->data = calloc(1, MAX(s->data_len, 1u));
    s->spare = malloc(MAX(s->data_len, 1u));
    return s->data && s->spare ? 0 : -ENOMEM;
}

int stats_open_fd(int stats_fd, struct kvm_stats_source **ret)
{
    struct kvm_stats_source *s = calloc(1, sizeof(*s));
    int r;

    if (!s) {
        close(stats_fd);
        return -ENOMEM;
    }
    s->fd = stats_fd;
    r = read_layout(s);
    if (r < 0) {
        stats_close(s);
        return r;
    }
    *ret = s;
    return 0;
}

int stats_open(int vm_or_vcpu_fd, struct kvm_stats_source **ret)
{
    /* KVM makes it close-on-exec itself. */
    int fd = ioctl(vm_or_vcpu_fd, KVM_GET_STATS_FD, NULL);

    if (fd < 0)
        /* What KVM says to a vCPU's ioctl that it does not know. */
        return errno == EINVAL ? -ENOTTY : -errno;
    return stats_open_fd(fd, ret);
}

void stats_close(struct kvm_stats_source *s)
{
    if (!s)
        return;
    fd_close(s->fd);
    free(s->data);
    free(s->spare);
    free(s->names);
    free(s->descs);
    free(s);
}

const struct stats_desc *stats_descs(const struct kvm_stats_source *s, uint32_t *ret_count)
{
    *ret_count = s->count;
    return s->descs;
}

const struct stats_desc *stats_find(const struct kvm_stats_source *s, const char *name)
{
    for (uint32_t i = 0; i < s->count; i++)
        if (strcmp(s->descs[i].name, name) == 0)
            return &s->descs[i];
    return NULL;
}

int stats_read(struct kvm_stats_source *s)
{
    uint64_t *fresh = s->spare;
    ssize_t n;

    do
        n = pread(s->fd, fresh, s->data_len, s->data_offset);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    if ((size_t)n != s->data_len)
        return -EIO;
    s->spare = s->data;
    s->data = fresh;
    return 0;
}

const uint64_t *stats_values(const struct kvm_stats_source *s, const struct stats_desc *d)
{
    return s->data + d->offset / sizeof(uint64_t);
}
