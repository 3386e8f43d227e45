/* query-net, of our own, and set_link, QEMU's. */
#include "config.h"

#include <string.h>

#include "daemon/machine.h"
#include "daemon/qmp-internal.h"
#include "device/virtio/net.h"

static json_t *counters_of(const struct vnet_counters *c)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "rx-packets", c->rx_packets);
    json_add_u64(o, "rx-bytes", c->rx_bytes);
    json_add_u64(o, "rx-dropped", c->rx_dropped);
    json_add_u64(o, "tx-packets", c->tx_packets);
    json_add_u64(o, "tx-bytes", c->tx_bytes);
    json_add_u64(o, "tx-dropped", c->tx_dropped);
    json_add_u64(o, "kicks", c->kicks);
    json_add_u64(o, "interrupts", c->interrupts);
    json_add_u64(o, "misuses", c->misuses);
    return o;
}

static json_t *net_of(struct device *net)
{
    json_t *o = json_object_new_object();
    struct vnet_info info;
    char mac[3 * NET_MAC_LEN + 1];

    vnet_info(net, &info);
    for (unsigned int i = 0; i < NET_MAC_LEN; i++)
        snprintf(mac + 3 * i, 4, "%02x%s", info.mac[i], i + 1 < NET_MAC_LEN ? ":" : "");
    json_add_str(o, "name", info.name);
    json_add_str(o, "mac", mac);
    json_add_str(o, "backend", info.backend_kind);
    json_add_str(o, "host", info.backend_name);
    json_add_i64(o, "queues", info.queues);
    json_add_i64(o, "queues-used", info.queues_used);
    json_add_i64(o, "mtu", info.mtu);
    json_add_bool(o, "link", info.link);
    json_add_bool(o, "link-wanted", info.link_wanted);
    json_add_bool(o, "needs-reset", info.needs_reset);
    json_add_u64(o, "features", info.features);
    json_add(o, "counters", counters_of(&info.counters));
    return o;
}

json_t *qmp_query_net(struct qmp_request *req)
{
    json_t *list = json_object_new_array();
    struct device *net;

    for (unsigned int i = 0; (net = machine_net(req->machine, i)); i++)
        json_push(list, net_of(net));
    return list;
}

json_t *qmp_set_link(struct qmp_request *req)
{
    const char *name = "";
    struct device *net;
    bool up = false;

    json_get_str(req->args, "name", &name);
    json_get_bool(req->args, "up", &up);
    for (unsigned int i = 0; (net = machine_net(req->machine, i)); i++) {
        struct vnet_info info;

        vnet_info(net, &info);
        if (strcmp(info.name, name) != 0)
            continue;
        vnet_set_link(net, up);
        return json_object_new_object();
    }
    qmp_error_set(&req->error, QMP_DEVICE_NOT_FOUND, "Device '%.64s' not found", name);
    return NULL;
}
