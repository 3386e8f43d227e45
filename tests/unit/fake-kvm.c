#include "config.h"

#include "fake-kvm.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"

void fake_init(struct fake_kvm *k, uint64_t seed)
{
    size_t words = (size_t)mem_pages(k->mem) / 64;

    pthread_mutex_init(&k->lock, NULL);
    k->rng = rng_seeded(seed);
    k->dirty = calloc(words, sizeof(uint64_t));
    k->writable = calloc(words, sizeof(uint64_t));
    k->content = calloc(mem_pages(k->mem), sizeof(uint64_t));
    assert(k->dirty && k->writable && k->content);
    memset(k->writable, 0xff, words * sizeof(uint64_t));
    for (unsigned int i = 0; k->backend == DIRTY_RING && i < k->vcpus; i++) {
        k->rings[i].entries = calloc(k->ring_entries, sizeof(struct kvm_dirty_gfn));
        assert(k->rings[i].entries);
    }
}

void fake_destroy(struct fake_kvm *k)
{
    free(k->dirty);
    free(k->writable);
    free(k->content);
    for (unsigned int i = 0; i < FAKE_MAX_VCPUS; i++)
        free(k->rings[i].entries);
    pthread_mutex_destroy(&k->lock);
}

void fake_add_rings(struct fake_kvm *k, struct dirty_log *log)
{
    for (unsigned int i = 0; k->backend == DIRTY_RING && i < k->vcpus; i++) {
        int r = dirty_log_add_ring(log, k->rings[i].entries, k->ring_entries);

        assert(r == 0);
    }
}

static const struct mem_slot *slot_of(const struct fake_kvm *k, pfn_t page)
{
    unsigned int count;
    const struct mem_slot *slots = mem_slots(k->mem, &count);

    return pages_to_bytes(page) < slots[0].size ? &slots[0] : &slots[1];
}

static const struct mem_slot *slot_by_id(struct fake_kvm *k, uint32_t id)
{
    unsigned int count;
    const struct mem_slot *slots = mem_slots(k->mem, &count);

    if (id < count)
        return &slots[id];
    k->misuse++;
    return NULL;
}

/* -- the guest ---------------------------------------------------------------- */

static void push_locked(struct fake_kvm *k, unsigned int vcpu, uint32_t slot, uint64_t offset)
{
    struct fake_ring *ring = &k->rings[vcpu];
    struct kvm_dirty_gfn *e = &ring->entries[ring->dirty % k->ring_entries];

    assert(ring->dirty - ring->reset >= k->ring_entries || __atomic_load_n(&e->flags, __ATOMIC_RELAXED) == 0);
    __atomic_store_n(&e->slot, slot, __ATOMIC_RELAXED);
    __atomic_store_n(&e->offset, offset, __ATOMIC_RELAXED);
    __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
    ring->dirty++;
    if (ring->dirty - ring->reset >= k->ring_entries)
        __atomic_store_n(&k->overrun, true, __ATOMIC_RELAXED);
}

void fake_push(struct fake_kvm *k, unsigned int vcpu, uint32_t slot, uint64_t offset)
{
    pthread_mutex_lock(&k->lock);
    push_locked(k, vcpu, slot, offset);
    pthread_mutex_unlock(&k->lock);
}

/* KVM leaves room for some more. */
static bool full_locked(const struct fake_kvm *k, unsigned int vcpu)
{
    uint32_t room = k->ring_entries / 8 ? k->ring_entries / 8 : 1;

    return k->rings[vcpu].dirty - k->rings[vcpu].reset >= k->ring_entries - room;
}

bool fake_ring_full(struct fake_kvm *k, unsigned int vcpu)
{
    bool full;

    pthread_mutex_lock(&k->lock);
    full = full_locked(k, vcpu);
    pthread_mutex_unlock(&k->lock);
    return full;
}

static bool guest_write(struct fake_kvm *k, unsigned int vcpu, pfn_t page, bool burst)
{
    const struct mem_slot *slot = slot_of(k, page);
    bool done = true;

    pthread_mutex_lock(&k->lock);
    if (k->backend == DIRTY_RING && !burst && full_locked(k, vcpu)) {
        done = false;
    } else if (k->logging[slot->id] && !bitmap_test(k->writable, page)) {
        if (k->backend == DIRTY_BITMAP)
            bitmap_set_atomic(k->dirty, page);
        else
            push_locked(k, vcpu, slot->id, page - bytes_to_pages(slot->offset));
        bitmap_set(k->writable, page);
    }
    /* Under the lock, as if the TLB flush of a protecting ioctl had waited for this store. */
    if (done)
        __atomic_fetch_add(&k->content[page], 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&k->lock);
    return done;
}

bool fake_guest_write(struct fake_kvm *k, unsigned int vcpu, pfn_t page)
{
    return guest_write(k, vcpu, page, false);
}

void fake_guest_burst(struct fake_kvm *k, unsigned int vcpu, pfn_t page)
{
    (void)guest_write(k, vcpu, page, true);
}

void fake_vmm_write(struct fake_kvm *k, pfn_t page)
{
    __atomic_fetch_add(&k->content[page], 1, __ATOMIC_RELAXED);
    mem_mark_dirty(k->mem, gfn_to_gpa(mem_pfn_to_gfn(k->mem, page)), 8);
}

bool fake_overrun(const struct fake_kvm *k)
{
    return __atomic_load_n(&k->overrun, __ATOMIC_RELAXED);
}

bool fake_logging(const struct fake_kvm *k)
{
    return k->logging[0] || k->logging[1];
}

uint64_t fake_content(const struct fake_kvm *k, pfn_t page)
{
    return __atomic_load_n(&k->content[page], __ATOMIC_RELAXED);
}

/* -- operations --------------------------------------------------------------- */

static void fill(uint64_t *map, const struct mem_slot *slot, uint64_t value)
{
    size_t first = (size_t)bytes_to_pages(slot->offset) / 64, words = (size_t)bytes_to_pages(slot->size) / 64;

    for (size_t i = first; i < first + words; i++)
        __atomic_store_n(&map[i], value, __ATOMIC_RELAXED);
}

static int op_set_logging(void *opaque, bool on)
{
    struct fake_kvm *k = opaque;
    unsigned int count;
    const struct mem_slot *slots = mem_slots(k->mem, &count);
    int r = 0;

    pthread_mutex_lock(&k->lock);
    for (unsigned int i = 0; i < count && r == 0; i++) {
        if (rng_chance(&k->rng, k->fail_logging)) {
            r = -ENOMEM;
        } else if (k->logging[i] != on) {
            bool all = on && k->initially_set && k->backend == DIRTY_BITMAP;

            k->logging[i] = on;
            fill(k->dirty, &slots[i], all ? UINT64_MAX : 0);
            fill(k->writable, &slots[i], on && !all ? 0 : UINT64_MAX);
        }
    }
    pthread_mutex_unlock(&k->lock);
    return r;
}

static int op_get(void *opaque, uint32_t id, uint64_t *bitmap)
{
    struct fake_kvm *k = opaque;
    const struct mem_slot *slot = slot_by_id(k, id);
    size_t first, words;

    k->gets++;
    if (k->backend != DIRTY_BITMAP || !slot || !k->logging[id]) {
        k->misuse++;
        return -ENOENT;
    }
    if (rng_chance(&k->rng, k->fail_get))
        return -EFAULT;
    first = (size_t)bytes_to_pages(slot->offset) / 64;
    words = (size_t)bytes_to_pages(slot->size) / 64;
    for (size_t i = 0; i < words; i++)
        bitmap[i] = __atomic_load_n(&k->dirty[first + i], __ATOMIC_ACQUIRE);
    return 0;
}

static int op_clear(void *opaque, uint32_t id, uint64_t first_page, uint32_t num_pages, const uint64_t *bitmap)
{
    struct fake_kvm *k = opaque;
    const struct mem_slot *slot = slot_by_id(k, id);
    uint64_t pages = slot ? bytes_to_pages(slot->size) : 0;
    size_t word;

    k->clears++;
    if (!slot || !k->logging[id] || first_page % 64 || num_pages == 0 || first_page > pages ||
        num_pages > pages - first_page || (num_pages % 64 && num_pages != pages - first_page)) {
        k->misuse++;
        return -EINVAL;
    }
    if (rng_chance(&k->rng, k->fail_clear))
        return -EFAULT;
    word = (size_t)(bytes_to_pages(slot->offset) + first_page) / 64;
    for (uint32_t i = 0; i < num_pages / 64; i++) {
        uint64_t mask;

        pthread_mutex_lock(&k->lock);
        mask = __atomic_fetch_and(&k->dirty[word + i], ~bitmap[i], __ATOMIC_RELAXED) & bitmap[i];
        k->writable[word + i] &= ~mask;
        pthread_mutex_unlock(&k->lock);
    }
    return 0;
}

/* Take one entry back; false when there is none. */
static bool reset_one(struct fake_kvm *k, struct fake_ring *ring)
{
    struct kvm_dirty_gfn *e = &ring->entries[ring->reset % k->ring_entries];
    const struct mem_slot *slot;
    unsigned int count;
    const struct mem_slot *slots = mem_slots(k->mem, &count);

    if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_RESET))
        return false;
    if (k->taking)
        k->taking(k->taking_arg);
    pthread_mutex_lock(&k->lock);
    /* Nobody may give back what KVM has not written. */
    k->misuse += ring->reset == ring->dirty;
    slot = e->slot < count ? &slots[e->slot] : NULL;
    if (slot && e->offset < bytes_to_pages(slot->size)) {
        uint64_t page = bytes_to_pages(slot->offset) + e->offset;

        if (k->logging[slot->id])
            k->writable[page / 64] &= ~(UINT64_C(1) << (page % 64));
    }
    __atomic_store_n(&e->flags, 0, __ATOMIC_RELEASE);
    ring->reset++;
    pthread_mutex_unlock(&k->lock);
    return true;
}

static int op_reset_rings(void *opaque)
{
    struct fake_kvm *k = opaque;
    unsigned int most = k->reset_at_most ? k->reset_at_most : UINT32_MAX, done = 0;

    k->resets++;
    if (k->backend != DIRTY_RING)
        k->misuse++;
    if (rng_chance(&k->rng, k->fail_reset)) {
        /* A signal, or worse; before anything was done or after a part. */
        most = (unsigned int)rng_below(&k->rng, 3);
        for (unsigned int i = 0; i < k->vcpus; i++)
            while (done < most && reset_one(k, &k->rings[i]))
                done++;
        return rng_chance(&k->rng, 50) ? -EINTR : -ENOMEM;
    }
    for (unsigned int i = 0; i < k->vcpus; i++)
        while (done < most && reset_one(k, &k->rings[i]))
            done++;
    return (int)done;
}

static int op_kick(void *opaque, bool crowded)
{
    struct fake_kvm *k = opaque;

    (void)crowded;
    k->kicks++;
    return k->kick ? k->kick(k->kick_arg) : 0;
}

const struct dirty_ops fake_ops = {
    .set_logging = op_set_logging,
    .get = op_get,
    .clear = op_clear,
    .reset_rings = op_reset_rings,
};

const struct dirty_ops fake_ops_with_kick = {
    .set_logging = op_set_logging,
    .get = op_get,
    .clear = op_clear,
    .reset_rings = op_reset_rings,
    .kick_vcpus = op_kick,
};
