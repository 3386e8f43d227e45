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
    struct vblk_config *disk = &c->disks[c->disk_count];
    char *at = text, *word;
    int r;

    if (!text)
        return -ENOMEM;
    if (c->disk_count == CONFIG_MAX_DISKS)
        return config_fail(error, "more than %d disks", CONFIG_MAX_DISKS);
    /* Counted first, so that config_clear frees what a failure leaves. */
    c->disk_count++;
    r = config_set_path(&disk->path, config_next_word(&at), error);
    while (r == 0 && (word = config_next_word(&at)))
        r = set_disk_word(disk, word, error);
    return r;
}
