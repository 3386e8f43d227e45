/* The backends of the guest's consoles: the serial port's, and the virtio console's where there is one. */
#include "config.h"

#include "daemon/machine-internal.h"

#include <limits.h>

#include "base/log.h"
#include "base/paths.h"

#define DRAIN_MS 1000

/* `name`: of the option, and of what stands in the VM's runtime directory. */
static int open_console(struct machine *m, const char *name, enum chardev_kind kind, const char *file, struct chardev **ret)
{
    struct chardev_config config = {.kind = kind, .path = file};
    char path[PATH_MAX], entry[64];
    int r;

    if (kind == CHARDEV_SOCKET || kind == CHARDEV_PTY) {
        snprintf(entry, sizeof(entry), kind == CHARDEV_PTY ? "%s" : "%s.sock", name);
        r = paths_vm_file(m->config->runtime_dir, m->config->name, entry, path, sizeof(path));
        if (r < 0) {
            log_err_errno(r, "%s", name);
            return r;
        }
        config.path = path;
    }
    r = chardev_new(&config, m->events, ret);
    if (r == 0 && kind == CHARDEV_PTY)
        log_info("%s: %s", name, chardev_path(*ret));
    return r;
}

int machine_consoles_open(struct machine *m)
{
    const struct config *c = m->config;
    int r = open_console(m, "console", c->console, c->console_path, &m->console);

    if (r == 0 && c->virtio_console)
        r = open_console(m, "virtio-console", c->virtio_console_kind, c->virtio_console_path, &m->virtio_console);
    return r;
}

static void on_quit(void *opaque)
{
    machine_quit(opaque);
}

void machine_consoles_start(struct machine *m)
{
    chardev_set_on_quit(m->console, on_quit, m);
    if (m->virtio_console)
        chardev_set_on_quit(m->virtio_console, on_quit, m);
}

void machine_consoles_drain(struct machine *m)
{
    if (m->console)
        chardev_drain(m->console, DRAIN_MS);
    if (m->virtio_console)
        chardev_drain(m->virtio_console, DRAIN_MS);
}

void machine_consoles_leave(struct machine *m)
{
    chardev_leave(m->console);
    chardev_leave(m->virtio_console);
}

void machine_consoles_free(struct machine *m)
{
    chardev_free(m->console);
    chardev_free(m->virtio_console);
}
