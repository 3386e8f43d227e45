/*
 * A guest changes the size of its balloon many times a second while it fills it: the event tells the first change at once, and
 * of those in the second after it only where they have led to.
 */
#include "config.h"

#include "daemon/machine-internal.h"

#include <errno.h>

#include "device/virtio/balloon.h"

static void tell(struct machine *m)
{
    static const struct timeval interval = {.tv_sec = 1};
    struct device *balloon = machine_balloon(m);
    struct vballoon_info info;
    json_t *data;

    m->balloon_untold = false;
    if (!balloon)
        return;
    vballoon_info(balloon, &info);
    data = json_object_new_object();
    json_add_u64(data, "actual", info.memory);
    machine_emit(m, "BALLOON_CHANGE", data);
    event_add(m->balloon_event, &interval);
}

static void on_timer(evutil_socket_t fd, short what, void *opaque)
{
    struct machine *m = opaque;

    if (m->balloon_untold)
        tell(m);
}

int machine_balloon_init(struct machine *m)
{
    m->balloon_event = evtimer_new(m->events, on_timer, m);
    return m->balloon_event ? 0 : -ENOMEM;
}

void machine_balloon_fini(struct machine *m)
{
    if (m->balloon_event)
        event_free(m->balloon_event);
}

void machine_balloon_changed(struct machine *m)
{
    if (event_pending(m->balloon_event, EV_TIMEOUT, NULL))
        m->balloon_untold = true;
    else
        tell(m);
}
