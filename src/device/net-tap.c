/*
 * A tap, made here, there already, or passed open. The kernel reads and writes virtio-net's own header in front of each frame
 * (IFF_VNET_HDR), so frames go between it and guest memory as they are, checksums and segmentation left to whoever does
 * them best. With several queues each pair has a descriptor; those that are not used are detached, or the kernel would
 * give them frames.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"
#include "device/net-backend.h"

#define TUN_PATH "/dev/net/tun"

struct tap {
    struct net_backend b;
    unsigned int attached; /* queues that are, from the first on */
};

static struct tap *to_tap(struct net_backend *b)
{
    return container_of(b, struct tap, b);
}

/* EBADFD: the interface was deleted. */
static int tap_error(void)
{
    return errno == EBADFD || errno == ENODEV || errno == ENXIO ? -EPIPE : -errno;
}

static ssize_t tap_receive(struct net_backend *b, unsigned int pair, const struct iovec *iov, int iovcnt)
{
    ssize_t n;

    do
        n = readv(b->fds[pair], iov, iovcnt);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return tap_error();
    return n == 0 ? -EPIPE : n;
}

static int tap_send(struct net_backend *b, unsigned int pair, const struct iovec *iov, int iovcnt)
{
    ssize_t n;

    do
        n = writev(b->fds[pair], iov, iovcnt);
    while (n < 0 && errno == EINTR);
    return n < 0 ? tap_error() : 0;
}

static int tap_set_offloads(struct net_backend *b, uint64_t features)
{
    static const struct {
        unsigned int feature, flag;
    } flags[] = {
        {VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4}, {VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6}, {VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN}};
    unsigned int offload = 0;

    /* All others stand on this one. */
    if (features >> VIRTIO_NET_F_GUEST_CSUM & 1) {
        offload = TUN_F_CSUM;
        for (size_t i = 0; i < ARRAY_SIZE(flags); i++)
            offload |= (features >> flags[i].feature & 1) ? flags[i].flag : 0;
        if (!(offload & (TUN_F_TSO4 | TUN_F_TSO6)))
            offload &= ~(unsigned int)TUN_F_TSO_ECN;
    }
    /* It is the interface's, not the queue's. */
    return ioctl(b->fds[0], TUNSETOFFLOAD, (unsigned long)offload) < 0 ? -errno : 0;
}

static int tap_set_pairs(struct net_backend *b, unsigned int pairs)
{
    struct tap *t = to_tap(b);

    while (t->attached != pairs) {
        bool more = t->attached < pairs;
        struct ifreq ifr = {.ifr_flags = more ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

        if (ioctl(b->fds[more ? t->attached : t->attached - 1], TUNSETQUEUE, &ifr) < 0)
            return -errno;
        t->attached = more ? t->attached + 1 : t->attached - 1;
    }
    return 0;
}

static void tap_set_carrier(struct net_backend *b, bool up)
{
    int carrier = up;

    /* It only shows: frames are dropped by the device. A kernel without it (or macvtap) shows the link up. */
    if (ioctl(b->fds[0], TUNSETCARRIER, &carrier) < 0)
        log_debug("tap %s: carrier: %s", b->name, strerrordesc_np(errno));
}

static void tap_close(struct net_backend *b)
{
    for (unsigned int i = 0; i < b->pairs; i++)
        fd_close(b->fds[i]);
    free(to_tap(b));
}

static const struct net_backend_ops tap_ops = {
    .kind = "tap",
    .receive = tap_receive,
    .send = tap_send,
    .set_offloads = tap_set_offloads,
    .set_carrier = tap_set_carrier,
    .close = tap_close,
};

static const struct net_backend_ops multi_tap_ops = {
    .kind = "tap",
    .receive = tap_receive,
    .send = tap_send,
    .set_offloads = tap_set_offloads,
    .set_pairs = tap_set_pairs,
    .set_carrier = tap_set_carrier,
    .close = tap_close,
};

/* -- opening ------------------------------------------------------------------ */

/* Attach a queue of the interface `name` ("": one that the kernel names, put into name). */
static int attach(char name[IFNAMSIZ], bool multi_queue, int *ret)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    _cleanup_close_ int fd = open(TUN_PATH, O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0) {
        log_err_errno(-errno, "%s", TUN_PATH);
        return -errno;
    }
    if (multi_queue)
        ifr.ifr_flags |= IFF_MULTI_QUEUE;
    memcpy(ifr.ifr_name, name, IFNAMSIZ);
    if (ioctl(fd, TUNSETIFF, &ifr) < 0)
        return -errno;
    memcpy(name, ifr.ifr_name, IFNAMSIZ);
    *ret = take_fd(fd);
    return 0;
}

/* Whoever may make an interface may bring it up; one that was there is its maker's affair. */
static void bring_up(const char *name)
{
    _cleanup_close_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq ifr = {0};

    memcpy(ifr.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &ifr) < 0)
        return;
    ifr.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &ifr) < 0)
        log_debug("tap %s: cannot be brought up: %s", name, strerrordesc_np(errno));
}

static int open_interface(struct tap *t, const struct net_config *c)
{
    char name[IFNAMSIZ] = "";
    bool multi_queue = c->queues > 1;
    int r;

    if (c->ifname)
        memcpy(name, c->ifname, strnlen(c->ifname, IFNAMSIZ - 1));
    while (t->b.pairs < MAX(c->queues, 1u)) {
        r = attach(name, multi_queue, &t->b.fds[t->b.pairs]);
        if (r == -EINVAL && !multi_queue && t->b.pairs == 0) {
            /* One that was made for several queues is opened as such, whatever is wanted of it. */
            multi_queue = true;
            continue;
        }
        if (r < 0) {
            log_err_errno(r, "tap %s: queue %u cannot be opened", *name ? name : "(new)", t->b.pairs);
            return r;
        }
        t->b.pairs++;
    }
    snprintf(t->b.name, sizeof(t->b.name), "%s", name);
    bring_up(name);
    return 0;
}

/* A descriptor that was passed must be a queue of a tap with virtio-net's header. */
static int adopt(struct tap *t, int fd)
{
    struct ifreq ifr = {0};
    int flags;

    if (ioctl(fd, TUNGETIFF, &ifr) < 0 || !(ifr.ifr_flags & IFF_TAP)) {
        log_err("net: descriptor %d is no tap", fd);
        return -EINVAL;
    }
    if (!(ifr.ifr_flags & IFF_VNET_HDR)) {
        log_err("net: descriptor %d: tap %.*s was opened without IFF_VNET_HDR", fd, IFNAMSIZ, ifr.ifr_name);
        return -EINVAL;
    }
    if (t->b.pairs > 0 && strncmp(t->b.name, ifr.ifr_name, IFNAMSIZ) != 0) {
        log_err("net: descriptor %d belongs to %.*s, others to %s", fd, IFNAMSIZ, ifr.ifr_name, t->b.name);
        return -EINVAL;
    }
    flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    snprintf(t->b.name, sizeof(t->b.name), "%.*s", IFNAMSIZ, ifr.ifr_name);
    t->b.fds[t->b.pairs++] = fd;
    return 0;
}

static int set_header_size(struct tap *t)
{
    int size = NET_HEADER;

    for (unsigned int i = 0; i < t->b.pairs; i++)
        if (ioctl(t->b.fds[i], TUNSETVNETHDRSZ, &size) < 0) {
            log_err_errno(-errno, "tap %s: header of %d bytes", t->b.name, size);
            return -errno;
        }
    return 0;
}

int net_tap_open(const struct net_config *c, struct net_backend **ret)
{
    struct tap *t = calloc(1, sizeof(*t));
    int r = 0;

    if (!t)
        return -ENOMEM;
    t->b.offloads = true;
    if (c->kind == NET_TAP)
        r = open_interface(t, c);
    else
        for (unsigned int i = 0; i < c->queues && r == 0; i++)
            r = adopt(t, c->fds[i]);
    t->attached = t->b.pairs;
    t->b.ops = t->b.pairs > 1 ? &multi_tap_ops : &tap_ops;
    if (r == 0)
        r = set_header_size(t);
    if (r < 0) {
        tap_close(&t->b);
        return r;
    }
    *ret = &t->b;
    return 0;
}
