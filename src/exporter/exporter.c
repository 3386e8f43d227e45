#include "config.h"

#include "exporter/exporter.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/http.h"
#include "base/list.h"
#include "base/log.h"
#include "base/openmetrics.h"
#include "base/util.h"
#include "exporter/collect.h"
#include "exporter/live.h"
#include "exporter/page.h"

/* A scrape that waits for its collection. */
struct scrape {
    struct list_node node;
    struct http_connection *connection;
    bool plain;
};

struct exporter {
    struct event_base *events;
    struct exporter_config config;
    struct http_server *http;
    struct live *live;
    int fd;
    struct list_node scrapes;
    struct collect *collect; /* that they wait for */
    uint64_t refused_pages;
};

/* -- the page of all VMs ----------------------------------------------------- */

static void write_own(struct om_writer *w, const struct exporter *e, const struct collect_page *pages, const bool *up,
                      size_t count, const struct page_merge *merge)
{
    static const struct om_family build = {"umbra_exporter_build", OM_INFO, NULL, "Version of umbra-exporter."};
    static const struct om_family vm_up = {"umbra_vm_up", OM_GAUGE, NULL,
                                           "1 for a VM whose metrics are here, 0 for one that does not answer."};
    static const struct om_family took = {"umbra_vm_scrape_seconds", OM_GAUGE, "seconds",
                                          "How long the VM took to answer, or until it was given up."};
    static const struct om_family refused = {"umbra_exporter_refused_pages", OM_COUNTER, NULL,
                                             "Pages of VMs that made no sense."};
    static const struct om_family left_out = {"umbra_exporter_left_out_samples", OM_GAUGE, NULL,
                                              "Samples of this page left out: VMs do not agree on their metric's type."};

    om_begin(w, &build);
    om_u64(w, &(struct om_label){"version", PACKAGE_VERSION}, 1, 1);
    om_begin(w, &vm_up);
    for (size_t i = 0; i < count; i++)
        om_u64(w, &(struct om_label){PAGE_VM_LABEL, pages[i].vm}, 1, up[i]);
    om_begin(w, &took);
    for (size_t i = 0; i < count; i++)
        om_ns(w, &(struct om_label){PAGE_VM_LABEL, pages[i].vm}, 1, pages[i].took_ns);
    om_single_u64(w, &refused, e->refused_pages);
    om_single_u64(w, &left_out, page_merge_left_out(merge));
}

static void answer(struct exporter *e, struct scrape *s, const struct collect_page *pages, const bool *up, size_t count,
                   const struct page_merge *merge)
{
    struct om_writer w;

    om_start(&w, s->plain);
    write_own(&w, e, pages, up, count, merge);
    page_merge_write(merge, &w);
    if (om_finish(&w))
        http_reply(s->connection, 200, s->plain ? OM_CONTENT_TYPE_PLAIN : OM_CONTENT_TYPE, NULL, w.out.data, w.out.len);
    else
        http_reply_error(s->connection, 503, "out of memory");
    byte_writer_clear(&w.out);
}

static bool add_page(struct exporter *e, struct page_merge *merge, const struct collect_page *page)
{
    char error[PAGE_ERROR_MAX] = "out of memory";

    if (!page->text)
        return false;
    if (page_merge_add(merge, page->vm, page->text, page->len, error) == 0)
        return true;
    log_warn_limited("%s: its metrics are refused: %s", page->vm, error);
    e->refused_pages++;
    return false;
}

static void on_collected(void *opaque, const struct collect_page *pages, size_t count)
{
    struct exporter *e = opaque;
    _cleanup_free_ bool *up = calloc(count + 1, sizeof(*up));
    struct page_merge *merge = NULL;
    struct scrape *s;

    e->collect = NULL;
    if (up && page_merge_new(&merge) == 0)
        for (size_t i = 0; i < count; i++)
            up[i] = add_page(e, merge, &pages[i]);
    list_for_each(s, &e->scrapes, node) {
        if (merge)
            answer(e, s, pages, up, count, merge);
        else
            http_reply_error(s->connection, 503, "out of memory");
        list_remove(&s->node);
        free(s);
    }
    page_merge_free(merge);
}

/* -- requests ---------------------------------------------------------------- */

static void on_scrape_gone(void *opaque, struct http_connection *c)
{
    struct scrape *s = opaque;

    list_remove(&s->node);
    free(s);
}

/* Scrapes that come while a collection is under way share it: a thousand at once ask each VM once. */
static void add_scrape(struct exporter *e, struct http_connection *c, const struct http_request *r)
{
    struct scrape *s = calloc(1, sizeof(*s));
    int err = s ? 0 : -ENOMEM;

    if (err == 0 && !e->collect)
        err = collect_start(e->events, e->config.runtime_dir, e->config.timeout_ms, on_collected, e, &e->collect);
    if (err < 0) {
        free(s);
        log_warn_limited("%s: cannot be read: %s", e->config.runtime_dir, strerrordesc_np(-err));
        http_reply_error(c, 503, "the runtime directory cannot be read");
        return;
    }
    s->connection = c;
    s->plain = strstr(r->accept, "application/openmetrics-text") == NULL;
    list_append(&e->scrapes, &s->node);
    http_on_close(c, on_scrape_gone, s);
}

static void on_request(void *opaque, struct http_connection *c, const struct http_request *r)
{
    struct exporter *e = opaque;

    if (strcmp(r->path, "/metrics") == 0)
        add_scrape(e, c, r);
    else if (!e->live || !live_request(e->live, c, r))
        http_reply_error(c, 404, e->live ? "there are / and /metrics" : "there is /metrics only");
}

/* -- life -------------------------------------------------------------------- */

static int serve(struct exporter *e)
{
    struct sockaddr_storage addr;
    socklen_t len;
    int r = http_parse_address(e->config.listen, &addr, &len);

    if (r == 0)
        r = e->fd = http_listen(&addr, len);
    if (r >= 0)
        r = http_server_new(e->events, on_request, e, &e->http);
    if (r == 0)
        r = http_server_serve(e->http, e->fd);
    if (r < 0)
        log_err_errno(r, "cannot listen on %s", e->config.listen);
    return r;
}

int exporter_new(struct event_base *events, const struct exporter_config *config, struct exporter **ret)
{
    struct exporter *e = calloc(1, sizeof(*e));
    int r;

    if (!e)
        return -ENOMEM;
    e->events = events;
    e->config = *config;
    e->fd = -1;
    list_init(&e->scrapes);
    r = serve(e);
    if (r == 0 && !config->no_page)
        r = live_new(events, &e->config, http_port(e->fd), &e->live);
    if (r < 0) {
        exporter_free(e);
        return r;
    }
    *ret = e;
    return 0;
}

void exporter_free(struct exporter *e)
{
    if (!e)
        return;
    collect_cancel(e->collect);
    http_server_free(e->http);
    live_free(e->live);
    fd_close(e->fd);
    free(e);
}

unsigned int exporter_port(const struct exporter *e)
{
    return http_port(e->fd);
}
