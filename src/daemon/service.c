#include "config.h"

#include "daemon/service.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/size.h"
#include "base/systemd.h"
#include "base/thread.h"
#include "daemon/machine-state.h"

/* A thread is stuck when it does not move for two looks; two more of them, and the watchdog bites. */
#define LOOKS_PER_WATCHDOG 4
/* While the guest shuts down: how often to ask for how much more time. */
#define EXTEND_EVERY_S 5
#define EXTEND_US 15000000
/* A guest that has not reacted to its power button for so long does not shut down. */
#define EXTEND_LIMIT_S 3600

struct service {
    struct machine *machine;
    struct event *watchdog, *extend;
    unsigned int extensions;
    bool stuck; /* said once */
};

/* -- the watchdog -- */

static bool all_alive(struct service *s)
{
    char name[THREAD_NAME_MAX];
    const char *what = thread_stuck(name), *where = "";
    int vcpu = vm_stuck_vcpu(machine_vm(s->machine), &where);

    if (vcpu >= 0) {
        snprintf(name, sizeof(name), "vcpu%d", vcpu);
        what = name;
    }
    if (what && !s->stuck)
        log_err("%s: is stuck%s; the watchdog will end umbrad", what, where);
    if (!what && s->stuck)
        log_info("no thread is stuck any more");
    s->stuck = what;
    return !what;
}

static void on_watchdog(evutil_socket_t fd, short what, void *opaque)
{
    struct service *s = opaque;

    /* In post-copy any thread may have to wait for a page; that this one is alive has to do. */
    if (machine_memory_arrives(s->machine) || all_alive(s))
        systemd_notify("WATCHDOG=1");
}

static int start_watchdog(struct service *s, struct event_base *events)
{
    uint64_t us = systemd_watchdog_us() / LOOKS_PER_WATCHDOG;
    struct timeval interval = {.tv_sec = (time_t)(us / 1000000), .tv_usec = (suseconds_t)(us % 1000000)};

    if (us == 0)
        return 0;
    s->watchdog = event_new(events, -1, EV_PERSIST, on_watchdog, s);
    return s->watchdog && event_add(s->watchdog, &interval) == 0 ? 0 : -ENOMEM;
}

/* -- more time -- */

static void on_extend(evutil_socket_t fd, short what, void *opaque)
{
    struct service *s = opaque;

    systemd_notify("EXTEND_TIMEOUT_USEC=%d", EXTEND_US);
    if (++s->extensions >= EXTEND_LIMIT_S / EXTEND_EVERY_S)
        event_del(s->extend);
}

static void extend(struct service *s)
{
    const struct timeval interval = {.tv_sec = EXTEND_EVERY_S};

    s->extensions = 0;
    event_add(s->extend, &interval);
    on_extend(-1, 0, s);
}

/* -- state -- */

static void tell_state(struct service *s, const char *more)
{
    const struct config *c = machine_config(s->machine);
    char memory[32];

    systemd_notify("STATUS=%s: %u vCPU%s, %s%s%s", machine_run_state_name(machine_run_state(s->machine)), c->cpus,
                   c->cpus == 1 ? "" : "s", size_format(c->memory, memory, sizeof(memory)), *more ? ", " : "", more);
}

static void tell_migration(struct service *s, const json_t *data)
{
    const char *status = "?";
    char text[80];

    json_get_str(data, "status", &status);
    snprintf(text, sizeof(text), "migration: %.40s", status);
    tell_state(s, text);
}

static void tell_pass(struct service *s, const json_t *data)
{
    uint64_t pass = 0;
    char text[80];

    json_get_u64(data, "pass", &pass);
    snprintf(text, sizeof(text), "migration: pass %llu", (unsigned long long)pass);
    tell_state(s, text);
}

void service_event(struct service *s, const char *name, const json_t *data)
{
    if (!s || !systemd_present())
        return;
    if (strcmp(name, "MIGRATION") == 0) {
        tell_migration(s, data);
    } else if (strcmp(name, "MIGRATION_PASS") == 0) {
        tell_pass(s, data);
    } else if (strcmp(name, "POWERDOWN") == 0) {
        tell_state(s, "power button pressed");
        extend(s);
    } else {
        tell_state(s, "");
    }
}

void service_stopping(void)
{
    systemd_notify("STOPPING=1");
}

int service_new(struct event_base *events, struct machine *machine, struct service **ret)
{
    struct service *s = calloc(1, sizeof(*s));
    int r = -ENOMEM;

    if (!s)
        return r;
    s->machine = machine;
    s->extend = event_new(events, -1, EV_PERSIST, on_extend, s);
    if (s->extend)
        r = start_watchdog(s, events);
    if (r < 0) {
        service_free(s);
        return r;
    }
    tell_state(s, "");
    systemd_notify("READY=1");
    *ret = s;
    return 0;
}

void service_free(struct service *s)
{
    if (!s)
        return;
    if (s->watchdog)
        event_free(s->watchdog);
    if (s->extend)
        event_free(s->extend);
    free(s);
}
