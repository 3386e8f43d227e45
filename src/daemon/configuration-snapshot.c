/* The part of a configuration that the guest sees: into a snapshot and back. */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "daemon/configuration-internal.h"
#include "migrate/snapshot-open.h"

/* Keys that a snapshot may set. Where things go on this host (console, sockets, what is logged) is not its business. */
static const char *const guest_keys[] = {"kernel", "initrd", "cmdline", "memory", "cpus", "cpu-off", "disk", "net", "test-device",
                                         "rng", "balloon", "virtio-console"};

static void add_path(json_t *o, const char *key, const char *path)
{
    _cleanup_free_ char *real = path ? realpath(path, NULL) : NULL;

    if (path)
        json_add_str(o, key, real ? real : path);
}

/* A comma in a path or serial number stands twice in the value of an option. */
static void append_word(char *to, size_t size, const char *prefix, const char *word)
{
    size_t at = strlen(to);

    at += (size_t)snprintf(to + at, size - at, "%s", prefix);
    for (; *word && at + 3 < size; word++) {
        to[at++] = *word;
        if (*word == ',')
            to[at++] = ',';
    }
    to[at] = '\0';
}

static json_t *disk_value(const struct vblk_config *disk)
{
    static const char *const aio[] = {[DISK_AIO_AUTO] = "", [DISK_AIO_URING] = ",aio=io_uring",
                                      [DISK_AIO_THREADS] = ",aio=threads"};
    _cleanup_free_ char *real = realpath(disk->path, NULL);
    char text[2 * PATH_MAX + 256] = "";
    size_t at;

    append_word(text, sizeof(text), "", real ? real : disk->path);
    if (disk->serial)
        append_word(text, sizeof(text), ",serial=", disk->serial);
    at = strlen(text);
    snprintf(text + at, sizeof(text) - at, "%s%s%s", disk->read_only ? ",ro" : "", disk->direct ? ",direct" : "",
             aio[disk->aio]);
    at = strlen(text);
    if (disk->queues)
        snprintf(text + at, sizeof(text) - at, ",queues=%u", disk->queues);
    return json_object_new_string(text);
}

/* What another process can open as well. A descriptor is none of it: who restores the guest names its network anew. */
static json_t *net_value(const struct net_config *net)
{
    static const char *const kinds[] = {[NET_TAP] = "tap", [NET_PASST] = "passt", [NET_USER] = "user"};
    char text[2 * PATH_MAX + 1024] = "";
    size_t at;

    append_word(text, sizeof(text), "", kinds[net->kind]);
    if (net->ifname)
        append_word(text, sizeof(text), ",ifname=", net->ifname);
    if (net->socket)
        append_word(text, sizeof(text), ",socket=", net->socket);
    if (net->tcp)
        append_word(text, sizeof(text), ",tcp=", net->tcp);
    if (net->udp)
        append_word(text, sizeof(text), ",udp=", net->udp);
    at = strlen(text);
    if (net->queues)
        at += (size_t)snprintf(text + at, sizeof(text) - at, ",queues=%u", net->queues);
    if (net->mtu)
        at += (size_t)snprintf(text + at, sizeof(text) - at, ",mtu=%u", net->mtu);
    if (net->set_mac)
        snprintf(text + at, sizeof(text) - at, ",mac=%02x:%02x:%02x:%02x:%02x:%02x", net->mac[0], net->mac[1], net->mac[2],
                 net->mac[3], net->mac[4], net->mac[5]);
    return json_object_new_string(text);
}

static void add_list(json_t *o, const char *key, json_t *list)
{
    if (json_object_array_length(list) > 0)
        json_add(o, key, list);
    else
        json_object_put(list);
}

static void add_devices(json_t *o, const struct config *c)
{
    json_t *disks = json_object_new_array(), *nets = json_object_new_array();

    for (unsigned int i = 0; i < c->disk_count; i++)
        json_push(disks, disk_value(&c->disks[i]));
    for (unsigned int i = 0; i < c->net_count; i++)
        if (c->nets[i].kind != NET_FD)
            json_push(nets, net_value(&c->nets[i]));
    add_list(o, "disk", disks);
    add_list(o, "net", nets);
}

static void add_cpu_off(json_t *o, cpuid_features off)
{
    char list[512] = "";
    size_t len = 0;
    const char *name;

    for (unsigned int i = 0; (name = cpuid_feature_name(i)) && len < sizeof(list); i++)
        if (off & cpuid_feature(name))
            len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", len ? "," : "", name);
    if (len > 0)
        json_add_str(o, "cpu-off", list);
}

/* That there is a second console, not where it goes. */
static void add_small_devices(json_t *o, const struct config *c)
{
    char rng[64], balloon[64];

    snprintf(rng, sizeof(rng), c->rng.on && c->rng.rate ? "on,rate=%llu" : c->rng.on ? "on" : "off",
             (unsigned long long)c->rng.rate);
    snprintf(balloon, sizeof(balloon), "%s%s%s", c->balloon.on ? "on" : "off",
             c->balloon.reporting ? ",free-page-reporting" : "", c->balloon.deflate_on_oom ? ",deflate-on-oom" : "");
    json_add_str(o, "rng", rng);
    json_add_str(o, "balloon", balloon);
    json_add_str(o, "virtio-console", c->virtio_console ? "socket" : "off");
}

json_t *config_describe(const struct config *c)
{
    json_t *o = json_object_new_object();

    add_path(o, "kernel", c->kernel);
    add_path(o, "initrd", c->initrd);
    if (c->cmdline)
        json_add_str(o, "cmdline", c->cmdline);
    json_add_u64(o, "memory", c->memory);
    json_add_u64(o, "cpus", c->cpus);
    add_cpu_off(o, c->cpu_off);
    json_add_bool(o, "test-device", c->test_device);
    add_small_devices(o, c);
    add_devices(o, c);
    return o;
}

/* Of the second console only whether there is one. A list of values would be taken one by one. */
static int check_console(json_t *value, const char *dir, char *error)
{
    int r = 0;

    if (!json_object_is_type(value, json_type_string))
        r = config_fail(error, "%.150s/meta.json: config: virtio-console: wants a string", dir);
    else if (strncmp(json_object_get_string(value), "file:", 5) == 0)
        r = config_fail(error, "%.150s/meta.json: config: virtio-console: a snapshot does not say where output goes", dir);
    return r < 0 ? -EBADMSG : 0;
}

static int check_keys(const json_t *config, const char *dir, char *error)
{
    json_object_object_foreach(config, key, value)
    {
        size_t i = 0;

        while (i < ARRAY_SIZE(guest_keys) && strcmp(guest_keys[i], key) != 0)
            i++;
        if (i == ARRAY_SIZE(guest_keys)) {
            config_fail(error, "%.150s/meta.json: config: \"%.40s\" is nothing that a snapshot may set", dir, key);
            return -EBADMSG;
        }
        if (strcmp(key, "virtio-console") == 0 && check_console(value, dir, error) < 0)
            return -EBADMSG;
    }
    return 0;
}

int config_read_snapshot(struct config *c, char *error)
{
    char why[SNAPSHOT_ERROR_MAX], file[PATH_MAX];
    struct snapshot_meta meta;
    const char *text;
    int r = snapshot_read_meta(c->restore, &meta, why);

    if (r < 0) {
        config_fail(error, "%.300s", why);
        return r == -EINVAL ? -EBADMSG : r;
    }
    r = check_keys(meta.config, c->restore, error);
    text = json_object_to_json_string(meta.config);
    snprintf(file, sizeof(file), "%.100s/meta.json", c->restore);
    if (r == 0)
        r = text ? config_parse_json(c, file, text, strlen(text), error) : -ENOMEM;
    c->disk_inherited = c->disk_count;
    c->net_inherited = c->net_count;
    snapshot_meta_clear(&meta);
    return r == -EINVAL ? -EBADMSG : r;
}
