#include "config.h"

#include "exporter/live.h"

#include <errno.h>
#include <event2/event_struct.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/json.h"
#include "base/list.h"
#include "base/log.h"
#include "base/paths.h"
#include "base/util.h"
#include "exporter/collect.h"
#include "exporter/facts.h"
#include "exporter/watch.h"
#include "page-html.h"

#define MAX_WATCHES 8

/* One browser that has the page open. */
struct stream {
    struct list_node node;
    struct live *live;
    struct http_connection *connection;
    char map[VM_NAME_MAX + 1]; /* the VM whose map it shows, or "" */
};

struct live {
    struct event_base *events;
    const struct exporter_config *config;
    struct list_node streams;
    unsigned int stream_count;
    struct event tick;
    struct collect *collect; /* under way */
    struct {
        struct watch *watch; /* NULL: free */
        char vm[VM_NAME_MAX + 1];
        bool stopping;
    } watches[MAX_WATCHES];
    char consumer[33];
    int notify_fd;
    struct event notify;
};

/* -- sending ----------------------------------------------------------------- */

static void send_to(struct stream *s, const char *event, const char *text)
{
    char *message;
    int n = asprintf(&message, "event: %s\ndata: %s\n\n", event, text);

    if (n < 0)
        return;
    http_stream_send(s->connection, message, (size_t)n);
    free(message);
}

static void on_collected(void *opaque, const struct collect_page *pages, size_t count)
{
    struct live *l = opaque;
    json_t *vms = json_object_new_array(), *o = json_object_new_object();
    _cleanup_free_ char *text = NULL;
    struct stream *s;

    l->collect = NULL;
    for (size_t i = 0; i < count; i++)
        json_push(vms, facts_of(&pages[i]));
    json_add(o, "vms", vms);
    text = json_to_ascii(o, NULL);
    json_object_put(o);
    if (!text)
        return;
    list_for_each(s, &l->streams, node)
        send_to(s, "vms", text);
}

static void collect_now(struct live *l)
{
    if (!l->collect &&
        collect_start(l->events, l->config->runtime_dir, l->config->timeout_ms, on_collected, l, &l->collect) < 0)
        l->collect = NULL;
}

static void on_tick(evutil_socket_t fd, short what, void *opaque)
{
    collect_now(opaque);
}

/* -- maps -------------------------------------------------------------------- */

static bool is_looked_at(struct live *l, const char *vm)
{
    struct stream *s;

    list_for_each(s, &l->streams, node)
        if (strcmp(s->map, vm) == 0)
            return true;
    return false;
}

/* The VM's watch, or with NULL a free place; -1 when there is none. */
static int find_watch(const struct live *l, const char *vm)
{
    for (int i = 0; i < MAX_WATCHES; i++)
        if (vm ? l->watches[i].watch && strcmp(l->watches[i].vm, vm) == 0 : !l->watches[i].watch)
            return i;
    return -1;
}

static void start_watch(struct live *l, struct stream *s)
{
    struct watch_config config = {.runtime_dir = l->config->runtime_dir, .notify_fd = l->notify_fd};
    int i = find_watch(l, NULL);

    if (i < 0) {
        send_to(s, "map", "{\"error\": \"too many maps are looked at\"}");
        return;
    }
    strcpy(config.vm, s->map);
    strcpy(config.consumer, l->consumer);
    strcpy(l->watches[i].vm, s->map);
    l->watches[i].stopping = false;
    if (watch_start(&config, &l->watches[i].watch) < 0)
        send_to(s, "map", "{\"error\": \"no map can be made\"}");
}

/* Stop what nobody looks at any more, start what somebody does. */
static void arrange_watches(struct live *l)
{
    struct stream *s;

    for (int i = 0; i < MAX_WATCHES; i++)
        if (l->watches[i].watch && !l->watches[i].stopping && !is_looked_at(l, l->watches[i].vm)) {
            l->watches[i].stopping = true;
            watch_stop(l->watches[i].watch);
        }
    /* One that is still stopping starts again when it is over. */
    list_for_each(s, &l->streams, node)
        if (s->map[0] && find_watch(l, s->map) < 0)
            start_watch(l, s);
}

static void on_notify(evutil_socket_t fd, short what, void *opaque)
{
    struct live *l = opaque;
    bool freed = false;

    fd_event_clear(l->notify_fd);
    for (int i = 0; i < MAX_WATCHES; i++) {
        _cleanup_free_ char *text = NULL;
        struct stream *s;

        if (!l->watches[i].watch)
            continue;
        text = watch_take(l->watches[i].watch);
        list_for_each(s, &l->streams, node)
            if (text && strcmp(s->map, l->watches[i].vm) == 0)
                send_to(s, "map", text);
        if (watch_over(l->watches[i].watch)) {
            watch_free(l->watches[i].watch);
            l->watches[i].watch = NULL;
            freed = true;
        }
    }
    /* Somebody may have come back meanwhile. */
    if (freed)
        arrange_watches(l);
}

/* -- requests ---------------------------------------------------------------- */

static void on_stream_closed(void *opaque, struct http_connection *c)
{
    struct stream *s = opaque;
    struct live *l = s->live;

    list_remove(&s->node);
    free(s);
    if (--l->stream_count == 0)
        evtimer_del(&l->tick);
    arrange_watches(l);
}

/* A page of another site must not make this host's guests work: a browser tells where a request comes from. */
static bool from_elsewhere(const struct http_request *r)
{
    const char *origin = strstr(r->origin, "://");

    if (*r->fetch_site && strcmp(r->fetch_site, "same-origin") != 0 && strcmp(r->fetch_site, "none") != 0)
        return true;
    return *r->origin && (!origin || strcmp(origin + 3, r->host) != 0);
}

static void open_stream(struct live *l, struct http_connection *c, const struct http_request *r)
{
    static const struct timeval second = {.tv_sec = 1};
    struct stream *s;
    char map[VM_NAME_MAX + 1] = "";
    bool wants_map = http_query_value(r->query, "map", map, sizeof(map));

    if (from_elsewhere(r)) {
        http_reply_error(c, 403, "events are for this host's own page");
        return;
    }
    if (wants_map && (l->config->no_map || !vm_name_valid(map))) {
        http_reply_error(c, 403, l->config->no_map ? "maps are switched off" : "no such VM");
        return;
    }
    s = l->stream_count < LIVE_MAX_STREAMS ? calloc(1, sizeof(*s)) : NULL;
    if (!s) {
        http_reply_error(c, 503, "too many have the page open");
        return;
    }
    s->live = l;
    s->connection = c;
    strcpy(s->map, map);
    http_stream(c);
    if (r->head) {
        free(s);
        return;
    }
    http_on_close(c, on_stream_closed, s);
    list_append(&l->streams, &s->node);
    if (l->stream_count++ == 0)
        evtimer_add(&l->tick, &second);
    collect_now(l);
    arrange_watches(l);
}

bool live_request(struct live *l, struct http_connection *c, const struct http_request *r)
{
    static const char headers[] = "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; "
                                  "style-src 'unsafe-inline'; img-src data:; connect-src 'self'; frame-ancestors 'none'; "
                                  "base-uri 'none'; form-action 'none'\r\nReferrer-Policy: no-referrer\r\n";

    if (strcmp(r->path, "/") == 0)
        http_reply(c, 200, "text/html; charset=utf-8", headers, page_html, sizeof(page_html));
    else if (strcmp(r->path, "/events") == 0)
        open_stream(l, c, r);
    else
        return false;
    return true;
}

/* -- life -------------------------------------------------------------------- */

int live_new(struct event_base *events, const struct exporter_config *config, unsigned int port, struct live **ret)
{
    struct live *l = calloc(1, sizeof(*l));

    if (!l)
        return -ENOMEM;
    l->events = events;
    l->config = config;
    list_init(&l->streams);
    event_assign(&l->tick, events, -1, EV_PERSIST, on_tick, l);
    l->notify_fd = fd_eventfd();
    if (l->notify_fd < 0) {
        int r = l->notify_fd;

        free(l);
        return r;
    }
    event_assign(&l->notify, events, l->notify_fd, EV_READ | EV_PERSIST, on_notify, l);
    event_add(&l->notify, NULL);
    /* Two exporters of one host have different ports. */
    snprintf(l->consumer, sizeof(l->consumer), "exporter-%u", port);
    if (!config->no_map)
        watch_sweep(config->runtime_dir, l->consumer);
    *ret = l;
    return 0;
}

void live_free(struct live *l)
{
    if (!l)
        return;
    collect_cancel(l->collect);
    for (int i = 0; i < MAX_WATCHES; i++)
        if (l->watches[i].watch)
            watch_stop(l->watches[i].watch);
    for (int i = 0; i < MAX_WATCHES; i++)
        if (l->watches[i].watch)
            watch_free(l->watches[i].watch);
    event_del(&l->notify);
    evtimer_del(&l->tick);
    fd_close(l->notify_fd);
    free(l);
}
