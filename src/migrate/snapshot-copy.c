#include "config.h"

#include "migrate/snapshot-job.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"

/*
 * Pages copied at a time, between two looks at whether it is to end: those of a word of a set of pages at least, and few enough to stay
 * in a CPU's cache until they are written.
 */
#define COPY_PAGES 128u
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

/* Read pages of guest memory. The guest may have given them back: nothing is to be made for them by that. */
static int read_pages(struct snapshotter *s, uint64_t first, uint64_t count, uint8_t *to)
{
    int r = mem_copy_pages(s->mem, first, count, to);

    return r < 0 ? snapshot_fail(s, r, "guest memory") : 0;
}

static int put(struct snapshotter *s, uint64_t first, uint64_t count)
{
    while (count > 0) {
        uint64_t n = MIN(count, (uint64_t)COPY_PAGES);
        int r = check_cancel(s);

        if (r == 0)
            r = read_pages(s, first, n, s->buf);
        if (r < 0)
            return r;
        r = snapshot_out_put(s->out, first, s->buf, n);
        if (r < 0)
            return snapshot_fail_out(s, r);
        count_done(s, n);
        first += n;
        count -= n;
    }
    return 0;
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

/* The next pages of the set that lie side by side, 64 at most; false at the end. */
static bool next_run(const struct page_set *set, struct page_set_walk *w, uint64_t *ret_first, uint64_t *ret_count)
{
    unsigned int first, count;

    if (!page_set_walk_word(set, w))
        return false;
    first = (unsigned int)__builtin_ctzll(w->bits);
    count = ~(w->bits >> first) ? (unsigned int)__builtin_ctzll(~(w->bits >> first)) : 64;
    /* Adding to the lowest bit carries through all of them. */
    w->bits &= w->bits + (UINT64_C(1) << first);
    *ret_first = (uint64_t)w->word * 64 + first;
    *ret_count = count;
    return true;
}

static int put_todo(struct snapshotter *s)
{
    struct page_set_walk w = page_set_walk_from(&s->todo, 0);
    struct snapshot_piece pieces[COPY_PAGES];
    uint64_t first, count, n = 0;
    int r = 0;

    while (r == 0 && next_run(&s->todo, &w, &first, &count)) {
        if (n + count > COPY_PAGES) {
            r = put_batch(s, pieces, n);
            n = 0;
        }
        if (r == 0)
            r = read_pages(s, first, count, s->buf + pages_to_bytes(n));
        for (uint64_t i = 0; i < count; i++, n++)
            pieces[n] = (struct snapshot_piece){.page = first + i, .data = s->buf + pages_to_bytes(n)};
    }
    return r == 0 && n > 0 ? put_batch(s, pieces, n) : r;
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
    s->buf = malloc(pages_to_bytes(COPY_PAGES));
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

/* As many of the pages as there is room for. */
static int fill_some(struct snapshotter *s, uint64_t first, uint64_t *count)
{
    struct aside *a = &s->aside;
    int r;

    *count = MIN(*count, (uint64_t)(a->room - a->count));
    r = read_pages(s, first, *count, a->data + pages_to_bytes(a->count));
    for (uint64_t i = 0; r == 0 && i < *count; i++)
        a->page[a->count++] = first + i;
    return r;
}

int snapshot_aside_fill(struct snapshotter *s)
{
    struct page_set_walk w = page_set_walk_from(&s->todo, 0);
    uint64_t first, count, n;
    int r = 0;

    while (r == 0 && next_run(&s->todo, &w, &first, &count)) {
        n = count;
        r = fill_some(s, first, &n);
        if (r == 0 && n < count)
            r = read_pages(s, first + n, count - n, s->buf);
        if (r == 0 && n < count) {
            r = snapshot_out_put(s->out, first + n, s->buf, count - n);
            if (r < 0)
                snapshot_fail_out(s, r);
        }
    }
    return r;
}

int snapshot_aside_put(struct snapshotter *s)
{
    struct snapshot_piece pieces[COPY_PAGES];
    uint32_t at = 0;
    int r = 0;

    while (r == 0 && at < s->aside.count) {
        uint32_t n = MIN(s->aside.count - at, COPY_PAGES);

        for (uint32_t i = 0; i < n; i++)
            pieces[i] = (struct snapshot_piece){s->aside.page[at + i], s->aside.data + pages_to_bytes(at + i)};
        r = put_batch(s, pieces, n);
        at += n;
    }
    return r;
}
