/*
 * Character backends of a console: stdio, a listening Unix socket, a pty, a file.
 *
 * Output: chardev_write takes bytes from a vCPU thread (under the serial's lock) and never blocks. stdio, pty and file
 * give back pressure: it returns how many bytes it took, and calls on_writable (main thread) when more fit. A socket
 * without a client keeps the last 64 KiB as scrollback, which a new client gets first; a client that does not read loses
 * output (counted), it does not stop the guest.
 * Input: on_input gives bytes to the serial (main thread); the backend stops reading while the serial has no room.
 */
#ifndef UMBRA_DEVICE_CHARDEV_H
#define UMBRA_DEVICE_CHARDEV_H

#include <event2/event.h>
#include <stddef.h>
#include <stdint.h>

struct chardev;

enum chardev_kind {
    CHARDEV_NULL, /* drops output, has no input */
    CHARDEV_STDIO,
    CHARDEV_SOCKET,
    CHARDEV_PTY,
    CHARDEV_FILE,
};

struct chardev_config {
    enum chardev_kind kind;
    const char *path; /* file: where output goes; socket: where to listen; pty: a symbolic link to make, or NULL */
};

struct chardev_handler {
    /* Bytes for the guest; returns how many were taken (the rest comes again after chardev_accept_input). */
    size_t (*on_input)(void *opaque, const uint8_t *data, size_t len);
    void (*on_writable)(void *opaque);
    void *opaque;
};

/* -errno, logged with the path. stdio puts a terminal into raw mode, with Ctrl-A x to end umbrad and Ctrl-A Ctrl-A for
 * a Ctrl-A, and puts it back in chardev_free. */
int chardev_new(const struct chardev_config *config, struct event_base *events, struct chardev **ret);
void chardev_free(struct chardev *c);
void chardev_set_handler(struct chardev *c, const struct chardev_handler *handler);

/* What happens when a person types the end sequence on stdio. Main thread. */
void chardev_set_on_quit(struct chardev *c, void (*on_quit)(void *opaque), void *opaque);

/* Any thread; never blocks. */
size_t chardev_write(struct chardev *c, const uint8_t *data, size_t len);
/* The serial has room again. Any thread. */
void chardev_accept_input(struct chardev *c);
/* Wait at most timeout_ms for queued output to go out (before exit). Main thread. */
void chardev_drain(struct chardev *c, int timeout_ms);

/* Bytes a slow or absent client lost. */
uint64_t chardev_dropped(const struct chardev *c);
/* What a person connects to ("/run/umbra/x/console.sock", "/dev/pts/3", ...), or NULL. */
const char *chardev_path(const struct chardev *c);

#endif
