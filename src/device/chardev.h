/*
 * Character backends of a console: stdio, a listening Unix socket, a pty, a file.
 *
 * Output. chardev_write stores bytes in a ring of 64 KiB and never blocks; the main loop writes them out. The first byte
 * after a silence goes out at once, later ones in batches every few milliseconds, so a guest that prints byte by byte
 * costs a lock and a store a byte, and an idle one costs nothing.
 *
 * stdio and file lose nothing: while the ring is full chardev_write takes less, and on_writable tells (main thread) when
 * it takes more. Clients of a socket or pty never hold the guest up (only a main loop that is behind does): the ring is
 * also their scrollback, which whoever connects gets first; one that does not read, and falls behind by more than the
 * ring, loses what is oldest, is told how much, and it is counted.
 *
 * Socket clients (at most 16). Where QEMU leaves a second client waiting without a word and libvirt turns it away, here
 * every client sees all output, and one has the keyboard: the one that has been connected longest. The others are told
 * who has it, what they type is dropped, and the next in line is told when it gets it.
 *
 * Input. on_input gives bytes to the serial (main thread); beyond a small buffer the backend stops reading while the
 * serial has no room.
 *
 * The process must ignore SIGPIPE (stdout and file may be pipes).
 */
#ifndef UMBRA_DEVICE_CHARDEV_H
#define UMBRA_DEVICE_CHARDEV_H

#include <event2/event.h>
#include <stddef.h>
#include <stdint.h>

#define CHARDEV_MAX_CLIENTS 16
#define CHARDEV_BUFFER_SIZE (64u << 10)

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
    /*
     * file: what to append to (made with mode 0640; a FIFO needs its reader); socket: where to listen (mode 0660, group
     * umbra where it exists; a dead process's socket is replaced); pty: a symbolic link to make, or NULL.
     */
    const char *path;
    uint32_t buffer_size; /* of the ring, a power of two; 0: CHARDEV_BUFFER_SIZE */
};

struct chardev_handler {
    /* Bytes for the guest; returns how many were taken (the rest comes again after chardev_accept_input). */
    size_t (*on_input)(void *opaque, const uint8_t *data, size_t len);
    void (*on_writable)(void *opaque);
    /* A person asked for a break condition on the line (Linux takes it for SysRq). */
    void (*on_break)(void *opaque);
    void *opaque;
};

/*
 * -errno, logged with the path. -EADDRINUSE: another process listens on the socket; -ENAMETOOLONG: the socket's path is
 * beyond 107 bytes; -EEXIST: something else stands at the path of a socket or link; -EBUSY: a second stdio.
 *
 * stdio puts a terminal into raw mode and back in chardev_free or exit: Ctrl-A x ends umbrad, Ctrl-A b sends a break,
 * Ctrl-A h helps, Ctrl-A Ctrl-A is a Ctrl-A. In the background of a shell it leaves the terminal alone until it is in
 * the foreground (it uses libevent's SIGCONT for that).
 */
int chardev_new(const struct chardev_config *config, struct event_base *events, struct chardev **ret);
/*
 * Nothing of it stays outside (its socket, the terminal's modes), while other threads still write to it, which goes nowhere. Main
 * thread. NULL is fine.
 */
void chardev_leave(struct chardev *c);
/* The same, and free it, when no other thread uses it any more. */
void chardev_free(struct chardev *c);

/* Copied; NULL for none. Main thread, with no vCPU running. */
void chardev_set_handler(struct chardev *c, const struct chardev_handler *handler);

/* What happens when a person types the end sequence on stdio. Main thread. */
void chardev_set_on_quit(struct chardev *c, void (*on_quit)(void *opaque), void *opaque);

/* Any thread; never blocks. Returns how many bytes were taken. Calls nothing back, so it may be called under a lock. */
size_t chardev_write(struct chardev *c, const uint8_t *data, size_t len);
/* The serial has room again. Any thread, also under a lock; on_input comes later, from the main loop. */
void chardev_accept_input(struct chardev *c);
/* Write out what is queued, for at most timeout_ms (before exit). Main thread. */
void chardev_drain(struct chardev *c, int timeout_ms);

/* Bytes of output that nobody, or not every client, got. Main thread. */
uint64_t chardev_dropped(struct chardev *c);
/* What a person connects to ("/run/umbra/x/console.sock", "/dev/pts/3", ...), or NULL. */
const char *chardev_path(const struct chardev *c);

#endif
