/* Snapshots on the control socket: the commands, the event, and what the snapshotter needs of the machine. */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/clock.h"
#include "base/util.h"
#include "daemon/machine-state.h"
#include "daemon/qmp-internal.h"
#include "daemon/qmp-server.h"
#include "migrate/snapshot.h"

struct qmp_snapshot {
    struct machine *machine;
    struct qmp_server *server;
    struct snapshotter *snapshotter;
    char places[512]; /* where snapshots may be written, to be told where one is refused */
};

/* -- what the snapshotter needs ------------------------------------------------ */

static void on_hold(void *opaque)
{
    machine_hold(((struct qmp_snapshot *)opaque)->machine);
}

static void on_release(void *opaque)
{
    machine_release(((struct qmp_snapshot *)opaque)->machine);
}

/*
 * A guest that has ended, crashed or not arrived is nothing to go on with later. Memory that was handed over with a guest that has
 * left is written elsewhere, which the dirty log here does not see.
 */
static int check_guest(struct machine *machine, char *error)
{
    enum run_state state = machine_run_state(machine);

    if (state == RUN_STATE_RUNNING || state == RUN_STATE_PAUSED || state == RUN_STATE_PRELAUNCH || state == RUN_STATE_IO_ERROR)
        return 0;
    snprintf(error, SNAPSHOT_ERROR_MAX, "the guest is %s, there is nothing to go on with later", machine_run_state_name(state));
    return -EPERM;
}

/* What it was when the snapshot began says nothing of what it is now. */
static int on_check(void *opaque, char *error)
{
    return check_guest(((struct qmp_snapshot *)opaque)->machine, error);
}

static int on_save(void *opaque, uint8_t **ret, size_t *ret_len)
{
    struct qmp_snapshot *q = opaque;
    struct state_writer w;
    int r;

    state_writer_init(&w);
    r = machine_save(q->machine, &w);
    if (r == 0)
        return state_finish(&w, ret, ret_len);
    state_writer_clear(&w);
    return r;
}

static json_t *describe_host(const struct host_info *host)
{
    json_t *o = json_object_new_object();
    struct utsname u;

    if (uname(&u) == 0)
        json_add_str(o, "kernel", u.release);
    json_add_str(o, "kvm-module", host->module);
    json_add_str(o, "proof", host->how);
    return o;
}

static int on_describe(void *opaque, struct snapshot_meta *meta)
{
    struct qmp_snapshot *q = opaque;
    const struct host_info *host = machine_host(q->machine);

    snprintf(meta->paging, sizeof(meta->paging), "%s", host_paging_name(host->proven));
    meta->host = describe_host(host);
    meta->config = config_describe(machine_config(q->machine));
    return meta->host && meta->config ? 0 : -ENOMEM;
}

static void on_changed(void *opaque)
{
    struct qmp_snapshot *q = opaque;
    json_t *data = json_object_new_object();
    struct snapshot_status s;

    snapshotter_status(q->snapshotter, &s);
    json_add_str(data, "status", snapshot_phase_name(s.phase));
    json_add_str(data, "dir", s.dir);
    if (s.error[0])
        json_add_str(data, "error", s.error);
    qmp_server_event(q->server, "SNAPSHOT", data);
}

/* What lockdown_finish leaves open. */
static void describe_places(const struct config *c, char *to, size_t size)
{
    if (c->sandbox == SANDBOX_OFF)
        *to = '\0';
    else if (c->snapshot_dir)
        snprintf(to, size, "this VM may write snapshots below %.150s and %s/%s only; --snapshot-dir says where else", c->snapshot_dir,
                 UMBRA_STATEDIR, c->name);
    else
        snprintf(to, size, "this VM may write snapshots below %s/%s only; --snapshot-dir says where else", UMBRA_STATEDIR, c->name);
}

int qmp_snapshot_new(struct event_base *events, struct machine *machine, struct qmp_server *server,
                     struct qmp_snapshot **ret)
{
    struct snapshot_ops ops = {.hold = on_hold, .release = on_release, .check = on_check, .save = on_save,
                               .describe = on_describe, .changed = on_changed};
    struct qmp_snapshot *q = calloc(1, sizeof(*q));
    struct vm *vm = machine_vm(machine);
    int r;

    if (!q)
        return -ENOMEM;
    q->machine = machine;
    q->server = server;
    describe_places(machine_config(machine), q->places, sizeof(q->places));
    ops.places = q->places;
    ops.opaque = q;
    r = snapshotter_new(events, vm_mem(vm), vm_dirty_log(vm), &ops, &q->snapshotter);
    if (r < 0) {
        free(q);
        return r;
    }
    *ret = q;
    return 0;
}

void qmp_snapshot_free(struct qmp_snapshot *q)
{
    if (!q)
        return;
    snapshotter_free(q->snapshotter);
    free(q);
}

bool qmp_snapshot_busy(const struct qmp_snapshot *q)
{
    return snapshotter_busy(q->snapshotter);
}

int qmp_snapshot_untrack(struct qmp_snapshot *q)
{
    return snapshotter_untrack(q->snapshotter);
}

/* -- commands ------------------------------------------------------------------ */

json_t *qmp_snapshot(struct qmp_request *req)
{
    struct qmp_snapshot *q = req->context->snapshot;
    struct snapshot_request request = {.track = true};
    char error[SNAPSHOT_ERROR_MAX];

    json_get_str(req->args, "dir", &request.dir);
    json_get_bool(req->args, "diff", &request.diff);
    json_get_bool(req->args, "track", &request.track);
    if (request.dir[0] != '/')
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "dir: '%.200s' is no absolute path", request.dir);
    else if (request.diff && !request.track)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "track: a diff always goes on tracking");
    else if (check_guest(req->machine, error) < 0 || snapshotter_start(q->snapshotter, &request, error) < 0)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "%.500s", error);
    return req->error.set ? NULL : json_object_new_object();
}

json_t *qmp_snapshot_cancel(struct qmp_request *req)
{
    snapshotter_cancel(req->context->snapshot->snapshotter);
    return json_object_new_object();
}

static void add_figures(json_t *o, const struct snapshot_status *s)
{
    json_add_u64(o, "pages", s->pages);
    json_add_u64(o, "written", s->done);
    json_add_u64(o, "stored-pages", s->stored);
    json_add_u64(o, "zero-pages", s->zero_pages);
    json_add_u64(o, "rounds", s->rounds);
    json_add_u64(o, "total-us", s->total_ns / NSEC_PER_USEC);
    if (s->pause_ns == 0)
        return;
    json_add_u64(o, "final-pages", s->final_pages);
    json_add_u64(o, "pause-us", s->pause_ns / NSEC_PER_USEC);
    json_add_u64(o, "harvest-us", s->harvest_ns / NSEC_PER_USEC);
    json_add_u64(o, "save-us", s->save_ns / NSEC_PER_USEC);
}

json_t *qmp_query_snapshot(struct qmp_request *req)
{
    json_t *o = json_object_new_object();
    struct snapshot_status s;

    snapshotter_status(req->context->snapshot->snapshotter, &s);
    json_add_str(o, "status", snapshot_phase_name(s.phase));
    json_add_bool(o, "tracking", s.tracking);
    if (s.tracking)
        json_add_str(o, "tracked-id", s.tracked_id);
    if (s.phase == SNAPSHOT_NONE)
        return o;
    json_add_str(o, "dir", s.dir);
    if (s.id[0])
        json_add_str(o, "id", s.id);
    if (s.parent_id[0])
        json_add_str(o, "parent-id", s.parent_id);
    if (s.error[0])
        json_add_str(o, "error", s.error);
    add_figures(o, &s);
    return o;
}
