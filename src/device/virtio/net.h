/* virtio-net: a network card. See "Network Device" in the specification. */
#ifndef UMBRA_DEVICE_VIRTIO_NET_H
#define UMBRA_DEVICE_VIRTIO_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "device/device.h"
#include "device/net-backend.h"

#define VNET_QUEUE_SIZE 512u
#define VNET_MTU_MIN 68u
#define VNET_MTU_MAX 65535u

struct vnet_config {
    struct net_backend *backend; /* must outlive the device; its pairs are the device's */
    uint8_t mac[NET_MAC_LEN];
    unsigned int mtu; /* that the guest is told; 0: nothing */
};

/* Make the device in that slot of virtio-mmio. 0 or -errno. */
int vnet_create(const struct device_env *env, const struct vnet_config *config, unsigned int index, unsigned int slot,
                struct device **ret);

/* Since the start. rx is what the guest receives; bytes are those of Ethernet frames. */
struct vnet_counters {
    uint64_t rx_packets, rx_bytes, rx_dropped;
    uint64_t tx_packets, tx_bytes, tx_dropped;
    uint64_t kicks, interrupts, misuses;
};

struct vnet_info {
    const char *name; /* "net0" */
    const char *backend_kind, *backend_name;
    uint8_t mac[NET_MAC_LEN];
    unsigned int queues, queues_used; /* pairs */
    unsigned int mtu;
    bool link_wanted; /* as vnet_set_link said last */
    bool link;        /* and the backend is there */
    bool needs_reset;
    uint64_t features; /* that the driver took */
    struct vnet_counters counters;
};

/* What it is and how it is. Any thread, takes the lock. Strings live as long as the device. */
void vnet_info(struct device *dev, struct vnet_info *ret);

/* Plug the cable in, or pull it out: frames are dropped then, in both directions. Any thread, takes the lock. */
void vnet_set_link(struct device *dev, bool up);

#endif
