/* A machine that goes on from a snapshot: memory before the VM is made, state when it is complete. */
#include "config.h"

#include <errno.h>

#include "base/log.h"
#include "daemon/machine-internal.h"
#include "daemon/machine-state.h"
#include "migrate/snapshot-restore.h"

int machine_restore_open(struct machine *m)
{
    struct snapshot_chain *chain = calloc(1, sizeof(*chain));
    char error[SNAPSHOT_ERROR_MAX];
    int r = -ENOMEM;

    if (!chain)
        return r;
    m->snapshot = chain;
    r = snapshot_chain_open(m->config->restore, chain, error);
    if (r == 0 && m->config->verify)
        r = snapshot_chain_verify(chain, NULL, NULL, error);
    if (r < 0)
        log_err("restore: %s", error);
    return r;
}

bool machine_restores_lazily(const struct config *c)
{
    /* Huge pages and preallocated ones are ordinary memory, there from the start. */
    return c->restore && !c->eager && !c->hugepages && !c->prealloc;
}

int machine_restore_memory(struct machine *m)
{
    char error[SNAPSHOT_ERROR_MAX];
    int r = machine_restores_lazily(m->config) ? snapshot_restore_lazily(m->snapshot, m->mem, error)
                                               : snapshot_restore_eagerly(m->snapshot, m->mem, error);

    if (r < 0)
        log_err("restore: %s", error);
    return r;
}

/* Log every difference; 0 when there is none. */
static int refuse_differences(const struct machine *m, const json_t *list)
{
    size_t n = json_object_array_length(list);

    for (size_t i = 0; i < n; i++)
        log_err("restore: %s", json_object_get_string(json_object_array_get_idx(list, i)));
    if (n == 0)
        return 0;
    log_err("restore: the guest of %s cannot go on here: %zu difference%s", m->config->restore, n, n == 1 ? "" : "s");
    return -ENOTSUP;
}

static int compare_and_load(struct machine *m, struct state_reader *reader)
{
    json_t *differences = NULL;
    int r = machine_compare(m, reader, &differences);

    if (r == 0)
        r = refuse_differences(m, differences);
    json_object_put(differences);
    if (r < 0 && r != -ENOENT && r != -EBADMSG)
        return r;
    if (r == 0)
        r = machine_load(m, reader, 0);
    if (r < 0)
        log_err("restore: %s/state.bin: %s", m->config->restore, reader->error);
    return r;
}

int machine_restore_state(struct machine *m)
{
    const struct snapshot *top = m->snapshot->links[0];
    struct state_reader reader = {0};
    int r = state_reader_init(&reader, top->state, top->state_len);

    if (r < 0) {
        log_err("restore: %s/state.bin: %s", m->config->restore, r == -ENOMEM ? "out of memory" : reader.error);
        return r;
    }
    r = compare_and_load(m, &reader);
    state_reader_clear(&reader);
    machine_restore_close(m);
    return r;
}

void machine_restore_close(struct machine *m)
{
    if (m->snapshot)
        snapshot_chain_close(m->snapshot);
    free(m->snapshot);
    m->snapshot = NULL;
}
