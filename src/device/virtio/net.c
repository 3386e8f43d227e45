/*
 * The device beside its queues of frames: features, configuration space, control queue, link, state.
 *
 * Queues: receive and transmit of each pair, then the control queue. A driver that does not take VIRTIO_NET_F_MQ knows of one
 * pair, and finds the control queue behind that.
 */
#include "config.h"

#include "device/virtio/net.h"

#include <assert.h>
#include <errno.h>
#include <linux/virtio_net.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/util.h"
#include "device/virtio/mmio.h"
#include "device/virtio/net-internal.h"

#define FEATURE(bit) (UINT64_C(1) << (bit))
#define OFFLOADS                                                                                                \
    (FEATURE(VIRTIO_NET_F_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_CSUM) | FEATURE(VIRTIO_NET_F_HOST_TSO4) |          \
     FEATURE(VIRTIO_NET_F_HOST_TSO6) | FEATURE(VIRTIO_NET_F_HOST_ECN) | FEATURE(VIRTIO_NET_F_GUEST_TSO4) |      \
     FEATURE(VIRTIO_NET_F_GUEST_TSO6) | FEATURE(VIRTIO_NET_F_GUEST_ECN))
/* The configuration space ends after the MTU. */
#define CONFIG_LEN (offsetof(struct virtio_net_config, mtu) + 2)
#define STATUS_AT offsetof(struct virtio_net_config, status)
/* Commands a turn; who has more comes again. */
#define CONTROL_TURN 16
#define CONTROL_HEADER 2u

static_assert(sizeof(struct virtio_net_ctrl_hdr) == CONTROL_HEADER, "as the specification has it");
static_assert(2 * NET_MAX_PAIRS + 1 <= VIRTIO_MAX_QUEUES, "all queues are there");

static struct vnet *to_net(struct virtio_dev *v)
{
    return container_of(v, struct vnet, v);
}

static struct vnet *of_device(struct device *dev)
{
    return container_of(dev, struct vnet, v.dev);
}

static unsigned int pair_count(const struct vnet *n)
{
    return n->backend->pairs;
}

/* -- link and status ---------------------------------------------------------- */

static uint16_t status_of(const struct vnet *n)
{
    return le16_get(n->v.config + STATUS_AT);
}

static void set_status(struct vnet *n, uint16_t status)
{
    uint8_t bytes[2];

    le16_put(bytes, status);
    virtio_config_set(&n->v, STATUS_AT, bytes, sizeof(bytes));
}

static void update_link(struct vnet *n)
{
    uint16_t status = status_of(n) & (uint16_t)~VIRTIO_NET_S_LINK_UP;

    set_status(n, vnet_link_up(n) ? status | VIRTIO_NET_S_LINK_UP : status);
    if (n->backend->ops->set_carrier && !n->lost)
        n->backend->ops->set_carrier(n->backend, vnet_link_up(n));
}

void vnet_lose_backend(struct vnet *n)
{
    if (n->lost)
        return;
    n->lost = true;
    log_warn("%s: %s%s%s has ended: the link is down", n->name, n->backend->ops->kind, *n->backend->name ? " " : "",
             n->backend->name);
    for (unsigned int i = 0; i < pair_count(n); i++) {
        io_thread_remove(&n->pairs[i].source);
        n->pairs[i].tx_blocked = false;
        /* What waited to be sent is dropped, or the driver would wait for it. */
        virtio_kick_queue(&n->v, vnet_tx_queue(&n->pairs[i]));
    }
    update_link(n);
}

void vnet_set_link(struct device *dev, bool up)
{
    struct vnet *n = of_device(dev);

    pthread_mutex_lock(&dev->lock);
    if (n->link_wanted != up) {
        n->link_wanted = up;
        update_link(n);
    }
    pthread_mutex_unlock(&dev->lock);
}

/* -- the control queue -------------------------------------------------------- */

/* Frames are to come in on so many pairs. */
static bool use_pairs(struct vnet *n, unsigned int count)
{
    int r = n->backend->ops->set_pairs ? n->backend->ops->set_pairs(n->backend, count) : 0;

    if (r < 0) {
        log_warn_limited("%s: %u queues of %s cannot be used: %s", n->name, count, n->backend->name, strerrordesc_np(-r));
        return false;
    }
    n->used_pairs = count;
    for (unsigned int i = 0; i < pair_count(n); i++) {
        vnet_pair_watch(&n->pairs[i]);
        if (i < count && n->v.queues[2 * i].s.ready)
            virtio_kick_queue(&n->v, vnet_rx_queue(&n->pairs[i]));
    }
    return true;
}

static bool set_pairs(struct vnet *n, const struct virtq_chain *c)
{
    uint8_t data[2];
    unsigned int count;

    if (!virtio_has(&n->v, VIRTIO_NET_F_MQ) || c->readable_bytes != CONTROL_HEADER + sizeof(data))
        return false;
    virtq_chain_read(c, CONTROL_HEADER, data, sizeof(data));
    count = le16_get(data);
    return count >= 1 && count <= pair_count(n) && use_pairs(n, count);
}

static bool control(struct vnet *n, const struct virtq_chain *c)
{
    struct virtio_net_ctrl_hdr h;

    virtq_chain_read(c, 0, &h, sizeof(h));
    if (h.class == VIRTIO_NET_CTRL_MQ && h.cmd == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
        return set_pairs(n, c);
    if (h.class != VIRTIO_NET_CTRL_ANNOUNCE || h.cmd != VIRTIO_NET_CTRL_ANNOUNCE_ACK ||
        !virtio_has(&n->v, VIRTIO_NET_F_GUEST_ANNOUNCE))
        return false;
    set_status(n, status_of(n) & (uint16_t)~VIRTIO_NET_S_ANNOUNCE);
    return true;
}

static void run_control(struct vnet *n, struct virtq *q)
{
    for (unsigned int done = 0; virtq_has_chain(q); done++) {
        struct virtq_chain c = {.iov = n->iov, .capacity = ARRAY_SIZE(n->iov)};
        uint8_t ack;

        if (done == CONTROL_TURN) {
            virtio_kick_queue(&n->v, q);
            break;
        }
        if (!virtq_pop(q, &c))
            break;
        if (c.readable_bytes < CONTROL_HEADER || c.writable_bytes < sizeof(ack)) {
            virtio_misuse(&n->v, "queue %u: chain %u of %u readable and %u writable bytes is no command", q->index, c.head,
                          c.readable_bytes, c.writable_bytes);
            break;
        }
        ack = control(n, &c) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
        virtq_chain_write(q, &c, 0, &ack, sizeof(ack));
        virtq_push(q, c.head, sizeof(ack));
    }
    virtq_flush(q);
}

/* -- callbacks of the core ---------------------------------------------------- */

static void vnet_run(struct virtio_dev *v, struct virtq *q)
{
    struct vnet *n = to_net(v);
    unsigned int pairs = virtio_has(v, VIRTIO_NET_F_MQ) ? pair_count(n) : 1;

    if (q->index < 2 * pairs) {
        struct vnet_pair *p = &n->pairs[q->index / 2];

        if (q->index % 2 == 0)
            vnet_receive(p);
        else
            vnet_transmit(p);
    } else if (q->index == 2 * pairs && virtio_has(v, VIRTIO_NET_F_CTRL_VQ)) {
        run_control(n, q);
    }
}

/* A guest that does not announce itself is announced: what switches learn a new place from (reverse ARP, RFC 903). */
static void announce_for_guest(struct vnet *n)
{
    const uint8_t *mac = n->v.config;
    uint8_t frame[NET_HEADER + 60] = {0}, *ethernet = frame + NET_HEADER;
    const struct iovec iov = {.iov_base = frame, .iov_len = sizeof(frame)};
    static const uint8_t head[] = {0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3};

    memset(ethernet, 0xff, NET_MAC_LEN);
    memcpy(ethernet + 6, mac, NET_MAC_LEN);
    memcpy(ethernet + 12, head, sizeof(head));
    memcpy(ethernet + 22, mac, NET_MAC_LEN);
    memcpy(ethernet + 32, mac, NET_MAC_LEN);
    if (!n->lost && n->link_wanted && n->backend->ops->send(n->backend, 0, &iov, 1) < 0)
        log_debug("%s: not announced", n->name);
}

static void announce(struct vnet *n)
{
    n->announce = false;
    if (virtio_has(&n->v, VIRTIO_NET_F_GUEST_ANNOUNCE) && virtio_has(&n->v, VIRTIO_NET_F_CTRL_VQ))
        set_status(n, status_of(n) | VIRTIO_NET_S_ANNOUNCE);
    else
        announce_for_guest(n);
}

static void vnet_start(struct virtio_dev *v)
{
    struct vnet *n = to_net(v);
    int r = 0;

    if (n->backend->ops->set_offloads && !n->lost)
        r = n->backend->ops->set_offloads(n->backend, v->regs.driver_features);
    if (r < 0)
        log_warn_limited("%s: %s does not take the guest's offloads: %s", n->name, n->backend->name, strerrordesc_np(-r));
    if (!n->lost)
        use_pairs(n, n->used_pairs);
    for (unsigned int i = 0; i < pair_count(n); i++)
        vnet_pair_start(&n->pairs[i]);
    if (n->announce)
        announce(n);
}

static void vnet_stop(struct virtio_dev *v)
{
    struct vnet *n = to_net(v);

    /* The core says live until this returns; the pairs must not watch any more. */
    v->live = false;
    for (unsigned int i = 0; i < pair_count(n); i++)
        vnet_pair_stop(&n->pairs[i]);
}

/* The link alone, without telling anybody: an announcement that was not acknowledged is due anew, or no more. */
static void put_status(struct vnet *n)
{
    le16_put(n->v.config + STATUS_AT, vnet_link_up(n) ? VIRTIO_NET_S_LINK_UP : 0);
}

static void vnet_reset(struct virtio_dev *v)
{
    struct vnet *n = to_net(v);

    n->used_pairs = 1;
    n->announce = false;
    put_status(n);
}

/* -- state -------------------------------------------------------------------- */

static void vnet_save(struct virtio_dev *v, struct state_writer *w)
{
    struct vnet *n = to_net(v);

    state_put_bytes(w, "mac", v->config, NET_MAC_LEN);
    state_put_u64(w, "mtu", n->mtu);
    state_put_u64(w, "used-pairs", n->used_pairs);
    state_put_u64(w, "link", n->link_wanted);
}

static int check_restored(struct vnet *n, uint64_t mtu, uint64_t used, uint64_t link, struct state_reader *r,
                          const struct state_section *s)
{
    if (mtu != n->mtu)
        return state_bad(r, s, "field mtu: %llu, here it is %u", (unsigned long long)mtu, n->mtu);
    if (used < 1 || used > pair_count(n))
        return state_bad(r, s, "field used-pairs: %llu of %u", (unsigned long long)used, pair_count(n));
    if (link > 1)
        return state_bad(r, s, "field link: %llu is neither 0 nor 1", (unsigned long long)link);
    return state_check_all_read(r, s);
}

static int vnet_restore(struct virtio_dev *v, struct state_reader *r, const struct state_section *s)
{
    struct vnet *n = to_net(v);
    uint8_t mac[NET_MAC_LEN];
    uint64_t mtu, used, link;
    int err = state_get_bytes(r, s, "mac", mac, sizeof(mac));

    if (err == 0)
        err = state_get_u64(r, s, "mtu", &mtu);
    if (err == 0)
        err = state_get_u64(r, s, "used-pairs", &used);
    if (err == 0)
        err = state_get_u64(r, s, "link", &link);
    if (err == 0)
        err = check_restored(n, mtu, used, link, r, s);
    if (err < 0)
        return err;
    memcpy(v->config, mac, sizeof(mac));
    n->used_pairs = (unsigned int)used;
    n->link_wanted = link;
    n->announce = true;
    put_status(n);
    if (n->backend->ops->set_carrier && !n->lost)
        n->backend->ops->set_carrier(n->backend, vnet_link_up(n));
    return 0;
}

static void vnet_compare(struct virtio_dev *v, const struct device_comparison *c)
{
    unsigned int here = to_net(v)->mtu;
    uint64_t mtu;

    if (device_compared_u64(c, "mtu", &mtu) && mtu != here)
        device_differs(c, "mtu %llu, here %u", (unsigned long long)mtu, here);
}

/* -- making it ---------------------------------------------------------------- */

static void vnet_detach(struct virtio_dev *v)
{
    struct vnet *n = to_net(v);

    for (unsigned int i = 0; i < pair_count(n); i++)
        io_thread_remove(&n->pairs[i].source);
}

static void vnet_destroy(struct virtio_dev *v)
{
    struct vnet *n = to_net(v);

    for (unsigned int i = 0; n->pairs && i < pair_count(n); i++)
        free(n->pairs[i].bounce);
    free(n->pairs);
    free(n);
}

static const struct virtio_ops vnet_ops = {
    .id = VIRTIO_ID_NET,
    .run = vnet_run,
    .start = vnet_start,
    .stop = vnet_stop,
    .reset = vnet_reset,
    .save = vnet_save,
    .restore = vnet_restore,
    .compare = vnet_compare,
    .detach = vnet_detach,
    .destroy = vnet_destroy,
};

static const struct device_ops vnet_device_ops = VIRTIO_DEVICE_OPS("virtio-net", 1);

static uint64_t features_of(const struct vnet_config *c)
{
    uint64_t features = FEATURE(VIRTIO_NET_F_MAC) | FEATURE(VIRTIO_NET_F_STATUS) | FEATURE(VIRTIO_NET_F_MRG_RXBUF) |
                        FEATURE(VIRTIO_NET_F_CTRL_VQ) | FEATURE(VIRTIO_NET_F_GUEST_ANNOUNCE);

    features |= c->backend->offloads ? OFFLOADS : 0;
    features |= c->backend->pairs > 1 ? FEATURE(VIRTIO_NET_F_MQ) : 0;
    return c->mtu ? features | FEATURE(VIRTIO_NET_F_MTU) : features;
}

static void fill_config(struct vnet *n, const struct vnet_config *c)
{
    uint8_t *config = n->v.config;

    n->v.config_len = CONFIG_LEN;
    memcpy(config, c->mac, NET_MAC_LEN);
    le16_put(config + STATUS_AT, VIRTIO_NET_S_LINK_UP);
    le16_put(config + offsetof(struct virtio_net_config, max_virtqueue_pairs), (uint16_t)pair_count(n));
    le16_put(config + offsetof(struct virtio_net_config, mtu), (uint16_t)c->mtu);
}

static int make_pairs(struct vnet *n)
{
    n->pairs = calloc(pair_count(n), sizeof(*n->pairs));
    if (!n->pairs)
        return -ENOMEM;
    for (unsigned int i = 0; i < pair_count(n); i++) {
        struct vnet_pair *p = &n->pairs[i];

        p->n = n;
        p->index = i;
        p->source = (struct io_source){.fd = n->backend->fds[i], .ready = vnet_pair_ready, .opaque = p};
        p->bounce = malloc(NET_FRAME_MAX);
        if (!p->bounce)
            return -ENOMEM;
    }
    return 0;
}

static int watch(struct vnet *n)
{
    int r = 0;

    /* For nothing yet, but that the backend ends. */
    for (unsigned int i = 0; n->v.env.io && i < pair_count(n) && r == 0; i++)
        r = io_thread_add(n->v.env.io, &n->pairs[i].source, 0);
    return r;
}

int vnet_create(const struct device_env *env, const struct vnet_config *c, unsigned int index, unsigned int slot,
                struct device **ret)
{
    struct vnet *n = calloc(1, sizeof(*n));
    int r;

    if (!n)
        return -ENOMEM;
    n->backend = c->backend;
    n->mtu = c->mtu;
    n->link_wanted = true;
    n->used_pairs = 1;
    snprintf(n->name, sizeof(n->name), "net%u", index);
    r = make_pairs(n);
    if (r == 0)
        r = virtio_init(&n->v, &vnet_device_ops, &vnet_ops, index, env, "vnet", features_of(c), 2 * pair_count(n) + 1,
                        VNET_QUEUE_SIZE);
    if (r < 0) {
        vnet_destroy(&n->v);
        return r;
    }
    fill_config(n, c);
    r = virtio_mmio_attach(&n->v, slot);
    /* Last: from here on the I/O thread may say that the backend has ended. */
    if (r == 0)
        r = watch(n);
    if (r < 0) {
        device_destroy(&n->v.dev);
        return r;
    }
    *ret = &n->v.dev;
    return 0;
}

/* -- what others ask ---------------------------------------------------------- */

void vnet_info(struct device *dev, struct vnet_info *ret)
{
    struct vnet *n = of_device(dev);

    pthread_mutex_lock(&dev->lock);
    *ret = (struct vnet_info){
        .name = n->name,
        .backend_kind = n->backend->ops->kind,
        .backend_name = n->backend->name,
        .queues = pair_count(n),
        .queues_used = n->used_pairs,
        .mtu = n->mtu,
        .link_wanted = n->link_wanted,
        .link = vnet_link_up(n),
        .needs_reset = n->v.regs.status & VIRTIO_CONFIG_S_NEEDS_RESET,
        .features = n->v.regs.driver_features,
        .counters = n->counters,
    };
    memcpy(ret->mac, n->v.config, NET_MAC_LEN);
    ret->counters.kicks = n->v.counters.kicks;
    ret->counters.interrupts = n->v.counters.interrupts;
    ret->counters.misuses = n->v.counters.misuses;
    pthread_mutex_unlock(&dev->lock);
}
