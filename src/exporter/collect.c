#include "config.h"

#include "exporter/collect.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event_struct.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/paths.h"
#include "base/util.h"
#include "base/vm-names.h"
#include "exporter/page.h"

/* An answer's line and headers. */
#define HEAD_MAX 4096u
#define ANSWER_MAX (PAGE_MAX_SIZE + HEAD_MAX)

struct fetch {
    struct collect *collect;
    const char *vm;
    struct bufferevent *bev; /* while it is being asked */
    struct event deadline;
    uint64_t begin_ns;
    struct collect_page page;
};

struct collect {
    struct event_base *events;
    const char *runtime_dir;
    unsigned int timeout_ms;
    collect_done *done;
    void *opaque;
    struct vm_names names;
    struct fetch *fetches;
    size_t next, running, count;
    struct event turn;  /* go on with those that wait, or finish */
    struct event limit; /* of the whole time */
};

static void free_collect(struct collect *c)
{
    for (size_t i = 0; c->fetches && i < c->count; i++) {
        if (c->fetches[i].bev)
            bufferevent_free(c->fetches[i].bev);
        if (c->fetches[i].collect)
            evtimer_del(&c->fetches[i].deadline);
        free((char *)(uintptr_t)c->fetches[i].page.text);
    }
    evtimer_del(&c->turn);
    evtimer_del(&c->limit);
    free(c->fetches);
    vm_names_clear(&c->names);
    free(c);
}

void collect_cancel(struct collect *c)
{
    if (c)
        free_collect(c);
}

static void later(struct collect *c)
{
    static const struct timeval at_once = {0};

    if (!evtimer_pending(&c->turn, NULL))
        evtimer_add(&c->turn, &at_once);
}

/* -- one VM ------------------------------------------------------------------ */

static void finish(struct fetch *f, const char *error)
{
    f->page.error = error;
    f->page.took_ns = clock_ns() - f->begin_ns;
    evtimer_del(&f->deadline);
    if (f->bev)
        bufferevent_free(f->bev);
    f->bev = NULL;
    f->collect->running--;
    later(f->collect);
}

/* The connection has ended: what came is the answer. RFC 9112. */
static const char *take_answer(struct fetch *f)
{
    struct evbuffer *in = bufferevent_get_input(f->bev);
    struct evbuffer_ptr end = evbuffer_search(in, "\r\n\r\n", 4, NULL);
    char status[13] = "";
    char *text;
    size_t len;

    evbuffer_copyout(in, status, sizeof(status) - 1);
    if (strncmp(status, "HTTP/1.", 7) != 0 || end.pos < 0 || end.pos > (ev_ssize_t)HEAD_MAX)
        return "what it answers is no HTTP";
    if (strcmp(status + 8, " 200") != 0)
        return "it refuses";
    evbuffer_drain(in, (size_t)end.pos + 4);
    len = evbuffer_get_length(in);
    text = malloc(len + 1);
    if (!text)
        return "out of memory";
    evbuffer_remove(in, text, len);
    text[len] = '\0';
    f->page.text = text;
    f->page.len = len;
    return NULL;
}

static void on_readable(struct bufferevent *bev, void *opaque)
{
    if (evbuffer_get_length(bufferevent_get_input(bev)) >= ANSWER_MAX)
        finish(opaque, "its answer is too large");
}

static void on_event(struct bufferevent *bev, short what, void *opaque)
{
    struct fetch *f = opaque;

    if (what & BEV_EVENT_EOF)
        finish(f, take_answer(f));
    else if (!(what & BEV_EVENT_CONNECTED))
        finish(f, "the connection broke");
}

static void on_deadline(evutil_socket_t fd, short what, void *opaque)
{
    finish(opaque, "no answer in time");
}

/* Connect to a VM's metrics socket; the descriptor, or -1 with errno set. */
static int dial(const char *runtime_dir, const char *vm)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    _cleanup_close_ int fd = -1;

    if (paths_vm_file(runtime_dir, vm, "metrics.sock", addr.sun_path, sizeof(addr.sun_path)) < 0) {
        errno = ENAMETOOLONG;
        return -1;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
        return -1;
    return take_fd(fd);
}

static void begin(struct fetch *f)
{
    static const char request[] =
        "GET /metrics HTTP/1.0\r\nHost: localhost\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n";
    struct collect *c = f->collect;
    struct timeval tv = {.tv_sec = c->timeout_ms / 1000, .tv_usec = c->timeout_ms % 1000 * 1000};
    int fd = dial(c->runtime_dir, f->vm);

    f->begin_ns = clock_ns();
    c->running++;
    if (fd < 0) {
        finish(f, errno == EACCES ? "permission denied" : errno == EAGAIN ? "too busy" : "nobody listens");
        return;
    }
    f->bev = bufferevent_socket_new(c->events, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!f->bev) {
        fd_close(fd);
        finish(f, "out of memory");
        return;
    }
    bufferevent_setcb(f->bev, on_readable, NULL, on_event, f);
    bufferevent_setwatermark(f->bev, EV_READ, 0, ANSWER_MAX);
    bufferevent_write(f->bev, request, sizeof(request) - 1);
    bufferevent_enable(f->bev, EV_READ | EV_WRITE);
    evtimer_add(&f->deadline, &tv);
}

/* -- all of them ------------------------------------------------------------- */

static void report(struct collect *c)
{
    struct collect_page *pages = calloc(c->count + 1, sizeof(*pages));

    for (size_t i = 0; pages && i < c->count; i++)
        pages[i] = c->fetches[i].page;
    c->done(c->opaque, pages, pages ? c->count : 0);
    free(pages);
    free_collect(c);
}

static void on_turn(evutil_socket_t fd, short what, void *opaque)
{
    struct collect *c = opaque;

    while (c->next < c->count && c->running < COLLECT_PARALLEL)
        begin(&c->fetches[c->next++]);
    if (c->next == c->count && c->running == 0)
        report(c);
}

static void on_limit(evutil_socket_t fd, short what, void *opaque)
{
    struct collect *c = opaque;

    for (; c->next < c->count; c->next++)
        c->fetches[c->next].page.error = "no time left to ask";
    for (size_t i = 0; i < c->count; i++)
        if (c->fetches[i].bev)
            finish(&c->fetches[i], "no answer in time");
    later(c);
}

int collect_start(struct event_base *events, const char *runtime_dir, unsigned int timeout_ms, collect_done *done,
                  void *opaque, struct collect **ret)
{
    static const struct timeval total = {.tv_sec = COLLECT_TOTAL_SECONDS};
    struct collect *c = calloc(1, sizeof(*c));
    int r;

    if (!c)
        return -ENOMEM;
    *c = (struct collect){
        .events = events, .runtime_dir = runtime_dir, .timeout_ms = timeout_ms, .done = done, .opaque = opaque};
    evtimer_assign(&c->turn, events, on_turn, c);
    evtimer_assign(&c->limit, events, on_limit, c);
    r = vm_names_scan(runtime_dir, &c->names);
    c->count = MIN(c->names.count, (size_t)COLLECT_MAX_VMS);
    c->fetches = r == 0 ? calloc(c->count + 1, sizeof(*c->fetches)) : NULL;
    if (!c->fetches) {
        free_collect(c);
        return r < 0 ? r : -ENOMEM;
    }
    for (size_t i = 0; i < c->count; i++) {
        c->fetches[i] = (struct fetch){.collect = c, .vm = c->names.names[i], .page.vm = c->names.names[i]};
        evtimer_assign(&c->fetches[i].deadline, events, on_deadline, &c->fetches[i]);
    }
    evtimer_add(&c->limit, &total);
    later(c);
    *ret = c;
    return 0;
}
