/* Asking the VM that was chosen, with every failure told in one line. */
#include "config.h"

#include <limits.h>
#include <string.h>

#include "ctl/ctl.h"
#include "ctl/vms.h"

int ctl_connect(const struct ctl *ctl, struct client **ret)
{
    struct client *c = NULL;
    struct failure f = {0};
    char path[PATH_MAX];
    int r = vms_path(ctl, "control.sock", path, sizeof(path));

    if (r)
        return r;
    if (client_connect(path, &c, &f) < 0) {
        if (f.kind == FAILURE_NO_VM)
            failure_set(&f, FAILURE_NO_VM, "not running (nobody listens on %s)", path);
        return ctl_fail(ctl, &f);
    }
    if (client_negotiate(c, ctl->reply_timeout_ms, &f) < 0) {
        client_close(c);
        return ctl_fail(ctl, &f);
    }
    *ret = c;
    return CTL_DONE;
}

int ctl_ask(const struct ctl *ctl, struct client *client, const char *command, json_t *arguments, json_t **ret)
{
    struct failure f = {0};

    if (client_call(client, command, arguments, ctl->reply_timeout_ms, ret, NULL, &f) == 0)
        return CTL_DONE;
    return ctl_fail(ctl, &f);
}

int ctl_ask_maybe(const struct ctl *ctl, struct client *client, const char *command, json_t *arguments, json_t **ret)
{
    struct failure f = {0};

    if (client_call(client, command, arguments, ctl->reply_timeout_ms, ret, NULL, &f) == 0)
        return CTL_DONE;
    if (f.kind == FAILURE_REFUSED) {
        *ret = NULL;
        return CTL_DONE;
    }
    return ctl_fail(ctl, &f);
}
