/* What a guest that leaves needs of the daemon: from the migration's thread to the main loop. */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/util.h"
#include "daemon/consumers.h"
#include "daemon/machine-state.h"
#include "daemon/migration-guest.h"
#include "daemon/migration-internal.h"

struct state_arg {
    uint8_t *data;
    size_t len;
    uint64_t captured_ns;
};

static int save(struct migration *mg, void *arg)
{
    struct state_arg *a = arg;
    struct state_writer w;
    int r;

    state_writer_init(&w);
    a->captured_ns = clock_ns();
    r = machine_save(mg->machine, &w);
    if (r == 0)
        consumers_save(mg->machine, &w);
    if (r == 0)
        r = state_finish(&w, &a->data, &a->len);
    state_writer_clear(&w);
    return r;
}

static int save_held(struct migration *mg, void *arg)
{
    uint64_t start = clock_ns();
    int r;

    machine_hold(mg->machine);
    r = save(mg, arg);
    machine_release(mg->machine);
    mg->stall_ns += clock_ns() - start;
    return r;
}

static int source_facts(void *opaque, uint8_t **ret, size_t *ret_len)
{
    struct state_arg a = {0};
    int r = migration_on_main(opaque, save_held, &a);

    *ret = a.data;
    *ret_len = a.len;
    return r;
}

static int source_save(void *opaque, uint8_t **ret, size_t *ret_len, uint64_t *ret_captured_ns)
{
    struct state_arg a = {0};
    int r = migration_on_main(opaque, save, &a);

    *ret = a.data;
    *ret_len = a.len;
    *ret_captured_ns = a.captured_ns;
    return r;
}

void migration_open_sync(struct migration *mg)
{
    migration_close_sync(mg);
    mg->sync_count = machine_sync_fds(mg->machine, mg->sync_fds, ARRAY_SIZE(mg->sync_fds));
}

void migration_close_sync(struct migration *mg)
{
    while (mg->sync_count > 0)
        fd_close(mg->sync_fds[--mg->sync_count]);
}

/* On the migration's own thread, as this is what may take long; the main loop may be busy, and is not asked. */
static void source_write_out(void *opaque)
{
    const struct migration *mg = opaque;

    for (unsigned int i = 0; i < mg->sync_count; i++)
        (void)fdatasync(mg->sync_fds[i]);
}

struct leave_arg {
    bool run;
    struct mig_downtime *times;
};

static int leave(struct migration *mg, void *arg)
{
    struct leave_arg *a = arg;

    return machine_leave(mg->machine, mg->local, &a->run, &a->times->pause, &a->times->drain);
}

static int source_stop(void *opaque, bool *ret_run, struct mig_downtime *times, struct mig_error *err)
{
    struct leave_arg a = {.times = times};
    int r = migration_on_main(opaque, leave, &a);

    switch (r) {
    case 0:
        break;
    case -ESHUTDOWN:
        return mig_error(err, r, "there is no guest to move any more");
    case -ECANCELED:
        return mig_error(err, r, "the daemon is ending");
    default:
        return mig_error(err, r, "a disk cannot be written out: %s", strerrordesc_np(-r));
    }
    *ret_run = a.run;
    return 0;
}

static int stay(struct migration *mg, void *arg)
{
    machine_stay(mg->machine);
    return 0;
}

static void source_resume(void *opaque)
{
    (void)migration_on_main(opaque, stay, NULL);
}

static int left(struct migration *mg, void *arg)
{
    bool *needed = arg;

    machine_left(mg->machine, mg->local);
    machine_keep_memory(mg->machine, *needed);
    return 0;
}

static int source_give_away(void *opaque, bool needed)
{
    return migration_on_main(opaque, left, &needed);
}

static int source_status(struct migration *mg, void *arg)
{
    struct mig_report r;

    if (!mg->source)
        return 0;
    mig_source_report(mg->source, &r);
    mg->source_ended = r.status == MIG_STATUS_COMPLETED || r.status == MIG_STATUS_FAILED ||
                       r.status == MIG_STATUS_CANCELLED;
    if (mg->source_ended)
        machine_keep_memory(mg->machine, false);
    migration_tell(mg, &r);
    return 0;
}

static int source_round(struct migration *mg, void *arg)
{
    json_t *data = json_object_new_object();
    struct mig_report r;

    mig_source_report(mg->source, &r);
    json_add_u64(data, "pass", r.passes);
    mg->observer.on_event(mg->observer.opaque, "MIGRATION_PASS", data);
    return 0;
}

static void source_changed(void *opaque, bool round)
{
    (void)migration_on_main(opaque, round ? source_round : source_status, NULL);
}

struct who_arg {
    const struct page_set *pages;
    struct page_set *into;
    char *text;
    size_t size;
};

static int find_tables(struct migration *mg, void *arg)
{
    struct who_arg *a = arg;

    migration_tables(mg->machine, a->pages, a->into);
    return 0;
}

static void source_tables(void *opaque, const struct page_set *pages, struct page_set *into)
{
    (void)migration_on_main(opaque, find_tables, &(struct who_arg){.pages = pages, .into = into});
}

static int find_who(struct migration *mg, void *arg)
{
    struct who_arg *a = arg;

    migration_who(mg->machine, a->pages, a->text, a->size, &mg->writer);
    return 0;
}

static void source_who(void *opaque, const struct page_set *pages, char *text, size_t size)
{
    (void)migration_on_main(opaque, find_who, &(struct who_arg){.pages = pages, .text = text, .size = size});
}

static int set_throttle(struct migration *mg, void *arg)
{
    migration_throttle_set(&mg->throttle, *(unsigned int *)arg, mg->writer);
    return 0;
}

static void source_throttle(void *opaque, unsigned int percent)
{
    (void)migration_on_main(opaque, set_throttle, &percent);
}

const struct mig_source_ops migration_source_ops = {
    .facts = source_facts,
    .write_out = source_write_out,
    .stop = source_stop,
    .save = source_save,
    .resume = source_resume,
    .give_away = source_give_away,
    .throttle = source_throttle,
    .tables = source_tables,
    .who = source_who,
    .changed = source_changed,
};
