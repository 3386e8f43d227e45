/* The balloon: how much memory the guest keeps, and what it says of its memory. */
#include "config.h"

#include "daemon/machine.h"
#include "daemon/qmp-internal.h"
#include "device/virtio/balloon.h"

/* The balloon, or NULL with the error set. */
static struct device *balloon_of(struct qmp_request *req)
{
    struct device *balloon = machine_balloon(req->machine);

    if (!balloon)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "the VM has no balloon (umbrad --balloon on)");
    return balloon;
}

json_t *qmp_balloon(struct qmp_request *req)
{
    struct device *balloon = balloon_of(req);
    uint64_t bytes = 0;

    if (!balloon)
        return NULL;
    json_get_u64(req->args, "value", &bytes);
    vballoon_set_memory(balloon, bytes);
    return json_object_new_object();
}

json_t *qmp_balloon_set(struct qmp_request *req)
{
    struct device *balloon = balloon_of(req);
    uint64_t seconds = 0;

    if (!balloon)
        return NULL;
    json_get_u64(req->args, "guest-stats-polling-interval", &seconds);
    vballoon_set_interval(balloon, (unsigned int)seconds);
    return json_object_new_object();
}

static json_t *stats_of(const struct vballoon_info *info)
{
    json_t *stats = json_object_new_object(), *o;

    for (unsigned int i = 0; i < VIRTIO_BALLOON_S_NR; i++)
        if (info->stats_present >> i & 1)
            json_add_u64(stats, vballoon_stat_name(i), info->stats[i]);
    o = json_object_new_object();
    json_add(o, "stats", stats);
    json_add_u64(o, "last-update", info->stats_time);
    return o;
}

json_t *qmp_query_balloon(struct qmp_request *req)
{
    struct device *balloon = balloon_of(req);
    struct vballoon_info info;
    json_t *o;

    if (!balloon)
        return NULL;
    vballoon_info(balloon, &info);
    o = json_object_new_object();
    json_add_u64(o, "actual", info.memory);
    /* What QEMU has no place for here. */
    json_add_u64(o, "target", info.target);
    json_add_bool(o, "driver", info.driver);
    json_add_bool(o, "free-page-reporting", info.reporting);
    json_add_bool(o, "needs-reset", info.needs_reset);
    json_add_u64(o, "given-back", info.counters.given_back_bytes);
    json_add_u64(o, "guest-stats-polling-interval", info.interval);
    if (info.stats_time)
        json_add(o, "guest-stats", stats_of(&info));
    return o;
}
