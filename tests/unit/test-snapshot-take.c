/* Snapshots as they are taken: the thread that copies, and the main thread it calls, over the model of KVM. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <event2/event.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/util.h"
#include "fake-kvm.h"
#include "migrate/snapshot-job.h"
#include "migrate/snapshot-open.h"
#include "migrate/snapshot-restore.h"
#include "migrate/snapshot.h"

#define MEMORY (16 * MiB)
/* Long enough for a sanitizer on a loaded machine; a test that gets here has failed. */
#define PATIENCE_NS (20 * NSEC_PER_SEC)

struct fixture {
    char dir[64];
    struct event_base *events;
    struct mem *mem;
    struct fake_kvm kvm;
    struct dirty_log *log;
    struct snapshotter *snapshotter;
    /* What the machine of the test does while it is held. */
    void (*on_hold)(struct fixture *f);
    unsigned int holds, releases;
    const char *refusal; /* what the machine says when it is held */
};

/* -- the machine ----------------------------------------------------------------- */

static void hold(void *opaque)
{
    struct fixture *f = opaque;

    f->holds++;
    if (f->on_hold)
        f->on_hold(f);
}

static void release(void *opaque)
{
    ((struct fixture *)opaque)->releases++;
}

static int check(void *opaque, char *error)
{
    struct fixture *f = opaque;

    if (f->refusal)
        strcpy(error, f->refusal);
    return f->refusal ? -EPERM : 0;
}

static int save(void *opaque, uint8_t **ret, size_t *ret_len)
{
    *ret = (uint8_t *)strdup("state");
    *ret_len = 5;
    return *ret ? 0 : -ENOMEM;
}

static int describe(void *opaque, struct snapshot_meta *meta)
{
    strcpy(meta->paging, "tdp");
    meta->host = json_object_new_object();
    meta->config = json_object_new_object();
    return 0;
}

static void changed(void *opaque)
{
}

/* -- the fixture ----------------------------------------------------------------- */

static int set_up(void **state)
{
    static const struct mem_config memory = {.size = MEMORY};
    struct fixture *f = calloc(1, sizeof(*f));
    struct snapshot_ops ops = {.hold = hold, .release = release, .check = check, .save = save,
                               .describe = describe, .changed = changed, .places = "", .opaque = f};

    assert_non_null(f);
    strcpy(f->dir, "/tmp/test-snapshot-take.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    f->events = event_base_new();
    assert_non_null(f->events);
    assert_int_equal(mem_new(&memory, &f->mem), 0);
    f->kvm.mem = f->mem;
    fake_init(&f->kvm, 1);
    assert_int_equal(dirty_log_new(f->mem, &(struct dirty_config){.ops = &fake_ops, .opaque = &f->kvm}, &f->log), 0);
    assert_int_equal(snapshotter_new(f->events, f->mem, f->log, &ops, &f->snapshotter), 0);
    *state = f;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    snapshotter_free(f->snapshotter);
    assert_int_equal(f->kvm.misuse, 0);
    dirty_log_free(f->log);
    fake_destroy(&f->kvm);
    mem_free(f->mem);
    event_base_free(f->events);
    assert_int_equal(nftw(f->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
    free(f);
    return 0;
}

static const char *at(struct fixture *f, const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", f->dir, name);
    return path;
}

static void start(struct fixture *f, const char *name, bool diff)
{
    struct snapshot_request request = {.dir = at(f, name), .diff = diff, .track = true};
    char error[SNAPSHOT_ERROR_MAX] = "";

    if (snapshotter_start(f->snapshotter, &request, error) < 0)
        fail_msg("%s: %s", name, error);
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static enum snapshot_phase phase(struct fixture *f)
{
    struct snapshot_status s;

    snapshotter_status(f->snapshotter, &s);
    return s.phase;
}

/* Be the main loop until the snapshot has ended, and has ended like this. */
static void wait_end(struct fixture *f, enum snapshot_phase want)
{
    uint64_t end = clock_ns() + PATIENCE_NS;
    struct snapshot_status s;

    while (snapshotter_busy(f->snapshotter) && clock_ns() < end) {
        event_base_loop(f->events, EVLOOP_NONBLOCK);
        sleep_ms(1);
    }
    assert_false(snapshotter_busy(f->snapshotter));
    snapshotter_status(f->snapshotter, &s);
    if (s.phase != want)
        fail_msg("%s (%s) where %s is wanted", snapshot_phase_name(s.phase), s.error, snapshot_phase_name(want));
    assert_int_equal(f->holds, f->releases);
}

/* Wait until the thread has asked for the hold, which it cannot be given meanwhile. */
static void wait_asked(struct fixture *f)
{
    uint64_t end = clock_ns() + PATIENCE_NS;
    enum call call;

    do {
        sleep_ms(1);
        pthread_mutex_lock(&f->snapshotter->lock);
        call = f->snapshotter->call;
        pthread_mutex_unlock(&f->snapshotter->lock);
    } while (call != CALL_HOLD && clock_ns() < end);
    assert_int_equal(call, CALL_HOLD);
}

/* -- cancel ---------------------------------------------------------------------- */

/* The thread must not end while the main thread uses what it has: it gets a moment to do it. */
static void cancel_held(struct fixture *f)
{
    snapshotter_cancel(f->snapshotter);
    for (int i = 0; i < 100; i++) {
        sleep_ms(1);
        assert_int_equal(phase(f), SNAPSHOT_ACTIVE);
    }
}

static void test_cancel_while_held(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(mem_set(f->mem, 0, 7, MEMORY), 0);
    f->on_hold = cancel_held;
    start(f, "s", false);
    wait_asked(f);
    /* One page at least is left to be written, before which the thread looks whether it is to end. */
    assert_int_equal(mem_set(f->mem, 0, 8, 1), 0);
    wait_end(f, SNAPSHOT_CANCELLED);
    assert_int_equal(f->holds, 1);
    assert_int_equal(access(at(f, "s"), F_OK), -1);
    /* The next one has a thread that is not held up by what is left of this one. */
    f->on_hold = NULL;
    start(f, "s", false);
    wait_end(f, SNAPSHOT_COMPLETED);
    assert_int_equal(access(at(f, "s"), F_OK), 0);
}

static void test_cancel_before_hold(void **state)
{
    struct fixture *f = *state;

    start(f, "s", false);
    wait_asked(f);
    snapshotter_cancel(f->snapshotter);
    wait_end(f, SNAPSHOT_CANCELLED);
    assert_int_equal(f->holds, 0);
    assert_int_equal(access(at(f, "s"), F_OK), -1);
}

/* -- a guest that is no longer what it was ----------------------------------------- */

static void test_refused_when_held(void **state)
{
    struct fixture *f = *state;
    struct snapshot_status s;

    f->refusal = "the guest has gone";
    start(f, "s", false);
    wait_end(f, SNAPSHOT_FAILED);
    snapshotter_status(f->snapshotter, &s);
    assert_string_equal(s.error, "the guest has gone");
    assert_int_equal(f->holds, 1);
    assert_false(s.tracking);
    assert_int_equal(access(at(f, "s"), F_OK), -1);
}

/* -- memory ------------------------------------------------------------------------ */

/* What is on disk is guest memory, which stands still. */
static void assert_memory(struct fixture *f, const char *name)
{
    static const struct mem_config config = {.size = MEMORY};
    char error[SNAPSHOT_ERROR_MAX] = "";
    struct snapshot_chain chain;
    struct mem *mem;

    assert_int_equal(snapshot_chain_open(at(f, name), &chain, error), 0);
    assert_int_equal(snapshot_chain_verify(&chain, NULL, NULL, error), 0);
    assert_int_equal(mem_new(&config, &mem), 0);
    assert_int_equal(snapshot_restore_eagerly(&chain, mem, error), 0);
    assert_memory_equal(mem_ram(mem), mem_ram(f->mem), MEMORY);
    mem_free(mem);
    snapshot_chain_close(&chain);
}

static void give_back(struct fixture *f, uint64_t offset, uint64_t len)
{
    assert_int_equal(mem_give_back(f->mem, mem_ptr(f->mem, offset, len), len), len);
}

/* More than there is room for aside; among it what the balloon has got. */
static void write_held(struct fixture *f)
{
    assert_int_equal(mem_set(f->mem, 4096, 9, MEMORY / 4 * 3), 0);
    give_back(f, 3 * MiB, 2 * MiB);
    give_back(f, 11 * MiB, MiB);
}

/* Pages that the guest gave back are in the snapshot as zeros, and the host does not have them again for that. */
static void test_given_back(void **state)
{
    struct fixture *f = *state;
    char error[SNAPSHOT_ERROR_MAX] = "";
    unsigned int length;

    assert_int_equal(mem_set(f->mem, 0, 7, MEMORY), 0);
    start(f, "full", false);
    wait_end(f, SNAPSHOT_COMPLETED);
    assert_memory(f, "full");
    assert_int_equal(mem_allocated(f->mem), MEMORY);
    give_back(f, 8 * MiB, 4 * MiB);
    assert_int_equal(mem_set(f->mem, 8 * MiB + 65 * 4096, 3, 4096), 0);
    start(f, "running", true);
    wait_end(f, SNAPSHOT_COMPLETED);
    assert_int_equal(mem_allocated(f->mem), MEMORY - 4 * MiB + 4096);
    /* Comparing it takes all of it again. */
    assert_memory(f, "running");
    f->on_hold = write_held;
    start(f, "held", true);
    wait_end(f, SNAPSHOT_COMPLETED);
    assert_int_equal(mem_allocated(f->mem), MEMORY - 3 * MiB);
    assert_memory(f, "held");
    assert_int_equal(snapshot_chain_length(at(f, "held"), &length, error), 0);
    assert_int_equal(length, 3);
}

int main(void)
{
#define SNAPSHOT_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        SNAPSHOT_TEST(test_cancel_while_held),
        SNAPSHOT_TEST(test_cancel_before_hold),
        SNAPSHOT_TEST(test_refused_when_held),
        SNAPSHOT_TEST(test_given_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
