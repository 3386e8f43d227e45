#include "config.h"

#include "device/device.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/timerfd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "device/device-internal.h"

void device_init(struct device *dev, const struct device_ops *ops, uint32_t instance)
{
    dev->ops = ops;
    dev->instance = instance;
    pthread_mutex_init(&dev->lock, NULL);
}

void device_reset(struct device *dev)
{
    pthread_mutex_lock(&dev->lock);
    dev->ops->reset(dev);
    pthread_mutex_unlock(&dev->lock);
}

void device_quiesce(struct device *dev)
{
    if (!dev->ops->quiesce)
        return;
    pthread_mutex_lock(&dev->lock);
    dev->ops->quiesce(dev);
    pthread_mutex_unlock(&dev->lock);
}

void device_resume(struct device *dev)
{
    if (!dev->ops->resume)
        return;
    pthread_mutex_lock(&dev->lock);
    dev->ops->resume(dev);
    pthread_mutex_unlock(&dev->lock);
}

void device_save(struct device *dev, struct state_writer *w)
{
    if (!dev->ops->save)
        return;
    state_begin(w, dev->ops->name, dev->instance, dev->ops->state_version);
    pthread_mutex_lock(&dev->lock);
    dev->ops->save(dev, w);
    pthread_mutex_unlock(&dev->lock);
    state_end(w);
}

int device_restore(struct device *dev, struct state_reader *r)
{
    const struct state_section *s;
    int err;

    if (!dev->ops->restore)
        return 0;
    err = state_open(r, dev->ops->name, dev->instance, dev->ops->state_version, &s);
    if (err < 0)
        return err;
    pthread_mutex_lock(&dev->lock);
    err = dev->ops->restore(dev, r, s);
    pthread_mutex_unlock(&dev->lock);
    return err;
}

void device_compare(struct device *dev, struct state_reader *r, void (*report)(void *opaque, const char *text), void *opaque)
{
    struct device_comparison c = {.r = r, .report = report, .opaque = opaque};
    int err;

    if (!dev->ops->restore || !state_find(r, dev->ops->name, dev->instance))
        return;
    err = state_open(r, dev->ops->name, dev->instance, dev->ops->state_version, &c.s);
    if (err < 0) {
        report(opaque, r->error);
        return;
    }
    if (!dev->ops->compare)
        return;
    pthread_mutex_lock(&dev->lock);
    dev->ops->compare(dev, &c);
    pthread_mutex_unlock(&dev->lock);
}

void device_differs(const struct device_comparison *c, const char *fmt, ...)
{
    char text[STATE_NAME_MAX + 160];
    int n = snprintf(text, sizeof(text), "device %s %u: ", c->s->name, c->s->instance);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
    va_end(ap);
    c->report(c->opaque, text);
}

bool device_compared_u64(const struct device_comparison *c, const char *field, uint64_t *ret)
{
    if (state_get_u64(c->r, c->s, field, ret) == 0)
        return true;
    c->report(c->opaque, c->r->error);
    return false;
}

void device_advance(struct device *dev, uint64_t ns)
{
    if (!dev->ops->advance)
        return;
    pthread_mutex_lock(&dev->lock);
    dev->ops->advance(dev, ns);
    pthread_mutex_unlock(&dev->lock);
}

void device_destroy(struct device *dev)
{
    if (!dev)
        return;
    if (dev->ops->detach)
        dev->ops->detach(dev);
    pthread_mutex_destroy(&dev->lock);
    dev->ops->destroy(dev);
}

/* -- time -- */

uint64_t device_monotonic_ns(const struct device_env *env)
{
    return env->clock ? env->clock->monotonic_ns(env->clock->opaque) : clock_ns();
}

int64_t device_realtime_ns(const struct device_env *env)
{
    struct timespec ts;

    if (env->clock)
        return env->clock->realtime_ns(env->clock->opaque);
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * (int64_t)NSEC_PER_SEC + ts.tv_nsec;
}

int device_timer_init(struct device_timer *t, const struct device_env *env, clockid_t clock, event_callback_fn callback,
                      void *opaque)
{
    _cleanup_close_ int fd = -1;

    *t = (struct device_timer){.fd = -1, .clock = clock};
    if (!env->events || env->clock)
        return 0;
    fd = timerfd_create(clock, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    t->event = event_new(env->events, fd, EV_READ | EV_PERSIST, callback, opaque);
    if (!t->event)
        return -ENOMEM;
    if (event_add(t->event, NULL) < 0) {
        event_free(t->event);
        t->event = NULL;
        return -ENOMEM;
    }
    t->fd = take_fd(fd);
    return 0;
}

void device_timer_set(struct device_timer *t, int64_t deadline_ns)
{
    struct itimerspec when = {0};
    int flags = TFD_TIMER_ABSTIME;

    if (t->fd < 0)
        return;
    if (t->clock == CLOCK_REALTIME)
        flags |= TFD_TIMER_CANCEL_ON_SET;
    if (deadline_ns >= 0) {
        /* Zero would unset it. */
        deadline_ns = deadline_ns ? deadline_ns : 1;
        when.it_value.tv_sec = deadline_ns / (int64_t)NSEC_PER_SEC;
        when.it_value.tv_nsec = deadline_ns % (int64_t)NSEC_PER_SEC;
    }
    /* It cannot fail with these arguments, but for ECANCELED: the clock was set, and the callback comes. */
    if (timerfd_settime(t->fd, flags, &when, NULL) < 0)
        return;
}

void device_timer_clear(struct device_timer *t)
{
    fd_event_clear(t->fd);
}

void device_timer_fini(struct device_timer *t)
{
    if (!t->event)
        return;
    event_free(t->event);
    t->event = NULL;
    t->fd = fd_close(t->fd);
}
