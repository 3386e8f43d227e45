#include "config.h"

#include "exporter/facts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "exporter/page.h"

/* The metrics that the page of the host shows. */
static const struct {
    const char *family, *suffix;
    const char *by; /* a figure for each value of this label; NULL: the sum over all samples */
    const char *key;
} shown[] = {
    {"umbra_build", "_info", "version", "version"},
    {"umbra_vm_state", "", "state", "state"},
    {"umbra_vm_memory_bytes", "", NULL, "memory"},
    {"umbra_vm_vcpus", "", NULL, "vcpus"},
    {"umbra_vcpu_exits", "_total", "reason", "exits"},
    {"umbra_dirty_pages", "_total", NULL, "dirty_pages"},
    {"umbra_dirty_log_consumers", "", NULL, "dirty_consumers"},
    {"umbra_guest_stall_seconds", "_total", "reason", "stalls"},
    {"umbra_kvm_exits", "_total", NULL, "kvm_exits"},
    {"umbra_kvm_mmu_recycled", "_total", NULL, "recycled"},
    {"umbra_kvm_mmu_flooded", "_total", NULL, "flooded"},
    {"umbra_mmu_address_spaces", "", NULL, "mmu_spaces"},
    {"umbra_mmu_page_limit", "", NULL, "mmu_limit"},
    {"umbra_mmu_shadow_pages", "", NULL, "mmu_pages"},
    {"umbra_mmu_floods", "_total", NULL, "floods"},
    {"umbra_migration_state", "", "state", "migration"},
    {"umbra_migration_memory_bytes", "", "kind", "migration_memory"},
    {"umbra_migration_passes", "_total", NULL, "migration_passes"},
    {"process_cpu_seconds", "_total", NULL, "cpu_seconds"},
    {"process_resident_memory_bytes", "", NULL, "resident"},
};

static const char *label_of(const struct page_sample *s, const char *name)
{
    for (size_t i = 0; i < s->label_count; i++)
        if (strcmp(s->labels[i].name, name) == 0)
            return s->labels[i].value;
    return NULL;
}

/* Add to the number `key` of an object. */
static void add_to(json_t *o, const char *key, double value)
{
    json_t *old;

    if (json_object_object_get_ex(o, key, &old))
        json_object_set_double(old, json_object_get_double(old) + value);
    else
        json_add_double(o, key, value);
}

static void on_sample(void *opaque, const struct page_family *family, const struct page_sample *s)
{
    json_t *vm = opaque, *inner;
    double value = strtod(s->number, NULL);

    for (size_t i = 0; i < ARRAY_SIZE(shown); i++) {
        const char *label = shown[i].by ? label_of(s, shown[i].by) : NULL;

        if (strcmp(family->name, shown[i].family) != 0 || strcmp(s->suffix, shown[i].suffix) != 0 || !isfinite(value))
            continue;
        if (!shown[i].by) {
            add_to(vm, shown[i].key, value);
        } else if (label) {
            if (json_get_obj(vm, shown[i].key, &inner) < 0) {
                inner = json_object_new_object();
                json_add(vm, shown[i].key, inner);
            }
            add_to(inner, label, value);
        }
    }
}

json_t *facts_of(const struct collect_page *page)
{
    json_t *vm = json_object_new_object();
    char error[PAGE_ERROR_MAX];
    bool up = page->text && page_read(page->text, page->len, on_sample, vm, error) == 0;

    json_add_str(vm, "name", page->vm);
    json_add_bool(vm, "up", up);
    if (!up)
        json_add_str(vm, "error", page->text ? "its metrics make no sense" : page->error);
    return vm;
}
