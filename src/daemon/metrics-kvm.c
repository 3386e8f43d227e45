/*
 * KVM's statistics as metrics, by KVM's names: `mmu_recycled` is umbra_kvm_mmu_recycled_total. What is counted for each vCPU
 * is summed up here; query-stats tells one from the other. Base units are the one change: `halt_wait_ns` becomes
 * umbra_kvm_halt_wait_seconds_total, and a histogram `halt_wait_hist` umbra_kvm_halt_wait_duration_seconds, which does
 * not get into the counter's way.
 */
#include "config.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "daemon/machine.h"
#include "daemon/metrics-internal.h"
#include "daemon/qmp-internal.h"
#include "vcpu/stats.h"
#include "vcpu/vm.h"

#define PREFIX "umbra_kvm_"
/* KVM's have 32 at most; of a longer one the last bucket holds the rest. */
#define MAX_BUCKETS 64u

/* A statistic of the VM, or the sum of a vCPU's over all of them. */
struct total {
    const struct stats_desc *desc;
    uint64_t values[MAX_BUCKETS];
    size_t count;
};

static bool strip(char *name, const char *end)
{
    size_t len = strlen(name), n = strlen(end);

    if (len <= n || strcmp(name + len - n, end) != 0)
        return false;
    name[len - n] = '\0';
    return true;
}

static bool is_histogram(const struct stats_desc *d)
{
    return d->type == STATS_LINEAR_HIST || d->type == STATS_LOG_HIST;
}

static const char *unit_of(const struct stats_desc *d)
{
    return d->unit == STATS_SECONDS ? "seconds" : d->unit == STATS_BYTES ? "bytes" : NULL;
}

/* The family's name from KVM's; what a metric's name cannot hold becomes an underscore. */
static void name_of(const struct stats_desc *d, bool ambiguous, char name[OM_NAME_MAX])
{
    const char *unit = unit_of(d);
    size_t o;

    snprintf(name, OM_NAME_MAX - 24, PREFIX "%s%s", ambiguous ? "vcpu_" : "", d->name);
    for (o = 0; name[o]; o++)
        name[o] = isalnum((unsigned char)name[o]) ? (char)tolower((unsigned char)name[o]) : '_';
    if (d->type == STATS_CUMULATIVE)
        strip(name, "_total");
    if (d->unit == STATS_SECONDS)
        strip(name, "_ns");
    if (is_histogram(d) && strip(name, "_hist"))
        strcat(name, d->unit == STATS_SECONDS ? "_duration" : "_distribution");
    /* What a histogram's samples end in would make a plain metric look like one. */
    if (!is_histogram(d) && (strip(name, "_count") || strip(name, "_sum") || strip(name, "_bucket")))
        strcat(name, "_events");
    if (unit && !(strlen(name) > strlen(unit) && strcmp(name + strlen(name) - strlen(unit), unit) == 0)) {
        strcat(name, "_");
        strcat(name, unit);
    }
}

/* What one counts for, in base units. */
static double scale_of(const struct stats_desc *d)
{
    double scale = 1;

    for (int i = 0; i < abs(d->exponent); i++)
        scale *= d->base;
    return d->exponent < 0 ? 1 / scale : scale;
}

static void write_histogram(struct om_writer *w, const struct total *t)
{
    const struct stats_desc *d = t->desc;
    uint64_t values[MAX_BUCKETS], below = 0;
    double bounds[MAX_BUCKETS], power = 1;
    size_t first = 0;

    /* Documentation/virt/kvm/api.rst: linear buckets are bucket_size wide, logarithmic ones end at powers of two. */
    for (size_t i = 0; i < t->count; i++, power *= 2)
        bounds[i] = (d->type == STATS_LINEAR_HIST ? (double)d->bucket_size * (double)(i + 1) : power) * scale_of(d);
    /* Times below a microsecond are of no use to anybody, but a line each. */
    for (; first + 2 < t->count && bounds[first] < 1e-6 && d->unit == STATS_SECONDS; first++)
        below += t->values[first];
    memcpy(values, t->values + first, (t->count - first) * sizeof(*values));
    values[0] += below;
    om_histogram(w, bounds + first, values, t->count - first, NULL);
}

static void write_total(struct om_writer *w, const struct total *t, bool ambiguous)
{
    static const char *const helps[] = {
        [STATS_CUMULATIVE] = "KVM statistic, counted since the start.",
        [STATS_INSTANT] = "KVM statistic, at present.",
        [STATS_PEAK] = "KVM statistic, the most so far.",
        [STATS_LINEAR_HIST] = "KVM statistic, a histogram.",
        [STATS_LOG_HIST] = "KVM statistic, a histogram.",
    };
    const struct stats_desc *d = t->desc;
    char name[OM_NAME_MAX + 1];
    struct om_family f = {
        .name = name,
        .type = is_histogram(d) ? OM_HISTOGRAM : d->type == STATS_CUMULATIVE ? OM_COUNTER : OM_GAUGE,
        .unit = unit_of(d),
        .help = helps[d->type],
    };

    name_of(d, ambiguous, name);
    om_begin(w, &f);
    if (is_histogram(d))
        write_histogram(w, t);
    else if (d->exponent == -9 && d->base == 10)
        om_ns(w, NULL, 0, t->values[0]);
    else if (d->exponent != 0)
        om_double(w, NULL, 0, (double)t->values[0] * scale_of(d));
    else
        om_u64(w, NULL, 0, t->values[0]);
}

/* Add one source's values; the most of them where a sum would say nothing. */
static void add(struct total *t, const uint64_t *values)
{
    size_t n = t->desc->count;

    for (size_t i = 0; i < n; i++) {
        uint64_t *to = &t->values[MIN(i, (size_t)MAX_BUCKETS - 1)];

        *to = t->desc->type == STATS_PEAK ? MAX(*to, values[i]) : *to + values[i];
    }
    t->count = MIN(n, (size_t)MAX_BUCKETS);
}

static void write_vm(struct om_writer *w, struct kvm_stats_source *source)
{
    const struct stats_desc *descs;
    uint32_t count;

    if (!source || stats_read(source) < 0)
        return;
    descs = stats_descs(source, &count);
    for (uint32_t i = 0; i < count; i++) {
        struct total t = {.desc = &descs[i]};

        add(&t, stats_values(source, &descs[i]));
        write_total(w, &t, false);
    }
}

void metrics_write_kvm(struct om_writer *w, const struct metrics_source *s)
{
    unsigned int vcpus = vm_cpus(machine_vm(s->context->machine)), read = 0;
    struct kvm_stats_source *sources[VM_MAX_VCPUS], *vm = qmp_stats_source(s->context->stats, -1);
    const struct stats_desc *descs;
    uint32_t count;

    write_vm(w, vm);
    for (unsigned int i = 0; i < vcpus; i++) {
        struct kvm_stats_source *source = qmp_stats_source(s->context->stats, (int)i);

        if (source && stats_read(source) == 0)
            sources[read++] = source;
    }
    if (read == 0)
        return;
    /* KVM describes every vCPU alike. */
    descs = stats_descs(sources[0], &count);
    for (uint32_t i = 0; i < count; i++) {
        struct total t = {.desc = &descs[i]};

        for (unsigned int k = 0; k < read; k++)
            add(&t, stats_values(sources[k], &descs[i]));
        write_total(w, &t, vm && stats_find(vm, descs[i].name));
    }
}
