#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/state.h"
#include "base/util.h"

/* -- allocations that fail on demand (linked with --wrap) -- */

void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);

static unsigned int allocations_left = UINT32_MAX;

static bool may_allocate(void)
{
    if (allocations_left == 0)
        return false;
    if (allocations_left != UINT32_MAX)
        allocations_left--;
    return true;
}

void *__wrap_realloc(void *p, size_t n)
{
    return may_allocate() ? __real_realloc(p, n) : NULL;
}

void *__wrap_calloc(size_t n, size_t size)
{
    return may_allocate() ? __real_calloc(n, size) : NULL;
}

/* -- what is written comes back -- */

struct thing {
    uint8_t u8;
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    bool flag;
    bool flags[3];
    uint32_t words[4];
    uint8_t opaque[13];
    uint32_t later;
};

static const struct state_field thing_fields[] = {
    STATE_FIELD(struct thing, u8),    STATE_FIELD(struct thing, u16),   STATE_FIELD(struct thing, u32),
    STATE_FIELD(struct thing, u64),   STATE_FIELD(struct thing, flag),  STATE_ARRAY(struct thing, flags),
    STATE_ARRAY(struct thing, words), STATE_BYTES(struct thing, opaque), STATE_FIELD_SINCE(struct thing, later, 2),
};

static const struct thing thing = {
    .u8 = 0x12,
    .u16 = 0x3456,
    .u32 = 0x789abcde,
    .u64 = UINT64_C(0xfedcba9876543210),
    .flag = true,
    .flags = {true, false, true},
    .words = {1, 2, 3, UINT32_MAX},
    .opaque = "opaque bytes",
    .later = 77,
};

static void assert_thing(const struct thing *a, uint32_t later)
{
    assert_int_equal(a->u8, thing.u8);
    assert_int_equal(a->u16, thing.u16);
    assert_int_equal(a->u32, thing.u32);
    assert_true(a->u64 == thing.u64);
    assert_true(a->flag);
    assert_memory_equal(a->flags, thing.flags, sizeof(thing.flags));
    assert_memory_equal(a->words, thing.words, sizeof(thing.words));
    assert_memory_equal(a->opaque, thing.opaque, sizeof(thing.opaque));
    assert_int_equal(a->later, later);
}

/* Three sections, out of the reader's order. */
static int write_sample(uint8_t **ret, size_t *ret_len)
{
    struct state_writer w;

    state_writer_init(&w);
    state_begin(&w, "thing", 1, 1);
    state_put_fields(&w, "t.", thing_fields, ARRAY_SIZE(thing_fields) - 1, &thing);
    state_end(&w);
    state_begin(&w, "empty", 0, 9);
    state_end(&w);
    state_begin(&w, "thing", 0, 2);
    state_put_fields(&w, "", thing_fields, ARRAY_SIZE(thing_fields), &thing);
    state_put_u64(&w, "number", UINT64_C(0x1122334455667788));
    state_put_bytes(&w, "nothing", NULL, 0);
    state_put_bytes(&w, "blob", "0123456789", 10);
    state_end(&w);
    return state_finish(&w, ret, ret_len);
}

static void test_round_trip(void **state)
{
    _cleanup_free_ uint8_t *data = NULL;
    struct state_reader r;
    const struct state_section *s;
    struct thing t = {0};
    const uint8_t *blob;
    size_t len, blob_len;
    uint64_t v;

    assert_int_equal(write_sample(&data, &len), 0);
    assert_int_equal(state_reader_init(&r, data, len), 0);
    assert_int_equal(r.count, 3);
    assert_string_equal(r.sections[0].name, "empty");
    assert_int_equal(r.sections[1].instance, 0);
    assert_int_equal(r.sections[2].instance, 1);

    assert_int_equal(state_open(&r, "thing", 0, 2, &s), 0);
    assert_int_equal(state_get_fields(&r, s, "", thing_fields, ARRAY_SIZE(thing_fields), &t), 0);
    assert_thing(&t, 77);
    assert_int_equal(state_get_u64(&r, s, "number", &v), 0);
    assert_true(v == UINT64_C(0x1122334455667788));
    assert_int_equal(state_check_all_read(&r, s), -EBADMSG);
    assert_string_equal(r.error, "thing 0: field blob is not known here");
    assert_int_equal(state_get_blob(&r, s, "blob", 10, &blob, &blob_len), 0);
    assert_int_equal(blob_len, 10);
    assert_memory_equal(blob, "0123456789", 10);
    assert_int_equal(state_get_bytes(&r, s, "nothing", NULL, 0), 0);
    assert_int_equal(state_check_all_read(&r, s), 0);

    /* An older version leaves newer members as they are. */
    s = state_find(&r, "thing", 1);
    assert_non_null(s);
    t = (struct thing){.later = 5};
    assert_int_equal(state_get_fields(&r, s, "t.", thing_fields, ARRAY_SIZE(thing_fields), &t), 0);
    assert_thing(&t, 5);
    state_reader_clear(&r);
}

static void test_encoding_is_as_documented(void **state)
{
    static const uint8_t want[] = {
        'U', 'M', 'B', 'R', 'A', 'S', 'T', 'A', 1, 0, 0, 0, 1,  0, 0, 0, /* head, one section */
        2,   'a', 'b', 3,   0,   0,   0,   7,   0, 0, 0, 14, 0, 0, 0,    /* "ab" 3, version 7, 14 bytes of body */
        1,   'x', 8,   0,   0,   0,   8,   7,   6, 5, 4, 3,  2, 1,       /* field "x", 8 bytes */
    };
    _cleanup_free_ uint8_t *data = NULL;
    struct state_writer w;
    size_t len;

    state_writer_init(&w);
    state_begin(&w, "ab", 3, 7);
    state_put_u64(&w, "x", UINT64_C(0x0102030405060708));
    state_end(&w);
    assert_int_equal(state_finish(&w, &data, &len), 0);
    assert_int_equal(len, sizeof(want));
    assert_memory_equal(data, want, sizeof(want));
}

static void test_iteration(void **state)
{
    static const char *const names[] = {"msr.00000010", "other", "msr.c0000080", "msr", "msr.0000001b"};
    static const char *const found[] = {"msr.00000010", "msr.0000001b", "msr.c0000080"};
    _cleanup_free_ uint8_t *data = NULL;
    char name[STATE_NAME_MAX + 1];
    const uint8_t *value;
    struct state_writer w;
    struct state_reader r;
    uint32_t cursor = 0, value_len, n = 0;
    size_t len;

    state_writer_init(&w);
    state_begin(&w, "vcpu", 0, 1);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        state_put_bytes(&w, names[i], names[i], strlen(names[i]));
    state_end(&w);
    assert_int_equal(state_finish(&w, &data, &len), 0);
    assert_int_equal(state_reader_init(&r, data, len), 0);
    while (state_next_field(&r, &r.sections[0], "msr.", &cursor, name, &value, &value_len)) {
        assert_true(n < ARRAY_SIZE(found));
        assert_string_equal(name, found[n]);
        assert_int_equal(value_len, strlen(found[n]));
        assert_memory_equal(value, found[n], value_len);
        n++;
    }
    assert_int_equal(n, ARRAY_SIZE(found));
    assert_int_equal(state_check_all_read(&r, &r.sections[0]), -EBADMSG);
    state_reader_clear(&r);
}

/* -- what is refused -- */

static void test_missing_and_misfit(void **state)
{
    _cleanup_free_ uint8_t *data = NULL;
    struct state_reader r;
    const struct state_section *s = NULL;
    const uint8_t *blob = NULL;
    uint32_t small = 3;
    size_t len, blob_len = 4;
    uint64_t v = 9;

    assert_int_equal(write_sample(&data, &len), 0);
    assert_int_equal(state_reader_init(&r, data, len), 0);
    assert_null(state_find(&r, "thing", 2));
    assert_string_equal(r.error, "thing 2: the section is missing");
    assert_int_equal(state_open(&r, "nothing", 0, 1, &s), -ENOENT);
    assert_int_equal(state_open(&r, "empty", 0, 8, &s), -EBADMSG);
    assert_string_equal(r.error, "empty 0: version 9 is newer than 8, the newest known here");
    assert_null(s);

    s = state_find(&r, "thing", 0);
    assert_int_equal(state_get_u64(&r, s, "numbe", &v), -ENOENT);
    assert_string_equal(r.error, "thing 0: field numbe is missing");
    assert_int_equal(state_get_u64(&r, s, "blob", &v), -EBADMSG);
    assert_string_equal(r.error, "thing 0: field blob: length 10, not 8");
    assert_int_equal(state_get_bytes(&r, s, "number", &small, sizeof(small)), -EBADMSG);
    assert_int_equal(state_get_blob(&r, s, "blob", 9, &blob, &blob_len), -EBADMSG);
    assert_string_equal(r.error, "thing 0: field blob: length 10 exceeds 9");
    assert_int_equal(state_get_blob(&r, s, "blop", 9, &blob, &blob_len), -ENOENT);
    assert_true(v == 9 && small == 3 && blob == NULL && blob_len == 4);
    state_reader_clear(&r);
}

/* A failure in the last field of a table leaves all of the object alone. */
static void test_fields_all_or_nothing(void **state)
{
    _cleanup_free_ uint8_t *data = NULL;
    const struct thing before = {.u8 = 1, .u16 = 2, .later = 3};
    struct thing t = before;
    struct state_writer w;
    struct state_reader r;
    uint8_t *flag;
    size_t len;

    state_writer_init(&w);
    state_begin(&w, "thing", 0, 2);
    state_put_fields(&w, "", thing_fields, ARRAY_SIZE(thing_fields) - 1, &thing);
    state_end(&w);
    assert_int_equal(state_finish(&w, &data, &len), 0);
    assert_int_equal(state_reader_init(&r, data, len), 0);
    assert_int_equal(state_get_fields(&r, r.sections, "", thing_fields, ARRAY_SIZE(thing_fields), &t), -ENOENT);
    assert_memory_equal(&t, &before, sizeof(t));
    assert_string_equal(r.error, "thing 0: field later is missing");

    flag = memmem(data, len, "flags\3\0\0\0", 9);
    assert_non_null(flag);
    flag[9 + 2] = 2;
    assert_int_equal(state_get_fields(&r, r.sections, "", thing_fields, ARRAY_SIZE(thing_fields) - 1, &t), -EBADMSG);
    assert_string_equal(r.error, "thing 0: field flags: 2 is neither 0 nor 1");
    assert_memory_equal(&t, &before, sizeof(t));
    state_reader_clear(&r);
}

static void test_every_cut_is_refused(void **state)
{
    _cleanup_free_ uint8_t *data = NULL, *longer = NULL;
    struct state_reader r;
    size_t len;

    assert_int_equal(write_sample(&data, &len), 0);
    for (size_t n = 0; n < len; n++) {
        /* A copy of just that size, so that a sanitizer sees a read beyond it. */
        uint8_t *cut = malloc(n);

        assert_true(cut || n == 0);
        if (n > 0)
            memcpy(cut, data, n);
        if (state_reader_init(&r, cut, n) != -EBADMSG || r.error[0] == '\0' || r.sections || r.values)
            fail_msg("cut after %zu of %zu bytes: not refused", n, len);
        free(cut);
    }
    longer = calloc(1, len + 1);
    assert_non_null(longer);
    memcpy(longer, data, len);
    assert_int_equal(state_reader_init(&r, longer, len + 1), -EBADMSG);
    assert_string_equal(r.error, "1 bytes follow the last section");
}

/* Every byte changed in a few ways: refused or read, and in the second case all of it can be gone through. */
static void test_every_byte_hostile(void **state)
{
    _cleanup_free_ uint8_t *data = NULL;
    static const uint8_t flips[] = {0x01, 0x80, 0xff, 0x40};
    char name[STATE_NAME_MAX + 1];
    struct state_reader r;
    const uint8_t *value;
    uint32_t value_len, refused = 0;
    size_t len;

    assert_int_equal(write_sample(&data, &len), 0);
    for (size_t i = 0; i < len * ARRAY_SIZE(flips); i++) {
        data[i / ARRAY_SIZE(flips)] ^= flips[i % ARRAY_SIZE(flips)];
        if (state_reader_init(&r, data, len) == 0) {
            for (uint32_t s = 0; s < r.count; s++)
                for (uint32_t cursor = 0; state_next_field(&r, &r.sections[s], "", &cursor, name, &value, &value_len);)
                    assert_true(value >= data && value + value_len <= data + len);
            state_reader_clear(&r);
        } else {
            assert_string_not_equal(r.error, "");
            refused++;
        }
        data[i / ARRAY_SIZE(flips)] ^= flips[i % ARRAY_SIZE(flips)];
    }
    assert_true(refused > 0);
}

struct raw {
    const char *error;
    size_t len;
    const char *bytes;
};

#define HEAD "UMBRASTA\1\0\0\0"
#define RAW(error, bytes) {error, sizeof(bytes) - 1, bytes}

static void test_malformed(void **state)
{
    static const struct raw cases[] = {
        RAW("not a machine state (no UMBRASTA at its start)", "UMBRASTB\1\0\0\0\0\0\0\0"),
        RAW("not a machine state (no UMBRASTA at its start)", ""),
        RAW("machine state is cut short after 15 bytes", HEAD "\0\0\0"),
        RAW("machine state has format 2, only 1 is known", "UMBRASTA\2\0\0\0\0\0\0\0"),
        RAW("section count 4097 exceeds 4096", HEAD "\1\x10\0\0"),
        RAW("section count 4294967295 exceeds 4096", HEAD "\xff\xff\xff\xff"),
        RAW("section count 1 exceeds what the state's length can hold", HEAD "\1\0\0\0"),
        RAW("section 0 has a malformed name", HEAD "\1\0\0\0\0aaaaaaaaaaaaaaaaaaaa"),
        RAW("section 0 has a malformed name", HEAD "\1\0\0\0\1/aaaaaaaaaaaaaaaaaaa"),
        RAW("section 0 has a malformed name", HEAD "\1\0\0\0\2a\0aaaaaaaaaaaaaaaaaa"),
        RAW("section 0 has a malformed name", HEAD "\1\0\0\0\x3f" "aaaaaaaaaaaaaa"),
        RAW("section 0 has a malformed name", HEAD "\1\0\0\0\x40"
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\0\0\0\0\1\0\0\0\0\0\0\0"),
        RAW("a 0: body length 4294967295 exceeds the state", HEAD "\1\0\0\0\1a\0\0\0\0\1\0\0\0\xff\xff\xff\xff"),
        RAW("a 0: body length 1 exceeds the state", HEAD "\1\0\0\0\1a\0\0\0\0\1\0\0\0\1\0\0\0"),
        RAW("a 0: version 0 does not exist", HEAD "\1\0\0\0\1a\0\0\0\0\0\0\0\0\0\0\0\0"),
        RAW("a 0: the section is there twice",
            HEAD "\2\0\0\0\1a\0\0\0\0\1\0\0\0\0\0\0\0\1a\0\0\0\0\1\0\0\0\0\0\0\0"),
        RAW("a 0: field 0 has a malformed name", HEAD "\1\0\0\0\1a\0\0\0\0\1\0\0\0\6\0\0\0\1 \0\0\0\0"),
        RAW("a 0: field 0 has a malformed name", HEAD "\1\0\0\0\1a\0\0\0\0\1\0\0\0\1\0\0\0\1"),
        RAW("a 0: field x: length 1 exceeds the section", HEAD "\1\0\0\0\1a\0\0\0\0\1\0\0\0\6\0\0\0\1x\1\0\0\0"),
        RAW("a 0: field x: length 4294967295 exceeds the section",
            HEAD "\1\0\0\0\1a\0\0\0\0\1\0\0\0\6\0\0\0\1x\xff\xff\xff\xff"),
        RAW("a 0: field x is there twice",
            HEAD "\1\0\0\0\1a\0\0\0\0\1\0\0\0\xc\0\0\0\1x\0\0\0\0\1x\0\0\0\0"),
        /* A length that reaches into the next section stays inside the state, and is refused all the same. */
        RAW("a 0: field x: length 2 exceeds the section",
            HEAD "\2\0\0\0\1a\0\0\0\0\1\0\0\0\6\0\0\0\1x\2\0\0\0\1b\0\0\0\0\1\0\0\0\0\0\0\0"),
    };
    struct state_reader r;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        print_message("# %s\n", cases[i].error);
        assert_int_equal(state_reader_init(&r, cases[i].bytes, cases[i].len), -EBADMSG);
        assert_string_equal(r.error, cases[i].error);
        assert_null(r.sections);
    }
    assert_int_equal(state_reader_init(&r, NULL, 0), -EBADMSG);
}

static void test_too_many_sections(void **state)
{
    _cleanup_free_ uint8_t *data = NULL;
    struct state_writer w;
    struct state_reader r;
    size_t len = 0;

    for (uint32_t count = STATE_MAX_SECTIONS; count <= STATE_MAX_SECTIONS + 1; count++) {
        state_writer_init(&w);
        for (uint32_t i = 0; i < count; i++) {
            state_begin(&w, "s", i, 1);
            state_end(&w);
        }
        assert_int_equal(state_finish(&w, &data, &len), count > STATE_MAX_SECTIONS ? -EFBIG : 0);
    }
    assert_int_equal(state_reader_init(&r, data, len), 0);
    assert_non_null(state_find(&r, "s", STATE_MAX_SECTIONS - 1));
    state_reader_clear(&r);
}

static void test_no_memory(void **state)
{
    _cleanup_free_ uint8_t *data = NULL;
    struct state_reader r;
    struct state_writer w;
    uint8_t *none = NULL;
    size_t len, none_len = 3;
    int err;

    assert_int_equal(write_sample(&data, &len), 0);
    for (unsigned int n = 0; n < 2; n++) {
        allocations_left = n;
        err = write_sample(&none, &none_len);
        allocations_left = n;
        assert_int_equal(err, -ENOMEM);
        assert_true(none == NULL && none_len == 3);
        err = state_reader_init(&r, data, len);
        allocations_left = UINT32_MAX;
        assert_int_equal(err, -ENOMEM);
        assert_null(r.sections);
        assert_null(r.values);
        assert_string_not_equal(r.error, "");
    }
    /* An open writer is given up. */
    state_writer_init(&w);
    state_begin(&w, "thing", 0, 1);
    state_writer_clear(&w);
    assert_null(w.out.data);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_encoding_is_as_documented),
        cmocka_unit_test(test_iteration),
        cmocka_unit_test(test_missing_and_misfit),
        cmocka_unit_test(test_fields_all_or_nothing),
        cmocka_unit_test(test_every_cut_is_refused),
        cmocka_unit_test(test_every_byte_hostile),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_too_many_sections),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests_name("state", tests, NULL, NULL);
}
