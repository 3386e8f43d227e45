/*
 * Device status, features and state as the "Virtual I/O Device (VIRTIO) Version 1.2" has them in "Basic Facilities of a
 * Virtio Device".
 */
#include "config.h"

#include "device/virtio/virtio.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/util.h"

#define FEATURE(bit) (UINT64_C(1) << (bit))
#define RING_FEATURES \
    (FEATURE(VIRTIO_F_VERSION_1) | FEATURE(VIRTIO_RING_F_INDIRECT_DESC) | FEATURE(VIRTIO_RING_F_EVENT_IDX))
#define STATUS_BITS                                                                                             \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK |                         \
     VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED)

static struct virtio_dev *to_virtio(struct device *dev)
{
    return container_of(dev, struct virtio_dev, dev);
}

static void update(struct virtio_dev *v)
{
    if (v->transport)
        v->transport->update(v);
}

static void interrupt(struct virtio_dev *v, uint8_t why)
{
    v->regs.isr |= why;
    __atomic_fetch_add(&v->counters.interrupts, 1, __ATOMIC_RELAXED);
    if (v->transport)
        v->transport->interrupt(v);
}

/* -- misuse ------------------------------------------------------------------- */

static void needs_reset(struct virtio_dev *v, const char *why)
{
    bool told = v->regs.status & VIRTIO_CONFIG_S_NEEDS_RESET;

    __atomic_fetch_add(&v->counters.misuses, 1, __ATOMIC_RELAXED);
    if (told)
        return;
    log_warn_limited("%s: the guest's driver misuses the device, which needs a reset: %s", v->name, why);
    v->regs.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    update(v);
    if (v->regs.status & VIRTIO_CONFIG_S_DRIVER_OK)
        interrupt(v, VIRTIO_ISR_CONFIG);
}

void virtio_misuse(struct virtio_dev *v, const char *fmt, ...)
{
    char why[VIRTQ_WHY_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why, sizeof(why), fmt, ap);
    va_end(ap);
    needs_reset(v, why);
}

static void on_queue_misuse(struct virtq *q, const char *why)
{
    needs_reset(q->opaque, why);
}

static void on_queue_notify(struct virtq *q)
{
    interrupt(q->opaque, VIRTIO_ISR_QUEUE);
}

static const struct virtq_owner queue_owner = {.notify = on_queue_notify, .misuse = on_queue_misuse};

/* -- running ------------------------------------------------------------------ */

static bool driver_ready(const struct virtio_dev *v)
{
    return (v->regs.status & VIRTIO_CONFIG_S_DRIVER_OK) && !(v->regs.status & VIRTIO_CONFIG_S_NEEDS_RESET);
}

bool virtio_queue_live(const struct virtio_dev *v, const struct virtq *q)
{
    return v->live && driver_ready(v) && q->s.ready;
}

static void run_queue(struct virtio_dev *v, struct virtq *q)
{
    if (virtio_queue_live(v, q))
        v->ops->run(v, q);
}

/* On the I/O thread. The eventfd is not read: each write to it is an event of its own. */
static void on_kick(void *opaque, uint32_t events)
{
    struct virtio_kick *kick = opaque;
    struct virtio_dev *v = kick->device;

    pthread_mutex_lock(&v->dev.lock);
    __atomic_fetch_add(&v->counters.kicks, 1, __ATOMIC_RELAXED);
    run_queue(v, kick->queue);
    pthread_mutex_unlock(&v->dev.lock);
}

void virtio_kick_queue(struct virtio_dev *v, struct virtq *q)
{
    if (v->env.io)
        fd_event_signal(v->kicks[q->index].source.fd);
    else
        run_queue(v, q);
}

void virtio_kicked(struct virtio_dev *v, uint32_t index)
{
    if (index < v->queue_count)
        virtio_kick_queue(v, &v->queues[index]);
}

static void go_live(struct virtio_dev *v)
{
    if (v->live || v->quiet || !driver_ready(v))
        return;
    v->live = true;
    if (v->ops->start)
        v->ops->start(v);
    /* What was added while nobody looked. */
    for (unsigned int i = 0; i < v->queue_count; i++)
        if (v->queues[i].s.ready)
            virtio_kick_queue(v, &v->queues[i]);
}

static void go_quiet(struct virtio_dev *v)
{
    if (v->live && v->ops->stop)
        v->ops->stop(v);
    v->live = false;
}

void virtio_device_quiesce(struct device *dev)
{
    struct virtio_dev *v = to_virtio(dev);

    go_quiet(v);
    v->quiet = true;
}

void virtio_device_resume(struct device *dev)
{
    struct virtio_dev *v = to_virtio(dev);

    v->quiet = false;
    /*
     * An interrupt that was on its way when the state was saved may not be in the interrupt controller's state, and one
     * that is raised before that is loaded is lost. One too many does no harm.
     */
    if (v->restored && driver_ready(v))
        interrupt(v, VIRTIO_ISR_QUEUE);
    v->restored = false;
    go_live(v);
}

/* -- what the driver does ----------------------------------------------------- */

uint64_t virtio_offered(const struct virtio_dev *v)
{
    return v->offered;
}

struct virtq *virtio_selected(const struct virtio_dev *v)
{
    return v->regs.queue_sel < v->queue_count ? &v->queues[v->regs.queue_sel] : NULL;
}

static void reset_queue(struct virtio_dev *v, struct virtq *q)
{
    if (q->in_flight > 0 && v->ops->drop)
        v->ops->drop(v, q);
    virtq_reset(q);
}

static void reset_queues(struct virtio_dev *v)
{
    go_quiet(v);
    for (unsigned int i = 0; i < v->queue_count; i++)
        reset_queue(v, &v->queues[i]);
}

void virtio_device_reset(struct device *dev)
{
    struct virtio_dev *v = to_virtio(dev);
    uint32_t generation = v->regs.config_generation;

    reset_queues(v);
    if (v->ops->reset)
        v->ops->reset(v);
    v->regs = (struct virtio_regs){.config_generation = generation};
    update(v);
}

static bool features_valid(const struct virtio_dev *v, uint64_t features)
{
    return !(features & ~v->offered) && (features & FEATURE(VIRTIO_F_VERSION_1));
}

static void apply_features(struct virtio_dev *v)
{
    for (unsigned int i = 0; i < v->queue_count; i++) {
        v->queues[i].event_idx = virtio_has(v, VIRTIO_RING_F_EVENT_IDX);
        v->queues[i].indirect = virtio_has(v, VIRTIO_RING_F_INDIRECT_DESC);
    }
}

void virtio_write_features(struct virtio_dev *v, uint32_t value)
{
    unsigned int sel = v->regs.driver_features_sel;

    if ((v->regs.status & VIRTIO_CONFIG_S_FEATURES_OK) || sel > 1)
        return;
    v->regs.driver_features &= ~((uint64_t)UINT32_MAX << (32 * sel));
    v->regs.driver_features |= (uint64_t)value << (32 * sel);
}

void virtio_write_status(struct virtio_dev *v, uint8_t status)
{
    uint8_t new = status & (uint8_t)~v->regs.status & STATUS_BITS & (uint8_t)~VIRTIO_CONFIG_S_NEEDS_RESET;

    if (status == 0) {
        virtio_device_reset(&v->dev);
        return;
    }
    if (new & VIRTIO_CONFIG_S_FEATURES_OK) {
        /* That it does not stick is how the driver sees that the features are refused. */
        if (features_valid(v, v->regs.driver_features))
            apply_features(v);
        else
            new &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
    }
    /* Bits go away with a reset only. */
    v->regs.status |= new;
    if ((new & VIRTIO_CONFIG_S_DRIVER_OK) && !(v->regs.status & VIRTIO_CONFIG_S_FEATURES_OK))
        virtio_misuse(v, "DRIVER_OK without FEATURES_OK");
    update(v);
    if (new & VIRTIO_CONFIG_S_DRIVER_OK)
        go_live(v);
}

void virtio_write_queue_ready(struct virtio_dev *v, struct virtq *q, bool ready)
{
    char why[VIRTQ_WHY_MAX];

    if (ready == q->s.ready)
        return;
    if (!ready) {
        /* Its requests end first; those of other queues are in for a wait, which a driver that does this accepts. */
        go_quiet(v);
        reset_queue(v, q);
        apply_features(v);
        go_live(v);
    } else if (!(v->regs.status & VIRTIO_CONFIG_S_FEATURES_OK)) {
        virtio_misuse(v, "queue %u: ready without FEATURES_OK", q->index);
    } else if (virtq_start(q, why) < 0) {
        virtio_misuse(v, "%s", why);
    } else {
        virtio_kick_queue(v, q);
    }
}

/* -- configuration space ------------------------------------------------------ */

void virtio_config_set(struct virtio_dev *v, unsigned int offset, const void *data, unsigned int len)
{
    assert(offset + len <= v->config_len);
    if (memcmp(v->config + offset, data, len) == 0)
        return;
    /*
     * A driver that reads while this is written sees another generation afterwards, or is told by the interrupt to read
     * again.
     */
    v->regs.config_generation++;
    update(v);
    memcpy(v->config + offset, data, len);
    v->regs.config_generation++;
    update(v);
    if (driver_ready(v))
        interrupt(v, VIRTIO_ISR_CONFIG);
}

void virtio_config_written(struct virtio_dev *v, unsigned int offset, const void *data, unsigned int len)
{
    assert(offset + len <= v->config_len);
    memcpy(v->config + offset, data, len);
    update(v);
}

void virtio_write_config(struct virtio_dev *v, unsigned int offset, unsigned int size, uint64_t value)
{
    if (v->ops->config_write && offset <= v->config_len && size <= v->config_len - offset)
        v->ops->config_write(v, offset, size, value);
}

/* -- state -------------------------------------------------------------------- */

static const struct state_field regs_fields[] = {
    STATE_FIELD(struct virtio_regs, driver_features),     STATE_FIELD(struct virtio_regs, device_features_sel),
    STATE_FIELD(struct virtio_regs, driver_features_sel), STATE_FIELD(struct virtio_regs, queue_sel),
    STATE_FIELD(struct virtio_regs, config_generation),   STATE_FIELD(struct virtio_regs, status),
    STATE_FIELD(struct virtio_regs, isr),
};

void virtio_device_save(struct device *dev, struct state_writer *w)
{
    struct virtio_dev *v = to_virtio(dev);

    state_put_u64(w, "offered", v->offered);
    state_put_u64(w, "queues", v->queue_count);
    state_put_fields(w, "", regs_fields, ARRAY_SIZE(regs_fields), &v->regs);
    for (unsigned int i = 0; i < v->queue_count; i++)
        virtq_save(&v->queues[i], w);
    if (v->ops->save)
        v->ops->save(v, w);
}

static int check_regs(struct virtio_dev *v, const struct virtio_regs *regs, uint64_t offered, uint64_t queues,
                      struct state_reader *r, const struct state_section *s)
{
    if (offered != v->offered)
        return state_bad(r, s, "field offered: features 0x%llx, here they are 0x%llx", (unsigned long long)offered,
                         (unsigned long long)v->offered);
    if (queues != v->queue_count)
        return state_bad(r, s, "field queues: %llu, here there are %u", (unsigned long long)queues, v->queue_count);
    if (regs->status & ~STATUS_BITS)
        return state_bad(r, s, "field status: 0x%x has bits beyond 0x%x", regs->status, STATUS_BITS);
    if (regs->isr & ~(VIRTIO_ISR_QUEUE | VIRTIO_ISR_CONFIG))
        return state_bad(r, s, "field isr: 0x%x has bits beyond 0x%x", regs->isr, VIRTIO_ISR_QUEUE | VIRTIO_ISR_CONFIG);
    if ((regs->status & VIRTIO_CONFIG_S_FEATURES_OK) && !features_valid(v, regs->driver_features))
        return state_bad(r, s, "field driver_features: 0x%llx of 0x%llx", (unsigned long long)regs->driver_features,
                         (unsigned long long)offered);
    return 0;
}

static int restore_queues(struct virtio_dev *v, struct virtq *queues, struct state_reader *r, const struct state_section *s)
{
    for (unsigned int i = 0; i < v->queue_count; i++) {
        int err;

        virtq_init(&queues[i], v->env.mem, &queue_owner, v, (uint16_t)i, v->queues[i].max_size);
        err = virtq_restore(&queues[i], r, s);
        if (err < 0)
            return err;
    }
    return 0;
}

/* Guest memory is there: the queues go on where they were. A queue that does not is the (other side's) driver's fault. */
static void restart_queue(struct virtio_dev *v, struct virtq *q)
{
    uint64_t taken[ARRAY_SIZE(q->taken)];
    char why[VIRTQ_WHY_MAX];

    memcpy(taken, q->taken, sizeof(taken));
    memset(q->taken, 0, sizeof(q->taken));
    if (!q->s.ready)
        return;
    if (virtq_start(q, why) < 0) {
        virtio_misuse(v, "%s", why);
        return;
    }
    for (uint64_t head = bitmap_next_set(taken, VIRTQ_MAX_SIZE, 0); head < VIRTQ_MAX_SIZE;
         head = bitmap_next_set(taken, VIRTQ_MAX_SIZE, head + 1))
        if (v->ops->restore_chain)
            v->ops->restore_chain(v, q, (uint16_t)head);
}

int virtio_device_restore(struct device *dev, struct state_reader *r, const struct state_section *s)
{
    struct virtio_dev *v = to_virtio(dev);
    _cleanup_free_ struct virtq *queues = calloc(v->queue_count, sizeof(*queues));
    struct virtio_regs regs;
    uint64_t offered, count;
    int err = queues ? state_get_u64(r, s, "offered", &offered) : -ENOMEM;

    if (err == 0)
        err = state_get_u64(r, s, "queues", &count);
    if (err == 0)
        err = state_get_fields(r, s, "", regs_fields, ARRAY_SIZE(regs_fields), &regs);
    if (err == 0)
        err = check_regs(v, &regs, offered, count, r, s);
    if (err == 0)
        err = restore_queues(v, queues, r, s);
    /* Last, because it changes the device. */
    if (err == 0 && v->ops->restore)
        err = v->ops->restore(v, r, s);
    if (err == 0)
        err = state_check_all_read(r, s);
    if (err < 0)
        return err;
    /* Not the device's own part, which is restored already. */
    reset_queues(v);
    v->regs = regs;
    memcpy(v->queues, queues, v->queue_count * sizeof(*queues));
    apply_features(v);
    for (unsigned int i = 0; i < v->queue_count; i++)
        restart_queue(v, &v->queues[i]);
    update(v);
    v->restored = true;
    go_live(v);
    return 0;
}

void virtio_device_compare(struct device *dev, const struct device_comparison *c)
{
    struct virtio_dev *v = to_virtio(dev);
    uint64_t offered, queues;

    if (device_compared_u64(c, "offered", &offered) && offered != v->offered)
        device_differs(c, "features 0x%llx, here 0x%llx", (unsigned long long)offered, (unsigned long long)v->offered);
    if (device_compared_u64(c, "queues", &queues) && queues != v->queue_count)
        device_differs(c, "%llu queues, here %u", (unsigned long long)queues, v->queue_count);
    if (v->ops->compare)
        v->ops->compare(v, c);
}

/* -- making and freeing ------------------------------------------------------- */

static int make_kicks(struct virtio_dev *v)
{
    for (unsigned int i = 0; i < v->queue_count; i++) {
        struct virtio_kick *kick = &v->kicks[i];
        int r;

        kick->device = v;
        kick->queue = &v->queues[i];
        kick->source.ready = on_kick;
        kick->source.opaque = kick;
        kick->source.fd = fd_eventfd();
        if (kick->source.fd < 0)
            return kick->source.fd;
        r = v->env.io ? io_thread_add(v->env.io, &kick->source, EPOLLIN | EPOLLET) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

static void remove_kicks(struct virtio_dev *v)
{
    for (unsigned int i = 0; v->kicks && i < v->queue_count; i++)
        io_thread_remove(&v->kicks[i].source);
}

static void release(struct virtio_dev *v)
{
    for (unsigned int i = 0; v->kicks && i < v->queue_count; i++)
        fd_close(v->kicks[i].source.fd);
    free(v->kicks);
    free(v->queues);
}

int virtio_init(struct virtio_dev *v, const struct device_ops *device_ops, const struct virtio_ops *ops, uint32_t instance,
                const struct device_env *env, const char *name, uint64_t features, unsigned int queue_count,
                uint16_t queue_size)
{
    int r = -ENOMEM;

    assert(queue_count > 0 && queue_count <= VIRTIO_MAX_QUEUES);
    v->ops = ops;
    v->env = *env;
    v->offered = features | RING_FEATURES;
    v->quiet = true;
    v->queue_count = queue_count;
    snprintf(v->name, sizeof(v->name), "%s%u", name, instance);
    v->queues = calloc(queue_count, sizeof(*v->queues));
    v->kicks = calloc(queue_count, sizeof(*v->kicks));
    for (unsigned int i = 0; v->kicks && i < queue_count; i++)
        v->kicks[i].source.fd = -1;
    device_init(&v->dev, device_ops, instance);
    if (v->queues && v->kicks) {
        for (unsigned int i = 0; i < queue_count; i++)
            virtq_init(&v->queues[i], env->mem, &queue_owner, v, (uint16_t)i, queue_size);
        r = make_kicks(v);
    }
    if (r < 0) {
        remove_kicks(v);
        pthread_mutex_destroy(&v->dev.lock);
        release(v);
    }
    return r;
}

void virtio_device_detach(struct device *dev)
{
    struct virtio_dev *v = to_virtio(dev);

    if (v->transport)
        v->transport->detach(v);
    remove_kicks(v);
    if (v->ops->detach)
        v->ops->detach(v);
    pthread_mutex_lock(&dev->lock);
    go_quiet(v);
    pthread_mutex_unlock(&dev->lock);
}

void virtio_device_destroy(struct device *dev)
{
    struct virtio_dev *v = to_virtio(dev);

    if (v->transport)
        v->transport->destroy(v);
    release(v);
    v->ops->destroy(v);
}
