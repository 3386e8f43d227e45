/*
 * Where a network device's frames go to and come from: a tap, or a stream socket to a user-mode network (passt). Backends
 * are opened while the process still has its privileges; the device works on what is open then, without ever opening more.
 *
 * A frame here is what virtio-net has in its buffers: a header of NET_HEADER bytes (struct virtio_net_hdr_v1), then Ethernet.
 *
 * Threads: open and close on the main thread, before and after the device; the rest by one thread at a time (the device
 * calls it under its lock). Descriptors are non-blocking.
 */
#ifndef UMBRA_DEVICE_NET_BACKEND_H
#define UMBRA_DEVICE_NET_BACKEND_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define NET_MAX_PAIRS 16u
#define NET_HEADER 12u
#define NET_MAC_LEN 6u
/* A frame with its header; the longest there is carries an IP packet of 65535 bytes that the host or the guest cuts up. */
#define NET_FRAME_MAX (NET_HEADER + 14u + 4u + 65535u)

struct net_backend;

struct net_backend_ops {
    const char *kind; /* "tap" */
    /*
     * Take one frame into iov, which has room for a header at least: the number of bytes. -EAGAIN: there is none now, poll tells
     * of the next; -EPIPE: there never will be. What finds no room is lost.
     */
    ssize_t (*receive)(struct net_backend *b, unsigned int pair, const struct iovec *iov, int iovcnt);
    /* receive has something that poll does not tell of. NULL: never. */
    bool (*pending)(const struct net_backend *b);
    /*
     * Send one frame: 0; -EAGAIN: not now, poll tells when; -EPIPE: never more; any other error: this frame was refused. At most
     * NET_FRAME_MAX bytes, and no fewer than a header.
     */
    int (*send)(struct net_backend *b, unsigned int pair, const struct iovec *iov, int iovcnt);
    /* Send what is left of a frame that was taken: 0, -EAGAIN or -EPIPE. NULL: nothing ever is. */
    int (*flush)(struct net_backend *b);
    /* What the driver takes, as bits of virtio-net's features. 0 or -errno. NULL: no offloads. */
    int (*set_offloads)(struct net_backend *b, uint64_t features);
    /* Frames are to come in on the first `pairs` pairs only. 0 or -errno. NULL where there is one. */
    int (*set_pairs)(struct net_backend *b, unsigned int pairs);
    /* The host's side shows whether the link is up. NULL where it cannot. */
    void (*set_carrier)(struct net_backend *b, bool up);
    void (*close)(struct net_backend *b);
};

struct net_backend {
    const struct net_backend_ops *ops;
    char name[108]; /* the interface, or the socket's path; "" for none */
    bool offloads;  /* frames may be such that the other side computes checksums and cuts them up */
    unsigned int pairs;
    int fds[NET_MAX_PAIRS]; /* to poll, one a pair */
};

enum net_kind {
    NET_TAP,
    NET_FD,
    NET_PASST, /* one that runs */
    NET_USER,  /* passt, started by us */
};

struct net_config {
    enum net_kind kind;
    char *ifname;        /* NET_TAP: NULL lets the kernel choose */
    char *socket;        /* NET_PASST */
    char *tcp, *udp;     /* NET_USER: ports to forward, as passt takes them; or NULL */
    unsigned int queues; /* pairs, 1 to NET_MAX_PAIRS; 0: 1 */
    int fds[NET_MAX_PAIRS]; /* NET_FD: `queues` of them */
    bool set_mac;
    uint8_t mac[NET_MAC_LEN];
    unsigned int mtu; /* that the guest is told; 0: nothing */
};

/* Open what the configuration names. 0 or -errno, logged. */
int net_backend_open(const struct net_config *config, struct net_backend **ret);
/* NULL is fine. */
void net_backend_close(struct net_backend *b);

/* An address of the locally administered range 52:54:00, the same for the same name and index. */
void net_default_mac(const char *name, unsigned int index, uint8_t ret[NET_MAC_LEN]);

/* -- each kind's own -- */

int net_tap_open(const struct net_config *config, struct net_backend **ret);
/* Take over a stream socket that speaks passt's framing. 0 or -errno; fd is the caller's on failure. */
int net_stream_new(int fd, const char *name, struct net_backend **ret);
int net_passt_connect(const struct net_config *config, struct net_backend **ret);
int net_passt_start(const struct net_config *config, struct net_backend **ret);

#endif
