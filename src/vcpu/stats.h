/* KVM's binary statistics (KVM_GET_STATS_FD), described by the kernel itself: names, types and units found at run time. */
#ifndef UMBRA_VCPU_STATS_H
#define UMBRA_VCPU_STATS_H

#include <stdint.h>

struct kvm_stats_source;

enum stats_type { STATS_CUMULATIVE, STATS_INSTANT, STATS_PEAK, STATS_LINEAR_HIST, STATS_LOG_HIST };
enum stats_unit { STATS_NONE, STATS_BYTES, STATS_SECONDS, STATS_CYCLES, STATS_BOOLEAN };

struct stats_desc {
    const char *name; /* owned by the source */
    enum stats_type type;
    enum stats_unit unit;
    int8_t exponent;      /* value * base^exponent unit */
    uint8_t base;         /* 10 or 2 */
    uint16_t count;       /* values; 1 unless a histogram */
    uint32_t bucket_size; /* linear histograms */
    uint32_t offset;      /* private */
};

/* From a VM's or a vCPU's file descriptor. -ENOTTY where KVM has no statistics, -EPROTO when the header makes no sense. */
int stats_open(int vm_or_vcpu_fd, struct kvm_stats_source **ret);
void stats_close(struct kvm_stats_source *s);

const struct stats_desc *stats_descs(const struct kvm_stats_source *s, uint32_t *ret_count);
/* Read all values once; One thread at a time. 0 or -errno. */
int stats_read(struct kvm_stats_source *s);
/* The values of one descriptor as of the last stats_read: desc->count of them. */
const uint64_t *stats_values(const struct kvm_stats_source *s, const struct stats_desc *d);

#endif
