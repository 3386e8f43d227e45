/*
 * KVM's binary statistics (KVM_GET_STATS_FD), described by the kernel itself: names, types and units are found at run
 * time. The format is in Documentation/virt/kvm/api.rst, section 4.133.
 */
#ifndef UMBRA_VCPU_STATS_H
#define UMBRA_VCPU_STATS_H

#include <stdint.h>

struct kvm_stats_source;

enum stats_type { STATS_CUMULATIVE, STATS_INSTANT, STATS_PEAK, STATS_LINEAR_HIST, STATS_LOG_HIST };
enum stats_unit { STATS_NONE, STATS_BYTES, STATS_SECONDS, STATS_CYCLES, STATS_BOOLEAN };

struct stats_desc {
    const char *name; /* printable, owned by the source */
    enum stats_type type;
    enum stats_unit unit;
    int16_t exponent;     /* a value counts value * base^exponent units */
    uint8_t base;         /* 10 or 2 */
    uint16_t count;       /* values; 1 unless a histogram */
    uint32_t bucket_size; /* linear histograms */
    uint32_t offset;      /* private */
};

/*
 * From a VM's or a vCPU's file descriptor. -ENOTTY where KVM has no statistics, -EPROTO when its header or a descriptor
 * makes no sense, -ENOMEM, or -errno. Statistics of a type or unit that is newer than this program are left out.
 */
int stats_open(int vm_or_vcpu_fd, struct kvm_stats_source **ret);
/* The same from a descriptor that KVM_GET_STATS_FD gave; it is the source's from now on, and closed on failure. */
int stats_open_fd(int stats_fd, struct kvm_stats_source **ret);
/* NULL is fine. */
void stats_close(struct kvm_stats_source *s);

const struct stats_desc *stats_descs(const struct kvm_stats_source *s, uint32_t *ret_count);
/* The descriptor of that name, or NULL. */
const struct stats_desc *stats_find(const struct kvm_stats_source *s, const char *name);

/* Read all values, by one pread. One thread at a time. 0 or -errno; after a failure the values are as they were. */
int stats_read(struct kvm_stats_source *s);
/* The values of one descriptor as of the last stats_read (zeros before the first): desc->count of them. */
const uint64_t *stats_values(const struct kvm_stats_source *s, const struct stats_desc *d);

#endif
