/* Console output into a file (or a FIFO, or a device). */
#include "config.h"

#include "device/chardev-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/log.h"

static bool on_output_error(struct chardev_stream *s, int err)
{
    const char *path = chardev_path(s->chardev);

    /* A full disk must not hold the guest up. It is tried again with what comes next. */
    log_warn_limited("console file %s: output is lost: %s", path, strerrordesc_np(err));
    return false;
}

static const struct chardev_backend file_backend = {
    .lossless = true,
    .on_output_error = on_output_error,
};

int chardev_file_init(struct chardev *c, const char *path)
{
    struct chardev_stream *s;
    int fd, err;

    c->backend = &file_backend;
    c->path = strdup(path);
    if (!c->path)
        return -ENOMEM;
    /* Appended to: the end of the last run is what a person looks for after a restart. */
    fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0640);
    if (fd < 0) {
        err = -errno;
        if (err == -ENXIO)
            log_err("console file %s: a FIFO that nobody reads", path);
        else
            log_err_errno(err, "console file %s", path);
        return err;
    }
    err = chardev_stream_open(c, -1, fd, &s);
    if (err < 0)
        log_err_errno(err, "console file %s", path);
    return err;
}
