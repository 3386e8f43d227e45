#include "config.h"

#include "daemon/limiter.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "mmu/mem.h"
#include "vcpu/stats.h"

/* Changes that the main thread has not seen yet; of more the newest stay. */
#define PENDING_MAX 8u

struct limiter {
    struct limiter_config config;
    uint64_t kvm_limit; /* what KVM gives by itself */
    uint64_t max;
    struct event *event;
    int event_fd;

    pthread_mutex_t lock; /* protects what follows; held while the limit is set */
    /* Opened when first wanted, which is after the start; NULL where KVM has none: then only tables count. */
    bool stats_opened;
    struct kvm_stats_source *stats;
    const struct stats_desc *recycled;
    struct limiter_settings settings;
    struct page_limit policy;
    uint64_t limit, changes;
    bool failed; /* KVM refused once: not to be logged at every tick */
    struct limiter_change pending[PENDING_MAX];
    unsigned int pending_count;
};

static uint64_t host_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);

    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : 0;
}

static void open_stats(struct limiter *l)
{
    l->stats_opened = true;
    if (stats_open(vm_fd(l->config.vm), &l->stats) == 0)
        l->recycled = stats_find(l->stats, "mmu_recycled");
    if (!l->recycled)
        log_warn("page limit: KVM does not count mmu_recycled, only page tables are looked at");
}

static uint64_t read_recycled(struct limiter *l)
{
    if (!l->stats_opened)
        open_stats(l);
    if (!l->recycled || stats_read(l->stats) < 0)
        return l->policy.recycled;
    return *stats_values(l->stats, l->recycled);
}

static int apply(struct limiter *l, uint64_t pages)
{
    int r;

    if (pages == l->limit)
        return 0;
    r = vm_set_page_limit(l->config.vm, pages);
    if (r < 0) {
        if (!l->failed)
            log_err_errno(r, "page limit: KVM refuses %llu shadow pages", (unsigned long long)pages);
        l->failed = true;
        return r;
    }
    l->failed = false;
    l->limit = pages;
    return 0;
}

static int change_settings(struct limiter *l, const struct limiter_settings *s)
{
    uint64_t pages = l->limit;
    int r;

    if (s->mode == LIMITER_FIXED) {
        if (s->pages < PAGE_LIMIT_MIN || s->pages > LIMITER_PAGES_MAX)
            return -EINVAL;
        pages = s->pages;
    } else if (s->mode == LIMITER_OFF || pages < l->kvm_limit || pages > l->max) {
        /* Automatic goes on from where it stands, if that is within its bounds. */
        pages = l->kvm_limit;
    }
    r = apply(l, pages);
    if (r < 0)
        return r;
    l->settings = *s;
    /* What was recycled so far is not of this limit's making. At the start it is nothing. */
    page_limit_init(&l->policy, l->kvm_limit, l->max, l->stats_opened ? read_recycled(l) : 0);
    l->policy.limit = pages;
    return 0;
}

static void on_event(evutil_socket_t fd, short what, void *arg)
{
    struct limiter_change changes[PENDING_MAX];
    struct limiter *l = arg;
    unsigned int count;

    fd_event_clear(l->event_fd);
    pthread_mutex_lock(&l->lock);
    count = l->pending_count;
    for (unsigned int i = 0; i < count; i++)
        changes[i] = l->pending[i];
    l->pending_count = 0;
    pthread_mutex_unlock(&l->lock);
    for (unsigned int i = 0; i < count; i++)
        l->config.on_change(l->config.opaque, &changes[i]);
}

static int build(struct limiter *l)
{
    l->event_fd = fd_eventfd();
    if (l->event_fd < 0)
        return l->event_fd;
    l->event = event_new(l->config.events, l->event_fd, EV_READ | EV_PERSIST, on_event, l);
    if (!l->event || event_add(l->event, NULL) < 0)
        return -ENOMEM;
    l->kvm_limit = page_limit_default(mem_pages(vm_mem(l->config.vm)));
    l->max = page_limit_affordable(host_memory(), l->config.share);
    l->max = l->max < l->kvm_limit ? l->kvm_limit : l->max;
    l->limit = l->kvm_limit;
    /* For "off" nothing is set: KVM's own limit grows with memory slots, one that was set does not. */
    return change_settings(l, &l->config.settings);
}

int limiter_new(const struct limiter_config *config, struct limiter **ret)
{
    struct limiter *l = calloc(1, sizeof(*l));
    int r;

    if (!l)
        return -ENOMEM;
    l->config = *config;
    l->event_fd = -1;
    pthread_mutex_init(&l->lock, NULL);
    r = build(l);
    if (r < 0) {
        limiter_free(l);
        return r;
    }
    *ret = l;
    return 0;
}

void limiter_free(struct limiter *l)
{
    if (!l)
        return;
    if (l->event)
        event_free(l->event);
    fd_close(l->event_fd);
    if (l->stats)
        stats_close(l->stats);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

int limiter_set(struct limiter *l, const struct limiter_settings *settings)
{
    int r;

    pthread_mutex_lock(&l->lock);
    r = change_settings(l, settings);
    pthread_mutex_unlock(&l->lock);
    return r;
}

static void note_change(struct limiter *l, const struct limiter_change *c)
{
    l->changes++;
    log_info("page limit: %llu shadow pages, %llu before (%s; %llu page tables, %llu recycled%s)", (unsigned long long)c->to,
             (unsigned long long)c->from, page_limit_reason_name(c->reason), (unsigned long long)c->tables,
             (unsigned long long)c->recycled, l->policy.capped ? "; more is not allowed" : "");
    if (!l->config.on_change)
        return;
    if (l->pending_count == PENDING_MAX) {
        for (unsigned int i = 1; i < PENDING_MAX; i++)
            l->pending[i - 1] = l->pending[i];
        l->pending_count--;
    }
    l->pending[l->pending_count++] = *c;
    fd_event_signal(l->event_fd);
}

static void look(struct limiter *l, uint64_t tables, uint64_t now_ns)
{
    struct page_limit_sample s = {.tables = tables, .recycled = read_recycled(l), .now_ns = now_ns};
    struct limiter_change c = {.from = l->limit, .tables = tables, .recycled = s.recycled};

    c.reason = page_limit_step(&l->policy, &s);
    if (c.reason == PAGE_LIMIT_KEEP)
        return;
    c.to = l->policy.limit;
    if (apply(l, c.to) < 0)
        l->policy.limit = l->limit;
    else
        note_change(l, &c);
}

void limiter_pressure(struct limiter *l, uint64_t tables, uint64_t now_ns)
{
    pthread_mutex_lock(&l->lock);
    if (l->settings.mode == LIMITER_AUTO)
        look(l, tables, now_ns);
    pthread_mutex_unlock(&l->lock);
}

void limiter_info(struct limiter *l, struct limiter_info *ret)
{
    pthread_mutex_lock(&l->lock);
    *ret = (struct limiter_info){
        .settings = l->settings,
        .limit = l->limit,
        .kvm = l->kvm_limit,
        .max = l->max,
        .capped = l->policy.capped,
        .changes = l->changes,
        .recycled = read_recycled(l),
    };
    pthread_mutex_unlock(&l->lock);
}
