/* Live migration on the control socket. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/util.h"
#include "daemon/migration.h"
#include "daemon/qmp-internal.h"

const char *const qmp_migrate_strategies[] = {
    [MIG_STRATEGY_CANCEL] = "cancel", [MIG_STRATEGY_STOP] = "stop", [MIG_STRATEGY_THROTTLE] = "throttle",
    [MIG_STRATEGY_POSTCOPY] = "postcopy", NULL};

const char *const qmp_migrate_compressions[] = {"none", "zstd", NULL};

static struct migration *migration_of(struct qmp_request *req)
{
    if (!req->context->migration)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "migration is not available");
    return req->context->migration;
}

json_t *qmp_migrate(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);
    char error[MIGRATION_ERROR_MAX];
    const char *uri = NULL;
    bool local = false, resume = false;

    if (!mg)
        return NULL;
    json_get_str(req->args, "uri", &uri);
    json_get_bool(req->args, "local", &local);
    json_get_bool(req->args, "resume", &resume);
    if (local && !resume && qmp_snapshot_busy(req->context->snapshot)) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "cannot migrate: local: the snapshot that is being taken needs guest memory");
        return NULL;
    }
    if ((resume ? migration_resume(mg, uri, error) : migration_start(mg, uri, local, error)) < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "cannot migrate: %s", error);
        return NULL;
    }
    return json_object_new_object();
}

/* Begin to wait at the request's address, for whoever it is. */
static json_t *wait_at(struct qmp_request *req, int (*wait)(struct migration *mg, const char *uri, char *error), const char *whom)
{
    struct migration *mg = migration_of(req);
    char error[MIGRATION_ERROR_MAX];
    const char *uri = NULL;

    if (!mg)
        return NULL;
    json_get_str(req->args, "uri", &uri);
    if (wait(mg, uri, error) < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "cannot wait for %s: %s", whom, error);
        return NULL;
    }
    return json_object_new_object();
}

json_t *qmp_migrate_incoming(struct qmp_request *req)
{
    return wait_at(req, migration_incoming, "a guest");
}

json_t *qmp_migrate_cancel(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);

    if (!mg)
        return NULL;
    migration_cancel(mg);
    return json_object_new_object();
}

json_t *qmp_migrate_continue(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);
    const char *state = NULL;

    if (!mg)
        return NULL;
    json_get_str(req->args, "state", &state);
    if (strcmp(state, "pre-switchover") != 0 || migration_continue(mg) < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "there is no migration in state '%.40s' that waits", state);
        return NULL;
    }
    return json_object_new_object();
}

json_t *qmp_migrate_start_postcopy(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);

    if (!mg)
        return NULL;
    if (migration_start_postcopy(mg) < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR,
                      "there is no migration that copies, begun with capability 'postcopy-ram' or strategy 'postcopy'");
        return NULL;
    }
    return json_object_new_object();
}

json_t *qmp_migrate_pause(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);

    if (!mg)
        return NULL;
    if (migration_pause(mg) < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "migrate-pause is currently only supported during postcopy-active state");
        return NULL;
    }
    return json_object_new_object();
}

json_t *qmp_migrate_recover(struct qmp_request *req)
{
    return wait_at(req, migration_recover, "the source");
}

json_t *qmp_query_migrate(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);

    return mg ? migration_query(mg) : NULL;
}

/* -- parameters -- */

json_t *qmp_query_migrate_parameters(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);
    const struct migration_settings *s;
    json_t *answer;

    if (!mg)
        return NULL;
    s = migration_settings(mg);
    answer = json_object_new_object();
    json_add_u64(answer, "max-bandwidth", s->parameters.max_bandwidth);
    json_add_u64(answer, "max-postcopy-bandwidth", s->parameters.postcopy_bandwidth);
    json_add_u64(answer, "downtime-limit", s->parameters.downtime_limit_ns / NSEC_PER_MSEC);
    json_add_u64(answer, "multifd-channels", s->multifd_channels);
    json_add_str(answer, "multifd-compression", qmp_migrate_compressions[s->zstd]);
    json_add_u64(answer, "multifd-zstd-level", s->zstd_level);
    json_add_str(answer, "tls-hostname", s->tls_hostname);
    json_add_u64(answer, "max-cpu-throttle", s->parameters.max_throttle);
    json_add_str(answer, "strategy", qmp_migrate_strategies[s->parameters.strategy]);
    return answer;
}

json_t *qmp_migrate_set_parameters(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);
    struct migration_settings s;
    const char *strategy, *compression, *host;
    uint64_t v;

    if (!mg)
        return NULL;
    s = *migration_settings(mg);
    if (json_get_u64(req->args, "max-bandwidth", &v) == 0)
        s.parameters.max_bandwidth = v;
    if (json_get_u64(req->args, "max-postcopy-bandwidth", &v) == 0)
        s.parameters.postcopy_bandwidth = v;
    if (json_get_u64(req->args, "downtime-limit", &v) == 0)
        s.parameters.downtime_limit_ns = v * NSEC_PER_MSEC;
    if (json_get_u64(req->args, "multifd-channels", &v) == 0)
        s.multifd_channels = (unsigned int)v;
    if (json_get_str(req->args, "tls-hostname", &host) == 0) {
        if (strlen(host) > MIGRATION_HOST_MAX) {
            qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Parameter 'tls-hostname' expects at most %d bytes",
                          MIGRATION_HOST_MAX);
            return NULL;
        }
        strcpy(s.tls_hostname, host);
    }
    if (json_get_str(req->args, "multifd-compression", &compression) == 0)
        s.zstd = strcmp(compression, "zstd") == 0;
    if (json_get_u64(req->args, "multifd-zstd-level", &v) == 0)
        s.zstd_level = (unsigned int)v;
    if (json_get_u64(req->args, "max-cpu-throttle", &v) == 0)
        s.parameters.max_throttle = (unsigned int)v;
    if (json_get_str(req->args, "strategy", &strategy) == 0)
        for (int i = 0; qmp_migrate_strategies[i]; i++)
            if (strcmp(qmp_migrate_strategies[i], strategy) == 0)
                s.parameters.strategy = (enum mig_strategy)i;
    migration_set(mg, &s);
    return json_object_new_object();
}

/* -- capabilities -- */

static bool *capability(struct migration_settings *s, const char *name)
{
    if (strcmp(name, "multifd") == 0)
        return &s->multifd;
    if (strcmp(name, "pause-before-switchover") == 0)
        return &s->parameters.pause_before_switchover;
    if (strcmp(name, "postcopy-ram") == 0)
        return &s->parameters.postcopy;
    return NULL;
}

static void add_capability(json_t *list, const char *name, bool state)
{
    json_t *o = json_object_new_object();

    json_add_str(o, "capability", name);
    json_add_bool(o, "state", state);
    json_push(list, o);
}

json_t *qmp_query_migrate_capabilities(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);
    const struct migration_settings *s;
    json_t *list;

    if (!mg)
        return NULL;
    s = migration_settings(mg);
    list = json_object_new_array();
    add_capability(list, "events", true);
    add_capability(list, "multifd", s->multifd);
    add_capability(list, "pause-before-switchover", s->parameters.pause_before_switchover);
    add_capability(list, "postcopy-ram", s->parameters.postcopy);
    return list;
}

static bool set_capability(struct migration_settings *s, const json_t *entry, struct qmp_error *err)
{
    const char *name;
    bool state, *to;

    if (json_get_str(entry, "capability", &name) < 0 || json_get_bool(entry, "state", &state) < 0) {
        qmp_error_set(err, QMP_GENERIC_ERROR, "Parameter 'capabilities' wants objects with 'capability' and 'state'");
        return false;
    }
    /* Those are sent in any case. */
    if (strcmp(name, "events") == 0)
        return true;
    to = capability(s, name);
    if (!to && state) {
        qmp_error_set(err, QMP_GENERIC_ERROR, "Migration capability '%.64s' is not available", name);
        return false;
    }
    if (to)
        *to = state;
    return true;
}

json_t *qmp_migrate_set_capabilities(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);
    struct migration_settings s;
    json_t *list = NULL;

    if (!mg)
        return NULL;
    s = *migration_settings(mg);
    json_get_array(req->args, "capabilities", &list);
    for (size_t i = 0; i < json_object_array_length(list); i++)
        if (!set_capability(&s, json_object_array_get_idx(list, i), &req->error))
            return NULL;
    migration_set(mg, &s);
    return json_object_new_object();
}

/* -- descriptors -- */

json_t *qmp_getfd(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);
    const char *name = NULL;

    if (!mg)
        return NULL;
    json_get_str(req->args, "fdname", &name);
    if (strlen(name) == 0 || strlen(name) > MIGRATION_FD_NAME_MAX || (name[0] >= '0' && name[0] <= '9')) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "Parameter 'fdname' expects 1 to %d bytes that begin with no digit",
                      MIGRATION_FD_NAME_MAX);
        return NULL;
    }
    if (req->passed_fd < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "No file descriptor supplied via SCM_RIGHTS");
        return NULL;
    }
    if (migration_keep_fd(mg, name, take_fd(req->passed_fd)) < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "too many descriptors are kept, the limit is %d", MIGRATION_MAX_FDS);
        return NULL;
    }
    return json_object_new_object();
}

json_t *qmp_closefd(struct qmp_request *req)
{
    struct migration *mg = migration_of(req);
    const char *name = NULL;

    if (!mg)
        return NULL;
    json_get_str(req->args, "fdname", &name);
    if (migration_close_fd(mg, name) < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "File descriptor named '%.64s' not found", name);
        return NULL;
    }
    return json_object_new_object();
}
