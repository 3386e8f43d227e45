#include "config.h"

#include "migrate/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/util.h"
#include "migrate/snapshot-job.h"
#include "migrate/snapshot-open.h"

const char *snapshot_phase_name(enum snapshot_phase phase)
{
    static const char *const names[] = {
        [SNAPSHOT_NONE] = "none",           [SNAPSHOT_ACTIVE] = "active", [SNAPSHOT_FINISHING] = "finishing",
        [SNAPSHOT_COMPLETED] = "completed", [SNAPSHOT_FAILED] = "failed", [SNAPSHOT_CANCELLED] = "cancelled",
    };

    return names[phase];
}

/* -- the guest stands still: main thread -------------------------------------- */

static int note_tracked(struct snapshotter *s)
{
    struct dirty_snapshot d;
    int r;

    if (!s->track)
        return 0;
    r = dirty_log_snapshot_lock(s->log, SNAPSHOT_CONSUMER, false, &d);
    if (r < 0)
        return snapshot_fail(s, r, "dirty log");
    s->track_epoch = d.epoch;
    dirty_log_unlock(s->log);
    /* Of a full snapshot all is there whatever the log lost; the next diff starts from here. */
    return d.lost && s->diff ? snapshot_fail(s, -EIO, "the dirty log has lost pages, take a full snapshot") : 0;
}

static int copy_held(struct snapshotter *s, struct snapshot_status *times)
{
    uint64_t start;
    int r = s->ops.check(s->ops.opaque, s->error);

    if (r == 0)
        r = snapshot_copy_harvest(s, &times->harvest_ns);
    if (r == 0)
        r = note_tracked(s);
    if (r == 0) {
        times->final_pages = s->todo.pages;
        r = snapshot_aside_fill(s);
    }
    if (r < 0)
        return r;
    start = clock_ns();
    r = s->ops.save(s->ops.opaque, &s->state, &s->state_len);
    times->save_ns = clock_ns() - start;
    return r < 0 ? snapshot_fail(s, r, "machine state") : 0;
}

/* The result is in s->error (empty: success). */
static void hold(struct snapshotter *s)
{
    struct snapshot_status times = {0};
    uint64_t start = clock_ns();

    s->ops.hold(s->ops.opaque);
    copy_held(s, &times);
    s->ops.release(s->ops.opaque);
    times.pause_ns = clock_ns() - start;
    pthread_mutex_lock(&s->lock);
    s->status.pause_ns = times.pause_ns;
    s->status.harvest_ns = times.harvest_ns;
    s->status.save_ns = times.save_ns;
    s->status.final_pages = times.final_pages;
    s->status.phase = SNAPSHOT_FINISHING;
    pthread_mutex_unlock(&s->lock);
}

/* -- the thread --------------------------------------------------------------- */

/* Ask the main thread for it and wait until it is done; while it has not begun, only until the job is to end. */
static int call_hold(struct snapshotter *s)
{
    int r = 0;

    pthread_mutex_lock(&s->lock);
    s->call = CALL_HOLD;
    fd_event_signal(s->call_fd);
    while (s->call == CALL_HOLDING || (s->call == CALL_HOLD && !atomic_load(&s->cancel)))
        pthread_cond_wait(&s->answered, &s->lock);
    if (s->call == CALL_HOLD) {
        /* The main thread will not do it any more. */
        s->call = CALL_NONE;
        r = -ECANCELED;
    }
    pthread_mutex_unlock(&s->lock);
    if (r < 0)
        return snapshot_fail(s, r, "snapshot");
    return s->error[0] ? -EIO : 0;
}

/* Have the dirty log on before the first page is read. */
static int start_logging(struct snapshotter *s)
{
    int r = s->started_tracking ? dirty_log_start(s->log, SNAPSHOT_CONSUMER, DIRTY_START_CHANGES) : 0;

    if (r < 0) {
        s->started_tracking = false;
        return snapshot_fail(s, r, "dirty log");
    }
    r = dirty_log_start(s->log, SNAPSHOT_COPY_CONSUMER, DIRTY_START_CHANGES);
    if (r < 0)
        return snapshot_fail(s, r, "dirty log");
    s->copying = true;
    return 0;
}

static void stop_copying(struct snapshotter *s)
{
    if (s->copying)
        dirty_log_stop(s->log, SNAPSHOT_COPY_CONSUMER);
    s->copying = false;
}

static int create(struct snapshotter *s)
{
    int r = snapshot_out_new(s->status.dir, mem_pages(s->mem), &s->out, s->error);
    size_t len = strlen(s->error);

    if ((r == -EACCES || r == -EROFS) && *s->ops.places)
        snprintf(s->error + len, sizeof(s->error) - len, " (%s)", s->ops.places);
    return r;
}

static int take(struct snapshotter *s)
{
    int r = create(s);

    if (r == 0)
        r = page_set_init(&s->todo, mem_pages(s->mem)) < 0 ? snapshot_fail(s, -ENOMEM, "snapshot") : 0;
    if (r == 0)
        r = start_logging(s);
    if (r == 0)
        r = snapshot_copy_running(s);
    if (r == 0)
        r = snapshot_aside_make_room(s);
    if (r == 0)
        r = call_hold(s);
    stop_copying(s);
    if (r == 0)
        r = snapshot_aside_put(s);
    if (r < 0)
        return r;
    s->meta.created = (uint64_t)time(NULL);
    s->meta.epoch = s->track ? s->track_epoch : 0;
    r = snapshot_out_commit(s->out, &s->meta, s->state, s->state_len);
    return r < 0 ? snapshot_fail_out(s, r) : 0;
}

static void clear_job(struct snapshotter *s)
{
    stop_copying(s);
    snapshot_out_free(s->out);
    s->out = NULL;
    snapshot_aside_clear(s);
    page_set_free(&s->todo);
    s->todo = (struct page_set){0};
    free(s->buf);
    s->buf = NULL;
    free(s->state);
    s->state = NULL;
}

static void *job_thread(void *arg)
{
    struct snapshotter *s = arg;
    int r;

    thread_enter(THREAD_MIGRATE, "snapshot");
    r = take(s);

    /* On disk, and not a moment before. */
    if (r == 0 && s->track)
        dirty_log_ack(s->log, SNAPSHOT_CONSUMER, s->track_epoch);
    if (r < 0 && s->started_tracking)
        dirty_log_stop(s->log, SNAPSHOT_CONSUMER);
    clear_job(s);
    pthread_mutex_lock(&s->lock);
    s->status.phase = r == 0 ? SNAPSHOT_COMPLETED : r == -ECANCELED ? SNAPSHOT_CANCELLED : SNAPSHOT_FAILED;
    s->status.total_ns = clock_ns() - s->start_ns;
    if (r == 0)
        strcpy(s->status.id, s->meta.id);
    else if (r != -ECANCELED)
        strcpy(s->status.error, s->error);
    s->call = CALL_END;
    fd_event_signal(s->call_fd);
    pthread_mutex_unlock(&s->lock);
    thread_leave();
    return NULL;
}

/* -- main thread -------------------------------------------------------------- */

static void track(struct snapshotter *s)
{
    char *path = realpath(s->status.dir, NULL);

    free(s->tracked_path);
    s->tracked_path = path ? path : strdup(s->status.dir);
    strcpy(s->tracked_id, s->meta.id);
    s->tracked_depth = s->diff ? s->tracked_depth + 1 : 1;
}

static void end_job(struct snapshotter *s)
{
    pthread_join(s->thread, NULL);
    s->running = false;
    if (s->status.phase == SNAPSHOT_COMPLETED && s->track)
        track(s);
    if (s->status.phase == SNAPSHOT_COMPLETED)
        log_info("snapshot %s: %" PRIu64 " pages, the guest stood still for %" PRIu64 " us", s->status.dir,
                 s->status.stored, s->status.pause_ns / NSEC_PER_USEC);
    else if (s->status.phase == SNAPSHOT_FAILED)
        log_err("snapshot failed: %s", s->status.error);
    snapshot_meta_clear(&s->meta);
}

/* What is to be done. A hold is the main thread's from here on, unless the job gives it up, as it does when it is cancelled. */
static enum call claim_call(struct snapshotter *s)
{
    enum call call;

    pthread_mutex_lock(&s->lock);
    call = s->call == CALL_HOLD && atomic_load(&s->cancel) ? CALL_NONE : s->call;
    if (call == CALL_HOLD)
        s->call = CALL_HOLDING;
    pthread_mutex_unlock(&s->lock);
    return call;
}

static void on_call(evutil_socket_t fd, short what, void *arg)
{
    struct snapshotter *s = arg;
    enum call call;

    fd_event_clear(s->call_fd);
    call = claim_call(s);
    if (call == CALL_HOLD)
        hold(s);
    else if (call == CALL_END)
        end_job(s);
    if (call == CALL_NONE)
        return;
    pthread_mutex_lock(&s->lock);
    s->call = CALL_NONE;
    pthread_cond_signal(&s->answered);
    pthread_mutex_unlock(&s->lock);
    if (call == CALL_END)
        s->ops.changed(s->ops.opaque);
}

int snapshotter_new(struct event_base *events, struct mem *mem, struct dirty_log *log, const struct snapshot_ops *ops,
                    struct snapshotter **ret)
{
    struct snapshotter *s = calloc(1, sizeof(*s));
    int r = -ENOMEM;

    if (!s)
        return -ENOMEM;
    s->mem = mem;
    s->log = log;
    s->ops = *ops;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->answered, NULL);
    s->call_fd = fd_eventfd();
    if (s->call_fd < 0)
        r = s->call_fd;
    else
        s->call_event = event_new(events, s->call_fd, EV_READ | EV_PERSIST, on_call, s);
    if (!s->call_event || event_add(s->call_event, NULL) < 0) {
        snapshotter_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

void snapshotter_free(struct snapshotter *s)
{
    if (!s)
        return;
    if (s->running) {
        snapshotter_cancel(s);
        pthread_join(s->thread, NULL);
        snapshot_meta_clear(&s->meta);
    }
    if (s->call_event)
        event_free(s->call_event);
    fd_close(s->call_fd);
    free(s->tracked_path);
    pthread_cond_destroy(&s->answered);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

bool snapshotter_busy(const struct snapshotter *s)
{
    return s->running;
}

void snapshotter_cancel(struct snapshotter *s)
{
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->cancel, true);
    pthread_cond_signal(&s->answered);
    pthread_mutex_unlock(&s->lock);
}

/* Everything about the new snapshot that the main thread knows. */
static int prepare(struct snapshotter *s, const struct snapshot_request *request)
{
    int r = snapshot_meta_new_id(&s->meta);

    if (r == 0)
        r = s->ops.describe(s->ops.opaque, &s->meta);
    if (r < 0)
        return snapshot_fail(s, r, "snapshot");
    snprintf(s->meta.producer, sizeof(s->meta.producer), "umbra %s", PACKAGE_VERSION);
    if (!request->diff)
        return 0;
    strcpy(s->meta.parent_id, s->tracked_id);
    r = snapshot_parent_path(request->dir, s->tracked_path, s->meta.parent_path);
    return r < 0 ? snapshot_fail(s, r, "the directory of the snapshot or of its parent") : 0;
}

/* A parent that is gone or another one makes the diff worthless: better said now. */
static int check_parent(struct snapshotter *s, char *error)
{
    struct snapshot_meta meta;
    int r;

    if (!s->tracked_path) {
        snprintf(error, SNAPSHOT_ERROR_MAX, "there is no snapshot that a diff could stand on: take a full one first");
        return -ENOENT;
    }
    r = snapshot_read_meta(s->tracked_path, &meta, error);
    if (r < 0)
        return r;
    r = strcmp(meta.id, s->tracked_id) == 0 ? 0 : -ENOENT;
    if (r < 0)
        snprintf(error, SNAPSHOT_ERROR_MAX, "%.300s: is another snapshot by now: take a full one", s->tracked_path);
    snapshot_meta_clear(&meta);
    return r;
}

/* One more than can be restored is no use to anybody. */
static int check_depth(struct snapshotter *s, char *error)
{
    int r;

    if (s->tracked_depth < SNAPSHOT_CHAIN_MAX)
        return 0;
    r = snapshot_chain_length(s->tracked_path, &s->tracked_depth, error);
    if (r < 0 || s->tracked_depth < SNAPSHOT_CHAIN_MAX)
        return r;
    snprintf(error, SNAPSHOT_ERROR_MAX, "%.300s: the chain has %u snapshots: take a full one, or merge some of them and put the result "
             "in their place", s->tracked_path, SNAPSHOT_CHAIN_MAX);
    return -E2BIG;
}

static int start_thread(struct snapshotter *s, const struct snapshot_request *request)
{
    int r;

    s->diff = request->diff;
    s->track = request->diff || request->track;
    s->started_tracking = s->track && !s->tracked_path;
    s->flushed = 0;
    atomic_store(&s->cancel, false);
    s->start_ns = clock_ns();
    s->status = (struct snapshot_status){.phase = SNAPSHOT_ACTIVE};
    strcpy(s->status.dir, request->dir);
    strcpy(s->status.parent_id, s->meta.parent_id);
    r = thread_start(&s->thread, 0, job_thread, s);
    if (r < 0) {
        s->status = (struct snapshot_status){.phase = SNAPSHOT_NONE};
        return snapshot_fail(s, r, "snapshot: thread");
    }
    s->running = true;
    return 0;
}

/* A consumer that lost pages has lost them for good: only one that begins anew has all. */
static bool tracking_lost(struct snapshotter *s)
{
    struct dirty_consumer_info info[DIRTY_MAX_CONSUMERS];
    size_t n = dirty_log_consumers(s->log, info, DIRTY_MAX_CONSUMERS);

    for (size_t i = 0; i < MIN(n, (size_t)DIRTY_MAX_CONSUMERS); i++)
        if (strcmp(info[i].name, SNAPSHOT_CONSUMER) == 0)
            return info[i].lost;
    return false;
}

int snapshotter_start(struct snapshotter *s, const struct snapshot_request *request, char *error)
{
    int r;

    if (s->running) {
        snprintf(error, SNAPSHOT_ERROR_MAX, "a snapshot is under way");
        return -EBUSY;
    }
    if (strlen(request->dir) > SNAPSHOT_PATH_MAX) {
        snprintf(error, SNAPSHOT_ERROR_MAX, "the path has more than %d bytes", SNAPSHOT_PATH_MAX);
        return -ENAMETOOLONG;
    }
    if (!request->diff && s->tracked_path && tracking_lost(s))
        snapshotter_untrack(s);
    r = request->diff ? check_parent(s, error) : 0;
    if (r == 0 && request->diff)
        r = check_depth(s, error);
    if (r < 0)
        return r;
    s->error[0] = '\0';
    r = prepare(s, request);
    if (r == 0)
        r = start_thread(s, request);
    if (r < 0) {
        strcpy(error, s->error);
        snapshot_meta_clear(&s->meta);
        return r;
    }
    s->ops.changed(s->ops.opaque);
    return 0;
}

int snapshotter_untrack(struct snapshotter *s)
{
    if (s->running)
        return -EBUSY;
    if (!s->tracked_path)
        return -ENOENT;
    free(s->tracked_path);
    s->tracked_path = NULL;
    return dirty_log_stop(s->log, SNAPSHOT_CONSUMER);
}

void snapshotter_status(struct snapshotter *s, struct snapshot_status *ret)
{
    pthread_mutex_lock(&s->lock);
    *ret = s->status;
    pthread_mutex_unlock(&s->lock);
    if (ret->phase == SNAPSHOT_ACTIVE || ret->phase == SNAPSHOT_FINISHING)
        ret->total_ns = clock_ns() - s->start_ns;
    ret->tracking = s->tracked_path != NULL;
    strcpy(ret->tracked_id, ret->tracking ? s->tracked_id : "");
}
