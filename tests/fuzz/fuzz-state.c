/*
 * The reader of machine states. What it accepts must be the same after it was written again: a state has one meaning.
 */
#include "config.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/state.h"
#include "base/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sample {
    uint64_t rax;
    uint32_t words[3];
    bool on;
    uint8_t page[16];
    uint16_t late;
};

static const struct state_field sample_fields[] = {
    STATE_FIELD(struct sample, rax),  STATE_ARRAY(struct sample, words),         STATE_FIELD(struct sample, on),
    STATE_BYTES(struct sample, page), STATE_FIELD_SINCE(struct sample, late, 2),
};

static void rewrite(struct state_reader *r, struct state_writer *w)
{
    char name[STATE_NAME_MAX + 1];
    const uint8_t *value;
    uint32_t len;

    state_writer_init(w);
    for (uint32_t i = 0; i < r->count; i++) {
        const struct state_section *s = &r->sections[i];

        state_begin(w, s->name, s->instance, s->version);
        for (uint32_t cursor = 0; state_next_field(r, s, "", &cursor, name, &value, &len);)
            state_put_bytes(w, name, value, len);
        state_end(w);
        assert(state_check_all_read(r, s) == 0);
        assert(state_find(r, s->name, s->instance) == s);
    }
}

static void take_sample(struct state_reader *r)
{
    const struct state_section *s;
    struct sample sample = {.late = 0x1234};
    uint64_t v;

    if (state_open(r, "vcpu", 0, 2, &s) < 0)
        return;
    if (state_get_fields(r, s, "r.", sample_fields, ARRAY_SIZE(sample_fields), &sample) == 0)
        assert(s->version == 2 || sample.late == 0x1234);
    (void)state_get_u64(r, s, "number", &v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct state_reader first, second;
    struct state_writer w;
    uint8_t *a = NULL, *b = NULL;
    size_t a_len, b_len;

    if (state_reader_init(&first, data, size) < 0) {
        assert(first.error[0] != '\0');
        return 0;
    }
    take_sample(&first);
    rewrite(&first, &w);
    state_reader_clear(&first);
    if (state_finish(&w, &a, &a_len) < 0)
        return 0;
    assert(a_len == size);
    assert(state_reader_init(&second, a, a_len) == 0);
    rewrite(&second, &w);
    state_reader_clear(&second);
    if (state_finish(&w, &b, &b_len) == 0)
        assert(b_len == a_len && memcmp(a, b, a_len) == 0);
    free(a);
    free(b);
    return 0;
}
