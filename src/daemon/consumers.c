#include "config.h"

#include "daemon/consumers.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "daemon/dirty-rate.h"
#include "migrate/snapshot.h"
#include "migrate/source.h"
#include "mmu/dirty.h"
#include "vcpu/vm.h"

#define CONSUMERS_VERSION 1u

const char *consumer_owner(const char *name)
{
    static const struct {
        const char *name, *owner;
    } own[] = {
        {DIRTY_RATE_CONSUMER, "calc-dirty-rate"},
        {MIG_CONSUMER, "migrate"},
        {SNAPSHOT_CONSUMER, "snapshot"},
        {SNAPSHOT_COPY_CONSUMER, "snapshot"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(own); i++)
        if (strcmp(name, own[i].name) == 0)
            return own[i].owner;
    return NULL;
}

void consumers_save(struct machine *m, struct state_writer *w)
{
    struct dirty_consumer_info list[DIRTY_MAX_CONSUMERS];
    size_t n = dirty_log_consumers(vm_dirty_log(machine_vm(m)), list, ARRAY_SIZE(list));
    char field[32];

    state_begin(w, "dirty-log", 0, CONSUMERS_VERSION);
    for (size_t i = 0; i < n; i++) {
        if (consumer_owner(list[i].name))
            continue;
        snprintf(field, sizeof(field), "consumer%zu", i);
        state_put_bytes(w, field, list[i].name, strlen(list[i].name));
    }
    state_end(w);
}

static int load_consumer(struct machine *m, struct state_reader *r, const struct state_section *s, const char *field,
                         const uint8_t *data, uint32_t len)
{
    char name[DIRTY_NAME_MAX + 1] = "";
    int err;

    if (len == 0 || len > DIRTY_NAME_MAX || memchr(data, '\0', len))
        return state_bad(r, s, "field %s: no name of 1 to %d bytes", field, DIRTY_NAME_MAX);
    memcpy(name, data, len);
    if (consumer_owner(name))
        return state_bad(r, s, "field %s: a consumer of the daemon's own", field);
    err = dirty_log_start(vm_dirty_log(machine_vm(m)), name, DIRTY_START_LOST);
    if (err < 0)
        (void)state_bad(r, s, "field %s: %s", field, strerrordesc_np(-err));
    return err;
}

int consumers_load(struct machine *m, struct state_reader *r)
{
    const struct state_section *s;
    char field[STATE_NAME_MAX + 1];
    int err = state_open(r, "dirty-log", 0, CONSUMERS_VERSION, &s);
    uint32_t cursor = 0, len;
    const uint8_t *data;

    if (err == -ENOENT)
        return 0;
    while (err == 0 && state_next_field(r, s, "consumer", &cursor, field, &data, &len))
        err = load_consumer(m, r, s, field, data, len);
    return err < 0 ? err : state_check_all_read(r, s);
}
