/* Options that describe devices: a value is what stands behind it, then words, with commas between them. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/size.h"
#include "daemon/configuration-internal.h"

static int set_disk_aio(struct vblk_config *disk, const char *value, char *error)
{
    static const char *const values[] = {
        [DISK_AIO_AUTO] = "auto", [DISK_AIO_URING] = "io_uring", [DISK_AIO_THREADS] = "threads", NULL};
    int i = config_choose(values, value, error);

    if (i < 0)
        return i;
    disk->aio = (enum disk_aio)i;
    return 0;
}

static int set_disk_serial(struct vblk_config *disk, const char *value, char *error)
{
    size_t n = strlen(value);

    for (size_t i = 0; i < n; i++)
        if (value[i] <= ' ' || value[i] > '~')
            return config_fail(error, "serial: wants printable ASCII without blanks");
    if (n == 0 || n > VBLK_SERIAL_MAX)
        return config_fail(error, "serial: %zu bytes are not within 1 and %u", n, VBLK_SERIAL_MAX);
    return config_set_string(&disk->serial, value);
}

static int set_disk_queues(struct vblk_config *disk, const char *value, char *error)
{
    uint64_t v;

    if (size_parse_u64(value, VBLK_MAX_QUEUES, &v) < 0 || v == 0)
        return config_fail(error, "queues: \"%.40s\" is not a number from 1 to %u", value, VBLK_MAX_QUEUES);
    disk->queues = (unsigned int)v;
    return 0;
}

static int set_disk_word(struct vblk_config *disk, const char *word, char *error)
{
    if (strcmp(word, "ro") == 0)
        disk->read_only = true;
    else if (strcmp(word, "direct") == 0)
        disk->direct = true;
    else if (strncmp(word, "aio=", 4) == 0)
        return set_disk_aio(disk, word + 4, error);
    else if (strncmp(word, "serial=", 7) == 0)
        return set_disk_serial(disk, word + 7, error);
    else if (strncmp(word, "queues=", 7) == 0)
        return set_disk_queues(disk, word + 7, error);
    else
        return config_fail(error, "\"%.40s\" is none of ro, direct, aio=HOW, serial=TEXT, queues=N", word);
    return 0;
}

char *config_next_word(char **at)
{
    char *word = *at, *to = word;

    if (!word)
        return NULL;
    for (char *from = word;; from++) {
        if (*from == ',' && from[1] == ',')
            from++;
        else if (*from == ',' || *from == '\0') {
            *at = *from ? from + 1 : NULL;
            *to = '\0';
            return word;
        }
        *to++ = *from;
    }
}

int config_add_disk(struct config *c, const char *value, char *error)
{
    _cleanup_free_ char *text = strdup(value);
    struct vblk_config *disk;
    char *at = text, *word;
    int r;

    if (!text)
        return -ENOMEM;
    while (c->disk_inherited > 0) {
        c->disk_inherited--;
        config_clear_disk(&c->disks[--c->disk_count]);
    }
    if (c->disk_count == CONFIG_MAX_DISKS)
        return config_fail(error, "more than %d disks", CONFIG_MAX_DISKS);
    /* Counted first, so that config_clear frees what a failure leaves. */
    disk = &c->disks[c->disk_count++];
    r = config_set_path(&disk->path, config_next_word(&at), error);
    while (r == 0 && (word = config_next_word(&at)))
        r = set_disk_word(disk, word, error);
    return r;
}

void config_clear_disk(struct vblk_config *disk)
{
    free(disk->path);
    free(disk->serial);
    *disk = (struct vblk_config){0};
}

/* off or on at the value's begin, with `word` for what stands behind it. */
static int set_switch(struct config *c, const char *value, bool *to, char *error,
                      int (*set_word)(struct config *c, const char *word, char *error))
{
    static const char *const values[] = {"off", "on", NULL};
    _cleanup_free_ char *text = strdup(value);
    char *at = text, *word;
    int r;

    if (!text)
        return -ENOMEM;
    r = config_choose(values, config_next_word(&at), error);
    if (r < 0)
        return r;
    *to = r == 1;
    if (!*to && at)
        return config_fail(error, "\"off\" takes no more words");
    r = 0;
    while (r == 0 && (word = config_next_word(&at)))
        r = set_word(c, word, error);
    return r;
}

static int set_rng_word(struct config *c, const char *word, char *error)
{
    uint64_t rate;

    if (strncmp(word, "rate=", 5) != 0)
        return config_fail(error, "\"%.40s\" is not rate=BYTES", word);
    if (size_parse(word + 5, &rate) < 0 || rate < VRNG_RATE_MIN || rate > VRNG_RATE_MAX)
        return config_fail(error, "rate: \"%.40s\" is not a size from %u bytes to 1T", word + 5, VRNG_RATE_MIN);
    c->rng.rate = rate;
    return 0;
}

int config_set_rng(struct config *c, const char *value, char *error)
{
    c->rng = (struct vrng_config){0};
    return set_switch(c, value, &c->rng.on, error, set_rng_word);
}

static int set_balloon_word(struct config *c, const char *word, char *error)
{
    if (strcmp(word, "free-page-reporting") == 0)
        c->balloon.reporting = true;
    else if (strcmp(word, "deflate-on-oom") == 0)
        c->balloon.deflate_on_oom = true;
    else
        return config_fail(error, "\"%.40s\" is none of free-page-reporting, deflate-on-oom", word);
    return 0;
}

int config_set_balloon(struct config *c, const char *value, char *error)
{
    c->balloon = (struct vballoon_config){0};
    return set_switch(c, value, &c->balloon.on, error, set_balloon_word);
}

static int set_where(enum chardev_kind *kind, char **path, const char *value, char *error)
{
    static const char *const values[] = {"none", "stdio", "socket", "pty", "file:PATH", NULL};
    static const enum chardev_kind kinds[] = {CHARDEV_NULL, CHARDEV_STDIO, CHARDEV_SOCKET, CHARDEV_PTY};
    int i;

    if (strncmp(value, "file:", 5) == 0) {
        *kind = CHARDEV_FILE;
        return config_set_path(path, value + 5, error);
    }
    i = config_choose(values, value, error);
    if (i < 0)
        return i;
    if (i >= (int)ARRAY_SIZE(kinds))
        return config_fail(error, "file: wants a path, as in file:/tmp/console.log");
    *kind = kinds[i];
    return 0;
}

int config_set_console(struct config *c, const char *value, char *error)
{
    return set_where(&c->console, &c->console_path, value, error);
}

int config_set_virtio_console(struct config *c, const char *value, char *error)
{
    c->virtio_console = strcmp(value, "off") != 0;
    return c->virtio_console ? set_where(&c->virtio_console_kind, &c->virtio_console_path, value, error) : 0;
}
