/* --net: what is behind the card, then words, with commas between them. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/size.h"
#include "daemon/configuration-internal.h"
#include "device/virtio/net.h"

static int set_mac(struct net_config *net, const char *value, char *error)
{
    uint8_t mac[NET_MAC_LEN];
    const char *at = value;

    for (unsigned int i = 0; i < NET_MAC_LEN; i++) {
        static const char digits[] = "0123456789abcdef0123456789ABCDEF";
        const char *high = *at ? strchr(digits, at[0]) : NULL, *low = high && at[1] ? strchr(digits, at[1]) : NULL;

        if (!low || at[2] != (i == NET_MAC_LEN - 1 ? '\0' : ':'))
            return config_fail(error, "mac: \"%.40s\" is not written like 52:54:00:12:34:56", value);
        mac[i] = (uint8_t)((high - digits) % 16 << 4 | (low - digits) % 16);
        at += 3;
    }
    if (mac[0] & 1)
        return config_fail(error, "mac: %s is a group's address", value);
    memcpy(net->mac, mac, sizeof(mac));
    net->set_mac = true;
    return 0;
}

static int set_number(const char *what, const char *value, unsigned int min, unsigned int max, unsigned int *to, char *error)
{
    uint64_t v;

    if (size_parse_u64(value, max, &v) < 0 || v < min)
        return config_fail(error, "%s: \"%.40s\" is not a number from %u to %u", what, value, min, max);
    *to = (unsigned int)v;
    return 0;
}

static int set_ifname(struct net_config *net, const char *value, char *error)
{
    size_t n = strlen(value);

    if (n == 0 || n >= IFNAMSIZ || strpbrk(value, "/ \t\n:%") || strcmp(value, ".") == 0 || strcmp(value, "..") == 0)
        return config_fail(error, "ifname: \"%.40s\" is no name of an interface (1 to %d bytes)", value, IFNAMSIZ - 1);
    return config_set_string(&net->ifname, value);
}

static int set_ports(char **to, const char *what, const char *value, char *error)
{
    if (!*value || strlen(value) > 200 || value[strspn(value, "0123456789abcdefghijklmnopqrstuvwxyz.:,/-~%[]")] != '\0')
        return config_fail(error, "%s: \"%.40s\" is no list of ports as passt takes it", what, value);
    return config_set_string(to, value);
}

/* N[:N...] */
static int set_fds(struct net_config *net, const char *value, char *error)
{
    char text[256];
    char *at = text, *one;

    if (snprintf(text, sizeof(text), "%s", value) >= (int)sizeof(text))
        return config_fail(error, "fd: more than %u descriptors", NET_MAX_PAIRS);
    net->kind = NET_FD;
    net->queues = 0;
    while ((one = strsep(&at, ":"))) {
        uint64_t fd;

        /* Those of stdin, stdout and stderr are umbrad's. */
        if (size_parse_u64(one, INT32_MAX, &fd) < 0 || fd < 3)
            return config_fail(error, "fd: \"%.40s\" is not a descriptor from 3 on", one);
        if (net->queues == NET_MAX_PAIRS)
            return config_fail(error, "fd: more than %u descriptors", NET_MAX_PAIRS);
        for (unsigned int i = 0; i < net->queues; i++)
            if (net->fds[i] == (int)fd)
                return config_fail(error, "fd: %d stands there twice", (int)fd);
        net->fds[net->queues++] = (int)fd;
    }
    return 0;
}

/* -- what goes with what ------------------------------------------------------ */

enum net_word { WORD_IFNAME, WORD_QUEUES, WORD_SOCKET, WORD_TCP, WORD_UDP, WORD_MAC, WORD_MTU, WORDS };

static const struct {
    const char *name;
    unsigned int kinds;
} words[WORDS] = {
    [WORD_IFNAME] = {"ifname=", 1u << NET_TAP},
    [WORD_QUEUES] = {"queues=", 1u << NET_TAP},
    [WORD_SOCKET] = {"socket=", 1u << NET_PASST},
    [WORD_TCP] = {"tcp=", 1u << NET_USER},
    [WORD_UDP] = {"udp=", 1u << NET_USER},
    [WORD_MAC] = {"mac=", ~0u},
    [WORD_MTU] = {"mtu=", ~0u},
};

static int set_word(struct net_config *net, enum net_word word, const char *value, char *error)
{
    switch (word) {
    case WORD_IFNAME:
        return set_ifname(net, value, error);
    case WORD_QUEUES:
        return set_number("queues", value, 1, NET_MAX_PAIRS, &net->queues, error);
    case WORD_SOCKET:
        return config_set_path(&net->socket, value, error);
    case WORD_TCP:
        return set_ports(&net->tcp, "tcp", value, error);
    case WORD_UDP:
        return set_ports(&net->udp, "udp", value, error);
    case WORD_MAC:
        return set_mac(net, value, error);
    case WORD_MTU:
        return set_number("mtu", value, VNET_MTU_MIN, VNET_MTU_MAX, &net->mtu, error);
    case WORDS:
        break;
    }
    return -EINVAL;
}

static int take_word(struct net_config *net, const char *word, char *error)
{
    static const char *const kinds[] = {[NET_TAP] = "tap", [NET_FD] = "fd", [NET_PASST] = "passt", [NET_USER] = "user"};

    for (unsigned int i = 0; i < WORDS; i++) {
        size_t n = strlen(words[i].name);

        if (strncmp(word, words[i].name, n) != 0)
            continue;
        if (!(words[i].kinds >> net->kind & 1))
            return config_fail(error, "%.*s does not go with %s", (int)n - 1, word, kinds[net->kind]);
        return set_word(net, (enum net_word)i, word + n, error);
    }
    return config_fail(error, "\"%.40s\" is none of ifname=, queues=, socket=, tcp=, udp=, mac=, mtu=", word);
}

static int set_kind(struct net_config *net, const char *word, char *error)
{
    static const char *const values[] = {"tap", "passt", "user", "fd=N[:N...]", NULL};
    static const enum net_kind kinds[] = {NET_TAP, NET_PASST, NET_USER};
    int i;

    if (strncmp(word, "fd=", 3) == 0)
        return set_fds(net, word + 3, error);
    i = config_choose(values, word, error);
    if (i < 0)
        return i;
    if (i >= (int)ARRAY_SIZE(kinds))
        return config_fail(error, "fd: wants descriptors, as in fd=5 or fd=5:6");
    net->kind = kinds[i];
    return 0;
}

int config_add_net(struct config *c, const char *value, char *error)
{
    _cleanup_free_ char *text = strdup(value);
    struct net_config *net;
    char *at = text, *word;
    int r;

    if (!text)
        return -ENOMEM;
    while (c->net_inherited > 0) {
        c->net_inherited--;
        config_clear_net(&c->nets[--c->net_count]);
    }
    if (c->net_count == CONFIG_MAX_NETS)
        return config_fail(error, "more than %d network devices", CONFIG_MAX_NETS);
    /* Counted first, so that config_clear frees what a failure leaves. */
    net = &c->nets[c->net_count++];
    r = set_kind(net, config_next_word(&at), error);
    while (r == 0 && (word = config_next_word(&at)))
        r = take_word(net, word, error);
    if (r == 0 && net->kind == NET_PASST && !net->socket)
        r = config_fail(error, "passt wants socket=PATH (user starts one)");
    return r;
}

void config_clear_net(struct net_config *net)
{
    free(net->ifname);
    free(net->socket);
    free(net->tcp);
    free(net->udp);
    *net = (struct net_config){0};
}
