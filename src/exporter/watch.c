#include "config.h"

#include "exporter/watch.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/fd.h"
#include "base/json.h"
#include "base/util.h"
#include "base/vm-names.h"
#include "ctl/client.h"
#include "ctl/map.h"

#define INTERVAL_MS 1000
/* A VM may take so long for an answer. */
#define ANSWER_MS 2000
#define MAX_ANSWER (4 * MiB)
#define MAP_COLUMNS 64
#define MAP_ROWS 24
#define MAX_SPACES 8

struct watch {
    struct watch_config config;
    pthread_t thread;
    int stop_fd;
    atomic_bool over;
    _Atomic(char *) text; /* that nobody has taken */

    /* The thread's own. */
    struct client *client;
    struct map map;
    bool has_map, no_attribution;
};

/* -- conversations ----------------------------------------------------------- */

static struct client *dial(const char *runtime_dir, const char *vm, struct failure *f)
{
    struct client *c = NULL;
    char path[PATH_MAX];

    if (paths_vm_file(runtime_dir, vm, "control.sock", path, sizeof(path)) < 0) {
        failure_set(f, FAILURE_LOCAL, "the socket's path is too long");
        return NULL;
    }
    if (client_connect(path, &c, f) < 0)
        return NULL;
    client_limit(c, MAX_ANSWER);
    if (client_negotiate(c, ANSWER_MS, f) == 0)
        return c;
    client_close(c);
    return NULL;
}

static json_t *consumer_args(const char *consumer)
{
    json_t *args = json_object_new_object();

    json_add_str(args, "name", consumer);
    return args;
}

static int call(struct client *c, const char *command, json_t *args, json_t **ret, int *ret_fd, struct failure *f)
{
    return client_call(c, command, args, ANSWER_MS, ret, ret_fd, f);
}

static int begin(struct watch *w, struct failure *f)
{
    struct failure ignored = {0};

    w->client = dial(w->config.runtime_dir, w->config.vm, f);
    if (!w->client)
        return -1;
    /* One of that name is this exporter's, from before a connection broke. */
    call(w->client, "dirty-log-stop", consumer_args(w->config.consumer), NULL, NULL, &ignored);
    return call(w->client, "dirty-log-start", consumer_args(w->config.consumer), NULL, NULL, f);
}

static void end(struct watch *w, bool stop)
{
    struct failure ignored = {0};

    if (w->client && stop)
        call(w->client, "dirty-log-stop", consumer_args(w->config.consumer), NULL, NULL, &ignored);
    client_close(w->client);
    w->client = NULL;
    if (w->has_map)
        map_clear(&w->map);
    w->has_map = false;
}

/* -- the map ----------------------------------------------------------------- */

static int snapshot(struct watch *w, json_t **ret, int *ret_fd, struct failure *f)
{
    json_t *args = consumer_args(w->config.consumer);
    int r;

    json_add_str(args, "format", "bitmap");
    if (!w->no_attribution)
        json_add_bool(args, "attribute", true);
    r = call(w->client, "dirty-log-snapshot", args, ret, ret_fd, f);
    /* Not every VM keeps account of address spaces. */
    if (r < 0 && f->kind == FAILURE_REFUSED && !w->no_attribution) {
        w->no_attribution = true;
        return snapshot(w, ret, ret_fd, f);
    }
    return r;
}

static int count_pages(struct watch *w, const json_t *answer, int fd, struct failure *f)
{
    _cleanup_free_ uint64_t *bits = NULL;
    json_t *layout;
    int r = w->has_map ? 0 : json_get_obj(answer, "bitmap", &layout);

    if (r == 0 && !w->has_map)
        r = map_init(&w->map, layout);
    if (r == 0) {
        w->has_map = true;
        bits = calloc(map_words(&w->map) + 1, sizeof(*bits));
        r = !bits ? -ENOMEM : fd < 0 ? -EINVAL : fd_pread_all(fd, bits, map_words(&w->map) * sizeof(*bits), 0);
    }
    if (r == 0) {
        map_add(&w->map, bits);
        r = map_fit(&w->map, MAP_COLUMNS, MAP_ROWS);
    }
    if (r < 0)
        failure_set(f, FAILURE_PROTOCOL, "its snapshot makes no sense");
    return r;
}

static json_t *describe_map(const struct watch *w)
{
    json_t *o = json_object_new_object();
    size_t cells = (size_t)w->map.columns * w->map.rows;
    char *levels = malloc(cells + 1);

    /* A character a cell: '.' no RAM, else how hot it is. */
    for (size_t i = 0; levels && i < cells; i++)
        levels[i] = w->map.cells[i].ram == 0 ? '.' : (char)('0' + map_level(&w->map.cells[i]));
    if (levels)
        levels[cells] = '\0';
    json_add_u64(o, "columns", w->map.columns);
    json_add_u64(o, "rows", w->map.rows);
    json_add_u64(o, "cell_bytes", w->map.cell_pages * MAP_PAGE_SIZE);
    json_add_u64(o, "dirty_pages", w->map.dirty_pages);
    json_add_u64(o, "touched_pages", w->map.touched_pages);
    json_add_u64(o, "pages", w->map.pages);
    json_add_str(o, "levels", levels ? levels : "");
    free(levels);
    return o;
}

/* The address spaces that wrote most, where the VM keeps account of them: only what is shown, and only if it is of its type. */
static json_t *ask_spaces(struct watch *w)
{
    json_t *args = json_object_new_object(), *list = NULL, *shown = json_object_new_array();
    _cleanup_json_ json_t *answer = NULL;
    struct failure ignored = {0};

    json_add_u64(args, "limit", MAX_SPACES);
    json_add_str(args, "sort", "dirty");
    if (call(w->client, "query-mmu-spaces", args, &answer, NULL, &ignored) < 0 || json_get_array(answer, "spaces", &list) < 0)
        return shown;
    for (size_t i = 0; i < MIN(json_object_array_length(list), (size_t)MAX_SPACES); i++) {
        const json_t *space = json_object_array_get_idx(list, i);
        uint64_t root, pages, dirty;
        const char *kind;
        json_t *o;

        if (json_get_u64(space, "root", &root) < 0 || json_get_u64(space, "pages", &pages) < 0 ||
            json_get_u64(space, "dirty", &dirty) < 0 || json_get_str(space, "kind", &kind) < 0)
            continue;
        o = json_object_new_object();
        json_add_u64(o, "root", root);
        json_add_str(o, "kind", kind);
        json_add_u64(o, "pages", pages);
        json_add_u64(o, "dirty", dirty);
        json_push(shown, o);
    }
    return shown;
}

/* -- the thread -------------------------------------------------------------- */

static void give(struct watch *w, json_t *o)
{
    char *text;

    json_add_str(o, "vm", w->config.vm);
    text = json_to_ascii(o, NULL);
    json_object_put(o);
    free(atomic_exchange(&w->text, text));
    fd_event_signal(w->config.notify_fd);
}

static int look(struct watch *w, struct failure *f)
{
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_close_ int fd = -1;
    json_t *args = NULL, *o;
    uint64_t epoch, took;
    int r = snapshot(w, &answer, &fd, f);

    if (r == 0)
        r = count_pages(w, answer, fd, f);
    if (r == 0 && json_get_u64(answer, "epoch", &epoch) == 0) {
        args = consumer_args(w->config.consumer);
        json_add_u64(args, "epoch", epoch);
        r = call(w->client, "dirty-log-ack", args, NULL, NULL, f);
    }
    if (r < 0)
        return -1;
    o = describe_map(w);
    if (json_get_u64(answer, "harvest-us", &took) == 0)
        json_add_u64(o, "harvest_us", took);
    json_add(o, "spaces", ask_spaces(w));
    give(w, o);
    return 0;
}

static bool wait_or_stop(const struct watch *w)
{
    struct pollfd p = {.fd = w->stop_fd, .events = POLLIN};

    return poll(&p, 1, INTERVAL_MS) <= 0;
}

static void *watch_thread(void *opaque)
{
    struct watch *w = opaque;

    do {
        struct failure f = {0};
        int r = w->client ? 0 : begin(w, &f);

        if (r == 0)
            r = look(w, &f);
        if (r < 0) {
            json_t *o = json_object_new_object();

            /* The text may hold what the VM said. */
            json_add_str(o, "error", f.kind == FAILURE_REFUSED ? "the VM refuses" : f.text);
            give(w, o);
            end(w, true);
        }
    } while (wait_or_stop(w));
    end(w, true);
    atomic_store(&w->over, true);
    fd_event_signal(w->config.notify_fd);
    return NULL;
}

int watch_start(const struct watch_config *config, struct watch **ret)
{
    struct watch *w = calloc(1, sizeof(*w));
    int r;

    if (!w)
        return -ENOMEM;
    w->config = *config;
    w->stop_fd = fd_eventfd();
    r = w->stop_fd < 0 ? w->stop_fd : -pthread_create(&w->thread, NULL, watch_thread, w);
    if (r < 0) {
        fd_close(w->stop_fd);
        free(w);
        return r;
    }
    *ret = w;
    return 0;
}

void watch_stop(struct watch *w)
{
    fd_event_signal(w->stop_fd);
}

bool watch_over(const struct watch *w)
{
    return atomic_load(&w->over);
}

void watch_free(struct watch *w)
{
    watch_stop(w);
    pthread_join(w->thread, NULL);
    fd_close(w->stop_fd);
    free(atomic_load(&w->text));
    free(w);
}

char *watch_take(struct watch *w)
{
    return atomic_exchange(&w->text, NULL);
}

/* -- what was left behind ---------------------------------------------------- */

static bool has_consumer(const json_t *answer, const char *consumer)
{
    json_t *list;
    const char *name;

    if (json_get_array(answer, "consumers", &list) < 0)
        return false;
    for (size_t i = 0; i < json_object_array_length(list); i++)
        if (json_get_str(json_object_array_get_idx(list, i), "name", &name) == 0 && strcmp(name, consumer) == 0)
            return true;
    return false;
}

void watch_sweep(const char *runtime_dir, const char *consumer)
{
    _cleanup_vm_names_ struct vm_names names = {0};

    vm_names_scan(runtime_dir, &names);
    for (size_t i = 0; i < names.count; i++) {
        struct failure ignored = {0};
        _cleanup_json_ json_t *answer = NULL;
        _cleanup_client_ struct client *c = dial(runtime_dir, names.names[i], &ignored);

        if (c && call(c, "query-dirty-log", NULL, &answer, NULL, &ignored) == 0 && has_consumer(answer, consumer))
            call(c, "dirty-log-stop", consumer_args(consumer), NULL, NULL, &ignored);
    }
}
