#include "config.h"

#include "ctl/stats.h"

#include <errno.h>
#include <fnmatch.h>
#include <string.h>

#include "base/util.h"
#include "ctl/answer.h"

/* Calls of query-stats give an array of {provider, stats: [{name, value}]}. Step through all of it. */
typedef int stat_fn(void *opaque, unsigned int source, const char *provider, const char *name, const json_t *value);

static int for_each_stat(const json_t *answer, stat_fn *fn, void *opaque)
{
    size_t sources = answer_length(answer);

    for (size_t i = 0; i < sources; i++) {
        const json_t *source = json_object_array_get_idx(answer, i);
        const char *provider, *name;
        json_t *list, *value;

        if (json_get_str(source, "provider", &provider) < 0 || json_get_array(source, "stats", &list) < 0)
            continue;
        for (size_t k = 0; k < json_object_array_length(list); k++) {
            const json_t *stat = json_object_array_get_idx(list, k);
            int r = 0;

            if (json_get_str(stat, "name", &name) == 0 && json_object_object_get_ex(stat, "value", &value))
                r = fn(opaque, (unsigned int)i, provider, name, value);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

static uint64_t number(const json_t *v)
{
    uint64_t n = 0;

    if (json_object_is_type(v, json_type_boolean))
        return (uint64_t)json_object_get_boolean(v);
    json_to_u64(v, &n);
    return n;
}

/* -- reading -- */

struct reader {
    struct stats_set *set;
    bool of_vm;
    /* Which vCPU an element of the answer belongs to: the n-th of its provider. */
    unsigned int vcpu_of[STATS_MAX_VCPUS * 2];
};

static struct stats_row *find_row(const struct stats_set *s, bool of_vm, const char *provider, const char *name)
{
    for (size_t i = 0; i < s->count; i++) {
        struct stats_row *r = &s->rows[i];

        if (r->of_vm == of_vm && strcmp(r->name, name) == 0 && strcmp(r->provider, provider) == 0)
            return r;
    }
    return NULL;
}

static struct stats_row *add_row(struct stats_set *s, bool of_vm, const char *provider, const char *name)
{
    struct stats_row *bigger = realloc(s->rows, (s->count + 1) * sizeof(*bigger)), *r;

    if (!bigger)
        return NULL;
    s->rows = bigger;
    r = &bigger[s->count];
    *r = (struct stats_row){.name = strdup(name),
                            .provider = strdup(provider),
                            .unit = "",
                            .of_vm = of_vm,
                            .per_vcpu = of_vm ? NULL : calloc(MAX(s->vcpus, 1u), sizeof(uint64_t))};
    s->count++;
    return r->name && r->provider && (of_vm || r->per_vcpu) ? r : NULL;
}

static int add_buckets(struct stats_row *row, const json_t *list, uint64_t *ret_samples)
{
    size_t count = json_object_array_length(list);

    if (count > row->bucket_count) {
        uint64_t *bigger = realloc(row->buckets, count * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        memset(bigger + row->bucket_count, 0, (count - row->bucket_count) * sizeof(*bigger));
        row->buckets = bigger;
        row->bucket_count = count;
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t n = number(json_object_array_get_idx(list, i));

        row->buckets[i] += n;
        *ret_samples += n;
    }
    row->histogram = true;
    return 0;
}

static int read_one(void *opaque, unsigned int source, const char *provider, const char *name, const json_t *value)
{
    struct reader *reader = opaque;
    struct stats_set *s = reader->set;
    struct stats_row *row = find_row(s, reader->of_vm, provider, name);
    uint64_t v = 0;
    int r = 0;

    if (!row)
        row = add_row(s, reader->of_vm, provider, name);
    if (!row)
        return -ENOMEM;
    if (json_object_is_type(value, json_type_array))
        r = add_buckets(row, value, &v);
    else
        v = number(value);
    row->total += v;
    if (row->per_vcpu && source < ARRAY_SIZE(reader->vcpu_of) && reader->vcpu_of[source] < s->vcpus)
        row->per_vcpu[reader->vcpu_of[source]] = v;
    return r;
}

/* Count the vCPUs: the most elements that one provider has. */
static void number_vcpus(struct reader *reader, const json_t *answer)
{
    size_t n = answer_length(answer);

    n = MIN(n, ARRAY_SIZE(reader->vcpu_of));
    for (size_t i = 0; i < n; i++) {
        const char *mine, *other;

        reader->vcpu_of[i] = 0;
        if (json_get_str(json_object_array_get_idx(answer, i), "provider", &mine) < 0)
            continue;
        for (size_t k = 0; k < i; k++)
            if (json_get_str(json_object_array_get_idx(answer, k), "provider", &other) == 0 &&
                strcmp(mine, other) == 0)
                reader->vcpu_of[i]++;
        if (reader->vcpu_of[i] < STATS_MAX_VCPUS)
            reader->set->vcpus = MAX(reader->set->vcpus, reader->vcpu_of[i] + 1);
    }
}

/* A short name for unit, base and exponent as the schema gives them. */
static const char *unit_name(const json_t *schema)
{
    static const char *const seconds[] = {"s", "ms", "us", "ns"}, *const bytes[] = {"bytes", "KiB", "MiB", "GiB"};
    uint64_t base = 10;
    const char *unit;
    json_t *e;
    int exponent = 0;

    if (json_get_str(schema, "unit", &unit) < 0)
        return "";
    json_get_u64(schema, "base", &base);
    if (json_object_object_get_ex(schema, "exponent", &e))
        exponent = json_object_get_int(e);
    if (strcmp(unit, "seconds") == 0)
        return base == 10 && exponent <= 0 && exponent >= -9 && exponent % 3 == 0 ? seconds[-exponent / 3] : "seconds";
    if (strcmp(unit, "bytes") == 0)
        return base == 2 && exponent >= 0 && exponent <= 30 && exponent % 10 == 0 ? bytes[exponent / 10] : "bytes";
    if (strcmp(unit, "cycles") == 0)
        return "cycles";
    return strcmp(unit, "boolean") == 0 ? "0 or 1" : "";
}

static void describe(struct stats_row *row, const json_t *schema)
{
    const char *type = "";

    json_get_str(schema, "type", &type);
    row->unit = unit_name(schema);
    row->cumulative = strcmp(type, "cumulative") == 0;
    row->linear = strcmp(type, "linear-histogram") == 0;
    /* Samples only become more. */
    row->cumulative |= row->histogram;
    json_get_u64(schema, "bucket-size", &row->bucket_size);
}

static void describe_all(struct stats_set *s, const json_t *schemas)
{
    size_t n = answer_length(schemas);

    for (size_t i = 0; i < n; i++) {
        const json_t *group = json_object_array_get_idx(schemas, i);
        const char *provider, *target, *name;
        json_t *list;

        if (json_get_str(group, "provider", &provider) < 0 || json_get_str(group, "target", &target) < 0 ||
            json_get_array(group, "stats", &list) < 0)
            continue;
        for (size_t k = 0; k < json_object_array_length(list); k++) {
            const json_t *schema = json_object_array_get_idx(list, k);
            struct stats_row *row;

            if (json_get_str(schema, "name", &name) < 0)
                continue;
            row = find_row(s, strcmp(target, "vm") == 0, provider, name);
            if (row)
                describe(row, schema);
        }
    }
}

int stats_read(struct stats_set *ret, const json_t *vm, const json_t *vcpus, const json_t *schemas)
{
    struct stats_set s = {0};
    struct reader reader = {.set = &s, .of_vm = true};
    int r;

    number_vcpus(&reader, vcpus);
    r = for_each_stat(vm, read_one, &reader);
    reader.of_vm = false;
    if (r == 0)
        r = for_each_stat(vcpus, read_one, &reader);
    if (r < 0) {
        stats_clear(&s);
        return r;
    }
    describe_all(&s, schemas);
    *ret = s;
    return 0;
}

void stats_clear(struct stats_set *s)
{
    for (size_t i = 0; i < s->count; i++) {
        free(s->rows[i].name);
        free(s->rows[i].provider);
        free(s->rows[i].per_vcpu);
        free(s->rows[i].buckets);
    }
    free(s->rows);
    *s = (struct stats_set){0};
}

const struct stats_row *stats_find(const struct stats_set *s, bool of_vm, const char *provider, const char *name)
{
    return find_row(s, of_vm, provider, name);
}

/* -- choosing -- */

bool stats_wanted(const char *name, char *const *patterns, int count)
{
    for (int i = 0; i < count; i++)
        if (fnmatch(patterns[i], name, 0) == 0)
            return true;
    return count == 0;
}

void stats_filter(json_t *answer, char *const *patterns, int count)
{
    size_t sources = answer_length(answer);

    for (size_t i = 0; i < sources && count > 0; i++) {
        json_t *list;

        if (json_get_array(json_object_array_get_idx(answer, i), "stats", &list) < 0)
            continue;
        for (size_t k = json_object_array_length(list); k-- > 0;) {
            const char *name = "";

            json_get_str(json_object_array_get_idx(list, k), "name", &name);
            if (!stats_wanted(name, patterns, count))
                json_object_array_del_idx(list, k, 1);
        }
    }
}

struct sum {
    const char *name;
    uint64_t value;
    bool found;
};

static int add_to_sum(void *opaque, unsigned int source, const char *provider, const char *name, const json_t *value)
{
    struct sum *sum = opaque;

    if (strcmp(provider, "kvm") == 0 && strcmp(name, sum->name) == 0) {
        sum->value += number(value);
        sum->found = true;
    }
    return 0;
}

int stats_sum(const json_t *vcpus, const char *name, uint64_t *ret)
{
    struct sum sum = {.name = name};

    for_each_stat(vcpus, add_to_sum, &sum);
    if (!sum.found)
        return -ENOENT;
    *ret = sum.value;
    return 0;
}
