/* Consumers of the dirty log in the state of a guest that migrates: what a source writes, and what a source that lies may not. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "daemon/consumers.h"
#include "fake-machine.h"
#include "mmu/dirty.h"
#include "vcpu/vm.h"

static const struct fake_options options = {.memory = 16 * MiB, .cpus = 1, .backend = DIRTY_BITMAP};

static struct event_base *events;

/* Load a state that was finished; what it says on failure is in text. */
static int load(struct machine *m, struct state_writer *w, char text[256])
{
    struct state_reader r;
    uint8_t *data;
    size_t len;
    int err;

    assert_int_equal(state_finish(w, &data, &len), 0);
    assert_int_equal(state_reader_init(&r, data, len), 0);
    err = consumers_load(m, &r);
    snprintf(text, 256, "%s", r.error);
    state_reader_clear(&r);
    free(data);
    return err;
}

static void test_there_and_back(void **state)
{
    struct machine *from = fake_machine_new(events, &options), *to = fake_machine_new(events, &options);
    static const char *const names[] = {"a", "with space", "\xc3\xa4", "calc-dirty-rate", "snapshot", "migration"};
    struct dirty_consumer_info info[DIRTY_MAX_CONSUMERS];
    struct state_writer w;
    char text[256];

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        assert_int_equal(dirty_log_start(vm_dirty_log(machine_vm(from)), names[i], DIRTY_START_CHANGES), 0);
    state_writer_init(&w);
    consumers_save(from, &w);
    assert_int_equal(load(to, &w, text), 0);
    /* The daemon's own stay behind. */
    assert_int_equal(dirty_log_consumers(vm_dirty_log(machine_vm(to)), info, ARRAY_SIZE(info)), 3);
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(info[i].name, names[i]);
        assert_true(info[i].lost);
    }
    fake_machine_free(from);
    fake_machine_free(to);
}

static void test_older_state(void **state)
{
    struct machine *m = fake_machine_new(events, &options);
    struct state_writer w;
    char text[256];

    state_writer_init(&w);
    state_begin(&w, "other", 0, 1);
    state_end(&w);
    assert_int_equal(load(m, &w, text), 0);
    assert_int_equal(dirty_log_consumers(vm_dirty_log(machine_vm(m)), NULL, 0), 0);
    fake_machine_free(m);
}

static void test_lies(void **state)
{
    static const struct {
        const char *field, *value;
        size_t len;
        uint32_t version;
        int error;
        const char *text;
    } rows[] = {
        {"consumer0", "", 0, 1, -EBADMSG, "no name of 1 to 32 bytes"},
        {"consumer0", "0123456789012345678901234567890123", 33, 1, -EBADMSG, "no name of 1 to 32 bytes"},
        {"consumer0", "a\0b", 3, 1, -EBADMSG, "no name"},
        {"consumer0", "migration", 9, 1, -EBADMSG, "a consumer of the daemon's own"},
        {"other", "a", 1, 1, -EBADMSG, "other"},
        {"consumer0", "a", 1, 2, -EBADMSG, "version"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct machine *m = fake_machine_new(events, &options);
        struct state_writer w;
        char text[256];

        state_writer_init(&w);
        state_begin(&w, "dirty-log", 0, rows[i].version);
        state_put_bytes(&w, rows[i].field, rows[i].value, rows[i].len);
        state_end(&w);
        assert_int_equal(load(m, &w, text), rows[i].error);
        if (!strstr(text, rows[i].text))
            fail_msg("row %zu: '%s'", i, text);
        fake_machine_free(m);
    }
}

/* One name twice, and more than there may be. */
static void test_too_many(void **state)
{
    for (int twice = 0; twice < 2; twice++) {
        struct machine *m = fake_machine_new(events, &options);
        char field[32], name[32], text[256];
        struct state_writer w;

        state_writer_init(&w);
        state_begin(&w, "dirty-log", 0, 1);
        for (int i = 0; i < (twice ? 2 : DIRTY_MAX_CONSUMERS + 1); i++) {
            snprintf(field, sizeof(field), "consumer%02d", i);
            snprintf(name, sizeof(name), "name%d", twice ? 0 : i);
            state_put_bytes(&w, field, name, strlen(name));
        }
        state_end(&w);
        assert_int_equal(load(m, &w, text), twice ? -EEXIST : -ENOSPC);
        assert_non_null(strstr(text, twice ? "field consumer01" : "field consumer16"));
        fake_machine_free(m);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_older_state),
        cmocka_unit_test(test_lies),
        cmocka_unit_test(test_too_many),
    };
    int r;

    log_init("test-consumers", NULL);
    log_set_level(LOG_LEVEL_ERR);
    events = event_base_new();
    r = cmocka_run_group_tests_name("consumers", tests, NULL, NULL);
    event_base_free(events);
    return r;
}
