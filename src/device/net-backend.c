#include "config.h"

#include "device/net-backend.h"

#include <string.h>

int net_backend_open(const struct net_config *config, struct net_backend **ret)
{
    switch (config->kind) {
    case NET_PASST:
        return net_passt_connect(config, ret);
    case NET_USER:
        return net_passt_start(config, ret);
    case NET_TAP:
    case NET_FD:
        break;
    }
    return net_tap_open(config, ret);
}

void net_backend_close(struct net_backend *b)
{
    if (b)
        b->ops->close(b);
}

void net_default_mac(const char *name, unsigned int index, uint8_t ret[NET_MAC_LEN])
{
    /* FNV-1a, folded. */
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (; *name; name++)
        hash = (hash ^ (uint8_t)*name) * UINT64_C(0x100000001b3);
    hash = (hash ^ index) * UINT64_C(0x100000001b3);
    hash ^= hash >> 24 ^ hash >> 48;
    memcpy(ret, (const uint8_t[]){0x52, 0x54, 0x00, (uint8_t)(hash >> 16), (uint8_t)(hash >> 8), (uint8_t)hash}, NET_MAC_LEN);
}
