#include "config.h"

#include "daemon/machine-state.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/machine-internal.h"
#include "daemon/machine-mmu.h"
#include "vcpu/state.h"

#define FACTS_VERSION 1u

/* Sections that are no device's. */
static const char *const own_sections[] = {"machine", "vcpu", "pic", "ioapic", "pit", "clock", "dirty-log", NULL};

/* What both sides must have alike. */
struct facts {
    uint64_t memory; /* bytes */
    uint32_t cpus;
    uint32_t paging; /* enum host_paging */
};

static const struct state_field facts_fields[] = {
    STATE_FIELD(struct facts, memory),
    STATE_FIELD(struct facts, cpus),
    STATE_FIELD(struct facts, paging),
};

static struct facts own_facts(const struct machine *m)
{
    return (struct facts){.memory = m->config->memory, .cpus = m->config->cpus, .paging = m->host.proven};
}

int machine_save(struct machine *m, struct state_writer *w)
{
    struct facts facts = own_facts(m);

    state_begin(w, "machine", 0, FACTS_VERSION);
    state_put_fields(w, "", facts_fields, ARRAY_SIZE(facts_fields), &facts);
    state_end(w);
    machine_devices_save(m->devices, w);
    return vm_state_save(m->vm, w);
}

static int read_facts(struct state_reader *r, struct facts *ret)
{
    const struct state_section *s;
    int err = state_open(r, "machine", 0, FACTS_VERSION, &s);

    if (err == 0)
        err = state_get_fields(r, s, "", facts_fields, ARRAY_SIZE(facts_fields), ret);
    if (err == 0 && ret->paging > HOST_PAGING_TDP)
        err = state_bad(r, s, "field paging: %u is not known", ret->paging);
    return err < 0 ? err : state_check_all_read(r, s);
}

static void add_line(void *opaque, const char *text)
{
    json_push(opaque, json_object_new_string(text));
}

static void compare_facts(const struct machine *m, const struct facts *facts, json_t *list)
{
    struct facts own = own_facts(m);
    char text[128];

    if (facts->memory != own.memory) {
        snprintf(text, sizeof(text), "memory: %" PRIu64 " bytes, here %" PRIu64, facts->memory, own.memory);
        add_line(list, text);
    }
    if (facts->cpus != own.cpus) {
        snprintf(text, sizeof(text), "cpus: %u, here %u", facts->cpus, own.cpus);
        add_line(list, text);
    }
    if (facts->paging != own.paging) {
        snprintf(text, sizeof(text), "paging: %s, here %s", host_paging_name((enum host_paging)facts->paging),
                 host_paging_name((enum host_paging)own.paging));
        add_line(list, text);
    }
}

int machine_compare(struct machine *m, struct state_reader *r, json_t **ret_differences)
{
    json_t *list = json_object_new_array();
    struct facts facts;
    int err = list ? read_facts(r, &facts) : -ENOMEM;

    if (err == 0) {
        compare_facts(m, &facts, list);
        machine_devices_compare(m->devices, r, own_sections, add_line, list);
        err = vm_state_compare(m->vm, r, add_line, list);
    }
    if (err < 0) {
        json_object_put(list);
        return err;
    }
    *ret_differences = list;
    return 0;
}

int machine_load(struct machine *m, struct state_reader *r, uint64_t captured_ns)
{
    struct facts own = own_facts(m), facts;
    int err = read_facts(r, &facts);

    assert(m->state == RUN_STATE_INMIGRATE);
    if (err == 0 && (facts.memory != own.memory || facts.cpus != own.cpus))
        err = state_bad(r, NULL, "the state is that of a machine with %u vcpus and %" PRIu64 " bytes of memory",
                        facts.cpus, facts.memory);
    /* vCPUs first: devices raise their interrupt lines, which the loaded chips would overwrite. */
    if (err == 0)
        err = vm_state_load(m->vm, r, captured_ns);
    if (err == 0)
        err = machine_devices_restore(m->devices, r, captured_ns);
    if (err == 0)
        machine_mmu_loaded(m->mmu);
    return err;
}

void machine_hold(struct machine *m)
{
    if (m->state == RUN_STATE_RUNNING)
        machine_guest_stop(m);
}

void machine_release(struct machine *m)
{
    if (m->state == RUN_STATE_RUNNING)
        machine_guest_run(m);
}

static bool can_leave(enum run_state state)
{
    return state == RUN_STATE_RUNNING || state == RUN_STATE_PAUSED || state == RUN_STATE_PRELAUNCH;
}

/*
 * The target may be on another host, which sees nothing of this one's page cache. Here, where a disk that fails can still keep
 * the guest; nothing is written from here to machine_left.
 */
static int sync_disks(struct machine *m)
{
    int r = machine_devices_sync(m->devices);

    if (r < 0)
        machine_release(m);
    return r;
}

unsigned int machine_sync_fds(struct machine *m, int *ret_fds, unsigned int max)
{
    return machine_devices_sync_fds(m->devices, ret_fds, max);
}

int machine_leave(struct machine *m, bool same_host, bool *ret_running, uint64_t *ret_pause_ns, uint64_t *ret_drain_ns)
{
    uint64_t start = clock_ns(), parked;
    int r;

    if (m->ended || m->memory_given || !can_leave(m->state))
        return -ESHUTDOWN;
    vm_pause(m->vm);
    parked = clock_ns();
    machine_guest_stop(m);
    *ret_pause_ns = parked - start;
    /*
     * What it asked for before it was stopped happens here, or it would be forgotten, or come when the guest is the target's: a reset
     * lets it run again.
     */
    while (atomic_load(&m->requests)) {
        machine_take_requests(m);
        if (m->ended || !can_leave(m->state))
            return -ESHUTDOWN;
        machine_guest_stop(m);
    }
    r = same_host ? 0 : sync_disks(m);
    *ret_drain_ns = clock_ns() - parked;
    if (r < 0)
        return r;
    m->left_from = m->state;
    *ret_running = m->state == RUN_STATE_RUNNING;
    m->state = RUN_STATE_FINISH_MIGRATE;
    if (*ret_running)
        machine_emit(m, "STOP", NULL);
    return 0;
}

void machine_stay(struct machine *m)
{
    if (m->ended || m->state != RUN_STATE_FINISH_MIGRATE)
        return;
    m->state = m->left_from;
    if (m->state != RUN_STATE_RUNNING)
        return;
    machine_emit(m, "RESUME", NULL);
    machine_guest_run(m);
}

void machine_left(struct machine *m, bool memory)
{
    if (m->state == RUN_STATE_FINISH_MIGRATE)
        m->state = RUN_STATE_POSTMIGRATE;
    m->memory_given |= memory;
    machine_devices_yield(m->devices);
}

void machine_keep_memory(struct machine *m, bool on)
{
    m->memory_kept = on;
}

void machine_whole(struct machine *m)
{
    if (!m->arriving)
        return;
    m->arriving = false;
    if (m->ended)
        return;
    if (m->state == RUN_STATE_RUNNING)
        machine_mmu_resuming(m->mmu);
    machine_take_requests(m);
}

bool machine_memory_arrives(const struct machine *m)
{
    return m->arriving;
}

int machine_adopt(struct machine *m, int fd)
{
    m->same_host = true;
    return mem_adopt(m->mem, fd);
}

int machine_claim_disks(struct machine *m)
{
    int r = machine_devices_claim(m->devices, m->same_host, m->claim_error);

    /* Whoever has them next may be elsewhere. */
    if (r == 0)
        m->same_host = false;
    return r;
}

void machine_arrived(struct machine *m, bool run, bool arriving)
{
    assert(m->state == RUN_STATE_INMIGRATE);
    m->state = RUN_STATE_PAUSED;
    m->arriving = arriving;
    /* One that is paused has its disks, too: nobody else may run it. */
    if (machine_claim_disks(m) < 0)
        log_err("%s: the guest stays paused, cont tries again", m->claim_error);
    else if (run)
        machine_cont(m, &(const char *){NULL});
}
