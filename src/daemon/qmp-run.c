/* Commands that change what the machine does. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "daemon/machine.h"
#include "daemon/qmp-internal.h"

json_t *qmp_stop(struct qmp_request *req)
{
    if (machine_stop(req->machine) < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "cannot stop: the guest is about to leave");
        return NULL;
    }
    return json_object_new_object();
}

json_t *qmp_cont(struct qmp_request *req)
{
    const char *why = NULL;
    int r = machine_cont(req->machine, &why);

    if (r < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "cannot continue: %s", why ? why : strerror(-r));
        return NULL;
    }
    return json_object_new_object();
}

/* What such an error means of a reset. */
static const char *reset_reason(int err)
{
    switch (err) {
    case -EBUSY:
        return "the guest is on its way here or elsewhere, or has left a part of its memory behind";
    case -ENOENT:
        return "the kernel or another file that it is started with is not there any more";
    default:
        return strerror(-err);
    }
}

json_t *qmp_system_reset(struct qmp_request *req)
{
    int r = machine_reset(req->machine);

    if (r < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "cannot reset: %s", reset_reason(r));
        return NULL;
    }
    return json_object_new_object();
}

json_t *qmp_system_powerdown(struct qmp_request *req)
{
    int r = machine_powerdown(req->machine);

    if (r == -ENODEV)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "the guest has not enabled the power button");
    else if (r < 0)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "cannot press the power button: %s", strerror(-r));
    return r < 0 ? NULL : json_object_new_object();
}

json_t *qmp_quit(struct qmp_request *req)
{
    machine_quit(req->machine);
    return json_object_new_object();
}
