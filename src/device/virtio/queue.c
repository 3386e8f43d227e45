#include "config.h"

#include "device/virtio/queue.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/util.h"

static_assert(VIRTQ_MAX_SIZE % BITMAP_WORD_BITS == 0, "heads are whole words");
static_assert(sizeof(struct vring_desc) == 16 && sizeof(struct vring_used_elem) == 8, "as the specification has them");

/* The driver writes these at any time: each is loaded just once, and what was loaded is what is checked and used. */
#define LOAD(p) __atomic_load_n(&(p), __ATOMIC_RELAXED)
#define LOAD_ACQUIRE(p) __atomic_load_n(&(p), __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(&(p), (v), __ATOMIC_RELAXED)

/* Sizes of the rings with their event indices, which are there whether they are used or not. */
static uint64_t avail_bytes(uint16_t size)
{
    return sizeof(struct vring_avail) + (uint64_t)size * sizeof(__virtio16) + sizeof(__virtio16);
}

static uint64_t used_bytes(uint16_t size)
{
    return sizeof(struct vring_used) + (uint64_t)size * sizeof(struct vring_used_elem) + sizeof(__virtio16);
}

/* The driver's: an interrupt is wanted when the used index passes this. */
static __virtio16 *used_event(struct virtq *q)
{
    return &q->avail->ring[q->s.size];
}

/* The device's: a kick is wanted when the available index passes this. */
static __virtio16 *avail_event(struct virtq *q)
{
    return (__virtio16 *)(void *)&q->used->ring[q->s.size];
}

static void misuse(struct virtq *q, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void misuse(struct virtq *q, const char *fmt, ...)
{
    char why[VIRTQ_WHY_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why, sizeof(why), fmt, ap);
    va_end(ap);
    q->broken = true;
    q->owner->misuse(q, why);
}

/* -- life --------------------------------------------------------------------- */

void virtq_init(struct virtq *q, struct mem *mem, const struct virtq_owner *owner, void *opaque, uint16_t index,
                uint16_t max_size)
{
    assert(max_size > 0 && max_size <= VIRTQ_MAX_SIZE && (max_size & (max_size - 1)) == 0);
    *q = (struct virtq){.mem = mem, .owner = owner, .opaque = opaque, .index = index, .max_size = max_size};
    q->s.size = max_size;
}

void virtq_reset(struct virtq *q)
{
    virtq_init(q, q->mem, q->owner, q->opaque, q->index, q->max_size);
}

static bool size_valid(const struct virtq *q, uint16_t size)
{
    return size > 0 && size <= q->max_size && (size & (size - 1)) == 0;
}

/* One of the three areas; NULL with the reason in why. */
static void *map_area(struct virtq *q, const char *what, uint64_t gpa, uint64_t bytes, unsigned int align, char *why)
{
    void *p = is_aligned(gpa, align) ? mem_ptr(q->mem, gpa, bytes) : NULL;

    if (!p)
        snprintf(why, VIRTQ_WHY_MAX, "queue %u: %s at 0x%llx, %llu bytes, is not RAM aligned to %u", q->index, what,
                 (unsigned long long)gpa, (unsigned long long)bytes, align);
    return p;
}

int virtq_start(struct virtq *q, char *why)
{
    q->s.ready = false;
    if (!size_valid(q, q->s.size)) {
        snprintf(why, VIRTQ_WHY_MAX, "queue %u: size %u is not a power of two up to %u", q->index, q->s.size, q->max_size);
        return -EINVAL;
    }
    q->desc = map_area(q, "descriptor table", q->s.desc, (uint64_t)q->s.size * sizeof(*q->desc), 16, why);
    if (!q->desc)
        return -EINVAL;
    q->avail = map_area(q, "available ring", q->s.avail, avail_bytes(q->s.size), 2, why);
    if (!q->avail)
        return -EINVAL;
    q->used = map_area(q, "used ring", q->s.used, used_bytes(q->s.size), 4, why);
    if (!q->used)
        return -EINVAL;
    q->seen_avail = q->s.next_avail;
    q->flushed_used = q->s.next_used;
    q->signalled_valid = false;
    q->kicks_known = false;
    q->broken = false;
    q->s.ready = true;
    return 0;
}

/* -- taking chains ------------------------------------------------------------ */

/*
 * In a queue that came with a guest the flag is what the source's device made it. It is written once, whatever it is: to read it
 * when the queue starts would wait for a page that may still be absent then.
 */
static void set_kicks_off(struct virtq *q, bool off)
{
    if (q->kicks_known && q->kicks_off == off)
        return;
    q->kicks_known = true;
    q->kicks_off = off;
    STORE(q->used->flags, off ? VRING_USED_F_NO_NOTIFY : 0);
    mem_mark_dirty_ptr(q->mem, &q->used->flags, sizeof(q->used->flags));
}

/* Read how far the driver is. False when that makes no sense. */
static bool look_at_avail(struct virtq *q)
{
    uint16_t idx = LOAD_ACQUIRE(q->avail->idx);
    uint16_t ahead = (uint16_t)(idx - q->s.next_avail);

    if (ahead > q->s.size) {
        misuse(q, "queue %u: available index %u is %u ahead of %u, queue size %u", q->index, idx, ahead, q->s.next_avail,
               q->s.size);
        return false;
    }
    q->seen_avail = idx;
    return true;
}

bool virtq_has_chain(struct virtq *q)
{
    if (!q->s.ready || q->broken)
        return false;
    if (q->seen_avail != q->s.next_avail)
        return true;
    if (!look_at_avail(q))
        return false;
    if (q->seen_avail == q->s.next_avail) {
        /* Ask for a kick, then look again: what the driver added before it saw that comes without one. */
        if (q->event_idx) {
            STORE(*avail_event(q), q->s.next_avail);
            mem_mark_dirty_ptr(q->mem, avail_event(q), sizeof(*avail_event(q)));
        } else {
            set_kicks_off(q, false);
        }
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (!look_at_avail(q) || q->seen_avail == q->s.next_avail)
            return false;
    }
    if (!q->event_idx)
        set_kicks_off(q, true);
    return true;
}

static struct vring_desc copy_desc(const struct vring_desc *d)
{
    return (struct vring_desc){
        .addr = LOAD(d->addr), .len = LOAD(d->len), .flags = LOAD(d->flags), .next = LOAD(d->next)};
}

/* Add one buffer to the chain. */
static bool add_buffer(struct virtq *q, struct virtq_chain *c, const struct vring_desc *d)
{
    bool write = d->flags & VRING_DESC_F_WRITE;
    unsigned int count = (unsigned int)c->readable + c->writable;
    uint32_t *bytes = write ? &c->writable_bytes : &c->readable_bytes;
    void *p;

    if (!write && c->writable > 0) {
        misuse(q, "queue %u: chain %u has a readable buffer after a writable one", q->index, c->head);
        return false;
    }
    if (count >= c->capacity) {
        misuse(q, "queue %u: chain %u has more than %u buffers", q->index, c->head, c->capacity);
        return false;
    }
    if (d->len == 0) {
        misuse(q, "queue %u: chain %u has a buffer of length 0", q->index, c->head);
        return false;
    }
    p = mem_ptr(q->mem, d->addr, d->len);
    if (!p) {
        misuse(q, "queue %u: chain %u has a buffer at 0x%llx, length %u, which is not RAM", q->index, c->head,
               (unsigned long long)d->addr, d->len);
        return false;
    }
    if (__builtin_add_overflow(*bytes, d->len, bytes)) {
        misuse(q, "queue %u: chain %u has 4 GiB or more", q->index, c->head);
        return false;
    }
    c->iov[count] = (struct iovec){.iov_base = p, .iov_len = d->len};
    if (write)
        c->writable++;
    else
        c->readable++;
    return true;
}

/*
 * Follow the descriptors of `table`, `count` entries, from entry `i` on. An indirect one that ends the chain is left in
 * *ret_indirect (whose len is 0 else).
 */
static bool walk_table(struct virtq *q, struct virtq_chain *c, const struct vring_desc *table, uint32_t count, uint32_t i,
                       struct vring_desc *ret_indirect)
{
    bool direct = ret_indirect != NULL;

    /* A chain that visits more descriptors than there are has a loop. */
    for (uint32_t visited = 0; visited < count; visited++) {
        struct vring_desc d;

        if (i >= count) {
            misuse(q, "queue %u: chain %u: descriptor %u of %u", q->index, c->head, i, count);
            return false;
        }
        d = copy_desc(&table[i]);
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (!direct || !q->indirect || (d.flags & VRING_DESC_F_NEXT)) {
                misuse(q, "queue %u: chain %u: indirect descriptor %s", q->index, c->head,
                       !direct ? "within an indirect table" : !q->indirect ? "without the feature" : "with a next one");
                return false;
            }
            *ret_indirect = d;
            return true;
        }
        if (!add_buffer(q, c, &d))
            return false;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return true;
        i = d.next;
    }
    misuse(q, "queue %u: chain %u has a loop", q->index, c->head);
    return false;
}

static bool walk_indirect(struct virtq *q, struct virtq_chain *c, const struct vring_desc *d)
{
    uint32_t count = d->len / (uint32_t)sizeof(*d);
    const struct vring_desc *table;

    if (d->len % sizeof(*d) != 0 || count == 0 || count > VIRTQ_CHAIN_MAX) {
        misuse(q, "queue %u: chain %u: an indirect table of %u bytes, limit %zu", q->index, c->head, d->len,
               VIRTQ_CHAIN_MAX * sizeof(*d));
        return false;
    }
    table = mem_ptr(q->mem, d->addr, d->len);
    if (!table) {
        misuse(q, "queue %u: chain %u: indirect table at 0x%llx, length %u, is not RAM", q->index, c->head,
               (unsigned long long)d->addr, d->len);
        return false;
    }
    return walk_table(q, c, table, count, 0, NULL);
}

static bool take(struct virtq *q, uint16_t head, struct virtq_chain *c)
{
    struct vring_desc indirect = {.len = 0};
    bool is_indirect;

    c->head = head;
    c->readable = c->writable = 0;
    c->readable_bytes = c->writable_bytes = 0;
    if (head >= q->s.size) {
        misuse(q, "queue %u: head %u of %u descriptors", q->index, head, q->s.size);
        return false;
    }
    if (bitmap_test(q->taken, head)) {
        misuse(q, "queue %u: chain %u was not given back yet", q->index, head);
        return false;
    }
    indirect.flags = 0;
    if (!walk_table(q, c, q->desc, q->s.size, head, &indirect))
        return false;
    is_indirect = indirect.flags & VRING_DESC_F_INDIRECT;
    if (is_indirect && !walk_indirect(q, c, &indirect))
        return false;
    bitmap_set(q->taken, head);
    q->in_flight++;
    return true;
}

bool virtq_pop(struct virtq *q, struct virtq_chain *c)
{
    uint16_t head;

    if (!virtq_has_chain(q))
        return false;
    head = LOAD(q->avail->ring[q->s.next_avail & (q->s.size - 1)]);
    if (!take(q, head, c))
        return false;
    q->s.next_avail++;
    return true;
}

static void give_up(struct virtq *q, uint16_t head)
{
    assert(head < q->s.size && bitmap_test(q->taken, head));
    q->taken[head / BITMAP_WORD_BITS] &= ~(UINT64_C(1) << (head % BITMAP_WORD_BITS));
    q->in_flight--;
}

void virtq_unpop(struct virtq *q, const struct virtq_chain *c)
{
    give_up(q, c->head);
    q->s.next_avail--;
}

bool virtq_retake(struct virtq *q, uint16_t head, struct virtq_chain *c)
{
    return q->s.ready && !q->broken && take(q, head, c);
}

/* -- giving them back --------------------------------------------------------- */

void virtq_push(struct virtq *q, uint16_t head, uint32_t written)
{
    struct vring_used_elem *e = &q->used->ring[q->s.next_used & (q->s.size - 1)];

    give_up(q, head);
    STORE(e->id, head);
    STORE(e->len, written);
    mem_mark_dirty_ptr(q->mem, e, sizeof(*e));
    q->s.next_used++;
}

static bool interrupt_wanted(struct virtq *q)
{
    uint16_t before = q->signalled;
    bool valid = q->signalled_valid;

    if (!q->event_idx)
        return !(LOAD(q->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
    q->signalled = q->s.next_used;
    q->signalled_valid = true;
    return !valid || vring_need_event(LOAD(*used_event(q)), q->s.next_used, before);
}

void virtq_flush(struct virtq *q)
{
    if (q->flushed_used == q->s.next_used)
        return;
    q->flushed_used = q->s.next_used;
    __atomic_store_n(&q->used->idx, q->s.next_used, __ATOMIC_RELEASE);
    mem_mark_dirty_ptr(q->mem, &q->used->idx, sizeof(q->used->idx));
    /* The index is out before it is read whether the driver wants to know. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (interrupt_wanted(q))
        q->owner->notify(q);
}

/* -- buffers ------------------------------------------------------------------ */

size_t virtq_chain_read(const struct virtq_chain *c, size_t offset, void *buf, size_t len)
{
    size_t done = 0;

    for (unsigned int i = 0; i < c->readable && done < len; i++) {
        size_t n = c->iov[i].iov_len;

        if (offset >= n) {
            offset -= n;
            continue;
        }
        n = MIN(n - offset, len - done);
        memcpy((uint8_t *)buf + done, (const uint8_t *)c->iov[i].iov_base + offset, n);
        offset = 0;
        done += n;
    }
    return done;
}

size_t virtq_chain_write(struct virtq *q, const struct virtq_chain *c, size_t offset, const void *buf, size_t len)
{
    const struct iovec *iov = c->iov + c->readable;
    size_t done = 0;

    for (unsigned int i = 0; i < c->writable && done < len; i++) {
        size_t n = iov[i].iov_len;
        uint8_t *to;

        if (offset >= n) {
            offset -= n;
            continue;
        }
        to = (uint8_t *)iov[i].iov_base + offset;
        n = MIN(n - offset, len - done);
        memcpy(to, (const uint8_t *)buf + done, n);
        mem_mark_dirty_ptr(q->mem, to, n);
        offset = 0;
        done += n;
    }
    return done;
}

void virtq_chain_written(struct virtq *q, const struct virtq_chain *c, size_t bytes)
{
    const struct iovec *iov = c->iov + c->readable;

    for (unsigned int i = 0; i < c->writable && bytes > 0; i++) {
        size_t n = MIN(iov[i].iov_len, bytes);

        mem_mark_dirty_ptr(q->mem, iov[i].iov_base, n);
        bytes -= n;
    }
}

/* -- state -------------------------------------------------------------------- */

static const struct state_field queue_fields[] = {
    STATE_FIELD(struct virtq_state, size),       STATE_FIELD(struct virtq_state, ready),
    STATE_FIELD(struct virtq_state, desc),       STATE_FIELD(struct virtq_state, avail),
    STATE_FIELD(struct virtq_state, used),       STATE_FIELD(struct virtq_state, next_avail),
    STATE_FIELD(struct virtq_state, next_used),
};

static void field_name(const struct virtq *q, const char *name, char buf[STATE_NAME_MAX + 1])
{
    snprintf(buf, STATE_NAME_MAX + 1, "q%u-%s", q->index, name);
}

void virtq_save(const struct virtq *q, struct state_writer *w)
{
    char name[STATE_NAME_MAX + 1];

    field_name(q, "", name);
    state_put_fields(w, name, queue_fields, ARRAY_SIZE(queue_fields), &q->s);
    field_name(q, "taken", name);
    state_put_bytes(w, name, q->taken, sizeof(q->taken));
}

int virtq_restore(struct virtq *q, struct state_reader *r, const struct state_section *section)
{
    uint64_t taken[ARRAY_SIZE(q->taken)];
    struct virtq_state s = q->s;
    char name[STATE_NAME_MAX + 1];
    int err;

    field_name(q, "", name);
    err = state_get_fields(r, section, name, queue_fields, ARRAY_SIZE(queue_fields), &s);
    if (err < 0)
        return err;
    field_name(q, "taken", name);
    err = state_get_bytes(r, section, name, taken, sizeof(taken));
    if (err < 0)
        return err;
    if (s.ready && !size_valid(q, s.size))
        return state_bad(r, section, "field q%u-size: %u is not a power of two up to %u", q->index, s.size, q->max_size);
    if (bitmap_next_set(taken, VIRTQ_MAX_SIZE, s.ready ? s.size : 0) < VIRTQ_MAX_SIZE)
        return state_bad(r, section, "field q%u-taken: a chain beyond the queue's size %u", q->index, s.ready ? s.size : 0);
    virtq_reset(q);
    q->s = s;
    memcpy(q->taken, taken, sizeof(taken));
    return 0;
}
