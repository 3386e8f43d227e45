/*
 * Fields of vCPUs and chips. What is taken must be the same after it was written and taken again.
 */
#include "config.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vcpu/state-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void take_vcpus(struct state_reader *r, struct state_writer *w)
{
    for (uint32_t i = 0; i < r->count; i++) {
        const struct state_section *s = &r->sections[i];
        struct vcpu_image im;

        if (strcmp(s->name, "vcpu") != 0)
            continue;
        if (vcpu_image_get(&im, r, s) < 0) {
            assert(r->error[0] != '\0');
            assert(!im.msrs && !im.cpuid && !im.xsave && !im.nested_data);
            continue;
        }
        assert(im.msr_count <= VCPU_MAX_MSRS && im.cpuid_count <= VCPU_MAX_CPUID);
        assert(im.xcrs.nr_xcrs <= KVM_MAX_XCRS && im.xsave_len <= VCPU_XSAVE_MAX);
        state_begin(w, "vcpu", s->instance, VCPU_STATE_VERSION);
        vcpu_image_put(&im, w);
        state_end(w);
        vcpu_image_clear(&im);
    }
}

static int take(const uint8_t *data, size_t size, uint8_t **ret, size_t *ret_len)
{
    struct chip_image chips;
    struct state_reader r;
    struct state_writer w;

    if (state_reader_init(&r, data, size) < 0)
        return -1;
    state_writer_init(&w);
    take_vcpus(&r, &w);
    if (chip_image_get(&chips, &r) == 0)
        chip_image_put(&chips, &w);
    else
        assert(r.error[0] != '\0');
    state_reader_clear(&r);
    return state_finish(&w, ret, ret_len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *first = NULL, *second = NULL;
    size_t first_len, second_len;

    if (take(data, size, &first, &first_len) < 0)
        return 0;
    if (take(first, first_len, &second, &second_len) == 0)
        assert(first_len == second_len && memcmp(first, second, first_len) == 0);
    free(first);
    free(second);
    return 0;
}
