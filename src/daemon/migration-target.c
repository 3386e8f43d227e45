/* What a guest that arrives needs of the daemon: from the migration's thread to the main loop. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "daemon/consumers.h"
#include "daemon/machine-state.h"
#include "daemon/migration-internal.h"
#include "vcpu/vm.h"

#define EXIT_INCOMING 1

struct arrival {
    const uint8_t *state;
    size_t len;
    uint64_t captured_ns;
    int fd;
    bool run, arriving;
    char *why;
    struct mig_error *err;
};

/* The lines of a list, or NULL when it is empty or memory is out. */
static char *join_lines(const json_t *list)
{
    size_t n = json_object_array_length(list), len = 1;
    char *text, *at;

    for (size_t i = 0; i < n; i++)
        len += strlen(json_object_get_string(json_object_array_get_idx(list, i))) + 1;
    text = n ? malloc(len) : NULL;
    at = text;
    for (size_t i = 0; text && i < n; i++)
        at += sprintf(at, "%s%s", i ? "\n" : "", json_object_get_string(json_object_array_get_idx(list, i)));
    return text;
}

static int compare(struct migration *mg, void *arg)
{
    struct arrival *a = arg;
    struct state_reader r;
    json_t *list;
    int err = state_reader_init(&r, a->state, a->len);

    if (err < 0)
        return mig_error(a->err, err, "setup: %s", r.error);
    err = machine_compare(mg->machine, &r, &list);
    if (err < 0) {
        mig_error(a->err, err, "setup: %s", r.error[0] ? r.error : strerrordesc_np(-err));
    } else {
        a->why = join_lines(list);
        json_object_put(list);
    }
    state_reader_clear(&r);
    return err;
}

static int target_compare(void *opaque, const uint8_t *state, size_t len, char **ret_why, struct mig_error *err)
{
    struct arrival a = {.state = state, .len = len, .err = err};
    int r = migration_on_main(opaque, compare, &a);

    *ret_why = a.why;
    return r < 0 ? mig_error(err, r, "the daemon is ending") : 0;
}

static int adopt(struct migration *mg, void *arg)
{
    struct arrival *a = arg;
    int r = machine_adopt(mg->machine, take_fd(a->fd));

    return r < 0 ? mig_error(a->err, r, "memory: the file cannot be used: %s", strerrordesc_np(-r)) : 0;
}

static int target_adopt(void *opaque, int fd, struct mig_error *err)
{
    struct arrival a = {.fd = fd, .err = err};
    int r = migration_on_main(opaque, adopt, &a);

    fd_close(a.fd);
    return r < 0 ? mig_error(err, r, "the daemon is ending") : 0;
}

static int load(struct migration *mg, void *arg)
{
    struct arrival *a = arg;
    struct state_reader r;
    int err = state_reader_init(&r, a->state, a->len);

    if (err < 0)
        return mig_error(a->err, err, "state: %s", r.error);
    err = machine_load(mg->machine, &r, a->captured_ns);
    if (err == 0)
        err = consumers_load(mg->machine, &r);
    if (err < 0)
        mig_error(a->err, err, "state: %s", r.error[0] ? r.error : strerrordesc_np(-err));
    state_reader_clear(&r);
    return err;
}

static int target_load(void *opaque, const uint8_t *state, size_t len, uint64_t captured_ns, struct mig_error *err)
{
    struct arrival a = {.state = state, .len = len, .captured_ns = captured_ns, .err = err};
    int r = migration_on_main(opaque, load, &a);

    return r < 0 ? mig_error(err, r, "the daemon is ending") : 0;
}

static int arrive(struct migration *mg, void *arg)
{
    struct arrival *a = arg;

    machine_arrived(mg->machine, a->run, a->arriving && !mg->whole);
    return 0;
}

static int target_run(void *opaque, bool run, bool arriving)
{
    struct arrival a = {.run = run, .arriving = arriving};

    return migration_on_main(opaque, arrive, &a);
}

int migration_target_told(struct migration *mg, void *arg)
{
    struct mig_report r;

    if (!mg->target)
        return 0;
    mig_target_report(mg->target, &r);
    migration_tell(mg, &r);
    if (r.status == MIG_STATUS_COMPLETED) {
        mg->whole = true;
        machine_whole(mg->machine);
    }
    /* Whatever came is incomplete, and a guest of that name is running elsewhere. */
    if (r.status == MIG_STATUS_FAILED)
        mg->observer.on_end(mg->observer.opaque, EXIT_INCOMING);
    return 0;
}

static void target_changed(void *opaque, bool postcopy)
{
    struct migration *mg = opaque;

    if (!postcopy) {
        (void)migration_on_main(mg, migration_target_told, NULL);
        return;
    }
    /* The main thread may wait for a page, which comes by the thread that is here. */
    pthread_mutex_lock(&mg->lock);
    mg->news = true;
    pthread_mutex_unlock(&mg->lock);
    fd_event_signal(mg->call_fd);
}

const struct mig_target_ops migration_target_ops = {
    .compare = target_compare,
    .adopt = target_adopt,
    .load = target_load,
    .run = target_run,
    .changed = target_changed,
};
