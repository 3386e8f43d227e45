#include "config.h"

#include "migrate/snapshot-job.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"

/* Pages between two looks at whether it is to end. */
#define COPY_PAGES 1024u
/* The same for pages that lie here and there: so many are told to snapshot_out at once. */
#define BATCH_PAGES 256u
/* Pages between two times that the page cache is told to go to disk. */
#define FLUSH_PAGES 8192u
/* Go over what was written meanwhile until so little is left, or it has got no less so often, or so many times. */
#define LITTLE_PAGES 512u
#define STALLS_MAX 3u
#define ROUNDS_MAX 12u
/*
 * Room for what is copied aside while the guest stands still; beyond that it waits for the page cache. So much of it is
 * there beforehand even if the guest writes nothing: the memory takes longer to get than the pages to write.
 */
#define ASIDE_PAGES_MIN 2048u
#define ASIDE_PAGES_MAX 65536u
#define ASIDE_PAGES_READY 32u

int snapshot_fail(struct snapshotter *s, int err, const char *what)
{
    snprintf(s->error, sizeof(s->error), "%s: %s", what, strerror(-err));
    return err;
}

int snapshot_fail_out(struct snapshotter *s, int err)
{
    strcpy(s->error, snapshot_out_error(s->out));
    return err;
}

static int check_cancel(struct snapshotter *s)
{
    return atomic_load(&s->cancel) ? snapshot_fail(s, -ECANCELED, "snapshot") : 0;
}

static void count_done(struct snapshotter *s, uint64_t pages)
{
    pthread_mutex_lock(&s->lock);
    s->status.done += pages;
    s->status.stored = snapshot_out_pages(s->out);
    s->status.zero_pages = snapshot_out_zero_pages(s->out);
    pages = s->status.done;
    pthread_mutex_unlock(&s->lock);
    if (s->flushing && pages - s->flushed >= FLUSH_PAGES) {
        s->flushed = pages;
        snapshot_out_flush(s->out);
    }
}

static int put_batch(struct snapshotter *s, const struct snapshot_piece *pieces, size_t count)
{
    int r = check_cancel(s);

    if (r < 0)
        return r;
    r = snapshot_out_put_pieces(s->out, pieces, count);
    if (r < 0)
        return snapshot_fail_out(s, r);
    count_done(s, count);
    return 0;
}

/* Pages to write together: guest memory itself, or the buffer, where that may have been given back. */
struct gathering {
    struct snapshot_piece pieces[BATCH_PAGES];
    size_t count;
};

static int gather(struct snapshotter *s, struct gathering *g, uint64_t page)
{
    const uint8_t *data;
    int r = mem_view_page(s->mem, page, s->buf + pages_to_bytes(g->count), &data);

    if (r < 0)
        return snapshot_fail(s, r, "guest memory");
    g->pieces[g->count++] = (struct snapshot_piece){.page = page, .data = data};
    if (g->count < BATCH_PAGES)
        return 0;
    r = put_batch(s, g->pieces, g->count);
    g->count = 0;
    return r;
}

static int gather_end(struct snapshotter *s, const struct gathering *g)
{
    return g->count > 0 ? put_batch(s, g->pieces, g->count) : 0;
}

static int put_one_by_one(struct snapshotter *s, uint64_t first, uint64_t count)
{
    struct gathering g = {.count = 0};
    int r = 0;

    for (uint64_t page = first; r == 0 && page < first + count; page++)
        r = gather(s, &g, page);
    return r == 0 ? gather_end(s, &g) : r;
}

static int put_run(struct snapshotter *s, uint64_t first, uint64_t count)
{
    int r = check_cancel(s);

    if (r < 0)
        return r;
    r = snapshot_out_put(s->out, first, mem_ram(s->mem) + pages_to_bytes(first), count);
    if (r < 0)
        return snapshot_fail_out(s, r);
    count_done(s, count);
    return 0;
}

static int put(struct snapshotter *s, uint64_t first, uint64_t count)
{
    int r = 0;

    while (r == 0 && count > 0) {
        uint64_t n = MIN(count, (uint64_t)COPY_PAGES);

        r = mem_some_given_back(s->mem, first, n) ? put_one_by_one(s, first, n) : put_run(s, first, n);
        first += n;
        count -= n;
    }
    return r;
}

/* Every page: what was never touched is zeros without a look. */
static int put_all(struct snapshotter *s)
{
    uint64_t at = 0, start, end;
    int r = 0;

    while (r == 0 && at < mem_size(s->mem)) {
        if (!mem_next_data(s->mem, at, &start, &end))
            start = end = mem_size(s->mem);
        r = snapshot_out_put_zeros(s->out, bytes_to_pages(at), bytes_to_pages(start - at));
        if (r < 0)
            return snapshot_fail_out(s, r);
        count_done(s, bytes_to_pages(start - at));
        r = put(s, bytes_to_pages(start), bytes_to_pages(end - start));
        at = end;
    }
    return r;
}

static int put_todo(struct snapshotter *s)
{
    struct page_set_walk w = page_set_walk_from(&s->todo, 0);
    struct gathering g = {.count = 0};
    int r = 0;

    while (r == 0 && page_set_walk_word(&s->todo, &w)) {
        r = gather(s, &g, (uint64_t)w.word * 64 + (uint64_t)__builtin_ctzll(w.bits));
        w.bits &= w.bits - 1;
    }
    return r == 0 ? gather_end(s, &g) : r;
}

int snapshot_copy_harvest(struct snapshotter *s, uint64_t *ret_harvest_ns)
{
    struct dirty_snapshot d;
    int r = dirty_log_snapshot_lock(s->log, SNAPSHOT_COPY_CONSUMER, false, &d);

    if (r < 0)
        return snapshot_fail(s, r, "dirty log");
    page_set_clear(&s->todo);
    page_set_merge(&s->todo, d.set);
    s->copy_epoch = d.epoch;
    *ret_harvest_ns = d.harvest_ns;
    dirty_log_unlock(s->log);
    if (d.lost)
        return snapshot_fail(s, -EIO, "the dirty log has lost pages");
    r = dirty_log_ack(s->log, SNAPSHOT_COPY_CONSUMER, d.epoch);
    return r < 0 ? snapshot_fail(s, r, "dirty log") : 0;
}

/* Take the pages that a diff consists of so far into s->todo; they stay unacknowledged. */
static int harvest_diff(struct snapshotter *s)
{
    struct dirty_snapshot d;
    int r = dirty_log_snapshot_lock(s->log, SNAPSHOT_CONSUMER, false, &d);

    if (r < 0)
        return snapshot_fail(s, r, "dirty log");
    page_set_clear(&s->todo);
    page_set_merge(&s->todo, d.set);
    s->track_epoch = d.epoch;
    dirty_log_unlock(s->log);
    return d.lost ? snapshot_fail(s, -EIO, "the dirty log has lost pages, take a full snapshot") : 0;
}

static void set_pages(struct snapshotter *s, uint64_t pages)
{
    pthread_mutex_lock(&s->lock);
    s->status.pages = pages;
    pthread_mutex_unlock(&s->lock);
}

int snapshot_copy_running(struct snapshotter *s)
{
    uint64_t last = UINT64_MAX, harvest_ns;
    unsigned int stalls = 0;
    int r = s->diff ? harvest_diff(s) : 0;

    if (r < 0)
        return r;
    s->buf = malloc(pages_to_bytes(BATCH_PAGES));
    if (!s->buf)
        return snapshot_fail(s, -ENOMEM, "snapshot");
    set_pages(s, s->diff ? s->todo.pages : mem_pages(s->mem));
    s->flushing = !s->diff;
    r = s->diff ? put_todo(s) : put_all(s);
    s->flushing = false;
    for (unsigned int round = 0; r == 0 && round < ROUNDS_MAX; round++) {
        r = snapshot_copy_harvest(s, &harvest_ns);
        if (r == 0)
            r = put_todo(s);
        /* One slow write of the disk's makes one long round: that says nothing yet. */
        stalls += s->todo.pages > last - last / 4;
        if (s->todo.pages <= LITTLE_PAGES || stalls == STALLS_MAX)
            break;
        last = s->todo.pages;
        pthread_mutex_lock(&s->lock);
        s->status.rounds++;
        pthread_mutex_unlock(&s->lock);
    }
    return r;
}

/* -- aside, while the guest stands still -- */

int snapshot_aside_make_room(struct snapshotter *s)
{
    uint64_t most = MIN(mem_pages(s->mem), (uint64_t)ASIDE_PAGES_MAX), ready, room;
    void *data;

    ready = MAX(2 * s->todo.pages, (uint64_t)ASIDE_PAGES_READY);
    ready = MIN(ready, most);
    room = MAX(ready, (uint64_t)ASIDE_PAGES_MIN);
    room = MIN(room, most);
    s->aside.page = calloc(room, sizeof(*s->aside.page));
    data = mmap(NULL, pages_to_bytes(room), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED || !s->aside.page) {
        if (data != MAP_FAILED)
            munmap(data, pages_to_bytes(room));
        return snapshot_fail(s, -ENOMEM, "snapshot");
    }
    /* A kernel that does not know it gives the memory when it is written to. */
    madvise(data, pages_to_bytes(ready), MADV_POPULATE_WRITE);
    s->aside.data = data;
    s->aside.room = (uint32_t)room;
    return 0;
}

void snapshot_aside_clear(struct snapshotter *s)
{
    if (s->aside.data)
        munmap(s->aside.data, pages_to_bytes(s->aside.room));
    free(s->aside.page);
    s->aside = (struct aside){0};
}

static int put_aside(struct snapshotter *s, uint64_t page)
{
    struct aside *a = &s->aside;
    uint8_t *to = a->count < a->room ? a->data + pages_to_bytes(a->count) : s->buf;
    const uint8_t *data;
    int r = mem_view_page(s->mem, page, to, &data);

    if (r < 0)
        return snapshot_fail(s, r, "guest memory");
    if (a->count == a->room) {
        r = snapshot_out_put(s->out, page, data, 1);
        return r < 0 ? snapshot_fail_out(s, r) : 0;
    }
    if (data != to)
        memcpy(to, data, GUEST_PAGE_SIZE);
    a->page[a->count++] = page;
    return 0;
}

int snapshot_aside_fill(struct snapshotter *s)
{
    struct page_set_walk w = page_set_walk_from(&s->todo, 0);
    int r = 0;

    while (r == 0 && page_set_walk_word(&s->todo, &w)) {
        r = put_aside(s, (uint64_t)w.word * 64 + (uint64_t)__builtin_ctzll(w.bits));
        w.bits &= w.bits - 1;
    }
    return r;
}

int snapshot_aside_put(struct snapshotter *s)
{
    struct snapshot_piece pieces[BATCH_PAGES];
    uint32_t at = 0;
    int r = 0;

    while (r == 0 && at < s->aside.count) {
        uint32_t n = MIN(s->aside.count - at, BATCH_PAGES);

        for (uint32_t i = 0; i < n; i++)
            pieces[i] = (struct snapshot_piece){s->aside.page[at + i], s->aside.data + pages_to_bytes(at + i)};
        r = put_batch(s, pieces, n);
        at += n;
    }
    return r;
}
