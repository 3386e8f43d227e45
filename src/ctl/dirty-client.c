#include "config.h"

#include "ctl/dirty-client.h"

#include <errno.h>
#include <string.h>

#include "base/fd.h"

json_t *dirty_arguments(const char *consumer)
{
    json_t *o = json_object_new_object();

    json_add_str(o, "name", consumer);
    return o;
}

static int bad_answer(const struct ctl *ctl, const char *command, const char *what)
{
    ctl_error("%s: the answer to %s has no %s", ctl->vm, command, what);
    return CTL_FAILED;
}

int dirty_start(const struct ctl *ctl, struct client *c, const char *consumer, bool all, uint64_t *ret_pages,
                json_t **ret_answer)
{
    _cleanup_json_ json_t *answer = NULL;
    json_t *arguments = dirty_arguments(consumer);
    int r;

    if (all)
        json_add_str(arguments, "mode", "all");
    r = ctl_ask(ctl, c, "dirty-log-start", arguments, &answer);
    if (r)
        return r;
    if (ret_pages && json_get_u64(answer, "memory-pages", ret_pages) < 0)
        return bad_answer(ctl, "dirty-log-start", "memory-pages");
    if (ret_answer)
        *ret_answer = take_ptr(answer);
    return CTL_DONE;
}

int dirty_snapshot(const struct ctl *ctl, struct client *c, const char *consumer, const char *format, unsigned int flags,
                   struct dirty_snapshot *ret, json_t **ret_answer, int *ret_fd)
{
    _cleanup_json_ json_t *answer = NULL;
    json_t *arguments = dirty_arguments(consumer);
    struct dirty_snapshot s = {0};
    struct failure f = {0};
    int fd = -1;

    json_add_str(arguments, "format", format);
    if (flags & DIRTY_PEEK)
        json_add_bool(arguments, "peek", true);
    if (flags & DIRTY_ATTRIBUTE)
        json_add_bool(arguments, "attribute", true);
    if (client_call(c, "dirty-log-snapshot", arguments, ctl->reply_timeout_ms, &answer, &fd, &f) < 0)
        return ctl_fail(ctl, &f);
    if (json_get_u64(answer, "epoch", &s.epoch) < 0 || json_get_u64(answer, "pages", &s.pages) < 0) {
        fd_close(fd);
        return bad_answer(ctl, "dirty-log-snapshot", "epoch and pages");
    }
    json_get_u64(answer, "harvest-us", &s.harvest_us);
    json_get_bool(answer, "lost", &s.lost);
    if (ret)
        *ret = s;
    if (ret_answer)
        *ret_answer = take_ptr(answer);
    if (ret_fd)
        *ret_fd = fd;
    else
        fd_close(fd);
    return CTL_DONE;
}

int dirty_ack(const struct ctl *ctl, struct client *c, const char *consumer, uint64_t epoch, json_t **ret_answer)
{
    json_t *arguments = dirty_arguments(consumer);

    json_add_u64(arguments, "epoch", epoch);
    return ctl_ask(ctl, c, "dirty-log-ack", arguments, ret_answer);
}

int dirty_read_bitmap(const struct ctl *ctl, int fd, uint64_t *bitmap, size_t words)
{
    int r;

    if (fd < 0) {
        ctl_error("%s: no bitmap came with the snapshot", ctl->vm);
        return CTL_FAILED;
    }
    r = fd_pread_all(fd, bitmap, words * sizeof(*bitmap), 0);
    if (r == 0)
        return CTL_DONE;
    if (r == -EIO)
        ctl_error("%s: the bitmap is shorter than the %zu bytes that guest memory needs", ctl->vm, words * sizeof(*bitmap));
    else
        ctl_error("%s: cannot read the bitmap: %s", ctl->vm, strerror(-r));
    return CTL_FAILED;
}
