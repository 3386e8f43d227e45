/* What the console backends share with their core (chardev.c). All of it is for the main thread unless it says more. */
#ifndef UMBRA_DEVICE_CHARDEV_INTERNAL_H
#define UMBRA_DEVICE_CHARDEV_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "base/list.h"
#include "device/chardev.h"

#define CHARDEV_INPUT_SIZE 4096
#define CHARDEV_NOTE_MAX 320

struct chardev_stream;

struct chardev_backend {
    bool lossless; /* the guest waits while the ring is full */
    /* Take out of freshly read bytes what is not for the guest; returns how many are left. NULL: all are. */
    size_t (*filter)(struct chardev *c, uint8_t *data, size_t len);
    /* The stream's input has ended (err 0) or failed. NULL: nothing more to do. May close the stream. */
    void (*on_input_end)(struct chardev_stream *s, int err);
    /* The stream's output failed (err > 0). True: the stream was closed; else what was queued for it is dropped. */
    bool (*on_output_error)(struct chardev_stream *s, int err);
    /* Release backend_data; the streams have been closed. */
    void (*free)(struct chardev *c);
};

/*
 * One party at the other end: a terminal, a client, a file. Its descriptors are ours, and do not block (or are regular
 * files).
 */
struct chardev_stream {
    struct list_node node; /* the longest connected first */
    struct chardev *chardev;
    int in_fd, out_fd; /* -1: none; may be the same; closed with the stream */
    bool in_socket, out_socket;
    struct event *in_event, *out_event; /* NULL: the descriptor cannot be waited for (a regular file): always ready */
    bool keyboard;                      /* its input is for the guest; other input is dropped */
    bool held;                          /* do not read */
    bool reading, blocked;              /* in_event, out_event is pending */
    uint64_t pos;                       /* of the next byte to write, counted as `written` is */
    /* Text of ours, which goes out before the byte at note_pos. */
    char note[CHARDEV_NOTE_MAX];
    unsigned int note_len, note_done;
    uint64_t note_pos;
    char peer[48]; /* who it is, for messages */
};

struct chardev {
    const struct chardev_backend *backend;
    void *backend_data;
    struct event_base *events;
    struct chardev_handler handler;
    char *path;
    void (*on_quit)(void *opaque);
    void *on_quit_opaque;

    struct list_node streams;
    struct event *flush_timer;
    int wake_fd; /* other threads wake the main loop with it; -1 for the null kind */
    struct event *wake_event;
    uint8_t input[CHARDEV_INPUT_SIZE];
    size_t input_len;

    pthread_mutex_t lock; /* protects what follows, and the streams' list, pos and blocked; a leaf */
    uint8_t *ring;        /* NULL for the null kind */
    uint32_t ring_size;
    uint64_t written;     /* bytes since the start: the ring holds the last ring_size of them */
    uint64_t flushed;     /* up to here the main loop has offered them to all streams */
    uint64_t seen;        /* up to here somebody got them */
    uint64_t dropped;     /* see chardev_dropped, which adds what has not been noticed yet */
    unsigned int ready;                  /* streams that take output now */
    const struct chardev_stream *holder; /* the guest waits for this one when the ring is full */
    bool awake;                          /* the main loop will flush without being told */
    bool starved;                        /* on_writable is owed */
};

int chardev_stdio_init(struct chardev *c);
int chardev_socket_init(struct chardev *c, const char *path);
int chardev_pty_init(struct chardev *c, const char *link);
int chardev_file_init(struct chardev *c, const char *path);

/*
 * Add a stream: it owns the descriptors from here on, also on failure. in_fd and out_fd may be one descriptor, or -1.
 * Output starts with the scrollback (at the next chardev_run). -ENOMEM, -errno.
 */
int chardev_stream_open(struct chardev *c, int in_fd, int out_fd, struct chardev_stream **ret);
void chardev_stream_close(struct chardev_stream *s);

/* -- output (chardev-output.c) -- */

/* Write what is queued now for one stream, or all, until it is gone or the peer takes no more. May close streams. */
void chardev_stream_flush(struct chardev_stream *s);
void chardev_flush(struct chardev *c);
/* A writer has woken the main loop. */
void chardev_output_woken(struct chardev *c);
void chardev_on_flush_timer(evutil_socket_t fd, short what, void *c);
/* The peer takes no more for now, or again. */
void chardev_stream_set_blocked(struct chardev_stream *s, bool blocked);
/* It takes part in the output from now on, from the scrollback's begin. Before it is in the list of streams. */
void chardev_stream_begin_output(struct chardev_stream *s);

/* No more output to it (its peer is gone, but what it typed still counts). */
void chardev_stream_end_output(struct chardev_stream *s);

/* Send text of ours to one stream, before what the guest writes from now on. It replaces a note that still waits. */
void chardev_stream_note(struct chardev_stream *s, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Do not read from it (a terminal that is not ours at present), or go on. */
void chardev_stream_hold_input(struct chardev_stream *s, bool hold);

/* Have the main loop call chardev_run. Any thread. */
void chardev_wake(struct chardev *c);

/* Write what is queued, give waiting input to the guest, and read on where there is room. */
void chardev_run(struct chardev *c);

/* Bytes as if a backend had read them (tests, fuzzing); returns how many fitted into the buffer. */
size_t chardev_inject_input(struct chardev *c, const uint8_t *data, size_t len);

#endif
