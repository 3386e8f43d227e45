/* The dirty log and the dirty rate on the control socket. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/util.h"
#include "daemon/consumers.h"
#include "daemon/dirty-rate.h"
#include "daemon/machine-mmu.h"
#include "daemon/machine.h"
#include "daemon/qmp-internal.h"
#include "daemon/range-text.h"
#include "migrate/snapshot.h"
#include "mmu/dirty.h"
#include "vcpu/vm.h"

/* An answer with so many ranges is at most 6 MB of text and fits a client's queue. Memory of 2 GiB cannot have more. */
#define RANGES_MAX 262144
#define RANGES_CHUNK 512

/* -- consumers --------------------------------------------------------------- */

/* The request's consumer, or NULL with the error set: some are the daemon's own. */
static const char *consumer_name(struct qmp_request *req)
{
    const char *name = NULL, *owner;

    json_get_str(req->args, "name", &name);
    owner = consumer_owner(name);
    if (!owner)
        return name;
    qmp_error_set(&req->error, QMP_GENERIC_ERROR, "dirty log consumer '%s' belongs to %s", name, owner);
    return NULL;
}

/* What is gathered for diffs may be ended by hand, since it costs the guest something. */
static bool is_tracking(const struct qmp_request *req)
{
    const char *name = NULL;

    return json_get_str(req->args, "name", &name) == 0 && strcmp(name, SNAPSHOT_CONSUMER) == 0;
}

static json_t *consumer_error(struct qmp_request *req, const char *name, int err)
{
    switch (err) {
    case -ENOENT:
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "there is no dirty log consumer '%.64s'", name);
        break;
    case -EEXIST:
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "there is a dirty log consumer '%.64s' already", name);
        break;
    case -ENOSPC:
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "too many dirty log consumers, the limit is %d",
                      DIRTY_MAX_CONSUMERS);
        break;
    default:
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "dirty log consumer '%.64s': %s", name, strerror(-err));
    }
    return NULL;
}

json_t *qmp_dirty_log_start(struct qmp_request *req)
{
    struct vm *vm = machine_vm(req->machine);
    const char *name = consumer_name(req), *mode = "changes";
    json_t *answer;
    int r;

    if (!name)
        return NULL;
    json_get_str(req->args, "mode", &mode);
    r = dirty_log_start(vm_dirty_log(vm), name, strcmp(mode, "all") == 0 ? DIRTY_START_ALL : DIRTY_START_CHANGES);
    if (r == -EINVAL) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "dirty log consumer name '%.64s' is not 1 to %d bytes long", name,
                      DIRTY_NAME_MAX);
        return NULL;
    }
    if (r < 0)
        return consumer_error(req, name, r);
    answer = json_object_new_object();
    json_add_str(answer, "name", name);
    json_add_u64(answer, "epoch", 0);
    json_add_u64(answer, "page-size", GUEST_PAGE_SIZE);
    json_add_u64(answer, "memory-pages", mem_pages(vm_mem(vm)));
    return answer;
}

json_t *qmp_dirty_log_stop(struct qmp_request *req)
{
    const char *name;
    int r;

    if (is_tracking(req)) {
        r = qmp_snapshot_untrack(req->context->snapshot);
        return r < 0 ? consumer_error(req, SNAPSHOT_CONSUMER, r) : json_object_new_object();
    }
    name = consumer_name(req);
    if (!name)
        return NULL;
    r = dirty_log_stop(vm_dirty_log(machine_vm(req->machine)), name);
    return r < 0 ? consumer_error(req, name, r) : json_object_new_object();
}

json_t *qmp_dirty_log_ack(struct qmp_request *req)
{
    const char *name = consumer_name(req);
    uint64_t epoch = 0;
    int r;

    if (!name)
        return NULL;
    json_get_u64(req->args, "epoch", &epoch);
    r = dirty_log_ack(vm_dirty_log(machine_vm(req->machine)), name, epoch);
    if (r == -EINVAL) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR,
                      "epoch %" PRIu64 " is not the newest of dirty log consumer '%.64s'", epoch, name);
        return NULL;
    }
    return r < 0 ? consumer_error(req, name, r) : json_object_new_object();
}

/* -- snapshots --------------------------------------------------------------- */

/* Write the answer with the snapshot's pages as runs of guest frames. 0, -E2BIG (too many), -ENOMEM. */
static int write_ranges(struct range_text *t, const struct mem *mem, const struct dirty_snapshot *snapshot)
{
    struct dirty_range chunk[RANGES_CHUNK];
    size_t n, total = 0;
    pfn_t cursor = 0;
    int r = range_text_printf(t, "{\"epoch\":%" PRIu64 ",\"pages\":%" PRIu64 ",\"ranges\":[", snapshot->epoch,
                              snapshot->pages);

    while (r == 0 && (n = dirty_ranges(mem, snapshot, &cursor, chunk, RANGES_CHUNK)) > 0) {
        total += n;
        r = total > RANGES_MAX ? -E2BIG : range_text_reserve(t, n);
        for (size_t i = 0; r == 0 && i < n; i++)
            range_text_add(t, chunk[i].gfn, chunk[i].pages);
    }
    if (r == 0)
        r = range_text_printf(t, "],\"lost\":%s,\"harvest-us\":%" PRIu64 "}", snapshot->lost ? "true" : "false",
                              snapshot->harvest_ns / NSEC_PER_USEC);
    return r;
}

/* Sets the answer's text, or the error: then nothing is lost, the epoch comes back. */
static void answer_ranges(struct qmp_request *req, const struct mem *mem, const struct dirty_snapshot *snapshot)
{
    struct range_text text = {0};
    int r = write_ranges(&text, mem, snapshot);

    if (r == 0) {
        req->text = text.data;
        req->text_len = text.len;
        return;
    }
    range_text_clear(&text);
    if (r == -E2BIG)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR,
                      "the dirty pages make more than %d ranges, use format bitmap; no page is lost", RANGES_MAX);
    else
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "ranges of %" PRIu64 " pages: %s; no page is lost", snapshot->pages,
                      strerror(-r));
}

/* A memfd with the bitmap that nobody can change any more, or -errno. */
static int bitmap_memfd(const uint64_t *bitmap, size_t words)
{
    _cleanup_close_ int fd = memfd_create("dirty-bitmap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int r;

    if (fd < 0)
        return -errno;
    r = fd_write_all(fd, bitmap, words * sizeof(*bitmap));
    if (r < 0)
        return r;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
        return -errno;
    return take_fd(fd);
}

/* Pass the bitmap, and tell which bits stand for which guest frames. */
static bool add_bitmap(struct qmp_request *req, json_t *answer, const struct mem *mem, const uint64_t *bitmap,
                       size_t words)
{
    json_t *info, *table;
    const struct mem_slot *slots;
    unsigned int count;
    int fd = bitmap_memfd(bitmap, words);

    if (fd < 0) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "dirty bitmap of %zu bytes: %s; no page is lost",
                      words * sizeof(*bitmap), strerror(-fd));
        return false;
    }
    req->reply_fd = fd;
    info = json_object_new_object();
    table = json_object_new_array();
    slots = mem_slots(mem, &count);
    for (unsigned int i = 0; i < count; i++) {
        json_t *slot = json_object_new_object();

        json_add_u64(slot, "slot", slots[i].id);
        json_add_u64(slot, "gfn", gpa_to_gfn(slots[i].base));
        json_add_u64(slot, "pages", bytes_to_pages(slots[i].size));
        json_add_u64(slot, "first-bit", bytes_to_pages(slots[i].offset));
        json_push(table, slot);
    }
    json_add_u64(info, "size", words * sizeof(*bitmap));
    json_add_u64(info, "bits", mem_pages(mem));
    json_add(info, "slots", table);
    json_add(answer, "bitmap", info);
    return true;
}

/* The answer without ranges; NULL with the error set. */
static json_t *answer_object(struct qmp_request *req, struct vm *vm, const struct dirty_snapshot *snapshot, bool bitmap)
{
    json_t *answer = json_object_new_object();

    json_add_u64(answer, "epoch", snapshot->epoch);
    json_add_u64(answer, "pages", snapshot->pages);
    if (bitmap && !add_bitmap(req, answer, vm_mem(vm), snapshot->bitmap, dirty_log_words(vm_dirty_log(vm)))) {
        json_object_put(answer);
        return NULL;
    }
    json_add_bool(answer, "lost", snapshot->lost);
    json_add_u64(answer, "harvest-us", snapshot->harvest_ns / NSEC_PER_USEC);
    return answer;
}

/*
 * What would fail is refused before the snapshot is taken, and *ret_copy made ready: attribution works on a copy, because a
 * vCPU with a full ring waits for the log's lock, and because the mirror's lock comes before it.
 */
static bool may_attribute(struct qmp_request *req, const char *format, struct page_set *ret_copy)
{
    struct tracker_settings s;

    tracker_settings(machine_mmu_tracker(machine_mmu(req->machine)), &s);
    if (strcmp(format, "ranges") == 0)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "attribute does not go with format ranges");
    else if (s.mode == TRACKER_OFF)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "guest page tables are not tracked: mmu-set tracking first");
    else if (page_set_init(ret_copy, mem_pages(vm_mem(machine_vm(req->machine)))) < 0)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "out of memory; no page is lost");
    return !req->error.set;
}

/* Takes the answer; NULL with the error set. */
static json_t *add_attribution(struct qmp_request *req, json_t *answer, const struct page_set *dirty)
{
    json_t *attribution = qmp_attribution(req, dirty);

    if (attribution) {
        json_add(answer, "attribution", attribution);
        return answer;
    }
    json_object_put(answer);
    if (req->reply_fd >= 0)
        req->reply_fd = fd_close(req->reply_fd);
    return NULL;
}

json_t *qmp_dirty_log_snapshot(struct qmp_request *req)
{
    struct vm *vm = machine_vm(req->machine);
    struct dirty_log *log = vm_dirty_log(vm);
    const char *name = consumer_name(req), *format = "count";
    struct dirty_snapshot snapshot;
    struct page_set copy = {0};
    json_t *answer = NULL;
    bool peek = false, attribute = false;
    int r;

    if (!name)
        return NULL;
    json_get_str(req->args, "format", &format);
    json_get_bool(req->args, "peek", &peek);
    json_get_bool(req->args, "attribute", &attribute);
    if (attribute && !may_attribute(req, format, &copy))
        return NULL;
    r = dirty_log_snapshot_lock(log, name, peek, &snapshot);
    if (r < 0) {
        page_set_free(&copy);
        return consumer_error(req, name, r);
    }
    if (attribute)
        page_set_merge(&copy, snapshot.set);
    if (strcmp(format, "ranges") == 0)
        answer_ranges(req, vm_mem(vm), &snapshot);
    else
        answer = answer_object(req, vm, &snapshot, strcmp(format, "bitmap") == 0);
    dirty_log_unlock(log);
    if (attribute && answer)
        answer = add_attribution(req, answer, &copy);
    page_set_free(&copy);
    return answer;
}

/* -- questions --------------------------------------------------------------- */

static json_t *consumer_object(const struct dirty_consumer_info *c)
{
    json_t *o = json_object_new_object();

    json_add_str(o, "name", c->name);
    json_add_str(o, "mode", c->mode == DIRTY_START_ALL ? "all" : "changes");
    json_add_u64(o, "epoch", c->epoch);
    json_add_u64(o, "pending", c->pending);
    json_add_u64(o, "unacknowledged", c->unacknowledged);
    json_add_u64(o, "snapshots", c->snapshots);
    json_add_u64(o, "pages", c->pages);
    json_add_bool(o, "lost", c->lost);
    return o;
}

static json_t *totals_object(const struct dirty_stats *s)
{
    json_t *o = json_object_new_object();

    json_add_u64(o, "harvests", s->harvests);
    json_add_u64(o, "harvest-us", s->harvest_ns / NSEC_PER_USEC);
    json_add_u64(o, "pages", s->pages);
    json_add_u64(o, "vmm-pages", s->vmm_pages);
    json_add_u64(o, "get-ioctls", s->get_ioctls);
    json_add_u64(o, "clear-ioctls", s->clear_ioctls);
    json_add_u64(o, "clear-words", s->clear_words);
    json_add_u64(o, "ring-full", s->ring_full);
    json_add_u64(o, "ring-entries", s->ring_entries);
    json_add_u64(o, "ring-resets", s->ring_resets);
    json_add_u64(o, "ring-overruns", s->ring_overruns);
    json_add_u64(o, "failures", s->failures);
    return o;
}

json_t *qmp_query_dirty_log(struct qmp_request *req)
{
    struct vm *vm = machine_vm(req->machine);
    struct dirty_log *log = vm_dirty_log(vm);
    struct dirty_consumer_info consumers[DIRTY_MAX_CONSUMERS];
    size_t n = dirty_log_consumers(log, consumers, DIRTY_MAX_CONSUMERS);
    json_t *answer = json_object_new_object(), *list = json_object_new_array();
    struct dirty_stats stats;

    dirty_log_stats(log, &stats);
    for (size_t i = 0; i < MIN(n, (size_t)DIRTY_MAX_CONSUMERS); i++)
        json_push(list, consumer_object(&consumers[i]));
    json_add_str(answer, "backend", dirty_log_backend(log) == DIRTY_RING ? "ring" : "bitmap");
    json_add_u64(answer, "page-size", GUEST_PAGE_SIZE);
    json_add_u64(answer, "memory-pages", mem_pages(vm_mem(vm)));
    json_add(answer, "consumers", list);
    json_add(answer, "totals", totals_object(&stats));
    return answer;
}

/* -- the dirty rate, as QEMU has it ------------------------------------------ */

static const char *const rate_modes[] = {
    [DIRTY_RATE_PAGE_SAMPLING] = "page-sampling",
    [DIRTY_RATE_RING] = "dirty-ring",
    [DIRTY_RATE_BITMAP] = "dirty-bitmap",
};

json_t *qmp_calc_dirty_rate(struct qmp_request *req)
{
    enum dirty_rate_mode mode = DIRTY_RATE_PAGE_SAMPLING;
    const char *name = rate_modes[DIRTY_RATE_PAGE_SAMPLING];
    uint64_t seconds = 0, samples = DIRTY_RATE_SAMPLES_DEFAULT;
    bool samples_given = json_get_u64(req->args, "sample-pages", &samples) == 0;
    int r;

    json_get_u64(req->args, "calc-time", &seconds);
    json_get_str(req->args, "mode", &name);
    while (strcmp(rate_modes[mode], name) != 0)
        mode++;
    if (samples_given && mode == DIRTY_RATE_RING) {
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "either sample-pages or dirty-ring can be specified.");
        return NULL;
    }
    r = dirty_rate_start(req->context->dirty_rate, mode, (unsigned int)seconds, (unsigned int)samples);
    if (r == -EBUSY)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "the dirty rate is already being measured.");
    else if (r == -ENOTSUP)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "mode %s is not enabled, use other method instead.", name);
    else if (r == -ENOSPC)
        consumer_error(req, DIRTY_RATE_CONSUMER, r);
    else if (r < 0)
        qmp_error_set(&req->error, QMP_GENERIC_ERROR, "the dirty rate cannot be measured: %s", strerror(-r));
    return r < 0 ? NULL : json_object_new_object();
}

json_t *qmp_query_dirty_rate(struct qmp_request *req)
{
    static const char *const states[] = {
        [DIRTY_RATE_UNSTARTED] = "unstarted",
        [DIRTY_RATE_MEASURING] = "measuring",
        [DIRTY_RATE_MEASURED] = "measured",
    };
    const struct dirty_rate_info *info = dirty_rate_info(req->context->dirty_rate);
    json_t *answer = json_object_new_object();

    json_add_str(answer, "status", states[info->state]);
    json_add_i64(answer, "sample-pages", info->samples);
    if (info->state == DIRTY_RATE_MEASURED)
        json_add_u64(answer, "dirty-rate", info->rate);
    json_add_str(answer, "mode", rate_modes[info->mode]);
    json_add_u64(answer, "start-time", info->start_time);
    json_add_u64(answer, "calc-time", info->calc_time);
    if (info->state == DIRTY_RATE_MEASURED && info->mode == DIRTY_RATE_RING) {
        json_t *list = json_object_new_array();

        for (unsigned int i = 0; i < info->vcpus; i++) {
            json_t *o = json_object_new_object();

            json_add_i64(o, "id", i);
            json_add_u64(o, "dirty-rate", info->vcpu_rate[i]);
            json_push(list, o);
        }
        json_add(answer, "vcpu-dirty-rate", list);
    }
    return answer;
}
